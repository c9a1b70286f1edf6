"""A checkpoint as it lies on disk: config.json and the tensors of safetensors files, audited before anyone trusts them.

Only headers are read here; the weights stay where they are, and every other module refers to them by file and offset.
"""

import json
import math
import struct
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omz_tools.errors import CheckpointError, MissingError
from omz_tools.system.files import RelativeName

# As transformers calls them: the weights in one file, or a list of the files (shards) that each hold a part of them.
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"

MAX_CONFIG_BYTES = 1 << 20
# Some ten times what the largest published checkpoints have.
MAX_INDEX_BYTES = 1 << 24
# The limit that the safetensors library sets as well.
MAX_HEADER_BYTES = 100_000_000
MAX_AXES = 16
_ITEM_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}

# Keys of config.json that make transformers load code or packages that a checkpoint names.
_CODE_KEYS = (
    "auto_map", "custom_pipelines", "quantization_config", "attn_implementation", "_attn_implementation",
    "experts_implementation", "_experts_implementation",
)  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """Where one tensor lies: `length` bytes at `offset` (from the start of the file) of `file`."""

    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    length: int


@dataclass(frozen=True)
class Checkpoint:
    """A folder with config.json and weights.

    Attributes:
        folder: where it lies.
        config: what config.json says.
        tensors: every tensor of the weights by name.
        files: the names of all files it is made of: config.json, then model.safetensors, or the index and its shards.
    """

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    files: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes that all tensors take."""
        return sum(tensor.length for tensor in self.tensors.values())

    def bind(
        self, parameters: dict[str, tuple[int, ...]], aliases: dict[str, str], ignored: Iterable[str], prefix: str
    ) -> dict[str, Tensor]:
        """Find the F32 tensor of each parameter.

        Args:
            parameters: name and shape of each parameter the model has.
            aliases: parameters that share the tensor of another one.
            ignored: endings of names that checkpoints carry and the model does not need.
            prefix: what the names in a checkpoint may lack at their beginning ("transformer.").

        Returns:
            The tensor of each name in `parameters`.

        Raises:
            CheckpointError: a tensor is missing, is left over, or has another shape or type; all are in the message.
        """
        problems: list[str] = []
        found: dict[str, Tensor] = {}
        used: dict[str, str] = {}
        for name, shape in parameters.items():
            own = aliases.get(name, name)
            names = [n for n in (own, own.removeprefix(prefix)) if n in self.tensors]
            if not names:
                problems.append(f"no tensor {own.removeprefix(prefix)!r}")
                continue
            tensor = self.tensors[names[0]]
            used[names[0]] = own
            if tensor.shape != shape:
                problems.append(f"{names[0]!r} is {list(tensor.shape)}, by {CONFIG} it is {list(shape)}")
            elif tensor.dtype != "F32":
                problems.append(f"{names[0]!r} is {tensor.dtype}, only F32 is supported")
            found[name] = tensor
        left = self.tensors.keys() - used.keys() - aliases.keys()
        problems += [
            f"{name!r} is in no place of the model" for name in sorted(left) if not name.endswith(tuple(ignored))
        ]
        if problems:
            raise CheckpointError(
                f"the weights do not fit {CONFIG}: {_shown(problems)}",
                hint=f"Check that {CONFIG} and {self.files[1]} in {self.folder} belong together.",
            )
        return found


def load(folder: Path, pinned: Collection[str] | None = None) -> Checkpoint:
    """Read and audit a checkpoint folder.

    Where there are both, the weights are in model.safetensors and the index is not looked at, as in transformers.

    Args:
        folder: where it lies.
        pinned: the names in the folder that have been verified; no other file of weights is read. By default, all.

    Raises:
        MissingError: config.json or weights are not there.
        CheckpointError: one of them is malformed, is not pinned, or would load code.
    """
    config = read_config(folder / CONFIG)
    present = _names(folder)
    known = present if pinned is None else pinned
    if WEIGHTS in known or INDEX not in known:
        return Checkpoint(folder, config, _tensors(folder / WEIGHTS), (CONFIG, WEIGHTS))
    if WEIGHTS in present:
        raise CheckpointError(
            f"{folder / WEIGHTS} is no file of this model; transformers would load it in place of those in {INDEX}",
            hint=f"Remove {folder / WEIGHTS}, or move it elsewhere.",
        )
    tensors, shards = _sharded(folder, pinned)
    return Checkpoint(folder, config, tensors, (CONFIG, INDEX, *shards))


def _names(folder: Path) -> set[str]:
    try:
        return {path.name for path in folder.iterdir()}
    except OSError:
        return set()  # said by whoever reads a file there


def read_config(path: Path) -> dict[str, Any]:
    """What a config.json says.

    Raises:
        MissingError: it is not there.
        CheckpointError: it is malformed, or would load code.
    """
    config = _object(path, _text(path, _read_whole(path, MAX_CONFIG_BYTES)))
    dangerous = [key for key in _CODE_KEYS if config.get(key) is not None]
    if dangerous:
        raise CheckpointError(
            f"{path} has the key {', '.join(dangerous)}, which would load code that the checkpoint names",
            hint="Use a checkpoint without it: only weights and plain settings are loaded.",
        )
    return config


def _sharded(folder: Path, pinned: Collection[str] | None) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of all shards that the index names, and the shards' names."""
    index = folder / INDEX
    places, total_size = _index(index)
    shards = sorted(set(places.values()))
    if unpinned := [shard for shard in shards if pinned is not None and shard not in pinned]:
        raise CheckpointError(
            f"{index} names files that the descriptor does not pin: {_shown(unpinned)}",
            hint="Add them to its files (omz_pin MODEL.YML --files '*.safetensors'), and run omz_downloader again.",
        )
    found: dict[str, dict[str, Tensor]] = {}
    missing: list[str] = []
    for shard in shards:
        try:
            found[shard] = _tensors(folder / shard)
        except MissingError:
            missing.append(shard)
    if missing:
        raise MissingError(
            f"{index} names files that are not in its folder: {_shown(missing)}", hint="Run omz_downloader first."
        )
    held = [(name, shard) for shard in shards for name in found[shard]]
    tensors = {name: found[shard][name] for name, shard in held}
    problems = [f"{name!r} is not in {shard}" for name, shard in places.items() if name not in tensors]
    problems += [
        f"{name!r} is in {shard}, by the index it is in {places.get(name, 'no file')}"
        for name, shard in held
        if places.get(name) != shard
    ]
    # It may say more: writers count headers, or tied tensors that they then leave out. Some count a bool as one bit.
    least = sum(t.length // 8 if t.dtype == "BOOL" else t.length for t in tensors.values())
    if total_size is not None and total_size < least:
        problems.append(f"total_size is {total_size:,}, the tensors have {least:,} bytes")
    if problems:
        raise CheckpointError(
            f"{index} does not fit the files that it names: {_shown(problems)}",
            hint="All of them must come from one commit of one repository.",
        )
    return tensors, shards


def _index(path: Path) -> tuple[dict[str, str], float | None]:
    """The shard of each tensor, and how many bytes all tensors have if the index says so."""
    index = _object(path, _text(path, _read_whole(path, MAX_INDEX_BYTES)))
    places, metadata = index.get("weight_map"), index.get("metadata")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{path} has no weight_map, which says in which file each tensor is")
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{path} has no metadata, and transformers loads no such index")
    for name, shard in places.items():
        try:
            if not isinstance(shard, str):
                raise ValueError(f"{shard!r:.80} is no file name")
            if "/" in RelativeName.parse(shard) or not shard.endswith(".safetensors"):
                raise ValueError(f"{shard!r} is no .safetensors in the folder of the index")
        except ValueError as error:
            raise CheckpointError(f"{path}: the place of tensor {name!r:.80} is malformed: {error}") from None
    total_size = metadata.get("total_size")
    if total_size is not None and (isinstance(total_size, bool) or not isinstance(total_size, int | float)):
        raise CheckpointError(f"{path}: total_size is {total_size!r:.80}, not a number of bytes")
    return places, total_size


def _tensors(path: Path) -> dict[str, Tensor]:
    start = _read(path, 9)
    # A zip file, or a pickle of protocol 2 and up; a safetensors header of some lengths begins with the same bytes.
    if start[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05") and start[8:] != b"{":
        raise CheckpointError(
            f"{path} is a pickle (PyTorch's own format), not safetensors",
            hint="Pickles can run code while they load and are refused. Use the safetensors file of the repository.",
        )
    if len(start) < 8:
        raise CheckpointError(f"{path} is too short for a safetensors file")
    (length,) = struct.unpack("<Q", start[:8])
    size = path.stat().st_size
    if length > min(MAX_HEADER_BYTES, size - 8):
        raise CheckpointError(f"{path} is not safetensors: it declares a header of {length:,} bytes in {size:,}")
    header = _object(path, _text(path, _read(path, 8 + length)[8:]))
    header.pop("__metadata__", None)
    begin = 8 + length
    tensors = {name: _tensor(path, name, entry, begin) for name, entry in header.items()}
    if not tensors:
        raise CheckpointError(f"{path} holds no tensor")
    end = begin
    for tensor_name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].length)):
        if tensor.offset != end:
            kind = "overlaps the one before it" if tensor.offset < end else "leaves a hole before it"
            raise CheckpointError(f"{path}: tensor {tensor_name!r} {kind}")
        end += tensor.length
    if end != size:
        raise CheckpointError(f"{path} should be {end:,} bytes by its header and is {size:,}")
    return tensors


def _tensor(path: Path, name: str, entry: Any, begin: int) -> Tensor:
    try:
        dtype, shape, (first, last) = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(shape, list) or len(shape) > MAX_AXES:
            raise ValueError(f"its shape is no list of at most {MAX_AXES} numbers")
        numbers = [first, last, *shape]
        if not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers):
            raise ValueError("a number is negative, huge or no integer")
        if dtype not in _ITEM_BYTES:
            raise ValueError(f"unknown dtype {dtype!r}")
        if last - first != math.prod(shape) * _ITEM_BYTES[dtype]:
            raise ValueError(f"{last - first} bytes do not hold {dtype} {shape}")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: tensor {name!r} is malformed: {error}") from None
    return Tensor(dtype, tuple(shape), path, begin + first, last - first)


def _read(path: Path, size: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(size)
    except FileNotFoundError:
        raise MissingError(f"{path} is missing", hint="Run omz_downloader first.") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def _read_whole(path: Path, most: int) -> bytes:
    data = _read(path, most + 1)
    if len(data) > most:
        raise CheckpointError(f"{path} is larger than {most:,} bytes")
    return data


def _text(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 where it should be (byte {error.start})") from None


def _object(path: Path, text: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key stands twice in one object")
        return found

    def finite(text: str) -> float:
        if not math.isfinite(float(text)):
            raise ValueError(f"{text} is no finite number")
        return float(text)

    try:
        value = json.loads(text, object_pairs_hook=unique, parse_float=finite, parse_constant=finite)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not usable JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return value


def _shown(problems: list[str]) -> str:
    """The first twenty, and how many there are beyond."""
    more = [f"and {len(problems) - 20} more"] if len(problems) > 20 else []
    return "; ".join(problems[:20] + more)
