"""Wall time and peak memory of the commands, each as a whole process.

usage: commands.py [--runs N] [--gpt2]

Works in a temporary folder. `--gpt2` adds gpt-2 at its true size, with a seeded random checkpoint taken from the local
disk (about 2.5 GB of disk). Memory is the largest resident set that the operating system counted, file-backed pages of
weights included.
"""

import argparse
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BIN = Path(sys.executable).parent
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


def measure(words: list[str], folder: Path) -> tuple[float, float]:
    """Seconds and peak memory in MB of one run."""
    began = time.perf_counter()
    process = subprocess.Popen([BIN / words[0], *words[1:]], cwd=folder, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if os.waitstatus_to_exitcode(status):
        sys.exit(f"{' '.join(words)} failed")
    return seconds, usage.ru_maxrss * 1024 / 1e6


def report(name: str, words: list[str], folder: Path, runs: int, fresh: tuple[str, ...] = ()) -> None:
    """Measure `runs` times after one warm-up, with the folders `fresh` removed before each run; print the medians."""
    figures = []
    for run in range(runs + 1):
        for part in fresh:
            shutil.rmtree(folder / part, ignore_errors=True)
        figure = measure(words, folder)
        if run:
            figures.append(figure)
    seconds, memory = zip(*figures, strict=True)
    spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
    print(
        f"{name:56}  {statistics.median(seconds):7.2f} s  ({spread})  {statistics.median(memory):6.0f} MB", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--gpt2", action="store_true")
    args = parser.parse_args()
    print(f"median of {args.runs} runs after one warm-up (smallest to largest); {os.cpu_count()} processors")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report("list all models", ["omz_downloader", "--print_all"], folder, args.runs)
        suite("gpt-2-mini", ["--name", "gpt-2-mini"], folder, args.runs)
        if args.gpt2:
            # In a process of its own: what the parent holds when it starts a command counts as the command's memory.
            maker = multiprocessing.get_context("spawn").Process(target=make_checkpoint, args=(folder,))
            maker.start()
            maker.join()
            suite("gpt-2, from the local disk", ["--name", "gpt-2", "--models_dir", "models"], folder, args.runs)


def make_checkpoint(folder: Path) -> None:
    """gpt-2 at its true size with random weights, and a descriptor that pins it."""
    import checkpoints

    repository = checkpoints.write_repository(folder / "repository", checkpoints.GPT2, seed=0)
    checkpoints.pin_locally(repository, folder / "models", "gpt-2")


def suite(title: str, model: list[str], folder: Path, runs: int) -> None:
    report(f"download {title}", ["omz_downloader", *model], folder, runs, fresh=("public",))
    report(f"download {title}: already there", ["omz_downloader", *model], folder, runs)
    report(f"convert {title}: FP16, FP32, proof", ["omz_converter", *model], folder, runs)


if __name__ == "__main__":
    main()
