"""What stages made, kept in the cache by what it depends on: a result names files of the store by their digests."""

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from omz_tools.cache import stages
from omz_tools.cache.stages import Ingredients
from omz_tools.cache.store import FORMAT, Removal, Store, cache_errors
from omz_tools.descriptors.descriptor import Sha256
from omz_tools.system import files

_LONGEST = 1 << 20


class Kept(Struct, frozen=True):
    """A file of a result: bytes and digest."""

    size: Annotated[int, Meta(ge=0)]
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]


class Result(Struct, frozen=True):
    """What a stage made: the files by name, and what they depend on."""

    ingredients: dict[str, Any]
    files: dict[str, Kept]


class Results:
    """The results in a store, or none at all without one.

    What is damaged, gone or cannot be written counts as not kept: it is made again.
    """

    def __init__(self, store: Store | None, *, anew: bool = False) -> None:
        """With `anew`, nothing is taken from the store, and what is made is kept there nevertheless."""
        self._store, self._anew = store, anew

    def find(self, ingredients: Ingredients) -> Result | None:
        """The result with just these ingredients."""
        if not self._store or self._anew:
            return None
        return _read(_path(self._store, ingredients))

    def read(self, ingredients: Ingredients) -> bytes | None:
        """The bytes of a result that is one file, verified; None if there is no such result."""
        result = self.find(ingredients)
        if not self._store or not result or len(result.files) != 1:
            return None
        [kept] = result.files.values()
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "copy"
            return copy.read_bytes() if self._store.take(Sha256(kept.sha256), kept.size, copy) else None

    def take(self, ingredients: Ingredients, targets: Mapping[str, Path]) -> bool:
        """Copy the files of a result to `targets`, by name, verified; False if there is no such result.

        Raises:
            DiskError: a target cannot be written.
        """
        result = self.find(ingredients)
        if not self._store or not result or result.files.keys() != targets.keys():
            return False
        return all(
            self._store.take(Sha256(kept.sha256), kept.size, targets[name]) for name, kept in result.files.items()
        )

    def keep_bytes(self, ingredients: Ingredients, name: str, data: bytes) -> None:
        """Keep a result that is one small file. Raises DiskError as `keep` does."""
        if not self._store:
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_bytes(data)
            self.keep(ingredients, {name: (path, Kept(len(data), hashlib.sha256(data).hexdigest()))})

    def keep(self, ingredients: Ingredients, made: Mapping[str, tuple[Path, Kept]]) -> None:
        """Keep a copy of each file, and then the result.

        Raises:
            DiskError: the cache is full or read-only; what was kept before is unchanged.
        """
        if not self._store:
            return
        for path, kept in made.values():
            self._store.put(Sha256(kept.sha256), path)
        result = Result(ingredients, {name: kept for name, (_, kept) in made.items()})
        path = _path(self._store, ingredients)
        with cache_errors("Writing to the cache", path), files.replacing(path) as temporary:
            temporary.write_bytes(msgspec.json.encode(result))


def _path(store: Store, ingredients: Ingredients) -> Path:
    name = stages.key(ingredients)
    return store.folder / FORMAT / "result" / name[:2] / name


def _read(path: Path) -> Result | None:
    try:
        if path.is_symlink() or path.stat().st_size > _LONGEST:
            return None
        result = msgspec.json.decode(path.read_bytes(), type=Result)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return result if stages.key(result.ingredients) == path.name else None


def all_of(store: Store) -> Iterator[Result]:
    """Every result that can be read."""
    for path in _paths(store):
        if result := _read(path):
            yield result


def collect(store: Store, *, dry_run: bool = False) -> Iterator[Removal]:
    """Remove the results that cannot be read or whose files are gone, giving each when it is done.

    Raises:
        DiskError: one cannot be removed.
    """
    for path in _paths(store):
        result = _read(path)
        if result and all(os.path.lexists(store.path(Sha256(kept.sha256))) for kept in result.files.values()):
            continue
        with cache_errors("Removing", path):
            try:
                size = path.lstat().st_size
                if not dry_run:
                    path.unlink()
            except FileNotFoundError:
                continue
            yield Removal(path, size, "a result whose files are gone")


def _paths(store: Store) -> list[Path]:
    with cache_errors("Reading the cache", store.folder):
        return sorted((store.folder / FORMAT / "result").glob("*/*"))
