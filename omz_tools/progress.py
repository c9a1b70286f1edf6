"""What a person or a program sees while the tools work: bars, plain lines, or one JSON object a line."""

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from omz_tools.errors import OmzError

# Without a terminal, a long transfer says something this often: never silence, never a bar.
PLAIN_SECONDS = 5.0
JSON_SECONDS = 0.5


def size_text(size: float) -> str:
    """A number of bytes for people, in powers of ten."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} GB"


class Reporter:
    """Headings, notes and errors as text: notes to standard output, errors to standard error.

    Subclasses show the progress of downloads. All methods may be called from several threads.

    Attributes:
        prefix: stands before each line, for a process that works on one model beside others.
        several: whether models are worked on at once, so that lines about files must say which model they are about.
    """

    def __init__(self, out: TextIO | None = None, err: TextIO | None = None, *, prefix: str = "") -> None:
        self.out = out or sys.stdout
        self.err = err or sys.stderr
        self.prefix = prefix
        self.several = False
        self._lock = threading.Lock()

    def _write(self, stream: TextIO, text: str) -> None:
        lines = "".join(f"{self.prefix}{line}\n" for line in text.split("\n"))
        with self._lock:
            stream.write(lines)
            stream.flush()

    def note(self, text: str) -> None:
        self._write(self.out, text)

    def about(self, model: str, text: str) -> None:
        """A line about a file of a model."""
        self.note(f"[{model}] {text}" if self.several else text)

    def heading(self, text: str) -> None:
        self.note(f"################|| {text} ||################")

    def section(self, text: str) -> None:
        self.note(f"========== {text}")

    def error(self, error: OmzError) -> None:
        self._write(self.err, f"########## Error: {error}")

    def failed(self, names: list[str]) -> None:
        """The models that failed, in Open Model Zoo's form."""
        self._write(self.out, "\n".join(["FAILED:", *names]))

    def model_begin(self, model: str, files: int) -> None:
        self.heading(f"Downloading {model}")

    def model_end(self, model: str, successful: bool) -> None:
        pass

    def file_begin(self, model: str, name: str, size: int, target: str) -> None:
        self.about(model, f"========== Downloading {target}")

    def file_progress(self, model: str, name: str, done: int, size: int) -> None:
        pass

    def file_end(self, model: str, name: str, how: str | None) -> None:
        """`how` the file came to be in place ("fetched", "from the cache", "already there"), None if it failed."""
        if how not in (None, "fetched"):
            self.about(model, f"... {how}")

    @contextmanager
    def running(self) -> Iterator[None]:
        """Around all the work, for what must be begun and ended once."""
        yield


class PlainReporter(Reporter):
    """A line now and then: for CI, pipes and log files."""

    def __init__(self, out: TextIO | None = None, err: TextIO | None = None, *, prefix: str = "") -> None:
        super().__init__(out, err, prefix=prefix)
        self._began: dict[tuple[str, str], float] = {}
        self._said: dict[tuple[str, str], float] = {}

    def file_begin(self, model: str, name: str, size: int, target: str) -> None:
        super().file_begin(model, name, size, target)
        self._began[model, name] = self._said[model, name] = time.monotonic()

    def file_progress(self, model: str, name: str, done: int, size: int) -> None:
        now = time.monotonic()
        if done < size and now - self._said[model, name] < PLAIN_SECONDS:
            return
        self._said[model, name] = now
        seconds = now - self._began[model, name]
        share = done * 100 // size if size else 100
        line = f"... {share}%, {size_text(done)} of {size_text(size)}"
        # The speed of what took no time means nothing.
        self.about(model, f"{line}, {size_text(done / seconds)}/s, {seconds:.1f} s" if seconds >= 0.1 else line)


class TerminalReporter(Reporter):
    """One bar for each file that is on its way."""

    def __init__(self, out: TextIO | None = None, err: TextIO | None = None, *, prefix: str = "") -> None:
        super().__init__(out, err, prefix=prefix)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(file=self.out),
            transient=True,
        )
        self._tasks: dict[tuple[str, str], object] = {}

    def _write(self, stream: TextIO, text: str) -> None:
        with self._progress._lock:
            console = self._progress.console if stream is self.out else Console(file=stream)
            for line in text.split("\n"):
                console.print(f"{self.prefix}{line}", markup=False, highlight=False, soft_wrap=True)

    def file_begin(self, model: str, name: str, size: int, target: str) -> None:
        super().file_begin(model, name, size, target)
        self._tasks[model, name] = self._progress.add_task(name, total=size)

    def file_progress(self, model: str, name: str, done: int, size: int) -> None:
        self._progress.update(self._tasks[model, name], completed=done)  # type: ignore[arg-type]

    def file_end(self, model: str, name: str, how: str | None) -> None:
        self._progress.remove_task(self._tasks.pop((model, name)))  # type: ignore[arg-type]
        super().file_end(model, name, how)

    @contextmanager
    def running(self) -> Iterator[None]:
        with self._progress:
            yield


class JsonReporter(Reporter):
    """Open Model Zoo's events, one JSON object a line on standard output; text for people goes to standard error."""

    def __init__(self, out: TextIO | None = None, err: TextIO | None = None) -> None:
        super().__init__(out, err)
        self._said: dict[tuple[str, str], float] = {}

    def _emit(self, kind: str, **fields: object) -> None:
        self._write(self.out, json.dumps({"$type": kind, **fields}))

    def note(self, text: str) -> None:
        self._write(self.err, text)

    def failed(self, names: list[str]) -> None:
        self._write(self.err, "\n".join(["FAILED:", *names]))

    def error(self, error: OmzError) -> None:
        super().error(error)
        self._emit("error", code=error.code, where=list(error.where), message=error.what, hint=error.hint)

    def model_begin(self, model: str, files: int) -> None:
        self._emit("model_download_begin", model=model, num_files=files)

    def model_end(self, model: str, successful: bool) -> None:
        self._emit("model_download_end", model=model, successful=successful)

    def file_begin(self, model: str, name: str, size: int, target: str) -> None:
        self._said[model, name] = 0.0
        self._emit("model_file_download_begin", model=model, model_file=name, size=size)

    def file_progress(self, model: str, name: str, done: int, size: int) -> None:
        now = time.monotonic()
        if done == size or now - self._said[model, name] >= JSON_SECONDS:
            self._said[model, name] = now
            self._emit("model_file_download_progress", model=model, model_file=name, size=done)

    def file_end(self, model: str, name: str, how: str | None) -> None:
        self._emit("model_file_download_end", model=model, model_file=name, successful=how is not None)


def reporter(progress_format: str = "text") -> Reporter:
    """The reporter that suits standard output; `progress_format` is "text" or "json"."""
    if progress_format == "json":
        return JsonReporter()
    if sys.stdout.isatty() and not os.environ.get("CI") and os.environ.get("TERM") != "dumb":
        return TerminalReporter()
    return PlainReporter()
