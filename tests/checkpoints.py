"""Seeded random GPT-2 checkpoints in the Hub's layout and names, and descriptors that pin them."""

import contextlib
import hashlib
import json
import math
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from omz_tools.descriptors import zoo

GPT2 = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "vocab_size": 50257,
}
TINY = GPT2 | {"n_embd": 32, "n_head": 2, "n_layer": 2, "n_positions": 48, "vocab_size": 97}

PUBLISHED = Path(os.environ["OMZ_TEST_DATA"]) / "gpt2" if os.environ.get("OMZ_TEST_DATA") else None


def shapes(config: dict[str, Any], *, masks: bool = True) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published checkpoints: no prefix, no head (it is the embedding), masks included."""
    width, positions = config["n_embd"], config["n_positions"]
    named: dict[str, tuple[int, ...]] = {}
    for layer in range(config["n_layer"]):
        p = f"h.{layer}."
        if masks:
            named[p + "attn.bias"] = (1, 1, positions, positions)
        named |= {
            p + "attn.c_attn.bias": (3 * width,),
            p + "attn.c_attn.weight": (width, 3 * width),
            p + "attn.c_proj.bias": (width,),
            p + "attn.c_proj.weight": (width, width),
            p + "ln_1.bias": (width,),
            p + "ln_1.weight": (width,),
            p + "ln_2.bias": (width,),
            p + "ln_2.weight": (width,),
            p + "mlp.c_fc.bias": (4 * width,),
            p + "mlp.c_fc.weight": (width, 4 * width),
            p + "mlp.c_proj.bias": (width,),
            p + "mlp.c_proj.weight": (4 * width, width),
        }
    return named | {
        "ln_f.bias": (width,),
        "ln_f.weight": (width,),
        "wpe.weight": (positions, width),
        "wte.weight": (config["vocab_size"], width),
    }


def weights(config: dict[str, Any], seed: int, *, masks: bool = True) -> dict[str, np.ndarray]:
    """Every tensor drawn at random, norms and biases too: plain initial values would hide mistakes."""
    return dict(_drawn(shapes(config, masks=masks), seed))


def _drawn(shapes: dict[str, tuple[int, ...]], seed: int) -> Iterator[tuple[str, np.ndarray]]:
    draw = np.random.default_rng(seed)
    for name, shape in shapes.items():
        if name.endswith(".attn.bias"):
            yield name, np.tril(np.ones(shape[2:], np.float32)).reshape(shape)
            continue
        values = draw.standard_normal(shape, dtype=np.float32)
        spread = 0.1 if ".ln_" in f".{name}" and name.endswith("weight") else 0.05 if name.endswith("weight") else 0.02
        yield name, values * np.float32(spread) + np.float32(1.0 if spread == 0.1 else 0.0)


def write_safetensors(path: Path, named: dict[str, np.ndarray]) -> None:
    """As the published file is: weights begin at no multiple of 4, for its writer did not pad the header."""
    _write(path, {name: values.shape for name, values in named.items()}, named.items())


def _write(path: Path, shapes: dict[str, tuple[int, ...]], named: Iterable[tuple[str, np.ndarray]]) -> None:
    """The tensors one after the other, so that one at a time is in memory."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * ((3 - 8 - len(text)) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, values in named:
            file.write(np.ascontiguousarray(values).data)


def write_shards(folder: Path, named: dict[str, np.ndarray], count: int) -> None:
    """The same tensors in `count` files and the index of them, named as transformers names them; no whole file."""
    (folder / "model.safetensors").unlink(missing_ok=True)
    names, places = list(named), {}
    for number in range(count):
        shard = f"model-{number + 1:05}-of-{count:05}.safetensors"
        inside = names[number * len(names) // count : (number + 1) * len(names) // count]
        write_safetensors(folder / shard, {name: named[name] for name in inside})
        places |= dict.fromkeys(inside, shard)
    index = {"metadata": {"total_size": sum(v.nbytes for v in named.values())}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True))


def write_repository(folder: Path, config: dict[str, Any], seed: int, *, masks: bool = True) -> Path:
    """The seven files of a repository; the published small ones where they are at hand and `config` is gpt-2's."""
    folder.mkdir(parents=True, exist_ok=True)
    small = {
        "config.json": json.dumps(config),
        "vocab.json": json.dumps({f"token{i}": i for i in range(config["vocab_size"])}),
        "merges.txt": "#version: 0.2\n",
        "tokenizer.json": "{}",
        "tokenizer_config.json": "{}",
        "generation_config.json": "{}",
    }
    for name, text in small.items():
        published = PUBLISHED / name if PUBLISHED and config is GPT2 else None
        data = published.read_bytes() if published and published.exists() else text.encode()
        (folder / name).write_bytes(data)
    named = shapes(config, masks=masks)
    _write(folder / "model.safetensors", named, _drawn(named, seed))
    return folder


def pin(folder: Path, models_dir: Path, name: str, **changes: Any) -> Path:
    """A descriptor like the shipped one of gpt-2 that pins the files in `folder`; the path of its model.yml."""
    model = yaml.safe_load((zoo.shipped() / "gpt-2" / "model.yml").read_text(encoding="utf-8"))
    model.pop("bounds")  # those of trained weights
    for accuracy in model["accuracy"]:
        del accuracy["corpus"]  # which no test could download
    [whole] = [entry for entry in model["files"] if entry["name"] == "gpt2/model.safetensors"]
    if not (folder / "model.safetensors").exists():
        model["files"].remove(whole)
        for file in sorted(folder.glob("model*.safetensors*")):
            source = whole["source"] | {"file": file.name}
            model["files"].append(whole | {"name": f"gpt2/{file.name}", "source": source})
    for entry in model["files"]:
        file = folder / Path(entry["name"]).name
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        entry |= {"size": file.stat().st_size, "checksum": {"$type": "sha256", "value": digest}}
    with contextlib.suppress(ValueError):  # a broken config.json is pinned like any other
        model["export"]["outputs"][0]["shape"][2] = json.loads((folder / "config.json").read_text())["vocab_size"]
    path = models_dir / name / "model.yml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(model | changes), encoding="utf-8")
    return path


def pin_locally(folder: Path, models_dir: Path, name: str, **changes: Any) -> Path:
    """The same, its files taken from `folder` and not from the Hub."""
    path = pin(folder, models_dir, name, **changes)
    model = yaml.safe_load(path.read_text(encoding="utf-8"))
    for entry in model["files"]:
        entry["source"] = {"$type": "local", "path": str(folder / Path(entry["name"]).name)}
    path.write_text(yaml.safe_dump(model), encoding="utf-8")
    return path
