"""What a conversion takes of memory and disk."""

from collections.abc import Iterable

from omz_tools.conversion.plans import Output, Plan
from omz_tools.descriptors.descriptor import COMPRESSED, Precision
from omz_tools.proof import reference

# What an IR takes at least, as a part of the weights: masks, which checkpoints hold, do not get into it.
_SHARES: dict[Precision, float] = {"FP16": 0.4, "FP16-INT8": 0.2, "FP32": 0.8}


def disk(plan: Plan, todo: Iterable[Output]) -> int:
    """Bytes that the IRs take that are to be made, and what is written on the way to them."""
    todo = list(todo)
    shares = sum(_SHARES[output.precision] for output in todo if output.precision)
    if not plan.onnx.ingredients["refers"]:
        shares += any(output.variant for output in todo)  # an ONNX model with the weights in it, for a while
    return int(shares * plan.checkpoint.size)


def memory(plan: Plan, at_a_time: int) -> int:
    """Bytes that a conversion takes at most, by what was measured: see docs/performance.md.

    Args:
        plan: what there is to do.
        at_a_time: how many files are compared with PyTorch at a time.
    """
    variants = any(output.variant for output in plan.outputs)
    rounded = _rounding(plan) if any(output.precision == COMPRESSED for output in plan.stale) else 0
    if plan.verify == "off":
        # An ONNX model that holds the weights itself is put together in memory.
        copied = 0.1 if plan.onnx.ingredients["refers"] else 1.7
        return rounded + int(600e6 + (150e6 if variants else 0) + copied * plan.checkpoint.size)
    grid = reference.shapes(plan.checkpoint.config["n_positions"], full=plan.verify == "full")
    logits = 4 * plan.spec.vocabulary * max(batch * length for batch, length in grid)
    # Given one token, and then another, OpenVINO keeps weights of f16 in a second layout, too.
    widened = 0.5 if variants else 0.0
    return rounded + int(
        600e6 + (1.0 + 0.8 * at_a_time + widened) * plan.checkpoint.size + (1 + 2 * at_a_time) * logits
    )


def _rounding(plan: Plan) -> int:
    """Bytes that weights in 8 bits take while they are made: what makes them, they, and a matrix in some stages."""
    matrix = max((tensor.length for tensor in plan.checkpoint.tensors.values()), default=0)
    return int(200e6 + 0.25 * plan.checkpoint.size + 3 * matrix)
