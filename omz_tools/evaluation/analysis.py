"""What a model costs at given shapes: floating-point operations and parameters, by type of operator, from its graph."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omz_tools.errors import ModelError
from omz_tools.evaluation import flops
from omz_tools.export import ir
from omz_tools.system import libraries

# Where a constant goes through one of these, what comes out are the same numbers still.
_SAME_NUMBERS = {"Convert", "Transpose", "Reshape", "Squeeze", "Unsqueeze"}


@dataclass(frozen=True)
class Operation:
    """The operators of one type.

    Attributes:
        type: as OpenVINO calls it.
        number: how many of them the result depends on at run time.
        flops: the floating-point operations of all of them.
        parameters: the numbers in the constants that they use, again for each use.
    """

    type: str
    number: int
    flops: int
    parameters: int


@dataclass(frozen=True)
class Analysis:
    """What was counted in a model.

    Attributes:
        shapes: of the inputs, by name.
        operations: the types that take floating-point operations or use parameters, the most expensive first.
        parameters: numbers in the floating-point constants of the model, each constant once, and in those of whole
            numbers that become weights. One number alone, such as a factor, is none, and neither is the size of a step.
        masks: numbers in one mask [L, S] for each attention that does not look everywhere.
        not_counted: how many operators have a type that there is no rule for, or a shape that is not fixed.
    """

    shapes: Mapping[str, tuple[int, ...]]
    operations: tuple[Operation, ...]
    parameters: int
    masks: int
    not_counted: Mapping[str, int]

    @property
    def flops(self) -> int:
        return sum(operation.flops for operation in self.operations)

    @property
    def used_parameters(self) -> int:
        """The parameters, those that several operators share once for each of them."""
        return sum(operation.parameters for operation in self.operations)


def analyze(path: Path, wanted: Mapping[str, tuple[int, ...]]) -> Analysis:
    """Count the operations and the parameters of a model.

    An ONNX model is counted as the graph that OpenVINO makes of it. Weights beside a model are not read; those within
    an ONNX file are, with the file.

    Args:
        path: an IR (.xml, with its .bin beside it) or an ONNX model (.onnx).
        wanted: the shapes of inputs by name; "" stands for a model's only input. An input whose shape is fixed may be
            left out.

    Raises:
        ModelError: there is no such model or input, a shape does not fit, or one is missing.
        ConversionError: OpenVINO cannot read the ONNX model, or is not installed.
    """
    model = _read(path)
    _reshape(model, path, wanted)
    return _count(model)


def _read(path: Path) -> Any:
    read = {".xml": ir.load, ".onnx": ir.read}.get(path.suffix.lower())
    if not read:
        raise ModelError(f"{path} is no model: its name ends neither in .xml nor in .onnx", hint=_EXPECTED)
    if not path.is_file():
        raise ModelError(f"{path} is not there, or is no file", hint=_EXPECTED)
    return read(path)


_EXPECTED = "Give the .xml of an OpenVINO IR, or an .onnx file."


def _reshape(model: Any, path: Path, wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Give all inputs fixed shapes."""
    known = ", ".join(f"{port.get_any_name()}{_text(port)}" for port in model.inputs)
    hint = f"The inputs of {path.name} are {known}."
    ports = dict(_named(model, wanted, hint))
    for port in model.inputs:
        if port.get_partial_shape().is_dynamic and port.get_any_name() not in ports:
            raise ModelError(f"the shape of the input {port.get_any_name()!r} is not given", hint=hint)
    if not ports:
        return
    openvino = libraries.load("openvino")
    try:
        model.reshape({name: openvino.PartialShape(list(shape)) for name, shape in ports.items()})
    except Exception as error:
        given = ", ".join(f"{name}{list(shape)}" for name, shape in ports.items())
        raise ModelError(f"the model cannot have {given}: {libraries.reason(error)}", hint=hint) from error


def _named(model: Any, wanted: Mapping[str, tuple[int, ...]], hint: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The wanted shapes by the first name of each input. Raises ModelError if one fits no input."""
    for name, shape in wanted.items():
        found = [port for port in model.inputs if not name or name in port.get_names()]
        if len(found) != 1:
            what = f"there is no input {name!r}" if name else f"the model has {len(found)} inputs"
            raise ModelError(f"{what}, so its shape cannot be {list(shape)}", hint=hint)
        if not found[0].get_partial_shape().compatible(libraries.load("openvino").PartialShape(list(shape))):
            raise ModelError(f"the input {found[0].get_any_name()!r} cannot be {list(shape)}", hint=hint)
        yield found[0].get_any_name(), shape


def _text(port: Any) -> str:
    return str(port.get_partial_shape()).replace(" ", "")


def _count(model: Any) -> Analysis:
    operators, work, uses, not_counted = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    parameters = masks = 0
    at_run_time: set[str] = set()
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind == "Constant" and _holds_numbers(node):
            size, users = math.prod(node.get_output_shape(0)), Counter(_users(node))
            parameters += size if users else 0
            uses.update({user: size * number for user, number in users.items()})
        if not _runs(node, at_run_time):
            continue
        at_run_time.add(node.get_name())
        operators[kind] += 1
        operations = flops.of(node)
        if operations is None:
            not_counted[kind] += 1
            continue
        work[kind] += operations
        masks += math.prod(flops.scores(node)) if flops.is_masked(node) else 0
    kinds = sorted((kind for kind in work | uses if work[kind] or uses[kind]), key=lambda kind: (-work[kind], kind))
    return Analysis(
        {port.get_any_name(): tuple(port.get_shape()) for port in model.inputs},
        tuple(Operation(kind, operators[kind], work[kind], uses[kind]) for kind in kinds),
        parameters,
        masks,
        dict(sorted(not_counted.items())),
    )


def _runs(node: Any, at_run_time: set[str]) -> bool:
    """Whether a node has anything to do when the shapes are known: it depends on the numbers that come in."""
    kind = node.get_type_name()
    inputs = (value.get_node().get_name() for value in node.input_values())
    return kind in ("Parameter", "ReadValue") or (kind != "ShapeOf" and any(name in at_run_time for name in inputs))


def _holds_numbers(constant: Any) -> bool:
    """Whether they are floating-point, or whole ones that become so by steps."""
    kind = constant.get_element_type()
    return math.prod(constant.get_output_shape(0)) > 1 and (kind.is_real() or any(map(_restores, _readers(constant))))


def _readers(node: Any) -> Iterator[Any]:
    """The operators that take what a node gives, as it is or converted."""
    for target in node.output(0).get_target_inputs():
        reader = target.get_node()
        yield from _readers(reader) if reader.get_type_name() == "Convert" else [reader]


def _users(node: Any) -> Iterator[str]:
    """The types of the operators that use the numbers of a node, each as often as it does; what is a step has none."""
    for target in node.output(0).get_target_inputs():
        user = target.get_node()
        same = user.get_type_name() in _SAME_NUMBERS or _restores(user)
        if same and target.get_index() == 0:
            yield from _users(user)
        elif user.get_type_name() != "ShapeOf" and not _restores(user):
            yield user.get_type_name()


def _restores(node: Any) -> bool:
    """Whether an operator makes weights of whole numbers: by taking their zero from them, or multiplying by steps."""
    if node.get_type_name() not in ("Subtract", "Multiply"):
        return False
    whole, other = (value.get_node() for value in node.input_values())
    while whole.get_type_name() in ("Convert", "Subtract"):
        whole = whole.input_value(0).get_node()
    while other.get_type_name() == "Convert":
        other = other.input_value(0).get_node()
    constants = whole.get_type_name() == other.get_type_name() == "Constant"
    return constants and bool(whole.get_element_type().is_integral_number())
