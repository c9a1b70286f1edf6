"""What comes next? The five most probable next tokens of a prompt, by PyTorch and by each converted IR, side by side.

usage: next_tokens.py MODEL_DIR PROMPT

MODEL_DIR is a folder that omz_downloader and omz_converter filled, such as public/gpt-2-mini. Probabilities are in per
cent: the softmax of the logits at the last position.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from omz_tools.errors import MissingError, OmzError
from omz_tools.export import checkpoint
from omz_tools.export.pytorch_model import whole
from omz_tools.system import libraries

TOP = 5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("prompt")
    args = parser.parse_args()
    try:
        print(table(args.model_dir, args.prompt))
    except OmzError as error:
        print(f"########## Error: {error}", file=sys.stderr)
        return 1
    return 0


def table(folder: Path, prompt: str) -> str:
    """The comparison as text, a row for each rank."""
    irs = {xml.parent.name: xml for xml in sorted(folder.glob("FP*/*.xml"))}
    source = next((config.parent for config in sorted(folder.glob("*/config.json"))), None)
    if source is None or not irs:
        raise MissingError(f"{folder} holds no converted model", hint="Run omz_downloader and omz_converter first.")
    transformers, torch, np = libraries.load("transformers"), libraries.load("torch"), libraries.load("numpy")
    openvino = libraries.load("openvino")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(source / "tokenizer.json"))
    ids = np.array([tokenizer.encode(prompt)], dtype=np.int64)

    with torch.no_grad():
        logits = {"PyTorch": whole(checkpoint.load(source), "GPT2LMHeadModel")(torch.from_numpy(ids)).logits.numpy()}
    for precision, xml in irs.items():
        compiled = openvino.Core().compile_model(xml, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        logits[f"IR {precision}"] = compiled({"input": ids})["output"]

    columns = [[name, *best(values[0, -1], tokenizer)] for name, values in logits.items()]
    rows = ["  ".join(cell.ljust(30) for cell in row).rstrip() for row in zip(*columns, strict=True)]
    return "\n".join([f"Next token after {prompt!r}:", "", *rows])


def best(logits: Any, tokenizer: Any) -> list[str]:
    """The TOP tokens of logits [vocabulary], each with its probability in per cent."""
    np = libraries.load("numpy")
    odds = np.exp(logits.astype(np.float64) - logits.max())
    order = np.argsort(-logits, kind="stable")[:TOP]
    return [f"{tokenizer.decode([token])!r:17} {100 * odds[token] / odds.sum():8.4f} %" for token in order]


if __name__ == "__main__":
    sys.exit(main())
