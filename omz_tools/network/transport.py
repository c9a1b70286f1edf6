"""One GET on the wire: redirects, proxies, certificates, tokens and patience; what the bytes mean is not known here."""

import contextlib
import re
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import urllib3

from omz_tools import __version__
from omz_tools.cache.partial import STRONG_ETAG
from omz_tools.errors import SourceError, StoppedError
from omz_tools.network.answers import (
    RangeError,
    TransientError,
    content_range,
    length,
    reason,
    refusal,
    unreachable,
)
from omz_tools.network.connections import origin, parsed, pool_for
from omz_tools.network.throughput import SLOWEST, Throughput
from omz_tools.progress.showing import printable, shown

# Until a host has answered once, everything tried with it must fit into this; a person at a shell is waiting.
FIRST_ANSWER_SECONDS = 8.0
# Later a host may take its time between two reads.
READ_SECONDS = 30.0
# The most that is read at once. What a killed process has read and not written is lost.
STEP = 1 << 17
MAX_REDIRECTS = 10


@dataclass(frozen=True)
class Body:
    """A successful answer, or a file that is read like one; iterating gives its raw bytes.

    Attributes:
        url: what was asked for, before redirects, as it may be shown.
        first: the offset in the file of the first byte.
        length: the number of bytes that are to come; None where the server does not declare it.
        total: the size of the whole file; None where the server does not declare it.
        ranges: whether this is a part of the file, so that other parts can be asked for.
        etag: the strong entity tag, if there is one.
        is_first: whether nothing came on its connection before, which a server may have sent more of than it said.
        abort: ends the transfer, from any thread.
    """

    url: str
    first: int
    length: int | None
    total: int | None
    ranges: bool
    etag: str | None
    is_first: bool
    _chunks: Iterator[bytes]
    abort: Callable[[], None]

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks


class Transport:
    """Connections to any number of hosts, usable from several threads."""

    def __init__(self) -> None:
        self._pools: dict[str | None, urllib3.PoolManager] = {}
        self._lock = threading.Lock()
        self._answered: set[str] = set()
        self._first_try: dict[str, float] = {}
        self._open: list[Body] = []
        self._closed = threading.Event()

    def close(self) -> None:
        """End every transfer, from any thread: what waits for bytes, an answer or another try raises StoppedError."""
        self._closed.set()
        with self._lock:
            for body in self._open:
                body.abort()

    def pause(self, seconds: float) -> None:
        """Wait so long. Raises StoppedError if the transport is closed, at once."""
        if self._closed.wait(seconds):
            raise StoppedError("the run was ended")

    def patience(self, url: str) -> float:
        """Seconds left for `url`'s host to give its first answer; READ_SECONDS once it has."""
        host = origin(url)
        with self._lock:
            if host in self._answered:
                return READ_SECONDS
            began = self._first_try.setdefault(host, time.monotonic())
            return FIRST_ANSWER_SECONDS - (time.monotonic() - began)

    @contextmanager
    def get(
        self, url: str, *, token: str | None = None, first: int = 0, end: int | None = None, etag: str | None = None
    ) -> Iterator[Body]:
        """GET `url`, following redirects; `token` goes to the origin of `url` alone.

        Args:
            url: what to get.
            token: for the Authorization header.
            first: the offset of the first byte wanted.
            end: the offset behind the last byte wanted; None for all there are, and with `first` 0 for no range at all.
            etag: the part is wanted of this version only; of another one the answer is the whole file.

        Raises:
            UnreachableError: the host did not answer in time, or not at all.
            TransientError: the connection broke, or the status is one that may pass.
            RangeError: a part was asked for, and the answer is neither that part nor the whole file.
            SourceError: any other status than 200, a redirect that must not be followed, an encoding nobody asked for.
        """
        if token and not re.fullmatch(r"[\x21-\x7e]+", token):
            raise SourceError("the token holds a character that cannot be sent", hint="Check HF_TOKEN.")
        wanted = {}
        if first or end is not None:
            wanted["Range"] = f"bytes={first}-{'' if end is None else end - 1}"
            if etag:
                wanted["If-Range"] = etag
        response = self._follow(url, token, wanted)
        try:
            with Throughput(lambda: _shut_down(response)) as throughput:
                body = self._body(shown(url), response, first if wanted else None, throughput)
                with self._lock:
                    self._open.append(body)
                try:
                    yield body
                finally:
                    with self._lock:
                        self._open.remove(body)
        finally:
            # Closed, not released: the rest of a body that nobody wants must not be waited for.
            response.close()

    def _body(self, url: str, response: urllib3.HTTPResponse, first: int | None, throughput: Throughput) -> Body:
        """`url` is what messages call it; `first` is the offset that was asked for, None if no part was."""
        encoding = response.headers.get("Content-Encoding", "")
        if {name.strip().lower() for name in encoding.split(",")} - {"identity", ""}:
            raise SourceError(
                f"{url} sent the file with Content-Encoding {printable(encoding)}, which was not asked for"
            )
        etag = response.headers.get("ETag", "")
        strong = etag if re.fullmatch(STRONG_ETAG, etag) else None
        declared = length(response)
        is_first = not response.answers_before  # type: ignore[attr-defined]

        def abort() -> None:
            _shut_down(response)

        if response.status == 200:
            chunks = self._chunks(url, response, throughput)
            return Body(url, 0, declared, declared, False, strong, is_first, chunks, abort)
        part = content_range(response.headers.get("Content-Range", ""))
        if first is None or part is None or part[0] != first:
            raise RangeError(
                f"{url} sent the part {response.headers.get('Content-Range')!r}, "
                f"and {'none' if first is None else f'the one from {first}'} was asked for"
            )
        length_of_part = part[1] - first
        # Where the length is declared, the end is known without waiting, and the connection can be used again.
        chunks = self._chunks(url, response, throughput, length_of_part if declared is None else None)
        return Body(url, first, length_of_part, part[2], True, strong, is_first, chunks, abort)

    def _chunks(
        self, url: str, response: urllib3.HTTPResponse, throughput: Throughput, most: int | None = None
    ) -> Iterator[bytes]:
        """The bytes of an answer; with `most`, what comes after so many is not waited for."""
        while most != 0 and (chunk := self._step(url, response, throughput)):
            throughput.count(len(chunk))
            if most is not None:
                chunk = chunk[:most]
                most -= len(chunk)
            yield chunk

    def _step(self, url: str, response: urllib3.HTTPResponse, throughput: Throughput) -> bytes:
        """The next bytes of a body, none at its end."""
        chunk, failure = b"", None
        try:
            # Not read(), which would wait for the whole step.
            chunk = response.read1(STEP, decode_content=False)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            failure = error
        self.pause(0)
        # First, for what a connection gives after it was cut off is no part of the body.
        if throughput.too_slow:
            raise TransientError(f"{url} sends less than {SLOWEST} bytes a second") from failure
        if failure:
            raise TransientError(f"the transfer from {url} broke off: {reason(failure)}") from failure
        return chunk

    def _follow(self, url: str, token: str | None, wanted: dict[str, str]) -> urllib3.HTTPResponse:
        asked, seen, name = url, {url}, shown(url)
        while True:
            headers = {"User-Agent": f"omz_tools/{__version__}", "Accept-Encoding": "identity", **wanted}
            if token and origin(url) == origin(asked):
                headers["Authorization"] = f"Bearer {token}"
            response = self._ask(url, headers, shown(url))
            if response.status in (200, 206):
                return response
            status, answer = response.status, response.headers
            response.close()
            if status == 416:
                raise RangeError(f"{name} answered 416 to {wanted.get('Range', 'no range')}")
            if status not in (301, 302, 303, 307, 308):
                raise refusal(name, status, answer)
            if not (target := answer.get("Location", "")):
                raise SourceError(f"{name} answered {status}, a redirect, and does not say where to")
            url = _following(name, url, target)
            if url in seen or len(seen) > MAX_REDIRECTS:
                raise SourceError(f"{name} redirects in a circle, or more than {MAX_REDIRECTS} times")
            seen.add(url)

    def _ask(self, url: str, headers: dict[str, str], name: str) -> urllib3.HTTPResponse:
        """One request; `name` is what messages call `url`."""
        patience = self.patience(url)
        if patience <= 0:
            raise unreachable(name, f"no answer within {FIRST_ANSWER_SECONDS:.0f} seconds")
        timeout = urllib3.Timeout(connect=min(patience, READ_SECONDS), read=READ_SECONDS)

        def request() -> urllib3.HTTPResponse:
            manager = self._pool(url)
            made = manager.connection_from_url(url)
            while True:
                connections = made.num_connections
                try:
                    response = manager.request(
                        "GET",
                        url,
                        headers=headers,
                        redirect=False,
                        retries=False,
                        preload_content=False,
                        timeout=timeout,
                    )
                except urllib3.exceptions.ProtocolError:
                    # A connection that was kept open, and closed by the server just now: that says nothing about it.
                    if made.num_connections == connections:
                        continue
                    raise
                assert isinstance(response, urllib3.HTTPResponse)
                return response

        try:
            response = self._within(patience, request)
        except urllib3.exceptions.InvalidHeader as error:
            raise SourceError(f"{name} did not answer properly: {reason(error)}") from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            # One that takes connections and drops them may be starting up, or busy.
            dropped = isinstance(error, urllib3.exceptions.ProtocolError) and self.patience(url) > 1
            if origin(url) in self._answered or dropped:
                raise TransientError(f"{name} did not answer: {reason(error)}") from error
            raise unreachable(name, reason(error)) from error
        with self._lock:
            self._answered.add(origin(url))
        return response

    def _pool(self, url: str) -> urllib3.PoolManager:
        parts = parsed(url)
        proxy = None
        if not urllib.request.proxy_bypass(parts.host or ""):
            proxies = urllib.request.getproxies()
            proxy = proxies.get(parts.scheme or "") or proxies.get("all")
        with self._lock:
            if proxy not in self._pools:
                self._pools[proxy] = pool_for(proxy)
            return self._pools[proxy]

    def _within(self, seconds: float, call: Callable[[], urllib3.HTTPResponse]) -> urllib3.HTTPResponse:
        """The result of `call`, waited for that long at most.

        A connect timeout alone is no bound: it does not cover name resolution and starts again for each address of a
        host.
        """
        results: list[urllib3.HTTPResponse] = []
        failures: list[BaseException] = []
        done = threading.Event()

        def run() -> None:
            try:
                results.append(call())
            except BaseException as error:  # noqa: BLE001 -- raised again below, in the thread that waits
                failures.append(error)
            done.set()

        threading.Thread(target=run, daemon=True).start()
        deadline = time.monotonic() + seconds
        while not done.wait(min(0.2, max(0.0, deadline - time.monotonic()))):
            self.pause(0)
            if time.monotonic() >= deadline:
                raise TimeoutError(f"no answer within {seconds:.0f} seconds")
        if failures:
            raise failures[0]
        return results[0]


def _following(name: str, url: str, target: str) -> str:
    """The URL that a redirect from `url` to `target` leads to; raises SourceError if that must not be followed."""
    try:
        following = urllib.parse.urljoin(url, target)
    except ValueError:
        raise SourceError(f"{name} redirects to {shown(target)}, which is no URL") from None
    if not following.startswith(("http://", "https://")):
        raise SourceError(f"{name} redirects to {shown(following)}, which is not http or https")
    if url.startswith("https:") and following.startswith("http:"):
        raise SourceError(f"{name} redirects from https to http ({shown(following)}); that is not followed")
    return following


def _shut_down(response: urllib3.HTTPResponse) -> None:
    """Also wakes a thread that waits for bytes, which closing would not."""
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        response.shutdown()
