"""What a traced graph takes and gives: token ids alone, or also what the attention kept of the tokens before.

The second is the form that OpenVINO GenAI runs, and has the names that transformers and GenAI give to its inputs and
outputs. Its state is made of its inputs `past_key_values.*` and its outputs `present.*` by `stateful`.
"""

from dataclasses import dataclass
from typing import Any

import msgspec

from omz_tools.descriptors.descriptor import Export, TensorSpec
from omz_tools.errors import UnsupportedError
from omz_tools.system import libraries

# The first operator set with Attention, which OpenVINO's state needs: it is found by that operator.
ATTENTION_OPSET = 23
# Goes up whenever the graph with a past becomes another one of the same ingredients.
FORMAT = 1

# What the names of the layers' inputs and outputs begin with, before the number of the layer.
LAYERS = ("past_key_values.", "present.")

# What a masked score is lowered by: the largest number of f16, so that an IR in f16 computes the same. No score of
# attention comes near it, and other than with infinity, a row whose tokens are all masked gives numbers still.
_MASKED = -65504.0


@dataclass(frozen=True)
class Signature:
    """A PyTorch module as `torch.export` takes it.

    Attributes:
        module: computes the outputs from the inputs; the model that it calls is its attribute `model`.
        examples: an input of each kind on the meta device, in the order in which the module takes them.
        axes: for each of these the dynamic axes, by number.
        inputs, outputs: the names, those of a list one by one.
    """

    module: Any
    examples: tuple[Any, ...]
    axes: tuple[Any, ...]
    inputs: list[str]
    outputs: list[str]


def with_past(spec: Export) -> Export:
    """What a model with a state takes and gives beside it: token ids [B, L], positions [B, L], and a mask [B, T] of all
    tokens so far; logits [B, L, vocabulary].
    """
    return msgspec.structs.replace(
        spec,
        inputs=(
            TensorSpec("input_ids", "i64", ("B", "L")),
            TensorSpec("position_ids", "i64", ("B", "L")),
            TensorSpec("attention_mask", "i64", ("B", "T")),
        ),
        outputs=(TensorSpec("logits", "f32", ("B", "L", spec.vocabulary)),),
        opset=ATTENTION_OPSET,
    )


def past_names(layers: int) -> dict[str, str]:
    """The names of the inputs that hold keys and values [B, heads, P, width] of the tokens before, in order, and of
    the outputs [B, heads, P + L, width] that take them on.
    """
    parts = [f"{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    past, present = LAYERS
    return {f"{past}{part}": f"{present}{part}" for part in parts}


def of_ids(model: Any, spec: Export, config: Any) -> Signature:
    """Token ids in, logits out.

    Raises:
        UnsupportedError: the input is not two dynamic axes.
    """
    torch, positions = libraries.load("torch"), config.n_positions

    class Logits(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Any) -> Any:
            return self.model(input_ids=ids, use_cache=False).logits

    batch, length = _axes(spec)
    axes = {0: torch.export.Dim(batch), 1: torch.export.Dim(length, max=max(2, positions))}
    ids = torch.ones((2, _length(positions)), dtype=torch.int64, device="meta")
    return Signature(Logits(), (ids,), (axes,), [spec.inputs[0].name], [spec.outputs[0].name])


def of_ids_and_past(model: Any, spec: Export, config: Any) -> Signature:
    """Token ids, mask, positions, and keys and values of the tokens before; logits, and keys and values of all tokens.

    Which tokens see which is computed once for all layers, from the mask alone: the last ones of it are those that are
    given now.
    """
    torch, transformers = libraries.load("torch"), libraries.load("transformers")

    class WithPast(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, past: list[Any], mask: Any, position_ids: Any, ids: Any) -> Any:
            cache = transformers.DynamicCache(zip(past[::2], past[1::2], strict=True))
            total, length = mask.shape[1], ids.shape[1]
            column = torch.arange(total, device=ids.device)
            row = torch.arange(length, device=ids.device) + (total - length)
            seen = (column <= row.unsqueeze(1)) & (mask != 0)[:, None, None, :]
            found = self.model(
                input_ids=ids,
                attention_mask=torch.where(seen, 0.0, _MASKED),
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=True,
            )
            present = [tensor for layer in found.past_key_values.layers for tensor in (layer.keys, layer.values)]
            return found.logits, *present

    positions, heads = config.n_positions, config.n_head
    length = _length(positions)
    dim, before = torch.export.Dim, 3
    batch, now = dim("B"), dim("L", max=max(2, positions))
    # Of the mask's length nothing is asked here: it would be the sum of two others, for which there is no word.
    axes = ({0: batch, 1: dim("T")}, {0: batch, 1: now}, {0: batch, 1: now})
    names = past_names(config.n_layer)
    shape = (2, heads, before, config.n_embd // heads)
    examples = [torch.ones((2, n), dtype=torch.int64, device="meta") for n in (length + before, length, length)]
    past = [torch.ones(shape, device="meta") for _ in names]
    # The ids come last: the exporter takes the size of an axis from the last input that has it, and of a state it would
    # be known only while the model runs.
    return Signature(
        WithPast(),
        (past, *examples),
        ([{0: batch, 2: dim("P")} for _ in names], *axes),
        [*names, *(tensor.name for tensor in reversed(spec.inputs))],
        [*(tensor.name for tensor in spec.outputs), *names.values()],
    )


def _length(positions: int) -> int:
    """Tokens of the example: a length above 1 keeps the axis from being taken for a constant.

    For a model of one position that is one more than it has, which no shape tells.
    """
    return max(2, min(7, positions))


def _axes(spec: Export) -> tuple[str, str]:
    match spec.inputs[0].shape:
        case (str(batch), str(length)) if batch != length:
            return batch, length
        case shape:
            raise UnsupportedError(
                f"the input {spec.inputs[0].name!r} has the axes {list(shape)}",
                hint="A model is exported with two dynamic axes, each a word of its own: [B, L].",
            )
