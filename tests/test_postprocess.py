"""Archives unpacked and text replaced as Open Model Zoo's descriptors ask for: what comes out, and what is refused."""

import bz2
import errno
import gzip
import io
import lzma
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import textwrap
import time
import zipfile
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest

from omz_tools.descriptors import descriptor, reading
from omz_tools.descriptors.descriptor import Pattern, RegexReplace, Step, UnpackArchive, fetched_as
from omz_tools.download import postprocess
from omz_tools.download.postprocess import PostprocessingError
from omz_tools.errors import DescriptorError, DiskError, MissingError, OmzError
from omz_tools.system import files
from omz_tools.system.files import RelativeName

HEAD = "description: A model\ntask_type: detection\nlicense: https://example.org/license\n"
ENTRY = f"- {{name: NAME, size: 1, checksum: {'0123456789abcdef' * 6}, source: https://example.org/file}}\n"

Write = Callable[[Path], None]


def unpack(file: str, format: str = "zip") -> UnpackArchive:
    return UnpackArchive(format, RelativeName.parse(file))


def replace(file: str, pattern: str, replacement: str, count: int = 0) -> RegexReplace:
    return RegexReplace(RelativeName.parse(file), Pattern.parse(pattern), replacement, count)


def write_zip(path: Path, members: dict[str, bytes | str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def write_tar(path: Path, *members: tuple[tarfile.TarInfo | str, bytes], mode: str = "w:gz") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for info, content in members:
            info = tarfile.TarInfo(info) if isinstance(info, str) else info
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def apply(folder: Path, *steps: Step, pinned: tuple[str, ...] = ()) -> list[str]:
    """Do the steps, and return what was said."""
    said: list[str] = []
    postprocess.apply(steps, folder, said.append, [RelativeName(name) for name in pinned])
    return said


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`, hidden ones and links too, with its bytes; empty folders with a slash."""
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = b"-> " + os.fsencode(path.readlink())
        elif path.is_file():
            found[name] = path.read_bytes()
        elif not any(path.iterdir()):
            found[f"{name}/"] = b""
    return found


def moments(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*")}


def refused(folder: Path, *steps: Step, pinned: tuple[str, ...] = ()) -> PostprocessingError:
    """The error of the steps, which leave everything as it was, around the folder too."""
    before = contents(folder.parent)
    with pytest.raises(PostprocessingError) as caught:
        apply(folder, *steps, pinned=pinned)
    assert contents(folder.parent) == before
    assert caught.value.hint
    return caught.value


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "public" / "net"
    folder.mkdir(parents=True)
    return folder


# ---- Text


def test_the_original_of_a_changed_file_is_kept_beside_it(folder: Path) -> None:
    steps = (replace("net/head.py", "from loguru import logger", r"# \g<0>"),)
    assert fetched_as(steps, "net/head.py") == "net/head.py.orig"
    assert fetched_as(steps, "net/tail.py") == "net/tail.py"
    (folder / "net").mkdir()
    (folder / "net/head.py.orig").write_text("from loguru import logger\nlogger\n")
    apply(folder, *steps)
    assert contents(folder) == {
        "net/head.py": b"# from loguru import logger\nlogger\n",
        "net/head.py.orig": b"from loguru import logger\nlogger\n",
    }


def test_all_replacements_of_a_file_are_done_in_their_order(folder: Path) -> None:
    (folder / "a.py.orig").write_text("import one, two")
    (folder / "b.py.orig").write_text("import one")
    said = apply(
        folder,
        replace("a.py", "one", "two"),
        replace("b.py", "one", "1"),
        replace("a.py", "two", "three"),
        replace("a.py", "(t)hree", r"\1", count=2),
    )
    assert (folder / "a.py").read_text() == "import t, t"
    assert (folder / "b.py").read_text() == "import 1"
    assert said == [
        "... occurrences replaced in a.py: 5",
        "... occurrences replaced in b.py: 1",
        "... files written: 2",
    ]


def test_bytes_that_no_pattern_means_stay_as_they_are(folder: Path) -> None:
    (folder / "a.py.orig").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\nn\xc3\xa9 \x0c\xe2\x80\xa8 \x00")
    apply(folder, replace("a.py", "three", "3"))
    assert (folder / "a.py").read_bytes() == b"\xef\xbb\xbfone\r\ntwo\r3\nn\xc3\xa9 \x0c\xe2\x80\xa8 \x00"


def test_a_second_run_writes_nothing_and_says_so(folder: Path) -> None:
    (folder / "a.py.orig").write_text("one")
    apply(folder, replace("a.py", "one", "two"))
    before = moments(folder)
    assert apply(folder, replace("a.py", "one", "two"))[-1] == "... all of it was there already"
    assert moments(folder) == before


def test_what_was_changed_by_hand_is_made_again(folder: Path) -> None:
    (folder / "a.py.orig").write_text("one")
    (folder / "a.py").write_text("by hand")
    apply(folder, replace("a.py", "one", "two"))
    assert (folder / "a.py").read_text() == "two"


def test_a_pattern_that_occurs_nowhere_is_an_error_that_shows_it(folder: Path) -> None:
    (folder / "a.py.orig").write_text("one")
    (folder / "b.py.orig").write_text("one")
    error = refused(folder, replace("a.py", "one", "two"), replace("b.py", "thr[e]+", ""))
    assert error.what == "Invalid pattern: no occurrences found"
    assert error.where == (f"file {folder / 'b.py'}",)
    assert "'thr[e]+'" in error.hint


@pytest.mark.parametrize("count", [1, 2])
def test_a_count_is_how_many_are_replaced(folder: Path, count: int) -> None:
    (folder / "a.py.orig").write_text("one one one")
    apply(folder, replace("a.py", "one", "1", count))
    assert (folder / "a.py").read_text() == " ".join(["1"] * count + ["one"] * (3 - count))


def test_fewer_occurrences_than_the_count_are_an_error(folder: Path) -> None:
    (folder / "a.py.orig").write_text("one one")
    error = refused(folder, replace("a.py", "one", "1", 3))
    assert error.what == "Invalid pattern: expected at least 3 occurrences, but only 2 found"


def test_text_that_is_not_utf_8_is_an_error(folder: Path) -> None:
    (folder / "a.py.orig").write_bytes(b"one \xff")
    assert "not UTF-8" in refused(folder, replace("a.py", "one", "two")).what
    (folder / "a.py.orig").write_bytes(b"one")
    assert "not UTF-8" in refused(folder, replace("a.py", "one", "\ud800")).what


@pytest.mark.parametrize("step", [replace("net/a.py", "one", "two"), unpack("net/a.zip")], ids=["text", "archive"])
def test_a_file_that_is_not_there_is_named(folder: Path, step: Step) -> None:
    with pytest.raises(MissingError, match=rf"{step.file}.* is not there") as caught:
        apply(folder, step)
    assert caught.value.hint
    assert contents(folder) == {}


# ---- Archives


def test_an_archive_is_unpacked_into_its_own_folder(folder: Path) -> None:
    write_zip(folder / "lib/net.whl", {"net/__init__.py": "", "net/data/a.bin": bytes(1000), "empty/": ""})
    assert apply(folder, unpack("lib/net.whl")) == ["... files in lib/net.whl: 2, 1.0 kB", "... files written: 2"]
    assert contents(folder / "lib").keys() == {"net.whl", "net/__init__.py", "net/data/a.bin"}
    assert (folder / "lib/net/data/a.bin").read_bytes() == bytes(1000)


@pytest.mark.parametrize("format", ["tar", "gztar", "bztar", "xztar"])
@pytest.mark.parametrize("mode", ["w:", "w:gz", "w:bz2", "w:xz"])
def test_a_tar_archive_is_unpacked_however_it_is_compressed(folder: Path, format: str, mode: str) -> None:
    content = random.Random(2).randbytes(1_100_000)
    write_tar(
        folder / "net.nemo", (member("./", tarfile.DIRTYPE), b""), ("./.tmp/a.pt", content), ("b", b""), mode=mode
    )
    apply(folder, unpack("net.nemo", format))
    assert (folder / ".tmp/a.pt").read_bytes() == content
    assert (folder / "b").read_bytes() == b""


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_all_lengths_and_letters_arrive(folder: Path, format: int) -> None:
    names = ["é", "BZh", *("d" * length + "/" + "f" * length for length in (40, 90))]
    with tarfile.open(folder / "a.tar", "w:", format=format) as archive:
        for name in names:
            archive.addfile(member(name))
    apply(folder, unpack("a.tar", "tar"))
    assert contents(folder).keys() == {"a.tar", *names}


def test_text_that_comes_out_of_an_archive_can_be_changed(folder: Path) -> None:
    write_zip(folder / "net.whl", {"net/a.py": "import tqdm", "net/b.py": "import tqdm"})
    steps = (unpack("net.whl"), replace("net/a.py", "import", r"# \g<0>"))
    apply(folder, *steps)
    assert (folder / "net/a.py").read_text() == "# import tqdm"
    assert (folder / "net/a.py.orig").read_text() == (folder / "net/b.py").read_text() == "import tqdm"
    assert apply(folder, *steps)[-1] == "... all of it was there already"


def test_an_archive_in_an_archive_is_unpacked(folder: Path) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("a.py", "one")
    write_tar(folder / "outer.tar.gz", ("in/inner.zip", inner.getvalue()))
    apply(folder, unpack("outer.tar.gz", "gztar"), unpack("in/inner.zip"), replace("in/a.py", "one", "two"))
    assert (folder / "in/a.py").read_text() == "two"


def test_of_two_files_of_one_name_the_last_is_meant(folder: Path) -> None:
    link = member("f", tarfile.SYMTYPE, "h"), b""
    late = member("l", tarfile.SYMTYPE, "h"), b""
    write_tar(folder / "a.tar", ("l", b"1"), ("f", b"2"), link, ("h", b"other"), late, ("f", b"second"), mode="w:")
    write_zip(folder / "b.zip", {"g": "third"})
    write_zip(folder / "c.zip", {"g": "fourth"})
    steps = (unpack("a.tar", "tar"), unpack("b.zip"), unpack("c.zip"))
    for _ in range(2):
        assert apply(folder, *steps)[0] == "... files in a.tar: 3, 18 B"
        assert (folder / "l").read_bytes() == b"other"
        assert (folder / "f").read_bytes() == b"second"
        assert (folder / "g").read_bytes() == b"fourth"


def test_a_second_run_unpacks_nothing_that_is_right(folder: Path) -> None:
    write_tar(folder / "a.tar.gz", ("x", b"1" * 5_000_000), ("y", b"2"))
    write_zip(folder / "b.zip", {"z": "3"})
    steps = (unpack("a.tar.gz", "gztar"), unpack("b.zip"))
    apply(folder, *steps)
    before = moments(folder)
    assert apply(folder, *steps)[-1] == "... all of it was there already"
    assert moments(folder) == before


@pytest.mark.parametrize("at", [0, 1_500_000, 2_999_999])
def test_a_second_run_makes_good_what_is_damaged_or_missing(folder: Path, at: int) -> None:
    content = random.Random(3).randbytes(3_000_000)
    write_tar(folder / "a.tar.gz", ("x", content), ("y", content), ("z", b"z"))
    apply(folder, unpack("a.tar.gz", "gztar"))
    (folder / "x").write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    (folder / "y").unlink()
    (folder / "elsewhere").write_bytes(content)
    (folder / "y").symlink_to("elsewhere")
    (folder / "z").unlink()
    assert apply(folder, unpack("a.tar.gz", "gztar"))[-1] == "... files written: 3"
    assert (folder / "x").read_bytes() == (folder / "y").read_bytes() == content
    assert not (folder / "y").is_symlink()
    assert (folder / "z").read_bytes() == b"z"


def test_links_within_an_archive_become_files(folder: Path) -> None:
    write_tar(
        folder / "a.tar.gz",
        (member("lib/early", tarfile.SYMTYPE, "later"), b""),
        (member("lib/chain", tarfile.SYMTYPE, "../lib/early"), b""),
        ("./lib/later", b"content"),
        (member("hard", tarfile.LNKTYPE, "./lib/later"), b""),
    )
    said = apply(folder, unpack("a.tar.gz", "gztar"))
    assert said[0] == "... files in a.tar.gz: 4, 28 B"
    found = contents(folder)
    del found["a.tar.gz"]
    assert found == dict.fromkeys(("lib/early", "lib/chain", "lib/later", "hard"), b"content")
    assert apply(folder, unpack("a.tar.gz", "gztar"))[-1] == "... all of it was there already"


def test_links_in_a_zip_archive_become_files_too(folder: Path) -> None:
    link = zipfile.ZipInfo("lib/link")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr(link, "../file")
        archive.writestr("file", "content")
    apply(folder, unpack("a.zip"))
    assert not (folder / "lib/link").is_symlink()
    assert (folder / "lib/link").read_bytes() == b"content"


# ---- What is refused


BAD_NAMES = [
    "/etc/passwd",
    "../up",
    "a/../../up",
    "a/../b",
    "..",
    "a\\..\\b",
    "C:/a",
    "a//b",
    "a\0b",
    "CON",
    "a.",
    "\x1b[2J",
]


@pytest.mark.parametrize("below", ["", "lib/"], ids=["at the top", "in a folder"])
@pytest.mark.parametrize("name", BAD_NAMES)
def test_no_file_of_an_archive_may_leave_its_folder_or_have_a_name_unsafe_anywhere(
    folder: Path, name: str, below: str
) -> None:
    write_tar(folder / f"{below}a.tar", ("good", b"1"), (name, b"2"), mode="w:")
    if "\0" not in name:  # the name ends there
        assert "it holds" in refused(folder, unpack(f"{below}a.tar", "tar")).what
        write_zip(folder / f"{below}a.zip", {"good": "1", name: "2"})
        error = refused(folder, unpack(f"{below}a.zip"))
        assert "it holds" in error.what
        assert error.where == (f"archive {folder / below / 'a.zip'}",)
        assert "\x1b" not in str(error)


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        (tarfile.SYMTYPE, "/etc/passwd"),
        (tarfile.SYMTYPE, "../../outside"),
        (tarfile.SYMTYPE, "../lib/link"),
        (tarfile.SYMTYPE, "../lib"),
        (tarfile.SYMTYPE, "nowhere"),
        (tarfile.LNKTYPE, "/etc/passwd"),
        (tarfile.LNKTYPE, "../outside"),
        (tarfile.LNKTYPE, "pinned"),
    ],
)
def test_a_link_to_anything_but_a_file_of_the_archive_is_refused(folder: Path, kind: bytes, target: str) -> None:
    (folder.parent / "outside").write_text("secret")
    (folder / "pinned").write_text("not the archive's")
    write_tar(folder / "a.tar", (member("lib/link", kind, target), b""), ("lib/file", b"1"), mode="w:")
    assert re.search("leads to no file of it|it holds", refused(folder, unpack("a.tar", "tar")).what)


def test_files_cannot_be_written_through_a_link_of_the_archive(folder: Path) -> None:
    write_tar(
        folder / "a.tar", (member("out", tarfile.SYMTYPE, ".."), b""), ("out/escaped", b"1"), ("in", b"2"), mode="w:"
    )
    refused(folder, unpack("a.tar", "tar"))


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_devices_are_refused(folder: Path, kind: bytes) -> None:
    write_tar(folder / "a.tar", ("good", b"1"), (member("device", kind), b""), mode="w:")
    assert "'device' in it is neither a file nor a folder" in refused(folder, unpack("a.tar", "tar")).what
    special = zipfile.ZipInfo("device")
    special.create_system, special.external_attr = 3, (stat.S_IFIFO | 0o666) << 16
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr(special, "")
    assert "'device' in it is neither a file nor a folder" in refused(folder, unpack("a.zip")).what


@pytest.mark.parametrize("name", ["net/weights.bin", "NET/Weights.BIN", "a.py", "a.py.orig"])
def test_a_pinned_file_is_not_overwritten(folder: Path, name: str) -> None:
    write_zip(folder / "a.zip", {"good": "1", name: "2"})
    (folder / "net").mkdir()
    (folder / "net/weights.bin").write_text("pinned")
    (folder / "a.py.orig").write_text("pinned")
    steps = (unpack("a.zip"), replace("a.py", "pinned", "changed"))
    error = refused(folder, *steps, pinned=("a.zip", "net/weights.bin", "a.py"))
    assert f"{name!r} in it would replace a file that the descriptor pins" in error.what


def test_a_zip_bomb_is_an_error_before_it_fills_the_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postprocess, "LEAST_BOUND", 1 << 20)
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(20):
            archive.writestr(f"{number}", bytes(1_000_000))
    assert "out of proportion" in refused(folder, unpack("a.zip")).what
    write_tar(folder / "a.tar.gz", ("first", b"1"), ("second", bytes(20_000_000)))
    assert "out of proportion" in refused(folder, unpack("a.tar.gz", "gztar")).what


def test_links_count_as_what_they_lead_to(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postprocess, "LEAST_BOUND", 1 << 20)
    links = [(member(f"{number}", tarfile.LNKTYPE, "file"), b"") for number in range(300)]
    write_tar(folder / "a.tar.gz", ("file", random.Random(4).randbytes(10_000)), *links)
    assert "out of proportion" in refused(folder, unpack("a.tar.gz", "gztar")).what


def test_too_many_files_are_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postprocess, "MOST_FILES", 10)
    write_zip(folder / "a.zip", {f"{number}": "" for number in range(10)})
    apply(folder, unpack("a.zip"))
    write_zip(folder / "a.zip", {f"{number}": "" for number in range(11)})
    assert "more than 10 files" in refused(folder, unpack("a.zip")).what


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_of_a_tar_archive_as_long_as_memory_is_refused(folder: Path, kind: bytes) -> None:
    info = member("long", kind)
    info.size = 1 << 30
    with gzip.open(folder / "a.tar.gz", "wb", 1) as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        for _ in range(128):
            file.write(bytes(1 << 20))
    assert "a header in it is too long" in refused(folder, unpack("a.tar.gz", "gztar")).what


def test_headers_of_a_tar_archive_count_as_what_it_holds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postprocess, "LEAST_BOUND", 1 << 20)
    with tarfile.open(folder / "a.tar.gz", "w:gz", format=tarfile.PAX_FORMAT) as archive:
        for number in range(20):
            info = member(f"{number}")
            info.pax_headers = {"comment": "x" * 100_000}
            archive.addfile(info)
    assert "out of proportion" in refused(folder, unpack("a.tar.gz", "gztar")).what


def test_a_disk_without_room_is_an_error_that_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")(10**9, 10**9 - 1000, 1000)
    write_zip(folder / "a.zip", {"small": "1", "large": bytes(1001)})
    before = contents(folder)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DiskError, match="are needed in"):
        apply(folder, unpack("a.zip"))
    assert contents(folder) == before


def test_a_disk_that_is_full_all_the_same_is_not_called_a_damaged_archive(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: object, target: object, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    (folder / "a.zip").write_bytes(b"PK\x05\x06" + bytes(18))
    apply(folder, unpack("a.zip"))  # nothing is written, so nothing is wrong
    write_tar(folder / "a.tar", ("f", b"1"), mode="w:")
    before = contents(folder)
    with pytest.raises(DiskError, match=r"a\.tar failed: No space left"):
        apply(folder, unpack("a.tar", "tar"))
    assert contents(folder) == before


# ---- Damage


@pytest.mark.parametrize("format", ["zip", "tar", "gztar", "bztar", "xztar"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no archive",
        bytes(5000),
        b"PK\x03\x04",
        b"\x1f\x8b\x08",
        b"BZh9",
        b"\xfd7zXZ\x00",
        b"\x1f\x8b\x01 no",
        b"BZh9 no" * 9,
    ],
)
def test_a_file_that_is_no_archive_is_an_error(folder: Path, format: str, content: bytes) -> None:
    (folder / "a").write_bytes(content)
    if content == bytes(5000) and format != "zip":
        assert apply(folder, unpack("a", format))[0] == "... files in a: 0, 0 B"  # an empty tar archive is just that
    else:
        assert f"it cannot be read as {format}" in refused(folder, unpack("a", format)).what


def test_an_encrypted_archive_is_an_error(folder: Path) -> None:
    write_zip(folder / "a.zip", {"secret": "1"})
    data = bytearray((folder / "a.zip").read_bytes())
    for start, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(start) + offset] |= 1
    (folder / "a.zip").write_bytes(data)
    assert "encrypted" in refused(folder, unpack("a.zip")).what


@pytest.mark.parametrize("format", ["zip", "tar", "gztar", "bztar", "xztar"])
def test_no_damage_ends_in_anything_but_an_error_that_leaves_nothing_behind(folder: Path, format: str) -> None:
    numbers = random.Random(5)
    whole = io.BytesIO()
    if format == "zip":
        with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("f", numbers.randbytes(300))
            archive.writestr("d/é", "x" * 900)
    else:
        with tarfile.open(fileobj=whole, mode="w:") as archive:
            for info in (member("f"), member("l", tarfile.SYMTYPE, "f"), member("d/" + "é" * 120)):
                archive.addfile(info)
    compress = {"gztar": gzip.compress, "bztar": bz2.compress, "xztar": lzma.compress}.get(format, bytes)
    good = compress(whole.getvalue())
    outcomes = set()
    for _ in range(150):
        data = bytearray(good)
        for _ in range(numbers.choice([1, 1, 3])):
            data[numbers.randrange(len(data))] = numbers.randrange(256)
        if numbers.random() < 0.2:
            del data[numbers.randrange(len(data)) :]
        (folder / "a").write_bytes(data)
        hint = None
        try:
            apply(folder, unpack("a", format))
        except OmzError as error:
            hint = error.hint
        outcomes.add("unpacked" if hint is None else "refused")
        if hint is not None:
            assert hint
            assert contents(folder) == {"a": bytes(data)}
        shutil.rmtree(folder)
        folder.mkdir()
    assert "refused" in outcomes


def test_an_error_in_a_later_step_leaves_all_as_it_was(folder: Path) -> None:
    write_zip(folder / "a.zip", {"new": "1", "old": "changed", "deep/er/new": "2"})
    (folder / "old").write_text("before")
    refused(folder, unpack("a.zip"), replace("new", "nowhere", ""))


def test_a_kill_in_the_middle_leaves_whole_files_that_the_next_run_completes(folder: Path) -> None:
    numbers = random.Random(6)
    members = {f"d{n % 7}/f{n}": numbers.randbytes(1000) for n in range(300)}
    write_zip(folder / "a.zip", members)
    script = """
        import sys
        from pathlib import Path
        from omz_tools.download import postprocess
        from omz_tools.descriptors.descriptor import UnpackArchive
        print("ready", flush=True)
        postprocess.apply([UnpackArchive("zip", "a.zip")], Path(sys.argv[1]), lambda text: None)
    """
    began = time.monotonic()
    apply(folder, unpack("a.zip"))
    whole = time.monotonic() - began
    for share in (0.4, 0.7, 0.9):
        for name in members:
            (folder / name).unlink(missing_ok=True)
        command = [sys.executable, "-c", textwrap.dedent(script), str(folder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout
            process.stdout.readline()
            time.sleep(whole * share)
            process.send_signal(signal.SIGKILL)
        found = {name: (folder / name).read_bytes() for name in members if (folder / name).exists()}
        assert all(members[name] == content for name, content in found.items())
    apply(folder, unpack("a.zip"))
    assert {name: (folder / name).read_bytes() for name in members} == members


# ---- Descriptors


def load(tmp_path: Path, steps: str, names: tuple[str, ...] = ()) -> descriptor.Descriptor:
    entries = "".join("  " + ENTRY.replace("NAME", name) for name in names)
    text = f"{HEAD}files:\n{entries}postprocessing:\n{steps}" if names else f"{HEAD}postprocessing:\n{steps}"
    (tmp_path / "model.yml").write_text(text)
    return reading.load(tmp_path / "model.yml")


def mistakes(tmp_path: Path, steps: str, names: tuple[str, ...] = ()) -> list[str]:
    """Each mistake as "line:column: text"; steps begin in line 5, or after the files."""
    with pytest.raises(DescriptorError) as caught:
        load(tmp_path, steps, names)
    return [line.removeprefix(f"{tmp_path / 'model.yml'}:") for line in caught.value.what.split("\n")[1:]]


def test_steps_are_read_as_open_model_zoo_writes_them(tmp_path: Path) -> None:
    steps = """\
  - $type: unpack_archive
    format: gztar
    file: models/net.nemo
  - $type: regex_replace
    file: models/a.py
    pattern: 'from (?!x)'
    replacement: '# \\g<0>'
  - {$type: regex_replace, file: b.py, pattern: Repository, replacement: None, count: 2}
"""
    assert load(tmp_path, steps).postprocessing == (
        unpack("models/net.nemo", "gztar"),
        replace("models/a.py", "from (?!x)", r"# \g<0>"),
        replace("b.py", "Repository", "None", 2),
    )


@pytest.mark.parametrize(
    ("step", "at", "said"),
    [
        (
            "$type: regex_replace, file: a, pattern: '(', replacement: b",
            "'('",
            "'(' is no regular expression: missing )",
        ),
        ("$type: regex_replace, file: a, pattern: 'x{9999999999}', replacement: b", "'x{", "is no regular expression"),
        (
            "$type: regex_replace, file: a, pattern: a, replacement: '\\g<2>'",
            "'\\g",
            "replace the pattern: invalid group",
        ),
        (
            "$type: regex_replace, file: a, pattern: a, replacement: '\\g<b>'",
            "'\\g",
            "replace the pattern: unknown group",
        ),
        ("$type: regex_replace, file: a, pattern: a, replacement: b, count: -1", "-1", "`int` >= 0"),
        ("$type: regex_replace, file: ../a, pattern: a, replacement: b", "../a", "'..'"),
        ("$type: regex_replace, file: a, pattern: a", "", "the key 'replacement' is missing"),
        ("$type: unpack_archive, file: a", "", "the key 'format' is missing"),
        ("$type: unpack_archive, file: a, format: rar", "rar", "must be one of zip, tar, gztar, bztar, xztar"),
        ("$type: unpack_archive, file: /a, format: zip", "/a", "'/a' is not a relative path"),
        ("$type: run_script, file: a", "run_script", "'$type' must be one of regex_replace, unpack_archive"),
    ],
)
def test_a_mistake_in_a_step_is_reported_with_line_and_column(tmp_path: Path, step: str, at: str, said: str) -> None:
    line = f"  - {{{step}}}"
    [mistake] = mistakes(tmp_path, f"{line}\n")
    assert mistake.startswith(f"5:{line.index(at or '{') + 1}: ")
    assert said in mistake


def test_a_step_that_is_no_mapping_is_a_mistake(tmp_path: Path) -> None:
    assert mistakes(tmp_path, "  - unpack\n") == ["5:5: a mapping is needed here, not 'unpack'"]


def test_a_file_under_the_name_of_a_kept_original_is_a_mistake(tmp_path: Path) -> None:
    steps = "  - {$type: regex_replace, file: a.py, pattern: a, replacement: b}\n"
    [mistake] = mistakes(tmp_path, steps, ("a.py", "A.py.ORIG"))
    assert mistake.startswith("6:12: under this name the original of 'a.py' is kept")
