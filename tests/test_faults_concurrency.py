"""Several processes at one file: whether locks work or not, whoever dies, stops or damages something meanwhile."""

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import crash
import pytest
from conftest import BIN
from crash import MIB, TOKEN, Done, Lab, Plan, Running, Scene, failed_cleanly, length, overlap, settled, wait_until
from faults import sample
from hub import Handler, Hub

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals, rights and mounts as Linux has them")

Make = Callable[..., Scene]

SIZE = 6 * MIB + 1
PREVIOUS = b"of an earlier day"
# What processes have in common: whether there is a cache, and the output folder of each.
LAYOUTS: dict[str, tuple[bool, Callable[[int], str]]] = {
    "one cache, one folder": (True, lambda number: "out"),
    "one cache, a folder for each": (True, lambda number: f"out{number}"),
    "no cache, one folder": (False, lambda number: "out"),
}
LOCKS = ["work", "mean nothing", "ENOLCK", "EOPNOTSUPP"]
WAITS = "... another process is fetching it"
GOES_ON = "... going on after"
# Seconds: long for processes that make progress.
IMPATIENT = 1.0

DROP_RIGHTS_OF_ROOT = """
import ctypes, os, sys
for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
os.execv(sys.argv[1], sys.argv[1:])
"""
# Bytes, a folder, a command: the folder is a disk of so many bytes while the command runs.
ON_SMALL_DISK = """
size=$0 place=$1; shift
mkdir -p "$place" && cp -a "$place" "$place.before" && mount -t tmpfs -o size=$size small "$place" || exit 99
cp -a "$place.before/." "$place" && "$@"; status=$?
cp -a "$place" "$place.after"; umount "$place"; rm -r "$place" "$place.before"; mv "$place.after" "$place"
exit $status
"""
MOUNT_READ_ONLY = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes a scene on an empty disk."""

    def make(size: int = SIZE, **settings: object) -> Scene:
        scene = Scene(tmp_path, size, **settings)
        scene.clear()
        return scene

    return make


def end_all(processes: list[Running]) -> list[Done]:
    """Wait for all of them; none outlives the test."""
    try:
        return [process.end() for process in processes]
    finally:
        for process in processes:
            process.kill()


def all_succeeded(processes: list[Running]) -> list[Done]:
    done = end_all(processes)
    assert [(d.status, d.err) for d in done] == [(0, "")] * len(done)
    return done


# ---- All at once


@pytest.mark.parametrize(
    ("number", "locks"),
    sample([(4, "work"), (4, "mean nothing"), (2, "ENOLCK")], [(n, lock) for n in (2, 10) for lock in LOCKS]),
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_processes_that_fetch_the_same_file_at_once_all_succeed(
    make: Make, number: int, layout: str, locks: str
) -> None:
    """Where locks work, nobody fetches what another one is fetching."""
    cached, out_of = LAYOUTS[layout]
    scene = make(cached=cached)
    outs = sorted({out_of(n) for n in range(number)})
    with Hub(scene.repository, token=TOKEN, rate=8e6) as hub:
        plan = Plan(locks=locks)
        all_succeeded([scene.start(hub, out=out_of(n), plan=plan) for n in range(number)])
        scene.through(*outs)
        served = hub.served
        print(f"{number} processes, {layout}, locks {locks}: {served / SIZE:.2f} times the size served")
        assert served == SIZE if locks == "work" else served <= number * SIZE
        assert scene.start(hub, out=outs[0]).end().status == 0
        assert hub.served == served


@pytest.mark.parametrize("layout", LAYOUTS)
def test_processes_that_find_a_leftover_at_once_fetch_once_what_it_lacks(make: Make, layout: str) -> None:
    cached, out_of = LAYOUTS[layout]
    scene = make(cached=cached)
    number = sample(3, 10)
    with Hub(scene.repository, token=TOKEN, rate=8e6) as hub:
        scene.watch(hub)
        left_by_a_kill(scene, hub)
        kept, before = scene.kept(), settled(hub)
        scene.asked.clear()
        all_succeeded([scene.start(hub, out=out_of(n)) for n in range(number)])
        scene.through(*{out_of(n) for n in range(number)})
        assert overlap(scene.asked, kept) == 0
        assert hub.served - before == SIZE - length(kept)


def left_by_a_kill(scene: Scene, hub: Hub) -> None:
    """A leftover of some MiB."""
    process = scene.start(hub, out="out0" if scene.cached else "out")
    wait_until(lambda: hub.served >= 3 * MIB)
    process.kill()
    assert 2 * MIB < length(scene.kept()) < scene.size


# ---- One that dies, or stops, in the middle


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("number", sample([4], [2, 10]))
def test_when_the_one_that_fetches_is_killed_another_goes_on_from_its_bytes(
    make: Make, number: int, layout: str
) -> None:
    """Of more than two a second one is killed, the one that took over."""
    cached, out_of = LAYOUTS[layout]
    scene = make(cached=cached)
    with Hub(scene.repository, token=TOKEN, rate=3e6) as hub:
        first = scene.start(hub, out=out_of(0))
        wait_until(lambda: hub.served >= 1.5 * MIB)
        hub.rate = 5e4  # next to nothing
        others = {scene.start(hub, out=out_of(n)): out_of(n) for n in range(1, number)}
        wait_until(lambda: all(WAITS in process.said[0] for process in others))
        hub.rate = 1e6
        assert first.kill().status == -signal.SIGKILL
        if number > 2:
            wait_until(lambda: any(GOES_ON in process.said[0] for process in others))
            [second] = [process for process in others if GOES_ON in process.said[0]]
            enough = hub.served + MIB
            wait_until(lambda: hub.served >= enough)
            assert second.kill().status == -signal.SIGKILL
            del others[second]
        hub.rate = None
        done = all_succeeded(list(others))
        assert sum(GOES_ON in d.out for d in done) == 1
        scene.through(*others.values())
        assert hub.served <= SIZE + 2 * (MIB + crash.IN_FLIGHT)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("number", sample([3], [2, 5]))
def test_one_that_is_stopped_is_not_waited_for_for_ever_and_succeeds_when_it_goes_on(
    make: Make, number: int, layout: str
) -> None:
    """The others leave its bytes alone."""
    cached, out_of = LAYOUTS[layout]
    scene = make(cached=cached)
    with Hub(scene.repository, token=TOKEN, rate=3e6) as hub:
        first = scene.start(hub, out=out_of(0))
        wait_until(lambda: hub.served >= 1.5 * MIB)
        first.send(signal.SIGSTOP)
        [its_own] = scene.hidden()
        hub.rate = 8e6
        plan = Plan(patience=IMPATIENT)
        all_succeeded([scene.start(hub, out=out_of(n), plan=plan) for n in range(1, number)])
        scene.holds(*(out_of(n) for n in range(1, number)))
        assert scene.hidden() == [its_own]
        print(f"{number} processes, {layout}, one of them stopped: {hub.served / SIZE:.2f} times the size served")
        first.send(signal.SIGCONT)
        all_succeeded([first])
        scene.through(*{out_of(n) for n in range(number)})
        # One of the others fetches in its place, and the rest wait for that one.
        assert hub.served <= 2 * SIZE


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_that_gets_no_answer_until_another_has_brought_the_file_takes_it(make: Make, layout: str) -> None:
    """As when it was stopped meanwhile, and the server has given it up."""
    cached, out_of = LAYOUTS[layout]
    scene = make(cached=cached)
    brought = threading.Event()

    def interfere(handler: Handler) -> bool:
        if len(hub.requests) > 1:
            return False
        brought.wait(60)
        handler.refuse(404)
        return True

    with Hub(scene.repository, token=TOKEN, interfere=interfere) as hub:
        first = scene.start(hub, out=out_of(0))
        wait_until(lambda: len(hub.requests) == 1)
        all_succeeded([scene.start(hub, out=out_of(1), plan=Plan(patience=IMPATIENT))])
        served = hub.served
        brought.set()
        all_succeeded([first])
        assert hub.served == served
        scene.through(out_of(0), out_of(1))


@pytest.mark.parametrize("whose", ["of another system", "of a process that has ended"])
def test_one_that_is_stopped_while_it_looks_at_a_leftover_keeps_nobody_from_it(make: Make, whose: str) -> None:
    scene = make()
    with Hub(scene.repository, token=TOKEN, rate=8e6) as hub:
        scene.watch(hub)
        left_by_a_kill(scene, hub)
        kept = scene.kept()
        if whose == "of another system":
            [left] = scene.hidden()
            left.rename(left.with_name(re.sub(r"[0-9a-f]{16}-", f"{0:016x}-", left.name)))
        # It looks by trying to lock the leftover, in two ways; or has begun, and is going to take it over.
        looks = scene.start(hub, plan=Plan(str(scene.below), ("flock",), 2, "SIGSTOP"))
        wait_until(lambda: looks.is_stopped)
        scene.asked.clear()
        all_succeeded([scene.start(hub, plan=Plan(patience=IMPATIENT))])
        assert overlap(scene.asked, kept) == 0
        looks.send(signal.SIGCONT)
        all_succeeded([looks])
        scene.through()


# ---- What lies in the cache


def flip(position: float) -> Callable[[Path], None]:
    """Turn one bit around, so far from the first one to the last one."""

    def damage(blob: Path) -> None:
        data = bytearray(blob.read_bytes())
        bit = int(position * (8 * len(data) - 1))
        data[bit // 8] ^= 1 << bit % 8
        blob.write_bytes(data)

    return damage


def cut(blob: Path) -> None:
    os.truncate(blob, blob.stat().st_size - 1)


def grow(blob: Path) -> None:
    blob.write_bytes(blob.read_bytes() + b"x")


def empty(blob: Path) -> None:
    blob.write_bytes(b"")


def link(blob: Path) -> None:
    """To the right bytes: someone else's file, which may change."""
    blob.rename(blob.parents[3] / "elsewhere")
    blob.symlink_to(blob.parents[3] / "elsewhere")


def link_to_nothing(blob: Path) -> None:
    blob.unlink()
    blob.symlink_to("nowhere")


def folder(blob: Path) -> None:
    blob.unlink()
    blob.mkdir()


def full_folder(blob: Path) -> None:
    folder(blob)
    (blob / "something").write_text("in it")


def damages() -> Iterator[Callable[[Path], None]]:
    yield from (cut, grow, empty, link, link_to_nothing, folder, full_folder)
    number = sample(6, 100)
    yield from (flip(n / (number - 1)) for n in range(number))


def test_a_damaged_file_in_the_cache_is_set_aside_and_never_given_out(make: Make, tmp_path: Path) -> None:
    """Offline it is an error that leaves what was there before; else the file is fetched again."""
    scene = make(300_000, cached=True)
    before = tmp_path / "before"
    with Hub(scene.repository, token=TOKEN) as hub, Lab(tmp_path, **scene.environment(hub)) as lab:
        assert lab(*scene.words()).status == 0
        scene.target().write_bytes(PREVIOUS)
        scene.below.rename(before)
        for damage in damages():
            for words, status in ((["--offline"], 1), ([], 0)):
                scene.clear()
                shutil.copytree(before, scene.below, dirs_exist_ok=True)
                scene.blob.chmod(0o644)
                damage(scene.blob)
                served = hub.served
                done = lab(*scene.words(), *words)
                with crash.telling(f"{damage} {words}"):
                    assert done.status == status
                    scene.holds(previous=PREVIOUS)
                    if status:
                        failed_cleanly(done)
                        assert hub.served == served
                        assert scene.target().read_bytes() == PREVIOUS
                        assert not os.path.lexists(scene.blob)
                    else:
                        assert hub.served - served == scene.size
                        scene.through()
                    assert "set aside" in done.out
                    assert len(list(scene.cache.rglob(".*.damaged"))) == 1
                    assert lab(*scene.words()).status == 0
                    scene.through()


def read_only_by_rights(cache: Path) -> tuple[str, ...]:
    for path in [cache, *cache.rglob("*")]:
        if path.is_dir():
            path.chmod(0o555)
    return (sys.executable, "-c", DROP_RIGHTS_OF_ROOT) if os.geteuid() == 0 else ()


def read_only_by_mount(cache: Path) -> tuple[str, ...]:
    command = ("unshare", "--mount", "sh", "-c", MOUNT_READ_ONLY, str(cache))
    with contextlib.suppress(OSError):
        if subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
            return command
    pytest.skip("nothing can be mounted here")


@pytest.mark.parametrize("make_read_only", [read_only_by_rights, read_only_by_mount])
def test_a_cache_that_is_read_only_gives_out_what_it_has_and_a_miss_says_so(
    make: Make, tmp_path: Path, make_read_only: Callable[[Path], tuple[str, ...]]
) -> None:
    hit = make(cached=True, seed=1)
    miss = Scene(tmp_path, SIZE, cached=True, seed=2, name="other")
    with Hub(hit.repository, token=TOKEN) as hub:
        assert hit.start(hub, out="before").end().status == 0
        before = make_read_only(hit.cache)
        try:
            hub.requests.clear()
            done = hit.start(hub, before=before).end()
            assert (done.status, done.err, hub.requests) == (0, "", [])
            assert "... from the cache" in done.out
            done = miss.start(hub, before=before).end()
            assert (done.status, done.err) == (0, "")
            assert "doing without the cache" in done.out
            assert hub.served == 2 * SIZE
        finally:
            for path in [hit.cache, *hit.cache.rglob("*")]:
                if path.is_dir():
                    path.chmod(0o755)
        hit.through()
        miss.through(kept=False)


# ---- A disk that is too small


def small_disk(place: Path, size: int) -> tuple[str, ...]:
    command = ("unshare", "--mount", "sh", "-c", ON_SMALL_DISK, str(size), str(place))
    with contextlib.suppress(OSError):
        if subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
            return command
    pytest.skip("nothing can be mounted here")


@pytest.mark.parametrize("cached", [False, True])
def test_a_leftover_is_gone_on_from_on_a_disk_with_room_for_the_rest_alone(make: Make, cached: bool) -> None:
    scene = make(cached=cached)
    place = scene.cache if cached else scene.below / "out"
    with Hub(scene.repository, token=TOKEN, rate=8e6) as hub:
        scene.watch(hub)
        left_by_a_kill(scene, hub)
        kept = scene.kept()
        missing = SIZE - length(kept)
        disk = small_disk(place, SIZE + MIB // 4)
        preview = scene.start(hub, "--dry_run", before=disk).end()
        assert (preview.status, preview.err) == (0, "")
        # The cache is another disk than the output.
        assert f"{missing / 1e6:.1f} MB needed in {place}" in preview.out
        scene.asked.clear()
        done = scene.start(hub, before=disk).end()
        assert (done.status, done.err) == (0, "")
        assert overlap(scene.asked, kept) == 0
        scene.through()


def test_a_cache_without_room_is_done_without_and_gives_out_what_it_has(make: Make, tmp_path: Path) -> None:
    hit = make(2 * MIB, cached=True, seed=1)
    miss = Scene(tmp_path, SIZE, cached=True, seed=2, name="other")
    with Hub(hit.repository, token=TOKEN) as hub:
        assert hit.start(hub, out="before").end().status == 0
        hub.requests.clear()
        disk = small_disk(hit.cache, 3 * MIB)
        done = hit.start(hub, "--name", "tiny,other", before=disk).end()
        assert (done.status, done.err) == (0, "")
        assert f"doing without adding to the cache {hit.cache}" in done.out
        assert "... from the cache" in done.out
        assert {request.rpartition("/")[2] for request in hub.requests} == {miss.file}
        hit.through()
        miss.through(kept=False)


def test_where_the_output_has_no_room_the_hint_is_about_that(make: Make) -> None:
    scene = make(cached=True)
    with Hub(scene.repository, token=TOKEN) as hub:
        done = scene.start(hub, before=small_disk(scene.below / "out", 3 * MIB)).end()
        failed_cleanly(done)
        assert f"needed in {scene.target().parents[1]}" in done.err
        assert "-o/--output_dir" in done.err
        assert hub.requests == []


def test_a_cache_that_fills_up_meanwhile_is_done_without(make: Make) -> None:
    scene = make(cached=True)
    with Hub(scene.repository, token=TOKEN) as hub:
        # The copy out of the cache, and what another process puts there after the look at the room.
        plan = Plan(str(scene.cache), ("pwrite",), 5, "fail from then on", "ENOSPC")
        done = scene.start(hub, plan=plan).end()
        assert (done.status, done.err) == (0, "")
        assert "doing without the cache" in done.out
        scene.holds()
        assert scene.target().read_bytes() == scene.data


# ---- What lies about


def test_leftovers_of_another_version_of_a_file_are_removed_beside_it(make: Make, tmp_path: Path) -> None:
    earlier = make(seed=1)
    with Hub(earlier.repository, token=TOKEN, rate=8e6) as hub:
        left_by_a_kill(earlier, hub)
    later = Scene(tmp_path, SIZE, seed=2)
    with Hub(later.repository, token=TOKEN) as hub:
        assert later.start(hub).end().status == 0
        assert hub.served == SIZE
        later.through()


def test_leftovers_of_another_version_stay_in_the_cache_until_it_is_cleaned_up(make: Make, tmp_path: Path) -> None:
    """They may be wanted by another model."""
    earlier = make(seed=1, cached=True)
    with Hub(earlier.repository, token=TOKEN, rate=8e6) as hub:
        left_by_a_kill(earlier, hub)
        [left] = earlier.hidden()
    later = Scene(tmp_path, SIZE, seed=2, cached=True)
    with Hub(later.repository, token=TOKEN) as hub:
        assert later.start(hub).end().status == 0
        assert later.hidden() == [left]
    words = [str(BIN / "omz_cache"), "gc", "--cache_dir", str(later.cache), "--keep_days", "0"]
    assert Running(words, tmp_path, {}).end().status == 0
    assert later.hidden() == []


@pytest.mark.parametrize("what", ["the output folder", "the output folder, with a cache", "the cache"])
def test_folders_that_are_removed_under_its_feet_end_in_success_or_one_clear_error(make: Make, what: str) -> None:
    draw = random.Random(what)
    scene = make(cached="cache" in what)
    place = scene.cache if what == "the cache" else scene.below / "out"
    with Hub(scene.repository, token=TOKEN, rate=8e6) as hub:
        for _ in range(sample(2, 30)):
            scene.clear()
            before = hub.served
            process = scene.start(hub)
            for _ in range(draw.randint(1, 3)):
                enough = before + draw.uniform(0, SIZE)
                wait_until(lambda enough=enough, process=process: hub.served >= enough or process.has_ended)
                shutil.rmtree(place, ignore_errors=True)
            done = process.end()
            scene.holds()
            if done.status:
                failed_cleanly(done)
            assert scene.start(hub).end().status == 0
            scene.through(kept=False)
            settled(hub)
