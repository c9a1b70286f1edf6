"""A download that is killed, interrupted, or refused by the system at any moment harms nothing."""

import contextlib
import itertools
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import crash
import pytest
from crash import (
    MIB,
    TOKEN,
    Done,
    Lab,
    Plan,
    Scene,
    failed_cleanly,
    length,
    overlap,
    settled,
    telling,
    wait_until,
)
from faults import full, sample
from hub import Hub

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals and /proc as Linux has them")

PREVIOUS = b"of an earlier day"
ERRORS = ["EIO", "ENOSPC", "EACCES", "EROFS"]
# What a disk that is full, or has become read-only, refuses from then on.
CHANGING = ("write", "pwrite", "fsync", "mkdir", "replace", "rename", "chmod", "copy_file_range", "utime")


# ---- Killed at any moment


@pytest.mark.parametrize("cached", [False, True], ids=["no cache", "a cache"])
@pytest.mark.parametrize("connections", [1, 4])
def test_a_download_that_is_killed_again_and_again_gets_through_and_fetches_nothing_twice(
    tmp_path: Path, connections: int, cached: bool
) -> None:
    """Killed at a random time of its start, or when a random number of bytes has been served."""
    draw = random.Random(f"kills {connections} {cached}")
    size = sample(24, 64) * MIB
    scene = Scene(tmp_path, size, cached=cached, connections=connections)
    scene.clear()
    twice: list[int] = []
    rounds = 1
    with Hub(scene.repository, token=TOKEN, rate=24e6 / connections) as hub:
        scene.watch(hub)
        kept: list[tuple[int, int]] = []
        while len(twice) < sample(3, 50):
            before = settled(hub)
            scene.asked.clear()
            process = scene.start(hub)
            if draw.random() < 0.3:
                time.sleep(draw.uniform(0, 0.8))
            else:
                enough = before + draw.uniform(0, size / 4)
                wait_until(lambda enough=enough, process=process: hub.served >= enough or process.has_ended)
            done = process.kill()
            scene.holds()
            assert overlap(scene.asked, kept) == 0, "what was on the disk is asked for again"
            if done.status == 0:
                scene.through()
                scene.clear()
                kept, rounds = [], rounds + 1
                continue
            assert done.status == -signal.SIGKILL, done
            assert len(scene.hidden()) <= 2, "a pile of leftovers"
            now = scene.kept()
            twice.append(settled(hub) - before - (length(now) - length(kept)))
            kept = now
        scene.asked.clear()
        assert scene.start(hub).end().status == 0
        assert overlap(scene.asked, kept) == 0
        scene.through()
    print(
        f"{connections} connections, {cached=}: {len(twice)} kills, {rounds} times {size:,} bytes, "
        f"{hub.served:,} served; twice for each kill {max(twice):,} at most, {sum(twice) / len(twice):,.0f} on average"
    )
    assert max(twice) <= MIB + connections * crash.IN_FLIGHT
    assert hub.served <= rounds * size + len(twice) * (MIB + connections * crash.IN_FLIGHT)


# ---- Each call in turn


class Situation:
    """What is on the disk when a download begins: made once, and laid out anew for each case."""

    def __init__(self, folder: Path, kind: str, stack: contextlib.ExitStack) -> None:
        self.kind = kind
        self.previous = PREVIOUS if kind in ("a file of an earlier day", "a leftover") else None
        self.is_leftover = "leftover" in kind
        connections = 4 if "holes" in kind else 1
        size = (16 * MIB if connections > 1 else 4 * MIB if self.is_leftover else 300_000) + 5
        self.scene = Scene(folder, size, cached="cache" in kind, connections=connections)
        self.scene.clear()
        self.hub = stack.enter_context(Hub(self.scene.repository, token=TOKEN))
        self.scene.watch(self.hub)
        self.lab = stack.enter_context(Lab(folder, **self.scene.environment(self.hub)))
        self.before = folder / "before"
        if self.previous is not None:
            self.scene.target().parent.mkdir(parents=True)
            self.scene.target().write_bytes(self.previous)
        if self.is_leftover:
            # Two of three steps of 128 KiB, or one of three of half that size, each of them two calls.
            self.hub.rate = 20e6
            killed = self.run(Plan(str(self.scene.below), ("pwrite",), size // (1 << 17) * 4 // 3, "SIGKILL"))
            assert killed.status == -signal.SIGKILL, killed
            self.hub.rate = None
            if "holes" in kind:
                shuffle_record(self.scene)
        elif kind == "in the cache":
            assert self.run().status == 0
            shutil.rmtree(self.scene.below / "out")
        self.kept = length(self.scene.kept())
        assert (MIB < self.kept < size) == self.is_leftover
        self.scene.below.rename(self.before)

    def lay_out(self) -> None:
        self.scene.clear()
        shutil.copytree(self.before, self.scene.below, dirs_exist_ok=True)
        self.scene.asked.clear()

    def run(self, plan: Plan | None = None) -> Done:
        return self.lab(*self.scene.words(), plan=plan)

    def cases(self, does: str, errors: list[str], step: int = 1, kinds: tuple[str, ...] = ()) -> Iterator[Done]:
        """How it ends when a call does so: every `step`th, each on a disk as it was, until a run makes fewer calls.

        With which one it begins depends on what is there and what goes wrong, so that together they see most calls.
        The calls that fail get the errors by turns, in the full run each of them all.
        """
        for turn, number in enumerate(itertools.count(1 + len(self.kind + does) % step, step)):
            for error in errors if full() else [errors[turn % len(errors)]]:
                self.lay_out()
                done = self.run(Plan(str(self.scene.below), kinds, number, does, error))
                if not done.struck:
                    assert done.status == 0
                    assert turn > 3
                    return
                with telling(done.struck):
                    yield done

    def rerun(self, *, kept: bool = True) -> None:
        """An honest run succeeds, asks for nothing that was on the disk, and leaves nothing hidden."""
        spans = self.scene.kept()
        self.scene.asked.clear()
        again = self.run()
        assert again.status == 0, again
        assert overlap(self.scene.asked, spans) == 0
        self.scene.through(kept=kept)


def shuffle_record(scene: Scene) -> None:
    """As if the connections had got their bytes in another order, a short line first."""
    [path] = scene.below.rglob("*.part")
    with path.open("r+b") as file:
        file.seek(scene.size)
        lines = sorted(file.read().split(b"\n")[:-1], key=len)
        random.Random(1).shuffle(later := lines[1:])
        file.seek(scene.size)
        file.write(b"".join(line + b"\n" for line in [lines[0], *later]))


KINDS = [
    "nothing there",
    "a file of an earlier day",
    "a cache",
    "in the cache",
    "a leftover",
    "a leftover in the cache",
]


@pytest.fixture
def situation(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Situation]:
    with contextlib.ExitStack() as stack:
        yield Situation(tmp_path, request.param, stack)


@pytest.mark.parametrize("situation", [*KINDS, "a leftover with holes"], indirect=True)
def test_killed_before_any_call_a_download_loses_nothing(situation: Situation) -> None:
    """Its start, the copy of a leftover, the last byte, the move into place, the copy out of the cache: all of it."""
    scene = situation.scene
    for done in situation.cases("SIGKILL", [""], step=sample(13 if situation.is_leftover else 6, 1)):
        with telling(done.struck):
            assert done.status == -signal.SIGKILL
            scene.holds(previous=situation.previous)
            assert length(scene.kept()) >= situation.kept
            assert len(scene.hidden()) <= 2
            situation.rerun()


@pytest.mark.parametrize("situation", ["a leftover", "a leftover in the cache"], indirect=True)
@pytest.mark.parametrize("does", ["SIGKILL", "SIGINT"])
def test_ends_in_the_copy_of_a_leftover_do_not_pile_up(situation: Situation, does: str) -> None:
    """It dies each time when it has copied what the one before it left, and before it removes that."""
    situation.lay_out()
    for _ in range(4):
        done = situation.run(Plan(str(situation.scene.below), ("ftruncate",), 1, does))
        assert ".part" in done.struck
        assert length(situation.scene.kept()) >= situation.kept
        assert len(situation.scene.hidden()) <= 2
    situation.rerun()


@pytest.mark.parametrize("situation", KINDS, indirect=True)
def test_each_call_that_fails_ends_in_success_or_in_one_clear_error(situation: Situation) -> None:
    """A disk with one bad moment."""
    step = sample(11 if situation.is_leftover else 5, 1)
    for done in situation.cases("fail", ERRORS, step):
        judge(situation, done)


@pytest.mark.parametrize("situation", KINDS, indirect=True)
def test_a_disk_that_refuses_changes_from_some_moment_on_ends_in_one_clear_error(situation: Situation) -> None:
    """Nothing can be removed then, either, but the next run on a good disk cleans up."""
    step = sample(5 if situation.is_leftover else 3, 1)
    for done in situation.cases("fail from then on", ["ENOSPC", "EROFS"], step, CHANGING):
        judge(situation, done)


def judge(situation: Situation, done: Done) -> None:
    """A success, or one error and what was there before; and then a run on a good disk."""
    scene = situation.scene
    scene.holds(previous=situation.previous)
    target = scene.target()
    if done.status:
        failed_cleanly(done)
        assert (target.read_bytes() if target.exists() else None) == situation.previous
    else:
        assert target.read_bytes() == scene.data
    situation.rerun(kept=False)


def has_strace() -> bool:
    """Whether there is an strace, and this system lets it trace."""
    with contextlib.suppress(OSError):
        return subprocess.run(["strace", "-qq", "-o", "/dev/null", "true"], check=False).returncode == 0
    return False


@pytest.mark.parametrize("situation", sample(["a cache"], ["a file of an earlier day", *KINDS]), indirect=True)
@pytest.mark.parametrize("error", sample(["EIO"], ERRORS))
@pytest.mark.parametrize(
    "call",
    sample(["rename", "fsync"], ["pwrite64", "fsync", "rename", "ftruncate", "mkdir", "copy_file_range", "openat"]),
)
def test_each_call_that_the_system_itself_fails_ends_the_same_way(situation: Situation, call: str, error: str) -> None:
    """The same below Python: `strace` puts its errors in the place of the kernel's answers."""
    if not has_strace():
        pytest.skip("no strace here, or it may not trace")
    scene, log = situation.scene, situation.scene.folder / "strace.log"
    # Python itself opens many files; of those just what is known by name beforehand.
    places = [f"-P{place}" for place in (scene.target().parent, scene.cache / "1" / "partial", scene.blob)]
    for number in itertools.count(1, sample(2, 1)):
        situation.lay_out()
        process = scene.start(
            situation.hub,
            before=("strace", "-f", "-qq", "-o", str(log), "-e", f"inject={call}:error={error}:when={number}",
                    *(places if call == "openat" else [])),
        )  # fmt: skip
        done = process.end()
        if "(INJECTED)" not in log.read_text():
            assert done.status == 0
            break
        with telling(f"{call} {number}: {log.read_text()[-500:]}"):
            judge(situation, done)


@pytest.mark.parametrize("situation", ["a cache"], indirect=True)
@pytest.mark.parametrize("number", [1, 2, 3])
def test_what_cannot_be_made_durable_in_the_cache_comes_all_the_same(situation: Situation, number: int) -> None:
    scene = situation.scene
    situation.lay_out()
    served = situation.hub.served
    done = situation.run(Plan(str(scene.cache), ("fsync",), number, "fail from then on", "EIO"))
    with telling(done.struck):
        assert done.status == 0
        assert "not kept in the cache" in done.out or number == 3
        assert situation.hub.served - served == scene.size
        scene.holds()
        assert scene.target().read_bytes() == scene.data
        situation.rerun(kept=False)


# ---- Interrupted


@pytest.mark.parametrize("situation", KINDS, indirect=True)
@pytest.mark.parametrize(("number", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_before_any_call_ends_a_download_cleanly(situation: Situation, number: str, status: int) -> None:
    """What is worth going on from is kept, and nothing hidden else."""
    scene = situation.scene
    for done in situation.cases(number, [""], step=sample(20, 1)):
        with telling(done.struck):
            assert done.status in (status, 0), done
            scene.holds(previous=situation.previous)
            # The leftover that was there may not be removed yet.
            assert len(scene.hidden()) <= 1 + situation.is_leftover
            assert all(length(crash.spans_of(path, scene.size)) >= MIB for path in scene.hidden())
            situation.rerun()


@pytest.mark.parametrize(
    ("number", "status", "jobs", "cached"),
    [
        (signal.SIGINT, 130, 1, False),
        (signal.SIGTERM, 143, 1, True),
        (signal.SIGINT, 130, 2, True),
        (signal.SIGTERM, 143, 2, False),
    ],
)
def test_a_signal_at_any_moment_of_a_transfer_ends_it_quickly_and_keeps_what_is_worth_it(
    tmp_path: Path, number: signal.Signals, status: int, jobs: int, cached: bool
) -> None:
    """What is kept has 1 MiB at least; the next run asks for none of it again."""
    draw = random.Random(f"signals {number} {cached} {jobs}")
    names = ["tiny", "other"][:jobs]
    scenes = [Scene(tmp_path, 8 * MIB, cached=cached, name=name, seed=seed) for seed, name in enumerate(names)]
    words = ("--name", ",".join(names), "-j", str(jobs))
    with Hub(scenes[0].repository, token=TOKEN) as hub:
        for scene in scenes:
            scene.watch(hub)
        for few in sample([True, False], [True, False, False] * 10):
            scenes[0].clear()
            hub.rate = 2e6
            before = settled(hub)
            process = scenes[0].start(hub, *words)
            enough = before + (draw.uniform(1, MIB / 2) if few else draw.uniform(2, 6) * MIB * jobs)
            wait_until(lambda enough=enough: hub.served >= enough)
            time.sleep(draw.uniform(0, 0.02))
            began = time.monotonic()
            process.send(number)
            done = process.end()
            assert time.monotonic() - began < 20
            assert done.status == status, done
            settled(hub)
            kept = [scene.kept() for scene in scenes]
            assert all(length(spans) == 0 if few else length(spans) >= MIB for spans in kept)
            hidden = scenes[0].hidden()
            assert len(hidden) == (0 if few else jobs)
            for scene in scenes:
                scene.holds()
                scene.asked.clear()
            hub.rate = None
            again = scenes[0].start(hub, *words).end()
            assert again.status == 0, again
            assert again.out.count("... going on after") == len(hidden)
            for scene, spans in zip(scenes, kept, strict=True):
                assert overlap(scene.asked, spans) == 0
                scene.through()
