"""An OpenVINO model gets weights in 8 bits: NNCF rounds each matrix, channel by channel, to steps of its own size."""

import contextlib
import io
import logging
from typing import Any

from omz_tools.cache.stages import Ingredients
from omz_tools.errors import ConversionError
from omz_tools.export import nodes
from omz_tools.system import libraries

# Goes up whenever this module makes another model of the same ingredients.
FORMAT = 1

_EXTRA = "compression"
# Signed, and zero stays zero: OpenVINO's CPU plugin was seen to read such weights a fifth to a third faster than those
# with a zero point in each channel, and the perplexity of gpt-2-mini was not worse.
_MODE = "INT8_SYM"


def ingredients() -> Ingredients:
    """What the compressed model depends on besides the model."""
    return {"compression": FORMAT, "mode": _MODE, "nncf": libraries.version("nncf")}


def warm() -> None:
    """Import what will be needed. Raises ConversionError if NNCF is not installed."""
    libraries.load("nncf", extra=_EXTRA)


def compress(model: Any) -> Any:
    """A model like this one whose matrices are i8, each channel with its own step in f16; this one stays as it is.

    A matrix that several operators share, an embedding that is the last layer, too, is kept once. Arithmetic stays in
    floating point: OpenVINO would round activations to 8 bits where a processor is made for it, and the model asks it
    not to, so that answers are alike everywhere.

    The matrices are rounded by NumPy, one at a time: IEEE 754 says what its divisions give on any processor.

    Raises:
        ConversionError: NNCF is not installed, or fails.
    """
    nncf = libraries.load("nncf", extra=_EXTRA)
    nncf.set_log_level(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # a progress bar
            made = nncf.compress_weights(model.clone(), mode=nncf.CompressWeightsMode[_MODE])
    except Exception as error:
        raise ConversionError(f"NNCF could not compress the weights: {libraries.reason(error)}") from error
    made.set_rt_info("0", ["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"])
    nodes.rename(made)
    return made
