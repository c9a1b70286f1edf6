"""Checkpoints on disk: what is read from them, and everything malformed, unsafe or unfitting that is refused."""

import io
import itertools
import json
import pickle
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from omz_tools import checkpoint
from omz_tools.errors import CheckpointError, MissingError
from omz_tools.pytorch_model import NAMING

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


def test_a_shape_of_fifty_thousand_axes_is_refused_quickly(tmp_path: Path) -> None:
    header = b'{"x":{"dtype":"F32","shape":[' + b",".join([b"%d" % (1 << 61)] * 50_000) + b'],"data_offsets":[0,12]}}'
    started = time.monotonic()
    assert "'x' is malformed" in refused(folder_of(tmp_path, safetensors(header)))
    assert time.monotonic() - started < 2


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
        (b'{"a": "' + b"x" * (1 << 20) + b'"}', ""),
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
