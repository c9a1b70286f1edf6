"""The IR stage alone: what it makes of an ONNX model, the same bytes everywhere, and weights that f16 rounds."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import checkpoints
import numpy as np
import onnxruntime
import openvino
import pytest

from omz_tools.descriptors import reading
from omz_tools.descriptors.descriptor import Export
from omz_tools.export import binding, checkpoint, ir, onnx_export
from omz_tools.proof import rounding

CONVERT = """
import sys
from pathlib import Path
from omz_tools.export import ir
for number, onnx in enumerate(sys.argv[2:]):
    targets = {p: Path(sys.argv[1], str(number), p, "tiny.xml") for p in ("FP16", "FP16-INT8", "FP32")}
    for xml in targets.values():
        xml.parent.mkdir(parents=True)
    ir.convert(Path(onnx), "tiny", targets)
"""


def contract(exported: Path) -> Export:
    spec = reading.load(exported.parent / "models" / "tiny" / "model.yml").export
    assert spec is not None
    return spec


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ONNX model of a tiny checkpoint, which it refers to."""
    root = tmp_path_factory.mktemp("exported")
    folder = checkpoints.write_repository(root / "tiny", checkpoints.TINY, seed=7)
    checkpoints.pin_locally(folder, root / "models", "tiny")
    spec = contract(root / "tiny.onnx")
    read = checkpoint.load(folder)
    binding.bind(onnx_export.trace(read, spec), read, spec, root / "tiny.onnx")
    return root / "tiny.onnx"


@pytest.fixture(scope="module")
def irs(exported: Path) -> dict[str, Path]:
    targets = {precision: exported.parent / precision / "tiny.xml" for precision in ("FP16", "FP32")}
    for xml in targets.values():
        xml.parent.mkdir()
    ir.convert(exported, "tiny", targets)
    return targets


def with_weight(exported: Path, folder: Path, value: float) -> Path:
    """The same model, with one number of one matrix changed."""
    weights = checkpoints.weights(checkpoints.TINY, seed=7)
    weights["h.1.mlp.c_fc.weight"][3, 5] = value
    shutil.copytree(exported.parent / "tiny", folder / "tiny")
    checkpoints.write_safetensors(folder / "tiny" / "model.safetensors", weights)
    return shutil.copy(exported, folder / "tiny.onnx")


@pytest.mark.parametrize("precision", ["FP16", "FP32"])
def test_attention_is_causal_by_its_attribute_and_has_no_mask(irs: dict[str, Path], precision: str) -> None:
    nodes = openvino.Core().read_model(irs[precision]).get_ops()
    kinds = Counter(node.get_type_name() for node in nodes)
    attention = [node for node in nodes if node.get_type_name() == "ScaledDotProductAttention"]
    assert [node.get_attributes()["causal"] for node in attention] == [True] * checkpoints.TINY["n_layer"]
    assert not {"Select", "IsNaN", "LessEqual", "Subtract", "Softmax"} & set(kinds)


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (2, 7), (1, 48), (3, 48)])
@pytest.mark.parametrize(("precision", "bound"), [("FP16", 5e-3), ("FP32", 2e-5)])
def test_the_ir_answers_as_the_onnx_model(
    exported: Path, irs: dict[str, Path], precision: str, bound: float, shape: tuple[int, int]
) -> None:
    ids = np.random.default_rng(1).integers(0, 97, shape, dtype=np.int64)
    [wanted] = onnxruntime.InferenceSession(exported).run(["output"], {"input": ids})
    got = openvino.Core().compile_model(irs[precision], "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(ids)[0]
    assert np.abs(got - wanted).max() <= bound * max(1, np.abs(wanted).max())


def test_the_bytes_depend_on_the_model_alone(exported: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "another place"
    shutil.copytree(exported.parent / "tiny", elsewhere / "tiny")
    shutil.copy(exported, elsewhere / ".tiny.onnx.tmp")
    # The second of them converts the model twice: what a process did before must not show either.
    runs = {"1": [exported], "2": [elsewhere / ".tiny.onnx.tmp", elsewhere / ".tiny.onnx.tmp"]}
    made = []
    for seed, models in runs.items():
        out = tmp_path / f"out{seed}"
        out.mkdir()
        environment = os.environ | {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": seed, "HOME": str(out)}
        subprocess.run([sys.executable, "-c", CONVERT, out, *models], cwd=out, env=environment, check=True)
        made += [
            {str(f.relative_to(one)): f.read_bytes() for f in one.rglob("tiny.*")} for one in sorted(out.iterdir())
        ]
    assert len(made) == 3
    assert made[0].keys() == {f"{p}/tiny.{kind}" for p in ("FP16", "FP16-INT8", "FP32") for kind in ("bin", "xml")}
    assert made[0] == made[1] == made[2]
    read, spec = checkpoint.load(exported.parent / "tiny"), contract(exported)
    assert rounding.check(tmp_path / "out1" / "0" / "FP16-INT8" / "tiny.xml", read, spec).weights == 29_216
    for xml in (data for name, data in made[0].items() if name.endswith(".xml")):
        assert str(exported.parent).encode() not in xml
        assert b".onnx" not in xml


@pytest.mark.parametrize("value", [65504.0, 65519.0, 1e-12])
def test_a_weight_that_f16_rounds_is_none(exported: Path, tmp_path: Path, value: float) -> None:
    ir.convert(with_weight(exported, tmp_path, value), "tiny", {"FP16": tmp_path / "tiny.xml"})
    nodes = {node.get_friendly_name(): node for node in openvino.Core().read_model(tmp_path / "tiny.xml").get_ops()}
    [held] = [
        node.data[3, 5] for name, node in nodes.items() if "h.1.mlp.c_fc.weight" in name and hasattr(node, "data")
    ]
    assert held == pytest.approx(min(value, 65504.0), abs=3e-8)


def test_the_ingredients_are_told_without_openvino() -> None:
    code = (
        "import json, sys; from omz_tools.export import ir;"
        "print(json.dumps(ir.ingredients('m', 'FP16', {'model': 'm'})), 'openvino' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    told, loaded = said.rsplit(" ", 1)
    assert loaded == "False"
    assert json.loads(told) == ir.ingredients("m", "FP16", {"model": "m"})
    assert ir.ingredients("m", "FP16", {"model": "m"}) != ir.ingredients("m", "FP32", {"model": "m"})
    assert ir.ingredients("m", "FP16", {"model": "m"}) != ir.ingredients("n", "FP16", {"model": "m"})
    assert ir.ingredients("m", "FP16", {"model": "m"}) != ir.ingredients("m", "FP16", {"model": "n"})
