"""The cache: what is taken out is what was put in, or nothing."""

import contextlib
import errno
import fcntl
import hashlib
import io
import multiprocessing
import os
import random
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from omz_tools.cache.store import DAY, FORMAT, Store
from omz_tools.descriptors.descriptor import Digest, Sha256, Sha384
from omz_tools.errors import DiskError

DATA = bytes(range(256)) * 5000  # more than one chunk


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path, notes: list[str]) -> Store:
    return Store(tmp_path / "cache", notes.append)


def digest_of(data: bytes) -> Digest:
    return Sha256(hashlib.sha256(data).hexdigest())


@pytest.fixture
def digest() -> Digest:
    return digest_of(DATA)


@pytest.fixture
def blob(tmp_path: Path, store: Store, digest: Digest) -> Path:
    """The one entry of the store, put there in the usual way."""
    verified = tmp_path / "verified"
    verified.write_bytes(DATA)
    store.put(digest, verified)
    verified.unlink()
    return store.path(digest)


def files_below(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if not p.is_dir() or p.is_symlink())


def add(store: Store, data: bytes, age: float = 0) -> Path:
    """An entry that was last used `age` seconds ago."""
    verified = store.folder.with_name("verified")
    verified.write_bytes(data)
    store.put(digest_of(data), verified)
    verified.unlink()
    return aged(store.path(digest_of(data)), age)


def aged(path: Path, age: float) -> Path:
    os.utime(path, (time.time(), time.time() - age), follow_symlinks=False)
    return path


def download(store: Store, data: bytes, digest: Digest | None = None, suffix: str = ".part") -> Path:
    """A finished download among the unfinished ones, which no process works at."""
    store.partials.mkdir(parents=True, exist_ok=True)
    value = (digest or digest_of(data)).value
    name = f".{value}.{value[:16]}.{time.time_ns():016x}-{random.getrandbits(32):08x}{suffix}"
    (store.partials / name).write_bytes(data)
    return store.partials / name


def fail(monkeypatch: pytest.MonkeyPatch, module: Any, call: str, code: int, path: Path | None = None) -> None:
    """Let a system call fail, for one path or for all."""
    true = getattr(module, call)

    def failing(first: Any, *args: Any, **kwargs: Any) -> Any:
        if path is None or first == path:
            raise OSError(code, os.strerror(code))
        return true(first, *args, **kwargs)

    monkeypatch.setattr(module, call, failing)


def system_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The files that are moved and synced from here on, each by its number in the file system."""
    seen: list[tuple[str, int]] = []
    replace, fsync = os.replace, os.fsync

    def watched_replace(source: Path, target: Path) -> None:
        seen.append(("replace", source.stat().st_ino))
        replace(source, target)

    def watched_fsync(file: int) -> None:
        seen.append(("fsync", os.fstat(file).st_ino))
        fsync(file)

    monkeypatch.setattr(os, "replace", watched_replace)
    monkeypatch.setattr(os, "fsync", watched_fsync)
    return seen


# put and take


@pytest.mark.parametrize(
    "digest", [Sha256(hashlib.sha256(DATA).hexdigest()), Sha384(hashlib.sha384(DATA).hexdigest())], ids=["256", "384"]
)
def test_what_was_put_in_is_taken_out(tmp_path: Path, store: Store, blob: Path, digest: Digest) -> None:
    target = tmp_path / "taken"
    assert store.take(digest, len(DATA), target)
    assert target.read_bytes() == DATA


def test_an_empty_store_has_nothing_and_makes_no_folder(tmp_path: Path, store: Store, digest: Digest) -> None:
    assert not store.take(digest, len(DATA), tmp_path / "taken")
    assert list(tmp_path.iterdir()) == []


def test_nothing_but_the_blob_is_left_in_the_store(store: Store, blob: Path) -> None:
    assert files_below(store.folder) == [blob]


def test_a_blob_is_found_by_format_algorithm_and_digest(store: Store, blob: Path, digest: Digest) -> None:
    assert blob.relative_to(store.folder).parts == (FORMAT, "sha256", digest.value[:2], digest.value)


def test_digests_of_two_algorithms_never_share_a_place(store: Store) -> None:
    assert store.path(Sha384("ab" * 48)).relative_to(store.folder).parts == (FORMAT, "sha384", "ab", "ab" * 48)


def test_another_format_is_not_read(tmp_path: Path, store: Store, blob: Path, digest: Digest) -> None:
    (store.folder / FORMAT).rename(store.folder / f"{FORMAT}0")
    assert not store.take(digest, len(DATA), tmp_path / "taken")


@pytest.mark.skipif(sys.platform == "win32", reason="modes of files are not POSIX")
def test_a_blob_is_read_only(blob: Path) -> None:
    assert stat.S_IMODE(blob.stat().st_mode) == 0o444


def test_what_leaves_is_a_writable_file_of_its_own(tmp_path: Path, store: Store, blob: Path, digest: Digest) -> None:
    target = tmp_path / "taken"
    assert store.take(digest, len(DATA), target)
    assert not target.is_symlink()
    assert target.stat().st_nlink == 1
    assert target.stat().st_mode & stat.S_IWUSR
    target.write_bytes(b"changed")
    assert blob.read_bytes() == DATA


def test_what_is_put_in_is_independent_of_the_file_it_came_from(tmp_path: Path, store: Store, digest: Digest) -> None:
    verified = tmp_path / "verified"
    verified.write_bytes(DATA)
    store.put(digest, verified)
    verified.write_bytes(b"changed")
    assert store.path(digest).read_bytes() == DATA


def test_what_is_there_is_not_written_again(tmp_path: Path, store: Store, blob: Path, digest: Digest) -> None:
    before = blob.stat()
    (tmp_path / "verified").write_bytes(DATA)
    store.put(digest, tmp_path / "verified")
    assert (blob.stat().st_ino, blob.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_what_is_put_in_is_on_disk_before_it_has_its_name_and_then_the_folders_that_were_made(
    tmp_path: Path, store: Store, digest: Digest, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "verified").write_bytes(DATA)
    seen = system_calls(monkeypatch)
    store.put(digest, tmp_path / "verified")
    blob = store.path(digest)
    assert seen[:2] == [("fsync", blob.stat().st_ino), ("replace", blob.stat().st_ino)]
    assert set(seen[2:]) == {("fsync", blob.parents[up].stat().st_ino) for up in range(5)}
    assert blob.parents[4] == tmp_path


def test_a_hit_marks_the_entry_as_used_now(tmp_path: Path, store: Store, blob: Path, digest: Digest) -> None:
    aged(blob, 9 * DAY)
    assert store.take(digest, len(DATA), tmp_path / "taken")
    assert time.time() - blob.stat().st_mtime < 60


def test_a_hit_that_cannot_be_marked_is_a_hit(
    tmp_path: Path, store: Store, blob: Path, digest: Digest, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(monkeypatch, os, "utime", errno.EROFS)
    assert store.take(digest, len(DATA), tmp_path / "taken")
    assert notes == []


def flip_a_bit(blob: Path) -> None:
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(data)


def cut_short(blob: Path) -> None:
    os.truncate(blob, len(DATA) - 1)


def make_longer(blob: Path) -> None:
    blob.chmod(0o644)
    with blob.open("ab") as file:
        file.write(b"x")


def put_a_link_there(blob: Path) -> None:
    elsewhere = blob.with_name("elsewhere")
    blob.rename(elsewhere)
    blob.symlink_to(elsewhere)


def put_a_dangling_link_there(blob: Path) -> None:
    blob.unlink()
    blob.symlink_to("nowhere")


def put_a_folder_there(blob: Path) -> None:
    blob.unlink()
    (blob / "inside").mkdir(parents=True)


def put_a_pipe_there(blob: Path) -> None:
    blob.unlink()
    os.mkfifo(blob)


DAMAGES = [flip_a_bit, cut_short, make_longer, put_a_link_there, put_a_dangling_link_there, put_a_folder_there]
DAMAGES += [put_a_pipe_there] if hasattr(os, "mkfifo") else []


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_set_aside_and_counts_as_absent(
    tmp_path: Path, store: Store, blob: Path, digest: Digest, notes: list[str], damage: Callable[[Path], None]
) -> None:
    damage(blob)
    assert not store.take(digest, len(DATA), tmp_path / "taken")
    assert not os.path.lexists(tmp_path / "taken")
    assert not os.path.lexists(blob)
    [aside] = blob.parent.glob(".*.damaged")
    assert blob.name in aside.name
    assert notes == [f"... the cache entry {blob} is not what its name says and was set aside"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_after_damage_the_entry_can_be_put_in_again(
    tmp_path: Path, store: Store, blob: Path, digest: Digest, damage: Callable[[Path], None]
) -> None:
    damage(blob)
    store.take(digest, len(DATA), tmp_path / "taken")
    (tmp_path / "verified").write_bytes(DATA)
    store.put(digest, tmp_path / "verified")
    assert store.take(digest, len(DATA), tmp_path / "taken")
    assert (tmp_path / "taken").read_bytes() == DATA


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_that_cannot_be_set_aside_counts_as_absent(
    tmp_path: Path,
    store: Store,
    blob: Path,
    digest: Digest,
    notes: list[str],
    damage: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    damage(blob)
    fail(monkeypatch, os, "replace", errno.EROFS)
    assert not store.take(digest, len(DATA), tmp_path / "taken")
    assert not os.path.lexists(tmp_path / "taken")
    [note] = notes
    assert str(blob) in note
    assert note.endswith("is not what its name says and cannot be set aside: Read-only file system")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EMFILE])
def test_an_entry_that_may_not_be_read_counts_as_absent_and_stays(
    tmp_path: Path, store: Store, blob: Path, digest: Digest, notes: list[str], code: int, monkeypatch: Any
) -> None:
    fail(monkeypatch, io, "open", code, blob)
    assert not store.take(digest, len(DATA), tmp_path / "taken")
    assert notes == [f"... the cache entry {blob} cannot be read: {os.strerror(code)}"]
    monkeypatch.undo()
    assert store.take(digest, len(DATA), tmp_path / "taken")


def test_an_entry_in_a_folder_that_may_not_be_searched_counts_as_absent(
    tmp_path: Path, store: Store, blob: Path, digest: Digest, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(monkeypatch, os, "stat", errno.EACCES, blob)
    assert not store.take(digest, len(DATA), tmp_path / "taken")
    assert notes == [f"... the cache entry {blob} cannot be read: Permission denied"]


def test_an_entry_that_the_disk_has_lost_is_set_aside(
    tmp_path: Path, store: Store, blob: Path, digest: Digest, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(monkeypatch, io, "open", errno.EIO, blob)
    assert not store.take(digest, len(DATA), tmp_path / "taken")
    assert notes == [f"... the cache entry {blob} cannot be read: Input/output error and was set aside"]
    assert not blob.exists()


def test_an_entry_that_is_removed_while_it_is_looked_at_counts_as_absent(
    tmp_path: Path, store: Store, blob: Path, digest: Digest, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    true = io.open

    def removed_before(path: Any, *args: Any, **kwargs: Any) -> Any:
        blob.unlink(missing_ok=True)
        return true(path, *args, **kwargs)

    monkeypatch.setattr(io, "open", removed_before)
    assert not store.take(digest, len(DATA), tmp_path / "taken")
    assert notes == []


def test_an_entry_that_another_process_puts_in_while_it_is_looked_for_counts_as_absent(
    tmp_path: Path, store: Store, blob: Path, digest: Digest, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    true, missed = os.stat, []

    def not_yet(path: Any, **kwargs: Any) -> os.stat_result:
        if path == blob and not missed:
            missed.append(path)
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return true(path, **kwargs)

    monkeypatch.setattr(os, "stat", not_yet)
    assert not store.take(digest, len(DATA), tmp_path / "taken")
    assert missed
    assert notes == []


def test_a_copy_that_went_wrong_under_way_is_not_given_out_and_no_damage_of_the_entry(
    tmp_path: Path, store: Store, blob: Path, digest: Digest, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from omz_tools.system import files

    monkeypatch.setattr(files, "copy", lambda source, target: target.write_bytes(b"something else"))
    assert not store.take(digest, len(DATA), tmp_path / "taken")
    assert not (tmp_path / "taken").exists()
    assert blob.read_bytes() == DATA
    assert notes == []


def test_several_runs_that_find_the_same_damage_at_the_same_time_all_take_the_entry_for_absent(
    tmp_path: Path, store: Store, blob: Path, digest: Digest
) -> None:
    for round in range(5):
        if round:
            (tmp_path / "verified").write_bytes(DATA)
            store.put(digest, tmp_path / "verified")
        flip_a_bit(blob)
        together = threading.Barrier(8)

        def take(number: int, together: threading.Barrier = together) -> bool:
            together.wait()
            return store.take(digest, len(DATA), tmp_path / f"taken{number}")

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(take, range(8))) == [False] * 8


def test_an_entry_of_another_size_than_pinned_is_not_given_out(
    tmp_path: Path, store: Store, blob: Path, digest: Digest
) -> None:
    assert not store.take(digest, len(DATA) + 1, tmp_path / "taken")
    assert not (tmp_path / "taken").exists()
    assert blob.read_bytes() == DATA  # the mistake is another one's


def test_a_target_that_cannot_be_written_is_a_disk_error_and_no_damage(
    tmp_path: Path, store: Store, blob: Path, digest: Digest
) -> None:
    target = tmp_path / "no-folder" / "taken"
    with pytest.raises(DiskError, match="no-folder"):
        store.take(digest, len(DATA), target)
    assert blob.read_bytes() == DATA


def test_what_is_at_the_target_stays_when_the_store_does_not_have_the_file(
    tmp_path: Path, store: Store, digest: Digest
) -> None:
    (tmp_path / "mine").write_text("mine")
    assert not store.take(digest, len(DATA), tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_store_below_a_regular_file_is_a_disk_error(tmp_path: Path, digest: Digest) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "verified").write_bytes(DATA)
    with pytest.raises(DiskError, match="file"):
        Store(tmp_path / "file").put(digest, tmp_path / "verified")


def test_a_file_that_vanished_leaves_nothing_in_the_store(tmp_path: Path, store: Store, digest: Digest) -> None:
    with pytest.raises(DiskError):
        store.put(digest, tmp_path / "vanished")
    assert files_below(store.folder) == []


@pytest.mark.parametrize("call", ["chmod", "fsync", "replace"])
def test_a_store_that_is_full_or_read_only_says_what_to_do_and_nothing_is_left_in_it(
    tmp_path: Path, store: Store, digest: Digest, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "verified").write_bytes(DATA)
    fail(monkeypatch, os, call, errno.ENOSPC)
    with pytest.raises(DiskError, match="No space left on device") as caught:
        store.put(digest, tmp_path / "verified")
    assert "--cache_dir" in caught.value.hint
    assert "output_dir" not in caught.value.hint
    assert files_below(store.folder) == []


def test_an_entry_is_there_even_if_the_folder_cannot_be_synced(
    tmp_path: Path, store: Store, digest: Digest, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = download(store, DATA)
    fsync = os.fsync

    def files_alone(file: int) -> None:
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(file)

    monkeypatch.setattr(os, "fsync", files_alone)
    store.keep(digest, whole)
    assert store.path(digest).read_bytes() == DATA


@pytest.mark.parametrize("damage", [cut_short, put_a_link_there, put_a_dangling_link_there, put_a_folder_there])
def test_what_is_put_in_takes_the_place_of_what_cannot_be_right(
    tmp_path: Path, store: Store, blob: Path, digest: Digest, damage: Callable[[Path], None]
) -> None:
    damage(blob)
    (tmp_path / "verified").write_bytes(DATA)
    store.put(digest, tmp_path / "verified")
    assert not blob.is_symlink()
    assert blob.read_bytes() == DATA


# keep


def test_downloads_lie_in_a_folder_of_their_own_that_is_made_by_no_one_who_asks_for_it(store: Store) -> None:
    assert store.partials == store.folder / FORMAT / "partial"
    assert not store.folder.exists()


def test_a_finished_download_becomes_an_entry_without_a_copy(
    tmp_path: Path, store: Store, digest: Digest, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = download(store, DATA)
    number = whole.stat().st_ino
    seen = system_calls(monkeypatch)
    store.keep(digest, whole)
    blob = store.path(digest)
    assert files_below(store.folder) == [blob]
    assert blob.stat().st_ino == number
    assert stat.S_IMODE(blob.stat().st_mode) == 0o444
    assert seen[:2] == [("fsync", number), ("replace", number)]
    assert ("fsync", blob.parent.stat().st_ino) in seen[2:]
    assert ("fsync", blob.parents[2].stat().st_ino) in seen[2:]  # which holds the name of a folder that was made
    assert store.take(digest, len(DATA), tmp_path / "taken")


@pytest.mark.parametrize("damage", [None, *DAMAGES])
def test_a_finished_download_takes_the_place_of_whatever_is_there(
    store: Store, blob: Path, digest: Digest, damage: Callable[[Path], None] | None
) -> None:
    if damage:
        damage(blob)
    whole = download(store, DATA)
    store.keep(digest, whole)
    assert not whole.exists()
    assert not blob.is_symlink()
    assert blob.read_bytes() == DATA


@pytest.mark.parametrize("call", ["chmod", "fsync", "replace"])
def test_a_download_that_cannot_be_moved_in_stays_where_it_is(
    store: Store, digest: Digest, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = download(store, DATA)
    fail(monkeypatch, os, call, errno.EXDEV)
    with pytest.raises(DiskError, match="Moving into the cache") as caught:
        store.keep(digest, whole)
    assert "--cache_dir" in caught.value.hint
    assert files_below(store.folder) == [whole]
    assert whole.read_bytes() == DATA


# entries and verify


def write_foreign_files(store: Store) -> list[Path]:
    """Files and links that are none of the store's, some of them with names much like those of the store."""
    root = store.folder / FORMAT
    shelf, elsewhere = root / "sha256" / "ab", store.folder.with_name("elsewhere")
    name = "ab" + "0" * 62
    for path in [
        store.folder / "README",
        store.folder / "2" / "sha256" / "ab" / name,
        store.folder / "2" / "sha256" / "ab" / f".{name}.damaged",
        root / name,
        root / "README.tmp",
        root / "sha1" / "ab" / name,
        root / "sha256" / name,
        root / "sha256" / f".{name}.tmp",
        root / "sha256" / "abc" / name,
        root / "sha256" / "AB" / name.upper(),
        shelf / name[:-1],
        shelf / f"{name}0",
        shelf / ("cd" + "0" * 62),
        shelf / f"{name}.tmp",
        shelf / f"{name}.damaged",
        shelf / ".nfs0000",
        root / "partial" / "notes.part",
        root / "partial" / ".hidden",
        elsewhere / ("cd" + "0" * 62),
        elsewhere / ".x.damaged",
        elsewhere / ".x.tmp",
    ]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
        aged(path, 99 * DAY)
    (root / "sha256" / "cd").symlink_to(elsewhere)
    return sorted([*files_below(store.folder), *files_below(elsewhere)])


@pytest.mark.parametrize("folder", ["missing", "empty", "file instead"])
def test_a_store_without_entries_has_none(store: Store, folder: str) -> None:
    if folder != "missing":
        store.folder.mkdir()
    if folder == "file instead":
        (store.folder / FORMAT).write_text("")
    assert list(store.entries()) == []
    assert list(store.verify()) == []
    assert list(store.collect(keep_seconds=0, max_size=0)) == []


def test_a_store_that_is_a_file_is_a_disk_error(store: Store) -> None:
    store.folder.write_text("mine")
    for action in store.entries, store.verify, store.collect:
        with pytest.raises(DiskError, match=r"Reading the cache .* failed: Not a directory") as caught:
            list(action())
        assert "--cache_dir" in caught.value.hint


def test_entries_are_listed_in_the_order_of_their_digests_with_size_and_last_use(tmp_path: Path, store: Store) -> None:
    for number in range(20):
        add(store, b"x" * number, age=number * DAY)
    (tmp_path / "verified").write_bytes(DATA)
    other = Sha384(hashlib.sha384(DATA).hexdigest())
    store.put(other, tmp_path / "verified")
    entries = list(store.entries())
    assert [entry.digest for entry in entries[:-1]] == sorted(
        (digest_of(b"x" * number) for number in range(20)), key=lambda digest: digest.value
    )
    assert (entries[-1].digest, entries[-1].size) == (other, len(DATA))
    assert all(abs(time.time() - entry.used - entry.size * DAY) < 60 for entry in entries[:-1])


def test_foreign_files_are_no_entries_and_survive_everything(store: Store) -> None:
    foreign = write_foreign_files(store)
    assert list(store.entries()) == []
    assert list(store.verify()) == []
    assert list(store.collect(keep_seconds=0, max_size=0)) == []
    assert sorted([*files_below(store.folder), *files_below(store.folder.with_name("elsewhere"))]) == foreign


@pytest.mark.parametrize("damage", DAMAGES)
def test_verifying_tells_the_damaged_from_the_right_and_sets_them_aside(
    store: Store, damage: Callable[[Path], None]
) -> None:
    blobs = [add(store, bytes([number]) * 99) for number in range(5)]
    blobs.append(add(store, DATA))
    damage(blobs[-1])
    found = {store.path(entry.digest): fault for entry, fault in store.verify()}
    assert found.pop(blobs[-1]) == "is not what its name says and was set aside"
    assert found == dict.fromkeys(blobs[:-1])
    assert not os.path.lexists(blobs[-1])
    assert {store.path(entry.digest): fault for entry, fault in store.verify()} == found


def test_verifying_gives_each_result_when_it_has_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        add(store, bytes([number]) * 99)
    read: list[Path] = []
    true = io.open
    monkeypatch.setattr(io, "open", lambda path, *args, **kwargs: (read.append(path), true(path, *args, **kwargs))[1])
    for count, _ in enumerate(store.verify(), start=1):
        assert len(read) == count


def test_what_cannot_be_read_is_not_verified_and_stays(
    store: Store, blob: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(monkeypatch, io, "open", errno.EACCES, blob)
    [(_, fault)] = store.verify()
    assert fault == "cannot be read: Permission denied"
    assert blob.exists()


def test_what_is_removed_while_others_are_verified_is_passed_over(store: Store) -> None:
    for number in range(5):
        add(store, bytes([number]) * 99)
    results = store.verify()
    first, _ = next(results)
    for entry in store.entries():
        store.path(entry.digest).unlink()
    # Those that lie elsewhere than the first are gone when they are looked for.
    assert [entry for entry, _ in results if entry != first] == []


@pytest.mark.parametrize("below", [FORMAT, f"{FORMAT}/sha256", f"{FORMAT}/partial"])
def test_folders_behind_links_are_not_looked_into(tmp_path: Path, store: Store, blob: Path, below: str) -> None:
    aged(download(store, b"half"), 9 * DAY)
    (store.folder / below).rename(tmp_path / "mine")
    (store.folder / below).symlink_to(tmp_path / "mine")
    mine = files_below(tmp_path / "mine")
    list(store.verify())
    list(store.collect(keep_seconds=0, max_size=0))
    assert files_below(tmp_path / "mine") == mine != []


def test_the_store_itself_may_be_behind_a_link(tmp_path: Path, store: Store, blob: Path) -> None:
    (tmp_path / "link").symlink_to(store.folder)
    assert [removal.size for removal in Store(tmp_path / "link").collect(max_size=0)] == [len(DATA)]
    assert files_below(store.folder) == []


# collect


def gone(store: Store, **limits: Any) -> set[Path]:
    """What `collect` removes; it says the same in a dry run, which removes nothing."""
    before = files_below(store.folder)
    planned = list(store.collect(**limits, dry_run=True))
    assert files_below(store.folder) == before
    removed = list(store.collect(**limits))
    assert planned == removed
    assert {removal.path for removal in removed} == set(before) - set(files_below(store.folder))
    assert all(removal.why for removal in removed)
    return {removal.path for removal in removed}


def test_without_limits_every_entry_stays(store: Store) -> None:
    add(store, b"old", age=9999 * DAY)
    assert gone(store) == set()


def test_entries_that_were_not_used_for_so_long_are_removed(store: Store) -> None:
    blobs = {age: add(store, b"%d" % age, age=age * DAY) for age in (0, 1, 29, 31, 400)}
    assert gone(store, keep_seconds=30 * DAY) == {blobs[31], blobs[400]}
    assert gone(store, keep_seconds=0) == {blobs[0], blobs[1], blobs[29]}


@pytest.mark.parametrize(
    ("most", "left"), [(0, 0), (99, 0), (100, 1), (499, 4), (500, 5), (10000, 5)], ids=lambda value: str(value)
)
def test_the_least_recently_used_are_removed_until_the_others_fit(store: Store, most: int, left: int) -> None:
    blobs = [add(store, bytes([number]) * 100, age=(number * 7 % 5) * DAY) for number in range(5)]
    oldest_first = sorted(blobs, key=lambda blob: blob.stat().st_mtime)
    assert gone(store, max_size=most) == set(oldest_first[: 5 - left])


def test_both_limits_hold_and_what_was_not_used_for_long_makes_room_for_the_others(store: Store) -> None:
    blobs = [add(store, bytes([age]) * 100, age=age * DAY) for age in range(1, 6)]
    assert gone(store, keep_seconds=3.5 * DAY, max_size=300) == set(blobs[3:])
    assert gone(store, keep_seconds=3.5 * DAY, max_size=200) == {blobs[2]}


def test_an_entry_from_the_future_is_taken_for_new(store: Store) -> None:
    new = add(store, b"new", age=-9 * DAY)
    old = add(store, b"old", age=9 * DAY)
    assert gone(store, keep_seconds=0) == {old}
    assert new.exists()


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_was_set_aside_is_removed(store: Store, blob: Path, damage: Callable[[Path], None]) -> None:
    damage(blob)
    list(store.verify())
    list(store.collect())
    assert list(blob.parent.glob(".*.damaged")) == []


def test_a_folder_that_was_set_aside_is_removed_without_what_its_links_point_to(
    tmp_path: Path, store: Store, blob: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    put_a_folder_there(blob)
    (blob / "inside" / "link").symlink_to(tmp_path / "mine")
    list(store.verify())
    list(store.collect())
    assert files_below(store.folder) == []
    assert (tmp_path / "mine" / "file").read_text() == "mine"


def test_temporaries_of_the_dead_are_removed_after_a_day_whatever_the_limits(store: Store, blob: Path) -> None:
    old, new = (blob.with_name(f".{blob.name}.{name}.tmp") for name in ("00", "11"))
    for path, age in (old, 1.1 * DAY), (new, 0.9 * DAY):
        path.write_bytes(DATA)
        aged(path, age)
    assert gone(store, keep_seconds=30 * DAY) == {old}
    aged(new, 0)
    assert gone(store, keep_seconds=0, max_size=0) == {blob}
    assert new.exists()


def test_unfinished_downloads_are_removed_after_a_day_or_the_days_to_be_kept(store: Store) -> None:
    paths = {age: aged(download(store, b"%d" % age), age * DAY) for age in (0, 2, 20, 40)}
    assert gone(store, keep_seconds=30 * DAY) == {paths[40]}
    assert gone(store) == {paths[2], paths[20]}
    assert gone(store, keep_seconds=0) == {paths[0]}
    unborn = aged(download(store, b"", suffix=".new"), 2 * DAY)
    assert gone(store) == {unborn}


def test_a_download_that_a_process_works_at_is_never_removed(store: Store) -> None:
    path = aged(download(store, b"half"), 99 * DAY)
    with path.open("rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert gone(store, keep_seconds=0) == set()
    assert gone(store, keep_seconds=0) == {path}


def test_a_removal_says_how_many_bytes_it_gives_back(store: Store) -> None:
    add(store, DATA, age=9 * DAY)
    hollow = download(store, b"")
    with hollow.open("rb+") as file:
        file.truncate(1 << 40)
    aged(hollow, 9 * DAY)
    sizes = {removal.path: removal.size for removal in store.collect(keep_seconds=0)}
    assert sizes == {store.path(digest_of(DATA)): len(DATA), hollow: 0}


def test_what_another_process_removes_meanwhile_is_no_error_and_not_counted_twice(store: Store) -> None:
    blobs = [add(store, bytes([number]), age=DAY) for number in range(5)]
    removals = store.collect(max_size=0)
    first = next(removals).path
    for blob in blobs:
        blob.unlink(missing_ok=True)
    assert list(removals) == []
    assert first in blobs


@pytest.mark.parametrize("code", [errno.ENOENT, errno.ENOTDIR, errno.EISDIR])
def test_what_turns_into_something_else_while_it_is_removed_is_passed_over(
    store: Store, blob: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(monkeypatch, os, "unlink", code, blob)
    assert list(store.collect(max_size=0)) == []


def test_what_cannot_be_removed_is_said_when_all_the_rest_is_gone(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = [add(store, bytes([number]), age=(9 - number) * DAY) for number in range(5)]
    fail(monkeypatch, os, "unlink", errno.EACCES, blobs[2])
    with pytest.raises(DiskError) as caught:
        list(store.collect(max_size=0))
    assert f"{blobs[2]}: Permission denied" in caught.value.what
    assert files_below(store.folder) == [blobs[2]]


# Many processes


def blind() -> None:
    """Some network file systems give every lock to everyone."""
    fcntl.flock = lambda *args: None  # type: ignore[assignment]


def use(folder: Path, number: int, is_blind: bool, doings: list[str], rounds: int) -> None:
    """Do all sorts of things to a store that others use at the same time; the process fails if anything is wrong."""
    if is_blind:
        blind()
    store = Store(folder / "cache")
    chance = random.Random(number)
    own = folder / f"own{number}"
    own.mkdir()
    while not (folder / "start").exists():  # no lock: one who is killed must not keep it
        time.sleep(0.001)
    for _ in range(rounds):
        data = chance.choice(POOL)
        do(chance.choice(doings), store, data, own, chance)


def do(doing: str, store: Store, data: bytes, own: Path, chance: random.Random) -> None:
    digest, target = digest_of(data), own / "file"
    if doing == "take" and store.take(digest, len(data), target):
        assert target.read_bytes() == data
    elif doing == "put":
        target.write_bytes(data)
        store.put(digest, target)
    elif doing == "keep":
        whole = download(store, b"", digest)
        with whole.open("rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(data)
            file.flush()
            store.keep(digest, whole)
    elif doing == "collect":
        list(store.collect(max_size=chance.choice([0, 1_000_000, None])))
    elif doing == "verify":
        list(store.verify())
    elif doing == "damage":
        with contextlib.suppress(OSError):
            chance.choice([cut_it, overwrite_it, put_a_folder_there, put_a_dangling_link_there])(store.path(digest))


def cut_it(blob: Path) -> None:
    os.truncate(blob, 0)


def overwrite_it(blob: Path) -> None:
    with blob.open("rb+") as file:
        file.write(b"X")


POOL = [bytes([number]) * (number * 200_000) for number in range(1, 5)]
PEACEFUL = ["take", "take", "put", "put", "keep", "collect", "verify"]


@contextlib.contextmanager
def processes(
    count: int, folder: Path, is_blind: bool, doings: list[str], rounds: int
) -> Iterator[list[multiprocessing.Process]]:
    spawn = multiprocessing.get_context("spawn")
    made = [spawn.Process(target=use, args=(folder, number, is_blind, doings, rounds)) for number in range(count)]
    for process in made:
        process.start()
    while not all((folder / f"own{number}").exists() or made[number].exitcode for number in range(count)):
        time.sleep(0.01)
    (folder / "start").touch()
    try:
        yield made
        for process in made:
            process.join(120)
    finally:
        for process in made:
            process.kill()
            process.join()


def wrong_ones(store: Store) -> list[Path]:
    """What has the name of an entry and is not right."""
    wrong = []
    for path in (store.folder / FORMAT).glob("sha256/??/[!.]*"):
        with contextlib.suppress(FileNotFoundError):  # just removed
            if not stat.S_ISREG(path.lstat().st_mode) or digest_of(path.read_bytes()).value != path.name:
                wrong.append(path)
    return wrong


def works_as_ever(store: Store, folder: Path) -> None:
    for data in POOL:
        if not store.take(digest_of(data), len(data), folder / "taken"):
            (folder / "verified").write_bytes(data)
            store.put(digest_of(data), folder / "verified")
        assert store.take(digest_of(data), len(data), folder / "taken")
        assert (folder / "taken").read_bytes() == data


@pytest.mark.parametrize("is_blind", [False, True], ids=["locks work", "locks mean nothing"])
@pytest.mark.parametrize("count", [2, 10])
def test_processes_that_use_and_clean_one_store_never_see_anything_wrong(
    tmp_path: Path, store: Store, count: int, is_blind: bool
) -> None:
    with processes(count, tmp_path, is_blind, PEACEFUL, 400 // count) as made:
        pass
    assert [process.exitcode for process in made] == [0] * count
    assert wrong_ones(store) == []
    assert [path for path in files_below(store.folder) if path.name.startswith(".")] == []
    works_as_ever(store, tmp_path)


@pytest.mark.parametrize("is_blind", [False, True], ids=["locks work", "locks mean nothing"])
@pytest.mark.parametrize("count", [2, 10])
def test_processes_among_damage_take_right_bytes_or_none(
    tmp_path: Path, store: Store, count: int, is_blind: bool
) -> None:
    with processes(count, tmp_path, is_blind, [*PEACEFUL, "damage", "damage"], 400 // count) as made:
        pass
    assert [process.exitcode for process in made] == [0] * count
    assert {path.suffix for path in files_below(store.folder) if path.name.startswith(".")} <= {".damaged"}
    list(store.verify())
    assert wrong_ones(store) == []
    works_as_ever(store, tmp_path)


@pytest.mark.parametrize("is_blind", [False, True], ids=["locks work", "locks mean nothing"])
def test_processes_that_are_killed_leave_nothing_wrong_to_those_that_live(
    tmp_path: Path, store: Store, is_blind: bool
) -> None:
    with processes(10, tmp_path, is_blind, PEACEFUL, 100) as made:
        for process in made[:7]:
            time.sleep(random.uniform(0, 0.1))
            os.kill(process.pid or 0, signal.SIGKILL)
            assert wrong_ones(store) == []
    assert [process.exitcode for process in made[7:]] == [0] * 3
    assert wrong_ones(store) == []
    works_as_ever(store, tmp_path)
    for path in files_below(store.folder):
        aged(path, 2 * DAY)
    list(store.collect(max_size=0))
    assert files_below(store.folder) == []


def test_threads_that_use_and_clean_one_store_never_see_anything_wrong(tmp_path: Path, store: Store) -> None:
    def work(number: int) -> None:
        chance = random.Random(number)
        own = tmp_path / f"own{number}"
        own.mkdir()
        for _ in range(30):
            do(chance.choice(PEACEFUL), store, chance.choice(POOL), own, chance)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert wrong_ones(store) == []
    works_as_ever(store, tmp_path)
