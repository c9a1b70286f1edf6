"""What a person or a program sees while the tools work: bars, plain lines, or one JSON object a line."""

import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from omz_tools.errors import OmzError
from omz_tools.progress.amount import Amount

# Without a terminal, a transfer says something this often: never silence, never a bar.
PLAIN_SECONDS = 5.0
JSON_SECONDS = 0.5
# A large model may take long for a window; its speed is that of this time.
WINDOW_SECONDS = 60.0

_HEADING = "################|| {} ||################"


def size_text(size: float) -> str:
    """A number of bytes for people, in powers of ten."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} GB"


def files_text(number: int) -> str:
    """A number of files for people."""
    return "1 file" if number == 1 else f"{number:,} files"


def columns(rows: Sequence[Sequence[str]]) -> str:
    """A table of plain text, its columns two blanks apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def windows_text(number: float) -> str:
    """A number of windows of a text for people; a speed may be a broken one."""
    digits = 0 if number >= 10 or number == int(number) else 1
    return f"{number:,.{digits}f} window" + ("" if number == 1 else "s")


@contextmanager
def writing() -> Iterator[None]:
    """Around what writes the output of a command: whatever keeps it from its reader is raised as a BrokenPipeError.

    Where files are written, other errors of the system are taken for those of their disk.
    """
    try:
        yield
    except OSError as error:
        raise BrokenPipeError(error.errno, error.strerror) from error


class Reporter:
    """Headings, notes and errors as text: notes to standard output, errors to standard error.

    Subclasses show the progress of downloads. All methods may be called from several threads.

    Attributes:
        several: whether models are worked on at once, so that each line must say which model it is about: the one that
            is named, or else the one that the thread works on.
        pause: seconds from one look at how far it is to the next; None for none at all.
    """

    pause: float | None = None

    def __init__(self, out: TextIO | None = None, err: TextIO | None = None, *, model: str = "") -> None:
        """`model` is the one that this process works on, beside others that work on other models."""
        self.out = self.text = out or sys.stdout
        self.err = err or sys.stderr
        self.several = bool(model)
        self._thread = threading.local()
        self._thread.model = model
        self._output = threading.Lock()
        self._counting = threading.Lock()  # never held while something is written
        self._files: dict[tuple[str, str], Amount] = {}  # and what else is counted
        self._stages: dict[str, tuple[str, float]] = {}  # of each model, and since when
        self._all = Amount(0, size_text)
        self._fault: OSError | None = None

    def _write(self, stream: TextIO, text: str, model: str = "") -> None:
        model = model or getattr(self._thread, "model", "")
        label = f"[{model}] " if self.several and model else ""
        self._put(stream, "".join(f"{label}{line}\n" for line in text.split("\n")))

    def _put(self, stream: TextIO, lines: str) -> None:
        with self._output, writing():
            stream.write(lines)
            stream.flush()

    def note(self, text: str) -> None:
        self._write(self.text, text)

    def about(self, model: str, text: str) -> None:
        """A line about a file of a model."""
        self._write(self.text, text, model)

    def heading(self, text: str) -> None:
        self.note(_HEADING.format(text))

    def section(self, text: str) -> None:
        """A stage of the work begins."""
        model = getattr(self._thread, "model", "")
        with self._counting:
            self._stages[model] = text, time.monotonic()
        self.note(f"========== {text}")

    @contextmanager
    def on(self, model: str) -> Iterator[None]:
        """What this thread says in the block is about a model."""
        self._thread.model = model
        try:
            yield
        finally:
            self._thread.model = ""
            with self._counting:
                self._stages.pop(model, None)

    def error(self, error: OmzError) -> None:
        self._write(self.err, f"########## Error: {error}")

    def failed(self, names: list[str]) -> None:
        """The models that failed, in Open Model Zoo's form."""
        self.note("\n".join(["FAILED:", *names]))

    def _event(self, kind: str, model: str, text: str = "", **fields: object) -> None:
        """Something happened: `text` says so to people, if there is any; `kind` and `fields` say so to programs."""
        if text:
            self.about(model, text)

    def model_begin(self, model: str, files: int) -> None:
        self._event("model_download_begin", model, _HEADING.format(f"Downloading {model}"), num_files=files)
        self._thread.model = model

    def model_end(self, model: str, successful: bool) -> None:
        self._event("model_download_end", model, successful=successful)
        self._thread.model = ""

    def postprocessing_begin(self, model: str) -> None:
        self._event("model_postprocessing_begin", model, "========== Postprocessing")
        self._thread.model = model

    def postprocessing_end(self, model: str) -> None:
        self._event("model_postprocessing_end", model)
        self._thread.model = ""

    def file_begin(self, model: str, name: str, size: int, target: str) -> None:
        text = f"========== Downloading {target}"
        self._event("model_file_download_begin", model, text, model_file=name, size=size)
        with self._counting:
            self._files[model, name] = Amount(size, size_text)

    def file_resumed(self, model: str, name: str, done: int, size: int) -> None:
        """`done` bytes of a file were kept from an earlier run; with 0, the file begins again after all."""
        self._move(model, name, done, came=False)
        text = f"... going on after {size_text(done)} of {size_text(size)}" if done else "... beginning again"
        self._event("model_file_download_progress", model, text, model_file=name, size=done)

    def file_progress(self, model: str, name: str, done: int, size: int) -> None:
        """`done` bytes of a file are there; fewer than before when it is tried afresh."""
        self._move(model, name, done, came=True)

    def _move(self, model: str, name: str, done: int, *, came: bool) -> None:
        if self._fault:
            raise self._fault
        with self._counting:
            file = self._files[model, name]
            step = done - file.done
            for transfer in (file, self._all):
                transfer.done += step
                transfer.received += max(0, step) if came else 0

    def file_end(self, model: str, name: str, how: str | None) -> None:
        """`how` the file came to be in place: "already there", "from the cache", "fetched"; None if it failed."""
        with self._counting:
            file = self._files.pop((model, name))
            # What was there is not brought; what failed is not on its way any more.
            self._all.done += (file.size if how not in (None, "already there") else 0) - file.done
            self._all.size -= 0 if how else file.size
        text, seconds = f"... {how}" if how else "", time.monotonic() - file.began
        if how == "fetched":
            text = f"... 100%, {size_text(file.size)} of {size_text(file.size)}"
            # The speed of what took no time means nothing.
            text += f", {size_text(file.received / seconds)}/s, {seconds:.1f} s" if seconds >= 0.1 else ""
        self._event("model_file_download_end", model, text, model_file=name, successful=how is not None)

    def measuring_begin(self, model: str, what: str, windows: int) -> None:
        """`what`, the model in one precision say, is going to be measured on that many windows of a text."""
        self.about(model, f"========== Measuring {what} on {windows_text(windows)}")
        with self._counting:
            self._stages.pop(model, None)
            self._files[model, what] = Amount(windows, windows_text, "{:,.0f}".format, WINDOW_SECONDS)

    def measuring_progress(self, model: str, what: str, done: int) -> None:
        """`done` windows are measured."""
        if self._fault:
            raise self._fault
        with self._counting:
            work = self._files[model, what]
            work.received += done - work.done
            work.done = done

    def measuring_end(self, model: str, what: str) -> None:
        with self._counting:
            del self._files[model, what]

    def _show(self) -> None:
        """Say how far it is: called at the clock's pace and not the work's, also when nothing comes."""

    @contextmanager
    def running(self, total: int = 0) -> Iterator[None]:
        """Around all the work, which is going to bring `total` bytes; 0 if nobody knows."""
        self._all = Amount(total, size_text)
        ended = threading.Event()

        def repeat() -> None:
            try:
                while not ended.wait(self.pause):
                    self._show()
            except OSError as error:  # nobody reads any more; whoever does the work has to know
                self._fault = error

        thread = threading.Thread(target=repeat, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


class PlainReporter(Reporter):
    """A line now and then: for CI, pipes and log files."""

    pause = PLAIN_SECONDS

    def _show(self) -> None:
        with self._counting:
            files = [(model, name, str(file)) for (model, name), file in self._files.items()]
            more = self._all.size > sum(file.size for file in self._files.values())
            rest = f"in all {self._all}" if more or len(files) > 1 else ""
            stages = [(model, text, time.monotonic() - since) for model, (text, since) in self._stages.items()]
        for model, text, seconds in stages:
            if seconds >= PLAIN_SECONDS:
                self.about(model, f"... {text}: {seconds:.0f} s")
        if len(files) == 1:
            [(model, _, state)] = files
            self.about(model, f"... {state}; {rest}" if rest else f"... {state}")
        elif len(files) <= 4:
            for model, name, state in files:
                self.about(model, f"... {name}: {state}")
        if len(files) > 1:
            self.note(f"... {len(files)} files at a time; {rest}")


class JsonReporter(Reporter):
    """Open Model Zoo's events, one JSON object a line on standard output; text for people goes to standard error."""

    def __init__(self, out: TextIO | None = None, err: TextIO | None = None) -> None:
        super().__init__(out, err)
        self.text = self.err
        self._said: dict[tuple[str, str], tuple[float, int]] = {}  # when the next event is due, and the last size

    def _event(self, kind: str, model: str, text: str = "", **fields: object) -> None:
        self._put(self.out, json.dumps({"$type": kind, "model": model, **fields}) + "\n")

    def error(self, error: OmzError) -> None:
        super().error(error)
        fields = {"code": error.code, "where": list(error.where), "message": error.what, "hint": error.hint}
        self._put(self.out, json.dumps({"$type": "error", **fields}) + "\n")

    def file_resumed(self, model: str, name: str, done: int, size: int) -> None:
        self._said[model, name] = time.monotonic() + JSON_SECONDS, done
        super().file_resumed(model, name, done, size)

    def file_progress(self, model: str, name: str, done: int, size: int) -> None:
        now = time.monotonic()
        due, said = self._said.get((model, name), (now, -1))
        if done != said and (done == size or now >= due):
            self._said[model, name] = now + JSON_SECONDS, done
            self._event("model_file_download_progress", model, model_file=name, size=done)
