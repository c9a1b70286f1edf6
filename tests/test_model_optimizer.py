"""Model Optimizer in its own environment: its IRs answer like ours, and what happens when something is wrong.

What needs Model Optimizer itself looks for it in the folder that OMZ_MO_ENV names, else in .venv-mo of the checkout,
where `make mo-env` puts it. Elsewhere a program of a few lines stands at its place.
"""

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import checkpoints
import numpy as np
import openvino
import pytest
from conftest import Command
from proofs import compared

from omz_tools.descriptors.descriptor import Export, InputInfo, Precision, TensorSpec
from omz_tools.errors import ConversionError
from omz_tools.export import binding, checkpoint, ir, model_optimizer, onnx_export
from omz_tools.export.checkpoint import Checkpoint
from omz_tools.export.model_optimizer import ModelOptimizer
from omz_tools.proof import differences

ENVIRONMENT = Path(os.environ.get("OMZ_MO_ENV") or Path(__file__).parents[1] / ".venv-mo")
needs_it = pytest.mark.skipif(
    not (ENVIRONMENT / "bin" / "mo").exists(),
    reason=f"no Model Optimizer in {ENVIRONMENT}: make mo-env builds it, OMZ_MO_ENV names another folder",
)

IDS = TensorSpec("input", "i64", ("B", "L"))
SCORES = TensorSpec("output", "f32", ("B", "L", checkpoints.TINY["vocab_size"]))
SPEC = Export("gpt2", "GPT2LMHeadModel", (IDS,), (SCORES,), model_optimizer.OPSET)
TODAY = Export("gpt2", "GPT2LMHeadModel", (IDS,), (SCORES,))
INPUTS = (InputInfo("input", None, "NS"),)
F32 = {"INFERENCE_PRECISION_HINT": "f32"}


@pytest.fixture
def tool() -> ModelOptimizer:
    return model_optimizer.find(ENVIRONMENT / "bin" / "python", None)


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def stand_in(folder: Path, text: str) -> ModelOptimizer:
    """A program in Python, at the place of Model Optimizer."""
    return ModelOptimizer(Path(sys.executable), program(folder / "mo", text))


def export(read: Checkpoint, spec: Export, path: Path) -> None:
    binding.bind(onnx_export.trace(read, spec), read, spec, path)


def targets(folder: Path, name: str = "tiny") -> dict[Precision, Path]:
    xmls: dict[Precision, Path] = {p: folder / p / f"{name}.xml" for p in ("FP16", "FP32")}
    for xml in xmls.values():
        xml.parent.mkdir(parents=True)
    return xmls


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as ONNX for Model Optimizer, under a passing name; its weights stay in gpt2/model.safetensors."""
    root = tmp_path_factory.mktemp("exported")
    folder = checkpoints.write_repository(root / "gpt2", checkpoints.TINY, seed=7)
    export(checkpoint.load(folder), SPEC, root / ".0123.tiny.onnx")
    return root / ".0123.tiny.onnx"


@pytest.fixture(scope="module")
def exported_today(exported: Path) -> Path:
    """The same beside it, with the opset of our own way."""
    export(checkpoint.load(exported.parent / "gpt2"), TODAY, exported.with_name("today.onnx"))
    return exported.with_name("today.onnx")


# ---- with Model Optimizer


@needs_it
def test_both_ways_answer_alike(exported: Path, exported_today: Path, tool: ModelOptimizer, tmp_path: Path) -> None:
    source = checkpoint.load(exported.parent / "gpt2")
    theirs, ours = targets(tmp_path / "theirs"), targets(tmp_path / "ours")
    model_optimizer.convert(exported, "tiny", theirs, SPEC, INPUTS, tool)
    figures = [compared(source, SPEC, what, path) for what, path in {"ONNX": exported, **theirs}.items()]
    differences.judge(figures)
    assert [figure.what for figure in figures] == ["ONNX", "FP16", "FP32"]

    ir.convert(exported_today, "tiny", ours)
    draw = np.random.default_rng(3)
    for precision in ("FP16", "FP32"):
        ways = [openvino.Core().compile_model(xmls[precision], "CPU", F32) for xmls in (theirs, ours)]
        for shape in ((1, 2), (3, 48), (2, 31)):
            ids = draw.integers(0, checkpoints.TINY["vocab_size"], shape)
            their_scores, our_scores = (compiled({"input": ids})["output"] for compiled in ways)
            assert np.abs(their_scores - our_scores).max() <= 2e-5 * max(1.0, np.abs(our_scores).max())
        other = draw.integers(0, checkpoints.TINY["vocab_size"], (2, 31))
        assert np.abs(ways[0]({"input": other})["output"] - our_scores).max() > 0.01


@needs_it
def test_the_bytes_are_the_same_everywhere_and_tell_nothing_of_the_machine(
    exported: Path, tool: ModelOptimizer, tmp_path: Path
) -> None:
    made = []
    for folder, passing in (("a", ".4567.tiny"), ("b/deeper", "tiny")):
        root = tmp_path / folder
        shutil.copytree(exported.parent / "gpt2", root / "gpt2")
        shutil.copy(exported, root / f"{passing}.onnx")
        xmls = targets(root, passing)
        model_optimizer.convert(root / f"{passing}.onnx", "tiny", xmls, SPEC, INPUTS, tool)
        made.append([file.read_bytes() for xml in xmls.values() for file in (xml, xml.with_suffix(".bin"))])
    assert made[0] == made[1]
    for text in (made[0][0], made[0][2]):
        for trace in (str(tmp_path).encode(), str(exported.parent).encode(), b"4567", b"/tmp", b".py"):
            assert trace not in text
        assert b'<attribute name="layout" version="0" layout="[N,S]" />' in text


@needs_it
def test_weights_inside_the_onnx_file(exported: Path, tool: ModelOptimizer, tmp_path: Path) -> None:
    source = checkpoint.load(exported.parent / "gpt2")
    export(source, SPEC, tmp_path / "tiny.onnx")
    xmls = targets(tmp_path)
    model_optimizer.convert(tmp_path / "tiny.onnx", "tiny", xmls, SPEC, INPUTS, tool)
    files = {"ONNX": tmp_path / "tiny.onnx", **xmls}
    differences.judge(compared(source, SPEC, what, path) for what, path in files.items())


@needs_it
def test_an_operator_it_does_not_know(exported_today: Path, tool: ModelOptimizer, tmp_path: Path) -> None:
    with pytest.raises(ConversionError) as caught:
        model_optimizer.convert(exported_today, "tiny", targets(tmp_path), TODAY, INPUTS, tool)
    assert "does not support the following ONNX operations: Attention" in caught.value.what
    assert "up to opset 22" in caught.value.hint


@needs_it
def test_arguments_of_the_user_are_passed_on(exported: Path, tool: ModelOptimizer, tmp_path: Path) -> None:
    tool = ModelOptimizer(tool.python, tool.script, ("--input_shape=[1,16]",))
    xmls = targets(tmp_path)
    model_optimizer.convert(exported, "tiny", xmls, SPEC, INPUTS, tool)
    assert str(openvino.Core().read_model(xmls["FP32"]).input().partial_shape) == "[1,16]"
    with pytest.raises(ConversionError, match="unrecognized arguments: --no_such_option"):
        model_optimizer.convert(
            exported, "tiny", xmls, SPEC, INPUTS, ModelOptimizer(tool.python, tool.script, ("--no_such_option",))
        )


@needs_it
@pytest.mark.parametrize("blocks", [2, 48, 96])
def test_a_full_disk(exported: Path, tool: ModelOptimizer, tmp_path: Path, blocks: int) -> None:
    # A limit on the size of files makes writes fail in the middle, as a full disk does.
    limited = program(tmp_path / "python", f'#!/bin/bash\nulimit -f {blocks}\nexec "{tool.python}" "$@"\n')
    with pytest.raises(ConversionError, match="no whole FP32 IR") as caught:
        model_optimizer.convert(
            exported,
            "tiny",
            {"FP32": targets(tmp_path)["FP32"]},
            SPEC,
            INPUTS,
            ModelOptimizer(limited, tool.script),
        )
    assert "MB are free" in caught.value.hint


TRAP = """
import os, sys
def hook(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        with open(os.environ["TRAP_FILE"], "a") as log:
            log.write(f"{event} {args}\\n")
        raise OSError("no network in this test")
sys.addaudithook(hook)
"""


@needs_it
def test_it_opens_no_connection_and_writes_nothing_to_the_home_folder(
    exported: Path, tool: ModelOptimizer, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    program(tmp_path / "trap" / "sitecustomize.py", TRAP)
    settings = (
        f'PYTHONPATH="{tmp_path / "trap"}" PYTHONDONTWRITEBYTECODE=1 HOME="{home}" TRAP_FILE="{tmp_path / "log"}"'
    )
    watched = program(tmp_path / "python", f'#!/bin/sh\n{settings} exec "{tool.python}" "$@"\n')
    model_optimizer.convert(exported, "tiny", targets(tmp_path), SPEC, INPUTS, ModelOptimizer(watched, tool.script))
    assert not (tmp_path / "log").exists(), (tmp_path / "log").read_text()
    assert list(home.rglob("*")) == []


@needs_it
def test_its_version(tool: ModelOptimizer) -> None:
    assert model_optimizer.version(tool) == "2024.6.0"


# ---- what it is given


def test_the_commands_are_those_of_open_model_zoo(tmp_path: Path) -> None:
    tool = ModelOptimizer(Path("/env/bin/python"), Path("/env/bin/mo"), ("--log_level=DEBUG",))
    xmls: dict[Precision, Path] = {"FP16": Path("out/FP16/gpt-2.xml"), "FP32": Path("out/FP32/gpt-2.xml")}
    made = model_optimizer.commands(Path("out/gpt-2.onnx"), xmls, SPEC, INPUTS, tool)
    assert made["FP16"] == [
        "/env/bin/python", "--", "/env/bin/mo", "--framework=onnx", "--output_dir=out/FP16", "--model_name=gpt-2",
        "--input=input", "--input_model=out/gpt-2.onnx", "--output=output", "--layout=input(NS)",
        "--compress_to_fp16=True", "--log_level=DEBUG",
    ]  # fmt: skip
    assert {*made["FP32"]} - {*made["FP16"]} == {"--output_dir=out/FP32", "--compress_to_fp16=False"}
    plain = model_optimizer.commands(Path("out/gpt-2.onnx"), xmls, SPEC, [InputInfo("input")], tool)
    assert {*made["FP16"]} - {*plain["FP16"]} == {"--layout=input(NS)"}


def test_nothing_leads_its_python_to_our_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("CI", "")
    monkeypatch.setenv("KEPT", "yes")
    tool = stand_in(tmp_path, "import os\nfor k, v in sorted(os.environ.items()): print(k, v)\nraise SystemExit(1)")
    monkeypatch.setattr(model_optimizer, "_tail", str)
    with pytest.raises(ConversionError) as caught:
        model_optimizer.convert(tmp_path / "tiny.onnx", "tiny", targets(tmp_path), SPEC, INPUTS, tool)
    said = caught.value.what.splitlines()
    assert {"CI true", "KEPT yes"} <= {*said}
    assert not [line for line in said if line.startswith(("PYTHON", "VIRTUAL_ENV"))]


# ---- where it is


def test_it_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = program(tmp_path / "env" / "python", "")
    mo = program(tmp_path / "env" / "mo", "")
    other = program(tmp_path / "other" / "mo", "")
    alone = program(tmp_path / "alone" / "python", "")
    (tmp_path / "link").symlink_to(mo)
    find = model_optimizer.find
    monkeypatch.setenv("PATH", str(other.parent))
    assert find(python, None) == ModelOptimizer(python, mo)
    assert find(python, other, ["--a", "--b"]) == ModelOptimizer(python, other, ("--a", "--b"))
    assert find(None, mo) == find(None, tmp_path / "link") == ModelOptimizer(python, mo)
    assert find(alone, None) == ModelOptimizer(alone, other)  # on PATH
    monkeypatch.setenv("PATH", str(python.parent))
    assert find(None, None) == find(Path("python"), None) == ModelOptimizer(python, mo)
    monkeypatch.chdir(tmp_path)
    assert find(Path("env/python"), Path("env/mo")) == ModelOptimizer(Path("env/python"), mo)


def test_a_python_that_is_a_link_keeps_its_name(tmp_path: Path) -> None:
    (tmp_path / "python").symlink_to(sys.executable)
    mo = program(tmp_path / "mo", "")
    assert model_optimizer.find(tmp_path / "python", mo).python == tmp_path / "python"


@pytest.mark.parametrize(
    ("python", "script", "message"),
    [
        ("nowhere/python", None, "nowhere/python is no program"),
        ("data", None, "data is no program"),
        ("alone/python", None, "there is no mo beside alone/python or on PATH"),
        (None, None, "there is no mo on PATH"),
        (None, "nowhere/mo", "there is no Model Optimizer at nowhere/mo"),
        (None, "alone", "there is no Model Optimizer at alone"),
        (None, "data", "no Python lies beside"),
    ],
)
def test_it_is_not_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, python: str | None, script: str | None, message: str
) -> None:
    program(tmp_path / "alone" / "python", "")
    (tmp_path / "data").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(ConversionError) as caught:
        model_optimizer.find(python and Path(python), script and Path(script))  # type: ignore[arg-type]
    assert message in caught.value.what
    assert "--mo" in caught.value.hint or "--python" in caught.value.hint


def test_a_python_without_it_has_no_version(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="has no Model Optimizer") as caught:
        model_optimizer.version(stand_in(tmp_path, ""))
    assert "make mo-env" in caught.value.hint


# ---- when it fails


def failing(tmp_path: Path, text: str) -> ConversionError:
    tool = stand_in(tmp_path, text)
    with pytest.raises(ConversionError) as caught:
        model_optimizer.convert(tmp_path / "tiny.onnx", "tiny", targets(tmp_path), SPEC, INPUTS, tool)
    return caught.value


def test_its_last_words_are_told(tmp_path: Path) -> None:
    error = failing(
        tmp_path, "for i in range(99): print('line', i, '\\n')\nprint('-' * 9)\nraise SystemExit('Why: \\xff')"
    )
    assert "could not convert tiny to FP16 (exit status 1)" in error.what
    assert error.what.splitlines()[1:] == [*(f"  line {i}" for i in range(92, 99)), "  Why: \xff"]
    assert "unchanged" in error.hint


def test_it_says_nothing(tmp_path: Path) -> None:
    assert failing(tmp_path, "raise SystemExit(3)").what.endswith("(exit status 3). Its last words:\n  (none)")


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    error = failing(tmp_path, "import os\nos.write(1, b'\\xff\\xfe reason')\nraise SystemExit(1)")
    assert error.what.endswith("\ufffd\ufffd reason")


def test_it_is_killed(tmp_path: Path) -> None:
    assert "ended by signal 9" in failing(tmp_path, "import os\nos.kill(os.getpid(), 9)").what


def test_it_cannot_be_run(tmp_path: Path) -> None:
    tool = ModelOptimizer(program(tmp_path / "python", "no program"), tmp_path / "mo")
    with pytest.raises(ConversionError, match="cannot be run: Exec format error"):
        model_optimizer.convert(tmp_path / "tiny.onnx", "tiny", targets(tmp_path), SPEC, INPUTS, tool)


WRITES = """
import sys
from pathlib import Path
given = dict(word[2:].split("=", 1) for word in sys.argv[1:])
stem = Path(given["output_dir"]) / given["model_name"]
"""


@pytest.mark.parametrize(
    "writes",
    [
        "",
        "stem.with_suffix('.bin').write_bytes(b'12345678')",
        "stem.with_suffix('.xml').write_text('<net></net>')",
        "stem.with_suffix('.xml').write_text('<net>'); stem.with_suffix('.bin').write_bytes(b'12345678')",
        """stem.with_suffix('.xml').write_text('<net><data offset="4" size="8" /></net>')
stem.with_suffix('.bin').write_bytes(b'12345678')""",
    ],
    ids=["nothing", "no xml", "no bin", "half an xml", "half a bin"],
)
def test_it_says_that_it_succeeded_and_did_not(tmp_path: Path, writes: str) -> None:
    error = failing(tmp_path, WRITES + writes)
    assert "no whole FP16 IR" in error.what
    assert "unchanged" in error.hint


STARTS_ANOTHER = """
import os, pathlib, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path("pids.new").write_text(f"{os.getpid()} {child.pid}")
os.rename("pids.new", "pids")
child.wait()
"""

CONVERTS = """
import signal, sys
from pathlib import Path
from omz_tools.export import model_optimizer as mo
from omz_tools.descriptors.descriptor import Export, TensorSpec
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
spec = Export("gpt2", "GPT2LMHeadModel", (TensorSpec("input", "i64", ("B",)),), (TensorSpec("output", "f32", ("B",)),))
try:
    tool = mo.ModelOptimizer(Path(sys.executable), Path("mo"))
    mo.convert(Path("a.onnx"), "a", {"FP32": Path("a.xml")}, spec, (), tool)
except KeyboardInterrupt:
    sys.exit(130)
"""


def is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc here to see processes in")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_and_what_it_started(tmp_path: Path, number: int, status: int) -> None:
    program(tmp_path / "mo", STARTS_ANOTHER)
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen([sys.executable, "-c", CONVERTS], cwd=tmp_path, env=os.environ | {"PYTHONPATH": path})
    deadline = time.monotonic() + 60
    while not (tmp_path / "pids").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    pids = [int(word) for word in (tmp_path / "pids").read_text().split()]
    assert all(map(is_running, pids))
    process.send_signal(number)
    assert process.wait(timeout=60) == status
    while any(map(is_running, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


# ---- by the command


def test_the_command_needs_to_know_which_model_optimizer(run: Command, tiny: Path) -> None:
    words = ("omz_converter", "--name", "tiny", "--models_dir", "models")
    alone = run(*words, "--add_mo_arg=--silent")
    assert alone.returncode == 2
    assert "--add_mo_arg goes with" in alone.stderr
    absent = run(*words, "--mo", "no/such/mo")
    assert absent.returncode == 1
    assert "there is no Model Optimizer at no/such/mo" in absent.stderr
    assert "make mo-env" in absent.stderr


@needs_it
def test_the_command_converts_by_model_optimizer_and_not_twice(run: Command, tiny: Path, tmp_path: Path) -> None:
    words = ("--name", "tiny", "--models_dir", "models")
    assert run("omz_downloader", *words).returncode == 0
    asked = ("omz_converter", *words, "-p", ENVIRONMENT / "bin" / "python", "--precisions", "FP32")
    dry = run(*asked, "--dry_run", "--add_mo_arg=--silent")
    assert "would trace GPT2LMHeadModel" in dry.stdout
    assert "--framework=onnx" in dry.stdout
    assert "--silent" in dry.stdout
    made = run(*asked)
    assert made.returncode == 0, made.stderr
    assert "Comparing with PyTorch (ONNX, FP32)" in made.stdout
    xml = tmp_path / "public" / "tiny" / "FP32" / "tiny.xml"
    assert b"2024.6" in xml.read_bytes()
    assert "Nothing to convert" in run(*asked).stdout
    # Our own converter's IR is another one.
    assert "FP32/tiny.xml: would make it" in run("omz_converter", *words, "--precisions", "FP32", "--dry_run").stdout
