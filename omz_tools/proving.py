"""Who compares what with PyTorch, and when: the memory that it takes decides how many at a time."""

from collections.abc import Callable, Mapping
from pathlib import Path

from omz_tools import verify
from omz_tools.conversion_plan import Output, Plan, proof_in
from omz_tools.record import Proof, Seen
from omz_tools.results import Results
from omz_tools.verify import Figure, Reference
from omz_tools.workers import Pending, Worker


class Proving:
    """The proofs of one conversion: those that are known, and those that processes are at."""

    def __init__(
        self,
        plan: Plan,
        results: Results,
        hire: Callable[[], Worker],
        at: Callable[[Output], Path],
        seen: Callable[[Output], Mapping[str, Seen]],
        at_a_time: int,
    ) -> None:
        """What is to be proven; who works; where an output lies now, and its files as they are now."""
        self._plan, self._results, self._hire, self._at, self._seen = plan, results, hire, at, seen
        self._at_a_time = at_a_time
        self._referee: Worker | None = None
        self._asked: Pending[Reference] | None = None
        self._comparing: dict[str, tuple[Worker, Pending[Figure]]] = {}
        self._figures: dict[str, Figure] = {}
        self._proofs: dict[str, Proof] = {}

    def refer(self, worker: Worker | None = None) -> Pending[Reference]:
        """Let PyTorch compute what the outputs are compared with, in a process of its own if none is given."""
        if not self._asked:
            self._referee = worker or self._hire()
            self._asked = self._referee.begin(verify.reference, self._plan.checkpoint, self._plan.spec)
        return self._asked

    def _reference(self) -> Reference:
        """What PyTorch computed; its process is not needed any more."""
        reference = self.refer().result()
        if self._referee:
            self._referee.end()
        return reference

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
        reference = self._reference()
        while len(self._comparing) >= self._at_a_time:
            self._settle(next(iter(self._comparing)))
        worker = worker or self._hire()
        pending = worker.begin(verify.compare, reference, self._plan.spec, output.what, self._at(output))
        self._comparing[output.what] = worker, pending

    def _settle(self, what: str) -> None:
        worker, pending = self._comparing[what]
        self._figures[what] = pending.result()
        worker.end()
        del self._comparing[what]

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
            return Proof(self._plan.proof_of(output, self._seen(output)), figure.differences)
        return self._proofs.get(output.what)
