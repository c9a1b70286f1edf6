"""Files appear whole or not at all, and nothing is left behind."""

import errno
import hashlib
import os
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from omz_tools.errors import DiskError, OmzError, StoppedError
from omz_tools.system import files
from omz_tools.system.files import RelativeName, disk_errors, replacing, room_for

FULL = OSError(errno.ENOSPC, "No space left on device")


def contents(folder: Path) -> dict[str, str]:
    """Every file below `folder`, hidden ones too, with its text; empty folders with a slash."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            found[path.relative_to(folder).as_posix()] = path.read_text()
        elif not any(path.iterdir()):
            found[f"{path.relative_to(folder).as_posix()}/"] = ""
    return found


def fail_for(monkeypatch: pytest.MonkeyPatch, method: str, fails: Callable[[Path], bool]) -> None:
    """Let a method of Path fail, as a full disk would, where `fails` says so."""
    true = getattr(Path, method)

    def failing(self: Path, *args: Any, **kwargs: Any) -> Any:
        if fails(Path(args[0]) if args else self):
            raise FULL
        return true(self, *args, **kwargs)

    monkeypatch.setattr(Path, method, failing)


# below


def test_the_files_below_a_folder_come_in_order_and_hidden_ones_do_not(tmp_path: Path) -> None:
    for name in ("b/x.json", "a/x.json", "x.json", "a/x.txt", ".x.json", ".hidden/x.json", "a/.staged/b/x.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    found = [path.relative_to(tmp_path).as_posix() for path in files.below(tmp_path, "*.json")]
    assert found == ["a/x.json", "b/x.json", "x.json"]


def test_folders_that_vanish_while_one_looks_were_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "x.json").write_text("")
    scandir = os.scandir

    def scan(path: Any) -> Any:
        for other in tmp_path.iterdir() if str(path) in map(str, tmp_path.iterdir()) else ():
            if str(other) != str(path):
                other.rename(tmp_path.parent / f"{tmp_path.name}-{other.name}")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    [found] = files.below(tmp_path, "x.json")
    assert found.exists()


# replacing


def test_a_new_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "folder" / "file"
    with replacing(target) as temporary:
        temporary.write_text("new")
        assert not target.exists()
        assert temporary.parent == target.parent
        assert temporary.name.startswith(".")
    assert contents(tmp_path) == {"deep/folder/file": "new"}


def test_an_old_file_is_replaced_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    with replacing(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert contents(tmp_path) == {"file": "new"}


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(143), StoppedError("stopped")])
def test_an_old_file_stays_and_nothing_hidden_is_left_when_the_block_raises(
    tmp_path: Path, error: BaseException
) -> None:
    target = tmp_path / "file"
    target.write_text("old")

    def interrupted() -> None:
        with replacing(target) as temporary:
            temporary.write_text("half of the n")
            raise error

    with pytest.raises(type(error)) as caught:
        interrupted()
    assert caught.value is error
    assert contents(tmp_path) == {"file": "old"}


def test_a_block_that_raises_before_it_writes_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="early"), replacing(tmp_path / "file"):
        raise ValueError("early")
    assert contents(tmp_path) == {}


def test_a_block_that_writes_nothing_is_an_error_and_the_old_file_stays(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(DiskError, match="Writing"), replacing(target):
        pass
    assert contents(tmp_path) == {"file": "old"}


def test_two_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    target = tmp_path / "file"
    with replacing(target) as first, replacing(target) as second:
        first.write_text("first")
        second.write_text("second")
        assert first != second
    assert contents(tmp_path) == {"file": "first"}


def test_a_failing_replace_keeps_the_old_file_and_leaves_nothing_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    fail_for(monkeypatch, "replace", lambda path: path == target)
    with pytest.raises(DiskError, match="No space left on device") as caught, replacing(target) as temporary:
        temporary.write_text("new")
    assert str(target) in str(caught.value)
    assert contents(tmp_path) == {"file": "old"}


def test_a_failing_fsync_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "file"
    target.write_text("old")

    def fail(handle: int) -> None:
        raise FULL

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(DiskError), replacing(target) as temporary:
        temporary.write_text("new")
    assert contents(tmp_path) == {"file": "old"}


def test_the_new_file_is_on_disk_before_it_is_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append("fsync"), fsync(handle))[1])
    monkeypatch.setattr(Path, "replace", lambda self, target: (done.append("replace"), replace(self, target))[1])
    with replacing(tmp_path / "file") as temporary:
        temporary.write_text("new")
    assert done[:2] == ["fsync", "replace"]


def test_files_are_replaced_where_the_system_opens_no_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true = os.open

    def opens_files_only(path: Any, *args: Any, **kwargs: Any) -> int:
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, "Permission denied")
        return true(path, *args, **kwargs)

    with replacing(tmp_path / "file") as temporary:
        temporary.write_text("new")
        monkeypatch.setattr(os, "open", opens_files_only)
    monkeypatch.undo()
    assert contents(tmp_path) == {"file": "new"}


def test_a_target_that_is_a_folder_is_an_error_and_stays(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.mkdir()
    (target / "inside").write_text("old")
    with pytest.raises(DiskError), replacing(target) as temporary:
        temporary.write_text("new")
    assert contents(tmp_path) == {"file/inside": "old"}


def test_a_folder_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(DiskError, match="Creating the folder"), replacing(tmp_path / "file" / "below" / "x"):
        pytest.fail("the block must not run")
    assert contents(tmp_path) == {"file": "old"}


# copy

SIZES = [0, 1, 5000, files.CHUNK + 1, 3 * files.CHUNK]


def refuse(code: int) -> Callable[..., int]:
    def refusing(*args: Any) -> int:
        raise OSError(code, os.strerror(code))

    return refusing


def without_reflinks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.fcntl, "ioctl", refuse(errno.EOPNOTSUPP))


def without_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "fcntl", None)
    monkeypatch.delattr(os, "copy_file_range", raising=False)


def as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    pass


@pytest.mark.parametrize("way", [as_it_is, without_reflinks, without_the_kernel])
@pytest.mark.parametrize("size", SIZES)
def test_a_copy_is_a_writable_file_of_its_own_with_the_same_bytes(
    tmp_path: Path, size: int, way: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(size)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(data)
    source.chmod(0o444)
    (tmp_path / "usual").touch()
    way(monkeypatch)
    files.copy(source, target)
    assert target.read_bytes() == data
    assert target.stat().st_mode == (tmp_path / "usual").stat().st_mode
    assert stat.S_ISREG(target.lstat().st_mode)
    assert target.stat().st_nlink == source.stat().st_nlink == 1
    target.write_bytes(b"changed")
    assert source.read_bytes() == data


def test_a_copy_replaces_all_of_a_longer_file(tmp_path: Path) -> None:
    (tmp_path / "source").write_text("new")
    (tmp_path / "target").write_text("much longer than that")
    files.copy(tmp_path / "source", tmp_path / "target")
    assert contents(tmp_path) == {"source": "new", "target": "new"}


@pytest.mark.skipif(sys.platform != "linux", reason="the calls of Linux")
def test_blocks_are_shared_where_the_file_system_can_and_nothing_is_copied_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(5000)
    (tmp_path / "source").write_bytes(data)

    def clone(target: int, request: int, source: int) -> int:
        assert request == files._FICLONE
        os.pwrite(target, os.pread(source, len(data), 0), 0)
        return 0

    monkeypatch.setattr(files.fcntl, "ioctl", clone)
    monkeypatch.setattr(os, "copy_file_range", lambda *args: pytest.fail("copied all the same"))
    files.copy(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == data


@pytest.mark.skipif(not hasattr(os, "copy_file_range"), reason="a call of Linux")
@pytest.mark.parametrize("most", [1000, files.CHUNK, 1 << 40])
def test_a_kernel_that_copies_less_than_asked_for_is_asked_again(
    tmp_path: Path, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_reflinks(monkeypatch)
    true, counts = os.copy_file_range, []

    def copy_less(source: int, target: int, count: int, *offsets: int) -> int:
        counts.append(true(source, target, min(count, most), *offsets))
        return counts[-1]

    monkeypatch.setattr(os, "copy_file_range", copy_less)
    data = os.urandom(files.CHUNK + 1)
    (tmp_path / "source").write_bytes(data)
    files.copy(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == data
    assert sum(counts) == len(data)  # nothing was left to be copied in the plain way


@pytest.mark.skipif(not hasattr(os, "copy_file_range"), reason="a call of Linux")
@pytest.mark.parametrize("code", [errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EIO])
@pytest.mark.parametrize("good", [0, 2])
def test_what_the_kernel_does_not_copy_is_copied_in_the_plain_way(
    tmp_path: Path, code: int, good: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_reflinks(monkeypatch)
    true, calls = os.copy_file_range, []

    def stop_after_a_while(source: int, target: int, count: int, *offsets: int) -> int:
        calls.append(count)
        if len(calls) > good:
            raise OSError(code, os.strerror(code))
        return true(source, target, 1000, *offsets)

    monkeypatch.setattr(os, "copy_file_range", stop_after_a_while)
    data = os.urandom(files.CHUNK + 1)
    (tmp_path / "source").write_bytes(data)
    files.copy(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == data
    assert len(calls) == good + 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("way", [as_it_is, without_reflinks, without_the_kernel])
def test_a_copy_to_a_full_disk_fails_with_the_error_of_the_system(
    tmp_path: Path, way: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source").write_text("x")
    way(monkeypatch)
    with pytest.raises(OSError, match="No space left on device"):
        files.copy(tmp_path / "source", Path("/dev/full"))


def test_a_copy_of_nothing_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        files.copy(tmp_path / "source", tmp_path / "target")
    assert contents(tmp_path) == {}


# disk_errors, digest_of, room_for


def test_disk_errors_say_what_where_why_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DiskError) as caught, disk_errors("Writing", tmp_path / "file"):
        raise FULL
    assert caught.value.what == f"Writing {tmp_path / 'file'} failed: No space left on device"
    assert "Make room" in caught.value.hint
    assert "-o/--output_dir" in caught.value.hint
    assert caught.value.__cause__ is FULL


def test_disk_errors_without_a_system_message_use_the_words_of_the_error(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="failed: the tape is torn"), disk_errors("Reading", tmp_path):
        raise OSError("the tape is torn")


@pytest.mark.parametrize("error", [ValueError("x"), OmzError("y"), KeyboardInterrupt()])
def test_other_errors_pass_disk_errors_as_they_are(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, disk_errors("Writing", tmp_path):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("algorithm", ["sha256", "sha384"])
def test_digests_are_those_of_hashlib_for_files_of_any_size(tmp_path: Path, algorithm: str) -> None:
    for data in (b"", b"abc", b"x" * (3 * files.CHUNK + 1)):
        (tmp_path / "file").write_bytes(data)
        assert files.digest_of(tmp_path / "file", algorithm) == hashlib.new(algorithm, data).hexdigest()


def test_the_hash_of_a_known_text_is_the_published_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.digest_of(tmp_path / "file", "sha256") == known


@pytest.mark.parametrize("below", ["", "not/yet/there"])
def test_room_is_looked_for_on_the_disk_of_a_folder_that_need_not_exist(
    tmp_path: Path, below: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / below
    room_for(folder, 0)
    room_for(folder, 1)
    with pytest.raises(DiskError, match="MB are needed in") as caught:
        room_for(folder, 1 << 60)
    assert str(folder) in str(caught.value)
    assert "-o/--output_dir" in caught.value.hint
    assert contents(tmp_path) == {}
    asked = []
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: (asked.append(Path(path)), usage)[1])
    room_for(folder, usage.free)
    with pytest.raises(DiskError):
        room_for(folder, usage.free + 1)
    assert asked == [tmp_path, tmp_path]


def test_room_is_looked_for_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    room_for(Path(), 1)
    with pytest.raises(DiskError):
        room_for(Path("sub/folder"), 1 << 60)


def test_a_disk_that_cannot_be_looked_at_is_a_disk_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(shutil, "disk_usage", fail)
    with pytest.raises(DiskError, match=r"Looking at .* failed: Input/output error"):
        room_for(tmp_path, 1)


def test_room_in_a_folder_whose_name_is_too_long_is_no_traceback(tmp_path: Path) -> None:
    with pytest.raises(DiskError):
        room_for(tmp_path / ("c" * 300), 1 << 60)


# RelativeName


@pytest.mark.parametrize(
    "char", ["\u202e", "\u200b", "\u2028", "\u2029", "\u00ad", "\ufeff", "\u2066", "\U000e0041"], ids=ascii
)
def test_a_name_with_what_is_not_to_be_seen_or_turns_the_line_around_is_refused(char: str) -> None:
    with pytest.raises(ValueError, match="no file name may have everywhere"):
        RelativeName.parse(f"folder/weights{char}gpj.bin")


@pytest.mark.parametrize("name", ["clock$", "CLOCK$.txt", "a/Clock$"])
def test_the_clock_of_windows_is_no_file(name: str) -> None:
    with pytest.raises(ValueError, match="device name"):
        RelativeName.parse(name)


def test_names_of_other_scripts_are_kept() -> None:
    for name in ("語.json", "é/weights.bin", "क्षि", "\U0001f600"):
        assert RelativeName.parse(name) == name


# What is of another kind


def test_the_hint_fits_what_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for fails in (lambda: (tmp_path / "file").replace(tmp_path / "folder"), lambda: (tmp_path / "file" / "x").touch()):
        with pytest.raises(DiskError) as caught, disk_errors("Writing", tmp_path):
            fails()
        assert "Move it away" in caught.value.hint
