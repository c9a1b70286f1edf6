"""The proof: the files keep the contract, and answer as the PyTorch model does."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from omz_tools.cache.stages import Ingredients
from omz_tools.descriptors.descriptor import Bound, Export, TensorSpec
from omz_tools.errors import ProofError
from omz_tools.proof import differences
from omz_tools.proof.differences import Figure
from omz_tools.proof.reference import Reference, behaviour, shapes, strange
from omz_tools.system import libraries

# Part of what a proof depends on: raised when what is compared, or how, changes.
_FORMAT = 2


def ingredients(spec: Export, what: str, bound: Bound, positions: int, *, full: bool) -> Ingredients:
    """What a proof depends on besides the files that are compared."""
    runtime = "onnxruntime" if what == "ONNX" else "openvino"
    names = ("torch", "transformers", runtime)
    return {
        "stage": "proof",
        "format": _FORMAT,
        "what": what,
        "model_class": spec.model_class,
        "tensors": {tensor.name: [tensor.type, *tensor.shape] for tensor in (*spec.inputs, *spec.outputs)},
        "shapes": shapes(positions, full=full),
        "edges": list(strange(positions, 0)) if full else [],
        "bound": [bound.difference, bound.divergence, bound.top_token, bound.top_five],
        "versions": {name: libraries.version(name) for name in names},
    }


def compare(reference: Reference, spec: Export, what: str, path: Path, bound: Bound) -> Figure:
    """Check the contract of one file, and compare its logits, computed in F32, with PyTorch's.

    Args:
        reference: of the checkpoint that the file was made from.
        spec: names, types and axes that the file must have.
        what: "ONNX" or the precision of an IR.
        path: the ONNX model, or the .xml.
        bound: how far the logits may be apart.

    Raises:
        ProofError: the file breaks the contract, or cannot be run, or gives something of another kind.
    """
    np = libraries.load("numpy")
    check_contract(what, path, spec)
    answer = _runner(what, path, spec)
    found = []
    for ids, wanted in zip(reference.inputs, reference.logits, strict=True):
        try:
            logits = answer(ids)
        except Exception as error:
            raise ProofError(f"{_named(what)} cannot be run: {libraries.reason(error)}") from error
        if isinstance(wanted, Path):
            wanted = np.load(wanted, mmap_mode="r")
        found.append(differences.measure(what, bound, logits, wanted))
    return Figure(what, bound, tuple(found))


def behaviours(what: str, path: Path, spec: Export, cases: Mapping[str, list[list[int]]]) -> dict[str, str]:
    """What a file does with each of the token ids [B, L] in `cases`; it may end the process. Raises ProofError."""
    answer = _runner(what, path, spec)
    return {case: behaviour(answer, ids) for case, ids in cases.items()}


def _runner(what: str, path: Path, spec: Export) -> Callable[[Any], Any]:
    """A function from token ids [B, L] to logits [B, L, vocabulary], computed in F32 by the file."""
    try:
        return _onnx_runner(path, spec) if what == "ONNX" else _ir_runner(what, path)
    except Exception as error:
        raise ProofError(f"{_named(what)} cannot be loaded: {libraries.reason(error)}") from error


def _onnx_runner(path: Path, spec: Export) -> Callable[[Any], Any]:
    onnxruntime = libraries.load("onnxruntime")
    options = onnxruntime.SessionOptions()
    # Weights laid out anew would be a second copy of them in memory, for a few short runs; and others work beside.
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # what fails is raised
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda ids: session.run([spec.outputs[0].name], {spec.inputs[0].name: ids})[0]


def _ir_runner(what: str, xml: Path) -> Callable[[Any], Any]:
    openvino = libraries.load("openvino")
    # Processors with bf16 units would use them unasked, and the proof would measure that instead of the conversion.
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    core = openvino.Core()
    model = core.read_model(xml)
    compiled: dict[bool, Any] = {}

    def answer(ids: Any) -> Any:
        # For a single token weights in f16 are widened into another layout, and both copies would be kept.
        single = what == "FP16" and ids.size == 1
        if single not in compiled:
            compiled.clear()
            compiled[single] = core.compile_model(model, "CPU", settings)
        return compiled[single](ids)[0].copy()

    return answer


def _named(what: str) -> str:
    return "the ONNX model" if what == "ONNX" else f"the {what} IR"


def check_contract(what: str, path: Path, spec: Export) -> None:
    """Raise ProofError if the inputs and outputs of a file are not what the descriptor promises."""
    named = what == "ONNX"
    found = _onnx_contract(path) if named else _ir_contract(path)

    def axes(tensor: TensorSpec) -> tuple[str | int, ...]:
        # OpenVINO's axes have no names: dynamic ones are "?" there.
        return tensor.shape if named else tuple(axis if isinstance(axis, int) else "?" for axis in tensor.shape)

    wanted = [TensorSpec(t.name, t.type, axes(t)) for t in (*spec.inputs, *spec.outputs)]
    if found != wanted:
        raise ProofError(f"{_named(what)} has {_text(found)}; the descriptor asks for {_text(wanted)}")


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
