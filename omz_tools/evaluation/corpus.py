"""The text that a model is measured on: a file of one's own, or the one that its descriptor pins."""

import hashlib
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from omz_tools.descriptors.descriptor import Corpus
from omz_tools.descriptors.zoo import Model
from omz_tools.download import pinned, pipeline
from omz_tools.download.pinned import Want
from omz_tools.errors import DescriptorError, IntegrityError, SelectionError
from omz_tools.progress.reporting import Reporter
from omz_tools.system.files import disk_errors


@dataclass(frozen=True)
class Passage:
    """A text, where it lies, and its bytes, of which digests are made."""

    place: str
    data: bytes
    text: str

    def is_of(self, corpus: Corpus) -> bool:
        """Whether it is the text that a descriptor pins."""
        digest = corpus.digest
        return hashlib.new(digest.algorithm, self.data).hexdigest() == digest.value


def read(path: Path) -> Passage:
    """A text of one's own.

    Raises:
        SelectionError: it cannot be read, or is not UTF-8.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SelectionError(f"{path} cannot be read: {error.strerror}", hint="--text takes a file of text.") from None
    return _passage(str(path), data)


def bring(corpus: Corpus, model: Model, folder: Path, means: pinned.Means, reporter: Reporter) -> Passage:
    """The text that a descriptor pins; its file is fetched to `folder` unless it lies there, and verified.

    Raises:
        SourceError, UnsupportedError, IntegrityError, DiskError: see `pinned.fetch`.
        DescriptorError: the archive does not hold the text.
    """
    want = Want(corpus.file, folder / corpus.file.name, model.folder)
    how = pinned.foresee(want, means)
    if how is not pinned.How.IN_PLACE:
        pipeline.bring(model.name, want, how, means, reporter)
    with disk_errors("Reading", want.target):
        data = want.target.read_bytes() if corpus.member is None else _unpacked(want.target, corpus.member)
    place = str(want.target) if corpus.member is None else f"{corpus.member} in {want.target}"
    passage = _passage(place, data)
    if not passage.is_of(corpus):
        raise IntegrityError(
            f"{place} is not the text that the descriptor pins ({corpus.digest.value})",
            hint="The archive is as pinned: correct the text's sha256 in the descriptor.",
        )
    return passage


def _unpacked(archive: Path, member: str) -> bytes:
    try:
        with zipfile.ZipFile(archive) as opened:
            return opened.read(member)
    except (KeyError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise DescriptorError(
            f"{member} cannot be taken out of {archive}: {error.args[0] if error.args else error}",
            hint="The archive is as pinned: correct the descriptor's corpus.",
        ) from error


def _passage(place: str, data: bytes) -> Passage:
    try:
        return Passage(place, data, data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise SelectionError(f"{place} is not UTF-8 text (byte {error.start})", hint="Save it as UTF-8.") from None
