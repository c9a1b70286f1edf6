"""omz_converter: turn downloaded models into OpenVINO IR, proven equal to PyTorch."""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from omz_tools import jobs, pipeline, progress
from omz_tools.commands.arguments import Parser, precisions, run
from omz_tools.progress import Reporter
from omz_tools.zoo import Entry


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0, 1 with a FAILED list, or 2 for wrong usage."""
    parser = Parser("Convert downloaded models to ONNX and OpenVINO IR; each result is compared with PyTorch.")
    parser.add_selection()
    parser.add_argument(
        "-d", "--download_dir", type=Path, default=Path(), metavar="DIR", help="where the models are (default: here)"
    )
    parser.add_argument(
        "-o", "--output_dir", type=Path, metavar="DIR", help="where to put the results (default: there)"
    )
    parser.add_argument("--precisions", metavar="P[,P...]", help="FP16, FP32 or both (default: all of the model)")
    parser.add_argument("--dry_run", action="store_true", help="say what would be done, and do nothing")
    parser.add_jobs()
    args = parser.parse(argv)

    reporter = progress.PlainReporter()

    def work() -> int:
        entries = parser.selected(args)
        convert = functools.partial(
            _convert,
            download_dir=args.download_dir,
            output_dir=args.output_dir or args.download_dir,
            wanted=precisions(args.precisions),
            dry_run=args.dry_run,
        )
        failed = jobs.in_processes(entries, convert, args.jobs, reporter)
        if failed:
            reporter.failed(failed)
        return 1 if failed else 0

    return run(work, reporter)


def _convert(
    entry: Entry, reporter: Reporter, download_dir: Path, output_dir: Path, wanted: tuple[str, ...], dry_run: bool
) -> None:
    reporter.heading(f"Converting {entry.name}")
    model = entry.load()
    if dry_run:
        pipeline.plan(model, download_dir, output_dir, wanted, reporter.note)
        return
    outputs = pipeline.convert_model(model, download_dir, output_dir, wanted, reporter)
    reporter.note("\n" + _table(outputs))


def _table(outputs: list[pipeline.Output]) -> str:
    rows = [("file", "size", "precision", "difference to PyTorch")]
    rows += [(str(o.path), progress.size_text(o.size), o.precision, f"{o.difference:.1e}") for o in outputs]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


if __name__ == "__main__":
    sys.exit(main())
