"""The errors of omz_tools: what happened, where, and what to do next."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar


class OmzError(Exception):
    """Base of every error this package raises on purpose.

    Attributes:
        code: stable name of the kind of error, for scripts.
        what: one sentence that says what happened.
        hint: what to do next; may be empty.
        where: the places it happened in, outermost first ("model gpt-2", "file gpt2/config.json").
    """

    code: ClassVar[str] = "error"

    def __init__(self, what: str, *, hint: str = "", where: tuple[str, ...] = ()) -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint
        self.where = where

    def __str__(self) -> str:
        places = "".join(f"In {place}: " for place in self.where)
        return f"{places}{self.what}" + (f"\n{self.hint}" if self.hint else "")

    def __reduce__(self) -> tuple[object, ...]:
        # Errors travel between processes; the default would pass `what` alone and lose the keywords.
        return _rebuild, (type(self), self.what, self.hint, self.where)


def _rebuild(kind: type[OmzError], what: str, hint: str, where: tuple[str, ...]) -> OmzError:
    return kind(what, hint=hint, where=where)


class DescriptorError(OmzError):
    """A model.yml cannot be used; `what` lists every mistake with file, line and column."""

    code = "descriptor"


class SelectionError(OmzError):
    """What was asked for does not exist: an unknown model or precision, or an unreadable list."""

    code = "selection"


class UnsupportedError(OmzError):
    """The descriptor asks for something this package does not do."""

    code = "unsupported"


class SourceError(OmzError):
    """A source answered, and the answer cannot be used (401, 404, 500, a cut body, too many redirects)."""

    code = "source"


class UnreachableError(SourceError):
    """A source did not answer at all: no network, a wrong address, or offline mode."""

    code = "unreachable"


class IntegrityError(OmzError):
    """Bytes are not the ones that the descriptor pins."""

    code = "integrity"


class MissingError(OmzError):
    """Files that a stage needs are not in the download folder."""

    code = "missing"


class DiskError(OmzError):
    """The disk is full, read-only, or refuses a file."""

    code = "disk"


class CheckpointError(OmzError):
    """The checkpoint is malformed, unsafe, or does not fit its own config.json."""

    code = "checkpoint"


class ConversionError(OmzError):
    """A library failed to export or convert the model, or is not installed."""

    code = "conversion"


class ModelError(OmzError):
    """A model file does not exist or cannot be read, or has no such input or shape."""

    code = "model"


class ProofError(OmzError):
    """A converted model does not keep the contract, or its results differ from PyTorch's beyond the bound."""

    code = "proof"


class ManifestError(OmzError):
    """A manifest cannot be read, or what it names is not as it says."""

    code = "manifest"


class AccuracyError(OmzError):
    """A model that was measured is not as good as it was published to be."""

    code = "accuracy"


class StoppedError(OmzError):
    """The whole run ends on a signal, and this part of it with it."""

    code = "stopped"


@contextmanager
def context(place: str) -> Iterator[None]:
    """Add an outer place ("model gpt-2") to any OmzError that passes."""
    try:
        yield
    except OmzError as error:
        error.where = (place, *error.where)
        raise
