"""ONNX to OpenVINO IR, in each precision that is asked for; and an IR as OpenVINO reads it."""

import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from omz_tools.cache.stages import Ingredients
from omz_tools.descriptors.descriptor import COMPRESSED, Precision
from omz_tools.errors import ConversionError, ModelError
from omz_tools.export import compression, nodes, stateful
from omz_tools.system import libraries

# Goes up whenever this module makes another IR of the same ingredients.
FORMAT = 2


def ingredients(name: str, precision: Precision, about: Mapping[str, str], *, state: bool = False) -> Ingredients:
    """What the IR of a model depends on besides the graph and the checkpoint."""
    steps = ({"state": stateful.FORMAT} if state else {}) | (
        compression.ingredients() if precision == COMPRESSED else {}
    )
    return steps | {
        "stage": "ir",
        "format": FORMAT,
        "name": name,
        "precision": precision,
        "about": dict(about),
        "openvino": libraries.version("openvino"),
    }


def convert(
    onnx_path: Path,
    name: str,
    targets: Mapping[Precision, Path],
    about: Mapping[str, str] = MappingProxyType({}),
    *,
    state: bool = False,
) -> None:
    """Write the IR of an ONNX model once for each precision.

    FP32 keeps the weights as they are. FP16 stores them as f16, to be widened when the model is loaded; inputs, outputs
    and the arithmetic stay as in the ONNX model. For numbers beyond f16, and for NaN, OpenVINO writes the largest one
    of f16 and says nothing: whether there are any is for `values.check` to say before. FP16-INT8 has
    matrices in 8 bits, see `compression`, and all else as FP32 has it.

    The weights are read from where the ONNX model has them while the IR is written, and never held in memory but those
    in 8 bits. The same model gives the same bytes, wherever and whenever it is converted.

    Args:
        onnx_path: the model, its weights embedded or below its folder.
        name: what the model is called.
        targets: the .xml to write for each precision; the .bin goes beside it.
        about: what each .xml shall say of the model, in the part "omz_tools" of its rt_info.
        state: whether the model has a past, to be kept in the IR as its state; in the precision that it asks for.

    Raises:
        ConversionError: OpenVINO could not read, convert or write the model, or NNCF could not compress it.
    """
    openvino = libraries.load("openvino")
    model = _read(onnx_path, stateful.add_state) if state else read(onnx_path)
    model.set_friendly_name(name)
    for key, value in about.items():
        model.set_rt_info(value, ["omz_tools", key])
    for precision, xml in targets.items():
        made = compression.compress(model) if precision == COMPRESSED else model
        if state:
            stateful.ask_for_cache(made, precision)
        try:
            openvino.save_model(made, xml, compress_to_fp16=precision == "FP16")
        except Exception as error:
            free = shutil.disk_usage(xml.parent).free
            raise ConversionError(
                f"OpenVINO could not write the {precision} IR to {xml.parent}: {libraries.reason(error)}",
                hint=f"{free / 1e6:,.1f} MB are free there. What was there before is unchanged.",
            ) from error


def read(onnx_path: Path) -> Any:
    """An ONNX model as the graph of OpenVINO's operators that its IR has; weights below its folder stay in their files.

    Raises:
        ConversionError: OpenVINO could not read or convert the model.
    """
    return _read(onnx_path, _attend_causally)


def _read(onnx_path: Path, change: Callable[[Any], None]) -> Any:
    """The same, with what changes its attention."""
    manager = libraries.load("openvino.frontend").FrontEndManager
    try:
        frontend = manager().load_by_framework("onnx")
        model = frontend.convert(frontend.load(str(onnx_path)))
        _simplify(model)
        change(model)
        nodes.rename(model)
    except ConversionError:
        raise
    except Exception as error:
        raise ConversionError(f"OpenVINO could not convert {onnx_path.name}: {libraries.reason(error)}") from error
    return model


_BEGIN = 4096  # bytes within which the root element of an IR begins


def load(xml: Path) -> Any:
    """The graph of an IR; its weights are mapped.

    Raises:
        ModelError: it is no IR, or cannot be read.
        ConversionError: OpenVINO is not installed.
    """
    openvino = libraries.load("openvino")
    try:
        with xml.open("rb") as file:
            begin = file.read(_BEGIN)
    except OSError as error:
        raise ModelError(f"{xml} cannot be read: {error.strerror}") from None
    if b"<net" not in begin:  # OpenVINO would try the formats of other frameworks
        raise ModelError(f"{xml} is no OpenVINO IR", hint="Give the .xml of one.")
    try:
        return openvino.Core().read_model(xml)
    except Exception as error:
        raise ModelError(
            f"OpenVINO could not read {xml}: {libraries.reason(error)}",
            hint="An IR is two files, .xml and .bin, that were written together and lie in one folder.",
        ) from error


def _weights(model: Any) -> Iterator[Any]:
    """The constants that hold numbers of the checkpoint, and others of their kind."""
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Constant" and node.get_element_type().get_type_name() == "f32" and node.shape:
            yield node


def _simplify(model: Any) -> None:
    """Apply the transformations that OpenVINO's own converter applies.

    They would transpose matrices of weights, and so copy nearly the whole model into memory. What loads the IR lays
    weights out anew anyway, so they are put aside meanwhile: inputs of the same type and shape stand for them.
    """
    opset = libraries.load("openvino.opset13")
    aside = []
    for node in _weights(model):
        if len(node.shape) > 1:
            stand_in = opset.parameter(node.shape, node.get_element_type())
            node.output(0).replace(stand_in.output(0))
            aside.append((node, stand_in))
    model.add_parameters([stand_in for _, stand_in in aside])
    libraries.load("openvino._offline_transformations").apply_moc_transformations(model, cf=False, smart_reshape=False)
    for node, stand_in in aside:
        names = node.output(0).get_names()
        stand_in.output(0).replace(node.output(0))
        node.output(0).set_names(names)
        model.remove_parameter(stand_in)
    model.validate_nodes_and_infer_types()


def _attend_causally(model: Any) -> None:
    """Let attention be causal by its own attribute, in place of a mask that is computed from the length.

    OpenVINO reads a causal Attention of ONNX as one with the mask `Select(column - row <= 0, 0, -inf)`, and puts zero
    for every NaN in its result, which the mask cannot cause: each position sees itself. Only exactly that is replaced.
    """
    opset, passes = libraries.load("openvino.opset13"), libraries.load("openvino.passes")
    node, anything = passes.WrapType, passes.AnyInput
    ids, axis, count = node("opset13.Parameter"), node("opset13.Constant"), node("opset13.Constant")
    length = node("opset13.Squeeze", [node("opset13.Gather", [node("opset13.ShapeOf", [ids]), axis, anything()])])
    first, step = node("opset13.Constant"), node("opset13.Constant")
    columns = node("opset13.Range", [first, length, step])
    rows = node("opset13.Unsqueeze", [columns, count])
    zero, seen, hidden, replaced = (node("opset13.Constant") for _ in range(4))
    ahead = node("opset13.Subtract", [columns, rows])
    mask = node("opset13.Select", [node("opset13.LessEqual", [ahead, zero]), seen, hidden])
    query, key, value, scale = anything(), anything(), anything(), node("opset13.Constant")
    attention = node("opset13.ScaledDotProductAttention", [query, key, value, mask, scale])
    cleaned = node("opset13.Select", [node("opset13.IsNaN", [attention]), replaced, attention])
    # The axis of the length in the ids [B, L]; rows run along the first axis of the mask, columns along the second.
    wanted = {axis: 1, count: 1, first: 0, step: 1, zero: 0, seen: 0, hidden: -math.inf, replaced: 0}

    def replace(matcher: Any) -> bool:
        found = matcher.get_pattern_value_map()
        if any(found[one].get_node().data.reshape(-1).tolist() != [value] for one, value in wanted.items()):
            return False
        old, masked = found[cleaned].get_node(), found[attention].get_node()
        if masked.get_attributes()["causal"]:
            return False
        operands = [found[operand] for operand in (query, key, value)]
        factor = float(found[scale].get_node().data.reshape(-1)[0])
        width = operands[0].get_partial_shape()[-1]
        if width.is_static and math.isclose(factor, width.get_length() ** -0.5, rel_tol=1e-7):
            new = opset.scaled_dot_product_attention(*operands, causal=True)  # the scale is the usual one
        else:
            unused = opset.constant(libraries.load("numpy").float32(0.0))
            new = opset.scaled_dot_product_attention(*operands, unused, found[scale], causal=True)
        new.set_friendly_name(old.get_friendly_name())
        new.output(0).set_names(old.output(0).get_names())
        old.output(0).replace(new.output(0))
        return True

    class Causal(passes.MatcherPass):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.register_matcher(passes.Matcher(cleaned, "Causal"), replace)

    manager = passes.Manager()
    manager.register_pass(Causal())
    manager.run_passes(model)
