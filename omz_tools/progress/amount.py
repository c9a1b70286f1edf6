"""How much of something is done, how fast it goes of late, and how long the rest takes at this speed."""

import time
from collections import deque
from collections.abc import Callable

# A speed is that of the last seconds: it follows what happens, and does not jump.
SPEED_SECONDS = 10.0


class Amount:
    """Bytes of a file on their way, of all files together, or another work whose parts are counted.

    Attributes:
        size: how much there will be; 0 if nobody knows.
        done: how much is there, wherever it came from.
        received: how much came since it began; it never falls, and speed is made of it.
        text: says an amount to people.
        part: says it where what it is a part of follows.
    """

    def __init__(
        self,
        size: int,
        text: Callable[[float], str],
        part: Callable[[float], str] | None = None,
        speed_seconds: float = SPEED_SECONDS,
    ) -> None:
        self.size, self.done, self.received = size, 0, 0
        self.text, self.part, self._seconds = text, part or text, speed_seconds
        self.began = time.monotonic()
        self._samples = deque([(self.began, 0)])

    @property
    def percent(self) -> int:
        return min(100, self.done * 100 // self.size) if self.size > 0 else 0

    def figures(self) -> tuple[str, str]:
        """The speed of late, and the time left at this speed as a clock shows it."""
        now = time.monotonic()
        self._samples.append((now, self.received))
        while len(self._samples) > 2 and self._samples[1][0] <= now - self._seconds:
            self._samples.popleft()
        since, before = self._samples[0]
        speed = (self.received - before) / max(now - since, 1e-3)
        if not speed:
            return "waiting", "-:--"
        seconds = round(max(0, self.size - self.done) / speed)
        hours, clock = seconds // 3600, f"{seconds // 60 % 60}:{seconds % 60:02}"
        return f"{self.text(speed)}/s", f"{hours}:{clock:0>5}" if hours else clock

    def __str__(self) -> str:
        speed, left = self.figures()
        amount = self.text(self.done)
        if self.size > 0:
            amount = f"{self.percent}%, {self.part(self.done)} of {self.text(self.size)}"
        return f"{amount}, {speed}" + (f", {left} left" if self.size > 0 and speed != "waiting" else "")
