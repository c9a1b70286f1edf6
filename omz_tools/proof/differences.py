"""How far the answers of a file are from PyTorch's, and how far they may be."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from omz_tools.cache.record import Difference, Edge, Rounding
from omz_tools.descriptors.descriptor import Bound
from omz_tools.descriptors.kinds import precision_of
from omz_tools.errors import ProofError
from omz_tools.system import libraries

# What holds where a descriptor says nothing. F32 rounds to 6e-8; after the thousands of sums of a transformer two
# correct programs were seen to differ by 5e-7 to 3e-6 of the largest logit. F16 weights are rounded to 4.9e-4; 3e-4
# to 1.3e-3 was seen. In 8 bits a weight is rounded by 1/256 of the largest one of its channel: some thirty times as
# much, and 7e-3 to 4e-2 was seen; the divergence grows with the square of that. The bounds leave room for other
# processors and deeper models, and are below what a wrong weight, a lost layer or F16 in place of F32 does; a wrong
# weight among those in 8 bits is for `rounding` to find. Which token is the most likely is not asked of every model:
# where the weights are random, the first two can be closer than any rounding.
BOUNDS: Mapping[str, Bound] = {
    "FP32": Bound("FP32", difference=2e-5, divergence=1e-5, reason="rounding of f32 in another order of sums"),
    "FP16": Bound("FP16", difference=5e-3, divergence=1e-2, reason="rounding of each weight to f16"),
    "FP16-INT8": Bound("FP16-INT8", difference=0.15, divergence=5e-2, reason="rounding of each weight to 8 bits"),
}

# Positions that are worked on at a time: their logits in f64 take 3 MB for gpt-2, and there are several of them.
_ROWS = 8


@dataclass(frozen=True)
class Figure:
    """What was measured of one file.

    Attributes:
        what: see `kinds`.
        bound: what the differences may be.
        differences: for each shape of the input.
        edges: what it does with inputs that it is not made for; empty in the quick proof.
        rounding: of its weights, where they are in 8 bits.
    """

    what: str
    bound: Bound
    differences: tuple[Difference, ...]
    edges: tuple[Edge, ...] = ()
    rounding: Rounding | None = None

    @property
    def within_bounds(self) -> bool:
        return all(
            difference.largest <= difference.bound and difference.divergence <= self.bound.divergence
            for difference in self.differences
        ) and (self._share("top_token") >= self.bound.top_token and self._share("top_five") >= self.bound.top_five)

    def _share(self, name: str) -> float:
        """A share of positions, over those of all shapes: one alone can have two tokens that are likely alike."""
        counts = [difference.batch * difference.length for difference in self.differences]
        shares = [float(getattr(difference, name)) for difference in self.differences]
        return sum(count * share for count, share in zip(counts, shares, strict=True)) / sum(counts)

    def __str__(self) -> str:
        shapes = ", ".join(map(_shape, self.differences))
        largest, bound = (max(getattr(d, name) for d in self.differences) for name in ("largest", "bound"))
        divergence = max(difference.divergence for difference in self.differences)
        rounding = f"; {self.rounding}" if self.rounding else ""
        return (
            f"{self.what}: largest difference to PyTorch {largest:.1e} at {shapes}; bound {bound:.1e}; "
            f"divergence {divergence:.1e} nats, top token the same at "
            f"{self._share('top_token'):.1%}, top five at {self._share('top_five'):.1%}{rounding}"
        )


def _shape(difference: Difference) -> str:
    runs = f" in {difference.runs} runs" if difference.runs > 1 else ""
    return f"({difference.batch},{difference.length}){runs}"


def measure(what: str, bound: Bound, got: Any, wanted: Any) -> Difference:
    """Compare logits [B, L, vocabulary] with PyTorch's.

    The divergence is D(P||Q) = sum P ln(P/Q), P of PyTorch and Q of the file (Kullback and Leibler, "On Information and
    Sufficiency", 1951), computed in f64.

    Raises:
        ProofError: they are of another shape or type.
    """
    np = libraries.load("numpy")
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        raise ProofError(f"{what} gives {got.dtype} {got.shape}, PyTorch {wanted.dtype} {wanted.shape}")
    batch, length, vocabulary = wanted.shape
    first = min(5, vocabulary)
    largest = highest = total = divergence = tops = fives = 0.0
    for row in range(batch):
        for begin in range(0, length, _ROWS):
            p, q = (some[row, begin : begin + _ROWS].astype(np.float64) for some in (wanted, got))
            apart = np.abs(q - p)
            largest, highest = max(largest, _number(apart.max())), max(highest, float(np.abs(p).max()))
            total += _number(apart.sum())
            likely_p, likely_q = (np.argpartition(some, vocabulary - first)[:, -first:] for some in (p, q))
            fives += float((likely_p[:, :, None] == likely_q[:, None, :]).sum()) / first
            tops += float((p.argmax(-1) == q.argmax(-1)).sum())
            p, q = _log_softmax(p), _log_softmax(q)
            divergence += _number((np.exp(p) * (p - q)).sum())
    count = batch * length
    return Difference(
        batch=batch,
        length=length,
        largest=largest,
        bound=bound.difference * max(1.0, highest),
        mean=total / (count * vocabulary),
        # Sums of rounded numbers can fall below zero by as much.
        divergence=max(0.0, divergence / count),
        top_token=tops / count,
        top_five=fives / count,
    )


def _log_softmax(logits: Any) -> Any:
    np = libraries.load("numpy")
    with np.errstate(invalid="ignore"):  # what is infinite becomes no number, and counts as that
        shifted = logits - logits.max(-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _number(value: Any) -> float:
    """What is no number is as far off as can be."""
    return float(value) if math.isfinite(value) else math.inf


def judge(figures: Iterable[Figure]) -> None:
    """Raise ProofError if a difference is beyond its bound or no number."""
    wrong = [figure for figure in figures if not figure.within_bounds]
    if wrong:
        raise ProofError(
            "the converted model does not answer as PyTorch does:\n" + "\n".join(map(str, wrong)),
            hint=_advice({figure.what for figure in wrong}),
        )


def _advice(wrong: set[str]) -> str:
    if {precision_of(what) for what in wrong} == {"FP16"}:
        return "No output was written. The weights may be beyond what f16 holds: try --precisions FP32."
    return "No output was written. Please report this with the versions of torch, transformers and openvino."
