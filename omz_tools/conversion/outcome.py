"""What became of the outputs, and what is told of that: to the next run, to people in a manifest, and to the cache."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from omz_tools.cache import record
from omz_tools.cache.record import Made, Proof, Record, Seen
from omz_tools.cache.results import Kept, Results
from omz_tools.conversion.planning import each
from omz_tools.conversion.plans import Output, Plan
from omz_tools.descriptors.descriptor import Variant
from omz_tools.descriptors.kinds import ONNX
from omz_tools.errors import DiskError
from omz_tools.progress.reporting import Reporter
from omz_tools.proof import manifest


@dataclass(frozen=True)
class Outcome:
    """What became of an output: how it came to be in place, and its proof if it has one."""

    output: Output
    how: str
    files: dict[str, Seen]
    proof: Proof | None


def record_of(plan: Plan, outcomes: Iterable[Outcome]) -> Record:
    """What the next run is told of these outputs, and of those that were known before."""
    outputs = dict(plan.known.outputs)
    outputs |= {o.output.what: Made(o.output.ingredients, o.files, o.proof) for o in outcomes}
    return Record(inputs=plan.inputs.seen, outputs=outputs)


def manifest_of(plan: Plan, outputs: Mapping[str, Made]) -> bytes:
    """The manifest of all that comes of this checkpoint; of what is not asked for now, as far as it looks as it was."""

    def holds(what: str, made: Made) -> bool:
        asked = any(output.what == what for output in plan.outputs)
        return asked or (made.ingredients.get("checkpoint") == plan.sources and _is_unchanged(plan.folder, made))

    made = manifest.of(
        plan.model,
        plan.spec,
        plan.inputs.seen,
        {what: made for what, made in outputs.items() if holds(what, made)},
        plan.bound,
        self_contained=not plan.onnx.ingredients["refers"],
    )
    return manifest.dump(made)


def _is_unchanged(folder: Path, made: Made) -> bool:
    try:
        return all(record.is_unchanged(folder / name, seen) for name, seen in made.files.items())
    except OSError:
        return False


def content(path: Path) -> bytes:
    """Of a file; nothing of one that cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def keep(
    plan: Plan,
    results: Results,
    graphs: Mapping[Variant | None, bytes | None],
    outcomes: Iterable[Outcome],
    places: Mapping[str, Path],
    reporter: Reporter,
) -> None:
    """Put into the cache what may be wanted again; that it cannot be kept is no failure."""

    def keep_one(outcome: Outcome) -> None:
        output = outcome.output
        if output.what != ONNX and outcome.how != "from the cache" and not results.find(output.ingredients):
            at = {**output.paths, **places}
            results.keep(output.ingredients, {n: (at[n], _kept(seen)) for n, seen in outcome.files.items()})
        if outcome.proof and not results.find(outcome.proof.ingredients):
            results.keep_bytes(outcome.proof.ingredients, "proof.json", msgspec.json.encode(outcome.proof))

    try:
        for way in plan.ways:
            if (graph := graphs.get(way.variant)) and not results.find(way.graph):
                results.keep_bytes(way.graph, "graph.onnx", graph)
        each(keep_one, outcomes)
    except DiskError as error:
        reporter.note(f"... not kept in the cache: {error.what}")


def _kept(seen: Seen) -> Kept:
    return Kept(seen.size, seen.digest.removeprefix("sha256:"))
