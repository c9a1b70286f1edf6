"""The values of weights: whether each is a number, and whether f16 can hold it."""

from collections.abc import Iterable, Mapping

from omz_tools.descriptors.descriptor import Precision
from omz_tools.errors import CheckpointError, ConversionError
from omz_tools.export.checkpoint import Tensor
from omz_tools.system import libraries
from omz_tools.system.files import CHUNK, disk_errors

# Of F32 values as unsigned integers, without the sign: these grow with the absolute value, NaNs being the largest.
_MAGNITUDE = 0x7FFFFFFF
_INFINITY = 0x7F800000
# 65520: from here on numbers are not rounded to the largest one of f16 (IEEE 754 binary16), 65504, but to infinity.
_F16_END = 0x477FF000

_MOST_NAMED = 5


def check(tensors: Mapping[str, Tensor], precisions: Iterable[Precision]) -> None:
    """Check that weights can be converted: every value is a number, and within f16 if it is asked for.

    A tensor is read once, 1 MiB at a time, also when it has several names.

    Args:
        tensors: F32 tensors by name.
        precisions: those to convert to.

    Raises:
        CheckpointError: values are infinite or no numbers, or a file is shorter than its header says.
        ConversionError: FP16 or FP16-INT8 is asked for, and values are beyond 65504.
        DiskError: a file cannot be read.
    """
    names: dict[Tensor, str] = {}
    for name, tensor in tensors.items():
        names.setdefault(tensor, name)
    counts = {name: _counts(tensor) for tensor, name in names.items()}
    strange = {name: count for name, (count, _) in counts.items() if count}
    beyond = {name: count for name, (_, count) in counts.items() if count}
    if strange:
        raise CheckpointError(
            f"the weights hold values that are infinite or no numbers: {_listed(strange)}",
            hint="Nothing was converted. Such weights give no usable scores: use another checkpoint.",
        )
    if beyond and set(precisions) - {"FP32"}:
        raise ConversionError(
            f"the weights hold values that f16 cannot, whose largest is 65504: {_listed(beyond)}",
            hint="Nothing was converted. Only FP32 can be made of them: --precisions FP32.",
        )


def _counts(tensor: Tensor) -> tuple[int, int]:
    """How many values of an F32 tensor are infinite or no numbers, and how many others are beyond f16."""
    np = libraries.load("numpy")
    no_numbers = too_large = 0
    # Copied from the file and not mapped: values may begin at any byte there, and arrays that do are slow.
    buffer = np.empty(CHUNK // 4, "<u4")
    with disk_errors("Reading", tensor.file), tensor.file.open("rb") as file:
        file.seek(tensor.offset)
        for done in range(0, tensor.length, CHUNK):
            part = buffer[: (tensor.length - done) // 4]
            if file.readinto(part.view("u1")) < part.nbytes:
                raise CheckpointError(f"{tensor.file} became shorter", hint="Run omz_downloader again.")
            np.bitwise_and(part, _MAGNITUDE, out=part)
            if part.max() >= _F16_END:
                here = int(np.count_nonzero(part >= _INFINITY))
                no_numbers += here
                too_large += int(np.count_nonzero(part >= _F16_END)) - here
    return no_numbers, too_large


def _listed(counts: Mapping[str, int]) -> str:
    shown = [f"{count:,} in {name!r}" for name, count in list(counts.items())[:_MOST_NAMED]]
    more = f", and {sum(list(counts.values())[_MOST_NAMED:]):,} in {len(counts) - _MOST_NAMED} other tensors"
    return ", ".join(shown) + (more if len(counts) > _MOST_NAMED else "")
