"""A text becomes token ids, by the tokenizer that the model was trained with."""

from array import array
from pathlib import Path

from omz_tools.errors import CheckpointError, MissingError
from omz_tools.system import libraries

# A tokenizer, or the two parts of GPT-2's byte-level BPE. As in transformers, the first is taken where it is there.
WHOLE, PARTS = "tokenizer.json", ("vocab.json", "merges.txt")

# GPT-2's one special token. It stands between documents, and its letters are no text.
_END = "<|endoftext|>"


def files(folder: Path) -> tuple[Path, ...]:
    """The files of the tokenizer in a checkpoint's folder.

    Raises:
        MissingError: it has none.
    """
    parts = tuple(folder / name for name in PARTS)
    if (folder / WHOLE).exists():
        return (folder / WHOLE,)
    if not all(part.exists() for part in parts):
        raise MissingError(
            f"{folder} has no tokenizer: neither {WHOLE} nor {' and '.join(PARTS)}",
            hint=f"Pin them in the descriptor (omz_pin MODEL.YML --files {WHOLE}), and run omz_downloader again.",
        )
    return parts


def encode(folder: Path, text: str) -> "array[int]":
    """The token ids of a text; none is added at its beginning or end.

    Raises:
        MissingError, CheckpointError: the folder has no tokenizer, or one that cannot be used.
        ConversionError: the library is not installed.
    """
    paths = files(folder)
    tokenizers = libraries.load("tokenizers")
    try:
        if len(paths) == 1:
            tokenizer = tokenizers.Tokenizer.from_file(str(paths[0]))
        else:
            tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(*map(str, paths)))
            tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
            if tokenizer.token_to_id(_END) is not None:
                tokenizer.add_special_tokens([_END])
        # What a tokenizer.json may ask for, and would make the text another one.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return array("q", tokenizer.encode(text, add_special_tokens=False).ids)
    except Exception as error:
        names = " and ".join(path.name for path in paths)
        raise CheckpointError(
            f"{names} in {folder} cannot be used: {libraries.reason(error)}",
            hint="It must be the tokenizer that the model was published with.",
        ) from error
