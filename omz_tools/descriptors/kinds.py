"""What the outputs of a conversion are called: the ONNX model "ONNX", an IR as its folder below the model's.

An IR of the contract is called by its precision, "FP16", one of a variant by both, "stateful/FP16".
"""

from typing import Literal, get_args

from omz_tools.descriptors.descriptor import PRECISIONS, VARIANTS, Precision, Variant

ONNX = "ONNX"

Kind = Literal["ONNX", "FP16", "FP16-INT8", "FP32", "stateful/FP16", "stateful/FP16-INT8", "stateful/FP32"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def name_of(precision: Precision, variant: Variant | None) -> str:
    """What an IR is called."""
    return f"{variant}/{precision}" if variant else precision


def variant_of(what: str) -> Variant | None:
    """The variant that an output is of; None for those of the contract."""
    return next((variant for variant in VARIANTS if what.startswith(f"{variant}/")), None)


def precision_of(what: str) -> Precision | None:
    """The precision of an IR; None for the ONNX model."""
    return next((precision for precision in PRECISIONS if precision == what.rpartition("/")[2]), None)


def text_of(what: str) -> str:
    """An output in a sentence."""
    return "the ONNX model" if what == ONNX else f"the {what} IR"
