"""Progress on a terminal: a bar for each transfer and one for all, redrawn in place."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.control import Control
from rich.segment import ControlType
from rich.text import Text

from omz_tools.progress.amount import Amount
from omz_tools.progress.reporting import Reporter, writing

BAR_SECONDS = 0.25


class TerminalReporter(Reporter):
    """Below the text, a bar for each file that is on its way and one for all of them."""

    pause = BAR_SECONDS

    def __init__(self, out: TextIO | None = None, err: TextIO | None = None) -> None:
        super().__init__(out, err)
        self._console = Console(file=self.out, force_terminal=True)
        self._bars: list[Text] = []

    @contextmanager
    def running(self, total: int = 0) -> Iterator[None]:
        try:
            with super().running(total):
                yield
        finally:
            with self._output:
                self._draw([])

    def _put(self, stream: TextIO, lines: str) -> None:
        with self._output, writing():
            bars = self._bars
            self._draw([])
            stream.write(lines)
            stream.flush()
            self._draw(bars)

    def _draw(self, bars: list[Text]) -> None:
        """Put bars in the place of those that are there."""
        # A terminal that was made narrower has broken the old ones over several lines.
        height = sum(-(-bar.cell_len // self._console.width) for bar in self._bars)
        with self._console:  # all at once: nothing flickers
            self._console.control(Control(*[(ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2)] * height))
            for bar in bars:
                self._console.print(bar, soft_wrap=True)
        self._bars = bars

    def _show(self) -> None:
        late, room = time.monotonic() - 0.5, max(1, min(16, self._console.height - 4))
        with self._counting:
            # What is here in no time needs no bar.
            files = [(*key, file) for key, file in self._files.items() if file.done or file.began < late]
            bars = [self._bar(f"{model}: " if self.several else "", name, file) for model, name, file in files[:room]]
            bars += [Text(f"and {len(files) - room} more files")] if len(files) > room else []
            bars += [self._bar("TOTAL", "", self._all)] if self._all.size > 0 else []
            bars += [self._clock(model, *stage) for model, stage in self._stages.items()][:room]
        with self._output, writing():
            self._draw(bars)

    def _clock(self, model: str, text: str, since: float) -> Text:
        """A model, the stage that it is in, and for how long."""
        seconds = int(time.monotonic() - since)
        line = Text(f"{model}: " if self.several else "").append(f"{seconds // 60}:{seconds % 60:02}  ", "cyan")
        line.append(text.encode(self._console.encoding, "replace").decode(self._console.encoding))
        line.truncate(min(self._console.width, 120) - 1)
        return line

    def _bar(self, label: str, name: str, transfer: Amount) -> Text:
        """Name, bar, speed and time left in one line; how much of what, too, where there is room for it."""
        encoding, unicode = self._console.encoding, self._console.encoding.startswith("utf")
        width = min(self._console.width, 120) - 1  # in the last column some terminals begin a new line
        speed, left = transfer.figures()
        figures, gap = f"{speed:>10} {left:>7}", " "
        if width >= 60:
            figures, gap = f"{transfer.percent:3}% of {transfer.text(transfer.size):>8}  {speed:>10}  {left:>7}", "  "
        free = max(2, width - len(figures) - 2 * len(gap))
        room = free * 3 // 5
        if cell_len(label + name) > room:
            name = name.rsplit("/", 1)[-1]
        name = (label + name).encode(encoding, "replace").decode(encoding)
        if cell_len(name) > room:
            name = set_cell_size(name, room - 1) + ("…" if unicode else "~")
        full, half = divmod(transfer.percent * (free - room) // 50, 2)
        rest = free - room - full - half
        line, tip = ("━", "╸") if unicode else ("-", " ")
        # Without colours the two parts could not be told apart.
        blank = self._console.no_color or not self._console.color_system
        bar = Text.assemble(
            set_cell_size(name, room) + gap,
            (line * full + tip * half, "cyan"),
            " " * rest if blank else (line * rest, "bright_black"),
            gap + figures,
        )
        bar.truncate(width)
        return bar
