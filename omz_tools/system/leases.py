"""Hidden files by which one process sees whether another one, that made them, still lives.

A lease is a file that is locked for as long as its process lives. Locks only save work: where there are none, or where
everyone gets them, the age of a file decides, and nothing may come out wrong for that.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path

from omz_tools.system.files import make_folder

try:
    import fcntl
except ImportError:  # Windows: no process sees that another one is at work
    fcntl = None  # type: ignore[assignment]

# Where locks are not to be had, a file that has not grown for so long is taken for a leftover.
OLD_SECONDS = 3600.0
# Others may be stopped, or sleep; all comes out right if two have their turn at once.
PATIENCE_SECONDS = 10.0
_ATTEMPTS = 8


class Owner(Enum):
    """Whether the process that made a file still works with it."""

    LIVES = "lives"
    GONE = "gone"
    UNKNOWN = "unknown"


def create(path: Path, made: list[Path]) -> int:
    """Create a file, locked before it has its name; the open file, to be given to `close`.

    Until then it has the suffix .new. Folders that had to be created are added to `made`. Where a lock is refused again
    and again, though nobody can have it for long, the file goes without.

    Raises:
        OSError, DiskError: it cannot be created.
    """
    unborn = path.with_suffix(".new")
    for attempt in range(_ATTEMPTS):
        make_folder(path.parent, made)
        file = -1
        try:
            file = os.open(unborn, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            with contextlib.suppress(_NoLocks, *([] if attempt < _ATTEMPTS - 1 else [BlockingIOError])):
                _lock(file)
            unborn.rename(path)
            return file
        except BaseException as error:
            close(file)
            with contextlib.suppress(OSError):
                path.unlink()
            # Another run has removed the folder, since it left nothing in it; or takes the file for a leftover.
            if not isinstance(error, FileNotFoundError | BlockingIOError) or attempt == _ATTEMPTS - 1:
                raise
            time.sleep(0.01 * attempt)
        finally:
            with contextlib.suppress(OSError):
                unborn.unlink()
    raise AssertionError


def take(path: Path) -> int:
    """Open and lock a file that another process left; the open file, to be given to `close`.

    Raises:
        OSError: it cannot be opened for writing, or someone has locked it, or looks whether one has.
    """
    file = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        with contextlib.suppress(_NoLocks):
            _lock(file)
    except BaseException:
        close(file)
        raise
    return file


def close(file: int) -> None:
    """Let go of an open file and its lock; -1 is none."""
    # What was written is on disk already where it matters, by fsync.
    if file >= 0:
        with contextlib.suppress(OSError):
            os.close(file)


def owner_of(path: Path, newest: float = 0.0) -> Owner:
    """Whether the process that created a file lives.

    Args:
        path: the file.
        newest: when that process last wrote to something else, in seconds since the epoch.
    """
    with contextlib.ExitStack() as stack:
        try:
            first, second = _opened(path, stack), _opened(path, stack)
            age = time.time() - max(newest, os.fstat(first).st_mtime)
        except OSError:
            return Owner.UNKNOWN
        with contextlib.suppress(_NoLocks):
            try:
                # Shared: only owners ever have it to themselves, so that nobody takes those who look for one.
                _lock(first, shared=True)
            except BlockingIOError:
                return Owner.LIVES
            try:
                _lock(second)
            except BlockingIOError:
                # One that was just taken over has let go of the file that it had at this path before.
                return Owner.GONE if _leads_to(path, first) else Owner.LIVES
        # There are no locks, or everyone gets one.
        return Owner.GONE if age > OLD_SECONDS else Owner.UNKNOWN


def _leads_to(path: Path, file: int) -> bool:
    """Whether a path is still that of an open file."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(file))
    except OSError:
        return False


@contextmanager
def turn(folder: Path) -> Iterator[None]:
    """Wait until no other process has its turn in a folder, but not for ever: results must be right without it, too."""
    try:
        file = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        file = -1
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        with contextlib.suppress(_NoLocks):
            while file >= 0 and time.monotonic() < deadline:
                with contextlib.suppress(BlockingIOError):
                    _lock(file)
                    break
                time.sleep(0.01)
        yield
    finally:
        close(file)


def _opened(path: Path, stack: contextlib.ExitStack) -> int:
    flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        file = os.open(path, os.O_RDWR | flags)
    except PermissionError:  # another user's
        file = os.open(path, os.O_RDONLY | flags)
    stack.callback(close, file)
    return file


class _NoLocks(Exception):
    """There are no locks in a folder."""


def _lock(file: int, *, shared: bool = False) -> None:
    """Lock an open file until it is closed. Raises BlockingIOError if another has done so."""
    if fcntl:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError as error:
            raise _NoLocks from error
