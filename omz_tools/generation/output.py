"""Continuations of prompts, on standard output."""

import re
import sys
import time
from collections import Counter

from omz_tools.errors import OmzError
from omz_tools.generation import continuing
from omz_tools.generation.continuing import Ending, Model, Step, Wish
from omz_tools.progress.reporting import Reporter, writing

# What a terminal would act upon; a model may give it.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def write(model: Model, prompts: list[tuple[str, list[int]]], wish: Wish, reporter: Reporter, *, first: bool) -> None:
    """Write the continuations of prompts, each given with its token ids, computed together; and what it took."""
    texts = _Texts([prompt for prompt, _ in prompts], first=first)
    began, arrived = time.monotonic(), None
    tokens = 0
    try:
        for step in continuing.continued(model, [ids for _, ids in prompts], wish):
            texts.take(step)
            tokens += 1
            arrived = arrived or time.monotonic()
    except (KeyboardInterrupt, OmzError):
        texts.cut()
        raise
    seconds, until = time.monotonic() - began, (arrived or began) - began
    count = f"{tokens:,} token" + ("" if tokens == 1 else "s")
    lines = [f"{count}, {tokens / max(seconds, 1e-9):,.1f} tokens/s, the first after {until:.3f} s"]
    full = Counter(texts.ends.values())["context"]
    if full:
        which = "the text ends" if len(prompts) == 1 else f"{full} of {len(prompts)} texts end"
        lines.append(f"The context of {model.positions:,} tokens is full: {which} there.")
    reporter.note("\n".join(lines))


class _Texts:
    """Texts on standard output: one after the other, whatever comes of the later ones meanwhile is kept."""

    def __init__(self, prompts: list[str], *, first: bool) -> None:
        self.ends: dict[int, Ending] = {}
        self._kept = list(prompts)
        self._now = 0
        self._put("" if first else "\n")
        self._show()

    def take(self, step: Step) -> None:
        self._kept[step.row] += step.text
        if step.ended:
            self.ends[step.row] = step.ended
        self._show()

    def cut(self) -> None:
        """Nothing more comes, and what is said of it begins a line."""
        self._put("\n")

    def _show(self) -> None:
        """Write what there is of the text whose turn it is, and of the next ones when it has ended."""
        while self._now < len(self._kept):
            text, self._kept[self._now] = self._kept[self._now], ""
            self._put(text)
            if self._now not in self.ends:
                return
            self._now += 1
            self._put("\n" if self._now == len(self._kept) else "\n\n")

    def _put(self, text: str) -> None:
        if sys.stdout.isatty():
            text = _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
        with writing():
            sys.stdout.write(text)
            sys.stdout.flush()
