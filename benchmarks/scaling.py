"""Time and memory of a conversion as the model grows: gpt-2, -medium, -large and -xl with random weights.

All layers, true widths; one model after the other, each removed before the next is written, the proof off. A size for
which the disk has no room is left out: gpt2-xl needs 6.5 GB for its checkpoint and 9.5 GB for both IRs.
"""

import argparse
import math
import os
import tempfile
from pathlib import Path

import measuring

SIZES = {
    "gpt2": {"n_layer": 12, "n_embd": 768, "n_head": 12},
    "gpt2-medium": {"n_layer": 24, "n_embd": 1024, "n_head": 16},
    "gpt2-large": {"n_layer": 36, "n_embd": 1280, "n_head": 20},
    "gpt2-xl": {"n_layer": 48, "n_embd": 1600, "n_head": 25},
}


def main() -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), metavar="NAME", help="default: all")
    parser.add_argument("--precisions", default="FP16,FP32", metavar="P[,P]", help="default: FP16,FP32")
    parser.add_argument("--no-masks", action="store_true", help="without the masks of the published checkpoints")
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default: 0)")
    args = parser.parse_args()
    off = ["--verify", "off"] if "--verify" in measuring.options("omz_converter") else []
    proof = "proof off" if off else "with the proof"
    title = f"{args.precisions}, {proof}, one run of each size, {os.cpu_count()} processors"
    measuring.say(title)
    rows = []
    for name in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            row = convert(Path(folder), name, args, off)
        if row:
            rows.append(row)
            line = measuring.table({f"{name} ({row['parameters'] / 1e6:.0f} million parameters)": [row["figure"]]})
            measuring.say(line)
    measuring.write(args.json, "scaling", {"title": title, "rows": rows})


def convert(folder: Path, name: str, args: argparse.Namespace, off: list[str]) -> dict[str, object] | None:
    """Parameters, bytes of the checkpoint, and the figure of one size; None without room for it."""
    import checkpoints

    config = checkpoints.GPT2 | SIZES[name]
    parameters = count(checkpoints.shapes(config, masks=False))
    size = 4 * count(checkpoints.shapes(config, masks=not args.no_masks))
    share = sum({"FP16": 2, "FP32": 4}[precision] for precision in args.precisions.split(","))
    if not measuring.room_for(folder, size + parameters * share + 1e9, name):
        return None
    measuring.checkpoint(folder, name, args.seed, masks=not args.no_masks, **SIZES[name])
    os.sync()
    words = ["--name", name, "--models_dir", "models", "-d", "tree", "--precisions", args.precisions, *off]
    figure = measuring.measure(["omz_converter", *words], folder)
    return {"name": name, "parameters": parameters, "checkpoint": size, "figure": figure}


def count(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


if __name__ == "__main__":
    main()
