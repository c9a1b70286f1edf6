"""omz_evaluator: perplexity of converted models on a text, beside PyTorch's and the published one."""

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from omz_tools.cache.store import Store
from omz_tools.commands import jobs
from omz_tools.commands.arguments import Parser, positive, precisions, run
from omz_tools.descriptors.zoo import Entry
from omz_tools.download.pinned import Means
from omz_tools.errors import context
from omz_tools.evaluation import accuracy, chart
from omz_tools.evaluation.accuracy import Evaluation, Wish
from omz_tools.evaluation.perplexity import PYTORCH
from omz_tools.network.transport import Transport
from omz_tools.progress import reporters
from omz_tools.progress.reporting import PlainReporter, columns, size_text, windows_text, writing
from omz_tools.system.workers import Workers


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0, 1 with a FAILED list, or 2 for wrong usage."""
    parser = Parser(
        "Measure the perplexity of converted models on a text, and of PyTorch beside them, and compare it with the "
        "published one. The text is cut into windows of as many tokens as the model has positions; the tail is dropped."
    )
    parser.add_selection()
    parser.add_places("where the converted models are")
    parser.add_argument("--onnx", action="store_true", help="measure the ONNX model, too")
    parser.add_argument("--no_pytorch", action="store_true", help="do not measure PyTorch")
    parser.add_argument(
        "--text", type=Path, metavar="FILE",
        help="a text in UTF-8 (default: the one that the model's descriptor pins, fetched if it is not there)",
    )  # fmt: skip
    parser.add_argument(
        "--max_windows", type=positive, metavar="N", help="the first windows of the text alone (default: all)"
    )
    parser.add_argument("--batch_size", type=positive, default=1, metavar="N", help="windows at a time (default: 1)")
    parser.add_cache()
    parser.add_argument("--offline", action="store_true", help="use caches and local files alone")
    parser.add_argument(
        "--format", choices=("text", "json"), default="text",
        help="text: a table (default); json: one JSON list on standard output, and all else on standard error",
    )  # fmt: skip
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw size against perplexity, as .svg or .png by FILE's name"
    )
    args = parser.parse(argv)
    if args.plot and args.plot.suffix.lower() not in chart.FORMATS:
        parser.error(f"argument --plot: {str(args.plot)!r} does not end in {' or '.join(chart.FORMATS)}")

    reporter = PlainReporter(sys.stderr) if args.format == "json" else reporters.reporter()

    def work() -> int:
        entries = parser.selected(args)
        if args.plot:
            chart.library()  # now, and not after the work
        wish = Wish(
            args.download_dir,
            args.output_dir or args.download_dir,
            precisions(args.precisions),
            onnx=args.onnx,
            pytorch=not args.no_pytorch,
            text=args.text,
            batch_size=args.batch_size,
            max_windows=args.max_windows,
        )
        store = Store(args.cache_dir, reporter.note) if args.cache_dir else None
        means = Means(Transport(), store, attempts=5, connections=4, offline=args.offline, note=reporter.note)
        workers = Workers()
        done: list[Evaluation] = []

        def measure(entry: Entry) -> None:
            with reporter.on(entry.name), context(f"model {entry.name}"):
                reporter.heading(f"Evaluating {entry.name}")
                measured = accuracy.measure(entry.load(), wish, means, workers, reporter)
                done.append(measured)
                reporter.note(_report(measured))
                accuracy.judge(measured)

        with reporter.running():
            failed = jobs.in_threads(entries, measure, 1, reporter, workers.stop)
        _results(args.format, done)
        if args.plot and done:
            chart.draw(done, args.plot)
            reporter.note(f"{args.plot} is written")
        if failed:
            reporter.failed(failed)
        return 1 if failed else 0

    return run(work, reporter)


def _results(form: str, done: list[Evaluation]) -> None:
    if form == "json":
        with writing():
            print(msgspec.json.format(msgspec.json.encode(done)).decode(), flush=True)


def _report(measured: Evaluation) -> str:
    """What was measured, and of which text."""
    left = measured.tokens - measured.windows * measured.window
    return (
        f"{measured.text}: {measured.tokens:,} tokens; {windows_text(measured.windows)} of {measured.window:,}, "
        f"{left:,} tokens left out\n{_table(measured)}"
    )


def _table(measured: Evaluation) -> str:
    pytorch = next((figure.perplexity for figure in measured.figures if figure.what == PYTORCH), None)
    rows = [("", "size", "perplexity", "beside PyTorch", _title(measured))]
    for figure in measured.figures:
        difference = "" if pytorch is None or figure.what == PYTORCH else f"{figure.perplexity - pytorch:+.1e}"
        verdict = {True: "pass", False: "fail", None: ""}[figure.passed]
        rows.append((figure.what, size_text(figure.size), f"{figure.perplexity:.4f}", difference, verdict))
    return columns(rows)


def _title(measured: Evaluation) -> str:
    reference = measured.reference
    if reference is None:
        return ""
    return f"published: {reference.value:.2f}" + ("" if reference.tolerance is None else f" ± {reference.tolerance:g}")


if __name__ == "__main__":
    sys.exit(main())
