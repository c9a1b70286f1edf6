"""PyTorch to ONNX: the graph is traced without weights, which are then bound to where they lie in the checkpoint."""

import os
from pathlib import Path
from typing import Any

from omz_tools import libraries
from omz_tools.checkpoint import Checkpoint, Tensor
from omz_tools.descriptor import Export
from omz_tools.errors import ConversionError
from omz_tools.pytorch_model import NAMING, configuration, skeleton

# Protobuf, which ONNX files are made of, ends at 2 GiB; a part of that is left for the graph.
MAX_EMBEDDED_BYTES = 2_000_000_000

_ATTENTION = "omz_tools_causal"


def export(checkpoint: Checkpoint, spec: Export, path: Path) -> None:
    """Write the checkpoint's model as ONNX to `path`.

    When the checkpoint lies below the folder of `path`, the ONNX file refers to it by name and offset, and is small;
    elsewhere the weights are copied into it.

    Args:
        checkpoint: the model and its weights.
        spec: names, types and axes of the input [B, L] and of the output [B, L, vocabulary], and the opset.
        path: the file to write.

    Raises:
        CheckpointError: config.json and the weights do not fit each other, or the model class.
        ConversionError: the weights are too large to be copied into an ONNX file, or a library failed.
    """
    _register_attention()
    config = configuration(checkpoint, spec.model_class, _ATTENTION)
    model = skeleton(config, spec.model_class)
    tensors = _weights(checkpoint, spec, model)
    embedded = not checkpoint.folder.resolve().is_relative_to(path.parent.resolve())
    if embedded and sum(tensor.length for tensor in set(tensors.values())) > MAX_EMBEDDED_BYTES:
        raise ConversionError(
            "the weights are too large to be copied into an ONNX file",
            hint="Convert in the download folder itself (leave -o/--output_dir out): there the file refers to them.",
        )
    graph = _trace(model, spec, config.n_positions)
    _bind(graph, tensors, None if embedded else path.parent)
    _tidy(graph)
    _save(graph, path)


def _weights(checkpoint: Checkpoint, spec: Export, model: Any) -> dict[str, Tensor]:
    """The tensor of every parameter of `model`, tied ones once under each of their names."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    first_names: dict[int, str] = {}
    aliases: dict[str, str] = {}
    for name, parameter in parameters.items():
        first = first_names.setdefault(id(parameter), name)
        if first != name:
            aliases[name] = first
    naming = NAMING[spec.model_class]
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    return checkpoint.bind(shapes, aliases, naming.buffers, naming.prefix)


def _trace(model: Any, spec: Export, positions: int) -> Any:
    """The model as an onnx_ir graph whose weights have shapes and no values."""
    torch = libraries.load("torch")
    libraries.load("onnxscript")
    [ids], [scores] = spec.inputs, spec.outputs
    # Tracing needs an example; sizes above 1 keep the axes from being taken for constants.
    example = torch.ones((2, min(7, positions)), dtype=torch.int64, device="meta")
    batch, length = (str(axis) for axis in ids.shape)
    axes = {0: torch.export.Dim(batch), 1: torch.export.Dim(length, max=positions)}
    try:
        program = torch.export.export(_logits_of(model), (example,), dynamic_shapes=(axes,), strict=False)
        # Given again: the exporter takes the names of the axes from here, and would call them s31 and s81 otherwise.
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=spec.opset,
            input_names=[ids.name],
            output_names=[scores.name],
            dynamic_shapes=(axes,),
            optimize=False,  # needs values; done after the weights are bound
            verbose=False,
        )
    except Exception as error:
        raise ConversionError(f"PyTorch could not export the model: {libraries.reason(error)}") from error
    return exported.model


def _logits_of(model: Any) -> Any:
    torch = libraries.load("torch")

    class Logits(torch.nn.Module):  # type: ignore[misc, name-defined]
        """Token ids in, prediction scores out."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Any) -> Any:
            return self.model(input_ids=ids, use_cache=False).logits

    return Logits()


def _register_attention() -> None:
    """A causal attention that the exporter keeps as one operator, and OpenVINO after it.

    transformers would otherwise build a mask from the positions, step by step, in the graph of every model.
    """
    torch, transformers = libraries.load("torch"), libraries.load("transformers")
    masking = libraries.load("transformers.masking_utils")

    def causal(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: Any = None, **_: Any) -> Any:
        attended = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
        return attended.transpose(1, 2), None

    transformers.AttentionInterface.register(_ATTENTION, causal)
    masking.AttentionMaskInterface.register(_ATTENTION, lambda *_, **__: None)


def _bind(graph_model: Any, tensors: dict[str, Tensor], base: Path | None) -> None:
    """Give each weight of the graph its bytes in the checkpoint: by reference from the folder `base`, else to copy."""
    ir, np = libraries.load("onnx_ir"), libraries.load("numpy")
    for name, value in graph_model.graph.initializers.items():
        tensor = tensors.get(name.removeprefix("model."))
        if tensor is None:
            continue  # a constant that tracing made
        if base is None:
            values = np.memmap(tensor.file, dtype="<f4", mode="r", offset=tensor.offset, shape=tensor.shape)
            value.const_value = ir.Tensor(values, name=name)
            continue
        value.const_value = ir.ExternalTensor(
            os.path.relpath(tensor.file.resolve(), base.resolve()),
            tensor.offset,
            tensor.length,
            ir.DataType.FLOAT,
            shape=ir.Shape(tensor.shape),
            name=name,
            base_dir=str(base),
        )


def _tidy(graph_model: Any) -> None:
    """Optimize the graph, and take out what tells of the machine that made it (stack traces, class names)."""
    ir, optimizer = libraries.load("onnx_ir"), libraries.load("onnxscript.optimizer")
    try:
        optimizer.optimize_ir(graph_model)
    except Exception as error:
        raise ConversionError(f"onnxscript could not optimize the graph: {libraries.reason(error)}") from error
    graph = graph_model.graph
    graph_model.metadata_props.clear()
    graph.metadata_props.clear()
    graph_model.doc_string = graph.doc_string = None
    for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
        value.metadata_props.clear()
    for node in ir.traversal.RecursiveGraphIterator(graph):
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()


def _save(graph_model: Any, path: Path) -> None:
    ir, onnx = libraries.load("onnx_ir"), libraries.load("onnx")
    try:
        ir.save(graph_model, path)
        onnx.checker.check_model(path, full_check=True)
    except OSError:
        raise
    except Exception as error:
        raise ConversionError(f"the ONNX model is not sound: {libraries.reason(error)}") from error
