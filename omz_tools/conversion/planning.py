"""What a conversion is about to do: which outputs are in place and right, which are to be made, and why."""

import contextlib
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec

from omz_tools.cache import record, stages
from omz_tools.cache.record import Made, Proof, Record, Seen
from omz_tools.cache.results import Results
from omz_tools.cache.stages import Ingredients
from omz_tools.conversion.inputs import Inputs
from omz_tools.conversion.plans import Output, Plan, Way, Wish, plain
from omz_tools.descriptors.descriptor import COMPRESSED, Export, Precision
from omz_tools.descriptors.kinds import ONNX, name_of
from omz_tools.descriptors.zoo import Model
from omz_tools.errors import UnsupportedError
from omz_tools.export import binding, checkpoint, ir, model_optimizer, onnx_export, signatures, tokenizer_ir
from omz_tools.export.checkpoint import Checkpoint
from omz_tools.export.model_optimizer import ModelOptimizer
from omz_tools.proof import manifest
from omz_tools.system.files import PROCESSORS, disk_errors

_MOST_NAMED = 3

S = TypeVar("S")
T = TypeVar("T")


@contextlib.contextmanager
def planned(model: Model, wish: Wish) -> Iterator[Plan]:
    """See what is to be done to have a model's ONNX file and IRs in `output_dir/<subdirectory>/`.

    The downloaded files are hashed while the block runs; see `Inputs`.

    Raises:
        UnsupportedError: the model has no export section, or none of the precisions; or Model Optimizer cannot make it.
        MissingError, IntegrityError: a downloaded file is not there, or is not the pinned one.
        CheckpointError: the checkpoint cannot be used.
    """
    spec, chosen = conversion_of(model, wish.precisions)
    chosen = _by_optimizer(chosen, wish) if wish.optimizer else chosen
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

    def digests(names: Iterable[str]) -> dict[str, str]:
        """Of files in the checkpoint's folder."""
        pinned = {source / name: seen.digest for name, seen in inputs.seen.items()}
        paths = {name: read.folder / name for name in names}
        return {name: pinned.get(path) or record.look_at(path).digest for name, path in paths.items()}

    sources = digests(read.files)
    ways = tuple(_ways(model, wish, spec, read))
    outputs = [
        _look_at_output(what, {str(p.relative_to(folder)): p for p in paths}, plain(ingredients), known, wish)
        for way in ways
        for what, paths, ingredients in _wanted(model, way, chosen, read, folder, sources, digests, tool)
    ]
    return Plan(model, ways, read, sources, folder, known, inputs, tuple(outputs), tool, wish.verify)


def _wanted(
    model: Model,
    way: Way,
    chosen: Iterable[Precision],
    read: Checkpoint,
    folder: Path,
    sources: dict[str, str],
    digests: Callable[[Iterable[str]], dict[str, str]],
    tool: ModelOptimizer | None,
) -> Iterator[tuple[str, list[Path], Ingredients]]:
    """The outputs that are made in one way: what each is called, its files, and what it depends on."""
    made_of: Ingredients = {"graph": way.graph, "checkpoint": sources}
    about = _about(model, sources)
    if way.variant:
        present = model.descriptor.checkpoint_files
        names = tokenizer_ir.names(present)
        made_of |= {"tokenizer": tokenizer_ir.ingredients(), "copied": digests(tokenizer_ir.copied(present))}
    else:
        # In Open Model Zoo's layout.
        names = [f"{model.name}.xml", f"{model.name}.bin"]
        onnx = folder / f"{model.name}.onnx"
        yield ONNX, [onnx], binding.ingredients(read, onnx) | made_of
    for p in chosen:
        what = name_of(p, way.variant)
        if tool:
            made_by = model_optimizer.ingredients(model.name, p, tool)
        else:
            made_by = ir.ingredients(model.name, p, about, state=way.variant is not None)
        yield what, [folder / what / name for name in names], made_by | made_of


def _ways(model: Model, wish: Wish, spec: Export, read: Checkpoint) -> Iterator[Way]:
    """How the contract's outputs are made, and those of the variants."""
    yield Way(None, spec, plain(onnx_export.ingredients(read, spec)))
    if wish.optimizer and wish.variants:
        raise UnsupportedError(
            f"Model Optimizer makes no IR of the variant {' and '.join(wish.variants)}",
            hint="Leave out --variant, or -p/--python and --mo.",
        )
    by_descriptor = () if wish.optimizer else model.descriptor.variants
    for variant in by_descriptor if wish.variants is None else wish.variants:
        kept = signatures.with_past(spec)
        yield Way(variant, kept, plain(onnx_export.ingredients(read, kept, past=True)))


def _by_optimizer(chosen: list[Precision], wish: Wish) -> list[Precision]:
    """Those that Model Optimizer makes. Raises UnsupportedError if another one is asked for."""
    if COMPRESSED in chosen and (wish.precisions or chosen == [COMPRESSED]):
        raise UnsupportedError(
            "Model Optimizer makes no weights in 8 bits", hint=f"Leave out {COMPRESSED}, or -p/--python and --mo."
        )
    return [precision for precision in chosen if precision != COMPRESSED]


def each(work: Callable[[S], T], items: Iterable[S]) -> list[T]:
    """Work on all items at once, which is faster where the work is hashing."""
    with ThreadPoolExecutor(PROCESSORS) as pool:
        return list(pool.map(work, items))


def _about(model: Model, sources: Mapping[str, str]) -> dict[str, str]:
    """What an IR says of where it comes from."""
    return {
        "model": model.name,
        "revision": manifest.revision(model.descriptor.checkpoint_files.values()),
        "checkpoint": manifest.checkpoint_digest(sources),
    }


def _look_at_output(what: str, paths: dict[str, Path], ingredients: Ingredients, known: Record, wish: Wish) -> Output:
    made = known.outputs.get(what)
    stale = _staleness(paths, ingredients, made, wish)
    return Output(what, paths, ingredients, stale, None if stale else made)


def _staleness(paths: dict[str, Path], ingredients: Ingredients, made: Made | None, wish: Wish) -> str:
    """Why an output is to be made; empty if it is in place, and as it was made from the same."""
    if missing := [path.name for path in paths.values() if not path.exists()]:
        few = len(missing) <= _MOST_NAMED
        names = (
            " and ".join(missing)
            if few
            else f"{', '.join(missing[:_MOST_NAMED])} and {len(missing) - _MOST_NAMED} more"
        )
        return f"{names} {'is' if len(missing) == 1 else 'are'} not there"
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
    for way in plan.ways:
        made = [o for o in plan.stale if o.variant == way.variant]
        if plan.onnx.stale if way.variant is None else any(not results.find(output.ingredients) for output in made):
            how = "would take it from the cache" if results.find(way.graph) else f"would trace {way.spec.model_class}"
            note(f"{f'{way.variant} ' if way.variant else ''}graph (opset {way.spec.opset}): {how}")
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


def conversion_of(model: Model, precisions: Iterable[str] | None) -> tuple[Export, list[Precision]]:
    """The export section of a model, and those precisions that are asked for; None for what its descriptor says.

    Raises:
        UnsupportedError: it has no export section, or cannot have any of the precisions.
    """
    spec = model.descriptor.export
    if spec is None:
        raise UnsupportedError(
            f"its descriptor has no export section (framework {model.descriptor.framework})",
            hint="omz_converter converts models whose model.yml says how, in a section 'export'.",
        )
    own = model.descriptor.precisions
    asked = set(own if precisions is None else precisions)
    possible = list(dict.fromkeys([*own, COMPRESSED]))
    chosen = [precision for precision in possible if precision in asked]
    if not chosen:
        raise UnsupportedError(
            f"it cannot be converted to {', '.join(sorted(asked))}", hint=f"It can have: {', '.join(possible)}."
        )
    return spec, chosen
