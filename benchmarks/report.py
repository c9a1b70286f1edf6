"""Tables and pictures of the results that the benchmarks wrote with --json.

Reads DOCS/figures/*.json, as many of commands, download, convert, latency, generation and scaling as there are, and
writes DOCS/benchmarks.md and a picture of each of the last four, DOCS/*.svg. The same results give the same bytes.
"""

import argparse
import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import bandwidth
import pictures

HEADINGS = {
    "convert": "Conversion",
    "latency": "Latency of the IR",
    "generation": "Text generation",
    "scaling": "Cost against size",
    "download": "Download",
    "commands": "Commands",
}
EXPLAINED = """\
Made by `make bench`. Each command runs as a whole process. Times are wall times, the median and in brackets the
smallest to the largest. All ways of a table are taken in turn, and x is the time relative to the row with x1.00: the
median of the ratios within each round. CPU is processor time, user and system. *Own* is the anonymous memory
(`RssAnon`) of the command and all processes that it started, at the moment when it was largest; *resident* is the
largest resident set (`VmHWM`) of any one process, file-backed pages such as mapped weights included. *Written* is
what the operating system counted as written to files (`write_bytes`). Rows in brackets are there for comparison.

The load is the average number of busy threads in the last five minutes of a benchmark, its own included: where it is
well above the number of processors, others used the machine, and wall times and their ratios say little."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("docs", type=Path, metavar="DOCS", nargs="?", default=Path("docs"))
    docs = parser.parse_args().docs
    parts = ["# Benchmarks", EXPLAINED]
    for name, heading in HEADINGS.items():
        path = docs / "figures" / f"{name}.json"
        if not path.exists():
            continue
        results = json.loads(path.read_text())
        parts += [f"## {heading}", provenance(results)]
        if draw := getattr(pictures, name, None):
            draw(results, docs / f"{name}.svg")
            parts.append(f"![{heading}]({name}.svg)")
        parts += {"latency": latency, "generation": generation, "scaling": scaling}.get(name, compared)(results)
    (docs / "benchmarks.md").write_text("\n\n".join(parts) + "\n")


def provenance(results: dict[str, Any]) -> str:
    """When and where, with which versions."""
    machine = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in results["libraries"].items())
    return (
        f"{results['date']}; {machine['processor']}, {machine['cores']} processors, {machine['memory']:.0f} GB, "
        f"{machine['system']}, load {machine['load']:.1f}; Python {machine['python']}, {versions}."
    )


def compared(results: dict[str, Any]) -> list[str]:
    parts = []
    for table in results["tables"]:
        reference = table["figures"].get(table["reference"])
        rows = []
        for name, figures in table["figures"].items():
            seconds = [figure["seconds"] for figure in figures]
            spread = f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"
            relative = pictures.relative(figures, reference) if reference else ""
            rows.append([name, spread, relative, *costs(figures)])
        titles = ["", "time", "x", "CPU", "own", "resident", "written"]
        parts += [f"{table['title']}:", markdown(titles, rows)]
    return parts


def costs(figures: Sequence[dict[str, float]]) -> list[str]:
    cpu, written = (statistics.median(figure[key] for figure in figures) for key in ("cpu", "written"))
    own, resident = (max(figure[key] for figure in figures) for key in ("anonymous", "resident"))
    return [f"{cpu:.1f} s", f"{own:,.0f} MB", f"{resident:,.0f} MB", f"{written:,.1f} MB"]


def latency(results: dict[str, Any]) -> list[str]:
    rows = []
    for row in results["rows"]:
        medians = {name: f"{statistics.median(some) * 1e3:.1f} ms" for name, some in row["seconds"].items()}
        compared = [f"x{row['ratio']:.3f}", f"{row['difference']:.1e}"] if "ratio" in row else ["", ""]
        shape = f"({row['batch']}, {row['length']})"
        rows.append([row["precision"], shape, medians["ours"], medians.get("incumbent", ""), *compared])
    titles = ["precision", "(B, L)", "omz_tools", "Open Model Zoo's", "x", "largest difference of a logit, relative"]
    return [f"{results['title']}:", markdown(titles, rows)]


def generation(results: dict[str, Any]) -> list[str]:
    memory = results["memory"]
    about = (
        f"{results['title']}. *Next* is the mean time of a token that is not the first, *read* the weights that it "
        f"needs, over that time. The limit is that of reading them as fast as the memory moves bytes at all: "
        f"{bandwidth.words(memory)}."
    )
    parts = [about]
    titles = ["", "tokens/s", "first", "next", "weights", "read", "of the limit", "keys and values"]
    for table in results["tables"]:
        rows = [[name, *generated(row, bandwidth.most(memory))] for name, row in table["rows"].items()]
        rows.append(["(limit of the memory)", f"{bandwidth.limit(table, memory):.1f}", *[""] * 6])
        parts += [f"{table['precision']}, a prompt of {table['prompt']} tokens:", markdown(titles, rows)]
        parts += ["\n".join(f"- {beside(pair)}" for pair in table["ratios"])] if table["ratios"] else []
    return parts


def generated(row: dict[str, Any], most: float) -> list[str]:
    rates = [one["rate"] for one in row["texts"]]
    first, token = (statistics.median(one[what] for one in row["texts"]) for what in ("first", "next"))
    cells = [f"{statistics.median(rates):.2f} ({min(rates):.2f} to {max(rates):.2f})"]
    cells += [f"{first * 1e3:.0f} ms", f"{token * 1e3:.1f} ms"]
    if not row["weights"]:
        return [*cells, "", "", "", ""]
    read = row["weights"] / token / 1e9
    return [*cells, f"{row['weights'] / 1e6:.0f} MB", f"{read:.1f} GB/s", f"{read / most:.0%}", row["cache"]]


def beside(pair: dict[str, Any]) -> str:
    words = f"{pair['of']} beside {pair['to']}: tokens/s x{pair['rate']:.2f}, first x{pair['first']:.2f}"
    same = f"; the first {pair['same']} tokens are the same" if "same" in pair else ""
    return f"{words}, next x{pair['next']:.2f}{same}"


def scaling(results: dict[str, Any]) -> list[str]:
    rows = []
    for row in results["rows"]:
        size = [f"{row['parameters'] / 1e6:,.0f} million", f"{row['checkpoint'] / 1e9:.2f} GB"]
        rows.append([row["name"], *size, f"{row['figure']['seconds']:.1f} s", *costs([row["figure"]])])
    titles = ["", "parameters", "checkpoint", "time", "CPU", "own", "resident", "written"]
    return [f"{results['title']}:", markdown(titles, rows)]


def markdown(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
