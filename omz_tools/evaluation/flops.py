"""How many floating-point operations an operator of OpenVINO takes, by its type and the shapes it meets.

The figures are those of Open Model Zoo's model pages: a multiplication and an addition are two operations, and a
function counts as the steps it is made of, an elementary one as one step each. Its page of gpt-2 says 293.0489 GFLOPs
at [1, 1024]; with the figures below, that is what comes out, digit by digit. What moves, selects or converts numbers
takes none, and neither do integers and comparisons.
"""

import math
from collections.abc import Callable
from typing import Any

Shape = tuple[int, ...]

_TANH = 6  # 2 sigmoid(2x) - 1, and the sigmoid is three: exp, add, divide
_SOFTMAX = 5  # max, subtract, exp, sum, divide

# Operations for each number of the result.
_PER_ELEMENT = {
    **dict.fromkeys(("Add", "Subtract", "Multiply", "Divide", "Maximum", "Minimum", "Power", "Mod"), 1),
    **dict.fromkeys(("Abs", "Negative", "Sqrt", "Exp", "Log", "Sin", "Cos", "Erf", "Floor", "Ceiling", "Round"), 1),
    "SquaredDifference": 2,
    "Relu": 2,
    "Clamp": 2,
    "Sigmoid": 3,
    "Swish": 5,
    "Tanh": _TANH,
    "Softmax": _SOFTMAX,
    "LogSoftmax": _SOFTMAX + 1,
    # Subtracting the mean and dividing by the deviation; the sums behind these two are not in the published figures.
    "MVN": 2,
}  # fmt: skip

# 0.5 x (1 + f(...)): the cube in the argument of tanh is not in the published figures.
_GELU = {"TANH": 4 + 2 + _TANH, "ERF": 4 + 1}

_REDUCTIONS = {"ReduceSum", "ReduceMean", "ReduceProd", "ReduceMax", "ReduceMin"}

# They only move numbers, choose among them, or store them otherwise.
_MOVES = {
    "Parameter", "Constant", "Result", "Assign", "ReadValue", "ShapeOf", "Range", "Convert", "ConvertLike",
    "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Concat", "Split", "VariadicSplit", "Slice", "StridedSlice",
    "Gather", "GatherElements", "GatherND", "ScatterUpdate", "ScatterNDUpdate", "ScatterElementsUpdate",
    "Broadcast", "Tile", "Pad", "Select", "DepthToSpace", "SpaceToDepth",
}  # fmt: skip


def of(node: Any) -> int | None:
    """The floating-point operations of one operator of a model whose inputs have fixed shapes.

    Returns:
        The number; 0 for an operator whose results are no floating-point numbers; None if there is no rule for its
        type, or a shape is not known.
    """
    kind: str = node.get_type_name()
    if kind in _MOVES or not any(output.get_element_type().is_real() for output in node.outputs()):
        return 0
    if any(port.get_partial_shape().is_dynamic for port in (*node.inputs(), *node.outputs())):
        return None
    shapes: list[Shape] = [tuple(port.get_shape()) for port in node.inputs()]
    result: Shape = tuple(node.output(0).get_shape())
    if kind in _PER_ELEMENT:
        return _PER_ELEMENT[kind] * math.prod(result)
    if kind in _REDUCTIONS:
        return math.prod(shapes[0])
    rule = _RULES.get(kind)
    return rule(node, shapes, result) if rule else None


def is_masked(node: Any) -> bool:
    """Whether an operator is an attention that does not look everywhere: it is causal, or has a mask."""
    return node.get_type_name() == "ScaledDotProductAttention" and (node.get_attributes()["causal"] or _has_mask(node))


def _has_mask(attention: Any) -> bool:
    """A number alone only keeps the place of a mask, before the scale."""
    return bool(attention.get_input_size() > 3 and len(attention.get_input_partial_shape(3)) > 0)


def scores(node: Any) -> tuple[int, int]:
    """The last two axes [L, S] of an attention's scores, for its queries [..., L, E] and keys [..., S, E]."""
    return node.get_input_shape(0)[-2], node.get_input_shape(1)[-2]


def _matrix_product(node: Any, shapes: list[Shape], result: Shape) -> int:
    summed = -2 if node.get_attributes()["transpose_a"] and len(shapes[0]) > 1 else -1
    return 2 * shapes[0][summed] * math.prod(result)


def _attention(node: Any, shapes: list[Shape], result: Shape) -> int:
    """Scaling of the queries [..., L, E]; scores [..., L, S] by the keys; their softmax; sums of values [..., S, V].

    With or without a mask the full square of scores is counted, as a graph that computes it step by step does.
    """
    computed = math.prod(result[:-2]) * math.prod(scores(node))
    added = _has_mask(node) and node.input(3).get_element_type().is_real()
    return math.prod(shapes[0]) + computed * (2 * shapes[0][-1] + added + _SOFTMAX + 2 * result[-1])


def _gelu(node: Any, shapes: list[Shape], result: Shape) -> int:
    return _GELU[node.get_attributes()["approximation_mode"]] * math.prod(result)


def _convolution(node: Any, shapes: list[Shape], result: Shape) -> int:
    """Filters are [output, input, ...], those of groups [group, output, input, ...]."""
    skipped = 2 if node.get_type_name() == "GroupConvolution" else 1
    return 2 * math.prod(shapes[1][skipped:]) * math.prod(result)


_RULES: dict[str, Callable[[Any, list[Shape], Shape], int]] = {
    "MatMul": _matrix_product,
    "ScaledDotProductAttention": _attention,
    "Gelu": _gelu,
    "Convolution": _convolution,
    "GroupConvolution": _convolution,
}
