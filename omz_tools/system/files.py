"""Names that are safe on every file system, and files that appear whole or not at all."""

import contextlib
import errno
import fnmatch
import hashlib
import os
import secrets
import shutil
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from omz_tools.errors import DiskError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

CHUNK = 1 << 20
# Files that are hashed at a time: more would wait for each other.
PROCESSORS = os.cpu_count() or 1

# Of linux/fs.h; Python has it since 3.13. Where the number is another one, the call fails and the next way is taken.
_FICLONE = 0x40049409
# Of one call to the kernel, so that a signal does not wait for more.
_KERNEL_CHUNK = 64 << 20

UNCHANGED = (
    "Make room there, or choose a folder you may write to with -o/--output_dir. What was there before is unchanged."
)
_OTHER_KIND = (
    "A folder lies where a file is to be, or a file where a folder is to be. Move it away, or choose another folder "
    "with -o/--output_dir. What was there before is unchanged."
)
_NO_NAME = "Run it in a UTF-8 locale, such as LC_ALL=C.UTF-8, or with PYTHONUTF8=1. Nothing was changed."

# Device names of Windows: a file called so cannot be created there, whatever its extension.
_DEVICES = {"con", "prn", "aux", "nul", "conin$", "conout$", "clock$"}
_DEVICES |= {port + number for port in ("com", "lpt") for number in "123456789¹²³"}
_FORBIDDEN = frozenset('<>:"|?*\\')
# Unicode's categories of what is not to be seen, breaks a line, or turns what follows around; and halves of characters.
_INVISIBLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}


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
            if any(c in _FORBIDDEN or unicodedata.category(c) in _INVISIBLE for c in part):
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
    """Turn an OSError into a DiskError that says what was being done, where, and what to do.

    So is a name turned that the encoding of the file system has no way to write.
    """
    try:
        yield
    except BrokenPipeError:
        raise  # whoever reads our output has gone; no disk's fault
    except OSError as error:
        reason = error.strerror or str(error)
        hint = _OTHER_KIND if error.errno in (errno.EISDIR, errno.ENOTDIR, errno.EEXIST) else UNCHANGED
        raise DiskError(f"{doing} {path} failed: {reason}", hint=hint) from error
    except UnicodeEncodeError as error:
        raise DiskError(
            f"{doing} {path} failed: file names here are in {error.encoding}, which cannot express it", hint=_NO_NAME
        ) from error


def below(folder: Path, names: str) -> list[Path]:
    """The files in a folder and below it whose names match a pattern, in order; hidden ones are left out.

    Others may be at work there: what vanishes while one looks was not there.
    """
    found = []
    for home, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(home, name) for name in fnmatch.filter(files, names) if not name.startswith(".")]
    return sorted(found)


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
