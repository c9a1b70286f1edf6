"""What the benchmarks share: a command run as a whole process and watched, ways in turn, a table, a file of results.

Needs Linux: memory and bytes are read from /proc.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

LIBRARIES = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "openvino", "numpy")
_INTERVAL = 0.02
# Settings of the person who runs a benchmark that would change what a command does.
_FOREIGN = ("OMZ_CACHE_DIR", "HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN")


@dataclass(frozen=True)
class Figure:
    """One run of a command, all processes that it started included.

    Attributes:
        seconds: wall time.
        cpu: seconds of processor time, user and system.
        anonymous: MB of memory of its own (RssAnon), the sum over the live processes at the moment when it was largest;
            what a process shares with one that it forked counts for both. (Pss would tell, but holds up whoever is
            looked at: a conversion of gpt-2 took a third longer.)
        resident: MB of the largest resident set (VmHWM) of any one process; file-backed pages, such as weights that are
            mapped and not copied, included.
        written: MB that the operating system counted as written to files (write_bytes; a tmpfs counts none).
    """

    seconds: float
    cpu: float
    anonymous: float
    resident: float
    written: float


def measure(command: Sequence[str | Path], folder: Path, settings: Mapping[str, str | None] | None = None) -> Figure:
    """Run a command in `folder` to its end; memory is sampled every 20 ms.

    Args:
        command: the words, see `found`.
        folder: the working directory.
        settings: environment variables to set, or to take out where the value is None.

    Raises:
        SystemExit: the command failed; its last words are in the message.
    """
    words = found(command)
    with tempfile.TemporaryFile() as said:
        began = time.perf_counter()
        process = subprocess.Popen(words, cwd=folder, env=environment(settings), stdout=said, stderr=said)
        anonymous = resident = 0.0
        # Its end is seen and not yet collected (WNOWAIT): until then the system keeps the count of bytes.
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            pids = list(_tree(process.pid))
            if (total := _own(pids)) > anonymous:
                # A child that is about to become another program still counts with all that its parent has.
                time.sleep(_INTERVAL / 4)
                anonymous = max(anonymous, min(total, _own(_tree(process.pid))))
            resident = max(resident, *(_megabytes("status", pid, "VmHWM") for pid in pids))
            time.sleep(_INTERVAL)
        seconds = time.perf_counter() - began
        written = _fields(Path(f"/proc/{process.pid}/io")).get("write_bytes", 0) / 1e6
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            sys.exit(f"{' '.join(words)} failed:\n{said.read()[-2000:].decode(errors='replace')}")
    return Figure(seconds, usage.ru_utime + usage.ru_stime, anonymous, resident, written)


def found(command: Sequence[str | Path]) -> list[str]:
    """The words of a command; the first one is a path, or is looked for beside this Python, then on the PATH."""
    words = [str(word) for word in command]
    if (BIN / words[0]).exists():
        words[0] = str(BIN / words[0])
    return words


def environment(settings: Mapping[str, str | None] | None = None) -> dict[str, str]:
    """The environment variables of a command: `settings`, see `measure`, and what does not change what it does."""
    changes = dict.fromkeys(_FOREIGN) | dict(settings or {})
    kept = {name: value for name, value in os.environ.items() if name not in changes}
    return kept | {name: value for name, value in changes.items() if value is not None}


def _tree(pid: int) -> Iterator[int]:
    yield pid
    with contextlib.suppress(OSError):  # it ended meanwhile
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from _tree(int(child))


def _own(pids: Iterable[int]) -> float:
    """MB of the processes' own memory, together."""
    return sum(_megabytes("status", pid, "RssAnon") for pid in pids)


def _megabytes(file: str, pid: int, name: str) -> float:
    return _fields(Path(f"/proc/{pid}/{file}")).get(name, 0) * 1024 / 1e6


def _fields(path: Path) -> dict[str, int]:
    """The numbers of a file of /proc with a name and a value on each line; none if the process is gone."""
    with contextlib.suppress(OSError):
        lines = (line.split() for line in path.read_text().splitlines())
        return {words[0].rstrip(":"): int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}
    return {}


Way = Callable[[], Figure]


def compare(title: str, ways: Mapping[str, Way], runs: int, reference: str | None = None) -> dict[str, Any]:
    """Take each way in turn, `runs` times after one warm-up, and print and return the table of their figures.

    What a way prepares before it measures does not count.
    """
    title = f"{title}; median of {runs} after one warm-up, {os.cpu_count()} processors"
    say(title)
    figures: dict[str, list[Figure]] = {name: [] for name in ways}
    for run in range(1 + runs):
        for name, way in ways.items():
            os.sync()  # what the run before has written does not slow this one down
            figure = way()
            if run:
                figures[name].append(figure)
    say(table(figures, reference) + "\n")
    return {"title": title, "reference": reference, "figures": figures}


def ratio(some: Sequence[float], reference: Sequence[float]) -> float:
    """The median of the ratios within each round: a machine that slows down does so for both."""
    return statistics.median(ours / theirs for ours, theirs in zip(some, reference, strict=True))


def table(figures: Mapping[str, Sequence[Figure]], reference: str | None = None) -> str:
    """A line for each way: median time (smallest to largest), ratio to the reference, processor time, memory, bytes."""
    width = max(len(name) for name in figures)
    lines = []
    for name, some in figures.items():
        seconds = [figure.seconds for figure in some]
        line = f"{name:{width}}  {statistics.median(seconds):7.2f} s  ({min(seconds):.2f} to {max(seconds):.2f})"
        if reference in figures:
            line += f"  x{ratio(seconds, [figure.seconds for figure in figures[reference]]):.2f}"
        line += f"  cpu {statistics.median(figure.cpu for figure in some):.1f} s"
        line += f"  own {max(figure.anonymous for figure in some):.0f} MB"
        line += f"  resident {max(figure.resident for figure in some):.0f} MB"
        line += f"  written {statistics.median(figure.written for figure in some):.1f} MB"
        lines.append(line)
    return "\n".join(lines)


def parser(documentation: str | None) -> argparse.ArgumentParser:
    """With the module's text as its help, and the option of every benchmark."""
    made = argparse.ArgumentParser(description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file, too")
    return made


def write(path: Path | None, benchmark: str, results: Mapping[str, Any]) -> None:
    """The results as JSON with the date, the machine and the versions, for report.py; nothing without a path."""
    if path is None:
        return
    found = {"benchmark": benchmark, "date": datetime.datetime.now(datetime.UTC).date().isoformat()}
    document = found | {"machine": machine(), "libraries": _versions(), **results}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, default=asdict) + "\n")


def machine() -> dict[str, Any]:
    """Processor, number of processors, memory in GB, system, and how busy it was in the last five minutes."""
    information = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in information if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": round(memory, 1),
        "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "python": platform.python_version(),
        "load": round(os.getloadavg()[1], 1),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def checkpoint(folder: Path, name: str, seed: int, *, masks: bool = True, **shape: int) -> Path:
    """A GPT-2 of random weights, of gpt-2's own shape but for `shape`, as omz_downloader would leave it below `folder`.

    Returns:
        Its folder below `folder/tree`; `folder/models` gets a descriptor that pins it.
    """
    import checkpoints

    config = checkpoints.GPT2 | shape if shape else checkpoints.GPT2
    downloaded = checkpoints.write_repository(folder / "tree" / "public" / name / "gpt2", config, seed, masks=masks)
    checkpoints.pin_locally(downloaded, folder / "models", name)
    return downloaded


def clear(downloaded: Path) -> None:
    """Remove all that a conversion made beside the checkpoint, its own notes included."""
    for path in downloaded.parent.iterdir():
        if path.is_file():
            path.unlink()
        elif path != downloaded:
            shutil.rmtree(path)


def options(command: str) -> str:
    """What a command says of its options."""
    return subprocess.run([BIN / command, "--help"], capture_output=True, text=True, check=True).stdout


def say(text: str) -> None:
    print(text, flush=True)


def empty(*folders: Path) -> None:
    """Remove these folders with all that is in them, and make them anew."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)


def room_for(folder: Path, size: float, what: str) -> bool:
    """Whether `size` bytes are free in `folder`; says so if not."""
    free = shutil.disk_usage(folder).free
    if free < size:
        say(f"left out: {what} needs {size / 1e9:.1f} GB in {folder}, {free / 1e9:.1f} GB are free")
    return free >= size
