"""Which models there are, and which of them a pattern means."""

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from omz_tools.descriptors import reading
from omz_tools.descriptors.descriptor import Descriptor
from omz_tools.errors import DescriptorError, SelectionError, context
from omz_tools.system import files
from omz_tools.system.files import RelativeName

# Open Model Zoo's own top folders; a tree laid out like it keeps them in the output.
_COLLECTIONS = ("intel", "public")


@dataclass(frozen=True)
class Model:
    """A model with its descriptor read.

    Attributes:
        name: what `--name` calls it.
        subdirectory: where its files go below the download or output folder ("public/gpt-2").
        folder: the folder of its descriptor; local sources begin there.
        descriptor: what model.yml says.
    """

    name: str
    subdirectory: str
    folder: Path
    descriptor: Descriptor


@dataclass(frozen=True)
class Entry:
    """A model that exists, its descriptor not yet read; `is_composite` stands for several models in turn.

    Attributes:
        name: see `Model`.
        subdirectory: see `Model`.
        path: its descriptor.
        root: the folder of descriptors that it was found in.
    """

    name: str
    subdirectory: str
    path: Path
    root: Path
    is_composite: bool = False

    def load(self) -> Model:
        """Read the descriptor. Raises DescriptorError."""
        with context(f"model {self.name}"):
            return Model(self.name, self.subdirectory, self.path.parent, reading.load(self.path))


def shipped() -> Path:
    """The folder of the descriptors that travel with this package."""
    here = Path(__file__).parent.parent
    installed = here / "model_configs"
    return installed if installed.is_dir() else here.parent / "model_configs"  # the source tree has it at the top


def find(models_dirs: Iterable[Path] = ()) -> dict[str, Entry]:
    """All models by name: the shipped ones and those below `models_dirs`.

    Of two folders with a model of the same name the earlier in `models_dirs` wins, and any wins over the shipped one.

    Raises:
        SelectionError: a folder does not exist or holds no descriptor.
        DescriptorError: one folder has two models of one name, or a name no folder may have.
    """
    found = _below(shipped())
    for folder in reversed(list(models_dirs)):
        if not folder.is_dir():
            raise SelectionError(f"{folder} is not a folder", hint="--models_dir takes a folder of descriptors.")
        own = _below(folder.resolve())
        if not own:
            raise SelectionError(f"no model.yml lies in {folder} or below", hint="Check --models_dir.")
        found |= own
    return dict(sorted(found.items()))


def _below(root: Path) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for path in sorted(files.below(root, "composite-model.yml") + files.below(root, "model.yml")):
        folder = path.parent
        try:
            name = RelativeName.parse(folder.name)
        except ValueError as error:
            raise DescriptorError(f"{path}: no model can have the name of this folder: {error}") from None
        if name in entries:
            raise DescriptorError(
                f"two models are called {name}: {entries[name].path} and {path}", hint="Rename the folder of one."
            )
        relative = folder.relative_to(root).parts
        inside = relative and relative[0] in _COLLECTIONS
        subdirectory = "/".join(relative) if inside else f"public/{name}"
        entries[name] = Entry(name, subdirectory, path, root, path.name.startswith("composite-"))
    return entries


def select(entries: dict[str, Entry], patterns: Iterable[str]) -> list[Entry]:
    """The models that shell-style patterns match, each once, in the patterns' order; a composite gives its stages.

    Raises:
        SelectionError: a pattern matches nothing.
        DescriptorError: a composite has mistakes, or a stage that is no model.
    """
    chosen = [stage for entry in matching(entries, patterns) for stage in stages(entries, entry) or [entry]]
    return list({entry.name: entry for entry in chosen}.values())


def matching(entries: dict[str, Entry], patterns: Iterable[str]) -> list[Entry]:
    """The models and composites that shell-style patterns match, each once, in the patterns' order.

    Raises:
        SelectionError: a pattern matches nothing.
    """
    chosen: dict[str, Entry] = {}
    for pattern in patterns:
        names = [name for name in entries if fnmatch.fnmatchcase(name, pattern)]
        if not names:
            known = ", ".join(entries) if len(entries) <= 20 else f"{len(entries)} models, listed by --print_all"
            raise SelectionError(f'No matching models: "{pattern}"', hint=f"There are: {known}.")
        chosen |= {name: entries[name] for name in names}
    return list(chosen.values())


def stages(entries: dict[str, Entry], entry: Entry) -> list[Entry]:
    """The models that a composite stands for, in turn; none for a model.

    Raises:
        DescriptorError: a composite has mistakes, or a stage that is no model.
    """
    if not entry.is_composite:
        return []
    names = reading.load_composite(entry.path).stages_order
    unknown = [name for name in names if name not in entries or entries[name].is_composite]
    if unknown:
        raise DescriptorError(
            f"{entry.path}: there is no model {', '.join(unknown)} that could be a stage", hint="Correct stages_order."
        )
    return [entries[name] for name in names]
