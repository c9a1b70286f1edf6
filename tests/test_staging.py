"""Files and folders appear whole or not at all, in one step each, and nothing is left behind, not even by the dead."""

import contextlib
import errno
import itertools
import json
import multiprocessing
import os
import shutil
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from omz_tools.errors import DiskError, StoppedError
from omz_tools.system import leases, moves
from omz_tools.system.staging import Staging, sweep

FULL = OSError(errno.ENOSPC, "No space left on device")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked")
NAMES = ("model.onnx", "FP16/model.xml", "FP16/model.bin", "FP32/model.xml", "FP32/model.bin", "model.json")


def contents(folder: Path) -> dict[str, str]:
    """Every file below `folder`, hidden ones too, with its text; links with where they lead; empty folders, a slash."""
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file():
            found[name] = path.read_text()
        elif not any(path.iterdir()):
            found[f"{name}/"] = ""
    return found


def all_of(text: str, names: tuple[str, ...] = NAMES) -> dict[str, str]:
    return dict.fromkeys(names, text)


def stage(staging: Staging, home: Path, text: str) -> None:
    """A model, as a conversion makes it."""
    staging.file(home / "model.onnx").write_text(text)
    for precision in ("FP16", "FP32"):
        hidden = staging.folder(home / precision)
        for suffix in (".xml", ".bin"):
            (hidden / f"model{suffix}").write_text(text)
    staging.record(home / "model.json").write_text(text)


def publish(home: Path, text: str) -> None:
    with Staging(home) as staging:
        stage(staging, home, text)
        staging.publish()


def no_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on NFS, or on Windows."""
    monkeypatch.setattr(moves, "exchange", lambda first, second: False)


def no_moving(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with folders of a lower layer of an overlay, or of a disk mounted there."""

    def refuse(first: Path, second: Path) -> bool:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(moves, "exchange", refuse)


def as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    pass


Way = Callable[[pytest.MonkeyPatch], None]
WAYS = pytest.mark.parametrize("way", [as_it_is, no_exchange, no_moving])


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A model that was published before."""
    publish(tmp_path / "home", "old")
    return tmp_path / "home"


# What changes what there is; where a file can have no second name, it is copied, and nothing fails.
STEPS: list[tuple[Any, str]] = [(os, "replace"), (os, "rename"), (moves, "exchange")]


@contextmanager
def watched(
    monkeypatch: pytest.MonkeyPatch, look: Callable[[], None], fails: Callable[[int, Path], BaseException | None]
) -> Iterator[None]:
    """Look before and after each step that changes what there is; let those fail for which `fails(number, target)`."""
    number = itertools.count(1)

    def around(true: Callable[..., Any]) -> Callable[..., Any]:
        def step(source: Path, target: Path, *args: Any, **kwargs: Any) -> Any:
            look()
            if error := fails(next(number), Path(target)):
                raise error
            result = true(source, target, *args, **kwargs)
            look()
            return result

        return step

    with monkeypatch.context() as patch:
        for owner, name in STEPS:
            patch.setattr(owner, name, around(getattr(owner, name)))
        yield


# What is staged


def test_what_is_staged_is_hidden_until_it_is_published(tmp_path: Path) -> None:
    home = tmp_path / "deep" / "home"
    with Staging(home) as staging:
        stage(staging, home, "new")
        assert all(name.split("/")[2].startswith(".") for name in contents(tmp_path))
        staging.publish()
        assert {n: t for n, t in contents(home).items() if not n.startswith(".")} == all_of("new")
    assert contents(home) == all_of("new")


def test_hidden_names_lie_beside_their_targets_and_end_like_them(tmp_path: Path) -> None:
    with Staging(tmp_path) as staging:
        first, second = staging.file(tmp_path / "model.onnx"), staging.file(tmp_path / "model.onnx")
        folder = staging.folder(tmp_path / "FP16")
        assert first != second
        assert {first.parent, second.parent, folder.parent} == {tmp_path}
        assert [path.suffix for path in (first, second)] == [".onnx"] * 2
        assert folder.is_dir()
    assert contents(tmp_path) == {}


@WAYS
def test_publishing_replaces_what_was_there(home: Path, way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    way(monkeypatch)
    with Staging(home) as staging:
        stage(staging, home, "new")
        assert contents(home).items() >= all_of("old").items()
        staging.publish()
    assert contents(home) == all_of("new")


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(143), StoppedError("stopped")])
def test_what_was_not_published_is_removed_with_the_folders_made_for_it(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("old")

    def interrupted() -> None:
        with Staging(tmp_path / "home") as staging:
            staging.file(tmp_path / "kept" / "file").write_text("new")
            staging.file(tmp_path / "home" / "b" / "c" / "file").write_text("new")
            staging.file(tmp_path / "home" / "b" / "never written")
            (staging.folder(tmp_path / "home" / "d") / "file").write_text("new")
            raise error

    with pytest.raises(type(error)) as caught:
        interrupted()
    assert caught.value is error
    assert contents(tmp_path) == {"kept/file": "old"}


def test_folders_that_were_there_or_hold_other_files_are_kept(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with Staging(tmp_path) as staging:
        staging.file(tmp_path / "there" / "x").write_text("new")
        staging.file(tmp_path / "made" / "x").write_text("new")
        (tmp_path / "made" / "other").write_text("someone else's")
    assert contents(tmp_path) == {"there/": "", "made/other": "someone else's"}


def test_what_is_staged_may_be_published_one_after_the_other(tmp_path: Path) -> None:
    with Staging(tmp_path) as staging:
        for name in ("first", "second"):
            staging.file(tmp_path / "a" / name).write_text(name)
            staging.publish()
        staging.file(tmp_path / "a" / "third").write_text("new")
        staging.folder(tmp_path / "b")
    assert contents(tmp_path) == {"a/first": "first", "a/second": "second"}


def test_nothing_staged_is_nothing_made(tmp_path: Path) -> None:
    with Staging(tmp_path / "home") as staging:
        staging.publish()
    assert contents(tmp_path) == {}


def test_a_folder_that_someone_else_removed_does_not_hide_the_error_of_the_block(tmp_path: Path) -> None:

    def stopped() -> None:
        with Staging(tmp_path / "a") as staging:
            staging.file(tmp_path / "a" / "b" / "file").write_text("new")
            shutil.rmtree(tmp_path / "a")
            raise StoppedError("stopped")

    with pytest.raises(StoppedError):
        stopped()
    assert contents(tmp_path) == {}


# What others have


@WAYS
def test_what_others_have_put_into_a_folder_stays_in_it(home: Path, way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    way(monkeypatch)
    (home / "FP16" / "notes.txt").write_text("mine")
    (home / "FP16" / "sub" / "empty").mkdir(parents=True)
    (home / "FP16" / "sub" / "deep.txt").write_text("mine, too")
    (home / "FP16" / "link").symlink_to("../FP32/model.xml")
    (home / "FP16" / "dangling").symlink_to("nowhere")
    os.utime(home / "FP16" / "notes.txt", (1, 1))
    home.joinpath("FP16").chmod(0o2775)
    publish(home, "new")
    assert contents(home) == all_of("new") | {
        "FP16/notes.txt": "mine",
        "FP16/sub/deep.txt": "mine, too",
        "FP16/sub/empty/": "",
        "FP16/link": "-> ../FP32/model.xml",
        "FP16/dangling": "-> nowhere",
    }
    assert (home / "FP16" / "notes.txt").stat().st_mtime == 1
    assert (home / "FP16" / "notes.txt").stat().st_nlink == 1
    assert stat.S_IMODE((home / "FP16").stat().st_mode) == 0o2775


def test_where_a_file_can_have_no_second_name_it_is_copied(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    (home / "FP16" / "notes.txt").write_text("mine")
    (home / "FP16" / "link").symlink_to("notes.txt")
    os.utime(home / "FP16" / "notes.txt", (1, 1))
    publish(home, "new")
    others = {"FP16/notes.txt": "mine", "FP16/link": "-> notes.txt"}
    assert contents(home) == all_of("new") | others
    assert (home / "FP16" / "notes.txt").stat().st_mtime == 1


@pytest.mark.parametrize("way", [as_it_is, no_exchange])
def test_what_others_put_into_a_folder_at_the_last_moment_stays_in_it(
    home: Path, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    way(monkeypatch)

    def late(number: int, target: Path) -> None:
        # When the folder itself is about to go.
        if (target == home / "FP16" or target.name.endswith(".FP16")) and (home / "FP16").exists():
            (home / "FP16" / "late").write_text("mine")

    with watched(monkeypatch, lambda: None, late):
        publish(home, "new")
    assert contents(home) == all_of("new") | {"FP16/late": "mine"}


@WAYS
def test_a_link_to_a_folder_stays_one(home: Path, tmp_path: Path, way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    way(monkeypatch)
    (home / "FP16").rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "notes.txt").write_text("mine")
    (home / "FP16").symlink_to(tmp_path / "elsewhere")
    publish(home, "new")
    assert contents(tmp_path / "elsewhere") == {"model.xml": "new", "model.bin": "new", "notes.txt": "mine"}
    assert (home / "FP16").readlink() == tmp_path / "elsewhere"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "home"]
    assert sorted(path.name for path in home.iterdir()) == ["FP16", "FP32", "model.json", "model.onnx"]


def test_a_link_to_a_folder_that_is_not_there_leads_to_a_new_one(home: Path, tmp_path: Path) -> None:
    shutil.rmtree(home / "FP16")
    (home / "FP16").symlink_to(tmp_path / "not" / "there")
    publish(home, "new")
    assert contents(tmp_path / "not" / "there") == {"model.xml": "new", "model.bin": "new"}


@pytest.mark.parametrize("link", ["../elsewhere.onnx", "nowhere"])
def test_a_link_to_a_file_is_replaced_and_what_it_leads_to_is_not(home: Path, tmp_path: Path, link: str) -> None:
    (home / "model.onnx").rename(tmp_path / "elsewhere.onnx")
    (home / "model.onnx").symlink_to(link)
    publish(home, "new")
    assert contents(tmp_path)["elsewhere.onnx"] == "old"
    assert contents(home) == all_of("new")


def test_a_target_of_the_wrong_kind_stops_it_at_once_and_stays(tmp_path: Path) -> None:
    (tmp_path / "FP16").write_text("old")
    (tmp_path / "model.onnx").mkdir()
    with pytest.raises(DiskError, match="FP16 failed: Not a directory"), Staging(tmp_path) as staging:
        staging.folder(tmp_path / "FP16")
    with Staging(tmp_path) as staging:
        staging.folder(tmp_path / "FP32").joinpath("model.xml").write_text("new")
        staging.file(tmp_path / "model.onnx").write_text("new")
        with pytest.raises(DiskError, match="onnx failed: Is a directory"):
            staging.publish()
    assert contents(tmp_path) == {"FP16": "old", "model.onnx/": ""}


def test_a_folder_that_may_not_be_written_to_stops_it_at_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: path != home / "FP16")  # root may write anywhere
    with pytest.raises(DiskError, match="FP16 failed: Permission denied"), Staging(home) as staging:
        staging.folder(home / "FP16")
    assert contents(home) == all_of("old")


@pytest.mark.parametrize("parts", [("c" * 300, "file"), ("file", "below", "file")])
def test_what_cannot_exist_is_a_disk_error_and_leaves_nothing(tmp_path: Path, parts: tuple[str, ...]) -> None:
    (tmp_path / "file").write_text("old")
    for make in (Staging.file, Staging.folder):
        with pytest.raises(DiskError), Staging(tmp_path / "home") as staging:
            make(staging, tmp_path.joinpath(*parts))
        assert contents(tmp_path) == {"file": "old"}
    with pytest.raises(DiskError), Staging(tmp_path / "home") as staging:
        staging.folder(tmp_path / "home" / ("c" * 300))
    assert contents(tmp_path) == {"file": "old"}


# Between two steps


def seen_by(home: Path, seen: list[dict[str, str]]) -> Callable[[], None]:
    def look() -> None:
        seen.append({name: (home / name).read_text() if (home / name).exists() else "none" for name in NAMES})

    return look


def pairs(state: dict[str, str]) -> list[tuple[str, str]]:
    return [(state[f"{p}/model.xml"], state[f"{p}/model.bin"]) for p in ("FP16", "FP32")]


def test_whoever_looks_between_two_steps_finds_each_pair_whole(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, str]] = []
    with watched(monkeypatch, seen_by(home, seen), lambda number, target: None):
        publish(home, "new")
    assert seen[0] == all_of("old")
    assert seen[-1] == all_of("new")
    assert {pair for state in seen for pair in pairs(state)} == {("old", "old"), ("new", "new")}
    assert {state["model.onnx"] for state in seen} == {"old", "new"}


@WAYS
def test_no_record_is_there_while_anything_changes(home: Path, way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    way(monkeypatch)
    seen: list[dict[str, str]] = []
    with watched(monkeypatch, seen_by(home, seen), lambda number, target: None):
        publish(home, "new")
    assert seen[0]["model.json"] == "old"
    assert seen[-1]["model.json"] == "new"
    assert all(state == all_of(state["model.json"]) for state in seen if state["model.json"] != "none")


@pytest.mark.parametrize("way", [no_exchange, no_moving])
def test_where_folders_cannot_trade_places_no_pair_is_mixed_either(
    home: Path, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    way(monkeypatch)
    seen: list[dict[str, str]] = []
    with watched(monkeypatch, seen_by(home, seen), lambda number, target: None):
        publish(home, "new")
    sound = {("old", "old"), ("new", "new"), ("none", "none"), ("none", "old"), ("none", "new")}
    assert {pair for state in seen for pair in pairs(state)} <= sound


@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt(), SystemExit(143)], ids=["full", "interrupt", "terminate"])
@pytest.mark.parametrize("others", [False, True], ids=["alone", "others"])
@WAYS
def test_when_a_step_fails_all_is_as_it_was(
    home: Path, way: Way, others: bool, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    way(monkeypatch)
    if others:
        (home / "FP16" / "notes.txt").write_text("mine")
    before = contents(home)
    for step in itertools.count(1):
        reached = False

        def fails(number: int, target: Path, step: int = step) -> BaseException | None:
            nonlocal reached
            reached |= number == step
            return error if number == step else None

        with watched(monkeypatch, lambda: None, fails), contextlib.suppress(type(error), DiskError):
            publish(home, "new")
            break
        assert reached
        assert contents(home) == before, step
    assert step > 5
    assert contents(home) == before | all_of("new")


def test_a_signal_just_after_a_step_undoes_that_one_as_well(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in itertools.count(1):
        looks = itertools.count(1)  # before and after each step

        def interrupt(step: int = step, looks: Iterator[int] = looks) -> None:
            if next(looks) == 2 * step:
                raise KeyboardInterrupt

        with watched(monkeypatch, interrupt, lambda number, target: None), contextlib.suppress(KeyboardInterrupt):
            publish(home, "new")
            break
        assert contents(home) == all_of("old"), step
    assert step > 5


@WAYS
def test_when_a_step_into_an_empty_place_fails_nothing_is_left(
    tmp_path: Path, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    way(monkeypatch)
    for name in ("model.onnx", "FP16", "FP32", "model.json"):
        fails = lambda number, target, name=name: FULL if target.name == name else None  # noqa: E731
        with watched(monkeypatch, lambda: None, fails), pytest.raises(DiskError, match=name):
            publish(tmp_path / "a" / "home", "new")
        assert contents(tmp_path) == {}


@pytest.mark.parametrize("way", [as_it_is, no_exchange])
def test_what_cannot_be_put_back_is_kept_and_its_place_is_said(
    home: Path, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    way(monkeypatch)

    def fails(number: int, target: Path) -> BaseException | None:
        xml = home / "FP16" / "model.xml"
        return FULL if xml.exists() and xml.read_text() == "new" else None

    with watched(monkeypatch, lambda: None, fails), pytest.raises(DiskError) as caught:
        publish(home, "new")
    left = contents(home)
    aside = [name for name in left if name.startswith(".") and name.endswith("FP16/model.xml")]
    assert [left[name] for name in aside] == ["old"]
    assert str(home / aside[0].split("/")[0]) in caught.value.hint
    assert "unchanged" not in str(caught.value)
    assert set(pairs({name: left.get(name, "none") for name in NAMES})) == {
        ("old", "old"),
        ("new", "new"),
    }
    publish(home, "newer")
    assert contents(home) == all_of("newer")


@pytest.mark.parametrize("nth", range(1, 12))
def test_a_full_disk_found_while_syncing_leaves_the_old_files(
    home: Path, nth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, true = itertools.count(1), os.fsync

    def fail(handle: int) -> None:
        if next(count) == nth:
            raise FULL
        true(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(DiskError, match="No space left on device"):
            publish(home, "new")
    assert contents(home) == all_of("old")


def test_all_is_on_the_disk_before_anything_is_moved(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: set[str] = set()
    true = os.fsync
    steps: list[set[str]] = []

    def fsync(handle: int) -> None:
        synced.add(Path(f"/proc/self/fd/{handle}").readlink().name)
        true(handle)

    if sys.platform != "linux":
        pytest.skip("/proc as Linux has it")
    monkeypatch.setattr(os, "fsync", fsync)
    with Staging(home) as staging:
        stage(staging, home, "new")
        with watched(monkeypatch, lambda: steps.append(set(synced)), lambda number, target: None):
            staging.publish()
    hidden = {name.split(".", 2)[-1] for name in steps[0] if name.startswith(".")}
    assert hidden == {"model.onnx", "FP16", "FP32", "model.json"}
    assert steps[0] >= {"model.xml", "model.bin"}


def test_what_was_never_written_leaves_the_old_files(home: Path) -> None:
    with Staging(home) as staging:
        staging.folder(home / "FP16").joinpath("model.xml").write_text("new")
        staging.file(home / "model.onnx")
        with pytest.raises(DiskError, match="onnx failed"):
            staging.publish()
    assert contents(home) == all_of("old")


def test_old_files_that_cannot_be_removed_are_left_to_the_next_run(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true = Path.unlink

    def refuse(self: Path, missing_ok: bool = False) -> None:
        if self.name.endswith(".onnx"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        true(self, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        publish(home, "new")
        assert contents(home).items() > all_of("new").items()
    publish(home, "newer")
    assert contents(home) == all_of("newer")


# Those who died


def killed(home: Path, publishes: bool = False, **patches: Callable[..., Any]) -> None:
    """A process that stages a model and is killed, at the latest when it is done with that."""
    child = os.fork()
    if not child:
        try:
            for name, function in patches.items():
                setattr(moves, name, function)
            with Staging(home) as staging:
                stage(staging, home, "of the dead")
                if publishes:
                    staging.publish()
                os.kill(os.getpid(), 9)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == 9


@linux_only
def test_what_the_dead_left_is_removed_by_the_next_run_before_it_writes(home: Path) -> None:
    killed(home)
    killed(home)
    assert len(contents(home)) > 2 * len(NAMES)
    with Staging(home) as staging:
        hidden = staging.file(home / "model.onnx")
        assert sorted(path.name for path in home.glob(".*")) == [f"{hidden.name.removesuffix('-0.model.onnx')}.lease"]
    assert contents(home) == all_of("old")


@linux_only
def test_what_the_dead_left_elsewhere_is_removed_too(home: Path, tmp_path: Path) -> None:
    (home / "FP16").rename(tmp_path / "elsewhere")
    (home / "FP16").symlink_to(tmp_path / "elsewhere")
    killed(home)
    assert len(list(tmp_path.iterdir())) == 3
    sweep(home)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "home"]
    assert list(home.glob(".*")) == []


@linux_only
def test_what_was_moved_aside_by_a_run_that_was_killed_then_is_put_back(home: Path) -> None:
    def dies(self: moves.Moves, source: Path, target: Path, *args: Any, **kwargs: Any) -> None:
        if target == home / "FP16":
            os.kill(os.getpid(), 9)
        true(self, source, target, *args, **kwargs)

    true = moves.Moves._rename
    before = moves.Moves._rename, moves.exchange
    moves.Moves._rename = dies  # type: ignore[method-assign]
    moves.exchange = lambda first, second: False
    try:
        killed(home, publishes=True)
    finally:
        moves.Moves._rename, moves.exchange = before  # type: ignore[method-assign]
    assert not (home / "FP16").exists()
    sweep(home)
    # The record is gone; what it said of the rest is not true any more.
    names = [name for name in NAMES if name != "model.json"]
    assert contents(home) == all_of("old", tuple(names)) | {"model.onnx": "of the dead"}


@linux_only
def test_what_a_living_run_has_is_left_to_it(home: Path) -> None:
    with Staging(home) as staging:
        stage(staging, home, "new")
        before = contents(home)
        sweep(home)
        with Staging(home) as other:
            stage(other, home, "newer")
            assert contents(home).items() >= before.items()
            other.publish()
        assert contents(home).items() >= all_of("newer").items()
        staging.publish()
    assert contents(home) == all_of("new")


@linux_only
@pytest.mark.parametrize("fault", [0, errno.ENOLCK, None], ids=["everyone gets the lock", "no locks", "no module"])
def test_where_locks_mean_nothing_leftovers_are_removed_when_all_of_them_are_old(
    home: Path, monkeypatch: pytest.MonkeyPatch, fault: int | None
) -> None:
    def flock(file: int, operation: int) -> None:
        if fault:
            raise OSError(fault, os.strerror(fault))

    killed(home)
    if fault is None:
        monkeypatch.setattr(leases, "fcntl", None)
    else:
        monkeypatch.setattr("fcntl.flock", flock)
    left = [path for path in home.rglob("*") if ".staged-" in str(path)]
    for path in left:
        os.utime(path, (0, 0))
    os.utime(newest := next(path for path in left if path.suffix == ".bin"))
    sweep(home)
    assert newest.exists()
    publish(home, "new")
    assert newest.exists()
    os.utime(newest, (0, 0))
    sweep(home)
    assert contents(home) == all_of("new")


def test_a_lease_makes_nobody_touch_what_is_not_a_staging(home: Path, tmp_path: Path) -> None:
    """Whoever wrote it."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / ".staged-0123456789ab-0.x").write_text("mine")
    run = ".staged-0123456789ab"
    lines = [
        [str(home / "model.onnx"), str(home / "x"), False],
        [str(home / "FP16"), str(home / "x"), True],
        [str(tmp_path / "precious" / f"{run}-0.x"), str(home / "x"), True],
        [str(home / f"{run}-1.x")],
        "nonsense",
    ]
    for text in ("\n".join(map(json.dumps, lines)), "\xff\xfe", "[" * 100_000, "1\n2", ""):
        (home / f"{run}.lease").write_text(text)
        sweep(home)
        assert contents(home) == all_of("old")
        assert contents(tmp_path / "precious") == {f"{run}-0.x": "mine"}


def test_strange_leases_are_no_trouble(home: Path) -> None:
    for kind in (Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        lease = home / ".staged-0123456789ab.lease"
        kind(lease)
        began = time.monotonic()
        publish(home, "new")
        assert time.monotonic() - began < 5
        shutil.rmtree(lease) if lease.is_dir() else lease.unlink(missing_ok=True)
    assert contents(home) == all_of("new")


# Several at once


def texts_in(home: Path, precision: str) -> set[str]:
    """What a folder has, whatever comes into its place meanwhile; what is removed while it is looked at left out."""
    texts = set()
    with contextlib.ExitStack() as stack, contextlib.suppress(FileNotFoundError):
        folder = os.open(home / precision, os.O_RDONLY)
        stack.callback(os.close, folder)
        for suffix in (".xml", ".bin"):
            file = os.open(f"model{suffix}", os.O_RDONLY, dir_fd=folder)
            stack.callback(os.close, file)
            texts.add(os.read(file, 100).decode())
    return texts


@linux_only
@pytest.mark.parametrize(
    ("way", "locks"),
    [(as_it_is, "work"), (as_it_is, "mean nothing"), (no_exchange, "work"), (no_exchange, "mean nothing"),
     # Files that are replaced one by one, by runs that no lock keeps apart, could be mixed.
     (no_moving, "work")],
)  # fmt: skip
def test_of_several_that_publish_at_once_all_succeed_and_each_pair_is_of_one(
    tmp_path: Path, way: Way, locks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    way(monkeypatch)
    if locks == "mean nothing":
        monkeypatch.setattr("fcntl.flock", lambda file, operation: None)
    home = tmp_path / "home"
    publish(home, "0")
    seen: list[set[str]] = []
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("fork")) as pool:
        running = [pool.submit(publish, home, str(number)) for number in range(40)]
        while not all(one.done() for one in running):
            if way is not no_moving:
                seen += [texts_in(home, precision) for precision in ("FP16", "FP32")]
    for one in running:
        one.result()
    assert max(map(len, seen), default=1) == 1
    left = contents(home)
    assert len(texts_in(home, "FP16")) == len(texts_in(home, "FP32")) == 1
    if locks == "work" or "model.json" in left:
        assert left == all_of(left["model.json"])


def test_a_folder_that_another_run_has_in_its_hands_may_be_replaced(tmp_path: Path) -> None:
    """It is away, and there again, while one looks whether it may be written to."""
    there, away, stopped = tmp_path / "FP16", tmp_path / "away", threading.Event()
    there.mkdir()

    def move() -> None:
        while not stopped.is_set():
            there.rename(away)
            away.rename(there)

    thread = threading.Thread(target=move)
    thread.start()
    try:
        with Staging(tmp_path) as staging:
            for _ in range(300):
                staging.folder(there)
    finally:
        stopped.set()
        thread.join()


def test_a_record_does_not_stay_if_another_run_has_replaced_a_part(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As can be where locks mean nothing."""

    def meddle(number: int, target: Path) -> None:
        if target == home / "model.json":
            (home / "FP16" / "other").write_text("other")
            (home / "FP16" / "other").replace(home / "FP16" / "model.bin")

    with watched(monkeypatch, lambda: None, meddle):
        publish(home, "new")
    assert contents(home) == all_of("new", NAMES[:-1]) | {"FP16/model.bin": "other"}


def test_one_that_holds_up_the_others_does_not_do_so_for_ever(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "PATIENCE_SECONDS", 0.2)
    with leases.turn(home):
        publish(home, "new")
    assert contents(home) == all_of("new")


def test_turns_are_taken_one_after_the_other(tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with leases.turn(tmp_path):
            order.append("second")

    thread = threading.Thread(target=second)
    with leases.turn(tmp_path):
        thread.start()
        time.sleep(0.1)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


# exchange


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="a call of Linux and macOS")
def test_folders_and_files_trade_places(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    assert moves.exchange(tmp_path / "a", tmp_path / "b")
    assert contents(tmp_path) == {"a/file": "b", "b/file": "a"}
    with pytest.raises(FileNotFoundError, match="c"):
        moves.exchange(tmp_path / "a", tmp_path / "c")
    # A folder cannot go into itself; asked for in earnest, that is what an ignorant file system answers.
    assert not moves.exchange(tmp_path / "a", tmp_path / "a" / "file")
    assert contents(tmp_path) == {"a/file": "b", "b/file": "a"}


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_a_system_without_the_call_is_no_error(tmp_path: Path, platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        def __init__(self, name: None, use_errno: bool) -> None:
            assert use_errno

    moves._exchange.cache_clear()
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr("ctypes.CDLL", Library)
    try:
        assert not moves.exchange(tmp_path / "a", tmp_path / "b")
    finally:
        moves._exchange.cache_clear()
