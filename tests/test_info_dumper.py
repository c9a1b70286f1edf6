"""omz_info_dumper: Open Model Zoo's JSON, and the pages of the models."""

import json
import os
import re
from pathlib import Path

import pytest
from conftest import Command, Converted

from omz_tools.descriptors import descriptor, information, model_page, zoo
from omz_tools.evaluation import analysis

ROOT = Path(__file__).parents[1]
SAMPLE = Path(os.environ["OMZ_TEST_DATA"]) / "omz_sample" if os.environ.get("OMZ_TEST_DATA") else None
NAMES = ["gpt-2", "gpt-2-mini"]
KEYS = [
    "name", "composite_model_name", "description", "framework", "license_url", "model_config", "precisions",
    "subdirectory", "task_type", "input_info", "model_stages",
]  # fmt: skip


def dumped(run: Command, *words: str | Path) -> list[dict[str, object]]:
    done = run("omz_info_dumper", *words)
    assert (done.returncode, done.stderr) == (0, "")
    found: list[dict[str, object]] = json.loads(done.stdout)
    return found


# ---- JSON


def test_the_shipped_models(run: Command) -> None:
    found = dumped(run, "--all")
    assert [model["name"] for model in found] == NAMES
    assert [list(model) for model in found] == [KEYS, KEYS]
    gpt2 = found[0] | {"description": ""}
    assert gpt2 == {
        "name": "gpt-2",
        "composite_model_name": None,
        "description": "",
        "framework": "pytorch",
        "license_url": "https://github.com/openai/gpt-2/blob/master/LICENSE",
        "model_config": "model_configs/gpt-2/model.yml",
        "precisions": ["FP16", "FP32"],
        "subdirectory": "public/gpt-2",
        "task_type": "text_prediction",
        "input_info": [{"name": "input", "shape": [], "layout": "NS"}],
        "model_stages": [],
    }


@pytest.mark.skipif(not SAMPLE, reason="OMZ_TEST_DATA names no folder with descriptors of Open Model Zoo")
def test_open_model_zoos_own_descriptors_give_what_its_command_printed(run: Command) -> None:
    assert SAMPLE
    expected = json.loads((SAMPLE / "info_dumper_expected.json").read_text())
    found = dumped(run, "--all", "--models_dir", SAMPLE / "models")
    assert [model for model in found if model["name"] != "gpt-2-mini"] == expected


@pytest.fixture
def composite(tmp_path: Path) -> Path:
    """A composite of two models, each of which is published as IR in one precision."""
    head = "description: >-\n  Text.\ntask_type: detection\nlicense: https://example.com/license\nframework: dldt\n"
    for name, precision in (("pair-a", "FP16-INT8"), ("pair-b", "FP32")):
        folder = tmp_path / "models" / "intel" / "pair" / name
        folder.mkdir(parents=True)
        file = f"{{name: {precision}/{name}.xml, size: 1, checksum: '{'0' * 96}', source: 'https://example.com/x'}}"
        (folder / "model.yml").write_text(f"{head}files:\n  - {file}\ninput_info:\n  - {{name: 0x, shape: [1, 3]}}\n")
    path = tmp_path / "models" / "intel" / "pair" / "composite-model.yml"
    path.write_text(f"{head}stages_order: [pair-b, pair-a]\n")
    return tmp_path / "models"


def test_a_composite_has_its_stages_in_it_in_turn(run: Command, composite: Path) -> None:
    [pair] = dumped(run, "--name", "pair*", "--models_dir", composite)
    assert (pair["name"], pair["composite_model_name"], pair["model_config"]) == ("pair", "pair", None)
    assert pair["precisions"] == ["FP32"]
    stages = pair["model_stages"]
    assert isinstance(stages, list)
    assert [stage["name"] for stage in stages] == ["pair-b", "pair-a"]
    assert [stage["precisions"] for stage in stages] == [["FP32"], ["FP16-INT8"]]
    assert {stage["composite_model_name"] for stage in stages} == {"pair"}
    assert stages[0]["model_config"] == "models/intel/pair/pair-b/model.yml"
    assert stages[0]["input_info"] == [{"name": "0x", "shape": [1, 3], "layout": None}]
    [alone] = dumped(run, "--name", "pair-a", "--models_dir", composite)
    assert alone == stages[1]


def test_wrong_usage_and_unknown_models(run: Command, composite: Path) -> None:
    assert run("omz_info_dumper").returncode == 2
    assert run("omz_info_dumper", "--name", "gpt-3").returncode == 1
    (composite / "intel" / "pair" / "pair-a" / "model.yml").write_text("description: 7\n")
    done = run("omz_info_dumper", "--name", "pair", "--models_dir", composite)
    assert done.returncode == 1
    assert "pair-a/model.yml:1:" in done.stderr
    assert "Traceback" not in done.stderr


# ---- pages


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_page_is_what_the_command_prints(run: Command, name: str) -> None:
    done = run("omz_info_dumper", "--name", name, "--format", "markdown")
    assert done.returncode == 0
    assert (ROOT / "model_configs" / name / "README.md").read_text(encoding="utf-8") == done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_a_page_has_the_parts_that_people_look_for(name: str) -> None:
    page = model_page.of(zoo.find()[name].load())
    assert re.findall(r"^## (.*)$", page, re.M) == [
        "Use case", "Specification", "Accuracy", "Input", "Output", "Download and convert", "Demo usage", "License",
    ]  # fmt: skip
    assert f"omz_converter --name {name}" in page
    for words in ("| original | `input_ids` |", "| converted, ONNX and IR | `input` | `B, L` | i64 |",
                  "| original | `logits` |", "| converted, ONNX and IR | `output` |"):  # fmt: skip
        assert words in page


def test_what_was_not_measured_here_is_marked_as_published() -> None:
    page = model_page.of(zoo.find()["gpt-2"].load())
    assert "| perplexity | original | 29.00 | published |" in page
    assert "Source: https://docs.openvino.ai/2024/omz_models_model_gpt_2.html." in " ".join(page.split())
    assert "| measured |" not in page
    mini = model_page.of(zoo.find()["gpt-2-mini"].load())
    for model in ("original", "FP16", "FP32"):
        assert re.search(rf"\| perplexity \| {model} \| \d+\.\d\d \| measured \|", mini)


def test_a_composite_and_a_model_without_export_have_no_page(run: Command, composite: Path) -> None:
    for name in ("pair", "pair-a"):
        done = run("omz_info_dumper", "--name", name, "--models_dir", composite, "--format", "markdown")
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr.count("Error:") == 1


def specification(name: str) -> descriptor.Specification:
    found = zoo.find()[name].load().descriptor.specification
    assert found
    return found


def agrees(said: descriptor.Specification, folder: Path, name: str, config: dict[str, int]) -> None:
    counted = analysis.analyze(folder / "FP32" / f"{name}.xml", {"input": said.shape})
    assert round(counted.flops / 1e9, 4) == said.gflops
    assert counted.parameters == said.parameters
    assert (said.layers, said.width, said.heads, said.positions) == tuple(
        config[key] for key in ("n_layer", "n_embd", "n_head", "n_positions")
    )


def test_the_specification_of_gpt_2_mini_is_that_of_its_files(mini: Converted) -> None:
    config = json.loads((mini.folder / "gpt2-mini" / "config.json").read_text())
    agrees(specification("gpt-2-mini"), mini.folder, "gpt-2-mini", config)


def test_a_stage_of_what_is_also_asked_for_stands_there_once(composite: Path) -> None:
    entries = zoo.find([composite])
    chosen = zoo.matching(entries, ["pair-a", "pair"])
    assert [model["name"] for model in information.of(entries, chosen)] == ["pair"]
