"""What the outputs are compared with: PyTorch's own answers, from the checkpoint as transformers loads it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omz_tools.descriptors.descriptor import Export
from omz_tools.errors import CheckpointError
from omz_tools.export.checkpoint import Checkpoint
from omz_tools.export.pytorch_model import runner
from omz_tools.system import libraries
from omz_tools.system.files import disk_errors

_SEED = 0


@dataclass(frozen=True)
class Reference:
    """PyTorch's answers.

    Attributes:
        inputs: token ids [B, L] of several shapes.
        logits: for each of them f32 [B, L, vocabulary], or a .npy file with it.
        edges: what PyTorch does with each of the inputs of `strange`; empty in the quick proof.
        checkpoint: what it loaded.
    """

    inputs: list[Any]
    logits: list[Any]
    edges: dict[str, str]
    checkpoint: Checkpoint


def shapes(positions: int, *, full: bool) -> list[tuple[int, int]]:
    """The shapes [B, L] at which a model of that many positions is compared, the full proof's up to its last one."""
    grid = [(1, 1), (2, min(7, positions)), (1, min(64, positions))]
    if full:
        grid += [(4, max(1, positions // 4)), (2, max(1, positions // 2)), (1, positions)]
    return list(dict.fromkeys(grid))


def strange(positions: int, vocabulary: int) -> dict[str, list[list[int]]]:
    """Token ids [B, L] that a model is not made for, by what is wrong with them."""
    return {
        "no token": [[]],
        f"{positions + 1} tokens, one more than there are positions": [[0] * (positions + 1)],
        "the token id -1": [[-1]],
        f"the token id {vocabulary}, the first that is not in the vocabulary": [[vocabulary]],
    }


def make(checkpoint: Checkpoint, spec: Export, folder: Path, *, full: bool = False) -> Reference:
    """What PyTorch answers, in F32, to token ids drawn at random; in the full proof the logits go to `folder`.

    It is the model as transformers loads it from the checkpoint, with its plainest attention: neither our way of
    binding weights nor our attention has a part in it.

    Raises:
        CheckpointError: transformers does not load the checkpoint, or a score is infinite or no number.
        DiskError: `folder` cannot be written to.
    """
    np = libraries.load("numpy")
    draw = np.random.default_rng(_SEED)
    vocabulary, positions = spec.vocabulary, checkpoint.config["n_positions"]
    answer = runner(checkpoint, spec.model_class)
    inputs: list[Any] = []
    found: list[Any] = []
    for shape in shapes(positions, full=full):
        ids = draw.integers(0, vocabulary, shape, dtype=np.int64)
        logits = answer(ids)
        if not np.isfinite(logits).all():
            raise CheckpointError(
                "PyTorch itself gives scores that are infinite or no numbers",
                hint="The weights hold such values, or are too large. Nothing was converted.",
            )
        inputs.append(ids)
        found.append(_put_aside(folder / f"{len(found)}.npy", logits) if full else logits)
    cases = strange(positions, vocabulary) if full else {}
    return Reference(inputs, found, {case: behaviour(answer, ids) for case, ids in cases.items()}, checkpoint)


def _put_aside(path: Path, logits: Any) -> Path:
    with disk_errors("Writing", path):
        libraries.load("numpy").save(path, logits)
    return path


def behaviour(answer: Callable[[Any], Any], ids: list[list[int]]) -> str:
    """What a model does with token ids [B, L], in words that are the same on every machine."""
    np = libraries.load("numpy")
    try:
        logits = answer(np.array(ids, dtype=np.int64))
    except Exception:  # noqa: BLE001 -- that it refuses is the answer
        return "refuses"
    return "answers" if np.isfinite(logits).all() else "answers with what are no numbers"
