"""The variant with a state: its graph, its IR, and the folder that OpenVINO GenAI loads, as the command makes it."""

import json
import math
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import checkpoints
import jsonschema
import numpy as np
import onnxruntime
import openvino
import openvino_genai
import pytest
import tokenizers
import torch
import transformers
import yaml
from conftest import Command, Converted, run_command
from openvino import opset13
from test_onnx_export import SMALL, export, made

from omz_tools.export import binding, ir, onnx_export, signatures, tokenizer_ir
from omz_tools.export.checkpoint import Checkpoint
from omz_tools.proof import differences, runners, verify
from omz_tools.proof import reference as proof_reference

# Three layers: of the third nothing is traced.
CONFIG = SMALL | {"n_layer": 3, "n_positions": 24}
F32 = {"INFERENCE_PRECISION_HINT": "f32"}
PROMPT = "The following statements are"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return made(tmp_path_factory.mktemp("small") / "gpt2", CONFIG)


@pytest.fixture(scope="module")
def graph(small: Checkpoint) -> Path:
    """The ONNX model with a past."""
    path, spec = small.folder.parent / "past.onnx", signatures.with_past(export(CONFIG))
    binding.bind(onnx_export.trace(small, spec, past=True), small, spec, path)
    return path


@pytest.fixture(scope="module")
def irs(graph: Path) -> dict[str, Path]:
    targets = {
        precision: graph.parent / precision / "openvino_model.xml" for precision in ("FP16", "FP16-INT8", "FP32")
    }
    for xml in targets.values():
        xml.parent.mkdir()
    ir.convert(graph, "small", targets, state=True)
    return targets


def reference(read: Checkpoint, ids: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    model = transformers.GPT2LMHeadModel.from_pretrained(read.folder, attn_implementation="eager").eval()
    given: dict[str, Any] = {"input_ids": torch.from_numpy(ids)}
    if mask is not None:
        given |= {"attention_mask": torch.from_numpy(mask), "position_ids": torch.from_numpy(positions(mask))}
    with torch.no_grad():
        return model(**given).logits.numpy()


def positions(mask: np.ndarray) -> np.ndarray:
    """The position of each token in a row that is padded in front."""
    return np.maximum(mask.cumsum(-1) - 1, 0)


def near(wanted: np.ndarray) -> Any:
    return pytest.approx(wanted, abs=differences.BOUNDS["FP32"].difference * max(1.0, float(np.abs(wanted).max())))


def some_ids(shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(4).integers(0, CONFIG["vocab_size"], shape)


def greedy(xml: Path, ids: np.ndarray, count: int) -> list[int]:
    """The tokens that follow ids [1, L], the most likely one each time, by OpenVINO alone."""
    request = openvino.Core().compile_model(xml, "CPU", F32).create_infer_request()
    found: list[int] = []
    given, end = ids, ids.shape[1]
    while len(found) < count:
        begin = end - given.shape[1]
        logits = request.infer({
            "input_ids": given,
            "attention_mask": np.ones((1, end), np.int64),
            "position_ids": np.arange(begin, end)[None],
            "beam_idx": np.zeros(1, np.int32),
        })["logits"]  # fmt: skip
        found.append(int(logits[0, -1].argmax()))
        given, end = np.array([found[-1:]]), end + 1
    return found


def greedy_by_transformers(folder: Path, ids: np.ndarray, count: int) -> list[int]:
    model = transformers.GPT2LMHeadModel.from_pretrained(folder, attn_implementation="eager").eval()
    settings = {"do_sample": False, "max_new_tokens": count, "eos_token_id": -1, "pad_token_id": 0}
    with torch.no_grad():
        found: list[int] = model.generate(torch.from_numpy(ids), **settings)[0, ids.shape[1] :].tolist()
    return found


# ---- the graph


def test_the_graph_gives_what_the_next_run_takes(graph: Path, small: Checkpoint) -> None:
    session = onnxruntime.InferenceSession(graph)
    names = signatures.past_names(3)
    assert {value.name for value in session.get_inputs()} == {
        "input_ids", "attention_mask", "position_ids", *names
    }  # fmt: skip
    assert [value.name for value in session.get_outputs()] == ["logits", *names.values()]
    ids = some_ids((2, 24))
    wanted = reference(small, ids)
    past = {name: np.zeros((2, 2, 0, 8), np.float32) for name in names}
    begin = 0
    for count in (1, 7, 1, 15):
        end = begin + count
        given = {
            "input_ids": ids[:, begin:end],
            "attention_mask": np.ones((2, end), np.int64),
            "position_ids": np.tile(np.arange(begin, end), (2, 1)),
        }
        logits, *present = session.run(None, given | past)
        assert logits == near(wanted[:, begin:end])
        past = dict(zip(names, present, strict=True))
        begin = end


# ---- the IR


def test_the_ir_has_the_names_of_genai_and_a_state_for_each_layer(irs: dict[str, Path]) -> None:
    for precision, xml in irs.items():
        model = openvino.Core().read_model(xml)
        kinds = {
            port.get_any_name(): (port.element_type.get_type_name(), str(port.partial_shape))
            for port in (*model.inputs, *model.outputs)
        }
        assert kinds == {
            "input_ids": ("i64", "[?,?]"),
            "attention_mask": ("i64", "[?,?]"),
            "position_ids": ("i64", "[?,?]"),
            "beam_idx": ("i32", "[?]"),
            "logits": ("f32", "[?,?,31]"),
        }
        compiled = openvino.Core().compile_model(model, "CPU")
        assert len(compiled.create_infer_request().query_state()) == 6
        # Attention and the state are one operation: nothing else gathers or joins what is kept.
        assert "IsNaN" not in {node.get_type_name() for node in model.get_ops()}
        ran = [port for node in compiled.get_runtime_model().get_ops() for port in node.outputs()]
        wide = [port.get_node() for port in ran if port.get_partial_shape().rank.get_length() == 4]
        kept = {node.get_friendly_name(): node.get_rt_info()["layerType"] for node in wide}.values()
        assert Counter(kept)["ScaledDotProductAttention"] == 3
        assert not {"Gather", "Concatenation"} & set(kept)
        # Otherwise it would be 8 bits.
        asked = compiled.get_property("KV_CACHE_PRECISION").get_type_name()
        assert asked == ("f32" if precision == "FP32" else "f16")
        rounds = compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE")
        assert (rounds == 0) == (precision == "FP16-INT8")


@pytest.mark.parametrize("parts", runners.runs(24), ids=str)
def test_logits_equal_pytorch_at_once_and_run_by_run(
    irs: dict[str, Path], small: Checkpoint, parts: tuple[int, ...]
) -> None:
    ids = some_ids((2, 24))
    answer = runners.of("stateful/FP32", irs["FP32"], export(CONFIG))(24)[runners.runs(24).index(parts)]
    assert answer(ids) == near(reference(small, ids))


def test_with_weights_in_8_bits_answers_do_not_depend_on_the_runs(
    irs: dict[str, Path], small: Checkpoint, tmp_path: Path
) -> None:
    computed, bound = proof_reference.make(small, export(CONFIG), tmp_path), differences.BOUNDS["FP16-INT8"]
    figure = verify.compare(computed, export(CONFIG), "stateful/FP16-INT8", irs["FP16-INT8"], bound)
    assert figure.within_bounds
    assert figure.rounding
    for whole, parts in zip(figure.differences[1::2], figure.differences[2::2], strict=True):
        assert (whole.batch, whole.length) == (parts.batch, parts.length)
        assert parts.largest == pytest.approx(whole.largest, rel=0.1)


def test_the_runs_are_all_tokens_and_end_one_by_one() -> None:
    assert runners.runs(1) == [(1,)]
    for length in (2, 7, 64, 1024):
        whole, parts = runners.runs(length)
        assert whole == (length,)
        assert sum(parts) == length
        assert parts[-1] == 1
        assert length < 4 or (parts[0] > 1 and parts[1] > 1)


def test_rows_that_are_padded_answer_as_they_do_alone(irs: dict[str, Path], small: Checkpoint) -> None:
    ids, mask = some_ids((3, 10)), np.ones((3, 10), np.int64)
    mask[1, :4] = mask[2, :9] = 0
    given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions(mask)}
    request = openvino.Core().compile_model(irs["FP32"], "CPU", F32).create_infer_request()
    logits = request.infer(given | {"beam_idx": np.arange(3, dtype=np.int32)})["logits"].copy()
    for row, first in enumerate((0, 4, 9)):
        assert logits[row, first:] == near(reference(small, ids[row : row + 1, first:])[0])


def test_rows_of_the_state_go_where_the_beams_say(irs: dict[str, Path], small: Checkpoint) -> None:
    ids, more = some_ids((3, 6)), some_ids((3, 1))
    request = openvino.Core().compile_model(irs["FP32"], "CPU", F32).create_infer_request()

    def run(tokens: np.ndarray, begin: int, beams: list[int]) -> np.ndarray:
        end = begin + tokens.shape[1]
        given = {
            "input_ids": tokens,
            "attention_mask": np.ones((3, end), np.int64),
            "position_ids": np.tile(np.arange(begin, end), (3, 1)),
            "beam_idx": np.array(beams, np.int32),
        }
        return request.infer(given)["logits"].copy()

    run(ids, 0, [0, 1, 2])
    beams = [2, 2, 0]
    wanted = reference(small, np.concatenate([ids[beams], more], 1))[:, -1:]
    assert run(more, 6, beams) == near(wanted)


# ---- the folder


def again(stateful: Converted, *words: str | Path) -> str:
    root = stateful.folder.parents[1]
    done = run_command("omz_converter", "--name", "gpt-2-mini", "--variant", "stateful", *words, cwd=root)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_contracts_files_stay_as_they_are(mini: Converted, stateful: Converted) -> None:
    before, after = files(mini.folder), files(stateful.folder)
    changing = {"gpt-2-mini.manifest.json", ".gpt-2-mini.conversion.json"}
    new = {name for name in after if not name.startswith(("stateful/", "FP16-INT8/"))}
    assert new == before.keys()
    assert {name for name in new if after[name] != before[name]} <= changing


@pytest.mark.parametrize("precision", ["FP16", "FP16-INT8", "FP32"])
def test_genai_loads_the_folder_as_it_is_and_completes_a_text(stateful: Converted, precision: str) -> None:
    pipeline = openvino_genai.LLMPipeline(stateful.folder / "stateful" / precision, "CPU")
    text = pipeline.generate(PROMPT, max_new_tokens=20, do_sample=False)
    assert text.strip()


@pytest.mark.parametrize("backend", ["PA", "SDPA"])
def test_greedy_text_is_that_of_transformers_token_for_token(stateful: Converted, backend: str) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(stateful.folder / "gpt2-mini")
    ids = tokenizer(PROMPT, return_tensors="np").input_ids
    folder = stateful.folder / "stateful" / "FP32"
    pipeline = openvino_genai.LLMPipeline(folder, "CPU", ATTENTION_BACKEND=backend, **F32)
    settings = pipeline.get_generation_config()
    settings.max_new_tokens, settings.ignore_eos, settings.do_sample = 200, True, False
    found = pipeline.generate(openvino.Tensor(ids), settings)
    assert found.tokens[0] == greedy_by_transformers(stateful.folder / "gpt2-mini", ids, 200)
    assert found.tokens[0] == greedy(folder / "openvino_model.xml", ids, 200)


@pytest.mark.parametrize(
    "text", ["", "a", PROMPT, "  two  spaces\n\n\ttab", "naïve 🙂 日本", "<|endoftext|>", "x" * 3000]
)
def test_the_tokenizer_ir_is_the_tokenizer(stateful: Converted, text: str) -> None:
    wanted = transformers.AutoTokenizer.from_pretrained(stateful.folder / "gpt2-mini")
    found = openvino_genai.Tokenizer(stateful.folder / "stateful" / "FP16")
    ids = wanted(text).input_ids
    assert found.encode(text).input_ids.data[0].tolist() == ids
    assert found.decode(ids) == wanted.decode(ids, skip_special_tokens=True)


def test_a_second_run_has_nothing_to_do(stateful: Converted) -> None:
    before = files(stateful.folder)
    assert "Nothing to convert" in again(stateful)
    assert files(stateful.folder) == before
    said = again(stateful, "--dry_run")
    assert "would" not in said
    assert said.count("in place") == 5


def test_what_is_missing_comes_from_the_cache_without_the_others_being_made(
    stateful: Converted, tmp_path: Path
) -> None:
    root = stateful.folder.parents[1]
    copy = Converted(Path(shutil.copytree(root, tmp_path / "copy")) / "public" / "gpt-2-mini", "", "")
    before = files(copy.folder / "stateful")
    (copy.folder / "stateful" / "FP16" / "openvino_tokenizer.bin").unlink()
    said = again(copy, "--cache_dir", "cache", "--dry_run")
    assert "stateful/FP16/openvino_model.xml: would take it from the cache; openvino_tokenizer.bin is not there" in said
    assert "would trace" not in said
    said = again(copy, "--cache_dir", "cache")
    assert "the stateful/FP16 IR is in the cache" in said
    assert "Exporting" not in said
    assert files(copy.folder / "stateful") == before


def test_another_conversion_makes_the_same_bytes(stateful: Converted, tmp_path: Path) -> None:
    """Elsewhere, where the ONNX model has the weights in it; and nothing of it stays."""
    again(stateful, "-o", tmp_path / "out", "--precisions", "FP32", "--cache_dir", "", "--verify", "off")
    other = tmp_path / "out" / "public" / "gpt-2-mini"
    assert files(other / "stateful") == {
        name: data for name, data in files(stateful.folder / "stateful").items() if name.startswith("FP32")
    }
    assert sorted(path.name for path in other.iterdir()) == [
        ".gpt-2-mini.conversion.json", "FP32", "gpt-2-mini.manifest.json", "gpt-2-mini.onnx", "stateful"
    ]  # fmt: skip


def test_the_manifest_says_how_far_it_is_from_pytorch(stateful: Converted) -> None:
    said = json.loads((stateful.folder / "gpt-2-mini.manifest.json").read_text())
    schema = json.loads((Path(__file__).parents[1] / "docs" / "manifest.schema.json").read_text())
    jsonschema.validate(said, schema)
    assert [output["what"] for output in said["outputs"]] == [
        "ONNX", "FP16", "FP16-INT8", "FP32", "stateful/FP16", "stateful/FP16-INT8", "stateful/FP32"
    ]  # fmt: skip
    for output in said["outputs"][4:]:
        named = {file["path"] for file in output["files"]}
        assert named == {f"{output['what']}/{path.name}" for path in (stateful.folder / output["what"]).iterdir()}
        runs = {(d["batch"], d["length"], d["runs"]) for d in output["proof"]["differences"]}
        assert runs == {(1, 1, 1), (2, 7, 1), (2, 7, 5), (1, 64, 1), (1, 64, 18)}
    assert "openvino-tokenizers" in said["toolchain"]


def test_omz_verify_knows_it_and_compares_it_again(stateful: Converted, tmp_path: Path, run: Command) -> None:
    folder = Path(shutil.copytree(stateful.folder, tmp_path / "public" / "gpt-2-mini"))
    done = run("omz_verify", folder, "--replay")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "stateful/FP32: largest difference to PyTorch" in done.stdout
    (folder / "stateful" / "FP16" / "generation_config.json").write_text("{}")
    done = run("omz_verify", folder)
    assert done.returncode == 1
    assert "stateful/FP16/generation_config.json" in done.stderr


# ---- what is refused, and what the descriptor asks for


def test_what_the_descriptor_asks_for_is_made_and_held_to_the_bounds_of_its_precision(
    tiny: Path, run: Command, tmp_path: Path, graph_cache: Path
) -> None:
    write_tokenizer(tiny)
    bound = {"precision": "FP32", "difference": 1e-12, "divergence": 1.0, "reason": "a test"}
    checkpoints.pin_locally(tiny, tmp_path / "models", "tiny", variants=["stateful"], bounds=[bound])
    assert run("omz_downloader", "--name", "tiny", "--models_dir", "models").returncode == 0
    words = ("omz_converter", "--name", "tiny", "--models_dir", "models", "--precisions", "FP32")
    words += ("--cache_dir", graph_cache)
    done = run(*words, "--dry_run")
    assert "stateful graph (opset 23): would trace GPT2LMHeadModel" in done.stdout
    done = run(*words)
    assert done.returncode == 1
    assert "stateful/FP32: largest difference to PyTorch" in done.stderr
    assert not (tmp_path / "public" / "tiny" / "stateful").exists()


def write_tokenizer(folder: Path) -> None:
    """One that is sound, for the tiny model: 96 letters, and no merges."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())[:96]
    vocabulary = {"<|endoftext|>": 0} | {letter: number for number, letter in enumerate(letters, 1)}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.save(str(folder / "tokenizer.json"))
    (folder / "vocab.json").write_text(json.dumps(vocabulary))


def test_a_state_that_does_not_hold_is_found_run_by_run_alone(
    irs: dict[str, Path], small: Checkpoint, tmp_path: Path
) -> None:
    model = openvino.Core().read_model(irs["FP32"])
    for node in model.get_ops():
        if node.get_type_name() == "ReadValue":
            targets = node.output(0).get_target_inputs()
            changed = opset13.multiply(node, opset13.constant(np.float32(0.9)))
            for target in targets:
                target.replace_source_output(changed.output(0))
    openvino.save_model(model, tmp_path / "m.xml", compress_to_fp16=False)
    computed = proof_reference.make(small, export(CONFIG), tmp_path)
    for xml in (irs["FP32"], tmp_path / "m.xml"):
        figure = verify.compare(computed, export(CONFIG), "stateful/FP32", xml, differences.BOUNDS["FP32"])
        assert figure.within_bounds == (xml == irs["FP32"])
        wrong = [d.runs for d in figure.differences if d.largest > d.bound]
        assert all(runs > 1 for runs in wrong)
        assert f"in {figure.differences[-1].runs} runs" in str(figure)


def test_a_model_without_a_tokenizer_is_refused(tiny: Path, run: Command, tmp_path: Path) -> None:
    path = tmp_path / "models" / "tiny" / "model.yml"
    said = yaml.safe_load(path.read_text())
    kept = [
        entry for entry in said["files"] if entry["name"].rpartition("/")[2] not in ("tokenizer.json", "merges.txt")
    ]
    path.write_text(yaml.safe_dump(said | {"files": kept}))
    assert run("omz_downloader", "--name", "tiny", "--models_dir", "models").returncode == 0
    done = run("omz_converter", "--name", "tiny", "--models_dir", "models", "--variant", "stateful")
    assert done.returncode == 1
    assert "the descriptor pins no tokenizer: neither tokenizer.json nor vocab.json and merges.txt" in done.stderr
    assert not list((tmp_path / "public" / "tiny").glob("*.onnx"))


def test_a_tokenizer_that_cannot_be_used_is_named_and_nothing_is_written(small: Checkpoint, tmp_path: Path) -> None:
    present = [path.name for path in small.folder.iterdir()]
    with pytest.raises(tokenizer_ir.CheckpointError, match="cannot be made an IR"):
        tokenizer_ir.write(small.folder, present, [tmp_path])
    assert not list(tmp_path.iterdir())


def test_model_optimizer_makes_none(run: Command, mini: Converted) -> None:
    words = ("--variant", "stateful", "-p", "python3", "--mo", Path(__file__))
    done = run("omz_converter", "--name", "gpt-2-mini", "-d", mini.folder.parents[1], *words)
    assert done.returncode == 1
    assert "Model Optimizer makes no IR of the variant stateful" in done.stderr


# ---- the benchmark that runs it


def test_all_ways_of_the_benchmark_generate_the_same_text(stateful: Converted, tmp_path: Path) -> None:
    results, few = tmp_path / "figures" / "generation.json", ("--prompts", "5", "--tokens", "8", "--rounds", "1")
    # Ours stands for the other tool's.
    beside = ("--optimum", stateful.folder / "stateful", "--precisions", "FP32", "--turns", "1", "--json", results)
    done = benchmark("generation", stateful.folder, *beside, *few)
    [table] = json.loads(results.read_text())["tables"]
    assert {row["weights"] for row in table["rows"].values()} == {None, weights_for_a_token(stateful.folder)}
    assert all(text["seconds"] > text["first"] > 0 for row in table["rows"].values() for text in row["texts"])
    assert [pair["same"] for pair in table["ratios"]] == [8, 8, 8]
    benchmark("report", tmp_path)
    report = (tmp_path / "benchmarks.md").read_text()
    assert all(name in done.stdout and f"| {name} |" in report for name in table["rows"])


def benchmark(name: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    script = Path(__file__).parents[1] / "benchmarks" / f"{name}.py"
    done = run_command("python", script, *words)
    assert done.returncode == 0, done.stderr
    return done


def weights_for_a_token(folder: Path) -> int:
    """Bytes of the matrices and their biases in f32; the table of tokens is one of them, that of positions is not."""
    config = json.loads((folder / "stateful" / "FP32" / "config.json").read_text())
    shapes = checkpoints.shapes(config, masks=False)
    taken = ("attn.c_attn", "c_proj", "mlp.c_fc", "wte")
    return 4 * sum(math.prod(shape) for name, shape in shapes.items() if any(part in name for part in taken))
