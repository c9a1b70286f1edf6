"""omz_converter on real checkpoints: what the files hold, and what happens when something is wrong."""

import itertools
import json
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import checkpoints
import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
import transformers
import yaml
from conftest import BIN, Command, Converted
from proofs import compared

from omz_tools.cache.results import Results
from omz_tools.cache.store import Store
from omz_tools.conversion.plans import plain
from omz_tools.descriptors import descriptor, reading
from omz_tools.errors import ProofError
from omz_tools.export import binding, checkpoint, onnx_export
from omz_tools.proof import differences, verify

F32 = {"INFERENCE_PRECISION_HINT": "f32"}


def listing(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def reference(folder: Path) -> transformers.GPT2LMHeadModel:
    return transformers.GPT2LMHeadModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()


def logits(model: transformers.GPT2LMHeadModel, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(ids)).logits.numpy()


@pytest.fixture
def downloaded(run: Command, tiny: Path, tmp_path: Path) -> Path:
    """The tiny model, downloaded to `tmp_path`: its folder."""
    result = run("omz_downloader", "--name", "tiny", "--models_dir", "models")
    assert result.returncode == 0, result.stderr
    return tmp_path / "public" / "tiny"


@pytest.fixture
def convert(run: Command, graph_cache: Path) -> Command:
    """omz_converter for the tiny model, whose graph need not be traced; with OMZ_CACHE_DIR="" it is."""

    def convert(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        environment = {"OMZ_CACHE_DIR": str(graph_cache)} | environment
        return run("omz_converter", "--name", "tiny", "--models_dir", "models", *words, **environment)

    return convert


def contract(seed: Path) -> descriptor.Export:
    """The export section of the tiny model."""
    spec = reading.load(seed.parent / "models" / "tiny" / "model.yml").export
    assert spec
    return spec


def failed(result: subprocess.CompletedProcess[str], *words: str) -> None:
    """The conversion failed in the way that users and scripts can rely on, and its error says each of `words`."""
    assert result.returncode == 1, result.stdout + result.stderr
    assert "Traceback" not in result.stderr + result.stdout
    assert result.stderr.count("Error:") == 1
    assert result.stdout.endswith("FAILED:\ntiny\n")
    for word in ("In model tiny", *words):
        assert word in result.stderr


# ---- what the files hold


def test_the_onnx_file_keeps_the_contract(mini: Converted) -> None:
    model = onnx.load(mini.folder / "gpt-2-mini.onnx", load_external_data=False)
    [ids], [scores] = model.graph.input, model.graph.output
    assert (ids.name, ids.type.tensor_type.elem_type) == ("input", onnx.TensorProto.INT64)
    assert [axis.dim_param for axis in ids.type.tensor_type.shape.dim] == ["B", "L"]
    assert (scores.name, scores.type.tensor_type.elem_type) == ("output", onnx.TensorProto.FLOAT)
    batch, length, vocabulary = scores.type.tensor_type.shape.dim
    assert (batch.dim_param, length.dim_param, vocabulary.dim_value) == ("B", "L", 2048)
    onnx.checker.check_model(mini.folder / "gpt-2-mini.onnx", full_check=True)


def test_the_onnx_file_refers_to_the_checkpoint_and_stores_no_weight_twice(mini: Converted) -> None:
    model = onnx.load(mini.folder / "gpt-2-mini.onnx", load_external_data=False)
    spans = []
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            where = {entry.key: entry.value for entry in tensor.external_data}
            assert where["location"] == "gpt2-mini/model.safetensors"
            spans.append((int(where["offset"]), int(where["length"])))
        else:
            assert len(tensor.raw_data) < 1000
    spans.sort()
    assert sum(length for _, length in spans) == 1_088_256 * 4
    assert all(begin + length <= after for (begin, length), (after, _) in itertools.pairwise(spans))
    assert (mini.folder / "gpt-2-mini.onnx").stat().st_size < 100_000


def test_nothing_of_the_machine_is_in_the_files(mini: Converted) -> None:
    for name in ("gpt-2-mini.onnx", "FP16/gpt-2-mini.xml", "FP32/gpt-2-mini.xml"):
        data = (mini.folder / name).read_bytes()
        for trace in (str(mini.folder.parents[1]).encode(), b"site-packages", b".py", b"/tmp", b"tmp/"):
            assert trace not in data, f"{trace!r} in {name}"


@pytest.mark.parametrize("precision", ["FP16", "FP32"])
def test_the_ir_keeps_the_contract(mini: Converted, precision: str) -> None:
    model = openvino.Core().read_model(mini.folder / precision / "gpt-2-mini.xml")
    [ids], [scores] = model.inputs, model.outputs
    assert (ids.get_names(), ids.element_type.get_type_name(), str(ids.partial_shape)) == ({"input"}, "i64", "[?,?]")
    assert (scores.get_names(), scores.element_type.get_type_name()) == ({"output"}, "f32")
    assert str(scores.partial_shape) == "[?,?,2048]"


def test_fp32_stays_fp32_and_fp16_is_compressed_weights_alone(mini: Converted) -> None:
    sizes: dict[str, dict[str, int]] = {}
    for precision in ("FP16", "FP32"):
        model = openvino.Core().read_model(mini.folder / precision / "gpt-2-mini.xml")
        sizes[precision] = {"f16": 0, "f32": 0}
        for op in model.get_ops():
            kind = op.get_output_element_type(0).get_type_name()
            if op.get_type_name() == "Constant" and kind in sizes[precision]:
                sizes[precision][kind] += int(np.prod(op.get_output_shape(0)))
    assert sizes["FP32"]["f16"] == 0
    assert sizes["FP32"]["f32"] == pytest.approx(1_088_256, rel=0.001)
    assert sizes["FP16"]["f16"] == pytest.approx(1_088_256, rel=0.001)
    assert sizes["FP16"]["f32"] < 100
    bins = [(mini.folder / p / "gpt-2-mini.bin").stat().st_size for p in ("FP16", "FP32")]
    assert bins == pytest.approx([1_088_256 * 2, 1_088_256 * 4], rel=0.001)


def test_onnx_and_ir_answer_as_pytorch_does_at_shapes_the_proof_did_not_see(mini: Converted) -> None:
    model = reference(mini.folder / "gpt2-mini")
    session = onnxruntime.InferenceSession(mini.folder / "gpt-2-mini.onnx")
    compiled = {
        precision: openvino.Core().compile_model(mini.folder / precision / "gpt-2-mini.xml", "CPU", F32)
        for precision in ("FP16", "FP32")
    }
    draw = np.random.default_rng(5)
    for shape in ((3, 5), (1, 256), (5, 1)):
        ids = draw.integers(0, 2048, shape, dtype=np.int64)
        wanted = logits(model, ids)
        np.testing.assert_allclose(session.run(["output"], {"input": ids})[0], wanted, rtol=0, atol=1e-4)
        np.testing.assert_allclose(compiled["FP32"]({"input": ids})["output"], wanted, rtol=0, atol=1e-4)
        np.testing.assert_allclose(compiled["FP16"]({"input": ids})["output"], wanted, rtol=0, atol=5e-2)


def test_the_output_names_each_file_with_its_difference(mini: Converted) -> None:
    for name in ("gpt-2-mini.onnx", "FP16/gpt-2-mini.xml", "FP16/gpt-2-mini.bin", "FP32/gpt-2-mini.xml"):
        assert re.search(
            rf"^public/gpt-2-mini/{name} +[\d.,]+ [kM]B +FP(16|32) +\d\.\de-0\d +made$", mini.converted, re.M
        )
    for what in ("ONNX", "FP16", "FP32"):
        assert re.search(rf"{what}: largest difference to PyTorch \d\.\de-\d\d at \(1,1\), \(2,7\), ", mini.converted)


# ---- where results go


def test_the_folder_can_be_moved(convert: Command, downloaded: Path, tmp_path: Path) -> None:
    assert convert("--precisions", "FP32", "--verify", "off").returncode == 0
    moved = tmp_path / "elsewhere"
    downloaded.rename(moved)
    session = onnxruntime.InferenceSession(moved / "tiny.onnx")
    assert session.run(None, {"input": np.ones((1, 3), np.int64)})[0].shape == (1, 3, 97)


def test_another_output_folder_gets_a_self_contained_onnx_file(
    convert: Command, downloaded: Path, tmp_path: Path
) -> None:
    result = convert("-o", "out", "--precisions", "FP32", "--verify", "off")
    assert result.returncode == 0, result.stderr
    assert sorted(listing(tmp_path / "out")) == [
        "public/tiny/.tiny.conversion.json",
        "public/tiny/FP32/tiny.bin",
        "public/tiny/FP32/tiny.xml",
        "public/tiny/tiny.manifest.json",
        "public/tiny/tiny.onnx",
    ]
    ids = np.arange(12, dtype=np.int64).reshape(2, 6)
    wanted = logits(reference(downloaded / "gpt2"), ids)
    (tmp_path / "out" / "public" / "tiny" / "tiny.onnx").rename(tmp_path / "alone.onnx")
    got = onnxruntime.InferenceSession(tmp_path / "alone.onnx").run(None, {"input": ids})[0]
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)
    assert not list(downloaded.glob("*.onnx"))


def test_one_precision_alone(convert: Command, downloaded: Path) -> None:
    assert convert("--precisions", "FP16", "--verify", "off").returncode == 0
    made = {name for name in listing(downloaded) if not name.startswith("gpt2/")}
    assert made == {".tiny.conversion.json", "tiny.manifest.json", "tiny.onnx", "FP16/tiny.xml", "FP16/tiny.bin"}


def test_a_dry_run_says_what_it_would_make_and_makes_nothing(convert: Command, downloaded: Path) -> None:
    before = listing(downloaded)
    result = convert("--dry_run")
    assert result.returncode == 0
    for name in ("tiny.onnx", "FP16/tiny.xml", "FP32/tiny.xml"):
        assert name in result.stdout
    assert listing(downloaded) == before


def test_several_models_at_once(run: Command, graph_cache: Path, tiny: Path, tmp_path: Path) -> None:
    checkpoints.pin_locally(tiny, tmp_path / "models", "other")
    words = ("--name", "tiny,other", "--models_dir", "models", "-j", "2", "--precisions", "FP32")
    assert run("omz_downloader", *words).returncode == 0
    result = run("omz_converter", *words, "--cache_dir", graph_cache)
    assert result.returncode == 0, result.stderr
    assert "[tiny] ========== Comparing with PyTorch" in result.stdout
    assert "[other] ========== Comparing with PyTorch" in result.stdout
    for name in ("tiny", "other"):
        assert (tmp_path / "public" / name / "FP32" / f"{name}.bin").exists()


def test_one_model_of_several_fails_and_the_others_do_not(
    run: Command, graph_cache: Path, tiny: Path, tmp_path: Path
) -> None:
    checkpoints.pin_locally(tiny, tmp_path / "models", "absent")
    assert run("omz_downloader", "--name", "tiny", "--models_dir", "models").returncode == 0
    words = ("--name", "absent,tiny", "--models_dir", "models", "--precisions", "FP32", "-j", "2", "--verify", "off")
    result = run("omz_converter", *words, "--cache_dir", graph_cache)
    assert result.returncode == 1
    assert result.stdout.endswith("FAILED:\nabsent\n")
    assert (tmp_path / "public" / "tiny" / "FP32" / "tiny.bin").exists()


# ---- checkpoints of other makers


def named(*changes: str) -> dict[str, np.ndarray]:
    """The weights of the tiny model by the names of others."""
    named = checkpoints.weights(checkpoints.TINY, seed=7, masks="no masks" not in changes)
    if "prefixed" in changes:
        named = {f"transformer.{name}": values for name, values in named.items()}
    if "with a head" in changes:
        named["lm_head.weight"] = next(values for name, values in named.items() if name.endswith("wte.weight"))
    return named


@pytest.mark.parametrize("change", ["prefixed", "with a head", "no masks"])
def test_other_namings_of_the_same_weights_are_understood(seed: Path, tmp_path: Path, change: str) -> None:
    folder = checkpoints.write_repository(tmp_path / "gpt2", checkpoints.TINY, seed=7)
    checkpoints.write_safetensors(folder / "model.safetensors", named(change))
    read, spec = checkpoint.load(folder), contract(seed)
    graph = Results(Store(seed)).read(plain(onnx_export.ingredients(read, spec)))
    assert graph
    binding.bind(graph, read, spec, tmp_path / "tiny.onnx")
    differences.judge([compared(read, spec, "ONNX", tmp_path / "tiny.onnx")])
    ids = np.arange(12, dtype=np.int64).reshape(2, 6)
    got = onnxruntime.InferenceSession(tmp_path / "tiny.onnx").run(None, {"input": ids})[0]
    np.testing.assert_allclose(got, logits(reference(seed.parent / "repository"), ids), rtol=0, atol=1e-5)


def test_a_checkpoint_as_transformers_writes_it_is_converted(run: Command, convert: Command, tmp_path: Path) -> None:
    folder = checkpoints.write_repository(tmp_path / "repository", checkpoints.TINY, seed=7)
    checkpoints.write_safetensors(folder / "model.safetensors", named("prefixed", "with a head", "no masks"))
    checkpoints.pin_locally(folder, tmp_path / "models", "tiny")
    run("omz_downloader", "--name", "tiny", "--models_dir", "models")
    result = convert("--precisions", "FP32")
    assert result.returncode == 0, result.stderr


# ---- bad input


def test_a_missing_download_names_the_files_and_the_command(run: Command, convert: Command, tiny: Path) -> None:
    failed(convert(), "gpt2/config.json, ", "gpt2/model.safetensors", "omz_downloader --name tiny")


# Some break a stage that works on the file before its digest is known.
DAMAGES: dict[str, tuple[str, int, bytes]] = {
    "the last bit": ("model.safetensors", -1, b"\xa7"),
    "a value that is none": ("model.safetensors", -4, b"\xff\xff\xff\x7f"),
    "no header": ("model.safetensors", 8, b"["),
    "a pickle": ("model.safetensors", 0, b"PK"),
    "no JSON": ("config.json", 0, b"["),
    "another activation": ("config.json", -1, b" "),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_what_is_reported_and_nothing_comes_of_it(
    convert: Command, downloaded: Path, graph_cache: Path, damage: str
) -> None:
    name, place, data = DAMAGES[damage]
    path = downloaded / "gpt2" / name
    whole = bytearray(path.read_bytes())
    place %= len(whole)
    assert whole[place : place + len(data)] != data
    whole[place : place + len(data)] = data
    path.write_bytes(whole)
    before = listing(downloaded), listing(graph_cache)
    failed(convert("--verify", "off"), f"In file gpt2/{name}", "Run omz_downloader again")
    assert (listing(downloaded), listing(graph_cache)) == before


def test_an_unknown_precision(convert: Command, downloaded: Path) -> None:
    result = convert("--precisions", "FP32,FP7")
    assert result.returncode == 1
    assert "Unknown precisions specified: 'FP7'" in result.stderr


def test_a_precision_the_model_does_not_have(convert: Command, downloaded: Path) -> None:
    failed(
        convert("--precisions", "FP32-INT8"), "cannot be converted to FP32-INT8", "It can have: FP16, FP32, FP16-INT8."
    )


def test_a_model_without_an_export_section(run: Command, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "models" / "tiny" / "model.yml"
    model = yaml.safe_load(path.read_text())
    del model["export"]
    path.write_text(yaml.safe_dump(model))
    failed(run("omz_converter", "--name", "tiny", "--models_dir", "models"), "no export section")


Change = Callable[[Path], None]


def rewrite_config(**changes: object) -> Change:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return change


def weights_of(**changes: object) -> Change:
    """Those of a model of another config.json."""

    def change(folder: Path) -> None:
        named = checkpoints.weights(checkpoints.TINY | changes, seed=7)
        checkpoints.write_safetensors(folder / "model.safetensors", named)

    return change


def rewrite_weights(**changes: object) -> Change:
    def change(folder: Path) -> None:
        named = checkpoints.weights(checkpoints.TINY, seed=7)
        for name, value in changes.items():
            named[name.replace("__", ".")].flat[3] = value
        checkpoints.write_safetensors(folder / "model.safetensors", named)

    return change


def pickle_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps({"wte.weight": [1.0]}))


def torch_weights(folder: Path) -> None:
    torch.save({"wte.weight": torch.ones(3)}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (weights_of(n_embd=64), ("the weights do not fit config.json", "'wte.weight' is [97, 64]", "[97, 32]")),
        (weights_of(n_layer=1), ("no tensor 'h.1.attn.c_attn.bias'",)),
        (rewrite_config(n_layer=10**8), ("the weights do not fit config.json", "100,000,000 layers")),
        (weights_of(n_layer=3), ("'h.2.attn.c_attn.bias' is in no place of the model",)),
        (rewrite_config(n_head=3), ("config.json",)),
        (rewrite_config(n_head="2"), ("n_head is '2'",)),
        (rewrite_config(vocab_size=10**9), ("[97, 32]", "[1000000000, 32]")),
        (rewrite_config(model_type="llama"), ("it describes llama",)),
        (rewrite_config(auto_map={"AutoModel": "evil.py--X"}), ("auto_map", "would load code")),
        (rewrite_config(quantization_config={"quant_method": "gptq"}), ("quantization_config",)),
        (lambda folder: (folder / "config.json").write_text("{"), ("config.json is not usable JSON",)),
        (pickle_weights, ("is a pickle", "safetensors")),
        (torch_weights, ("is a pickle", "safetensors")),
        (rewrite_weights(wte__weight=np.nan), ("infinite or no numbers: 1 in 'wte.weight'",)),
        (rewrite_weights(wpe__weight=np.inf), ("infinite or no numbers: 1 in 'wpe.weight'",)),
        (rewrite_weights(ln_f__bias=1e6), ("values that f16 cannot", "1 in 'ln_f.bias'", "--precisions FP32")),
    ],
    ids=[
        "width", "too few layers in the weights", "more layers than can be",
        "too many layers in the weights", "heads do not divide the width",
        "a word for a number", "a vocabulary too large for memory", "another architecture",
        "auto_map", "quantization", "broken JSON", "a pickle", "a PyTorch file", "NaN", "infinity", "beyond FP16",
    ],
)  # fmt: skip
def test_a_checkpoint_that_cannot_be_converted_leaves_nothing_behind(
    run: Command, convert: Command, tiny: Path, tmp_path: Path, change: Change, words: tuple[str, ...]
) -> None:
    change(tiny)
    checkpoints.pin_locally(tiny, tmp_path / "models", "tiny")
    assert run("omz_downloader", "--name", "tiny", "--models_dir", "models").returncode == 0
    before = listing(tmp_path / "public")
    failed(convert(), *words)
    assert listing(tmp_path / "public") == before


# ---- the disk


@pytest.fixture
def converted(run: Command, seed: Path, tmp_path: Path) -> Iterator[Path]:
    """The tiny model with the outputs of weights of an earlier day, which no failure may touch."""
    downloaded = Path(shutil.copytree(seed.parent / "public" / "tiny", tmp_path / "public" / "tiny"))
    folder = checkpoints.write_repository(tmp_path / "later", checkpoints.TINY, seed=8)
    checkpoints.pin_locally(folder, tmp_path / "models", "tiny")
    assert run("omz_downloader", "--name", "tiny", "--models_dir", "models").returncode == 0
    before = listing(downloaded)
    yield downloaded
    assert listing(downloaded) == before


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tiny.onnx", "Writing to public/tiny failed"),
        ("FP16/tiny.bin", "could not write the FP16 IR"),
        ("FP32/tiny.bin", "could not write the FP32 IR"),
    ],
)
def test_a_full_disk(converted: Path, graph_cache: Path, tmp_path: Path, name: str, said: str) -> None:
    limit = (converted / name).stat().st_size - 1
    words = ("--name", "tiny", "--models_dir", "models")
    result = subprocess.run(
        [BIN / "omz_converter", *words, "--verify", "off", "--cache_dir", graph_cache],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        # A limit on the size of files makes writes fail in the middle, as a full disk does.
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    failed(result, said, "unchanged")


def test_a_read_only_output_folder(converted: Path, convert: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    failed(convert("-o", tmp_path / "file" / "out"), "file/out", "-o/--output_dir")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_cleanly(converted: Path, tmp_path: Path, number: int, status: int) -> None:
    process = subprocess.Popen(
        [BIN / "omz_converter", "--name", "tiny", "--models_dir", "models", "--force"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout
    while "Exporting" not in process.stdout.readline():
        pass
    time.sleep(1)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert "Traceback" not in err


# ---- the proof


def test_the_proof_sees_weights_of_another_checkpoint(seed: Path, tmp_path: Path) -> None:
    downloaded, spec = seed.parent / "public" / "tiny", contract(seed)
    onnx_file = downloaded / "tiny.onnx"
    irs: dict[descriptor.Precision, Path] = {p: downloaded / p / "tiny.xml" for p in ("FP16", "FP32")}
    same = checkpoint.load(downloaded / "gpt2")
    differences.judge(compared(same, spec, what, path) for what, path in {"ONNX": onnx_file, **irs}.items())

    named = checkpoints.weights(checkpoints.TINY, seed=7)
    named["h.1.ln_2.bias"][5] += 0.5
    other_folder = checkpoints.write_repository(tmp_path / "other", checkpoints.TINY, seed=7)
    checkpoints.write_safetensors(other_folder / "model.safetensors", named)
    other = compared(checkpoint.load(other_folder), spec, "ONNX", onnx_file)
    with pytest.raises(ProofError, match="does not answer as PyTorch does"):
        differences.judge([other])
    with pytest.raises(ProofError, match="FP32: largest difference"):
        differences.judge([compared(same, spec, "FP32", irs["FP16"])])  # F16 in place of F32


def test_the_proof_reads_names_types_and_axes_from_the_files(mini: Converted) -> None:
    spec = reading.load(Path(__file__).parents[1] / "model_configs" / "gpt-2-mini" / "model.yml").export
    assert spec
    for field, wrong in (
        ("inputs", descriptor.TensorSpec("ids", "i64", ("B", "L"))),
        ("inputs", descriptor.TensorSpec("input", "i64", ("N", "L"))),
        ("outputs", descriptor.TensorSpec("output", "f32", ("B", "L", 2049))),
    ):
        asked = descriptor.Export(
            spec.checkpoint, spec.model_class, **({"inputs": spec.inputs, "outputs": spec.outputs} | {field: (wrong,)})
        )
        with pytest.raises(ProofError, match="the ONNX model has input i64"):
            verify.check_contract("ONNX", mini.folder / "gpt-2-mini.onnx", asked)


# ---- nothing phones home

TRAP = """
import os, sys
def hook(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        with open(os.environ["TRAP_FILE"], "a") as log:
            log.write(f"{event} {args}\\n")
        raise OSError("no network in this test")
sys.addaudithook(hook)
"""


def test_converting_opens_no_connection_and_writes_nothing_to_the_home_folder(
    run: Command, convert: Command, downloaded: Path, tmp_path: Path
) -> None:
    home, trap = tmp_path / "home", tmp_path / "trap"
    home.mkdir()
    trap.mkdir()
    (trap / "sitecustomize.py").write_text(TRAP)
    # Libraries hold their reports back in CI, so this must not look like CI. Those that report in native code keep an
    # identifier in the home folder first.
    result = convert(
        "--precisions", "FP32", CI="", HOME=str(home), XDG_CACHE_HOME=str(home), TRAP_FILE=str(tmp_path / "log"),
        PYTHONPATH=str(trap), PYTHONDONTWRITEBYTECODE="1", TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "inductor"),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert not (tmp_path / "log").exists(), (tmp_path / "log").read_text()
    assert listing(home) == {}


def test_listing_and_downloading_import_no_heavy_library(tmp_path: Path) -> None:
    code = (
        "import sys, omz_tools.commands.downloader as d, omz_tools.commands.converter as c\n"
        "status = d.main(['--name', 'gpt-2-mini'])\n"
        "status |= c.main(['--name', 'gpt-2-mini', '--dry_run'])\n"
        "heavy = {'torch', 'transformers', 'onnx', 'onnxruntime', 'openvino', 'numpy'} & sys.modules.keys()\n"
        "sys.exit(f'imported: {heavy}' if heavy else status)\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COV")}
    result = subprocess.run([BIN / "python", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
