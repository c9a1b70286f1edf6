"""One source to one partial file: over several connections, hashed in order behind them, and on after each cut."""

import hashlib
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from omz_tools.cache.partial import Partial
from omz_tools.descriptors.descriptor import FileEntry, Source
from omz_tools.download.parts import Part, Parts
from omz_tools.download.sources import key, location, open_source
from omz_tools.errors import IntegrityError, SourceError
from omz_tools.network.answers import TransientError
from omz_tools.network.transport import Body, Transport
from omz_tools.system.files import CHUNK
from omz_tools.system.settling import settling

# So many new bytes between two faults are progress: the source is asked again at once, with all its attempts.
PROGRESS = 1 << 14
# What has come is looked at so often (seconds), and not for each few bytes, which would cost more than to hash them.
BEAT_SECONDS = 0.02
# A server that names a longer wait (seconds) is given up.
LONGEST_WAIT = 300.0
# A connection with nothing to do takes over what another one needs so long for (seconds), if it is much faster itself.
LATE_SECONDS, MUCH_FASTER = 3.0, 2


@dataclass(frozen=True)
class Manner:
    """How a source is asked.

    Attributes:
        attempts: how often without progress in between.
        connections: how many at a time, if the server answers ranges.
        ranges: whether to ask for parts of the file at all.
        at_once: whether to begin with one request for all that is missing.
        note: called with a line for the user.
    """

    attempts: int
    connections: int
    ranges: bool
    at_once: bool
    note: Callable[[str], None]


@dataclass(eq=False)
class _Worker:
    """A connection: what it is at, and how it fared.

    Attributes:
        thread: which does its work.
        part: what it is at; None while it waits for something to do.
        body: the answer that it reads.
        brought: new bytes since its last fault.
        failures: faults in a row without progress.
        pace: bytes a second of its last answer.
    """

    thread: threading.Thread = field(init=False)
    part: Part | None = None
    body: Body | None = None
    brought: int = 0
    failures: int = 0
    pace: float = 0.0


class Transfer:
    """The work of bringing what a partial file lacks from one source."""

    def __init__(
        self, source: Source, folder: Path, entry: FileEntry, partial: Partial, transport: Transport, manner: Manner
    ) -> None:
        self._source, self._folder, self._entry, self._partial = source, folder, entry, partial
        self._transport, self._manner = transport, manner
        self._place, self._key = location(source, folder), key(source, folder)
        self._guard = threading.RLock()
        self._end_of_one, self._work_to_do = threading.Condition(self._guard), threading.Condition(self._guard)
        # All below are guarded by it.
        self._parts = Parts(entry.size, partial.holes(), manner.connections, at_once=manner.at_once)
        self._workers: list[_Worker] = []
        self._most = self._parts.connections
        self._beginnings = 0
        self._failure: BaseException | None = None
        self._stopped = False

    def run(self, progress: Callable[[int], None]) -> None:
        """Fill the partial file and check its digest; `progress` is called with the number of bytes there are.

        Raises:
            SourceError: the source fails, or fails too often; what came is kept.
            RangeError: it does not give the part asked for; one may ask again without ranges.
            UnsupportedError: it is of a kind that is not supported.
            IntegrityError: it has other bytes, or changed meanwhile.
            StoppedError: the transport was closed.
            OSError: the partial file cannot be written.
        """
        with self._guard:
            if self._parts.missing:
                self._hire()
        try:
            with settling(self._partial.settle):
                digest = self._hash(progress)
        finally:
            self._end()
        if self._failure:
            raise self._failure
        if digest != self._entry.digest.value:
            found = f"a file with {self._entry.digest.algorithm} {digest}"
            raise wrong(self._place, found, self._entry.digest.value)

    def _hash(self, progress: Callable[[int], None]) -> str:
        """Hash what comes in order, until all has come or nothing more will; the digest of what there is."""
        kind = self._entry.digest.algorithm
        hasher, hashed, beginnings = hashlib.new(kind), 0, 0
        buffer = memoryview(bytearray(CHUNK))
        working = True
        while working or hashed < self._partial.prefix:
            with self._guard:
                if self._workers:
                    self._end_of_one.wait(timeout=BEAT_SECONDS)
                working = bool(self._workers)
            progress(self._partial.held)
            if beginnings != self._beginnings:
                hasher, hashed, beginnings = hashlib.new(kind), 0, self._beginnings
            while hashed < (prefix := self._partial.prefix):
                count = self._partial.read_into(hashed, buffer[: prefix - hashed])
                hasher.update(buffer[:count])
                hashed += count
                if not count or beginnings != self._beginnings:
                    break
        return hasher.hexdigest()

    def _hire(self) -> None:
        worker = _Worker()
        self._workers.append(worker)
        # Nothing waits for it when the process is to end.
        worker.thread = threading.Thread(target=self._work, args=(worker,), daemon=True)
        worker.thread.start()

    def _end(self) -> None:
        with self._guard:
            self._stopped = True
            self._work_to_do.notify_all()
            left = list(self._workers)
            for worker in left:
                if worker.body:
                    worker.body.abort()
        for worker in left:
            # One that waits for an answer is left to itself: it finds out when that comes, and writes nothing more.
            worker.thread.join(timeout=0.5)

    def _work(self, worker: _Worker) -> None:
        """Fetch part after part until there are none, or this connection is one too many, or the source fails."""
        try:
            while part := self._next(worker):
                self._bring(worker, part)
        except BaseException as error:  # noqa: BLE001 -- raised again by run, in the thread that waits
            with self._guard:
                if worker in self._workers:
                    if not isinstance(self._failure, IntegrityError):
                        self._failure = error
                    self._stopped = True
                    self._dismiss(worker)

    def _next(self, worker: _Worker) -> Part | None:
        """What a connection is to fetch next, waited for as long as others may give something back."""
        with self._guard:
            worker.part = None
            while worker in self._workers and not self._stopped:
                if part := self._parts.take(worker.brought):
                    worker.part = part
                    return part
                if self._most < len(self._workers) or not any(other.part for other in self._workers):
                    break
                if not self._relieve(worker):
                    self._work_to_do.wait(timeout=LATE_SECONDS / 10)
            self._dismiss(worker)
            return None

    def _dismiss(self, worker: _Worker) -> None:
        """Do without a connection; what it does from now on has no effect."""
        if worker in self._workers:
            self._workers.remove(worker)
        worker.part = None
        self._work_to_do.notify_all()
        self._end_of_one.notify_all()

    def _relieve(self, worker: _Worker) -> bool:
        """Take from one that is late what it is at, for a connection with nothing to do; False if none is."""
        for other in self._workers:
            left = other.part.seconds_left() if other.part else 0.0
            if other.part and left > LATE_SECONDS and other.part.missing < worker.pace * left / MUCH_FASTER:
                self._parts.give_back(other.part)
                self._most -= 1
                self._dismiss(other)
                if other.body:
                    other.body.abort()
                return True
        return False

    def _bring(self, worker: _Worker, part: Part) -> None:
        """Ask for a part once; after a fault what is missing of it is given back."""
        first, beginnings, began = part.first, self._beginnings, time.monotonic()
        try:
            self._ask(worker, part)
        except SourceError as error:
            with self._guard:
                if worker.part is not part:
                    return
                if part.missing:
                    self._count(worker, part, first, beginnings)
                    self._give_back(worker, part)
                    if self._workers != [worker] and (worker.failures or _lasts(error)):
                        # What this connection cannot get is left to the others.
                        self._most -= 1
                        self._dismiss(worker)
                        return
            if part.missing:
                self._wait_or_raise(error, worker.failures)
        else:
            with self._guard:
                worker.brought += part.first - first
                worker.pace = (part.first - first) / max(time.monotonic() - began, 1e-9)
                if worker.part is part:
                    self._give_back(worker, part)

    def _give_back(self, worker: _Worker, part: Part) -> None:
        worker.part = None
        self._parts.give_back(part)
        self._work_to_do.notify_all()

    def _count(self, worker: _Worker, part: Part, first: int, beginnings: int) -> None:
        """Count a fault as one without progress, unless there was some since the last fault."""
        anew = self._beginnings - beginnings
        # To begin anew each time is no progress.
        worker.brought += part.first - first if not anew else part.first if self._beginnings == 1 else 0
        worker.failures = 0 if worker.brought >= PROGRESS else worker.failures + 1
        worker.brought = 0

    def _wait_or_raise(self, error: SourceError, failures: int) -> None:
        """Wait until the source may be asked again, after so many faults in a row; raise if it may not."""
        if not isinstance(error, TransientError):
            raise error
        if max(failures, 1) >= self._manner.attempts:
            error.hint = f"Tried {max(failures, 1)} times. {error.hint}".strip()
            raise error
        if error.retry_after > LONGEST_WAIT:
            error.hint = f"It asks to be left alone for {error.retry_after:,.0f} s. Try again after that."
            raise error
        backoff = 0.5 * 2 ** (failures - 1) * random.uniform(0.5, 1) if failures else 0.0  # noqa: S311
        wait = max(error.retry_after, backoff)
        if wait:
            self._manner.note(f"... {error.what}; trying again in {wait:.1f} s")
        until = time.monotonic() + wait
        while (left := until - time.monotonic()) > 0 and not self._stopped:
            self._transport.pause(min(left, 0.2))

    def _ask(self, worker: _Worker, part: Part) -> None:
        """Make one request, and write what it brings."""
        first, end = 0, None
        if self._manner.ranges:
            first, end = part.first, None if part.end == self._entry.size else part.end
        etag = self._partial.etag(self._key)
        with open_source(self._source, self._folder, self._transport, first=first, end=end, etag=etag) as body:
            with self._guard:
                if self._stopped or worker.part is not part:
                    return
                self._accept(body, part)
                worker.body, begin = body, part.first
            try:
                self._write(worker, part, body)
            except SourceError:
                with self._guard:
                    if worker.part is part:
                        self._parts.beware(worker.brought + part.first - begin)
                raise
            finally:
                worker.body = None
        came = part.first - begin
        # A whole answer may be shorter than what was asked for, but not by so much that this never ends.
        if part.missing and (came != body.length or came < PROGRESS) and not self._stopped:
            raise TransientError(
                f"the transfer from {self._place} ended after {part.first:,} of {self._entry.size:,} bytes"
            )

    def _accept(self, body: Body, part: Part) -> None:
        """Look at what an answer is, and take it as the part, or the whole file, that it is."""
        size, known = self._entry.size, self._partial.etag(self._key)
        if body.total is not None and body.total != size:
            error = wrong(self._place, f"{body.total:,} bytes", f"{size:,}")
            # Behind another answer it may be the rest of that: a new connection tells.
            raise error if body.is_first else TransientError(error.what, hint=error.hint)
        if not body.ranges:
            if sum(worker.part is not None for worker in self._workers) > 1:
                raise changed(self._place)
            # A server that does not answer ranges, or has another version than the one begun with.
            self._parts.begin_anew(part)
            self._most = 1
            self._partial.clear()
            self._beginnings += 1
        elif known and body.etag and body.etag != known:
            raise changed(self._place)
        if body.etag:
            self._partial.remember(self._key, body.etag)
        if body.length is not None and body.length > part.missing:
            # A server that takes no notice of where the part ends: to leave it there would waste what is on the way.
            self._parts.extend(part)
        while body.ranges and self._parts.missing and len(self._workers) < self._most:
            self._hire()

    def _write(self, worker: _Worker, part: Part, body: Body) -> None:
        for chunk in body:
            with self._guard:
                # Under the same guard as the write: what is done without must not change what was hashed.
                if self._stopped or worker.part is not part:
                    return
                if len(chunk) > part.missing and not body.ranges:
                    raise wrong(self._place, f"more than {self._entry.size:,} bytes", f"{self._entry.size:,}")
                more = len(chunk) > part.missing
                chunk = chunk[: part.missing]
                self._partial.write(part.first, chunk)
                part.advance(len(chunk))
            if more:
                return


def _lasts(error: SourceError) -> bool:
    """Whether it is of no use to ask again within reason."""
    return not isinstance(error, TransientError) or error.retry_after > LONGEST_WAIT


def changed(place: str) -> IntegrityError:
    """The error for a source whose file is another one than a moment ago."""
    return IntegrityError(
        f"{place} changed while it was fetched", hint="Try again; if it lasts, the server is at fault."
    )


def wrong(place: str, found: str, wanted: str) -> IntegrityError:
    """The error for a source that has other bytes than the pinned ones."""
    return IntegrityError(
        f"{place} gives {found}, the descriptor pins {wanted}",
        hint="Nothing was stored. The source has other bytes than the descriptor: check the pinned revision, and any "
        "proxy or mirror on the way.",
    )
