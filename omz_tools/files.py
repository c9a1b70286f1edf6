"""Names that are safe on every file system, and files that appear whole or not at all."""

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from omz_tools.errors import DiskError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

CHUNK = 1 << 20

# Of linux/fs.h; Python has it since 3.13. Where the number is another one, the call fails and the next way is taken.
_FICLONE = 0x40049409
# Of one call to the kernel, so that a signal does not wait for more.
_KERNEL_CHUNK = 64 << 20

UNCHANGED = (
    "Make room there, or choose a folder you may write to with -o/--output_dir. What was there before is unchanged."
)

# Device names of Windows: a file called so cannot be created there, whatever its extension.
_DEVICES = {"con", "prn", "aux", "nul", "conin$", "conout$"}
_DEVICES |= {port + number for port in ("com", "lpt") for number in "123456789¹²³"}
_FORBIDDEN = frozenset('<>:"|?*\\')


class RelativeName(str):
    """A relative path with forward slashes that stays inside its folder on Linux, macOS and Windows."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Check a name; what comes back has passed.

        Raises:
            ValueError: the name is empty, absolute, leaves its folder, or cannot exist on some system.
        """
        if not text or text.startswith("/"):
            raise ValueError(f"{text!r} is not a relative path")
        if len(text.encode("utf-8", "surrogatepass")) > 1000:
            raise ValueError("the path is longer than 1000 bytes")
        for part in text.split("/"):
            if part in ("", ".", ".."):
                raise ValueError(f"{text!r} has a part {part!r}: a path must name a file below its folder")
            if any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or 0xD800 <= ord(c) < 0xE000 or c in _FORBIDDEN for c in part):
                raise ValueError(f"{text!r} has a character that no file name may have everywhere")
            if part[-1] in ". " or part[0] == " ":
                raise ValueError(f"{text!r}: {part!r} begins or ends in a way that Windows changes silently")
            if len(part.encode()) > 200:
                raise ValueError(f"{text!r}: {part!r} is longer than 200 bytes")
            if part.split(".")[0].rstrip(" ").lower() in _DEVICES:
                raise ValueError(f"{text!r}: {part!r} is a device name on Windows")
        return cls(text)

    @property
    def folded(self) -> str:
        """What some file systems take the name for: those that ignore capitals, and ways of writing one character."""
        return unicodedata.normalize("NFC", unicodedata.normalize("NFC", self).casefold())


@contextmanager
def disk_errors(doing: str, path: Path) -> Iterator[None]:
    """Turn an OSError into a DiskError that says what was being done, where, and what to do."""
    try:
        yield
    except BrokenPipeError:
        raise  # whoever reads our output has gone; no disk's fault
    except OSError as error:
        reason = error.strerror or str(error)
        raise DiskError(
            f"{doing} {path} failed: {reason}",
            hint=UNCHANGED,
        ) from error


def digest_of(path: Path, algorithm: str) -> str:
    """Hex digest of a file; `algorithm` is a name that hashlib knows."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def copy(source: Path, target: Path) -> None:
    """Make `target` a file of its own, of the usual mode, with the bytes of `source`, as cheaply as the system can.

    Where the file system can, both share their blocks until one is written to; else the kernel copies, if it can.
    Raises OSError; what is then left of `target` is for the caller to remove.
    """
    with source.open("rb") as old, target.open("wb") as new:
        done = _copy_in_kernel(old.fileno(), new.fileno())
        old.seek(done)
        new.seek(done)
        shutil.copyfileobj(old, new, CHUNK)


def _copy_in_kernel(source: int, target: int) -> int:
    """Copy without the bytes passing through this process; the number of bytes from the first one on that got there.

    No error ends it: these calls fail for reasons of their own, other ones on each file system; that a disk is full or
    broken, copying the rest in the plain way finds out, too.
    """
    if fcntl and sys.platform == "linux":
        with contextlib.suppress(OSError):
            fcntl.ioctl(target, _FICLONE, source)
            return os.fstat(target).st_size
    done = 0
    if hasattr(os, "copy_file_range"):
        with contextlib.suppress(OSError):
            while count := os.copy_file_range(source, target, _KERNEL_CHUNK, done, done):
                done += count
    return done


def temporary_beside(target: Path) -> Path:
    """A fresh hidden name in the folder of `target`, so that replacing never crosses a file system."""
    return target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")


def sync(path: Path) -> None:
    """Make a file or, where the system can, a folder's listing durable."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        if path.is_dir():
            return  # Windows opens no folders
        raise
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give a temporary path beside `target`; move it into place when the block ends without an error.

    The old file stays as it was until the new one is whole and on disk.
    """
    made: list[Path] = []
    temporary = temporary_beside(target)
    try:
        make_folder(target.parent, made)
        yield temporary
        with disk_errors("Writing", target):
            sync(temporary)
            temporary.replace(target)
            sync(target.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        remove_folders(made)
        raise


def make_folder(folder: Path, made: list[Path]) -> None:
    """Create a folder, and add to `made` what had to be created. Raises DiskError."""
    with disk_errors("Creating the folder", folder):
        made += [f for f in (folder, *folder.parents) if not f.exists()]
        folder.mkdir(parents=True, exist_ok=True)


def remove_folders(made: list[Path]) -> None:
    """Remove the folders of `made` that are empty, the deepest first."""
    for folder in sorted(set(made), key=lambda f: len(f.parts), reverse=True):
        # Not made after all, removed by someone, or in use by someone else by now.
        with contextlib.suppress(OSError):
            folder.rmdir()


class Staging:
    """Several files that appear together: written under hidden names beside their targets, moved by `publish`.

    As a context manager it removes whatever was not published, the folders it made for it included.

    A pair of files cannot be replaced in one step. `publish` therefore first moves the old files aside, those that
    `lead` (the .xml that makes a folder an IR) first, and puts the leading new ones in place last: whoever looks in
    between finds no model rather than one made of two halves. If a step fails, the steps before it are undone.
    """

    def __init__(self) -> None:
        self._moves: list[tuple[Path, Path, bool]] = []
        self._folders: list[Path] = []

    def file(self, target: Path, *, leads: bool = False) -> Path:
        """The hidden path to write `target` to."""
        return self.files({target: leads})[target]

    def files(self, targets: dict[Path, bool]) -> dict[Path, Path]:
        """Hidden paths for targets of one folder that share a stem, as .xml and .bin do."""
        tag = secrets.token_hex(6)
        hidden = {target: target.with_name(f".{tag}.{target.name}") for target in targets}
        for target in targets:
            make_folder(target.parent, self._folders)
        self._moves += [(hidden[target], target, leads) for target, leads in targets.items()]
        return hidden

    def publish(self) -> None:
        """Move every file to its target.

        Raises:
            DiskError: a step failed; the old files are in place again, or the error says where they are.
        """
        last = sorted(self._moves, key=lambda move: move[2])
        for hidden, target, _ in last:
            with disk_errors("Writing", target):
                sync(hidden)
                if target.is_dir():
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        aside = {target: temporary_beside(target) for _, target, _ in reversed(last) if target.exists()}
        done: list[tuple[Path, Path]] = []
        try:
            for target, old in aside.items():
                with contextlib.suppress(FileNotFoundError):  # another run that publishes the same has just moved it
                    target.replace(old)
                    done.append((target, old))
            for hidden, target, _ in last:
                hidden.replace(target)
                done.append((hidden, target))
        except BaseException as error:  # a signal, too
            stuck = _undo(done)
            if not isinstance(error, OSError):
                raise
            failure = DiskError(f"Replacing {target} failed: {error.strerror}", hint=UNCHANGED)
            if stuck:
                failure.hint = f"What was there before could not be put back; it lies in {', '.join(map(str, stuck))}."
            raise failure from error
        for old in aside.values():
            with contextlib.suppress(OSError):  # the new ones are in place; an old one left over does no harm
                old.unlink()
        for folder in {target.parent for _, target, _ in last}:
            with disk_errors("Writing", folder):
                sync(folder)
        self._moves.clear()
        self._folders.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        for hidden, _, _ in self._moves:
            with contextlib.suppress(OSError):
                hidden.unlink()
        remove_folders(self._folders)


def _undo(moves: list[tuple[Path, Path]]) -> list[Path]:
    """Move each file back, the last one first.

    The first that cannot be ends it: to go on would put half of a pair in place. Returns what was not moved back.
    """
    left = [target for _, target in moves]
    for source, target in reversed(moves):
        try:
            target.replace(source)
        except OSError:
            break
        left.pop()
    return left


def room_for(folder: Path, size: int) -> None:
    """Check that the disk of `folder`, which need not exist yet, has `size` bytes free.

    Raises:
        DiskError: it has not.
    """
    _, free = disk_of(folder)
    if free < size:
        raise DiskError(
            f"{size / 1e6:,.1f} MB are needed in {folder} and {free / 1e6:,.1f} MB are free",
            hint="Make room there, or choose another folder with -o/--output_dir.",
        )


def disk_of(folder: Path) -> tuple[int, int]:
    """The number of the disk that `folder`, which need not exist yet, lies on, and the bytes that are free there."""
    with disk_errors("Looking at", folder):
        for existing in (folder.absolute(), *folder.absolute().parents):
            # Another run may remove what it made at any moment.
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                return existing.stat().st_dev, shutil.disk_usage(existing).free
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
