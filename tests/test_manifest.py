"""The manifest beside a converted model, and omz_verify, which holds the files against it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import jsonschema
import openvino
import pytest
from conftest import Command, Converted

from omz_tools.descriptors import zoo
from omz_tools.descriptors.descriptor import FileEntry, Http, HuggingFace, Local, Sha256
from omz_tools.proof import manifest

ROOT = Path(__file__).parents[1]
NAME = "gpt-2-mini.manifest.json"
PUBLISHED = ROOT / "docs" / "manifest.schema.json"


@pytest.fixture
def copy(mini: Converted, tmp_path: Path) -> Path:
    """The folder of gpt-2-mini, converted, to be damaged."""
    return Path(shutil.copytree(mini.folder, tmp_path / "public" / "gpt-2-mini"))


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """The manifest with something else in it."""
    said = json.loads(path.read_text())
    change(said)
    path.write_text(json.dumps(said))


# ---- what it says


def test_a_manifest_keeps_to_the_published_schema(mini: Converted) -> None:
    schema = json.loads(PUBLISHED.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    said = json.loads((mini.folder / NAME).read_text())
    jsonschema.validate(said, schema)
    del said["outputs"][0]["files"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(said, schema)


def test_the_published_schema_is_that_of_the_code() -> None:
    assert PUBLISHED.read_text() == manifest.schema()


def test_it_names_all_that_went_in_and_came_out(mini: Converted) -> None:
    said = json.loads((mini.folder / NAME).read_text())
    descriptor = zoo.find()["gpt-2-mini"].load().descriptor
    assert [(s["name"], s["size"], s["digest"]["sha256"]) for s in said["sources"]] == [
        (entry.name, entry.size, entry.digest.value) for entry in descriptor.files
    ]
    made = {file["path"] for output in said["outputs"] for file in output["files"]}
    there = {p.relative_to(mini.folder).as_posix() for p in mini.folder.rglob("*") if p.is_file()}
    assert made == {p for p in there if not p.startswith((".", "gpt2-mini/")) and p not in (NAME, "README.md")}
    assert said["export"]["inputs"] == [{"name": "input", "type": "i64", "shape": ["B", "L"]}]
    assert said["export"]["outputs"] == [{"name": "output", "type": "f32", "shape": ["B", "L", 2048]}]
    assert {"omz_tools", "python", "torch", "transformers", "onnx", "openvino"} <= said["toolchain"].keys()
    for output in said["outputs"]:
        assert [d["length"] for d in output["proof"]["differences"]] == [1, 7, 64]
        assert all(0 < d["mean"] < d["largest"] <= d["bound"] for d in output["proof"]["differences"])
        assert output["proof"]["bound"]["reason"]


def test_nothing_of_the_day_or_the_machine_is_in_it(mini: Converted) -> None:
    text = (mini.folder / NAME).read_text()
    for trace in (str(mini.folder.parents[1]), "mtime", "inode", "/tmp", str(Path.home())):
        assert trace not in text


def test_where_a_file_was_published_is_said_without_secrets() -> None:
    hub = HuggingFace("owner/name", "a" * 40, "folder/file.bin")
    sources = (Local("file.bin"), hub, Http("https://me:secret@example.com/file.bin?token=secret"))
    entry = FileEntry("file.bin", 1, Sha256("0" * 64), sources)
    assert manifest.origins(entry) == (
        manifest.Origin(f"https://huggingface.co/owner/name/resolve/{'a' * 40}/folder/file.bin", "a" * 40),
        manifest.Origin("https://example.com/file.bin"),
    )
    assert manifest.revision([entry]) == "a" * 40
    assert manifest.revision([]) == ""


def test_a_checkpoint_has_one_digest() -> None:
    # printf 'aa  a.safetensors\nbb  b.safetensors\n' | sha256sum
    of_two = "sha256:b70b16d96efbcb992eabcfd132a47704fd14c38e92cdce0d11f38ea2c32cc3c6"
    shards = {"b.safetensors": "sha256:bb", "a.safetensors": "sha256:aa", "config.json": "sha256:cc"}
    assert manifest.checkpoint_digest(shards) == of_two
    assert manifest.checkpoint_digest({"model.safetensors": "sha256:aa", "config.json": "sha256:cc"}) == "sha256:aa"


@pytest.mark.parametrize("precision", ["FP16", "FP32"])
def test_an_ir_says_where_it_comes_from(mini: Converted, precision: str) -> None:
    model = openvino.Core().read_model(mini.folder / precision / "gpt-2-mini.xml")
    weights = zoo.find()["gpt-2-mini"].load().descriptor.checkpoint_files["model.safetensors"]
    said = {key: model.get_rt_info(["omz_tools", key]).astype(str) for key in ("model", "checkpoint")}
    assert said == {"model": "gpt-2-mini", "checkpoint": f"sha256:{weights.digest.value}"}


def test_an_ir_of_the_hub_says_its_commit(run: Command, graph_cache: Path, tiny: Path, tmp_path: Path) -> None:
    text = checkpoints.pin(tiny, tmp_path / "models", "tiny").read_text()
    checkpoints.pin_locally(tiny, tmp_path / "models", "tiny")
    path = tmp_path / "models" / "tiny" / "model.yml"
    local = path.read_text()
    assert run("omz_downloader", "--name", "tiny", "--models_dir", "models").returncode == 0
    path.write_text(text)  # the same files, now said to be of the Hub
    words = ("--precisions", "FP16", "--verify", "off", "--cache_dir", graph_cache)
    assert run("omz_converter", "--name", "tiny", "--models_dir", "models", *words).returncode == 0
    revision = json.loads((tmp_path / "public/tiny/tiny.manifest.json").read_text())["sources"][0]["origins"][0][
        "revision"
    ]
    model = openvino.Core().read_model(tmp_path / "public" / "tiny" / "FP16" / "tiny.xml")
    assert model.get_rt_info(["omz_tools", "revision"]).astype(str) == revision != ""
    assert local != text


def test_precisions_that_are_made_one_after_the_other_are_all_in_it(
    run: Command, graph_cache: Path, tiny: Path, tmp_path: Path
) -> None:
    words = ("--name", "tiny", "--models_dir", "models")
    assert run("omz_downloader", *words).returncode == 0
    for precision in ("FP16", "FP32"):
        more = ("--verify", "off", "--cache_dir", graph_cache, "--precisions", precision)
        assert run("omz_converter", *words, *more).returncode == 0
    said = json.loads((tmp_path / "public" / "tiny" / "tiny.manifest.json").read_text())
    assert [output["what"] for output in said["outputs"]] == ["ONNX", "FP16", "FP32"]
    assert {output.get("proof") for output in said["outputs"]} == {None}
    done = run("omz_verify", "public")
    assert done.returncode == 0
    assert done.stdout.count("was not compared with PyTorch") == 3


# ---- omz_verify


def test_what_was_just_converted_is_as_its_manifest_says(mini: Converted, run: Command) -> None:
    done = run("omz_verify", mini.folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert "5 files converted: as the manifest says\n7 files downloaded: as the manifest says" in done.stdout


def test_a_bit_in_any_file_is_found(copy: Path, run: Command) -> None:
    said = json.loads((copy / NAME).read_text())
    files = [file["path"] for output in said["outputs"] for file in output["files"]]
    files += [source["path"] for source in said["sources"]]
    assert len(files) == 12
    for name in files:
        path = copy / name
        right = path.read_bytes()
        wrong = bytearray(right)
        wrong[len(wrong) // 3] ^= 4
        path.write_bytes(wrong)
        done = run("omz_verify", "public")
        assert done.returncode == 1, name
        assert done.stdout.endswith("FAILED:\ngpt-2-mini\n")
        assert f"1 file of {'public/gpt-2-mini/' + NAME}" in done.stderr
        assert f"public/gpt-2-mini/{name}: sha256" in done.stderr
        path.write_bytes(right)


def test_every_file_that_is_wrong_is_named(copy: Path, run: Command, tmp_path: Path) -> None:
    (copy / "FP16" / "gpt-2-mini.bin").unlink()
    (copy / "FP32" / "gpt-2-mini.bin").write_bytes(b"short")
    (copy / "gpt2-mini" / "vocab.json").rename(tmp_path / "elsewhere")
    (copy / "gpt2-mini" / "vocab.json").symlink_to(tmp_path / "elsewhere")
    done = run("omz_verify", "public")
    assert done.returncode == 1
    for text in ("FP16/gpt-2-mini.bin: not there", "FP32/gpt-2-mini.bin: 5 bytes, not 4,", "vocab.json: a link"):
        assert text in done.stderr


def test_outputs_that_need_no_sources_are_verified_without(
    mini: Converted, copy: Path, run: Command, tmp_path: Path
) -> None:
    cache = shutil.copytree(mini.folder.parents[1] / "cache", tmp_path / "cache")
    words = ("-d", ".", "-o", "out", "--verify", "off", "--precisions", "FP16", "--cache_dir", cache)
    assert run("omz_converter", "--name", "gpt-2-mini", *words).returncode == 0
    alone = run("omz_verify", "out")
    assert alone.returncode == 0
    assert "7 files downloaded: not looked at; -d says where they are" in alone.stdout
    both = run("omz_verify", "out", "-d", ".")
    assert both.returncode == 0
    assert "7 files downloaded: as the manifest says" in both.stdout
    (copy / "gpt2-mini" / "merges.txt").unlink()
    assert run("omz_verify", "out", "-d", ".").returncode == 1
    needed = run("omz_verify", "out", "--replay")
    assert needed.returncode == 1
    assert "Say where they are: -d DIR." in needed.stderr


def test_the_proof_can_be_made_again(copy: Path, run: Command) -> None:
    done = run("omz_verify", "public", "--replay")
    assert done.returncode == 0, done.stderr
    for what in ("ONNX", "FP16", "FP32"):
        assert f"{what}: largest difference to PyTorch" in done.stdout

    def stricter(said: dict[str, Any]) -> None:
        said["outputs"] = [output for output in said["outputs"] if output["what"] == "FP16"]
        said["outputs"][0]["proof"]["bound"]["difference"] = 1e-9

    changed(copy / NAME, stricter)
    done = run("omz_verify", "public", "--replay")
    assert done.returncode == 1
    assert "does not answer as PyTorch does:\nFP16: largest" in done.stderr


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda said: said.update(manifest_version=2), "manifest_version"),
        (lambda said: said.update(model="x\x1b[2J"), "$.model"),
        (lambda said: said.update(outputs=[]), "$.outputs"),
        (lambda said: said["outputs"][0]["files"][0].update(path="../../secret"), "a part '..'"),
        (lambda said: said["outputs"][0]["files"][0].update(path="/etc/passwd"), "not a relative path"),
        (lambda said: said["outputs"][0]["files"][0].update(digest={}), "$.outputs[0].files[0].digest"),
        (lambda said: said["outputs"][0]["files"][0].update(digest={"md5": "0" * 64}), "md5"),
        (lambda said: said["sources"][0].update(size=-1), "$.sources[0].size"),
        (lambda said: said["export"].update(model_class="os.system"), "os.system"),
        (lambda said: said["export"].update(checkpoint="../.."), "a part '..'"),
    ],
)
def test_a_manifest_is_not_believed(
    copy: Path, run: Command, change: Callable[[dict[str, Any]], object], word: str
) -> None:
    changed(copy / NAME, change)
    done = run("omz_verify", "public")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "is no manifest of version 1" in done.stderr
    assert word in done.stderr
    assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b" " * 5_000_000])
def test_what_is_no_manifest_is_said(copy: Path, run: Command, content: bytes) -> None:
    (copy / NAME).write_bytes(content)
    done = run("omz_verify", "public")
    assert (done.returncode, done.stdout) == (1, "FAILED:\ngpt-2-mini\n")
    assert done.stderr.count("Error:") == 1


def test_where_there_is_none_is_said(run: Command, tmp_path: Path) -> None:
    done = run("omz_verify", tmp_path)
    assert done.returncode == 1
    assert "there is no manifest in" in done.stderr


def test_a_manifest_that_was_changed_is_written_anew_and_nothing_else(copy: Path, run: Command) -> None:
    right = (copy / NAME).read_bytes()
    assert run("omz_converter", "--name", "gpt-2-mini").returncode == 0  # its files are copies: other inodes
    before = {path: path.stat().st_ino for path in copy.rglob("FP*/*")}
    (copy / NAME).write_bytes(b"{}")
    assert "Nothing to convert" in run("omz_converter", "--name", "gpt-2-mini").stdout
    assert (copy / NAME).read_bytes() == right
    assert {path: path.stat().st_ino for path in copy.rglob("FP*/*")} == before


# ---- provenance


def test_a_statement_for_those_who_sign(mini: Converted, run: Command, tmp_path: Path) -> None:
    assert run("omz_verify", mini.folder, "--provenance", "statement.json").returncode == 0
    said = json.loads((tmp_path / "statement.json").read_text())
    assert said["_type"] == "https://in-toto.io/Statement/v1"
    assert said["predicateType"] == "https://slsa.dev/provenance/v1"
    made = json.loads((mini.folder / NAME).read_text())
    assert said["subject"] == [
        {"name": file["path"], "digest": file["digest"]} for output in made["outputs"] for file in output["files"]
    ]
    definition = said["predicate"]["buildDefinition"]
    assert [d["digest"] for d in definition["resolvedDependencies"]] == [s["digest"] for s in made["sources"]]
    assert ":" in definition["buildType"]
    assert said["predicate"]["runDetails"]["builder"]["version"]["torch"] == made["toolchain"]["torch"]


def test_there_is_no_statement_about_what_is_wrong(copy: Path, run: Command, tmp_path: Path) -> None:
    (copy / "gpt-2-mini.onnx").write_bytes(b"")
    assert run("omz_verify", "public", "--provenance", "statement.json").returncode == 1
    assert not (tmp_path / "statement.json").exists()


def test_a_statement_is_of_one_model(copy: Path, run: Command) -> None:
    shutil.copytree(copy, copy.with_name("other"))
    done = run("omz_verify", "public", "--provenance", "statement.json")
    assert done.returncode == 2
    assert "there are 2 in public" in done.stderr
