"""omz_cache as people run it: what it says of a cache, what it removes, and what it leaves alone."""

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import checkpoints
import pytest
from conftest import BIN, Command

from omz_tools.cache.store import DAY, Store
from omz_tools.descriptors import zoo
from omz_tools.descriptors.descriptor import Digest, Sha256
from omz_tools.descriptors.zoo import Model

Result = subprocess.CompletedProcess[str]
Cache = Callable[..., Result]

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="capabilities and /proc of Linux")


@pytest.fixture
def cache(run: Command) -> Cache:
    """`omz_cache` on the folder "cache"; nothing it prints is a traceback."""

    def cache(*words: str | Path, **environment: str) -> Result:
        return checked(run("omz_cache", *words, **{"OMZ_CACHE_DIR": "cache"} | environment))

    return cache


def checked(done: Result) -> Result:
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    return done


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


@pytest.fixture
def mini(store: Store) -> Model:
    """The shipped gpt-2-mini, all of its files in the cache."""
    model = zoo.find()["gpt-2-mini"].load()
    for file in model.descriptor.files:
        store.put(file.digest, model.folder / file.name)
    return model


def add(store: Store, data: bytes, age: float = 0) -> Path:
    """An entry that was last used `age` days ago."""
    verified = store.folder.with_name("verified")
    verified.write_bytes(data)
    blob = store.path(digest := Sha256(hashlib.sha256(data).hexdigest()))
    store.put(digest, verified)
    os.utime(blob, (0, time.time() - age * DAY))
    return blob


def damage(store: Store, digest: Digest) -> Path:
    blob = store.path(digest)
    blob.chmod(0o644)
    blob.write_bytes(b"x" * blob.stat().st_size)
    return blob


def blobs(store: Store) -> set[Path]:
    return {store.path(entry.digest) for entry in store.entries()}


# list


def test_a_list_has_size_last_use_digest_and_owner_of_each_file_and_a_total(
    cache: Cache, store: Store, mini: Model
) -> None:
    for file in mini.descriptor.files:
        os.utime(store.path(file.digest), (0, 1_700_000_000))
    done = cache("list")
    assert (done.returncode, done.stderr) == (0, "")
    *lines, total = done.stdout.splitlines()
    day = time.strftime("%Y-%m-%d", time.localtime(1_700_000_000))
    expected = {f"{day}  sha256:{file.digest.value}  gpt-2-mini: {file.name}" for file in mini.descriptor.files}
    assert {re.sub(r"^ *[0-9.]+ k?M?B  ", "", line) for line in lines} == expected
    [weights] = [line for line in lines if "safetensors" in line]
    assert weights.startswith("   4.4 MB  ")
    assert total == "7 files, 4.5 MB, in cache"


def test_a_list_is_in_the_same_order_each_time(cache: Cache, mini: Model) -> None:
    first = cache("list").stdout
    assert first == cache("list").stdout
    digests = re.findall("sha256:[0-9a-f]+", first)
    assert digests == sorted(digests)


def test_a_file_that_no_descriptor_pins_has_no_owner_and_one_that_several_pin_has_several(
    cache: Cache, tmp_path: Path, store: Store
) -> None:
    folder = checkpoints.write_repository(tmp_path / "repository", checkpoints.TINY, seed=7)
    for name in "one", "two":
        checkpoints.pin_locally(folder, tmp_path / "models", name)
    add(store, (folder / "merges.txt").read_bytes())
    stray = add(store, b"stray")
    (tmp_path / "models" / "both").mkdir()
    (tmp_path / "models" / "both" / "composite-model.yml").write_text("a name for several models has no files")
    alone = cache("list").stdout
    assert ": " not in alone
    done = cache("list", "--models_dir", "models")
    assert (done.returncode, done.stderr) == (0, "")
    owned = done.stdout
    assert "one: gpt2/merges.txt, two: gpt2/merges.txt" in owned
    assert f"sha256:{stray.name}\n" in owned


def test_a_descriptor_with_mistakes_is_reported_and_the_rest_is_listed(
    cache: Cache, tmp_path: Path, mini: Model
) -> None:
    (tmp_path / "models" / "wrong").mkdir(parents=True)
    (tmp_path / "models" / "wrong" / "model.yml").write_text("files: 3\n")
    done = cache("list", "--models_dir", "models")
    assert done.returncode == 1
    assert done.stderr.count("########## Error: In model wrong:") == 1
    assert done.stdout.count("gpt-2-mini: ") == 7


def test_a_folder_of_models_that_is_not_there_is_one_error(cache: Cache, mini: Model) -> None:
    done = cache("list", "--models_dir", "nowhere")
    assert done.returncode == 1
    assert "nowhere is not a folder" in done.stderr


@pytest.mark.parametrize("action", ["list", "verify", "gc"])
@pytest.mark.parametrize("is_there", [True, False], ids=["empty", "missing"])
def test_a_cache_without_files_is_no_error_and_is_not_made(
    cache: Cache, store: Store, action: str, is_there: bool
) -> None:
    if is_there:
        store.folder.mkdir()
    done = cache(action)
    assert (done.returncode, done.stderr) == (0, "")
    assert "0 files, 0 B" in done.stdout
    assert store.folder.exists() == is_there


def test_a_list_says_what_is_left_over(cache: Cache, store: Store, mini: Model) -> None:
    damage(store, mini.descriptor.files[0].digest)
    list(store.verify())
    assert "Besides, 1 file, 822 B, left over; 'omz_cache gc' removes it." in cache("list").stdout


@pytest.mark.parametrize("used", [-1e9, 0, 4e9, 1e11])
def test_a_time_that_cannot_be_right_is_no_error(cache: Cache, store: Store, used: float) -> None:
    blob = add(store, b"x")
    try:
        os.utime(blob, (0, used))
    except (OSError, OverflowError):
        pytest.skip("the file system cannot hold it")
    for words in ["list"], ["verify"], ["gc", "--dry_run", "--keep_days", "1"]:
        assert cache(*words).returncode == 0
    [day] = re.findall(r"\b\d{4,}-\d\d-\d\d\b", cache("list").stdout)
    assert "1969-12-31" <= day <= time.strftime("%Y-%m-%d")


# Where the cache is


@pytest.mark.parametrize(
    "words",
    [
        ["list", "--cache_dir", "cache"],
        ["--cache_dir", "cache", "list"],
        ["--cache-dir=cache", "list"],
        ["list", "--cache-dir", "cache"],
        ["--cache_dir", "cache"],
    ],
)
def test_the_option_says_where_the_cache_is_before_and_after_the_action_with_dashes_or_underscores(
    cache: Cache, mini: Model, words: list[str]
) -> None:
    said = cache(*words, OMZ_CACHE_DIR="").stdout
    assert "7 files, 4.5 MB, in cache" in said
    assert said.count("gpt-2-mini: ") == 7  # without an action, too


def test_the_option_goes_before_the_environment(cache: Cache, mini: Model) -> None:
    assert "7 files" in cache("list", "--cache_dir", "cache", OMZ_CACHE_DIR="another").stdout
    assert "0 files" in cache("list", "--cache_dir", "another").stdout


@pytest.mark.parametrize("words", [["list"], ["verify"], ["gc", "--max_size", "0"], [], ["--cache_dir", ""]])
def test_without_a_cache_it_is_wrong_usage_that_says_what_is_missing(
    cache: Cache, mini: Model, words: list[str]
) -> None:
    done = cache(*words, **{} if words[:1] == ["--cache_dir"] else {"OMZ_CACHE_DIR": ""})
    assert done.returncode == 2
    assert "--cache_dir DIR" in done.stderr
    assert "OMZ_CACHE_DIR" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["clean"],
        ["list", "verify"],
        ["list", "--max_size", "1"],
        ["verify", "--keep_days", "0"],
        ["list", "--dry_run"],
        ["gc", "--keep_days", "-1"],
        ["gc", "--keep_days", "soon"],
        ["gc", "--keep_days", "9" * 5000],
        ["gc", "--max_size", ""],
        ["gc", "--max_size", "-1GB"],
        ["gc", "--max_size", "1XB"],
        ["gc", "--max_size", "1iB"],
        ["gc", "--max_size", "nan"],
        ["gc", "--max_size", "1e9"],
        ["gc", "--max_size", "9" * 5000],
    ],
    ids=lambda words: " ".join(words)[:30],
)
def test_wrong_words_are_wrong_usage_and_touch_nothing(
    cache: Cache, store: Store, mini: Model, words: list[str]
) -> None:
    before = blobs(store)
    done = cache(*words)
    assert done.returncode == 2
    assert "usage: omz_cache" in done.stderr
    assert blobs(store) == before


# verify


def test_verifying_a_right_cache_says_so(cache: Cache, mini: Model) -> None:
    done = cache("verify")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "7 files, 4.5 MB, in cache: all as their names say\n"


def test_verifying_names_each_damaged_file_once_and_sets_it_aside(cache: Cache, store: Store, mini: Model) -> None:
    damaged = [damage(store, mini.descriptor.files[number].digest) for number in (0, 3)]
    done = cache("verify")
    assert done.returncode == 1
    for blob in damaged:
        assert f"sha256:{blob.name} is not what its name says and was set aside\n" in done.stdout
        assert not blob.exists()
    assert done.stdout.endswith("7 files, 4.5 MB, in cache: 2 of them damaged or not readable\n")
    again = cache("verify")
    assert again.returncode == 0
    assert again.stdout.startswith("5 files, ")


def test_verifying_says_a_line_now_and_then(tmp_path: Path, mini: Model) -> None:
    code = """
import itertools, types
from omz_tools.commands import cache
clock = itertools.count(0, 2)  # each look at it finds it two seconds later
cache.time = types.SimpleNamespace(monotonic=lambda: next(clock))
cache.main(["verify", "--cache_dir", "cache"])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    *lines, _ = done.stdout.splitlines()
    assert [line[: line.index(",")] for line in lines] == ["... 3 of 7 files", "... 6 of 7 files"]
    assert lines[0].endswith("of 4.5 MB")


@linux_only
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_cleanly(tmp_path: Path, store: Store, number: int, status: int) -> None:
    blob = store.path(Sha256("ab" * 32))
    blob.parent.mkdir(parents=True)
    with blob.open("wb") as file:
        file.truncate(1 << 40)  # a hole that nobody reads to its end
    process = subprocess.Popen(
        [BIN / "omz_cache", "verify", "--cache_dir", store.folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not any(link.resolve() == blob for link in Path(f"/proc/{process.pid}/fd").glob("*")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert "Traceback" not in out + err
    assert blob.exists()


# gc


def test_without_limits_it_says_so_and_removes_only_what_is_left_over(cache: Cache, store: Store, mini: Model) -> None:
    damage(store, mini.descriptor.files[0].digest)
    list(store.verify())
    [aside] = store.folder.rglob(".*.damaged")
    before = blobs(store)
    done = cache("gc")
    assert (done.returncode, done.stderr) == (0, "")
    first, removed, total = done.stdout.splitlines()
    assert first == "Neither --keep_days nor --max_size is given: just what is damaged or left over goes."
    assert removed == f"removed     822 B  {aside.relative_to(store.folder.parent)}  (damaged)"
    assert total == "removed 1 file, 822 B"
    assert blobs(store) == before
    assert not aside.exists()


def test_a_dry_run_says_what_would_be_removed_and_removes_nothing(cache: Cache, store: Store) -> None:
    old, new = add(store, b"x" * 2_000_000, age=40), add(store, b"new", age=1)
    words = ["gc", "--keep-days", "30"]
    planned = cache(*words, "--dry-run")
    assert planned.returncode == 0
    assert planned.stdout.splitlines() == [
        f"would remove    2.0 MB  {old.relative_to(store.folder.parent)}  (not used for 40 days)",
        "would remove 1 file, 2.0 MB",
    ]
    assert blobs(store) == {old, new}
    done = cache(*words)
    assert done.stdout == planned.stdout.replace("would remove", "removed")
    assert blobs(store) == {new}


@pytest.mark.parametrize(
    ("size", "left"),
    [
        ("0", 0), ("5999", 2), ("6000", 3), ("6kB", 3), ("5.9 kB", 2), ("6k", 3), ("5KiB", 2), ("5.9KiB", 3),
        ("8KB", 4), ("0.008MB", 4), ("0.5gib", 5), ("20GB", 5), ("1TB", 5),
    ],
)  # fmt: skip
def test_the_cache_is_brought_to_a_size(cache: Cache, store: Store, size: str, left: int) -> None:
    ages = [add(store, bytes([age]) * 2000, age=age) for age in range(5)]
    done = cache("gc", "--max_size", size)
    assert done.returncode == 0
    assert blobs(store) == set(ages[:left])


def test_both_limits_hold(cache: Cache, store: Store) -> None:
    ages = [add(store, bytes([age]) * 2000, age=age) for age in range(5)]
    assert cache("gc", "--keep_days", "4", "--max_size", "6kB").returncode == 0
    assert blobs(store) == set(ages[:3])


# Caches that cannot be used

DROP_RIGHTS_OF_ROOT = """
import ctypes, os, sys
for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
os.execv(sys.argv[1], sys.argv[1:])
"""


def without_rights(folder: Path, *words: str) -> Result:
    command = [sys.executable, "-c", DROP_RIGHTS_OF_ROOT, BIN / "omz_cache", "--cache_dir", "cache", *words]
    return checked(subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False))


@pytest.mark.parametrize("action", ["list", "verify", "gc"])
def test_a_cache_that_is_a_file_is_one_clear_error(cache: Cache, store: Store, action: str) -> None:
    store.folder.write_text("mine")
    done = cache(action)
    assert done.returncode == 1
    assert done.stderr.count("########## Error") == 1
    assert "Reading the cache cache failed: Not a directory" in done.stderr
    assert "--cache_dir" in done.stderr
    assert store.folder.read_text() == "mine"


@linux_only
@pytest.mark.parametrize("action", ["list", "verify", "gc"])
@pytest.mark.parametrize("below", ["", "1", "1/sha256"])
def test_a_cache_that_may_not_be_read_is_one_clear_error(
    tmp_path: Path, store: Store, mini: Model, action: str, below: str
) -> None:
    folder = store.folder / below
    folder.chmod(0o000)
    done = without_rights(tmp_path, action)
    folder.chmod(0o755)
    assert done.returncode == 1
    assert done.stderr.count("########## Error") == 1
    assert "Permission denied" in done.stderr
    assert "--cache_dir" in done.stderr


@linux_only
def test_a_file_that_may_not_be_read_is_not_verified(tmp_path: Path, store: Store, mini: Model) -> None:
    blob = store.path(mini.descriptor.files[0].digest)
    blob.chmod(0o000)
    done = without_rights(tmp_path, "verify")
    assert done.returncode == 1
    assert f"sha256:{blob.name} cannot be read: Permission denied\n" in done.stdout
    assert blob.exists()


@linux_only
def test_a_cache_that_may_not_be_written_is_verified_and_not_cleaned(tmp_path: Path, store: Store, mini: Model) -> None:
    blob = damage(store, mini.descriptor.files[0].digest)
    folders = [path for path in store.folder.rglob("*") if path.is_dir()]
    for folder in folders:
        folder.chmod(0o555)
    verified = without_rights(tmp_path, "verify")
    cleaned = without_rights(tmp_path, "gc", "--max_size", "0")
    for folder in folders:
        folder.chmod(0o755)
    assert verified.returncode == 1
    assert f"sha256:{blob.name} is not what its name says and cannot be set aside: Permission denied" in verified.stdout
    assert cleaned.returncode == 1
    assert cleaned.stderr.count("########## Error") == 1
    assert cleaned.stderr.count(": Permission denied") == 7
    assert "removed 0 files, 0 B" in cleaned.stdout
    assert len(blobs(store)) == 7


def test_a_reader_that_has_gone_is_no_traceback(tmp_path: Path, mini: Model) -> None:
    process = subprocess.Popen(
        [BIN / "omz_cache", "list", "--cache_dir", tmp_path / "cache"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    process.stdout.close()
    assert process.stderr
    assert "Traceback" not in process.stderr.read()
    assert process.wait(60) == 1
