"""model.yml read: all its mistakes at once, with line and column, those in single values and those between them."""

import re
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from omz_tools.descriptors.descriptor import CONVERTIBLE, PRECISIONS, Composite, Descriptor, RegexReplace, TensorSpec
from omz_tools.descriptors.located_yaml import Mistake, Mistakes, Node, decode, parse
from omz_tools.errors import DescriptorError
from omz_tools.system.files import RelativeName

MOST_MISTAKES = 1000
LONGEST_MISTAKE = 500

T = TypeVar("T")


def load(path: Path) -> Descriptor:
    """Read a model.yml.

    Raises:
        DescriptorError: it cannot be read, or has mistakes; all of them are in the message, one a line.
    """
    return _load(path, Descriptor)


def load_composite(path: Path) -> Composite:
    """Read a composite-model.yml. Raises DescriptorError as `load` does."""
    return _load(path, Composite)


def _load(path: Path, kind: type[T]) -> T:
    try:
        root, mistakes = parse(path.read_bytes().decode("utf-8"))
        mistakes = [*mistakes, *(_contradictions(root) if kind is Descriptor else [])]
        return decode(root, kind, mistakes)
    except Mistakes as error:
        lines = [f"{path}:{m.line}:{m.column}: {m.text:.{LONGEST_MISTAKE}}" for m in error.mistakes[:MOST_MISTAKES]]
        if len(error.mistakes) > MOST_MISTAKES:
            lines.append(f"and {len(error.mistakes) - MOST_MISTAKES} more")
        many = f"{len(error.mistakes)} mistakes" if len(error.mistakes) > 1 else "a mistake"
        raise DescriptorError(
            "\n".join([f"the descriptor has {many}:", *lines]), hint="Correct the lines named."
        ) from None
    except UnicodeDecodeError as error:
        raise DescriptorError(f"{path}: not UTF-8 text (byte {error.start})", hint="Save it as UTF-8.") from None
    except OSError as error:
        raise DescriptorError(f"{path} cannot be read: {error.strerror}", hint="Check --models_dir.") from None


def _contradictions(root: Node) -> list[Mistake]:
    """What no single value shows: names that collide, and sections that do not fit together.

    Found on the nodes, so that it is reported beside mistakes in single values; parts that have these are passed over.
    """
    found = _name_contradictions(root)
    for key in ("precisions", "variants"):
        seen: set[Any] = set()
        for node in root.items(key):
            if isinstance(node.value, str):
                if node.value in seen:
                    found.append(node.mistake(f"{node.value} stands here twice"))
                seen.add(node.value)
    bounded = [entry.at("precision") for entry in root.items("bounds")]
    for place, node in enumerate(bounded):
        if node.value in [earlier.value for earlier in bounded[:place]]:
            found.append(node.mistake(f"bounds of {node.value} stand here twice"))
    found += _step_contradictions(root)
    found += _corpus_contradictions(root)
    if "export" in (root.value if isinstance(root.value, dict) else ()):
        found += _export_contradictions(root)
    return found


def _name_contradictions(root: Node) -> list[Mistake]:
    found: list[Mistake] = []
    names: set[str] = set()
    folders: set[str] = set()
    for entry in root.items("files"):
        node = entry.at("name")
        if entry.at("source").value == []:
            found.append(entry.at("source").mistake("the list of sources is empty"))
        if node is entry or not isinstance(node.value, str):
            continue
        try:
            name = RelativeName.parse(node.value).folded
        except ValueError:
            continue
        above = {str(parent) for parent in PurePosixPath(name).parents}
        if name in names:
            found.append(node.mistake(f"the name {node.value!r:.80} stands here twice (capitals do not count)"))
        if name in folders or names & above:
            found.append(node.mistake(f"{node.value!r:.80} makes one name a file and a folder"))
        names.add(name)
        folders |= above
    return found


def _step_contradictions(root: Node) -> list[Mistake]:
    found: list[Mistake] = []
    originals: dict[str, str] = {}
    for node in root.items("postprocessing"):
        try:
            step = decode(node, RegexReplace)
        except Mistakes:
            continue  # of another kind, or reported where they are
        originals[RelativeName(f"{step.file}.orig").folded] = step.file
        try:
            _stand_in(step.pattern).sub(step.replacement, "")
        except (re.error, IndexError) as error:
            found.append(node.at("replacement").mistake(f"this cannot replace the pattern: {error}"))
    for entry in root.items("files"):
        node = entry.at("name")
        if isinstance(node.value, str) and (file := originals.get(RelativeName(node.value).folded)):
            found.append(
                node.mistake(f"under this name the original of {file!r} is kept, which postprocessing changes")
            )
    return found


def _corpus_contradictions(root: Node) -> list[Mistake]:
    found: list[Mistake] = []
    for accuracy in root.items("accuracy"):
        corpus = accuracy.at("corpus")
        if corpus is accuracy or not isinstance(corpus.value, dict):
            continue
        file = corpus.at("file")
        if isinstance(file.value, dict) and file.at("source").value == []:
            found.append(file.at("source").mistake("the list of sources is empty"))
        if ("member" in corpus.value) != ("sha256" in corpus.value):
            found.append(corpus.mistake("a text in an archive needs both: its name there (member) and its sha256"))
    return found


def _stand_in(pattern: str) -> re.Pattern[str]:
    """An expression with the groups of a pattern that matches at once: the pattern itself may search for ever."""
    compiled = re.compile(pattern)
    names = {number: name for name, number in compiled.groupindex.items()}
    groups = (f"(?P<{names[n]}>)" if n in names else "()" for n in range(1, compiled.groups + 1))
    return re.compile("".join(groups))


def _export_contradictions(root: Node) -> list[Mistake]:
    found = [
        node.mistake(f"{node.value} cannot be made here; {', '.join(CONVERTIBLE)} can")
        for node in root.items("precisions")
        if node.value in PRECISIONS and node.value not in CONVERTIBLE
    ]
    place = root.at("export", "checkpoint")
    try:
        names = {decode(entry.at("name"), RelativeName) for entry in root.items("files")}
        folder = decode(place, RelativeName)
        if f"{folder}/config.json" not in names:
            found.append(place.mistake(f"no file of this model is called {folder}/config.json"))
        found += [place.mistake(text) for text in _weights_contradictions(folder, names)]
    except Mistakes:
        pass  # reported where they are
    try:
        ids, scores = (decode(root.at("export", kind, 0), TensorSpec) for kind in ("inputs", "outputs"))
    except Mistakes:
        return found
    return found + _tensor_contradictions(ids, scores, root)


def _weights_contradictions(folder: str, names: set[RelativeName]) -> list[str]:
    """Which shards an index names is known only when it is there; that there is none can be said now."""
    whole, index = f"{folder}/model.safetensors", f"{folder}/model.safetensors.index.json"
    if whole in names:
        return []
    if index not in names:
        return [f"no file of this model is called {whole}, nor {index}"]
    if not any(PurePosixPath(name).parent == PurePosixPath(folder) and name.endswith(".safetensors") for name in names):
        return [f"{index} names files of weights, and no file of this model is called {folder}/….safetensors"]
    return []


def _tensor_contradictions(ids: TensorSpec, scores: TensorSpec, root: Node) -> list[Mistake]:
    found: list[Mistake] = []
    if ids.type != "i64" or len(ids.shape) != 2:
        found.append(root.at("export", "inputs", 0).mistake("the input of a language model is i64 with two axes"))
    elif scores.type != "f32" or len(scores.shape) != 3 or scores.shape[:2] != ids.shape:
        found.append(root.at("export", "outputs", 0).mistake("the output must be f32, its first two axes the input's"))
    for kind, spec in (("inputs", ids), ("outputs", scores)):
        for axis, name in enumerate(spec.shape):
            if isinstance(name, str) != (axis < 2):
                place = root.at("export", kind, 0, "shape", axis)
                found.append(place.mistake("the first two axes are dynamic (words), a third is a number"))
    if ids.name == scores.name:
        found.append(root.at("export", "outputs", 0, "name").mistake("the input has this name already"))
    if ids.shape and len(set(ids.shape)) != len(ids.shape):
        found.append(root.at("export", "inputs", 0, "shape").mistake("two axes have the same name"))
    return found
