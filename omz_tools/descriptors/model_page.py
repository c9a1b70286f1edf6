"""The page of a model, in Markdown: all of it comes from the descriptor, so that it cannot say anything else."""

import textwrap
from collections.abc import Iterable, Iterator

from omz_tools.descriptors.descriptor import (
    COMPRESSED,
    Accuracy,
    Descriptor,
    Export,
    ModelClass,
    Specification,
    TensorSpec,
)
from omz_tools.descriptors.zoo import Model
from omz_tools.errors import UnsupportedError
from omz_tools.progress.reporting import size_text

# What transformers calls the input and the output of a class.
_ORIGINAL: dict[ModelClass, tuple[str, str]] = {"GPT2LMHeadModel": ("input_ids", "logits")}
_WIDTH = 120


def of(model: Model) -> str:
    """The page of a model that this package converts.

    Raises:
        UnsupportedError: its descriptor has no export section, which says what goes in and comes out.
    """
    said = model.descriptor
    if said.export is None:
        raise UnsupportedError(f"{model.name} has no page: its descriptor has no export section")
    parts = (
        [f"# {model.name}"],
        ["## Use case", *map(_wrapped, said.description.strip().splitlines())],
        ["## Specification", _table(["", ""], _specification(said, said.export))],
        ["## Accuracy", *_accuracy(model.name, said.accuracy)] if said.accuracy else [],
        ["## Input", *_tensors(said.export.inputs, said.export, _meaning_of_input(said))],
        ["## Output", *_tensors(said.export.outputs, said.export, _MEANING_OF_OUTPUT), _PROBABILITIES],
        ["## Download and convert", *_download(model, said.export)],
        ["## Demo usage", *_demo(model.name)] if said.task_type == "text_prediction" else [],
        ["## License", f"The checkpoint is distributed under [its own license]({said.license})."],
    )
    return "\n\n".join(text for part in parts for text in part) + "\n"


def _specification(said: Descriptor, export: Export) -> Iterator[tuple[str, str]]:
    yield "Type", said.task_type.replace("_", " ")
    if known := said.specification:
        yield from _size(known)
    yield "Vocabulary", f"{export.vocabulary:,} tokens"
    yield "Source framework", f"PyTorch (`{export.model_class}` of transformers)"


def _size(known: Specification) -> Iterator[tuple[str, str]]:
    batch, length = known.shape
    yield "GFLOPs", f"{known.gflops:.4f} at input [{batch}, {length}], as `omz_analyzer` counts"
    yield "MParams", f"{known.parameters / 1e6:.4f}; what several layers share counts once"
    yield "Layers, width, heads", f"{known.layers}, {known.width}, {known.heads}"
    yield "Positions", f"{known.positions}"


def _accuracy(name: str, figures: Iterable[Accuracy]) -> Iterator[str]:
    rows = [
        (figure.metric, what, f"{value:.2f}", origin, figure.dataset)
        for figure in figures
        for what, value, origin in (
            ("original", figure.value, figure.origin),
            *((precision, value, "measured") for precision, value in figure.converted.items()),
        )
    ]
    yield _table(["Metric", "Model", "Value", "", "Data set"], rows)
    for method, source in dict.fromkeys((figure.method, figure.source) for figure in figures):
        yield _wrapped(f"{method[0].upper()}{method[1:]}. Source: {source}.")
    yield f"`omz_evaluator --name {name}` measures it for the converted model, and for PyTorch beside it."


def _meaning_of_input(said: Descriptor) -> str:
    assert said.export
    limit = f", at most {said.specification.positions} of them in a row" if said.specification else ""
    return f"token ids, each from 0 to {said.export.vocabulary - 1}{limit}"


_MEANING_OF_OUTPUT = "prediction scores (logits): for each position, a score of each token as the next one"
_PROBABILITIES = "The softmax over the last axis gives probabilities."


def _tensors(tensors: Iterable[TensorSpec], export: Export, meaning: str) -> Iterator[str]:
    original = _ORIGINAL[export.model_class][0 if tensors is export.inputs else 1]
    rows = [
        (kind, f"`{name}`", f"`{', '.join(map(str, tensor.shape))}`", tensor.type, meaning)
        for tensor in tensors
        for kind, name in (("original", original), ("converted, ONNX and IR", tensor.name))
    ]
    yield _table(["Model", "Name", "Shape", "Type", "Meaning"], rows)
    if tensors is export.inputs:
        batch, length, *_ = export.inputs[0].shape
        yield _wrapped(
            f"`{batch}` is the batch size, `{length}` the number of tokens; both are dynamic. There is no mask: rows "
            "of one batch have the same length, and each token counts."
        )


def _download(model: Model, export: Export) -> Iterator[str]:
    total = size_text(sum(file.size for file in model.descriptor.files))
    yield f"    omz_downloader --name {model.name}\n    omz_converter --name {model.name}"
    yield f"The first command brings {total} of verified files; the second needs the extra `pytorch`. The result:"
    lines = [
        (f"├── {export.checkpoint}/", "config.json, tokenizer, weights: as published"),
        (f"├── {model.name}.onnx", f"the graph; its weights stay in {export.checkpoint}/"),
        (f"├── {model.name}.manifest.json", "what went in, what came out, how far from PyTorch"),
        (f"├── FP16/{model.name}.xml, .bin", "weights in f16; inputs, outputs and arithmetic as in FP32"),
        (f"└── FP32/{model.name}.xml, .bin", "weights in f32"),
    ]
    width = max(len(left) for left, _ in lines) + 2
    yield "\n".join([f"    {model.subdirectory}/", *(f"    {left:{width}}{right}" for left, right in lines)])
    yield _wrapped(
        f"`--precisions {COMPRESSED}` makes an IR of half the size of FP16, with matrices in 8 bits; it needs the "
        "extra `compression`, too."
    )


def _demo(name: str) -> Iterator[str]:
    yield (
        f"    omz_converter --name {name} --variant stateful\n"
        f'    omz_text_prediction --name {name} -i "The beginning of a text"'
    )
    yield _wrapped(
        "`--variant stateful` adds IRs with a key/value cache, in which a text comes fast: `stateful/FP16` and "
        "`stateful/FP32`, folders that `openvino_genai.LLMPipeline` loads, too. Without it, the demo runs the IR "
        "above, and computes the whole text anew for each token."
    )


def _wrapped(paragraph: str) -> str:
    return textwrap.fill(paragraph, _WIDTH, break_long_words=False, break_on_hyphens=False)


def _table(header: list[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [header, ["---"] * len(header), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
