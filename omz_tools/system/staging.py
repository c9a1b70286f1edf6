"""Files and folders that appear whole: written under hidden names, and put in place when all of them are ready."""

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from omz_tools.errors import DiskError
from omz_tools.system import files, leases
from omz_tools.system.files import UNCHANGED, disk_errors, make_folder, remove_folders
from omz_tools.system.leases import Owner
from omz_tools.system.moves import Moves, status_of

_NAME = re.compile(r"\.staged-(?P<run>[0-9a-f]{12})[-.].+", re.DOTALL)


@dataclass(frozen=True)
class _Item:
    """A file, or a folder with all that is in it: where it is written to, and where it goes."""

    hidden: Path
    target: Path
    is_folder: bool


class Staging:
    """Files and folders that are written under hidden names beside their targets, and put in place by `publish`.

    As a context manager it removes what was not published, with the folders made for it. A run that is killed cannot do
    that: the next one in the same folder does it for it, see `sweep`.

    Each file, and each folder with all its files, takes its place in one step: whoever looks finds it as it was or as
    it will be, and so does the next run if this one is killed. If a step fails, those before it are undone. Other files
    in a folder that is replaced stay there.
    """

    def __init__(self, home: Path) -> None:
        """`home` is the folder that everything belongs to; it need not exist yet."""
        self._home = home.absolute()
        self._run = secrets.token_hex(6)
        self._items: list[_Item] = []
        self._record: _Item | None = None
        self._folders: list[Path] = []
        self._hidden: list[Path] = []
        self._kept: list[Path] = []
        self._lease = -1

    def file(self, target: Path) -> Path:
        """The hidden path to write the file `target` to; it ends in the same name.

        Raises:
            DiskError: its folder cannot be made or written to.
        """
        item = self._stage(target.absolute(), is_folder=False)
        self._items.append(item)
        return item.hidden

    def folder(self, target: Path) -> Path:
        """A new hidden folder; the files that are put there take the place of those of the same names in `target`.

        A link stays one; the folder that it leads to is replaced.

        Raises:
            DiskError: it cannot be made, or `target` is no folder, or one that may not be written to.
        """
        with disk_errors("Writing", target):
            real = target.resolve()
            _check(real, is_folder=True)
            item = self._stage(real, is_folder=True)
            item.hidden.mkdir()
        self._items.append(item)
        return item.hidden

    def temporary(self, beside: Path) -> Path:
        """A hidden path beside another one for a file that is needed meanwhile, and is never published.

        Raises:
            DiskError: its folder cannot be made or written to.
        """
        return self._stage(beside.absolute(), is_folder=False).hidden

    def record(self, target: Path) -> Path:
        """The hidden path to write a file to that says something of all the rest; there can be one.

        It is published last, and the one that was there is taken away before anything else changes, so that no record
        speaks of what is not there.

        Raises:
            DiskError: its folder cannot be made or written to.
        """
        self._record = self._stage(target.absolute(), is_folder=False)
        return self._record.hidden

    def settle(self) -> None:
        """Bring what was written so far to the disk, of which `publish` then has less to do.

        Raises:
            DiskError: it does not get there.
        """
        for item in (*self._items, *([self._record] if self._record else [])):
            with disk_errors("Writing", item.target):
                for path in _within(item.hidden):
                    files.sync(path)

    def publish(self) -> None:
        """Put everything into its place in the order in which it was staged, the record last.

        Raises:
            DiskError: a step failed; what was there before is in place again, or the error says where it is.
        """
        items = [*self._items, *([self._record] if self._record else [])]
        for item in items:
            with disk_errors("Writing", item.target):
                _check(item.target, is_folder=item.is_folder)
        self.settle()
        if items:
            with leases.turn(self._home):
                self._move(items)
        self._items.clear()
        self._folders.clear()
        self._record = None
        self._remove_hidden()

    def _move(self, items: list[_Item]) -> None:
        moves, target = Moves(self._hide), items[0].target
        try:
            ours = [(item.target / path.relative_to(item.hidden), path.lstat())
                    for item in items for path in _within(item.hidden) if not path.is_dir()]  # fmt: skip
            if self._record:
                target = self._record.target
                if moves.take_away(target):
                    files.sync(target.parent)
            for item in self._items:
                target = item.target
                (moves.put_folder if item.is_folder else moves.put_file)(item.hidden, target)
            for target in dict.fromkeys(item.target.parent for item in self._items):
                files.sync(target)
            if self._record:
                target = self._record.target
                moves.put_file(self._record.hidden, target)
                files.sync(target.parent)
                _doubt(target, ours)
        except BaseException as error:  # a signal, too
            self._kept = moves.undo()
            if not isinstance(error, OSError):
                raise
            failure = DiskError(f"Replacing {target} failed: {error.strerror}", hint=UNCHANGED)
            if self._kept:
                places = ", ".join(map(str, self._kept))
                failure.hint = f"What was there before could not be put back; it lies in {places}."
            raise failure from error

    def _stage(self, target: Path, *, is_folder: bool) -> _Item:
        with disk_errors("Writing to", target.parent):
            hidden = self._hide(target)
            make_folder(target.parent, self._folders)
        return _Item(hidden, target, is_folder)

    def _hide(self, target: Path, restores: bool = False) -> Path:
        """A fresh hidden path beside `target`, which the lease knows of before there is anything."""
        if self._lease < 0:
            sweep(self._home)
            self._lease = leases.create(_lease_of(self._home, self._run), self._folders)
        hidden = target.with_name(f".staged-{self._run}-{len(self._hidden)}.{target.name}")
        line = json.dumps([str(hidden), str(target), restores]).encode() + b"\n"
        if os.write(self._lease, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._hidden.append(hidden)
        return hidden

    def _remove_hidden(self) -> None:
        for path in self._hidden:
            if path not in self._kept:
                _remove(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        try:
            self._end()
        except BaseException:  # a signal; it comes once
            self._end()
            raise

    def _end(self) -> None:
        self._remove_hidden()
        # What could not be removed is left to the next run, which learns of it from the lease.
        if not any(os.path.lexists(path) for path in self._hidden):
            _remove(_lease_of(self._home, self._run))
        leases.close(self._lease)
        self._lease = -1
        remove_folders(self._folders)


def sweep(home: Path) -> None:
    """Remove what runs that died have left of stagings in a folder; those of living runs are not touched.

    What such a run had moved aside to put something else there, and did not, is put back.
    """
    try:
        names = sorted(path.name for path in home.iterdir())
    except OSError:
        return
    for run in dict.fromkeys(match["run"] for name in names if (match := _NAME.fullmatch(name))):
        lease = _lease_of(home.absolute(), run)
        unborn = lease.with_suffix(".new")
        if os.path.lexists(unborn) and leases.owner_of(unborn) is Owner.GONE:
            _remove(unborn)
        # What the listing has is removed although a lease that a crash has cut does not know of it.
        hidden: dict[Path, Path | None] = {home.absolute() / n: None for n in names if n.startswith(f".staged-{run}-")}
        hidden |= dict(_listed(lease, run))
        is_there = os.path.lexists(lease)
        if is_there and not _has_gone(lease, list(hidden)):
            continue
        with leases.turn(home):
            for path, target in hidden.items():
                if target and not os.path.lexists(target):
                    with contextlib.suppress(OSError):
                        path.rename(target)
                _remove(path)
        # One that has come there meanwhile is of a living run.
        if is_there and not any(os.path.lexists(path) for path in hidden):
            _remove(lease)


def _lease_of(home: Path, run: str) -> Path:
    return home / f".staged-{run}.lease"


def _listed(lease: Path, run: str) -> Iterator[tuple[Path, Path | None]]:
    """The hidden paths that a lease lists, and where what lies there is to be put back, if anywhere."""
    with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
        if stat.S_ISREG(lease.lstat().st_mode):
            for line in lease.read_bytes().splitlines():
                hidden, target, restores = json.loads(line)
                path, beside = Path(hidden), Path(target)
                # Whoever wrote it: nothing but what a staging makes is ever touched.
                if path.name.startswith(f".staged-{run}-") and path.parent == beside.parent:
                    yield path, beside if restores is True else None


def _has_gone(lease: Path, hidden: list[Path]) -> bool:
    """Whether the process that has a lease does not live any more, as far as can be told."""
    try:
        parts = [status_of(part) for path in hidden for part in _within(path)]
    except OSError:
        return False  # it changes while it is looked at
    newest = max([0.0, *(part.st_mtime for part in parts if part)])
    return leases.owner_of(lease, newest) is Owner.GONE


def _doubt(record: Path, ours: list[tuple[Path, os.stat_result]]) -> None:
    """Remove a record if another run, which no lock kept from it, has put something else in the place of a part."""
    left = [path for path, status in ours if (there := status_of(path)) and os.path.samestat(there, status)]
    if 0 < len(left) < len(ours):
        record.unlink(missing_ok=True)


def _check(target: Path, *, is_folder: bool) -> None:
    """Raise OSError if a file or a folder that is there already cannot be replaced by one."""
    there = status_of(target)
    code = 0
    if there and is_folder:
        code = errno.ENOTDIR if not stat.S_ISDIR(there.st_mode) else 0 if _is_writable(target) else errno.EACCES
    elif there and stat.S_ISDIR(there.st_mode):
        code = errno.EISDIR
    if code:
        raise OSError(code, os.strerror(code))


def _is_writable(folder: Path) -> bool:
    """Whether one may write to a folder; yes where there is none, for another run may have it in its hands just now."""
    if os.access not in os.supports_dir_fd:
        return os.access(folder, os.W_OK) or not folder.exists()
    try:
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return True
    except PermissionError:
        return False
    try:
        # By the opened folder: its path may lead nowhere any more, which would look the same as no permission.
        return os.access(".", os.W_OK, dir_fd=opened)
    finally:
        os.close(opened)


def _within(path: Path) -> list[Path]:
    """All that lies in a folder, and the folder itself last; of a file, the file."""
    inside = sorted(path.rglob("*"), reverse=True) if path.is_dir() and not path.is_symlink() else []
    return [*inside, path]


def _remove(path: Path) -> None:
    """Remove a file or a folder, or as much of it as can be."""
    earlier = sys.exception()
    try:
        if stat.S_ISDIR(path.lstat().st_mode):
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
    except OSError as error:
        # A signal that comes just when rmtree has closed a folder makes it close that again, which fails.
        signal = error.__context__
        if isinstance(signal, KeyboardInterrupt | SystemExit) and signal is not earlier:
            raise signal from None
