"""The figures of a proof against computations of others, and the full proof as the command makes it."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import Command, Converted

from omz_tools.descriptors.descriptor import Bound
from omz_tools.errors import ProofError
from omz_tools.proof import differences, reference
from omz_tools.proof.differences import Figure

BOUND = Bound("FP32", difference=1e-3, divergence=1e-3, reason="a test")


def some(seed: int, shape: tuple[int, ...] = (2, 70, 101)) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, shape).astype(np.float32)


# ---- the figures


def test_the_figures_are_those_that_torch_computes() -> None:
    wanted = some(1)
    got = (wanted + some(2) / 10).astype(np.float32)
    found = differences.measure("FP32", BOUND, got, wanted)
    p, q = torch.from_numpy(wanted).double(), torch.from_numpy(got).double()
    assert (found.batch, found.length) == (2, 70)
    assert found.largest == pytest.approx((p - q).abs().max().item(), rel=1e-9)
    assert found.mean == pytest.approx((p - q).abs().mean().item(), rel=1e-9)
    assert found.bound == pytest.approx(1e-3 * p.abs().max().item(), rel=1e-9)
    divergence = (
        torch.nn.functional.kl_div(q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction="sum") / 140
    )
    assert found.divergence == pytest.approx(divergence.item(), rel=1e-9)
    assert found.top_token == pytest.approx((p.argmax(-1) == q.argmax(-1)).double().mean().item())
    fives = [len(set(a.tolist()) & set(b.tolist())) / 5 for a, b in zip(
        p.topk(5).indices.reshape(-1, 5), q.topk(5).indices.reshape(-1, 5), strict=True)]  # fmt: skip
    assert found.top_five == pytest.approx(sum(fives) / 140)
    assert 0 < found.top_five < 1
    assert 0 < found.top_token < 1


def test_what_is_equal_is_not_apart() -> None:
    found = differences.measure("FP32", BOUND, some(1), some(1))
    assert (found.largest, found.mean, found.divergence, found.top_token, found.top_five) == (0, 0, 0, 1, 1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_beyond_every_bound(value: float) -> None:
    got = some(1)
    got[1, 69, 100] = value
    found = differences.measure("FP32", BOUND, got, some(1))
    assert found.largest == math.inf
    with pytest.raises(ProofError, match="does not answer as PyTorch does"):
        differences.judge([Figure("FP32", BOUND, (found,))])


@pytest.mark.parametrize("got", [some(1, (2, 70, 100)), some(1).astype(np.float64), some(1, (140, 101))])
def test_logits_of_another_kind_are_refused(got: np.ndarray) -> None:
    with pytest.raises(ProofError, match="FP32 gives float"):
        differences.measure("FP32", BOUND, got, some(1))


@pytest.mark.parametrize(
    "bound",
    [{"difference": 1e-9}, {"divergence": 1e-12}, {"top_token": 0.9999}, {"top_five": 0.9999}],
    ids=lambda bound: next(iter(bound)),
)
def test_each_bound_is_one(bound: dict[str, float]) -> None:
    loose = {"difference": 1.0, "divergence": 1.0, "top_token": 0.0, "top_five": 0.0, "reason": "a test"}
    wanted = some(1)
    got = (wanted + some(2) / 10).astype(np.float32)

    def figure(**values: Any) -> Figure:
        made = Bound("FP16", **(loose | values))
        return Figure("FP16", made, (differences.measure("FP16", made, got, wanted),))

    differences.judge([figure()])
    with pytest.raises(ProofError, match="FP16: largest difference"):
        differences.judge([figure(**bound)])


@pytest.mark.parametrize("positions", [1, 2, 48, 1024])
def test_the_grid_reaches_the_last_position_and_goes_no_further(positions: int) -> None:
    quick, full = (reference.shapes(positions, full=full) for full in (False, True))
    assert full[: len(quick)] == quick
    assert max(length for _, length in full) == positions
    assert len(set(full)) == len(full)
    assert all(batch >= 1 and 1 <= length <= positions for batch, length in full)


# ---- the full proof


@pytest.fixture
def convert(run: Command, tiny: Path, full_cache: Path) -> Command:
    assert run("omz_downloader", "--name", "tiny", "--models_dir", "models").returncode == 0
    return lambda *words: run(
        "omz_converter", "--name", "tiny", "--models_dir", "models", "--cache_dir", full_cache, *words
    )


def proofs(root: Path) -> dict[str, Any]:
    said = json.loads((root / "public" / "tiny" / "tiny.manifest.json").read_text())
    return {output["what"]: output["proof"] for output in said["outputs"]}


def test_the_full_proof_goes_to_the_limit_and_says_what_happens_beyond(convert: Command, tmp_path: Path) -> None:
    assert convert().returncode == 0
    assert {proof["mode"] for proof in proofs(tmp_path).values()} == {"quick"}
    done = convert("--verify", "full")
    assert done.returncode == 0, done.stderr
    assert "Comparing with PyTorch (ONNX, FP16, FP32)" in done.stdout
    assert "Converting ONNX" not in done.stdout
    for what, proof in proofs(tmp_path).items():
        assert proof["mode"] == "full"
        assert [(d["batch"], d["length"]) for d in proof["differences"]] == reference.shapes(48, full=True)
        edges = {edge["case"]: edge for edge in proof["edges"]}
        assert len(edges) == 4
        # PyTorch has no position 48 and no token 97, and looks neither up.
        assert edges["49 tokens, one more than there are positions"]["pytorch"] == "refuses"
        assert edges["the token id 97, the first that is not in the vocabulary"]["pytorch"] == "refuses"
        for edge in edges.values():
            assert f"  {edge['case']}: PyTorch {edge['pytorch']}, {what} {edge['converted']}" in done.stdout
    # A full proof is a quick one, too.
    for words in ("--verify", "full"), ("--verify", "quick"), ("--verify", "off"):
        assert "Comparing" not in convert(*words).stdout
    assert {proof["mode"] for proof in proofs(tmp_path).values()} == {"full"}


def test_the_bounds_are_the_descriptors(convert: Command, tmp_path: Path) -> None:
    path = tmp_path / "models" / "tiny" / "model.yml"
    model = yaml.safe_load(path.read_text())
    bound = {"precision": "FP16", "difference": 1e-9, "divergence": 1.0, "reason": "a test"}
    path.write_text(yaml.safe_dump(model | {"bounds": [bound]}))
    done = convert()
    assert done.returncode == 1
    assert "FP16: largest difference to PyTorch" in done.stderr
    assert "FP32: largest" not in done.stderr
    assert not (tmp_path / "public" / "tiny" / "FP16").exists()
    path.write_text(yaml.safe_dump(model | {"bounds": [bound | {"difference": 1e-2}]}))
    assert convert().returncode == 0
    assert proofs(tmp_path)["FP16"]["bound"]["reason"] == "a test"
    assert proofs(tmp_path)["FP32"]["bound"]["reason"] == differences.BOUNDS["FP32"].reason


def test_shipped_bounds_say_why(mini: Converted) -> None:
    said = json.loads((mini.folder / "gpt-2-mini.manifest.json").read_text())
    for output in said["outputs"]:
        assert output["proof"]["bound"]["top_token"] > 0.9
        assert "rounds" in output["proof"]["bound"]["reason"] or "rounded" in output["proof"]["bound"]["reason"]
