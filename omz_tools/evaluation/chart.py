"""A picture of what was measured: for each precision, the size of the model and its perplexity."""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from omz_tools.evaluation.accuracy import Evaluation, Figure
from omz_tools.system import libraries
from omz_tools.system.files import disk_errors, replacing

FORMATS = (".svg", ".png")

# Of the pictures of the benchmarks, too. Contrast of 4.3 or more with white and with the near-black of dark pages.
TEXT, OURS, OTHER = "#787878", "#2f81d8", "#b7762a"
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "omz_tools",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": TEXT,
    "axes.labelcolor": TEXT,
    "axes.titlecolor": TEXT,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": TEXT,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
}
# Points that are nearer to each other than this part of the picture, either way, have their labels in one column.
_NEAR = 0.2
# Without bounds to look at: the least that the axis of perplexity spans, as a part of the largest.
_LEAST_SPAN = 0.02


def library() -> ModuleType:
    """What draws. Raises ConversionError if it is not installed."""
    return libraries.load("matplotlib", extra="bench")


def draw(evaluations: Sequence[Evaluation], path: Path) -> None:
    """Write the picture, one part for each model, side by side; the suffix of `path` says in which format.

    The same figures give the same bytes. Raises DiskError if it cannot be written; what was there is then as it was.
    """
    matplotlib = library()
    figure = libraries.load("matplotlib.figure", extra="bench")
    with matplotlib.rc_context(STYLE):
        drawing = figure.Figure(figsize=(6.4 * len(evaluations), 3.8), layout="constrained")
        parts = drawing.subplots(1, len(evaluations), squeeze=False)[0]
        for axes, evaluation in zip(parts, evaluations, strict=True):
            _part(axes, evaluation)
        kind = path.suffix.removeprefix(".").lower()
        metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
        with replacing(path) as temporary, disk_errors("Writing", path):
            drawing.savefig(temporary, format=kind, metadata=metadata, transparent=kind == "svg", dpi=150)


def _part(axes: Any, evaluation: Evaluation) -> None:
    figures = sorted(evaluation.figures, key=lambda figure: (figure.size, figure.what))
    width, (low, high) = 1.2 * figures[-1].size / 1e6, _span(evaluation)
    axes.set_xlim(0, width)
    axes.set_ylim(low, high)
    if reference := evaluation.reference:
        axes.axhline(reference.value, color=OTHER, linestyle="--", linewidth=1)
        margin = reference.tolerance or 0
        axes.axhspan(reference.value - margin, reference.value + margin, color=OTHER, alpha=0.15, linewidth=0)
        words = f"published: {reference.value:.2f}" + (f" ± {margin:g}" if margin else "")
        axes.annotate(words, (0, reference.value), (4, -13), textcoords="offset points", color=OTHER)
    axes.plot([figure.size / 1e6 for figure in figures], [figure.perplexity for figure in figures], "o", color=OURS)
    for column in _columns(figures, width, high - low):
        middle = (column[0].size + column[-1].size) / 2e6
        top = max(figure.perplexity for figure in column)
        words = "\n".join(f"{some.what}: {some.perplexity:.2f}" + " fail" * (some.passed is False) for some in column)
        axes.annotate(words, (middle, top), (0, 7), textcoords="offset points", ha="center")
    # A text in an archive is told by its own name.
    name = Path(evaluation.text.split(" in ")[0]).name
    axes.set_title(
        f"{evaluation.model} on {name}, {evaluation.windows:,} windows of {evaluation.window:,} tokens", loc="left"
    )
    axes.set_xlabel("size of the model, MB")
    axes.set_ylabel("perplexity (less is better)")
    axes.ticklabel_format(useOffset=False)
    axes.grid(color=TEXT, alpha=0.25, linewidth=0.6)


def _span(evaluation: Evaluation) -> tuple[float, float]:
    """The part of the axis of perplexity that shows all there is, no noise, and has room for labels on top."""
    values = [figure.perplexity for figure in evaluation.figures]
    least = _LEAST_SPAN * max(values)
    if reference := evaluation.reference:
        least = reference.tolerance or least
        values += [reference.value - least, reference.value + least]
    low, high = min(values), max(values)
    span = max(high - low, least)
    return low - 0.3 * span, high + 0.6 * span


def _columns(figures: Sequence[Figure], width: float, height: float) -> list[list[Figure]]:
    """Figures in the order of their sizes; those that would be written over each other are together."""
    columns: list[list[Figure]] = []
    for figure in figures:
        if columns:
            last = columns[-1][-1]
            near = abs(figure.size - last.size) / 1e6 < _NEAR * width
            if near and abs(figure.perplexity - last.perplexity) < _NEAR * height:
                columns[-1].append(figure)
                continue
        columns.append([figure])
    return columns
