"""The straight line: which stage follows which, for one model."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from omz_tools import checkpoint, download, ir, onnx_export, postprocess, verify
from omz_tools.checkpoint import Checkpoint
from omz_tools.descriptor import PRECISIONS, Export, FileEntry, Precision
from omz_tools.download import How, Want
from omz_tools.errors import MissingError, UnsupportedError, context
from omz_tools.files import Staging, disk_errors, room_for
from omz_tools.progress import Reporter, size_text
from omz_tools.zoo import Model


@dataclass(frozen=True)
class Download:
    """What there is to do for one model.

    Attributes:
        model: what to download.
        folder: where its files go.
        wants: its files, and how each will come to be in place.
    """

    model: Model
    folder: Path
    wants: tuple[tuple[Want, How], ...]

    @property
    def missing(self) -> int:
        """The number of bytes that are not in place."""
        return sum(want.entry.size for want, how in self.wants if how is not How.IN_PLACE)


def plan_download(model: Model, output_dir: Path, precisions: Iterable[str], means: download.Means) -> Download:
    """See what is to be done to have a model's files, verified, in `output_dir/<subdirectory>/`.

    Args:
        model: what to download.
        output_dir: where the tree of models begins.
        precisions: files below a folder named after another precision are left out.
        means: connections, cache and patience.

    Raises:
        DiskError: what is in place cannot be read.
    """
    with context(f"model {model.name}"):
        unwanted = set(PRECISIONS) - set(precisions)
        wants = [
            Want(entry, path, model.folder)
            for entry, path in _places(model, output_dir)
            if entry.name.split("/")[0] not in unwanted
        ]
        plan = tuple((want, download.foresee(want, means)) for want in wants)
        return Download(model, output_dir / model.subdirectory, plan)


def carry_out(plan: Download, means: download.Means, reporter: Reporter) -> None:
    """Bring a model's files to their places, each one verified.

    Raises:
        OmzError: of the first file that failed; the files before it stay, the ones after it are not tried.
    """
    model = plan.model
    with context(f"model {model.name}"):
        reporter.model_begin(model.name, len(plan.wants))
        successful = False
        try:
            for want, how in plan.wants:
                _bring(model, want, how, means, reporter)
            _postprocess(plan, reporter)
            successful = True
            total = size_text(sum(want.entry.size for want, _ in plan.wants))
            reporter.about(model.name, f"{len(plan.wants)} files, {total}, all verified, are in {plan.folder}")
        finally:
            reporter.model_end(model.name, successful)


def _postprocess(plan: Download, reporter: Reporter) -> None:
    pinned = {entry.name for entry in plan.model.descriptor.files}
    left_out = pinned - {want.entry.name for want, _ in plan.wants}
    if steps := [step for step in plan.model.descriptor.postprocessing if step.file not in left_out]:
        reporter.postprocessing_begin(plan.model.name)
        try:
            postprocess.apply(steps, plan.folder, reporter.note, pinned)
        finally:
            reporter.postprocessing_end(plan.model.name)


def _bring(model: Model, want: Want, how: How, means: download.Means, reporter: Reporter) -> None:
    name, size = want.entry.name, want.entry.size
    means = replace(means, note=lambda text: reporter.about(model.name, text))
    reporter.file_begin(model.name, name, size, str(want.target))
    came: How | None = how if how is How.IN_PLACE else None
    try:
        with context(f"file {want.target}"):
            if came:
                download.tidy(want, means)
            else:
                came = download.fetch(
                    want,
                    means,
                    lambda done: reporter.file_resumed(model.name, name, done, size) if done else None,
                    lambda done: reporter.file_progress(model.name, name, done, size),
                )
    finally:
        reporter.file_end(model.name, name, came.value if came else None)


@dataclass(frozen=True)
class Output:
    """One file that a conversion made.

    Attributes:
        path: where it lies.
        size: bytes.
        precision: of the weights in it, or those it refers to.
        difference: the largest absolute difference of a logit to PyTorch's in the proof.
    """

    path: Path
    size: int
    precision: str
    difference: float


def convert_model(
    model: Model, download_dir: Path, output_dir: Path, precisions: Iterable[str], reporter: Reporter
) -> list[Output]:
    """Convert a downloaded model to ONNX and to an IR in each of its precisions that is asked for, and prove them.

    The files appear together, after the proof; until then, and if anything fails, what was there stays as it was.

    Args:
        model: what to convert.
        download_dir: where omz_downloader put the tree of models.
        output_dir: where the tree of converted models begins; may be the same.
        precisions: the precisions asked for.
        reporter: hears of every stage.

    Returns:
        What was made: the ONNX model, then the .xml and .bin of each precision.

    Raises:
        OmzError: the model has no export section, files are missing or wrong, or a stage failed.
    """
    with context(f"model {model.name}"):
        spec, chosen = conversion_of(model, precisions)
        source = download_dir / model.subdirectory
        reporter.section(f"Checking {len(model.descriptor.files)} files in {source}")
        check_downloaded(model, download_dir)
        read = checkpoint.load(source / spec.checkpoint)
        folder = output_dir / model.subdirectory
        with Staging() as staging, disk_errors("Writing to", folder):
            onnx, irs = _targets(model, output_dir, chosen)
            room_for(folder, _least_room(read, chosen))
            staged_onnx = staging.file(onnx)
            staged = {p: staging.files({xml: True, weights: False}) for p, (xml, weights) in irs.items()}
            staged_xmls = {p: hidden[irs[p][0]] for p, hidden in staged.items()}
            reporter.section("Exporting PyTorch to ONNX")
            onnx_export.export(read, spec, staged_onnx)
            reporter.section(f"Converting ONNX to OpenVINO IR ({', '.join(chosen)})")
            ir.convert(staged_onnx, model.name, staged_xmls)
            reporter.section("Comparing with PyTorch")
            figures = {figure.what: figure for figure in verify.prove(read, spec, staged_onnx, staged_xmls)}
            staging.publish()
        for figure in figures.values():
            reporter.note(str(figure))
        made_files = [("ONNX", "FP32", onnx), *((p, p, path) for p, pair in irs.items() for path in pair)]
        return [Output(path, path.stat().st_size, p, figures[what].largest) for what, p, path in made_files]


def _least_room(read: Checkpoint, precisions: Iterable[Precision]) -> int:
    """Bytes that the IRs need at least: some of what a checkpoint holds, such as masks, does not get into them."""
    shares = {"FP16": 0.4, "FP32": 0.8}
    held = sum(tensor.length for tensor in read.tensors.values())
    return int(sum(shares[precision] * held for precision in precisions))


def plan(
    model: Model, download_dir: Path, output_dir: Path, precisions: Iterable[str], note: Callable[[str], None]
) -> None:
    """Say what `convert_model` would do, reading nothing but names.

    Raises:
        UnsupportedError, MissingError: as `convert_model` would.
    """
    with context(f"model {model.name}"):
        spec, chosen = conversion_of(model, precisions)
        check_present(model, download_dir)
        onnx, irs = _targets(model, output_dir, chosen)
        note(f"Would check {len(model.descriptor.files)} files in {download_dir / model.subdirectory}")
        note(f"Would export {spec.model_class} with opset {spec.opset} to {onnx}")
        for precision, (xml, weights) in irs.items():
            note(f"Would convert it to {precision}: {xml}, {weights.name}")
        note("Would compare each with PyTorch")


def _targets(
    model: Model, output_dir: Path, precisions: Iterable[Precision]
) -> tuple[Path, dict[Precision, tuple[Path, Path]]]:
    """The ONNX file, and the .xml and .bin of each precision, in Open Model Zoo's layout."""
    folder = output_dir / model.subdirectory
    irs = {p: (folder / p / f"{model.name}.xml", folder / p / f"{model.name}.bin") for p in precisions}
    return folder / f"{model.name}.onnx", irs


def conversion_of(model: Model, precisions: Iterable[str]) -> tuple[Export, list[Precision]]:
    """The export section of a model, and those of its precisions that are asked for.

    Raises:
        UnsupportedError: it has no export section, or none of the precisions.
    """
    spec = model.descriptor.export
    if spec is None:
        raise UnsupportedError(
            f"its descriptor has no export section (framework {model.descriptor.framework})",
            hint="omz_converter converts models whose model.yml says how, in a section 'export'.",
        )
    asked = set(precisions)
    chosen = [precision for precision in model.descriptor.precisions if precision in asked]
    if not chosen:
        raise UnsupportedError(
            f"it cannot be converted to {', '.join(sorted(asked))}",
            hint=f"It has: {', '.join(model.descriptor.precisions)}.",
        )
    return spec, chosen


def check_present(model: Model, download_dir: Path) -> None:
    """Check that every file of a model is in the download folder; MissingError names those that are not."""
    folder = download_dir / model.subdirectory
    missing = [entry.name for entry, path in _places(model, download_dir) if not path.exists()]
    if missing:
        raise MissingError(
            f"not in {folder}: {', '.join(missing)}",
            hint=f"Download it first: omz_downloader --name {model.name} -o {download_dir}",
        )


def check_downloaded(model: Model, download_dir: Path) -> None:
    """Check that every file of a model is in the download folder and is the pinned one.

    Raises:
        MissingError: files are not there; all are named.
        IntegrityError: a file is not the pinned one.
    """
    check_present(model, download_dir)
    for entry, path in _places(model, download_dir):
        with disk_errors("Reading", path):
            download.check(entry, path)


def _places(model: Model, output_dir: Path) -> list[tuple[FileEntry, Path]]:
    """Where each pinned file of a model lies: beside its name if postprocessing changes it."""
    folder, steps = output_dir / model.subdirectory, model.descriptor.postprocessing
    return [(entry, folder / postprocess.fetched_as(steps, entry.name)) for entry in model.descriptor.files]
