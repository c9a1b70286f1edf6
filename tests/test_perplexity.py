"""The loss of a window, against PyTorch's own; and tokens, against transformers' own."""

import json
from array import array
from pathlib import Path

import checkpoints
import numpy as np
import pytest
import torch
import transformers

from omz_tools.descriptors import zoo
from omz_tools.errors import CheckpointError, MissingError, ProofError
from omz_tools.evaluation import perplexity
from omz_tools.evaluation.perplexity import Subject
from omz_tools.export import tokenizer

MINI = zoo.shipped() / "gpt-2-mini" / "gpt2-mini"
TEXT = "Don't stop: 3.14 is naïve,\n\n\tsays   the 本.\n<|endoftext|>A new <document> begins \n"


@pytest.mark.parametrize("length", [2, 3, 64, 65, 66, 129, 200])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_the_loss_is_the_cross_entropy_of_pytorch(length: int, scale: float) -> None:
    draw = np.random.default_rng(length)
    logits = (scale * draw.standard_normal((length, 301))).astype(np.float32) + np.float32(50)
    tokens = draw.integers(0, 301, length)
    wanted = torch.nn.functional.cross_entropy(torch.from_numpy(logits[:-1]).double(), torch.from_numpy(tokens[1:]))
    assert perplexity._loss(logits, tokens) == pytest.approx(wanted.item(), rel=1e-5, abs=1e-6)


def test_scores_of_another_shape_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    export = zoo.find()["gpt-2-mini"].load().descriptor.export
    assert export
    monkeypatch.setattr(perplexity, "_opened", lambda subject: lambda ids: np.zeros((1, 3, 7), np.float32))
    with pytest.raises(ProofError, match="FP32 gives"):
        perplexity.losses(Subject("FP32", Path("x.xml"), export), [array("q", [1, 2])])


def test_tokens_are_those_of_transformers_whichever_files_there_are(tmp_path: Path) -> None:
    wanted = transformers.PreTrainedTokenizerFast(tokenizer_file=str(MINI / "tokenizer.json")).encode(TEXT)
    assert 0 in wanted  # <|endoftext|> is one token
    assert list(tokenizer.encode(MINI, TEXT)) == wanted
    for name in tokenizer.PARTS:
        (tmp_path / name).write_bytes((MINI / name).read_bytes())
    assert list(tokenizer.encode(tmp_path, TEXT)) == wanted


def test_with_the_published_files_tokens_are_those_of_transformers() -> None:
    if not checkpoints.PUBLISHED:
        pytest.skip("OMZ_TEST_DATA names no folder with the published files of gpt2")
    folder = checkpoints.PUBLISHED
    own = transformers.GPT2Tokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    assert tokenizer.encode(folder, "Hello world") == array("q", [15496, 995])
    assert list(tokenizer.encode(folder, TEXT)) == own(TEXT)["input_ids"]
    assert 50256 in tokenizer.encode(folder, TEXT)


def test_a_tokenizer_that_cuts_or_fills_texts_does_not_here(tmp_path: Path) -> None:
    settings = json.loads((MINI / "tokenizer.json").read_text(encoding="utf-8"))
    settings["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    settings["padding"] = {
        "strategy": {"Fixed": 500}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "<|endoftext|>",
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(settings), encoding="utf-8")
    assert tokenizer.encode(tmp_path, TEXT) == tokenizer.encode(MINI, TEXT)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"version": "1.0", "model": {"type": "BPE", "vocab": 3}}'])
def test_a_tokenizer_that_is_none_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json in .* cannot be used"):
        tokenizer.encode(tmp_path, TEXT)


@pytest.mark.parametrize("name", tokenizer.PARTS)
def test_half_a_tokenizer_is_none(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes((MINI / name).read_bytes())
    with pytest.raises(MissingError, match="has no tokenizer"):
        tokenizer.encode(tmp_path, TEXT)
