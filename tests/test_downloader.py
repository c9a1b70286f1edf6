"""omz_downloader as people run it, against the stand-in Hub: what arrives, what is asked for, and what is said."""

import contextlib
import hashlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import yaml
from conftest import BIN, Command
from hub import LARGE, Handler, Hub

Answer = Callable[[Handler], None]
Result = subprocess.CompletedProcess[str]

WEIGHTS = "model.safetensors"
BELOW = Path("public") / "tiny" / "gpt2"
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="limits and capabilities of Linux")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """The tiny repository on the Hub, pinned as the model "tiny" in `tmp_path / "models"`."""
    folder = checkpoints.write_repository(tmp_path / "repository", checkpoints.TINY, seed=7)
    checkpoints.pin(folder, tmp_path / "models", "tiny")
    with Hub(folder) as hub:
        yield hub


class Downloads:
    """`omz_downloader --name tiny` with the Hub's address, in an empty folder; nothing it prints is a traceback."""

    def __init__(self, run: Command, folder: Path, hub: Hub) -> None:
        self._run, self.folder, self.hub = run, folder, hub
        self.models = ("--models_dir", folder / "models")
        self.settings = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder / "hf-home")}

    def __call__(self, *words: str | Path, name: str = "tiny", **environment: str) -> Result:
        return self.bare(*self.models, "--name", name, *words, **environment)

    def bare(self, *words: str | Path, **environment: str) -> Result:
        done = self._run("omz_downloader", *words, **self.settings | environment)
        return checked(done)

    def start(self, *words: str | Path, before: str = "", **environment: str) -> subprocess.Popen[str]:
        """The command in the background; `before` is Python that runs first in its process."""
        command = [str(BIN / "omz_downloader"), *map(str, self.models), "--name", "tiny", *map(str, words)]
        if before:
            command = [sys.executable, "-c", f"{before}\nimport os, sys\nos.execv(sys.argv[1], sys.argv[1:])", *command]
        kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")}
        return subprocess.Popen(
            command,
            env=kept | {"NO_PROXY": "127.0.0.1"} | self.settings | environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            encoding="utf-8",
            errors="surrogateescape",
        )


def checked(done: Result) -> Result:
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    assert "Exception" not in done.stdout + done.stderr, done.stderr
    return done


def end(process: subprocess.Popen[str], timeout: float = 60) -> Result:
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    return checked(subprocess.CompletedProcess(process.args, process.returncode, out, err))


@pytest.fixture
def download(run: Command, tmp_path: Path, hub: Hub) -> Downloads:
    return Downloads(run, tmp_path, hub)


def pinned(folder: Path, hub: Hub) -> bool:
    """Whether a folder holds the repository's files, all of them right, and nothing else."""
    return {p.name: p.read_bytes() for p in folder.iterdir()} == {n: f.path.read_bytes() for n, f in hub.files.items()}


def hidden_below(folder: Path) -> list[Path]:
    return [p for p in folder.rglob(".*") if not p.name.endswith(".damaged")]


def edit(folder: Path, name: str, **changes: object) -> None:
    """Change what the descriptor of "tiny" says about one file."""
    path = folder / "models" / "tiny" / "model.yml"
    model = yaml.safe_load(path.read_text())
    [entry] = [entry for entry in model["files"] if entry["name"] == f"gpt2/{name}"]
    entry |= changes
    path.write_text(yaml.safe_dump(model))


def source_of(folder: Path, name: str) -> dict[str, str]:
    model = yaml.safe_load((folder / "models" / "tiny" / "model.yml").read_text())
    [source] = [entry["source"] for entry in model["files"] if entry["name"] == f"gpt2/{name}"]
    return source


def more_models(folder: Path, *names: str) -> None:
    """Copies of "tiny" under other names."""
    for name in names:
        shutil.copytree(folder / "models" / "tiny", folder / "models" / name)


def faulty(hub: Hub, name: str, *answers: Answer, then: Answer | None = None) -> None:
    """The Hub answers the first requests for a file so, and all later ones by `then`, or as usual."""
    waiting = iter(answers)
    lock = threading.Lock()

    def interfere(handler: Handler) -> bool:
        if not handler.path.endswith(f"/{name}") or handler.path.startswith(("/api/", "/cdn/")):
            return False
        with lock:
            answer = next(waiting, then)
        if answer:
            answer(handler)
        return answer is not None

    hub.interfere = interfere


def tries(hub: Hub, name: str) -> int:
    """How often a file was asked for, redirects not counted."""
    return sum(r.endswith(f"/{name}") and not r.startswith(("GET /api/", "GET /cdn/")) for r in hub.requests)


def refuses(status: int, code: str = "", **headers: str) -> Answer:
    return lambda handler: handler.refuse(status, code, **headers)


def sends(data: bytes, declared: int | None = -1, **headers: str) -> Answer:
    """These bytes; declared as so many, as what they are, or (None) not at all. Then the connection is closed."""

    def answer(handler: Handler) -> None:
        handler.close_connection = True
        handler.send_response(200)
        if declared is not None:
            handler.send_header("Content-Length", str(len(data) if declared == -1 else declared))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        with contextlib.suppress(OSError):
            handler.wfile.write(data)

    return answer


class Stalls:
    """Sends the first half of some bytes and waits until the client has gone; `reached` is set meanwhile."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.reached = threading.Event()

    def __call__(self, handler: Handler) -> None:
        sends(self.data[: len(self.data) // 2], declared=len(self.data))(handler)
        handler.wfile.flush()
        self.reached.set()
        handler.connection.settimeout(60)
        with contextlib.suppress(OSError):
            handler.connection.recv(1)


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@contextmanager
def silent_host() -> Iterator[str]:
    """A host that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


# ---- What arrives


def test_the_files_land_where_open_model_zoo_puts_them(download: Downloads, tmp_path: Path, hub: Hub) -> None:
    done = download("-o", "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert pinned(tmp_path / "out" / BELOW, hub)
    assert "################|| Downloading tiny ||################" in done.stdout
    assert f"========== Downloading {Path('out') / BELOW / WEIGHTS}" in done.stdout


def test_the_current_folder_is_the_place_and_each_file_is_asked_for_once(
    download: Downloads, tmp_path: Path, hub: Hub
) -> None:
    assert download().returncode == 0
    assert pinned(tmp_path / BELOW, hub)
    assert {name: tries(hub, name) for name in hub.files} == dict.fromkeys(hub.files, 1)


def test_a_second_run_fetches_nothing_and_says_so(download: Downloads, hub: Hub) -> None:
    download()
    before = list(hub.requests)
    again = download()
    assert again.returncode == 0
    assert hub.requests == before
    assert again.stdout.count("... already there") == len(hub.files)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def flip(path: Path) -> None:
    path.write_bytes(flipped(path.read_bytes()))


def link(path: Path) -> None:
    """Right bytes behind a link: the libraries that convert refuse those."""
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def test_only_files_that_are_not_right_are_fetched_again(download: Downloads, tmp_path: Path, hub: Hub) -> None:
    download()
    damages = {"vocab.json": cut, WEIGHTS: flip, "merges.txt": Path.unlink, "config.json": link}
    for name, damage in damages.items():
        damage(tmp_path / BELOW / name)
    hub.requests.clear()
    again = download()
    assert again.returncode == 0
    assert {name for name in hub.files if tries(hub, name)} == set(damages)
    assert again.stdout.count("... already there") == len(hub.files) - len(damages)
    assert not (tmp_path / BELOW / "config.json").is_symlink()
    (tmp_path / BELOW / "elsewhere").unlink()
    assert pinned(tmp_path / BELOW, hub)


def test_a_folder_in_the_place_of_a_file_is_named(download: Downloads, tmp_path: Path) -> None:
    (tmp_path / BELOW / WEIGHTS).mkdir(parents=True)
    done = download()
    assert done.returncode == 1
    assert f"{BELOW / WEIGHTS}" in done.stderr
    assert hidden_below(tmp_path / "public") == []


def test_a_file_of_another_precision_than_asked_for_is_left_out(download: Downloads, tmp_path: Path, hub: Hub) -> None:
    path = tmp_path / "models" / "tiny" / "model.yml"
    model = yaml.safe_load(path.read_text())
    for extra, precision in (("merges.txt", "FP16"), ("vocab.json", "FP32")):
        [entry] = [dict(entry) for entry in model["files"] if entry["name"].endswith(extra)]
        model["files"].append(entry | {"name": f"{precision}/{extra}"})
    path.write_text(json.dumps(model))
    assert download("--precisions", "FP16,FP16").returncode == 0
    assert (tmp_path / "public/tiny/FP16/merges.txt").exists()
    assert not (tmp_path / "public/tiny/FP32").exists()
    assert pinned(tmp_path / BELOW, hub)


def test_the_model_that_travels_with_the_package_needs_no_network(run: Command, tmp_path: Path) -> None:
    done = checked(run("omz_downloader", "--name", "gpt-2-mini", HF_ENDPOINT=closed_port(), HF_HUB_OFFLINE="1"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "public" / "gpt-2-mini" / "gpt2-mini" / "model.safetensors").stat().st_size > 1_000_000


def test_several_models_at_a_time(download: Downloads, tmp_path: Path, hub: Hub) -> None:
    names = ["two", "three", "four", "five"]
    more_models(tmp_path, *names)
    done = download("-j", "4", name="*")
    # gpt-2, which is shipped, is the one whose files this Hub does not have right.
    assert done.returncode == 1
    assert done.stdout.splitlines()[-2:] == ["FAILED:", "gpt-2"]
    for name in ["tiny", *names]:
        assert pinned(tmp_path / "public" / name / "gpt2", hub)


# ---- The cache


def blobs(cache: Path) -> list[Path]:
    return sorted(p for p in cache.rglob("*") if not p.is_dir() and not p.name.startswith("."))


def test_with_a_cache_a_second_folder_needs_no_request(download: Downloads, tmp_path: Path, hub: Hub) -> None:
    assert download("--cache_dir", "cache", "-o", "one").returncode == 0
    before = list(hub.requests)
    second = download("--cache_dir", "cache", "-o", "two")
    assert second.returncode == 0
    assert hub.requests == before
    assert second.stdout.count("... from the cache") == len(hub.files)
    assert pinned(tmp_path / "two" / BELOW, hub)


def test_every_file_in_the_cache_hashes_to_its_name(download: Downloads, tmp_path: Path, hub: Hub) -> None:
    download("--cache_dir", "cache")
    found = blobs(tmp_path / "cache")
    assert {hashlib.sha256(p.read_bytes()).hexdigest() for p in found} == {f.sha256 for f in hub.files.values()}
    assert all(hashlib.sha256(p.read_bytes()).hexdigest() == p.name for p in found)
    assert hidden_below(tmp_path / "cache") == []


def test_damaged_files_in_the_cache_are_set_aside_and_fetched_again(
    download: Downloads, tmp_path: Path, hub: Hub
) -> None:
    download("--cache_dir", "cache", "-o", "one")
    for name, damage in {WEIGHTS: flip, "vocab.json": cut}.items():
        [blob] = [p for p in blobs(tmp_path / "cache") if p.name == hub.files[name].sha256]
        blob.chmod(0o644)
        damage(blob)
    hub.requests.clear()
    assert download("--cache_dir", "cache", "-o", "two").returncode == 0
    assert {name for name in hub.files if tries(hub, name)} == {WEIGHTS, "vocab.json"}
    assert pinned(tmp_path / "two" / BELOW, hub)
    assert all(hashlib.sha256(p.read_bytes()).hexdigest() == p.name for p in blobs(tmp_path / "cache"))
    assert len(list((tmp_path / "cache").rglob(".*.damaged"))) == 2


def test_a_damaged_file_in_the_cache_is_an_error_offline_and_never_given_out(
    download: Downloads, tmp_path: Path, hub: Hub
) -> None:
    download("--cache_dir", "cache", "-o", "one")
    [blob] = [p for p in blobs(tmp_path / "cache") if p.name == hub.files["config.json"].sha256]
    blob.chmod(0o644)
    flip(blob)
    done = download("--cache_dir", "cache", "-o", "two", HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert "HF_HUB_OFFLINE" in done.stderr
    assert not (tmp_path / "two" / BELOW / "config.json").exists()


def test_a_cache_is_enough_offline(download: Downloads, tmp_path: Path, hub: Hub) -> None:
    download("--cache_dir", "cache", "-o", "one")
    hub.requests.clear()
    assert download("--cache_dir", "cache", "-o", "two", HF_HUB_OFFLINE="1").returncode == 0
    assert hub.requests == []
    assert pinned(tmp_path / "two" / BELOW, hub)


def test_a_cache_that_cannot_be_made_is_named_and_costs_no_download(
    download: Downloads, tmp_path: Path, hub: Hub
) -> None:
    (tmp_path / "file").write_text("mine")
    done = download("--cache_dir", "file")
    assert done.returncode == 0
    assert f"... Creating the folder {Path('file') / '1' / 'partial'} failed" in done.stdout
    assert "doing without the cache" in done.stdout
    assert pinned(tmp_path / BELOW, hub)
    assert (tmp_path / "file").read_text() == "mine"
    assert hidden_below(tmp_path / "public") == []


# ---- Several processes


@pytest.mark.parametrize("damaged", [False, True], ids=["empty cache", "damaged cache"])
def test_ten_processes_fetch_the_same_model_into_one_cache_and_one_folder(
    download: Downloads, tmp_path: Path, hub: Hub, damaged: bool
) -> None:
    if damaged:
        download("--cache_dir", "cache", "-o", "before")
        for blob in blobs(tmp_path / "cache"):
            blob.chmod(0o644)
            flip(blob)
    processes = [download.start("--cache_dir", "cache", "-o", "out") for _ in range(10)]
    results = [end(process) for process in processes]
    assert [(r.returncode, r.stderr) for r in results] == [(0, "")] * 10
    assert pinned(tmp_path / "out" / BELOW, hub)
    assert {p.name for p in blobs(tmp_path / "cache")} == {f.sha256 for f in hub.files.values()}
    assert all(hashlib.sha256(p.read_bytes()).hexdigest() == p.name for p in blobs(tmp_path / "cache"))
    assert hidden_below(tmp_path / "out") + hidden_below(tmp_path / "cache") == []


# ---- The token


def test_the_token_goes_to_the_hub_and_not_to_the_host_it_names(download: Downloads, tmp_path: Path, hub: Hub) -> None:
    large = hub.folder / "merges.txt"
    large.write_bytes(random.Random(3).randbytes(LARGE + 1))
    checkpoints.pin(hub.folder, tmp_path / "models", "tiny")
    hub.token = "hf_secretOfTheTest"
    done = download(HF_TOKEN=hub.token)
    assert done.returncode == 0, done.stderr
    assert pinned(tmp_path / BELOW, hub)
    sent = dict(zip(hub.requests, hub.authorizations, strict=True))
    assert sent.pop("GET /cdn/merges.txt") is None
    assert set(sent.values()) == {f"Bearer {hub.token}"}
    assert hub.token not in done.stdout + done.stderr


def test_the_token_file_of_the_hubs_own_tools_is_read(download: Downloads, tmp_path: Path, hub: Hub) -> None:
    hub.token = "hf_secretOfTheTest"
    (tmp_path / "hf-home").mkdir()
    (tmp_path / "hf-home" / "token").write_text(f"{hub.token}\n")
    assert download().returncode == 0


@pytest.mark.parametrize("token", [None, "hf_aWrongOne"])
def test_without_the_right_token_one_request_is_made_and_the_error_names_hf_token(
    download: Downloads, hub: Hub, token: str | None
) -> None:
    hub.token = "hf_secretOfTheTest"
    done = download(**{"HF_TOKEN": token} if token else {})
    assert done.returncode == 1
    assert len(hub.requests) == 1
    assert "401" in done.stderr
    assert "HF_TOKEN" in done.stderr
    assert "hf_" not in done.stdout + done.stderr


def test_a_token_that_no_header_can_carry_is_an_error_that_does_not_show_it(download: Downloads) -> None:
    done = download(HF_TOKEN="hf_secret€")
    assert done.returncode == 1
    assert "HF_TOKEN" in done.stderr
    assert "hf_secret" not in done.stdout + done.stderr


def test_the_token_is_not_sent_to_sources_outside_the_hub(download: Downloads, tmp_path: Path, hub: Hub) -> None:
    edit(tmp_path, "config.json", source={"$type": "http", "url": f"{hub.cdn}/cdn/config.json"})
    assert download(HF_TOKEN="hf_secretOfTheTest").returncode == 0
    assert hub.authorizations[hub.requests.index("GET /cdn/config.json")] is None


# ---- No network


def test_offline_nothing_is_asked_for(download: Downloads, tmp_path: Path, hub: Hub) -> None:
    done = download("-o", "out", HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert "HF_HUB_OFFLINE is set" in done.stderr
    assert "--cache_dir" in done.stderr
    assert hub.requests == []


def says_what_to_do(done: Result, url: str, target: Path) -> None:
    assert done.returncode == 1
    assert url in done.stderr
    assert str(target) in done.stderr
    assert "HF_ENDPOINT" in done.stderr
    assert "HTTPS_PROXY" in done.stderr
    assert "object at" not in done.stderr


def test_a_hub_that_is_not_there_is_an_error_with_url_target_and_advice(download: Downloads, hub: Hub) -> None:
    endpoint = closed_port()
    began = time.monotonic()
    done = download("-o", "out", HF_ENDPOINT=endpoint)
    assert time.monotonic() - began < 10
    says_what_to_do(
        done, f"{endpoint}/{hub.repo}/resolve/{hub.revision}/config.json", Path("out") / BELOW / "config.json"
    )


def test_a_hub_that_never_answers_costs_ten_seconds_whatever_the_number_of_models(
    download: Downloads, tmp_path: Path, hub: Hub
) -> None:
    more_models(tmp_path, "two", "three")
    with silent_host() as endpoint:
        began = time.monotonic()
        done = download("-o", "out", name="tiny,two,three", HF_ENDPOINT=endpoint)
        assert time.monotonic() - began < 20
    says_what_to_do(
        done, f"{endpoint}/{hub.repo}/resolve/{hub.revision}/config.json", Path("out") / BELOW / "config.json"
    )
    assert done.stdout.splitlines()[-4:] == ["FAILED:", "tiny", "two", "three"]


def test_a_hub_whose_name_does_not_resolve_is_an_error_with_url_target_and_advice(download: Downloads) -> None:
    began = time.monotonic()
    done = download(HF_ENDPOINT="http://no-such-hub.invalid")
    assert time.monotonic() - began < 20
    says_what_to_do(done, "http://no-such-hub.invalid/", BELOW / "config.json")


def test_a_second_host_that_is_not_there_is_named(download: Downloads, hub: Hub) -> None:
    elsewhere = closed_port()
    faulty(hub, "config.json", then=lambda handler: handler.redirect(302, f"{elsewhere}/x", "0" * 64, 1))
    done = download("--num_attempts", "1")
    says_what_to_do(done, f"{elsewhere}/x", BELOW / "config.json")


@pytest.mark.parametrize(
    "endpoint", ["huggingface.co", "ftp://127.0.0.1", "http://127.0.0.1:99999", "http://127.0.0.1:port", "http://[::1"]
)
def test_an_address_of_the_hub_that_is_none_is_an_error_that_shows_it(download: Downloads, endpoint: str) -> None:
    done = download(HF_ENDPOINT=endpoint)
    assert done.returncode == 1
    assert endpoint in done.stderr


@pytest.mark.parametrize("variable", ["closed", "offline"])
def test_a_failure_leaves_no_empty_folder_behind(download: Downloads, tmp_path: Path, variable: str) -> None:
    done = download(
        "-o", "out", **({"HF_ENDPOINT": closed_port()} if variable == "closed" else {"HF_HUB_OFFLINE": "1"})
    )
    assert done.returncode == 1
    assert not (tmp_path / "out").exists()


# ---- Wrong bytes


@pytest.fixture
def previous(tmp_path: Path) -> Path:
    """A file from an earlier day in the place of the weights; it must outlive every failure."""
    path = tmp_path / BELOW / WEIGHTS
    path.parent.mkdir(parents=True)
    path.write_bytes(b"of an earlier day")
    return path


def failed_cleanly(done: Result, tmp_path: Path, previous: Path, hub: Hub) -> None:
    assert done.returncode == 1
    assert "########## Error: In model tiny: In file" in done.stderr
    assert str(BELOW / WEIGHTS) in done.stderr
    assert done.stdout.splitlines()[-2:] == ["FAILED:", "tiny"]
    assert previous.read_bytes() == b"of an earlier day"
    assert hidden_below(tmp_path / "public") == []
    if (tmp_path / "cache").exists():
        assert hub.files[WEIGHTS].sha256 not in {p.name for p in blobs(tmp_path / "cache")}
        assert hidden_below(tmp_path / "cache") == []


def test_a_flipped_bit_is_tried_afresh_once_and_then_an_error(
    download: Downloads, tmp_path: Path, hub: Hub, previous: Path
) -> None:
    faulty(hub, WEIGHTS, then=sends(flipped(hub.files[WEIGHTS].path.read_bytes())))
    done = download("--cache_dir", "cache")
    failed_cleanly(done, tmp_path, previous, hub)
    assert tries(hub, WEIGHTS) == 2
    assert hub.files[WEIGHTS].sha256 in done.stderr
    assert "Nothing was stored" in done.stderr


def test_a_flipped_bit_that_is_gone_at_the_second_try_does_no_harm(
    download: Downloads, tmp_path: Path, hub: Hub
) -> None:
    faulty(hub, WEIGHTS, sends(flipped(hub.files[WEIGHTS].path.read_bytes())))
    assert download("--num_attempts", "1").returncode == 0
    assert tries(hub, WEIGHTS) == 2
    assert pinned(tmp_path / BELOW, hub)


# What makes each of them, and what is said about it.
WRONG_BODIES: dict[str, tuple[Callable[[bytes], Answer], str]] = {
    "too short": (lambda data: sends(data[:-1]), "bytes, the descriptor pins"),
    "too long": (lambda data: sends(data + b"x"), "bytes, the descriptor pins"),
    "too short, length not declared": (lambda data: sends(data[:-1], declared=None), "ended after"),
    "too long, length not declared": (lambda data: sends(data + b"x", declared=None), "gives more than"),
    "right, declared as shorter": (lambda data: sends(data, declared=len(data) - 1), "bytes, the descriptor pins"),
    "right, declared as longer": (lambda data: sends(data, declared=len(data) + 1), "bytes, the descriptor pins"),
    "cut off": (lambda data: sends(data[: len(data) // 2], declared=len(data)), "broke off"),
}


@pytest.mark.parametrize("kind", WRONG_BODIES)
def test_a_body_that_is_not_the_file_is_an_error_that_leaves_nothing(
    download: Downloads, tmp_path: Path, hub: Hub, previous: Path, kind: str
) -> None:
    makes, says = WRONG_BODIES[kind]
    faulty(hub, WEIGHTS, then=makes(hub.files[WEIGHTS].path.read_bytes()))
    done = download("--num_attempts", "2", "--cache_dir", "cache")
    failed_cleanly(done, tmp_path, previous, hub)
    # What is cut is progress the first time; to begin anew is none. An answer of another length is asked for again on a
    # connection of its own first.
    assert tries(hub, WEIGHTS) == (2 if kind == "too long, length not declared" else 3)
    assert says in done.stderr


def test_bodies_that_are_the_file_at_the_second_try_do_no_harm(download: Downloads, tmp_path: Path, hub: Hub) -> None:
    kinds = {name: makes for name, (makes, _) in zip(hub.files, WRONG_BODIES.values(), strict=True)}
    wrong: set[str] = set()

    def interfere(handler: Handler) -> bool:
        name = handler.path.rpartition("/")[2]
        if name in wrong:
            return False
        wrong.add(name)
        kinds[name](hub.files[name].path.read_bytes())(handler)
        return True

    hub.interfere = interfere
    assert download().returncode == 0
    assert {name: tries(hub, name) for name in hub.files} == dict.fromkeys(hub.files, 2)
    assert pinned(tmp_path / BELOW, hub)


def test_a_body_without_a_declared_length_is_fine_when_it_is_right(
    download: Downloads, tmp_path: Path, hub: Hub
) -> None:
    faulty(hub, WEIGHTS, then=sends(hub.files[WEIGHTS].path.read_bytes(), declared=None))
    assert download().returncode == 0
    assert pinned(tmp_path / BELOW, hub)


def test_a_body_without_end_is_left_after_the_pinned_number_of_bytes(
    download: Downloads, tmp_path: Path, hub: Hub, previous: Path
) -> None:
    sent: list[int] = []

    def endless(handler: Handler) -> None:
        handler.close_connection = True
        handler.send_response(200)
        handler.end_headers()
        data = hub.files[WEIGHTS].path.read_bytes()
        sent.append(0)
        with contextlib.suppress(OSError):
            while sent[-1] < 200_000_000:
                handler.wfile.write(data)
                sent[-1] += len(data)

    faulty(hub, WEIGHTS, then=endless)
    done = download()
    failed_cleanly(done, tmp_path, previous, hub)
    assert f"more than {hub.files[WEIGHTS].size:,} bytes" in done.stderr
    assert len(sent) == 2
    assert max(sent) < 100_000_000  # what the sockets' buffers hold, and no more


@pytest.mark.parametrize("encoding", ["gzip", "br"])
def test_an_encoding_that_nobody_asked_for_is_an_error(
    download: Downloads, tmp_path: Path, hub: Hub, previous: Path, encoding: str
) -> None:
    faulty(hub, WEIGHTS, then=sends(hub.files[WEIGHTS].path.read_bytes(), Content_Encoding=encoding))
    done = download()
    failed_cleanly(done, tmp_path, previous, hub)
    assert f"Content-Encoding {encoding}" in done.stderr


# ---- Faults of the network


def test_a_status_that_may_pass_is_tried_again(download: Downloads, tmp_path: Path, hub: Hub) -> None:
    statuses = dict(zip(hub.files, [408, 429, 500, 502, 503, 504], strict=False))
    refused: set[str] = set()

    def interfere(handler: Handler) -> bool:
        name = handler.path.rpartition("/")[2]
        if name not in statuses or name in refused:
            return False
        refused.add(name)
        handler.refuse(statuses[name])
        return True

    hub.interfere = interfere
    done = download()
    assert done.returncode == 0
    assert refused == set(statuses)
    for name, status in statuses.items():
        assert tries(hub, name) == 2
        assert re.search(rf"/{name} answered {status}; trying again in ", done.stdout)
    assert pinned(tmp_path / BELOW, hub)


def test_a_wait_that_the_server_names_is_kept(download: Downloads, hub: Hub) -> None:
    asked: list[float] = []

    def busy(handler: Handler) -> None:
        asked.append(time.monotonic())
        if len(asked) == 1:
            handler.refuse(503, Retry_After="2")
        else:
            sends(hub.files[WEIGHTS].path.read_bytes())(handler)

    faulty(hub, WEIGHTS, then=busy)
    assert download().returncode == 0
    assert len(asked) == 2
    assert 1.8 < asked[1] - asked[0] < 20


@pytest.mark.parametrize("attempts", [1, 3])
def test_a_status_that_does_not_pass_ends_after_the_attempts_asked_for(
    download: Downloads, tmp_path: Path, hub: Hub, previous: Path, attempts: int
) -> None:
    faulty(hub, WEIGHTS, then=refuses(503))
    done = download("--num_attempts", str(attempts))
    failed_cleanly(done, tmp_path, previous, hub)
    assert tries(hub, WEIGHTS) == attempts
    assert f"Tried {attempts} times." in done.stderr


@pytest.mark.parametrize(
    ("status", "code", "advice"),
    [
        (400, "", "Check the source in the descriptor"),
        (401, "GatedRepo", "Accept the model's terms"),
        (403, "GatedRepo", "Accept the model's terms"),
        (404, "EntryNotFound", "Check the source in the descriptor"),
        (404, "RepoNotFound", "There is no such repository"),
        (404, "RevisionNotFound", "no such revision"),
        (410, "", "Check the source in the descriptor"),
        (204, "", "Check the source in the descriptor"),
    ],
)
def test_a_refusal_is_one_request_and_advice_that_fits(
    download: Downloads, tmp_path: Path, hub: Hub, previous: Path, status: int, code: str, advice: str
) -> None:
    faulty(hub, WEIGHTS, then=refuses(status, code))
    done = download()
    failed_cleanly(done, tmp_path, previous, hub)
    assert tries(hub, WEIGHTS) == 1
    assert f"answered {status} {code}".strip() in done.stderr
    assert advice in done.stderr


def test_what_a_server_says_is_not_shown_when_it_is_no_plain_word(download: Downloads, hub: Hub) -> None:
    faulty(hub, WEIGHTS, then=refuses(400, "\x1b[31mred"))
    assert "\x1b" not in download().stderr


def test_a_connection_cut_in_the_middle_is_made_again(download: Downloads, tmp_path: Path, hub: Hub) -> None:
    data = hub.files[WEIGHTS].path.read_bytes()
    faulty(hub, WEIGHTS, *[sends(data[: len(data) // 2], declared=len(data))] * 2)
    done = download()
    assert done.returncode == 0
    # The first time there was progress, and it goes on at once; to begin anew the second time is none.
    assert done.stdout.count("broke off") == 1
    assert tries(hub, WEIGHTS) == 3
    assert pinned(tmp_path / BELOW, hub)


def test_a_connection_closed_without_an_answer_is_made_again(download: Downloads, tmp_path: Path, hub: Hub) -> None:
    def hang_up(handler: Handler) -> None:
        handler.close_connection = True

    faulty(hub, WEIGHTS, hang_up, hang_up)
    assert download().returncode == 0
    assert pinned(tmp_path / BELOW, hub)


def test_a_circle_of_redirects_is_an_error(download: Downloads, tmp_path: Path, hub: Hub, previous: Path) -> None:
    def circle(handler: Handler) -> None:
        if tries(hub, WEIGHTS) < 50:
            handler.redirect(302, handler.path, "", None)
        else:
            handler.refuse(404)

    faulty(hub, WEIGHTS, then=circle)
    done = download()
    failed_cleanly(done, tmp_path, previous, hub)
    assert "redirects in a circle" in done.stderr
    assert tries(hub, WEIGHTS) == 1


def test_files_before_the_one_that_failed_stay_and_need_not_travel_again(download: Downloads, hub: Hub) -> None:
    faulty(hub, WEIGHTS, refuses(404))
    assert download().returncode == 1
    hub.requests.clear()
    assert download().returncode == 0
    assert {name for name in hub.files if tries(hub, name)} == {WEIGHTS}


# ---- Sources


def test_the_next_source_is_taken_when_one_fails_and_the_output_says_so(
    download: Downloads, tmp_path: Path, hub: Hub
) -> None:
    broken = closed_port()
    drive = {"$type": "google_drive", "id": "abc"}
    good = source_of(tmp_path, "vocab.json")
    edit(tmp_path, "vocab.json", source=[f"{broken}/vocab.json", drive, f"{hub.cdn}/nothing", good])
    done = download()
    assert done.returncode == 0, done.stderr
    notes = [line for line in done.stdout.splitlines() if "trying the next source" in line]
    assert len(notes) == 3
    assert f"{broken}/vocab.json" in notes[0]
    assert "Google Drive" in notes[1]
    assert f"{hub.cdn}/nothing answered 404" in notes[2]
    assert pinned(tmp_path / BELOW, hub)


def test_a_source_with_other_bytes_gives_way_to_the_next(download: Downloads, tmp_path: Path, hub: Hub) -> None:
    good = source_of(tmp_path, "vocab.json")
    edit(tmp_path, "vocab.json", source=[{"$type": "http", "url": f"{hub.cdn}/cdn/merges.txt"}, good])
    assert download().returncode == 0
    assert pinned(tmp_path / BELOW, hub)


def test_when_all_sources_fail_each_is_named(download: Downloads, tmp_path: Path, hub: Hub) -> None:
    edit(tmp_path, "vocab.json", source=[f"{hub.cdn}/first", f"{hub.cdn}/second", f"{hub.cdn}/third"])
    done = download()
    assert done.returncode == 1
    for source in ("first", "second", "third"):
        assert f"{hub.cdn}/{source} answered 404" in done.stderr


def test_http_and_local_sources(download: Downloads, tmp_path: Path, hub: Hub) -> None:
    shutil.copy(hub.files["merges.txt"].path, tmp_path / "models" / "tiny" / "beside.txt")
    edit(tmp_path, "merges.txt", source={"$type": "local", "path": "beside.txt"})
    edit(tmp_path, "vocab.json", source={"$type": "local", "path": str(hub.files["vocab.json"].path)})
    edit(tmp_path, "config.json", source=f"{hub.cdn}/cdn/config.json")
    assert download().returncode == 0
    assert tries(hub, "merges.txt") == tries(hub, "vocab.json") == tries(hub, "config.json") == 0
    assert pinned(tmp_path / BELOW, hub)


@pytest.mark.parametrize(
    ("path", "says"),
    [("absent.txt", "absent.txt cannot be read"), (".", "cannot be read"), ("model.yml", "the descriptor pins")],
)
def test_a_local_source_that_is_not_the_file_is_named(
    download: Downloads, tmp_path: Path, path: str, says: str
) -> None:
    edit(tmp_path, "merges.txt", source={"$type": "local", "path": path})
    done = download()
    assert done.returncode == 1
    assert says in done.stderr


@pytest.mark.parametrize("path", ["a\0b", "a\ud800b"], ids=["NUL", "surrogate"])
def test_a_local_source_that_no_system_can_name_is_an_error(download: Downloads, tmp_path: Path, path: str) -> None:
    edit(tmp_path, "merges.txt", source={"$type": "local", "path": "PATH"})
    descriptor = tmp_path / "models" / "tiny" / "model.yml"
    descriptor.write_text(descriptor.read_text().replace("path: PATH", f"path: {json.dumps(path)}"))
    assert download().returncode == 1


def test_an_address_of_a_source_that_is_none_is_an_error_that_shows_it(download: Downloads, tmp_path: Path) -> None:
    edit(tmp_path, "merges.txt", source="http://127.0.0.1:99999/x")
    done = download()
    assert done.returncode == 1
    assert "http://127.0.0.1:99999/x" in done.stderr


def test_google_drive_is_known_and_refused_with_a_way_out(download: Downloads, tmp_path: Path) -> None:
    edit(tmp_path, "config.json", source={"$type": "google_drive", "id": "abc"})
    done = download()
    assert done.returncode == 1
    assert "Google Drive are not supported" in done.stderr
    assert "Name another source" in done.stderr


# ---- Choosing models


def test_a_broken_descriptor_is_named_with_its_line_and_does_not_stop_the_others(
    download: Downloads, tmp_path: Path, hub: Hub
) -> None:
    more_models(tmp_path, "broken")
    path = tmp_path / "models" / "broken" / "model.yml"
    path.write_text(path.read_text().replace("task_type:", "task_typo:"))
    done = download(name="broken,tiny")
    assert done.returncode == 1
    assert "In model broken" in done.stderr
    assert re.search(r"broken/model\.yml:\d+:\d+: ", done.stderr)
    assert done.stdout.splitlines()[-2:] == ["FAILED:", "broken"]
    assert pinned(tmp_path / BELOW, hub)


def test_an_unknown_model_is_an_error_that_lists_the_known_ones(download: Downloads, tmp_path: Path) -> None:
    done = download(name="tiny,gpt-5")
    assert done.returncode == 1
    assert 'No matching models: "gpt-5"' in done.stderr
    assert "tiny" in done.stderr
    assert not (tmp_path / "public").exists()


@pytest.mark.parametrize("precisions", ["FP16,INT4", ""])
def test_an_unknown_precision_is_an_error_that_lists_the_known_ones(
    download: Downloads, hub: Hub, precisions: str
) -> None:
    done = download("--precisions", precisions)
    assert done.returncode == 1
    assert "Unknown precisions specified" in done.stderr
    assert "FP16, " in done.stderr
    assert hub.requests == []


@pytest.mark.parametrize("names", [",", " , "])
def test_a_choice_of_no_model_is_an_error(download: Downloads, names: str) -> None:
    done = download(name=names)
    assert done.returncode in (1, 2)
    assert done.stderr


def test_a_list_of_models_with_comments(download: Downloads, tmp_path: Path, hub: Hub) -> None:
    (tmp_path / "models.lst").write_text(
        "# all that is needed\n\n  ti*  # the small one\n'tiny' and words kept for later\n"
    )
    done = download.bare("--list", "models.lst", *download.models)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("################|| Downloading") == 1
    assert pinned(tmp_path / BELOW, hub)


@pytest.mark.parametrize("content", [None, b"# nothing\n", b"\xff\xfe", b"'open\n"])
def test_a_list_that_names_nothing_is_an_error_that_names_it(
    download: Downloads, tmp_path: Path, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "models.lst").write_bytes(content)
    done = download.bare("--list", "models.lst", *download.models)
    assert done.returncode == 1
    assert "models.lst" in done.stderr


def test_print_all_prints_the_names_and_nothing_else(download: Downloads, hub: Hub) -> None:
    done = download.bare("--print_all", *download.models)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["gpt-2", "gpt-2-mini", "tiny"], "")
    assert hub.requests == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "--name --list --all --print_all"),
        (["--name", ""], "argument --name: '' names no model"),
        (["--name", "tiny", "--all"], "not allowed with"),
        (["--name", "tiny", "--num_attempts", "0"], "not a positive number"),
        (["--name", "tiny", "--num_attempts", "-1"], "not a positive number"),
        (["--name", "tiny", "--num_attempts", "9" * 5000], "num_attempts"),
        (["--name", "tiny", "-j", "0"], "not a number from 1 to 256"),
        (["--name", "tiny", "-j", "many"], "not a number from 1 to 256"),
        (["--name", "tiny", "--progress_format", "xml"], "progress_format"),
        (["--name", "tiny", "--no_such_option"], "no_such_option"),
    ],
)
def test_wrong_usage_is_status_2(download: Downloads, hub: Hub, words: list[str], says: str) -> None:
    done = download.bare(*words)
    assert done.returncode == 2
    assert says in done.stderr
    assert hub.requests == []


def test_options_may_have_dashes_or_underscores(download: Downloads, tmp_path: Path, hub: Hub) -> None:
    folders = ["--models-dir=models", "--output-dir", "out-put_dir", "--cache-dir=a_cache-dir"]
    done = download.bare("--name", "tiny", *folders, "--num-attempts=2", "--progress-format", "text")
    assert done.returncode == 0
    assert pinned(tmp_path / "out-put_dir" / BELOW, hub)
    assert blobs(tmp_path / "a_cache-dir")


def test_a_folder_of_models_that_is_none_is_named(download: Downloads) -> None:
    done = download.bare("--name", "tiny", "--models_dir", "nowhere")
    assert done.returncode == 1
    assert "nowhere is not a folder" in done.stderr


def test_other_models_succeed_beside_one_that_fails(download: Downloads, tmp_path: Path, hub: Hub) -> None:
    more_models(tmp_path, "after")
    shutil.copytree(tmp_path / "models" / "tiny", tmp_path / "models" / "before")
    edit(tmp_path, "vocab.json", source=f"{hub.cdn}/nothing")
    for jobs in ("1", "3"):
        done = download("-j", jobs, "-o", f"out{jobs}", name="before,tiny,after")
        assert done.returncode == 1
        assert done.stdout.splitlines()[-2:] == ["FAILED:", "tiny"]
        assert pinned(tmp_path / f"out{jobs}" / "public" / "before" / "gpt2", hub)
        assert pinned(tmp_path / f"out{jobs}" / "public" / "after" / "gpt2", hub)


# ---- Progress for programs


def events(done: Result) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(isinstance(event, dict) for event in found)
    return found


def without_repeats(kinds: Iterable[str]) -> list[str]:
    return [kind for kind, _ in itertools.groupby(kinds)]


def test_progress_for_programs_is_one_object_a_line_in_open_model_zoos_order(download: Downloads, hub: Hub) -> None:
    done = download("--progress_format", "json")
    assert done.returncode == 0
    assert "Error" not in done.stderr
    found = events(done)
    file_kinds = ["model_file_download_begin", "model_file_download_progress", "model_file_download_end"]
    assert without_repeats(event["$type"] for event in found) == [
        "model_download_begin",
        *file_kinds * len(hub.files),
        "model_download_end",
    ]
    assert all(event["model"] == "tiny" for event in found)
    assert found[0] == {"$type": "model_download_begin", "model": "tiny", "num_files": len(hub.files)}
    assert found[-1] == {"$type": "model_download_end", "model": "tiny", "successful": True}
    begun = [event for event in found if event["$type"] == "model_file_download_begin"]
    assert {event["model_file"]: event["size"] for event in begun} == {
        f"gpt2/{name}": file.size for name, file in hub.files.items()
    }
    for before, event in itertools.pairwise(found):
        if event["$type"] == "model_file_download_end":
            assert event["successful"] is True
            assert before["size"] == hub.files[Path(event["model_file"]).name].size


def test_progress_of_a_long_transfer_grows(download: Downloads, tmp_path: Path, hub: Hub) -> None:
    data = random.Random(3).randbytes(6_000_000)
    (hub.folder / "merges.txt").write_bytes(data)
    checkpoints.pin(hub.folder, tmp_path / "models", "tiny")

    def slow(handler: Handler) -> None:
        sends(b"", declared=len(data))(handler)
        for first in range(0, len(data), 2_000_000):
            handler.wfile.write(data[first : first + 2_000_000])
            time.sleep(0.7)

    faulty(hub, "merges.txt", slow)
    found = events(download("--progress_format", "json"))
    sizes = [
        event["size"]
        for event in found
        if event["$type"] == "model_file_download_progress" and event["model_file"] == "gpt2/merges.txt"
    ]
    assert len(sizes) >= 3
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == len(data)


def test_an_error_is_an_event_for_programs_and_a_text_for_people(download: Downloads, hub: Hub) -> None:
    faulty(hub, WEIGHTS, then=refuses(404, "EntryNotFound"))
    done = download("--progress_format", "json")
    assert done.returncode == 1
    found = events(done)
    [error] = [event for event in found if event["$type"] == "error"]
    assert error["code"] == "source"
    assert "answered 404 EntryNotFound" in error["message"]
    assert error["where"] == ["model tiny", f"file {BELOW / WEIGHTS}"]
    assert error["hint"]
    ends = [event for event in found if event["$type"].endswith("_end")]
    assert ends[-2:] == [
        {
            "$type": "model_file_download_end",
            "model": "tiny",
            "model_file": f"gpt2/{WEIGHTS}",
            "successful": False,
        },
        {"$type": "model_download_end", "model": "tiny", "successful": False},
    ]
    assert "########## Error: In model tiny" in done.stderr
    assert done.stderr.splitlines()[-2:] == ["FAILED:", "tiny"]


def test_an_unknown_model_is_an_event_too(download: Downloads) -> None:
    done = download("--progress_format", "json", name="no-such-model")
    assert done.returncode == 1
    [event] = events(done)
    assert (event["$type"], event["code"]) == ("error", "selection")
    assert "no-such-model" in done.stderr


def test_notes_for_people_go_to_standard_error_beside_events(download: Downloads, hub: Hub) -> None:
    faulty(hub, WEIGHTS, refuses(503))
    done = download("--progress_format", "json")
    assert done.returncode == 0
    events(done)
    assert "answered 503" in done.stderr
    assert "trying again in" in done.stderr


@pytest.mark.parametrize(
    ("kind", "code"), [("unreachable", "unreachable"), ("descriptor", "descriptor"), ("bytes", "integrity")]
)
def test_errors_have_stable_codes(download: Downloads, tmp_path: Path, hub: Hub, kind: str, code: str) -> None:
    environment = {}
    if kind == "unreachable":
        environment["HF_ENDPOINT"] = closed_port()
    elif kind == "descriptor":
        (tmp_path / "models" / "tiny" / "model.yml").write_text("nothing: here\n")
    else:
        faulty(hub, "config.json", then=sends(b"x"))
    done = download("--progress_format", "json", **environment)
    assert [event["code"] for event in events(done) if event["$type"] == "error"] == [code]


def test_events_of_several_models_at_a_time_are_whole_lines(download: Downloads, tmp_path: Path, hub: Hub) -> None:
    names = ["tiny", "two", "three", "four"]
    more_models(tmp_path, *names[1:])
    done = download("--progress_format", "json", "-j", "4", name=",".join(names))
    assert done.returncode == 0
    found = events(done)
    assert Counter(e["model"] for e in found if e["$type"] == "model_download_end") == Counter(names)
    for name in names:
        own = without_repeats(event["$type"] for event in found if event["model"] == name)
        assert len(own) == 2 + 3 * len(hub.files)


# ---- The disk


DROP_RIGHTS_OF_ROOT = """
import ctypes
for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
"""
LIMIT_FILES_TO_50_KB = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))"


@linux_only
@pytest.mark.parametrize("fresh", [True, False], ids=["nothing there", "the folder there"])
def test_a_folder_that_may_not_be_written_is_one_clear_error(download: Downloads, tmp_path: Path, fresh: bool) -> None:
    folder = tmp_path / "out"
    deepest = folder if fresh else folder / BELOW
    deepest.mkdir(parents=True)
    deepest.chmod(0o555)
    done = end(download.start("-o", "out", before=DROP_RIGHTS_OF_ROOT))
    deepest.chmod(0o755)
    assert done.returncode == 1
    assert done.stderr.count("########## Error") == 1
    assert "Permission denied" in done.stderr
    assert "--output_dir" in done.stderr
    assert list(deepest.iterdir()) == []


@linux_only
def test_a_folder_that_may_not_be_looked_into_is_one_clear_error(download: Downloads, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(mode=0o000)
    done = end(download.start("-o", "out", before=DROP_RIGHTS_OF_ROOT))
    assert done.returncode == 1
    assert done.stderr.count("########## Error") == 1
    assert "Permission denied" in done.stderr


@linux_only
def test_a_cache_that_may_not_be_written_still_gives_out_what_it_has(
    download: Downloads, tmp_path: Path, hub: Hub
) -> None:
    download("--cache_dir", "cache", "-o", "one")
    folders = [tmp_path / "cache", *(p for p in (tmp_path / "cache").rglob("*") if p.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    done = end(download.start("--cache_dir", "cache", "-o", "two", before=DROP_RIGHTS_OF_ROOT))
    for folder in folders:
        folder.chmod(0o755)
    assert done.returncode == 0
    assert pinned(tmp_path / "two" / BELOW, hub)


def test_an_output_path_below_a_regular_file_is_one_clear_error(download: Downloads, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    done = download("-o", "file/out")
    assert done.returncode == 1
    assert done.stderr.count("########## Error") == 1
    assert str(Path("file") / "out") in done.stderr
    assert "Not a directory" in done.stderr
    assert (tmp_path / "file").read_text() == "mine"


@linux_only
@pytest.mark.parametrize("cached", [(), ("--cache_dir", "cache")], ids=["no cache", "a cache"])
def test_a_full_disk_is_one_clear_error_that_leaves_the_old_file(
    download: Downloads, tmp_path: Path, hub: Hub, previous: Path, cached: tuple[str, ...]
) -> None:
    done = end(download.start(*cached, before=LIMIT_FILES_TO_50_KB))
    failed_cleanly(done, tmp_path, previous, hub)
    assert done.stderr.count("########## Error") == 1
    assert f"Writing {BELOW / WEIGHTS} failed: File too large" in done.stderr
    assert download(*cached).returncode == 0
    assert pinned(tmp_path / BELOW, hub)


@linux_only
def test_a_full_disk_under_a_copy_out_of_the_cache_is_no_damage_of_the_cache(
    download: Downloads, tmp_path: Path, hub: Hub
) -> None:
    download("--cache_dir", "cache", "-o", "one")
    hub.requests.clear()
    done = end(download.start("--cache_dir", "cache", "-o", "two", before=LIMIT_FILES_TO_50_KB))
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert hidden_below(tmp_path / "two") == []
    assert len(blobs(tmp_path / "cache")) == len({f.sha256 for f in hub.files.values()})
    assert hub.requests == []


def test_too_little_room_is_said_before_anything_is_asked_for(download: Downloads, tmp_path: Path, hub: Hub) -> None:
    edit(tmp_path, "config.json", size=1 << 50)
    done = download("-o", "out")
    assert done.returncode == 1
    assert "MB are needed in" in done.stderr
    assert hub.requests == []
    assert not (tmp_path / "out").exists()


# ---- The end of a run before its time


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_signal_in_the_middle_of_a_transfer_ends_it_cleanly(
    download: Downloads, tmp_path: Path, hub: Hub, previous: Path, number: int, status: int, jobs: str
) -> None:
    more_models(tmp_path, "two")
    stalls = Stalls(hub.files[WEIGHTS].path.read_bytes())
    faulty(hub, WEIGHTS, then=stalls)
    process = download.start("--cache_dir", "cache", "--name", "tiny,two", "-j", jobs)
    assert stalls.reached.wait(30)
    time.sleep(0.3)
    assert hidden_below(tmp_path / "cache") != []
    began = time.monotonic()
    process.send_signal(number)
    done = end(process, timeout=20)
    assert time.monotonic() - began < 10
    assert done.returncode == status
    assert hidden_below(tmp_path / "public") + hidden_below(tmp_path / "cache") == []
    assert previous.read_bytes() == b"of an earlier day"


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_signal_in_a_wait_for_another_try_ends_it_at_once(
    download: Downloads, tmp_path: Path, hub: Hub, jobs: str
) -> None:
    more_models(tmp_path, "two")
    waiting = threading.Event()

    def busy(handler: Handler) -> None:
        handler.refuse(503, Retry_After="40")
        waiting.set()

    faulty(hub, WEIGHTS, then=busy)
    process = download.start("--name", "tiny,two", "-j", jobs)
    assert waiting.wait(30)
    time.sleep(0.5)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    done = end(process, timeout=20)
    assert time.monotonic() - began < 10
    assert done.returncode == 130
    assert hidden_below(tmp_path / "public") == []


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
def test_after_a_kill_an_honest_run_succeeds(download: Downloads, tmp_path: Path, hub: Hub, previous: Path) -> None:
    stalls = Stalls(hub.files[WEIGHTS].path.read_bytes())
    faulty(hub, WEIGHTS, stalls)
    process = download.start("--cache_dir", "cache")
    assert stalls.reached.wait(30)
    process.kill()
    process.communicate()
    assert previous.read_bytes() == b"of an earlier day"
    assert download("--cache_dir", "cache").returncode == 0
    assert {n: (tmp_path / BELOW / n).read_bytes() for n in hub.files} == {
        n: f.path.read_bytes() for n, f in hub.files.items()
    }


@pytest.mark.skipif(sys.platform == "win32", reason="pipes are POSIX's")
@pytest.mark.parametrize("moment", ["before the first line", "in the middle of a transfer"])
def test_a_reader_that_goes_away_is_not_called_a_fault_of_the_disk(
    download: Downloads, tmp_path: Path, hub: Hub, moment: str
) -> None:
    gone = threading.Event()

    def waits(handler: Handler) -> None:
        gone.wait(30)
        sends(hub.files[WEIGHTS].path.read_bytes())(handler)

    faulty(hub, WEIGHTS, then=waits)
    process = download.start()
    assert process.stdout is not None
    assert process.stderr is not None
    if moment == "in the middle of a transfer":
        while WEIGHTS not in process.stdout.readline():
            pass
    process.stdout.close()
    gone.set()
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 1
    assert said == ""
    assert hidden_below(tmp_path / "public") == []


@linux_only
@pytest.mark.parametrize(("name", "encoding"), [(b"n\xe9", "utf-8:strict"), ("né".encode(), "ascii:strict")])
def test_a_folder_whose_name_cannot_be_printed_is_written_all_the_same(
    download: Downloads, tmp_path: Path, hub: Hub, name: bytes, encoding: str
) -> None:
    folder = os.fsdecode(name)
    done = end(download.start("-o", folder, PYTHONIOENCODING=encoding))
    assert done.returncode == 0, done.stderr
    assert pinned(tmp_path / folder / BELOW, hub)
