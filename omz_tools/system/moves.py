"""Steps that put new files and folders into the place of old ones, each at once, and that can be undone together."""

import contextlib
import ctypes
import errno
import functools
import os
import shutil
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from omz_tools.system import files

# Of linux/fcntl.h and linux/fs.h, and of sys/stdio.h of macOS.
_AT_FDCWD, _RENAME_EXCHANGE, _RENAME_SWAP = -100, 2, 2
# What a kernel or a file system answers that cannot exchange, or a sandbox that knows nothing of it.
_NO_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM}
# What a folder answers that cannot be moved: one of a lower layer of an overlay, or where a disk is mounted.
_FIXED = {errno.EXDEV, errno.EBUSY}
# What becomes of a step if another run has put something there just now, or has taken it away.
_CROSSED = {errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY}
_ATTEMPTS = 8
# The file that makes a folder a model: where files are replaced one by one, it goes first and comes last.
_LEADS = ".xml"


@dataclass(frozen=True)
class _Step:
    """What was done, or was about to be done when something stopped it.

    Attributes:
        moved: what the step moves.
        to: where that lies if the step was done.
        back: undoes the step.
        old: where that which was there before lies while the step is not undone.
    """

    moved: os.stat_result
    to: Path
    back: Callable[[], object]
    old: Path | None = None

    @property
    def is_done(self) -> bool:
        there = status_of(self.to)
        return there is not None and os.path.samestat(there, self.moved)


class Moves:
    """The steps so far. All methods raise OSError; what was done until then is for `undo`.

    Of runs that do the same at once, one comes last, and what it puts there is whole. That depends on no lock, except
    where a folder can neither be exchanged nor moved.
    """

    def __init__(self, hide: Callable[[Path, bool], Path]) -> None:
        """`hide` gives a hidden name beside a path, and hears whether what goes there must be put back after a kill."""
        self._hide = hide
        self._steps: list[_Step] = []

    def take_away(self, target: Path, *, restores: bool = False) -> Path | None:
        """Move a file or a folder aside; where it is now, or None if there is none."""
        there = status_of(target)
        if there is None:
            return None
        aside = self._hide(target, restores)
        try:
            self._rename(target, aside, there, old=aside)
        except FileNotFoundError:  # another run has just done so
            return None
        return aside

    def put_file(self, new: Path, target: Path) -> None:
        """Move a file into its place; what was there lies beside it under a hidden name as well."""
        moved, there = new.lstat(), status_of(target)
        if there is None:
            self._rename(new, target, moved)
            return
        old = self._hide(target, False)
        with contextlib.suppress(FileNotFoundError):  # another run has just taken it away
            _double(target, old, there)
        self._steps.append(_Step(moved, target, functools.partial(_put_back, old, target), old))
        new.replace(target)

    def put_folder(self, new: Path, target: Path) -> None:
        """Put a folder in the place of another one, of which it takes over all that it has not itself.

        The two trade places in one step. Where the file system has no such step, the old one is moved aside first; if
        that cannot be either, its files are replaced one by one.
        """
        names = sorted((path.name for path in new.iterdir()), key=lambda name: name.endswith(_LEADS))
        for attempt in range(_ATTEMPTS):
            try:
                self._put_folder(new, target)
                return
            except OSError as error:
                if error.errno in _FIXED:
                    break
                if error.errno not in _CROSSED or attempt == _ATTEMPTS - 1:
                    raise
        for name in names:
            if name.endswith(_LEADS):
                self.take_away(target / name)
        for name in names:
            self.put_file(new / name, target / name)

    def _put_folder(self, new: Path, target: Path) -> None:
        moved, there = new.lstat(), status_of(target)
        if there is None:
            self._rename(new, target, moved)
            return
        shutil.copymode(target, new)
        _carry_over(target, new)
        files.sync(new)
        self._steps.append(_Step(moved, target, functools.partial(exchange, new, target), old=new))
        old: Path | None = new
        if not exchange(new, target):
            self._steps.pop()
            old = self.take_away(target, restores=True)
            self._rename(new, target, moved)
        if old:
            _carry_over(old, target)  # what has come there meanwhile

    def _rename(self, source: Path, target: Path, moved: os.stat_result, old: Path | None = None) -> None:
        self._steps.append(_Step(moved, target, functools.partial(target.replace, source), old))
        source.replace(target)

    def undo(self) -> list[Path]:
        """Undo all steps, the last one first, until one cannot be undone; where the old lies that is not in place."""
        while self._steps:
            try:
                if self._steps[-1].is_done:
                    self._steps[-1].back()
            except OSError:
                break
            self._steps.pop()
        return [step.old for step in self._steps if step.old and os.path.lexists(step.old)]


def _put_back(old: Path, target: Path) -> None:
    if status_of(old):
        old.replace(target)
    else:
        target.unlink()


def exchange(first: Path, second: Path) -> bool:
    """Let two files or folders of one file system trade places in one step; False where there is no such step.

    Raises OSError; then neither has moved.
    """
    call = _exchange()
    if not call:
        return False
    if not call(os.fsencode(first), os.fsencode(second)):
        return True
    code = ctypes.get_errno()
    if code in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(first), None, str(second))


@functools.cache
def _exchange() -> Callable[[bytes, bytes], int] | None:
    """The system's function, which returns 0 if it has succeeded."""
    with contextlib.suppress(OSError, AttributeError):  # an older C library
        if sys.platform == "linux":
            renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
            return lambda first, second: int(renameat2(_AT_FDCWD, first, _AT_FDCWD, second, _RENAME_EXCHANGE))
        if sys.platform == "darwin":
            renamex_np = ctypes.CDLL(None, use_errno=True).renamex_np
            return lambda first, second: int(renamex_np(first, second, _RENAME_SWAP))
    return None


def status_of(path: Path) -> os.stat_result | None:
    """What lies somewhere, links not followed; None if nothing does."""
    try:
        return path.lstat()
    except FileNotFoundError:
        return None


def _carry_over(old: Path, new: Path) -> None:
    """Give a folder what another one has and it has not; that stays in the other one, too."""
    for name in [path.name for path in old.iterdir()]:
        # What vanishes meanwhile, someone has removed, or carried elsewhere.
        with contextlib.suppress(FileNotFoundError):
            there, status = status_of(new / name), (old / name).lstat()
            is_folder = stat.S_ISDIR(status.st_mode)
            if not there and is_folder:
                (new / name).mkdir()
                shutil.copystat(old / name, new / name)
            if is_folder and (not there or stat.S_ISDIR(there.st_mode)):
                _carry_over(old / name, new / name)
            elif not there:
                _double(old / name, new / name, status)


def _double(source: Path, target: Path, status: os.stat_result) -> None:
    """Give a file a second name, or where it can have none, make a copy."""
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        return  # another run has done so
    except (OSError, NotImplementedError) as error:
        if isinstance(error, FileNotFoundError) or not (stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)):
            raise
        if stat.S_ISLNK(status.st_mode):
            target.symlink_to(source.readlink())
            return
        files.copy(source, target)
        shutil.copystat(source, target)
        files.sync(target)
