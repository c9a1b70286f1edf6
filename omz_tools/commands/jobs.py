"""The same work for several models, one after the other or at once; one that fails does not stop the others."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from omz_tools.errors import OmzError, StoppedError
from omz_tools.progress.reporting import Reporter


class Named(Protocol):
    """Something with the name of a model."""

    @property
    def name(self) -> str: ...


N = TypeVar("N", bound=Named)


def in_threads(
    entries: Sequence[N], work: Callable[[N], None], jobs: int, reporter: Reporter, stop: Callable[[], None]
) -> list[str]:
    """Do `work` for each model, up to `jobs` at a time; report each error and return the names that failed, in order.

    On a signal, `stop` is called to end the work that other threads are at.
    """

    def attempt(entry: N) -> bool:
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
