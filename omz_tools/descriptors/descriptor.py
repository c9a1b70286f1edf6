"""model.yml as frozen, typed values: a superset of Open Model Zoo's format in which nothing is ever executed."""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self, get_args

from msgspec import Meta, Struct

from omz_tools.system.files import RelativeName

# In the order in which Open Model Zoo's tools list them.
Precision = Literal["FP16", "FP16-INT1", "FP16-INT8", "FP32", "FP32-INT1", "FP32-INT8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
# Those that can be made here. FP16-INT8 has matrices in 8 bits, in steps whose sizes are f16; every model can have it,
# and does where someone asks for it by name.
Convertible = Literal["FP16", "FP16-INT8", "FP32"]
CONVERTIBLE: tuple[Convertible, ...] = get_args(Convertible)
COMPRESSED: Convertible = "FP16-INT8"

# What a model is converted to beside the IRs of the contract: "stateful" has the inputs and outputs of OpenVINO GenAI,
# and keeps what the attention needs of the tokens before from run to run.
Variant = Literal["stateful"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)

# Classes of transformers that the exporter may build. A descriptor chooses from these and can name no other code.
ModelClass = Literal["GPT2LMHeadModel"]
Framework = Literal["caffe", "dldt", "mxnet", "onnx", "paddle", "pytorch", "tf"]

# Longer ones take long to compile.
LONGEST_PATTERN = 1000

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

    precision: Convertible
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
    converted: dict[Convertible, float] = {}
    tolerance: Annotated[float, Meta(ge=0)] | None = None
    corpus: Corpus | None = None


class Descriptor(Struct, frozen=True):
    """All that model.yml says. Keys of Open Model Zoo keep their meaning; those it executed are kept as data only.

    `precisions` and `variants` are what is made unasked; variants, beside the contract's IRs.
    """

    description: Text
    task_type: Annotated[str, Meta(pattern=r"^[a-z0-9_]+$")]
    license: Url
    files: tuple[FileEntry, ...] = ()
    framework: Framework = "dldt"
    export: Export | None = None
    precisions: tuple[Precision, ...] = ("FP16", "FP32")
    variants: tuple[Variant, ...] = ()
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
