"""The proof: the files keep the contract, and answer as the PyTorch model does."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omz_tools import libraries
from omz_tools.checkpoint import Checkpoint
from omz_tools.descriptor import Export, TensorSpec
from omz_tools.errors import CheckpointError, ProofError
from omz_tools.pytorch_model import whole
from omz_tools.record import Difference
from omz_tools.stages import Ingredients

# The largest difference of a logit that is accepted, as a part of the largest logit of PyTorch (at least 1), because
# rounding errors grow with the numbers they are made on. F32 rounds to 6e-8; after the thousands of sums of a
# transformer two correct programs were seen to differ by 5e-7 to 3e-6. F16 weights are rounded to 4.9e-4; 3e-4 to
# 1.3e-3 was seen. The bounds leave room for other processors and deeper models, and are below what a wrong weight, a
# lost layer or F16 in place of F32 does.
TOLERANCE: Mapping[str, float] = {"ONNX": 2e-5, "FP32": 2e-5, "FP16": 5e-3}

_SEED = 0


# Part of what a proof depends on: raised when what is compared, or how, changes.
_FORMAT = 1


@dataclass(frozen=True)
class Reference:
    """Token ids [B, L] of several shapes, and the logits [B, L, vocabulary] that PyTorch gives for them."""

    inputs: list[Any]
    logits: list[Any]


@dataclass(frozen=True)
class Figure:
    """What was measured of one file.

    Attributes:
        what: "ONNX" or the precision of an IR.
        differences: for each shape of the input, the largest absolute difference of a logit, and what it may be.
    """

    what: str
    differences: tuple[Difference, ...]

    @property
    def largest(self) -> float:
        return max(difference.largest for difference in self.differences)

    @property
    def within_bounds(self) -> bool:
        return all(difference.largest <= difference.bound for difference in self.differences)

    def __str__(self) -> str:
        shapes = ", ".join(f"({difference.batch},{difference.length})" for difference in self.differences)
        bound = max(difference.bound for difference in self.differences)
        return f"{self.what}: largest difference to PyTorch {self.largest:.1e} at {shapes}; bound {bound:.1e}"


def shapes(positions: int) -> tuple[tuple[int, int], ...]:
    """The shapes [B, L] of the quick proof for a model of that many positions."""
    return ((1, 1), (2, min(7, positions)), (1, min(64, positions)))


def ingredients(spec: Export, what: str) -> Ingredients:
    """What a proof depends on besides the files that are compared."""
    runtime = "onnxruntime" if what == "ONNX" else "openvino"
    names = ("torch", "transformers", runtime)
    return {
        "stage": "proof",
        "format": _FORMAT,
        "what": what,
        "model_class": spec.model_class,
        "tensors": {tensor.name: [tensor.type, *tensor.shape] for tensor in (*spec.inputs, *spec.outputs)},
        "tolerance": TOLERANCE[what],
        "versions": {name: libraries.version(name) for name in names},
    }


def reference(checkpoint: Checkpoint, spec: Export) -> Reference:
    """What PyTorch answers to token ids drawn at random, in F32.

    It is the model as transformers loads it from the checkpoint, with its plainest attention: neither our way of
    binding weights nor our attention has a part in it.

    Raises:
        CheckpointError: transformers does not load the checkpoint, or a score is infinite or no number.
    """
    np, torch = libraries.load("numpy"), libraries.load("torch")
    draw = np.random.default_rng(_SEED)
    vocabulary, positions = spec.outputs[0].shape[-1], checkpoint.config["n_positions"]
    inputs = [draw.integers(0, vocabulary, shape, dtype=np.int64) for shape in shapes(positions)]
    model = whole(checkpoint, spec.model_class)
    with torch.no_grad():
        logits = [model(input_ids=torch.from_numpy(ids)).logits.numpy() for ids in inputs]
    if not all(np.isfinite(some).all() for some in logits):
        raise CheckpointError(
            "PyTorch itself gives scores that are infinite or no numbers",
            hint="The weights hold such values, or are too large. Nothing was converted.",
        )
    return Reference(inputs, logits)


def compare(reference: Reference, spec: Export, what: str, path: Path) -> Figure:
    """Check the contract of one file, and compare its logits, computed in F32, with PyTorch's.

    Args:
        reference: of the checkpoint that the file was made from.
        spec: names, types and axes that the file must have.
        what: "ONNX" or the precision of an IR.
        path: the ONNX model, or the .xml.

    Raises:
        ProofError: the file breaks the contract, or cannot be run, or gives something of another kind.
    """
    check_contract(what, path, spec)
    logits = _onnx_logits(path, spec, reference.inputs) if what == "ONNX" else _ir_logits(path, reference.inputs)
    return _figure(what, reference, logits)


def judge(figures: Iterable[Figure]) -> None:
    """Raise ProofError if a difference is beyond its bound or no number."""
    wrong = [figure for figure in figures if not figure.within_bounds]
    if wrong:
        raise ProofError(
            "the converted model does not answer as PyTorch does:\n" + "\n".join(map(str, wrong)),
            hint=_advice({figure.what for figure in wrong}),
        )


def _advice(wrong: set[str]) -> str:
    if wrong == {"FP16"}:
        return "No output was written. The weights may be beyond what f16 holds: try --precisions FP32."
    return "No output was written. Please report this with the versions of torch, transformers and openvino."


def _figure(what: str, reference: Reference, logits: list[Any]) -> Figure:
    np = libraries.load("numpy")
    differences: list[Difference] = []
    for ids, got, wanted in zip(reference.inputs, logits, reference.logits, strict=True):
        batch, length = ids.shape
        if got.shape != wanted.shape or got.dtype != wanted.dtype:
            raise ProofError(
                f"{what} gives {got.dtype} {got.shape} for {ids.shape}, PyTorch {wanted.dtype} {wanted.shape}"
            )
        difference = float(np.abs(got - wanted).max())
        largest = difference if math.isfinite(difference) else math.inf
        differences.append(Difference(batch, length, largest, TOLERANCE[what] * max(1.0, float(np.abs(wanted).max()))))
    return Figure(what, tuple(differences))


def _onnx_logits(path: Path, spec: Export, inputs: list[Any]) -> list[Any]:
    onnxruntime = libraries.load("onnxruntime")
    options = onnxruntime.SessionOptions()
    # Weights laid out anew would be a second copy of them in memory, for three short runs; and others work beside.
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return [session.run([spec.outputs[0].name], {spec.inputs[0].name: ids})[0] for ids in inputs]
    except Exception as error:
        raise ProofError(f"ONNX Runtime cannot run the ONNX model: {libraries.reason(error)}") from error


def _ir_logits(xml: Path, inputs: list[Any]) -> list[Any]:
    openvino = libraries.load("openvino")
    # Processors with bf16 units would use them unasked, and the proof would measure that instead of the conversion.
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    try:
        compiled = openvino.Core().compile_model(xml, "CPU", settings)
        return [compiled(ids)[0].copy() for ids in inputs]
    except Exception as error:
        raise ProofError(f"OpenVINO cannot run {xml.parent.name}: {libraries.reason(error)}") from error


def check_contract(what: str, path: Path, spec: Export) -> None:
    """Raise ProofError if the inputs and outputs of a file are not what the descriptor promises."""
    named = what == "ONNX"
    found = _onnx_contract(path) if named else _ir_contract(path)

    def axes(tensor: TensorSpec) -> tuple[str | int, ...]:
        # OpenVINO's axes have no names: dynamic ones are "?" there.
        return tensor.shape if named else tuple(axis if isinstance(axis, int) else "?" for axis in tensor.shape)

    wanted = [TensorSpec(t.name, t.type, axes(t)) for t in (*spec.inputs, *spec.outputs)]
    if found != wanted:
        name = "the ONNX model" if named else f"the {what} IR"
        raise ProofError(f"{name} has {_text(found)}; the descriptor asks for {_text(wanted)}")


def _text(tensors: list[TensorSpec]) -> str:
    return ", ".join(f"{t.name} {t.type} [{', '.join(map(str, t.shape))}]" for t in tensors)


def _onnx_contract(path: Path) -> list[TensorSpec]:
    """The inputs and outputs as the ONNX file has them; an axis without name or size is "?"."""
    onnx = libraries.load("onnx")
    types: dict[int, Any] = {onnx.TensorProto.INT64: "i64", onnx.TensorProto.FLOAT: "f32"}
    graph = onnx.load(path, load_external_data=False).graph
    return [
        TensorSpec(
            value.name,
            types.get(value.type.tensor_type.elem_type, "?"),
            tuple(
                axis.dim_value if axis.HasField("dim_value") else axis.dim_param or "?"
                for axis in value.type.tensor_type.shape.dim
            ),
        )
        for value in (*graph.input, *graph.output)
    ]


def _ir_contract(xml: Path) -> list[TensorSpec]:
    """The inputs and outputs as the IR has them; a dynamic axis is "?"."""
    openvino = libraries.load("openvino")
    try:
        model = openvino.Core().read_model(xml)
    except Exception as error:
        raise ProofError(f"OpenVINO cannot read {xml.parent.name}: {libraries.reason(error)}") from error
    return [
        TensorSpec(
            port.get_any_name(),
            port.element_type.get_type_name(),
            tuple("?" if axis.is_dynamic else axis.get_length() for axis in port.partial_shape),
        )
        for port in (*model.inputs, *model.outputs)
    ]
