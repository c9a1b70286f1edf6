"""What a conversion is about: what is asked for, which outputs there are to be, and how each is made."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from omz_tools.cache.record import Made, Proof, Record, Seen
from omz_tools.cache.stages import Ingredients
from omz_tools.conversion.inputs import Inputs
from omz_tools.descriptors.descriptor import Bound, Export, Precision, Variant
from omz_tools.descriptors.kinds import precision_of, variant_of
from omz_tools.descriptors.zoo import Model
from omz_tools.export.checkpoint import Checkpoint
from omz_tools.export.model_optimizer import ModelOptimizer
from omz_tools.proof import differences, verify

Verify = Literal["off", "quick", "full"]
Check = Literal["hash", "stat"]


@dataclass(frozen=True)
class Wish:
    """What is asked for.

    Attributes:
        download_dir: where omz_downloader put the tree of models.
        output_dir: where the tree of converted models begins; may be the same.
        precisions: those asked for, of which a model's own are made, and FP16-INT8; None for what the descriptor says.
        variants: what is made beside the contract's IRs; None for what the descriptor says.
        opset: version of the ONNX operator set; None for the descriptor's.
        optimizer: the Model Optimizer that makes the IRs; None for OpenVINO's converter of today.
        verify: whether the results are compared with PyTorch, at a few shapes or at all that matter.
        check: whether files that are in place are hashed, or taken for what they were while size, modification time and
            inode are the same.
        force: make everything again.
    """

    download_dir: Path
    output_dir: Path
    precisions: tuple[str, ...] | None = None
    variants: tuple[Variant, ...] | None = None
    opset: int | None = None
    optimizer: ModelOptimizer | None = None
    verify: Verify = "quick"
    check: Check = "hash"
    force: bool = False


@dataclass(frozen=True)
class Output:
    """The ONNX model, or the IR of one precision with all that lies in its folder.

    Attributes:
        what: see `kinds`.
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
        return precision_of(self.what)

    @property
    def variant(self) -> Variant | None:
        """None for what the contract is about."""
        return variant_of(self.what)


@dataclass(frozen=True)
class Way:
    """How the outputs of the contract, or those of a variant, are made.

    Attributes:
        variant: None for the contract.
        spec: what is traced, with which inputs and outputs.
        graph: what the graph depends on.
    """

    variant: Variant | None
    spec: Export
    graph: Ingredients


@dataclass(frozen=True)
class Plan:
    """What there is to do for one model.

    Attributes:
        model: what to convert.
        ways: how; the contract's first.
        checkpoint: what it is made from.
        sources: the digests of the checkpoint's files by name.
        folder: where the outputs go.
        known: the record of what was made there before.
        inputs: the downloaded files.
        outputs: what is asked for.
        optimizer: the Model Optimizer that makes the IRs, if one does.
        verify: whether and how the outputs are compared with PyTorch.
    """

    model: Model
    ways: tuple[Way, ...]
    checkpoint: Checkpoint
    sources: dict[str, str]
    folder: Path
    known: Record
    inputs: Inputs
    outputs: tuple[Output, ...]
    optimizer: ModelOptimizer | None
    verify: Verify

    @property
    def spec(self) -> Export:
        """The contract."""
        return self.ways[0].spec

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
        """How far an output may be from PyTorch; one of a variant as one of the contract."""
        precision = precision_of(what) or "FP32"
        of_model = [bound for bound in self.model.descriptor.bounds if bound.precision == precision]
        return of_model[0] if of_model else differences.BOUNDS[precision]

    def proof_of(self, output: Output, seen: Mapping[str, Seen], *, full: bool) -> Ingredients:
        """What the proof of an output depends on, whose files are as `seen`."""
        positions = self.checkpoint.config["n_positions"]
        made = verify.ingredients(self.spec, output.what, self.bound(output.what), positions, full=full)
        digests = {name: file.digest for name, file in seen.items()}
        return plain(made | {"files": digests, "checkpoint": self.sources})

    def enough(self, output: Output, seen: Mapping[str, Seen]) -> list[Ingredients]:
        """Of the proofs that would do for an output whose files are as `seen`, what they depend on: the full one last.

        Each is made as it would be made now.
        """
        kinds = (True,) if self.verify == "full" else (False, True)
        return [self.proof_of(output, seen, full=full) for full in kinds]

    def proves(self, proof: Proof, output: Output, seen: Mapping[str, Seen]) -> bool:
        """Whether a proof is one of these files that would do."""
        return proof.ingredients in self.enough(output, seen)


def plain(ingredients: Ingredients) -> Ingredients:
    """As they come back from a file."""
    read: Ingredients = json.loads(json.dumps(ingredients))
    return read
