"""gpt-2 at its true size, every tensor random: from the stand-in Hub over HTTP to IR, by the commands alone."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import checkpoints
import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
import transformers
from conftest import BIN, Converted
from test_info_dumper import agrees, specification
from test_onnx_export import export
from test_stateful import greedy_by_transformers

from omz_tools.export import binding, checkpoint, ir, onnx_export, signatures
from omz_tools.generation import predictors

PARAMETERS = 124_439_808
SHAPES = [(1, 1), (2, 7), (1, 1024)]


@pytest.fixture(scope="module")
def references(full_size: Converted) -> dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]:
    """Token ids and PyTorch's logits at each shape, by transformers from the downloaded folder."""
    model = transformers.GPT2LMHeadModel.from_pretrained(full_size.folder / "gpt2", attn_implementation="eager").eval()
    draw = np.random.default_rng(3)
    found = {}
    for shape in SHAPES:
        ids = draw.integers(0, 50257, shape, dtype=np.int64)
        with torch.no_grad():
            found[shape] = ids, model(torch.from_numpy(ids)).logits.numpy()
    return found


def test_the_checkpoint_has_the_published_tensors_at_odd_offsets(full_size: Converted) -> None:
    tensors = checkpoint.load(full_size.folder / "gpt2").tensors
    assert len(tensors) == 160
    assert sum(tensor.length for tensor in tensors.values()) == 4 * 137_022_720
    with (full_size.folder / "gpt2" / "model.safetensors").open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
    assert (8 + length) % 4 == 3  # as in the published file, whose weights begin at byte 14291


def test_each_file_was_downloaded_to_its_place(full_size: Converted) -> None:
    names = {path.name for path in (full_size.folder / "gpt2").iterdir()}
    assert names == {
        "config.json", "generation_config.json", "merges.txt", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json", "vocab.json",
    }  # fmt: skip
    assert full_size.downloaded.count("... 100%") == 7


def test_the_onnx_file_keeps_the_contract(full_size: Converted) -> None:
    graph = onnx.load(full_size.folder / "gpt-2.onnx", load_external_data=False).graph
    tensors = {value.name: value.type.tensor_type for value in (*graph.input, *graph.output)}
    axes = {name: [axis.dim_param or axis.dim_value for axis in t.shape.dim] for name, t in tensors.items()}
    assert axes == {"input": ["B", "L"], "output": ["B", "L", 50257]}
    assert tensors["input"].elem_type == onnx.TensorProto.INT64
    assert tensors["output"].elem_type == onnx.TensorProto.FLOAT
    weights = sum(int(np.prod(tensor.dims)) for tensor in graph.initializer if tensor.dims)
    assert weights == pytest.approx(PARAMETERS, abs=100)  # the embedding once, no mask


@pytest.mark.parametrize(("precision", "item"), [("FP16", 2), ("FP32", 4)])
def test_the_ir_keeps_the_contract_and_stores_the_embedding_once(
    full_size: Converted, precision: str, item: int
) -> None:
    model = openvino.Core().read_model(full_size.folder / precision / "gpt-2.xml")
    ports = {port.get_any_name(): port for port in (*model.inputs, *model.outputs)}
    kinds = {name: (p.element_type.get_type_name(), str(p.partial_shape)) for name, p in ports.items()}
    assert kinds == {"input": ("i64", "[?,?]"), "output": ("f32", "[?,?,50257]")}
    assert (full_size.folder / precision / "gpt-2.bin").stat().st_size == pytest.approx(PARAMETERS * item, rel=1e-4)


@pytest.mark.parametrize(("what", "bound"), [("ONNX", 1e-4), ("FP32", 1e-4), ("FP16", 5e-2)])
def test_logits_equal_pytorch(
    full_size: Converted, references: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]], what: str, bound: float
) -> None:
    if what == "ONNX":
        session = onnxruntime.InferenceSession(full_size.folder / "gpt-2.onnx")
        outputs = {shape: session.run(["output"], {"input": ids})[0] for shape, (ids, _) in references.items()}
    else:
        xml = full_size.folder / what / "gpt-2.xml"
        compiled = openvino.Core().compile_model(xml, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        outputs = {shape: compiled({"input": ids})["output"].copy() for shape, (ids, _) in references.items()}
    for shape, (_, wanted) in references.items():
        assert outputs[shape].dtype == np.float32
        assert outputs[shape].shape == (*shape, 50257)
        assert np.abs(outputs[shape] - wanted).max() < bound


def test_greedy_text_of_the_model_with_a_state_is_that_of_transformers(full_size: Converted, tmp_path: Path) -> None:
    read = checkpoint.load(full_size.folder / "gpt2")
    spec = signatures.with_past(export(checkpoints.GPT2))
    onnx_path, xml = full_size.folder / "past.onnx", tmp_path / "openvino_model.xml"
    binding.bind(onnx_export.trace(read, spec, past=True), read, spec, onnx_path)
    ir.convert(onnx_path, "gpt-2", {"FP32": xml}, state=True)
    onnx_path.unlink()
    assert xml.with_suffix(".bin").stat().st_size == pytest.approx(PARAMETERS * 4, rel=1e-4)
    ids = np.random.default_rng(6).integers(0, 50257, (1, 12))
    predictor, text = predictors.load(xml, 1024), ids[0].tolist()
    while len(text) < 212:
        text.append(int(predictor.logits([text])[0].argmax()))
    assert text[12:] == greedy_by_transformers(read.folder, ids, 200)


# What Open Model Zoo's page of gpt-2 says of its converted model at [1, 1024].
PUBLISHED_GFLOPS, PUBLISHED_PARAMETERS = "293.0489", 175.6203e6


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss in kB")
@pytest.mark.parametrize("file", ["gpt-2.onnx", "FP16/gpt-2.xml", "FP32/gpt-2.xml"])
def test_operations_and_parameters_are_the_published_ones_and_no_weights_are_read(
    full_size: Converted, file: str
) -> None:
    words = [BIN / "omz_analyzer", "-m", full_size.folder / file, "--shape", "[1,1024]", "--format", "json"]
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=sys.stderr);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    told = json.loads(done.stderr)
    assert f"{told['gflops']:.4f}" == PUBLISHED_GFLOPS
    embedding, masks = 50257 * 768, 12 * 1024 * 1024
    assert told["parameters"] == {
        "distinct": PARAMETERS,
        "at_each_use": PARAMETERS + embedding,
        "open_model_zoo": PARAMETERS + embedding + masks,
    }
    # Some two hundred more are the axes, exponents and factors of its operators.
    assert 0 < PUBLISHED_PARAMETERS - told["parameters"]["open_model_zoo"] < 300
    assert int(done.stdout) * 1024 < 4 * PARAMETERS / 2  # bytes of memory at most, of the whole command


def test_the_specification_of_gpt_2_is_that_of_its_files(full_size: Converted) -> None:
    agrees(specification("gpt-2"), full_size.folder, "gpt-2", checkpoints.GPT2)
