"""A skeleton becomes an ONNX model: each parameter is given its bytes in the checkpoint, by reference or as a copy.

Neither PyTorch nor anything else that traced the skeleton is needed here.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from omz_tools.cache.stages import Ingredients
from omz_tools.descriptors.descriptor import Export
from omz_tools.errors import CheckpointError, ConversionError
from omz_tools.export.checkpoint import Checkpoint, Tensor
from omz_tools.export.pytorch_model import NAMING
from omz_tools.system import libraries
from omz_tools.system.files import CHUNK

# Goes up whenever this module makes another file of the same ingredients.
FORMAT = 1

# Protobuf, which ONNX files are made of, ends at 2 GiB; a part of that is left for the graph.
MAX_EMBEDDED_BYTES = 2_000_000_000


def ingredients(checkpoint: Checkpoint, path: Path) -> Ingredients:
    """What an ONNX model at `path` depends on besides the graph and the checkpoint."""
    return {"stage": "onnx", "format": FORMAT, "refers": _refers(checkpoint, path)}


def _refers(checkpoint: Checkpoint, path: Path) -> bool:
    """Whether the weights lie where an ONNX file at `path` may refer to them."""
    folder = path.parent.resolve()
    return all(file.resolve().is_relative_to(folder) for file in {t.file for t in checkpoint.tensors.values()})


def bind(skeleton: bytes, checkpoint: Checkpoint, spec: Export, path: Path) -> None:
    """Write a checkpoint's model as ONNX to `path`.

    When the weights lie below the folder of `path`, the ONNX file refers to them by name and offset, and is small;
    elsewhere they are copied into it.

    Args:
        skeleton: the serialized graph, as traced for the checkpoint's config.json.
        checkpoint: the model's weights.
        spec: what the skeleton was traced for.
        path: the file to write.

    Raises:
        CheckpointError: the weights are not those of the skeleton's parameters; all differences are in the message.
        ConversionError: the weights are too large to be copied into an ONNX file, or the model is not sound.
        OSError: the file cannot be written.
    """
    onnx = libraries.load("onnx")
    try:
        model = onnx.ModelProto.FromString(skeleton)
    except Exception as error:
        raise ConversionError(f"the traced graph cannot be read: {libraries.reason(error)}") from error
    external = onnx.TensorProto.EXTERNAL
    parameters = {tensor.name: tensor for tensor in model.graph.initializer if tensor.data_location == external}
    tensors = _tensors(parameters, checkpoint, spec)
    if _refers(checkpoint, path):
        folder = path.parent.resolve()
        names = {t.file: t.file.resolve().relative_to(folder).as_posix() for t in tensors.values()}
        _refer(parameters, tensors, names)
        path.write_bytes(model.SerializeToString(deterministic=True))
        _check(path)
    else:
        _embed(model, tensors, path)


def _tensors(parameters: Mapping[str, Any], checkpoint: Checkpoint, spec: Export) -> dict[str, Tensor]:
    """The tensor of each parameter."""
    naming = NAMING[spec.model_class]
    shapes = {name: tuple(parameter.dims) for name, parameter in parameters.items()}
    tied = {second: first for second, first in naming.tied.items() if second not in shapes}
    return checkpoint.bind(shapes, tied, naming.buffers, naming.prefix)


def _refer(parameters: Mapping[str, Any], tensors: Mapping[str, Tensor], names: Mapping[Path, str]) -> None:
    """Say of each parameter in which file its bytes are, and where in it."""
    for name, parameter in parameters.items():
        tensor = tensors[name]
        del parameter.external_data[:]
        for key, value in (("location", names[tensor.file]), ("offset", tensor.offset), ("length", tensor.length)):
            parameter.external_data.add(key=key, value=str(value))


def _embed(model: Any, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write the model with the bytes of its parameters, which are copied from file to file.

    Protobuf itself would hold all of them in memory, more than once. A message is the sequence of its fields in any
    order, so those that hold weights are written behind all others.
    """
    if sum(tensor.length for tensor in tensors.values()) > MAX_EMBEDDED_BYTES:
        raise ConversionError(
            "the weights are too large to be copied into an ONNX file",
            hint="Convert in the download folder itself (leave -o/--output_dir out): there the file refers to them.",
        )
    onnx = libraries.load("onnx")
    graph = onnx.GraphProto()
    graph.CopyFrom(model.graph)
    model.ClearField("graph")
    parameters = [tensor for tensor in graph.initializer if tensor.name in tensors]
    others = [tensor for tensor in graph.initializer if tensor.name not in tensors]
    del graph.initializer[:]
    graph.initializer.extend(others)
    _check(_with_inputs(model, graph, parameters))
    heads = [_head(parameter, tensors[parameter.name].length) for parameter in parameters]
    begin = graph.SerializeToString(deterministic=True)
    size = len(begin) + sum(len(head) + tensors[p.name].length for head, p in zip(heads, parameters, strict=True))
    with path.open("wb") as file:
        file.write(model.SerializeToString(deterministic=True))
        file.write(_field(onnx.ModelProto.GRAPH_FIELD_NUMBER, size) + begin)
        for head, parameter in zip(heads, parameters, strict=True):
            file.write(head)
            for chunk in _chunks(tensors[parameter.name]):
                file.write(chunk)


def _head(parameter: Any, length: int) -> bytes:
    """What stands in a graph before the `length` bytes of a parameter."""
    onnx = libraries.load("onnx")
    tensor = onnx.TensorProto(name=parameter.name, data_type=parameter.data_type, dims=parameter.dims)
    inner: bytes = tensor.SerializeToString(deterministic=True) + _field(onnx.TensorProto.RAW_DATA_FIELD_NUMBER, length)
    return _field(onnx.GraphProto.INITIALIZER_FIELD_NUMBER, len(inner) + length) + inner


def _field(number: int, length: int) -> bytes:
    """How protobuf begins a field that is `length` bytes long."""
    return bytes([number << 3 | 2, *_varint(length)])


def _varint(value: int) -> Iterator[int]:
    while value > 0x7F:
        yield value & 0x7F | 0x80
        value >>= 7
    yield value


def _chunks(tensor: Tensor) -> Iterator[bytes]:
    file: BinaryIO
    with tensor.file.open("rb") as file:
        file.seek(tensor.offset)
        left = tensor.length
        while left:
            chunk = file.read(min(CHUNK, left))
            if not chunk:
                raise CheckpointError(f"{tensor.file} became shorter while it was read")
            left -= len(chunk)
            yield chunk


def _with_inputs(model: Any, graph: Any, parameters: list[Any]) -> Any:
    """The model as a function of its parameters too, which can be checked without their values."""
    onnx = libraries.load("onnx")
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    whole.graph.CopyFrom(graph)
    whole.graph.input.extend(onnx.helper.make_tensor_value_info(p.name, p.data_type, p.dims) for p in parameters)
    return whole


def _check(model: Any) -> None:
    """Run the ONNX checker on a model, or on the one in a file."""
    onnx = libraries.load("onnx")
    try:
        onnx.checker.check_model(model, full_check=True)
    except OSError:
        raise
    except Exception as error:
        raise ConversionError(f"the ONNX model is not sound: {libraries.reason(error)}") from error
