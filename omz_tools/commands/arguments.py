"""What the commands share: choosing models, numbers of jobs, dashes or underscores, and the exit status."""

import argparse
import contextlib
import errno
import io
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from omz_tools import __version__
from omz_tools.descriptors import zoo
from omz_tools.descriptors.descriptor import PRECISIONS
from omz_tools.errors import OmzError, SelectionError
from omz_tools.progress.reporting import Reporter, writing

_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose long options may be written with dashes or underscores."""

    def __init__(self, description: str) -> None:
        # Open Model Zoo's --mo is no short form of --models_dir.
        super().__init__(description=description, allow_abbrev=False)
        self.add_argument("--version", action="version", version=f"%(prog)s {__version__}")

    def parse(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Parse the arguments; a standard output that is closed ends the command."""
        if sys.stderr is None:
            # A file that is opened later must not get its number, and with it what libraries write there.
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        if sys.stdout is None:
            self.exit(1, f"{self.prog}: error: standard output is closed\n")
        return self.parse_args([_underscored(word) for word in (sys.argv[1:] if argv is None else argv)])

    def add_selection(self) -> None:
        """The ways to choose models that all commands share."""
        choice = self.add_mutually_exclusive_group()
        choice.add_argument("--name", metavar="PAT[,PAT...]", help="models whose names match a pattern")
        choice.add_argument("--list", type=Path, metavar="FILE.LST", help="models whose names or patterns a file lists")
        choice.add_argument("--all", action="store_true", help="all models")
        choice.add_argument("--print_all", action="store_true", help="print the names of all models and exit")
        self.add_argument(
            "--models_dir", type=Path, action="append", default=[], metavar="DIR",
            help="a folder of your own model.yml descriptors, which go before the shipped ones; may be repeated",
        )  # fmt: skip

    def add_places(self, results: str) -> None:
        """Where downloaded and converted models are, and which precisions; `results` says what is done with -o."""
        self.add_argument(
            "-d", "--download_dir", type=Path, default=Path(), metavar="DIR",
            help="where the models are (default: here)",
        )  # fmt: skip
        self.add_argument("-o", "--output_dir", type=Path, metavar="DIR", help=f"{results} (default: there)")
        self.add_argument("--precisions", metavar="P[,P...]", help="of FP16, FP32 and FP16-INT8 (default: the model's)")

    def add_cache(self) -> None:
        """Where the cache is; None where neither the option nor the environment says so, or says nothing."""
        self.add_argument(
            "--cache_dir", type=_folder, default=os.environ.get("OMZ_CACHE_DIR", ""), metavar="DIR",
            help="keep verified files here and take them from here (default: the environment's OMZ_CACHE_DIR, or none)",
        )  # fmt: skip

    def add_jobs(self) -> None:
        self.add_argument(
            "-j", "--jobs", type=_jobs, default=1, metavar="N", help="models at a time, or 'auto' (default: 1)"
        )

    def selected(self, args: argparse.Namespace) -> list[zoo.Entry]:
        """The models that the arguments choose, for a composite its stages; `--print_all` prints and exits here.

        Raises:
            SelectionError, DescriptorError: see `zoo.find` and `zoo.select`.
        """
        return zoo.select(self.entries(args), _patterns(args))

    def matching(self, args: argparse.Namespace) -> tuple[dict[str, zoo.Entry], list[zoo.Entry]]:
        """All models, and those that the arguments choose, composites as such; raises as `selected` does."""
        entries = self.entries(args)
        return entries, zoo.matching(entries, _patterns(args))

    def entries(self, args: argparse.Namespace) -> dict[str, zoo.Entry]:
        """All models by name; wrong usage, and `--print_all`, end here. Raises as `zoo.find` does."""
        if args.name is None and not (args.list or args.all or args.print_all):
            self.error("one of the arguments --name --list --all --print_all is required")
        if args.name is not None and not _patterns(args):
            self.error(f"argument --name: {args.name!r} names no model")
        entries = zoo.find(args.models_dir)
        if args.print_all:
            with writing():
                print("\n".join(entries), flush=True)
            sys.exit(0)
        return entries


def _underscored(word: str) -> str:
    if not word.startswith("--"):
        return word
    option, equals, value = word.partition("=")
    return "--" + option[2:].replace("-", "_") + equals + value


def _folder(text: str) -> Path | None:
    return Path(text) if text else None


def _jobs(text: str) -> int:
    if text == "auto":
        return os.cpu_count() or 1
    if not text.isdecimal() or not 1 <= int(text) <= 256:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 256, nor 'auto'")
    return int(text)


def positive(text: str) -> int:
    """A number of attempts, or of what else there must be one of."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def connections(text: str) -> int:
    """A number of connections."""
    if not text.isdecimal() or not 1 <= int(text) <= 64:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 64")
    return int(text)


def size(text: str) -> int:
    """A number of bytes: 500MB, 20GB, 1.5GiB."""
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,15})?) ?([kmgt]?)(i?)b?", text.lower())
    if not match or (match[3] and not match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 500MB, 20GB or 1.5GiB")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** _POWERS[match[2]])


def _patterns(args: argparse.Namespace) -> list[str]:
    if args.all:
        return ["*"]
    if args.name is not None:
        return [pattern.strip() for pattern in args.name.split(",") if pattern.strip()]
    try:
        lines = args.list.read_text(encoding="utf-8").splitlines()
        words = [shlex.split(line, comments=True) for line in lines]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SelectionError(
            f"{args.list} cannot be read: {reason}", hint="--list takes a text file of names."
        ) from None
    # As in Open Model Zoo, words after the first one of a line are kept for later uses.
    patterns = [line[0] for line in words if line]
    if not patterns:
        raise SelectionError(f"{args.list} names no model", hint="Write one name or pattern a line.")
    return patterns


def precisions(text: str | None) -> tuple[str, ...] | None:
    """The precisions of a comma-separated list; None where there is none.

    Raises:
        SelectionError: one is unknown.
    """
    if text is None:
        return None
    asked = tuple(dict.fromkeys(word.strip() for word in text.split(",")))
    unknown = [word for word in asked if word not in PRECISIONS]
    if unknown:
        names = ", ".join(repr(word) for word in unknown)
        raise SelectionError(f"Unknown precisions specified: {names}", hint=f"There are: {', '.join(PRECISIONS)}.")
    return asked


def run(work: Callable[[], int], reporter: Reporter) -> int:
    """Call `work`; turn what goes wrong into a report and an exit status: 1 for an error, 130 and 143 for a signal."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    for stream in (sys.stdout, sys.stderr):
        # A path that the terminal cannot show must not end the work.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        return work()
    except OmzError as error:
        reporter.error(error)
        return 1
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError as error:
        # Our output cannot be written; point standard output elsewhere so that nothing is said at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno != errno.EPIPE:  # a reader that has gone wants to know nothing more
            with contextlib.suppress(OSError):
                print(f"########## Error: The output cannot be written: {error.strerror}", file=sys.stderr)
        return 1
