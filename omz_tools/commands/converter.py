"""omz_converter: turn downloaded models into OpenVINO IR, proven equal to PyTorch."""

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from omz_tools.cache.results import Results
from omz_tools.cache.store import Store
from omz_tools.commands import jobs
from omz_tools.commands.arguments import Parser, precisions, run, size
from omz_tools.conversion import pipeline, planning
from omz_tools.conversion.outcome import Outcome
from omz_tools.conversion.plans import Wish
from omz_tools.descriptors.descriptor import VARIANTS
from omz_tools.descriptors.zoo import Entry
from omz_tools.errors import context
from omz_tools.export import model_optimizer
from omz_tools.progress import reporters
from omz_tools.progress.reporting import columns, files_text, size_text
from omz_tools.system.workers import Workers


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0, 1 with a FAILED list, or 2 for wrong usage."""
    parser = Parser(
        "Convert downloaded models to ONNX and OpenVINO IR. Each result is compared with PyTorch; what is in place and "
        "was made from the same is not made again."
    )
    parser.add_selection()
    parser.add_places("where to put the results")
    parser.add_cache()
    parser.add_argument(
        "--variant", choices=VARIANTS,
        help="make this, too; stateful: what OpenVINO GenAI runs, a folder with its tokenizer (default: the model's)",
    )  # fmt: skip
    parser.add_argument(
        "--opset", type=_opset, metavar="N", help="version of the ONNX operator set, 18 to 23 (default: the model's)"
    )
    parser.add_argument(
        "--verify", choices=("off", "quick", "full"), default="quick",
        help="quick: compare with PyTorch at three shapes (default); full: up to the model's last position, and with "
        "inputs that it is not made for; off: do not",
    )  # fmt: skip
    parser.add_argument(
        "--check", choices=("hash", "stat"), default="hash",
        help="hash: hash every file that is in place (default); stat: believe that one is as it was when size, "
        "modification time and inode are",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="make everything again")
    parser.add_argument("--dry_run", action="store_true", help="say what would be done, and why, and do nothing")
    parser.add_jobs()
    other = parser.add_argument_group(
        "Model Optimizer", "with -p or --mo it makes the IRs, in the environment that it is installed in (make mo-env)"
    )
    other.add_argument(
        "-p", "--python", type=Path, metavar="PYTHON", help="the Python to run it with (default: the one beside MO)"
    )
    other.add_argument(
        "--mo", type=Path, metavar="MO", help="its entry point (default: mo beside PYTHON, or else on PATH)"
    )
    other.add_argument(
        "--add_mo_arg", action="append", default=[], metavar="ARG",
        help="one more argument for it, as --add_mo_arg=ARG; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--max_memory", type=size, metavar="SIZE",
        help="what models that are converted at a time may take together (default: most of what is free)",
    )  # fmt: skip
    args = parser.parse(argv)
    by_optimizer = args.python is not None or args.mo is not None
    if args.add_mo_arg and not by_optimizer:
        parser.error("--add_mo_arg goes with -p/--python or --mo")

    reporter = reporters.reporter()

    def work() -> int:
        entries = parser.selected(args)
        reporter.several = min(args.jobs, len(entries)) > 1
        wish = Wish(
            args.download_dir,
            args.output_dir or args.download_dir,
            precisions(args.precisions),
            variants=(args.variant,) if args.variant else None,
            opset=args.opset,
            optimizer=model_optimizer.find(args.python, args.mo, args.add_mo_arg) if by_optimizer else None,
            verify=args.verify,
            check=args.check,
            force=args.force,
        )
        results = Results(Store(args.cache_dir, reporter.note) if args.cache_dir else None, anew=args.force)
        workers = Workers(args.max_memory)

        def convert(entry: Entry) -> None:
            with reporter.on(entry.name), context(f"model {entry.name}"):
                reporter.heading(f"Converting {entry.name}")
                model = entry.load()
                reporter.section(f"Checking {files_text(len(model.descriptor.files))}")
                with planning.planned(model, wish) as plan:
                    if args.dry_run:
                        planning.describe(plan, results, reporter.note)
                        return
                    outcomes = pipeline.carry_out(plan, results, workers, reporter)
                reporter.note(("" if plan.stale else "Nothing to convert: all is in place.\n") + _table(outcomes))

        with reporter.running():
            failed = jobs.in_threads(entries, convert, args.jobs, reporter, workers.stop)
        if failed:
            reporter.failed(failed)
        return 1 if failed else 0

    return run(work, reporter)


def _opset(text: str) -> int:
    if not text.isdecimal() or not 18 <= int(text) <= 23:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 18 to 23")
    return int(text)


def _table(outcomes: Iterable[Outcome]) -> str:
    rows = [("file", "size", "precision", "difference to PyTorch", "how")]
    for outcome in outcomes:
        output = outcome.output
        precision = output.precision or "FP32"
        largest = max(d.largest for d in outcome.proof.differences) if outcome.proof else None
        difference = "not compared" if largest is None else f"{largest:.1e}"
        sizes = {str(path): outcome.files[name].size for name, path in output.paths.items()}
        if output.variant:
            sizes = {f"{output.path.parent}{os.sep}": sum(sizes.values())}
        for path, length in sizes.items():
            rows.append((path, size_text(length), precision, difference, outcome.how))
    return columns(rows)


if __name__ == "__main__":
    sys.exit(main())
