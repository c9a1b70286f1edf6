"""Conversions of gpt-2 at its true size with random weights, in turn with Open Model Zoo's own converter.

Each way makes both precisions, as a whole process; the page cache is warm for all. Ways that need an option which this
omz_converter does not have are left out. The second checkpoint, a fine-tune as it were, has the same config.json and
other weights. Open Model Zoo's converter, where one is named, gets the same weights in a pytorch_model.bin, beside what
its omz_downloader put into DIR.

Needs 6 GB of disk, 10 GB with Open Model Zoo's.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import measuring
from measuring import Figure, Way

INCUMBENT = "Open Model Zoo's omz_converter"
QUICK = "with the quick proof"
PRECISIONS = ("FP16", "FP32")


def main() -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("--runs", type=int, default=3, help="of each way, after one warm-up (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default: 0)")
    parser.add_argument("--incumbent", type=Path, metavar="OMZ_CONVERTER", help="Open Model Zoo's own command")
    parser.add_argument("--incumbent_download_dir", type=Path, metavar="DIR", help="where its omz_downloader put gpt-2")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave the last IRs in DIR/ours and DIR/incumbent")
    args = parser.parse_args()
    if args.incumbent and not args.incumbent_download_dir:
        parser.error("--incumbent needs --incumbent_download_dir")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not measuring.room_for(folder, 10e9 if args.incumbent else 6e9, "the conversion of gpt-2"):
            sys.exit(1)
        compare(folder, args)


def compare(folder: Path, args: argparse.Namespace) -> None:
    downloaded = measuring.checkpoint(folder, "gpt-2", args.seed)
    ways = ours(folder, downloaded, args.seed)
    reference = QUICK
    if args.incumbent:
        write_incumbent_tree(folder, args.incumbent_download_dir, downloaded / "model.safetensors")
        ways = {INCUMBENT: incumbent(folder, args.incumbent)} | ways
        reference = INCUMBENT
    table = measuring.compare("gpt-2 to FP16 and FP32", ways, args.runs, reference)
    if args.keep:
        keep(downloaded.parent, args.keep / "ours")
        keep(folder / "incumbent-out" / "public" / "gpt-2", args.keep / "incumbent")
    measuring.write(args.json, "convert", {"tables": [table]})


def ours(folder: Path, downloaded: Path, seed: int) -> dict[str, Way]:
    """The ways of this project's omz_converter, as many as it has options for."""
    options = measuring.options("omz_converter")
    off = ["--verify", "off"] if "--verify" in options else []

    def convert(checkpoint: Path, *more: str) -> Figure:
        words = ["--name", checkpoint.parent.name, "--models_dir", "models", "-d", "tree"]
        return measuring.measure(["omz_converter", *words, *more], folder)

    def anew(*more: str) -> Way:
        def way() -> Figure:
            measuring.clear(downloaded)
            return convert(downloaded, *more)

        return way

    ways = {QUICK: anew()}
    if off:
        ways["proof off"] = anew(*off)
    if "--cache_dir" in options:
        ways |= with_store(
            folder, downloaded, seed, lambda checkpoint: convert(checkpoint, *off, "--cache_dir", "store")
        )
    if "--check" in options:
        # The last way before these has left everything in place, by the same options.
        same = [*off, *(["--cache_dir", "store"] if "--cache_dir" in options else [])]
        ways["nothing changed, seen by hashing"] = lambda: convert(downloaded, *same, "--check", "hash")
        ways["nothing changed, seen by size and time"] = lambda: convert(downloaded, *same, "--check", "stat")
        code = "import hashlib, sys; hashlib.file_digest(open(sys.argv[1], 'rb'), 'sha256')"
        hashing = [sys.executable, "-c", code, downloaded / "model.safetensors"]
        ways["(sha256 of the weights, in Python)"] = lambda: measuring.measure(hashing, folder)
    return ways


def with_store(folder: Path, downloaded: Path, seed: int, convert: Callable[[Path], Figure]) -> dict[str, Way]:
    """The ways that keep what they make in `folder/store`, in the order in which one needs what the other left."""
    tuned = measuring.checkpoint(folder, "gpt-2-tuned", seed + 1)
    store, of_one = folder / "store", folder / "store-of-one"
    results = [downloaded.parent / precision for precision in PRECISIONS]

    def cold() -> Figure:
        measuring.clear(downloaded)
        measuring.empty(store)
        figure = convert(downloaded)
        shutil.rmtree(of_one, ignore_errors=True)
        shutil.copytree(store, of_one)
        return figure

    def fine_tune() -> Figure:
        measuring.clear(tuned)
        shutil.rmtree(store)
        of_one.rename(store)
        os.sync()
        return convert(tuned)

    def fresh_folder() -> Figure:
        measuring.clear(downloaded)
        return convert(downloaded)

    def copied() -> Figure:
        measuring.empty(folder / "copies")
        return measuring.measure(["cp", "-r", "--reflink=never", *results, "copies"], folder)

    return {
        "proof off, into an empty store": cold,
        "proof off, a fine-tune: the store has its graph": fine_tune,
        "a fresh folder: the store has everything": fresh_folder,
        "(cp of both IRs)": copied,
    }


def incumbent(folder: Path, command: Path) -> Way:
    # It starts `mo` by name, and must not find this package before its own of the same name.
    settings = {"PATH": f"{command.absolute().parent}:{os.environ['PATH']}", "PYTHONPATH": None}

    def way() -> Figure:
        measuring.empty(folder / "incumbent-out")
        words = [command.absolute(), "--name", "gpt-2", "-d", "incumbent", "-o", "incumbent-out"]
        return measuring.measure(words, folder, settings)

    return way


def write_incumbent_tree(folder: Path, downloaded: Path, weights: Path) -> None:
    """What its omz_downloader left in `downloaded`, with our weights as a pickle, the only form that it reads."""
    import safetensors.torch
    import torch

    tree = folder / "incumbent" / "public" / "gpt-2"
    not_wanted = shutil.ignore_patterns("pytorch_model.bin", "*.onnx", *PRECISIONS)
    shutil.copytree(downloaded / "public" / "gpt-2", tree, ignore=not_wanted)
    torch.save(safetensors.torch.load_file(weights), tree / "gpt2" / "pytorch_model.bin")


def keep(results: Path, target: Path) -> None:
    for precision in PRECISIONS:
        if (results / precision).exists():
            shutil.rmtree(target / precision, ignore_errors=True)
            shutil.copytree(results / precision, target / precision)


if __name__ == "__main__":
    main()
