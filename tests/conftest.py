"""What the tests share: the commands as people run them, and models downloaded and converted once."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import checkpoints
import pytest
from filelock import FileLock
from hub import Hub

# As in the commands' own processes: threads of PyTorch that wait leave the processors to the tests beside.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

BIN = Path(sys.executable).parent

# Files whose tests convert again and again. They begin first, so that at the end no processor waits for one of them.
LONG = (
    "test_faults_conversion", "test_conversion", "test_repeated_conversion", "test_onnx_export", "test_full_size",
    "test_own_model", "test_stateful", "test_model_optimizer", "test_staging", "test_ir", "test_wheel",
)  # fmt: skip

Command = Callable[..., subprocess.CompletedProcess[str]]


def pytest_configure() -> None:
    """Let Ctrl-C reach what the tests start, also in the background of a shell, which leaves it ignored."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take long before the others."""
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONG)))


@contextmanager
def comes_to_an_end(seconds: float = 120) -> Iterator[None]:
    """What would take for ever fails, where there are signals; no bound of how fast something is."""

    def fail(number: int, frame: object) -> None:
        raise AssertionError(f"it has not ended after {seconds} s")

    if sys.platform == "win32":
        yield
        return
    before = signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_command(
    *words: str | Path, cwd: Path | None = None, timeout: float = 300, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a console script in a process of its own, as a person or CI would; nothing of the caller's settings."""
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("HF_", "OMZ_")) and not k.lower().endswith("_proxy")
    }
    return subprocess.run(
        [BIN / str(words[0]), *map(str, words[1:])],
        cwd=cwd,
        env=kept | {"NO_PROXY": "127.0.0.1"} | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
        check=False,
    )


@pytest.fixture
def run(tmp_path: Path) -> Command:
    """`run_command`, in an empty folder."""

    def run(*words: str | Path, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        return run_command(*words, cwd=cwd or tmp_path, **environment)

    return run


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """The folder of a tiny random checkpoint, pinned as the model "tiny" in `tmp_path / "models"`, taken from disk."""
    folder = checkpoints.write_repository(tmp_path / "repository", checkpoints.TINY, seed=7)
    checkpoints.pin_locally(folder, tmp_path / "models", "tiny")
    return folder


def once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """The folder that `make` fills, once in a run; no test may write into it.

    Each worker of pytest-xdist has a session of its own: the first one makes it, and those that want it meanwhile wait.
    """
    top = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        top = top.parent  # of the run, where each worker has a folder
    folder, made = top / name, top / f"{name}.made"
    with FileLock(top / f"{name}.lock"):
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed
            folder.mkdir()
            make(folder)
            made.touch()
    return folder


@pytest.fixture(scope="session")
def seed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with all that comes of converting `tiny`: its graph, its IRs, its proofs."""

    def make(root: Path) -> None:
        folder = checkpoints.write_repository(root / "repository", checkpoints.TINY, seed=7)
        checkpoints.pin_locally(folder, root / "models", "tiny")
        for command, words in (("omz_downloader", ()), ("omz_converter", ("--cache_dir", "cache"))):
            done = run_command(command, "--name", "tiny", "--models_dir", "models", *words, cwd=root)
            assert done.returncode == 0, done.stderr

    return once(tmp_path_factory, "seed", make) / "cache"


@pytest.fixture
def full_cache(seed: Path, tmp_path: Path) -> Path:
    """A copy of `seed`: tests that are not about the first conversion of all need not wait for it."""
    return shutil.copytree(seed, tmp_path / "cache")


@pytest.fixture
def graph_cache(full_cache: Path) -> Path:
    """A cache with the graph of `tiny` alone, which is what takes the longest to make."""
    for path in full_cache.rglob("result/*/*"):
        if json.loads(path.read_bytes())["ingredients"]["stage"] != "graph":
            path.unlink()
    return full_cache


@dataclass(frozen=True)
class Converted:
    """A model that the commands downloaded and converted: its folder, and what they printed."""

    folder: Path
    downloaded: str
    converted: str

    def keep(self) -> None:
        """What they printed, beside the models."""
        said = {"downloaded": self.downloaded, "converted": self.converted}
        (self.folder.parents[1] / "said.json").write_text(json.dumps(said))

    @classmethod
    def kept(cls, folder: Path) -> "Converted":
        """The model in `folder`, with what was kept of the commands."""
        return cls(folder, **json.loads((folder.parents[1] / "said.json").read_text()))


@pytest.fixture(scope="session")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """gpt-2-mini, downloaded and converted by the commands; beside it the cache with what came of that."""

    def make(root: Path) -> None:
        downloaded = run_command("omz_downloader", "--name", "gpt-2-mini", cwd=root)
        assert downloaded.returncode == 0, downloaded.stderr
        converted = run_command("omz_converter", "--name", "gpt-2-mini", "--cache_dir", "cache", cwd=root)
        assert converted.returncode == 0, converted.stderr
        Converted(root / "public" / "gpt-2-mini", downloaded.stdout, converted.stdout).keep()

    return Converted.kept(once(tmp_path_factory, "mini", make) / "public" / "gpt-2-mini")


@pytest.fixture(scope="session")
def stateful(mini: Converted, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """gpt-2-mini with the stateful variant beside the contract's IR, which was there before."""

    def make(root: Path) -> None:
        shutil.copytree(mini.folder, root / "public" / "gpt-2-mini")
        words = ("omz_converter", "--name", "gpt-2-mini", "--variant", "stateful", "--cache_dir", "cache")
        done = run_command(*words, "--precisions", "FP16,FP16-INT8,FP32", cwd=root)
        assert done.returncode == 0, done.stdout + done.stderr
        Converted(root / "public" / "gpt-2-mini", mini.downloaded, done.stdout).keep()

    return Converted.kept(once(tmp_path_factory, "stateful", make) / "public" / "gpt-2-mini")


@pytest.fixture(scope="session")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """gpt-2 at its true size with random weights: served by the stand-in Hub, taken to IR by the commands."""

    def make(root: Path) -> None:
        repository = checkpoints.write_repository(root / "repository", checkpoints.GPT2, seed=11)
        checkpoints.pin(repository, root / "models", "gpt-2")
        models = ("--name", "gpt-2", "--models_dir", root / "models")
        with Hub(repository) as hub:
            downloaded = run_command("omz_downloader", *models, "-o", root, HF_ENDPOINT=hub.endpoint)
            assert downloaded.returncode == 0, downloaded.stderr
        converted = run_command("omz_converter", *models, "-d", root, timeout=600)
        assert converted.returncode == 0, converted.stderr
        Converted(root / "public" / "gpt-2", downloaded.stdout, converted.stdout).keep()

    return Converted.kept(once(tmp_path_factory, "full-size", make) / "public" / "gpt-2")
