"""Text that comes token by token: no character is shown before it is whole, and nothing of what ends it."""

from collections.abc import Callable, Sequence

# What bytes become that are no whole character of UTF-8.
_BROKEN = "\ufffd"


class Stream:
    """The text of tokens, as far as it may be shown.

    Attributes:
        stopped: whether one of the stop strings has come; neither it nor what comes after is shown.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = ()) -> None:
        """`decode` gives the text of token ids, that of each token beginning where the other ends."""
        self.stopped = False
        self._decode, self._stops = decode, stops
        self._tokens: list[int] = []  # since the last one that ended with a whole character
        self._taken = 0  # characters of these that are whole
        self._held = ""  # what a stop string may begin with

    def add(self, token: int) -> str:
        """What may be shown now that a token has come; all parts together, and `end`, are the text."""
        self._tokens.append(token)
        text = self._decode(self._tokens)
        # Bytes that may still become a character are one broken one at the end; what is before will not change.
        whole = text[:-1] if text.endswith(_BROKEN) else text
        new, self._taken = whole[self._taken :], len(whole)
        if whole == text:
            self._tokens, self._taken = [], 0
        return self._let(self._held + new)

    def end(self) -> str:
        """What is left when no token comes any more."""
        if self.stopped:
            return ""
        rest = self._decode(self._tokens)[self._taken :] if self._tokens else ""
        shown = self._let(self._held + rest)
        return shown if self.stopped else shown + self._held

    def _let(self, text: str) -> str:
        found = [place for place in (text.find(stop) for stop in self._stops) if place >= 0]
        if found:
            self.stopped = True
            return text[: min(found)]
        kept = max((_begun(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]


def _begun(text: str, stop: str) -> int:
    """How many characters at the end of a text are the beginning of a stop string."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
