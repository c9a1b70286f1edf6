"""Downloads over loopback, beside other ways of getting the same file, alternating in one run.

usage: download.py [--runs N] [--size BYTES] [--incumbent OMZ_DOWNLOADER]

A file of the size of gpt-2's weights is served by the Hub's stand-in of the tests. Compared are, as whole processes:
omz_downloader, curl followed by sha256sum, `hf download` (which does not verify), cp, and Open Model Zoo's own
omz_downloader where one is named; its gpt-2 must point to a server that runs. Then the same from a server that gives
each connection 20 MB/s, with one connection and with four; and a run that finds everything in place.

Memory is the largest resident set that the operating system counted. The page cache is warm for all.
"""

import argparse
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import yaml

BIN = Path(sys.executable).parent
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from hub import Hub  # noqa: E402

GPT2 = 548_105_171
COMMIT = "607a30d783dfa663caf39e06633721c8d4cfcd7e"
Figure = tuple[float, float]


def measure(command: list[str], folder: Path, settings: dict[str, str]) -> Figure:
    """Seconds and peak memory in MB of one run."""
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, env=os.environ | settings, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if os.waitstatus_to_exitcode(status):
        sys.exit(f"{' '.join(command)} failed")
    return seconds, usage.ru_maxrss * 1024 / 1e6


def alternating(ways: dict[str, Callable[[], Figure]], runs: int) -> dict[str, list[Figure]]:
    """Each way in turn, `runs` times after one warm-up."""
    figures: dict[str, list[Figure]] = {name: [] for name in ways}
    for run in range(runs + 1):
        for name, way in ways.items():
            figure = way()
            if run:
                figures[name].append(figure)
    return figures


def report(figures: dict[str, list[Figure]], reference: str) -> None:
    base = statistics.median(seconds for seconds, _ in figures[reference])
    for name, some in figures.items():
        seconds = [s for s, _ in some]
        median, memory = statistics.median(seconds), max(m for _, m in some)
        spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
        print(f"{name:52}  {median:6.2f} s  ({spread})  x{median / base:.2f}  {memory:4.0f} MB", flush=True)


def write_model(folder: Path, size: int) -> str:
    """A repository of one file of random bytes, and a descriptor that pins it; the sha256."""
    hasher = hashlib.sha256()
    (folder / "repository").mkdir()
    with (folder / "repository" / "model.safetensors").open("wb") as file:
        for at in range(0, size, 1 << 20):
            data = os.urandom(min(1 << 20, size - at))
            hasher.update(data)
            file.write(data)
    entry = {
        "name": "gpt2/model.safetensors",
        "size": size,
        "checksum": {"$type": "sha256", "value": hasher.hexdigest()},
        "source": {
            "$type": "hugging_face",
            "repo": "openai-community/gpt2",
            "revision": COMMIT,
            "file": "model.safetensors",
        },
    }
    model = {"description": "-", "task_type": "text_prediction", "license": "https://example.com/", "files": [entry]}
    (folder / "models" / "large").mkdir(parents=True)
    (folder / "models" / "large" / "model.yml").write_text(yaml.safe_dump(model))
    return hasher.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--size", type=int, default=GPT2)
    parser.add_argument("--incumbent", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        digest = write_model(folder, args.size)
        with Hub(folder / "repository") as hub:
            compare(folder, hub, digest, args)


def compare(folder: Path, hub: Hub, digest: str, args: argparse.Namespace) -> None:
    settings = {
        "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder / "hf"), "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_XET": "1",
    }  # fmt: skip
    url = f"{hub.endpoint}/{hub.repo}/resolve/{COMMIT}/model.safetensors"
    ours = [str(BIN / "omz_downloader"), "--name", "large", "--models_dir", "models"]

    def fresh(*command: str) -> Callable[[], Figure]:
        def way() -> Figure:
            for part in ("out", "hf"):
                shutil.rmtree(folder / part, ignore_errors=True)
            (folder / "out").mkdir()
            return measure(list(command), folder, settings)

        return way

    shell = f"curl -sSfL -o out/file {url} && echo '{digest}  out/file' | sha256sum --check --quiet"
    source = folder / "repository" / "model.safetensors"
    ways = {
        "curl, then sha256sum": fresh("sh", "-c", shell),
        "omz_downloader": fresh(*ours, "-o", "out"),
        "omz_downloader --connections 1": fresh(*ours, "-o", "out", "--connections", "1"),
        "omz_downloader --cache_dir (empty)": fresh(*ours, "-o", "out", "--cache_dir", "out/cache"),
        "hf download (not verified)": fresh(
            str(BIN / "hf"), "download", hub.repo, "model.safetensors", "--revision", COMMIT, "--local-dir", "out"
        ),
        "cp, then sync": fresh("sh", "-c", f"cp {source} out/file && sync out/file"),
    }
    if args.incumbent:
        ways["Open Model Zoo's omz_downloader"] = fresh(str(args.incumbent), "--name", "gpt-2", "-o", "out")
    print(f"{args.size:,} bytes over loopback, {os.cpu_count()} processors; median of {args.runs} after one warm-up")
    report(alternating(ways, args.runs), "curl, then sha256sum")

    print("\nEverything is in place")
    subprocess.run([*ours, "-o", "kept", "--cache_dir", "cache"], cwd=folder, env=os.environ | settings, check=True,
                   stdout=subprocess.DEVNULL)  # fmt: skip
    kept = folder / "kept" / "public" / "large" / "gpt2" / "model.safetensors"
    ways = {
        "sha256sum": lambda: measure(["sha256sum", str(kept)], folder, settings),
        "omz_downloader": lambda: measure([*ours, "-o", "kept"], folder, settings),
        "omz_downloader, from --cache_dir to a fresh folder": fresh(*ours, "-o", "out", "--cache_dir", "cache"),
    }
    report(alternating(ways, args.runs), "sha256sum")

    print("\nEach connection gets 20 MB/s")
    hub.rate = 20e6
    ways = {f"omz_downloader --connections {n}": fresh(*ours, "-o", "out", "--connections", str(n)) for n in (1, 4)}
    report(alternating(ways, 1), "omz_downloader --connections 1")


if __name__ == "__main__":
    main()
