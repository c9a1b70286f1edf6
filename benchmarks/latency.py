"""Latency of gpt-2's IR beside that of Open Model Zoo's converter, both run by the OpenVINO of this environment.

IR_DIR has FP16/gpt-2.xml and FP32/gpt-2.xml, as `convert.py --keep DIR` leaves them in DIR/ours and DIR/incumbent.
Both models are compiled for the processor with INFERENCE_PRECISION_HINT f32 and answer the same random token ids in
turn; which of them is first changes from round to round. Measured is one synchronous request, its output included. The
ratio is the median of the ratios within each round. Where both were made from the same weights, the last column shows
that they answer alike.
"""

import statistics
import time
from pathlib import Path
from typing import Any

import measuring
import numpy as np
import openvino

SHAPES = ((1, 16), (1, 128), (1, 1024), (4, 256))
PRECISIONS = ("FP16", "FP32")
VOCABULARY = 50257


def main() -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("ir_dir", type=Path, metavar="IR_DIR", help="with FP16/gpt-2.xml and FP32/gpt-2.xml")
    parser.add_argument("--incumbent", type=Path, metavar="IR_DIR", help="the same of Open Model Zoo's converter")
    parser.add_argument("--rounds", type=int, default=15, help="of each shape, after two to warm up (default: 15)")
    parser.add_argument("--shapes", type=shape, nargs="+", default=SHAPES, metavar="B,L", help="batch and length")
    args = parser.parse_args()
    folders = {"ours": args.ir_dir} | ({"incumbent": args.incumbent} if args.incumbent else {})
    title = f"one request, median of {args.rounds} in turn, OpenVINO {openvino.get_version().split('-')[0]}, f32"
    measuring.say(title)
    rows = []
    for precision in PRECISIONS:
        models = {name: compiled(folder / precision / "gpt-2.xml") for name, folder in folders.items()}
        for batch, length in args.shapes:
            row = {"precision": precision, "batch": batch, "length": length}
            row |= in_turn(models, (batch, length), args.rounds)
            measuring.say(line(row))
            rows.append(row)
    measuring.write(args.json, "latency", {"title": title, "rows": rows})


def shape(text: str) -> tuple[int, int]:
    batch, length = (int(part) for part in text.split(","))
    return batch, length


def compiled(xml: Path) -> Any:
    model = openvino.Core().compile_model(xml, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return model.create_infer_request()


def in_turn(models: dict[str, Any], shape: tuple[int, int], rounds: int) -> dict[str, Any]:
    """Seconds of each request of each model, and how far their answers are apart, relative to the largest logit."""
    ids = np.random.default_rng(0).integers(0, VOCABULARY, shape, dtype=np.int64)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(-2, rounds):
        for name in sorted(models, reverse=turn % 2 == 0):
            began = time.perf_counter()
            models[name].infer([ids], share_inputs=True, share_outputs=True)
            if turn >= 0:
                seconds[name].append(time.perf_counter() - began)
    found: dict[str, Any] = {"seconds": seconds}
    if len(models) > 1:
        answers = {name: model.get_output_tensor(0).data for name, model in models.items()}
        largest = np.abs(answers["incumbent"]).max()
        found["difference"] = float(np.abs(answers["ours"] - answers["incumbent"]).max() / largest)
        found["ratio"] = measuring.ratio(seconds["ours"], seconds["incumbent"])
    return found


def line(row: dict[str, Any]) -> str:
    medians = "  ".join(f"{name} {statistics.median(some) * 1e3:8.1f} ms" for name, some in row["seconds"].items())
    text = f"{row['precision']}  ({row['batch']}, {row['length']:4})  {medians}"
    return text + (f"  x{row['ratio']:.3f}  difference {row['difference']:.1e}" if "ratio" in row else "")


if __name__ == "__main__":
    main()
