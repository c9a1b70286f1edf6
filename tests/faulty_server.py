"""An HTTP server on plain sockets, as rude as a test wants, that counts what it was asked for and what it sent.

What it does with a request is a function, the answer; `File` is the honest one that the others begin with or fall back
to. Nothing stands between an answer and the wire: a header may be missing, a body may be longer than it was declared,
and a connection may end at any byte, politely or not.
"""

import contextlib
import datetime
import email.utils
import fcntl
import re
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

STEP = 1 << 16
# SIOCOUTQNSD of linux/sockios.h: the bytes of a socket that were not sent yet.
_UNSENT = 0x894B


class Over(Exception):
    """The connection has ended."""


@dataclass(frozen=True)
class Request:
    """One request as it came.

    Attributes:
        connection: which of the server's connections it came on, from 0.
        turn: the number of requests before it on that connection.
        target: the second word of its first line.
        headers: by their names in lower case.
        at: when, on the monotonic clock.
    """

    connection: int
    turn: int
    method: str
    target: str
    headers: dict[str, str]
    at: float

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def range(self) -> tuple[int, int | None] | None:
        """The first byte asked for and the one behind the last one, None for all there are."""
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        return (int(match[1]), int(match[2]) + 1 if match[2] else None) if match else None


class Exchange:
    """A request, and the means to answer it."""

    def __init__(self, server: "FaultyServer", wire: socket.socket, request: Request, before: int) -> None:
        self.server, self.request, self._wire = server, request, wire
        self.body_bytes = self._before = before  # of this connection, those of earlier answers included
        self.must_close = False

    @property
    def answer_bytes(self) -> int:
        """The bytes of the body that were sent of this answer."""
        return self.body_bytes - self._before

    def raw(self, data: bytes) -> None:
        """Put bytes on the wire that are not counted. Raises Over if the client has gone."""
        try:
            self._wire.sendall(data)
        except OSError:
            raise Over from None

    def head(self, status: int = 200, /, *, version: str = "1.1", **headers: object) -> None:
        """The beginning of an answer; underscores in names of headers stand for dashes, None leaves one out."""
        lines = [f"HTTP/{version} {status} Whatever"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items() if value is not None]
        self.raw("".join(f"{line}\r\n" for line in [*lines, ""]).encode("latin-1"))

    def body(self, data: bytes | memoryview, *, step: int = STEP, pause: float = 0.0) -> None:
        """Part of a body, counted, up to where the server cuts its connections; `pause` after each `step`."""
        view = memoryview(data)
        while view:
            part = view[:step]
            if self.server.cut_every is not None:
                part = part[: self.server.cut_every - self.body_bytes]
            try:
                sent = self._wire.send(part)
            except OSError:
                raise Over from None
            self.body_bytes += sent
            with self.server.counting:
                self.server.sent += sent
            view = view[sent:]
            if self.body_bytes == self.server.cut_every:
                self.cut(reset=self.server.cut_resets)
            if pause and self.server.ending.wait(pause):
                raise Over

    @contextlib.contextmanager
    def in_one_piece(self) -> Iterator[None]:
        """What the block sends at its end arrives together, so that nobody reads a part and goes on before the rest."""
        self._wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        yield
        self._wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)

    def cut(self, *, reset: bool = False) -> None:
        """End the connection here; with a reset, what is still on its way in this machine is lost."""
        if reset:
            with contextlib.suppress(OSError):
                unsent = struct.unpack("i", fcntl.ioctl(self._wire, _UNSENT, b"\0" * 4))[0]
                with self.server.counting:
                    self.server.lost += unsent
                self._wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise Over

    def stall(self) -> None:
        """Say nothing more until the client has gone or the test ends, or for a while that is too long."""
        until = time.monotonic() + 20
        while not self.server.ending.is_set() and time.monotonic() < until:
            if select.select([self._wire], [], [], 0.05)[0]:
                break
        raise Over


Answer = Callable[[Exchange], None]


class FaultyServer:
    """A server on a port of its own.

    Attributes:
        answer: what is done with each request; a test may change it at any time.
        admit: called with the number of connections that are open when one more comes; False resets that one.
        cut_every: bytes of bodies after which a connection ends, None for never.
        cut_resets: whether it ends with a reset.
        requests: all there were, in order.
        sent: bytes of bodies that were handed to the system.
        lost: those of them that a reset kept from leaving this machine; known for cuts alone.
        connections: how many there were.
        most_open: how many there were at once.
    """

    def __init__(self, answer: Answer, *, tls: ssl.SSLContext | None = None) -> None:
        self.answer = answer
        self.admit: Callable[[int], bool] = lambda others: True
        self.cut_every: int | None = None
        self.cut_resets = False
        self.requests: list[Request] = []
        self.sent = self.lost = self.connections = self.most_open = 0
        self.counting = threading.Lock()
        self.ending = threading.Event()
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._open: set[socket.socket] = set()
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.url = f"{'https' if tls else 'http'}://{self.host}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.ending.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self.counting:
            for wire in self._open:
                with contextlib.suppress(OSError):
                    wire.shutdown(socket.SHUT_RDWR)

    def buffer(self, size: int) -> None:
        """Let the system hold no more than so many bytes of each later connection that were not sent yet."""
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)

    def forget(self) -> None:
        """Begin counting anew."""
        with self.counting:
            self.requests.clear()
            self.sent = self.lost = self.connections = self.most_open = 0

    @property
    def authorizations(self) -> list[str | None]:
        """The Authorization header of each request."""
        return [request.headers.get("authorization") for request in self.requests]

    def _accept(self) -> None:
        while True:
            try:
                wire, _ = self._listener.accept()
            except OSError:
                return
            with self.counting:
                number, others = self.connections, len(self._open)
                self.connections += 1
                admitted = self.admit(others)
                if admitted:
                    self._open.add(wire)
                    self.most_open = max(self.most_open, others + 1)
            if admitted:
                threading.Thread(target=self._serve, args=(wire, number), daemon=True).start()
            else:
                wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                wire.close()

    def _serve(self, plain: socket.socket, number: int) -> None:
        wire = plain
        try:
            # Small pieces must not wait for company.
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls:
                wire = self._tls.wrap_socket(plain, server_side=True)
                with self.counting:
                    self._open.add(wire)
            self._converse(wire, number)
        except (OSError, Over):
            pass
        finally:
            with self.counting:
                self._open -= {plain, wire}
            with contextlib.suppress(OSError):
                wire.close()

    def _converse(self, wire: socket.socket, number: int) -> None:
        reader, turn, body_bytes = wire.makefile("rb"), 0, 0
        with reader:
            while (words := reader.readline(1 << 16).decode("latin-1").split()) and len(words) == 3:
                headers: dict[str, str] = {}
                while line := reader.readline(1 << 16).strip():
                    name, _, value = line.decode("latin-1").partition(":")
                    headers[name.lower()] = value.strip()
                request = Request(number, turn, words[0], words[1], headers, time.monotonic())
                with self.counting:
                    self.requests.append(request)
                exchange = Exchange(self, wire, request, body_bytes)
                self.answer(exchange)
                turn, body_bytes = turn + 1, exchange.body_bytes
                if exchange.must_close or headers.get("connection") == "close":
                    return


@dataclass
class File:
    """An honest answer: a file, with ranges and If-Range, on a connection that stays open.

    Attributes:
        data: the file.
        etag: as it stands in the header; None for no such header.
        ranges: "all"; "open" to overlook where a range ends; "none" to send the whole file always.
        step: bytes sent at a time.
        pause: seconds after each of them.
        extra: more headers.
    """

    data: bytes
    etag: str | None = '"one"'
    ranges: str = "all"
    step: int = STEP
    pause: float = 0.0
    extra: dict[str, str] = field(default_factory=dict)

    def part(self, request: Request) -> tuple[int, int] | None:
        """What of the file a request is for: the offsets of the first byte and behind the last; None for all of it."""
        asked = request.range
        if self.ranges == "none" or asked is None or request.headers.get("if-range", self.etag) != self.etag:
            return None
        size = len(self.data)
        return asked[0], size if asked[1] is None or self.ranges == "open" else min(asked[1], size)

    def __call__(self, exchange: Exchange) -> None:
        size, part = len(self.data), self.part(exchange.request)
        first, end = part or (0, size)
        if part and first >= size:
            exchange.head(416, Content_Range=f"bytes */{size}", Content_Length=0)
            return
        headers = {"Content_Length": end - first, "ETag": self.etag, **self.extra}
        if part:
            headers["Content_Range"] = f"bytes {first}-{end - 1}/{size}"
        exchange.head(206 if part else 200, **headers)
        exchange.body(memoryview(self.data)[first:end], step=self.step, pause=self.pause)


def refusing(status: int, **headers: object) -> Answer:
    """An answer without a body."""
    return lambda exchange: exchange.head(status, Content_Length=0, **headers)


def redirecting(target: str, status: int = 302) -> Answer:
    """An answer that leads elsewhere."""
    return refusing(status, Location=target)


def resetting(exchange: Exchange) -> None:
    """No answer at all."""
    exchange.cut(reset=True)


def hanging_up(exchange: Exchange) -> None:
    """No answer at all, and a polite end."""
    exchange.cut()


def stalling(exchange: Exchange) -> None:
    """No answer, and no end."""
    exchange.stall()


def in_turn(*answers: Answer, then: Answer) -> Answer:
    """These answers to the first requests, one each, and `then` to all others."""
    waiting, lock = iter(answers), threading.Lock()

    def answer(exchange: Exchange) -> None:
        with lock:
            own = next(waiting, then)
        own(exchange)

    return answer


def by_path(**answers: Answer) -> Answer:
    """What is answered below each first part of a path; 404 for others."""
    missing = refusing(404)
    return lambda exchange: answers.get(exchange.request.path.split("/")[1], missing)(exchange)


def http_date(seconds: float) -> str:
    """So many seconds from now, as headers have dates."""
    moment = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
    return email.utils.format_datetime(moment, usegmt=True)


class ForwardingProxy:
    """A proxy: passes requests with a whole URL on to its host, and for CONNECT makes a tunnel.

    Attributes:
        asked: "METHOD target" of each request.
        credentials: the Proxy-Authorization header of each, in the same order.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.credentials: list[str | None] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                wire, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(wire,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError, ValueError):
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                byte = client.recv(1)
                if not byte:
                    return
                head += byte
            lines = head.decode("latin-1").split("\r\n")
            method, target, _ = lines[0].split()
            credentials = [line.partition(":")[2].strip() for line in lines if line.lower().startswith("proxy-auth")]
            self.asked.append(f"{method} {target}")
            self.credentials.append(credentials[0] if credentials else None)
            parts = urlsplit(f"//{target}" if method == "CONNECT" else target)
            with socket.create_connection((parts.hostname or "", parts.port or 80)) as host:
                if method == "CONNECT":
                    client.sendall(b"HTTP/1.1 200 Here you are\r\n\r\n")
                else:
                    # One request for each connection, so that the host's answers need not be understood.
                    kept = [line for line in lines[1:-2] if not line.lower().startswith(("proxy-", "connection:"))]
                    path = target.split(parts.netloc, 1)[1] or "/"
                    own = [f"{method} {path} HTTP/1.1", *kept, "Connection: close", "", ""]
                    host.sendall("\r\n".join(own).encode("latin-1"))
                _relay(client, host)


def _relay(one: socket.socket, other: socket.socket) -> None:
    """Pass bytes on in both ways until either end has gone."""
    ways = {one: other, other: one}
    while True:
        for wire in select.select(list(ways), [], [], 30)[0]:
            data = wire.recv(STEP)
            if not data:
                return
            ways[wire].sendall(data)
