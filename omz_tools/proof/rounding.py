"""Weights in 8 bits: whether each is the checkpoint's, rounded to the nearest step of its channel."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omz_tools.cache.record import Rounding
from omz_tools.descriptors.descriptor import Export
from omz_tools.errors import ProofError
from omz_tools.export.checkpoint import Checkpoint, Tensor
from omz_tools.export.pytorch_model import NAMING
from omz_tools.system import libraries
from omz_tools.system.files import disk_errors

# Part of what a proof depends on: raised when what is checked changes.
FORMAT = 1

# The largest number in 8 bits with a sign. The most negative one is one further from zero, and NNCF puts the largest
# weight of a channel there; the largest of the other sign may lie beyond this one.
_LAST = 127
# Of a step: numbers in F32 of some hundred steps are rounded by less.
_SLACK = 1e-4
# Numbers that are worked on at a time: 4 MiB of F32.
_AT_A_TIME = 1 << 20


def check(xml: Path, checkpoint: Checkpoint, spec: Export) -> Rounding:
    """Hold every matrix of an IR in 8 bits against the checkpoint's.

    A weight is kept as a whole number, that of steps of its channel's size. It is half a step off at most, or one step
    where the range of the whole numbers ends; and the size is rounded to f16, so that each of the steps is off, too.

    Args:
        xml: the IR; OpenVINO reads it.
        checkpoint: what it was made from.
        spec: of which class the model is.

    Raises:
        ProofError: a matrix is not in 8 bits, or a weight is further off.
    """
    naming, found = NAMING[spec.model_class], _compressed(xml)
    matrices = {
        name: tensor
        for name, tensor in checkpoint.tensors.items()
        if len(tensor.shape) > 1 and not name.endswith(tuple(naming.buffers))
    }
    parts: list[Rounding] = []
    for name, tensor in matrices.items():
        numbers = found.get(name, found.get(naming.prefix + name))
        if numbers is None:
            if name in naming.tied:  # the model's own name of another one
                continue
            raise ProofError(f"the matrix {name!r} is not in 8 bits in {xml}")
        parts += _measured(name, tensor, *numbers)
    weights, beyond = (sum(getattr(part, name) for part in parts) for name in ("weights", "beyond"))
    return Rounding(weights, max(part.largest for part in parts), beyond)


def _compressed(xml: Path) -> dict[str, tuple[Any, Any]]:
    """The whole numbers and the steps of each matrix in 8 bits, by name: i8 and f16 of as many axes."""
    model = libraries.load("openvino").Core().read_model(xml)
    found = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Multiply":
            continue
        whole, step = (node.input_value(number).get_node() for number in (0, 1))
        if whole.get_type_name() == "Convert" and step.get_type_name() == "Constant":
            kept = whole.input_value(0).get_node()
            if kept.get_type_name() == "Constant" and kept.get_element_type().get_type_name() == "i8":
                found[kept.get_friendly_name()] = kept.data, step.data
    return found


def _measured(name: str, tensor: Tensor, kept: Any, steps: Any) -> Iterator[Rounding]:
    """The rounding of a matrix, some rows at a time. Raises ProofError if a weight is off by more."""
    np = libraries.load("numpy")
    if kept.shape != tensor.shape:
        raise ProofError(f"{name!r} is {list(kept.shape)} in 8 bits, and {list(tensor.shape)} in the checkpoint")
    with disk_errors("Reading", tensor.file):
        weights = np.memmap(tensor.file, np.uint8, "r", tensor.offset, tensor.length).view("<f4").reshape(tensor.shape)
    rows = max(1, _AT_A_TIME // (kept.size // len(kept)))
    for first in range(0, len(kept), rows):
        part = slice(first, first + rows)
        step = steps if len(steps) == 1 else steps[part]
        # Of each step, in steps: half of the distance from one number of f16 to the next.
        doubt = np.spacing(np.abs(step)).astype(np.float32) / np.abs(step.astype(np.float32)) / 2
        whole = kept[part].astype(np.float32)
        off = weights[part] / step.astype(np.float32) - whole
        beyond = (whole == _LAST) & (off > 0.5)
        off = np.abs(off)
        allowed = np.where(beyond, 1.0, 0.5) + (np.abs(whole) + 1) * doubt + _SLACK
        if not (off <= allowed).all():
            row = first + int(np.argwhere(~(off <= allowed))[0][0])
            raise ProofError(f"{name!r} in 8 bits is not the checkpoint's, rounded: row {row} has a weight that is not")
        yield Rounding(off.size, float(off[~beyond].max(initial=0)), int(beyond.sum()))
