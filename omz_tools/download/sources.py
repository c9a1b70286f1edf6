"""Where a file may come from, and how to open each."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import BinaryIO
from urllib.parse import quote

from omz_tools.descriptors.descriptor import Digest, GoogleDrive, Http, HuggingFace, Local, Source
from omz_tools.errors import SourceError, UnsupportedError
from omz_tools.network.connections import origin
from omz_tools.network.transport import Body, Transport
from omz_tools.progress.showing import shown
from omz_tools.system.files import CHUNK


def location(source: Source, folder: Path) -> str:
    """The URL or path of a source, as it may be shown; `folder` is the descriptor's, where local paths begin."""
    place = _place(source, folder)
    return shown(place) if is_remote(source) else place


def key(source: Source, folder: Path) -> str:
    """A name of a source that may be kept on disk: its location, and what tells URLs apart that are shown alike."""
    shown_as, place = location(source, folder), _place(source, folder)
    # Too short to test guesses of a password with; of two that are taken for one, neither gives wrong bytes.
    return shown_as if shown_as == place else f"{shown_as} {hashlib.sha256(place.encode()).hexdigest()[:4]}"


def _place(source: Source, folder: Path) -> str:
    match source:
        case HuggingFace(repo, revision, file, kind):
            template: str = _hub().HUGGINGFACE_CO_URL_TEMPLATE
            repo_id = quote(f"datasets/{repo}" if kind == "dataset" else repo)
            return template.format(repo_id=repo_id, revision=quote(revision, safe=""), filename=quote(file))
        case Http(url):
            return url
        case Local(path):
            return str(folder / path)
        case GoogleDrive(id):
            return f"Google Drive, id {id}"


@contextmanager
def open_source(
    source: Source,
    folder: Path,
    transport: Transport,
    *,
    first: int = 0,
    end: int | None = None,
    etag: str | None = None,
) -> Iterator[Body]:
    """The bytes of a source; `first`, `end` and `etag` as in `Transport.get`. A local file is always read as a whole.

    Raises:
        SourceError: see `Transport.get`; for a local file, it cannot be read.
        UnsupportedError: a kind of source that is known and not supported.
    """
    place = _place(source, folder)
    match source:
        case GoogleDrive():
            raise UnsupportedError(
                "files on Google Drive are not supported", hint="Name another source in a descriptor of your own."
            )
        case Local():
            with _readable(place):
                file = open(place, "rb")  # noqa: SIM115 -- closed below; the consumer's errors are not this file's
            with file:
                size = Path(place).stat().st_size
                yield Body(place, 0, size, size, False, None, True, _chunks(file, place, transport), lambda: None)
        case Http() | HuggingFace():
            with transport.get(place, token=_token(source), first=first, end=end, etag=etag) as body:
                yield body


def _chunks(file: BinaryIO, place: str, transport: Transport) -> Iterator[bytes]:
    while True:
        transport.pause(0)
        with _readable(place):
            chunk = file.read(CHUNK)
        if not chunk:
            return
        yield chunk


@contextmanager
def _readable(place: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: no system can have such a name
        reason = getattr(error, "strerror", None) or error
        raise SourceError(f"{place if place.isprintable() else repr(place)} cannot be read: {reason}") from error


def is_remote(source: Source) -> bool:
    """Whether a source is reached over the network."""
    return isinstance(source, Http | HuggingFace)


def offline_by_environment() -> bool:
    """Whether HF_HUB_OFFLINE is set, as the Hub's own tools read it."""
    return bool(_hub().HF_HUB_OFFLINE)


def in_hub_cache(source: Source, digest: Digest) -> list[Path]:
    """The files in the Hub's own cache (HF_HOME, HF_HUB_CACHE) that should be this one; they are not verified."""
    if not isinstance(source, HuggingFace):
        return []
    repository = Path(_hub().HF_HUB_CACHE) / f"{source.repo_type}s--{source.repo.replace('/', '--')}"
    # Large files are stored under their sha256, whichever revision they came with.
    places = [repository / "snapshots" / source.revision / source.file, repository / "blobs" / digest.value]
    # Not Path.is_file, which raises what os.path.isfile takes for no.
    return [place for place in places if os.path.isfile(place)]  # noqa: PTH113


def _token(source: Source) -> str | None:
    if not isinstance(source, HuggingFace):
        return None
    # The import costs a fifth of a second, which runs that fetch nothing need not pay.
    from huggingface_hub import get_token

    return get_token()


def _hub() -> ModuleType:
    """The settings of the Hub's own tools. Raises SourceError if HF_ENDPOINT is no URL, which they would crash on."""
    if endpoint := os.environ.get("HF_ENDPOINT"):
        try:
            origin(endpoint)
        except SourceError:
            raise SourceError(
                f"HF_ENDPOINT is {shown(endpoint)!r}, which is not a URL", hint="Set it to http(s)://HOST[:PORT]."
            ) from None
    from huggingface_hub import constants

    return constants
