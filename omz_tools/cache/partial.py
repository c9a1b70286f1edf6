"""A download that is not whole yet: its bytes, and which of them it has, kept on disk when the process is killed."""

import contextlib
import json
import os
import re
import secrets
import shutil
import stat
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from omz_tools.system import files, leases, processes
from omz_tools.system.files import disk_errors, remove_folders
from omz_tools.system.leases import Owner, owner_of

# An entity tag that names the very bytes; no weak one does.
STRONG_ETAG = r'"[\x21\x23-\x7e]{1,1000}"'
# Less than this is not worth going on from, nor a hidden file in someone's folder.
WORTH_KEEPING = 1 << 20
# Of a record; one of a file of a terabyte, written in steps of 128 KiB, is longer, and the file begun again.
_LONGEST_RECORD = 1 << 28

_NAME = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{1,16}\.(?P<process>[0-9a-f]{16})-[0-9a-f]{8}\.(part|new)")


class Partial:
    """A file of this process that grows to `size` bytes, in any order.

    On disk it is one hidden file: the bytes, each at its place, and from offset `size` on the record of which are
    there, lines of text that are appended after each write. A kill therefore loses only what was not yet written. A
    file of just `size` bytes was whole when its process ended.

    No two processes write to it, and for that nothing depends on a lock, which only tells others that someone is at
    work. What another process left is taken over, that is given the name of the own file, only if that process has
    certainly ended: its name says which process it belongs to, one of this system whose number is free. A process that
    has ended writes no more; of several that want its file only one can rename it, the others find it gone; and under
    its new name it belongs to a process that lives. Everything else that lies there, of another machine or container
    or from before the system was started, is copied, which needs its size twice. A kill in between leaves one name or
    the other, with all the bytes.
    """

    def __init__(self, folder: Path, name: str, version: str, size: int) -> None:
        self.path = folder / f".{name}.{version}.{processes.tag()}-{secrets.token_hex(4)}.part"
        self.size = size
        self._name, self._version = name, version
        self._spans: list[tuple[int, int]] = []
        self._etags: dict[str, str] = {}
        self._record = size
        self._guard = threading.Lock()
        self._made: list[Path] = []
        self._file = -1

    @classmethod
    def begin(cls, folder: Path, name: str, digest: str, size: int) -> Self:
        """Make an empty partial file in `folder` for the file `name` with this digest.

        Raises:
            DiskError: the folder cannot be made or written to, or is full.
        """
        self = cls(folder, name, version_of(digest), size)
        try:
            with disk_errors("Writing to", folder):
                self._file = leases.create(self.path, self._made)
        except BaseException:
            self.close()
            raise
        return self

    def is_alone(self, *, besides: Collection[Path] = ()) -> bool:
        """Whether no other process works at the same, those that have the files `besides` left aside.

        Of two that look after they have begun, at least one sees the other.
        """
        return at_work(self.path.parent, self._name, self._version, besides={self.path, *besides}) is None

    def adopt(self) -> None:
        """Go on from what a process that is gone left of the same, the most there is; and remove all that such left.

        Raises:
            DiskError: the disk fails; that it is too full for a copy is no error, the work then begins anew.
        """
        with disk_errors("Writing to", self.path.parent):
            old = [p for p in _of(self._name, self._version, self.path.parent) if _owner(p) is not Owner.LIVES]
            best = max(old, key=lambda path: _held(path, self.size), default=None)
            sweep(self.path.parent, self._name, but=best)
            if best:
                # The record first: where locks mean nothing, someone may be writing on.
                spans, etags, end = _read(best, self.size)
                if spans and not self._take_over(best):
                    with contextlib.suppress(OSError):
                        files.copy(best, self.path)
                if spans and os.fstat(self._file).st_size >= end:
                    os.ftruncate(self._file, end)
                    self._record, self._etags, self._spans = end, etags, spans
                else:
                    os.ftruncate(self._file, 0)
            sweep(self.path.parent, self._name)

    def _take_over(self, left: Path) -> bool:
        """Make a file of a process that has certainly ended this one's own; False if that may not be, or cannot."""
        if not _has_ended(left):
            return False
        try:
            file = leases.take(left)
        except OSError:  # another user's, or others are at it
            return False
        try:
            its, own = os.fstat(file), os.fstat(self._file)
            # A file that has another name, too, or another owner, is not to be written to.
            if its.st_nlink > 1 or its.st_uid != own.st_uid:
                return False
            with contextlib.suppress(OSError):  # someone else was faster; or it is done, and just the answer was lost
                left.rename(self.path)
            if not self._is_named(its):
                return False
            file, self._file = self._file, file
            with contextlib.suppress(OSError):
                os.fchmod(self._file, stat.S_IMODE(own.st_mode))
            return True
        finally:
            leases.close(file)

    def _is_named(self, status: os.stat_result) -> bool:
        """Whether a file has the name that is this one's."""
        with contextlib.suppress(OSError):
            return os.path.samestat(self.path.lstat(), status)
        return False

    @property
    def held(self) -> int:
        """The number of bytes that are there."""
        with self._guard:
            return sum(end - first for first, end in self._spans)

    @property
    def prefix(self) -> int:
        """The number of bytes that are there without a gap from the first one on."""
        with self._guard:
            return self._spans[0][1] if self._spans and self._spans[0][0] == 0 else 0

    def holes(self) -> list[tuple[int, int]]:
        """What is missing: offsets of the first byte and behind the last one, in order."""
        with self._guard:
            edges = [0, *(edge for span in self._spans for edge in span), self.size]
        return [(first, end) for first, end in zip(edges[::2], edges[1::2], strict=True) if first < end]

    def write(self, offset: int, data: bytes) -> None:
        """Put bytes in their place, then into the record. For several threads."""
        view = memoryview(data)
        while view:
            with self._guard:  # also against a close in another thread
                done = os.pwrite(self._file, view, offset)
                self._add(offset, offset + done)
            view, offset = view[done:], offset + done

    def settle(self) -> None:
        """Put on the disk what was written so far, in one thread while others write on."""
        getattr(os, "fdatasync", os.fsync)(self._file)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill `buffer` from `offset` on; the number of bytes read."""
        return os.preadv(self._file, [buffer], offset)

    def etag(self, url: str) -> str | None:
        """The entity tag of the version of `url` that bytes here came from."""
        return self._etags.get(url)

    def remember(self, url: str, etag: str) -> None:
        """Keep the entity tag of `url`."""
        with self._guard:
            if self._etags.get(url) != etag:
                self._etags[url] = etag
                self._append(json.dumps([url, etag]))

    def clear(self) -> None:
        """Forget all bytes."""
        with self._guard:
            os.ftruncate(self._file, 0)
            self._spans.clear()
            self._etags.clear()
            self._record = self.size

    @contextmanager
    def whole(self) -> Iterator[Path]:
        """The path of the file without its record and on disk, to be moved into place within the block.

        Where locks mean nothing, another process may have taken this file for a leftover and removed its name; the
        bytes are then copied to a new one.
        """
        os.fsync(self._file)
        os.ftruncate(self._file, self.size)
        os.fsync(self._file)
        if not self._is_named(os.fstat(self._file)):
            self.path.unlink(missing_ok=True)
            with self.path.open("xb") as copy, os.fdopen(os.dup(self._file), "rb") as source:
                source.seek(0)
                shutil.copyfileobj(source, copy, files.CHUNK)
            files.sync(self.path)
        yield self.path

    def close(self, *, keep: bool = True) -> None:
        """Let go of the file: it stays for a later run if it has enough bytes and was not moved into place."""
        # A signal may have come when a leftover was taken over, and nothing here knew yet of what it has.
        keep = keep and max(self.held, _held(self.path, self.size)) >= WORTH_KEEPING
        self._let_go()
        if not keep:
            with contextlib.suppress(OSError):
                self.path.unlink()
            remove_folders(self._made)

    def _let_go(self) -> None:
        with self._guard:
            leases.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _add(self, first: int, end: int) -> None:
        self._append(f"{first} {end}")
        self._spans = _joined(self._spans, first, end)

    def _append(self, line: str) -> None:
        self._record += os.pwrite(self._file, line.encode() + b"\n", self._record)


def version_of(digest: str) -> str:
    """As much of a digest as the name of a partial file holds."""
    return digest[:16]


def at_work(folder: Path, name: str, version: str, *, besides: Collection[Path] = ()) -> Path | None:
    """A partial file of a file that someone works at, those `besides` left aside; None if there is none."""
    candidates = (path for path in _of(name, version, folder) if path not in besides)
    return next((path for path in candidates if _owner(path) is Owner.LIVES), None)


def leftovers(folder: Path) -> list[Path]:
    """The partial files in a folder that no process works at any more."""
    return [path for path in _in(folder) if _owner(path) is Owner.GONE]


def sweep(folder: Path, name: str, *, but: Path | None = None) -> None:
    """Remove the partial files of a file, in any version, that no process works at any more."""
    for path in leftovers(folder):
        if path != but and (match := _NAME.fullmatch(path.name)) and match["name"] == name:
            with contextlib.suppress(OSError):
                path.unlink()


def makes_room(folder: Path, name: str, digest: str, size: int) -> int:
    """The number of bytes of a file that need no room any more: an earlier run left them, and has certainly ended.

    They are gone on from; or if they cannot be, they are removed before others take their place.
    """
    gone = leftovers(folder)
    return max([0, *(_held(path, size) for path in _of(name, version_of(digest), folder) if path in gone)])


def kept(folder: Path, name: str, digest: str, size: int) -> int:
    """The number of bytes of a file that an earlier run left in a folder."""
    return max([0, *(_held(path, size) for path in _of(name, version_of(digest), folder))])


def _owner(path: Path) -> Owner:
    return Owner.GONE if _has_ended(path) else owner_of(path)


def _has_ended(path: Path) -> bool:
    """Whether the process that a partial file belongs to has certainly ended."""
    match = _NAME.fullmatch(path.name)
    return match is not None and processes.has_ended(match["process"])


def _in(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name) and _is_file(path))
    except OSError:
        return []


def _is_file(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISREG(path.lstat().st_mode)
    return False


def _of(name: str, version: str, folder: Path) -> list[Path]:
    beginning = f".{name}.{version}."
    return [path for path in _in(folder) if path.name.startswith(beginning) and path.suffix == ".part"]


def _held(path: Path, size: int) -> int:
    return sum(end - first for first, end in _read(path, size)[0])


def _read(path: Path, size: int) -> tuple[list[tuple[int, int]], dict[str, str], int]:
    """The record of a partial file, and the offset where it ends; an empty one if it cannot be read."""
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return [], {}, size
    try:
        return _record_of(file, size)
    except OSError:
        return [], {}, size
    finally:
        leases.close(file)


def _record_of(file: int, size: int) -> tuple[list[tuple[int, int]], dict[str, str], int]:
    """Spans and entity tags in the record of an open file, and where it ends: before the first unreadable line."""
    spans: list[tuple[int, int]] = []
    etags: dict[str, str] = {}
    read = 0
    length = os.fstat(file).st_size - size
    if length == 0 < size:
        return [(0, size)], {}, size
    if not 0 < length <= _LONGEST_RECORD:
        return spans, etags, size
    for line in os.pread(file, length, size).decode("latin-1").splitlines(keepends=True):
        if span := re.fullmatch(r"([0-9]{1,17}) ([0-9]{1,17})\n", line):
            first, end = int(span[1]), int(span[2])
            if not first < end <= size:
                break
            spans = _joined(spans, first, end)
        else:
            try:
                url, etag = json.loads(line)
                if not re.fullmatch(STRONG_ETAG, etag):
                    break
            except (ValueError, TypeError, RecursionError):
                break
            etags[str(url)] = etag
        read += len(line)
    return spans, etags, size + read


def _joined(spans: list[tuple[int, int]], first: int, end: int) -> list[tuple[int, int]]:
    """Disjoint spans in order, with one more."""
    before = [span for span in spans if span[1] < first]
    after = [span for span in spans if span[0] > end]
    touching = spans[len(before) : len(spans) - len(after)]
    return [*before, (min([first, *(s[0] for s in touching)]), max([end, *(s[1] for s in touching)])), *after]
