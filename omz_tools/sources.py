"""Where a file may come from, and how to open each."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import BinaryIO
from urllib.parse import quote

from omz_tools.descriptor import GoogleDrive, Http, HuggingFace, Local, Source
from omz_tools.errors import SourceError, UnreachableError, UnsupportedError
from omz_tools.files import CHUNK
from omz_tools.transport import Transport, origin


def location(source: Source, folder: Path) -> str:
    """The URL or path of a source; `folder` is the descriptor's, where local paths begin."""
    match source:
        case HuggingFace(repo, revision, file):
            template: str = _hub().HUGGINGFACE_CO_URL_TEMPLATE
            return template.format(repo_id=quote(repo), revision=quote(revision, safe=""), filename=quote(file))
        case Http(url):
            return url
        case Local(path):
            return str(folder / path)
        case GoogleDrive(id):
            return f"Google Drive, id {id}"


@contextmanager
def open_source(source: Source, folder: Path, transport: Transport) -> Iterator[tuple[int | None, Iterator[bytes]]]:
    """The size a source declares (None if it declares none) and its bytes in chunks.

    Raises:
        SourceError: see `Transport.get`; for a local file, it cannot be read.
        UnreachableError: also when the source is on the Hub and HF_HUB_OFFLINE is set.
        UnsupportedError: a kind of source that is known and not supported.
    """
    place = location(source, folder)
    match source:
        case GoogleDrive():
            raise UnsupportedError(
                "files on Google Drive are not supported", hint="Name another source in a descriptor of your own."
            )
        case Local():
            with _readable(place):
                file = open(place, "rb")  # noqa: SIM115 -- closed below; the consumer's errors are not this file's
            with file:
                yield Path(place).stat().st_size, _chunks(file, place)
        case Http() | HuggingFace():
            with transport.get(place, token=_token(source)) as body:
                yield body.length, iter(body)


def _chunks(file: BinaryIO, place: str) -> Iterator[bytes]:
    while True:
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


def _token(source: Source) -> str | None:
    if not isinstance(source, HuggingFace):
        return None
    if _hub().HF_HUB_OFFLINE:
        raise UnreachableError(
            f"{location(source, Path())} is not fetched: HF_HUB_OFFLINE is set",
            hint="Unset it, or give the folder of an earlier download with --cache_dir.",
        )
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
                f"HF_ENDPOINT is {endpoint!r}, which is not a URL", hint="Set it to http(s)://HOST[:PORT]."
            ) from None
    from huggingface_hub import constants

    return constants
