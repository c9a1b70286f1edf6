"""One GET on the wire: redirects, proxies, certificates, tokens and patience; what the bytes mean is not known here."""

import contextlib
import email.utils
import os
import re
import ssl
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import urllib3

from omz_tools import __version__
from omz_tools.errors import SourceError, StoppedError, UnreachableError
from omz_tools.files import CHUNK

# Until a host has answered once, everything tried with it must fit into this; a person at a shell is waiting.
FIRST_ANSWER_SECONDS = 8.0
# Later a host may take its time between two reads.
READ_SECONDS = 30.0
# A body that comes more slowly than this, for so long, is given up; a timeout of each read does not end a drip.
SLOWEST, SLOW_SECONDS = 1000, 30.0
MAX_REDIRECTS = 10
_TRANSIENT = (408, 429, 500, 502, 503, 504)


class TransientError(SourceError):
    """A fault that may pass: worth another try, after `retry_after` seconds if the server named a time."""

    def __init__(self, what: str, *, hint: str = "", where: tuple[str, ...] = (), retry_after: float = 0.0) -> None:
        super().__init__(what, hint=hint, where=where)
        self.retry_after = retry_after


@dataclass(frozen=True)
class Body:
    """A successful answer. `length` is None where the server does not declare it; iterating gives the raw bytes."""

    url: str
    length: int | None
    _response: urllib3.HTTPResponse
    _transport: "Transport"

    def __iter__(self) -> Iterator[bytes]:
        began, received = time.monotonic(), 0
        try:
            # Not read(), which would wait for the whole chunk and let a drip of bytes go on for ever.
            while chunk := self._response.read1(CHUNK, decode_content=False):
                self._transport.pause(0)
                yield chunk
                received += len(chunk)
                seconds = time.monotonic() - began
                if seconds >= SLOW_SECONDS:
                    if received < SLOW_SECONDS * SLOWEST:
                        raise TransientError(f"{self.url} sends less than {SLOWEST} bytes a second")
                    began, received = time.monotonic(), 0
        except (urllib3.exceptions.HTTPError, OSError) as error:
            self._transport.pause(0)
            raise TransientError(f"the transfer from {self.url} broke off: {_reason(error)}") from error


class Transport:
    """Connections to any number of hosts, usable from several threads."""

    def __init__(self) -> None:
        self._pools: dict[str | None, urllib3.PoolManager] = {}
        self._lock = threading.Lock()
        self._answered: set[str] = set()
        self._first_try: dict[str, float] = {}
        self._open: set[urllib3.HTTPResponse] = set()
        self._closed = threading.Event()

    def close(self) -> None:
        """End every transfer, from any thread: what waits for bytes, an answer or another try raises StoppedError."""
        self._closed.set()
        with self._lock:
            for response in self._open:
                # Also wakes a thread that waits for bytes, which closing would not.
                with contextlib.suppress(OSError, RuntimeError, ValueError):
                    response.shutdown()

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
    def get(self, url: str, *, token: str | None = None) -> Iterator[Body]:
        """GET `url`, following redirects; `token` goes to the origin of `url` alone.

        Raises:
            UnreachableError: the host did not answer in time, or not at all.
            TransientError: the connection broke, or the status is one that may pass.
            SourceError: any other status than 200, a redirect that must not be followed, an encoding nobody asked for.
        """
        if token and not re.fullmatch(r"[\x21-\x7e]+", token):
            raise SourceError("the token holds a character that cannot be sent", hint="Check HF_TOKEN.")
        response = self._follow(url, token)
        with self._lock:
            self._open.add(response)
        try:
            encoding = response.headers.get("Content-Encoding", "identity")
            if encoding.lower() != "identity":
                raise SourceError(f"{url} sent the file with Content-Encoding {encoding}, which was not asked for")
            yield Body(url, _length(response), response, self)
        finally:
            with self._lock:
                self._open.discard(response)
            # Closed, not released: the rest of a body that nobody wants must not be waited for.
            response.close()

    def _follow(self, url: str, token: str | None) -> urllib3.HTTPResponse:
        asked, seen = url, {url}
        while True:
            headers = {"User-Agent": f"omz_tools/{__version__}", "Accept-Encoding": "identity"}
            if token and origin(url) == origin(asked):
                headers["Authorization"] = f"Bearer {token}"
            response = self._ask(url, headers)
            if response.status == 200:
                return response
            status, answer = response.status, response.headers
            response.close()
            if status not in (301, 302, 303, 307, 308):
                raise _refusal(asked, status, answer)
            try:
                following = urllib.parse.urljoin(url, answer.get("Location", ""))
            except ValueError:
                raise SourceError(f"{asked} redirects to {answer.get('Location')}, which is no URL") from None
            if following in seen or len(seen) > MAX_REDIRECTS:
                raise SourceError(f"{asked} redirects in a circle, or more than {MAX_REDIRECTS} times")
            if not following.startswith(("http://", "https://")):
                raise SourceError(f"{asked} redirects to {following}, which is not http or https")
            if url.startswith("https:") and following.startswith("http:"):
                raise SourceError(f"{asked} redirects from https to http ({following}); that is not followed")
            seen.add(following)
            url = following

    def _ask(self, url: str, headers: dict[str, str]) -> urllib3.HTTPResponse:
        patience = self.patience(url)
        if patience <= 0:
            raise _unreachable(url, f"no answer within {FIRST_ANSWER_SECONDS:.0f} seconds")
        timeout = urllib3.Timeout(connect=min(patience, READ_SECONDS), read=READ_SECONDS)

        def request() -> urllib3.HTTPResponse:
            response = self._pool(url).request(
                "GET", url, headers=headers, redirect=False, retries=False, preload_content=False, timeout=timeout
            )
            assert isinstance(response, urllib3.HTTPResponse)
            return response

        try:
            response = self._within(patience, request)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            # One that takes connections and drops them may be starting up, or busy.
            dropped = isinstance(error, urllib3.exceptions.ProtocolError) and self.patience(url) > 1
            if origin(url) in self._answered or dropped:
                raise TransientError(f"{url} did not answer: {_reason(error)}") from error
            raise _unreachable(url, _reason(error)) from error
        with self._lock:
            self._answered.add(origin(url))
        return response

    def _pool(self, url: str) -> urllib3.PoolManager:
        parts = _parsed(url)
        proxy = None
        if not urllib.request.proxy_bypass(parts.host or ""):
            proxy = urllib.request.getproxies().get(parts.scheme or "")
        with self._lock:
            if proxy not in self._pools:
                self._pools[proxy] = _pool_through(proxy)
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


def _parsed(url: str) -> urllib3.util.Url:
    """A URL as the connection will understand it. Raises SourceError if it is none."""
    try:
        parsed = urllib3.util.parse_url(url)
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ValueError("no http(s) URL with a host")
    except (urllib3.exceptions.HTTPError, ValueError) as error:
        raise SourceError(f"{url} is not a usable URL: {_reason(error)}") from error
    return parsed


def _pool_through(proxy: str | None) -> urllib3.PoolManager:
    context = _certificates()
    if not proxy:
        return urllib3.PoolManager(ssl_context=context)
    try:
        parsed = _parsed(proxy if "://" in proxy else f"http://{proxy}")
    except SourceError:
        # Not shown: it may hold a password.
        raise SourceError(
            "the address of the proxy is not a usable URL", hint="Correct HTTP_PROXY or HTTPS_PROXY, or unset it."
        ) from None
    headers = urllib3.make_headers(proxy_basic_auth=urllib.parse.unquote(parsed.auth)) if parsed.auth else None
    return urllib3.ProxyManager(parsed._replace(auth=None).url, proxy_headers=headers, ssl_context=context)


def origin(url: str) -> str:
    """Scheme, host and port: what a token belongs to."""
    # By the parser of the library that connects: to read a URL in two ways would send a token astray.
    parts = _parsed(url)
    port = parts.port or {"http": 80, "https": 443}[parts.scheme or ""]
    return f"{parts.scheme}://{parts.host}:{port}"


def _certificates() -> ssl.SSLContext:
    """The system's authorities, or those of REQUESTS_CA_BUNDLE or SSL_CERT_FILE."""
    bundle = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE")
    try:
        if bundle and Path(bundle).is_dir():
            return ssl.create_default_context(capath=bundle)
        return ssl.create_default_context(cafile=bundle or None)
    except OSError as error:
        raise SourceError(
            f"the certificates in {bundle} cannot be read: {error}",
            hint="Correct REQUESTS_CA_BUNDLE or SSL_CERT_FILE, or unset it.",
        ) from error


def _length(response: urllib3.HTTPResponse) -> int | None:
    declared = response.headers.get("Content-Length", "")
    return int(declared) if declared.isdecimal() and declared.isascii() and len(declared) < 20 else None


def _refusal(url: str, status: int, headers: urllib3.HTTPHeaderDict) -> SourceError:
    reason = headers.get("X-Error-Code", "")
    text = f"{url} answered {status}" + (f" {reason}" if reason.isalnum() else "")
    if status in _TRANSIENT:
        return TransientError(text, hint="Try again later.", retry_after=retry_after(headers.get("Retry-After", "")))
    if status == 403 or reason == "GatedRepo":
        hint = "Accept the model's terms on its page there, and set HF_TOKEN to a token of that account."
    elif status == 401:
        hint = "Set HF_TOKEN to a token that may read this repository, or check the name of the repository."
    elif reason == "RepoNotFound":
        hint = "There is no such repository (or it is private: set HF_TOKEN). Check `repo` in the descriptor."
    elif reason == "RevisionNotFound":
        hint = "The repository has no such revision. Check `revision` in the descriptor."
    else:
        hint = "Check the source in the descriptor, and HF_ENDPOINT if it is set."
    return SourceError(text, hint=hint)


def retry_after(value: str) -> float:
    """Seconds to wait that a Retry-After header means, in either of its forms; 0 when it means nothing."""
    value = value.strip()
    if value.isascii() and value.isdecimal():
        return float(value[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def _unreachable(url: str, reason: str) -> UnreachableError:
    hint = "Check the network and the proxy (HTTPS_PROXY), or name a mirror of the Hub with HF_ENDPOINT."
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        hint = "If its certificate comes from an authority of your own, name that with REQUESTS_CA_BUNDLE."
    return UnreachableError(f"{url} cannot be reached: {reason}", hint=hint)


def _reason(error: BaseException) -> str:
    """The innermost reason of a urllib3 error, without the pool and object names around it."""
    while inner := next((e for e in _nested(error) if isinstance(e, BaseException)), None):
        error = inner
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).partition(": ")[2] if "object at 0x" in str(error) else str(error) or type(error).__name__


def _nested(error: BaseException) -> tuple[object, ...]:
    """The places where urllib3 and Python keep the error that led to another one."""
    return getattr(error, "reason", None), error.__cause__, *error.args[-1:]
