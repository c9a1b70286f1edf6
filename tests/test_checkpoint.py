"""Checkpoints on disk: what is read from them, and everything malformed, unsafe or unfitting that is refused."""

import io
import itertools
import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
from conftest import Command, comes_to_an_end
from hypothesis import example, given, settings
from hypothesis import strategies as st

from omz_tools.errors import CheckpointError, MissingError
from omz_tools.export import checkpoint
from omz_tools.export.pytorch_model import NAMING

TINY = checkpoints.TINY | {"n_layer": 1, "n_positions": 8, "n_embd": 4}
PREFIX, BUFFERS = NAMING["GPT2LMHeadModel"].prefix, tuple(NAMING["GPT2LMHeadModel"].buffers)
HEAD, EMBEDDING = "lm_head.weight", PREFIX + "wte.weight"

# Two tensors of 4 and 8 bytes, as a header has them.
FIRST = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
SECOND = {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}
GOOD = {"first": FIRST, "second": SECOND}
DATA = bytes(range(12))

Weights = dict[str, np.ndarray]


def safetensors(header: Any, data: bytes = DATA) -> bytes:
    """The bytes of a file with a header, given as text or as what its JSON means."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def folder_of(folder: Path, weights: bytes | None = None, config: bytes | None = b"{}") -> Path:
    """A checkpoint folder with these files; None leaves one out."""
    folder.mkdir(exist_ok=True)
    if config is not None:
        (folder / "config.json").write_bytes(config)
    if weights is not None:
        (folder / "model.safetensors").write_bytes(weights)
    return folder


def refused(folder: Path, name: str = "model.safetensors") -> str:
    """What is said about a folder that cannot be loaded; it names the file."""
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(folder)
    assert str(folder / name) in str(caught.value)
    return caught.value.what


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return checkpoints.write_repository(tmp_path / "repository", TINY, seed=3)


def parameters() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parameters that transformers gives such a model."""
    shapes = checkpoints.shapes(TINY, masks=False)
    return {PREFIX + name: shape for name, shape in shapes.items()} | {HEAD: shapes["wte.weight"]}


def bind(folder: Path) -> dict[str, checkpoint.Tensor]:
    return checkpoint.load(folder).bind(parameters(), {HEAD: EMBEDDING}, BUFFERS, PREFIX)


def values_of(tensor: checkpoint.Tensor) -> np.ndarray:
    with tensor.file.open("rb") as file:
        file.seek(tensor.offset)
        return np.frombuffer(file.read(tensor.length), np.float32).reshape(tensor.shape)


def rewrite(folder: Path, change: Callable[[Weights], Weights]) -> Path:
    """Write the weights of a folder anew, changed."""
    named = change(checkpoints.weights(TINY, seed=3))
    checkpoints.write_safetensors(folder / "model.safetensors", named)
    return folder


def unfit(folder: Path) -> str:
    """What is said about weights that do not fit config.json; it names both files and their folder."""
    with pytest.raises(CheckpointError, match=r"do not fit config\.json") as caught:
        bind(folder)
    assert "model.safetensors" in str(caught.value)
    assert str(folder) in str(caught.value)
    return caught.value.what


# Good checkpoints


def test_every_tensor_is_found_where_it_lies(repository: Path) -> None:
    expected = checkpoints.weights(TINY, seed=3)
    loaded = checkpoint.load(repository)
    assert loaded.folder == repository
    assert loaded.config == TINY
    assert loaded.files == ("config.json", "model.safetensors")
    assert loaded.tensors.keys() == expected.keys()
    for name, tensor in loaded.tensors.items():
        assert tensor.file == repository / "model.safetensors"
        assert tensor.dtype == "F32"
        assert np.array_equal(values_of(tensor), expected[name])


def test_files_of_the_safetensors_library_are_read(tmp_path: Path) -> None:
    from safetensors.numpy import save

    named = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.ones(5, np.int8), "empty": np.zeros((0, 4))}
    loaded = checkpoint.load(folder_of(tmp_path, save(named, {"format": "np"}))).tensors
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in loaded.items()} == {
        "a": ("I8", (5,)),
        "b": ("F32", (2, 3)),
        "empty": ("F64", (0, 4)),
    }
    assert np.array_equal(values_of(loaded["b"]), named["b"])


def test_a_plain_file_with_and_without_metadata_is_read(tmp_path: Path) -> None:
    plain = checkpoint.load(folder_of(tmp_path, safetensors(GOOD))).tensors
    assert [(name, tensor.length) for name, tensor in plain.items()] == [("first", 4), ("second", 8)]
    described = checkpoint.load(folder_of(tmp_path, safetensors({"__metadata__": {"format": "pt"}} | GOOD))).tensors
    assert [(name, tensor.length) for name, tensor in described.items()] == [("first", 4), ("second", 8)]


@pytest.mark.parametrize("length", [255, 256, 257, 384, 0x4B50])
def test_a_header_of_any_length_is_read(tmp_path: Path, length: int) -> None:
    text = json.dumps(GOOD).encode()
    weights = safetensors(text + b" " * (length - len(text)))
    assert list(checkpoint.load(folder_of(tmp_path, weights)).tensors) == ["first", "second"]


@pytest.mark.parametrize("prefix", ["", PREFIX])
def test_names_may_lack_the_prefix_or_have_it(repository: Path, prefix: str) -> None:
    expected = checkpoints.weights(TINY, seed=3)
    bound = bind(rewrite(repository, lambda named: {prefix + name: values for name, values in named.items()}))
    assert bound.keys() == parameters().keys()
    for name, tensor in bound.items():
        own = EMBEDDING if name == HEAD else name
        assert np.array_equal(values_of(tensor), expected[own.removeprefix(PREFIX)])


def test_masks_may_be_there_or_not(repository: Path) -> None:
    assert any(name.endswith(BUFFERS) for name in checkpoint.load(repository).tensors)
    bind(repository)
    checkpoints.write_repository(repository, TINY, seed=3, masks=False)
    assert not any(name.endswith(BUFFERS) for name in checkpoint.load(repository).tensors)
    assert bind(repository).keys() == parameters().keys()


def test_a_copy_of_the_embedding_as_the_head_is_accepted(repository: Path) -> None:
    bound = bind(rewrite(repository, lambda named: named | {HEAD: named["wte.weight"]}))
    assert bound[HEAD] == bound[EMBEDDING] == checkpoint.load(repository).tensors["wte.weight"]


# Weights that do not fit


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: {n: v for n, v in w.items() if n != "ln_f.bias"}, "no tensor 'ln_f.bias'"),
        (lambda w: {n: v for n, v in w.items() if n != "wte.weight"}, "no tensor 'wte.weight'"),
        (lambda w: w | {"extra": np.ones(1, np.float32)}, "'extra' is in no place of the model"),
        (lambda w: w | {"../../x": np.ones(1, np.float32)}, "'../../x' is in no place of the model"),
        (lambda w: w | {"h.1.ln_1.bias": np.ones(4, np.float32)}, "'h.1.ln_1.bias' is in no place"),
        (lambda w: w | {PREFIX + "wte.weight": w["wte.weight"]}, "'wte.weight' is in no place"),
        (lambda w: w | {"ln_f.bias": np.ones(5, np.float32)}, "'ln_f.bias' is [5], by config.json it is [4]"),
        (lambda w: w | {"wpe.weight": w["wpe.weight"].T}, "'wpe.weight' is [4, 8], by config.json it is [8, 4]"),
        (lambda w: w | {"ln_f.bias": w["ln_f.bias"][None]}, "'ln_f.bias' is [1, 4], by config.json it is [4]"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(
    repository: Path, change: Callable[[Weights], Weights], said: str
) -> None:
    assert said in unfit(rewrite(repository, change))


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F64", "I32"])
def test_weights_of_another_type_are_refused_by_name(tmp_path: Path, dtype: str) -> None:
    size = {"F16": 2, "BF16": 2, "F64": 8, "I32": 4}[dtype]
    header = {"p": {"dtype": dtype, "shape": [2], "data_offsets": [0, 2 * size]}}
    folder = folder_of(tmp_path, safetensors(header, bytes(2 * size)))
    with pytest.raises(CheckpointError, match=f"'p' is {dtype}, only F32"):
        checkpoint.load(folder).bind({"p": (2,)}, {}, (), "")


def test_all_that_does_not_fit_is_named_at_once_up_to_twenty(repository: Path) -> None:
    extra = {f"extra{i:02}": np.ones(1, np.float32) for i in range(18)}
    changes = {"ln_f.bias": np.ones(5, np.float32)} | extra
    several = unfit(rewrite(repository, lambda w: {n: v for n, v in (w | changes).items() if n != "wpe.weight"}))
    assert "'ln_f.bias'" in several
    assert "'wpe.weight'" in several
    assert all(name in several for name in extra)
    assert "more" not in several
    changes["extra18"] = np.ones(1, np.float32)
    many = unfit(rewrite(repository, lambda w: {n: v for n, v in (w | changes).items() if n != "wpe.weight"}))
    assert "and 1 more" in many
    assert "extra18" not in many


# Malformed safetensors files


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (b"", "too short"),
        (b"\x02\0\0\0\0\0\0", "too short"),
        (bytes(8), "not usable JSON"),
        (struct.pack("<Q", 1 << 63) + b"{}", "header of 9,223,372,036,854,775,808 bytes"),
        (b"\xff" * 8 + b"{}", "header of 18,446,744,073,709,551,615 bytes"),
        (struct.pack("<Q", 3) + b"{}", "header of 3 bytes in 10"),
        (safetensors({}, b""), "holds no tensor"),
        (safetensors({"__metadata__": {"format": "pt"}}, b""), "holds no tensor"),
        (safetensors([], b""), "not a JSON object"),
        (safetensors(b"null", b""), "not a JSON object"),
        (safetensors(b"{", b""), "not usable JSON"),
        (safetensors(b'{"\xff": 1}', b""), "not UTF-8"),
        (safetensors(b"[" * 100_000, b""), "not usable JSON"),
        (safetensors(b'{"a":' * 100_000, b""), "not usable JSON"),
        (safetensors(b'{"a":' + b"1" * 10_000 + b"}", b""), "not usable JSON"),
        (safetensors(json.dumps(GOOD).replace("second", "first").encode()), "twice"),
        (safetensors(json.dumps(GOOD).replace('"shape": [1]', '"shape": [1], "shape": [1]').encode()), "twice"),
        (safetensors({"first": FIRST, "second": SECOND | {"data_offsets": [4, float("nan")]}}), ""),
        (safetensors(GOOD, DATA[:-1]), "should be"),
        (safetensors(GOOD, b""), "should be"),
        (safetensors(GOOD, DATA + b"\0"), "should be"),
        (safetensors(GOOD)[:-13], "header of"),
    ],
)
def test_a_malformed_file_is_refused(tmp_path: Path, weights: bytes, said: str) -> None:
    assert said in refused(folder_of(tmp_path, weights))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data_offsets": [0, 8]}, "overlaps"),
        ({"data_offsets": [3, 11]}, "overlaps"),
        ({"data_offsets": [5, 13]}, "leaves a hole"),
        ({"data_offsets": [4, 16]}, "malformed"),
        ({"data_offsets": [12, 4]}, "malformed"),
        ({"data_offsets": [-4, 4]}, "malformed"),
        ({"data_offsets": [4]}, "malformed"),
        ({"data_offsets": [4, 12, 20]}, "malformed"),
        ({"data_offsets": ["4", "12"]}, "malformed"),
        ({"data_offsets": [4.0, 12.0]}, "malformed"),
        ({"data_offsets": [False, True]}, "malformed"),
        ({"data_offsets": None}, "malformed"),
        ({"data_offsets": [(1 << 64) + 4, (1 << 64) + 12]}, "malformed"),
        ({"shape": [3]}, "malformed"),
        ({"shape": [4], "data_offsets": [4, 20]}, "should be"),
        ({"shape": [-2]}, "malformed"),
        ({"shape": [-1, -2]}, "malformed"),
        ({"shape": [1 << 61, 1 << 61]}, "malformed"),
        ({"shape": [1 << 62, 4, 0], "data_offsets": [4, 4]}, "malformed"),
        ({"shape": [2.0]}, "malformed"),
        ({"shape": [True], "data_offsets": [4, 8]}, "malformed"),
        ({"shape": 2}, "malformed"),
        ({"shape": "2"}, "malformed"),
        ({"shape": None}, "malformed"),
        ({"shape": {}, "data_offsets": [4, 8]}, "malformed"),
        ({"shape": "", "data_offsets": [4, 8]}, "malformed"),
        ({"dtype": "F8_E4M3"}, "unknown dtype 'F8_E4M3'"),
        ({"dtype": "f32"}, "malformed"),
        ({"dtype": ["F32"]}, "malformed"),
        ({"dtype": 32}, "malformed"),
        ({"dtype": "F64"}, "malformed"),
    ],
)
def test_a_tensor_that_cannot_be_where_it_says_is_refused_by_name(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    what = refused(folder_of(tmp_path, safetensors({"first": FIRST, "second": SECOND | change})))
    assert said in what
    assert "'second'" in what or said == "should be"


@pytest.mark.parametrize("key", ["dtype", "shape", "data_offsets"])
def test_a_tensor_that_lacks_a_key_is_refused_by_name(tmp_path: Path, key: str) -> None:
    lacking = {k: v for k, v in SECOND.items() if k != key}
    assert "'second' is malformed" in refused(folder_of(tmp_path, safetensors({"first": FIRST, "second": lacking})))


@pytest.mark.parametrize("entry", [None, 5, "text", [], [1, 2, 3], {}, True])
def test_a_tensor_that_is_no_mapping_of_its_keys_is_refused_by_name(tmp_path: Path, entry: Any) -> None:
    assert "'second' is malformed" in refused(folder_of(tmp_path, safetensors({"first": FIRST, "second": entry})))


def test_one_tensor_under_two_names_is_refused(tmp_path: Path) -> None:
    weights = safetensors({"first": FIRST, "again": FIRST, "second": SECOND})
    assert "overlaps" in refused(folder_of(tmp_path, weights))


def test_a_hole_at_the_beginning_is_refused(tmp_path: Path) -> None:
    assert "leaves a hole" in refused(folder_of(tmp_path, safetensors({"second": SECOND})))


def test_tensors_may_stand_in_any_order_and_be_empty(tmp_path: Path) -> None:
    empty = {"dtype": "F32", "shape": [0, 7], "data_offsets": [4, 4]}
    weights = safetensors({"second": SECOND, "empty": empty, "first": FIRST})
    assert checkpoint.load(folder_of(tmp_path, weights)).tensors["empty"].length == 0


def test_a_shape_of_fifty_thousand_axes_is_refused(tmp_path: Path) -> None:
    header = b'{"x":{"dtype":"F32","shape":[' + b",".join([b"%d" % (1 << 61)] * 50_000) + b'],"data_offsets":[0,12]}}'
    with comes_to_an_end():
        assert "'x' is malformed" in refused(folder_of(tmp_path, safetensors(header)))


class Bomb:
    """Whoever unpickles it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_of_pytorch_under_the_name_of_safetensors_is_refused_and_not_run(
    tmp_path: Path, zipped: bool
) -> None:
    import torch

    stream = io.BytesIO()
    values = {"w": torch.ones(3), "bomb": Bomb(tmp_path / "exploded")}
    torch.save(values, stream, _use_new_zipfile_serialization=zipped)
    assert stream.getvalue()[:2] == b"PK" if zipped else stream.getvalue()[:1] == b"\x80"
    assert "is a pickle" in refused(folder_of(tmp_path, stream.getvalue()))
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_of_any_binary_protocol_is_called_one(tmp_path: Path, protocol: int) -> None:
    data = pickle.dumps([Bomb(tmp_path / "exploded"), "x" * 100], protocol)
    assert "is a pickle" in refused(folder_of(tmp_path, data))
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("data", [b"", b"\x80\x02", b"PK\x03\x04", b"\x80\x02}q\x00."])
def test_the_first_bytes_of_a_pickle_alone_are_refused(tmp_path: Path, data: bytes) -> None:
    refused(folder_of(tmp_path, data))


# config.json


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (b"", "not usable JSON"),
        (b"not JSON", "not usable JSON"),
        (b"{'a': 1}", "not usable JSON"),
        (b'{"a": 1,}', "not usable JSON"),
        (b'{"a": 1} {}', "not usable JSON"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b'{"a": {"b": 1, "b": 1}}', "twice"),
        (b'{"a": NaN}', "not usable JSON"),
        (b'{"a": -Infinity}', "not usable JSON"),
        (b'{"a": 1e999}', "not usable JSON"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not usable JSON"),
        (b'{"a": ' + b"1" * 10_000 + b"}", "not usable JSON"),
        (b'{"a": "\xff"}', "UTF-8"),
        (b"[]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'"text"', "not a JSON object"),
        (b'{"a": "' + b"x" * (1 << 20) + b'"}', "is larger than 1,048,576 bytes"),
    ],
)
def test_a_config_that_is_no_json_object_is_refused(tmp_path: Path, config: bytes, said: str) -> None:
    assert said in refused(folder_of(tmp_path, safetensors(GOOD), config), "config.json")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("auto_map", {"AutoModel": "modeling_evil.Model"}),
        ("auto_map", {}),
        ("quantization_config", {"quant_method": "gptq"}),
        ("custom_pipelines", {"x": {"impl": "evil.Pipeline"}}),
        ("attn_implementation", "some/kernel"),
        ("_attn_implementation", "some/kernel"),
    ],
)
def test_a_config_that_would_load_code_is_refused_by_its_key(tmp_path: Path, key: str, value: Any) -> None:
    config = json.dumps(TINY | {key: value}).encode()
    what = refused(folder_of(tmp_path, safetensors(GOOD), config), "config.json")
    assert f"the key {key}," in what
    harmless = json.dumps(TINY | {key: None}).encode()
    assert checkpoint.load(folder_of(tmp_path, config=harmless)).config["n_embd"] == 4


# Weights in several files

INDEX = "model.safetensors.index.json"
SHARDS = tuple(f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3))

Index = dict[str, Any]


@pytest.fixture
def sharded(repository: Path) -> Path:
    checkpoints.write_shards(repository, checkpoints.weights(TINY, seed=3), 3)
    return repository


def index_of(folder: Path) -> Index:
    index: Index = json.loads((folder / INDEX).read_text())
    return index


def reindex(folder: Path, change: Callable[[Index], object]) -> Path:
    """Change the index of a folder."""
    index = index_of(folder)
    change(index)
    (folder / INDEX).write_text(json.dumps(index))
    return folder


def test_every_tensor_is_found_in_its_shard(sharded: Path) -> None:
    expected = checkpoints.weights(TINY, seed=3)
    loaded = checkpoint.load(sharded)
    assert loaded.files == ("config.json", INDEX, *SHARDS)
    assert loaded.tensors.keys() == expected.keys()
    for name, tensor in loaded.tensors.items():
        assert tensor.file == sharded / index_of(sharded)["weight_map"][name]
        assert np.array_equal(values_of(tensor), expected[name])
    assert {tensor.file.name for tensor in loaded.tensors.values()} == set(SHARDS)
    assert bind(sharded).keys() == parameters().keys()


def test_shards_that_transformers_writes_are_read(tmp_path: Path) -> None:
    import transformers

    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**TINY))
    model.save_pretrained(tmp_path, max_shard_size="1KB")
    loaded = checkpoint.load(tmp_path)
    assert loaded.files[1] == INDEX
    assert len(loaded.files) > 4
    parameters = dict(model.named_parameters())
    assert loaded.tensors.keys() == parameters.keys()
    for name, tensor in loaded.tensors.items():
        assert np.array_equal(values_of(tensor), parameters[name].detach().numpy())


@pytest.mark.parametrize("pinned", [None, ("config.json", "model.safetensors", INDEX, *SHARDS)])
def test_a_whole_file_is_taken_before_an_index_as_transformers_does(
    sharded: Path, pinned: tuple[str, ...] | None
) -> None:
    import transformers

    named = checkpoints.weights(TINY, seed=4)
    checkpoints.write_safetensors(sharded / "model.safetensors", named)
    (sharded / INDEX).write_text("not even JSON")
    loaded = checkpoint.load(sharded, pinned)
    assert loaded.files == ("config.json", "model.safetensors")
    assert np.array_equal(values_of(loaded.tensors["wte.weight"]), named["wte.weight"])
    model = transformers.GPT2LMHeadModel.from_pretrained(sharded)
    assert np.array_equal(model.transformer.wte.weight.detach().numpy(), named["wte.weight"])


def test_a_whole_file_that_is_not_pinned_is_refused_beside_a_pinned_index(sharded: Path) -> None:
    checkpoints.write_safetensors(sharded / "model.safetensors", checkpoints.weights(TINY, seed=4))
    with pytest.raises(CheckpointError, match=r"model\.safetensors is no file of this model") as caught:
        checkpoint.load(sharded, ("config.json", INDEX, *SHARDS))
    assert "Remove" in caught.value.hint


def test_an_index_that_is_not_pinned_is_not_read(sharded: Path) -> None:
    with pytest.raises(MissingError, match=r"model\.safetensors is missing"):
        checkpoint.load(sharded, ("config.json", *SHARDS))
    checkpoints.write_safetensors(sharded / "model.safetensors", checkpoints.weights(TINY, seed=4))
    assert checkpoint.load(sharded, ("config.json", "model.safetensors")).files[1:] == ("model.safetensors",)


def test_shards_that_the_descriptor_does_not_pin_are_named_and_not_read(sharded: Path) -> None:
    for shard in SHARDS:
        (sharded / shard).write_bytes(b"not safetensors")
    with pytest.raises(CheckpointError, match="does not pin: ") as caught:
        checkpoint.load(sharded, ("config.json", INDEX, SHARDS[1]))
    assert SHARDS[0] in caught.value.what
    assert SHARDS[1] not in caught.value.what
    assert SHARDS[2] in caught.value.what
    assert "omz_pin" in caught.value.hint


def test_all_shards_that_are_missing_are_named(sharded: Path) -> None:
    for shard in SHARDS[1:]:
        (sharded / shard).unlink()
    with pytest.raises(MissingError) as caught:
        checkpoint.load(sharded)
    assert SHARDS[0] not in caught.value.what
    assert f"{sharded / INDEX} names files that are not in its folder: {SHARDS[1]}; {SHARDS[2]}" in caught.value.what
    assert "omz_downloader" in caught.value.hint


@pytest.mark.parametrize(
    ("index", "said"),
    [
        (b"", "not usable JSON"),
        (b"[]", "not a JSON object"),
        (b"{}", "no weight_map"),
        (b'{"metadata": {}, "weight_map": {}}', "no weight_map"),
        (b'{"metadata": {}, "weight_map": ["a.safetensors"]}', "no weight_map"),
        (b'{"metadata": {}, "weight_map": null}', "no weight_map"),
        (b'{"weight_map": {"a": "a.safetensors"}}', "no metadata"),
        (b'{"metadata": 5, "weight_map": {"a": "a.safetensors"}}', "no metadata"),
        (b'{"metadata": {}, "weight_map": {"a": "a.safetensors", "a": "b.safetensors"}}', "twice"),
        (b'{"metadata": {}, "metadata": {}, "weight_map": {"a": "a.safetensors"}}', "twice"),
        (b'{"metadata": {"total_size": "5"}, "weight_map": {"a": "a.safetensors"}}', "total_size is '5'"),
        (b'{"metadata": {"total_size": true}, "weight_map": {"a": "a.safetensors"}}', "total_size is True"),
        (b'{"metadata": {"total_size": NaN}, "weight_map": {"a": "a.safetensors"}}', "not usable JSON"),
        (b'{"metadata": {"total_size": 1e999}, "weight_map": {"a": "a.safetensors"}}', "not usable JSON"),
        (b'{"metadata": {}, "weight_map": {"a": "\xff"}}', "not UTF-8"),
        (b"[" * 100_000, "not usable JSON"),
        (b" " * ((1 << 24) + 1), "is larger than 16,777,216 bytes"),
    ],
)
def test_a_malformed_index_is_refused(sharded: Path, index: bytes, said: str) -> None:
    (sharded / INDEX).write_bytes(index)
    assert said in refused(sharded, INDEX)


@pytest.mark.parametrize(
    "shard",
    [
        "../model-00001-of-00003.safetensors", "/etc/model.safetensors", "deeper/model.safetensors", "", ".", "..",
        "a\\b.safetensors", "a\0.safetensors", "nul.safetensors", "model.bin", "model-00001-of-00003.safetensors ",
        "model-00001-of-00003", None, 5, True, ["model-00001-of-00003.safetensors"], {},
    ],
)  # fmt: skip
def test_an_index_that_names_no_safetensors_file_in_its_folder_is_refused(sharded: Path, shard: Any) -> None:
    what = refused(reindex(sharded, lambda index: index["weight_map"].update({"wpe.weight": shard})), INDEX)
    assert "the place of tensor 'wpe.weight' is malformed" in what


def test_a_tensor_that_its_shard_lacks_is_named(sharded: Path) -> None:
    what = refused(reindex(sharded, lambda index: index["weight_map"].update({"extra": SHARDS[1]})), INDEX)
    assert f"'extra' is not in {SHARDS[1]}" in what


def test_a_tensor_that_the_index_lacks_is_named(sharded: Path) -> None:
    what = refused(reindex(sharded, lambda index: index["weight_map"].pop("wpe.weight")), INDEX)
    assert f"'wpe.weight' is in {SHARDS[2]}, by the index it is in no file" in what


def test_a_tensor_that_is_in_two_shards_is_named(sharded: Path) -> None:
    named = checkpoints.weights(TINY, seed=3)
    first = [name for name, shard in index_of(sharded)["weight_map"].items() if shard == SHARDS[0]]
    again = {name: named[name] for name in (*first, "wte.weight")}
    checkpoints.write_safetensors(sharded / SHARDS[0], again)
    assert f"'wte.weight' is in {SHARDS[0]}, by the index it is in {SHARDS[2]}" in refused(sharded, INDEX)


def test_tensors_in_other_shards_than_the_index_says_are_named_up_to_twenty(sharded: Path) -> None:
    (sharded / SHARDS[0]).rename(sharded / "aside")
    (sharded / SHARDS[1]).rename(sharded / SHARDS[0])
    (sharded / "aside").rename(sharded / SHARDS[1])
    what = refused(sharded, INDEX)
    moved = sum(shard in SHARDS[:2] for shard in index_of(sharded)["weight_map"].values())
    assert what.count("by the index it is in") == min(20, moved)
    if moved > 20:
        assert what.endswith(f"; and {moved - 20} more")


def test_a_shard_is_audited_as_a_whole_file_is(sharded: Path) -> None:
    (sharded / SHARDS[1]).write_bytes((sharded / SHARDS[1]).read_bytes()[:-1])
    assert "should be" in refused(sharded, SHARDS[1])
    (sharded / SHARDS[1]).write_bytes(pickle.dumps({"w": 1}, 4))
    assert "is a pickle" in refused(sharded, SHARDS[1])
    (sharded / SHARDS[1]).unlink()
    (sharded / SHARDS[1]).mkdir()
    assert "cannot be read" in refused(sharded, SHARDS[1])


def test_shards_that_hold_more_than_the_index_says_are_refused(sharded: Path) -> None:
    total = sum(tensor.length for tensor in checkpoint.load(sharded).tensors.values())
    reindex(sharded, lambda index: index["metadata"].update(total_size=total - 1))
    assert f"total_size is {total - 1:,}, the tensors have {total:,} bytes" in refused(sharded, INDEX)


@pytest.mark.parametrize("metadata", [{}, {"total_size": None}, {"total_size": 1 << 40}, {"total_size": 2.0}])
def test_sizes_that_writers_count_in_their_own_ways_are_accepted(tmp_path: Path, metadata: Index) -> None:
    mask = {"dtype": "BOOL", "shape": [12], "data_offsets": [0, 12]}
    (folder_of(tmp_path) / "a.safetensors").write_bytes(safetensors({"mask": mask}))
    index = {"metadata": metadata, "weight_map": {"mask": "a.safetensors"}}
    (tmp_path / INDEX).write_text(json.dumps(index))
    assert checkpoint.load(tmp_path).tensors.keys() == {"mask"}


def test_weights_of_several_files_that_do_not_fit_name_the_index(sharded: Path) -> None:
    (sharded / "config.json").write_text(json.dumps(TINY))
    named = {name: v for name, v in checkpoints.weights(TINY, seed=3).items() if name != "ln_f.bias"}
    checkpoints.write_shards(sharded, named, 3)
    with pytest.raises(CheckpointError, match=r"no tensor 'ln_f\.bias'") as caught:
        bind(sharded)
    assert f"config.json and {INDEX} in {sharded}" in caught.value.hint


# The same as people meet it


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tiny_weights(dtype: str, **more: np.ndarray) -> bytes:
    """Those of the tiny model and some more, as F16 or F32."""
    header: Index = {}
    data = b""
    for name, values in (checkpoints.weights(checkpoints.TINY, seed=3) | more).items():
        written = values.astype(np.float16 if dtype == "F16" else np.float32).tobytes()
        header[name] = {"dtype": dtype, "shape": values.shape, "data_offsets": [len(data), len(data) + len(written)]}
        data += written
    return safetensors(header, data)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (safetensors({"first": FIRST, "second": SECOND | {"data_offsets": [3, 11]}}), "'second' overlaps"),
        (safetensors({"first": FIRST, "second": SECOND | {"data_offsets": [5, 13]}}), "'second' leaves a hole"),
        (safetensors(GOOD, DATA[:-1]), "should be"),
        (struct.pack("<Q", 1 << 63) + b"{}", "9,223,372,036,854,775,808 bytes"),
        (safetensors(json.dumps(GOOD).replace("second", "first").encode()), "a key stands twice"),
        (safetensors({}, b""), "holds no tensor"),
        (b"", "too short"),
        (tiny_weights("F32", **{"../../x": np.ones(1)}), "'../../x' is in no place of the model"),
        (tiny_weights("F16"), "'wte.weight' is F16, only F32"),
    ],
    ids=["overlap", "hole", "past the end", "2**63", "twice", "nothing", "empty", "a path for a name", "F16"],
)
def test_a_malformed_file_fails_the_conversion_and_leaves_nothing_behind(
    run: Command, tiny: Path, graph_cache: Path, tmp_path: Path, weights: bytes, said: str
) -> None:
    (tiny / "model.safetensors").write_bytes(weights)
    checkpoints.pin_locally(tiny, tmp_path / "models", "tiny")
    assert run("omz_downloader", "--name", "tiny", "--models_dir", "models").returncode == 0
    before = listing(tmp_path / "public")
    result = run("omz_converter", "--name", "tiny", "--models_dir", "models", "--cache_dir", graph_cache)
    assert result.returncode == 1
    assert result.stdout.endswith("FAILED:\ntiny\n")
    assert "Traceback" not in result.stderr
    assert said in result.stderr
    assert listing(tmp_path / "public") == before


# Files that are missing or no files


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(repository: Path, name: str) -> None:
    (repository / name).unlink()
    with pytest.raises(MissingError) as caught:
        checkpoint.load(repository)
    assert caught.value.what == f"{repository / name} is missing"
    assert "omz_downloader" in caught.value.hint


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_folder_in_place_of_a_file_is_named(repository: Path, name: str) -> None:
    (repository / name).unlink()
    (repository / name).mkdir()
    assert "cannot be read" in refused(repository, name)


# Inputs no one thought of

FUZZ = settings(deadline=None, derandomize=True, max_examples=300)


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def check_loads_or_is_refused(folder: Path, weights: bytes) -> None:
    """If it loads, its tensors fill the file from the header's end to the last byte, each its own part."""
    folder_of(folder, weights)
    refusal = None
    try:
        loaded = checkpoint.load(folder)
    except CheckpointError as error:
        refusal = str(error)
    if refusal is not None:
        assert str(folder / "model.safetensors") in refusal
        return
    parts = sorted((tensor.offset, tensor.offset + tensor.length) for tensor in loaded.tensors.values())
    assert parts[0][0] == 8 + int.from_bytes(weights[:8], "little")
    assert parts[-1][1] == len(weights)
    assert all(end == begin for (_, end), (begin, _) in itertools.pairwise(parts))
    for tensor in loaded.tensors.values():
        assert tensor.length % max(1, int(np.prod(tensor.shape, dtype=object))) == 0


@FUZZ
@given(edits=st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=3), st.integers(0, 3)), min_size=1, max_size=4))
def test_a_file_with_mutated_bytes_in_its_header_loads_or_is_refused(
    scratch: Path, edits: list[tuple[float, bytes, int]]
) -> None:
    weights = safetensors(GOOD)
    for where, inserted, removed in edits:
        start = int(where * (len(weights) - len(DATA)))
        weights = weights[:start] + inserted + weights[start + removed :]
    check_loads_or_is_refused(scratch, weights)


@FUZZ
@given(text=st.data(), count=st.integers(1, 3))
def test_a_header_with_mutated_characters_loads_or_is_refused(scratch: Path, text: st.DataObject, count: int) -> None:
    header = bytearray(json.dumps(GOOD).encode())
    for _ in range(count):
        place = text.draw(st.integers(0, len(header) - 1))
        header[place] = text.draw(st.sampled_from(b'0123456789-+.eE{}[],:" \\uFDINab\x80\xff\x00'))
    check_loads_or_is_refused(scratch, safetensors(bytes(header)))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from(["F32", "I8"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


@FUZZ
@given(name=st.text(max_size=5), key=st.sampled_from(["dtype", "shape", "data_offsets", None]), value=VALUES)
@example(name="second", key="dtype", value=[])
@example(name="\ud800", key="shape", value=[2])
def test_a_header_with_values_of_other_kinds_loads_or_is_refused(
    scratch: Path, name: str, key: str | None, value: Any
) -> None:
    entry = value if key is None else SECOND | {key: value}
    check_loads_or_is_refused(scratch, safetensors({"first": FIRST, name: entry}))


@FUZZ
@given(data=st.binary(max_size=64))
def test_any_bytes_load_or_are_refused(scratch: Path, data: bytes) -> None:
    check_loads_or_is_refused(scratch, data)


@FUZZ
@given(place=st.sampled_from([(), ("metadata",), ("weight_map",), ("weight_map", "second")]), value=VALUES)
@example(place=("weight_map", "second"), value="../\ud800.safetensors")
def test_an_index_with_values_of_other_kinds_loads_or_is_refused(
    scratch: Path, place: tuple[str, ...], value: Any
) -> None:
    folder = folder_of(scratch / "sharded")
    (folder / "a.safetensors").write_bytes(safetensors(GOOD))
    index: Any = {"metadata": {"total_size": 12}, "weight_map": dict.fromkeys(GOOD, "a.safetensors")}
    if place:
        inside = index if len(place) == 1 else index[place[0]]
        inside[place[-1]] = value
    else:
        index = value
    (folder / INDEX).write_text(json.dumps(index))
    refusal = None
    try:
        assert checkpoint.load(folder).tensors.keys() == GOOD.keys()
    except (CheckpointError, MissingError) as error:
        refusal = str(error)
    assert refusal is None or str(folder / INDEX) in refusal
