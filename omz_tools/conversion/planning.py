"""What a conversion is about to do: which outputs are in place and right, which are to be made, and why."""

import contextlib
import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from omz_tools.cache import record, stages
from omz_tools.cache.record import Made, Proof, Record, Seen
from omz_tools.cache.results import Results
from omz_tools.cache.stages import Ingredients
from omz_tools.conversion.inputs import Inputs
from omz_tools.descriptors.descriptor import PRECISIONS, Bound, Export, Precision
from omz_tools.descriptors.zoo import Model
from omz_tools.errors import UnsupportedError
from omz_tools.export import binding, checkpoint, ir, model_optimizer, onnx_export
from omz_tools.export.checkpoint import Checkpoint
from omz_tools.export.model_optimizer import ModelOptimizer
from omz_tools.proof import differences, manifest, verify
from omz_tools.system.files import PROCESSORS, disk_errors

ONNX = "ONNX"

S = TypeVar("S")
T = TypeVar("T")

Verify = Literal["off", "quick", "full"]
Check = Literal["hash", "stat"]


@dataclass(frozen=True)
class Wish:
    """What is asked for.

    Attributes:
        download_dir: where omz_downloader put the tree of models.
        output_dir: where the tree of converted models begins; may be the same.
        precisions: those asked for, of which a model's own are made.
        opset: version of the ONNX operator set; None for the descriptor's.
        optimizer: the Model Optimizer that makes the IRs; None for OpenVINO's converter of today.
        verify: whether the results are compared with PyTorch, at a few shapes or at all that matter.
        check: whether files that are in place are hashed, or taken for what they were while size, modification time and
            inode are the same.
        force: make everything again.
    """

    download_dir: Path
    output_dir: Path
    precisions: tuple[str, ...]
    opset: int | None = None
    optimizer: ModelOptimizer | None = None
    verify: Verify = "quick"
    check: Check = "hash"
    force: bool = False


@dataclass(frozen=True)
class Output:
    """The ONNX model, or the IR of one precision.

    Attributes:
        what: "ONNX", or the precision.
        paths: its files by name, the one that stands for all of them first.
        ingredients: what it depends on.
        stale: why it is to be made; empty while it is in place and right.
        made: what is known of it while it is in place.
    """

    what: str
    paths: dict[str, Path]
    ingredients: Ingredients
    stale: str
    made: Made | None

    @property
    def path(self) -> Path:
        return next(iter(self.paths.values()))

    @property
    def precision(self) -> Precision | None:
        """Of an IR."""
        return next((precision for precision in PRECISIONS if precision == self.what), None)


@dataclass(frozen=True)
class Plan:
    """What there is to do for one model.

    Attributes:
        model: what to convert.
        spec: how.
        checkpoint: what it is made from.
        sources: the digests of the checkpoint's files by name.
        graph: what the graph depends on.
        folder: where the outputs go.
        known: the record of what was made there before.
        inputs: the downloaded files.
        outputs: what is asked for.
        optimizer: the Model Optimizer that makes the IRs, if one does.
        verify: whether and how the outputs are compared with PyTorch.
    """

    model: Model
    spec: Export
    checkpoint: Checkpoint
    sources: dict[str, str]
    graph: Ingredients
    folder: Path
    known: Record
    inputs: Inputs
    outputs: tuple[Output, ...]
    optimizer: ModelOptimizer | None
    verify: Verify

    @property
    def onnx(self) -> Output:
        return self.outputs[0]

    @property
    def stale(self) -> list[Output]:
        return [output for output in self.outputs if output.stale]

    @property
    def unproven(self) -> list[Output]:
        """The outputs in place that are to be compared with PyTorch."""
        if self.verify == "off":
            return []
        return [o for o in self.outputs if o.made and not (o.made.proof and self.proves(o.made.proof, o, o.made.files))]

    @property
    def is_done(self) -> bool:
        return not self.stale and not self.unproven

    def bound(self, what: str) -> Bound:
        """How far an output may be from PyTorch; `what` is "ONNX" or a precision."""
        precision = "FP32" if what == ONNX else what
        of_model = [bound for bound in self.model.descriptor.bounds if bound.precision == precision]
        return of_model[0] if of_model else differences.BOUNDS[precision]

    def proof_of(self, output: Output, seen: Mapping[str, Seen], *, full: bool) -> Ingredients:
        """What the proof of an output depends on, whose files are as `seen`."""
        positions = self.checkpoint.config["n_positions"]
        made = verify.ingredients(self.spec, output.what, self.bound(output.what), positions, full=full)
        digests = {name: file.digest for name, file in seen.items()}
        return _plain(made | {"files": digests, "checkpoint": self.sources})

    def enough(self, output: Output, seen: Mapping[str, Seen]) -> list[Ingredients]:
        """Of the proofs that would do for an output whose files are as `seen`, what they depend on: the full one last.

        Each is made as it would be made now.
        """
        kinds = (True,) if self.verify == "full" else (False, True)
        return [self.proof_of(output, seen, full=full) for full in kinds]

    def proves(self, proof: Proof, output: Output, seen: Mapping[str, Seen]) -> bool:
        """Whether a proof is one of these files that would do."""
        return proof.ingredients in self.enough(output, seen)


@contextlib.contextmanager
def planned(model: Model, wish: Wish) -> Iterator[Plan]:
    """See what is to be done to have a model's ONNX file and IRs in `output_dir/<subdirectory>/`.

    The downloaded files are hashed while the block runs; see `Inputs`.

    Raises:
        UnsupportedError: the model has no export section, or none of the precisions.
        MissingError, IntegrityError: a downloaded file is not there, or is not the pinned one.
        CheckpointError: the checkpoint cannot be used.
    """
    spec, chosen = conversion_of(model, wish.precisions)
    folder = wish.output_dir / model.subdirectory
    known = record.load(record.path_of(folder, model.name))
    hashed = known if wish.check == "stat" else Record()
    with Inputs(model, wish.download_dir / model.subdirectory, hashed) as inputs:
        yield _plan(model, wish, spec, chosen, known, inputs)


def plan(model: Model, wish: Wish) -> Plan:
    """The same for those who begin nothing before all is verified."""
    with planned(model, wish) as found:
        return found


def _plan(model: Model, wish: Wish, spec: Export, chosen: list[Precision], known: Record, inputs: Inputs) -> Plan:
    tool = wish.optimizer
    if opset := wish.opset or (model_optimizer.OPSET if tool else None):
        spec = msgspec.structs.replace(spec, opset=opset)
    source, folder = wish.download_dir / model.subdirectory, wish.output_dir / model.subdirectory
    read = checkpoint.load(source / spec.checkpoint, model.descriptor.checkpoint_files)
    sources = _sources(read, source, inputs.seen)
    graph = _plain(onnx_export.ingredients(read, spec))
    onnx, irs = _targets(model, folder, chosen)
    about = _about(model, sources)
    of_all = {"graph": graph, "checkpoint": sources}
    wanted: list[tuple[str, tuple[Path, ...], Ingredients]] = [
        (ONNX, (onnx,), _plain(binding.ingredients(read, onnx) | of_all))
    ]
    for p, paths in irs.items():
        made_by = model_optimizer.ingredients(model.name, p, tool) if tool else ir.ingredients(model.name, p, about)
        wanted.append((p, paths, _plain(made_by | of_all)))
    outputs = tuple(
        _look_at_output(what, {str(p.relative_to(folder)): p for p in paths}, ingredients, known, wish)
        for what, paths, ingredients in wanted
    )
    return Plan(model, spec, read, sources, graph, folder, known, inputs, outputs, tool, wish.verify)


def _plain(ingredients: Ingredients) -> Ingredients:
    """As they come back from a file."""
    plain: Ingredients = json.loads(json.dumps(ingredients))
    return plain


def each(work: Callable[[S], T], items: Iterable[S]) -> list[T]:
    """Work on all items at once, which is faster where the work is hashing."""
    with ThreadPoolExecutor(PROCESSORS) as pool:
        return list(pool.map(work, items))


def _sources(read: Checkpoint, folder: Path, inputs: Mapping[str, Seen]) -> dict[str, str]:
    """The digests of the files that a checkpoint consists of."""
    pinned = {folder / name: seen.digest for name, seen in inputs.items()}
    paths = {name: read.folder / name for name in read.files}
    return {name: pinned.get(path) or record.look_at(path).digest for name, path in paths.items()}


def _about(model: Model, sources: Mapping[str, str]) -> dict[str, str]:
    """What an IR says of where it comes from."""
    return {
        "model": model.name,
        "revision": manifest.revision(model.descriptor.checkpoint_files.values()),
        "checkpoint": manifest.checkpoint_digest(sources),
    }


def _targets(
    model: Model, folder: Path, precisions: Iterable[Precision]
) -> tuple[Path, dict[Precision, tuple[Path, Path]]]:
    """The ONNX file, and the .xml and .bin of each precision, in Open Model Zoo's layout."""
    irs = {p: (folder / p / f"{model.name}.xml", folder / p / f"{model.name}.bin") for p in precisions}
    return folder / f"{model.name}.onnx", irs


def _look_at_output(what: str, paths: dict[str, Path], ingredients: Ingredients, known: Record, wish: Wish) -> Output:
    made = known.outputs.get(what)
    stale = _staleness(paths, ingredients, made, wish)
    return Output(what, paths, ingredients, stale, None if stale else made)


def _staleness(paths: dict[str, Path], ingredients: Ingredients, made: Made | None, wish: Wish) -> str:
    """Why an output is to be made; empty if it is in place, and as it was made from the same."""
    if missing := [path.name for path in paths.values() if not path.exists()]:
        return f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not there"
    if wish.force:
        return "--force"
    if not made or made.files.keys() != paths.keys():
        return "there is no record of how it was made"
    if changes := stages.changes(made.ingredients, ingredients):
        return changes

    def is_changed(name: str) -> bool:
        path, seen = paths[name], made.files[name]
        with disk_errors("Reading", path):
            if wish.check == "stat" and record.is_unchanged(path, seen):
                return False
            return path.is_symlink() or path.stat().st_size != seen.size or record.look_at(path).digest != seen.digest

    changed = [name for name, yes in zip(paths, each(is_changed, paths), strict=True) if yes]
    return f"{' and '.join(changed)} changed since" if changed else ""


def describe(plan: Plan, results: Results, note: Callable[[str], None]) -> None:
    """Say which stages `carry_out` would run, and why."""
    graph_needed = bool(plan.onnx.stale)
    if graph_needed:
        way = "would take it from the cache" if results.find(plan.graph) else f"would trace {plan.spec.model_class}"
        note(f"graph (opset {plan.spec.opset}): {way}")
    for output in plan.outputs:
        if not output.stale:
            note(f"{output.path}: in place")
            continue
        cached = output.what != ONNX and results.find(output.ingredients)
        note(f"{output.path}: would {'take it from the cache' if cached else 'make it'}; {output.stale}")
        if plan.optimizer and output.precision and not cached:
            note(f"  {shlex.join(_command(plan, output, output.precision, plan.optimizer))}")
    if plan.verify == "off":
        note("comparing with PyTorch: off")
        return
    unproven = plan.unproven
    for output in plan.outputs:
        known = output.what != ONNX and output.stale and _known_proof(plan, output, results)
        needs = (output.stale and not known) or output in unproven
        note(f"comparing {output.what} with PyTorch: {'would do it' if needs else 'nothing to do'}")


def _command(plan: Plan, output: Output, precision: Precision, tool: ModelOptimizer) -> list[str]:
    described = plan.model.descriptor.input_info
    commands = model_optimizer.commands(plan.onnx.path, {precision: output.path}, plan.spec, described, tool)
    return commands[precision]


def _known_proof(plan: Plan, output: Output, results: Results) -> Proof | None:
    """The proof of an output that the cache has."""
    result = results.find(output.ingredients)
    if not result:
        return None
    seen = {name: Seen(kept.size, f"sha256:{kept.sha256}", 0, 0) for name, kept in result.files.items()}
    return proof_in(plan, output, seen, results)


def proof_in(plan: Plan, output: Output, seen: Mapping[str, Seen], results: Results) -> Proof | None:
    """The proof of an output whose files are as `seen`, if the record or the cache has it."""
    made = plan.known.outputs.get(output.what)
    if made and made.proof and plan.proves(made.proof, output, seen):
        return made.proof
    for ingredients in plan.enough(output, seen):
        if data := results.read(ingredients):
            with contextlib.suppress(msgspec.DecodeError):
                return msgspec.json.decode(data, type=Proof)
    return None


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
