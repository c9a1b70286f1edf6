"""What is written to a file is put on the disk while more comes, so that little is waited for at the end."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SETTLE_SECONDS = 0.5


@contextmanager
def settling(settle: Callable[[], None]) -> Iterator[None]:
    """Call `settle`, which puts on the disk what was written so far, again and again within the block.

    Raises:
        OSError: as `settle` did, at the end of the block; a failure of the disk is told once, and not to later calls.
    """
    over = threading.Event()
    failures: list[OSError] = []

    def again() -> None:
        while not failures and not over.wait(SETTLE_SECONDS):
            try:
                settle()
            except OSError as error:
                failures.append(error)

    thread = threading.Thread(target=again, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if failures:
        raise failures[0]
