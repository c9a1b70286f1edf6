"""The texts of the page: a thread makes one after the other, and the server answers meanwhile."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor

from omz_tools.errors import OmzError
from omz_tools.generation import continuing
from omz_tools.generation.continuing import Model, Step, Wish
from omz_tools.page.messages import Begun, Ended, Failed, Token, Waiting

# Texts that may wait for others.
_MOST = 8

Line = Waiting | Begun | Token | Ended | Failed


class Text:
    """A text on its way from the thread that makes it to the one who reads it."""

    def __init__(self, lines: Iterator[Line], thread: Executor, *, waits: bool) -> None:
        """Let `thread` work through `lines`; called in the event loop that they are read in."""
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Queue[Line | None] = asyncio.Queue()
        self._stopped = threading.Event()
        if waits:
            self._ready.put_nowait(Waiting())
        self._job = thread.submit(self._make, lines)

    @property
    def done(self) -> bool:
        return self._job.done()

    def stop(self) -> None:
        """Let it end with the token that is being computed."""
        self._stopped.set()

    async def lines(self) -> AsyncIterator[bytes]:
        """What there is to tell, at each time all that has come."""
        ended = False
        while not ended:
            lines = [await self._ready.get()]
            while not self._ready.empty():
                lines.append(self._ready.get_nowait())
            ended = lines[-1] is None
            yield b"".join(line.line() for line in lines if line)
        await asyncio.wrap_future(self._job)  # raises what nobody has expected

    def _make(self, lines: Iterator[Line]) -> None:
        try:
            while not self._stopped.is_set() and (line := next(lines, None)):
                self._tell(line)
        except OmzError as error:
            self._tell(Failed(str(error)))
        finally:
            self._tell(None)

    def _tell(self, line: Line | None) -> None:
        self._loop.call_soon_threadsafe(self._ready.put_nowait, line)


class Texts:
    """What a model makes of prompts, one at a time."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._names: dict[int, str] = {}
        self._thread = ThreadPoolExecutor(1)
        self._texts: list[Text] = []

    def begin(self, ids: list[int], wish: Wish) -> Text | None:
        """Continue a prompt when those that came before have ended; None if too many wait."""
        self._texts = [text for text in self._texts if not text.done]
        if len(self._texts) > _MOST:
            return None
        text = Text(self._lines(ids, wish), self._thread, waits=bool(self._texts))
        self._texts.append(text)
        return text

    def stop(self) -> None:
        """Let all texts end."""
        for text in self._texts:
            text.stop()

    async def close(self) -> None:
        """Return when nothing is made any more."""
        await asyncio.to_thread(self._thread.shutdown)

    def _lines(self, ids: list[int], wish: Wish) -> Iterator[Line]:
        yield Begun(str(wish.sampling.seed) if wish.sampling.temperature else None)
        began, first = time.monotonic(), 0.0
        for count, step in enumerate(continuing.continued(self._model, [ids], wish), 1):
            yield self._token(step)
            seconds = time.monotonic() - began
            first = first or seconds
            if step.ended:
                yield Ended(step.ended, count, seconds, first)

    def _token(self, step: Step) -> Token:
        choice = step.choice
        places = [token for token, _ in choice.alternatives]
        return Token(
            choice.token,
            self._name(choice.token),
            step.text,
            round(choice.probability, 6),
            [(self._name(token), round(share, 6)) for token, share in choice.alternatives],
            places.index(choice.token) if choice.token in places else None,
        )

    def _name(self, token: int) -> str:
        if token not in self._names:
            self._names[token] = self._model.tokenizer.decode([token])
        return self._names[token]
