"""A text becomes token ids, and token ids a text, by the tokenizer that the model was trained with."""

from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omz_tools.errors import CheckpointError, MissingError
from omz_tools.system import libraries

# A tokenizer, or the two parts of GPT-2's byte-level BPE. As in transformers, the first is taken where it is there.
WHOLE, PARTS = "tokenizer.json", ("vocab.json", "merges.txt")

# GPT-2's one special token. It stands between documents, and its letters are no text.
END = "<|endoftext|>"


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


class Tokenizer:
    """The tokenizer in some files; texts are neither cut nor filled, and no token is added at their ends."""

    def __init__(self, paths: tuple[Path, ...]) -> None:
        """Load it.

        Args:
            paths: a tokenizer.json, or a vocabulary and the merges that go with it.

        Raises:
            CheckpointError: they cannot be used.
            ConversionError: the library is not installed.
        """
        self.paths = paths
        libraries.load("tokenizers")
        with self._using():
            self._tokenizer = _loaded(paths)
            # What a tokenizer.json may ask for, and would make the text another one.
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()

    @property
    def end(self) -> int | None:
        """The token that ends a document and begins the next; None if it has no such."""
        token: int | None = self._tokenizer.token_to_id(END)
        return token

    def encode(self, text: str) -> list[int]:
        """The token ids of a text. Raises CheckpointError if it has none for a part of it."""
        with self._using():
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; what is no whole character of UTF-8 becomes U+FFFD."""
        with self._using():
            text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
        return text

    @contextmanager
    def _using(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            names = " and ".join(path.name for path in self.paths)
            raise CheckpointError(
                f"{names} in {self.paths[0].parent} cannot be used: {libraries.reason(error)}",
                hint="It must be the tokenizer that the model was published with.",
            ) from error


def _loaded(paths: tuple[Path, ...]) -> Any:
    tokenizers = libraries.load("tokenizers")
    if len(paths) == 1:
        return tokenizers.Tokenizer.from_file(str(paths[0]))
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(*map(str, paths)))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    if tokenizer.token_to_id(END) is not None:
        tokenizer.add_special_tokens([END])
    return tokenizer


def encode(folder: Path, text: str) -> "array[int]":
    """The token ids of a text, by the tokenizer in a folder.

    Raises:
        MissingError, CheckpointError: the folder has no tokenizer, or one that cannot be used.
        ConversionError: the library is not installed.
    """
    return array("q", Tokenizer(files(folder)).encode(text))
