"""A stand-in for the Hugging Face Hub: an HTTP server that the real huggingface_hub client downloads from.

Answers as the Hub was measured to: small files by a 307 to another path, large files by a 302 to another host (a second
port here), ETag and X-Repo-Commit on each resolve answer, X-Error-Code on refusals, byte ranges with If-Range.
"""

import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit

LARGE = 10_000_000


@dataclass(frozen=True)
class HubFile:
    path: Path

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    @cached_property
    def sha256(self) -> str:
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @cached_property
    def git_oid(self) -> str:
        data = self.path.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    @property
    def is_large(self) -> bool:
        return self.size >= LARGE


@dataclass
class Hub:
    """One repository at one revision, served from a folder.

    Attributes:
        folder: the files.
        repo: its name.
        revision: the commit.
        branches: names that the commit has, too.
        token: if set, resolve requests without it are answered with 401.
        requests: "GET /path" of every request, in order, on both ports.
        authorizations: the Authorization header of every request, in the same order.
        rate: bytes a second that each connection gets; None for as fast as it goes.
        ranges: (name, first byte) of every answer with a body, in order.
        served: bytes of bodies handed to the network so far.
        interfere: called with the handler before each answer; returns True if it answered itself.
    """

    folder: Path
    repo: str = "openai-community/gpt2"
    revision: str = "607a30d783dfa663caf39e06633721c8d4cfcd7e"
    branches: tuple[str, ...] = ("main",)
    token: str | None = None
    requests: list[str] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)
    rate: float | None = None
    ranges: list[tuple[str, int]] = field(default_factory=list)
    served: int = 0
    counting: threading.Lock = field(default_factory=threading.Lock)
    interfere: Callable[["Handler"], bool] = lambda handler: False

    def __enter__(self) -> Self:
        below = {p.relative_to(self.folder).as_posix(): p for p in sorted(self.folder.rglob("*"))}
        self.files = {name: HubFile(p) for name, p in below.items() if p.is_file()}
        self.folders = [name for name, p in below.items() if p.is_dir()]
        self._servers = [_Server(self), _Server(self)]
        self.endpoint, self.cdn = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def gets(self, name: str) -> int:
        """How often the bytes of a file were asked for."""
        return sum(r.startswith("GET ") and r.endswith(f"/{name}") and "/resolve/" in r for r in self.requests)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: Hub) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.hub = hub

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up in the middle are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub = self.server.hub
        hub.requests.append(f"{self.command} {self.path}")
        hub.authorizations.append(self.headers.get("Authorization"))
        if hub.interfere(self):
            return
        path = unquote(urlsplit(self.path).path)
        if match := re.fullmatch(r"/api/models/(.+?)/revision/(.+)", path):
            self._info(*match.groups())
        elif match := re.fullmatch(r"/api/models/(.+?)/tree/([^/]+)", path):
            self._tree(*match.groups())
        elif match := re.fullmatch(r"/(?:api/resolve-cache/)?(.+?)/resolve/([^/]+)/(.+)", path):
            self._resolve(*match.groups(), redirected=path.startswith("/api/"))
        elif match := re.fullmatch(r"/cdn/(.+)", path):
            self.send_file(hub.files[match[1]], etag="the-cdn-has-its-own")
        else:
            self.refuse(404, "EntryNotFound")

    def _known(self, repo: str, revision: str) -> bool:
        hub = self.server.hub
        if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
            self.refuse(401, "GatedRepo")
        elif repo != hub.repo:
            self.refuse(404, "RepoNotFound")
        elif revision not in (hub.revision, *hub.branches):
            self.refuse(404, "RevisionNotFound")
        else:
            return True
        return False

    def _info(self, repo: str, revision: str) -> None:
        hub = self.server.hub
        if self._known(repo, revision):
            self._json({"id": repo, "sha": hub.revision, "siblings": [{"rfilename": name} for name in hub.files]})

    def _tree(self, repo: str, revision: str) -> None:
        if self._known(repo, revision):
            folders = [{"type": "directory", "path": name, "oid": "0" * 40} for name in self.server.hub.folders]
            self._json([*folders, *(_tree_entry(name, file) for name, file in self.server.hub.files.items())])

    def _resolve(self, repo: str, revision: str, name: str, *, redirected: bool) -> None:
        hub = self.server.hub
        if not self._known(repo, revision):
            return
        file = hub.files.get(name)
        if file is None:
            self.refuse(404, "EntryNotFound")
        elif redirected:
            self.send_file(file, etag=file.git_oid)
        elif file.is_large:
            self.redirect(302, f"{hub.cdn}/cdn/{name}", file.sha256, file.size)
        else:
            self.redirect(307, f"/api/resolve-cache{self.path}", file.git_oid, None)

    def redirect(self, status: int, target: str, etag: str, linked_size: int | None) -> None:
        self.send_response(status)
        self.send_header("Location", target)
        self.send_header("X-Repo-Commit", self.server.hub.revision)
        if linked_size is None:
            self.send_header("ETag", f'"{etag}"')
        else:
            self.send_header("X-Linked-Etag", f'"{etag}"')
            self.send_header("X-Linked-Size", str(linked_size))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def refuse(self, status: int, code: str = "", **headers: str) -> None:
        self.send_response(status)
        self.send_header("X-Repo-Commit", self.server.hub.revision)
        if code:
            self.send_header("X-Error-Code", code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send_file(self, file: HubFile, *, etag: str) -> None:
        size, first, last = file.size, 0, file.size - 1
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked and self.headers.get("If-Range", f'"{etag}"') != f'"{etag}"':
            asked = None
        if asked:
            first, last = int(asked[1]), min(int(asked[2] or last), last)
            if first >= size:
                self.refuse(416, Content_Range=f"bytes */{size}")
                return
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("X-Repo-Commit", self.server.hub.revision)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        if self.command == "GET":
            self.send_bytes(file.path, first, last + 1 - first)

    def send_bytes(self, path: Path, first: int, count: int) -> None:
        """A part of a file as the body, counted, at the rate of a connection."""
        hub = self.server.hub
        with hub.counting:
            hub.ranges.append((path.name, first))
        self.wfile.flush()
        step = 1 << 20 if hub.rate is None else 1 << 16
        began, done = time.monotonic(), 0
        with path.open("rb") as source:
            while done < count:
                sent = os.sendfile(self.connection.fileno(), source.fileno(), first + done, min(step, count - done))
                done += sent
                with hub.counting:
                    hub.served += sent
                if hub.rate is not None:
                    time.sleep(max(0.0, done / hub.rate - (time.monotonic() - began)))

    def _json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _tree_entry(name: str, file: HubFile) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": name, "size": file.size}
    if file.is_large:
        # The oid of the pointer file is not looked at by anyone.
        return entry | {"oid": "0" * 40, "lfs": {"oid": file.sha256, "size": file.size, "pointerSize": 134}}
    return entry | {"oid": file.git_oid}
