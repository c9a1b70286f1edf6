"""omz_downloader: bring the files of models here, verified."""

import sys
from collections.abc import Sequence
from pathlib import Path

from omz_tools import jobs, pipeline, progress
from omz_tools.commands.arguments import Parser, positive, precisions, run
from omz_tools.download import Means
from omz_tools.store import Store
from omz_tools.transport import Transport


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0, 1 with a FAILED list, or 2 for wrong usage."""
    parser = Parser("Download the files of models; each is verified, and none is fetched that is here already.")
    parser.add_selection()
    parser.add_argument(
        "-o", "--output_dir", type=Path, default=Path(), metavar="DIR", help="where to put the models (default: here)"
    )
    parser.add_argument("--cache_dir", type=Path, metavar="DIR", help="keep files here and take them from here")
    parser.add_argument(
        "--num_attempts", type=positive, default=5, metavar="N", help="tries of each source (default: 5)"
    )
    parser.add_argument("--precisions", metavar="P[,P...]", help="only files of these precisions (default: all)")
    parser.add_argument(
        "--progress_format", choices=("text", "json"), default="text", help="for people or programs (default: text)"
    )
    parser.add_jobs()
    args = parser.parse(argv)

    reporter = progress.reporter(args.progress_format)

    def work() -> int:
        entries = parser.selected(args)
        wanted = precisions(args.precisions)
        reporter.several = min(args.jobs, len(entries)) > 1
        store = Store(args.cache_dir) if args.cache_dir else None
        means = Means(Transport(), store, args.num_attempts, reporter.note)
        with reporter.running():
            failed = jobs.in_threads(
                entries,
                lambda entry: pipeline.download_model(entry.load(), args.output_dir, wanted, means, reporter),
                args.jobs,
                reporter,
                means.transport.close,
            )
        if failed:
            reporter.failed(failed)
        return 1 if failed else 0

    return run(work, reporter)


if __name__ == "__main__":
    sys.exit(main())
