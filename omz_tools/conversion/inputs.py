"""The downloaded files of a model, held against what the descriptor pins, while the work on them has already begun."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from omz_tools.cache import record
from omz_tools.cache.record import Record, Seen
from omz_tools.descriptors.descriptor import FileEntry
from omz_tools.descriptors.zoo import Model
from omz_tools.errors import IntegrityError, MissingError, OmzError, StoppedError
from omz_tools.system.files import PROCESSORS, disk_errors


class Inputs:
    """The downloaded files of a model: there and of the pinned sizes at once, of the pinned digests a while later.

    To hash them takes as long as to load OpenVINO: both are done at a time. Whoever publishes what comes of them calls
    `verified` before. At the end of the `with` block they are verified in any case: where other bytes than the pinned
    ones made the work fail, it is these that are reported.

    Attributes:
        seen: the files by where they lie below the folder, with the digests that they are to have.
    """

    def __init__(self, model: Model, folder: Path, known: Record) -> None:
        """Look at a model's files in `folder`; what `known` says of one counts while it looks as it did then.

        Raises:
            MissingError: files are not there; all are named.
            IntegrityError: a file is not of the pinned size, or is a link.
        """
        places: dict[str, FileEntry] = {str(place): entry for place, entry in model.descriptor.places.items()}
        if missing := [entry.name for name, entry in places.items() if not (folder / name).exists()]:
            top = folder.parents[model.subdirectory.count("/")]
            raise MissingError(
                f"not in {folder}: {', '.join(missing)}",
                hint=f"Download it first: omz_downloader --name {model.name} -o {top}",
            )
        self.seen: dict[str, Seen] = {}
        unknown: list[tuple[Path, FileEntry]] = []
        for name, entry in places.items():
            path, seen = folder / name, known.inputs.get(name)
            with disk_errors("Reading", path):
                now = record.seen_as(path, _pinned(entry))
            if path.is_symlink() or now.size != entry.size:
                raise _other(path, entry)
            self.seen[name] = now
            if now != seen:
                unknown.append((path, entry))
        self._pool = ThreadPoolExecutor(PROCESSORS)
        self._checks: list[Future[None]] = [self._pool.submit(_check, path, entry) for path, entry in unknown]

    def verified(self) -> None:
        """Wait until all files are hashed.

        Raises:
            IntegrityError: one is not the pinned one.
            DiskError: one cannot be read.
        """
        for check in self._checks:
            check.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None or (isinstance(error, OmzError) and not isinstance(error, StoppedError)):
                self.verified()
        finally:
            self._pool.shutdown(wait=False, cancel_futures=True)


def _check(path: Path, entry: FileEntry) -> None:
    with disk_errors("Reading", path):
        seen = record.look_at(path, entry.digest.algorithm)
    if (seen.size, seen.digest) != (entry.size, _pinned(entry)):
        raise _other(path, entry)


def _pinned(entry: FileEntry) -> str:
    return f"{entry.digest.algorithm}:{entry.digest.value}"


def _other(path: Path, entry: FileEntry) -> IntegrityError:
    return IntegrityError(
        f"{path} is not the file that the descriptor pins ({entry.size:,} bytes, {_pinned(entry)})",
        hint="It is damaged or was changed. Run omz_downloader again: it replaces just what is wrong.",
        where=(f"file {entry.name}",),
    )
