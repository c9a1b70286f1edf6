"""The proof: the files keep the contract, and answer as the PyTorch model does."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from omz_tools.cache.stages import Ingredients
from omz_tools.descriptors.descriptor import COMPRESSED, Bound, Export, TensorSpec
from omz_tools.descriptors.kinds import ONNX, precision_of, text_of, variant_of
from omz_tools.errors import ProofError
from omz_tools.export import signatures, stateful
from omz_tools.proof import differences, rounding, runners
from omz_tools.proof.differences import Figure
from omz_tools.proof.reference import Reference, behaviour, shapes, strange
from omz_tools.system import libraries

# Part of what a proof depends on: raised when what is compared, or how, changes.
_FORMAT = 2


def ingredients(spec: Export, what: str, bound: Bound, positions: int, *, full: bool) -> Ingredients:
    """What a proof depends on besides the files that are compared."""
    runtime = "onnxruntime" if what == ONNX else "openvino"
    names = ("torch", "transformers", runtime)
    grid = shapes(positions, full=full)
    more: Ingredients = {"runs": [runners.runs(length) for _, length in grid]} if variant_of(what) else {}
    if precision_of(what) == COMPRESSED:
        more["rounding"] = rounding.FORMAT
    return more | {
        "stage": "proof",
        "format": _FORMAT,
        "what": what,
        "model_class": spec.model_class,
        "tensors": {tensor.name: [tensor.type, *tensor.shape] for tensor in (*spec.inputs, *spec.outputs)},
        "shapes": grid,
        "edges": list(strange(positions, 0)) if full else [],
        "bound": [bound.difference, bound.divergence, bound.top_token, bound.top_five],
        "versions": {name: libraries.version(name) for name in names},
    }


def compare(reference: Reference, spec: Export, what: str, path: Path, bound: Bound) -> Figure:
    """Check the contract of one file, and compare its logits, computed in F32, with PyTorch's.

    Weights in 8 bits are compared with the checkpoint's, too: they are what makes such a file answer otherwise.

    Args:
        reference: of the checkpoint that the file was made from.
        spec: names, types and axes of the contract.
        what: see `kinds`; an IR with a state is compared once given all tokens, and once run by run.
        path: the ONNX model, or the .xml.
        bound: how far the logits may be apart.

    Raises:
        ProofError: the file breaks the contract, or cannot be run, or gives something of another kind; or weights in
            8 bits are not the checkpoint's, rounded.
    """
    np = libraries.load("numpy")
    check_contract(what, path, spec)
    rounded = rounding.check(path, reference.checkpoint, spec) if precision_of(what) == COMPRESSED else None
    answers = runners.of(what, path, spec)
    found = []
    for ids, wanted in zip(reference.inputs, reference.logits, strict=True):
        if isinstance(wanted, Path):
            wanted = np.load(wanted, mmap_mode="r")
        length = ids.shape[1]
        parts = runners.runs(length) if variant_of(what) else [(length,)]
        for answer, part in zip(answers(length), parts, strict=True):
            try:
                logits = answer(ids)
            except Exception as error:
                raise ProofError(f"{text_of(what)} cannot be run: {libraries.reason(error)}") from error
            measured = differences.measure(what, bound, logits, wanted)
            found.append(msgspec.structs.replace(measured, runs=len(part)))
    return Figure(what, bound, tuple(found), rounding=rounded)


def behaviours(what: str, path: Path, spec: Export, cases: Mapping[str, list[list[int]]]) -> dict[str, str]:
    """What a file does with each of the token ids [B, L] in `cases`; it may end the process. Raises ProofError."""
    answers = runners.of(what, path, spec)
    return {case: behaviour(answers(len(ids[0]))[0], ids) for case, ids in cases.items()}


def check_contract(what: str, path: Path, spec: Export) -> None:
    """Raise ProofError if the inputs and outputs of a file are not what the descriptor promises."""
    named = what == ONNX
    found = _onnx_contract(path) if named else _ir_contract(path)

    def axes(tensor: TensorSpec) -> tuple[str | int, ...]:
        # OpenVINO's axes have no names: dynamic ones are "?" there.
        return tensor.shape if named else tuple(axis if isinstance(axis, int) else "?" for axis in tensor.shape)

    tensors = _of_state(spec) if variant_of(what) else [*spec.inputs, *spec.outputs]
    wanted = [TensorSpec(t.name, t.type, axes(t)) for t in tensors]
    if variant_of(what):  # found by their names, in no order
        found, wanted = (sorted(some, key=lambda tensor: tensor.name) for some in (found, wanted))
    if found != wanted:
        raise ProofError(f"{text_of(what)} has {_text(found)}; the descriptor asks for {_text(wanted)}")


def _of_state(spec: Export) -> list[TensorSpec]:
    """What an IR with a state takes and gives."""
    kept = signatures.with_past(spec)
    kind: Any = "i32"  # of no tensor in a descriptor
    return [*kept.inputs, TensorSpec(stateful.BEAMS, kind, ("B",)), *kept.outputs]


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
