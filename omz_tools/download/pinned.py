"""One pinned file, from wherever it can be had, to verified bytes in place."""

import contextlib
import errno
import functools
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from omz_tools.cache import partial
from omz_tools.cache.partial import Partial
from omz_tools.cache.store import Store
from omz_tools.descriptors.descriptor import FileEntry, Source
from omz_tools.download.sources import in_hub_cache, is_remote, location, offline_by_environment
from omz_tools.download.transfer import Manner, Transfer
from omz_tools.errors import DiskError, IntegrityError, SourceError, UnreachableError, UnsupportedError
from omz_tools.network.answers import RangeError
from omz_tools.network.transport import Transport
from omz_tools.system import files

# Another process that fetches the same file is waited for as long as its file grows at least this often.
PATIENCE_SECONDS = 60.0


class How(Enum):
    """How a file comes to be in place."""

    IN_PLACE = "already there"
    CACHED = "from the cache"
    IN_HUB_CACHE = "from the Hub's cache"
    FETCHED = "fetched"


@dataclass(frozen=True)
class Means:
    """What a download works with.

    Attributes:
        transport: the connections; closing it ends the run.
        store: the cache, or None to do without.
        attempts: how often a source is tried without progress before the next one is.
        connections: how many are used for one large file.
        offline: whether to do without the network.
        note: called with a line for the user.
        fills_store: whether to add to the cache what it has not.
    """

    transport: Transport
    store: Store | None
    attempts: int
    connections: int
    offline: bool
    note: Callable[[str], None]
    fills_store: bool = True

    @property
    def is_offline(self) -> bool:
        return self.offline or offline_by_environment()


@dataclass(frozen=True)
class Want:
    """A file to be brought.

    Attributes:
        entry: what it must be and where it may come from.
        target: where it goes.
        folder: the descriptor's folder, where local sources begin.
    """

    entry: FileEntry
    target: Path
    folder: Path

    @property
    def size(self) -> int:
        return self.entry.size

    @property
    def digest(self) -> str:
        return self.entry.digest.value


def is_right(path: Path, entry: FileEntry) -> bool:
    """Whether `path` is a real file with the size and digest that the descriptor pins."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size != entry.size:
        return False
    return files.digest_of(path, entry.digest.algorithm) == entry.digest.value


def foresee(want: Want, means: Means) -> How:
    """How a file will come to be in place; what is in place already is verified, what a cache has is not yet.

    Raises:
        DiskError: what is in place is a folder, or cannot be read, or its name cannot be written here.
    """
    entry = want.entry
    with files.disk_errors("Writing", want.target):
        os.fsencode(want.target)
        if want.target.is_dir() and not want.target.is_symlink():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    with files.disk_errors("Reading", want.target):
        if is_right(want.target, entry):
            return How.IN_PLACE
    with contextlib.suppress(OSError):
        if means.store and means.store.path(entry.digest).lstat().st_size == entry.size:
            return How.CACHED
    if any(in_hub_cache(source, entry.digest) for source in entry.sources):
        return How.IN_HUB_CACHE
    return How.FETCHED


def kept(want: Want, means: Means) -> int:
    """The number of bytes of a file that an earlier run left where this one looks for them."""
    folder, name = _workplaces(want, means)[0]
    return partial.kept(folder, name, want.digest, want.size)


def makes_room(want: Want, means: Means) -> int:
    """The number of bytes of a file that an earlier run left where this one looks, and that need no more room."""
    folder, name = _workplaces(want, means)[0]
    return partial.makes_room(folder, name, want.digest, want.size)


def workplace(want: Want, means: Means) -> Path:
    """The folder where a file grows."""
    return _workplaces(want, means)[0][0]


def _workplaces(want: Want, means: Means) -> list[tuple[Path, str]]:
    """Where the file grows, and by which name: in the cache, or if that cannot be used, beside the target."""
    places = [(want.target.parent, want.target.name)]
    if means.store and means.fills_store:
        # There other runs find what this one leaves, wherever their output goes.
        places.insert(0, (means.store.partials, want.digest))
    return places


def tidy(want: Want, means: Means) -> None:
    """Remove what runs that were killed left of a file that is in place."""
    for folder, name in _workplaces(want, means):
        partial.sweep(folder, name)


def fetch(want: Want, means: Means, began: Callable[[int], None], progress: Callable[[int], None]) -> How:
    """Bring one file that is not in place, and say how it came.

    Until the new bytes are whole and right, whatever the target was before stays as it was.

    Args:
        want: the file.
        means: connections, cache and patience.
        began: called with the number of bytes that an earlier run left, before more come.
        progress: called with the number of bytes there are so far.

    Raises:
        SourceError, UnreachableError, UnsupportedError: from the last source tried; the others are in its hint.
        IntegrityError: every source that answered has other bytes.
        DiskError: the disk is full or read-only.
    """
    how = _from_near(want, means) or _from_afar(want, means, began, progress)
    tidy(want, means)
    return how


def _from_afar(want: Want, means: Means, began: Callable[[int], None], progress: Callable[[int], None]) -> How:
    own = _obtain(want, means, began, progress)
    if isinstance(own, How):
        return own
    with own:
        _deliver(own, want, means)
    return How.FETCHED


def _from_near(want: Want, means: Means) -> How | None:
    """Take the file from one of the caches, if they have it."""
    entry, store = want.entry, means.store
    has = store and os.path.lexists(store.path(entry.digest))
    if store and has and _place(want, lambda path: store.take(entry.digest, entry.size, path)):
        return How.CACHED
    cached = [path for source in entry.sources for path in in_hub_cache(source, entry.digest)]
    if any(_place(want, functools.partial(_copy_verified, path, entry, means)) for path in cached):
        return How.IN_HUB_CACHE
    return None


def _copy_verified(cached: Path, entry: FileEntry, means: Means, path: Path) -> bool:
    try:
        files.copy(cached, path)
    except OSError as error:
        means.note(f"... {cached} cannot be copied: {error.strerror}")
        return False
    if not is_right(path, entry):
        means.note(f"... {cached} is damaged; it is left as it is, and not used")
        return False
    if means.store and means.fills_store:
        _keep(means, means.store, lambda store: store.put(entry.digest, path))
    return True


def _keep(means: Means, store: Store, put: Callable[[Store], None]) -> bool:
    """What cannot be kept in the cache is no failure of the download."""
    try:
        put(store)
    except DiskError as error:
        means.note(f"... not kept in the cache: {error.what}")
        return False
    return True


def _place(want: Want, fill: Callable[[Path], bool]) -> bool:
    """Let `fill` write a hidden file, and move it to the target if that says that it is right."""
    with (
        files.disk_errors("Writing", want.target),
        Partial.begin(want.target.parent, want.target.name, "c", want.size) as own,
    ):
        if not fill(own.path):
            return False
        files.sync(own.path)
        _move(own.path, want.target)
        return True


def _move(path: Path, target: Path) -> None:
    path.replace(target)
    with contextlib.suppress(OSError):  # it is in place
        files.sync(target.parent)


def _obtain(want: Want, means: Means, began: Callable[[int], None], progress: Callable[[int], None]) -> Partial | How:
    """The file, whole and right under a hidden name; or how someone else has brought it meanwhile."""
    places = _workplaces(want, means)
    for number, (folder, name) in enumerate(places, start=1):
        try:
            return _obtain_in(folder, name, want, means, began, progress)
        except DiskError as error:
            if number == len(places):
                raise
            means.note(f"... {error.what}; doing without the cache")
    raise AssertionError("there is always a place")


def _obtain_in(
    folder: Path, name: str, want: Want, means: Means, began: Callable[[int], None], progress: Callable[[int], None]
) -> Partial | How:
    stuck: set[Path] = set()
    while True:
        if _at_work(folder, name, want, stuck):
            _wait_for_another(folder, name, want, stuck, means)
            if how := _brought_by_another(want, means):
                return how
            continue
        own = Partial.begin(folder, name, want.digest, want.size)
        try:
            if not own.is_alone(besides=stuck):  # several began at the same moment
                own.close(keep=False)
                means.transport.pause(random.uniform(0.01, 0.1))  # noqa: S311
                continue
            own.adopt()
            began(own.held)
            with files.disk_errors("Writing", folder / want.target.name):
                _from_sources(want, own, means, progress)
        except BaseException as error:
            own.close()
            if isinstance(error, SourceError) and (how := _brought_by_another(want, means)):
                return how  # while this process was stopped, say
            if isinstance(error, SourceError) and (held := partial.kept(folder, name, want.digest, want.size)):
                error.hint = f"{error.hint}\n{held:,} bytes are kept; the next run goes on after them.".strip()
            raise
        return own


def _at_work(folder: Path, name: str, want: Want, stuck: set[Path]) -> Path | None:
    return partial.at_work(folder, name, partial.version_of(want.digest), besides=stuck)


def _wait_for_another(folder: Path, name: str, want: Want, stuck: set[Path], means: Means) -> None:
    """Wait while another process fetches the file; one whose file does not grow any more is put with the `stuck`."""
    means.note("... another process is fetching it; waiting for that")
    seen, since = "", time.monotonic()
    while other := _at_work(folder, name, want, stuck):
        with contextlib.suppress(FileNotFoundError):
            now = f"{other.name} {other.stat().st_mtime_ns}"
            if now != seen:
                seen, since = now, time.monotonic()
        if time.monotonic() - since > PATIENCE_SECONDS:
            means.note("... that makes no progress; not waiting for it any more")
            stuck.add(other)
            return
        means.transport.pause(0.1)


def _brought_by_another(want: Want, means: Means) -> How | None:
    with files.disk_errors("Reading", want.target):
        return How.IN_PLACE if is_right(want.target, want.entry) else _from_near(want, means)


def _deliver(own: Partial, want: Want, means: Means) -> None:
    """Put the file in its place; from the cache's folder, into the cache first."""
    store = means.store
    if not store or own.path.parent == want.target.parent:
        with files.disk_errors("Writing", want.target), own.whole() as whole:
            _move(whole, want.target)
        return

    def keep(store: Store) -> None:
        with files.disk_errors("Writing", own.path), own.whole() as whole:
            store.keep(want.entry.digest, whole)

    if not _keep(means, store, keep):
        _place(want, functools.partial(_copy_whole, own.path, want.entry))
        with contextlib.suppress(OSError):
            own.path.unlink()
    elif not _from_near(want, means):
        raise DiskError(
            f"{store.path(want.entry.digest)} was removed as soon as it was there",
            hint="Another process collects what is in the cache. Run it again.",
        )


def _copy_whole(whole: Path, entry: FileEntry, path: Path) -> bool:
    """Copy what was verified, but could not be made durable where it lies, and verify it once more."""
    files.copy(whole, path)
    os.truncate(path, entry.size)  # behind its bytes there may still be a record
    if not is_right(path, entry):
        raise DiskError(
            f"{whole} does not read as it was written", hint="Run it again without the cache, or with another one."
        )
    return True


def _from_sources(want: Want, own: Partial, means: Means, progress: Callable[[int], None]) -> None:
    failures: list[str] = []
    sources = want.entry.sources
    for number, source in enumerate(sources, start=1):
        try:
            _from_source(source, want, own, means, progress)
        except (SourceError, IntegrityError, UnsupportedError) as error:
            if number == len(sources):
                if failures:
                    error.hint = "\n".join([error.hint, "Tried before it:", *failures]).strip()
                raise
            failures.append(f"- {error.what}")
            means.note(f"... {error.what}; trying the next source")
        else:
            if failures:
                means.note(f"... taken from {location(source, want.folder)}")
            return


def _from_source(source: Source, want: Want, own: Partial, means: Means, progress: Callable[[int], None]) -> None:
    """Bring what is missing; where that does not fit what is there, once more from the beginning."""
    if is_remote(source) and means.is_offline:
        raise UnreachableError(
            f"{location(source, want.folder)} is not fetched: --offline or HF_HUB_OFFLINE is set",
            hint="No cache has the file. Run once without it, or give the folder of an earlier download's --cache_dir.",
        )

    def transfer(manner: Manner) -> None:
        Transfer(source, want.folder, want.entry, own, means.transport, manner).run(progress)

    try:
        transfer(Manner(means.attempts, means.connections, ranges=True, at_once=False, note=means.note))
    except (IntegrityError, RangeError) as error:
        means.note(f"... {error.what}; once more from the beginning")
        own.clear()
        try:
            ranges = not isinstance(error, RangeError)
            transfer(Manner(means.attempts, 1, ranges=ranges, at_once=True, note=means.note))
        except (IntegrityError, RangeError):
            own.clear()
            raise
