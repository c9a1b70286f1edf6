"""A model of one's own: a descriptor is all it takes, whatever the shape and however many files hold the weights."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import checkpoints
import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
import transformers
from conftest import Command
from hub import Hub

# As distilgpt2 is to gpt2: half the layers; and no other number is gpt2's either.
CONFIG = checkpoints.GPT2 | {"n_embd": 40, "n_head": 5, "n_layer": 6, "n_positions": 56, "vocab_size": 211}
MODEL = """\
description: A model of another shape
task_type: text_prediction
license: https://example.org/license
framework: pytorch
export:
  checkpoint: own
  model_class: GPT2LMHeadModel
  inputs: [{name: input, type: i64, shape: [B, L]}]
  outputs: [{name: output, type: f32, shape: [B, L, 211]}]
"""
SHARDS = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
INDEX = "model.safetensors.index.json"

IDS = np.random.default_rng(3).integers(0, 211, (3, 50), dtype=np.int64)
F32 = {"INFERENCE_PRECISION_HINT": "f32"}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return checkpoints.write_repository(tmp_path / "repository", CONFIG, seed=5)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For what is the same however many files hold the weights: the graph."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def hub(repository: Path) -> Iterator[Hub]:
    with Hub(repository, repo="someone/own") as hub:
        yield hub


@pytest.fixture
def sharded(repository: Path, tmp_path: Path) -> Path:
    """The folder of the weights in three files, as the model "own" downloaded to `tmp_path`."""
    checkpoints.write_shards(repository, checkpoints.weights(CONFIG, seed=5), 3)
    checkpoints.pin_locally(repository, tmp_path / "models", "own")
    return repository


def wanted(repository: Path) -> np.ndarray:
    model = transformers.GPT2LMHeadModel.from_pretrained(repository, attn_implementation="eager", dtype=torch.float32)
    with torch.no_grad():
        return model.eval()(torch.from_numpy(IDS)).logits.numpy()


def done(run: Command, *words: str | Path, **environment: str) -> str:
    result = run(*words, **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def answers(folder: Path) -> dict[str, np.ndarray]:
    """The logits of every file that a conversion made."""
    session = onnxruntime.InferenceSession(folder / "own.onnx")
    found = {"ONNX": session.run(["output"], {"input": IDS})[0]}
    for xml in sorted(folder.glob("*/own.xml")):
        found[xml.parent.name] = openvino.Core().compile_model(xml, "CPU", F32)({"input": IDS})["output"]
    return found


def test_another_shape_needs_a_descriptor_alone(
    run: Command, hub: Hub, repository: Path, cache: Path, tmp_path: Path
) -> None:
    path = tmp_path / "models" / "own" / "model.yml"
    path.parent.mkdir(parents=True)
    path.write_text(MODEL)
    done(run, "omz_pin", path, "--repo", hub.repo, HF_ENDPOINT=hub.endpoint)
    done(run, "omz_downloader", "--name", "own", "--models_dir", "models", HF_ENDPOINT=hub.endpoint)
    done(run, "omz_converter", "--name", "own", "--models_dir", "models", "--cache_dir", cache)
    found, right = answers(tmp_path / "public" / "own"), wanted(repository)
    assert found.keys() == {"ONNX", "FP16", "FP32"}
    np.testing.assert_allclose(found["ONNX"], right, rtol=0, atol=1e-4)
    np.testing.assert_allclose(found["FP32"], right, rtol=0, atol=1e-4)
    np.testing.assert_allclose(found["FP16"], right, rtol=0, atol=5e-2)


def test_weights_in_several_files_come_from_the_hub_and_stay_where_they_are(
    run: Command, repository: Path, cache: Path, tmp_path: Path
) -> None:
    checkpoints.write_shards(repository, checkpoints.weights(CONFIG, seed=5), 3)
    path = tmp_path / "models" / "own" / "model.yml"
    path.parent.mkdir(parents=True)
    path.write_text(MODEL)
    with Hub(repository, repo="someone/own") as hub:
        done(run, "omz_pin", path, "--repo", hub.repo, HF_ENDPOINT=hub.endpoint)
        done(run, "omz_downloader", "--name", "own", "--models_dir", "models", HF_ENDPOINT=hub.endpoint)
    words = ("--name", "own", "--models_dir", "models", "--precisions", "FP32", "--cache_dir", cache)
    said = done(run, "omz_converter", *words)
    assert "FP32: largest difference to PyTorch" in said
    folder = tmp_path / "public" / "own"
    spans: dict[str, list[tuple[int, int]]] = {}
    for tensor in onnx.load(folder / "own.onnx", load_external_data=False).graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            where = {entry.key: entry.value for entry in tensor.external_data}
            spans.setdefault(where["location"], []).append((int(where["offset"]), int(where["length"])))
        else:
            assert len(tensor.raw_data) < 1000
    assert spans.keys() == {f"own/{shard}" for shard in SHARDS}
    for inside in spans.values():
        assert all(begin + length <= after for (begin, length), (after, _) in itertools.pairwise(sorted(inside)))
    shapes = checkpoints.shapes(CONFIG, masks=False).values()
    assert sum(length for inside in spans.values() for _, length in inside) == 4 * sum(map(np.prod, shapes))
    right = wanted(repository)
    for logits in answers(folder).values():
        np.testing.assert_allclose(logits, right, rtol=0, atol=1e-4)


def test_weights_in_several_files_are_copied_into_an_onnx_file_elsewhere(
    run: Command, sharded: Path, cache: Path, tmp_path: Path
) -> None:
    words = ("--name", "own", "--models_dir", "models")
    done(run, "omz_downloader", *words)
    done(run, "omz_converter", *words, "--precisions", "FP32", "-o", "out", "--verify", "off", "--cache_dir", cache)
    right = wanted(sharded)
    (tmp_path / "public").rename(tmp_path / "aside")
    found = answers(tmp_path / "out" / "public" / "own")
    assert found.keys() == {"ONNX", "FP32"}
    for logits in found.values():
        np.testing.assert_allclose(logits, right, rtol=0, atol=1e-4)


def change_index(folder: Path, name: str, shard: str) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"][name] = shard
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("name", "shard", "said"),
    [
        ("wte.weight", "../own/model-00003-of-00003.safetensors", "the place of tensor 'wte.weight' is malformed"),
        ("wte.weight", SHARDS[0], f"'wte.weight' is in {SHARDS[2]}, by the index it is in {SHARDS[0]}"),
        ("extra", SHARDS[0], f"'extra' is not in {SHARDS[0]}"),
        ("wte.weight", "model-00004-of-00003.safetensors", "model-00004-of-00003.safetensors"),
    ],
)
def test_an_index_that_cannot_be_followed_leaves_nothing_behind(
    run: Command, sharded: Path, tmp_path: Path, name: str, shard: str, said: str
) -> None:
    change_index(sharded, name, shard)
    checkpoints.pin_locally(sharded, tmp_path / "models", "own")
    done(run, "omz_downloader", "--name", "own", "--models_dir", "models")
    before = set((tmp_path / "public").rglob("*"))
    result = run("omz_converter", "--name", "own", "--models_dir", "models")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert said in result.stderr
    assert INDEX in result.stderr
    assert set((tmp_path / "public").rglob("*")) == before
