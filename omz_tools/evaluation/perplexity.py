"""The loss of a language model on windows of a text, by PyTorch, ONNX Runtime or OpenVINO.

The perplexity is the exponential of its mean. A window is judged by itself: each of its tokens but the first is
predicted from those before it in the window.
"""

import functools
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omz_tools.descriptors.descriptor import Export
from omz_tools.errors import ProofError
from omz_tools.export import checkpoint
from omz_tools.export.pytorch_model import runner
from omz_tools.proof import verify
from omz_tools.system import libraries

PYTORCH = "PyTorch"

# Rows of logits that are worked on at a time: for gpt-2, 13 MB of them.
_ROWS = 64


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        what: "PyTorch", "ONNX", or the precision of an IR.
        path: the checkpoint's folder, the ONNX model, or the .xml.
        spec: names, types and axes of input and output.
        pinned: of the checkpoint, the names that have been verified.
    """

    what: str
    path: Path
    spec: Export
    pinned: frozenset[str] = frozenset()


def losses(subject: Subject, windows: Sequence["array[int]"]) -> list[float]:
    """The mean loss of each window, in nats.

    The model is loaded by the first call and stays loaded for the next ones. Of the logits, those of these windows
    alone are in memory.

    Args:
        subject: the model.
        windows: token ids, all of one length of at least 2; they are one batch.

    Raises:
        ProofError: the file breaks the contract or cannot be run, or gives something of another kind.
        CheckpointError: transformers does not load the checkpoint.
    """
    np = libraries.load("numpy")
    ids = np.array(windows, dtype=np.int64)
    logits = _opened(subject)(ids)
    if logits.shape[:2] != ids.shape:
        raise ProofError(f"{subject.what} gives {logits.shape} for {ids.shape}")
    return [_loss(scores, tokens) for scores, tokens in zip(logits, ids, strict=True)]


def _loss(logits: Any, tokens: Any) -> float:
    """The mean of -log softmax(logits)[next token], for logits [L, vocabulary] f32 and tokens [L].

    Exponentials are taken in F32, as PyTorch takes them, and summed up in F64.
    """
    np = libraries.load("numpy")
    total, last = 0.0, len(tokens) - 1
    for first in range(0, last, _ROWS):
        rows = logits[first : min(first + _ROWS, last)]
        following = tokens[first + 1 : first + 1 + len(rows), None]
        peaks = rows.max(axis=-1, keepdims=True)
        sums = np.exp(rows - peaks).sum(axis=-1, dtype=np.float64)
        chosen = np.take_along_axis(rows, following, axis=-1) - peaks
        total += float(np.log(sums).sum()) - float(chosen.sum(dtype=np.float64))
    return total / last


@functools.lru_cache(maxsize=1)
def _opened(subject: Subject) -> Callable[[Any], Any]:
    """A function from token ids [B, L] i64 to logits [B, L, vocabulary] f32, which stay until its next call."""
    if subject.what == PYTORCH:
        return runner(checkpoint.load(subject.path, subject.pinned), subject.spec.model_class)
    verify.check_contract(subject.what, subject.path, subject.spec)
    return _onnx(subject) if subject.what == "ONNX" else _ir(subject)


def _onnx(subject: Subject) -> Callable[[Any], Any]:
    onnxruntime = libraries.load("onnxruntime")
    name, output = subject.spec.inputs[0].name, subject.spec.outputs[0].name
    with _running("ONNX Runtime", subject):
        session = onnxruntime.InferenceSession(subject.path, providers=["CPUExecutionProvider"])

    def run(ids: Any) -> Any:
        with _running("ONNX Runtime", subject):
            return session.run([output], {name: ids})[0]

    return run


def _ir(subject: Subject) -> Callable[[Any], Any]:
    openvino = libraries.load("openvino")
    with _running("OpenVINO", subject):
        # As in the proof: bf16 units would be measured otherwise.
        compiled = openvino.Core().compile_model(subject.path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(ids: Any) -> Any:
        with _running("OpenVINO", subject):
            return compiled(ids)[0]

    return run


@contextmanager
def _running(runtime: str, subject: Subject) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise ProofError(
            f"{runtime} cannot run {subject.path}: {libraries.reason(error)}",
            hint="Convert the model again, with omz_converter --force.",
        ) from error
