"""The straight line: which stage follows which, for one model."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from omz_tools.descriptors.descriptor import PRECISIONS
from omz_tools.descriptors.zoo import Model
from omz_tools.download import pinned, postprocess
from omz_tools.download.pinned import How, Want
from omz_tools.errors import context
from omz_tools.progress.reporting import Reporter, files_text, size_text


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


def plan_download(model: Model, output_dir: Path, precisions: Iterable[str], means: pinned.Means) -> Download:
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
            Want(entry, output_dir / model.subdirectory / place, model.folder)
            for place, entry in model.descriptor.places.items()
            if entry.name.split("/")[0] not in unwanted
        ]
        plan = tuple((want, pinned.foresee(want, means)) for want in wants)
        return Download(model, output_dir / model.subdirectory, plan)


def carry_out(plan: Download, means: pinned.Means, reporter: Reporter) -> None:
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
                bring(model.name, want, how, means, reporter)
            _postprocess(plan, reporter)
            successful = True
            total = size_text(sum(want.entry.size for want, _ in plan.wants))
            reporter.about(model.name, f"{files_text(len(plan.wants))}, {total}, all verified, are in {plan.folder}")
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


def bring(model: str, want: Want, how: How, means: pinned.Means, reporter: Reporter) -> None:
    """Bring one file of a model to its place, verified, and report it.

    Raises:
        SourceError, UnsupportedError, IntegrityError, DiskError: see `pinned.fetch`.
    """
    name, size = want.entry.name, want.entry.size
    means = replace(means, note=lambda text: reporter.about(model, text))
    reporter.file_begin(model, name, size, str(want.target))
    came: How | None = how if how is How.IN_PLACE else None
    try:
        with context(f"file {want.target}"):
            if came:
                pinned.tidy(want, means)
            else:
                came = pinned.fetch(
                    want,
                    means,
                    lambda done: reporter.file_resumed(model, name, done, size) if done else None,
                    lambda done: reporter.file_progress(model, name, done, size),
                )
    finally:
        reporter.file_end(model, name, came.value if came else None)
