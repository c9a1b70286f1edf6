"""The PyTorch model that a checkpoint describes: as a skeleton without weights, or whole, as transformers loads it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from omz_tools.descriptors.descriptor import ModelClass
from omz_tools.errors import CheckpointError
from omz_tools.export.checkpoint import CONFIG, Checkpoint
from omz_tools.system import libraries

# The settings of config.json that decide what a model of this class computes, with the type each must have; the rest
# of the file is about training, generation or other software.
_SETTINGS: dict[ModelClass, dict[str, type | tuple[type, ...]]] = {
    "GPT2LMHeadModel": {
        "vocab_size": int,
        "n_positions": int,
        "n_embd": int,
        "n_layer": int,
        "n_head": int,
        "n_inner": (int, type(None)),
        "activation_function": str,
        "layer_norm_epsilon": float,
        "scale_attn_weights": bool,
        "scale_attn_by_inverse_layer_idx": bool,
        "reorder_and_upcast_attn": bool,
        "tie_word_embeddings": bool,
        "add_cross_attention": bool,
    }
}
_REQUIRED = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")


@dataclass(frozen=True)
class Naming:
    """How checkpoints of a class name what they hold.

    Attributes:
        prefix: beginning of the parameters' names that published checkpoints leave out.
        buffers: endings of names that older checkpoints carry and that are no parameters.
        tied: parameters that may be another one under a second name, and which.
        layers: beginning of the names of all layers' parameters, before the number of the layer.
        depth: the setting of config.json that says how many layers there are.
    """

    prefix: str
    buffers: Iterable[str]
    tied: Mapping[str, str]
    layers: str
    depth: str


NAMING: dict[ModelClass, Naming] = {
    "GPT2LMHeadModel": Naming(
        prefix="transformer.",
        buffers=(".attn.bias", ".attn.masked_bias"),
        tied={"lm_head.weight": "transformer.wte.weight"},
        layers="transformer.h.",
        depth="n_layer",
    ),
}


def settings(checkpoint: Checkpoint, model_class: ModelClass) -> dict[str, Any]:
    """The settings of config.json that decide what the model computes, as they stand there.

    Those that are left out have the defaults of the installed transformers.

    Raises:
        CheckpointError: config.json lacks a setting, or has one of a wrong type or value.
    """
    path = checkpoint.folder / CONFIG
    known = _SETTINGS[model_class]
    given = {key: value for key, value in checkpoint.config.items() if key in known}
    problems = [f"{key} is missing" for key in _REQUIRED if key not in given]
    for key, value in given.items():
        kinds = known[key]
        fits = isinstance(value, kinds) and (not isinstance(value, bool) or kinds is bool)
        if not fits or (isinstance(value, int) and not isinstance(value, bool) and value < 1):
            problems.append(f"{key} is {value!r}")
    architectures = checkpoint.config.get("architectures", [model_class])
    if checkpoint.config.get("model_type") != "gpt2" or architectures != [model_class]:
        problems.append(f"it describes {checkpoint.config.get('model_type')} {architectures}, not gpt2 {model_class}")
    if given.get("add_cross_attention"):
        problems.append("add_cross_attention is true")
    if problems:
        raise CheckpointError(
            f"{path} cannot be used: {'; '.join(problems)}", hint=f"It must be the config.json of a {model_class}."
        )
    layers, tensors = given["n_layer"], len(checkpoint.tensors)
    if layers > tensors:
        # Said now: to build so many layers can take hours and all memory before anything is compared.
        raise CheckpointError(
            f"the weights do not fit {CONFIG}: {layers:,} layers cannot be in {tensors} tensors",
            hint=f"Check that the files in {checkpoint.folder} belong together.",
        )
    return given


def configuration(checkpoint: Checkpoint, model_class: ModelClass, attention: str, **changes: int) -> Any:
    """The transformers configuration of a checkpoint, with the named attention implementation.

    Args:
        checkpoint: its config.json is taken.
        model_class: the class to be built.
        attention: the name under which the attention is registered with transformers.
        changes: settings to be taken instead of those in config.json.

    Raises:
        CheckpointError: as `settings` does, or transformers refuses a value.
        ConversionError: transformers is not installed.
    """
    given = settings(checkpoint, model_class) | changes
    transformers = libraries.load("transformers")
    try:
        return transformers.GPT2Config(**given, use_cache=False, attn_implementation=attention)
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{checkpoint.folder / CONFIG} cannot be used: {error}") from error


def skeleton(config: Any, model_class: ModelClass) -> Any:
    """The model on the meta device: every shape, no weight in memory.

    Raises:
        CheckpointError: no model can be built from the configuration.
    """
    torch, transformers = libraries.load("torch"), libraries.load("transformers")
    try:
        with torch.device("meta"):
            model = getattr(transformers, model_class)(config)
    except (ValueError, KeyError, RuntimeError, ZeroDivisionError) as error:
        raise CheckpointError(f"no {model_class} can be built from {CONFIG}: {error}") from error
    model.tie_weights()
    return model.eval()


def whole(checkpoint: Checkpoint, model_class: ModelClass) -> Any:
    """The model with its weights in F32, loaded from safetensors by transformers itself, with its plainest attention.

    Raises:
        CheckpointError: transformers does not accept the checkpoint as it is.
    """
    torch, transformers = libraries.load("torch"), libraries.load("transformers")
    transformers.utils.logging.disable_progress_bar()
    config = configuration(checkpoint, model_class, "eager")
    try:
        model, report = getattr(transformers, model_class).from_pretrained(
            checkpoint.folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:
        raise CheckpointError(f"transformers cannot load {checkpoint.folder}: {error}") from error
    if any(report[kind] for kind in ("missing_keys", "mismatched_keys")):
        raise CheckpointError(
            f"transformers finds weights in {checkpoint.folder} missing or of another shape: "
            f"{report['missing_keys'] or report['mismatched_keys']}"
        )
    return model.eval()


def runner(checkpoint: Checkpoint, model_class: ModelClass) -> Callable[[Any], Any]:
    """A function from token ids [B, L] i64 to logits [B, L, vocabulary] f32 of the whole model. Raises as `whole`."""
    torch = libraries.load("torch")
    model = whole(checkpoint, model_class)

    def answer(ids: Any) -> Any:
        with torch.no_grad():
            return model(input_ids=torch.from_numpy(ids)).logits.numpy()

    return answer
