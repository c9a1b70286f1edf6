"""Downloads over loopback, beside other ways of getting the same file, alternating in one run.

A file of the size of gpt-2's weights is served by the Hub's stand-in of the tests. Compared are, as whole processes:
omz_downloader, curl followed by sha256sum, `hf download` (which does not verify), cp, and Open Model Zoo's own
omz_downloader where one is named; its gpt-2 must point to a server that runs. Then the same from a server that gives
each connection 20 MB/s, with one connection and with four; and a run that finds everything in place. The page cache is
warm for all.
"""

import argparse
import hashlib
import os
import tempfile
from pathlib import Path

import measuring
import yaml
from measuring import Figure, Way

GPT2 = 548_105_171
COMMIT = "607a30d783dfa663caf39e06633721c8d4cfcd7e"

from hub import Hub  # noqa: E402 (of the tests, which `measuring` put on the path)


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
    parser = measuring.parser(__doc__)
    parser.add_argument("--runs", type=int, default=5, help="of each way, after one warm-up (default: 5)")
    parser.add_argument("--size", type=int, default=GPT2, metavar="BYTES", help="of the file (default: as gpt-2's)")
    parser.add_argument("--incumbent", type=Path, metavar="OMZ_DOWNLOADER", help="Open Model Zoo's own command")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        digest = write_model(folder, args.size)
        with Hub(folder / "repository") as hub:
            tables = compare(folder, hub, digest, args)
    measuring.write(args.json, "download", {"tables": tables})


def compare(folder: Path, hub: Hub, digest: str, args: argparse.Namespace) -> list[dict[str, object]]:
    settings = {
        "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder / "hf"), "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_XET": "1",
    }  # fmt: skip
    url = f"{hub.endpoint}/{hub.repo}/resolve/{COMMIT}/model.safetensors"
    ours = ["omz_downloader", "--name", "large", "--models_dir", "models"]

    def fresh(*command: str | Path, **more: None) -> Way:
        def way() -> Figure:
            measuring.empty(folder / "out", folder / "hf")
            return measuring.measure(command, folder, settings | more)

        return way

    shell = f"curl -sSfL -o out/file {url} && echo '{digest}  out/file' | sha256sum --check --quiet"
    source = folder / "repository" / "model.safetensors"
    ways = {
        "curl, then sha256sum": fresh("sh", "-c", shell),
        "omz_downloader": fresh(*ours, "-o", "out"),
        "omz_downloader --connections 1": fresh(*ours, "-o", "out", "--connections", "1"),
        "omz_downloader --cache_dir (empty)": fresh(*ours, "-o", "out", "--cache_dir", "out/cache"),
        "hf download (not verified)": fresh(
            "hf", "download", hub.repo, "model.safetensors", "--revision", COMMIT, "--local-dir", "out"
        ),
        "cp, then sync": fresh("sh", "-c", f"cp {source} out/file && sync out/file"),
    }
    if args.incumbent:
        ways["Open Model Zoo's omz_downloader"] = fresh(
            args.incumbent.absolute(), "--name", "gpt-2", "-o", "out", PYTHONPATH=None
        )
    title = f"{args.size:,} bytes over loopback"
    tables = [measuring.compare(title, ways, args.runs, "curl, then sha256sum")]

    kept = folder / "kept" / "public" / "large" / "gpt2" / "model.safetensors"
    measuring.measure([*ours, "-o", "kept", "--cache_dir", "cache"], folder, settings)
    ways = {
        "sha256sum": lambda: measuring.measure(["sha256sum", kept], folder, settings),
        "omz_downloader": lambda: measuring.measure([*ours, "-o", "kept"], folder, settings),
        "omz_downloader, from --cache_dir to a fresh folder": fresh(*ours, "-o", "out", "--cache_dir", "cache"),
    }
    tables.append(measuring.compare("everything is in place", ways, args.runs, "sha256sum"))

    hub.rate = 20e6
    ways = {f"omz_downloader --connections {n}": fresh(*ours, "-o", "out", "--connections", str(n)) for n in (1, 4)}
    title = "each connection gets 20 MB/s"
    tables.append(measuring.compare(title, ways, 1, "omz_downloader --connections 1"))
    return tables


if __name__ == "__main__":
    main()
