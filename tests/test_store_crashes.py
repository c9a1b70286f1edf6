"""The cache when its process is killed, or its disk fails, at any one of its system calls."""

import errno
import fcntl
import hashlib
import io
import itertools
import os
import random
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from faults import sample
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from omz_tools.cache.store import DAY, FORMAT, Store
from omz_tools.descriptors.descriptor import Digest, Sha256, Sha384
from omz_tools.errors import DiskError
from omz_tools.system import processes

EXAMPLES = sample(80, 2000)

POOL: dict[Digest, bytes] = {Sha256(hashlib.sha256(d).hexdigest()): d for d in (b"", b"abc", b"x" * 5000, b"y" * 2000)}
POOL[Sha384(hashlib.sha384(b"old" * 99).hexdigest())] = b"old" * 99
LARGE = max(POOL, key=lambda digest: len(POOL[digest]))


# Faults


class Killed(BaseException):
    """The process is dead; no call that it makes from here on does anything."""


class Fault:
    """What happens at a system call: the process is killed, or the call fails.

    Args:
        at: the number of the call, from 1.
        code: the error; None to be killed.
        lasts: whether all later calls fail as well.
        has_kernel_copy: whether the kernel copies, or the bytes pass through the process.
    """

    def __init__(
        self, at: float, code: int | None = None, *, lasts: bool = False, has_kernel_copy: bool = True
    ) -> None:
        self.at, self.code, self.lasts = at, code, lasts or code is None
        self.has_kernel_copy = has_kernel_copy
        self.count = 0

    @property
    def has_struck(self) -> bool:
        return self.count >= self.at

    @property
    def is_next(self) -> bool:
        return self.count + 1 == self.at

    def tick(self) -> None:
        self.count += 1
        if self.count == self.at or (self.lasts and self.has_struck):
            raise Killed if self.code is None else OSError(self.code, os.strerror(self.code))


CALLS = (
    "open",
    "stat",
    "lstat",
    "mkdir",
    "rmdir",
    "unlink",
    "rename",
    "replace",
    "chmod",
    "utime",
    "scandir",
    "listdir",
)


@contextmanager
def under(fault: Fault) -> Iterator[None]:
    """Around code whose system calls meet a fault. Of what it writes when it does, one half gets to the disk."""
    calls: dict[str, Callable[..., Any]] = {name: getattr(os, name) for name in CALLS}
    calls["fsync"] = lambda file: None  # no power is cut here
    with ExitStack() as stack:
        for name, true in calls.items():
            stack.enter_context(mock.patch.object(os, name, ticking(fault, true)))
        if hasattr(os, "copy_file_range"):
            stack.enter_context(mock.patch.object(os, "copy_file_range", kernel_copy(fault, os.copy_file_range)))
        stack.enter_context(mock.patch.object(fcntl, "ioctl", ticking(fault, fcntl.ioctl)))
        stack.enter_context(mock.patch.object(io, "open", opening(fault)))
        yield


def ticking(fault: Fault, true: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        fault.tick()
        return true(*args, **kwargs)

    return call


def kernel_copy(fault: Fault, true: Callable[..., int]) -> Callable[..., int]:
    def call(source: int, target: int, count: int, *offsets: int) -> int:
        if not fault.has_kernel_copy:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        if fault.is_next:
            true(source, target, os.fstat(source).st_size // 2, *offsets)
        fault.tick()
        return true(source, target, count, *offsets)

    return call


def opening(fault: Fault) -> Callable[..., Any]:
    class Raw(io.FileIO):
        def readinto(self, buffer: Any) -> int | None:
            fault.tick()
            return super().readinto(buffer)

        def write(self, data: Any) -> int | None:
            if fault.is_next:
                super().write(data[: len(data) // 2])
            fault.tick()
            return super().write(data)

    def call(path: Any, mode: str, *args: Any, **kwargs: Any) -> Any:
        fault.tick()
        return {"rb": io.BufferedReader, "wb": io.BufferedWriter}[mode](Raw(path, mode))

    return call


# What is done to a store


class World:
    """A store, and what lies in it and around it that is not its business.

    Attributes:
        damaged: entries that the test itself made wrong.
    """

    def __init__(self, root: Path) -> None:
        processes.tag()  # the system is asked for its number once a process, and no fault is meant for that
        self.store = Store(root / "cache")
        self.outside, self.verified, self.target = root / "outside", root / "verified", root / "target"
        self.damaged: set[Digest] = set()
        self._foreign = [
            self.store.folder / "README",
            self.store.folder / "2" / "sha256" / "ab" / f".{'ab' * 32}.damaged",
            self.store.folder / FORMAT / "sha256" / "ab" / "README",
            self.store.folder / FORMAT / "partial" / "README",
        ]
        for path in [*self._foreign, self.outside / "folder" / "file"]:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("mine")
        for digest, data in POOL.items():
            (self.outside / digest.value).write_bytes(data)
        self._before = self._surroundings()

    def _surroundings(self) -> list[object]:
        paths = [*self._foreign, *sorted(self.outside.rglob("*"))]
        return [(p, p.lstat().st_mode, p.lstat().st_mtime_ns, p.is_file() and p.read_bytes()) for p in paths]

    # The operations: what they need is made first, then they may be done.

    def take(self, digest: Digest) -> Callable[[], bool]:
        return lambda: self.store.take(digest, len(POOL[digest]), self.target)

    def put(self, digest: Digest) -> Callable[[], None]:
        self.verified.write_bytes(POOL[digest])
        return lambda: self.store.put(digest, self.verified)

    def keep(self, digest: Digest) -> Callable[[], None]:
        whole = self.download(digest)
        return lambda: self.store.keep(digest, whole)

    def verify(self, digest: Digest) -> Callable[[], list[Any]]:
        return lambda: list(self.store.verify())

    def collect(
        self, digest: Digest, keep_seconds: float | None = 5 * DAY, max_size: int | None = 6000
    ) -> Callable[[], list[Any]]:
        return lambda: list(self.store.collect(keep_seconds=keep_seconds, max_size=max_size))

    def download(self, digest: Digest, size: int | None = None) -> Path:
        label = f"{digest.value}.{digest.value[:16]}"
        path = self.store.partials / f".{label}.{time.time_ns():016x}-{random.getrandbits(32):08x}.part"
        path.write_bytes(POOL[digest][:size])
        return path

    # What always holds

    def check(self) -> None:
        """Whatever has the name of an entry is right, unless the test made it wrong; nothing else has changed."""
        for path in self.named():
            digest = next(digest for digest in POOL if self.store.path(digest) == path)
            assert digest in self.damaged or self.is_right(digest)
        self.damaged = {digest for digest in self.damaged if self.has(digest) and not self.is_right(digest)}
        assert self._surroundings() == self._before

    def named(self) -> list[Path]:
        return [p for p in (self.store.folder / FORMAT).glob("sha*/??/*") if p.name != "README" and p.name[0] != "."]

    def hidden(self) -> list[Path]:
        return sorted((self.store.folder / FORMAT).glob("**/.*"))

    def has(self, digest: Digest) -> bool:
        return os.path.lexists(self.store.path(digest))

    def is_right(self, digest: Digest) -> bool:
        path = self.store.path(digest)
        return self.has(digest) and stat.S_ISREG(path.lstat().st_mode) and path.read_bytes() == POOL[digest]

    def attempt(self, act: Callable[[], Any], digest: Digest, fault: Fault) -> Any:
        """Do something under a fault; what came of it, the DiskError or the death that ended it included."""
        source = self.verified.read_bytes() if self.verified.exists() else b""
        try:
            with under(fault):
                outcome = act()
        except (DiskError, Killed) as error:
            outcome = error
        assert fault.has_struck or not isinstance(outcome, DiskError)
        assert isinstance(outcome, Killed) == (fault.has_struck and fault.code is None)
        if outcome is True:
            assert self.target.read_bytes() == POOL[digest]
        assert not source or self.verified.read_bytes() == source
        self.check()
        return outcome

    def run_honestly(self, digest: Digest) -> None:
        """What a run does that needs the file, and finds a store as another one left it."""
        if self.attempt(self.take(digest), digest, Fault(NEVER)) is not True:
            self.attempt(self.put(digest), digest, Fault(NEVER))
            assert self.attempt(self.take(digest), digest, Fault(NEVER)) is True


NEVER = float("inf")


def flip_a_bit(blob: Path, world: World) -> None:
    data = bytearray(blob.read_bytes() or b"0")
    data[-1] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(data)


def cut_short(blob: Path, world: World) -> None:
    flip_a_bit(blob, world)  # an empty file cannot be shorter
    os.truncate(blob, max(1, blob.stat().st_size // 2))


def put_a_link_there(blob: Path, world: World) -> None:
    blob.unlink()
    blob.symlink_to(world.outside / blob.name)


def put_a_dangling_link_there(blob: Path, world: World) -> None:
    blob.unlink()
    blob.symlink_to(world.outside / "nowhere")


def put_a_folder_there(blob: Path, world: World) -> None:
    blob.unlink()
    (blob / "inside").mkdir(parents=True)
    (blob / "inside" / "link").symlink_to(world.outside / "folder")


DAMAGES = [flip_a_bit, cut_short, put_a_link_there, put_a_dangling_link_there, put_a_folder_there]


# Each system call in turn


def add(world: World, digest: Digest) -> None:
    world.put(digest)()


def add_damaged(world: World, digest: Digest) -> None:
    add(world, digest)
    flip_a_bit(world.store.path(digest), world)
    world.damaged.add(digest)


def add_folder(world: World, digest: Digest) -> None:
    add(world, digest)
    put_a_folder_there(world.store.path(digest), world)
    world.damaged.add(digest)


def add_all_sorts(world: World, digest: Digest) -> None:
    add_folder(world, digest)
    list(world.store.verify())
    for other in POOL:
        add(world, other)
    for path in [world.store.path(digest).with_name(".x.tmp"), world.download(digest, 100)]:
        path.write_bytes(b"half")
        os.utime(path, (0, 0))


@pytest.fixture(autouse=True)
def swift(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.mark.parametrize(
    ("code", "lasts"),
    [
        (None, True),
        (errno.EIO, False),
        (errno.ENOSPC, False),
        (errno.EACCES, False),
        (errno.EIO, True),
        (errno.EROFS, True),
    ],
    ids=["killed", "EIO", "ENOSPC", "EACCES", "EIO from then on", "EROFS from then on"],
)
@pytest.mark.parametrize(
    ("act", "prepare", "has_kernel_copy", "calls"),
    [
        (World.put, None, True, 20),
        (World.put, None, False, 20),
        (World.put, add_folder, True, 15),
        (World.keep, None, True, 15),
        (World.keep, add_folder, True, 10),
        (World.take, add, True, 8),
        (World.take, add, False, 8),
        (World.take, add_damaged, True, 10),
        (World.verify, add_all_sorts, True, 30),
        (World.collect, add_all_sorts, True, 50),
    ],
)
def test_whichever_system_call_fails_the_store_is_right_and_the_next_run_succeeds(
    tmp_path: Path,
    act: Callable[[World, Digest], Callable[[], Any]],
    prepare: Callable[[World, Digest], None] | None,
    has_kernel_copy: bool,
    calls: int,
    code: int | None,
    lasts: bool,
) -> None:
    # Of two errors that a call may end in, one by default; each call fails once, and once for good.
    step = 1 if code is None else sample(2, 1)
    for at in itertools.count(1 + (code or 0) % step, step):
        root = tmp_path / str(at)
        world = World(root)
        if prepare:
            prepare(world, LARGE)
        fault = Fault(at, code, lasts=lasts, has_kernel_copy=has_kernel_copy)
        world.attempt(act(world, LARGE), LARGE, fault)
        world.run_honestly(LARGE)
        shutil.rmtree(root)
        if not fault.has_struck:
            break
    assert at > calls  # otherwise this watches over less than it says


# All sorts of things, one after the other

digests = st.sampled_from(list(POOL))
kills = st.builds(Fault, st.integers(1, 60), has_kernel_copy=st.booleans())
failures = st.builds(
    Fault,
    st.integers(1, 60),
    st.sampled_from([errno.EIO, errno.ENOSPC, errno.EACCES, errno.EROFS]),
    lasts=st.booleans(),
    has_kernel_copy=st.booleans(),
)
faults = st.one_of(st.builds(Fault, st.just(NEVER), has_kernel_copy=st.booleans()), kills, failures)


class Life(RuleBasedStateMachine):
    """A store that is used, damaged, cleaned, and left by processes that die."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.world = World(self.root)

    def teardown(self) -> None:
        for digest in POOL:
            self.world.run_honestly(digest)
        shutil.rmtree(self.root)

    @rule(digest=digests, fault=faults)
    def take(self, digest: Digest, fault: Fault) -> None:
        was_right = self.world.is_right(digest)
        outcome = self.world.attempt(self.world.take(digest), digest, fault)
        if not fault.has_struck:
            assert outcome is was_right
            assert self.world.has(digest) == was_right

    @rule(digest=digests, fault=faults)
    def put(self, digest: Digest, fault: Fault) -> None:
        self.world.attempt(self.world.put(digest), digest, fault)
        if not fault.has_struck:
            assert self.world.is_right(digest) or digest in self.world.damaged

    @rule(digest=digests, fault=faults)
    def keep(self, digest: Digest, fault: Fault) -> None:
        outcome = self.world.attempt(self.world.keep(digest), digest, fault)
        if not isinstance(outcome, DiskError | Killed):
            assert self.world.is_right(digest)
        elif isinstance(outcome, DiskError):
            assert any(path.suffix == ".part" and digest.value in path.name for path in self.world.hidden())

    @rule(digest=digests, fault=faults)
    def verify(self, digest: Digest, fault: Fault) -> None:
        there = {d: self.world.is_right(d) for d in POOL if self.world.has(d)}
        outcome = self.world.attempt(self.world.verify(digest), digest, fault)
        if not fault.has_struck:
            assert {entry.digest: fault is None for entry, fault in outcome} == there
            assert self.world.damaged == set()

    @rule(
        digest=digests,
        fault=faults,
        keep_seconds=st.sampled_from([None, DAY, 5 * DAY]),
        max_size=st.sampled_from([None, 0, 3000, 6000]),
    )
    def collect(self, digest: Digest, fault: Fault, keep_seconds: float | None, max_size: int | None) -> None:
        before = {*self.world.named(), *self.world.hidden()}
        needless = self.needless(keep_seconds, max_size)
        outcome = self.world.attempt(self.world.collect(digest, keep_seconds, max_size), digest, fault)
        gone = before - {*self.world.named(), *self.world.hidden()}
        if fault.has_struck:
            assert gone <= needless
        else:
            assert gone == needless == {removal.path for removal in outcome}

    def needless(self, keep_seconds: float | None, max_size: int | None) -> set[Path]:
        """What `collect` is to remove, found in another way."""

        longest = {
            ".damaged": -NEVER,
            ".tmp": DAY,
            ".part": DAY if keep_seconds is None else keep_seconds,
            "": NEVER if keep_seconds is None else keep_seconds,
        }
        times = {path: path.lstat().st_mtime for path in [*self.world.named(), *self.world.hidden()]}
        needless = {path for path, used in times.items() if time.time() - used > longest[path.suffix]}
        left = sorted(set(self.world.named()) - needless, key=lambda path: (times[path], path))
        while max_size is not None and sum(path.lstat().st_size for path in left) > max_size:
            needless.add(left.pop(0))
        return needless

    @rule(digest=digests, damage=st.sampled_from(DAMAGES))
    def damage(self, digest: Digest, damage: Callable[[Path, World], None]) -> None:
        if self.world.is_right(digest):
            damage(self.world.store.path(digest), self.world)
            self.world.damaged.add(digest)

    @rule(chance=st.randoms(use_true_random=False), days=st.sampled_from([0.5, 2, 3, 20]))
    def time_passes(self, chance: random.Random, days: float) -> None:
        for path in [*self.world.named(), *self.world.hidden()]:
            if chance.random() < 0.3:
                then = path.lstat().st_mtime - days * DAY
                os.utime(path, (then, then), follow_symlinks=False)

    @rule(digest=digests)
    def a_run_leaves_half_a_download(self, digest: Digest) -> None:
        self.world.download(digest, 1)

    @rule(digest=digests)
    def another_run_needs_it(self, digest: Digest) -> None:
        self.world.run_honestly(digest)

    @invariant()
    def all_is_well(self) -> None:
        self.world.check()


TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
