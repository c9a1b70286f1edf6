"""Several processes at one file: whether locks work or not, whoever dies, stops or damages something meanwhile."""

import contextlib
import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import crash
import pytest
from crash import MIB, TOKEN, Done, Lab, Plan, Scene, failed_cleanly, length, overlap, settled, telling, wait_until
from faults import sample
from hub import Hub

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals, rights and mounts as Linux has them")

SIZE = 6 * MIB + 1
# The folders that processes have in common.
LAYOUTS = {
    "one cache, one folder": (True, lambda number: "out"),
    "one cache, a folder for each": (True, lambda number: f"out{number}"),
    "no cache, one folder": (False, lambda number: "out"),
}
LOCKS = ["work", "mean nothing", "ENOLCK", "EOPNOTSUPP"]
# A second is short for a person, and long for processes that make progress.
IMPATIENT = 1.0

DROP_RIGHTS_OF_ROOT = """
import ctypes, os, sys
for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Scene]:
    def make(size: int = SIZE, **settings: object) -> Scene:
        scene = Scene(tmp_path, size, **settings)
        scene.clear()
        return scene

    return make


def end_all(processes: list[subprocess.Popen[str]]) -> list[Done]:
    """Wait for all of them; none outlives the test."""
    try:
        return [crash.end(process) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.communicate()


# ---- All at once


@pytest.mark.parametrize("locks", LOCKS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("number", [2, 10])
def test_processes_that_fetch_the_same_file_at_once_all_succeed(
    make: Callable[..., Scene], number: int, layout: str, locks: str
) -> None:
    """Where locks work, nobody fetches what another one is fetching."""
    cached, out_of = LAYOUTS[layout]
    scene = make(cached=cached)
    outs = sorted({out_of(n) for n in range(number)})
    with Hub(scene.repository, token=TOKEN, rate=8e6) as hub:
        plan = Plan(locks=locks, patience=IMPATIENT if locks != "work" else None)
        done = end_all([scene.start(hub, out=out_of(n), plan=plan) for n in range(number)])
        assert [(d.status, d.err) for d in done] == [(0, "")] * number
        scene.through(*outs)
        served = hub.served
        print(f"{number} processes, {layout}, locks {locks}: {served / SIZE:.2f} times the size served")
        if locks == "work":
            assert served == SIZE
        honest = crash.end(scene.start(hub, out=outs[0]))
        assert (honest.status, hub.served) == (0, served)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_processes_that_find_a_leftover_at_once_fetch_what_it_lacks_once(
    make: Callable[..., Scene], layout: str
) -> None:
    cached, out_of = LAYOUTS[layout]
    scene = make(cached=cached)
    number = sample(4, 10)
    outs = sorted({out_of(n) for n in range(number)})
    with Hub(scene.repository, token=TOKEN, rate=8e6) as hub:
        scene.watch(hub)
        left_by_a_kill(scene, hub, out=outs[0])
        kept, before = scene.kept(), settled(hub)
        scene.asked.clear()
        done = end_all([scene.start(hub, out=out_of(n)) for n in range(number)])
        assert [(d.status, d.err) for d in done] == [(0, "")] * number
        # Without a cache just those see it whose folder it is in.
        scene.through(*outs)
        assert overlap(scene.asked, kept) == 0
        assert hub.served - before == SIZE - length(kept)


def left_by_a_kill(scene: Scene, hub: Hub, out: str = "out") -> None:
    """A leftover of some MiB."""
    process = scene.start(hub, out=out)
    enough = hub.served + 3 * MIB
    wait_until(lambda: hub.served >= enough)
    process.kill()
    process.communicate()
    assert length(scene.kept()) > 2 * MIB


# ---- One that dies, or stops, in the middle


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("number", [2, 10])
def test_when_the_one_that_fetches_is_killed_another_goes_on_from_its_bytes(
    make: Callable[..., Scene], number: int, layout: str
) -> None:
    """Twice, if there are enough of them."""
    cached, out_of = LAYOUTS[layout]
    scene = make(cached=cached)
    kills = 1 if number == 2 else 2
    with Hub(scene.repository, token=TOKEN, rate=3e6) as hub, contextlib.ExitStack() as stack:
        processes = [scene.start(hub, out=out_of(n)) for n in range(number)]
        stack.callback(end_all, processes)
        for turn in range(kills):
            enough = (turn + 1) * 1.5 * MIB
            wait_until(lambda enough=enough: hub.served >= enough)
            # All have begun, and wait.
            wait_until(lambda: turn > 0 or len(downloading(processes, scene)) > 0)
            [first] = wait_for_one(processes, scene)
            processes.remove(first)
            first.kill()
            out, err = first.communicate()
            assert first.returncode == -signal.SIGKILL, out + err
        done = end_all(processes)
        assert [(d.status, d.err) for d in done] == [(0, "")] * len(done)
        outs = sorted({out_of(n) for n in range(number)} & {path.name for path in scene.below.glob("out*")})
        for out in outs:
            assert scene.target(out).exists() or not scene.target(out).parent.exists() or number == 2
        scene.holds(*outs)
        assert [path for path in scene.hidden() if ".c." not in path.name] == []
        assert sum("... going on after" in d.out for d in done) >= 1
        assert hub.served <= SIZE + kills * (MIB + crash.IN_FLIGHT)
