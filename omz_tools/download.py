"""One pinned file, from wherever it can be had, to verified bytes in place."""

import contextlib
import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from omz_tools import files
from omz_tools.descriptor import FileEntry, Source
from omz_tools.errors import DiskError, IntegrityError, SourceError, UnsupportedError, context
from omz_tools.sources import location, open_source
from omz_tools.store import Store
from omz_tools.transport import TransientError, Transport

# A server that names a longer wait is asked again after this many seconds, once for each attempt that is left.
LONGEST_WAIT = 60.0


@dataclass(frozen=True)
class Means:
    """What a download works with.

    Attributes:
        transport: the connections; closing it ends the run.
        store: the cache, or None to do without.
        attempts: how often a source is tried before the next one is.
        note: called with a line for the user.
    """

    transport: Transport
    store: Store | None
    attempts: int
    note: Callable[[str], None]


def is_right(path: Path, entry: FileEntry) -> bool:
    """Whether `path` is a real file with the size and digest that the descriptor pins."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size != entry.size:
        return False
    return files.digest_of(path, entry.digest.algorithm) == entry.digest.value


def fetch(entry: FileEntry, target: Path, folder: Path, means: Means, progress: Callable[[int], None]) -> str:
    """Bring one file to `target`, and say how: "already there", "from the cache" or "fetched".

    Until the new bytes are whole and right, whatever `target` was before stays as it was.

    Args:
        entry: what the file must be and where it may come from.
        target: where it goes.
        folder: the descriptor's folder, where local sources begin.
        means: connections, cache and patience.
        progress: called with the number of bytes received so far.

    Raises:
        SourceError, UnreachableError, UnsupportedError: from the last source tried; the others are in its hint.
        IntegrityError: every source that answered sent other bytes.
        DiskError: the disk is full or read-only.
    """
    with files.disk_errors("Reading", target):
        if is_right(target, entry):
            return "already there"
    files.room_for(target.parent, entry.size)
    with files.replacing(target) as temporary, files.disk_errors("Writing", target):
        if means.store and means.store.take(entry.digest, entry.size, temporary):
            return "from the cache"
        _from_sources(entry, temporary, folder, means, progress)
        if means.store:
            try:
                means.store.put(entry.digest, temporary)
            except DiskError as error:
                means.note(f"... not kept in the cache: {error.what}")
    return "fetched"


def _from_sources(
    entry: FileEntry, temporary: Path, folder: Path, means: Means, progress: Callable[[int], None]
) -> None:
    failures: list[str] = []
    for number, source in enumerate(entry.sources, start=1):
        try:
            _from_source(source, entry, temporary, folder, means, progress)
            return
        except (SourceError, IntegrityError, UnsupportedError) as error:
            if number == len(entry.sources):
                if failures:
                    error.hint = "\n".join([error.hint, "Tried before it:", *failures]).strip()
                raise
            failures.append(f"- {error.what}")
            means.note(f"... {error.what}; trying the next source")


def _from_source(
    source: Source, entry: FileEntry, temporary: Path, folder: Path, means: Means, progress: Callable[[int], None]
) -> None:
    """Try one source as often as it is worth it."""
    mismatched = False
    attempt = 0
    while True:
        attempt += 1
        try:
            _transfer(source, entry, temporary, folder, means, progress)
            return
        except TransientError as error:
            if attempt >= means.attempts:
                error.hint = f"Tried {attempt} times. {error.hint}".strip()
                raise
            wait = min(LONGEST_WAIT, max(error.retry_after, 0.5 * 2 ** (attempt - 1) * random.uniform(0.5, 1)))  # noqa: S311
            means.note(f"... {error.what}; trying again in {wait:.1f} s")
            means.transport.pause(wait)
        except IntegrityError:
            if mismatched:
                raise
            mismatched = True  # one fresh try: the bytes may have been damaged on the way


def _transfer(
    source: Source, entry: FileEntry, temporary: Path, folder: Path, means: Means, progress: Callable[[int], None]
) -> None:
    """Stream the source into `temporary`, hashing as it comes, and check size and digest."""
    place = location(source, folder)
    hasher = hashlib.new(entry.digest.algorithm)
    done = 0
    with contextlib.ExitStack() as stack:
        length, chunks = stack.enter_context(open_source(source, folder, means.transport))
        if length is not None and length != entry.size:
            raise _wrong(place, f"{length:,} bytes", f"{entry.size:,}")
        file = stack.enter_context(temporary.open("wb"))
        for chunk in chunks:
            done += len(chunk)
            if done > entry.size:
                raise _wrong(place, f"more than {entry.size:,} bytes", f"{entry.size:,}")
            hasher.update(chunk)
            file.write(chunk)
            progress(done)
    if done != entry.size:
        raise TransientError(f"the transfer from {place} ended after {done:,} of {entry.size:,} bytes")
    if hasher.hexdigest() != entry.digest.value:
        kind = entry.digest.algorithm
        raise _wrong(place, f"a file with {kind} {hasher.hexdigest()}", entry.digest.value)


def _wrong(place: str, found: str, wanted: str) -> IntegrityError:
    return IntegrityError(
        f"{place} gives {found}, the descriptor pins {wanted}",
        hint="Nothing was stored. The source has other bytes than the descriptor: check the pinned revision, and any "
        "proxy or mirror on the way.",
    )


def check(entry: FileEntry, path: Path) -> None:
    """Raise IntegrityError if a file that is in place is not the pinned one."""
    with context(f"file {entry.name}"):
        if not is_right(path, entry):
            raise IntegrityError(
                f"{path} is not the file that the descriptor pins "
                f"({entry.size:,} bytes, {entry.digest.algorithm} {entry.digest.value})",
                hint="It is damaged or was changed. Run omz_downloader again: it replaces just what is wrong.",
            )
