"""gpt-2-mini: the embedded model is what its page and its descriptor say."""

import importlib.util
import platform
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import openvino
import pytest
import torch
import transformers
from conftest import Converted

from omz_tools.descriptors import reading, zoo

FOLDER = Path(__file__).parents[1] / "model_configs" / "gpt-2-mini"
TOLD = (FOLDER / "TRAINING.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def train() -> ModuleType:
    """The script that made the model."""
    spec = importlib.util.spec_from_file_location("train", FOLDER / "train.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_its_perplexity_on_the_held_out_text_is_the_one_that_its_training_ended_with(
    mini: Converted, train: ModuleType
) -> None:
    [reference] = reading.load(FOLDER / "model.yml").accuracy
    assert re.findall(r"held-out perplexity ([\d.]+)", TOLD)[-1] == f"{reference.value:.2f}"
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(mini.folder / "gpt2-mini" / "tokenizer.json"))
    model = transformers.GPT2LMHeadModel.from_pretrained(mini.folder / "gpt2-mini")
    tokens = torch.tensor(tokenizer.encode(train.split()[1]))
    # The documentation is that of the running Python, which changes a little from version to version.
    same = platform.python_version() in TOLD
    assert train.perplexity(model, tokens) == pytest.approx(reference.value, rel=1e-3 if same else 0.2)


def test_no_paragraph_of_the_held_out_text_was_trained_on(train: ModuleType) -> None:
    training, held = train.split()
    seen = {train.words(paragraph) for paragraph in training.replace(train.END, "\n\n").split("\n\n")}
    paragraphs = [train.words(paragraph) for paragraph in held.replace(train.END, "\n\n").split("\n\n")]
    assert len(paragraphs) > 50
    assert [paragraph for paragraph in paragraphs if paragraph and paragraph in seen] == []
    assert 0.02 < len(held) / (len(training) + len(held)) < 0.1


def test_the_same_topics_are_held_out_everywhere(train: ModuleType) -> None:
    assert [name for name in ("await", "comparisons", "return", "assert", "class", "if") if train.held_out(name)] == [
        "await",
        "comparisons",
        "return",
    ]


def test_the_script_writes_a_checkpoint_that_is_seeded(tmp_path: Path) -> None:
    for name in ("one", "two"):
        words = [FOLDER / "train.py", tmp_path / name, "--steps", "2", "--seed", "5"]
        subprocess.run([sys.executable, *words], check=True, capture_output=True)
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two
    assert set(one) == {Path(entry.name).name for entry in zoo.find()["gpt-2-mini"].load().descriptor.files}


def test_the_converted_model_knows_what_it_was_taught(mini: Converted) -> None:
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(mini.folder / "gpt2-mini" / "tokenizer.json"))
    for precision in ("FP16", "FP32"):
        compiled = openvino.Core().compile_model(mini.folder / precision / "gpt-2-mini.xml", "CPU")
        ids = np.array([tokenizer.encode("Changed in version 3.12: Added the")], dtype=np.int64)
        best = np.argsort(-compiled({"input": ids})["output"][0, :-1], axis=-1)[:, :5]
        hits = [following in candidates for following, candidates in zip(ids[0, 1:], best, strict=True)]
        assert sum(hits) >= len(hits) / 2
