"""What a conversion made, kept in a hidden file beside it: the next run sees from it what is in place and right."""

from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from omz_tools.system import files

# A record of another format counts as none.
_FORMAT = 2
_LONGEST = 1 << 22


class Seen(Struct, frozen=True):
    """A file as it was when it was hashed: bytes, digest ("sha256:…"), modification time in ns and inode."""

    size: int
    digest: str
    mtime_ns: int
    inode: int


class Difference(Struct, frozen=True):
    """What the proof found for an input of shape [batch, length].

    Attributes:
        largest: the largest absolute difference of a logit to PyTorch's.
        bound: what that may be at most.
        mean: the mean absolute difference of a logit.
        divergence: nats; the mean over all positions of the Kullback-Leibler divergence of the distribution of the next
            token from PyTorch's.
        top_token: the share of the positions at which the most likely token is PyTorch's.
        top_five: the share of PyTorch's five most likely tokens that are among the five of the file.
        runs: in how many runs the input was given; where there are several, the file kept its state between them.
    """

    batch: int
    length: int
    largest: float
    bound: float
    mean: float
    divergence: float
    top_token: float
    top_five: float
    runs: int = 1


class Edge(Struct, frozen=True):
    """An input that the model is not made for: what PyTorch does with it, and what the file does."""

    case: str
    pytorch: str
    converted: str


class Rounding(Struct, frozen=True):
    """Weights in 8 bits: each is the checkpoint's, rounded to the nearest step of its channel.

    Attributes:
        weights: how many there are.
        largest: the largest distance of one to the checkpoint's, in steps: half a one, and what the rounding of the
            steps themselves adds.
        beyond: how many are more than half a step beyond the last one, and less than one; `largest` is of the others.
    """

    weights: int
    largest: float
    beyond: int

    def __str__(self) -> str:
        return (
            f"{self.weights:,} weights in 8 bits, rounded by {self.largest:.2f} steps; {self.beyond:,} beyond the last"
        )


class Proof(Struct, frozen=True):
    """What was compared, and what came out; `rounding` where weights are in 8 bits."""

    ingredients: dict[str, Any]
    differences: tuple[Difference, ...]
    edges: tuple[Edge, ...] = ()
    rounding: Rounding | None = None


class Made(Struct, frozen=True):
    """An output, the ONNX model or an IR: what it depends on, its files, and its proof if it has one."""

    ingredients: dict[str, Any]
    files: dict[str, Seen]
    proof: Proof | None = None


class Record(Struct, frozen=True):
    """All that is known of a model's folders: the files it was made from, and each output."""

    format: int = _FORMAT
    inputs: dict[str, Seen] = {}
    outputs: dict[str, Made] = {}


def path_of(folder: Path, name: str) -> Path:
    """Where the record of a model lies in its folder of outputs."""
    return folder / f".{name}.conversion.json"


def load(path: Path) -> Record:
    """The record; an empty one if there is none that can be read: everything is then looked at anew."""
    try:
        if path.is_symlink() or path.stat().st_size > _LONGEST:
            return Record()
        record = msgspec.json.decode(path.read_bytes(), type=Record)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Record()
    return record if record.format == _FORMAT else Record()


def write(record: Record, path: Path) -> None:
    """Write the record to `path`. Raises OSError."""
    path.write_bytes(msgspec.json.encode(record))


def look_at(path: Path, algorithm: str = "sha256") -> Seen:
    """Hash a file. Raises OSError."""
    before = seen_as(path, "")
    return msgspec.structs.replace(before, digest=f"{algorithm}:{files.digest_of(path, algorithm)}")


def seen_as(path: Path, digest: str) -> Seen:
    """A file as it is now, with the digest that it is to have. Raises OSError."""
    status = path.stat()
    return Seen(status.st_size, digest, status.st_mtime_ns, status.st_ino)


def is_unchanged(path: Path, seen: Seen) -> bool:
    """Whether size, modification time and inode are those of a file that was seen. Raises OSError."""
    return seen_as(path, seen.digest) == seen
