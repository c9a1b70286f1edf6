"""Input that nobody meant: headers, names, leftovers and descriptors made at random, and those known to do harm."""

import contextlib
import itertools
import math
import os
import re
import signal
import socket
import string
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import comes_to_an_end
from faults import sample
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from omz_tools.cache import partial
from omz_tools.cache.partial import Partial
from omz_tools.descriptors import reading, zoo
from omz_tools.errors import DescriptorError
from omz_tools.network.answers import content_range, retry_after
from omz_tools.system.files import RelativeName

FUZZ = settings(
    max_examples=sample(300, 5000),
    deadline=None,  # other work on the machine is no mistake of ours
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
DIGEST = "ab" * 32


# ---- Headers


NUMBERS = st.integers(0, 10**20).map(str) | st.sampled_from(
    ["", "*", "-1", "+5", "0x10", "1_0", "٣", "1e3", "00", " 7"]
)
UNITS = st.sampled_from(["bytes ", "bytes", "Bytes ", "items ", "bytes  ", "bytes=", " bytes "])
ENDS = st.sampled_from(["", " ", "\n", "x", "/1"])


@FUZZ
@given(st.text(max_size=60) | st.builds("{}{}-{}/{}{}".format, UNITS, NUMBERS, NUMBERS, NUMBERS, ENDS))
@example("bytes 0-0/1")
@example("bytes 5-4/10")
@example("bytes 0-9/9")
@example("bytes */10")
@example("bytes ٠-٩/١٠")
@example("bytes 0-" + "9" * 5000 + "/*")
def test_what_a_content_range_means_is_a_part_of_a_file_or_nothing(value: str) -> None:
    part = content_range(value)
    if part is not None:
        first, end, total = part
        assert 0 <= first < end <= 10**18
        assert total is None or end <= total <= 10**18
        assert value.strip() == f"bytes {value.strip()[6:].split('-')[0]}-{value.strip().split('-')[1]}"
        assert [int(number) for number in re.findall(r"\d+", value)] == [first, end - 1, *([total] if total else [])]


@FUZZ
@given(st.integers(0, 10**17), st.integers(1, 10**17), st.none() | st.integers(0, 10**17))
def test_a_content_range_that_is_one_is_understood(first: int, length: int, behind: int | None) -> None:
    end = first + length
    total = None if behind is None else end + behind
    assert content_range(f" bytes {first}-{end - 1}/{'*' if total is None else total} ") == (first, end, total)


DATES = st.builds(
    "{}{} {} {} {}:{}:{} {}".format,
    st.sampled_from(["Mon, ", "Mon ", "", "Foo, ", ","]),
    st.integers(-5, 10**6),
    st.sampled_from(["Jan", "Feb", "DEC", "Foo", "", "13"]),
    st.integers(-(10**20), 10**20) | st.integers(1, 9999),
    st.integers(-1, 10**9),
    st.integers(-1, 99),
    st.integers(-1, 99) | st.just(""),
    st.sampled_from(["GMT", "-0000", "+0100", "+99999999999", "-9999", "EST", "", "+x"]),
)
SIGNS = st.text(string.digits + string.ascii_letters + " ,:+-;.()\t", max_size=40)


@FUZZ
@given(st.text(max_size=60) | DATES | SIGNS | st.integers().map(str) | st.floats().map(str))
@example("9" * 5000)
@example("Fri, 31 Dec 9999 23:59:59 -9999")
@example("Mon, 01 Jan 0001 00:00:00 +9999")
@example("1 Jan 1 0:0:0")
@example("²")
@example("\0")
@example(",")
@example("-")
@example("(" * 5000)
def test_a_retry_after_of_anything_is_a_wait_with_an_end(value: str) -> None:
    seconds = retry_after(value)
    assert type(seconds) is float
    assert 0.0 <= seconds < 3e11  # the year 9999, or nine digits of seconds
    assert math.isfinite(seconds)


# ---- Names


PARTS = st.sampled_from(
    [*"ab~é-_ß\u00a0\u200b\u202e\U0001f600\\\0\x7f\x85\n\ud800*|", "..", ".", "", "...", "a.b", ".a", "a ", " a", "con"]
) | st.sampled_from(["NUL.x", "a:b", "x" * 199, "x" * 201, "é" * 100, "%2e%2e", "$HOME", "~root"])


@FUZZ
@given(st.lists(PARTS | st.text(max_size=8), max_size=8).map("/".join) | st.text(max_size=30))
@example("/".join(["x" * 199] * 5))
@example("/".join(["a"] * 500))
def test_a_name_that_passes_can_be_made_below_its_folder_and_nowhere_else(name: str) -> None:
    try:
        passed = RelativeName.parse(name)
    except ValueError:
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        target = root / passed
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"x")
        assert target.resolve().is_relative_to(root)
        assert [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()] == [passed]


# ---- Leftovers of partial files


TAGS = st.sampled_from(['"http://host/file"', r'"\"a\""', r'"\ud800"', "1", "null", "[]"])
LINES = st.one_of(
    st.builds("{} {}\n".format, st.integers(0, 300), st.integers(0, 300)),
    st.builds("{} {}\n".format, st.integers(-5, 10**20), st.integers(-5, 10**20)),
    st.builds("[{}, {}]\n".format, TAGS, TAGS),
    st.sampled_from(
        ["\n", "[]\n", "[1,2,3]\n", '{"a": 1}\n', "[[[\n", "1 2", "0 \n", "0\x0b5\n", "0 5\r\n", "0 5\n0 9\n"]
    ),
    st.text(max_size=20),
).map(lambda line: line.encode("utf-8", "surrogatepass"))


@contextmanager
def left(content: bytes, size: int, *, suffix: str = ".part") -> Iterator[tuple[Path, str]]:
    """A folder in which a process that is gone left this, for a file "file" of `size` bytes."""
    with tempfile.TemporaryDirectory() as folder:
        name = f".file.{partial.version_of(DIGEST)}.{1:016x}-00000000{suffix}"
        (Path(folder) / name).write_bytes(content)
        yield Path(folder), name


def check_adoption(folder: Path, size: int) -> Partial:
    """Begin and adopt as a download does; what is there afterwards lies within the file."""
    assert 0 <= partial.kept(folder, "file", DIGEST, size) <= size
    own = Partial.begin(folder, "file", DIGEST, size)
    with own:
        own.adopt()
        assert 0 <= own.prefix <= own.held <= size
        edges = [edge for hole in own.holes() for edge in hole]
        assert edges == sorted(edges)
        assert all(0 <= edge <= size for edge in edges)
        assert own.held + sum(end - first for first, end in own.holes()) == size
        for first, end in own.holes():
            own.write(first, b"y" * (end - first))
        assert (own.prefix, own.holes()) == (size, [])
    return own


@FUZZ
@given(st.integers(0, 200), st.binary(max_size=250), st.lists(LINES, max_size=12))
@example(100, b"x" * 100, [b"0 100\n"])
@example(100, b"x" * 100, [b"0 100"])
@example(100, b"x" * 100, [b"60 100\n", b"0 50\n", b"40 70\n"])
@example(100, b"x" * 100, [b"5 5\n", b"9 3\n", b"99 101\n"])
@example(100, b"x" * 100, [b"[" * 100_000 + b"]\n"])
@example(100, b"x" * 100, [b"[" + b"9" * 10_000 + b", 1]\n"])
@example(0, b"", [b"0 0\n"])
@example(0, b"x", [])
def test_whatever_was_left_the_parts_believed_in_lie_within_the_file(
    size: int, data: bytes, lines: list[bytes]
) -> None:
    content = data if len(data) != size else data + b"".join(lines)
    with left(content, size) as (folder, _):
        check_adoption(folder, size)


@FUZZ
@given(st.integers(0, 100), st.binary(max_size=100), st.lists(LINES, max_size=12))
def test_a_record_of_anything_behind_the_right_number_of_bytes_lies_within_the_file(
    size: int, data: bytes, lines: list[bytes]
) -> None:
    with left(data[:size].ljust(size, b"\0") + b"".join(lines), size) as (folder, _):
        check_adoption(folder, size)


@FUZZ
@given(
    st.text(st.characters(exclude_characters="/\0", codec="utf-8"), max_size=30), st.sampled_from([".part", ".new", ""])
)
@example("file.abababababababab.0000000000000001-00000000", ".part")
@example("file.abababababababab.9999999999999999-ffffffff", ".part")
@example("file.abababababababab.0000000000000001-00000000", ".new")
@example("file.c.0000000000000001-00000000", ".part")
@example("file..part", ".part")
def test_a_file_whose_name_resembles_a_leftover_does_no_harm(name: str, suffix: str) -> None:
    assume(name + suffix not in ("", ".") and len(name.encode()) < 200)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / f".{name}{suffix}").write_bytes(b"x" * 150 + b"0 100\n")
        check_adoption(Path(folder), 150)


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path.name)


NO_FILES: dict[str, Callable[[Path], object]] = {
    "folder": Path.mkdir,
    "full folder": lambda path: (path / "inside" / "further").mkdir(parents=True),
    "link to nothing": lambda path: path.symlink_to("nowhere"),
    "link to zeros": lambda path: path.symlink_to("/dev/zero"),
    "link to a folder": lambda path: path.symlink_to("."),
    "circle": lambda path: path.symlink_to(path.name),
    "socket": make_socket,
    "pipe": make_pipe,
}


@pytest.mark.skipif(sys.platform == "win32", reason="kinds of files of POSIX")
@pytest.mark.parametrize("size", [1, 10_000])
@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_file_is_no_leftover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, size: int) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    NO_FILES[kind](tmp_path / f".file.{partial.version_of(DIGEST)}.{1:016x}-00000000.part")
    child = os.fork()
    if not child:  # which can be killed if it waits for ever
        with contextlib.suppress(BaseException):
            check_adoption(tmp_path, size)
            partial.sweep(tmp_path, "file")
            os._exit(0)
        os._exit(1)
    deadline = time.monotonic() + 60
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            pytest.fail("it waits for ever")
        time.sleep(0.01)
    assert ended[1] == 0


# ---- Descriptors


SHIPPED = [path.read_text(encoding="utf-8") for path in sorted(zoo.shipped().glob("*/model.yml"))]
WITH_STEPS = (
    SHIPPED[0]
    + """
postprocessing:
  - $type: regex_replace
    file: gpt2/config.json
    pattern: 'PATTERN'
    replacement: 'REPLACEMENT'
"""
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "model.yml"


def check_loads_or_is_explained(path: Path, text: str | bytes) -> str:
    """Both kinds of descriptor come to an end; what is said of the mistakes."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    explained = ""
    for load in (reading.load, reading.load_composite):
        try:
            with comes_to_an_end():
                load(path)
        except DescriptorError as error:
            explained += f"{error}\n"
    assert not explained or str(path) in explained
    return explained


@FUZZ
@given(st.text(max_size=400) | st.binary(max_size=400))
def test_any_text_loads_or_is_explained(path: Path, text: str | bytes) -> None:
    check_loads_or_is_explained(path, text)


WORDS = st.sampled_from(
    ["&a", "*a", "<<: *a", "<<: {}", "!!python/object/apply:os.system [id]", "!!python/name:os.system", "!!binary aGk=",
     "!!set {a}", "!local x", "---", "...", "%YAML 1.1", "%TAG ! tag:x,2000:", "? ", "- ", ": ", "|2-", "null", "no"]
) | st.sampled_from(
    [*"{}[]'\"|>#@`~-=\t\u2028\x85\ufeff", '"\\x00"', '"\\ud800"', "0o17", "0x1F", "1:30", ".inf", "2001-01-01",
     "1_000", "9" * 30, "1e999", "$type: local", "files: []", "size: -1", "name: ../x", "source: file:///etc/passwd"]
)  # fmt: skip
EDITS: dict[str, Callable[[list[str], int, int, str], object]] = {
    "insert": lambda lines, at, other, word: lines.insert(at, " " * (other % 8) + word),
    "replace": lambda lines, at, other, word: lines.__setitem__(at, f"{lines[at].partition(':')[0]}: {word}"),
    "delete": lambda lines, at, other, word: lines.pop(at),
    "repeat": lambda lines, at, other, word: lines.extend(lines[at : at + 12]),
    "indent": lambda lines, at, other, word: lines.__setitem__(at, f"  {lines[at]}"),
    "dedent": lambda lines, at, other, word: lines.__setitem__(at, lines[at].removeprefix("  ")),
    "move": lambda lines, at, other, word: lines.insert(other, lines.pop(at)),
    "cut": lambda lines, at, other, word: lines.__setitem__(at, lines[at][: other % 80]),
}
PLACES = st.floats(0, 0.999)


@FUZZ
@given(
    st.sampled_from([*SHIPPED, WITH_STEPS]),
    st.lists(st.tuples(st.sampled_from([*EDITS]), PLACES, PLACES, WORDS | st.text(max_size=6)), min_size=1, max_size=6),
)
def test_a_real_descriptor_with_lines_changed_loads_or_is_explained(
    path: Path, text: str, edits: list[tuple[str, float, float, str]]
) -> None:
    lines = text.splitlines()
    for kind, place, other, word in edits:
        EDITS[kind](lines, int(place * len(lines)), int(other * len(lines)), word)
    check_loads_or_is_explained(path, "\n".join(lines))


@FUZZ
@given(st.sampled_from(SHIPPED), st.lists(st.tuples(PLACES, st.integers(0, 255)), min_size=1, max_size=5))
def test_a_real_descriptor_with_bytes_changed_loads_or_is_explained(
    path: Path, text: str, changes: list[tuple[float, int]]
) -> None:
    data = bytearray(text.encode())
    for place, byte in changes:
        data[int(place * len(data))] = byte
    check_loads_or_is_explained(path, bytes(data))


REGEXES = st.lists(
    st.sampled_from([*"()[]{}|?*+^$.\\a-,0", "(?:", "(?P<n>", "(?P=n)", "(?i)", "(?<=", "{1,9}", "{65535}", "\\1"])
    | st.sampled_from(["\\g<n>", "*?", "[^", "\\d", "(?#", "(?(1)", "\\N{x}", "\\x", "\\u"]),
    max_size=12,
).map("".join)


@FUZZ
@given(REGEXES | st.text(max_size=12), REGEXES | st.text(max_size=12))
@example("(" * 5000, "x")
@example("x{99999999999}", "x")
@example("(?P<n>x)", "\\g<m>")
@example("x", "\\1")
@example("x", "\\")
def test_patterns_and_replacements_of_any_kind_load_or_are_explained(
    path: Path, pattern: str, replacement: str
) -> None:
    text = WITH_STEPS
    for word, value in (("PATTERN", pattern), ("REPLACEMENT", replacement)):
        text = text.replace(word, value.replace("'", "''"))
    check_loads_or_is_explained(path, text)


def bomb(levels: int) -> str:
    lines = ["a: &a [x,x,x,x,x,x,x,x,x]"]
    lines += [f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]" for a, b in itertools.pairwise("abcdefghijkl"[:levels])]
    return "\n".join(lines)


def merges(levels: int) -> str:
    lines = ["m0: &m0 {k0: v}"]
    lines += [f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 9)}], k{n}: v}}" for n in range(1, levels)]
    return "\n".join(lines)


# What does harm to those who are not prepared, and what is said about it; nothing if it is no mistake.
HARMFUL: dict[str, tuple[str, str]] = {
    "aliases of aliases": (bomb(9), "an anchor"),
    "merges of merges": (merges(20), "merge key|an alias"),
    "an alias within itself": ("a: &a [*a]", "an alias"),
    "a thousand anchors": ("\n".join(f"k{n}: &a{n} x" for n in range(1000)), "an anchor"),
    "a merge key": (SHIPPED[0] + "\n<<: {description: x}\n", "merge key"),
    "a quoted merge key": (SHIPPED[0] + '\n"<<": {description: x}\n', "unknown key"),
    "lists a hundred thousand deep": ("[" * 100_000, "nested deeper"),
    "mappings a hundred thousand deep": ("{a: " * 100_000, "nested deeper"),
    "lines a thousand deep": ("\n".join("  " * n + "a:" for n in range(1000)), "nested deeper"),
    "keys a thousand deep": ("? " * 1000 + "a", "nested deeper"),
    "an object of Python": ("description: !!python/object/apply:os.system ['touch /tmp/x']", "a tag"),
    "a name of Python": ("!!python/name:os.system", "a tag"),
    "a module of Python": ("a: !!python/module:os x", "a tag"),
    "a tag of one's own": ("%TAG !e! tag:yaml.org,2002:python/\n---\na: !e!name:os.system", "a tag"),
    "a key twice": (SHIPPED[0] + "\ndescription: another\n", "stands here twice"),
    "a key twice in one line": ("{a: 1, a: 2}", "stands here twice"),
    "a key a thousand times": ("a: 1\n" * 1000, "stands here twice"),
    "a key that is no word": ("[a]: b", "must be a word"),
    "a number of a million digits": ("size: " + "9" * 1_000_000, "longer than|quote"),
    "a number of ten thousand digits": (SHIPPED[0].replace("size: ", "size: " + "9" * 10_000, 1), "quote it"),
    "a million opening quotes": ("'" * 1_000_001, ""),
    "a line of a megabyte": ("a" * 1_000_000, ""),
    "a key of a megabyte": ("a" * 1_000_000 + ": b", ""),
    "an anchor of a megabyte": ("&" + "a" * 1_000_000 + " b", ""),
    "more than a megabyte": ("a: " + "b" * (2 << 20), "longer than"),
    "fifty thousand comments": ("# x\n" * 50_000, "empty"),
    "fifty thousand documents": ("---\n" * 50_000, "a second document"),
    "five thousand files": ("files:\n" + "- {name: x}\n" * 5000, "stands here twice"),
    "five thousand keys": ("\n".join(f"k{n}: x" for n in range(5000)), "unknown key"),
    "five thousand sources": ("files: [{source: [" + "x, " * 5000 + "x]}]", ""),
    "fifty thousand folders": ("files: [{name: " + "a/" * 50_000 + "a}]", "longer than 1000 bytes"),
    "a block text without end": ("a: |\n" + "  x\n" * 100_000, ""),
    "escapes of nothing": ('a: "\\x00\\u0000\\U00110000"', ""),
    "surrogates": ('a: "\\ud800\\udfff"', ""),
    "a byte order mark in the middle": ("a: b\n\ufeffc: d", ""),
    "nothing": ("", "empty"),
    "UTF-16": (SHIPPED[0].encode("utf-16").decode("latin-1"), ""),
    "a pattern of nested repeats": (WITH_STEPS.replace("PATTERN", "(((((a?)*)*)*)*)*" * 20), ""),
    "a pattern of many empty repeats": (WITH_STEPS.replace("PATTERN", "(a?){1,1000}" * 60), ""),
    "a pattern of all characters in any case": (WITH_STEPS.replace("PATTERN", "(?i:[\\0-\U0010ffff])" * 2000), ""),
    "a pattern of fifty thousand words": (
        WITH_STEPS.replace("PATTERN", "|".join(f"a{n}" for n in range(50_000))), ""),
}  # fmt: skip


@pytest.mark.parametrize("kind", HARMFUL)
def test_a_descriptor_that_means_harm_is_refused_or_does_none(path: Path, kind: str) -> None:
    text, says = HARMFUL[kind]
    explained = check_loads_or_is_explained(path, text)
    assert re.search(says, explained)
    assert max(map(len, explained.splitlines()), default=0) < 1000
    assert not Path("/tmp/x").exists()
