"""The model of OpenVINO with a past becomes one with a state: what the attention keeps stays in it from run to run."""

from collections.abc import Mapping
from typing import Any

from omz_tools.descriptors.descriptor import Precision
from omz_tools.export.signatures import LAYERS
from omz_tools.system import libraries

# Goes up whenever this module makes another IR of the same ingredients.
FORMAT = 1

# Which rows of the state go on, in which order: an input [B] beside the others.
BEAMS = "beam_idx"
# The type of keys and values in the state. OpenVINO's CPU plugin would keep them in 8 bits if the IR did not ask for
# another one, and greedy texts would leave PyTorch's after some twenty tokens.
CACHE: Mapping[Precision, str] = {"FP32": "f32", "FP16": "f16", "FP16-INT8": "f16"}
CACHE_SETTING = "KV_CACHE_PRECISION"
# Where in the rt_info of an IR OpenVINO looks for it.
_PLACE = ["runtime_options", CACHE_SETTING]


def ask_for_cache(model: Any, precision: Precision) -> None:
    """Have an IR of a precision ask for the type of its keys and values."""
    model.set_rt_info(CACHE[precision], _PLACE)


def asks_for_cache(model: Any) -> str | None:
    """The type of keys and values that an IR asks for; None if it does not."""
    return str(model.get_rt_info(_PLACE).astype(str)) if model.has_rt_info(_PLACE) else None


def add_state(model: Any) -> None:
    """Turn the inputs and outputs that hold keys and values into a state.

    Before a run each row of the state is the one that `beam_idx` names, and after a reset it has no token. So does
    OpenVINO GenAI expect it.

    Args:
        model: read from an ONNX model with a past; it is changed.
    """
    openvino, opset = libraries.load("openvino"), libraries.load("openvino.opset13")
    transformations = libraries.load("openvino._offline_transformations")
    before, after = LAYERS
    beams = opset.parameter([-1], openvino.Type.i32, name=BEAMS)
    beams.output(0).set_names({BEAMS})
    state = {}
    for port in list(model.inputs):
        name = port.get_any_name()
        if name.startswith(before):
            state[name] = after + name.removeprefix(before)
            targets = port.get_target_inputs()
            rows = opset.gather(port, beams, opset.constant(0))
            for target in targets:
                target.replace_source_output(rows.output(0))
    model.add_parameters([beams])
    model.validate_nodes_and_infer_types()
    transformations.apply_make_stateful_transformation(model, state)
    _begin_empty(model)
    _trust_attention(model)


def _begin_empty(model: Any) -> None:
    """Let a state that was reset hold as many rows as there are in the input, and no token."""
    np, opset = libraries.load("numpy"), libraries.load("openvino.opset13")
    shape = opset.shape_of(model.input("input_ids"), output_type="i64")
    batch = opset.gather(shape, opset.constant(np.array([0], np.int64)), opset.constant(0))
    for node in model.get_ordered_ops():
        if node.get_type_name() == "ReadValue":
            _, heads, _, width = node.get_output_partial_shape(0)
            rest = [np.array([size], np.int64) for size in (heads.get_length(), 0, width.get_length())]
            empty = opset.concat([batch, *map(opset.constant, rest)], 0)
            node.set_arguments([opset.broadcast(opset.constant(np.float32(0)), empty)])
    model.validate_nodes_and_infer_types()


def _trust_attention(model: Any) -> None:
    """Leave out what puts zero for every NaN of an attention: the mask has no infinity, and so no row gives one."""
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Select":
            condition, attended = (node.input_value(number).get_node() for number in (0, 2))
            kinds = condition.get_type_name(), attended.get_type_name()
            if kinds == ("IsNaN", "ScaledDotProductAttention"):
                node.output(0).replace(attended.output(0))
