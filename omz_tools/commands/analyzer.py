"""omz_analyzer: what a model costs, in floating-point operations and parameters."""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omz_tools.commands.arguments import Parser, run
from omz_tools.evaluation import analysis
from omz_tools.evaluation.analysis import Analysis
from omz_tools.progress import reporting
from omz_tools.system.workers import Workers

_SHAPE = re.compile(r"(?P<name>[^\[\],]*)\[(?P<axes>[1-9][0-9]{0,9}(?:,[1-9][0-9]{0,9})*)?\]")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0, 1 for an error, or 2 for wrong usage."""
    parser = Parser(
        "Count the floating-point operations and the parameters of a model by type of operator, from its graph; "
        "nothing is run, and operators that cannot be counted are named."
    )
    parser.add_argument(
        "-m", "--model", type=Path, required=True, metavar="FILE",
        help="an OpenVINO IR (.xml, with its .bin beside it) or an ONNX model (.onnx), which is counted as the graph "
        "that OpenVINO makes of it",
    )  # fmt: skip
    parser.add_argument(
        "--shape", type=_shapes, default={}, metavar="NAME[N,...][,NAME[N,...]]",
        help="the shapes of the inputs, as input[1,1024], or [1,1024] for the only one; needed where they are dynamic",
    )  # fmt: skip
    parser.add_argument(
        "--format", choices=("text", "json"), default="text", help="for people (default), or one JSON object"
    )
    args = parser.parse(argv)
    reporter = reporting.PlainReporter()

    def work() -> int:
        with Workers().worker() as worker:  # the libraries may die of a file that is damaged
            counted = worker.call(analysis.analyze, args.model, args.shape)
        text = json.dumps(_fields(args.model, counted), indent=2) if args.format == "json" else _text(counted)
        reporter.note(text)
        return 0

    return run(work, reporter)


def _shapes(text: str) -> dict[str, tuple[int, ...]]:
    """Shapes by name, as OpenVINO's benchmark_app takes them: input[1,1024],mask[1,1,1024,1024]."""
    shapes: dict[str, tuple[int, ...]] = {}
    rest = re.sub(r"\s", "", text) + ","
    while rest:
        match = _SHAPE.match(rest)
        if not match or rest[match.end()] != "," or match["name"] in shapes:
            raise argparse.ArgumentTypeError(f"{text!r} is no list of shapes such as input[1,1024],mask[1,1024]")
        shapes[match["name"]] = tuple(int(axis) for axis in (match["axes"] or "").split(",") if axis)
        rest = rest[match.end() + 1 :]
    return shapes


def _text(counted: Analysis) -> str:
    rows = [(o.type, f"{o.number}", _giga(o.flops), _mega(o.parameters)) for o in counted.operations]
    rows = [("operator", "number", "GFLOPs", "MParams"), *rows]
    rows.append(("in all", "", _giga(counted.flops), _mega(counted.used_parameters)))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    table = ["  ".join((row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:]))) for row in rows]
    shapes = ", ".join(f"{name}{list(shape)}" for name, shape in counted.shapes.items())
    lines = [f"At {shapes}:", "", *table, "", f"{counted.parameters:,} parameters"]
    if counted.used_parameters != counted.parameters:
        lines.append(f"{counted.used_parameters:,} when those that several operators share count for each of them")
    if counted.masks:
        lines.append(
            f"{counted.used_parameters + counted.masks:,} as Open Model Zoo counts: with a mask for each attention"
        )
    if counted.not_counted:
        kinds = ", ".join(f"{kind} ({number})" for kind, number in counted.not_counted.items())
        lines += ["", f"NOT COUNTED: {kinds}"]
    return "\n".join(lines)


def _giga(number: int) -> str:
    return f"{number / 1e9:,.4f}"


def _mega(number: int) -> str:
    return f"{number / 1e6:,.4f}"


def _fields(path: Path, counted: Analysis) -> dict[str, Any]:
    return {
        "model": str(path),
        "shapes": {name: list(shape) for name, shape in counted.shapes.items()},
        "flops": counted.flops,
        "gflops": round(counted.flops / 1e9, 4),
        "parameters": {
            "distinct": counted.parameters,
            "at_each_use": counted.used_parameters,
            "open_model_zoo": counted.used_parameters + counted.masks,
        },
        "operators": [
            {"type": o.type, "number": o.number, "flops": o.flops, "parameters": o.parameters}
            for o in counted.operations
        ],
        "not_counted": dict(counted.not_counted),
    }


if __name__ == "__main__":
    sys.exit(main())
