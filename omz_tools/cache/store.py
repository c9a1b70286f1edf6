"""The cache: files named by their digest, shared by any number of runs.

Nothing here depends on a lock. A file gets its final name in one step, when it is whole and on disk; what is taken out
is hashed after it was copied; what vanishes meanwhile counts as absent.
"""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from omz_tools.cache import partial
from omz_tools.descriptors.descriptor import Digest, Sha256, Sha384
from omz_tools.errors import DiskError
from omz_tools.system import files
from omz_tools.system.files import disk_errors, make_folder, temporary_beside

# Part of the path: a later layout lives beside this one, and neither reads the other's.
FORMAT = "1"
DAY = 86400.0

_HINT = "Make room there, see that it may be read and written, or give another --cache_dir."
_ABSENT = (FileNotFoundError, NotADirectoryError)


@dataclass(frozen=True)
class Entry:
    """What has the name of a file in the store: its digest, its bytes, and its last use in seconds since the epoch."""

    digest: Digest
    size: int
    used: float


@dataclass(frozen=True)
class Removal:
    """What the store is better off without: where it lies, the bytes on disk that go with it, and why."""

    path: Path
    size: int
    why: str


class Store:
    """A folder of verified files, `<folder>/<format>/<algorithm>/<first two hex digits>/<hex digest>`.

    `note` is called with a line for the user about each entry that cannot be given out as it should.
    """

    def __init__(self, folder: Path, note: Callable[[str], None] = lambda line: None) -> None:
        self.folder = folder
        self._note = note

    def path(self, digest: Digest) -> Path:
        """Where the file with this digest lies, if the store has it."""
        return self.folder / FORMAT / digest.algorithm / digest.value[:2] / digest.value

    @property
    def partials(self) -> Path:
        """Where downloads lie until they are whole and `keep` takes them; it need not exist."""
        return self.folder / FORMAT / "partial"

    def take(self, digest: Digest, size: int, target: Path) -> bool:
        """Copy a file out; True if `target` now holds the right bytes, otherwise what it holds means nothing.

        What leaves the store is a real file: ONNX and OpenVINO refuse weights behind links. An entry that is not what
        its name says is set aside under a name of its own. It counts as absent, and so does one that cannot be read.

        Raises:
            DiskError: `target` cannot be written.
        """
        blob, failure = self.path(digest), None
        try:
            if _is_file(blob, size):
                files.copy(blob, target)
                if files.digest_of(target, digest.algorithm) == digest.value:
                    with contextlib.suppress(OSError):  # a store that is read-only, or someone else's
                        os.utime(blob)
                    return True
        except OSError as error:
            # Where the error does not name the entry, reading that alone tells whether it or the target is at fault.
            failure = error if error.filename != str(blob) else None
        try:
            fault = self._fault(digest)
        except _ABSENT:
            return False
        _discard(target)
        if fault:
            self._note(f"... the cache entry {blob} {fault}")
        elif failure:
            with disk_errors("Copying from the cache to", target):
                raise failure
        return False

    def put(self, digest: Digest, verified: Path) -> None:
        """Add a copy of a file whose bytes have just been verified.

        Raises:
            DiskError: the cache is full or read-only.
        """
        blob = self.path(digest)
        temporary = temporary_beside(blob)
        with cache_errors("Writing to the cache", blob):
            size = verified.stat().st_size
            with contextlib.suppress(OSError):
                if _is_file(blob, size) and os.access(blob, os.R_OK):
                    return
            # Folders stay whatever happens: another process may count on them.
            made: list[Path] = []
            make_folder(blob.parent, made)
            try:
                files.copy(verified, temporary)
                _publish(temporary, blob, made)
            except BaseException:
                _discard(temporary)
                raise

    def keep(self, digest: Digest, whole: Path) -> None:
        """Move in a file whose bytes have just been verified, from a folder on the file system of the store.

        Raises:
            DiskError: the cache is read-only, or on another file system; `whole` is where it was.
        """
        blob, made = self.path(digest), list[Path]()
        with cache_errors("Moving into the cache", blob):
            make_folder(blob.parent, made)
            _publish(whole, blob, made)

    def entries(self) -> Iterator[Entry]:
        """What is there, in the order of digests, by names, sizes and times alone. Raises DiskError."""
        for kind in (Sha256, Sha384):
            digits = f"[0-9a-f]{{{2 * hashlib.new(kind.algorithm).digest_size}}}"
            for path, status in _below(self.folder, FORMAT, kind.algorithm, "[0-9a-f]{2}", digits):
                if path.name.startswith(path.parent.name):
                    yield Entry(kind(path.name), status.st_size, status.st_mtime)

    def verify(self) -> Iterator[tuple[Entry, str | None]]:
        """Hash every entry, and give each with what is wrong with it or None; damaged ones are set aside.

        What is wrong is said in words that go behind the entry's path. Raises DiskError if a folder cannot be read.
        """
        for entry in self.entries():
            try:
                fault = self._fault(entry.digest)
            except _ABSENT:  # removed since it was listed
                continue
            yield entry, fault

    def collect(
        self, *, keep_seconds: float | None = None, max_size: int | None = None, dry_run: bool = False
    ) -> Iterator[Removal]:
        """Remove what is not needed, giving each removal when it is done.

        These are: what was set aside; what processes that died left behind, a day later; with limits, entries that were
        not used for long, and then those used the longest time ago until the others fit.

        Args:
            keep_seconds: how long an entry, or an unfinished download, is kept after its last use.
            max_size: bytes that all entries together may have.
            dry_run: remove nothing, only say what would be removed.

        Raises:
            DiskError: a folder cannot be read, or something cannot be removed; the others are.
        """
        now, stuck = time.time(), []
        for removal in [*self._debris(now, keep_seconds), *self._unneeded(now, keep_seconds, max_size)]:
            try:
                if not dry_run:
                    _remove(removal.path)
            except (*_ABSENT, IsADirectoryError):
                continue  # another process removed it, or something else is there by now
            except OSError as error:
                stuck.append(f"{removal.path}: {error.strerror}")
                continue
            yield removal
        if stuck:
            raise DiskError("\n".join(["what could not be removed from the cache:", *stuck]), hint=_HINT)

    def _debris(self, now: float, keep_seconds: float | None) -> Iterator[Removal]:
        for path, status in _below(self.folder, FORMAT, "sha(256|384)", "[0-9a-f]{2}", r"\..*\.(damaged|tmp)"):
            if path.suffix == ".damaged":
                yield Removal(path, _room(status), "damaged")
            elif now - status.st_mtime >= DAY:
                yield Removal(path, _room(status), "left by a process that died")
        abandoned = set(partial.leftovers(self.partials))
        for path, status in _below(self.folder, FORMAT, self.partials.name, r"\..*"):
            if path in abandoned and now - status.st_mtime >= (DAY if keep_seconds is None else keep_seconds):
                yield Removal(path, _room(status), "an unfinished download")

    def _unneeded(self, now: float, keep_seconds: float | None, max_size: int | None) -> Iterator[Removal]:
        oldest_first = sorted(self.entries(), key=lambda entry: entry.used)
        total = sum(entry.size for entry in oldest_first)
        for entry in oldest_first:
            age = now - entry.used
            if keep_seconds is not None and age >= keep_seconds:
                why = f"not used for {age / DAY:.0f} days"
            elif max_size is not None and total > max_size:
                why = "used the longest time ago"
            else:
                return
            total -= entry.size
            yield Removal(self.path(entry.digest), entry.size, why)

    def _fault(self, digest: Digest) -> str | None:
        """What is wrong with an entry, or None; a damaged one is set aside. Raises one of _ABSENT if there is none."""
        blob, fault = self.path(digest), "is not what its name says"
        try:
            if stat.S_ISREG(blob.lstat().st_mode) and files.digest_of(blob, digest.algorithm) == digest.value:
                return None
        except _ABSENT:
            raise
        except OSError as error:
            fault = f"cannot be read: {error.strerror}"
            if error.errno != errno.EIO:  # rights, too many open files: others may read it, or we may later
                return fault
        try:
            _set_aside(blob)
        except _ABSENT:
            raise
        except OSError as error:
            return f"{fault} and cannot be set aside: {error.strerror}"
        return f"{fault} and was set aside"


@contextmanager
def cache_errors(doing: str, path: Path) -> Iterator[None]:
    """Turn an OSError into a DiskError that says what was being done to the cache, and what to do."""
    try:
        with disk_errors(doing, path):
            yield
    except DiskError as error:
        error.hint = _HINT
        raise


def _publish(whole: Path, blob: Path, made: list[Path]) -> None:
    """Give a file its final name; `made` are folders whose own names are not on disk yet."""
    whole.chmod(0o444)
    files.sync(whole)
    try:
        whole.replace(blob)
    except IsADirectoryError:
        with contextlib.suppress(FileNotFoundError):
            _set_aside(blob)
        whole.replace(blob)
    with contextlib.suppress(OSError):  # it is in place; if its name is lost with the power, it is merely absent
        for folder in (blob.parent, *(folder.parent for folder in made)):
            files.sync(folder)


def _is_file(path: Path, size: int) -> bool:
    status = path.lstat()
    return stat.S_ISREG(status.st_mode) and status.st_size == size


def _set_aside(blob: Path) -> None:
    blob.replace(temporary_beside(blob).with_suffix(".damaged"))


def _discard(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _remove(path: Path) -> None:
    if stat.S_ISDIR(path.lstat().st_mode):
        shutil.rmtree(path)
    else:
        path.unlink()


def _room(status: os.stat_result) -> int:
    """The bytes that a file takes on disk: an unfinished download has holes."""
    return min(status.st_size, 512 * getattr(status, "st_blocks", status.st_size))


def _below(top: Path, *patterns: str) -> Iterator[tuple[Path, os.stat_result]]:
    """What lies where a path of patterns leads to from `top`, by name. Links are not followed. Raises DiskError."""
    found = []
    with cache_errors("Reading the cache", top), contextlib.suppress(FileNotFoundError):
        for path in sorted(top.iterdir()):
            if re.fullmatch(patterns[0], path.name):
                with contextlib.suppress(FileNotFoundError):  # vanished meanwhile
                    found.append((path, path.lstat()))
    for path, status in found:
        if len(patterns) == 1:
            yield path, status
        elif stat.S_ISDIR(status.st_mode):
            yield from _below(path, *patterns[1:])
