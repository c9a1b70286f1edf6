"""omz_pin: write commits, sizes and digests from the Hugging Face Hub into a descriptor."""

import sys
from collections.abc import Sequence
from pathlib import Path

from omz_tools.commands.arguments import Parser, run
from omz_tools.download import pin
from omz_tools.progress import reporting


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0, 1 for an error, or 2 for wrong usage."""
    parser = Parser(
        "Pin the files of a descriptor to a commit of their repository on the Hugging Face Hub: commit, sizes and "
        "digests are written into it, and nothing else in it changes."
    )
    parser.add_argument("descriptor", type=Path, metavar="MODEL.YML", help="the descriptor to write to")
    parser.add_argument(
        "--repo", metavar="OWNER/NAME", help="take all files from this repository (default: those in the descriptor)"
    )
    parser.add_argument(
        "--revision", default="main", metavar="REV", help="the branch, tag or commit to pin to (default: main)"
    )
    parser.add_argument(
        "--files", metavar="PAT[,PAT...]",
        help="add the files of the repository that match (default: the usual ones if the descriptor has none)",
    )  # fmt: skip
    parser.add_argument(
        "--folder", metavar="NAME", help="where added files go below the model's folder (default: export.checkpoint)"
    )
    parser.add_argument("--dry_run", action="store_true", help="say what would change, and write nothing")
    args = parser.parse(argv)
    patterns = tuple(pattern.strip() for pattern in (args.files or "").split(",") if pattern.strip())
    if args.files is not None and not patterns:
        parser.error(f"argument --files: {args.files!r} names no file")

    reporter = reporting.PlainReporter()

    def work() -> int:
        wish = pin.Wish(args.revision, args.repo, patterns, args.folder)
        pin.pin(args.descriptor, wish, reporter.note, dry_run=args.dry_run)
        return 0

    return run(work, reporter)


if __name__ == "__main__":
    sys.exit(main())
