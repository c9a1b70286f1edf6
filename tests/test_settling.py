"""A file is put on the disk while it grows; what the disk says to that is not lost."""

import errno
import hashlib
import os
import threading
import time
from pathlib import Path

import pytest
from faulty_server import FaultyServer, File

from omz_tools.descriptors.descriptor import FileEntry, Http, Sha256
from omz_tools.download.pinned import Means, Want, fetch
from omz_tools.errors import DiskError
from omz_tools.network.transport import Transport
from omz_tools.system import settling
from omz_tools.system.files import RelativeName


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settling, "SETTLE_SECONDS", 0.001)


def test_what_was_written_is_settled_again_and_again_until_the_end() -> None:
    times, enough = 0, threading.Event()

    def settle() -> None:
        nonlocal times
        times += 1
        if times == 3:
            enough.set()

    with settling.settling(settle):
        assert enough.wait(10)
    after = times
    time.sleep(0.05)
    assert times == after


def test_a_failure_is_told_at_the_end_unless_there_is_another_error() -> None:
    failed = threading.Event()
    times = 0

    def settle() -> None:
        nonlocal times
        times += 1
        failed.set()
        time.sleep(0.05)  # as disks do; the block may be over by then
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output"), settling.settling(settle):
        assert failed.wait(10)
    failed.clear()
    times = 0

    def fails_otherwise() -> None:
        with settling.settling(settle):
            assert failed.wait(10)
            time.sleep(0.1)
            raise ValueError("another")

    with pytest.raises(ValueError, match="another"):
        fails_otherwise()
    assert times == 1


def test_a_download_that_the_disk_could_not_take_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system tells of a failed write once, and then not to the fsync at the end."""

    def fails(file: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", fails, raising=False)
    data = os.urandom(3 << 20)
    with FaultyServer(File(data, pause=0.005)) as server:
        source = Http(f"{server.url}/file")
        entry = FileEntry(RelativeName("file"), len(data), Sha256(hashlib.sha256(data).hexdigest()), (source,))
        means = Means(Transport(), None, 3, 4, False, lambda line: None)
        with pytest.raises(DiskError, match="Input/output"):
            fetch(Want(entry, tmp_path / "file", tmp_path), means, lambda held: None, lambda held: None)
    assert not (tmp_path / "file").exists()
