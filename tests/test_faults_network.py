"""Servers that cut, lie, stall, refuse and redirect: what arrives is right or an error, and little travels twice.

Most tests run the download of one file in this process, as the commands do it; some run the commands. After each, four
things hold: every file in the cache hashes to its name, nothing unfinished has a final name, an honest rerun succeeds,
and no token was shown.
"""

import hashlib
import itertools
import json
import mmap
import os
import random
import re
import socket
import ssl
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import trustme
import yaml
from conftest import Command
from faults import sample
from faulty_server import (
    Answer,
    Exchange,
    FaultyServer,
    File,
    ForwardingProxy,
    Request,
    by_path,
    hanging_up,
    http_date,
    in_turn,
    redirecting,
    refusing,
    resetting,
    stalling,
)

from omz_tools.cache.partial import version_of
from omz_tools.cache.store import FORMAT, Store
from omz_tools.descriptors.descriptor import FileEntry, Http, Sha256
from omz_tools.download import parts, pinned, transfer
from omz_tools.download.pinned import How, Means, Want
from omz_tools.errors import IntegrityError, OmzError, SourceError, UnreachableError
from omz_tools.network import throughput, transport
from omz_tools.network.answers import RangeError, TransientError
from omz_tools.network.transport import Transport
from omz_tools.system.files import RelativeName

MIB = 1 << 20
DATA = random.Random(41).randbytes(32 * MIB)
# Enough for four pieces, and no round number.
MIDDLE = DATA[: 17 * MIB + 321]
SMALL = DATA[:100_003]
TOKEN = "hf_secretOfTheTest"
# Waits of a server that has cut, stalled or refused are what these tests are about; ours are not.
PAUSE = 0.002

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="sockets and figures of Linux")


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the settings of whoever runs the tests."""
    for name in list(os.environ):
        if name.startswith(("HF_", "OMZ_CACHE")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    """A server that answers with MIDDLE unless a test says otherwise."""
    with FaultyServer(File(MIDDLE)) as server:
        yield server


@dataclass(frozen=True)
class Outcome:
    """How a download ended: by success or by an error, what was said meanwhile, and what it cost."""

    how: How | None
    error: OmzError | None
    notes: list[str]
    kept: list[int]
    seconds: float

    @property
    def said(self) -> str:
        return "\n".join([*self.notes, str(self.error or "")])


@dataclass
class Place:
    """An output folder and a cache in which one file is downloaded, and what must hold there whatever happens."""

    folder: Path
    data: bytes = MIDDLE
    has_cache: bool = True
    _want: Want = field(init=False)

    def fetch(self, *urls: str, connections: int = 1, attempts: int = 3) -> Outcome:
        """Download the file as the commands do, and see that what must hold holds."""
        sources = tuple(Http(url) for url in urls)
        digest = Sha256(hashlib.sha256(self.data).hexdigest())
        self._want = Want(FileEntry(RelativeName("file"), len(self.data), digest, sources), self.target, self.folder)
        notes: list[str] = []
        kept: list[int] = []
        how, error = None, None
        means = Means(Transport(), self.store, attempts, connections, False, notes.append)
        began = time.monotonic()
        try:
            how = pinned.foresee(self._want, means)
            if how is How.IN_PLACE:
                pinned.tidy(self._want, means)
            else:
                how = pinned.fetch(self._want, means, kept.append, lambda done: None)
        except OmzError as caught:
            error, how = caught, None
        outcome = Outcome(how, error, notes, kept, time.monotonic() - began)
        self.check(outcome)
        return outcome

    @property
    def target(self) -> Path:
        return self.folder / "out" / "file"

    @property
    def store(self) -> Store | None:
        return Store(self.folder / "cache") if self.has_cache else None

    def check(self, outcome: Outcome) -> None:
        check_blobs(self.folder / "cache")
        if outcome.error:
            assert not self.target.exists()
            assert outcome.error.code != "error"
            assert outcome.error.what
        else:
            assert self.target.read_bytes() == self.data
            assert hidden_below(self.folder) == []
        assert TOKEN not in outcome.said
        assert "object at 0x" not in outcome.said

    def rerun(self, *urls: str) -> None:
        """Once more, from servers that have become honest."""
        outcome = self.fetch(*urls, connections=4)
        assert outcome.error is None


def check_blobs(cache: Path) -> None:
    for path in cache.rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name


def hidden_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*") if path.is_file()]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def fetch_and_rerun(place: Place, server: FaultyServer, connections: int = 1, attempts: int = 3) -> Outcome:
    """A download from a server, and when its requests were counted an honest rerun; the counts are of the first."""
    outcome = place.fetch(f"{server.url}/file", connections=connections, attempts=attempts)
    counted = list(server.requests), server.sent, server.lost, server.connections, server.most_open
    server.answer, server.cut_every, server.admit = File(place.data), None, lambda others: True
    place.rerun(f"{server.url}/file")
    server.requests, server.sent, server.lost, server.connections, server.most_open = counted
    return outcome


def waited(outcome: Outcome) -> bool:
    return "trying again in" in outcome.said


# ---- Cuts


CUTS = [MIB // 4, MIB, 4 * MIB, 8 * MIB, 12 * MIB]


@pytest.mark.parametrize("connections", [1, 4])
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("every", sample([CUTS[0], CUTS[2], CUTS[4]], CUTS))
def test_a_file_arrives_over_connections_that_are_cut_again_and_again(
    place: Place, server: FaultyServer, every: int, reset: bool, connections: int
) -> None:
    """No byte travels twice, and nothing is waited for, since there is progress each time."""
    place.data = DATA
    server.answer, server.cut_every, server.cut_resets = File(DATA), every, reset
    # What a server has not sent yet is lost with a reset, and that is not for us to mend: it must be little.
    server.buffer(1 << 16)
    outcome = fetch_and_rerun(place, server, connections)
    assert outcome.how is How.FETCHED
    assert server.sent <= 1.1 * len(DATA)
    assert server.connections >= len(DATA) // every - connections
    assert not waited(outcome)
    assert outcome.seconds < 30


@linux_only
@pytest.mark.parametrize("connections", [1, 4])
@pytest.mark.parametrize("every", sample([CUTS[1], CUTS[2]], CUTS))
def test_what_lies_in_the_buffers_of_a_server_that_resets_is_little(
    place: Place, server: FaultyServer, every: int, connections: int
) -> None:
    """With buffers of the usual size, a reset drops what the server has written and not yet sent."""
    place.data = DATA
    server.answer, server.cut_every, server.cut_resets = File(DATA), every, True
    outcome = fetch_and_rerun(place, server, connections)
    assert outcome.how is How.FETCHED
    assert server.sent <= 1.1 * len(DATA)
    assert not waited(outcome)


def behind_a_buffer(data: bytes, every: int, size: int) -> Answer:
    """A connection ends after so many bytes of bodies, and of the answer then under way the last `size` never left."""

    def answer(exchange: Exchange) -> None:
        part = File(data).part(exchange.request)
        first, end = part or (0, len(data))
        if exchange.body_bytes + end - first < every:
            File(data)(exchange)
            return
        written = every - exchange.body_bytes
        left = max(0, written - size)
        headers = {"Content_Range": f"bytes {first}-{end - 1}/{len(data)}"} if part else {}
        exchange.head(206 if part else 200, Content_Length=end - first, ETag='"one"', **headers)
        exchange.body(memoryview(data)[first : first + left])
        with exchange.server.counting:
            exchange.server.sent += written - left
            exchange.server.lost += written - left
        exchange.cut()

    return answer


@pytest.mark.parametrize("connections", [1, 4])
def test_little_is_on_its_way_when_a_connection_breaks(place: Place, server: FaultyServer, connections: int) -> None:
    """The worst that buffers can do: at each break a whole MiB of the answer is lost, if it has as much."""
    place.data = DATA
    server.answer = behind_a_buffer(DATA, 4 * MIB, MIB)
    outcome = fetch_and_rerun(place, server, connections)
    assert outcome.how is How.FETCHED
    assert server.lost > 0
    assert server.sent <= 1.1 * len(DATA)


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("connections", [1, 4])
@pytest.mark.parametrize("attempts", sample([2], [1, 3]))
def test_a_server_that_cuts_before_each_body_ends_after_the_attempts_asked_for(
    place: Place, server: FaultyServer, attempts: int, connections: int, reset: bool
) -> None:
    def cuts(exchange: Exchange) -> None:
        exchange.head(200, Content_Length=len(MIDDLE))
        exchange.cut(reset=reset)

    server.answer = cuts
    outcome = fetch_and_rerun(place, server, connections, attempts)
    assert isinstance(outcome.error, TransientError)
    assert f"Tried {attempts} times." in outcome.error.hint
    assert len(server.requests) == attempts


@pytest.mark.parametrize("connections", [1, 4])
def test_a_server_that_cuts_when_all_have_begun_ends_after_the_attempts_asked_for(
    place: Place, server: FaultyServer, connections: int
) -> None:
    """Each connection beyond the last one gives up at once; the last one has all its attempts."""
    honest = File(MIDDLE, pause=PAUSE)
    refused: list[Request] = []

    def so_far(exchange: Exchange) -> None:
        if exchange.server.sent > 5 * MIB:
            refused.append(exchange.request)
            exchange.cut()
        honest(exchange)

    server.answer, server.cut_every = so_far, 2 * MIB
    outcome = fetch_and_rerun(place, server, connections, attempts=3)
    assert isinstance(outcome.error, TransientError)
    assert "Tried 3 times." in outcome.error.hint
    assert "bytes are kept; the next run goes on after them" in outcome.error.hint
    # One on a connection that was kept open is asked for once more on a new one.
    assert len(refused) <= 3 + 3 * connections


@pytest.mark.parametrize("connections", [1, 4])
def test_progress_gives_a_server_all_its_attempts_again(place: Place, server: FaultyServer, connections: int) -> None:
    """One hang-up after each cut: far more faults than attempts, never two without progress in between."""
    turns = itertools.count()
    honest = File(MIDDLE)

    def every_other(exchange: Exchange) -> None:
        if next(turns) % 2:
            exchange.cut()
        honest(exchange)

    server.answer, server.cut_every = every_other, 3 * MIB
    outcome = fetch_and_rerun(place, server, connections, attempts=2 if connections == 1 else 3)
    assert outcome.how is How.FETCHED
    assert len(server.requests) > 10
    assert server.sent <= 1.1 * len(MIDDLE)


def until_cut(answer: Answer, after: int, then: Answer = hanging_up) -> Answer:
    """Cuts the connections when so much of the file was sent, and from then on answers otherwise."""

    def until(exchange: Exchange) -> None:
        exchange.server.cut_every = after - exchange.server.sent + exchange.body_bytes
        (answer if exchange.server.sent < after else then)(exchange)

    return until


def up_to(answer: Answer, after: int, then: Answer = hanging_up) -> Answer:
    """Answers otherwise when so much of the file was sent."""
    return lambda exchange: (answer if exchange.server.sent < after else then)(exchange)


def test_what_came_before_the_attempts_ran_out_does_not_travel_again(place: Place, server: FaultyServer) -> None:
    server.answer = until_cut(File(MIDDLE), 9 * MIB)
    outcome = place.fetch(f"{server.url}/file", attempts=1)
    assert isinstance(outcome.error, TransientError)
    assert f"{9 * MIB:,} bytes are kept" in outcome.error.hint
    server.answer, server.cut_every = File(MIDDLE), None
    again = place.fetch(f"{server.url}/file", connections=4)
    assert (again.how, again.kept) == (How.FETCHED, [9 * MIB])
    assert server.sent == len(MIDDLE)
    assert {r.headers.get("if-range") for r in server.requests[1:]} == {'"one"'}


@pytest.mark.parametrize("at", [1, 10, 40, 70])
def test_a_cut_within_the_head_of_an_answer_is_mended(place: Place, server: FaultyServer, at: int) -> None:
    place.data = SMALL

    def cuts(exchange: Exchange) -> None:
        head = f'HTTP/1.1 200 Whatever\r\nContent-Length: {len(SMALL)}\r\nETag: "one"\r\nX-Filler: filler\r\n\r\n'
        exchange.raw(head.encode()[:at])
        exchange.cut()

    server.answer = in_turn(cuts, then=File(SMALL))
    outcome = fetch_and_rerun(place, server)
    assert outcome.how is How.FETCHED
    assert len(server.requests) == 2


def test_a_reset_behind_the_last_byte_does_no_harm(place: Place, server: FaultyServer) -> None:
    def resets(exchange: Exchange) -> None:
        File(MIDDLE)(exchange)
        time.sleep(0.2)
        exchange.cut(reset=True)

    server.answer = resets
    outcome = fetch_and_rerun(place, server, connections=4)
    assert outcome.how is How.FETCHED
    assert server.sent == len(MIDDLE)


# ---- Kinds of servers


def in_parts(
    data: bytes, says: Callable[[int, int, int], str | None], most: int | None = None, **headers: str
) -> Answer:
    """Honest but for the Content-Range of its parts, which `says` makes of first, end and size; `most` bytes each."""

    def answer(exchange: Exchange) -> None:
        if exchange.request.range is None:
            File(data)(exchange)
            return
        first, end = exchange.request.range
        end = len(data) if end is None else end
        end = end if most is None else min(end, first + most)
        exchange.head(
            206, Content_Length=end - first, Content_Range=says(first, end, len(data)), ETag='"one"', **headers
        )
        exchange.body(memoryview(data)[first:end])

    return answer


def multipart(data: bytes) -> Answer:
    def answer(exchange: Exchange) -> None:
        if exchange.request.range is None:
            File(data)(exchange)
            return
        first, end = exchange.request.range[0], exchange.request.range[1] or len(data)
        head = f"--b\r\nContent-Range: bytes {first}-{end - 1}/{len(data)}\r\n\r\n".encode()
        length = len(head) + end - first + 7
        exchange.head(206, Content_Length=length, Content_Type="multipart/byteranges; boundary=b", ETag='"one"')
        exchange.body(head)
        exchange.body(memoryview(data)[first:end])
        exchange.body(b"\r\n--b--")

    return answer


def refuses_ranges(data: bytes, status: int) -> Answer:
    return lambda exchange: (refusing(status) if exchange.request.range else File(data))(exchange)


def longer_than_said(exchange: Exchange) -> None:
    """Parts with more bytes than their Content-Range says, and a Content-Length that says so."""
    if exchange.request.range is None:
        File(MIDDLE)(exchange)
        return
    first, end = exchange.request.range[0], exchange.request.range[1] or len(MIDDLE)
    exchange.head(206, Content_Length=end - first + 5, Content_Range=f"bytes {first}-{end - 1}/{len(MIDDLE)}")
    exchange.body(memoryview(MIDDLE)[first:end])
    exchange.body(b"extra")


# Servers that give the file to whoever asks for all of it, and the most that may travel of it, in files.
KINDS: dict[str, tuple[Answer, float]] = {
    "no ranges at all": (File(MIDDLE, ranges="none"), 1.6),
    "ends of ranges overlooked": (File(MIDDLE, ranges="open"), 1.3),
    "no entity tag": (File(MIDDLE, etag=None), 1.0),
    "a weak entity tag": (File(MIDDLE, etag='W/"one"'), 1.0),
    "an empty entity tag": (File(MIDDLE, etag='""'), 1.0),
    "an entity tag without quotes": (File(MIDDLE, etag="one"), 1.0),
    "an entity tag of a kilobyte": (File(MIDDLE, etag=f'"{"x" * 1100}"'), 1.0),
    "total not known": (in_parts(MIDDLE, lambda first, end, size: f"bytes {first}-{end - 1}/*"), 1.0),
    "parts of a megabyte at most": (
        in_parts(MIDDLE, lambda first, end, size: f"bytes {first}-{end - 1}/{size}", MIB),
        1.0,
    ),
    "wrong offset": (in_parts(MIDDLE, lambda first, end, size: f"bytes {first + 1}-{end}/{size}"), 1.6),
    "wrong total": (in_parts(MIDDLE, lambda first, end, size: f"bytes {first}-{end - 1}/{size + 1}"), 1.6),
    "total too small": (in_parts(MIDDLE, lambda first, end, size: f"bytes {first}-{end - 1}/{end - 1}"), 1.6),
    "no Content-Range": (in_parts(MIDDLE, lambda first, end, size: None), 1.6),
    "Content-Range empty": (in_parts(MIDDLE, lambda first, end, size: ""), 1.6),
    "Content-Range rubbish": (in_parts(MIDDLE, lambda first, end, size: "bytes one-two/three"), 1.6),
    "Content-Range of no part": (in_parts(MIDDLE, lambda first, end, size: f"bytes */{size}"), 1.6),
    "Content-Range backwards": (in_parts(MIDDLE, lambda first, end, size: f"bytes {end}-{first}/{size}"), 1.6),
    "Content-Range of another unit": (in_parts(MIDDLE, lambda first, end, size: f"items {first}-{end}/{size}"), 1.6),
    "Content-Range negative": (in_parts(MIDDLE, lambda first, end, size: f"bytes -{first}-{end}/{size}"), 1.6),
    "Content-Range of 30 digits": (in_parts(MIDDLE, lambda first, end, size: f"bytes {first}-{end}/{'9' * 30}"), 1.6),
    "multipart": (multipart(MIDDLE), 1.6),
    "longer than their Content-Range": (longer_than_said, 1.6),
    "416 to every range": (refuses_ranges(MIDDLE, 416), 1.6),
}


SOME_KINDS = ["no ranges at all", "ends of ranges overlooked", "total not known", "wrong offset", "416 to every range"]


@pytest.mark.parametrize(
    ("way", "kind"),
    [
        *(("four connections", kind) for kind in KINDS),
        *(("after a cut", kind) for kind in sample(SOME_KINDS, [*KINDS])),
    ],
)
def test_a_file_arrives_from_a_server_whose_ranges_are_of_no_or_little_use(
    place: Place, server: FaultyServer, kind: str, way: str
) -> None:
    answer, most = KINDS[kind]

    def cuts(exchange: Exchange) -> None:
        exchange.head(200, Content_Length=len(MIDDLE))
        exchange.body(memoryview(MIDDLE)[: 9 * MIB])
        exchange.cut()

    server.answer = answer if way == "four connections" else in_turn(cuts, then=answer)
    # Of an answer that is of no use, what the buffers hold has travelled.
    server.buffer(1 << 16)
    outcome = fetch_and_rerun(place, server, connections=4 if way == "four connections" else 1)
    assert outcome.how is How.FETCHED
    assert server.sent <= most * len(MIDDLE) + MIB
    assert not waited(outcome)


@pytest.mark.parametrize(
    ("answer", "connections", "error"),
    [
        (refusing(416), 1, RangeError),
        (refusing(416), 4, RangeError),
        (lambda exchange: exchange.head(206, Content_Length=len(MIDDLE)), 4, RangeError),
        (lambda exchange: exchange.head(206, Content_Range="rubbish", Content_Length=len(MIDDLE)), 4, RangeError),
        (lambda exchange: exchange.head(206, Content_Range="bytes 0-9/10", Content_Length=10), 4, OmzError),
    ],
)
def test_a_server_that_does_not_even_give_the_whole_file_is_an_error_after_two_requests(
    place: Place, server: FaultyServer, answer: Answer, connections: int, error: type[OmzError]
) -> None:
    server.answer = answer
    outcome = fetch_and_rerun(place, server, connections)
    assert isinstance(outcome.error, error)
    assert len(server.requests) == 2
    assert not waited(outcome)


@pytest.mark.parametrize("length", [10, len(SMALL)])
def test_a_part_that_nobody_asked_for_is_an_error(place: Place, server: FaultyServer, length: int) -> None:
    place.data, size = SMALL, len(SMALL)
    server.answer = lambda exchange: (
        exchange.head(206, Content_Range=f"bytes 0-{length - 1}/{size}", Content_Length=length),
        exchange.body(SMALL[:length]),
    )
    outcome = fetch_and_rerun(place, server)
    assert isinstance(outcome.error, RangeError)
    assert len(server.requests) == 2
    assert "none was asked for" in outcome.error.what


def test_a_server_that_sends_all_there_is_from_an_offset_on_is_asked_once(place: Place, server: FaultyServer) -> None:
    """To leave it at the end of a part would waste what is on its way."""
    server.answer = File(MIDDLE, ranges="open")
    outcome = fetch_and_rerun(place, server, connections=4)
    assert outcome.how is How.FETCHED
    assert len(server.requests) == 1
    assert server.sent == len(MIDDLE)


# What a server does with connections that are one too many.
ONE_TOO_MANY: dict[str, Answer] = {
    "the whole file": File(MIDDLE, ranges="none"),
    "403": refusing(403),
    "404": refusing(404),
    "416": refusing(416),
    "429": refusing(429, Retry_After=3600),
    "503": refusing(503),
    "hangs": stalling,
    "closes": hanging_up,
    "resets": resetting,
}


def one_at_a_time(honest: Answer, beyond: Answer, most: int = 1) -> Answer:
    free = threading.BoundedSemaphore(most)

    def answer(exchange: Exchange) -> None:
        # The client may know that an answer is over before we do.
        if not free.acquire(timeout=0.05):
            beyond(exchange)
            return
        try:
            honest(exchange)
        finally:
            free.release()

    return answer


@pytest.mark.parametrize("most", sample([1], [1, 2]))
@pytest.mark.parametrize("kind", ONE_TOO_MANY)
def test_a_file_arrives_from_a_server_that_gives_ranges_to_few_connections_at_a_time(
    place: Place, server: FaultyServer, monkeypatch: pytest.MonkeyPatch, kind: str, most: int
) -> None:
    monkeypatch.setattr(transport, "READ_SECONDS", 1.0)
    server.answer = one_at_a_time(File(MIDDLE, pause=PAUSE), ONE_TOO_MANY[kind], most)
    outcome = fetch_and_rerun(place, server, connections=4)
    assert outcome.how is How.FETCHED
    assert server.sent <= (1.1 if kind not in ("the whole file", "416") else 2.1) * len(MIDDLE)
    assert outcome.seconds < 8
    if kind != "hangs":
        assert not waited(outcome)


def test_a_file_arrives_from_a_server_that_lets_connections_wait_for_each_other(
    place: Place, server: FaultyServer
) -> None:
    honest, turn = File(MIDDLE), threading.Lock()

    def answer(exchange: Exchange) -> None:
        with turn:
            honest(exchange)

    server.answer, server.cut_every = answer, 3 * MIB
    outcome = fetch_and_rerun(place, server, connections=4)
    assert outcome.how is How.FETCHED
    assert server.sent <= 1.1 * len(MIDDLE)
    assert not waited(outcome)


@pytest.mark.parametrize("kind", sample(["429", "resets"], ["403", "429", "503", "closes", "resets"]))
def test_a_file_arrives_from_a_server_that_serves_the_first_connection_alone(
    place: Place, server: FaultyServer, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(transport, "READ_SECONDS", 1.0)
    honest = File(MIDDLE, pause=PAUSE)
    server.answer = lambda exchange: (ONE_TOO_MANY[kind] if exchange.request.connection else honest)(exchange)
    outcome = fetch_and_rerun(place, server, connections=4)
    assert outcome.how is How.FETCHED
    assert server.sent == len(MIDDLE)


def test_an_open_connection_is_used_before_others_are_made_also_after_one_has_failed(server: FaultyServer) -> None:
    """Some servers have only so many for each client, and the one that is open is all there will be."""
    asked, kept = threading.Event(), threading.Event()

    def answer(exchange: Exchange) -> None:
        if exchange.request.path == "/fails":
            asked.set()
            kept.wait(10)
            exchange.cut(reset=True)
        if exchange.request.turn == 0:
            asked.wait(10)
        File(SMALL)(exchange)

    server.answer, web = answer, Transport()

    def fetch(path: str) -> bytes:
        with web.get(f"{server.url}/{path}") as body:
            return b"".join(body)

    with ThreadPoolExecutor(2) as pool:
        good, failing = pool.submit(fetch, "first"), pool.submit(fetch, "fails")
        assert good.result() == SMALL
        kept.set()
        assert isinstance(failing.exception(), SourceError)
    assert fetch("second") == SMALL
    assert (server.connections, server.requests[-1].turn) == (2, 1)


@pytest.mark.parametrize(("most", "connections"), sample([(1, 4), (2, 16)], [(1, 4), (2, 4), (1, 16), (2, 16)]))
def test_a_file_arrives_from_a_server_that_refuses_connections_beyond_a_few(
    place: Place, server: FaultyServer, most: int, connections: int
) -> None:
    place.data = DATA
    server.answer = File(DATA, pause=PAUSE)
    server.admit = lambda others: others < most
    outcome = fetch_and_rerun(place, server, connections)
    assert outcome.how is How.FETCHED
    assert server.most_open <= most
    assert server.sent <= 1.1 * len(DATA)


# ---- Entities that change


def other_version(data: bytes) -> bytes:
    return bytes(byte ^ 0xFF for byte in data[:1000]) + data[1000:]


@pytest.mark.parametrize("connections", [1, 4])
@pytest.mark.parametrize(
    ("before", "after"),
    [('"old"', '"one"'), ('"same"', '"same"'), (None, None), ('W/"same"', 'W/"same"'), ('"old"', None)],
    ids=["the tag, too", "under the same tag", "no tag", "a weak tag", "the tag is gone"],
)
def test_a_file_that_becomes_the_pinned_one_between_two_requests_arrives(
    place: Place, server: FaultyServer, before: str | None, after: str | None, connections: int
) -> None:
    old = File(other_version(MIDDLE), etag=before)
    server.answer, server.cut_every = in_turn(old, then=File(MIDDLE, etag=after)), 9 * MIB
    server.answer = in_turn(old, then=cuts_nothing(File(MIDDLE, etag=after)))
    outcome = fetch_and_rerun(place, server, connections)
    assert outcome.how is How.FETCHED
    assert server.sent <= 2.1 * len(MIDDLE)
    assert not waited(outcome)


def cuts_nothing(answer: Answer) -> Answer:
    """From here on, the server cuts no connections."""

    def whole(exchange: Exchange) -> None:
        exchange.server.cut_every = None
        answer(exchange)

    return whole


def test_a_server_whose_file_is_another_at_each_request_is_an_error(place: Place, server: FaultyServer) -> None:
    versions = itertools.count()

    def changing(exchange: Exchange) -> None:
        number = next(versions)
        File(other_version(MIDDLE)[: -1 - number] + bytes(1 + number), etag=f'"{number}"', pause=PAUSE)(exchange)

    server.answer = changing
    outcome = fetch_and_rerun(place, server, connections=4)
    assert isinstance(outcome.error, IntegrityError)
    assert server.sent <= 2.1 * len(MIDDLE)


def test_a_tag_that_differs_between_machines_of_one_server_does_not_keep_the_file_away(
    place: Place, server: FaultyServer
) -> None:
    """Some farms give each machine a tag of its own, and a whole file where it is not theirs."""
    tags = itertools.cycle(['"a"', '"b"'])
    server.answer = lambda exchange: File(MIDDLE, etag=next(tags), pause=PAUSE)(exchange)
    outcome = fetch_and_rerun(place, server, connections=4)
    assert outcome.how is How.FETCHED
    assert server.sent <= 2.1 * len(MIDDLE)


# ---- Redirects of a file in parts


@pytest.mark.parametrize("connections", [1, 4])
def test_each_part_goes_the_way_of_the_redirects(place: Place, server: FaultyServer, connections: int) -> None:
    with FaultyServer(redirecting(f"{server.url}/elsewhere")) as front:
        server.cut_every = 5 * MIB
        outcome = place.fetch(f"{front.url}/file", connections=connections)
        assert outcome.how is How.FETCHED
        assert len(front.requests) == len(server.requests) > 3
        assert {r.path for r in server.requests} == {"/elsewhere"}
        assert Counter(r.range for r in front.requests) == Counter(r.range for r in server.requests)
        assert server.sent == len(MIDDLE)


@pytest.mark.parametrize("connections", [1, 4])
def test_a_signed_address_that_expires_is_asked_for_anew(place: Place, server: FaultyServer, connections: int) -> None:
    """Each is good for one request; only the address that the descriptor names may be kept."""
    numbers = itertools.count()
    used: set[str] = set()

    def once(exchange: Exchange) -> None:
        if exchange.request.target in used:
            refusing(403)(exchange)
            return
        used.add(exchange.request.target)
        File(MIDDLE)(exchange)

    server.answer, server.cut_every = once, 3 * MIB
    front_answer: Answer = lambda exchange: redirecting(f"{server.url}/signed?by={next(numbers)}")(exchange)  # noqa: E731
    with FaultyServer(front_answer) as front:
        outcome = place.fetch(f"{front.url}/file", connections=connections)
        assert outcome.how is How.FETCHED
        assert not waited(outcome)
        assert len(used) == len(front.requests) >= 5
        assert server.sent == len(MIDDLE)


# ---- Wrong bytes


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


PLACES = {"first byte": 0, "first piece": 77_777, "middle": len(MIDDLE) // 2, "last byte": len(MIDDLE) - 1}
FLIPS = sample(
    [("first byte", 1), ("middle", 4), ("last byte", 4)],
    [(place, connections) for place in PLACES for connections in (1, 4)],
)


@pytest.mark.parametrize(("at", "connections"), FLIPS)
def test_a_flipped_bit_is_tried_afresh_once_and_then_an_error(
    place: Place, server: FaultyServer, connections: int, at: str
) -> None:
    server.answer = File(flipped(MIDDLE, PLACES[at]))
    outcome = fetch_and_rerun(place, server, connections)
    assert isinstance(outcome.error, IntegrityError)
    assert "Nothing was stored" in outcome.error.hint
    assert hashlib.sha256(MIDDLE).hexdigest() in outcome.error.what
    assert outcome.said.count("once more from the beginning") == 1
    assert server.sent == 2 * len(MIDDLE)
    assert hidden_below(place.folder) == []


@pytest.mark.parametrize(("at", "connections"), FLIPS)
def test_a_bit_flipped_once_does_no_harm(place: Place, server: FaultyServer, connections: int, at: str) -> None:
    """Every connection carries it until all bytes have come, and none from then on."""

    def once(exchange: Exchange) -> None:
        wrong = exchange.server.sent < len(MIDDLE) - 1
        File(flipped(MIDDLE, PLACES[at]) if wrong else MIDDLE)(exchange)

    server.answer = once
    outcome = fetch_and_rerun(place, server, connections, attempts=1)
    assert outcome.how is How.FETCHED
    assert outcome.said.count("once more from the beginning") == 1
    assert server.sent == 2 * len(MIDDLE)


@pytest.mark.parametrize("connections", [1, 4])
def test_wrong_bytes_of_an_earlier_run_do_no_harm(place: Place, server: FaultyServer, connections: int) -> None:
    server.answer = until_cut(File(flipped(MIDDLE, 5 * MIB)), 9 * MIB)
    first = place.fetch(f"{server.url}/file", attempts=1)
    assert isinstance(first.error, TransientError)
    server.forget()
    server.answer, server.cut_every = File(MIDDLE), None
    outcome = fetch_and_rerun(place, server, connections, attempts=1)
    assert (outcome.how, outcome.kept) == (How.FETCHED, [9 * MIB])
    assert outcome.said.count("once more from the beginning") == 1
    assert server.sent == 2 * len(MIDDLE) - 9 * MIB


@pytest.mark.parametrize("tag", ['"a\nb"', '"\ud800"', '"€"', "no quotes", "", 5, None])
def test_an_entity_tag_of_a_leftover_that_no_header_can_carry_does_no_harm(
    place: Place, server: FaultyServer, tag: object
) -> None:
    leftovers = place.folder / "cache" / FORMAT / "partial"
    leftovers.mkdir(parents=True)
    digest = sha256(MIDDLE)
    record = f"0 {5 * MIB}\n{json.dumps([f'{server.url}/file', tag])}\n".encode()
    (leftovers / f".{digest}.{version_of(digest)}.{1:016x}-00000000.part").write_bytes(MIDDLE + record)
    outcome = fetch_and_rerun(place, server)
    assert (outcome.how, outcome.kept) == (How.FETCHED, [5 * MIB])
    assert server.sent <= 1.1 * len(MIDDLE)


# ---- Bodies


def bodies(data: bytes) -> dict[str, tuple[Answer, str]]:
    """What is sent, and what is said about it; nothing where the file arrives all the same."""

    def sends(body: bytes, *, version: str = "1.1", more: bytes = b"", **headers: object) -> Answer:
        def answer(exchange: Exchange) -> None:
            exchange.must_close = True
            exchange.head(200, version=version, **headers)
            exchange.body(body)
            exchange.body(more)

        return answer

    def says(head: str) -> Answer:
        return lambda exchange: (exchange.raw(head.encode()), exchange.body(data), exchange.cut())

    def chunks(*lengths: int, end: bytes = b"0\r\n\r\n", close: bool = True) -> Answer:
        def answer(exchange: Exchange) -> None:
            exchange.must_close = close
            exchange.head(200, Transfer_Encoding="chunked")
            at = 0
            for length in itertools.chain(lengths, itertools.repeat(1 << 17)):
                part = data[at : at + length]
                if not part:
                    break
                exchange.raw(f"{len(part):x}\r\n".encode())
                exchange.body(part)
                exchange.raw(b"\r\n")
                at += len(part)
            exchange.raw(end)

        return answer

    size = len(data)
    return {
        "shorter than declared": (sends(data[:-7], Content_Length=size), "broke off"),
        "longer than declared": (sends(data, Content_Length=size, more=b"extra"), ""),
        "declared as shorter": (sends(data, Content_Length=size - 1), f"gives {size - 1:,} bytes"),
        "declared as longer": (sends(data, Content_Length=size + 1), f"gives {size + 1:,} bytes"),
        "declared as nothing": (sends(b"", Content_Length=0), "gives 0 bytes"),
        "declared as a negative number": (sends(data, Content_Length=-5), ""),
        "declared as a word": (sends(data, Content_Length="many"), ""),
        "declared twice, in two ways": (
            says(f"HTTP/1.1 200 X\r\nContent-Length: {size}\r\nContent-Length: {size - 1}\r\n\r\n"),
            "multiple unmatching values"),
        "without a length": (sends(data), ""),
        "without a length, too short": (sends(data[:-7]), f"ended after {size - 7:,}"),
        "without a length, too long": (sends(data, more=b"x"), f"gives more than {size:,} bytes"),
        "of HTTP/1.0 without a length": (sends(data, version="1.0"), ""),
        "of HTTP/1.0, too short": (sends(data[:-7], version="1.0"), f"ended after {size - 7:,}"),
        "announced by an interim answer": (
            lambda exchange: (exchange.raw(b"HTTP/1.1 100 Continue\r\nX: y\r\n\r\n"), File(data)(exchange)), ""),
        "chunked": (chunks(), ""),
        "chunked, kept open": (chunks(close=False), ""),
        "chunked, of odd sizes": (chunks(1, 2, 65_537, 3), ""),
        "chunked, cut before its end": (chunks(end=b""), ""),
        "chunked, a chunk that is none": (
            sends(b"this is no chunk\r\n", Transfer_Encoding="chunked"), "broke off"),
        "chunked, too long": (chunks(end=b"5\r\nextra\r\n0\r\n\r\n"), f"gives more than {size:,} bytes"),
        "chunked, with trailers": (chunks(end=b"0\r\nX-One: 1\r\nX-Two: 2\r\n\r\n"), ""),
        "gzip": (sends(data, Content_Length=size, Content_Encoding="gzip"), "Content-Encoding gzip"),
        "brotli": (sends(data, Content_Length=size, Content_Encoding="br"), "Content-Encoding br"),
        "two encodings": (sends(data, Content_Encoding="identity, deflate"), "Content-Encoding identity, deflate"),
        "identity": (sends(data, Content_Length=size, Content_Encoding="IDENTITY"), ""),
        "a page in the place of a file": (
            sends(b"<html>Log in to the network</html>", Content_Type="text/html"), "gives more than|ended after 34"),
        "no HTTP at all": (says("SSH-2.0-OpenSSH\r\n"), "did not answer"),
        "an answer of another protocol": (says("HTTP/9.9 200 Whatever\r\n\r\n"), "did not answer"),
        "a status that is no number": (says("HTTP/1.1 abc Whatever\r\n\r\n"), "did not answer"),
        "a header of a megabyte": (says(f"HTTP/1.1 200 OK\r\nX: {'x' * MIB}\r\n\r\n"), "did not answer"),
        "ten thousand headers": (says("HTTP/1.1 200 OK\r\n" + "X: x\r\n" * 10_000 + "\r\n"), "did not answer"),
    }  # fmt: skip


BODIES = bodies(SMALL)


@pytest.mark.parametrize("kind", BODIES)
def test_a_body_is_the_file_or_an_error(place: Place, server: FaultyServer, kind: str) -> None:
    place.data = SMALL
    server.answer, says = BODIES[kind]
    outcome = fetch_and_rerun(place, server, attempts=2)
    if says:
        assert isinstance(outcome.error, SourceError | IntegrityError)
        assert not isinstance(outcome.error, UnreachableError)
        assert re.search(re.escape(says).replace(r"\|", "|"), outcome.error.what)
        assert hidden_below(place.folder) == []
    else:
        assert outcome.how is How.FETCHED
    assert len(server.requests) <= 4
    assert server.sent <= 4 * (len(SMALL) + 10)


@pytest.mark.parametrize("kind", [kind for kind, (_, says) in BODIES.items() if says])
def test_a_body_that_is_the_file_at_the_second_try_does_no_harm(place: Place, server: FaultyServer, kind: str) -> None:
    place.data = SMALL
    wrong, says = BODIES[kind]
    server.answer = in_turn(wrong, then=File(SMALL))
    outcome = fetch_and_rerun(place, server, attempts=2)
    if re.search("Content-Encoding|multiple unmatching", says):
        # What a server means to say is not asked again.
        assert isinstance(outcome.error, SourceError)
        assert len(server.requests) == 1
    else:
        assert outcome.how is How.FETCHED
        # Of some the beginning looks like one of the file.
        assert 2 <= len(server.requests) <= 3


@pytest.mark.parametrize("chunked", [False, True], ids=["plain", "chunked"])
@pytest.mark.parametrize("connections", [1, 4])
def test_a_body_without_end_is_left_after_the_pinned_number_of_bytes(
    place: Place, server: FaultyServer, connections: int, chunked: bool
) -> None:
    def endless(exchange: Exchange) -> None:
        exchange.head(200, Transfer_Encoding="chunked" if chunked else None)
        for data in itertools.repeat(DATA[: 1 << 16], 10_000):
            if chunked:
                exchange.raw(b"10000\r\n")
            exchange.body(data)
            if chunked:
                exchange.raw(b"\r\n")

    server.answer = endless
    outcome = fetch_and_rerun(place, server, connections)
    assert isinstance(outcome.error, IntegrityError)
    assert f"more than {len(MIDDLE):,} bytes" in outcome.error.what
    assert len(server.requests) == 2
    # And what the buffers of both ends hold.
    assert server.sent <= 2 * (len(MIDDLE) + 16 * MIB)


def test_an_endless_part_is_left_at_its_end(place: Place, server: FaultyServer) -> None:
    """A server that goes on behind the part that it declares: the part is what counts."""

    def endless(exchange: Exchange) -> None:
        first, end = exchange.request.range or (0, None)
        end = end or len(MIDDLE)
        exchange.must_close = True
        exchange.head(206, Content_Range=f"bytes {first}-{end - 1}/{len(MIDDLE)}", ETag='"one"')
        exchange.body(memoryview(MIDDLE)[first:end])
        for data in itertools.repeat(bytes(1 << 16), 1000):
            exchange.body(data)

    server.answer = endless
    outcome = fetch_and_rerun(place, server, connections=4)
    assert outcome.how is How.FETCHED
    assert server.sent <= len(MIDDLE) + len(server.requests) * 8 * MIB


@pytest.mark.parametrize("way", ["closed at once", "closed a little later", "more bytes than declared"])
@pytest.mark.parametrize("connections", [1, 4])
def test_connections_that_do_not_live_up_to_the_next_request_do_no_harm(
    place: Place, server: FaultyServer, way: str, connections: int
) -> None:
    place.data = DATA

    def answer(exchange: Exchange) -> None:
        if way == "more bytes than declared":
            with exchange.in_one_piece():
                File(DATA)(exchange)
                exchange.raw(b"HTTP/1.1 200 Whatever\r\nContent-Length: 9\r\n\r\nthe wrong")
            return
        File(DATA)(exchange)
        if way == "closed a little later":
            time.sleep(0.001)
        exchange.cut()

    server.answer = answer
    outcome = fetch_and_rerun(place, server, connections)
    assert outcome.how is How.FETCHED
    assert server.sent <= 1.1 * len(DATA)


def test_an_answer_that_belongs_to_an_earlier_request_is_not_taken_for_the_file(
    place: Place, server: FaultyServer
) -> None:
    """What a server sends behind the end of an answer may come when the connection is in use again."""

    def answer(exchange: Exchange) -> None:
        if exchange.request.turn:
            exchange.raw(b"HTTP/1.1 200 Whatever\r\nContent-Length: 9\r\n\r\nthe wrong")
            exchange.cut()
        File(DATA)(exchange)

    server.answer = answer
    place.data = DATA
    outcome = fetch_and_rerun(place, server, connections=4)
    assert outcome.how is How.FETCHED
    assert any(request.turn for request in server.requests)
    assert not outcome.notes  # nothing is begun anew
    assert server.sent <= 1.1 * len(DATA)


# ---- Refusals


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (400, "Check the source in the descriptor"),
        (401, "Set HF_TOKEN"),
        (402, "Check the source in the descriptor"),
        (403, "Accept the model's terms"),
        (404, "Check the source in the descriptor"),
        (405, "Check the source in the descriptor"),
        (410, "Check the source in the descriptor"),
        (451, "Check the source in the descriptor"),
        (204, "Check the source in the descriptor"),
        (304, "Check the source in the descriptor"),
        (501, "Check the source in the descriptor"),
        (505, "Check the source in the descriptor"),
        (999, "Check the source in the descriptor"),
    ],
)
@pytest.mark.parametrize("connections", sample([1], [1, 4]))
def test_a_refusal_is_one_request_and_advice_that_fits(
    place: Place, server: FaultyServer, status: int, advice: str, connections: int
) -> None:
    place.data = SMALL if connections == 1 else MIDDLE
    server.answer = refusing(status)
    outcome = fetch_and_rerun(place, server, connections)
    assert isinstance(outcome.error, SourceError)
    assert f"answered {status}" in outcome.error.what
    assert advice in outcome.error.hint
    assert len(server.requests) == 1


PASSING = [408, 429, 500, 502, 503, 504]


def fetch_at_once(folder: Path, server: FaultyServer, attempts: int) -> dict[int, tuple[Outcome, list[Request]]]:
    """A file for each status that may pass, from a path that is called like it: how each ended, and its requests."""

    def fetch(status: int) -> Outcome:
        place = Place(folder / str(status), SMALL)
        outcome = place.fetch(f"{server.url}/{status}", attempts=attempts)
        requests[status] = [request for request in server.requests if request.path == f"/{status}"]
        place.rerun(f"{server.url}/good")
        return outcome

    requests: dict[int, list[Request]] = {}
    with ThreadPoolExecutor(len(PASSING)) as pool:
        outcomes = dict(zip(PASSING, pool.map(fetch, PASSING), strict=True))
    return {status: (outcomes[status], requests[status]) for status in PASSING}


def test_a_status_that_may_pass_is_asked_again_after_a_while_that_grows(tmp_path: Path, server: FaultyServer) -> None:
    answers = {str(status): in_turn(refusing(status), refusing(status), then=File(SMALL)) for status in PASSING}
    server.answer = by_path(good=File(SMALL), **answers)
    for status, (outcome, requests) in fetch_at_once(tmp_path, server, attempts=3).items():
        assert outcome.how is How.FETCHED
        first, second = (after.at - before.at for before, after in itertools.pairwise(requests))
        assert 0.25 <= first < 1
        assert 0.5 <= second < 2
        assert outcome.said.count(f"answered {status}; trying again in") == 2


def test_a_status_that_does_not_pass_ends_after_the_attempts_asked_for(tmp_path: Path, server: FaultyServer) -> None:
    server.answer = by_path(good=File(SMALL), **{str(status): refusing(status) for status in PASSING})
    for status, (outcome, requests) in fetch_at_once(tmp_path, server, attempts=3).items():
        assert isinstance(outcome.error, TransientError)
        assert f"answered {status}" in outcome.error.what
        assert "Tried 3 times." in outcome.error.hint
        assert len(requests) == 3


@pytest.mark.parametrize("status", [404, 503])
def test_a_large_file_that_is_refused_costs_no_more_requests_than_a_small_one(
    place: Place, server: FaultyServer, status: int
) -> None:
    server.answer = refusing(status)
    outcome = fetch_and_rerun(place, server, connections=16, attempts=2)
    assert isinstance(outcome.error, SourceError)
    assert len(server.requests) == (1 if status == 404 else 2)


def test_those_who_failed_at_the_same_moment_do_not_all_come_back_at_the_same(
    tmp_path: Path, server: FaultyServer
) -> None:
    refused = set[str]()

    def once(exchange: Exchange) -> None:
        path = exchange.request.path
        answer = File(SMALL) if path in refused else refusing(503)
        refused.add(path)
        answer(exchange)

    server.answer = once
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: Place(tmp_path / str(n), SMALL).fetch(f"{server.url}/{n}"), range(8)))
    waits = []
    for number in range(8):
        first, second = (request.at for request in server.requests if request.path == f"/{number}")
        waits.append(second - first)
    assert all(0.25 <= wait < 2 for wait in waits)
    assert max(waits) - min(waits) > 0.02


@pytest.mark.parametrize(
    ("status", "form"), sample([(429, "seconds"), (503, "date")], [*itertools.product([429, 503], ["seconds", "date"])])
)
def test_a_wait_that_a_server_names_is_kept(place: Place, server: FaultyServer, status: int, form: str) -> None:
    place.data = SMALL

    def busy(exchange: Exchange) -> None:
        refusing(status, Retry_After="2" if form == "seconds" else http_date(3))(exchange)

    server.answer = in_turn(busy, then=File(SMALL))
    outcome = fetch_and_rerun(place, server)
    assert outcome.how is How.FETCHED
    first, second = server.requests
    assert 1.8 < second.at - first.at < 10


NO_WAITS = [
    "",
    "0",
    "-5",
    "soon",
    "1.5",
    "\xb2",
    "1e9",
    "Thu, 99 Foo 2024 00:00:00 GMT",
    "Mon, 01 Jan 0001 00:00:00 GMT",
]


@pytest.mark.parametrize("status", sample([429], [429, 503]))
@pytest.mark.parametrize("value", [*NO_WAITS, pytest.param(http_date(-3600), id="an hour ago")])
def test_a_wait_that_means_nothing_is_no_wait(place: Place, server: FaultyServer, status: int, value: str) -> None:
    place.data = SMALL
    server.answer = in_turn(refusing(status, Retry_After=value), then=File(SMALL))
    outcome = fetch_and_rerun(place, server)
    assert outcome.how is How.FETCHED
    first, second = server.requests
    assert 0.2 < second.at - first.at < 2


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    "value", ["3600", "9" * 40, pytest.param(http_date(3600), id="in an hour"), "Fri, 31 Dec 9999 23:59:59 GMT"]
)
@pytest.mark.parametrize("connections", sample([1], [1, 4]))
def test_a_server_that_names_a_long_wait_is_given_up_at_once(
    place: Place, server: FaultyServer, status: int, value: str, connections: int
) -> None:
    place.data = SMALL if connections == 1 else MIDDLE
    server.answer = refusing(status, Retry_After=value)
    outcome = fetch_and_rerun(place, server, connections)
    assert isinstance(outcome.error, TransientError)
    assert re.search(r"asks to be left alone for [\d,]+ s. Try again after that.", outcome.error.hint)
    assert len(server.requests) == 1
    assert outcome.seconds < 2


def test_another_source_is_asked_instead_of_a_long_wait(place: Place, server: FaultyServer) -> None:
    with FaultyServer(refusing(429, Retry_After=3600)) as busy:
        outcome = place.fetch(f"{busy.url}/file", f"{server.url}/file", connections=4)
    assert outcome.how is How.FETCHED
    assert outcome.seconds < 5
    assert len(busy.requests) == 1
    assert f"{busy.url}/file answered 429; trying the next source" in outcome.said


# ---- Stalls and drips


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is waited for half a minute otherwise."""
    monkeypatch.setattr(transport, "READ_SECONDS", 1.0)
    monkeypatch.setattr(transport, "FIRST_ANSWER_SECONDS", 1.0)
    monkeypatch.setattr(throughput, "SLOW_SECONDS", 1.0)


def halts(data: bytes, after: int, halt: Answer) -> Answer:
    """An honest answer that halts after so many bytes, if it has more."""

    def answer(exchange: Exchange) -> None:
        part = File(data).part(exchange.request)
        first, end = part or (0, len(data))
        headers = {"Content_Range": f"bytes {first}-{end - 1}/{len(data)}"} if part else {}
        exchange.head(206 if part else 200, Content_Length=end - first, ETag='"one"', **headers)
        exchange.body(memoryview(data)[first : min(end, first + after)])
        if end - first > after:
            halt(exchange)

    return answer


def drips_of(data: bytes) -> Answer:
    """The right bytes from where an answer has come to, ten a second, for a while that is too long."""

    def drips(exchange: Exchange) -> None:
        begin = exchange.request.range[0] if exchange.request.range else 0
        begin += exchange.answer_bytes
        for at in range(begin, begin + 200):
            exchange.body(data[at : at + 1], pause=0.1)
        exchange.cut()

    return drips


drips = drips_of(MIDDLE)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("halt", [stalling, drips])
@pytest.mark.parametrize("connections", sample([4], [1, 4]))
def test_one_transfer_that_comes_to_a_halt_is_asked_for_again(
    place: Place, server: FaultyServer, connections: int, halt: Answer
) -> None:
    honest = File(MIDDLE)
    server.answer = in_turn(*[honest] * (connections - 1), halts(MIDDLE, 300_000, halt), then=honest)
    outcome = fetch_and_rerun(place, server, connections)
    assert outcome.how is How.FETCHED
    assert outcome.seconds < 8
    assert server.sent <= 1.1 * len(MIDDLE)


@pytest.fixture
def lent_a_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection with nothing to do looks after the others sooner than otherwise."""
    monkeypatch.setattr(transfer, "LATE_SECONDS", 0.5)
    monkeypatch.setattr(parts, "PACE_SECONDS", 0.2)


# What one connection of four does with the second part it is asked for.
LATE = {
    "no answer": stalling,
    "silent after a while": halts(DATA, 100_003, stalling),
    "drips after a while": halts(DATA, 100_003, drips_of(DATA)),
    "slow": File(DATA, step=1000, pause=0.05),
}


@pytest.mark.usefixtures("lent_a_hand")
@pytest.mark.parametrize("kind", LATE)
def test_a_file_is_whole_without_a_connection_that_is_late(place: Place, server: FaultyServer, kind: str) -> None:
    """Those with nothing to do take over what it is at, long before it is given up."""
    place.data = DATA
    honest = File(DATA)
    server.answer = in_turn(*[honest] * 5, LATE[kind], then=honest)
    outcome = fetch_and_rerun(place, server, connections=4)
    assert outcome.how is How.FETCHED
    assert outcome.seconds < 10
    assert server.sent <= len(DATA) + MIB
    assert not waited(outcome)


@pytest.mark.usefixtures("lent_a_hand")
def test_a_connection_that_was_done_without_changes_nothing_any_more(place: Place, server: FaultyServer) -> None:
    """Its answer comes after all, with other bytes, when the file was given to someone else and is nearly whole."""
    place.data = DATA
    honest, turns = File(DATA), itertools.count()
    again, over = threading.Event(), threading.Event()
    late: list[int] = []

    def answer(exchange: Exchange) -> None:
        number, (first, end) = next(turns), exchange.request.range or (0, None)
        if number == 5:
            late.append(first)
            assert again.wait(10)
            try:
                File(flipped(DATA, first))(exchange)
            finally:  # the client may close the connection as soon as the answer begins
                over.set()
        elif [first] == late:
            exchange.head(
                206,
                Content_Length=(end or len(DATA)) - first,
                Content_Range=f"bytes {first}-{(end or len(DATA)) - 1}/{len(DATA)}",
            )
            exchange.body(memoryview(DATA)[first : first + 100_003])
            again.set()
            over.wait(5)
            time.sleep(0.3)
            exchange.body(memoryview(DATA)[first + 100_003 : end])
        else:
            honest(exchange)

    server.answer = answer
    outcome = fetch_and_rerun(place, server, connections=4)
    assert outcome.how is How.FETCHED
    assert over.is_set()
    assert "once more" not in outcome.said


HALTS = [*itertools.product([stalling, drips], [1, 4], [0, 300_000])]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("halt", "connections", "after"), sample([HALTS[0], HALTS[3], HALTS[5], HALTS[6]], HALTS))
def test_transfers_that_all_come_to_a_halt_end(
    place: Place, server: FaultyServer, connections: int, halt: Answer, after: int
) -> None:
    server.answer = in_turn(*[halts(MIDDLE, after, halt)] * connections, then=halts(MIDDLE, 0, halt))
    outcome = fetch_and_rerun(place, server, connections, attempts=2)
    assert isinstance(outcome.error, TransientError)
    assert "Tried 2 times." in outcome.error.hint
    assert outcome.seconds < 15
    assert len(server.requests) <= 2 * connections + 2


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("head", ["nothing", "drips"])
def test_a_server_that_never_ends_the_head_of_its_answer_is_unreachable(
    place: Place, server: FaultyServer, head: str
) -> None:
    def drip(exchange: Exchange) -> None:
        exchange.raw(b"HTTP/1.1 200 Whatever\r\nX-Long: ")
        for _ in range(200):
            exchange.raw(b"x")
            if exchange.server.ending.wait(0.05):
                return

    server.answer = stalling if head == "nothing" else drip
    outcome = fetch_and_rerun(place, server)
    assert isinstance(outcome.error, UnreachableError)
    assert outcome.seconds < 5


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("head", ["nothing", "drips"])
def test_a_server_that_answered_once_and_then_never_ends_a_head_ends_after_the_attempts_asked_for(
    place: Place, server: FaultyServer, head: str
) -> None:
    def drip(exchange: Exchange) -> None:
        exchange.raw(b"HTTP/1.1 200 Whatever\r\nX-Long: ")
        for _ in range(200):
            exchange.raw(b"x")
            if exchange.server.ending.wait(0.05):
                return

    server.answer, server.cut_every = in_turn(File(MIDDLE), then=stalling if head == "nothing" else drip), 2 * MIB
    outcome = fetch_and_rerun(place, server, attempts=2)
    assert isinstance(outcome.error, TransientError)
    assert re.search("no answer within 1 seconds|timed out", outcome.error.what)
    assert outcome.seconds < 8


def drips_in_the_framing(of: str) -> Answer:
    """A part whose bytes are in chunks, and then ten times a second a byte that is none of it, for too long."""

    def drips(exchange: Exchange) -> None:
        part = File(MIDDLE).part(exchange.request)
        first, end = part or (0, len(MIDDLE))
        headers = {"Content_Range": f"bytes {first}-{end - 1}/{len(MIDDLE)}"} if part else {}
        exchange.head(206 if part else 200, Transfer_Encoding="chunked", **headers)
        if of == "a trailer":
            exchange.raw(b"%x\r\n" % (end - first))
            exchange.body(memoryview(MIDDLE)[first:end])
            exchange.raw(b"\r\n0\r\n")
        else:
            exchange.raw(b"1;")
        for _ in range(150):
            exchange.raw(b"X: x\r\n" if of == "a trailer" else b"x")
            if exchange.server.ending.wait(0.1):
                return

    return drips


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("connections", [1, 4])
def test_a_drip_in_the_framing_of_a_body_is_given_up(place: Place, server: FaultyServer, connections: int) -> None:
    server.answer = drips_in_the_framing("a chunk")
    outcome = fetch_and_rerun(place, server, connections, attempts=2)
    assert isinstance(outcome.error, TransientError)
    assert "less than 1000 bytes a second" in outcome.error.what
    assert outcome.seconds < 10


def test_what_is_behind_the_bytes_of_a_part_is_not_waited_for(place: Place, server: FaultyServer) -> None:
    server.answer = drips_in_the_framing("a trailer")
    outcome = fetch_and_rerun(place, server, connections=4)
    assert outcome.how is How.FETCHED
    assert outcome.seconds < 10
    assert not waited(outcome)


@pytest.mark.parametrize("status", [100, 101, 102, 103, 199])
@pytest.mark.parametrize("through", ["directly", "a proxy"])
def test_interim_answers_are_not_taken_for_the_answer(
    place: Place, server: FaultyServer, status: int, through: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(exchange: Exchange) -> None:
        exchange.head(status)
        exchange.head(status, Link="</style.css>; rel=preload", ETag='"interim"', Content_Length=7)
        File(MIDDLE)(exchange)

    server.answer = answer
    with ForwardingProxy() as proxy:
        if through == "a proxy":
            monkeypatch.setenv("HTTP_PROXY", proxy.url)
        outcome = fetch_and_rerun(place, server, connections=4)
    assert outcome.how is How.FETCHED
    assert server.sent == len(MIDDLE)
    assert through == "a proxy" or server.connections == 4


@pytest.mark.usefixtures("impatient")
def test_a_slow_server_that_keeps_on_sending_is_not_given_up(place: Place, server: FaultyServer) -> None:
    """Ten times as fast as the slowest that is borne."""
    place.data = SMALL
    server.answer = File(SMALL, step=1000, pause=0.02)
    outcome = fetch_and_rerun(place, server)
    assert outcome.how is How.FETCHED
    assert outcome.seconds > 1
    assert len(server.requests) == 1


# ---- Redirects and tokens


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("/file", "in a circle"),
        ("/other", "in a circle"),
        ("file:///etc/passwd", "not http or https"),
        ("ftp://127.0.0.1/file", "not http or https"),
        ("data:text/plain,hello", "not http or https"),
        ("//", "redirects"),
        ("http://", "redirects|usable URL"),
        ("http://127.0.0.1:0x50/", "127"),
        ("", "does not say where to"),
    ],
)
@pytest.mark.parametrize("connections", sample([1], [1, 4]))
def test_a_redirect_that_leads_nowhere_is_an_error_at_once(
    place: Place, server: FaultyServer, target: str, says: str, connections: int
) -> None:
    place.data = SMALL if connections == 1 else MIDDLE
    leads = in_turn(*[redirecting(target)] * 30, then=refusing(404))
    server.answer = by_path(file=leads, other=redirecting("/file"))
    outcome = fetch_and_rerun(place, server, connections)
    assert isinstance(outcome.error, SourceError)
    assert re.search(says, outcome.error.what)
    assert len(server.requests) <= 2


WAYS = ["elsewhere/it", "./elsewhere/it", "?to=elsewhere", "//{host}/elsewhere/it", "/elsewhere/a b", "/elsewhere/\xe9"]


@pytest.mark.parametrize("target", WAYS)
def test_a_redirect_to_a_relative_address_is_followed_for_each_part(
    place: Place, server: FaultyServer, target: str
) -> None:
    def answer(exchange: Exchange) -> None:
        if "elsewhere" in exchange.request.target:
            File(MIDDLE)(exchange)
        else:
            redirecting(target.format(host=exchange.server.host))(exchange)

    server.answer, server.cut_every = answer, 5 * MIB
    outcome = place.fetch(f"{server.url}/file", connections=4)
    assert outcome.how is How.FETCHED
    assert server.sent == len(MIDDLE)


@pytest.mark.parametrize(
    "target", ["http://{dead}/file?sign=s3cr3t", "http://me:s3cr3t@{dead}/file", "ftp://{dead}/file?sign=s3cr3t"]
)
def test_what_a_signed_address_carries_is_not_shown(place: Place, server: FaultyServer, target: str) -> None:
    """Whoever reads a log could use it."""
    dead = dead_port().removeprefix("http://")
    server.answer = redirecting(target.format(dead=dead))
    outcome = fetch_and_rerun(place, server)
    assert isinstance(outcome.error, SourceError)
    assert dead in outcome.said
    assert "s3cr3t" not in outcome.said


def says(head: str) -> Answer:
    """An answer of just these characters, and an end."""

    def answer(exchange: Exchange) -> None:
        exchange.raw(head.encode("latin-1"))
        exchange.cut()

    return answer


USELESS = {
    "a refusal": refusing(404),
    "a refusal that may pass": refusing(503),
    "nothing": hanging_up,
    "another file": File(MIDDLE[::-1]),
    "a shorter file": File(MIDDLE[:-1]),
    "an encoding": File(MIDDLE, extra={"Content_Encoding": "gzip"}),
    "another part": lambda exchange: exchange.head(206, Content_Range="bytes 5-9/10", Content_Length=5),
    "a part that is refused": refusing(416),
    "a circle": redirecting(""),
    "a way to nowhere": redirecting("//"),
    "no HTTP": says("SSH-2.0-OpenSSH\r\n"),
    "a file that changes": in_turn(File(MIDDLE, etag='"one"', ranges="open"), then=File(MIDDLE, etag='"two"')),
}


@pytest.mark.parametrize("kind", USELESS)
def test_what_the_address_of_a_source_carries_is_neither_shown_nor_kept(
    place: Place, server: FaultyServer, kind: str
) -> None:
    server.answer, server.cut_every = USELESS[kind], 5 * MIB
    outcome = place.fetch(f"http://me:s3cr3t@{server.host}/file?token=s3cr3t#s3cr3t", attempts=2, connections=4)
    assert isinstance(outcome.error, SourceError | IntegrityError) or kind == "a file that changes"
    assert outcome.error is None or server.host in outcome.said
    assert "s3cr3t" not in outcome.said


@pytest.mark.parametrize("address", ["http://me:s3cr3t@127.0.0.1:port/file", "http://me:s3/cr3t@127.0.0.1/file"])
def test_the_password_in_an_address_that_is_none_is_not_shown(place: Place, address: str) -> None:
    outcome = place.fetch(address)
    assert isinstance(outcome.error, SourceError)
    assert "not a usable URL" in outcome.error.what
    assert not re.search("s3|cr3t", outcome.said)


def test_a_file_kept_for_later_goes_on_and_holds_no_secrets_of_its_address(place: Place, server: FaultyServer) -> None:
    url = f"http://me:s3cr3t@{server.host}/file?token=s3cr3t"
    server.answer = until_cut(File(MIDDLE), 5 * MIB, then=refusing(503))
    assert place.fetch(url, attempts=1).error
    [kept] = hidden_below(place.folder)
    assert b'"\\"one\\""' in kept.read_bytes()
    assert b"s3cr3t" not in kept.read_bytes()
    server.answer, server.cut_every = File(MIDDLE), None
    server.forget()
    assert place.fetch(url).how is How.FETCHED
    assert server.requests[0].headers["if-range"] == '"one"'
    assert server.sent == len(MIDDLE) - 5 * MIB


def test_a_file_that_was_kept_is_not_taken_for_one_of_another_query(place: Place, server: FaultyServer) -> None:
    server.answer, server.cut_every = in_turn(File(MIDDLE), then=refusing(503)), 5 * MIB
    assert place.fetch(f"{server.url}/file?version=1", attempts=1).error
    server.answer, server.cut_every = File(MIDDLE, etag='"another"'), None
    server.forget()
    assert place.fetch(f"{server.url}/file?version=2").how is How.FETCHED
    assert "if-range" not in server.requests[0].headers


# The title of the window, a wide character of control, and a letter that turns what follows.
CONTROL = "\x1b]0;title\x07\x9b31m\xad"
SPEAKING = {
    "a status": says(f"HTTP/1.1 2{CONTROL} Whatever\r\n\r\n"),
    "a version": says(f"HTTP/{CONTROL} 200 Whatever\r\n\r\n"),
    "no HTTP": says(f"{CONTROL}\r\n"),
    "an encoding": File(SMALL, extra={"Content_Encoding": CONTROL}),
    "a part": lambda exchange: exchange.head(206, Content_Range=CONTROL, Content_Length=5),
    "a code": refusing(404, X_Error_Code=CONTROL),
    "a wait": refusing(503, Retry_After=CONTROL),
    "a length": says(f"HTTP/1.1 200 Whatever\r\nContent-Length: 1, 2{CONTROL}\r\n\r\n"),
    "a chunk": says(f"HTTP/1.1 200 Whatever\r\nTransfer-Encoding: chunked\r\n\r\n{CONTROL}\r\n"),
    "a way": redirecting(f"ftp://127.0.0.1/{CONTROL}"),
    "a way that is none": redirecting(f"http://[127.0.0.1/{CONTROL}"),
    "a port": redirecting(f"http://127.0.0.1:{CONTROL}/"),
    "a host": redirecting(f"http://{CONTROL}/"),
    "a file": redirecting(f"http://127.0.0.1:9/{CONTROL}"),
}


@pytest.mark.parametrize("kind", SPEAKING)
def test_what_a_server_says_reaches_the_terminal_as_text(place: Place, server: FaultyServer, kind: str) -> None:
    place.data = SMALL
    server.answer = SPEAKING[kind]
    outcome = fetch_and_rerun(place, server, attempts=2)
    assert outcome.error
    assert all(line.isprintable() for line in outcome.said.splitlines())


AUTHORITY = trustme.CA()


@pytest.fixture
def secure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """What an https server needs whose certificate this process trusts."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    (tmp_path / "ca.pem").write_bytes(AUTHORITY.cert_pem.bytes())
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    return context


def ask(transport: Transport, url: str, first: int = 0) -> bytes:
    with transport.get(url, token=TOKEN, first=first, end=first + 10, etag='"one"') as body:
        return next(iter(body))[:10]


@pytest.mark.parametrize("way", ["another port", "another name of the host", "another scheme", "a look-alike"])
def test_a_token_goes_to_no_other_host_port_or_scheme(server: FaultyServer, secure: ssl.SSLContext, way: str) -> None:
    """Nor on the way back: what another host says that it leads to is not trusted with less."""
    with FaultyServer(File(MIDDLE), tls=secure) as other, FaultyServer(File(MIDDLE)) as plain:
        targets = {
            "another port": f"{plain.url}/file",
            "another name of the host": f"http://localhost:{server.host.split(':')[1]}/elsewhere",
            "another scheme": f"{other.url}/file",
            "a look-alike": f"http://{server.host}@{plain.host}/file",
        }
        server.answer = by_path(file=redirecting(targets[way]), elsewhere=File(MIDDLE))
        client = Transport()
        for first in (0, 5 * MIB, 9 * MIB):
            assert ask(client, f"{server.url}/file", first) == MIDDLE[first : first + 10]
        sent = {r.path: r.headers.get("authorization") for r in server.requests}
        assert sent.pop("/file") == f"Bearer {TOKEN}"
        assert set(sent.values()) | set(other.authorizations) | set(plain.authorizations) == {None}


def test_a_token_comes_back_with_a_redirect_to_its_own_host(server: FaultyServer) -> None:
    with FaultyServer(redirecting(f"{server.url}/back")) as other:
        server.answer = by_path(file=redirecting(f"{other.url}/file"), back=File(MIDDLE))
        assert ask(Transport(), f"{server.url}/file") == MIDDLE[:10]
        assert other.authorizations == [None]
        assert server.authorizations == [f"Bearer {TOKEN}"] * 2


def test_nothing_is_fetched_by_http_that_should_come_by_https(server: FaultyServer, secure: ssl.SSLContext) -> None:
    with FaultyServer(redirecting(f"{server.url}/file"), tls=secure) as front:
        with pytest.raises(SourceError, match="from https to http"):
            ask(Transport(), f"{front.url}/file", 5 * MIB)
        assert front.authorizations == [f"Bearer {TOKEN}"]
    assert server.connections == 0


# ---- Sources


def dead_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


FIRST_SOURCES: dict[str, Answer] = {
    "404": refusing(404),
    "503": refusing(503),
    "other bytes": File(flipped(MIDDLE, 1000)),
    "other size": File(MIDDLE[:-1]),
    "hangs up": hanging_up,
    "no HTTP": lambda exchange: (exchange.raw(b"hello\r\n"), exchange.cut()),
    "circle": in_turn(*[redirecting("/file")] * 30, then=refusing(404)),
}


@pytest.mark.parametrize("connections", sample([4], [1, 4]))
@pytest.mark.parametrize("kind", FIRST_SOURCES)
def test_the_next_source_is_taken_where_the_first_is_no_use(
    place: Place, server: FaultyServer, kind: str, connections: int
) -> None:
    server.answer = File(MIDDLE, etag='"two"')
    with FaultyServer(FIRST_SOURCES[kind]) as first:
        outcome = place.fetch(f"{first.url}/file", f"{server.url}/file", connections=connections, attempts=2)
    assert outcome.how is How.FETCHED
    assert f"{first.url}/file" in outcome.said
    assert outcome.said.count("trying the next source") == 1
    assert f"... taken from {server.url}/file" in outcome.notes
    assert server.sent == len(MIDDLE)


@pytest.mark.parametrize("connections", [1, 4])
def test_the_next_source_goes_on_after_the_bytes_that_are_there(
    place: Place, server: FaultyServer, connections: int
) -> None:
    """A mirror has the same bytes under another entity tag."""
    server.answer = File(MIDDLE, etag='"two"')
    with FaultyServer(up_to(File(MIDDLE), 3 * MIB)) as first:
        outcome = place.fetch(f"{first.url}/file", f"{server.url}/file", connections=connections, attempts=1)
        assert outcome.how is How.FETCHED
        assert first.sent >= 2 * MIB
        assert first.sent + server.sent <= 1.1 * len(MIDDLE)
        assert {r.headers.get("if-range") for r in server.requests} <= {None, '"two"'}
        assert f"{first.url}/file" in outcome.said
        assert f"... taken from {server.url}/file" in outcome.notes


def test_a_mirror_that_goes_on_after_wrong_bytes_of_the_first_source_is_asked_for_all_of_them(
    place: Place, server: FaultyServer
) -> None:
    with FaultyServer(until_cut(File(flipped(MIDDLE, 100)), 8 * MIB)) as first:
        outcome = place.fetch(f"{first.url}/file", f"{server.url}/file", attempts=1)
    assert outcome.how is How.FETCHED
    assert outcome.said.count("once more from the beginning") == 1
    assert server.sent == 2 * len(MIDDLE) - 8 * MIB


def test_when_no_source_is_of_use_each_is_named(place: Place, server: FaultyServer) -> None:
    dead = dead_port()
    server.answer = by_path(a=refusing(404), b=File(flipped(MIDDLE, 0)), c=refusing(403))
    urls = [f"{dead}/file", f"{server.url}/a", f"{server.url}/b", f"{server.url}/c"]
    outcome = place.fetch(*urls)
    assert outcome.error is not None
    assert all(url in str(outcome.error) for url in urls)
    assert "Tried before it:" in outcome.error.hint


# ---- Proxies and private authorities


@pytest.mark.parametrize("connections", [1, 4])
def test_a_file_arrives_in_parts_through_a_proxy(
    place: Place, server: FaultyServer, monkeypatch: pytest.MonkeyPatch, connections: int
) -> None:
    server.cut_every = 3 * MIB
    with ForwardingProxy() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("://", "://me:p%40ss@"))
        outcome = place.fetch(f"{server.url}/file", connections=connections)
    assert outcome.how is How.FETCHED
    assert set(proxy.asked) == {f"GET {server.url}/file"}
    assert len(proxy.asked) == len(server.requests) > 5
    assert set(proxy.credentials) == {"Basic bWU6cEBzcw=="}
    assert all("proxy-authorization" not in request.headers for request in server.requests)
    assert server.sent <= 1.1 * len(MIDDLE)


@pytest.mark.parametrize("through", ["no proxy", "a proxy"])
@pytest.mark.parametrize("connections", [1, 4])
def test_a_file_arrives_in_parts_from_a_host_of_a_private_authority(
    place: Place, secure: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch, connections: int, through: str
) -> None:
    with FaultyServer(File(MIDDLE), tls=secure) as server, ForwardingProxy() as proxy:
        if through == "a proxy":
            monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        server.cut_every = 3 * MIB
        outcome = place.fetch(f"{server.url}/file", connections=connections)
        assert outcome.how is How.FETCHED
        assert set(proxy.asked) == ({f"CONNECT {server.host}"} if through == "a proxy" else set())
        assert server.sent <= 1.1 * len(MIDDLE)


# ---- The commands


def write_model(models: Path, name: str, files: dict[str, tuple[bytes | mmap.mmap, object]]) -> None:
    """A descriptor of files by their bytes and sources."""
    entries = [
        {"name": file, "size": len(data), "checksum": {"$type": "sha256", "value": sha256(data)}, "source": source}
        for file, (data, source) in files.items()
    ]
    model = {"description": "x", "task_type": "text_generation", "license": "https://host/license", "files": entries}
    (models / name).mkdir(parents=True, exist_ok=True)
    (models / name / "model.yml").write_text(yaml.safe_dump(model))


def sha256(data: bytes | mmap.mmap) -> str:
    return hashlib.sha256(data).hexdigest()


def on_the_hub(file: str) -> dict[str, str]:
    return {"$type": "hugging_face", "repo": "someone/model", "revision": "0" * 40, "file": file}


@dataclass
class Commands:
    """`omz_downloader` on models of a test, in a process of its own; what must hold is looked at after each.

    Attributes:
        before: Python that runs in the process before the command.
    """

    run: Command
    folder: Path
    before: str = ""

    def __call__(self, name: str, *words: str | Path, **environment: str) -> CompletedProcess[str]:
        start = f"import sys\n{self.before}\nfrom omz_tools.commands.downloader import main\nsys.exit(main())"
        options = ("--models_dir", self.folder / "models", "--name", name, "--cache_dir", "cache", *words)
        done = self.run(sys.executable, "-c", start, *options, HF_HOME=str(self.folder / "hf-home"), **environment)
        output = done.stdout + done.stderr
        assert "Traceback" not in output
        assert "Exception" not in output
        assert TOKEN not in output
        assert done.returncode in (0, 1)
        assert done.stderr.count("########## Error: In model ") == len(failed(done))
        assert (done.returncode == 1) == bool(failed(done))
        check_blobs(self.folder / "cache")
        return done

    def holds(self, model: str, **files: bytes) -> bool:
        """Whether the model's folder has just these files, whole and right."""
        folder = self.folder / "public" / model
        found = {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}
        return found == files


def failed(done: CompletedProcess[str]) -> list[str]:
    """The models in the list at the end of standard output, or of standard error beside events for programs."""
    endings = [stream.partition("FAILED:\n")[2].split() for stream in (done.stdout, done.stderr)]
    return endings[0] or endings[1]


@pytest.fixture
def downloader(run: Command, tmp_path: Path) -> Commands:
    return Commands(run, tmp_path)


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_the_command_brings_a_file_over_connections_that_are_cut(
    downloader: Commands, server: FaultyServer, reset: bool
) -> None:
    write_model(downloader.folder / "models", "large", {"file": (DATA, f"{server.url}/file")})
    server.answer, server.cut_every, server.cut_resets = File(DATA), 4 * MIB, reset
    server.buffer(1 << 16)
    done = downloader("large")
    assert done.returncode == 0, done.stderr
    assert downloader.holds("large", file=DATA)
    assert server.sent <= 1.1 * len(DATA)
    assert hidden_below(downloader.folder) == []


def test_the_command_goes_on_where_an_earlier_one_had_to_end(downloader: Commands, server: FaultyServer) -> None:
    write_model(downloader.folder / "models", "large", {"file": (DATA, f"{server.url}/file")})
    server.answer = up_to(File(DATA), 9 * MIB, then=refusing(503))
    done = downloader("large", "--num_attempts", "1")
    assert failed(done) == ["large"]
    assert re.search(r"[\d,]+ bytes are kept; the next run goes on after them", done.stderr)
    assert downloader.holds("large")
    server.answer = File(DATA)
    assert downloader("large").returncode == 0
    assert downloader.holds("large", file=DATA)
    assert server.sent <= 1.1 * len(DATA)


def test_the_command_ends_a_drip_of_one_of_four_connections(downloader: Commands, server: FaultyServer) -> None:
    downloader.before = (
        "from omz_tools.network import throughput, transport\nthroughput.SLOW_SECONDS = transport.READ_SECONDS = 1.0"
    )
    write_model(downloader.folder / "models", "large", {"file": (DATA, f"{server.url}/file")})
    honest = File(DATA)
    server.answer = in_turn(honest, halts(DATA, 300_000, drips_of(DATA)), then=honest)
    done = downloader("large")
    assert done.returncode == 0, done.stderr
    assert downloader.holds("large", file=DATA)
    assert server.sent <= 1.1 * len(DATA)


def test_the_command_gives_the_token_to_the_hub_alone_through_cuts_redirects_and_retries(
    downloader: Commands, server: FaultyServer
) -> None:
    files = {"file": (DATA, on_the_hub("file")), "small": (SMALL, on_the_hub("small"))}
    write_model(downloader.folder / "models", "large", files)
    server.answer, server.cut_every = by_path(file=File(DATA), small=File(SMALL)), 6 * MIB
    faults = in_turn(
        hanging_up,
        refusing(503),
        then=lambda exchange: redirecting(f"{server.url}/{exchange.request.path.split('/')[-1]}?signed=yes")(exchange),
    )
    with FaultyServer(faults) as hub:
        done = downloader("large", HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN)
        assert done.returncode == 0, done.stderr
        assert downloader.holds("large", file=DATA, small=SMALL)
        assert len(hub.requests) == len(server.requests) + 2 > 8
        assert set(hub.authorizations) == {f"Bearer {TOKEN}"}
        assert set(server.authorizations) == {None}
        assert sum(r.range is not None for r in hub.requests) > 5


def test_the_command_shows_no_token_whatever_refuses_it(downloader: Commands) -> None:
    write_model(downloader.folder / "models", "large", {"file": (SMALL, on_the_hub("file"))})
    with FaultyServer(in_turn(refusing(500), then=refusing(401, X_Error_Code="GatedRepo"))) as hub:
        done = downloader("large", HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN)
        assert failed(done) == ["large"]
        assert len(hub.requests) == 2
        assert "HF_TOKEN" in done.stderr


@pytest.mark.parametrize("way", ["--offline", "HF_HUB_OFFLINE"])
def test_offline_the_command_makes_not_one_connection(downloader: Commands, server: FaultyServer, way: str) -> None:
    sources = [f"{server.url}/file", on_the_hub("file")]
    write_model(downloader.folder / "models", "large", {"file": (SMALL, sources)})
    with FaultyServer(File(SMALL)) as hub, ForwardingProxy() as proxy:
        environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HTTP_PROXY": proxy.url, "NO_PROXY": ""}
        if way == "--offline":
            done = downloader("large", "--offline", **environment)
        else:
            done = downloader("large", HF_HUB_OFFLINE="1", **environment)
        assert failed(done) == ["large"]
        assert "--offline or HF_HUB_OFFLINE is set" in done.stderr
        assert (server.connections, hub.connections, proxy.asked) == (0, 0, [])
    server.answer = File(SMALL)
    assert downloader("large").returncode == 0
    assert downloader.holds("large", file=SMALL)


def test_the_command_takes_the_sources_in_order_and_names_those_that_failed(
    downloader: Commands, server: FaultyServer
) -> None:
    dead = dead_port()
    with FaultyServer(up_to(File(DATA), 4 * MIB, then=refusing(404))) as first:
        sources = [f"{dead}/file", f"{first.url}/file", f"{server.url}/file"]
        write_model(downloader.folder / "models", "large", {"file": (DATA, sources)})
        server.answer = File(DATA, etag='"two"')
        done = downloader("large")
        assert done.returncode == 0, done.stderr
        assert downloader.holds("large", file=DATA)
        assert first.sent >= 4 * MIB
        assert first.sent + server.sent <= 1.1 * len(DATA)
    notes = [line for line in done.stdout.splitlines() if line.startswith("... ")]
    assert any(line.startswith(f"... {dead}/file") and "trying the next source" in line for line in notes)
    assert any(line.startswith(f"... {first.url}/file") and "trying the next source" in line for line in notes)
    assert f"... taken from {server.url}/file" in notes


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_command_works_through_a_proxy_over_several_connections(
    downloader: Commands, secure: ssl.SSLContext, scheme: str
) -> None:
    with FaultyServer(File(DATA), tls=secure if scheme == "https" else None) as host, ForwardingProxy() as proxy:
        write_model(downloader.folder / "models", "large", {"file": (DATA, f"{host.url}/file")})
        certificates = {"SSL_CERT_FILE": str(downloader.folder / "ca.pem")}
        done = downloader("large", HTTP_PROXY=proxy.url, HTTPS_PROXY=proxy.url, NO_PROXY="", **certificates)
        assert done.returncode == 0, done.stderr
        assert downloader.holds("large", file=DATA)
        assert len(proxy.asked) >= 4
        assert host.sent == len(DATA)
        assert host.most_open >= 2


def test_the_command_brings_two_models_at_once_over_several_connections_each(
    downloader: Commands, server: FaultyServer
) -> None:
    other = DATA[::-1]
    server.answer = by_path(one=File(DATA, pause=PAUSE), two=File(other, pause=PAUSE))
    server.cut_every = 6 * MIB
    server.buffer(1 << 16)
    for name, data in (("one", DATA), ("two", other), ("three", SMALL)):
        write_model(downloader.folder / "models", name, {"file": (data, f"{server.url}/{name}")})
    done = downloader("one,two,three", "-j", "2", "--connections", "4")
    assert failed(done) == ["three"]
    assert downloader.holds("one", file=DATA)
    assert downloader.holds("two", file=other)
    assert downloader.holds("three")
    assert 2 < server.most_open <= 8
    assert server.sent <= 1.1 * 2 * len(DATA)


def test_the_command_reports_each_kind_of_failure_once_with_its_code(
    downloader: Commands, server: FaultyServer
) -> None:
    server.answer = by_path(
        refused=refusing(404), wrong=File(flipped(SMALL, 9)), busy=refusing(429, Retry_After=3600), good=File(SMALL)
    )
    codes = {"refused": "source", "wrong": "integrity", "busy": "source", "dead": "unreachable"}
    for name in [*codes, "good"]:
        url = f"{dead_port()}/file" if name == "dead" else f"{server.url}/{name}"
        write_model(downloader.folder / "models", name, {"file": (SMALL, url)})
    done = downloader(",".join([*codes, "good"]), "--progress_format", "json")
    assert done.returncode == 1
    events = [json.loads(line) for line in done.stdout.splitlines()]
    errors = {event["where"][0].split()[1]: event for event in events if event["$type"] == "error"}
    assert {name: event["code"] for name, event in errors.items()} == codes
    assert all(event["hint"] for event in errors.values())
    assert downloader.holds("good", file=SMALL)


MOST_MEMORY_KB = 100_000
REPORT_MEMORY = """
import atexit
def report():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):
            print("memory", line.split()[1], "kB", file=sys.stderr)
atexit.register(report)
"""


@linux_only
@pytest.mark.parametrize("connections", sample([16], [1, 4, 16]))
def test_the_memory_of_the_command_does_not_grow_with_the_file_or_the_connections(
    downloader: Commands, server: FaultyServer, tmp_path: Path, connections: int
) -> None:
    """The process's own high-water mark: what wait4 says of a child includes the memory of whoever started it."""
    downloader.before = REPORT_MEMORY
    with (tmp_path / "served").open("w+b") as file:
        for _ in range(8):
            file.write(DATA)
        file.flush()
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    write_model(downloader.folder / "models", "large", {"file": (data, f"{server.url}/file")})
    server.answer = File(data)
    done = downloader("large", "--connections", str(connections))
    assert done.returncode == 0, done.stderr
    assert server.most_open >= min(2, connections)
    assert server.sent == len(data)
    [memory] = re.findall(r"memory (\d+) kB", done.stderr)
    assert int(memory) < MOST_MEMORY_KB
