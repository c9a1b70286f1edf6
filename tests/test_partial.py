"""Partial files: what was written is there after a kill, and nobody takes what someone else works at."""

import contextlib
import errno
import os
import random
import re
import stat
import sys
import threading
from pathlib import Path

import pytest

from omz_tools.cache import partial
from omz_tools.cache.partial import WORTH_KEEPING, Partial
from omz_tools.errors import DiskError
from omz_tools.system import leases, processes

SIZE = 3 * WORTH_KEEPING
DATA = random.Random(5).randbytes(SIZE)
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked")


def left_by_a_killed_process(folder: Path, *spans: tuple[int, int], name: str = "file") -> Path:
    """The partial file of a process that wrote these parts of DATA and was killed."""
    child = os.fork()
    if not child:
        own = Partial.begin(folder, name, "ab", SIZE)
        for first, end in spans:
            own.write(first, DATA[first:end])
        own.remember("http://host/file", '"tag"')
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    [path] = folder.glob(f".{name}.*.part")
    return path


def of_another_system(path: Path, number: int = 0) -> Path:
    """Such a file as a process of another machine would have left it, of which nobody here knows whether it lives."""
    return path.rename(path.with_name(f".file.ab.{number:016x}-00000000.part"))


def test_parts_may_be_written_in_any_order(tmp_path: Path) -> None:
    with Partial.begin(tmp_path, "file", "ab", SIZE) as own:
        assert own.holes() == [(0, SIZE)]
        own.write(WORTH_KEEPING, DATA[WORTH_KEEPING : 2 * WORTH_KEEPING])
        assert (own.prefix, own.held) == (0, WORTH_KEEPING)
        assert own.holes() == [(0, WORTH_KEEPING), (2 * WORTH_KEEPING, SIZE)]
        own.write(0, DATA[:WORTH_KEEPING])
        own.write(2 * WORTH_KEEPING, DATA[2 * WORTH_KEEPING :])
        assert (own.prefix, own.holes()) == (SIZE, [])
        with own.whole() as path:
            path.rename(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == DATA
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_empty_file_lacks_nothing(tmp_path: Path) -> None:
    with Partial.begin(tmp_path, "file", "ab", 0) as own:
        assert own.holes() == []
        with own.whole() as path:
            assert path.read_bytes() == b""


@linux_only
def test_what_a_killed_process_wrote_is_there_for_the_next_one(tmp_path: Path) -> None:
    old = left_by_a_killed_process(tmp_path, (0, 700_000), (700_000, 1_300_000), (2_000_000, 2_100_000))
    assert partial.kept(tmp_path, "file", "ab", SIZE) == 1_400_000
    with Partial.begin(tmp_path, "file", "ab", SIZE) as own:
        own.adopt()
        assert not old.exists()
        assert own.path != old
        assert own.holes() == [(1_300_000, 2_000_000), (2_100_000, SIZE)]
        assert own.etag("http://host/file") == '"tag"'
        buffer = bytearray(1_300_000)
        assert own.read_into(0, memoryview(buffer)) == 1_300_000
        assert buffer == DATA[:1_300_000]


@linux_only
def test_of_several_leftovers_the_longest_is_gone_on_from_and_all_are_removed(tmp_path: Path) -> None:
    for end in (1_100_000, 1_500_000, 1_200_000):
        folder = tmp_path / str(end)
        left_by_a_killed_process(folder, (0, end)).rename(tmp_path / f".file.ab.{end:016x}-00000000.part")
        folder.rmdir()
    with Partial.begin(tmp_path, "file", "ab", SIZE) as own:
        own.adopt()
        assert own.held == 1_500_000
        assert list(tmp_path.iterdir()) == [own.path]


@linux_only
def test_leftovers_of_other_files_are_not_touched(tmp_path: Path) -> None:
    other = left_by_a_killed_process(tmp_path, (0, SIZE // 2), name="other")
    with Partial.begin(tmp_path, "file", "ab", SIZE) as own:
        own.adopt()
        assert own.held == 0
    assert other.exists()


@linux_only
def test_what_was_kept_for_another_size_is_no_use(tmp_path: Path) -> None:
    left_by_a_killed_process(tmp_path, (0, SIZE // 2))
    with Partial.begin(tmp_path, "file", "ab", SIZE + 1) as own:
        own.adopt()
        assert own.held == 0


@linux_only
def test_what_a_living_process_works_at_is_left_to_it(tmp_path: Path) -> None:
    with Partial.begin(tmp_path, "file", "ab", SIZE) as first:
        first.write(0, DATA[: 2 * WORTH_KEEPING])
        assert partial.at_work(tmp_path, "file", "ab") == first.path
        assert partial.leftovers(tmp_path) == []
        with Partial.begin(tmp_path, "file", "ab", SIZE) as second:
            assert (first.is_alone(), second.is_alone()) == (False, False)
            assert second.is_alone(besides=[first.path])
            second.adopt()
            assert second.held == 0
            assert first.path.exists()
    assert partial.at_work(tmp_path, "file", "ab") is None


@linux_only
def test_a_record_that_was_cut_by_a_crash_is_believed_up_to_there(tmp_path: Path) -> None:
    old = left_by_a_killed_process(tmp_path, (0, 1_100_000), (1_100_000, 1_200_000))
    text = old.read_bytes()[SIZE:]
    assert text.splitlines() == [b"0 1100000", b"1100000 1200000", b'["http://host/file", "\\"tag\\""]']
    os.truncate(old, SIZE + len(b"0 1100000\n1100000 12000"))
    assert partial.kept(tmp_path, "file", "ab", SIZE) == 1_100_000


@pytest.mark.parametrize(
    ("lines", "held"),
    [
        (b"0 10\n", 10),
        (b"0 10\n5 20\n30 40\n", 30),
        (b"10 0\n", 0),
        (b"0 99999999\n", 0),
        (b"0 10\nx\n20 30\n", 10),
        (b"0 10\n[1\n", 10),
        (b'0 10\n["only one"]\n', 10),
        (b"\xff\xfe", 0),
        (b"-5 10\n", 0),
        (b"0 10", 0),
        # Killed just before it got its name.
        (b"", SIZE),
    ],
)
def test_a_record_means_what_it_can_mean(tmp_path: Path, lines: bytes, held: int) -> None:
    (tmp_path / f".file.ab.{1:016x}-00000000.part").write_bytes(DATA + lines)
    assert partial.kept(tmp_path, "file", "ab", SIZE) == held
    with Partial.begin(tmp_path, "file", "ab", SIZE) as own:
        own.adopt()
        assert own.held == held


def test_little_is_not_kept_and_no_empty_folder_is(tmp_path: Path) -> None:
    with Partial.begin(tmp_path / "a" / "b", "file", "ab", SIZE) as own:
        own.write(0, DATA[: WORTH_KEEPING - 1])
    assert list(tmp_path.iterdir()) == []


def test_much_is_kept_when_the_work_ends_early(tmp_path: Path) -> None:
    def work() -> None:
        with Partial.begin(tmp_path / "a", "file", "ab", SIZE) as own:
            own.write(0, DATA[:WORTH_KEEPING])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert partial.kept(tmp_path / "a", "file", "ab", SIZE) == WORTH_KEEPING


def test_what_was_forgotten_is_not_kept(tmp_path: Path) -> None:
    with Partial.begin(tmp_path, "file", "ab", SIZE) as own:
        own.write(0, DATA)
        own.remember("http://host/file", '"tag"')
        own.clear()
        assert (own.held, own.prefix, own.holes(), own.etag("http://host/file")) == (0, 0, [(0, SIZE)], None)
    assert list(tmp_path.iterdir()) == []


def test_a_file_whose_name_was_removed_is_whole_all_the_same(tmp_path: Path) -> None:
    with Partial.begin(tmp_path, "file", "ab", SIZE) as own:
        own.write(0, DATA)
        own.path.unlink()
        with own.whole() as path:
            path.rename(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == DATA


def test_when_it_cannot_be_moved_into_place_its_bytes_are_kept(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()

    def work() -> None:
        with Partial.begin(tmp_path, "file", "ab", SIZE) as own:
            own.write(0, DATA)
            with own.whole() as path:
                path.replace(tmp_path / "file")

    with pytest.raises(OSError, match="directory"):
        work()
    assert partial.kept(tmp_path, "file", "ab", SIZE) == SIZE


def test_several_threads_write_at_once(tmp_path: Path) -> None:
    with Partial.begin(tmp_path, "file", "ab", SIZE) as own:

        def write(start: int) -> None:
            for at in range(start * 4096, SIZE, 4 * 4096):
                own.write(at, DATA[at : at + 4096])

        threads = [threading.Thread(target=write, args=(start,)) for start in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert own.holes() == []
        with own.whole() as path:
            assert path.read_bytes() == DATA


def test_after_the_end_nothing_is_written_to_whatever_file_has_its_number_now(tmp_path: Path) -> None:
    own = Partial.begin(tmp_path, "file", "ab", SIZE)
    own.close()
    with (tmp_path / "precious").open("wb") as precious:
        with pytest.raises(OSError, match="descriptor"):
            own.write(0, b"late")
        assert precious.tell() == os.fstat(precious.fileno()).st_size == 0


def test_the_finished_file_has_the_usual_mode(tmp_path: Path) -> None:
    usual = tmp_path / "usual"
    usual.touch()
    with Partial.begin(tmp_path, "file", "ab", 0) as own, own.whole() as path:
        assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(usual.stat().st_mode)


def test_a_folder_that_cannot_be_made_is_a_disk_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="file/below"):
        Partial.begin(tmp_path / "file" / "below", "label", "ab", SIZE)


@linux_only
def test_what_is_left_of_an_earlier_pin_of_the_file_is_removed(tmp_path: Path) -> None:
    old = left_by_a_killed_process(tmp_path, (0, SIZE // 2))
    other = old.rename(tmp_path / old.name.replace(".ab.", ".cd."))
    with Partial.begin(tmp_path, "file", "ab", SIZE) as own:
        own.adopt()
        assert own.held == 0
        assert not other.exists()


@linux_only
def test_one_that_gives_way_leaves_nothing_and_takes_nothing(tmp_path: Path) -> None:
    old = left_by_a_killed_process(tmp_path, (0, SIZE // 2))
    own = Partial.begin(tmp_path, "file", "ab", SIZE)
    own.close(keep=False)
    assert list(tmp_path.iterdir()) == [old]


@linux_only
@pytest.mark.parametrize("fault", [0, errno.ENOLCK], ids=["everyone gets the lock", "no locks"])
def test_where_locks_mean_nothing_leftovers_are_gone_on_from_and_removed_when_they_are_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: int
) -> None:
    def flock(file: int, operation: int) -> None:
        if fault:
            raise OSError(fault, os.strerror(fault))

    old = of_another_system(left_by_a_killed_process(tmp_path, (0, SIZE // 2)))
    monkeypatch.setattr("fcntl.flock", flock)
    with Partial.begin(tmp_path, "file", "ab", SIZE) as own:
        assert own.is_alone()
        own.adopt()
        assert own.held == SIZE // 2
        assert old.exists()
        os.utime(old, (0, 0))
        partial.sweep(tmp_path, "file")
        assert list(tmp_path.iterdir()) == [own.path]


@linux_only
def test_what_a_process_killed_before_its_first_byte_left_is_removed(tmp_path: Path) -> None:
    left_by_a_killed_process(tmp_path)
    unborn = tmp_path / f".file.ab.{1:016x}-00000000.new"
    unborn.touch()
    partial.sweep(tmp_path, "file")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_error_after_the_move_does_not_touch_the_file_in_its_place(
    tmp_path: Path, error: type[BaseException]
) -> None:
    def work() -> None:
        with Partial.begin(tmp_path, "file", "ab", SIZE) as own:
            own.write(0, DATA)
            with own.whole() as path:
                path.replace(tmp_path / "file")
                raise error

    with pytest.raises(error):
        work()
    assert (tmp_path / "file").read_bytes() == DATA
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@linux_only
def test_of_several_leftovers_just_the_best_is_there_while_it_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for end in (1_100_000, 1_500_000):
        folder = tmp_path / str(end)
        left_by_a_killed_process(folder, (0, end)).rename(tmp_path / f".file.ab.{end:016x}-00000000.part")
        folder.rmdir()
    own = Partial.begin(tmp_path, "file", "ab", SIZE)

    def interrupted(source: Path, target: Path) -> None:
        assert sorted(tmp_path.iterdir()) == sorted([source, target])
        raise KeyboardInterrupt

    monkeypatch.setattr("omz_tools.system.files.copy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        own.adopt()
    own.close()
    assert partial.kept(tmp_path, "file", "ab", SIZE) == 1_500_000
    assert len(list(tmp_path.iterdir())) == 1


@linux_only
def test_the_record_of_a_leftover_is_carried_on(tmp_path: Path) -> None:
    left_by_a_killed_process(tmp_path, (0, 1_100_000))
    own = Partial.begin(tmp_path, "file", "ab", SIZE)
    own.adopt()
    own.write(1_100_000, DATA[1_100_000:1_200_000])
    own.close()
    assert partial.kept(tmp_path, "file", "ab", SIZE) == 1_200_000
    with Partial.begin(tmp_path, "file", "ab", SIZE) as again:
        again.adopt()
        assert again.etag("http://host/file") == '"tag"'


@linux_only
def test_where_every_lock_is_refused_the_work_goes_on_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: int, operation: int) -> None:
        raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK))

    monkeypatch.setattr("fcntl.flock", flock)
    with Partial.begin(tmp_path, "file", "ab", SIZE) as own:
        assert own.is_alone()
        own.adopt()
        own.write(0, DATA)
        with own.whole() as path:
            path.rename(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == DATA


def inode(path: Path) -> int:
    return path.stat().st_ino


@linux_only
@pytest.mark.parametrize("locks", ["work", "everyone gets the lock", "no locks"])
def test_the_file_of_a_process_that_has_ended_is_taken_over_without_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: str
) -> None:
    def flock(file: int, operation: int) -> None:
        if locks == "no locks":
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    old = left_by_a_killed_process(tmp_path, (0, 1_100_000), (2_000_000, 2_100_000))
    old.chmod(0o600)
    before = inode(old)
    if locks != "work":
        monkeypatch.setattr("fcntl.flock", flock)
    assert partial.makes_room(tmp_path, "file", "ab", SIZE) == 1_200_000
    with Partial.begin(tmp_path, "file", "ab", SIZE) as own:
        usual = own.path.stat().st_mode
        own.adopt()
        assert list(tmp_path.iterdir()) == [own.path]
        assert (inode(own.path), own.path.stat().st_mode) == (before, usual)
        for first, end in own.holes():
            own.write(first, DATA[first:end])
        if locks == "work":
            assert partial.at_work(tmp_path, "file", "ab") == own.path
        with own.whole() as path:
            assert path.read_bytes() == DATA


@linux_only
@pytest.mark.parametrize("why", ["it lives", "another system", "another name", "another process is faster"])
def test_what_may_not_be_taken_over_is_copied_or_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """Even where the lock, which may mean nothing, says that the process is gone."""
    old = left_by_a_killed_process(tmp_path, (0, 1_100_000))
    if why == "it lives":
        old = old.rename(tmp_path / f".file.ab.{processes.tag()}-00000000.part")
    elif why == "another system":
        old = of_another_system(old)
    elif why == "another name":
        os.link(old, tmp_path / "other")
    else:
        take = leases.take

        def slow(path: Path) -> int:
            file = take(path)
            path.rename(tmp_path / "taken")
            return file

        monkeypatch.setattr(leases, "take", slow)
    before, data = inode(old), old.read_bytes()
    held = os.open(old, os.O_RDONLY)  # so that its number is not given to another file
    with Partial.begin(tmp_path, "file", "ab", SIZE) as own:
        own.adopt()
        assert inode(own.path) != before
        assert own.held == (0 if why == "another process is faster" else 1_100_000)
        own.write(2_000_000, DATA[2_000_000:])
        assert os.pread(held, len(data) + 1, 0) == data
    os.close(held)


@linux_only
def test_of_several_processes_that_take_over_at_once_one_has_the_file(tmp_path: Path) -> None:
    for number in range(10):
        folder = tmp_path / str(number)
        before = inode(left_by_a_killed_process(folder, (0, 1_100_000)))
        owns = [Partial.begin(folder, "file", "ab", SIZE) for _ in range(4)]
        threads = [threading.Thread(target=own.adopt) for own in owns]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [inode(own.path) for own in owns].count(before) <= 1
        assert sum(own.held > 0 for own in owns) >= 1
        for own in owns:
            own.close()


@linux_only
def test_a_process_is_known_to_have_ended_only_when_it_has() -> None:
    assert not processes.has_ended(processes.tag())
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, processes.tag().encode())
        os._exit(0)
    tag = os.read(reading, 100).decode()
    os.close(reading)
    os.close(writing)
    os.waitpid(child, 0)
    assert re.fullmatch("[0-9a-f]{16}", tag)
    assert processes.has_ended(tag)
    other = f"{int(tag[:10], 16) ^ 1:010x}{tag[10:]}"
    assert not processes.has_ended(other)
    assert not processes.has_ended("0" * 10 + tag[10:])
    assert not processes.has_ended(tag[:10] + "0" * 6)


@linux_only
@pytest.mark.parametrize("call", ["rename", "fchmod", "ftruncate"])
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_whatever_ends_a_takeover_the_bytes_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, moment: str, error: type[BaseException]
) -> None:
    left_by_a_killed_process(tmp_path, (0, 1_100_000))
    own = Partial.begin(tmp_path, "file", "ab", SIZE)
    true = getattr(os, call)

    def ends(*args: object) -> None:
        if moment == "after":
            true(*args)
        raise error

    monkeypatch.setattr(os, call, ends)
    with contextlib.suppress(KeyboardInterrupt, DiskError):
        own.adopt()
    monkeypatch.undo()
    own.close()
    assert partial.kept(tmp_path, "file", "ab", SIZE) == 1_100_000
