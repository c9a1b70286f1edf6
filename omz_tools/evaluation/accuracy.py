"""Perplexity of a model on a text, by PyTorch and by each converted file, beside the published figure."""

import math
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from msgspec import Struct

from omz_tools.conversion import planning, plans
from omz_tools.conversion.plans import Output, Plan
from omz_tools.descriptors.descriptor import CONVERTIBLE, Accuracy
from omz_tools.descriptors.kinds import ONNX
from omz_tools.descriptors.zoo import Model
from omz_tools.download.pinned import Means
from omz_tools.errors import AccuracyError, CheckpointError, MissingError, SelectionError, UnsupportedError
from omz_tools.evaluation import corpus, perplexity
from omz_tools.evaluation.corpus import Passage
from omz_tools.evaluation.perplexity import PYTORCH, Subject
from omz_tools.export import tokenizer
from omz_tools.export.checkpoint import CONFIG
from omz_tools.progress.reporting import Reporter, files_text, windows_text
from omz_tools.system.files import disk_errors
from omz_tools.system.workers import Worker, Workers

METRIC = "perplexity"
# Where texts that descriptors pin are kept, in the folder of the downloaded tree.
DATASETS = "datasets"


@dataclass(frozen=True)
class Wish:
    """What is asked for.

    Attributes:
        download_dir: where the tree of downloaded models begins; texts are kept there, too.
        output_dir: where the tree of converted models begins; may be the same.
        precisions: those asked for; None for what is made unasked, and what else is there.
        onnx: whether the ONNX model is measured, too.
        pytorch: whether PyTorch is.
        text: a text of one's own; None for the one that the descriptor pins.
        batch_size: windows at a time.
        max_windows: the first ones of the text alone; None for all.
    """

    download_dir: Path
    output_dir: Path
    precisions: tuple[str, ...] | None = None
    onnx: bool = False
    pytorch: bool = True
    text: Path | None = None
    batch_size: int = 1
    max_windows: int | None = None


class Reference(Struct, frozen=True):
    """A published figure, and how far from it one that is measured again may be."""

    value: float
    tolerance: float | None
    dataset: str
    method: str
    source: str

    def accepts(self, value: float) -> bool | None:
        """Whether a figure is near enough; None if nobody has said what that is."""
        return None if self.tolerance is None else abs(value - self.value) <= self.tolerance


class Figure(Struct, frozen=True):
    """What was measured of one file.

    Attributes:
        what: "PyTorch", "ONNX", or the precision of an IR.
        size: bytes of the file and of its weights.
        loss: the mean loss, in nats.
        perplexity: the exponential of it.
        passed: whether it is near enough to the reference; None if there is nothing to judge by.
    """

    what: str
    size: int
    loss: float
    perplexity: float
    passed: bool | None


class Evaluation(Struct, frozen=True):
    """What was measured of one model.

    Attributes:
        model: its name.
        text: where the text lies.
        tokens: how many it has, the tail that fills no window included.
        window: tokens of a window.
        windows: how many were measured.
        reference: the published figure, if it is of this text, all of it.
        figures: in the order in which they were measured.
    """

    model: str
    text: str
    tokens: int
    window: int
    windows: int
    reference: Reference | None
    figures: tuple[Figure, ...]


def measure(model: Model, wish: Wish, means: Means, workers: Workers, reporter: Reporter) -> Evaluation:
    """Measure a model that was downloaded and converted.

    The text is cut into windows of as many tokens as the model has positions, one beginning where the other ends; what
    is left at the end is dropped. So Open Model Zoo measured gpt-2.

    Raises:
        MissingError: the model was not downloaded or not converted, or it has no tokenizer.
        SelectionError: the text cannot be read, or is shorter than one window.
        UnsupportedError: the descriptor pins no text, and none is given.
        OmzError: of the stage that failed.
    """
    reporter.section(f"Checking {files_text(len(model.descriptor.files))}")
    precisions = wish.precisions or _precisions(model, wish.output_dir / model.subdirectory)
    wanted = plans.Wish(wish.download_dir, wish.output_dir, precisions, variants=(), verify="off")
    plan = planning.plan(model, wanted)
    subjects = _subjects(plan, wish, reporter)
    tokenizer.files(plan.checkpoint.folder)
    passage, published = _passage(model, wish, means, reporter)
    with workers.worker() as worker:
        ids = worker.call(tokenizer.encode, plan.checkpoint.folder, passage.text)
    windows, length = _windows(ids, plan, passage)
    chosen = windows[: wish.max_windows]
    reference = _reference(published) if published and len(chosen) == len(windows) else None
    if published and not reference:
        reporter.note(f"... the published {published.value:.2f} is of all {windows_text(len(windows))}: not compared")
    figures = tuple(
        _figure(subject, _size(subject, plan), _loss(model, subject, chosen, wish, workers, reporter), reference)
        for subject in subjects
    )
    return Evaluation(str(model.name), passage.place, len(ids), length, len(chosen), reference, figures)


def judge(evaluation: Evaluation) -> None:
    """Raise AccuracyError if a figure is too far from the reference."""
    wrong = [figure for figure in evaluation.figures if figure.passed is False]
    reference = evaluation.reference
    if wrong and reference:
        figures = ", ".join(f"{figure.perplexity:.2f} by {figure.what}" for figure in wrong)
        raise AccuracyError(
            f"perplexity is {figures}; it was published as {reference.value:.2f} and may differ by "
            f"{reference.tolerance:g}",
            hint=f"The figure is from {reference.source}.",
        )


def _precisions(model: Model, folder: Path) -> tuple[str, ...]:
    """Those that a model is converted to unasked, and those that it was converted to."""
    own = model.descriptor.precisions
    return tuple(p for p in CONVERTIBLE if p in own or (folder / p / f"{model.name}.xml").is_file())


def _subjects(plan: Plan, wish: Wish, reporter: Reporter) -> list[Subject]:
    """What is measured, in order. Raises MissingError if it is not there."""
    outputs = [output for output in plan.outputs if output.what != ONNX or wish.onnx]
    missing = [path for output in outputs for path in output.paths.values() if not path.exists()]
    if missing:
        raise MissingError(f"{_listed(missing)} not there", hint=f"Convert it first: {_command(plan, wish)}")
    for output in outputs:
        if output.stale:
            reporter.note(f"... {output.path} is measured as it is; omz_converter would make it again: {output.stale}")
    read = plan.checkpoint
    first = [Subject(PYTORCH, read.folder, plan.spec, frozenset(read.files))] if wish.pytorch else []
    return first + [Subject(output.what, output.path, plan.spec) for output in outputs]


def _listed(paths: list[Path]) -> str:
    return f"{', '.join(map(str, paths))} {'is' if len(paths) == 1 else 'are'}"


def _command(plan: Plan, wish: Wish) -> str:
    words = ["omz_converter", "--name", plan.model.name, "-d", str(wish.download_dir)]
    words += ["-o", str(wish.output_dir)] if wish.output_dir != wish.download_dir else []
    return " ".join(words + (["--precisions", ",".join(wish.precisions)] if wish.precisions else []))


def _passage(model: Model, wish: Wish, means: Means, reporter: Reporter) -> tuple[Passage, Accuracy | None]:
    """The text, and what the descriptor says of it."""
    known = [(some, some.corpus) for some in model.descriptor.accuracy if some.metric == METRIC and some.corpus]
    if wish.text:
        own = corpus.read(wish.text)
        for published, pinned in known:
            if own.is_of(pinned):
                return own, published
        if known:
            reporter.note(f"... the published {known[0][0].value:.2f} is of another text: not compared")
        return own, None
    if not known:
        raise UnsupportedError("its descriptor pins no text to measure it on", hint="Give one with --text FILE.")
    published, pinned = known[0]
    return corpus.bring(pinned, model, wish.download_dir / DATASETS, means, reporter), published


def _windows(ids: "array[int]", plan: Plan, passage: Passage) -> tuple[list["array[int]"], int]:
    """The token ids of each window, and how many they are."""
    folder, vocabulary = plan.checkpoint.folder, plan.spec.vocabulary
    length: int = plan.checkpoint.config["n_positions"]
    if length < 2:
        raise UnsupportedError(f"by {folder / CONFIG} it has one position, and predicts nothing from what is before")
    if len(ids) < length:
        raise SelectionError(
            f"{passage.place} has {len(ids):,} tokens, fewer than one window of {length:,}", hint="Give a longer text."
        )
    if max(ids) >= vocabulary:
        raise CheckpointError(
            f"the tokenizer in {folder} gives token {max(ids)}, and the model knows those below {vocabulary:,}",
            hint="It must be the tokenizer that the model was published with.",
        )
    return [ids[first : first + length] for first in range(0, len(ids) - length + 1, length)], length


def _loss(
    model: Model, subject: Subject, windows: list["array[int]"], wish: Wish, workers: Workers, reporter: Reporter
) -> float:
    """The mean loss over the windows, in nats."""
    reporter.measuring_begin(model.name, subject.what, len(windows))
    try:
        with workers.worker() as worker:
            return _mean(worker, model, subject, windows, wish.batch_size, reporter)
    finally:
        reporter.measuring_end(model.name, subject.what)


def _mean(
    worker: Worker, model: Model, subject: Subject, windows: list["array[int]"], batch_size: int, reporter: Reporter
) -> float:
    losses: list[float] = []
    for first in range(0, len(windows), batch_size):
        losses += worker.call(perplexity.losses, subject, windows[first : first + batch_size])
        reporter.measuring_progress(model.name, subject.what, len(losses))
    mean = math.fsum(losses) / len(losses)
    if not math.isfinite(mean):
        raise AccuracyError(
            f"{subject.what} gives scores that are infinite or no numbers",
            hint="The weights hold such values, or are too large for this precision.",
        )
    return mean


def _figure(subject: Subject, size: int, loss: float, reference: Reference | None) -> Figure:
    try:
        value = math.exp(loss)
    except OverflowError:
        value = math.inf
    return Figure(subject.what, size, loss, value, reference.accepts(value) if reference else None)


def _reference(published: Accuracy) -> Reference:
    return Reference(published.value, published.tolerance, published.dataset, published.method, published.source)


def _size(subject: Subject, plan: Plan) -> int:
    """Bytes of what is measured, and of the weights that it refers to."""
    weights = [plan.checkpoint.folder / name for name in plan.checkpoint.files if name != CONFIG]
    if subject.what == PYTORCH:
        return _bytes(weights)
    output: Output = next(output for output in plan.outputs if output.what == subject.what)
    refers = output.ingredients.get("refers", False)
    return _bytes([*output.paths.values(), *(weights if refers else [])])


def _bytes(paths: Iterable[Path]) -> int:
    total = 0
    for path in paths:
        with disk_errors("Looking at", path):
            total += path.stat().st_size
    return total
