"""A file as a function from token ids to logits, computed in F32: ONNX by ONNX Runtime, IR by OpenVINO."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from omz_tools.descriptors.descriptor import Export
from omz_tools.descriptors.kinds import ONNX, precision_of, text_of, variant_of
from omz_tools.errors import ProofError
from omz_tools.system import libraries

# Token ids [B, L] to logits [B, L, vocabulary].
Runner = Callable[[Any], Any]

# Tokens that are given one by one at the end, as in the generation of a text.
_ONE_BY_ONE = 16


def of(what: str, path: Path, spec: Export) -> Callable[[int], list[Runner]]:
    """A file, loaded: for a length L, the ways in which it is given the ids. They share their memory.

    Where it has a state, that is all at once, and then in runs from which to which the state is kept.

    Args:
        what: see `kinds`.
        path: the ONNX model, or the .xml.
        spec: the contract.

    Raises:
        ProofError: it cannot be loaded.
    """
    try:
        if variant_of(what):
            return _stateful(path, spec.vocabulary)
        runner = _onnx(path, spec) if what == ONNX else _ir(what, path)
    except Exception as error:
        raise ProofError(f"{text_of(what)} cannot be loaded: {libraries.reason(error)}") from error
    return lambda length: [runner]


def runs(length: int) -> list[tuple[int, ...]]:
    """In how many tokens at a time a model with a state is given so many: all at once; half, half, and one by one."""
    single = min(_ONE_BY_ONE, length // 2)
    first = (length - single) // 2
    parts = tuple(part for part in (first, length - single - first, *[1] * single) if part)
    return list(dict.fromkeys([(length,), parts]))


def _onnx(path: Path, spec: Export) -> Runner:
    onnxruntime = libraries.load("onnxruntime")
    options = onnxruntime.SessionOptions()
    # Weights laid out anew would be a second copy of them in memory, for a few short runs; and others work beside.
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # what fails is raised
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda ids: session.run([spec.outputs[0].name], {spec.inputs[0].name: ids})[0]


# Processors with bf16 units would use them unasked, and the proof would measure that instead of the conversion.
_SETTINGS = {"INFERENCE_PRECISION_HINT": "f32"}


def _ir(what: str, xml: Path) -> Runner:
    core = libraries.load("openvino").Core()
    model = core.read_model(xml)
    compiled: dict[bool, Any] = {}

    def answer(ids: Any) -> Any:
        # For a single token weights in f16 are widened into another layout, and both copies would be kept.
        single = precision_of(what) == "FP16" and ids.size == 1
        if single not in compiled:
            compiled.clear()
            compiled[single] = core.compile_model(model, "CPU", _SETTINGS)
        return compiled[single](ids)[0].copy()

    return answer


def _stateful(xml: Path, vocabulary: int) -> Callable[[int], list[Runner]]:
    """The state is kept as the IR itself asks for: that is what people will get."""
    np, openvino = libraries.load("numpy"), libraries.load("openvino")
    request = openvino.Core().compile_model(xml, "CPU", _SETTINGS).create_infer_request()

    def runner(parts: tuple[int, ...]) -> Runner:
        def answer(ids: Any) -> Any:
            request.reset_state()
            batch, length = ids.shape
            logits = np.empty((batch, length, vocabulary), np.float32)
            begin = 0
            for part in parts:
                end = begin + part
                positions = np.arange(begin, end, dtype=np.int64)
                given = {
                    "input_ids": ids[:, begin:end],
                    "attention_mask": np.ones((batch, end), np.int64),
                    "position_ids": np.broadcast_to(positions, (batch, part)),
                    "beam_idx": np.arange(batch, dtype=np.int32),
                }
                logits[:, begin:end] = request.infer(given)["logits"]
                begin = end
            return logits

        return answer

    return lambda length: [runner(parts) for parts in runs(length)]
