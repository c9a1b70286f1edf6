"""Who compares what with PyTorch, and when: the memory that it takes decides how many at a time."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from omz_tools.cache.record import Edge, Proof, Seen
from omz_tools.cache.results import Results
from omz_tools.conversion.planning import proof_in
from omz_tools.conversion.plans import Output, Plan
from omz_tools.errors import ConversionError
from omz_tools.proof import reference, verify
from omz_tools.proof.differences import Figure
from omz_tools.proof.reference import Reference
from omz_tools.system.workers import Pending, Worker


class Proving:
    """The proofs of one conversion: those that are known, and those that processes are at."""

    def __init__(
        self,
        plan: Plan,
        results: Results,
        hire: Callable[[], Worker],
        folder: Path,
        at: Callable[[Output], Path],
        seen: Callable[[Output], Mapping[str, Seen]],
        at_a_time: int,
    ) -> None:
        """What is to be proven; who works, and where logits go; where an output lies now, and its files as they are."""
        self._plan, self._results, self._hire, self._folder = plan, results, hire, folder
        self._at, self._seen = at, seen
        self._full = plan.verify == "full"
        self._at_a_time = at_a_time
        self._referee: Worker | None = None
        self._asked: Pending[Reference] | None = None
        self._comparing: dict[str, tuple[Output, Worker, Pending[Figure]]] = {}
        self._figures: dict[str, Figure] = {}
        self._proofs: dict[str, Proof] = {}

    def refer(self, worker: Worker | None = None) -> Pending[Reference]:
        """Let PyTorch compute what the outputs are compared with, in a process of its own if none is given."""
        if not self._asked:
            self._referee = worker or self._hire()
            plan = self._plan
            self._asked = self._referee.begin(reference.make, plan.checkpoint, plan.spec, self._folder, full=self._full)
        return self._asked

    def _reference(self) -> Reference:
        """What PyTorch computed; its process is not needed any more."""
        computed = self.refer().result()
        if self._referee:
            self._referee.end()
        return computed

    def compare(self, output: Output, worker: Worker | None = None, *, is_new: bool = False) -> None:
        """Have one output compared, unless that is under way or its proof is known; the process ends with it.

        Raises:
            OmzError: of one that had to end before.
        """
        if {output.what} & (self._comparing.keys() | self._figures.keys() | self._proofs.keys()):
            return
        if not is_new and (proof := proof_in(self._plan, output, self._seen(output), self._results)):
            self._proofs[output.what] = proof
            return
        computed = self._reference()
        while len(self._comparing) >= self._at_a_time:
            self._settle(next(iter(self._comparing)))
        worker = worker or self._hire()
        bound = self._plan.bound(output.what)
        pending = worker.begin(verify.compare, computed, self._plan.spec, output.what, self._at(output), bound)
        self._comparing[output.what] = output, worker, pending

    def _settle(self, what: str) -> None:
        output, worker, pending = self._comparing[what]
        figure = pending.result()
        if self._full and figure.within_bounds:
            figure = replace(figure, edges=tuple(self._edges(output, worker)))
        self._figures[what] = figure
        worker.end()
        del self._comparing[what]

    def _edges(self, output: Output, worker: Worker) -> Iterator[Edge]:
        """What an output does with inputs that it is not made for, beside what PyTorch does."""
        plan = self._plan
        cases = reference.strange(plan.checkpoint.config["n_positions"], plan.spec.vocabulary)
        did = self._behaviours(output, worker, cases)
        for case, pytorch in self._reference().edges.items():
            yield Edge(case, pytorch, did[case])

    def _behaviours(self, output: Output, worker: Worker, cases: dict[str, list[list[int]]]) -> dict[str, str]:
        """What an output does with all of `cases`; if that ends the process, each is tried in one of its own."""
        try:
            return worker.call(verify.behaviours, output.what, self._at(output), self._plan.spec, cases)
        except ConversionError:
            if len(cases) == 1:
                return dict.fromkeys(cases, "ends the process")
        did: dict[str, str] = {}
        for case, ids in cases.items():
            did |= self._behaviours(output, self._hire(), {case: ids})
        return did

    @property
    def under_way(self) -> list[str]:
        """What is compared or was."""
        return [*self._figures, *self._comparing]

    def figures(self) -> list[Figure]:
        """What came out, when all have ended; each is a proof if it is within its bounds. Raises OmzError."""
        for what in list(self._comparing):
            self._settle(what)
        return list(self._figures.values())

    def proof(self, output: Output) -> Proof | None:
        """The proof of an output, which was known, or comes of its figure."""
        if figure := self._figures.get(output.what):
            made_of = self._plan.proof_of(output, self._seen(output), full=self._full)
            return Proof(made_of, figure.differences, figure.edges, figure.rounding)
        return self._proofs.get(output.what)
