"""omz_info_dumper: what is known of models, for programs as JSON and for people as a page."""

import json
import sys
from collections.abc import Sequence

from omz_tools.commands.arguments import Parser, run
from omz_tools.descriptors import information, model_page
from omz_tools.errors import UnsupportedError
from omz_tools.progress import reporting
from omz_tools.progress.reporting import writing


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0, 1 for an error, or 2 for wrong usage."""
    parser = Parser("Print what the descriptors of models say: as JSON for programs, or the pages of the models.")
    parser.add_selection()
    parser.add_argument(
        "--format", choices=("json", "markdown"), default="json",
        help="json: an array of objects, as Open Model Zoo prints it (default); markdown: the model's page",
    )  # fmt: skip
    args = parser.parse(argv)

    def work() -> int:
        entries, chosen = parser.matching(args)
        if args.format == "json":
            text = json.dumps(information.of(entries, chosen), indent=4)
        else:
            if whole := [entry.name for entry in chosen if entry.is_composite]:
                raise UnsupportedError(
                    f"{', '.join(whole)} stands for several models", hint="Ask for the pages of its stages by name."
                )
            text = "\n".join(model_page.of(entry.load()) for entry in chosen).rstrip("\n")
        with writing():
            print(text, flush=True)
        return 0

    return run(work, reporting.PlainReporter())


if __name__ == "__main__":
    sys.exit(main())
