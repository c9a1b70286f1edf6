"""Whom the page answers: those who opened it here, and no other page that their browser shows.

A page from elsewhere can send requests to a server of the same machine, under any name that it lets point there.
"""

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from omz_tools.page.messages import refusal

# All that the page consists of comes from here, and no other page may show it or read its answers.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
_READING = ("GET", "HEAD")


class Guard:
    """Lets only requests for this server, and from its own page, through to an application."""

    def __init__(self, app: ASGIApp, host: str) -> None:
        """`host` is the name or address that the server was told to listen at."""
        self._app = app
        self._names = {"localhost", host.lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        app = self._app
        if not self._known(headers.get("Host", "")):
            text = "The page is not known by this name.\nOpen it by an address of this machine, or name it with --host."
            app = refusal(text, 403)
        elif scope["method"] not in _READING and not _own(headers):
            app = refusal("Only the page itself may ask for texts.", 403)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        await app(scope, receive, answer)

    def _known(self, host: str) -> bool:
        """Whether a host is one of our names, or an address: nobody else can let one of these point here."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
            if name not in self._names:
                ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _own(headers: Headers) -> bool:
    """Whether a browser says that a request is of our page; programs that are no browser say nothing."""
    host, origin = headers.get("Host"), headers.get("Origin")
    return headers.get("Sec-Fetch-Site", "same-origin") == "same-origin" and (
        origin is None or origin in (f"http://{host}", f"https://{host}")  # the latter behind a proxy
    )
