"""The same work for several models, one after the other or at once; one that fails does not stop the others."""

import multiprocessing
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from omz_tools.errors import ConversionError, OmzError, StoppedError
from omz_tools.progress import PlainReporter, Reporter
from omz_tools.zoo import Entry


def in_threads(
    entries: Sequence[Entry], work: Callable[[Entry], None], jobs: int, reporter: Reporter, stop: Callable[[], None]
) -> list[str]:
    """Do `work` for each model, up to `jobs` at a time; report each error and return the names that failed, in order.

    On a signal, `stop` is called to end the work that other threads are at.
    """

    def attempt(entry: Entry) -> bool:
        try:
            work(entry)
        except StoppedError:
            return False
        except OmzError as error:
            reporter.error(error)
            return False
        return True

    if min(jobs, len(entries)) <= 1:
        # In the main thread, where a signal interrupts the work itself.
        return [entry.name for entry in entries if not attempt(entry)]
    with ThreadPoolExecutor(jobs) as pool:
        try:
            done = list(pool.map(attempt, entries))
        except BaseException:
            stop()
            pool.shutdown(cancel_futures=True)
            raise
    return [entry.name for entry, successful in zip(entries, done, strict=True) if not successful]


def in_processes(
    entries: Sequence[Entry], work: Callable[[Entry, Reporter], None], jobs: int, reporter: Reporter
) -> list[str]:
    """Do `work` for each model, up to `jobs` at a time, each in a process of its own; return the names that failed.

    A conversion keeps a processor busy and fills memory; a process gives both back when it ends. `work` must be
    picklable.
    """
    if min(jobs, len(entries)) <= 1:
        return in_threads(entries, lambda entry: work(entry, reporter), 1, reporter, lambda: None)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn, initializer=_begin_process, max_tasks_per_child=1) as pool:

        def convert(entry: Entry) -> None:
            try:
                pool.submit(_in_process, work, entry).result()
            except BrokenProcessPool:
                raise ConversionError(
                    "the process that converted it, or another one beside it, died",
                    hint="Memory may have run out. Try again with fewer --jobs.",
                    where=(f"model {entry.name}",),
                ) from None

        def stop() -> None:
            for child in multiprocessing.active_children():
                child.terminate()

        return in_threads(entries, convert, jobs, reporter, stop)


def _begin_process() -> None:
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # so that hidden files are removed


def _in_process(work: Callable[[Entry, Reporter], None], entry: Entry) -> None:
    work(entry, PlainReporter(model=entry.name))
