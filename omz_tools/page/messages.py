"""What the server tells the page: lines of JSON while a text comes, and what it refuses."""

import msgspec
from starlette.responses import Response


class _Line(msgspec.Struct, tag_field="kind", frozen=True):
    def line(self) -> bytes:
        return msgspec.json.encode(self) + b"\n"


class Waiting(_Line, tag="waiting", frozen=True):
    """Another text is made first."""


class Begun(_Line, tag="begun", frozen=True):
    """The text is being made.

    Attributes:
        seed: of the numbers by which tokens are drawn, in digits: JavaScript has no whole numbers of 64 bits; None if
            nothing is drawn.
    """

    seed: str | None


class Token(_Line, tag="token", frozen=True):
    """A token has come.

    Attributes:
        id: of the token.
        name: its text when it stands alone.
        text: what of the whole text may be shown now; empty while a character is not whole.
        probability: how likely it was, of those that could come.
        alternatives: names and probabilities of the likeliest ones, itself often among them, and its place there.
        place: of the token in `alternatives`; None if it is not there.
    """

    id: int
    name: str
    text: str
    probability: float
    alternatives: list[tuple[str, float]]
    place: int | None


class Ended(_Line, tag="ended", frozen=True):
    """The text is there.

    Attributes:
        why: see `continuing.Ending`.
        tokens: how many have come.
        seconds: how long they took, waiting not counted.
        first: seconds until the first had come.
    """

    why: str
    tokens: int
    seconds: float
    first: float


class Failed(_Line, tag="failed", frozen=True):
    """It did not work; `error` says what happened and what to do."""

    error: str


def refusal(text: str, status: int) -> Response:
    """An answer that says why there is no other, as a line does."""
    return Response(Failed(text).line(), status, media_type="application/json")
