"""The pictures of report.py: SVG that reads well on light and dark pages, and is the same for the same results."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bandwidth
import matplotlib as mpl
import matplotlib.pyplot as plt
import measuring

from omz_tools.evaluation.chart import OTHER, OURS, STYLE, TEXT

mpl.use("svg")
mpl.rcParams |= STYLE | {"legend.frameon": False, "savefig.transparent": True}


def convert(results: dict[str, Any], path: Path) -> None:
    """Time and own memory of each way of converting, as bars."""
    [table] = results["tables"]
    figures = {name: some for name, some in table["figures"].items() if not name.startswith("(")}
    reference = figures.get(table["reference"], [])
    names = list(figures)
    colours = [OTHER if name == table["reference"] and "Open Model Zoo" in name else OURS for name in names]
    seconds = [statistics.median(figure["seconds"] for figure in some) for some in figures.values()]
    memory = [max(figure["anonymous"] for figure in some) for some in figures.values()]
    times = [f"{s:.1f} s  {relative(some, reference)}" for s, some in zip(seconds, figures.values(), strict=True)]
    drawing, (left, right) = plt.subplots(
        1, 2, sharey=True, figsize=(10, 0.7 + 0.36 * len(names)), width_ratios=(3, 2), layout="constrained"
    )
    bars(left, names, seconds, times, colours)
    left.set_title("gpt-2 to FP16 and FP32: wall time", loc="left")
    bars(right, names, memory, [f"{megabytes:,.0f} MB" for megabytes in memory], colours)
    right.set_title("memory of its own, at its peak", loc="left")
    save(drawing, path)


def bars(
    axes: Any, names: Sequence[str], values: Sequence[float], words: Sequence[str], colours: list[str], line: float = 0
) -> None:
    """Lying bars, each with its words at its end or behind the line, whichever is further right."""
    axes.barh(names, values, color=colours, height=0.7)
    for row, (value, text) in enumerate(zip(values, words, strict=True)):
        axes.annotate(text, (max(value, line), row), (4, 0), textcoords="offset points", va="center")
    axes.set_xlim(0, max(values) * 1.4)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    if not axes.yaxis_inverted():
        axes.invert_yaxis()


def relative(some: Sequence[dict[str, float]], reference: Sequence[dict[str, float]]) -> str:
    """The median of the ratios of wall time within each round."""
    ratio = measuring.ratio([figure["seconds"] for figure in some], [figure["seconds"] for figure in reference])
    return f"x{ratio:.2f}" if ratio >= 0.1 else f"x{ratio:.3f}"


def latency(results: dict[str, Any], path: Path) -> None:
    """The time of a request at each shape, relative to Open Model Zoo's IR; nothing without that."""
    rows = [row for row in results["rows"] if "ratio" in row]
    if not rows:
        return
    names = [f"{row['precision']}  ({row['batch']}, {row['length']})" for row in rows]
    words = [
        f"x{row['ratio']:.2f}  ({' / '.join(f'{statistics.median(some) * 1e3:.1f}' for some in pair(row))} ms)"
        for row in rows
    ]
    drawing, axes = plt.subplots(figsize=(10, 0.7 + 0.3 * len(rows)), layout="constrained")
    bars(axes, names, [row["ratio"] for row in rows], words, [OURS] * len(rows), line=1)
    axes.axvline(1, color=OTHER, linestyle="--", linewidth=1)
    axes.set_title("time of one request, relative to the IR of Open Model Zoo's converter", loc="left")
    save(drawing, path)


def pair(row: dict[str, Any]) -> tuple[list[float], list[float]]:
    return row["seconds"]["ours"], row["seconds"]["incumbent"]


def generation(results: dict[str, Any], path: Path) -> None:
    """Tokens/s of each way with the shortest prompt, a part for each precision, and what the memory would allow."""
    shortest = min(table["prompt"] for table in results["tables"])
    tables = [table for table in results["tables"] if table["prompt"] == shortest]
    height = 0.7 + sum(0.5 + 0.3 * len(table["rows"]) for table in tables)
    drawing, parts = plt.subplots(len(tables), figsize=(10, height), layout="constrained", squeeze=False)
    for table, axes in zip(tables, parts[:, 0], strict=True):
        rates = [statistics.median(one["rate"] for one in row["texts"]) for row in table["rows"].values()]
        limit = bandwidth.limit(table, results["memory"])
        colours = [OURS if name.startswith("omz") else OTHER for name in table["rows"]]
        bars(
            axes, list(table["rows"]), rates, [f"{rate:.1f}" if rate >= 1 else f"{rate:.2f}" for rate in rates], colours
        )
        axes.axvline(limit, color=OTHER, linestyle="--", linewidth=1)
        axes.set_xlim(0, max(*rates, limit) * 1.15)
        axes.set_title(f"{table['precision']}: tokens/s, and the limit of the memory", loc="left")
    save(drawing, path)


def scaling(results: dict[str, Any], path: Path) -> None:
    """Time and memory against the number of parameters."""
    rows = results["rows"]
    parameters = [row["parameters"] / 1e6 for row in rows]
    drawing, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    left.plot(parameters, [row["figure"]["seconds"] for row in rows], "o-", color=OURS)
    left.set_title("wall time, s", loc="left")
    series = {
        "resident, mapped weights included": ([row["figure"]["resident"] / 1e3 for row in rows], "s--", OTHER),
        "of its own": ([row["figure"]["anonymous"] / 1e3 for row in rows], "o-", OURS),
        "(size of the checkpoint)": ([row["checkpoint"] / 1e9 for row in rows], ":", TEXT),
    }
    for name, (values, style, colour) in series.items():
        right.plot(parameters, values, style, color=colour, label=name)
    right.set_title("memory at its peak, GB", loc="left")
    right.legend(loc="upper left", labelcolor=TEXT)
    for axes in (left, right):
        axes.set_xlabel("million parameters")
        axes.set_xlim(0)
        axes.set_ylim(0)
        axes.grid(color=TEXT, alpha=0.25, linewidth=0.6)
        for row, at in zip(rows, parameters, strict=True):
            axes.annotate(row["name"].removeprefix("gpt2-"), (at, 0), (0, 4), textcoords="offset points",
                          ha="center", fontsize=8)  # fmt: skip
    save(drawing, path)


def save(drawing: Any, path: Path) -> None:
    drawing.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(drawing)
