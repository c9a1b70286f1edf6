"""Connections: proxies, certificates, and what a URL is to the library that connects."""

import http.client
import os
import queue
import ssl
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import urllib3

from omz_tools.errors import SourceError
from omz_tools.progress.showing import shown

# Connections to one host that wait for their next request.
_KEPT_OPEN = 16


class _Answer(http.client.HTTPResponse):
    """An answer behind any number of interim ones (1xx), of which http.client itself skips "100 Continue" alone."""

    def begin(self) -> None:
        super().begin()
        while 100 <= self.status < 200:
            self.headers = None  # type: ignore[assignment]  # that is: not begun
            super().begin()


class _Counting:
    """Of a connection: its answers know how many came on it before."""

    response_class = _Answer
    _answers = 0

    def connect(self) -> None:
        self._answers = 0
        super().connect()  # type: ignore[misc]

    def getresponse(self) -> Any:
        answer = super().getresponse()  # type: ignore[misc]
        answer.answers_before, self._answers = self._answers, self._answers + 1
        return answer


class _Connection(_Counting, urllib3.connection.HTTPConnection):  # type: ignore[misc]
    pass


class _SecureConnection(_Counting, urllib3.connection.HTTPSConnection):  # type: ignore[misc]
    pass


class _OpenFirst(queue.LifoQueue[Any]):
    """Gives an open connection before the leave to make one, which is None and comes back when one has failed."""

    def _put(self, item: Any) -> None:
        if item is None:
            self.queue.insert(0, item)
        else:
            self.queue.append(item)


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection
    QueueCls = _OpenFirst


class _SecurePool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _SecureConnection
    QueueCls = _OpenFirst


def pool_for(proxy: str | None) -> urllib3.PoolManager:
    """Connections to any host, through a proxy if one is given. Raises SourceError if its address is none."""
    context = _certificates()
    if not proxy:
        return _with_own_connections(urllib3.PoolManager(ssl_context=context, maxsize=_KEPT_OPEN))
    try:
        address = parsed(proxy if "://" in proxy else f"http://{proxy}")
    except SourceError:
        # Not shown: it may hold a password.
        raise SourceError(
            "the address of the proxy is not a usable URL",
            hint="Correct HTTP_PROXY, HTTPS_PROXY or ALL_PROXY, or unset it.",
        ) from None
    headers = urllib3.make_headers(proxy_basic_auth=urllib.parse.unquote(address.auth)) if address.auth else None
    url = address._replace(auth=None).url
    return _with_own_connections(
        urllib3.ProxyManager(url, proxy_headers=headers, ssl_context=context, maxsize=_KEPT_OPEN)
    )


def _with_own_connections(manager: urllib3.PoolManager) -> urllib3.PoolManager:
    manager.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}
    return manager


def parsed(url: str) -> urllib3.util.Url:
    """A URL as the connection will understand it. Raises SourceError if it is none."""
    try:
        parts = urllib3.util.parse_url(url)
        if parts.scheme not in ("http", "https") or not parts.host:
            raise ValueError("no http(s) URL with a host")
    except (urllib3.exceptions.HTTPError, ValueError):
        # Without their own words, which hold the whole URL.
        raise SourceError(f"{shown(url)} is not a usable URL with http or https and a host") from None
    return parts


def origin(url: str) -> str:
    """Scheme, host and port: what a token belongs to."""
    # By the parser of the library that connects: to read a URL in two ways would send a token astray.
    parts = parsed(url)
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
