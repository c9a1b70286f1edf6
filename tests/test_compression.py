"""Weights in 8 bits: what is in the IR, that each is the checkpoint's, rounded, and what people see of it."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import checkpoints
import jsonschema
import numpy as np
import openvino
import pytest
import safetensors.numpy
import yaml
from conftest import Command, Converted, run_command
from openvino import opset13

from omz_tools.descriptors import zoo
from omz_tools.descriptors.descriptor import Export
from omz_tools.errors import ProofError
from omz_tools.evaluation import analysis
from omz_tools.export import checkpoint, compression, ir
from omz_tools.proof import rounding

WHAT = "FP16-INT8"
MATRIX = "transformer.h.1.mlp.c_fc.weight"


@pytest.fixture(scope="module")
def compressed(mini: Converted, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """gpt-2-mini with weights in 8 bits beside what was there."""
    root = tmp_path_factory.mktemp("compressed")
    folder = root / "public" / "gpt-2-mini"
    shutil.copytree(mini.folder, folder)
    done = run_command("omz_converter", "--name", "gpt-2-mini", "--precisions", WHAT, cwd=root)
    assert done.returncode == 0, done.stdout + done.stderr
    return Converted(folder, mini.downloaded, done.stdout + done.stderr)


@pytest.fixture
def xml(compressed: Converted) -> Path:
    return compressed.folder / WHAT / "gpt-2-mini.xml"


@pytest.fixture(scope="module")
def weights(mini: Converted) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(mini.folder / "gpt2-mini" / "model.safetensors")


def spec() -> Export:
    export = zoo.find([])["gpt-2-mini"].load().descriptor.export
    assert export
    return export


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.bin"))


# ---- the IR


def test_each_matrix_is_there_once_and_in_8_bits(
    compressed: Converted, xml: Path, weights: dict[str, np.ndarray]
) -> None:
    nodes = openvino.Core().read_model(xml).get_ops()
    constants = [node for node in nodes if node.get_type_name() == "Constant"]
    kept = {n.get_friendly_name(): n for n in constants if n.get_element_type().get_type_name() == "i8"}
    matrices = {name: values for name, values in weights.items() if values.ndim > 1}
    assert {name: tuple(node.shape) for name, node in kept.items()} == {
        name: values.shape for name, values in matrices.items()
    }
    wide = [n for n in constants if n.get_element_type().get_type_name() == "f32"]
    assert max(np.prod(node.shape) for node in wide) == 512  # the vectors
    assert size(xml.parent) < 0.52 * size(compressed.folder / "FP16")
    ports = openvino.Core().read_model(xml)
    assert [(p.get_any_name(), p.element_type.get_type_name()) for p in (*ports.inputs, *ports.outputs)] == [
        ("input", "i64"), ("output", "f32")
    ]  # fmt: skip


def test_it_asks_for_arithmetic_in_floating_point(xml: Path) -> None:
    compiled = openvino.Core().compile_model(xml, "CPU", {"PERF_COUNT": "YES"})
    assert compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == 0
    request = compiled.create_infer_request()
    request.infer({"input": np.ones((1, 7), np.int64)})
    ran = Counter(node.node_type for node in request.profiling_info)
    assert ran["FullyConnectedCompressed"] == 17  # the weights are in 8 bits also where it is loaded


def test_the_steps_are_as_large_as_the_largest_weight_of_each_channel_asks_for(
    xml: Path, weights: dict[str, np.ndarray]
) -> None:
    """The same with plain NumPy, in F64."""
    nodes = {node.get_friendly_name(): node for node in openvino.Core().read_model(xml).get_ops()}
    for name, axis in (("transformer.wte.weight", 1), ("transformer.wpe.weight", 1), (MATRIX, 0)):
        values = weights[name].astype(np.float64)
        kept = nodes[name].data.astype(np.float64)
        largest = np.take_along_axis(values, np.abs(values).argmax(axis, keepdims=True), axis)
        step = largest / -128
        restored = kept * step
        assert np.abs(restored - values).max() <= np.abs(step).max()
        within = values / step < 127
        assert (np.abs(restored - values) <= np.abs(step) * (0.5 + 1e-4))[within].all()


def test_the_same_bytes_come_of_it_elsewhere(compressed: Converted, tmp_path: Path) -> None:
    """In this process, where other models were read before, and without the other precisions."""
    about = json.loads((compressed.folder / ".gpt-2-mini.conversion.json").read_bytes())["outputs"][WHAT]["ingredients"]
    ir.convert(compressed.folder / "gpt-2-mini.onnx", "gpt-2-mini", {WHAT: tmp_path / "m.xml"}, about["about"])
    for kind in ("xml", "bin"):
        assert (tmp_path / f"m.{kind}").read_bytes() == (compressed.folder / WHAT / f"gpt-2-mini.{kind}").read_bytes()


def test_it_costs_what_the_others_cost(compressed: Converted) -> None:
    counted = [analysis.analyze(compressed.folder / what / "gpt-2-mini.xml", {"": (1, 256)}) for what in (WHAT, "FP32")]
    assert counted[0] == counted[1]


# ---- the proof


def test_the_proof_counts_every_weight(compressed: Converted, xml: Path, weights: dict[str, np.ndarray]) -> None:
    found = rounding.check(xml, checkpoint.load(compressed.folder / "gpt2-mini"), spec())
    assert found.weights == sum(values.size for values in weights.values() if values.ndim > 1)
    assert 0.5 < found.largest < 0.57
    assert 0 < found.beyond < 1000


@pytest.mark.parametrize("steps", [-1.1, 0.7, 30])
def test_a_weight_that_is_not_the_checkpoints_is_found(
    compressed: Converted, xml: Path, weights: dict[str, np.ndarray], tmp_path: Path, steps: float
) -> None:
    changed = {name: values.copy() for name, values in weights.items()}
    column = changed[MATRIX][:, 9]
    row = int(np.abs(column).argmin())
    column[row] += steps * np.abs(column).max() / 128
    folder = Path(shutil.copytree(compressed.folder / "gpt2-mini", tmp_path / "changed"))
    checkpoints.write_safetensors(folder / "model.safetensors", changed)
    with pytest.raises(ProofError, match=rf"'{MATRIX}' in 8 bits is not the checkpoint's, rounded: row {row} "):
        rounding.check(xml, checkpoint.load(folder), spec())


def test_channels_may_be_of_any_size(tmp_path: Path) -> None:
    """Down to those whose step f16 hardly has a number for."""
    sizes = np.array([0, 1e-30, 1e-6, 1e-4, 1, 1e4], np.float32)
    values = np.random.default_rng(3).standard_normal((64, 6), dtype=np.float32) * sizes
    given, matrix = opset13.parameter([-1, 64], np.float32, "given"), opset13.constant(values, name="h.0.one.weight")
    model = openvino.Model([opset13.matmul(given, matrix, False, False)], [given], "one")
    openvino.save_model(compression.compress(model), tmp_path / "m.xml")
    (tmp_path / "config.json").write_text("{}")
    checkpoints.write_safetensors(tmp_path / "model.safetensors", {"h.0.one.weight": values})
    assert rounding.check(tmp_path / "m.xml", checkpoint.load(tmp_path), spec()).weights == values.size
    kinds = Counter(node.get_element_type().get_type_name() for node in model.get_ops())
    assert kinds["i8"] == 0  # the model is as it was


def test_a_matrix_that_is_not_in_8_bits_is_found(compressed: Converted) -> None:
    read = checkpoint.load(compressed.folder / "gpt2-mini")
    with pytest.raises(ProofError, match="is not in 8 bits"):
        rounding.check(compressed.folder / "FP16" / "gpt-2-mini.xml", read, spec())


def test_the_manifest_says_what_is_proven(compressed: Converted) -> None:
    said = json.loads((compressed.folder / "gpt-2-mini.manifest.json").read_text())
    jsonschema.validate(said, json.loads((Path(__file__).parents[1] / "docs" / "manifest.schema.json").read_text()))
    proofs = {output["what"]: output["proof"] for output in said["outputs"]}
    assert list(proofs) == ["ONNX", WHAT]  # the others were copied here
    assert proofs[WHAT]["rounding"]["weights"] == 1_081_344
    assert proofs["ONNX"]["rounding"] is None
    assert proofs[WHAT]["bound"]["reason"].startswith("each weight is rounded by up to 1/256")
    assert "nncf" in said["toolchain"]


# ---- the commands


def test_a_second_run_has_nothing_to_do_and_what_is_changed_is_found(
    compressed: Converted, tmp_path: Path, run: Command
) -> None:
    assert "1,081,344 weights in 8 bits" in compressed.converted
    assert "Applying" not in compressed.converted  # NNCF's progress
    assert "INFO" not in compressed.converted
    folder = Path(shutil.copytree(compressed.folder, tmp_path / "public" / "gpt-2-mini"))
    done = run("omz_converter", "--name", "gpt-2-mini", "--precisions", WHAT)
    assert "Nothing to convert" in done.stdout, done.stderr
    # One weight, another number: what is hashed is not what it was.
    binary = bytearray((folder / WHAT / "gpt-2-mini.bin").read_bytes())
    binary[len(binary) // 2] ^= 1
    (folder / WHAT / "gpt-2-mini.bin").write_bytes(binary)
    done = run("omz_verify", folder)
    assert done.returncode == 1
    assert f"{WHAT}/gpt-2-mini.bin" in done.stderr
    done = run("omz_converter", "--name", "gpt-2-mini", "--precisions", WHAT, "--dry_run")
    assert "gpt-2-mini.bin changed since" in done.stdout


def test_the_evaluator_measures_it_where_it_is_there(compressed: Converted, run: Command) -> None:
    words = ("--name", "gpt-2-mini", "-d", compressed.folder.parents[1], "--no_pytorch", "--format", "json")
    done = run("omz_evaluator", *words)
    assert done.returncode == 0, done.stderr
    figures = {figure["what"]: figure for figure in json.loads(done.stdout)[0]["figures"]}
    assert list(figures) == ["FP16", "FP32", WHAT]
    assert figures[WHAT]["passed"] is True
    assert 1e-3 < abs(figures[WHAT]["perplexity"] - figures["FP32"]["perplexity"]) < 0.05
    [shipped] = [some for some in zoo.find([])["gpt-2-mini"].load().descriptor.accuracy if some.converted]
    assert f"{figures[WHAT]['perplexity']:.2f}" == f"{shipped.converted[WHAT]:.2f}"


def test_without_nncf_it_says_so_before_it_traces(tiny: Path, tmp_path: Path, run: Command) -> None:
    assert run("omz_downloader", "--name", "tiny", "--models_dir", "models").returncode == 0
    (tmp_path / "without" / "nncf").mkdir(parents=True)
    (tmp_path / "without" / "nncf" / "__init__.py").write_text("raise ImportError('not here')")
    path = os.pathsep.join([str(tmp_path / "without"), os.environ.get("PYTHONPATH", "")])
    done = run("omz_converter", "--name", "tiny", "--models_dir", "models", "--precisions", WHAT, PYTHONPATH=path)
    assert done.returncode == 1
    assert "pip install 'omz_tools[compression]'" in done.stderr
    assert "Exporting" not in done.stdout
    assert not list((tmp_path / "public" / "tiny").glob("*.onnx"))


def test_a_descriptor_may_ask_for_it_and_bound_it(compressed: Converted, tmp_path: Path, run: Command) -> None:
    path = Path(shutil.copytree(zoo.shipped() / "gpt-2-mini", tmp_path / "models" / "gpt-2-mini")) / "model.yml"
    bound = {"precision": WHAT, "difference": 1e-4, "divergence": 1.0, "reason": "a test"}
    said = yaml.safe_load(path.read_text(encoding="utf-8")) | {"precisions": [WHAT], "bounds": [bound]}
    path.write_text(yaml.safe_dump(said))
    words = ("--name", "gpt-2-mini", "--models_dir", "models")
    assert json.loads(run("omz_info_dumper", *words).stdout)[0]["precisions"] == [WHAT]
    folder = Path(shutil.copytree(compressed.folder, tmp_path / "public" / "gpt-2-mini"))
    shutil.rmtree(folder / WHAT)
    before = sorted(path.name for path in folder.iterdir())
    done = run("omz_converter", *words)
    assert done.returncode == 1
    assert f"{WHAT}: largest difference to PyTorch" in done.stderr
    assert "1,081,344 weights in 8 bits" in done.stderr
    assert sorted(path.name for path in folder.iterdir()) == before


def test_model_optimizer_makes_none(run: Command, mini: Converted) -> None:
    words = ("--precisions", WHAT, "-p", "python3", "--mo", Path(__file__))
    done = run("omz_converter", "--name", "gpt-2-mini", "-d", mini.folder.parents[1], *words)
    assert done.returncode == 1
    assert "Model Optimizer makes no weights in 8 bits" in done.stderr
