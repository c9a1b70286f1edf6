"""Where the files lie that text is made with: the IR, its tokenizer, and the number of positions of the model."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from omz_tools.conversion import planning
from omz_tools.descriptors.descriptor import PRECISIONS, VARIANTS
from omz_tools.descriptors.zoo import Model
from omz_tools.errors import CheckpointError, MissingError, ModelError, SelectionError
from omz_tools.export import checkpoint, tokenizer
from omz_tools.export.tokenizer_ir import TOKENIZERS

# Nearest to the checkpoint first: where nobody asks for another one, the text is PyTorch's.
_ORDER = ("FP32", "FP16", *PRECISIONS)
# The folder of IRs with a key/value cache, which are the faster ones, and that of the others.
_VARIANTS = (*VARIANTS, "")


@dataclass(frozen=True)
class Place:
    """The files of one model.

    Attributes:
        xml: the IR.
        tokenizer: see `tokenizer.Tokenizer`.
        positions: how many tokens a text may have, the prompt counted; None if no config.json lies beside the
            tokenizer.
    """

    xml: Path
    tokenizer: tuple[Path, ...]
    positions: int | None

    @property
    def name(self) -> str:
        """What the model is called: its folder, above those of a variant and a precision."""
        parts = self.xml.resolve().parent.parts
        return next(part for part in reversed(parts) if part not in (*PRECISIONS, *VARIANTS))


def of_model(
    model: Model,
    download_dir: Path,
    output_dir: Path,
    precision: str | None = None,
    files: tuple[Path, ...] | None = None,
) -> Place:
    """The files of a model of the zoo.

    Args:
        model: which one.
        download_dir: where the tree of downloaded models begins.
        output_dir: where the tree of converted models begins; may be the same.
        precision: that of the IR; None for the first that is there of FP32, FP16 and the others. One with a
            key/value cache goes before the others.
        files: those of a tokenizer of one's own; None for that of the checkpoint.

    Raises:
        UnsupportedError: the descriptor does not say how it is converted, or knows no such precision.
        MissingError: it was not downloaded, or not converted; or it has no tokenizer.
        CheckpointError: config.json cannot be used.
    """
    spec, _ = planning.conversion_of(model, (precision,) if precision else PRECISIONS)
    words = f"--name {model.name} -d {download_dir}" + (f" -o {output_dir}" if output_dir != download_dir else "")
    folder = output_dir / model.subdirectory
    xml = _ir(folder, precision)
    if not xml:
        words += f" --precisions {precision}" if precision else ""
        raise MissingError(
            f"{_wanted(folder, precision)} is not there", hint=f"Convert it first: omz_converter {words}"
        )
    source = download_dir / model.subdirectory / spec.checkpoint
    if not source.is_dir():
        raise MissingError(f"{source} is not there", hint=f"omz_downloader --name {model.name} -o {download_dir}")
    return _place(xml, files or tokenizer.files(source))


def of_path(path: Path, precision: str | None = None, files: tuple[Path, ...] | None = None) -> Place:
    """The files of a model by the path of its IR, or of the folder that it lies in or below.

    Args:
        path: an .xml; or a folder with one, or with folders of precisions.
        precision: the one to take, of a folder of several; None for the first that is there of FP32, FP16 and the
            others.
        files: those of the tokenizer; None to look beside the IR, in the folder above that of its precision, and in
            the folders there.

    Raises:
        ModelError: there is no IR, or more than one.
        SelectionError: a precision is asked for, and the path is that of one IR.
        MissingError: there is no tokenizer, or more than one.
        CheckpointError: config.json cannot be used.
    """
    if not path.is_dir():
        if precision:
            raise SelectionError(
                f"{path} is one IR, and {precision} is asked for",
                hint="--precision chooses among those of a folder or of --name.",
            )
        if not path.is_file():
            raise ModelError(f"{path} is not there", hint=_EXPECTED)
        xml = path
    elif found := _ir(path, precision):
        xml = found
    else:
        raise ModelError(f"{_wanted(path, precision)} is not there", hint=_EXPECTED)
    return _place(xml, files or _tokenizer_near(xml))


_EXPECTED = "Give the .xml of an OpenVINO IR, or a folder that omz_converter filled."


def _wanted(folder: Path, precision: str | None) -> str:
    return f"An IR in {folder / precision if precision else folder}"


def _ir(folder: Path, precision: str | None) -> Path | None:
    """The IR in a folder, or in that of a precision; None if there is none. Raises ModelError if it is one of many."""
    wanted = (precision,) if precision else _ORDER
    below = [folder / variant / one for variant in _VARIANTS for one in wanted]
    for place in below if precision else [folder, *below]:
        found = [xml for xml in sorted(place.glob("*.xml")) if xml.stem not in TOKENIZERS]
        if len(found) > 1:
            names = ", ".join(xml.name for xml in found)
            raise ModelError(f"{place} has several IRs: {names}", hint="Say which one: --model FILE.xml")
        if found:
            return found[0]
    return None


def _tokenizer_near(xml: Path) -> tuple[Path, ...]:
    found = list(_tokenizers(xml.parent))
    if not found and xml.parent.name in PRECISIONS:
        above = xml.parent.parent
        found = [files for folder in (above, *sorted(above.glob("*"))) for files in _tokenizers(folder)]
    if len(found) == 1:
        return found[0]
    several = f": {', '.join(str(files[0].parent) for files in found)}" if found else ""
    raise MissingError(
        f"{'several tokenizers lie' if found else 'no tokenizer lies'} near {xml}{several}",
        hint="Say which: --vocab vocab.json --merges merges.txt, or --name MODEL with -d where it was downloaded.",
    )


def _tokenizers(folder: Path) -> Iterator[tuple[Path, ...]]:
    """The files of the tokenizer in a folder, if it has one."""
    try:
        yield tokenizer.files(folder)
    except MissingError:
        return


def _place(xml: Path, files: tuple[Path, ...]) -> Place:
    config = files[0].parent / checkpoint.CONFIG
    if not config.exists():
        return Place(xml, files, None)
    positions = checkpoint.read_config(config).get("n_positions")
    if type(positions) is not int or positions < 1:
        raise CheckpointError(
            f"by {config} the model has {positions!r} positions", hint="It must be its own config.json."
        )
    return Place(xml, files, positions)
