"""Weights with values that cannot be converted."""

from pathlib import Path

import checkpoints
import numpy as np
import pytest

from omz_tools.errors import CheckpointError, ConversionError, DiskError
from omz_tools.export import checkpoint, values

# More than two pieces of those in which tensors are read.
LONG = 600_000
NOT_NUMBERS = [np.nan, -np.nan, np.inf, -np.inf, np.frombuffer(b"\x01\0\x80\x7f", np.float32)[0]]


def tensors_of(folder: Path, named: dict[str, np.ndarray]) -> dict[str, checkpoint.Tensor]:
    """These tensors as a checkpoint of two files has them, at offsets that are no multiple of 4."""
    (folder / "config.json").write_text("{}")
    checkpoints.write_shards(folder, {"first": np.zeros(1, np.float32)} | named, 2)
    read = checkpoint.load(folder).tensors
    assert all(tensor.offset % 4 for tensor in read.values())
    return read


def holding(value: float, place: int, length: int = LONG) -> np.ndarray:
    drawn = np.random.default_rng(5).standard_normal(length, dtype=np.float32)
    drawn[place] = value
    return drawn


def test_what_every_precision_can_hold_is_accepted(tmp_path: Path) -> None:
    edges = np.array(
        [
            65504,
            -65504,
            np.nextafter(np.float32(65520), np.float32(0)),
            0,
            -0.0,
            1e-45,
            -1e-45,
            np.finfo(np.float32).tiny,
        ],
        np.float32,
    )
    read = tensors_of(tmp_path, {"edges": edges, "none": np.zeros((0, 4), np.float32), "long": holding(1, 0)})
    values.check(read, ["FP16", "FP32"])


@pytest.mark.parametrize("place", [0, 262_143, 262_144, LONG - 1])
@pytest.mark.parametrize("value", NOT_NUMBERS)
def test_a_value_that_is_no_number_is_found_wherever_it_is(tmp_path: Path, value: float, place: int) -> None:
    read = tensors_of(tmp_path, {"good": holding(1, 0), "bad": holding(value, place)})
    with pytest.raises(CheckpointError, match=r"infinite or no numbers: 1 in 'bad'\n"):
        values.check(read, ["FP32"])


@pytest.mark.parametrize("place", [0, 262_143, 262_144, LONG - 1])
@pytest.mark.parametrize("value", [65520, -65520, 3e38, -3e38])
def test_a_value_beyond_f16_is_an_error_for_all_but_fp32(tmp_path: Path, value: float, place: int) -> None:
    read = tensors_of(tmp_path, {"good": holding(1, 0), "bad": holding(value, place)})
    values.check(read, ["FP32"])
    with pytest.raises(ConversionError, match=r"65504: 1 in 'bad'\n") as caught:
        values.check(read, ["FP16", "FP32"])
    assert "--precisions FP32" in caught.value.hint
    with pytest.raises(ConversionError):
        values.check(read, ["FP16-INT8"])


def test_values_are_counted_and_the_first_five_tensors_named(tmp_path: Path) -> None:
    many = {f"t{number}": np.full(1000 + number, np.nan, np.float32) for number in range(8)}
    many["t1"][3:] = 1e6
    with pytest.raises(CheckpointError) as caught:
        values.check(tensors_of(tmp_path, many), ["FP16"])
    listed = "1,000 in 't0', 3 in 't1', 1,002 in 't2', 1,003 in 't3', 1,004 in 't4', and 3,018 in 3 other tensors"
    assert caught.value.what.endswith(f": {listed}")


def test_a_tensor_of_two_names_is_counted_once_under_the_first(tmp_path: Path) -> None:
    read = tensors_of(tmp_path, {"bad": np.full(7, np.inf, np.float32)})
    with pytest.raises(CheckpointError, match=r": 7 in 'wte'\n"):
        values.check({"wte": read["bad"], "head": read["bad"]}, ["FP32"])


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    read = tensors_of(tmp_path, {"mask": np.full(7, np.nan, np.float32), "good": np.ones(7, np.float32)})
    values.check({"good": read["good"]}, ["FP16"])


def test_a_file_that_is_gone_or_cut_since_it_was_audited_is_an_error(tmp_path: Path) -> None:
    read = tensors_of(tmp_path, {"last": np.ones(LONG, np.float32)})
    file = read["last"].file
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="became shorter"):
        values.check(read, ["FP32"])
    file.unlink()
    with pytest.raises(DiskError, match="No such file"):
        values.check(read, ["FP32"])
