"""One file compared with PyTorch, for tests that made it in their own way."""

import tempfile
from pathlib import Path

from omz_tools.descriptors.descriptor import Export
from omz_tools.export.checkpoint import Checkpoint
from omz_tools.proof import differences, reference, verify
from omz_tools.proof.differences import Figure


def compared(read: Checkpoint, spec: Export, what: str, path: Path, *, full: bool = False) -> Figure:
    """The figure of the ONNX model, or of the IR of the precision `what`."""
    bound = differences.BOUNDS["FP32" if what == "ONNX" else what]
    with tempfile.TemporaryDirectory() as folder:
        return verify.compare(reference.make(read, spec, Path(folder), full=full), spec, what, path, bound)
