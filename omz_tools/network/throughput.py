"""The least throughput of a transfer; one that comes more slowly is cut off, wherever its reader waits."""

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

# A timeout of each read does not end a drip, least of all one in the framing of a body, of which no byte of it comes.
SLOWEST, SLOW_SECONDS = 1000, 30.0


class Throughput:
    """Watches a transfer within a block; `cut` is called from another thread.

    Attributes:
        too_slow: whether fewer than SLOWEST bytes a second came for SLOW_SECONDS, and the transfer was cut for it.
    """

    def __init__(self, cut: Callable[[], None]) -> None:
        self.too_slow = False
        self._cut = cut
        self._received = 0
        self._over = threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._over.set()

    def count(self, received: int) -> None:
        """Note that so many more bytes have come."""
        self._received += received

    def _watch(self) -> None:
        before = 0
        while not self._over.wait(SLOW_SECONDS):
            if self._received - before < SLOW_SECONDS * SLOWEST:
                self.too_slow = True
                self._cut()
                return
            before = self._received
