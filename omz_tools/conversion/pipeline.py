"""The straight line from a checkpoint to proven IR: which stage follows which, and which processors work at once."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from omz_tools.cache import record
from omz_tools.cache.record import Seen
from omz_tools.cache.results import Results
from omz_tools.conversion import needs, outcome
from omz_tools.conversion.outcome import Outcome
from omz_tools.conversion.planning import each
from omz_tools.conversion.plans import Output, Plan, Way
from omz_tools.conversion.proving import Proving
from omz_tools.descriptors.descriptor import COMPRESSED, Precision
from omz_tools.descriptors.kinds import ONNX
from omz_tools.export import binding, compression, ir, model_optimizer, onnx_export, tokenizer_ir, values
from omz_tools.export.pytorch_model import NAMING
from omz_tools.progress.reporting import Reporter
from omz_tools.proof import differences, manifest, verify
from omz_tools.system import libraries
from omz_tools.system.files import disk_errors, room_for
from omz_tools.system.staging import Staging, sweep
from omz_tools.system.workers import Pending, Worker, Workers


def carry_out(plan: Plan, results: Results, workers: Workers, reporter: Reporter) -> list[Outcome]:
    """Make what is not in place, prove what is not proven, and put it in place.

    The files appear after the proof; until then, and if anything fails, what was there stays as it was. Where all is in
    place and known, nothing is written there.

    Raises:
        OmzError: of the stage that failed.
    """
    name, folder = plan.model.name, plan.folder
    place = folder / f"{name}{manifest.SUFFIX}"
    if (
        plan.is_done
        and plan.inputs.seen == plan.known.inputs
        and outcome.manifest_of(plan, plan.known.outputs) == outcome.content(place)
    ):
        plan.inputs.verified()
        sweep(folder)
        outcomes = [Outcome(o, "in place", o.made.files, o.made.proof) for o in plan.outputs if o.made]
        outcome.keep(plan, results, {}, outcomes, {}, reporter)
        return outcomes
    at_a_time = 2 if workers.allow(needs.memory(plan, 2)) else 1
    need = needs.memory(plan, at_a_time)
    with workers.room(need, lambda: reporter.section("Waiting until there is memory for it")), ExitStack() as stack:
        staging = stack.enter_context(Staging(folder))
        stack.enter_context(disk_errors("Writing to", folder))
        scratch = Path(stack.enter_context(TemporaryDirectory(ignore_cleanup_errors=True)))
        run = _Run(plan, results, reporter, staging, lambda: stack.enter_context(workers.worker()), scratch, at_a_time)
        outcomes = run.all()
        known = outcome.record_of(plan, outcomes)
        staging.file(place).write_bytes(outcome.manifest_of(plan, known.outputs))
        record.write(known, staging.record(record.path_of(folder, name)))
        staging.publish()
    return outcomes


class _Run:
    """One conversion, from the graph to the proof."""

    def __init__(
        self,
        plan: Plan,
        results: Results,
        reporter: Reporter,
        staging: Staging,
        hire: Callable[[], Worker],
        scratch: Path,
        at_a_time: int,
    ) -> None:
        self._plan, self._results, self._reporter, self._hire = plan, results, reporter, hire
        self._staging = staging
        self._places = self._stage()
        self._how = {output.what: "made" if output.stale else "in place" for output in plan.outputs}
        self._looked_at: dict[str, dict[str, Seen]] = {}
        self._proving = Proving(plan, results, hire, scratch, self._at, self._seen, at_a_time)

    def _stage(self) -> dict[str, Path]:
        """Where each file is: under a hidden name if it is to be made, else in place."""
        places = {name: path for output in self._plan.outputs for name, path in output.paths.items()}
        for output in self._plan.stale:
            if output.what == ONNX:
                places[next(iter(output.paths))] = self._staging.file(output.path)
            else:
                hidden = self._staging.folder(output.path.parent)
                places |= {name: hidden / path.name for name, path in output.paths.items()}
        return places

    def _at(self, output: Output) -> Path:
        return self._places[next(iter(output.paths))]

    def all(self) -> list[Outcome]:
        plan = self._plan
        todo = [output for output in plan.stale if output.what != ONNX and not self._is_cached(output)]
        room_for(plan.folder, needs.disk(plan, todo))
        # The contract's IRs are made of the ONNX model, which may be in place; a variant's of one that is not kept.
        made = {output.variant for output in todo if output.variant} | ({None} if plan.onnx.stale else set())
        graphs = {way.variant: self._results.read(way.graph) for way in plan.ways if way.variant in made}
        untraced = [way for way in plan.ways if way.variant in made and graphs[way.variant] is None]
        maker = self._hire() if todo or made else None
        pytorch = self._hire() if untraced else None
        tracing = {
            way.variant: pytorch.begin(onnx_export.trace, plan.checkpoint, way.spec, past=way.variant is not None)
            for way in untraced
            if pytorch
        }
        if plan.verify != "off" and (todo or pytorch):
            # Behind the trace in the same process, where PyTorch is loaded; the IRs are made meanwhile.
            self._proving.refer(pytorch)
        # Beside what uses the same weights meanwhile; nothing is compared or published before it says yes.
        values_are_right = self._check_values(todo) if maker else None
        if tracing and maker:
            maker.begin(libraries.warm, "onnx", "openvino")
        if maker and any(output.precision == COMPRESSED for output in todo):
            maker.call(compression.warm)  # that it is not there is said now, and not after the trace
        tokenizers = self._write_tokenizers(maker, todo) if maker else None
        for way in plan.ways:
            if way.variant in tracing:
                self._reporter.section(f"Exporting PyTorch to ONNX{_named(way)}")
                graphs[way.variant] = tracing[way.variant].result()
            if way.variant and tokenizers:
                tokenizers.result()
            if maker and values_are_right:
                mine = [output for output in todo if output.variant == way.variant]
                self._make(maker, way, graphs.get(way.variant) or b"", mine, values_are_right)
        if pytorch and plan.verify == "off":
            pytorch.end()
        self._prove(todo, maker)
        plan.inputs.verified()
        outcomes = [self._outcome(output) for output in plan.outputs]
        outcome.keep(plan, self._results, graphs, outcomes, self._places, self._reporter)
        return outcomes

    def _is_cached(self, output: Output) -> bool:
        if not self._results.take(output.ingredients, {name: self._places[name] for name in output.paths}):
            return False
        self._reporter.note(f"... the {output.what} IR is in the cache")
        self._how[output.what] = "from the cache"
        return True

    def _check_values(self, todo: list[Output]) -> Callable[[], None]:
        """Begin to look through the weights, in a process of its own; what comes back waits for it, and raises."""
        naming = NAMING[self._plan.spec.model_class]
        tensors = self._plan.checkpoint.tensors.items()
        # Others are refused later, with what there should be in their places.
        weights = {n: t for n, t in tensors if t.dtype == "F32" and not n.endswith(tuple(naming.buffers))}
        worker = self._hire()
        checking = worker.begin(values.check, weights, [output.precision for output in todo if output.precision])

        def are_right() -> None:
            checking.result()
            worker.end()

        return are_right

    def _write_tokenizers(self, maker: Worker, todo: list[Output]) -> Pending[None] | None:
        """Begin with what lies beside a variant's IRs, which needs no graph."""
        plan, folders = self._plan, [self._at(output).parent for output in todo if output.variant]
        if not folders:
            return None
        return maker.begin(
            tokenizer_ir.write, plan.checkpoint.folder, list(plan.model.descriptor.checkpoint_files), folders
        )

    def _make(
        self, maker: Worker, way: Way, graph: bytes, todo: list[Output], values_are_right: Callable[[], None]
    ) -> None:
        plan, onnx = self._plan, self._at(self._plan.onnx)
        if way.variant and graph:
            onnx = self._staging.temporary(plan.onnx.path)
        if graph:
            maker.call(binding.bind, graph, plan.checkpoint, way.spec, onnx)
        making = None
        targets: dict[Precision, Path] = {o.precision: self._at(o) for o in todo if o.precision}
        if todo:
            self._reporter.section(f"Converting ONNX to OpenVINO IR ({', '.join(output.what for output in todo)})")
            if not plan.optimizer:
                about, state = todo[0].ingredients["about"], way.variant is not None
                making = maker.begin(ir.convert, onnx, plan.model.name, targets, about, state=state)
        values_are_right()
        if plan.verify == "quick" and way.variant is None:
            # The full proof would wait for PyTorch here, for long.
            self._proving.compare(plan.onnx)
        if plan.optimizer and todo:
            described = plan.model.descriptor.input_info
            model_optimizer.convert(onnx, plan.model.name, targets, plan.spec, described, plan.optimizer)
        if making:
            making.result()

    def _prove(self, todo: list[Output], maker: Worker | None) -> None:
        """Have all outputs compared with PyTorch whose proof is not known; without a proof, see to their contracts."""
        plan = self._plan
        if plan.verify == "off":
            checks = [
                maker.begin(verify.check_contract, output.what, self._at(output), plan.spec)
                for output in plan.stale
                if maker and (output in todo or output.what == ONNX)
            ]
            self._settle()
            for check in checks:
                check.result()
            return
        for output in plan.outputs:
            self._proving.compare(output, maker if output in todo else None, is_new=output in todo)
            if output in todo:
                maker = None  # it takes one: each needs memory of the size of the weights
        if names := self._proving.under_way:
            self._reporter.section(f"Comparing with PyTorch ({', '.join(names)})")
        self._settle()
        for figure in (figures := self._proving.figures()):
            self._reporter.note(str(figure))
            for edge in figure.edges:
                self._reporter.note(f"  {edge.case}: PyTorch {edge.pytorch}, {figure.what} {edge.converted}")
        differences.judge(figures)

    def _settle(self) -> None:
        """Bring what was written to the disk, and hash it, while processes compute."""
        with ThreadPoolExecutor(1) as pool:
            settling = pool.submit(self._staging.settle)
            each(self._seen, self._plan.outputs)
            settling.result()

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
        proof = self._proving.proof(output) or known
        return Outcome(output, self._how[output.what], self._seen(output), proof)


def _named(way: Way) -> str:
    return f" ({way.variant})" if way.variant else ""
