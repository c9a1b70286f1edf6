"""What omz_downloader says before it starts, and where it takes files from without the network."""

import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import checkpoints
import pytest
import yaml
from conftest import Command, run_command
from hub import Hub

BELOW = Path("public") / "tiny" / "gpt2"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """The tiny repository on the Hub, pinned as the model "tiny" in `tmp_path / "models"`."""
    folder = checkpoints.write_repository(tmp_path / "repository", checkpoints.TINY, seed=7)
    checkpoints.pin(folder, tmp_path / "models", "tiny")
    with Hub(folder) as hub:
        yield hub


@pytest.fixture
def download(run: Command, tmp_path: Path, hub: Hub) -> Command:
    def download(*words: str | Path, **environment: str):  # type: ignore[no-untyped-def]
        settings = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hf-home")} | environment
        return run("omz_downloader", "--models_dir", tmp_path / "models", "--name", "tiny", *words, **settings)

    return download


def is_pinned(folder: Path, hub: Hub) -> bool:
    """Whether a folder holds the repository's files, all of them right, and nothing else."""
    return {p.name: p.read_bytes() for p in folder.iterdir()} == {n: f.path.read_bytes() for n, f in hub.files.items()}


# ---- Before starting


def test_a_dry_run_says_what_how_much_and_from_where_and_asks_for_nothing(
    download: Command, tmp_path: Path, hub: Hub
) -> None:
    total = sum(file.size for file in hub.files.values())
    done = download("--dry_run", "-o", "out", "--cache_dir", "cache")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert (
        lines[0] == f"tiny: 7 files, {total / 1e3:.1f} kB, license https://github.com/openai/gpt-2/blob/master/LICENSE"
    )
    assert lines[1] == f"  7 files, {total / 1e3:.1f} kB to fetch from {hub.endpoint}"
    # In the cache and in the folder.
    assert lines[2].startswith(f"{2 * total / 1e3:.1f} kB needed in {Path('out') / 'public' / 'tiny'}, ")
    assert lines[2].endswith(" GB free")
    assert len(lines) == 3
    assert hub.requests == []
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "cache").exists()


def test_what_is_there_already_and_what_a_cache_has_is_told_apart(download: Command, tmp_path: Path, hub: Hub) -> None:
    assert download("--cache_dir", "cache").returncode == 0
    (tmp_path / BELOW / "vocab.json").unlink()
    (tmp_path / BELOW / "model.safetensors").write_bytes(b"damaged")
    shutil.rmtree(tmp_path / "cache" / "1" / "sha256" / hub.files["vocab.json"].sha256[:2])
    lines = download("--dry_run", "--cache_dir", "cache").stdout.splitlines()
    assert [line.split(",")[0].strip() for line in lines[1:4]] == ["5 files", "1 file", "1 file"]
    assert "already there" in lines[1]
    assert f"to fetch from {hub.endpoint}" in lines[2]
    assert "from the cache cache" in lines[3]


def test_a_dry_run_with_everything_in_place_needs_no_room(download: Command) -> None:
    assert download().returncode == 0
    done = download("--dry_run")
    assert (done.returncode, done.stdout.count("needed in")) == (0, 0)


def test_a_dry_run_fails_where_the_run_would(download: Command, run: Command, tmp_path: Path, hub: Hub) -> None:
    path = tmp_path / "models" / "tiny" / "model.yml"
    path.write_text(path.read_text().replace("size: ", "size: 900000000"))
    done = download("--dry_run")
    assert done.returncode == 1
    assert "MB are needed in" in done.stderr
    assert run("omz_downloader", "--models_dir", "models", "--name", "nothing", "--dry_run").returncode == 1


def test_the_preview_of_several_models_adds_up_and_a_broken_descriptor_stops_no_other(
    run: Command, tmp_path: Path, hub: Hub
) -> None:
    shutil.copytree(tmp_path / "models" / "tiny", tmp_path / "models" / "two")
    shutil.copytree(tmp_path / "models" / "tiny", tmp_path / "models" / "broken")
    (tmp_path / "models" / "broken" / "model.yml").write_text("files: [")
    total = sum(file.size for file in hub.files.values())
    words = ("omz_downloader", "--models_dir", "models", "--name", "tiny,broken,two")
    done = run(*words, HF_ENDPOINT=hub.endpoint, HF_HOME=str(tmp_path / "hf"))
    assert done.returncode == 1
    assert f"{2 * total / 1e3:.1f} kB needed in" in done.stdout
    assert done.stdout.endswith("FAILED:\nbroken\n")
    assert is_pinned(tmp_path / "public" / "two" / "gpt2", hub)


def test_a_folder_where_a_file_is_to_be_is_an_error_before_anything_is_asked_for(
    download: Command, tmp_path: Path, hub: Hub
) -> None:
    (tmp_path / BELOW / "vocab.json").mkdir(parents=True)
    done = download()
    assert done.returncode == 1
    assert "vocab.json failed: Is a directory\nA folder lies where a file is to be" in done.stderr
    assert "Make room" not in done.stderr
    assert hub.requests == []


def test_a_name_that_the_file_system_cannot_express_is_an_error_that_says_so(
    run: Command, tmp_path: Path, tiny: Path
) -> None:
    path = tmp_path / "models" / "tiny" / "model.yml"
    path.write_text(path.read_text().replace("gpt2/vocab.json", "gpt2/語.json"), encoding="utf-8")
    words = ("omz_downloader", "--models_dir", "models", "--name", "tiny")
    ascii = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = run(*words, "--cache_dir", "cache", **ascii)
    assert done.returncode == 1
    assert done.stderr.count("########## Error: ") == 1
    assert "\\u8a9e.json failed: file names here are in " in done.stderr
    assert "Traceback" not in done.stderr
    assert run(*words).returncode == 0


@pytest.mark.parametrize("number", ["0", "65", "x", "-1", "4.0"])
def test_a_number_of_connections_that_is_none_is_wrong_usage(download: Command, number: str) -> None:
    done = download(f"--connections={number}")
    assert done.returncode == 2
    assert "is not a number from 1 to 64" in done.stderr


# ---- Without the network


@pytest.mark.parametrize("how", ["--offline", "HF_HUB_OFFLINE"])
@pytest.mark.parametrize("kind", ["hugging_face", "http"])
def test_offline_no_server_is_asked_whatever_the_kind_of_source(
    download: Command, tmp_path: Path, hub: Hub, how: str, kind: str
) -> None:
    if kind == "http":
        path = tmp_path / "models" / "tiny" / "model.yml"
        model = yaml.safe_load(path.read_text())
        for entry in model["files"]:
            entry["source"] = f"{hub.endpoint}/{hub.repo}/resolve/{hub.revision}/{Path(entry['name']).name}"
        path.write_text(yaml.safe_dump(model))
    done = download("--offline") if how == "--offline" else download(HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert "is not fetched: --offline or HF_HUB_OFFLINE is set" in done.stderr
    assert hub.requests == []
    assert not (tmp_path / "public").exists()


def test_offline_the_model_that_travels_with_the_package_is_there(run: Command, tmp_path: Path) -> None:
    done = run("omz_downloader", "--name", "gpt-2-mini", "--offline")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_cache_may_be_named_by_the_environment(download: Command, tmp_path: Path, hub: Hub) -> None:
    assert download("-o", "one", OMZ_CACHE_DIR=str(tmp_path / "cache")).returncode == 0
    requests = len(hub.requests)
    done = download("-o", "two", "--offline", OMZ_CACHE_DIR=str(tmp_path / "cache"))
    assert done.returncode == 0
    assert done.stdout.count("... from the cache") == 7
    assert len(hub.requests) == requests
    assert is_pinned(tmp_path / "two" / BELOW, hub)


def test_an_empty_name_of_the_cache_is_none(download: Command, tmp_path: Path) -> None:
    assert download(OMZ_CACHE_DIR="").returncode == 0
    assert {path.name for path in tmp_path.iterdir()} == {"models", "public", "repository"}


# ---- The Hub's own cache


@pytest.fixture
def hub_cache(tmp_path: Path, hub: Hub) -> Path:
    """The folder of the repository in HF_HOME, filled by the Hub's own tool."""
    done = run_command(
        "hf", "download", hub.repo, "--revision", hub.revision,
        cwd=tmp_path, HF_ENDPOINT=hub.endpoint, HF_HOME=str(tmp_path / "hf-home"), HF_HUB_DISABLE_XET="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    hub.requests.clear()
    [folder] = (tmp_path / "hf-home" / "hub").glob("models--*")
    return folder


@pytest.mark.parametrize("offline", [True, False])
def test_what_the_hubs_own_tool_has_fetched_does_not_travel_again(
    download: Command, tmp_path: Path, hub: Hub, hub_cache: Path, offline: bool
) -> None:
    preview = download("--dry_run")
    assert "7 files" in preview.stdout
    assert "from the Hub's cache" in preview.stdout
    done = download("--cache_dir", "cache", *(["--offline"] if offline else []))
    assert done.returncode == 0
    # Three of the small files are the same.
    assert done.stdout.count("... from the Hub's cache") == 5
    assert done.stdout.count("... from the cache") == 2
    assert hub.requests == []
    assert is_pinned(tmp_path / BELOW, hub)
    for path in (tmp_path / BELOW).iterdir():
        # The Hub's tool keeps links; ONNX and OpenVINO refuse weights behind them.
        assert path.is_file()
        assert not path.is_symlink()
        assert path.stat().st_nlink == 1
        assert path.stat().st_mode & stat.S_IWUSR
    blobs = [path for path in (tmp_path / "cache" / "1" / "sha256").rglob("*") if path.is_file()]
    assert {path.name for path in blobs} == {file.sha256 for file in hub.files.values()}


def test_hf_hub_cache_is_honoured(download: Command, tmp_path: Path, hub: Hub, hub_cache: Path) -> None:
    hub_cache.parent.rename(tmp_path / "elsewhere")
    assert download("--offline").returncode == 1
    assert download("--offline", HF_HUB_CACHE=str(tmp_path / "elsewhere")).returncode == 0
    assert is_pinned(tmp_path / BELOW, hub)


def test_a_damaged_file_in_the_hubs_cache_is_left_there_and_not_used(
    download: Command, tmp_path: Path, hub: Hub, hub_cache: Path
) -> None:
    [link] = hub_cache.glob("snapshots/*/vocab.json")
    data = bytearray(link.read_bytes())
    data[5] ^= 1
    link.resolve().write_bytes(data)
    done = download()
    assert done.returncode == 0
    assert "vocab.json is damaged; it is left as it is, and not used" in done.stdout
    assert {request.rpartition("/")[2] for request in hub.requests} == {"vocab.json"}
    assert is_pinned(tmp_path / BELOW, hub)
    assert link.read_bytes() == data
    shutil.rmtree(tmp_path / "public")
    done = download("--offline")
    assert done.returncode == 1
    assert "vocab.json" in done.stderr


def test_a_large_file_is_found_in_the_hubs_cache_whichever_revision_it_came_with(
    download: Command, tmp_path: Path, hub: Hub
) -> None:
    weights = hub.files["model.safetensors"]
    blob = tmp_path / "hf-home" / "hub" / "models--openai-community--gpt2" / "blobs" / weights.sha256
    blob.parent.mkdir(parents=True)
    shutil.copy(weights.path, blob)
    done = download()
    assert done.returncode == 0
    assert hub.gets("model.safetensors") == 0
    assert is_pinned(tmp_path / BELOW, hub)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may read everything")
def test_an_unreadable_file_in_the_hubs_cache_costs_no_more_than_fetching_it(
    download: Command, tmp_path: Path, hub: Hub, hub_cache: Path
) -> None:
    [link] = hub_cache.glob("snapshots/*/vocab.json")
    link.resolve().chmod(0)
    assert download().returncode == 0
    assert is_pinned(tmp_path / BELOW, hub)


# ---- Postprocessing


def test_a_text_that_is_changed_afterwards_is_kept_as_it_was_pinned_and_not_fetched_again(
    download: Command, tmp_path: Path, hub: Hub
) -> None:
    path = tmp_path / "models" / "tiny" / "model.yml"
    step = {"$type": "regex_replace", "file": "gpt2/merges.txt", "pattern": "version", "replacement": "VERSION"}
    path.write_text(path.read_text() + yaml.safe_dump({"postprocessing": [step]}))
    done = download("--progress_format", "json")
    assert done.returncode == 0
    events = [json.loads(line) for line in done.stdout.splitlines()]
    kinds = [event["$type"] for event in events]
    assert kinds.index("model_postprocessing_begin") + 1 == kinds.index("model_postprocessing_end")
    assert kinds[-1] == "model_download_end"
    original = hub.files["merges.txt"].path.read_text()
    assert (tmp_path / BELOW / "merges.txt.orig").read_text() == original
    assert (tmp_path / BELOW / "merges.txt").read_text() == original.replace("version", "VERSION")
    requests = len(hub.requests)
    assert download().stdout.count("... already there") == 7
    assert len(hub.requests) == requests
    path.write_text(path.read_text().replace("pattern: version", "pattern: not in it"))
    done = download()
    assert done.returncode == 1
    assert "Invalid pattern" in done.stderr
    assert (tmp_path / BELOW / "merges.txt").read_text() == original.replace("version", "VERSION")
