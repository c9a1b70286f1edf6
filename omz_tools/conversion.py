"""The straight line from a checkpoint to proven IR: which stage follows which, and which processors work at once."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec

from omz_tools import binding, ir, libraries, model_optimizer, onnx_export, record, values, verify
from omz_tools.checkpoint import Checkpoint
from omz_tools.conversion_plan import ONNX, Output, Plan, each, proof_in
from omz_tools.descriptor import Precision
from omz_tools.errors import DiskError
from omz_tools.files import disk_errors, room_for
from omz_tools.progress import Reporter
from omz_tools.pytorch_model import NAMING
from omz_tools.record import Made, Proof, Record, Seen
from omz_tools.results import Kept, Results
from omz_tools.staging import Staging
from omz_tools.workers import Pending, Worker, Workers


@dataclass(frozen=True)
class Outcome:
    """What became of an output: how it came to be in place, and its proof if it has one."""

    output: Output
    how: str
    files: dict[str, Seen]
    proof: Proof | None


def carry_out(plan: Plan, results: Results, workers: Workers, reporter: Reporter) -> list[Outcome]:
    """Make what is not in place, prove what is not proven, and put it in place.

    The files appear after the proof; until then, and if anything fails, what was there stays as it was.

    Raises:
        OmzError: of the stage that failed.
    """
    name, folder = plan.model.name, plan.folder
    need = _memory(plan)
    with workers.room(need, lambda: reporter.section("Waiting until there is memory for it")), ExitStack() as stack:
        staging = stack.enter_context(Staging(folder))
        stack.enter_context(disk_errors("Writing to", folder))
        run = _Run(plan, results, reporter, staging, lambda: stack.enter_context(workers.worker()))
        outcomes = run.all()
        record.write(_record(plan, outcomes), staging.record(record.path_of(folder, name)))
        staging.publish()
    return outcomes


def _record(plan: Plan, outcomes: Iterable[Outcome]) -> Record:
    outputs = dict(plan.known.outputs)
    outputs |= {o.output.what: Made(o.output.ingredients, o.files, o.proof) for o in outcomes}
    return Record(inputs=plan.inputs, outputs=outputs)


class _Run:
    """One conversion, from the graph to the proof."""

    def __init__(
        self, plan: Plan, results: Results, reporter: Reporter, staging: Staging, hire: Callable[[], Worker]
    ) -> None:
        self._plan, self._results, self._reporter, self._hire = plan, results, reporter, hire
        self._places = self._stage(staging)
        self._how = {output.what: "made" if output.stale else "in place" for output in plan.outputs}
        self._referee: Worker | None = None
        self._asked: Pending[verify.Reference] | None = None
        self._comparing: dict[str, Pending[verify.Figure]] = {}
        self._looked_at: dict[str, dict[str, Seen]] = {}
        self._proofs: dict[str, Proof] = {}

    def _stage(self, staging: Staging) -> dict[str, Path]:
        """Where each file is: under a hidden name if it is to be made, else in place."""
        places = {name: path for output in self._plan.outputs for name, path in output.paths.items()}
        for output in self._plan.stale:
            if output.what == ONNX:
                places[next(iter(output.paths))] = staging.file(output.path)
            else:
                hidden = staging.folder(output.path.parent)
                places |= {name: hidden / path.name for name, path in output.paths.items()}
        return places

    def _at(self, output: Output) -> Path:
        return self._places[next(iter(output.paths))]

    def all(self) -> list[Outcome]:
        plan = self._plan
        todo = [output for output in plan.stale if output.what != ONNX and not self._is_cached(output)]
        room_for(plan.folder, sum(_least_room(plan.checkpoint, output.what) for output in todo))
        graph = self._results.read(plan.graph) if plan.onnx.stale else b""
        maker = self._hire() if todo or plan.onnx.stale else None
        # While the graph is traced on one processor, PyTorch computes on another what it will be compared with.
        if plan.verify != "off" and (todo or graph is None):
            self._refer()
        checking = self._check_values(maker, todo) if maker else None
        if graph is None:
            graph = self._trace(maker)
        if checking:
            checking.result()
        if maker:
            self._make(maker, graph, todo)
        self._prove(todo, maker)
        outcomes = [self._outcome(output) for output in plan.outputs]
        self._keep(graph, outcomes)
        return outcomes

    def _is_cached(self, output: Output) -> bool:
        if not self._results.take(output.ingredients, {name: self._places[name] for name in output.paths}):
            return False
        self._reporter.note(f"... the {output.what} IR is in the cache")
        self._how[output.what] = "from the cache"
        return True

    def _refer(self) -> Pending[verify.Reference]:
        """Let PyTorch compute what the outputs are compared with."""
        if not self._asked:
            self._referee = self._hire()
            self._asked = self._referee.begin(verify.reference, self._plan.checkpoint, self._plan.spec)
        return self._asked

    def _reference(self) -> verify.Reference:
        """What PyTorch computed; its process is not needed any more."""
        reference = self._refer().result()
        if self._referee:
            self._referee.end()
        return reference

    def _check_values(self, worker: Worker, todo: list[Output]) -> Pending[None]:
        naming = NAMING[self._plan.spec.model_class]
        tensors = self._plan.checkpoint.tensors.items()
        # Others are refused later, with what there should be in their places.
        weights = {n: t for n, t in tensors if t.dtype == "F32" and not n.endswith(tuple(naming.buffers))}
        return worker.begin(values.check, weights, [output.precision for output in todo if output.precision])

    def _trace(self, maker: Worker | None) -> bytes:
        self._reporter.section("Exporting PyTorch to ONNX")
        tracer = self._hire()
        tracing = tracer.begin(onnx_export.trace, self._plan.checkpoint, self._plan.spec)
        if maker:
            maker.begin(libraries.warm, "onnx", "openvino")
        graph = tracing.result()
        tracer.end()
        return graph

    def _make(self, maker: Worker, graph: bytes, todo: list[Output]) -> None:
        plan, onnx = self._plan, self._at(self._plan.onnx)
        if plan.onnx.stale:
            maker.call(binding.bind, graph, plan.checkpoint, plan.spec, onnx)
        making = None
        targets: dict[Precision, Path] = {o.precision: self._at(o) for o in todo if o.precision}
        if todo:
            self._reporter.section(f"Converting ONNX to OpenVINO IR ({', '.join(output.what for output in todo)})")
            if not plan.optimizer:
                making = maker.begin(ir.convert, onnx, plan.model.name, targets)
        if plan.verify != "off":
            self._compare(plan.onnx, self._hire)
        if plan.optimizer and todo:
            described = plan.model.descriptor.input_info
            model_optimizer.convert(onnx, plan.model.name, targets, plan.spec, described, plan.optimizer)
        if making:
            making.result()

    def _prove(self, todo: list[Output], maker: Worker | None) -> None:
        """Have all outputs compared with PyTorch whose proof is not known."""
        plan = self._plan
        if plan.verify == "off":
            for output in todo:
                if maker:
                    maker.call(verify.check_contract, output.what, self._at(output), plan.spec)
            return
        for output in plan.outputs:
            # One after the other in one process: each takes memory of the size of the weights.
            self._compare(output, lambda: maker or self._hire(), is_new=output in todo)
        if self._comparing:
            self._reporter.section(f"Comparing with PyTorch ({', '.join(self._comparing)})")
        for output in plan.outputs:
            self._seen(output)  # hashed here while others compute
        figures = {what: comparing.result() for what, comparing in self._comparing.items()}
        for figure in figures.values():
            self._reporter.note(str(figure))
        verify.judge(figures.values())
        for output in plan.outputs:
            if output.what in figures:
                proven = plan.proof_of(output, self._seen(output))
                self._proofs[output.what] = Proof(proven, figures[output.what].differences)

    def _compare(self, output: Output, worker: Callable[[], Worker], *, is_new: bool = False) -> None:
        """Have one output compared with PyTorch, unless that is under way or its proof is known."""
        if output.what in self._comparing or output.what in self._proofs:
            return
        if not is_new and (proof := proof_in(self._plan, output, self._seen(output), self._results)):
            self._proofs[output.what] = proof
            return
        self._comparing[output.what] = worker().begin(
            verify.compare, self._reference(), self._plan.spec, output.what, self._at(output)
        )

    def _seen(self, output: Output) -> dict[str, Seen]:
        """The files of an output as they are now, hashed once."""
        if output.what not in self._looked_at:
            paths = [self._places[name] for name in output.paths]
            seen = (
                output.made.files if output.made else dict(zip(output.paths, each(record.look_at, paths), strict=True))
            )
            self._looked_at[output.what] = seen
        return self._looked_at[output.what]

    def _outcome(self, output: Output) -> Outcome:
        known = output.made.proof if output.made else None
        proof = self._proofs.get(output.what, known)
        return Outcome(output, self._how[output.what], self._seen(output), proof)

    def _keep(self, graph: bytes, outcomes: list[Outcome]) -> None:
        """Put into the cache what may be wanted again; that it cannot be kept is no failure."""
        try:
            if graph and not self._results.find(self._plan.graph):
                self._results.keep_bytes(self._plan.graph, "graph.onnx", graph)
            for outcome in outcomes:
                output = outcome.output
                if (
                    output.what != ONNX
                    and outcome.how != "from the cache"
                    and not self._results.find(output.ingredients)
                ):
                    self._results.keep(
                        output.ingredients, {n: (self._places[n], _kept(s)) for n, s in outcome.files.items()}
                    )
                if outcome.proof and not self._results.find(outcome.proof.ingredients):
                    self._results.keep_bytes(
                        outcome.proof.ingredients, "proof.json", msgspec.json.encode(outcome.proof)
                    )
        except DiskError as error:
            self._reporter.note(f"... not kept in the cache: {error.what}")


def _kept(seen: Seen) -> Kept:
    return Kept(seen.size, seen.digest.removeprefix("sha256:"))


# What an IR takes at least, as a part of the weights: masks, which checkpoints hold, do not get into it.
_SHARES = {"FP16": 0.4, "FP32": 0.8}


def _least_room(read: Checkpoint, precision: str) -> int:
    return int(_SHARES[precision] * sum(tensor.length for tensor in read.tensors.values()))


def _memory(plan: Plan) -> int:
    """Bytes that a conversion takes at most, by what was measured: see docs/performance.md."""
    weights = sum(tensor.length for tensor in plan.checkpoint.tensors.values())
    return int(600e6 + (0.1 if plan.verify == "off" else 2.0) * weights)
