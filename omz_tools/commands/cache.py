"""omz_cache: what the cache holds, whether it is right, and what of it may go."""

import argparse
import itertools
import re
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from omz_tools.cache import results
from omz_tools.cache.store import DAY, Entry, Removal, Store
from omz_tools.commands.arguments import Parser, run, size
from omz_tools.descriptors import zoo
from omz_tools.descriptors.descriptor import Digest, Sha256
from omz_tools.errors import OmzError
from omz_tools.progress import reporting
from omz_tools.progress.reporting import PLAIN_SECONDS, Reporter, files_text, size_text


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0, 1 for an error or a damaged file, or 2 for wrong usage."""
    parser = Parser("Look after the cache of downloaded files, which omz_downloader keeps with --cache_dir.")
    parser.add_argument(
        "action", nargs="?", choices=("list", "verify", "gc"), default="list",
        help="list: what is there, when it was last used, and whose file it is (default); "
        "verify: hash every file, and set damaged ones aside; gc: remove what is left over or not needed",
    )  # fmt: skip
    parser.add_cache()
    parser.add_argument(
        "--models_dir", type=Path, action="append", default=[], metavar="DIR",
        help="a folder of your own model.yml descriptors, to name their files; may be repeated",
    )  # fmt: skip
    limits = parser.add_argument_group("for gc; without a limit it removes just what is damaged or left over")
    limits.add_argument("--keep_days", type=_days, metavar="N", help="remove files that were not used for N days")
    limits.add_argument(
        "--max_size", type=size, metavar="SIZE",
        help="remove the files that were used the longest time ago, until the others fit: 500MB, 20GB, 1.5GiB",
    )  # fmt: skip
    limits.add_argument("--dry_run", action="store_true", help="say what would be removed, and remove nothing")
    args = parser.parse(argv)
    if args.cache_dir is None:
        parser.error("say where the cache is, with --cache_dir DIR or in the environment variable OMZ_CACHE_DIR")
    if args.action != "gc" and (args.keep_days, args.max_size, args.dry_run) != (None, None, False):
        parser.error(f"--keep_days, --max_size and --dry_run go with gc, not with {args.action}")

    reporter = reporting.PlainReporter()
    store = Store(args.cache_dir)

    def work() -> int:
        if args.action == "list":
            return _list(store, args.models_dir, reporter)
        if args.action == "verify":
            return _verify(store, reporter)
        return _collect(store, args, reporter)

    return run(work, reporter)


def _days(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of days")
    return int(text)


def _list(store: Store, models_dirs: Iterable[Path], reporter: Reporter) -> int:
    owners, mistakes = _owners(store, models_dirs)
    total = count = 0
    for entry in store.entries():
        names = ", ".join(owners.get(entry.digest, []))
        reporter.note(f"{size_text(entry.size):>9}  {_date(entry)}  {_name(entry)}  {names}".rstrip())
        total, count = total + entry.size, count + 1
    reporter.note(f"{files_text(count)}, {size_text(total)}, in {store.folder}")
    left = list(store.collect(dry_run=True))
    if left:
        these = "it" if len(left) == 1 else "them"
        reporter.note(f"Besides, {files_text(len(left))}, {_room(left)}, left over; 'omz_cache gc' removes {these}.")
    for mistake in mistakes:
        reporter.error(mistake)
    return 1 if mistakes else 0


def _owners(store: Store, models_dirs: Iterable[Path]) -> tuple[dict[Digest, list[str]], list[OmzError]]:
    """Whose the files are by digest, of a descriptor or of a result of a stage; and what is wrong with descriptors."""
    owners: dict[Digest, list[str]] = {}
    mistakes: list[OmzError] = []
    for found in zoo.find(models_dirs).values():
        if found.is_composite:
            continue
        try:
            model = found.load()
        except OmzError as error:
            mistakes.append(error)
            continue
        for file in model.descriptor.pinned:
            owners.setdefault(file.digest, []).append(f"{model.name}: {file.name}")
    for result in results.all_of(store):
        for name, kept in result.files.items():
            owners.setdefault(Sha256(kept.sha256), []).append(f"{result.ingredients.get('stage')}: {name}")
    return owners, mistakes


def _verify(store: Store, reporter: Reporter) -> int:
    entries = list(store.entries())
    size = sum(entry.size for entry in entries)
    done = count = damaged = 0
    said = time.monotonic()
    for entry, fault in store.verify():
        count, done = count + 1, done + entry.size
        if fault:
            damaged += 1
            reporter.note(f"{_name(entry)} {fault}")
        if time.monotonic() - said >= PLAIN_SECONDS:
            said = time.monotonic()
            reporter.note(f"... {count} of {files_text(len(entries))}, {size_text(done)} of {size_text(size)}")
    result = f"{damaged} of them damaged or not readable" if damaged else "all as their names say"
    reporter.note(f"{files_text(count)}, {size_text(done)}, in {store.folder}: {result}")
    return 1 if damaged else 0


def _collect(store: Store, args: argparse.Namespace, reporter: Reporter) -> int:
    if args.keep_days is None and args.max_size is None:
        reporter.note("Neither --keep_days nor --max_size is given: just what is damaged or left over goes.")
    keep_seconds = None if args.keep_days is None else args.keep_days * DAY
    removed: list[Removal] = []
    will = "would remove" if args.dry_run else "removed"
    try:
        found = store.collect(keep_seconds=keep_seconds, max_size=args.max_size, dry_run=args.dry_run)
        for removal in itertools.chain(found, results.collect(store, dry_run=args.dry_run)):
            removed.append(removal)
            reporter.note(f"{will} {size_text(removal.size):>9}  {removal.path}  ({removal.why})")
    finally:
        reporter.note(f"{will} {files_text(len(removed))}, {_room(removed)}")
    return 0


def _name(entry: Entry) -> str:
    return f"{entry.digest.algorithm}:{entry.digest.value}"


def _date(entry: Entry) -> str:
    # A time that no calendar has is not worth an error.
    return time.strftime("%Y-%m-%d", time.localtime(min(max(entry.used, 0), time.time())))


def _room(removals: Iterable[Removal]) -> str:
    return size_text(sum(removal.size for removal in removals))


if __name__ == "__main__":
    sys.exit(main())
