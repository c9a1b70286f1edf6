"""One source to one partial file: over several connections, hashed in order behind them, and on after each cut."""

import hashlib
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from omz_tools.answers import TransientError
from omz_tools.descriptor import FileEntry, Source
from omz_tools.errors import IntegrityError, SourceError
from omz_tools.files import CHUNK
from omz_tools.partial import Partial
from omz_tools.sources import key, location, open_source
from omz_tools.transport import Body, Transport

# A large file is asked for in several pieces for each connection, so that a slow one holds up little.
PIECES_PER_CONNECTION = 4
SMALLEST_PIECE, LARGEST_PIECE = 4 << 20, 64 << 20
# So many new bytes between two faults are progress: the source is asked again at once, with all its attempts.
PROGRESS = 1 << 14
# After a fault no more is asked for at once than came before it, but at least so much: when a connection is reset, what
# is on its way is lost. After so many whole answers it is twice as much.
SHORTEST_ANSWER, WHOLE_ANSWERS = 1 << 16, 8
# A server that names a longer wait (seconds) is given up.
LONGEST_WAIT = 300.0


@dataclass(frozen=True)
class Manner:
    """How a source is asked.

    Attributes:
        attempts: how often without progress in between.
        connections: how many at a time, if the server answers ranges.
        ranges: whether to ask for parts of the file at all.
        note: called with a line for the user.
    """

    attempts: int
    connections: int
    ranges: bool
    note: Callable[[str], None]


@dataclass
class _Piece:
    """What is still to be fetched of a part of the file: from `first` to before `end`."""

    first: int
    end: int


@dataclass
class _Luck:
    """How a connection fared: new bytes since its last fault, and faults in a row without progress."""

    gained: int = 0
    failures: int = 0


class Transfer:
    """The work of bringing what a partial file lacks from one source."""

    def __init__(
        self, source: Source, folder: Path, entry: FileEntry, partial: Partial, transport: Transport, manner: Manner
    ) -> None:
        self._source, self._folder, self._entry, self._partial = source, folder, entry, partial
        self._transport, self._manner = transport, manner
        self._place, self._key = location(source, folder), key(source, folder)
        self._news = threading.Condition()
        # All below are guarded by it.
        self._pieces = deque(_pieces(partial.holes(), manner.connections if manner.ranges else 1))
        self._workers: list[threading.Thread] = []
        self._working = 0
        self._dismissed = 0
        self._bodies: list[Body] = []
        self._beginnings = 0
        self._longest = entry.size
        self._whole_answers = 0
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
        kind = self._entry.digest.algorithm
        hasher, hashed, beginnings = hashlib.new(kind), 0, 0
        buffer = memoryview(bytearray(CHUNK))
        with self._news:
            if self._pieces:
                self._hire()
        try:
            working = True
            while working or hashed < self._partial.prefix:
                with self._news:
                    if self._working and self._partial.prefix == hashed:
                        self._news.wait(timeout=1)
                    working = self._working > 0
                progress(self._partial.held)
                if beginnings != self._beginnings:
                    hasher, hashed, beginnings = hashlib.new(kind), 0, self._beginnings
                while hashed < (prefix := self._partial.prefix):
                    count = self._partial.read_into(hashed, buffer[: prefix - hashed])
                    hasher.update(buffer[:count])
                    hashed += count
                    if not count or beginnings != self._beginnings:
                        break
        finally:
            self._end()
        if self._failure:
            raise self._failure
        if hasher.hexdigest() != self._entry.digest.value:
            raise wrong(self._place, f"a file with {kind} {hasher.hexdigest()}", self._entry.digest.value)

    def _hire(self) -> None:
        self._working += 1
        # Nothing waits for it when the process is to end.
        worker = threading.Thread(target=self._work, daemon=True)
        self._workers.append(worker)
        worker.start()

    def _end(self) -> None:
        with self._news:
            self._stopped = True
            for body in self._bodies:
                body.abort()
        for worker in self._workers:
            # One that waits for an answer is left to itself: it finds out when that comes.
            worker.join(timeout=0.5)

    def _work(self) -> None:
        """Fetch piece after piece until there are none, or this connection is one too many, or the source fails."""
        try:
            luck = _Luck()
            while (piece := self._next()) and self._bring(piece, luck):
                pass
        except BaseException as error:  # noqa: BLE001 -- raised again by run, in the thread that waits
            with self._news:
                if not isinstance(self._failure, IntegrityError):
                    self._failure = error
                self._stopped = True
                self._leave()

    def _next(self) -> _Piece | None:
        with self._news:
            if self._pieces and not self._stopped:
                return self._pieces.popleft()
            self._leave()
            return None

    def _leave(self) -> None:
        self._working -= 1
        self._news.notify_all()

    def _bring(self, piece: _Piece, luck: _Luck) -> bool:
        """Fetch a piece, asking again after faults; False if it was given back, for others to fetch."""
        while piece.first < piece.end and not self._stopped:
            first, beginnings = piece.first, self._beginnings
            try:
                self._ask(piece)
                luck.gained += piece.first - first
            except SourceError as error:
                if piece.first == piece.end:
                    break
                self._count(piece, first, beginnings, luck)
                if luck.failures and self._give_back(piece):
                    return False
                self._wait_or_raise(error, luck.failures)
        return True

    def _count(self, piece: _Piece, first: int, beginnings: int, luck: _Luck) -> None:
        """Count a fault as one without progress, unless there was some since the last fault."""
        anew = self._beginnings - beginnings
        if not anew and piece.first > first:
            self._longest, self._whole_answers = max(piece.first - first, SHORTEST_ANSWER), 0
        # To begin anew each time is no progress.
        luck.gained += piece.first - first if not anew else piece.first if self._beginnings == 1 else 0
        luck.failures = 0 if luck.gained >= PROGRESS else luck.failures + 1
        luck.gained = 0

    def _give_back(self, piece: _Piece) -> bool:
        """Leave a piece that this connection cannot get to the others, if there are any."""
        with self._news:
            if self._working == 1:
                return False
            self._pieces.appendleft(piece)
            self._dismissed += 1
            self._leave()
            return True

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

    def _ask(self, piece: _Piece) -> None:
        """Make one request, and write what it brings."""
        first, end = 0, None
        if self._manner.ranges:
            first, end = piece.first, min(piece.end, piece.first + self._longest)
            if end == self._entry.size:
                end = None
        etag = self._partial.etag(self._key)
        with open_source(self._source, self._folder, self._transport, first=first, end=end, etag=etag) as body:
            with self._news:
                if self._stopped:
                    return
                self._accept(body, piece)
                self._bodies.append(body)
                until = end if end and body.ranges else piece.end
            try:
                self._write(body, piece)
            finally:
                with self._news:
                    self._bodies.remove(body)
        if piece.first < until and not self._stopped:
            raise TransientError(
                f"the transfer from {self._place} ended after {piece.first:,} of {self._entry.size:,} bytes"
            )
        self._whole_answers += 1
        if self._whole_answers == WHOLE_ANSWERS:
            self._longest, self._whole_answers = 2 * self._longest, 0

    def _accept(self, body: Body, piece: _Piece) -> None:
        """Look at what an answer is, and take it as the piece, or the whole file, that it is."""
        size, known = self._entry.size, self._partial.etag(self._key)
        if body.total is not None and body.total != size:
            raise wrong(self._place, f"{body.total:,} bytes", f"{size:,}")
        if not body.ranges:
            if self._working > 1:
                raise changed(self._place)
            # A server that does not answer ranges, or has another version than the one begun with.
            self._pieces.clear()
            piece.first, piece.end = 0, size
            self._partial.clear()
            self._beginnings += 1
        elif known and body.etag and body.etag != known:
            raise changed(self._place)
        if body.etag:
            self._partial.remember(self._key, body.etag)
        if body.length is not None and body.length > piece.end - piece.first:
            # A server that takes no notice of where the part ends: to leave it there would waste what is on the way.
            while self._pieces and self._pieces[0].first == piece.end:
                piece.end = self._pieces.popleft().end
        if body.ranges:
            for _ in range(min(self._manner.connections - self._dismissed - self._working, len(self._pieces))):
                self._hire()

    def _write(self, body: Body, piece: _Piece) -> None:
        for chunk in body:
            if self._stopped:
                return
            room = piece.end - piece.first
            if len(chunk) > room and not body.ranges:
                raise wrong(self._place, f"more than {self._entry.size:,} bytes", f"{self._entry.size:,}")
            self._partial.write(piece.first, chunk[:room])
            piece.first += min(len(chunk), room)
            with self._news:
                self._news.notify_all()
            if len(chunk) > room:
                return


def _pieces(holes: list[tuple[int, int]], connections: int) -> list[_Piece]:
    """What is missing, in pieces of about one size whose number suits the connections."""
    missing = sum(end - first for first, end in holes)
    length = missing
    if connections > 1 and missing >= connections * SMALLEST_PIECE:
        number = max(min(missing // SMALLEST_PIECE, connections * PIECES_PER_CONNECTION), missing // LARGEST_PIECE)
        length = -(-missing // (-(-number // connections) * connections))
    return [_Piece(at, min(at + length, end)) for first, end in holes for at in range(first, end, length)]


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
