"""Processes in which one chosen call to the system fails, kills, stops or interrupts; and what must hold after it.

Imported, it is the side of the tests: `Lab` runs commands in such processes, `Scene` is a file to be downloaded with
all that is judged afterwards. Run as a program, it is the process itself. Only what Python code does is counted: the
calls of the interpreter's own start, and of libraries in C, are not.
"""

import builtins
import contextlib
import errno
import gc
import hashlib
import importlib
import io
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

DOWNLOADER = "omz_tools.commands.downloader:main"
COMMAND = Path(sys.executable).with_name("omz_downloader")
TOKEN = "hf_secretOfTheTest"
WEIGHTS = "model.safetensors"
MIB = 1 << 20
# Of a body, between a server that sends steps of 64 KiB at a set rate and a process that reads them at once.
IN_FLIGHT = 4 * (1 << 16)


@dataclass(frozen=True)
class Plan:
    """What goes wrong in a process.

    Attributes:
        below: calls that name a path below this folder, or a file opened there, are counted.
        kinds: names of calls that are counted; all if empty.
        number: which of them goes wrong, from 1 on; 0 for none.
        does: "fail", "fail from then on", or the name of a signal that the process sends to itself before the call.
        error: the name of the error a failing call ends in.
        exchange: what the call does that lets two folders trade places: "works", or the name of its error.
        locks: what flock does: "work", "mean nothing" (everyone gets every lock), or the name of its error.
        patience: replaces the seconds that the download waits for others, if set.
    """

    below: str = ""
    kinds: tuple[str, ...] = ()
    number: int = 0
    does: str = "fail"
    error: str = "EIO"
    exchange: str = "works"
    locks: str = "work"
    patience: float | None = None


# ---- The process in which something goes wrong


class Trap:
    """Counts the calls to the system that a plan is about, writes them to a log, and does what the plan says."""

    # fmt: off
    COUNTED = (
        "access", "chmod", "close", "copy_file_range", "fstat", "fsync", "ftruncate", "link", "listdir", "lstat",
        "mkdir", "open", "pread", "preadv", "pwrite", "read", "remove", "rename", "replace", "rmdir", "scandir",
        "stat", "statvfs", "symlink", "truncate", "unlink", "utime", "write",
    )
    # fmt: on

    def __init__(self, plan: Plan, log: int) -> None:
        self.plan, self.log = plan, log
        self.count = 0
        self.lock = threading.Lock()
        self.true = {name: getattr(os, name) for name in self.COUNTED if hasattr(os, name)}
        self.open = io.open

    def install(self) -> None:
        """Put this between Python code and the system."""
        import fcntl

        from omz_tools.system import moves

        for name, true in self.true.items():
            setattr(os, name, self.around(name, true))
        io.open = builtins.open = self.opening  # type: ignore[assignment]
        fcntl.ioctl = self.around("ioctl", fcntl.ioctl)
        locking = {"work": fcntl.flock, "mean nothing": lambda file, how: None}
        fcntl.flock = self.around("flock", locking.get(self.plan.locks) or self.no_lock)
        moves.exchange = self.around("exchange", moves.exchange if self.plan.exchange == "works" else self.no_exchange)
        if self.plan.patience is not None:
            from omz_tools.download import pinned

            pinned.PATIENCE_SECONDS = self.plan.patience

    def no_exchange(self, first: Path, second: Path) -> bool:
        from omz_tools.system import moves

        number = getattr(errno, self.plan.exchange)
        if number in moves._NO_EXCHANGE:
            return False
        raise OSError(number, os.strerror(number))

    def no_lock(self, file: int, how: int) -> NoReturn:
        number = getattr(errno, self.plan.locks)
        raise OSError(number, os.strerror(number))

    def around(self, name: str, true: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if name == "close":  # a descriptor is gone, whatever close says
                path = self.path_of(args[0])
                true(*args, **kwargs)
                return self.passes(name, path)
            if not self.passes(name, *map(self.path_of, args[:2])):
                return False
            return true(*args, **kwargs)

        return call

    def opening(self, file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        """`open`, with a file whose reads and writes are counted, too."""
        path = self.path_of(file)
        if not path:
            return self.open(file, mode, *args, **kwargs)
        if not isinstance(file, int):
            self.passes("open", path)
        trap = self

        class Raw(io.FileIO):
            def readinto(self, buffer: Any) -> Any:
                trap.passes("read", path)
                return super().readinto(buffer)

            def readall(self) -> bytes:
                trap.passes("read", path)
                return super().readall()

            def write(self, data: Any) -> Any:
                trap.passes("write", path)
                return super().write(data)

            def close(self) -> None:
                was_open = not self.closed
                super().close()
                if was_open:
                    trap.passes("close", path)

        names = ("buffering", "encoding", "errors", "newline", "closefd", "opener")
        options = dict(zip(names, args, strict=False)) | kwargs
        closes = {"closefd": options.get("closefd", True), "opener": options.get("opener")}
        raw = Raw(file, mode.replace("b", "").replace("t", ""), **closes)
        if options.get("buffering", -1) == 0:
            return raw
        kind: Any = io.BufferedReader if not raw.writable() else io.BufferedWriter
        buffered = io.BufferedRandom(raw) if raw.readable() and raw.writable() else kind(raw)
        if "b" in mode:
            return buffered
        return io.TextIOWrapper(buffered, options.get("encoding"), options.get("errors"), options.get("newline"))

    def path_of(self, place: Any) -> str:
        """The path of an argument, if it is one below the folder or a file opened there, otherwise nothing."""
        try:
            if isinstance(place, int):
                path = os.readlink(f"/proc/self/fd/{place}")  # noqa: PTH115 -- pathlib would come back here
            else:
                path = os.path.abspath(os.fsdecode(place))  # noqa: PTH100
        except (OSError, TypeError, ValueError):
            return ""
        return path if f"{path}/".startswith(f"{self.plan.below}/") else ""

    def passes(self, name: str, *paths: str) -> bool:
        """Count a call; True if it is to be made, False if it is one that answers False instead of failing."""
        path = next(filter(None, paths), "")
        if not path or not self.plan.below or (self.plan.kinds and name not in self.plan.kinds):
            return True
        with self.lock:
            self.count += 1
            number = self.count
        lasting = self.plan.does == "fail from then on" and number > self.plan.number > 0
        due = number == self.plan.number or lasting
        self.true["write"](self.log, f"{number}{'!' if due else ''} {name} {path}\n".encode())
        if not due:
            return True
        if self.plan.does.startswith("SIG"):
            os.kill(os.getpid(), getattr(signal, self.plan.does))
            return True
        if name == "access":
            return False
        code = getattr(errno, self.plan.error)
        raise OSError(code, os.strerror(code), path)


def serve() -> None:
    """Answer requests on standard input, each in a fork of this process; in the fork, come back with what to call."""
    importlib.import_module("huggingface_hub").get_token()
    importlib.import_module(DOWNLOADER.split(":")[0])
    gc.freeze()  # so that the end of a fork does not go through all that it shares with this process
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        files = [tempfile.TemporaryFile() for _ in range(3)]  # noqa: SIM115
        child = os.fork()
        if not child:
            for descriptor, file in ((1, files[0]), (2, files[1])):
                os.dup2(file.fileno(), descriptor)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            begin(request, files[2].fileno())
        status = waited(child, request["timeout"])
        texts = []
        for file in files:
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
            file.close()
        print(json.dumps([status, *texts]), file=answers, flush=True)


def waited(child: int, timeout: float) -> int | None:
    """The exit status of a child, negative for a signal; None if it had to be killed after so many seconds."""
    deadline = time.monotonic() + timeout
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.002)


def begin(request: dict[str, Any], log: int) -> NoReturn:
    """Do what a request asks for in this process."""
    module, name = request["call"].split(":")
    function = getattr(importlib.import_module(module), name)
    # As a shell in the foreground leaves it, whoever started this.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["cwd"])
    Trap(Plan(**request["plan"]), log).install()
    sys.exit(function(request["words"]))


def publish(words: list[str]) -> int:
    """Publish a model in a folder: an ONNX file, the .xml and .bin of two precisions, a record, all of one text."""
    from omz_tools.commands.arguments import run
    from omz_tools.progress.reporting import PlainReporter
    from omz_tools.system.files import disk_errors
    from omz_tools.system.staging import Staging

    home, text = Path(words[0]), words[1]

    def work() -> int:
        with Staging(home) as staging, disk_errors("Writing to", home):
            staging.file(home / "model.onnx").write_text(text)
            for precision in ("FP16", "FP32"):
                hidden = staging.folder(home / precision)
                for suffix in (".xml", ".bin"):
                    (hidden / f"model{suffix}").write_text(text)
            staging.record(home / "model.json").write_text(text)
            staging.publish()
        return 0

    return run(work, PlainReporter())


# ---- The side of the tests


@dataclass(frozen=True)
class Done:
    """How a process ended: its status (negative for a signal), what it said, and the calls that were counted."""

    status: int | None
    out: str
    err: str
    calls: tuple[str, ...] = ()

    @property
    def struck(self) -> str:
        """The call that the plan was about, or nothing if it was not reached."""
        return next((call for call in self.calls if re.match(r"\d+! ", call)), "")


def checked(done: Done) -> Done:
    """What every process keeps to, however it ends: no traceback, no token, no waiting for ever."""
    said = done.out + done.err
    assert done.status is not None, f"did not end: {done}"
    assert "Traceback" not in said, f"{done.struck}\n{done.err}"
    assert "Exception" not in said, f"{done.struck}\n{done.err}"
    assert TOKEN not in said
    return done


def settings(**environment: str) -> dict[str, str]:
    """The environment of a process: nothing of the caller's own settings."""
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("HF_", "OMZ_")) and not k.lower().endswith("_proxy")
    }
    return kept | {"NO_PROXY": "127.0.0.1"} | environment


class Lab:
    """Runs functions, each in a process of its own that is forked from one which has the modules loaded already."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        self.environment = settings(**environment)
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            cwd=folder, env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8",
        )  # fmt: skip

    def __call__(
        self, *words: str | Path, call: str = DOWNLOADER, plan: Plan | None = None, timeout: float = 60
    ) -> Done:
        assert self._server.stdin
        assert self._server.stdout
        request = {
            "call": call, "words": list(map(str, words)), "plan": asdict(plan or Plan()), "cwd": str(self.folder),
            "timeout": timeout,
        }  # fmt: skip
        print(json.dumps(request), file=self._server.stdin, flush=True)
        status, out, err, calls = json.loads(self._server.stdout.readline())
        return checked(Done(status, out, err, tuple(calls.splitlines())))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._server.communicate()  # it ends with its input


class Running:
    """A process in the background."""

    def __init__(
        self, command: list[str], cwd: Path, environment: dict[str, str], before: tuple[str, ...] = ()
    ) -> None:
        """`before` are words that start the command."""
        self._files = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115 -- closed with this
        self._process = subprocess.Popen(
            [*before, *command], cwd=cwd, env=settings(**environment),
            stdin=subprocess.DEVNULL, stdout=self._files[0], stderr=self._files[1],
        )  # fmt: skip

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    @property
    def is_stopped(self) -> bool:
        # The state comes behind the name of the program, which is in parentheses.
        return Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(") ")[2][0] == "T"

    @property
    def said(self) -> list[str]:
        """What it has said so far on standard output and standard error."""
        sizes = [os.fstat(file.fileno()).st_size for file in self._files]
        return [os.pread(file.fileno(), size, 0).decode() for file, size in zip(self._files, sizes, strict=True)]

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> Done:
        """Kill it, unless it has ended."""
        self._process.kill()
        return self.end()

    def end(self, timeout: float = 60) -> Done:
        """Wait for its end, and look at what it said."""
        try:
            self._process.wait(timeout)
        finally:
            self._process.kill()
            self._process.wait()
        return checked(Done(self._process.returncode, *self.said))


def spans_of(path: Path, size: int) -> list[tuple[int, int]]:
    """The bytes that a partial file says are there, read here by nothing but the description of its format."""
    if path.stat().st_size == size:
        return [(0, size)]
    with path.open("rb") as file:
        file.seek(size)
        lines = file.read().split(b"\n")[:-1]
    # What comes after an unreadable line is left out.
    readable = itertools.takewhile(re.compile(rb"\[.*\]|\d+ \d+").fullmatch, lines)
    pairs = [line.split() for line in readable if not line.startswith(b"[")]
    spans: list[tuple[int, int]] = []
    for first, behind in sorted((int(first), int(behind)) for first, behind in pairs):
        if spans and first <= spans[-1][1]:
            spans[-1] = spans[-1][0], max(spans[-1][1], behind)
        else:
            spans.append((first, behind))
    return spans


def visible(folder: Path) -> list[Path]:
    """The files below a folder that are not hidden, nor in a hidden folder."""
    names = {path: path.relative_to(folder).parts for path in folder.rglob("*") if path.is_file()}
    return [path for path, parts in names.items() if not any(part.startswith(".") for part in parts)]


def length(spans: list[tuple[int, int]]) -> int:
    return sum(behind - first for first, behind in spans)


def overlap(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> int:
    """The bytes that are in both."""
    return sum(max(0, min(b, d) - max(a, c)) for a, b in one for c, d in other)


@dataclass
class Scene:
    """A model "tiny" of one file of random bytes on a Hub, the folders it is to come to, and what must hold there.

    Attributes:
        folder: all is below it.
        size: of the file.
        cached: whether it goes through a cache.
        connections: how many.
        seed: of the bytes.
        name: of the model.
    """

    folder: Path
    size: int
    cached: bool = False
    connections: int = 4
    seed: int = 5
    name: str = "tiny"
    asked: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        import yaml

        from omz_tools.descriptors import zoo

        self.repository = self.folder / "repository"
        self.repository.mkdir(exist_ok=True)
        (self.repository / self.file).write_bytes(random.Random(self.seed).randbytes(self.size))
        model = yaml.safe_load((zoo.shipped() / "gpt-2" / "model.yml").read_text(encoding="utf-8"))
        del model["export"]
        [entry] = [entry for entry in model["files"] if entry["name"] == f"gpt2/{WEIGHTS}"]
        entry |= {"size": self.size, "checksum": {"$type": "sha256", "value": self.digest}}
        entry["name"], entry["source"]["file"] = f"gpt2/{self.file}", self.file
        path = self.folder / "models" / self.name / "model.yml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(model | {"files": [entry]}), encoding="utf-8")

    @property
    def file(self) -> str:
        return WEIGHTS if self.name == "tiny" else f"{self.name}.bin"

    @cached_property
    def data(self) -> bytes:
        return (self.repository / self.file).read_bytes()

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def below(self) -> Path:
        """Where calls are counted."""
        return self.folder / "disk"

    @property
    def cache(self) -> Path:
        return self.below / "cache"

    def target(self, out: str = "out") -> Path:
        return self.below / out / "public" / self.name / "gpt2" / self.file

    @property
    def blob(self) -> Path:
        """Where the cache has it."""
        return self.cache / "1" / "sha256" / self.digest[:2] / self.digest

    def words(self, out: str = "out") -> list[str | Path]:
        """The arguments of a download, into a folder of that name."""
        cache = ["--cache_dir", self.cache] if self.cached else []
        models = ["--models_dir", self.folder / "models", "--name", self.name]
        return [*models, "-o", self.below / out, "--connections", str(self.connections), *cache]

    def environment(self, hub: Any) -> dict[str, str]:
        return {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(self.below / "hf-home"), "HF_TOKEN": TOKEN}

    def clear(self) -> None:
        """An empty disk."""
        shutil.rmtree(self.below, ignore_errors=True)
        self.below.mkdir()

    def hidden(self) -> list[Path]:
        """All hidden files, except what is set aside as damaged."""
        return sorted(p for p in self.below.rglob(".*") if not p.name.endswith(".damaged"))

    def is_there(self, out: str = "out") -> bool:
        """Whether the file needs not be fetched: it is in place, or in the cache."""
        sizes = [path.stat().st_size for path in (self.target(out), self.blob) if path.exists()]
        return self.size in sizes

    def kept(self) -> list[tuple[int, int]]:
        """The bytes that need not be fetched; if not all, those in the partial file of this version with the most.

        What partial files say they have is compared with the true bytes.
        """
        if self.is_there():
            return [(0, self.size)]
        best: list[tuple[int, int]] = []
        for path in self.below.rglob(f".*.{self.digest[:16]}.*.part"):
            spans = spans_of(path, self.size)
            with path.open("rb") as file:
                for first, behind in spans:
                    file.seek(first)
                    assert file.read(behind - first) == self.data[first:behind], f"wrong bytes in {path}"
            best = max(best, spans, key=length)
        return best

    def start(
        self, hub: Any, *more: str, out: str = "out", plan: Plan | None = None, before: tuple[str, ...] = ()
    ) -> Running:
        """The download in the background: the command itself, or with a plan a process of this module."""
        words = [*map(str, self.words(out)), *more]
        request = {"call": DOWNLOADER, "words": words, "plan": asdict(plan or Plan()), "cwd": str(self.folder)}
        command = [sys.executable, __file__, json.dumps(request)] if plan else [str(COMMAND), *words]
        return Running(command, self.folder, self.environment(hub), before)

    def watch(self, hub: Any) -> None:
        """From now on `asked` holds what is asked for of the file, wherever a redirect leads."""
        before = hub.interfere

        def interfere(handler: Any) -> bool:
            if handler.path.startswith(("/cdn/", "/api/")) and handler.path.endswith(f"/{self.file}"):
                asked = re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range", ""))
                first, last = (int(asked[1]), int(asked[2] or self.size - 1)) if asked else (0, self.size - 1)
                self.asked.append((first, last + 1))
            return bool(before(handler))

        hub.interfere = interfere

    def holds(self, *outs: str, previous: bytes | None = None) -> None:
        """Nothing unfinished under a final name, and every file in the store hashes to its name.

        `previous` is what may still be in the place of the file.
        """
        allowed = {self.data, previous} if previous is not None else {self.data}
        for out in outs or ("out",):
            for path in visible(self.below / out / "public" / self.name):
                assert path == self.target(out), f"nobody asked for {path}"
                assert path.read_bytes() in allowed, f"not right: {path}, {path.stat().st_size} bytes"
            if previous is not None:
                assert self.target(out).exists(), "what was there before is gone"
        for path in visible(self.cache / "1"):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, path.parent.parent.name).hexdigest()
            assert path.name == digest, f"not what its name says: {path}, {path.stat().st_size} bytes"

    def through(self, *outs: str, kept: bool = True) -> None:
        """The download has succeeded, and nothing hidden is left of it; `kept` if it must be in the cache, too."""
        self.holds(*outs)
        for out in outs or ("out",):
            assert self.target(out).read_bytes() == self.data
            assert self.target(out).stat().st_mode & 0o600 == 0o600
        if self.cached and kept:
            assert self.blob.exists()
        assert self.hidden() == []


@contextlib.contextmanager
def telling(what: object) -> Iterator[None]:
    """Say of a failed assertion what it happened after."""
    try:
        yield
    except AssertionError as error:
        error.add_note(f"after {what}")
        raise


def settled(hub: Any) -> int:
    """The bytes served, when those who serve a dead process have noticed."""
    before = -1
    while before != hub.served:
        before = hub.served
        time.sleep(0.1)
    return before


def failed_cleanly(done: Done) -> None:
    """One error that says where it happened and what to do next."""
    assert done.status == 1, done
    assert done.err.count("########## Error: ") == 1, f"{done.struck}\n{done.err}"
    text = done.err.split("########## Error: ")[1].strip()
    assert "\n" in text, f"no hint: {done.struck}\n{done.err}"


def wait_until(is_so: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.002)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        begin(json.loads(sys.argv[1]), os.open(os.devnull, os.O_WRONLY))
    serve()
