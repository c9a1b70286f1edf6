"""Prompts are continued: tokens are predicted and chosen until something ends the text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from omz_tools.errors import CheckpointError, MissingError, SelectionError
from omz_tools.export.tokenizer import Tokenizer
from omz_tools.generation import predictors, sampling
from omz_tools.generation.places import Place
from omz_tools.generation.predictors import Predictor
from omz_tools.generation.sampling import Choice, Sampling
from omz_tools.generation.streaming import Stream

# It is long enough, the model has no more positions, the model ended it, or a stop string came.
Ending = Literal["length", "context", "end", "stop"]


@dataclass(frozen=True)
class Wish:
    """What is asked for.

    Attributes:
        max_tokens: new tokens of each text.
        sampling: how they are chosen.
        stops: strings that end a text and do not belong to it.
    """

    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stops: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """One token of one text.

    Attributes:
        row: which prompt it continues.
        choice: the token.
        text: what may be shown now.
        ended: what ended the text with this token; None if it goes on.
    """

    row: int
    choice: Choice
    text: str
    ended: Ending | None


@dataclass(frozen=True)
class Model:
    """A model that continues prompts.

    Attributes:
        predictor: computes logits.
        tokenizer: the one it was trained with.
        positions: how many tokens a text may have, the prompt counted.
    """

    predictor: Predictor
    tokenizer: Tokenizer
    positions: int

    def encode(self, prompt: str) -> list[int]:
        """The token ids of a prompt; an empty one stands for the beginning of a document.

        Raises:
            SelectionError: it is no text, or leaves no position for a token.
            CheckpointError: the tokenizer is not that of the model.
        """
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise SelectionError(f"the prompt {prompt!a} is not UTF-8", hint="Write it in UTF-8.") from None
        end = self.tokenizer.end
        ids = self.tokenizer.encode(prompt) or ([] if end is None else [end])
        if not ids:
            raise SelectionError(
                "the prompt is empty, and the tokenizer has no token that a text may begin with", hint="Write a prompt."
            )
        if len(ids) >= self.positions:
            raise SelectionError(
                f"the prompt has {len(ids):,} tokens, and the text may have {self.positions:,}, the prompt counted",
                hint="Shorten the prompt.",
            )
        if max(ids) >= self.predictor.vocabulary:
            raise CheckpointError(
                f"the tokenizer gives token {max(ids)}, and the model knows those below {self.predictor.vocabulary:,}",
                hint="It must be the tokenizer that the model was published with.",
            )
        return ids


def load(place: Place, device: str = "CPU", longest: int | None = None) -> Model:
    """Load a model.

    Args:
        place: its files.
        device: of OpenVINO.
        longest: how many tokens a text may have at most, if that is fewer than the model has positions; needed where
            nothing says how many these are.

    Raises:
        MissingError: nobody says how many positions the model has.
        CheckpointError, ConversionError, ModelError, SelectionError: see `Tokenizer` and `predictors.load`.
    """
    tokenizer = Tokenizer(place.tokenizer)
    known = [number for number in (place.positions, longest) if number is not None]
    if not known:
        raise MissingError(
            f"no config.json beside {place.tokenizer[0]} says how many positions the model has",
            hint="Say it: --max_seq_len N, 1024 for gpt-2.",
        )
    positions = min(known)
    return Model(predictors.load(place.xml, positions, device), tokenizer, positions)


class _Row:
    """One text that grows."""

    def __init__(self, number: int, ids: list[int], model: Model, wish: Wish) -> None:
        self.ids, self.ended = ids, False
        self._number, self._wish = number, wish
        self._most = min(model.positions, len(ids) + wish.max_tokens)
        self._why: Ending = "context" if self._most < len(ids) + wish.max_tokens else "length"
        self._end = model.tokenizer.end
        # Each text begins with the seed itself, so that it does not depend on what others are made with it.
        self._choose = sampling.chooser(wish.sampling)
        self._stream = Stream(model.tokenizer.decode, wish.stops)

    def step(self, logits: Any) -> Step:
        choice = self._choose(logits)
        if choice.token == self._end:
            return self._last(choice, "", "end")
        self.ids.append(choice.token)
        text = self._stream.add(choice.token)
        if self._stream.stopped:
            return self._last(choice, text, "stop")
        if len(self.ids) == self._most:
            return self._last(choice, text, self._why)
        return Step(self._number, choice, text, None)

    def _last(self, choice: Choice, text: str, why: Ending) -> Step:
        self.ended = True
        rest = self._stream.end()
        return Step(self._number, choice, text + rest, why if not self._stream.stopped else "stop")


def continued(model: Model, prompts: Sequence[list[int]], wish: Wish) -> Iterator[Step]:
    """Continue prompts together, each as it would be alone; the steps of each come in order until it has ended.

    Args:
        model: the model.
        prompts: token ids, see `Model.encode`.
        wish: what is asked for.

    Raises:
        ModelError: the model cannot be run, or gives what is no number.
        ConversionError: a library is not installed.
    """
    rows = [_Row(number, list(ids), model, wish) for number, ids in enumerate(prompts)]
    while going := [row for row in rows if not row.ended]:
        logits = model.predictor.logits([row.ids for row in going])
        for row, scores in zip(going, logits, strict=True):
            yield row.step(scores)
