"""Which token comes next, by logits: the most probable one, or one that is drawn.

What is drawn from is made by transformers, in the order in which its `generate` does it: temperature, top k, top p.
It takes seconds to load, with torch, so only those who draw do: the most probable token needs neither.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from omz_tools.errors import ModelError
from omz_tools.system import libraries


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen.

    Attributes:
        temperature: what logits are divided by; 0 for always the most probable token.
        top_k: only so many of the most probable tokens may come; 0 for all.
        top_p: of the most probable tokens, only those that together are as probable as this may come; 1 for all.
        seed: of the numbers by which tokens are drawn: the same one gives the same text again.
        alternatives: how many of the most probable tokens are told with each choice.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    alternatives: int = 0


@dataclass(frozen=True)
class Choice:
    """The token that was chosen.

    Attributes:
        token: its id.
        probability: how likely it was; 0 where no alternatives are asked for.
        alternatives: the most probable tokens it was chosen from, each with its probability, the likeliest first; those
            that could not come are left out. Without a temperature, the probabilities are the model's own.
    """

    token: int
    probability: float = 0.0
    alternatives: tuple[tuple[int, float], ...] = ()


Chooser = Callable[[Any], Choice]


def chooser(sampling: Sampling) -> Chooser:
    """A function from logits f32 [vocabulary] to a choice; it draws on where its last call ended.

    It raises ModelError for logits that are infinite or no numbers.

    Raises:
        ConversionError: a library that draws is not installed.
    """
    np = libraries.load("numpy")
    choose = _drawing(sampling) if sampling.temperature else _greedy(sampling)

    def checked(logits: Any) -> Choice:
        if not np.isfinite(logits).all():
            raise ModelError(
                "the model gives logits that are infinite or no numbers",
                hint="Its weights hold such values, or are too large for this precision.",
            )
        return choose(logits)

    return checked


def _greedy(sampling: Sampling) -> Chooser:
    np = libraries.load("numpy")

    def choose(logits: Any) -> Choice:
        token = int(logits.argmax())
        if not sampling.alternatives:
            return Choice(token)
        odds = np.exp(logits - logits[token])
        return _told(token, odds / odds.sum(), sampling.alternatives)

    return choose


def _drawing(sampling: Sampling) -> Chooser:
    torch, process = libraries.load("torch"), libraries.load("transformers.generation.logits_process")
    warpers = process.LogitsProcessorList([process.TemperatureLogitsWarper(float(sampling.temperature))])
    if sampling.top_k:
        warpers.append(process.TopKLogitsWarper(sampling.top_k))
    generator = torch.Generator().manual_seed(sampling.seed)

    def choose(logits: Any) -> Choice:
        scores = warpers(None, torch.from_numpy(logits)[None])
        if sampling.top_p < 1:
            scores = _nucleus(scores, sampling.top_p, process.TopPLogitsWarper)
        odds = scores.softmax(dim=-1)
        token = int(torch.multinomial(odds, 1, generator=generator))
        return _told(token, odds[0].numpy(), sampling.alternatives) if sampling.alternatives else Choice(token)

    return choose


def _nucleus(scores: Any, top_p: float, warper: Callable[[float], Any]) -> Any:
    """Top p of scores f32 [1, vocabulary], by transformers' `warper`; those of the others become minus infinity.

    All tokens that have less than their share of what top p leaves out are left out, and need not be sorted, which
    takes most of the time. Top p of all are top p / m of the rest, if m is how probable that is.
    """
    odds = scores.softmax(dim=-1)
    near = odds >= (1 - top_p) / odds.shape[-1] / 2  # half of the share: odds are rounded numbers
    if near.sum() > odds.shape[-1] / 2:  # then to take them out and back costs more than it saves
        return warper(top_p)(None, scores)
    [places] = near[0].nonzero(as_tuple=True)
    rest = warper(min(1.0, top_p / float(odds[0, places].sum())))
    return scores.new_full(scores.shape, -float("inf")).index_copy(1, places, rest(None, scores[:, places]))


def _told(token: int, odds: Any, number: int) -> Choice:
    """A choice by the probabilities f32 [vocabulary], with its alternatives, of equally likely ones the first."""
    number = min(number, len(odds))
    found = (-odds).argpartition(number - 1)[:number].tolist()  # a whole vocabulary takes long to sort
    best = [(other, float(odds[other])) for other in sorted(found, key=lambda n: (-odds[n], n)) if odds[other]]
    return Choice(token, float(odds[token]), tuple(best))
