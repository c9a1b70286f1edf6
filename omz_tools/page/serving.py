"""The server of the page: where it listens, how it is found, and how it ends."""

import asyncio
import ipaddress
import os
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable

import uvicorn

from omz_tools.errors import SelectionError
from omz_tools.generation.continuing import Model, Wish
from omz_tools.page.application import About, application
from omz_tools.page.texts import Texts

# Seconds until connections are cut when it ends.
_PATIENCE = 1.0


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens; whoever connects waits until `serve` answers.

    Args:
        host: a name or an address of this machine.
        port: 0 for any that is free.

    Raises:
        SelectionError: there is no such host, or the port is taken or not for us.
    """
    try:
        family, *_, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(where[:2], family=family)
    except (OSError, UnicodeError) as error:
        reason = str(getattr(error, "strerror", None) or error).partition(" (")[0]
        raise SelectionError(
            f"the page cannot be served at {host}, port {port}: {reason}",
            hint="Give another port, --serve 0 for any that is free, or another --host.",
        ) from None


def address(listener: socket.socket) -> str:
    """Where a browser of this machine finds the page."""
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "::1" if listener.family == socket.AF_INET6 else "127.0.0.1"
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def reached_from_afar(listener: socket.socket) -> bool:
    """Whether other machines reach the page."""
    return not ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def show(url: str) -> threading.Thread | None:
    """Let a thread open the page in the browser of the one who sits at this machine; None if nobody does.

    Without a desktop, Python would take a browser that runs in the terminal.
    """
    desktop = sys.platform in ("win32", "darwin") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if not (sys.stdout.isatty() and desktop) or "SSH_CONNECTION" in os.environ:
        return None
    opening = threading.Thread(target=webbrowser.open, args=(url,), daemon=True)
    opening.start()
    return opening


def serve(
    model: Model, shown: About, wish: Wish, listener: socket.socket, host: str, ready: Callable[[], None]
) -> None:
    """Answer until a signal comes, which is then raised again.

    Args:
        model: makes the texts.
        shown: what the page begins with.
        wish: what holds where the page says nothing else.
        listener: where.
        host: its name, as it was given.
        ready: called when answers and signals are seen to.
    """
    texts = Texts(model)
    config = uvicorn.Config(
        application(model, texts, shown, wish, host),
        http="h11", ws="none", lifespan="off", loop="asyncio",
        log_config=None, log_level="error", access_log=False, server_header=False, proxy_headers=False,
    )  # fmt: skip
    _Server(config, texts, ready).run([listener])


class _Server(uvicorn.Server):
    """Ends soon: the texts that are being made end, and who is slow to ask or to read is waited for no longer."""

    def __init__(self, config: uvicorn.Config, texts: Texts, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._texts, self._ready = texts, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._texts.stop()
        ending = asyncio.create_task(super().shutdown(sockets))
        await asyncio.wait({ending}, timeout=_PATIENCE)
        for connection in self.server_state.connections:
            connection.transport.abort()
        await ending
        await self._texts.close()
