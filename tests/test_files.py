"""Files appear whole or not at all, and nothing is left behind."""

import contextlib
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

from omz_tools import files
from omz_tools.errors import DiskError, OmzError, StoppedError
from omz_tools.files import Staging, disk_errors, replacing, room_for

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


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """An .xml and its .bin, both old."""
    xml, binary = tmp_path / "model.xml", tmp_path / "model.bin"
    xml.write_text("old")
    binary.write_text("old")
    return xml, binary


def write_pair(staging: Staging, xml: Path, binary: Path) -> None:
    for hidden in staging.files({xml: True, binary: False}).values():
        hidden.write_text("new")


def publish_pair(xml: Path, binary: Path) -> None:
    with Staging() as staging:
        write_pair(staging, xml, binary)
        staging.publish()


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


# Staging


def test_staged_files_are_hidden_until_they_are_published(tmp_path: Path) -> None:
    xml, binary = tmp_path / "new" / "model.xml", tmp_path / "new" / "model.bin"
    with Staging() as staging:
        write_pair(staging, xml, binary)
        assert all(Path(name).name.startswith(".") for name in contents(tmp_path))
        staging.publish()
        assert contents(tmp_path) == {"new/model.xml": "new", "new/model.bin": "new"}
    assert contents(tmp_path) == {"new/model.xml": "new", "new/model.bin": "new"}


def test_hidden_names_of_one_call_share_their_stem_and_lie_beside_their_targets(tmp_path: Path) -> None:
    with Staging() as staging:
        hidden = staging.files({tmp_path / "model.xml": True, tmp_path / "model.bin": False})
        xml, binary = hidden.values()
        assert list(hidden) == [tmp_path / "model.xml", tmp_path / "model.bin"]
        assert (xml.suffix, binary.suffix) == (".xml", ".bin")
        assert xml.stem == binary.stem
        assert {xml.parent, binary.parent} == {tmp_path}
        assert staging.file(tmp_path / "model.xml") not in (xml, binary)


def test_publishing_replaces_what_was_there(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    with Staging() as staging:
        write_pair(staging, *pair)
        assert [path.read_text() for path in pair] == ["old", "old"]
        staging.publish()
    assert contents(tmp_path) == {"model.xml": "new", "model.bin": "new"}


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(143), StoppedError("stopped")])
def test_what_was_not_published_is_removed_with_the_folders_made_for_it(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("old")

    def interrupted() -> None:
        with Staging() as staging:
            staging.file(tmp_path / "kept" / "file").write_text("new")
            staging.file(tmp_path / "a" / "b" / "c" / "file").write_text("new")
            staging.file(tmp_path / "a" / "b" / "file").write_text("new")
            staging.file(tmp_path / "kept" / "empty" / "never written")
            raise error

    with pytest.raises(type(error)) as caught:
        interrupted()
    assert caught.value is error
    assert contents(tmp_path) == {"kept/file": "old"}


def test_folders_that_were_there_or_hold_other_files_are_kept(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with Staging() as staging:
        staging.file(tmp_path / "there" / "x").write_text("new")
        staging.file(tmp_path / "made" / "x").write_text("new")
        (tmp_path / "made" / "other").write_text("someone else's")
    assert contents(tmp_path) == {"there/": "", "made/other": "someone else's"}


def test_files_may_be_published_one_after_the_other(tmp_path: Path) -> None:
    with Staging() as staging:
        for name in ("first", "second"):
            staging.file(tmp_path / name).write_text(name)
            staging.publish()
    assert contents(tmp_path) == {"first": "first", "second": "second"}


def test_what_is_staged_after_publishing_is_removed_and_what_was_published_stays(tmp_path: Path) -> None:
    with Staging() as staging:
        staging.file(tmp_path / "a" / "first").write_text("new")
        staging.publish()
        staging.file(tmp_path / "a" / "second").write_text("new")
        staging.file(tmp_path / "b" / "third").write_text("new")
    assert contents(tmp_path) == {"a/first": "new"}


def watch_moves(
    monkeypatch: pytest.MonkeyPatch, pair: tuple[Path, Path], error: BaseException, fails: Callable[[int, Path], bool]
) -> list[tuple[str, str]]:
    """Let the moves fail for which `fails(number of the move, its target)`; collect what the pair is before and after
    each step."""
    seen: list[tuple[str, str]] = []
    replace, unlink = Path.replace, Path.unlink
    count = 0

    def look() -> None:
        xml, binary = (path.read_text() if path.is_file() else "none" for path in pair)
        seen.append((xml, binary))

    def watched_replace(self: Path, target: Path) -> Path:
        nonlocal count
        count += 1
        look()
        if fails(count, Path(target)):
            raise error
        moved = replace(self, target)
        look()
        return moved

    def watched_unlink(self: Path, missing_ok: bool = False) -> None:
        look()
        unlink(self, missing_ok)
        look()

    monkeypatch.setattr(Path, "replace", watched_replace)
    monkeypatch.setattr(Path, "unlink", watched_unlink)
    return seen


# No .xml stands beside a .bin of another model, or beside none.
SOUND = {("old", "old"), ("new", "new"), ("none", "old"), ("none", "new"), ("none", "none")}


def test_whoever_looks_between_two_steps_finds_no_mixed_pair(
    tmp_path: Path, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch_moves(monkeypatch, pair, FULL, lambda number, target: False)
    publish_pair(*pair)
    monkeypatch.undo()
    assert seen[0] == ("old", "old")
    assert seen[-1] == ("new", "new")
    assert ("none", "new") in seen
    assert set(seen) <= SOUND
    assert contents(tmp_path) == {"model.xml": "new", "model.bin": "new"}


@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt(), SystemExit(143)], ids=["full", "interrupt", "terminate"])
@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_when_a_move_fails_the_old_pair_is_put_back_and_was_never_mixed(
    tmp_path: Path, pair: tuple[Path, Path], step: int, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch_moves(monkeypatch, pair, error, lambda number, target: number == step)
    with pytest.raises(DiskError if error is FULL else type(error)):
        publish_pair(*pair)
    monkeypatch.undo()
    assert set(seen) <= SOUND
    assert contents(tmp_path) == {"model.xml": "old", "model.bin": "old"}


def test_when_a_move_into_a_new_folder_fails_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    xml, binary = tmp_path / "a" / "b" / "model.xml", tmp_path / "a" / "b" / "model.bin"
    watch_moves(monkeypatch, (xml, binary), FULL, lambda number, target: number == 2)
    with pytest.raises(DiskError):
        publish_pair(xml, binary)
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stuck", ["model.xml", "model.bin"])
def test_what_cannot_be_put_back_is_kept_its_place_is_said_and_no_mixed_pair_is_left(
    tmp_path: Path, pair: tuple[Path, Path], stuck: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch_moves(monkeypatch, pair, FULL, lambda number, target: target.name == stuck)
    with pytest.raises(DiskError) as caught:
        publish_pair(*pair)
    monkeypatch.undo()
    assert set(seen) <= SOUND
    left = contents(tmp_path)
    assert (left.get("model.xml", "none"), left.get("model.bin", "none")) in SOUND
    assert "new" not in left.values()
    aside = [name for name in left if name.startswith(".")]
    assert aside
    assert all(str(tmp_path / name) in str(caught.value) for name in aside)


def test_an_old_file_that_cannot_be_removed_is_no_traceback(
    tmp_path: Path, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_for(monkeypatch, "unlink", lambda path: True)
    with contextlib.suppress(DiskError):
        publish_pair(*pair)
    monkeypatch.undo()
    assert [path.read_text() for path in pair] == ["new", "new"]


@pytest.mark.parametrize("stuck", ["model.xml", "model.bin"])
def test_an_error_says_that_all_is_unchanged_only_if_it_is(
    tmp_path: Path, pair: tuple[Path, Path], stuck: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_for(monkeypatch, "replace", lambda path: path.name == stuck)
    with pytest.raises(DiskError) as caught:
        publish_pair(*pair)
    monkeypatch.undo()
    assert contents(tmp_path) == {"model.xml": "old", "model.bin": "old"} or "unchanged" not in str(caught.value)


def test_a_target_that_is_a_folder_stops_publishing_before_anything_is_moved(tmp_path: Path) -> None:
    xml, binary = tmp_path / "model.xml", tmp_path / "model.bin"
    xml.mkdir()
    (xml / "inside").write_text("old")
    binary.write_text("old")
    with pytest.raises(DiskError) as caught:
        publish_pair(xml, binary)
    assert str(xml) in str(caught.value)
    assert contents(tmp_path) == {"model.xml/inside": "old", "model.bin": "old"}


def test_a_full_disk_found_while_syncing_leaves_the_old_pair(
    tmp_path: Path, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(handle: int) -> None:
        raise FULL

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(DiskError, match="No space left on device"):
        publish_pair(*pair)
    assert contents(tmp_path) == {"model.xml": "old", "model.bin": "old"}


def test_publishing_a_file_that_was_never_written_leaves_the_old_pair(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    with Staging() as staging:
        staging.files({pair[0]: True, pair[1]: False})[pair[0]].write_text("new")
        with pytest.raises(DiskError):
            staging.publish()
    assert contents(tmp_path) == {"model.xml": "old", "model.bin": "old"}


def test_a_folder_that_cannot_be_created_leaves_no_parents_behind(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="Creating the folder"), Staging() as staging:
        staging.file(tmp_path / "a" / "b" / ("c" * 300) / "file")
    assert contents(tmp_path) == {}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("parts", [("c" * 300, "file"), ("file", "below", "file")])
def test_a_folder_that_cannot_exist_is_a_disk_error(tmp_path: Path, parts: tuple[str, ...]) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(DiskError), Staging() as staging:
        staging.file(tmp_path.joinpath(*parts))
    assert contents(tmp_path) == {"file": "old"}


def test_a_folder_that_someone_else_removed_does_not_hide_the_error_of_the_block(tmp_path: Path) -> None:

    def stopped() -> None:
        with Staging() as staging:
            staging.file(tmp_path / "a" / "b" / "file").write_text("new")
            shutil.rmtree(tmp_path / "a")
            raise StoppedError("stopped")

    with pytest.raises(StoppedError):
        stopped()
    assert contents(tmp_path) == {}


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
