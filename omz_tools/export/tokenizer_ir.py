"""The folder that OpenVINO GenAI loads: beside the model the tokenizer and the detokenizer as IR, and settings."""

import shutil
from collections.abc import Collection, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

from omz_tools.cache.stages import Ingredients
from omz_tools.errors import CheckpointError, MissingError
from omz_tools.export import nodes
from omz_tools.export.checkpoint import CONFIG
from omz_tools.export.tokenizer import PARTS, WHOLE
from omz_tools.system import libraries

# Goes up whenever this module makes other files of the same ingredients.
FORMAT = 1

# The names are those that openvino_genai.LLMPipeline looks for in a folder.
MODEL = "openvino_model"
TOKENIZERS = ("openvino_tokenizer", "openvino_detokenizer")

# The tokenizer as transformers saves it, and settings.
_COPIED = (
    CONFIG, "generation_config.json", WHOLE, "tokenizer_config.json", *PARTS, "special_tokens_map.json",
    "added_tokens.json",
)  # fmt: skip


def copied(present: Collection[str]) -> list[str]:
    """Those of a checkpoint's files that go into the folder as they are.

    Raises:
        MissingError: there is no tokenizer among them.
    """
    if WHOLE not in present and not set(PARTS) <= set(present):
        raise MissingError(
            f"the descriptor pins no tokenizer: neither {WHOLE} nor {' and '.join(PARTS)}",
            hint="A model with a state is made for texts. Add them with omz_pin, and run omz_downloader again.",
        )
    return [name for name in _COPIED if name in present]


def names(present: Collection[str]) -> list[str]:
    """All files of the folder, the model first. Raises as `copied` does."""
    irs = [f"{name}{suffix}" for name in (MODEL, *TOKENIZERS) for suffix in (".xml", ".bin")]
    return irs + copied(present)


def ingredients() -> Ingredients:
    """What the files depend on besides those of the checkpoint."""
    # The last two are not used for any tokenizer here; the IR says which versions there are.
    names = ("openvino-tokenizers", "transformers", "tokenizers", "openvino", "tiktoken", "sentencepiece")
    return {"format": FORMAT} | {name: libraries.version(name) for name in names}


def write(checkpoint: Path, present: Collection[str], targets: Iterable[Path]) -> None:
    """Write all but the model itself.

    Args:
        checkpoint: the folder with the files of the tokenizer.
        present: those of them that are pinned; no other is read.
        targets: the folders to write to.

    Raises:
        MissingError: as `copied` does.
        CheckpointError: the tokenizer cannot be used, or is of a kind that OpenVINO has no operators for.
        OSError: a file cannot be read or written.
    """
    names = copied(present)
    openvino = libraries.load("openvino")
    converter, transformers = libraries.load("openvino_tokenizers"), libraries.load("transformers")
    with TemporaryDirectory() as scratch:
        for name in names:
            shutil.copyfile(checkpoint / name, Path(scratch, name))
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                scratch, local_files_only=True, trust_remote_code=False
            )
            # Prompts of a batch end together, where the next token goes.
            tokenizer.padding_side = "left"
            tokenizer.name_or_path = ""
            models = converter.convert_tokenizer(tokenizer, with_detokenizer=True)
        except Exception as error:
            raise CheckpointError(
                f"the tokenizer in {checkpoint} cannot be made an IR: {libraries.reason(error)}",
                hint="It must be the tokenizer that the model was published with.",
            ) from error
    for folder in targets:
        for name in names:
            shutil.copyfile(checkpoint / name, folder / name)
        for name, model in zip(TOKENIZERS, models, strict=True):
            model.set_friendly_name(name)
            nodes.rename(model, tensors=True)
            openvino.save_model(model, folder / f"{name}.xml", compress_to_fp16=False)
