"""PyTorch to ONNX: the graph of a model, traced without its weights.

What comes out is a skeleton: it depends on config.json, the descriptor and the libraries alone, and serves every
checkpoint of that configuration. `binding` makes a model of it.
"""

import math
import warnings
from typing import Any

from omz_tools.cache.stages import Ingredients
from omz_tools.descriptors.descriptor import Export
from omz_tools.errors import ConversionError
from omz_tools.export import layers, signatures
from omz_tools.export.checkpoint import Checkpoint
from omz_tools.export.pytorch_model import NAMING, configuration, settings, skeleton
from omz_tools.export.signatures import ATTENTION_OPSET, Signature
from omz_tools.system import libraries

# Goes up whenever this module makes another graph of the same ingredients.
FORMAT = 2

# Where the weights of a skeleton are said to lie. No file is called so: a skeleton is refused wherever it is loaded.
UNBOUND = "omz_tools:unbound"

_WHOLE, _IN_STEPS, _MASKED = "omz_tools_causal", "omz_tools_causal_in_steps", "omz_tools_masked"

_LIBRARIES = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript")


def ingredients(checkpoint: Checkpoint, spec: Export, *, past: bool = False) -> Ingredients:
    """All that `trace` depends on, as values that JSON can hold: the same ingredients make the same bytes.

    No library is imported for it.

    Raises:
        CheckpointError: config.json cannot be used.
    """
    return ({"past": signatures.FORMAT} if past else {}) | {
        "stage": "graph",
        "format": FORMAT,
        "model_class": spec.model_class,
        "settings": settings(checkpoint, spec.model_class),
        "inputs": [[tensor.name, tensor.type, list(tensor.shape)] for tensor in spec.inputs],
        "outputs": [[tensor.name, tensor.type, list(tensor.shape)] for tensor in spec.outputs],
        "opset": spec.opset,
        "libraries": {name: libraries.version(name) for name in _LIBRARIES},
    }


def trace(checkpoint: Checkpoint, spec: Export, *, past: bool = False) -> bytes:
    """The model of a checkpoint's config.json as an ONNX graph whose weights have names and shapes and no values.

    Args:
        checkpoint: its config.json is read, and the number of its tensors; no weight.
        spec: the model class, names and axes of the input [B, L] and the output [B, L, vocabulary], and the opset.
        past: whether the graph takes and gives keys and values of all layers as well; `spec` is of
            `signatures.with_past` then.

    Returns:
        A serialized ModelProto. Each parameter of the model is an initializer with the name that it has in PyTorch,
        tied ones once under the first of their names; its data is external, at the location `UNBOUND`.

    Raises:
        CheckpointError: config.json cannot be used, or no model can be built from it.
        UnsupportedError: the input is not two dynamic axes.
        ConversionError: a library failed, or is not installed.
    """
    naming = NAMING[spec.model_class]
    depth = settings(checkpoint, spec.model_class)[naming.depth]
    _register_attention()
    graph_model = _traced(checkpoint, spec, min(depth, layers.TRACED), past=past)
    if depth > layers.TRACED and not layers.deepen(graph_model.graph, (naming.layers, *signatures.LAYERS), depth):
        graph_model = _traced(checkpoint, spec, depth, past=past)
    _finish(graph_model)
    return _serialized(graph_model)


def _traced(checkpoint: Checkpoint, spec: Export, depth: int, *, past: bool) -> Any:
    """The model with so many layers as an optimized onnx_ir model, its parameters initializers without values."""
    naming = NAMING[spec.model_class]
    attention = _MASKED if past else _WHOLE if spec.opset >= ATTENTION_OPSET else _IN_STEPS
    config = configuration(checkpoint, spec.model_class, attention, **{naming.depth: depth})
    model = skeleton(config, spec.model_class)
    of_ids = signatures.of_ids_and_past if past else signatures.of_ids
    graph_model = _export(of_ids(model, spec, config), spec)
    _name_parameters(graph_model.graph, model)
    _optimize(graph_model)
    return graph_model


def _export(signature: Signature, spec: Export) -> Any:
    """The model as an onnx_ir model, its parameters tensors on the meta device."""
    torch = libraries.load("torch")
    libraries.load("onnxscript")
    try:
        program = torch.export.export(signature.module, signature.examples, dynamic_shapes=signature.axes, strict=False)
        with warnings.catch_warnings():
            # For each axis that an input shares with the one before it.
            warnings.filterwarnings("ignore", "# The axis name", UserWarning)
            # The axes given again: the exporter takes their names from here, and would call them s31 and s81 otherwise.
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=spec.opset,
                input_names=signature.inputs,
                output_names=signature.outputs,
                dynamic_shapes=signature.axes,
                optimize=False,  # fails on tensors without values
                verbose=False,
            )
    except Exception as error:
        raise ConversionError(f"PyTorch could not export the model: {libraries.reason(error)}") from error
    return exported.model


def _register_attention() -> None:
    """Causal attention in two forms: one operator, which the exporter and OpenVINO keep; and steps for older opsets.

    With a past it is one operator, too, and takes the mask that it is given. transformers would otherwise build a mask
    from the positions in the graph of every model. It builds none for an attention without a mask function.
    """
    torch, transformers = libraries.load("torch"), libraries.load("transformers")
    masking = libraries.load("transformers.masking_utils")

    def whole(module: Any, query: Any, key: Any, value: Any, mask: Any, *, scaling: float, **_: Any) -> Any:
        # PyTorch knows the shape of its result; scaled_dot_product_attention would be traced step by step to find it.
        attended = torch.onnx.ops.attention(query, key, value, is_causal=True, scale=scaling)[0]
        return attended.transpose(1, 2), None

    def masked(module: Any, query: Any, key: Any, value: Any, mask: Any, *, scaling: float, **_: Any) -> Any:
        return torch.onnx.ops.attention(query, key, value, mask, scale=scaling)[0].transpose(1, 2), None

    def in_steps(module: Any, query: Any, key: Any, value: Any, mask: Any, *, scaling: float, **_: Any) -> Any:
        scores = torch.matmul(query, key.transpose(2, 3)) * scaling + mask
        return torch.matmul(scores.softmax(-1), value).transpose(1, 2), None

    def one_mask(*, q_length: Any, device: Any, **_: Any) -> Any:
        # Made once for all layers: -inf where a position is later than the one that looks.
        position = torch.arange(q_length, device=device)
        later = position.unsqueeze(0) > position.unsqueeze(1)
        return torch.where(later, -math.inf, 0.0)

    transformers.AttentionInterface.register(_WHOLE, whole)
    transformers.AttentionInterface.register(_MASKED, masked)
    transformers.AttentionInterface.register(_IN_STEPS, in_steps)
    masking.AttentionMaskInterface.register(_IN_STEPS, one_mask)


def _name_parameters(graph: Any, model: Any) -> None:
    """Give each parameter in the graph the first name that it has in the model, and take its tensor away."""
    names: dict[str, str] = {}
    firsts: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[f"model.{name}"] = firsts.setdefault(id(parameter), name)
    for value in list(graph.initializers.values()):
        if value.name in names:
            value.const_value = None
            value.name = names[value.name]


def _optimize(graph_model: Any) -> None:
    optimizer = libraries.load("onnxscript.optimizer")
    graph = graph_model.graph
    # As inputs, parameters are what no pass can fold, compare or take for a mistake.
    parameters = [value for value in graph.initializers.values() if value.const_value is None]
    for value in parameters:
        graph.initializers.pop(value.name)
        graph.inputs.append(value)
    try:
        optimizer.optimize_ir(graph_model)
    except Exception as error:
        raise ConversionError(f"onnxscript could not optimize the graph: {libraries.reason(error)}") from error
    del graph.inputs[-len(parameters) :]
    for value in parameters:
        graph.initializers.add(value)


def _finish(graph_model: Any) -> None:
    """Name and order everything by its place in the graph, and keep nothing of the machine that traced it.

    PyTorch's names come from counters that all of its work moves on; its metadata has stack traces and class names.
    """
    graph = graph_model.graph
    graph_model.metadata_props.clear()
    graph.metadata_props.clear()
    graph_model.doc_string = graph.doc_string = None
    graph_model.producer_version = (graph_model.producer_version or "").partition("+")[0]
    kept = {*graph.inputs, *graph.outputs}
    used: dict[Any, None] = {}
    for number, node in enumerate(graph):
        node.name = f"{node.op_type}_{number}"
        node.doc_string = None
        node.metadata_props.clear()
        used.update((value, None) for value in node.inputs if value is not None and value.is_initializer())
        for output, value in enumerate(node.outputs):
            value.metadata_props.clear()
            if value not in kept:
                value.name = f"{node.name}.{output}" if output else node.name
    for value in kept:
        value.metadata_props.clear()
    constants = [value for value in used if value.const_value is not None]
    parameters = [value for value in used if value.const_value is None]
    graph.initializers.clear()
    for number, value in enumerate(constants):
        value.name = f"constant_{number}"
    for value in parameters:
        value.const_value = _unbound(value)
    for value in (*constants, *parameters):
        value.metadata_props.clear()
        graph.initializers.add(value)


def _unbound(parameter: Any) -> Any:
    ir = libraries.load("onnx_ir")
    return ir.ExternalTensor(UNBOUND, None, None, parameter.dtype, shape=parameter.shape, name=parameter.name)


def _serialized(graph_model: Any) -> bytes:
    ir = libraries.load("onnx_ir")
    try:
        serialized: bytes = ir.to_proto(graph_model).SerializeToString(deterministic=True)
    except Exception as error:
        raise ConversionError(f"the ONNX graph could not be written: {libraries.reason(error)}") from error
    return serialized
