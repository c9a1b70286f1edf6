"""omz_evaluator: perplexity is what transformers says it is, and a model that is not as published fails."""

import hashlib
import importlib.util
import json
import math
import os
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import torch
import transformers
import yaml
from conftest import Command, Converted, run_command
from hub import Hub

from omz_tools.descriptors import zoo

HELD_OUT = zoo.shipped() / "gpt-2-mini" / "held-out" / "held-out.txt"
REVISION = "9" * 40
QUICK = ("--no_pytorch", "--precisions", "FP32")


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def pinned(data: bytes, name: str, source: object) -> dict[str, Any]:
    return {
        "name": name, "size": len(data), "checksum": {"$type": "sha256", "value": digest(data)}, "source": source
    }  # fmt: skip


def accuracy(**changes: Any) -> dict[str, Any]:
    words = {"metric": "perplexity", "dataset": "a text", "method": "windows", "source": "a page"}
    return words | {"value": 68.75, "tolerance": 0.05} | changes


def own_model(models: Path, root: Path, **changes: Any) -> tuple[str, ...]:
    """gpt-2-mini with another descriptor, in a copy of its folders; the arguments that choose it."""
    model = yaml.safe_load((zoo.shipped() / "gpt-2-mini" / "model.yml").read_text(encoding="utf-8")) | changes
    folder = models / "gpt-2-mini"
    folder.mkdir(parents=True)
    (folder / "model.yml").write_text(yaml.safe_dump(model), encoding="utf-8")
    return ("--models_dir", str(models), "--name", "gpt-2-mini", "-d", str(root))


def transformers_loss(folder: Path, ids: list[int], length: int) -> list[float]:
    """The loss of each window, by transformers alone."""
    model = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    windows = [torch.tensor([ids[n : n + length]]) for n in range(0, len(ids) - length + 1, length)]
    with torch.no_grad():
        return [model(window, labels=window).loss.item() for window in windows]


def results(done: Any) -> dict[str, Any]:
    [result] = json.loads(done.stdout)
    return result | {"figures": {figure["what"]: figure for figure in result["figures"]}}


@pytest.fixture
def root(mini: Converted, tmp_path: Path) -> Path:
    """A tree of its own with gpt-2-mini, downloaded and converted."""
    shutil.copytree(mini.folder.parents[1], tmp_path / "root")
    return tmp_path / "root"


# What is measured


def test_every_file_has_the_loss_that_transformers_computes_and_passes(mini: Converted, tmp_path: Path) -> None:
    root = mini.folder.parents[1]
    done = run_command("omz_evaluator", "--name", "gpt-2-mini", "-d", root, "--onnx", "--format", "json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = results(done)
    own = transformers.PreTrainedTokenizerFast(tokenizer_file=str(mini.folder / "gpt2-mini" / "tokenizer.json"))
    ids = own.encode(HELD_OUT.read_text(encoding="utf-8"))
    wanted = transformers_loss(mini.folder / "gpt2-mini", ids, 256)
    assert (result["tokens"], result["window"], result["windows"]) == (len(ids), 256, len(wanted)) == (7853, 256, 30)
    mean = sum(wanted) / len(wanted)
    assert list(result["figures"]) == ["PyTorch", "ONNX", "FP16", "FP32"]
    for what, figure in result["figures"].items():
        assert figure["loss"] == pytest.approx(mean, abs=1e-3 if what == "FP16" else 1e-4), what
        assert figure["perplexity"] == pytest.approx(math.exp(figure["loss"]))
        assert figure["passed"] is True
    assert result["figures"]["FP16"]["loss"] != pytest.approx(mean, abs=1e-7)  # it is of the FP16 file indeed
    weights = (mini.folder / "gpt2-mini" / "model.safetensors").stat().st_size
    files = [(mini.folder / "FP16" / f"gpt-2-mini.{kind}").stat().st_size for kind in ("xml", "bin")]
    assert result["figures"]["PyTorch"]["size"] == weights
    assert result["figures"]["ONNX"]["size"] == weights + (mini.folder / "gpt-2-mini.onnx").stat().st_size
    assert result["figures"]["FP16"]["size"] == sum(files)
    reference = result["reference"]
    assert (reference["value"], reference["tolerance"]) == (68.75, 0.05)
    assert "Measuring FP16 on 30 windows" in done.stderr


def test_the_table_shows_the_published_figure_beside_the_measured_ones(mini: Converted, run: Command) -> None:
    done = run("omz_evaluator", "--name", "gpt-2-mini", "-d", mini.folder.parents[1], "--no_pytorch")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    title = next(line for line in lines if "published: 68.75 ± 0.05" in line)
    rows = [line.split() for line in lines[lines.index(title) + 1 :]]
    assert [row[0] for row in rows] == ["FP16", "FP32"]
    assert all(row[-1] == "pass" and row[3].startswith("68.75") for row in rows)


def test_the_held_out_text_is_the_one_that_the_training_script_makes() -> None:
    path = zoo.shipped() / "gpt-2-mini" / "train.py"
    spec = importlib.util.spec_from_file_location("train", path)
    assert spec
    assert spec.loader
    train = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(train)
    # The documentation of the running Python changes a little from version to version.
    ours, theirs = (set(train.words(text).split()) for text in (HELD_OUT.read_text("utf-8"), train.split()[1]))
    assert len(ours & theirs) > 0.9 * len(ours)


def test_batches_change_nothing_and_the_tail_is_dropped(root: Path, run: Command) -> None:
    text = root / "text.txt"
    text.write_text(HELD_OUT.read_text(encoding="utf-8")[:5000], encoding="utf-8")
    found = []
    for size in (1, 3, 100):
        words = ("--text", text, "--batch_size", str(size), "--format", "json")
        done = run("omz_evaluator", "--name", "gpt-2-mini", "-d", root, *QUICK, *words)
        assert done.returncode == 0, done.stderr
        found.append(results(done))
    assert [result["windows"] for result in found] == [found[0]["tokens"] // 256] * 3
    assert found[0]["tokens"] % 256
    losses = [result["figures"]["FP32"]["loss"] for result in found]
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-6)
    assert found[0]["reference"] is None
    assert found[0]["figures"]["FP32"]["passed"] is None
    assert "is of another text: not compared" in done.stderr


def test_a_part_of_the_text_is_not_compared_with_the_figure_of_all(root: Path, run: Command) -> None:
    words = ("omz_evaluator", "--name", "gpt-2-mini", "-d", root, *QUICK, "--format", "json", "--max_windows", "2")
    done = run(*words, "--text", HELD_OUT)
    assert done.returncode == 0, done.stderr
    result = results(done)
    assert (result["windows"], result["reference"]) == (2, None)
    assert "the published 68.75 is of all 30 windows: not compared" in done.stderr


def test_with_the_tokenizer_of_gpt_2_the_loss_is_the_one_of_transformers(tmp_path: Path, run: Command) -> None:
    if not checkpoints.PUBLISHED:
        pytest.skip("OMZ_TEST_DATA names no folder with the published files of gpt2")
    config = checkpoints.TINY | {"vocab_size": 50257}
    repository = checkpoints.write_repository(tmp_path / "repository", config, seed=5)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(checkpoints.PUBLISHED / name, repository / name)
    path = checkpoints.pin_locally(repository, tmp_path / "models", "gpt-2")
    model = yaml.safe_load(path.read_text(encoding="utf-8"))
    model["files"] = [entry for entry in model["files"] if not entry["name"].endswith("/tokenizer.json")]
    path.write_text(yaml.safe_dump(model), encoding="utf-8")
    words = ("--models_dir", tmp_path / "models", "--name", "gpt-2")
    assert run("omz_downloader", *words).returncode == 0
    assert run("omz_converter", *words, "--precisions", "FP32", "--verify", "off").returncode == 0
    text = HELD_OUT.read_text(encoding="utf-8")[:6000]
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    measure = ("--onnx", "--precisions", "FP32", "--text", "text.txt", "--batch_size", "4", "--format", "json")
    done = run("omz_evaluator", *words, *measure)
    assert done.returncode == 0, done.stderr
    result = results(done)
    own = transformers.GPT2Tokenizer(*(str(checkpoints.PUBLISHED / name) for name in ("vocab.json", "merges.txt")))
    ids = own(text)["input_ids"]
    wanted = transformers_loss(tmp_path / "public" / "gpt-2" / "gpt2", ids, 48)
    assert (result["tokens"], result["windows"]) == (len(ids), len(wanted))
    for what in ("PyTorch", "ONNX", "FP32"):
        assert result["figures"][what]["loss"] == pytest.approx(sum(wanted) / len(wanted), abs=1e-4), what


# What is judged


def test_a_model_that_is_not_as_published_fails(root: Path, tmp_path: Path, run: Command) -> None:
    [shipped] = yaml.safe_load((zoo.shipped() / "gpt-2-mini" / "model.yml").read_text(encoding="utf-8"))["accuracy"]
    shipped["corpus"]["file"]["source"] = {"$type": "local", "path": str(HELD_OUT)}
    words = own_model(tmp_path / "models", root, accuracy=[shipped | {"value": 68.0}])
    done = run("omz_evaluator", *words, *QUICK)
    assert done.returncode == 1
    assert done.stdout.endswith("FAILED:\ngpt-2-mini\n")
    assert "fail\n" in done.stdout
    assert "perplexity is 68.75 by FP32; it was published as 68.00 and may differ by 0.05" in done.stderr
    (tmp_path / "models" / "gpt-2-mini" / "model.yml").unlink()
    (tmp_path / "models" / "gpt-2-mini").rmdir()
    del shipped["tolerance"]
    words = own_model(tmp_path / "models", root, accuracy=[shipped | {"value": 68.0}])
    done = run("omz_evaluator", *words, *QUICK)
    assert done.returncode == 0
    assert "published: 68.00\n" in done.stdout


# Where the text comes from


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A repository of a data set: an archive with the held-out text in it."""
    folder = tmp_path / "repository"
    folder.mkdir()
    with zipfile.ZipFile(folder / "texts.zip", "w", zipfile.ZIP_DEFLATED) as opened:
        opened.write(HELD_OUT, "some/held-out.txt")
        opened.writestr("other.txt", "nothing")
    return folder / "texts.zip"


def corpus(archive: Path, **changes: Any) -> dict[str, Any]:
    source = {"$type": "hugging_face", "repo_type": "dataset", "repo": "some/texts", "revision": REVISION}
    source["file"] = archive.name
    file = pinned(archive.read_bytes(), "texts.zip", source)
    return {"file": file, "member": "some/held-out.txt", "sha256": digest(HELD_OUT.read_bytes())} | changes


def test_a_pinned_text_is_fetched_once_and_verified(archive: Path, root: Path, tmp_path: Path, run: Command) -> None:
    words = own_model(tmp_path / "models", root, accuracy=[accuracy(corpus=corpus(archive))])
    place = root / "datasets" / "texts.zip"
    with Hub(archive.parent, repo="datasets/some/texts", revision=REVISION) as hub:
        done = run("omz_evaluator", *words, *QUICK, HF_ENDPOINT=hub.endpoint)
        assert done.returncode == 0, done.stderr
        assert place.read_bytes() == archive.read_bytes()
        assert hub.requests[0] == f"GET /datasets/some/texts/resolve/{REVISION}/texts.zip"
        assert f"some/held-out.txt in {place}" in done.stdout
        assert "pass\n" in done.stdout
        asked = len(hub.requests)
        assert run("omz_evaluator", *words, *QUICK, HF_ENDPOINT=hub.endpoint).returncode == 0
        assert len(hub.requests) == asked
        place.write_bytes(b"damaged")
        done = run("omz_evaluator", *words, *QUICK, "--offline", HF_ENDPOINT=hub.endpoint)
        assert done.returncode == 1
        assert "is not fetched: --offline" in done.stderr
        assert len(hub.requests) == asked
        assert run("omz_evaluator", *words, *QUICK, HF_ENDPOINT=hub.endpoint).returncode == 0
        assert place.read_bytes() == archive.read_bytes()


def test_a_pinned_text_comes_from_the_caches_and_goes_to_ours(
    archive: Path, root: Path, tmp_path: Path, run: Command
) -> None:
    snapshot = tmp_path / "hub" / "datasets--some--texts" / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    shutil.copy(archive, snapshot)
    words = own_model(tmp_path / "models", root, accuracy=[accuracy(corpus=corpus(archive))])
    arguments = ("omz_evaluator", *words, *QUICK, "--offline", "--cache_dir", tmp_path / "cache")
    done = run(*arguments, HF_HUB_CACHE=str(tmp_path / "hub"))
    assert done.returncode == 0, done.stderr
    assert "... from the Hub's cache" in done.stdout
    listed = run("omz_cache", "list", "--cache_dir", "cache", "--models_dir", "models").stdout
    assert f"sha256:{digest(archive.read_bytes())}  gpt-2-mini: texts.zip" in listed
    shutil.rmtree(root / "datasets")
    shutil.rmtree(snapshot)
    done = run(*arguments, HF_HUB_CACHE=str(tmp_path / "hub"))
    assert done.returncode == 0, done.stderr
    assert "... from the cache" in done.stdout


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"member": "missing.txt"}, "missing.txt cannot be taken out of"),
        ({"member": "other.txt"}, "is not the text that the descriptor pins"),
    ],
)
def test_an_archive_without_the_text_is_an_error(
    archive: Path, root: Path, tmp_path: Path, run: Command, changes: dict[str, str], says: str
) -> None:
    pins = corpus(archive, **changes)
    pins["file"]["source"] = {"$type": "local", "path": str(archive)}
    words = own_model(tmp_path / "models", root, accuracy=[accuracy(corpus=pins)])
    done = run("omz_evaluator", *words, *QUICK)
    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_the_embedded_text_is_the_pinned_one() -> None:
    [accuracy] = zoo.find()["gpt-2-mini"].load().descriptor.accuracy
    assert accuracy.corpus
    data = HELD_OUT.read_bytes()
    assert (accuracy.corpus.file.size, accuracy.corpus.file.digest.value) == (len(data), digest(data))


# What cannot be measured


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"short", "tokens, fewer than one window of 256"),
        (b"", "has 0 tokens, fewer than one window of 256"),
        (b"long " * 500 + b"\xff", "is not UTF-8 text (byte 2500)"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_a_text_that_cannot_be_measured_on(root: Path, run: Command, data: bytes | None, says: str) -> None:
    if data is not None:
        (root / "text.txt").write_bytes(data)
    done = run("omz_evaluator", "--name", "gpt-2-mini", "-d", root, *QUICK, "--text", root / "text.txt")
    assert done.returncode == 1
    assert says in done.stderr
    assert done.stdout.endswith("FAILED:\ngpt-2-mini\n")
    assert "Traceback" not in done.stderr


def test_a_model_that_was_not_downloaded_or_not_converted_says_which_command_does(root: Path, run: Command) -> None:
    shutil.rmtree(root / "public" / "gpt-2-mini" / "FP32")
    done = run("omz_evaluator", "--name", "gpt-2-mini", "-d", root)
    assert done.returncode == 1
    assert f"{root}/public/gpt-2-mini/FP32/gpt-2-mini.xml" in done.stderr
    assert f"omz_converter --name gpt-2-mini -d {root}" in done.stderr
    words = ("-o", root / "else", "--precisions", "FP32,FP16-INT8")
    done = run("omz_evaluator", "--name", "gpt-2-mini", "-d", root, *words)
    assert f"omz_converter --name gpt-2-mini -d {root} -o {root}/else --precisions FP32,FP16-INT8" in done.stderr
    shutil.rmtree(root / "public")
    done = run("omz_evaluator", "--name", "gpt-2-mini", "-d", root)
    assert done.returncode == 1
    assert f"omz_downloader --name gpt-2-mini -o {root}" in done.stderr


def test_a_model_without_a_tokenizer_or_a_text_says_so(
    tiny: Path, tmp_path: Path, run: Command, full_cache: Path
) -> None:
    path = tmp_path / "models" / "tiny" / "model.yml"
    model = yaml.safe_load(path.read_text(encoding="utf-8"))
    model["files"] = [
        entry for entry in model["files"] if not entry["name"].endswith(("/tokenizer.json", "/merges.txt"))
    ]
    path.write_text(yaml.safe_dump(model | {"accuracy": []}), encoding="utf-8")
    words = ("--models_dir", "models", "--name", "tiny")
    assert run("omz_downloader", *words).returncode == 0
    assert run("omz_converter", *words, "--cache_dir", full_cache).returncode == 0
    done = run("omz_evaluator", *words)
    assert done.returncode == 1
    assert "has no tokenizer: neither tokenizer.json nor vocab.json and merges.txt" in done.stderr
    shutil.copy(zoo.shipped() / "gpt-2-mini" / "gpt2-mini" / "tokenizer.json", tmp_path / "public" / "tiny" / "gpt2")
    done = run("omz_evaluator", *words)
    assert done.returncode == 1
    assert "its descriptor pins no text to measure it on\nGive one with --text FILE." in done.stderr
    done = run("omz_evaluator", *words, "--text", HELD_OUT)
    assert done.returncode == 1
    assert re.search(r"the tokenizer in \S+ gives token \d+, and the model knows those below 97", done.stderr)


# The picture


def test_the_picture_shows_each_file_and_the_published_figure(root: Path, tmp_path: Path, run: Command) -> None:
    pytest.importorskip("matplotlib")
    found = []
    quick = ("--precisions", "FP32", "--max_windows", "1")
    for name, *words in (("one.svg",), ("two.svg",), ("three.PNG", *quick)):
        path = os.environ.get("PYTHONPATH", "")
        words += ["--no_pytorch", "--plot", name]
        done = run("omz_evaluator", "--name", "gpt-2-mini", "-d", root, *words, PYTHONPATH=path)
        assert done.returncode == 0, done.stderr
        assert f"{name} is written" in done.stdout
        found.append((tmp_path / name).read_bytes())
    drawn = found[0].decode()
    for words in ("FP16: 68.75", "FP32: 68.75", "published: 68.75 ± 0.05", "size of the model, MB", "perplexity"):
        assert words in drawn
    assert found[0] == found[1]
    assert found[2].startswith(b"\x89PNG")


def test_without_what_draws_it_says_so_before_it_measures(root: Path, tmp_path: Path, run: Command) -> None:
    (tmp_path / "without" / "matplotlib").mkdir(parents=True)
    (tmp_path / "without" / "matplotlib" / "__init__.py").write_text("raise ImportError('not here')")
    path = os.pathsep.join([str(tmp_path / "without"), os.environ.get("PYTHONPATH", "")])
    done = run("omz_evaluator", "--name", "gpt-2-mini", "-d", root, "--plot", "x.svg", PYTHONPATH=path)
    assert done.returncode == 1
    assert "pip install 'omz_tools[bench]'" in done.stderr
    assert "Measuring" not in done.stdout
    assert run("omz_evaluator", "--name", "gpt-2-mini", "-d", root, "--plot", "x.jpg").returncode == 2
