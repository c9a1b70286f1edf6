"""Is a converted model still what its manifest says? Its files are hashed again, and its proof can be made again."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from omz_tools.errors import ManifestError
from omz_tools.export import checkpoint
from omz_tools.progress.reporting import files_text
from omz_tools.proof import differences, manifest, reference, verify
from omz_tools.proof.differences import Figure
from omz_tools.proof.manifest import Converted, File, Manifest, Source
from omz_tools.system import files
from omz_tools.system.files import disk_errors
from omz_tools.system.workers import Workers


@dataclass(frozen=True)
class Found:
    """A manifest that lies somewhere, beside the outputs; `name` is the model's."""

    name: str
    path: Path


def find(folder: Path) -> list[Found]:
    """The manifests in a folder and below it, in order; a manifest itself is one.

    Raises:
        ManifestError: there is none.
    """
    paths = [folder] if folder.is_file() else files.below(folder, f"*{manifest.SUFFIX}")
    if not paths:
        raise ManifestError(
            f"there is no manifest in {folder}", hint="omz_converter writes one beside the models that it converts."
        )
    return [Found(path.name.removesuffix(manifest.SUFFIX), path) for path in paths]


def check(path: Path, made: Manifest, sources: Path | None) -> None:
    """Hash every file that a manifest names.

    Args:
        path: where the manifest lies, beside the outputs.
        made: what it says.
        sources: the model's folder of downloaded files; None if they are not to be looked at.

    Raises:
        ManifestError: files are not as it says; all of them are named.
        DiskError: one cannot be read.
    """
    files_of: list[tuple[Path, File | Source]] = [
        (path.parent / file.path, file) for output in made.outputs for file in output.files
    ]
    files_of += [(sources / source.path, source) for source in made.sources] if sources else []
    if wrong := [text for place, wanted in files_of if (text := _wrong(place, wanted))]:
        raise ManifestError(
            f"{files_text(len(wrong))} of {path} {'is' if len(wrong) == 1 else 'are'} not as it says:\n"
            + "\n".join(wrong),
            hint="Run omz_downloader and omz_converter again: they replace just what is wrong.",
        )


def _wrong(path: Path, wanted: File | Source) -> str:
    """What is wrong with a file; empty if nothing is."""
    # A link could lead to one file now and to another when it is used.
    if path.is_symlink() or not path.is_file():
        return f"{path}: {'a link' if path.is_symlink() else 'not there'}"
    with disk_errors("Reading", path):
        if (size := path.stat().st_size) != wanted.size:
            return f"{path}: {size:,} bytes, not {wanted.size:,}"
        found = {algorithm: files.digest_of(path, algorithm) for algorithm in wanted.digest}
    return "" if found == wanted.digest else f"{path}: {_text(found)}, not {_text(wanted.digest)}"


def _text(digests: manifest.Digests) -> str:
    return " ".join(f"{algorithm} {value}" for algorithm, value in digests.items())


def replay(path: Path, made: Manifest, sources: Path, workers: Workers, note: Callable[[str], None]) -> None:
    """Compare the outputs of a manifest with PyTorch again, as they were compared when it was written.

    Raises:
        CheckpointError, ConversionError: PyTorch's side cannot be computed.
        ProofError: an output does not answer within the bounds of the manifest.
    """
    proven = [output for output in made.outputs if output.proof]
    full = any(output.proof and output.proof.mode == "full" for output in proven)
    read = checkpoint.load(sources / made.export.checkpoint, {})
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        with workers.worker() as referee:
            computed = referee.call(reference.make, read, made.export, Path(folder), full=full)
        figures = [_figure(path, made, output, computed, workers) for output in proven]
    for figure in figures:
        note(str(figure))
    differences.judge(figures)


def _figure(path: Path, made: Manifest, output: Converted, computed: reference.Reference, workers: Workers) -> Figure:
    assert output.proof
    with workers.worker() as worker:
        place = path.parent / output.files[0].path
        return worker.call(verify.compare, computed, made.export, output.what, place, output.proof.bound)
