"""Processes that do the heavy work: results, errors, deaths, and the memory that they share."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from omz_tools.cache import stages
from omz_tools.errors import ConversionError, MissingError, StoppedError
from omz_tools.export import checkpoint
from omz_tools.system import files
from omz_tools.system.workers import Workers


def test_a_worker_is_another_process_and_stays_the_same_one() -> None:
    with Workers(0).worker() as worker:
        first, second = worker.call(os.getpid), worker.call(os.getpid)
    assert first == second != os.getpid()
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)


def test_results_are_received_in_any_order() -> None:
    with Workers(0).worker() as worker:
        pending = [worker.begin(divmod, number, 3) for number in range(5)]
        assert [p.result() for p in reversed(pending)] == [divmod(number, 3) for number in reversed(range(5))]
        assert pending[2].result() == (0, 2)


def test_errors_come_back_whole(tmp_path: Path) -> None:
    with Workers(0).worker() as worker:
        with pytest.raises(FileNotFoundError) as caught:
            worker.call(files.digest_of, tmp_path / "absent", "sha256")
        assert caught.value.filename == str(tmp_path / "absent")
        with pytest.raises(MissingError) as failed:
            worker.call(checkpoint.load, tmp_path)
        assert "config.json is missing" in failed.value.what
        assert failed.value.hint
        assert worker.call(divmod, 7, 2) == (3, 1)


def test_what_a_library_prints_does_not_get_among_the_answers() -> None:
    with Workers(0).worker() as worker:
        worker.call(print, "said by a library")
        worker.call(os.write, 1, b"and by native code\n")
        assert worker.call(divmod, 7, 2) == (3, 1)


def test_a_worker_that_dies_is_an_error_that_says_so() -> None:
    with Workers(0).worker() as worker:
        with pytest.raises(ConversionError, match="was killed by signal 9") as caught:
            worker.call(signal.raise_signal, signal.SIGKILL)
        assert "fewer --jobs" in caught.value.hint


def test_libraries_in_the_current_folder_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('taken')")
    monkeypatch.chdir(tmp_path)
    with Workers(0).worker() as worker:
        assert worker.call(stages.key, {}) == stages.key({})


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_workers_end_with_a_parent_that_is_killed() -> None:
    code = (
        "import os, time\n"
        "from omz_tools.system.workers import Workers\n"
        "with Workers(0).worker() as worker:\n"
        "    print(worker.call(os.getpid), flush=True)\n"
        "    worker.call(time.sleep, 600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    child = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    until = time.monotonic() + 30
    while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split()[2]:
        assert time.monotonic() < until, "the worker goes on"
        time.sleep(0.05)


def test_stopping_ends_a_call_in_another_thread() -> None:
    workers = Workers(0)
    caught: list[BaseException] = []
    began = threading.Event()

    def work() -> None:
        with workers.worker() as worker:
            pending = worker.begin(time.sleep, 600)
            began.set()
            with pytest.raises(StoppedError) as stopped:
                pending.result()
        caught.append(stopped.value)

    thread = threading.Thread(target=work)
    thread.start()
    began.wait()
    workers.stop()
    thread.join(timeout=30)
    assert len(caught) == 1
    with pytest.raises(StoppedError), workers.worker():
        pass


def test_work_waits_until_there_is_memory_and_what_is_alone_never_does() -> None:
    workers = Workers(100)
    order: list[str] = []
    second_waits, first_may_end = threading.Event(), threading.Event()

    def first() -> None:
        with workers.room(1000):  # more than there is
            order.append("first")
            first_may_end.wait()
            order.append("first ends")

    def second() -> None:
        with workers.room(10, second_waits.set):
            order.append("second")

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    while not order:
        time.sleep(0.01)
    threads[1].start()
    assert second_waits.wait(30)
    assert order == ["first"]
    first_may_end.set()
    for thread in threads:
        thread.join(30)
    assert order == ["first", "first ends", "second"]


def test_what_fits_does_not_wait() -> None:
    workers = Workers(100)
    with workers.room(60), workers.room(40, lambda: pytest.fail("it waits")):
        pass


def test_stage_keys_depend_on_all_that_is_in_them_and_on_no_order() -> None:
    one = {"a": 1, "b": {"c": "x", "d": [1, 2]}}
    assert stages.key(one) == stages.key({"b": {"d": [1, 2], "c": "x"}, "a": 1})
    assert len({stages.key(o) for o in (one, one | {"a": 2}, one | {"b": {}}, {})}) == 4
    assert stages.changes(one, one) == ""
    assert stages.changes(one, {"a": 2, "b": {"c": "y", "d": [1, 2]}}) == "a is 2, was 1, b c is y, was x"
    assert stages.changes({}, {"torch": "2.13"}) == "torch is 2.13, was not there"
    many = stages.changes({}, {str(number): number for number in range(9)})
    assert many.endswith(", and 6 more")
