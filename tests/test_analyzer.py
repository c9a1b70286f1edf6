"""omz_analyzer: what it counts, against closed formulas of config.json, torch's own counter, and figures by hand."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import msgspec
import numpy as np
import openvino
import pytest
import torch
import transformers
from conftest import Command, Converted
from openvino import opset13 as ov
from torch.utils.flop_counter import FlopCounterMode

from omz_tools.commands import analyzer as commands
from omz_tools.descriptors import reading
from omz_tools.errors import ConversionError, ModelError
from omz_tools.evaluation import analysis, flops
from omz_tools.export import binding, checkpoint, onnx_export

FILES = ("gpt-2-mini.onnx", "FP16/gpt-2-mini.xml", "FP32/gpt-2-mini.xml")
SHAPES = [(1, 1), (2, 7), (1, 256)]


def expected(config: dict[str, Any], batch: int, length: int) -> dict[str, int]:
    """Floating-point operations of GPT-2 by what its definition says, not by any graph of it."""
    width, layers, heads, words = (config[key] for key in ("n_embd", "n_layer", "n_head", "vocab_size"))
    tokens = batch * length
    scores = layers * heads * batch * length**2
    return {
        # query, key and value; what attention gives; there and back between 1 and 4 widths; the scores of all words
        "MatMul": 2 * tokens * (layers * (3 + 1 + 4 + 4) * width**2 + width * words),
        # scaled queries; each score and each sum of values takes a head's width; softmax
        "ScaledDotProductAttention": layers * tokens * width + scores * (4 * width // heads + 5),
        # four multiplications, two additions, tanh as six
        "Gelu": layers * tokens * 4 * width * 12,
        # biases of four products and of two norms, two residuals; the last norm, and positions to words
        "Add": tokens * width * (layers * (3 + 1 + 4 + 1 + 2 + 2) + 2),
        "MVN": tokens * width * (2 * layers + 1) * 2,
        "Multiply": tokens * width * (2 * layers + 1),
        "Gather": 0,
    }


def torch_counts(config: dict[str, Any], batch: int, length: int) -> int:
    """What torch's own counter says of the products of matrices in transformers' GPT-2; no weights are needed."""
    with torch.device("meta"):
        made = transformers.GPT2Config(**config, attn_implementation="eager")
        model = transformers.GPT2LMHeadModel(made).eval()
        ids = torch.zeros((batch, length), dtype=torch.long)
        seen = torch.ones_like(ids)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids, attention_mask=seen, use_cache=False)
    return counter.get_total_flops()


@pytest.fixture(scope="module")
def config(mini: Converted) -> dict[str, Any]:
    return json.loads((mini.folder / "gpt2-mini" / "config.json").read_text(encoding="utf-8"))


@pytest.fixture
def analyzer(run: Command) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`omz_analyzer`; nothing it prints is a traceback."""

    def analyzer(*words: str | Path) -> subprocess.CompletedProcess[str]:
        done = run("omz_analyzer", *words)
        assert "Traceback" not in done.stdout + done.stderr
        return done

    return analyzer


def built(path: Path, results: list[Any], parameters: list[Any]) -> Path:
    """The IR of a model whose inputs are called as its parameters are."""
    for parameter in parameters:
        parameter.output(0).set_names({parameter.get_friendly_name()})
    openvino.save_model(openvino.Model(results, parameters, "built"), path, compress_to_fp16=False)
    return path


# ---- GPT-2


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("shape", SHAPES)
def test_operations_are_those_of_the_closed_formula(
    mini: Converted, config: dict[str, Any], file: str, shape: tuple[int, int]
) -> None:
    counted = analysis.analyze(mini.folder / file, {"input": shape})
    assert {operation.type: operation.flops for operation in counted.operations} == expected(config, *shape)
    assert counted.flops == sum(expected(config, *shape).values())
    assert counted.shapes == {"input": shape}
    assert counted.not_counted == {}


@pytest.mark.parametrize("shape", SHAPES)
def test_products_of_matrices_are_those_that_torch_counts(config: dict[str, Any], shape: tuple[int, int]) -> None:
    scores = config["n_layer"] * config["n_head"] * shape[0] * shape[1] ** 2
    scaled = config["n_layer"] * shape[0] * shape[1] * config["n_embd"]
    by_formula = expected(config, *shape)
    products = by_formula["MatMul"] + by_formula["ScaledDotProductAttention"] - 5 * scores - scaled
    named = {key: config[key] for key in ("n_embd", "n_layer", "n_head", "n_positions", "vocab_size")}
    assert torch_counts(named, *shape) == products


@pytest.mark.parametrize("file", FILES)
def test_parameters_are_counted_once_at_each_use_and_with_masks(
    mini: Converted, config: dict[str, Any], file: str
) -> None:
    counted = analysis.analyze(mini.folder / file, {"input": (3, 10)})
    weights = transformers.GPT2LMHeadModel.from_pretrained(mini.folder / "gpt2-mini").parameters()
    embedding = config["vocab_size"] * config["n_embd"]
    assert counted.parameters == sum(parameter.numel() for parameter in weights)
    assert counted.used_parameters == counted.parameters + embedding  # it is the output layer, too
    assert counted.masks == config["n_layer"] * 10 * 10
    used = {operation.type: operation.parameters for operation in counted.operations}
    assert used["Gather"] == embedding + config["n_positions"] * config["n_embd"]
    assert used["Multiply"] == (2 * config["n_layer"] + 1) * config["n_embd"]


def test_an_older_operator_set_costs_the_same_but_for_the_mask_that_is_added(tmp_path: Path) -> None:
    folder = checkpoints.write_repository(tmp_path / "tiny", checkpoints.TINY, seed=7)
    spec = reading.load(checkpoints.pin_locally(folder, tmp_path / "models", "tiny")).export
    assert spec is not None
    spec, read = msgspec.structs.replace(spec, opset=18), checkpoint.load(folder)
    binding.bind(onnx_export.trace(read, spec), read, spec, tmp_path / "tiny.onnx")
    counted = analysis.analyze(tmp_path / "tiny.onnx", {"": (2, 7)})
    layers, heads = checkpoints.TINY["n_layer"], checkpoints.TINY["n_head"]
    assert counted.flops == sum(expected(checkpoints.TINY, 2, 7).values()) + layers * heads * 2 * 7 * 7
    assert counted.masks == layers * 7 * 7


def test_the_command_prints_a_table_and_the_parameters_in_three_ways(
    mini: Converted, analyzer: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = analyzer("-m", mini.folder / "FP16" / "gpt-2-mini.xml", "--shape", "input[1,256]")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "At input[1, 256]:"
    assert lines[2].split() == ["operator", "number", "GFLOPs", "MParams"]
    assert lines[3].split() == ["MatMul", "17", "0.5369", "1.0486"]
    assert lines[4].split() == ["ScaledDotProductAttention", "4", "0.1396", "0.0000"]
    assert "in all                             0.6854   1.3504" in lines
    assert lines[-3:] == [
        "1,088,256 parameters",
        "1,350,400 when those that several operators share count for each of them",
        "1,612,544 as Open Model Zoo counts: with a mask for each attention",
    ]


def test_as_json(
    mini: Converted, config: dict[str, Any], analyzer: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    path = mini.folder / "gpt-2-mini.onnx"
    done = analyzer("--model", path, "--shape", " input [ 2, 7 ]", "--format=json")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    counted = expected(config, 2, 7)
    assert told["model"] == str(path)
    assert told["shapes"] == {"input": [2, 7]}
    assert told["flops"] == sum(counted.values())
    assert told["gflops"] == round(told["flops"] / 1e9, 4)
    assert told["parameters"] == {
        "distinct": 1_088_256, "at_each_use": 1_350_400, "open_model_zoo": 1_350_400 + 4 * 49
    }  # fmt: skip
    assert {operator["type"]: operator["flops"] for operator in told["operators"]} == counted
    assert {operator["type"]: operator["number"] for operator in told["operators"]}["Gelu"] == 4
    assert told["not_counted"] == {}


# ---- other models


def a_matrix_product(x: Any) -> Any:
    return ov.matmul(x, np.ones((4, 5), np.float32), transpose_a=True, transpose_b=False)


def a_convolution(x: Any) -> Any:
    filters = np.ones((5, 2, 3, 3), np.float32)
    return ov.convolution(ov.reshape(x, [1, 2, 4, 3], False), filters, [1, 1], [1, 1], [1, 1], [1, 1])


def a_convolution_of_groups(x: Any) -> Any:
    filters = np.ones((2, 5, 1, 3, 3), np.float32)
    return ov.group_convolution(ov.reshape(x, [1, 2, 4, 3], False), filters, [1, 1], [1, 1], [1, 1], [1, 1])


def an_attention_with_fewer_keys(x: Any) -> Any:
    keys, values = np.ones((2, 7, 3), np.float32), np.ones((2, 7, 6), np.float32)
    return ov.scaled_dot_product_attention(x, keys, values, causal=False)


def an_attention_with_a_mask(x: Any) -> Any:
    return ov.scaled_dot_product_attention(x, x, x, np.ones((4, 4), np.float32), causal=False)


def an_attention_with_a_mask_of_booleans(x: Any) -> Any:
    return ov.scaled_dot_product_attention(x, x, x, np.ones((4, 4), np.bool_), causal=False)


def a_causal_attention_with_a_scale(x: Any) -> Any:
    return ov.scaled_dot_product_attention(x, x, x, np.float32(0), np.float32(2), causal=True)


# Each for x of [2, 4, 3]: operations and parameters by hand.
BY_HAND = [
    (a_matrix_product, 2 * (2 * 3 * 5) * 4, 20),
    (a_convolution, (5 * 4 * 3) * 2 * (2 * 3 * 3), 90),
    (a_convolution_of_groups, (10 * 4 * 3) * 2 * (3 * 3), 90),
    (an_attention_with_fewer_keys, 24 + 2 * (4 * 7) * (2 * 3 + 5 + 2 * 6), 2 * 7 * 9),
    (an_attention_with_a_mask, 24 + 2 * (4 * 4) * (2 * 3 + 1 + 5 + 2 * 3), 16),
    (an_attention_with_a_mask_of_booleans, 24 + 2 * (4 * 4) * (2 * 3 + 5 + 2 * 3), 0),
    (a_causal_attention_with_a_scale, 24 + 2 * (4 * 4) * (2 * 3 + 5 + 2 * 3), 0),
    (lambda x: ov.gelu(x, "erf"), 24 * 5, 0),
    (lambda x: ov.gelu(x, "tanh"), 24 * 12, 0),
    (lambda x: ov.softmax(x, 2), 24 * 5, 0),
    (lambda x: ov.tanh(x), 24 * 6, 0),
    (lambda x: ov.reduce_mean(x, [2], False), 24, 0),
    (lambda x: ov.add(x, np.ones((5, 2, 4, 3), np.float32)), 120, 120),
    (lambda x: ov.multiply(x, np.float32(2)), 24, 0),  # one number is a factor, no parameter
    (lambda x: ov.multiply(x, ov.sqrt(np.full((3,), 2, np.float32))), 24, 3),  # constants are folded beforehand
    (lambda x: ov.transpose(ov.concat([x, x], 0), [1, 0, 2]), 0, 0),
    (lambda x: ov.convert(ov.add(ov.convert(x, "i64"), np.int64(1)), "f32"), 0, 0),
    (lambda x: ov.select(ov.greater(x, np.float32(0)), x, np.float32(0)), 0, 0),
]


@pytest.mark.parametrize(("operator", "operations", "parameters"), BY_HAND)
def test_an_operator_costs_what_one_counts_by_hand(
    tmp_path: Path, operator: Callable[[Any], Any], operations: int, parameters: int
) -> None:
    x = ov.parameter([-1, 4, 3], np.float32, name="x")
    counted = analysis.analyze(built(tmp_path / "m.xml", [operator(x)], [x]), {"x": (2, 4, 3)})
    assert (counted.flops, counted.parameters, counted.not_counted) == (operations, parameters, {})


def test_what_depends_on_shapes_alone_costs_nothing(tmp_path: Path) -> None:
    x = ov.parameter([-1, 3], np.float32, name="x")
    length = ov.convert(ov.gather(ov.shape_of(x), np.int64(0), np.int64(0)), "f32")
    model = built(tmp_path / "m.xml", [ov.add(x, ov.exp(length))], [x])
    assert analysis.analyze(model, {"x": (5, 3)}).flops == 15


def test_operators_without_a_rule_are_named(
    tmp_path: Path, analyzer: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    x = ov.parameter([2, 4], np.float32, name="x")
    summed = ov.cum_sum(ov.cum_sum(x, np.int64(0)), np.int64(1))
    model = built(tmp_path / "m.xml", [ov.add(ov.lrn(summed, np.array([1], np.int64), 1, 1, 1, 1), x)], [x])
    done = analyzer("-m", model)
    assert done.returncode == 0
    assert done.stdout.endswith("\n\nNOT COUNTED: CumSum (2), LRN (1)\n")
    assert json.loads(analyzer("-m", model, "--format", "json").stdout)["not_counted"] == {"CumSum": 2, "LRN": 1}


def test_operators_whose_shape_depends_on_numbers_are_named(tmp_path: Path) -> None:
    x = ov.parameter([4], np.float32, name="x")
    found = ov.gather_nd(x, ov.transpose(ov.non_zero(x), [1, 0]))
    counted = analysis.analyze(built(tmp_path / "m.xml", [ov.exp(found), ov.exp(x)], [x]), {})
    assert (counted.flops, dict(counted.not_counted)) == (4, {"Exp": 1})


def test_no_type_has_two_rules() -> None:
    sets = [set(flops._PER_ELEMENT), set(flops._REDUCTIONS), set(flops._MOVES), set(flops._RULES)]
    assert sum(map(len, sets)) == len(set.union(*sets))


# ---- what is wrong


@pytest.mark.parametrize("file", FILES[:2])
@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({"ids": (1, 7)}, "there is no input 'ids', so its shape cannot be [1, 7]"),
        ({"input": (7,)}, "the input 'input' cannot be [7]"),
        ({"input": (1, 2, 3)}, "the input 'input' cannot be [1, 2, 3]"),
        ({"": ()}, "the input 'input' cannot be []"),
        ({}, "the shape of the input 'input' is not given"),
    ],
)
def test_a_shape_that_does_not_fit(mini: Converted, file: str, wanted: dict[str, tuple[int, ...]], says: str) -> None:
    with pytest.raises(ModelError) as caught:
        analysis.analyze(mini.folder / file, wanted)
    assert (caught.value.what, caught.value.hint) == (says, f"The inputs of {Path(file).name} are input[?,?].")


def test_what_is_wrong_is_said_by_the_command(
    mini: Converted, analyzer: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = analyzer("-m", mini.folder / "gpt-2-mini.onnx", "--format", "json")
    assert (done.returncode, done.stdout) == (1, "")
    assert "the shape of the input 'input' is not given" in done.stderr
    assert "The inputs of gpt-2-mini.onnx are input[?,?]." in done.stderr


@pytest.mark.parametrize(
    "shape", ["input", "input[1,]", "input[0,7]", "input[1,-1]", "[1][2]", "a[1],a[2]", "a[1]b", "[1,99999999999]", ""]
)
def test_what_is_no_shape_is_wrong_usage(capsys: pytest.CaptureFixture[str], shape: str) -> None:
    with pytest.raises(SystemExit) as caught:
        commands.main(["-m", "m.xml", "--shape", shape])
    assert caught.value.code == 2
    assert "is no list of shapes such as input[1,1024]" in capsys.readouterr().err


def test_several_inputs_have_names(tmp_path: Path) -> None:
    a, b = ov.parameter([-1], np.float32, name="a"), ov.parameter([-1], np.float32, name="b")
    model = built(tmp_path / "m.xml", [ov.add(a, b)], [a, b])
    with pytest.raises(ModelError, match="the model has 2 inputs") as caught:
        analysis.analyze(model, {"": (3,)})
    assert caught.value.hint == "The inputs of m.xml are a[?], b[?]."
    with pytest.raises(ModelError, match="the input 'b' is not given"):
        analysis.analyze(model, {"a": (3,)})
    with pytest.raises(ModelError, match=r"the model cannot have a\[3\], b\[4\]"):
        analysis.analyze(model, {"a": (3,), "b": (4,)})
    assert analysis.analyze(model, {"a": (3,), "b": (3,)}).flops == 3


def damaged(mini: Converted, folder: Path, what: str) -> Path:
    """A path that is no good model."""
    xml = shutil.copy(mini.folder / "FP32" / "gpt-2-mini.xml", folder / "m.xml")
    if what == "cut":
        shutil.copy(mini.folder / "FP32" / "gpt-2-mini.bin", folder / "m.bin")
        xml.write_bytes(xml.read_bytes()[:20_000])
    elif what == "short weights":
        (folder / "m.bin").write_bytes((mini.folder / "FP32" / "gpt-2-mini.bin").read_bytes()[:1000])
    elif what == "text":
        xml.write_text("text", encoding="utf-8")
    elif what == "empty":
        xml.write_bytes(b"")
    elif what == "folder":
        xml.unlink()
        xml.mkdir()
    elif what == "no file":
        xml.unlink()
    elif what == "weights":
        return xml.rename(folder / "m.bin")
    elif what.startswith("onnx"):
        onnx = shutil.copy(mini.folder / "gpt-2-mini.onnx", folder / "m.onnx")
        if what == "onnx, cut":
            shutil.copytree(mini.folder / "gpt2-mini", folder / "gpt2-mini")
            onnx.write_bytes(onnx.read_bytes()[:9000])
        return onnx
    return xml


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("no weights", "An IR is two files, .xml and .bin"),
        ("short weights", "An IR is two files, .xml and .bin"),
        ("cut", r"OpenVINO could not read \S+m.xml: "),
        ("text", "m.xml is no OpenVINO IR"),
        ("empty", "m.xml is no OpenVINO IR"),
        ("folder", "m.xml is not there, or is no file"),
        ("no file", "m.xml is not there, or is no file"),
        ("weights", "m.bin is no model"),
        ("onnx, cut", "OpenVINO could not convert m.onnx"),
        ("onnx without its weights", "OpenVINO could not convert m.onnx"),
    ],
)
def test_a_file_that_is_no_good_model(mini: Converted, tmp_path: Path, what: str, says: str) -> None:
    with pytest.raises((ModelError, ConversionError)) as caught:
        analysis.analyze(damaged(mini, tmp_path, what), {"": (1, 7)})
    assert re.search(says, str(caught.value))
    assert caught.value.hint or isinstance(caught.value, ConversionError)
