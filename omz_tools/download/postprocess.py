"""What descriptors of Open Model Zoo ask for after the download: archives unpacked, text replaced.

No record is kept of what was done. Each run reads the archives and the original texts, and compares what comes out with
what is there: so a second run writes nothing, one after a kill or a change by hand makes good, and neither has to trust
anything. What a run writes appears at its end, all of it together.
"""

import bz2
import errno
import gzip
import io
import lzma
import posixpath
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from omz_tools.descriptors.descriptor import RegexReplace, Step, UnpackArchive, fetched_as
from omz_tools.errors import MissingError, OmzError, context
from omz_tools.progress.reporting import size_text
from omz_tools.system.files import CHUNK, RelativeName, disk_errors, room_for
from omz_tools.system.staging import Staging

# Of all that one archive holds: so many bytes, or so many times its own size if that is more, and so many files.
LEAST_BOUND = 1 << 30
TIMES_ITS_SIZE = 100
MOST_FILES = 100_000

# A header of a tar archive has a length of its own, which is read into memory at once.
_LONGEST_READ = 16 << 20
# As systems do, for links that lead to links.
_MOST_LINKS = 40
_COMPRESSIONS: dict[bytes, Callable[[Path], io.BufferedIOBase]] = {
    b"\x1f\x8b": gzip.GzipFile,
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ": lzma.LZMAFile,
}
# What the libraries that read archives raise for bytes that are none; besides, OSError without a number.
_FAULTS = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error,
    EOFError, ValueError, LookupError, RuntimeError, OverflowError,
)  # fmt: skip


class PostprocessingError(OmzError):
    """An archive cannot be unpacked, or not safely; or a replacement does not fit its text."""

    code = "postprocessing"


def apply(
    steps: Sequence[Step], folder: Path, note: Callable[[str], None], pinned: Collection[RelativeName] = ()
) -> None:
    """Do what the steps say: unpack all archives in their order, then replace in each text what is to be replaced.

    Args:
        steps: of the descriptor.
        folder: where the model's files are, each under the name that `fetched_as` gives it.
        note: called with lines for the user.
        pinned: the names of the model's files, which no archive may overwrite.

    Raises:
        PostprocessingError: an archive is damaged or may not be unpacked, or a pattern does not fit its text.
        MissingError: a file that a step needs is not there.
        DiskError: the disk is full or read-only. In all cases what was there before is unchanged.
    """
    replacements = [step for step in steps if isinstance(step, RegexReplace)]
    with Staging(folder) as staging:
        tree = _Tree(folder, staging)
        kept = {name.folded for name in (*pinned, *(RelativeName(f"{step.file}.orig") for step in replacements))}
        for step in steps:
            if isinstance(step, UnpackArchive):
                with context(f"archive {folder / step.file}"):
                    note(_unpack(step, steps, tree, kept))
        for file in dict.fromkeys(step.file for step in replacements):
            with context(f"file {folder / file}"):
                note(_replace(file, [step for step in replacements if step.file == file], tree))
        staging.publish()
    note(f"... files written: {tree.written:,}" if tree.written else "... all of it was there already")


class _Tree:
    """A folder as it will be: what is there, and what waits to take its place."""

    def __init__(self, folder: Path, staging: Staging) -> None:
        self.folder = folder
        self._staging = staging
        self._staged: dict[str, Path] = {}

    @property
    def written(self) -> int:
        return len(self._staged)

    def path(self, name: str) -> Path:
        """Where the bytes of a file lie. Raises MissingError."""
        path = self._staged.get(name, self.folder / name)
        with disk_errors("Reading", path):
            if not path.is_file():
                raise MissingError(
                    f"{self.folder / name} is not there",
                    hint="Postprocessing needs it: it must be a file of the model, or come out of an archive.",
                )
        return path

    def put(self, name: str, size: int, stream: IO[bytes]) -> None:
        """Make `name` a file of the `size` bytes that a stream gives, unless it is that already."""
        target = self.folder / name
        same, chunk = 0, b""
        if name not in self._staged and not target.is_symlink() and target.is_file() and target.stat().st_size == size:
            with target.open("rb") as old:
                while (chunk := stream.read(CHUNK)) and chunk == old.read(len(chunk)):
                    same += len(chunk)
            if same == size:
                return
        room_for(self.folder, size)
        hidden = self._staged.get(name) or self._staging.file(target)
        self._staged[name] = hidden
        if same:
            shutil.copyfile(target, hidden)
        with hidden.open("r+b" if same else "wb") as new:
            new.seek(same)
            new.write(chunk)
            shutil.copyfileobj(stream, new, CHUNK)


def _replace(file: RelativeName, steps: list[RegexReplace], tree: _Tree) -> str:
    """Apply all replacements to the original text of a file; returns a line for the user."""
    original, replaced = tree.path(f"{file}.orig"), 0
    with disk_errors("Reading", original):
        data = original.read_bytes()
    try:
        text = data.decode("utf-8")
        for step in steps:
            text, number = re.subn(step.pattern, step.replacement, text, count=step.count)
            _check_number(step, number)
            replaced += number
        data = text.encode("utf-8")
    except UnicodeError as error:
        raise PostprocessingError(
            f"it is not UTF-8 text: {error}", hint="Text can be replaced in UTF-8 files alone; correct the descriptor."
        ) from None
    with disk_errors("Writing", tree.folder / file):
        tree.put(file, len(data), io.BytesIO(data))
    return f"... occurrences replaced in {file}: {replaced:,}"


def _check_number(step: RegexReplace, number: int) -> None:
    what = "no occurrences found"
    if number:
        what = f"expected at least {step.count} occurrences, but only {number} found"
    if not number or number < step.count:
        raise PostprocessingError(
            f"Invalid pattern: {what}",
            hint=f"The descriptor does not fit this file. Its pattern is {step.pattern!r:.500}.",
        )


@dataclass(frozen=True)
class _Member:
    """A file in an archive, or a link.

    Attributes:
        name: as the archive has it.
        size: bytes; 0 for a link.
        stream: its bytes, to be read before the next member is asked for.
        link: of a link, the name that it leads to, as the archive would have it; else empty.
    """

    name: str
    size: int
    stream: IO[bytes]
    link: str = ""


def _unpack(step: UnpackArchive, steps: Sequence[Step], tree: _Tree, kept: set[str]) -> str:
    """Put the files of an archive into the tree; returns a line for the user.

    A link to a file of the archive becomes a copy of it: no later step, and no library, has to beware of links.
    """
    path = tree.path(fetched_as(steps, step.file))
    files: dict[RelativeName, int] = {}
    links: dict[RelativeName, RelativeName] = {}
    with disk_errors("Unpacking", path), _faults(step.format):
        bounds = _Bounds(max(LEAST_BOUND, TIMES_ITS_SIZE * path.stat().st_size))
        for member in _of_zip(path) if step.format == "zip" else _of_tar(path, bounds.size):
            name = _name(step, member.name)
            if name.folded in kept:
                raise _refused(f"{member.name!r:.200} in it would replace a file that the descriptor pins")
            bounds.count(member.size)
            # Of two members with one name the last is meant.
            files.pop(name, None)
            links.pop(name, None)
            if member.link:
                links[name] = _name(step, member.link)
            else:
                files[name] = member.size
                tree.put(fetched_as(steps, name), member.size, member.stream)
        for name, target in links.items():
            for _ in range(_MOST_LINKS):
                target = links.get(target, target)
            if target not in files:
                raise _refused(f"the link {name!r:.200} in it leads to no file of it")
            bounds.count(files[target])
            with tree.path(fetched_as(steps, target)).open("rb") as stream:
                tree.put(fetched_as(steps, name), files[target], stream)
    return f"... files in {step.file}: {len(files) + len(links):,}, {size_text(bounds.held)}"


class _Bounds:
    """Counts what an archive holds, up to `size` bytes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.held = 0
        self._files = 0

    def count(self, size: int) -> None:
        self.held += size
        self._files += 1
        if self.held > self.size:
            raise _out_of_proportion(self.size)
        if self._files > MOST_FILES:
            raise _refused(f"it holds more than {MOST_FILES:,} files")


def _name(step: UnpackArchive, text: str) -> RelativeName:
    """The name, below the model's folder, of what an archive calls so."""
    while text.startswith("./"):
        text = text[2:]
    try:
        return RelativeName.parse(posixpath.join(posixpath.dirname(step.file), text))
    except ValueError as error:
        raise _refused(f"it holds {text!r:.200}: {error}") from None


def _of_zip(path: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)  # 0 if it was made where there are no links
            if info.is_dir():
                continue
            if kind not in (0, stat.S_IFREG, stat.S_IFLNK):
                raise _refused(f"{info.filename!r:.200} in it is neither a file nor a folder")
            with archive.open(info) as stream:
                if kind == stat.S_IFLNK:
                    yield _link(info.filename, stream.read(CHUNK).decode())
                else:
                    yield _Member(info.filename, info.file_size, stream)


def _of_tar(path: Path, most: int) -> Iterator[_Member]:
    with _decompressed(path) as stream, tarfile.open(fileobj=_Measured(stream, most), mode="r:") as archive:
        for info in archive:
            if info.issym():
                yield _link(info.name, info.linkname)
            elif info.islnk():
                yield _Member(info.name, 0, io.BytesIO(), info.linkname)
            elif content := archive.extractfile(info):
                yield _Member(info.name, info.size, content)
            elif not info.isdir():
                raise _refused(f"{info.name!r:.200} in it is neither a file nor a folder")


def _link(name: str, target: str) -> _Member:
    """A link whose target is relative to its own folder."""
    return _Member(name, 0, io.BytesIO(), posixpath.normpath(posixpath.join(posixpath.dirname(name), target)))


def _decompressed(path: Path) -> io.BufferedIOBase:
    """The tar archive in a file, however it is compressed.

    As in the unpacker that Open Model Zoo uses, the bytes decide, whichever of the tar formats the descriptor names.
    """
    with path.open("rb") as file:
        head = file.read(262)
    if not head.endswith(b"ustar"):
        for magic, opened in _COMPRESSIONS.items():
            if head.startswith(magic):
                return opened(path)
    return path.open("rb")


class _Measured(io.RawIOBase):
    """The bytes of a tar archive, up to a bound that its headers count towards, too."""

    def __init__(self, stream: io.BufferedIOBase, most: int) -> None:
        self._stream, self._most = stream, most

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _LONGEST_READ:
            raise _refused("a header in it is too long")
        if self.tell() + size > self._most:
            raise _out_of_proportion(self._most)
        return self._stream.read(size)

    def seek(self, position: int, whence: int = 0) -> int:
        return self._stream.seek(position, whence)

    def tell(self) -> int:
        return self._stream.tell()


@contextmanager
def _faults(format: str) -> Iterator[None]:
    """Turn what the libraries raise for a damaged archive into a PostprocessingError."""
    try:
        yield
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # a place before the first byte, by what the archive says
            raise  # a disk's fault
        raise _damaged(format, error) from error
    except _FAULTS as error:
        raise _damaged(format, error) from error


def _damaged(format: str, error: Exception) -> PostprocessingError:
    return PostprocessingError(
        f"it cannot be read as {format}: {error or type(error).__name__}",
        hint="It is another kind of archive than the descriptor says, or its publisher damaged it.",
    )


def _refused(why: str) -> PostprocessingError:
    return PostprocessingError(f"{why}; it was not unpacked", hint="Do not use this archive before you looked into it.")


def _out_of_proportion(most: int) -> PostprocessingError:
    return _refused(f"it holds more than {size_text(most)}, which is out of proportion to its own size")
