"""ONNX to OpenVINO IR, in each precision that is asked for."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from omz_tools import libraries
from omz_tools.descriptor import Precision
from omz_tools.errors import ConversionError
from omz_tools.stages import Ingredients

# Goes up whenever this module makes another IR of the same ingredients.
FORMAT = 1


def ingredients(name: str, precision: Precision) -> Ingredients:
    """What the IR of a model depends on besides the graph and the checkpoint."""
    return {
        "stage": "ir",
        "format": FORMAT,
        "name": name,
        "precision": precision,
        "openvino": libraries.version("openvino"),
    }


def convert(onnx_path: Path, name: str, targets: Mapping[Precision, Path]) -> None:
    """Write the IR of an ONNX model once for each precision.

    FP32 keeps the weights as they are. FP16 stores them as f16, to be widened when the model is loaded; inputs, outputs
    and the arithmetic stay as in the ONNX model.

    Args:
        onnx_path: the model, its weights embedded or below its folder.
        name: what the model is called.
        targets: the .xml to write for each precision; the .bin goes beside it.

    Raises:
        ConversionError: OpenVINO could not read, convert or write the model.
    """
    openvino = libraries.load("openvino")
    try:
        model = openvino.convert_model(onnx_path)
    except Exception as error:
        raise ConversionError(f"OpenVINO could not convert {onnx_path.name}: {libraries.reason(error)}") from error
    model.set_friendly_name(name)
    # The name under which the file was converted is a passing one; IRs of the same model are the same everywhere.
    model.set_rt_info(f"{name}.onnx", ["conversion_parameters", "input_model"])
    for precision, xml in targets.items():
        try:
            openvino.save_model(model, xml, compress_to_fp16=precision == "FP16")
        except Exception as error:
            free = shutil.disk_usage(xml.parent).free
            raise ConversionError(
                f"OpenVINO could not write the {precision} IR to {xml.parent}: {libraries.reason(error)}",
                hint=f"{free / 1e6:,.1f} MB are free there. What was there before is unchanged.",
            ) from error
