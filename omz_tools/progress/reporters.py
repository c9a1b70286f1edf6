"""Which reporter suits: bars for a terminal, plain lines for everything else, events for programs."""

import os
import sys

from omz_tools.progress.reporting import JsonReporter, PlainReporter, Reporter


def reporter(progress_format: str = "text") -> Reporter:
    """The reporter that suits standard output; `progress_format` is "text" or "json"."""
    if progress_format == "json":
        return JsonReporter()
    capable = os.environ.get("TERM") not in ("dumb", "unknown") and not os.environ.get("CI")
    if not (capable and sys.stdout.isatty()):
        return PlainReporter()
    from omz_tools.progress.terminal import TerminalReporter  # here, for what draws takes a while to load

    return TerminalReporter()
