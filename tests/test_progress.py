"""What people and programs see of a download: on terminals of all widths, in CI, and as events."""

import errno
import fcntl
import hashlib
import io
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import textwrap
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import BIN

from omz_tools.errors import IntegrityError, SourceError
from omz_tools.progress import reporting
from omz_tools.progress.reporting import JsonReporter, PlainReporter, Reporter
from omz_tools.progress.terminal import TerminalReporter
from omz_tools.system.files import disk_errors

MB = 1_000_000
BARS = re.compile(r"[━╸]|#|---")
CODES = re.compile(r"\x1b\[(?P<code>[\d;?]*)(?P<letter>[A-Za-z])")


# ---- A terminal


class Screen:
    """A terminal that knows the codes a calm program needs: up one line, erase the line, colours. Others are errors."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self._lines: list[str] = [""]
        self._row = self._column = 0
        self.frames: list[list[str]] = []

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in "\n".join(self._lines).rstrip().split("\n")]

    def feed(self, text: str) -> None:
        """Show a text; `frames` gets what could be seen each time before something is erased."""
        erasing = False
        while text:
            if match := CODES.match(text):
                text = text[match.end() :]
                if match["letter"] == "m":
                    continue
                if not erasing:
                    self.frames.append(self.lines)
                erasing = True
                assert match[0] in ("\x1b[1A", "\x1b[2K"), match[0]
                if match["letter"] == "A":
                    self._row -= 1
                    assert self._row >= 0
                else:
                    self._lines[self._row] = ""
                continue
            self._show(text[0])
            erasing, text = False, text[1:]

    def _show(self, letter: str) -> None:
        if letter == "\r":
            self._column = 0
            return
        width = 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        if letter == "\n" or self._column + width > self.columns:
            self._row += 1
            if letter == "\n":  # with the carriage return that the terminal's driver puts before it
                width = 0
            else:
                self._column = 0
        if self._row == len(self._lines):
            self._lines.append("")
        if width:
            line = self._lines[self._row].ljust(self._column)
            self._lines[self._row] = line[: self._column] + letter + line[self._column + 1 :]
            self._column += width


class Terminal:
    """A script run in a pseudo-terminal: what it wrote, what could be seen, and its standard error if that is apart."""

    def __init__(
        self,
        script: str,
        columns: int = 80,
        rows: int = 24,
        *,
        apart: bool = False,
        narrowed: int = 0,
        **environment: str,
    ) -> None:
        master, slave = pty.openpty()
        size = struct.pack("HHHH", rows, columns, 0, 0)
        fcntl.ioctl(slave, termios.TIOCSWINSZ, size)
        kept = {k: v for k, v in os.environ.items() if k not in ("CI", "NO_COLOR", "COLUMNS", "LINES")}
        process = subprocess.Popen(
            [sys.executable, "-c", PREPARED + textwrap.dedent(script)],
            stdin=subprocess.DEVNULL,
            stdout=slave,
            stderr=subprocess.PIPE if apart else slave,
            env=kept | {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8:backslashreplace"} | environment,
        )
        os.close(slave)
        data = b""
        until = time.monotonic() + 30
        while time.monotonic() < until:
            if select.select([master], [], [], 0.1)[0]:
                try:
                    data += os.read(master, 1 << 16)
                except OSError:  # EIO: that is how Linux says that the other end is closed
                    break
            if narrowed and b"% of  20.0 MB" in data:
                fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, narrowed, 0, 0))
        os.close(master)
        self.errors = process.stderr.read().decode() if process.stderr else ""
        self.status = process.wait(10)
        if process.stderr:
            process.stderr.close()
        self.raw = data.decode()
        screen = Screen(columns)
        if not narrowed:
            screen.feed(self.raw)
            self.frames, self.lines = [*screen.frames, screen.lines], screen.lines
            assert "Traceback" not in "\n".join(self.lines) + self.errors, self.lines

    def last(self, part: str) -> str:
        """The last line with a bar and this part that could be seen."""
        return [line for frame in self.frames for line in frame if part in line and BARS.search(line)][-1]


# Scripts begin with this: bars are drawn more often, and files come at a rate that a test decides.
PREPARED = """
import threading, time
from omz_tools.progress import reporting, reporters, terminal
from omz_tools.errors import SourceError
terminal.TerminalReporter.pause = reporting.PlainReporter.pause = 0.05
MB = 1_000_000
reporter = reporters.reporter()

def bring(name, size, seconds, model="net", kept=0):
    reporter.file_begin(model, name, size, f"public/{model}/{name}")
    if kept:
        reporter.file_resumed(model, name, kept, size)
    for step in range(1, 21):
        time.sleep(seconds / 20 if step != 11 else 0.2)  # so that half of it can be seen
        reporter.file_progress(model, name, kept + (size - kept) * step // 20, size)
    reporter.file_end(model, name, "fetched")
"""
ONE_FILE = """
with reporter.running(40 * MB):
    reporter.model_begin("net", 2)
    bring("lib/weights.bin", 20 * MB, 0.6)
    reporter.file_begin("net", "config", 20 * MB, "public/net/config")
    reporter.file_end("net", "config", "from the cache")
    reporter.model_end("net", True)
"""


def test_a_terminal_shows_a_bar_for_each_file_and_one_for_all_with_speed_and_time_left() -> None:
    seen = Terminal(ONE_FILE)
    middle = next(frame for frame in seen.frames if " 50% of" in frame[-2])
    assert middle[:2] == [
        "################|| Downloading net ||################",
        "========== Downloading public/net/lib/weights.bin",
    ]
    assert re.fullmatch(r"lib/weights\.bin +━+ +50% of  20\.0 MB +\d\d\.\d MB/s +0:0\d", middle[-2])
    assert re.fullmatch(r"TOTAL +━+ +25% of  40\.0 MB +\d\d\.\d MB/s +0:0\d", middle[-1])
    assert [line.index("━") for line in middle[-2:]] == [line.index("━") for line in middle[-1:]] * 2
    assert not BARS.search("".join(seen.lines[3:]))
    assert seen.status == 0


NAMES = [
    "weights.bin",
    "a/very/deep/folder/of/a/repository/with/many/parts/model-00001-of-00002.safetensors",
    "x" * 180,
    "重み" * 40,
]


@pytest.mark.parametrize("columns", [200, 80, 60, 59, 40, 30, 10])
def test_bars_keep_to_their_lines_whatever_the_names_and_the_width(columns: int) -> None:
    script = """
        with reporter.running(100 * MB):
            for name in NAMES:
                reporter.file_begin("net", name, 20 * MB, "t")
                reporter.file_progress("net", name, 9 * MB, 20 * MB)
            time.sleep(0.3)
            reporter.note("a note")
            time.sleep(0.2)
    """
    seen = Terminal(f"NAMES = {NAMES!r}\n" + textwrap.dedent(script), columns)
    full = [frame for frame in seen.frames if BARS.search(frame[-1])]
    assert full
    assert all(frame[-1].startswith("TOTAL" if columns > 20 else "…") for frame in full)
    assert len(full[-1]) == len(seen.lines) + len(NAMES) + 1
    assert seen.lines[-1] == "a note"


def test_a_long_name_begins_with_what_tells_it_from_others() -> None:
    seen = Terminal(f"""
with reporter.running(100 * MB):
    bring({NAMES[1]!r}, MB, 0.5)
""")
    assert seen.last("model").startswith("model-00001-of-00002.…  ")


def test_notes_and_errors_stand_above_the_bars_and_go_to_their_streams() -> None:
    script = """
        with reporter.running(40 * MB):
            thread = threading.Thread(target=bring, args=("weights.bin", 40 * MB, 0.8))
            thread.start()
            time.sleep(0.3)
            reporter.error(SourceError("it answered 503", hint="Try again later."))
            reporter.note("... trying again")
            thread.join()
        reporter.failed(["net"])
    """
    together = Terminal(script)
    end = "... 100%, 40.0 MB of 40.0 MB, "
    assert [line if end not in line else end for line in together.lines] == [
        "========== Downloading public/net/weights.bin",
        "########## Error: it answered 503",
        "Try again later.",
        "... trying again",
        end,
        "FAILED:",
        "net",
    ]
    later = [frame for frame in together.frames if "... trying again" in frame]
    assert BARS.search(later[2][-1])
    assert later[2][-1].startswith("TOTAL")

    apart = Terminal(script, apart=True)
    assert apart.errors == "########## Error: it answered 503\nTry again later.\n"
    assert [line for line in apart.lines if end not in line] == [
        "========== Downloading public/net/weights.bin", "... trying again", "FAILED:", "net"
    ]  # fmt: skip


def test_bars_come_back_at_once_below_a_note() -> None:
    seen = Terminal("""
terminal.TerminalReporter.pause = 0.5
with reporter.running(MB):
    time.sleep(0.6)
    reporter.note("first")
    reporter.note("second")
""")
    texts = [frame[:-1] for frame in seen.frames if BARS.search(frame[-1])]
    assert texts == [[], ["first"], ["first", "second"]]


def test_a_file_that_is_here_in_no_time_gets_no_bar_and_one_that_does_not_come_gets_one() -> None:
    seen = Terminal("""
with reporter.running(MB):
    reporter.file_begin("net", "quick", 5, "t")
    time.sleep(0.2)
    reporter.file_end("net", "quick", "already there")
    reporter.file_begin("net", "slow", 5, "t")
    time.sleep(0.8)
""")
    assert re.fullmatch(r"slow +━+ +0% of      5 B +waiting +-:--", seen.last("slow"))
    assert not any(line.startswith("quick") for frame in seen.frames for line in frame)


def test_an_error_that_ends_the_run_takes_the_bars_away() -> None:
    seen = Terminal("""
try:
    with reporter.running(MB):
        reporter.file_begin("net", "f", MB, "t")
        reporter.file_progress("net", "f", 1, MB)
        time.sleep(0.3)
        raise KeyboardInterrupt
except KeyboardInterrupt:
    print("Interrupted.", flush=True)
""")
    assert any("TOTAL" in frame[-1] for frame in seen.frames)
    assert seen.lines == ["========== Downloading t", "Interrupted."]


def test_without_colours_the_bars_are_still_bars() -> None:
    coloured, plain = Terminal(ONE_FILE), Terminal(ONE_FILE, NO_COLOR="1")
    assert "\x1b[36m" in coloured.raw
    assert {match["letter"] for match in CODES.finditer(plain.raw)} == {"A", "K"}
    [half] = {line[line.index("━") : line.index("%")] for frame in plain.frames for line in frame if " 50% of" in line}
    assert re.fullmatch(r"(━+)╸? +50", half)
    assert len(re.findall("━", half)) < len(half) - 6


@pytest.mark.parametrize("environment", [{"CI": "true"}, {"TERM": "dumb"}, {"TERM": "unknown"}])
def test_ci_and_dumb_terminals_get_plain_lines(environment: dict[str, str]) -> None:
    seen = Terminal(ONE_FILE, **environment)
    assert "\x1b" not in seen.raw
    assert not BARS.search("".join(seen.lines[2:]))
    assert re.search(r"\.\.\. \d+%, .* of 20\.0 MB, .*/s, 0:0\d left; in all \d+%, .* of 40\.0 MB", seen.raw)


def test_a_terminal_without_unicode_gets_bars_of_its_own_letters() -> None:
    seen = Terminal(ONE_FILE.replace("lib/weights", "gewichté重み"), PYTHONIOENCODING="ascii:backslashreplace")
    assert re.fullmatch(r"gewicht\?\?\?\.bin +-+ +50% of  20\.0 MB .*", seen.last(" 50% of"))


def test_more_files_than_lines_are_told_as_a_number() -> None:
    script = """
        with reporter.running(100 * MB):
            for number in range(12):
                reporter.file_begin("net", f"f{number}", MB, "t")
                reporter.file_progress("net", f"f{number}", 10, MB)
            time.sleep(0.3)
    """
    seen = Terminal(script, rows=10)
    frame = [frame for frame in seen.frames if "TOTAL" in frame[-1]][-1]
    assert frame[-2] == "and 6 more files"
    assert sum(line.startswith("f") for line in frame) == 6


def test_bars_of_several_models_say_which_model_they_are_about() -> None:
    seen = Terminal("""
reporter.several = True
with reporter.running(0):
    threads = [threading.Thread(target=bring, args=("gpt2/model.bin", MB, 0.5, m)) for m in ("one", "two")]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
""")
    assert seen.last("one").startswith("one: gpt2/model.bin  ")
    assert seen.last("two").startswith("two: gpt2/model.bin  ")
    assert not any("TOTAL" in line for frame in seen.frames for line in frame)


def test_a_terminal_made_narrower_loses_no_line_above_the_bars() -> None:
    """The terminal has broken each old bar over two lines by then: both have to be erased."""
    seen = Terminal(ONE_FILE, narrowed=41)
    assert "\x1b[1A\x1b[2K" * 4 in seen.raw
    assert "\x1b[1A\x1b[2K" * 5 not in seen.raw


def test_bytes_that_were_kept_are_no_speed_and_no_time() -> None:
    seen = Terminal("""
with reporter.running(1000 * MB):
    bring("weights.bin", 1000 * MB, 1, kept=900 * MB)
""")
    frames = [frame for frame in seen.frames if "TOTAL" in frame[-1] and " 95% of" in frame[-2]]
    assert "... going on after 900.0 MB of 1.0 GB" in frames[0]
    for line in frames[0][-2:]:
        assert re.search(r" 95% of   1\.0 GB +\d\d\.\d MB/s +0:0[01]", line)


# ---- Plain lines


def reported(kind: Callable[..., Reporter] = PlainReporter, **options: Any) -> tuple[Any, io.StringIO, io.StringIO]:
    """A reporter that looks often, and its two streams."""
    out, err = io.StringIO(), io.StringIO()
    reporter = kind(out, err, **options)
    reporter.pause = 0.05
    return reporter, out, err


@contextmanager
def waiting(out: io.StringIO, pattern: str) -> Iterator[None]:
    """After the block, wait for a line that it brings about."""
    before = len(out.getvalue())
    yield
    until = time.monotonic() + 10
    while not re.search(pattern, out.getvalue()[before:], re.MULTILINE):
        assert time.monotonic() < until, out.getvalue()
        time.sleep(0.01)


SPEED = r"\d+(\.\d)? [kMG]?B/s"
LEFT = r"\d+:\d\d left"


def test_lines_come_now_and_then_with_speed_and_time_left() -> None:
    reporter, out, _ = reported()
    with reporter.running(100 * MB):
        reporter.file_begin("net", "f", 100 * MB, "public/net/f")
        time.sleep(0.1)
        with waiting(out, rf"^\.\.\. 25%, 25\.0 MB of 100\.0 MB, {SPEED}, {LEFT}$"):
            reporter.file_progress("net", "f", 25 * MB, 100 * MB)
        reporter.file_progress("net", "f", 100 * MB, 100 * MB)
        reporter.file_end("net", "f", "fetched")
    assert re.search(rf"\n\.\.\. 100%, 100\.0 MB of 100\.0 MB, {SPEED}, \d\.\d s\n$", out.getvalue())
    assert out.getvalue().startswith("========== Downloading public/net/f\n")


def test_there_is_never_silence_when_nothing_comes() -> None:
    reporter, out, _ = reported()
    with reporter.running(MB):
        with waiting(out, r"^\.\.\. 0%, 0 B of 1\.0 MB, waiting\n\.\.\. 0%, 0 B of 1\.0 MB, waiting$"):
            reporter.file_begin("net", "f", MB, "t")


def test_windows_of_a_text_are_counted_with_speed_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "PLAIN_SECONDS", 0.0)  # a stage is told at once how long it takes
    reporter, out, _ = reported()
    with reporter.running(), reporter.on("net"):
        reporter.section("Checking")
        reporter.measuring_begin("net", "FP16", 280)
        time.sleep(0.1)
        with waiting(out, rf"^\.\.\. 25%, 70 of 280 windows, \d+(\.\d)? windows?/s, {LEFT}$"):
            reporter.measuring_progress("net", "FP16", 70)
        reporter.measuring_end("net", "FP16")
    assert "\n========== Measuring FP16 on 280 windows\n" in out.getvalue()
    assert "Checking:" not in out.getvalue().partition("Measuring")[2]  # that stage is over


def test_the_total_is_told_when_more_is_on_its_way() -> None:
    reporter, out, _ = reported()
    with reporter.running(40 * MB):
        reporter.file_begin("net", "f", 10 * MB, "t")
        with waiting(
            out,
            rf"^\.\.\. 50%, 5\.0 MB of 10\.0 MB, {SPEED}, {LEFT}; in all 12%, 5\.0 MB of 40\.0 MB, {SPEED}, {LEFT}$",
        ):
            reporter.file_progress("net", "f", 5 * MB, 10 * MB)


def test_files_at_a_time_get_a_line_each_and_one_for_all() -> None:
    reporter, out, _ = reported()
    reporter.several = True
    with reporter.running(80 * MB):
        for model in ("one", "two"):
            reporter.file_begin(model, "lib/f", 40 * MB, "t")
            reporter.file_progress(model, "lib/f", 4 * MB, 40 * MB)
        with waiting(
            out,
            rf"^\[one\] \.\.\. lib/f: 10%, 4\.0 MB of 40\.0 MB, {SPEED}, {LEFT}\n"
            rf"\[two\] \.\.\. lib/f: 10%, 4\.0 MB of 40\.0 MB, {SPEED}, {LEFT}\n"
            rf"\.\.\. 2 files at a time; in all 10%, 8\.0 MB of 80\.0 MB, {SPEED}, {LEFT}$",
        ):
            pass


def test_many_files_at_a_time_are_told_in_one_line() -> None:
    reporter, out, _ = reported()
    with reporter.running():
        for number in range(20):
            reporter.file_begin("net", f"{number}", MB, "t")
            reporter.file_progress("net", f"{number}", 10, MB)
        with waiting(out, rf"^\.\.\. 20 files at a time; in all 200 B, {SPEED}$"):
            pass
    assert ": " not in out.getvalue()


def test_kept_bytes_are_told_and_are_no_speed() -> None:
    reporter, out, _ = reported()
    with reporter.running(1000 * MB):
        reporter.file_begin("net", "f", 1000 * MB, "t")
        with waiting(out, r"^\.\.\. 90%, 900\.0 MB of 1\.0 GB, waiting$"):
            reporter.file_resumed("net", "f", 900 * MB, 1000 * MB)
        with waiting(out, r"^\.\.\. 90%, 900\.0 MB of 1\.0 GB, [\d.]+ k?B/s, [\d:]+ left$"):
            reporter.file_progress("net", "f", 900 * MB + 1000, 1000 * MB)
        reporter.file_end("net", "f", "fetched")
    assert "\n... going on after 900.0 MB of 1.0 GB\n" in out.getvalue()
    assert re.search(r"\n\.\.\. 100%, 1\.0 GB of 1\.0 GB, [\d.]+ k?B/s, \d\.\d s\n$", out.getvalue())


def test_a_file_that_begins_again_goes_back_and_never_below_zero() -> None:
    reporter, out, _ = reported()
    with reporter.running(10 * MB):
        reporter.file_begin("net", "f", 10 * MB, "t")
        reporter.file_resumed("net", "f", 8 * MB, 10 * MB)
        reporter.file_progress("net", "f", 9 * MB, 10 * MB)
        with waiting(out, rf"^\.\.\. 0%, 0 B of 10\.0 MB, {SPEED}, {LEFT}$"):
            reporter.file_resumed("net", "f", 0, 10 * MB)
    reporter, again, _ = reported()
    with reporter.running(20 * MB):
        reporter.file_begin("net", "f", 10 * MB, "t")
        reporter.file_resumed("net", "f", 8 * MB, 10 * MB)
        with waiting(again, r"^\.\.\. 10%, 1\.0 MB of 10\.0 MB, waiting; in all 5%, 1\.0 MB of 20\.0 MB, waiting$"):
            reporter.file_progress("net", "f", 1 * MB, 10 * MB)
    assert "\n... beginning again\n" in out.getvalue()
    assert "-" not in out.getvalue() + again.getvalue()


def test_the_total_counts_what_comes_some_other_way_and_not_what_fails_or_was_there() -> None:
    reporter, out, _ = reported()
    with reporter.running(100 * MB):
        for name, size, how in [
            ("a", 20 * MB, "from the cache"),
            ("b", 10 * MB, "from the Hub's cache"),
            ("c", 500 * MB, "already there"),
            ("d", 40 * MB, None),
        ]:
            reporter.file_begin("net", name, size, name)
            if name in "ad":
                reporter.file_progress("net", name, size // 2, size)
            reporter.file_end("net", name, how)
        with waiting(out, r"; in all 50%, 30\.0 MB of 60\.0 MB,"):
            reporter.file_begin("net", "e", 30 * MB, "e")
    said = [line for line in out.getvalue().splitlines() if "%" not in line]
    assert said == [
        "========== Downloading a",
        "... from the cache",
        "========== Downloading b",
        "... from the Hub's cache",
        "========== Downloading c",
        "... already there",
        "========== Downloading d",
        "========== Downloading e",
    ]


def test_a_small_file_needs_no_speed() -> None:
    reporter, out, _ = reported()
    with reporter.running():
        reporter.file_begin("net", "f", 665, "t")
        reporter.file_progress("net", "f", 665, 665)
        reporter.file_end("net", "f", "fetched")
    assert out.getvalue() == "========== Downloading t\n... 100%, 665 B of 665 B\n"


def test_postprocessing_is_a_section() -> None:
    reporter, out, _ = reported()
    reporter.postprocessing_begin("net")
    reporter.postprocessing_end("net")
    assert out.getvalue() == "========== Postprocessing\n"


def test_where_several_models_are_worked_on_each_line_says_which_it_is_about() -> None:
    reporter, out, err = reported()
    reporter.several = True

    def work(model: str) -> None:
        reporter.model_begin(model, 1)
        reporter.file_begin(model, "f", 1, "t")
        reporter.note("first\nsecond")
        reporter.error(SourceError("it answered 503"))
        reporter.file_end(model, "f", None)
        reporter.model_end(model, False)
        reporter.note("nobody's")

    thread = threading.Thread(target=work, args=("net",))
    thread.start()
    thread.join()
    reporter.note("mine")
    assert out.getvalue().splitlines() == [
        "[net] ################|| Downloading net ||################",
        "[net] ========== Downloading t",
        "[net] first",
        "[net] second",
        "nobody's",
        "mine",
    ]
    assert err.getvalue() == "[net] ########## Error: it answered 503\n"


def test_a_process_for_one_model_of_several_says_which() -> None:
    reporter, out, _ = reported(model="net")
    reporter.section("Comparing with PyTorch")
    reporter.note("\na table")
    assert out.getvalue() == "[net] ========== Comparing with PyTorch\n[net] \n[net] a table\n"


class Closed(io.StringIO):
    """A pipe whose reader goes away."""

    gone = False

    def write(self, text: str) -> int:
        if self.gone:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        return super().write(text)


def test_whoever_does_the_work_hears_that_nobody_reads() -> None:
    out = Closed()
    reporter = PlainReporter(out, io.StringIO())
    reporter.pause = 0.01
    until = time.monotonic() + 10
    with reporter.running(MB):
        reporter.file_begin("net", "f", MB, "t")
        out.gone = True
        with pytest.raises(BrokenPipeError):  # noqa: PT012 -- at some time
            while time.monotonic() < until:
                reporter.file_progress("net", "f", 1, MB)


@pytest.mark.parametrize("kind", [PlainReporter, TerminalReporter, JsonReporter])
def test_a_caller_that_says_thousands_of_times_how_far_it_is_makes_no_flood(kind: Callable[..., Reporter]) -> None:
    out, err = io.StringIO(), io.StringIO()
    reporter = kind(out, err)
    with reporter.running(50_000):
        reporter.file_begin("net", "f", 50_000, "t")
        for done in range(50_001):
            reporter.file_progress("net", "f", done, 50_000)
        reporter.file_end("net", "f", "fetched")
    assert len(out.getvalue()) < 5000
    assert err.getvalue() == ""


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def test_no_byte_is_lost_or_counted_twice_when_threads_say_how_far_they_are(restless: None) -> None:
    reporter, out, _ = reported()

    def work(first: int) -> None:
        for done in range(first, 20_000, 8):
            reporter.file_progress("net", "f", done, 20_000)

    with reporter.running(40_000):
        reporter.file_begin("net", "f", 20_000, "t")
        together([threading.Thread(target=work, args=(first,)) for first in range(8)])
        reporter.file_end("net", "f", "fetched")
        with waiting(out, r"; in all 50%, 20\.0 kB of 40\.0 kB,"):
            reporter.file_begin("net", "g", 5, "t")


class Slow(io.StringIO):
    """A stream that takes a text in pieces."""

    def write(self, text: str) -> int:
        for letter in text:
            super().write(letter)
        return len(text)


def fetch_all(reporter: Reporter, model: str, faults: list[BaseException]) -> None:
    """Bring twenty files of a model one after the other, each by three threads, with a note about each."""

    def part(name: str, first: int) -> None:
        try:
            for done in range(first, 100, 3):
                reporter.file_progress(model, name, done, 100)
        except BaseException as error:  # noqa: BLE001
            faults.append(error)

    reporter.model_begin(model, 20)
    for name in map(str, range(20)):
        reporter.file_begin(model, name, 100, f"below {model}/{name}")
        together([threading.Thread(target=part, args=(name, first)) for first in range(3)])
        reporter.note(f"{model} {name}")
        reporter.file_end(model, name, "fetched")
    reporter.model_end(model, True)


def together(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("kind", [PlainReporter, TerminalReporter, JsonReporter])
def test_threads_do_not_get_into_each_others_way(kind: Callable[..., Reporter], restless: None) -> None:
    out, err = Slow(), Slow()
    reporter = kind(out, err)
    reporter.pause = 0.001
    faults: list[BaseException] = []
    models = [f"net{number}" for number in range(4)]
    with reporter.running(8000):
        together([threading.Thread(target=fetch_all, args=(reporter, model, faults)) for model in models])
    assert faults == []
    whole = sorted(f"{model} {number}" for model in models for number in range(20))
    if kind is JsonReporter:
        ends = [event for event in events(out) if event["$type"] == "model_file_download_end"]
        assert sorted(f"{end['model']} {end['model_file']}" for end in ends) == whole
    lines = CODES.sub("", (err if kind is JsonReporter else out).getvalue()).splitlines()
    assert sorted(line for line in lines if line in whole) == whole


# ---- Events


def events(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_events_are_those_of_open_model_zoo_and_text_goes_to_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "JSON_SECONDS", 0.0)
    reporter, out, err = reported(JsonReporter)
    with reporter.running(300):
        reporter.model_begin("net", 2)
        reporter.file_begin("net", "lib/f", 300, "public/net/lib/f")
        reporter.file_resumed("net", "lib/f", 100, 300)
        for done in (100, 200, 150, 300, 300):
            reporter.file_progress("net", "lib/f", done, 300)
        reporter.file_end("net", "lib/f", "fetched")
        reporter.file_begin("net", "g", 5, "public/net/g")
        reporter.note("... trying again")
        reporter.file_end("net", "g", None)
        reporter.model_end("net", False)
        reporter.postprocessing_begin("net")
        reporter.postprocessing_end("net")
        reporter.error(IntegrityError("other bytes", hint="Look.", where=("model net", "file g")))
    reporter.failed(["net"])
    file = {"model": "net", "model_file": "lib/f"}
    assert events(out) == [
        {"$type": "model_download_begin", "model": "net", "num_files": 2},
        {"$type": "model_file_download_begin", **file, "size": 300},
        *({"$type": "model_file_download_progress", **file, "size": size} for size in (100, 200, 150, 300)),
        {"$type": "model_file_download_end", **file, "successful": True},
        {"$type": "model_file_download_begin", "model": "net", "model_file": "g", "size": 5},
        {"$type": "model_file_download_end", "model": "net", "model_file": "g", "successful": False},
        {"$type": "model_download_end", "model": "net", "successful": False},
        {"$type": "model_postprocessing_begin", "model": "net"},
        {"$type": "model_postprocessing_end", "model": "net"},
        {
            "$type": "error",
            "code": "integrity",
            "where": ["model net", "file g"],
            "message": "other bytes",
            "hint": "Look.",
        },
    ]
    assert err.getvalue().splitlines() == [
        "... trying again",
        "########## Error: In model net: In file g: other bytes",
        "Look.",
        "FAILED:",
        "net",
    ]


def test_progress_events_are_few_and_the_last_one_is_there() -> None:
    reporter, out, _ = reported(JsonReporter)
    reporter.file_begin("net", "f", 1000, "t")
    for done in range(1, 1001):
        reporter.file_progress("net", "f", done, 1000)
    reporter.file_end("net", "f", "fetched")
    sizes = [event["size"] for event in events(out) if event["$type"] == "model_file_download_progress"]
    assert sizes[0] == 1
    assert sizes[-1] == 1000
    assert len(sizes) < 10


# ---- An output that cannot be written


COMMANDS = [
    ("omz_downloader", "--name", "gpt-2-mini"),
    ("omz_downloader", "--name", "gpt-2-mini", "--progress_format", "json"),
    ("omz_downloader", "--print_all"),
    ("omz_converter", "--name", "gpt-2-mini"),
    ("omz_cache", "list", "--cache_dir", "cache"),
    ("omz_pin", "model.yml"),
]


def redirected(redirections: str, *words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = ["sh", "-c", f'exec "$0" "$@" {redirections}', str(BIN / words[0]), *words[1:]]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("words", COMMANDS[:5], ids=" ".join)
def test_an_output_that_is_full_is_one_line_of_error(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = redirected(">/dev/full", *words, folder=tmp_path)
    assert done.returncode == 1
    # With events for programs on it, text for people is on standard error.
    assert done.stderr.endswith("########## Error: The output cannot be written: No space left on device\n")
    assert ("Traceback" in done.stderr, done.stderr.count("Error")) == (False, 1)


@pytest.mark.skipif(os.name != "posix", reason="streams as a POSIX shell closes them")
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_an_output_that_is_closed_is_one_line_of_error(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = redirected(">&-", *words, folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr == f"{words[0]}: error: standard output is closed\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="streams as a POSIX shell closes them")
def test_where_nobody_hears_of_errors_the_work_is_done_all_the_same(tmp_path: Path) -> None:
    done = redirected("2>&-", "omz_downloader", "--name", "gpt-2-mini", folder=tmp_path)
    assert (done.returncode, done.stdout.count("all verified")) == (0, 1)
    done = redirected("2>&-", "omz_downloader", "--name", "nothing", folder=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")


def test_a_log_that_is_full_is_not_taken_for_the_disk_of_the_files() -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    reporter = PlainReporter(Full(), io.StringIO())
    with pytest.raises(BrokenPipeError), disk_errors("Writing", Path("file")):
        reporter.note("text")


def test_one_file_is_one_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    model = tmp_path / "models" / "one" / "model.yml"
    model.parent.mkdir(parents=True)
    digest = hashlib.sha256(b"x").hexdigest()
    model.write_text(
        "description: x\ntask_type: text_generation\nlicense: https://example.org/license\nfiles:\n"
        f"- {{name: file, size: 1, checksum: {{$type: sha256, value: {digest}}}, "
        f"source: {{$type: local, path: {tmp_path / 'file'}}}}}\n"
    )
    done = redirected("2>&1", "omz_downloader", "--models_dir", "models", "--name", "one", folder=tmp_path)
    assert "1 file, 1 B, all verified" in done.stdout, done.stdout
