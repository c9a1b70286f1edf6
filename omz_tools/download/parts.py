"""What is still to be fetched of a file, and which part of it a connection asks for next."""

import bisect
import time

# A file is shared between connections that each have at least so much of it to fetch.
WORTH_SHARING = 4 << 20
# What is left is dealt out in parts that grow smaller towards the end, so that all connections end at about the same
# time; the bytes are hashed in order, so that a part is never very large.
SMALLEST_PART, LARGEST_PART = 2 << 20, 32 << 20
# When a connection is reset, what its server has written and not yet sent is lost. That is never more than was asked
# for: all connections together ask for this share of the file at most, or for so much of a small one, ...
SHARE_AT_RISK, LITTLE = 16, 2 << 20
# ... and after a fault each one for this share of what it has brought since its last one, or for so much.
SHARE_AFTER_FAULT, SHORTEST_PART = 16, 1 << 17
# Nor is it more than the buffer of a connection: what the common systems let that grow to.
LARGEST_BUFFER = 4 << 20
# The pace of a connection is what it had for the last second or two.
PACE_SECONDS = 1.0


class Part:
    """A part of the file that a connection is at: what is missing of it begins at `first` and ends before `end`."""

    def __init__(self, first: int, end: int) -> None:
        self.first, self.end = first, end
        self._heard = time.monotonic()
        # When the pace was taken, and what `first` was: the last time, and the one before it.
        self._marks: tuple[tuple[float, int], tuple[float, int]] | None = None

    @property
    def missing(self) -> int:
        return self.end - self.first

    def advance(self, count: int) -> None:
        """Note that so many more bytes have come."""
        self._heard = now = time.monotonic()
        self.first += count
        if not self._marks:
            self._marks = ((now, self.first), (now, self.first))
        elif now - self._marks[1][0] >= PACE_SECONDS:
            self._marks = (self._marks[1], (now, self.first))

    def seconds_left(self) -> float:
        """How long the rest takes at the pace of late; a connection that is silent will be so as long again."""
        now = time.monotonic()
        silence = now - self._heard
        if not self._marks:
            return silence
        since, first = self._marks[0]
        if now - since < PACE_SECONDS:
            return silence
        return max(silence, self.missing * (now - since) / max(self.first - first, 1))


class Parts:
    """What no connection is at yet. Not for several threads at once: its user guards it."""

    def __init__(self, size: int, holes: list[tuple[int, int]], connections: int, *, at_once: bool = False) -> None:
        """Deal out what is missing.

        Args:
            size: of the whole file.
            holes: offsets of the first byte and behind the last one, in order.
            connections: the most to share it between.
            at_once: whether a first part may be all there is, for one connection.
        """
        self._size, self._holes = size, list(holes)
        self.connections = connections if self.missing >= connections * WORTH_SHARING else 1
        self._longest = size if at_once else max(LITTLE, size // SHARE_AT_RISK) // self.connections

    @property
    def missing(self) -> int:
        """The number of bytes."""
        return sum(end - first for first, end in self._holes)

    def take(self, brought: int) -> Part | None:
        """The next part for a connection that brought so many bytes since its last fault; None if there is none."""
        if not self._holes:
            return None
        longest = max(self._longest, brought // SHARE_AFTER_FAULT)
        if longest >= LARGEST_BUFFER:
            longest = self._size
        if self.connections > 1:
            longest = min(longest, LARGEST_PART, max(SMALLEST_PART, self.missing // self.connections))
        first, end = self._holes.pop(0)
        if first + longest < end:
            self._holes.insert(0, (first + longest, end))
        return Part(first, min(first + longest, end))

    def give_back(self, part: Part) -> None:
        """Let others fetch what is missing of a part."""
        if part.missing:
            bisect.insort(self._holes, (part.first, part.end))

    def extend(self, part: Part) -> None:
        """Add to a part all that is missing right behind it."""
        while (behind := next((hole for hole in self._holes if hole[0] == part.end), None)) is not None:
            self._holes.remove(behind)
            part.end = behind[1]

    def begin_anew(self, part: Part) -> None:
        """Make a part the whole file, with nothing left for others."""
        self._holes.clear()
        part.first, part.end = 0, self._size

    def beware(self, brought: int) -> None:
        """From now on ask for less at once: a connection broke that had brought so many bytes since its last fault."""
        self._longest = max(brought // SHARE_AFTER_FAULT, SHORTEST_PART)
