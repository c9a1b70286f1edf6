"""The cache: what is taken out is what was put in, or nothing."""

import hashlib
import os
import stat
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from omz_tools.descriptor import Digest, Sha256, Sha384
from omz_tools.errors import DiskError
from omz_tools.store import FORMAT, Store

DATA = bytes(range(256)) * 5000  # more than one chunk


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


@pytest.fixture
def digest() -> Digest:
    return Sha256(hashlib.sha256(DATA).hexdigest())


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


DAMAGES = [flip_a_bit, cut_short, make_longer, put_a_link_there, put_a_dangling_link_there, put_a_folder_there]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_set_aside_and_counts_as_absent(
    tmp_path: Path, store: Store, blob: Path, digest: Digest, damage: Callable[[Path], None]
) -> None:
    damage(blob)
    assert not store.take(digest, len(DATA), tmp_path / "taken")
    assert not blob.exists()
    assert not blob.is_symlink()
    [aside] = blob.parent.glob(".*.damaged")
    assert blob.name in aside.name


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


def test_a_target_that_cannot_be_written_is_a_disk_error_and_no_damage(
    tmp_path: Path, store: Store, blob: Path, digest: Digest
) -> None:
    target = tmp_path / "no-folder" / "taken"
    with pytest.raises(DiskError, match="no-folder"):
        store.take(digest, len(DATA), target)
    assert blob.read_bytes() == DATA


def test_a_store_below_a_regular_file_is_a_disk_error(tmp_path: Path, digest: Digest) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "verified").write_bytes(DATA)
    with pytest.raises(DiskError, match="file"):
        Store(tmp_path / "file").put(digest, tmp_path / "verified")


def test_a_file_that_vanished_leaves_nothing_in_the_store(tmp_path: Path, store: Store, digest: Digest) -> None:
    with pytest.raises(DiskError):
        store.put(digest, tmp_path / "vanished")
    assert files_below(store.folder) == []
