"""onnx_export: the graph before its weights; binding: the graph with them."""

import dataclasses
import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import checkpoints
import msgspec
import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
import transformers
from faults import sample

from omz_tools.descriptors import reading, zoo
from omz_tools.descriptors.descriptor import Export, TensorSpec
from omz_tools.errors import CheckpointError, ConversionError, UnsupportedError
from omz_tools.export import binding, checkpoint, layers, onnx_export, signatures
from omz_tools.export.checkpoint import Checkpoint
from omz_tools.proof import differences

# The first one, the last one without the operator Attention, and the one with it. Those between are made as the first
# is, for a library to rewrite.
OPSETS = sample((18, 22, 23), tuple(range(18, 24)))
SMALL = checkpoints.TINY | {"n_embd": 16, "n_positions": 9, "vocab_size": 31}


def export(config: dict[str, Any], **changes: Any) -> Export:
    """The export section of gpt-2 with the vocabulary of `config`."""
    spec = reading.load(zoo.shipped() / "gpt-2" / "model.yml").export
    assert spec
    output = TensorSpec("output", "f32", ("B", "L", config["vocab_size"]))
    return msgspec.structs.replace(spec, outputs=(output,), **changes)


def made(folder: Path, config: dict[str, Any] = SMALL, seed: int = 5) -> Checkpoint:
    return checkpoint.load(checkpoints.write_repository(folder, config, seed))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return made(tmp_path_factory.mktemp("small") / "gpt2")


@pytest.fixture(scope="module")
def skeletons(small: Checkpoint) -> dict[int, bytes]:
    """The graph in each operator set."""
    return {opset: onnx_export.trace(small, export(SMALL, opset=opset)) for opset in OPSETS}


def initializers(serialized: bytes) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in onnx.load_from_string(serialized).graph.initializer}


def agree(path: Path, read: Checkpoint) -> None:
    """ONNX Runtime and OpenVINO answer as PyTorch does, at every length there is."""
    model = transformers.GPT2LMHeadModel.from_pretrained(read.folder, attn_implementation="eager").eval()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # others would wait for work in loops, beside tests that need the processor
    session = onnxruntime.InferenceSession(path, options)
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    draw = np.random.default_rng(2)
    for shape in itertools.product((1, 3), range(1, read.config["n_positions"] + 1)):
        ids = draw.integers(0, read.config["vocab_size"], shape)
        with torch.no_grad():
            wanted = model(torch.from_numpy(ids)).logits.numpy()
        bound = differences.BOUNDS["FP32"].difference * max(1.0, float(np.abs(wanted).max()))
        np.testing.assert_allclose(session.run(["output"], {"input": ids})[0], wanted, rtol=0, atol=bound)
        np.testing.assert_allclose(compiled(ids)["output"], wanted, rtol=0, atol=bound)


# ---- the skeleton


def test_each_parameter_is_there_once_with_its_name_and_shape_and_without_values(
    small: Checkpoint, skeletons: dict[int, bytes]
) -> None:
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**SMALL))
    for serialized in skeletons.values():
        found = initializers(serialized)
        external = {n: tuple(t.dims) for n, t in found.items() if t.data_location == onnx.TensorProto.EXTERNAL}
        assert external == {name: tuple(p.shape) for name, p in model.named_parameters()}
        assert all(len(t.raw_data) <= 16 for t in found.values())


def test_a_skeleton_is_taken_for_a_model_by_no_one(skeletons: dict[int, bytes], tmp_path: Path) -> None:
    (tmp_path / "skeleton.onnx").write_bytes(skeletons[23])
    with pytest.raises(onnx.checker.ValidationError, match="unbound"):
        onnx.checker.check_model(tmp_path / "skeleton.onnx")
    with pytest.raises(Exception, match="unbound"):
        onnxruntime.InferenceSession(tmp_path / "skeleton.onnx")
    with pytest.raises(Exception, match="unbound"):
        openvino.Core().read_model(tmp_path / "skeleton.onnx")


def test_attention_is_one_operator_a_layer_where_there_is_one(skeletons: dict[int, bytes]) -> None:
    kinds = {o: Counter(n.op_type for n in onnx.load_from_string(s).graph.node) for o, s in skeletons.items()}
    assert kinds[23]["Attention"] == SMALL["n_layer"]
    assert not kinds[23].keys() & {"Softmax", "Where", "Trilu", "Expand"}
    for opset in set(OPSETS) - {23}:
        assert kinds[opset]["Attention"] == 0
        assert kinds[opset]["Softmax"] == SMALL["n_layer"]
        assert kinds[opset]["Where"] == 1  # one mask for all layers
    assert [onnx.load_from_string(s).opset_import[0].version for s in skeletons.values()] == list(OPSETS)


CODE = """
import sys
from pathlib import Path
from test_onnx_export import SMALL, export
from omz_tools.export import checkpoint, onnx_export
sys.stdout.buffer.write(onnx_export.trace(checkpoint.load(Path(sys.argv[1])), export(SMALL)))
"""


def test_a_trace_is_the_same_in_another_process_folder_and_with_other_weights(
    skeletons: dict[int, bytes], tmp_path: Path
) -> None:
    other = made(tmp_path / "elsewhere" / "weights", SMALL, seed=6)
    home = tmp_path / "home"
    home.mkdir()
    path = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parent)])
    environment = os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": "77", "HOME": str(home), "USER": "other"}
    code = [sys.executable, "-c", CODE, other.folder]
    result = subprocess.run(code, cwd=home, env=environment, capture_output=True, check=True)
    assert result.stdout == skeletons[23]


def test_nothing_but_the_graph_is_in_a_skeleton(skeletons: dict[int, bytes]) -> None:
    for serialized in skeletons.values():
        model = onnx.load_from_string(serialized)
        graph = model.graph
        assert not model.metadata_props
        for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info):
            assert not part.metadata_props
            assert not part.doc_string
        for trace in (b".py", b"site-packages", b"/", b"+cpu", b"torch.nn"):
            assert trace not in serialized


# ---- layers that are alike


@pytest.mark.parametrize(
    ("opset", "activation", "past"),
    [(18, "relu", False), (23, "gelu_new", False), (23, "relu", True)],
)
def test_a_repeated_layer_makes_the_bytes_of_a_full_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opset: int, activation: str, past: bool
) -> None:
    config = SMALL | {"n_layer": 4, "activation_function": activation}
    read, spec = made(tmp_path, config), export(config, opset=opset)
    spec = signatures.with_past(spec) if past else spec
    depths: list[int] = []
    traced = onnx_export._traced
    monkeypatch.setattr(onnx_export, "_traced", lambda *a, **k: depths.append(a[2]) or traced(*a, **k))
    repeated = onnx_export.trace(read, spec, past=past)
    assert depths == [2]
    monkeypatch.setattr(layers, "TRACED", 4)
    assert onnx_export.trace(read, spec, past=past) == repeated
    assert depths == [2, 4]


def test_layers_that_differ_are_all_traced(tmp_path: Path) -> None:
    config = SMALL | {"n_layer": 3, "scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False}
    read = made(tmp_path / "gpt2", config)
    serialized = onnx_export.trace(read, export(config))
    nodes = [node for node in onnx.load_from_string(serialized).graph.node if node.op_type == "Attention"]
    scales = [attribute.f for node in nodes for attribute in node.attribute if attribute.name == "scale"]
    assert scales == pytest.approx([1, 1 / 2, 1 / 3])  # not divided by the root of a head's width, which is 8
    binding.bind(serialized, read, export(config), tmp_path / "m.onnx")
    agree(tmp_path / "m.onnx", read)


def test_settings_that_change_the_result_are_followed(tmp_path: Path) -> None:
    changes = {"activation_function": "relu", "layer_norm_epsilon": 1e-3, "reorder_and_upcast_attn": True}
    config = SMALL | changes
    read = made(tmp_path / "gpt2", config)
    binding.bind(onnx_export.trace(read, export(config)), read, export(config), tmp_path / "m.onnx")
    agree(tmp_path / "m.onnx", read)
    for name in ("activation_function", "layer_norm_epsilon"):
        unchanged = made(tmp_path / name, config | {name: SMALL[name]})
        with pytest.raises(AssertionError):
            agree(tmp_path / "m.onnx", unchanged)


@pytest.mark.parametrize(
    ("change", "word"), [({"n_head": 3}, "n_head|num_heads"), ({"activation_function": "no_such"}, "no_such")]
)
def test_a_config_that_makes_no_model_is_refused(small: Checkpoint, change: dict[str, Any], word: str) -> None:
    with pytest.raises(CheckpointError, match=word) as caught:
        onnx_export.trace(dataclasses.replace(small, config=small.config | change), export(SMALL))
    assert "config.json" in str(caught.value)


# ---- the ingredients


def test_ingredients_say_what_a_trace_depends_on_and_nothing_else(small: Checkpoint, tmp_path: Path) -> None:
    spec = export(SMALL)
    same = onnx_export.ingredients(small, spec)
    assert json.loads(json.dumps(same)) == same
    silent = {"bos_token_id": 5, "_name_or_path": "x", "transformers_version": "4.0", "summary_type": "mean"}
    other = made(tmp_path / "other", SMALL | silent, seed=9)
    moved = export(SMALL, checkpoint="other")
    assert onnx_export.ingredients(other, moved) == same
    for key, value in {"n_head": 4, "layer_norm_epsilon": 1e-6, "n_inner": 8, "tie_word_embeddings": False}.items():
        read = dataclasses.replace(small, config=small.config | {key: value})
        assert onnx_export.ingredients(read, spec) != same
    assert onnx_export.ingredients(small, export(SMALL, opset=18)) != same
    assert onnx_export.ingredients(small, export(SMALL, inputs=(TensorSpec("ids", "i64", ("B", "L")),))) != same


def test_ingredients_and_binding_import_neither_torch_nor_transformers(
    small: Checkpoint, skeletons: dict[int, bytes], tmp_path: Path
) -> None:
    (tmp_path / "skeleton").write_bytes(skeletons[23])
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from omz_tools.descriptors import reading, zoo\n"
        "from omz_tools.export import binding, checkpoint, onnx_export\n"
        "spec = reading.load(zoo.shipped() / 'gpt-2' / 'model.yml').export\n"
        "read = checkpoint.load(Path(sys.argv[1]))\n"
        "onnx_export.ingredients(read, spec)\n"
        "binding.bind(Path('skeleton').read_bytes(), read, spec, Path('m.onnx'))\n"
        "heavy = {'torch', 'transformers', 'onnxscript', 'onnx_ir', 'openvino'} & sys.modules.keys()\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    words = [sys.executable, "-c", code, small.folder]
    result = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("shape", [("N", "N"), ("B", 5), ("B",), ("B", "L", "M")])
def test_an_input_without_two_axes_is_refused(small: Checkpoint, shape: tuple[str | int, ...]) -> None:
    with pytest.raises(UnsupportedError, match="axes"):
        onnx_export.trace(small, export(SMALL, inputs=(TensorSpec("input", "i64", shape),)))


# ---- bound


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("embedded", [False, True], ids=["by reference", "embedded"])
def test_the_bound_model_answers_as_pytorch_does_at_every_length(
    small: Checkpoint, skeletons: dict[int, bytes], tmp_path: Path, opset: int, embedded: bool
) -> None:
    path = (tmp_path if embedded else small.folder.parent) / f"opset{opset}.onnx"
    binding.bind(skeletons[opset], small, export(SMALL, opset=opset), path)
    onnx.checker.check_model(path, full_check=True)
    agree(path, small)
    weights = sum(tensor.length for name, tensor in small.tensors.items() if not name.endswith(".attn.bias"))
    assert (path.stat().st_size > weights) == embedded


@pytest.mark.parametrize("positions", [1, 2])
def test_a_model_of_very_few_positions(tmp_path: Path, positions: int) -> None:
    config = SMALL | {"n_positions": positions}
    read = made(tmp_path / "gpt2", config)
    binding.bind(onnx_export.trace(read, export(config)), read, export(config), tmp_path / "m.onnx")
    agree(tmp_path / "m.onnx", read)


def test_an_output_layer_of_its_own(tmp_path: Path) -> None:
    config = SMALL | {"tie_word_embeddings": False}
    folder = checkpoints.write_repository(tmp_path / "gpt2", config, 5)
    named = checkpoints.weights(config, 5)
    head = np.random.default_rng(8).standard_normal((31, 16), dtype=np.float32)
    checkpoints.write_safetensors(folder / "model.safetensors", named | {"lm_head.weight": head})
    read = checkpoint.load(folder)
    skeleton = onnx_export.trace(read, export(config))
    binding.bind(skeleton, read, export(config), tmp_path / "m.onnx")
    agree(tmp_path / "m.onnx", read)
    checkpoints.write_safetensors(folder / "model.safetensors", named)
    with pytest.raises(CheckpointError, match=r"no tensor 'lm_head.weight'"):
        binding.bind(skeleton, checkpoint.load(folder), export(config), tmp_path / "other.onnx")
    assert not (tmp_path / "other.onnx").exists()


def test_embedded_weights_are_those_of_the_checkpoint_bit_by_bit(
    small: Checkpoint, skeletons: dict[int, bytes], tmp_path: Path
) -> None:
    binding.bind(skeletons[23], small, export(SMALL), tmp_path / "m.onnx")
    data = (small.folder / "model.safetensors").read_bytes()
    held = initializers((tmp_path / "m.onnx").read_bytes())
    for name, parameter in initializers(skeletons[23]).items():
        if parameter.data_location == onnx.TensorProto.EXTERNAL:
            tensor = small.tensors[name.removeprefix("transformer.")]
            assert held[name].raw_data == data[tensor.offset : tensor.offset + tensor.length]
            assert held[name].dims == parameter.dims


def test_what_is_too_large_to_be_embedded_is_said(
    small: Checkpoint, skeletons: dict[int, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binding, "MAX_EMBEDDED_BYTES", 10_000)
    with pytest.raises(ConversionError, match="too large to be copied"):
        binding.bind(skeletons[23], small, export(SMALL), tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_weights_of_another_shape_are_not_bound(skeletons: dict[int, bytes], tmp_path: Path) -> None:
    other = made(tmp_path / "gpt2", SMALL | {"n_embd": 32})
    with pytest.raises(CheckpointError, match=r"'wte.weight' is \[31, 32\], by config.json it is \[31, 16\]"):
        binding.bind(skeletons[23], other, export(SMALL), tmp_path / "m.onnx")


def test_what_is_no_graph_is_not_bound(small: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="cannot be read"):
        binding.bind(b"\x3a\xff no graph", small, export(SMALL), tmp_path / "m.onnx")
