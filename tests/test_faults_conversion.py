"""A conversion that is killed, interrupted, or finds the disk full harms nothing of what was there before."""

import contextlib
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import checkpoints
import pytest
from conftest import BIN, run_command
from crash import Done, Lab, Plan, Running, failed_cleanly, telling, wait_until
from faults import full, sample

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals, mounts and /proc as Linux has them")

NAMES = ("model.onnx", "FP16/model.xml", "FP16/model.bin", "FP32/model.xml", "FP32/model.bin", "model.json")
MINE = "FP16/notes.txt"
OLD, NEW, NEWER = (dict.fromkeys(NAMES, text) | {MINE: "mine"} for text in ("old", "new", "newer"))
# Where two folders can trade places; on NFS; and in a lower layer of an overlay, where none can even be moved.
EXCHANGES = pytest.mark.parametrize("exchange", ["works", "EINVAL", "EXDEV"])
CHANGING = ("write", "fsync", "mkdir", "replace", "rename", "exchange", "link", "chmod", "unlink", "rmdir")


# ---- Publishing, call by call


class Place:
    """A model that was published before, laid out anew for each case, and a process that publishes it again."""

    def __init__(self, folder: Path, lab: Lab) -> None:
        self.home, self.before, self.lab = folder / "place" / "home", folder / "before", lab
        assert self.publish("old").status == 0
        (self.home / MINE).write_text("mine")
        self.home.rename(self.before)

    def publish(self, text: str, plan: Plan | None = None) -> Done:
        return self.lab(self.home, text, call="crash:publish", plan=plan)

    def cases(
        self,
        does: str,
        exchange: str,
        errors: list[str],
        step: int = 1,
        kinds: tuple[str, ...] = (),
        locks: str = "work",
    ) -> Iterator[Done]:
        """How it ends when a call does so, every `step`th, until a run makes fewer calls.

        With which one it begins depends on what goes wrong where, so that together they see most calls.
        """
        for turn, number in enumerate(itertools.count(1 + len(does + exchange) % step, step)):
            for error in errors if full() else [errors[turn % len(errors)]]:
                shutil.rmtree(self.home, ignore_errors=True)
                shutil.copytree(self.before, self.home)
                done = self.publish("new", Plan(str(self.home.parent), kinds, number, does, error, exchange, locks))
                if not done.struck:
                    assert done.status == 0
                    assert turn > 3
                    return
                with telling(done.struck):
                    yield done

    def visible(self) -> dict[str, str]:
        files = {path.relative_to(self.home).as_posix(): path for path in self.home.rglob("*") if path.is_file()}
        return {name: path.read_text() for name, path in files.items() if "/." not in f"/{name}"}

    def hidden(self) -> list[Path]:
        return sorted(self.home.rglob(".*"))

    def holds(self, exchange: str) -> None:
        """Each pair is whole and of one run, the record says nothing of what is not there, what is mine is there."""
        there = self.visible()
        for precision in ("FP16", "FP32"):
            pair = [there.get(f"{precision}/model{suffix}", "none") for suffix in (".xml", ".bin")]
            if exchange == "works":
                assert pair in (["old", "old"], ["new", "new"]), there
            else:  # rather no model than half of one
                assert pair[0] in ("none", pair[1]), there
        assert there["model.onnx"] in ("old", "new")
        if "model.json" in there:
            assert {text for name, text in there.items() if name != MINE} == {there["model.json"]}
        if exchange != "EINVAL":
            assert there[MINE] == "mine"

    def rerun(self) -> None:
        assert self.publish("newer").status == 0
        assert self.visible() == NEWER
        assert self.hidden() == []


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with Lab(tmp_path) as lab:
        yield Place(tmp_path, lab)


@EXCHANGES
@pytest.mark.parametrize("locks", ["work", "mean nothing", "ENOLCK"])
def test_killed_before_any_change_publishing_leaves_each_pair_whole(place: Place, exchange: str, locks: str) -> None:
    """And the next run cleans up, where it can see that no one lives."""
    step = sample(1 if exchange == "works" and locks == "work" else 5, 1)
    for done in place.cases("SIGKILL", exchange, [""], step, CHANGING, locks):
        assert done.status == -signal.SIGKILL
        place.holds(exchange)
        place.rerun()


@EXCHANGES
def test_each_call_that_fails_ends_in_the_new_files_or_in_one_error_and_the_old_ones(
    place: Place, exchange: str
) -> None:
    """A disk with one bad moment."""
    for done in place.cases("fail", exchange, ["EIO", "ENOSPC", "EACCES", "EROFS"], sample(9, 1)):
        there = place.visible()
        if done.status:
            failed_cleanly(done)
            assert there == OLD
        else:
            assert there == NEW
        place.rerun()


@EXCHANGES
def test_a_disk_that_refuses_changes_from_some_moment_on_never_shows_half_of_a_pair(
    place: Place, exchange: str
) -> None:
    """Steps may not be undone then, either."""
    for done in place.cases("fail from then on", exchange, ["ENOSPC", "EROFS"], sample(4, 1), CHANGING):
        place.holds(exchange)
        if done.status:
            failed_cleanly(done)
            # What is said to be unchanged, is.
            assert "unchanged" not in done.err or place.visible() == OLD, done.err
        else:
            assert place.visible() == NEW
        place.rerun()


@EXCHANGES
@pytest.mark.parametrize(("number", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_before_any_call_leaves_all_old_or_all_new_and_nothing_hidden(
    place: Place, exchange: str, number: str, status: int
) -> None:
    for done in place.cases(number, exchange, [""], sample(13, 1)):
        assert done.status == status
        assert place.visible() in (OLD, NEW)
        assert place.hidden() == []


def has_strace() -> bool:
    with contextlib.suppress(OSError):
        return subprocess.run(["strace", "-qq", "-o", "/dev/null", "true"], check=False).returncode == 0
    return False


@pytest.mark.parametrize("call", ["rename", "renameat2", "linkat", "mkdir", "unlink,unlinkat,rmdir"])
def test_killed_by_the_system_in_any_call_each_pair_is_whole(place: Place, call: str) -> None:
    """The same below Python, the exchange itself included."""
    if not has_strace():
        pytest.skip("no strace here, or it may not trace")
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import crash; crash.publish(sys.argv[1:])"
    for number in itertools.count(1):
        shutil.rmtree(place.home, ignore_errors=True)
        shutil.copytree(place.before, place.home)
        trace = ("strace", "-f", "-qq", "-o", "/dev/null", "-e", f"inject={call}:signal=KILL:when={number}")
        done = Running([sys.executable, "-c", code, str(place.home), "new"], place.home, {}, trace).end()
        with telling(f"{call} {number}"):
            place.holds("works")
            if done.status == 0:
                break
            assert done.status == -signal.SIGKILL
            place.rerun()
    assert number > 1
    assert place.visible() == NEW


# ---- Conversions


def walked(folder: Path) -> Iterator[Path]:
    """All that lies below a folder while a process may be removing some of it, which rglob does not bear."""
    for home, folders, files in os.walk(folder):
        yield from (Path(home, name) for name in [*folders, *files])


class Converter:
    """The command, and tiny models that it converts."""

    def __init__(self, folder: Path, graph: Path) -> None:
        """`graph` is a cache with the graph of the models, and nothing else."""
        self.folder, self.graph = folder, graph

    def make(self, download_dir: str = ".", seed: int = 7) -> list[str]:
        """Download a random model; the words that convert it."""
        repository = checkpoints.write_repository(self.folder / f"repository{seed}", checkpoints.TINY, seed=seed)
        checkpoints.pin_locally(repository, self.folder / f"models{seed}", "tiny")
        words = ["--models_dir", f"models{seed}", "--name", "tiny"]
        assert run_command("omz_downloader", *words, "-o", download_dir, cwd=self.folder).returncode == 0
        return [str(BIN / "omz_converter"), *words, "-d", download_dir]

    def quickly(self, words: list[str], *places: Path) -> list[str]:
        """The words that make all again but the trace, and compare nothing; in the full run all.

        `places` are where models lie outside the folder of this.
        """
        if full():
            return [*words, "--force"]
        # One for each conversion, for the IRs would come from there, too.
        cache = shutil.copytree(self.graph, tempfile.mkdtemp(dir=self.folder), dirs_exist_ok=True)
        for path in [found for place in (self.folder, *places) for found in place.rglob(".tiny.conversion.json")]:
            path.write_text('{"format": 1}')  # of an earlier version: nothing is known of what is in place
        return [*words, "--cache_dir", str(cache), "--verify", "off"]

    def start(self, words: list[str], before: tuple[str, ...] = ()) -> Running:
        return Running(words, self.folder, {}, before)

    @property
    def hidden(self) -> list[Path]:
        """All hidden files but the record of what was made, which stays."""
        inside = (path for path in walked(self.folder) if "public" in path.parts and path.name.startswith("."))
        return sorted(path for path in inside if path.name != ".tiny.conversion.json")

    def contents(self, below: str = ".") -> dict[Path, str]:
        """The digests of all files that are not hidden."""
        folder = self.folder / below / "public"
        files = {path.relative_to(folder): path for path in walked(folder) if path.is_file()}
        return {
            name: hashlib.sha256(path.read_bytes()).hexdigest()
            for name, path in files.items()
            if not any(part.startswith(".") for part in name.parts)
        }


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Converter, list[str], float]:
    """A model that was converted once, the words that do so, and how long it took."""
    folder = tmp_path_factory.mktemp("converted")
    converter = Converter(folder, folder / "graph")
    words = converter.make()
    began = time.monotonic()
    assert converter.start([*words, "--cache_dir", str(converter.graph)]).end(300).status == 0
    seconds = time.monotonic() - began
    for path in converter.graph.rglob("result/*/*"):
        if json.loads(path.read_bytes())["ingredients"]["stage"] != "graph":
            path.unlink()
    return converter, words, seconds


@dataclass(frozen=True)
class Reconverted:
    """What became of a converted model whose conversion was repeated and killed, and then repeated to its end."""

    was_whole: bool
    hidden: list[Path]
    again: Done


@pytest.fixture(scope="module", params=range(sample(1, 8)))
def reconverted(
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
    converted: tuple[Converter, list[str], float],
) -> Reconverted:
    before_it, words, seconds = converted
    converter = Converter(tmp_path_factory.mktemp("reconverted") / "copy", before_it.graph)
    shutil.copytree(before_it.folder, converter.folder)
    assert converter.start(converter.quickly(words)).end(300).status == 0
    draw = random.Random(f"kills of a conversion, {request.param}")
    before = converter.contents()
    was_whole = True
    for turn in range(sample(3, 25)):
        if turn % 2:
            process = converter.start([*words, "--force", *sample(["--verify", "off"], [])])
            time.sleep(draw.uniform(0, seconds))
        else:  # when it writes
            process = converter.start(converter.quickly(words))
            count = len(converter.hidden)
            wait_until(lambda count=count, process=process: len(converter.hidden) > count or process.has_ended, 120)
            time.sleep(draw.uniform(0, 0.3))
        done = process.kill()
        now = converter.contents()
        was_whole = was_whole and before.keys() <= now.keys() and (
            done.status == 0 or all(now[path] == before[path] for path in before)
        )  # fmt: skip
    again = converter.start(converter.quickly(words)).end(300)
    return Reconverted(was_whole, converter.hidden, again)


def test_a_conversion_that_is_killed_leaves_what_was_there_and_the_next_one_succeeds(reconverted: Reconverted) -> None:
    """A model is converted, then again with a kill, and once more."""
    assert reconverted.was_whole
    assert reconverted.again.status == 0, reconverted.again.err


def test_a_conversion_leaves_nothing_hidden_of_those_that_were_killed(reconverted: Reconverted) -> None:
    assert reconverted.hidden == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_at_any_moment_of_a_conversion_ends_it_cleanly(
    converted: tuple[Converter, list[str], float], number: signal.Signals, status: int
) -> None:
    converter, words, seconds = converted
    draw = random.Random(f"signals at a conversion, {number}")
    before = converter.contents()
    for _ in range(sample(1, 25)):
        process = converter.start([*words, "--force"])
        wait_until(lambda process=process: "Exporting" in process.said[0] or process.has_ended, 120)
        time.sleep(draw.uniform(0, seconds * 0.7))
        process.send(number)
        done = process.end(120)
        assert done.status in (status, 0), done
        assert converter.hidden == []
        assert converter.contents().keys() == before.keys()


FULL_DISK = 'mount -t tmpfs -o size="$1" tmpfs "$2" && cp -r "$3/." "$2" && shift 3 && "$@"; status=$?; '
FULL_DISK += 'find "$0" -name ".*" | grep staged && exit 99; cd "$0"; find . -type f -exec sha256sum {} +; exit $status'


@pytest.mark.parametrize("spare", sample([280_000], [180_000, 280_000, 400_000]))
def test_a_disk_that_is_full_half_way_keeps_what_was_there_and_nothing_else(
    converted: tuple[Converter, list[str], float], tmp_path: Path, spare: int
) -> None:
    """There is room when it begins, and then not for all that it writes."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    converter, words, _ = converted
    out, before = tmp_path / "out", tmp_path / "before"
    out.mkdir()
    assert converter.start([*converter.quickly(words), "-o", str(before)]).end(300).status == 0
    again = converter.quickly(words, before)
    files = [path for path in before.rglob("*") if path.is_file()]
    size = sum(-(-path.stat().st_size // 4096) * 4096 for path in files) + spare
    command = ("unshare", "--mount", "sh", "-c", FULL_DISK, str(out), str(size), str(out), str(before))
    done = converter.start([*again, "-o", str(out)], command).end(300)
    failed_cleanly(done)
    assert "unchanged" in done.err
    digests = {f"./{p.relative_to(before)}": hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
    said = [line.split(maxsplit=1) for line in done.out.splitlines() if "  ./" in line]
    assert {name: digest for digest, name in said} == digests


def test_several_conversions_of_one_model_at_once_all_succeed_and_the_result_is_of_one(
    converted: tuple[Converter, list[str], float], tmp_path: Path
) -> None:
    """From two checkpoints, into one folder; all but one begin when that one writes."""
    converter = Converter(tmp_path, converted[0].graph)
    words = {seed: converter.make(f"dl{seed}", seed) for seed in (7, 8)}
    for seed in words:
        assert converter.start([*converter.quickly(words[seed]), "-o", f"alone{seed}"]).end(300).status == 0
    commands = [[*converter.quickly(words[7 + number % 2]), "-o", "together"] for number in range(sample(3, 10))]
    running = [converter.start(commands[0])]
    try:
        wait_until(lambda: len(converter.hidden) > 1 or running[0].has_ended)
        running += [converter.start(command) for command in commands[1:]]
        for process in running:
            done = process.end(600)
            assert (done.status, done.err) == (0, "")
    finally:
        for process in running:
            process.kill()
    assert converter.hidden == []
    assert converter.contents("together") in [converter.contents(f"alone{seed}") for seed in words]
