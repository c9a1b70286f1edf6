"""What the server answers: the files of the page, what it is about, and texts."""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from omz_tools.errors import OmzError, SelectionError
from omz_tools.generation import options
from omz_tools.generation.continuing import Model, Wish
from omz_tools.page.guard import Guard
from omz_tools.page.messages import refusal
from omz_tools.page.texts import Text, Texts

# Bytes of a request; a prompt of as many tokens as gpt-2 has positions takes some thousands.
_MOST_BYTES = 1 << 18
# Of each token.
_ALTERNATIVES = 8

_STATIC = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/tokens.js": ("tokens.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_SAMPLING: dict[str, Callable[[str], Any]] = {
    "temperature": options.temperature,
    "top_k": options.top_k,
    "top_p": options.top_p,
}


class About(msgspec.Struct, frozen=True):
    """What the page shows before anything is asked for.

    Attributes:
        name: of the model.
        file: its IR.
        device: of OpenVINO.
        way: how the next token is computed, see `predictors.Predictor`.
        positions: how many tokens a text may have, the prompt counted.
        prompt: what stands in its field.
        values: what stands in the others, by the name of the option.
        stops: strings that end each text.
    """

    name: str
    file: str
    device: str
    way: str
    positions: int
    prompt: str
    values: dict[str, str]
    stops: tuple[str, ...]


def about(model: Model, wish: Wish, *, name: str, file: Path, device: str, prompt: str, seed: int | None) -> About:
    """What the page shows of a model and a wish; the seed is apart, for nobody may have given one."""
    values = {
        "temperature": f"{wish.sampling.temperature:g}",
        "top_k": str(wish.sampling.top_k),
        "top_p": f"{wish.sampling.top_p:g}",
        "max_tokens": str(wish.max_tokens),
        "seed": "" if seed is None else str(seed),
    }
    return About(name, str(file), device, model.predictor.way, model.positions, prompt, values, wish.stops)


def application(model: Model, texts: Texts, shown: About, wish: Wish, host: str) -> Starlette:
    """The application.

    Args:
        model: the model that `texts` are made with.
        texts: makes them.
        shown: what the page begins with.
        wish: what holds where a request says nothing else.
        host: see `Guard`.
    """

    async def tell(request: Request) -> Response:
        return Response(msgspec.json.encode(shown), media_type="application/json")

    async def begin(request: Request) -> Response:
        said = _said(await _body(request))
        prompt = said.pop("prompt", "")
        wanted = _wish(said, wish)
        text = texts.begin(await run_in_threadpool(model.encode, prompt), wanted)
        if not text:
            raise HTTPException(503, "Too many texts are being made.\nTry again when some have ended.")
        return _Streamed(text)

    return Starlette(
        routes=[
            *(Route(path, _file(name, kind)) for path, (name, kind) in _STATIC.items()),
            Route("/about", tell),
            Route("/text", begin, methods=["POST"]),
        ],
        middleware=[Middleware(Guard, host=host)],
        exception_handlers={
            HTTPException: _refused,
            OmzError: _failed,
            ClientDisconnect: _left,
            Exception: _broken,
        },
    )


class _Streamed(StreamingResponse):
    """The lines of a text, which stops when nobody reads them."""

    def __init__(self, text: Text) -> None:
        super().__init__(text.lines(), media_type="application/x-ndjson")
        self._text = text

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._text.stop()


def _file(name: str, kind: str) -> Callable[[Request], Response]:
    content = resources.files("omz_tools.page").joinpath("static", name).read_bytes()
    return lambda request: Response(content, media_type=kind)


async def _body(request: Request) -> bytes:
    if request.headers.get("Content-Type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "A request must be JSON, and say so in its Content-Type.")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _MOST_BYTES:
            raise HTTPException(413, f"The request has more than {_MOST_BYTES:,} bytes.\nShorten the prompt.")
    return body


def _said(body: bytes) -> dict[str, str]:
    """What a request says, by the name of the option; numbers as they would be written."""
    try:
        said = msgspec.json.decode(body, type=dict[str, str | int | float | None])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SelectionError(f"the request cannot be read: {error}", hint="It must be one JSON object.") from None
    return {name: str(value) for name, value in said.items() if value is not None}


def _wish(said: Mapping[str, str], wish: Wish) -> Wish:
    """What is asked for. Raises SelectionError for what cannot be asked for."""
    known = {**_SAMPLING, "max_tokens": options.max_tokens, "seed": options.seed}
    values: dict[str, Any] = {}
    for name, text in said.items():
        if name not in known:
            raise SelectionError(f"there is no {name!r}", hint=f"There are: prompt, {', '.join(known)}.")
        try:
            values[name] = known[name](text)
        except argparse.ArgumentTypeError as error:
            raise SelectionError(f"{name}: {error}") from None
    most = values.pop("max_tokens", wish.max_tokens)
    values.setdefault("seed", options.new_seed())
    return replace(wish, max_tokens=most, sampling=replace(wish.sampling, **values, alternatives=_ALTERNATIVES))


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return refusal(error.detail, error.status_code)


def _failed(request: Request, error: Exception) -> Response:
    return refusal(str(error), 400 if isinstance(error, SelectionError) else 500)


def _left(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # which nobody reads


def _broken(request: Request, error: Exception) -> Response:
    return refusal("The server failed; what it writes to its terminal says how.", 500)
