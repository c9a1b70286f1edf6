"""model.yml as frozen, typed values: a superset of Open Model Zoo's format in which nothing is ever executed."""

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from msgspec import Meta, Struct

from omz_tools.errors import DescriptorError
from omz_tools.files import RelativeName
from omz_tools.located_yaml import Mistake, Mistakes, Node, decode, parse

# In the order in which Open Model Zoo's tools list them.
Precision = Literal["FP16", "FP16-INT1", "FP16-INT8", "FP32", "FP32-INT1", "FP32-INT8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
CONVERTIBLE: tuple[Precision, ...] = ("FP16", "FP32")

# Classes of transformers that the exporter may build. A descriptor chooses from these and can name no other code.
ModelClass = Literal["GPT2LMHeadModel"]
Framework = Literal["caffe", "dldt", "mxnet", "onnx", "paddle", "pytorch", "tf"]

MOST_MISTAKES = 1000
LONGEST_MISTAKE = 500
# Longer ones take long to compile.
LONGEST_PATTERN = 1000

T = TypeVar("T")

Hex64 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
Hex96 = Annotated[str, Meta(pattern=r"^[0-9a-f]{96}$")]
Url = Annotated[str, Meta(pattern=r"^https?://[^\s/]+/")]
Text = Annotated[str, Meta(min_length=1)]


class Sha256(Struct, frozen=True, tag_field="$type", tag="sha256"):
    """A sha256 digest in lower-case hex."""

    value: Hex64

    algorithm = "sha256"


class Sha384(Struct, frozen=True, tag_field="$type", tag="sha384"):
    """A sha384 digest in lower-case hex, as Open Model Zoo's descriptors have them."""

    value: Hex96

    algorithm = "sha384"


Digest = Sha256 | Sha384


class HuggingFace(Struct, frozen=True, tag_field="$type", tag="hugging_face"):
    """A file of a repository, of a model or a data set, on the Hugging Face Hub at one commit."""

    repo: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")]
    revision: Annotated[str, Meta(pattern=r"^[0-9a-f]{40}$")]
    file: RelativeName
    repo_type: Literal["model", "dataset"] = "model"


class Http(Struct, frozen=True, tag_field="$type", tag="http"):
    """A file at an http or https URL."""

    url: Url


class GoogleDrive(Struct, frozen=True, tag_field="$type", tag="google_drive"):
    """A file of Google Drive; known from Open Model Zoo, not supported."""

    id: Text


class Local(Struct, frozen=True, tag_field="$type", tag="local"):
    """A file on this machine; a relative path begins at the descriptor's folder, as packaged models need it."""

    path: Text


Source = HuggingFace | Http | GoogleDrive | Local
# A plain string is a URL; of a list, the first source that delivers the pinned bytes is taken.
SourceValue = Url | HuggingFace | Http | GoogleDrive | Local


class FileEntry(Struct, frozen=True):
    """One file of a model: where it goes, what it must be, where it may come from.

    Attributes:
        name: path below the model's folder.
        size: bytes.
        checksum: a digest; a plain string is a sha384, as in Open Model Zoo.
        source: where to get it: one source, or a list to be tried in order.
    """

    name: RelativeName
    size: Annotated[int, Meta(ge=0, le=1 << 50)]
    checksum: Hex96 | Sha256 | Sha384
    source: Url | HuggingFace | Http | GoogleDrive | Local | tuple[SourceValue, ...]
    original_source: SourceValue | None = None

    @property
    def digest(self) -> Digest:
        return Sha384(self.checksum) if isinstance(self.checksum, str) else self.checksum

    @property
    def sources(self) -> tuple[Source, ...]:
        given = self.source if isinstance(self.source, tuple) else (self.source,)
        return tuple(Http(source) if isinstance(source, str) else source for source in given)


class Pattern(str):
    """A regular expression that compiles."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Check a regular expression; raises ValueError."""
        if len(text) > LONGEST_PATTERN:
            raise ValueError(f"the pattern is longer than {LONGEST_PATTERN} characters")
        try:
            re.compile(text)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"{text!r:.80} is no regular expression: {error}") from None
        return cls(text)


class RegexReplace(Struct, frozen=True, tag_field="$type", tag="regex_replace"):
    """A change to the text of a file.

    Attributes:
        file: path below the model's folder; a file of the model, or one that comes out of an archive.
        pattern: what to replace.
        replacement: by what, with groups of the pattern as Python's `re` writes them.
        count: how many occurrences are replaced, the first ones, and must be there; 0 for all there are, at least one.
    """

    file: RelativeName
    pattern: Pattern
    replacement: str
    count: Annotated[int, Meta(ge=0)] = 0


class UnpackArchive(Struct, frozen=True, tag_field="$type", tag="unpack_archive"):
    """An archive whose files go to the folder that it lies in.

    Attributes:
        format: as Python's `shutil` calls it.
        file: path below the model's folder.
    """

    format: Literal["zip", "tar", "gztar", "bztar", "xztar"]
    file: RelativeName


Step = RegexReplace | UnpackArchive


def fetched_as(steps: Iterable[Step], name: str) -> RelativeName:
    """Where a file that a model's source or archive gives is kept: under its name, or beside it if its text is changed.

    As in Open Model Zoo, the original is FILE.orig then. It stays what the descriptor pins.
    """
    changed = any(isinstance(step, RegexReplace) and step.file == name for step in steps)
    return RelativeName(f"{name}.orig" if changed else name)


class InputInfo(Struct, frozen=True):
    """An input as Open Model Zoo describes it; `shape` and `layout` are what the model's page says."""

    name: Text
    shape: tuple[Annotated[int, Meta(ge=0)], ...] | None = None
    layout: str | None = None


class TensorSpec(Struct, frozen=True):
    """The name, the element type and the axes of an input or output; a word is a dynamic axis, a number a fixed one."""

    name: Text
    type: Literal["i64", "f32"]
    shape: tuple[Annotated[int, Meta(ge=1)] | Annotated[str, Meta(pattern=r"^[A-Za-z]\w*$")], ...]


class Export(Struct, frozen=True):
    """How the checkpoint becomes an ONNX model.

    Attributes:
        checkpoint: the folder, below the model's folder, that holds config.json and the weights.
        model_class: the class of transformers to build.
        inputs: what the exported model takes.
        outputs: what it gives.
        opset: version of the ONNX operator set.
    """

    checkpoint: RelativeName
    model_class: ModelClass
    inputs: Annotated[tuple[TensorSpec, ...], Meta(min_length=1, max_length=1)]
    outputs: Annotated[tuple[TensorSpec, ...], Meta(min_length=1, max_length=1)]
    opset: Annotated[int, Meta(ge=18, le=23)] = 23

    @property
    def vocabulary(self) -> int:
        """The number of tokens that the output has scores of."""
        return int(self.outputs[0].shape[-1])


class Bound(Struct, frozen=True):
    """How far the logits of a precision may be from PyTorch's, and why as far as that; an ONNX model is as FP32.

    Attributes:
        precision: that it holds for.
        difference: the largest difference of a logit, as a part of the largest logit of PyTorch (at least 1), because
            rounding errors grow with the numbers they are made on.
        divergence: nats; the mean Kullback-Leibler divergence of the next token's distribution.
        top_token: the least share of positions at which the most likely token is the same.
        top_five: the least share of the five most likely tokens that are the same.
        reason: why.
    """

    precision: Literal["FP16", "FP32"]
    difference: Annotated[float, Meta(gt=0)]
    divergence: Annotated[float, Meta(gt=0)]
    reason: Text
    top_token: Annotated[float, Meta(ge=0, le=1)] = 0.0
    top_five: Annotated[float, Meta(ge=0, le=1)] = 0.0


class Corpus(Struct, frozen=True):
    """The text that a figure was measured on.

    Attributes:
        file: what is downloaded: the text itself, in UTF-8, or a zip archive that it lies in.
        member: the text's name in the archive.
        sha256: the text's digest, where it lies in an archive.
    """

    file: FileEntry
    member: RelativeName | None = None
    sha256: Hex64 | None = None

    @property
    def digest(self) -> Digest:
        """Of the text."""
        return Sha256(self.sha256) if self.sha256 else self.file.digest


class Specification(Struct, frozen=True):
    """What a model is made of.

    Attributes:
        gflops: billions of floating-point operations at `shape`, as `analysis` counts them.
        shape: batch and length of the input.
        parameters: numbers in the weights; those that several layers share count once.
        layers, width, heads, positions: of the transformer.
    """

    gflops: Annotated[float, Meta(gt=0)]
    shape: tuple[Annotated[int, Meta(ge=1)], Annotated[int, Meta(ge=1)]]
    parameters: Annotated[int, Meta(ge=1)]
    layers: Annotated[int, Meta(ge=1)]
    width: Annotated[int, Meta(ge=1)]
    heads: Annotated[int, Meta(ge=1)]
    positions: Annotated[int, Meta(ge=1)]


class Accuracy(Struct, frozen=True):
    """A published figure: what was measured, on which data, how, and who says so.

    Attributes:
        metric: its name.
        value: the figure.
        dataset: the data, in words.
        method: how it was measured, in words.
        source: who says so.
        origin: whether someone else has published it, or it was measured with this package.
        converted: what was measured in the same way on the converted model, by precision.
        tolerance: how far from the figure one that is measured again may be, up or down; without it nothing is judged.
        corpus: the data, where it is a text.
    """

    metric: Text
    value: float
    dataset: Text
    method: Text
    source: Text
    origin: Literal["published", "measured"] = "published"
    converted: dict[Literal["FP16", "FP32"], float] = {}
    tolerance: Annotated[float, Meta(ge=0)] | None = None
    corpus: Corpus | None = None


class Descriptor(Struct, frozen=True):
    """All that model.yml says. Keys of Open Model Zoo keep their meaning; those it executed are kept as data only."""

    description: Text
    task_type: Annotated[str, Meta(pattern=r"^[a-z0-9_]+$")]
    license: Url
    files: tuple[FileEntry, ...] = ()
    framework: Framework = "dldt"
    export: Export | None = None
    precisions: tuple[Precision, ...] = CONVERTIBLE
    bounds: tuple[Bound, ...] = ()
    specification: Specification | None = None
    accuracy: tuple[Accuracy, ...] = ()
    input_info: tuple[InputInfo, ...] = ()
    quantizable: bool = False
    model_info: dict[str, Any] = {}
    postprocessing: tuple[Step, ...] = ()
    conversion_to_onnx_args: tuple[str, ...] = ()
    model_optimizer_args: tuple[str, ...] = ()

    @property
    def places(self) -> dict[RelativeName, FileEntry]:
        """The files by where each lies below the model's folder, as it is pinned."""
        return {fetched_as(self.postprocessing, entry.name): entry for entry in self.files}

    @property
    def pinned(self) -> tuple[FileEntry, ...]:
        """All files that are pinned: the model's, and those that it is measured on."""
        return (*self.files, *(accuracy.corpus.file for accuracy in self.accuracy if accuracy.corpus))

    @property
    def checkpoint_files(self) -> dict[str, FileEntry]:
        """The files in the checkpoint's folder itself, by their names there; none without an `export` section."""
        if self.export is None:
            return {}
        folder = PurePosixPath(self.export.checkpoint)
        paths = {PurePosixPath(entry.name): entry for entry in self.files}
        return {path.name: entry for path, entry in paths.items() if path.parent == folder}


class Composite(Struct, frozen=True):
    """All that composite-model.yml says: a name for several models that work in turn."""

    description: Text
    task_type: Annotated[str, Meta(pattern=r"^[a-z0-9_]+$")]
    license: Url
    stages_order: Annotated[tuple[Text, ...], Meta(min_length=1)]
    framework: Framework = "dldt"


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
    seen: set[Any] = set()
    for node in root.items("precisions"):
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
        node.mistake(f"{node.value} cannot be made here; {' and '.join(CONVERTIBLE)} can")
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
