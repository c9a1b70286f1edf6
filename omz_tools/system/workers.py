"""Processes that do the heavy work and end: what torch and OpenVINO took of memory goes back with them.

This process stays small, and signals reach it at once. A worker takes calls, one after the other, until it is told to
end, or this process is gone: it then ends at once, whatever it is at.
"""

import contextlib
import gc
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Generic, ParamSpec, TypeVar

from omz_tools.errors import ConversionError, StoppedError

P = ParamSpec("P")
T = TypeVar("T")

# Of the memory that is free when the work begins, what models that are converted at a time may plan to take.
SHARE_OF_FREE_MEMORY = 0.8
# Where the system does not say how much is free.
_MODEST_BYTES = 4 << 30


class Pending(Generic[T]):
    """The result of a call that a worker is at, or has not come to yet."""

    def __init__(self, receive: Callable[[], None]) -> None:
        self._receive = receive
        self._answer: tuple[bool, Any] | None = None

    def settle(self, answer: tuple[bool, Any]) -> None:
        """Called once, when the worker has answered."""
        self._answer = answer

    def result(self) -> T:
        """Wait for it. Raises what the call raised, or ConversionError if the worker died."""
        while self._answer is None:
            self._receive()
        successful, value = self._answer
        if not successful:
            raise value
        result: T = value
        return result


class Worker:
    """One process, for calls of functions and arguments that can be pickled."""

    def __init__(self, workers: "Workers") -> None:
        self._workers = workers
        self._waiting: deque[Pending[Any]] = deque()
        # The path is handed over: what lies in the current folder is no library.
        code = f"import sys; sys.path[:] = {sys.path!r}; from omz_tools.system import workers; workers.serve()"
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def begin(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Pending[T]:
        """Let the worker do `work`, after all that it was given before."""
        with self._watched():
            stream = self._stream(self._process.stdin)
            pickle.dump((work, args, kwargs), stream)
            stream.flush()
        pending: Pending[T] = Pending(self._receive)
        self._waiting.append(pending)
        return pending

    def call(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Let the worker do `work`, and wait for the result. Raises as `Pending.result` does."""
        return self.begin(work, *args, **kwargs).result()

    def _receive(self) -> None:
        """Take in the next answer, which is to the oldest call without one."""
        with self._watched():
            answer = pickle.load(self._stream(self._process.stdout))  # noqa: S301 -- of our own process
        self._waiting.popleft().settle(answer)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            if self._workers.stopped:
                raise StoppedError("the run ends") from None
            status = self._process.wait()
            died = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
            raise ConversionError(
                f"a worker process {died}",
                hint="Memory may have run out. Try again with fewer --jobs, or with more memory free.",
            ) from None

    @staticmethod
    def _stream(stream: IO[bytes] | None) -> IO[bytes]:
        assert stream
        return stream

    def kill(self) -> None:
        """Kill the process. Whoever waits for it learns so: the streams stay open, for another thread may read them."""
        self._process.kill()

    def end(self) -> None:
        """End the process, whatever it is at."""
        self.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):  # what was not sent any more
                self._stream(stream).close()


class Workers:
    """All workers of a run, and the memory that they may take together."""

    def __init__(self, memory: int | None = None) -> None:
        """`memory`: bytes that models which are converted at a time may plan to take; None for most of what is free."""
        self._memory = int(SHARE_OF_FREE_MEMORY * _free_memory()) if memory is None else memory
        self._news = threading.Condition()
        self._planned: list[int] = []
        self._alive: set[Worker] = set()
        self.stopped = False

    @contextmanager
    def room(self, size: int, wait: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Plan to take `size` bytes: `wait` is called first if others must end before; what is alone never waits."""
        with self._news:
            if not self._fits(size):
                wait()
            self._news.wait_for(lambda: self.stopped or self._fits(size))
            if self.stopped:
                raise StoppedError("the run ends")
            self._planned.append(size)
        try:
            yield
        finally:
            with self._news:
                self._planned.remove(size)
                self._news.notify_all()

    def allow(self, size: int) -> bool:
        """Whether one model may take `size` bytes."""
        return size <= self._memory

    def _fits(self, size: int) -> bool:
        return not self._planned or sum(self._planned) + size <= self._memory

    @contextmanager
    def worker(self) -> Iterator[Worker]:
        """A new process for the block; it ends with it."""
        with self._news:
            if self.stopped:
                raise StoppedError("the run ends")
            worker = Worker(self)
            self._alive.add(worker)
        try:
            yield worker
        finally:
            worker.end()
            with self._news:
                self._alive.discard(worker)

    def stop(self) -> None:
        """End all workers; whoever waits for one gets a StoppedError."""
        with self._news:
            self.stopped = True
            self._news.notify_all()
            for worker in self._alive:
                worker.kill()


def _free_memory() -> int:
    """Bytes that can be taken without swapping."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        with contextlib.suppress(AttributeError, ValueError, OSError):  # a system without them
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
        return _MODEST_BYTES


def serve() -> None:
    """What a worker does: take calls from standard input, and answer on what was standard output."""
    # Libraries and traces make millions of objects, nearly all of which live as long as the process.
    gc.disable()
    # The parent ends its workers; a Ctrl-C in the terminal reaches them, too.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    calls, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # libraries print
    waiting: queue.SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = queue.SimpleQueue()

    def listen() -> None:
        with contextlib.suppress(EOFError, pickle.UnpicklingError):
            while True:
                waiting.put(pickle.load(calls))  # noqa: S301 -- of our own parent
        os._exit(1)  # the parent is gone

    threading.Thread(target=listen, daemon=True).start()
    while True:
        work, args, kwargs = waiting.get()
        try:
            answer = pickle.dumps((True, work(*args, **kwargs)))
        except Exception as error:  # noqa: BLE001 -- raised again in the parent
            answer = _failure(error)
        try:
            answers.write(answer)
            answers.flush()
        except BrokenPipeError:
            os._exit(1)  # the parent is gone


def _failure(error: Exception) -> bytes:
    try:
        answer = pickle.dumps((False, error))
        pickle.loads(answer)  # noqa: S301 -- made a line above
        return answer
    except Exception:  # noqa: BLE001 -- an exception whose kind cannot be pickled
        return pickle.dumps((False, RuntimeError(f"{type(error).__name__}: {error}")))
