"""ONNX to OpenVINO IR by Model Optimizer, which runs in an environment of its own and never in ours."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from omz_tools.cache.stages import Ingredients
from omz_tools.descriptors.descriptor import Export, InputInfo, Precision
from omz_tools.errors import ConversionError

# What to export for Model Optimizer. The one of openvino-dev 2024.6, its last release, reads the operators up to opset
# 22, and not the Attention of 23; older ones were made for less, and 18 is the lowest that PyTorch exports.
OPSET = 18

# Goes up whenever this module makes another IR of the same ingredients.
FORMAT = 1

_BUILD = "`make mo-env` builds an environment that has it, in .venv-mo."


@dataclass(frozen=True)
class ModelOptimizer:
    """A Model Optimizer that is installed somewhere.

    Attributes:
        python: the Python of its environment.
        script: its entry point, as a rule `mo` beside that Python.
        arguments: what it is given after all that it needs.
    """

    python: Path
    script: Path
    arguments: tuple[str, ...] = ()


def find(python: Path | None, script: Path | None, arguments: Sequence[str] = ()) -> ModelOptimizer:
    """The Model Optimizer that a user means.

    Args:
        python: a path, or a name on PATH; None means the Python beside `script`.
        script: None means the `mo` beside `python`, or else on PATH.
        arguments: see `ModelOptimizer`.

    Raises:
        ConversionError: one of the two is not there.
    """
    program = shutil.which(str(python)) if python else None
    if python and program is None:
        raise ConversionError(
            f"{python} is no program that can be run",
            hint=f"-p/--python takes the Python that Model Optimizer is installed for. {_BUILD}",
        )
    if script is None:
        beside = shutil.which("mo", path=str(Path(program).parent)) if program else None
        found = beside or shutil.which("mo")
        if found is None:
            raise ConversionError(
                f"Model Optimizer is not found: there is no mo {f'beside {program} or ' if program else ''}on PATH",
                hint=f"Say where it is with --mo. {_BUILD}",
            )
        script = Path(found)
    elif not script.is_file():
        raise ConversionError(f"there is no Model Optimizer at {script}", hint=f"Check --mo. {_BUILD}")
    script = script.resolve()
    # Not resolved: a virtual environment is found by the name that its Python is called by.
    program = program or shutil.which("python", path=str(script.parent))
    if program is None:
        raise ConversionError(
            f"no Python lies beside {script}", hint="Say with -p/--python which one Model Optimizer is installed for."
        )
    return ModelOptimizer(Path(program), script, tuple(arguments))


def version(tool: ModelOptimizer) -> str:
    """The version of the package that Model Optimizer is part of ("2024.6.0").

    Raises:
        ConversionError: its Python cannot be run, or does not have that package.
    """
    status, said = _run([str(tool.python), "-c", "import importlib.metadata as m; print(m.version('openvino-dev'))"])
    if status:
        raise ConversionError(f"{tool.python} has no Model Optimizer (package openvino-dev)", hint=_BUILD)
    return said.split()[-1]


def ingredients(name: str, precision: Precision, tool: ModelOptimizer) -> Ingredients:
    """What an IR by Model Optimizer depends on besides the graph and the checkpoint. Raises ConversionError."""
    return {
        "stage": "ir",
        "format": FORMAT,
        "name": name,
        "precision": precision,
        "openvino-dev": version(tool),
        "arguments": list(tool.arguments),
    }


def commands(
    onnx_path: Path, targets: Mapping[Precision, Path], spec: Export, inputs: Sequence[InputInfo], tool: ModelOptimizer
) -> dict[Precision, list[str]]:
    """The command that makes each precision, as Open Model Zoo's converter would run it; see `convert`."""
    layouts = ",".join(f"{described.name}({described.layout})" for described in inputs if described.layout)
    return {
        precision: [
            str(tool.python),
            "--",
            str(tool.script),
            "--framework=onnx",
            f"--output_dir={xml.parent}",
            f"--model_name={xml.stem}",
            f"--input={','.join(tensor.name for tensor in spec.inputs)}",
            f"--input_model={onnx_path}",
            f"--output={','.join(tensor.name for tensor in spec.outputs)}",
            *([f"--layout={layouts}"] if layouts else []),
            f"--compress_to_fp16={precision == 'FP16'}",
            *tool.arguments,
        ]
        for precision, xml in targets.items()
    }


def convert(
    onnx_path: Path,
    name: str,
    targets: Mapping[Precision, Path],
    spec: Export,
    inputs: Sequence[InputInfo],
    tool: ModelOptimizer,
) -> None:
    """Write the IR of an ONNX model once for each precision, as `ir.convert` does, by Model Optimizer.

    Args:
        onnx_path: the model, its weights embedded or below its folder; see `OPSET`.
        name: what the model is called.
        targets: the .xml to write for each precision; the .bin goes beside it. The folders exist.
        spec: names of the inputs and outputs.
        inputs: what the descriptor says of the inputs; their layouts get into the IR.
        tool: which Model Optimizer.

    Raises:
        ConversionError: Model Optimizer could not be run, failed, or wrote no whole IR.
    """
    for precision, command in commands(onnx_path, targets, spec, inputs, tool).items():
        xml = targets[precision]
        status, said = _run(command)
        if status:
            ended = f"exit status {status}" if status > 0 else f"ended by signal {-status}"
            raise ConversionError(
                f"Model Optimizer could not convert {name} to {precision} ({ended}). Its last words:\n{_tail(said)}",
                hint="It reads ONNX up to opset 22, and takes --add_mo_arg. What was there before is unchanged.",
            )
        # It says that it succeeded also where the disk was full.
        if not _is_whole(xml):
            free = shutil.disk_usage(xml.parent).free
            raise ConversionError(
                f"Model Optimizer wrote no whole {precision} IR to {xml.parent}, and says that it did",
                hint=f"{free / 1e6:,.1f} MB are free there. What was there before is unchanged.",
            )
        _name_as_published(xml, name)


def _run(command: Sequence[str]) -> tuple[int, str]:
    """Run a command to its end; its exit status, or a signal as a negative number, and all that it said.

    Whatever ends the waiting, SIGINT and SIGTERM above all, ends the command and the processes it started.
    """
    # Ours would lead its Python to our packages; one of them has the name of one of its own.
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON") and k != "VIRTUAL_ENV"}
    try:
        process = subprocess.Popen(
            command,
            env=kept | {"CI": "true"},  # it reports its use to a server, unless it runs in CI
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # Model Optimizer starts a process of its own: both are ended as one group
        )
    except OSError as error:
        raise ConversionError(f"{command[0]} cannot be run: {error.strerror}", hint="Check -p/--python.") from error
    with process:
        try:
            said, _ = process.communicate()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
            raise
    return process.returncode, said


def _tail(said: str) -> str:
    """The end of a log, which holds the reason, without ornaments."""
    lines = [line.rstrip() for line in said.splitlines() if line.strip() and "-----" not in line]
    return "\n".join(f"  {line[:400]}" for line in lines[-8:]) or "  (none)"


def _is_whole(xml: Path) -> bool:
    """Whether an IR has its end, and all the weights that it refers to."""
    weights = xml.with_suffix(".bin")
    if not (xml.is_file() and weights.is_file()):
        return False
    text = xml.read_bytes()
    ends = (int(offset) + int(size) for offset, size in re.findall(rb'offset="(\d+)" size="(\d+)"', text))
    return text.rstrip().endswith(b"</net>") and weights.stat().st_size >= max(ends, default=0)


def _name_as_published(xml: Path, name: str) -> None:
    """Write into the IR the names that its files will have; it was made under passing ones.

    The folder is called DIR, as Model Optimizer itself calls it if it exists. IRs of the same model are the same
    everywhere.
    """
    from xml.sax.saxutils import quoteattr  # here, for it loads much that most conversions do not need

    text = xml.read_text(encoding="utf-8")
    for key, value in {"input_model": f"DIR/{name}.onnx", "model_name": name, "output_dir": "DIR"}.items():
        named = f"<{key} value={quoteattr(value)} />"
        text = re.sub(rf'<{key} value="[^"]*" />', named, text, count=1)  # no name has a backslash
    xml.write_text(text, encoding="utf-8", newline="\n")
