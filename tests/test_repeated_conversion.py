"""omz_converter again: what is in place, in the cache, or made from the same is not made twice; what changed is."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import checkpoints
import numpy as np
import openvino
import pytest
from conftest import BIN, Command
from test_conversion import F32, listing, logits, reference

OUTPUTS = ("tiny.onnx", "FP16/tiny.xml", "FP16/tiny.bin", "FP32/tiny.xml", "FP32/tiny.bin")

Convert = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def convert(run: Command, tiny: Path, full_cache: Path) -> Convert:
    """omz_converter for the tiny model, with a cache that knows it, where some libraries cannot be imported."""

    def convert(*words: str | Path, without: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        if without:
            paths = [str(blocking(tiny.parent / "blocking")), *filter(None, [os.environ.get("PYTHONPATH")])]
            environment |= {"PYTHONPATH": os.pathsep.join(paths), "BLOCKED": without}
        words = ("--name", "tiny", "--models_dir", "models", "--cache_dir", full_cache, *words)
        return run("omz_converter", *words, **environment)

    assert run("omz_downloader", "--name", "tiny", "--models_dir", "models").returncode == 0
    return convert


def blocking(folder: Path) -> Path:
    """A folder for PYTHONPATH: the libraries that BLOCKED names cannot be imported, in any process."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(
        "import os, sys\n"
        "for name in os.environ['BLOCKED'].split(','):\n"
        "    sys.modules[name] = None\n"
    )  # fmt: skip
    return folder


def done(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and modification time of each output."""
    return {name: ((folder / name).stat().st_ino, (folder / name).stat().st_mtime_ns) for name in OUTPUTS}


def every(folder: Path) -> dict[Path, tuple[int, int]]:
    """Inode and modification time of the folder, of which the latter tells of hidden files that came and went, too."""
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (folder, *folder.rglob("*"))}


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in OUTPUTS}


def flip_a_bit(path: Path) -> None:
    """In the middle, and the file otherwise as it was for those who look at size, time and inode."""
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


# ---- nothing changed


def test_nothing_is_made_twice_and_no_heavy_library_is_imported_to_see_that(convert: Convert, tmp_path: Path) -> None:
    done(convert())
    folder = tmp_path / "public" / "tiny"
    before = every(folder)
    again = done(convert(without="torch,transformers,onnx,onnx_ir,onnxruntime,openvino,numpy,safetensors"))
    assert "Nothing to convert" in again
    assert "Exporting" not in again
    assert again.count("in place") == len(OUTPUTS) + 1
    assert every(folder) == before


def test_the_second_run_says_the_same_figures_as_the_first(convert: Convert) -> None:
    figures = [re.findall(r"FP(?:16|32) +(\d\.\de-\d\d)", done(convert())) for _ in range(2)]
    assert figures[0] == figures[1] != []


@pytest.mark.parametrize("name", ["FP16/tiny.bin", "FP32/tiny.xml", "tiny.onnx"])
def test_an_output_that_was_changed_is_made_again_and_no_other(convert: Convert, tmp_path: Path, name: str) -> None:
    done(convert())
    folder = tmp_path / "public" / "tiny"
    before, right = state(folder), contents(folder)
    flip_a_bit(folder / name)
    assert f"{name} changed since" in done(convert("--dry_run"))
    done(convert())
    assert contents(folder) == right
    of_the_same = [other for other in OUTPUTS if other.split("/")[0] == name.split("/")[0]]
    assert [other for other in OUTPUTS if state(folder)[other] != before[other]] == of_the_same


def test_with_check_stat_files_are_believed_while_size_time_and_inode_are_the_same(
    convert: Convert, tmp_path: Path
) -> None:
    done(convert())
    weights = tmp_path / "public" / "tiny" / "FP32" / "tiny.bin"
    flip_a_bit(weights)
    assert "Nothing to convert" in done(convert("--check", "stat"))
    assert "FP32/tiny.bin changed since" in done(convert("--check", "hash", "--dry_run"))
    os.utime(weights)
    assert "FP32/tiny.bin changed since" in done(convert("--check", "stat", "--dry_run"))


def test_force_makes_all_again_and_another_user_day_and_folder_the_same_bytes(
    convert: Convert, seed: Path, tmp_path: Path
) -> None:
    done(convert())
    folder = tmp_path / "public" / "tiny"
    before = state(folder)
    assert done(convert("--force", "--dry_run")).count("would make it; --force") == 3
    other = {"USER": "two", "HOME": str(tmp_path / "two"), "TZ": "Pacific/Auckland", "LANG": "C", "PYTHONHASHSEED": "2"}
    # The manifest tells the descriptor by its digest, and that says where the files come from.
    shutil.copy(seed.parent / "models" / "tiny" / "model.yml", tmp_path / "models" / "tiny")
    said = done(convert("--force", **other))
    assert "Exporting PyTorch to ONNX" in said
    assert not {name for name in OUTPUTS if state(folder)[name] == before[name]}
    made, first = listing(folder), listing(seed.parent / "public" / "tiny")
    assert made.keys() == first.keys()
    different = [name for name in made if made[name] != first[name]]
    assert different == [".tiny.conversion.json"]  # inodes and times of these very files


def test_a_precision_that_is_added_leaves_the_others_alone(convert: Convert, graph_cache: Path, tmp_path: Path) -> None:
    done(convert("--precisions", "FP16", "--verify", "off"))
    folder = tmp_path / "public" / "tiny"
    before = (folder / "FP16" / "tiny.bin").stat()
    said = done(convert("--verify", "off"))
    assert "Exporting" not in said
    assert "Converting ONNX to OpenVINO IR (FP32)" in said
    assert (folder / "FP16" / "tiny.bin").stat().st_ino == before.st_ino


def test_a_broken_record_counts_as_none(convert: Convert, tmp_path: Path) -> None:
    done(convert("--precisions", "FP32"))
    [record] = (tmp_path / "public" / "tiny").glob(".tiny*.json")
    for text in ("", "{", '{"format": 1, "outputs": 7}', json.dumps({"format": 2})):
        record.write_text(text)
        said = done(convert("--precisions", "FP32", "--dry_run"))
        assert said.count("there is no record of how it was made") == 2


# ---- what changed is made


def test_another_opset_is_another_model(convert: Convert) -> None:
    done(convert("--precisions", "FP32"))
    said = done(convert("--precisions", "FP32", "--opset", "18", "--dry_run"))
    assert said.count("opset is 18, was 23") == 2
    assert "would trace GPT2LMHeadModel" in said


def test_new_weights_of_the_same_shapes_need_no_torch(convert: Convert, tiny: Path, tmp_path: Path) -> None:
    """A fine-tune: the graph is in the cache, since it does not depend on the weights."""
    words = ("--precisions", "FP32")
    done(convert(*words))
    named = checkpoints.weights(checkpoints.TINY, seed=8)
    checkpoints.write_safetensors(tiny / "model.safetensors", named)
    checkpoints.pin_locally(tiny, tmp_path / "models", "tiny")
    download = ("--name", "tiny", "--models_dir", "models")
    assert subprocess.run([BIN / "omz_downloader", *download], cwd=tmp_path, check=False).returncode == 0
    dry = done(convert(*words, "--dry_run"))
    assert "would take it from the cache" in dry
    assert "model.safetensors is" in dry
    said = done(convert(*words, "--verify", "off", without="torch,transformers,onnxscript"))
    assert "not compared" in said
    ids = np.arange(40, dtype=np.int64).reshape(1, 40)
    xml = tmp_path / "public" / "tiny" / "FP32" / "tiny.xml"
    got = openvino.Core().compile_model(xml, "CPU", F32)(ids)[0]
    np.testing.assert_allclose(got, logits(reference(tiny), ids), rtol=0, atol=1e-4)
    # What was not compared before is compared now, and nothing else is done.
    later = done(convert(*words))
    assert "Comparing with PyTorch (ONNX, FP32)" in later
    assert "Converting ONNX" not in later
    assert "Nothing to convert" in later
    assert "Comparing" not in done(convert(*words))


# ---- the cache


def test_a_fresh_folder_is_filled_from_the_cache(convert: Convert, tmp_path: Path) -> None:
    done(convert())
    made = contents(tmp_path / "public" / "tiny")
    (tmp_path / "public").rename(tmp_path / "earlier")
    words = ("omz_downloader", "--name", "tiny", "--models_dir", "models")
    assert subprocess.run([BIN / words[0], *words[1:]], cwd=tmp_path, check=False).returncode == 0
    assert done(convert("--dry_run")).count("from the cache") == 3
    said = done(convert(without="torch,transformers,openvino,onnxruntime"))
    assert contents(tmp_path / "public" / "tiny") == made
    assert said.count("from the cache") == 4
    assert not re.search("Exporting|Converting ONNX|Comparing|not compared", said)


def test_what_is_damaged_in_the_cache_is_made_again(convert: Convert, full_cache: Path, tmp_path: Path) -> None:
    done(convert("--precisions", "FP32"))
    folder = tmp_path / "public" / "tiny"
    made = listing(folder)
    # What is found and is not what its digest says; and of the proofs, what says where they are.
    for path in (*full_cache.rglob("sha256/*/*"), *full_cache.rglob("result/*/*")):
        if "result" not in path.parts or json.loads(path.read_bytes())["ingredients"]["stage"] == "proof":
            path.chmod(0o644)
            path.write_bytes(path.read_bytes()[:-1] + b"?")
    for name in ("tiny.onnx", "FP32/tiny.xml", "FP32/tiny.bin", ".tiny.conversion.json"):
        (folder / name).unlink()
    said = done(convert("--precisions", "FP32"))
    assert "Exporting PyTorch to ONNX" in said
    assert "Comparing with PyTorch (ONNX, FP32)" in said
    assert [name for name, data in listing(folder).items() if data != made[name]] == [".tiny.conversion.json"]


def test_a_cache_that_cannot_be_written_is_done_without(convert: Convert, tmp_path: Path) -> None:
    (tmp_path / "no folder").write_text("")
    said = done(convert("--precisions", "FP32", "--verify", "off", "--cache_dir", "no folder"))
    assert "not kept in the cache" in said
    assert (tmp_path / "public" / "tiny" / "FP32" / "tiny.xml").exists()


def test_omz_cache_tells_whose_the_files_are_and_removes_results_without_files(
    run: Command, convert: Convert, tmp_path: Path
) -> None:
    done(convert("--precisions", "FP32"))
    listed = done(run("omz_cache", "list", "--cache_dir", "cache"))
    for name in ("graph: graph.onnx", "ir: FP32/tiny.bin", "proof: proof.json"):
        assert name in listed
    assert "removed 0 files" in done(run("omz_cache", "gc", "--cache_dir", "cache"))
    done(run("omz_cache", "gc", "--max_size", "0", "--cache_dir", "cache"))
    left = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert left == []
