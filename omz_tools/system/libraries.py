"""Before a heavy library is imported: nothing phones home, is fetched, is drawn on the terminal or waits busily.

Each of these settings works only if it is made before the import, so torch, transformers, onnxruntime and openvino are
imported through `load` alone.
"""

import functools
import importlib
import importlib.metadata
import logging
import os
import sys
import warnings
from types import ModuleType

from omz_tools.errors import ConversionError

_SETTINGS = {
    "HF_HUB_OFFLINE": "1",  # models come from verified folders alone
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "ORT_DISABLE_TELEMETRY": "1",
    "NNCF_DISABLE_OPTIMIZED_COMPRESSION": "1",  # NumPy divides alike on every processor, OpenVINO need not
    "OMP_WAIT_POLICY": "PASSIVE",  # idle threads of PyTorch leave the processor to the processes beside
}


def _prepare() -> None:
    os.environ.update(_SETTINGS)
    # `import openvino` reports itself to a server unless this package is missing; with None, Python finds it missing,
    # and openvino takes the stub that it carries for that case.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    # "torchvision is not installed", four times an export; nothing here uses it.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


def load(name: str, *, extra: str = "pytorch") -> ModuleType:
    """Import a library that comes with an extra of this package.

    Raises:
        ConversionError: it is not installed, or cannot be loaded.
    """
    _prepare()
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise ConversionError(
            f"{name} cannot be imported: {error}",
            hint=f"It comes with the extra {extra!r}: pip install 'omz_tools[{extra}]'.",
        ) from error


def warm(*names: str) -> None:
    """Import libraries that will be needed. Raises ConversionError as `load` does."""
    for name in names:
        load(name)


@functools.cache
def version(name: str) -> str | None:
    """The installed version of a library, without importing it; None if it is not installed.

    The part that names a build ("+cpu") is left out: no result depends on that.
    """
    try:
        return importlib.metadata.version(name).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


def reason(error: Exception) -> str:
    """What a library says of a failure, on one line of bounded length: its innermost cause, which says most."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 400 else f"{text[:400]} …"
