"""omz_downloader: bring the files of models here, verified."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from omz_tools.cache.store import Store
from omz_tools.commands import jobs
from omz_tools.commands.arguments import Parser, connections, positive, precisions, run
from omz_tools.descriptors.descriptor import PRECISIONS
from omz_tools.descriptors.zoo import Entry
from omz_tools.download import pipeline, preview
from omz_tools.download.pinned import Means
from omz_tools.download.pipeline import Download
from omz_tools.network.transport import Transport
from omz_tools.progress import reporters


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0, 1 with a FAILED list, or 2 for wrong usage."""
    parser = Parser("Download the files of models; each is verified, and none is fetched that is here already.")
    parser.add_selection()
    parser.add_argument(
        "-o", "--output_dir", type=Path, default=Path(), metavar="DIR", help="where to put the models (default: here)"
    )
    parser.add_cache()
    parser.add_argument(
        "--num_attempts", type=positive, default=5, metavar="N",
        help="tries of each source without progress in between (default: 5)",
    )  # fmt: skip
    parser.add_argument(
        "--connections", type=connections, default=4, metavar="N",
        help="connections for one large file, where its server answers ranges (default: 4)",
    )  # fmt: skip
    parser.add_argument("--offline", action="store_true", help="use caches and local files alone")
    parser.add_argument("--dry_run", action="store_true", help="say what would be done, and do nothing")
    parser.add_argument("--precisions", metavar="P[,P...]", help="only files of these precisions (default: all)")
    parser.add_argument(
        "--progress_format", choices=("text", "json"), default="text", help="for people or programs (default: text)"
    )
    parser.add_jobs()
    args = parser.parse(argv)

    reporter = reporters.reporter(args.progress_format)

    def work() -> int:
        entries = parser.selected(args)
        wanted = precisions(args.precisions) or PRECISIONS
        reporter.several = min(args.jobs, len(entries)) > 1
        store = Store(args.cache_dir, reporter.note) if args.cache_dir else None
        means = Means(Transport(), store, args.num_attempts, args.connections, args.offline, reporter.note)
        plans: dict[str, Download] = {}

        def plan(entry: Entry) -> None:
            plans[entry.name] = pipeline.plan_download(entry.load(), args.output_dir, wanted, means)

        def each(entries: Sequence[Entry], work: Callable[[Entry], None]) -> list[str]:
            return jobs.in_threads(entries, work, args.jobs, reporter, means.transport.close)

        failed = each(entries, plan)
        planned = [entry for entry in entries if entry.name in plans]
        todo = [plans[entry.name] for entry in planned]
        reporter.note(preview.preview(todo, means))
        means = preview.fitting(todo, means)
        if not args.dry_run:
            with reporter.running(sum(plan.missing for plan in todo)):
                failed += each(planned, lambda entry: pipeline.carry_out(plans[entry.name], means, reporter))
        if failed:
            reporter.failed([entry.name for entry in entries if entry.name in failed])
        return 1 if failed else 0

    return run(work, reporter)


if __name__ == "__main__":
    sys.exit(main())
