"""What travels with a converted model: what went in, what made it, what came out, how far from PyTorch it is.

Nothing in it is of the machine or of the day: the same conversion writes the same manifest.
"""

import hashlib
import json
import platform
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import quote

import msgspec
from msgspec import Meta, Struct

from omz_tools import __version__
from omz_tools.cache.record import Difference, Edge, Made, Rounding, Seen
from omz_tools.descriptors.descriptor import COMPRESSED, Bound, Export, FileEntry, Http, HuggingFace
from omz_tools.descriptors.kinds import KINDS, Kind, precision_of
from omz_tools.descriptors.zoo import Model
from omz_tools.errors import ManifestError
from omz_tools.progress.showing import shown
from omz_tools.system import files, libraries
from omz_tools.system.files import RelativeName, disk_errors

VERSION = 1
SUFFIX = ".manifest.json"
SCHEMA = "https://json-schema.org/draft/2020-12/schema"
_LONGEST = 1 << 22
# Digits of a figure that mean something; the others differ from one processor to the next.
_DIGITS = 3
_TOOLS = (
    "torch", "transformers", "safetensors", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "openvino",
    "openvino-tokenizers", "numpy",
)  # fmt: skip
_REMAKE = "It was changed, or is of another version of omz_tools: omz_converter writes it anew."

Algorithm = Literal["sha256", "sha384"]
Digests = Annotated[dict[Algorithm, Annotated[str, Meta(pattern=r"^[0-9a-f]{64,96}$")]], Meta(min_length=1)]
S = TypeVar("S", bound=Struct)
Size = Annotated[int, Meta(ge=0)]


class Origin(Struct, frozen=True):
    """Where a file was published; a commit if it is of the Hugging Face Hub."""

    url: str
    revision: str | None = None


class Source(Struct, frozen=True):
    """A file that went in: its name in the descriptor, its path below the model's folder, bytes, digest, origins."""

    name: RelativeName
    path: RelativeName
    size: Size
    digest: Digests
    origins: tuple[Origin, ...] = ()


class File(Struct, frozen=True):
    """A file that came out: its path below the model's folder, bytes, digest."""

    path: RelativeName
    size: Size
    digest: Digests


class Proven(Struct, frozen=True):
    """How far an output is from PyTorch, and how far it may be; of weights in 8 bits, how they were rounded."""

    mode: Literal["quick", "full"]
    bound: Bound
    differences: tuple[Difference, ...]
    edges: tuple[Edge, ...] = ()
    rounding: Rounding | None = None


class Converted(Struct, frozen=True):
    """An output ("ONNX", or the folder of an IR), its files, and its proof if it was compared with PyTorch."""

    what: Kind
    files: Annotated[tuple[File, ...], Meta(min_length=1)]
    proof: Proven | None = None


class Manifest(Struct, frozen=True):
    """All that a manifest says.

    Attributes:
        manifest_version: of this format.
        model: its name.
        subdirectory: where its folder lies below the folder of all models.
        license: URL of the license of the checkpoint.
        descriptor: digest of model.yml.
        export: the contract (names, types and axes of input and output), the class of the model, the opset.
        self_contained: whether the outputs need none of the sources: the ONNX model has its weights in it.
        sources: the files that went in.
        toolchain: the versions of what worked on it.
        outputs: the files that came out.
    """

    manifest_version: Literal[1]
    model: Annotated[str, Meta(pattern=r"^[\w.-]{1,200}$")]
    subdirectory: RelativeName
    license: str
    descriptor: Digests
    export: Export
    self_contained: bool
    sources: tuple[Source, ...]
    toolchain: dict[str, str]
    outputs: Annotated[tuple[Converted, ...], Meta(min_length=1)]


def of(
    model: Model,
    spec: Export,
    inputs: Mapping[str, Seen],
    outputs: Mapping[str, Made],
    bound: Callable[[str], Bound],
    *,
    self_contained: bool,
) -> Manifest:
    """The manifest of a conversion.

    Args:
        model: what was converted.
        spec: how.
        inputs: its downloaded files by where they lie below its folder.
        outputs: what was made of them as `kinds` calls it, and the files by where they lie.
        bound: how far each of these may be from PyTorch.
        self_contained: whether the ONNX model has its weights in it.

    Raises:
        DiskError: the descriptor cannot be read any more.
    """
    places, described = model.descriptor.places, model.folder / "model.yml"
    with disk_errors("Reading", described):
        descriptor = files.digest_of(described, "sha256")
    return Manifest(
        manifest_version=1,
        model=model.name,
        subdirectory=RelativeName(model.subdirectory),
        license=model.descriptor.license,
        descriptor={"sha256": descriptor},
        export=spec,
        self_contained=self_contained,
        sources=tuple(
            Source(entry.name, place, inputs[place].size, _digests(inputs[place].digest), origins(entry))
            for place, entry in places.items()
        ),
        toolchain=toolchain(outputs),
        outputs=tuple(_converted(what, outputs[what], bound(what)) for what in KINDS if what in outputs),
    )


def _converted(what: Kind, made: Made, bound: Bound) -> Converted:
    parts = tuple(File(RelativeName(n), seen.size, _digests(seen.digest)) for n, seen in made.files.items())
    proven = None
    if proof := made.proof:
        figures = tuple(map(_rounded, proof.differences))
        proven = Proven(
            "full" if proof.edges else "quick", bound, figures, proof.edges, proof.rounding and _rounded(proof.rounding)
        )
    return Converted(what, parts, proven)


def toolchain(outputs: Iterable[str]) -> dict[str, str]:
    """The versions of this package, of Python and of the libraries that convert to such outputs and prove them."""
    compresses = any(precision_of(what) == COMPRESSED for what in outputs)
    versions = {name: libraries.version(name) for name in (*_TOOLS, *(("nncf",) if compresses else ()))}
    known = {name: version for name, version in versions.items() if version}
    return {"omz_tools": __version__, "python": platform.python_version()} | known


def _digests(text: str) -> Digests:
    """A digest as a manifest has it; `text` is "sha256:…"."""
    algorithm, value = text.split(":")
    return {"sha384" if algorithm == "sha384" else "sha256": value}


def origins(entry: FileEntry) -> tuple[Origin, ...]:
    """Where a file may be had by anyone; a source on this machine is none."""
    found = []
    for source in entry.sources:
        if isinstance(source, HuggingFace):
            place = f"{quote(source.repo)}/resolve/{source.revision}/{quote(source.file)}"
            found.append(Origin(f"https://huggingface.co/{place}", source.revision))
        elif isinstance(source, Http):
            found.append(Origin(shown(source.url)))
    return tuple(found)


def checkpoint_digest(sources: Mapping[str, str]) -> str:
    """One digest for a checkpoint's weights: that of the file, or of the lines that `sha256sum` prints for shards.

    Args:
        sources: the digests ("sha256:…") of the files of a checkpoint by name.
    """
    weights = {name: digest for name, digest in sources.items() if name.endswith(".safetensors")}
    if len(weights) == 1:
        return next(iter(weights.values()))
    lines = "".join(f"{digest.split(':')[1]}  {name}\n" for name, digest in sorted(weights.items()))
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


def revision(entries: Iterable[FileEntry]) -> str:
    """The commit that a checkpoint's files are pinned to; empty if they are of no repository, or of several commits."""
    commits = {source.revision for entry in entries for source in entry.sources if isinstance(source, HuggingFace)}
    return commits.pop() if len(commits) == 1 else ""


def _rounded(measured: S) -> S:
    """With no more digits than mean something."""
    fields = msgspec.structs.asdict(measured).items()
    return msgspec.structs.replace(measured, **{k: float(f"{v:.{_DIGITS}g}") for k, v in fields if type(v) is float})


def dump(manifest: Manifest) -> bytes:
    """The text of the file."""
    return msgspec.json.format(msgspec.json.encode(manifest, enc_hook=str), indent=1) + b"\n"


def load(path: Path) -> Manifest:
    """Read a manifest; nothing that it says is believed.

    Raises:
        ManifestError: it cannot be read, or is no manifest of a version known here.
    """
    try:
        if path.stat().st_size > _LONGEST:
            raise ManifestError(f"{path} is longer than {_LONGEST:,} bytes", hint=_REMAKE)
        found: Manifest = msgspec.json.decode(path.read_bytes(), type=Manifest, dec_hook=_named)
    except OSError as error:
        raise ManifestError(f"{path} cannot be read: {error.strerror}", hint="Check the path.") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ManifestError(f"{path} is no manifest of version {VERSION}: {error}", hint=_REMAKE) from error
    return found


def _named(kind: type, value: Any) -> Any:
    return kind.parse(value) if issubclass(kind, RelativeName) else value


def schema() -> str:
    """The JSON Schema of a manifest, as it is published in docs/."""
    [made], parts = msgspec.json.schema_components([Manifest], schema_hook=lambda kind: {"type": "string"})
    title = f"Manifest of a model converted by omz_tools, version {VERSION}"
    return json.dumps({"$schema": SCHEMA, "title": title, **made, "$defs": parts}, indent=1) + "\n"
