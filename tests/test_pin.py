"""omz_pin as people run it, against the stand-in Hub: what it writes into a descriptor, and what it leaves alone."""

import contextlib
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import trustme
import yaml
from conftest import Command, comes_to_an_end
from hub import LARGE, Handler, Hub, HubFile

from omz_tools.descriptors import descriptor, reading, zoo
from omz_tools.descriptors.edited_yaml import EditedYaml, at

Result = subprocess.CompletedProcess[str]

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ZEROS = "0" * 64
HEAD = "description: A model\ntask_type: text_prediction\nlicense: https://example.org/license\n"
LINE = "{{$type: hugging_face, repo: openai-community/gpt2, file: {}, revision: main}}"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """The tiny repository at a commit that no descriptor names yet."""
    folder = checkpoints.write_repository(tmp_path / "repository", checkpoints.TINY, seed=7)
    with Hub(folder, revision=COMMIT) as hub:
        yield hub


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The shipped descriptor of gpt-2 as that of the model "tiny"."""
    path = tmp_path / "models" / "tiny" / "model.yml"
    path.parent.mkdir(parents=True)
    return Path(shutil.copy(zoo.shipped() / "gpt-2" / "model.yml", path))


class Pins:
    """`omz_pin` on a descriptor with the Hub's address; nothing it prints is a traceback."""

    def __init__(self, run: Command, path: Path, hub: Hub) -> None:
        self._run, self.path = run, path
        self.command: tuple[str, ...] = ("omz_pin",)
        self.settings = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(path.parents[2] / "hf-home")}

    def __call__(self, *words: str | Path, **environment: str) -> Result:
        done = self._run(*self.command, self.path, *words, **self.settings | environment)
        assert "Traceback" not in done.stdout + done.stderr, done.stderr
        return done

    def fails(self, *words: str | Path, **environment: str) -> str:
        """The error of a run, which must leave the descriptor and its folder as they were."""
        before = self.path.read_bytes()
        done = self(*words, **environment)
        assert done.returncode == 1
        assert done.stderr.startswith("########## Error: ")
        assert self.path.read_bytes() == before
        assert list(self.path.parent.iterdir()) == [self.path]
        return done.stderr

    def writes(self, text: str, *words: str | Path) -> str:
        """The descriptor that comes from `text`; it loads."""
        self.path.write_bytes(text.encode())
        done = self(*words)
        assert (done.returncode, done.stderr) == (0, "")
        reading.load(self.path)
        return self.path.read_bytes().decode()


@pytest.fixture
def pin(run: Command, path: Path, hub: Hub) -> Pins:
    return Pins(run, path, hub)


def entry(name: str, *more: str, source: str = "") -> str:
    """An entry as it might be written by hand before it is pinned."""
    return "\n".join(
        [f"  - name: m/{name}", *(f"    {line}" for line in more), f"    source: {source or LINE.format(name)}\n"]
    )


def pinned(file: HubFile, name: str, indent: str = "  ") -> str:
    """A new entry in the style of the shipped descriptors."""
    return "".join(
        f"{indent}{line}\n"
        for line in [
            f"- name: m/{name}",
            f"  size: {file.size}",
            f"  checksum: {{$type: sha256, value: {file.sha256}}}",
            "  source: {",
            f"    $type: hugging_face, repo: openai-community/gpt2, file: {name},",
            f"    revision: {COMMIT},",
            "  }",
        ]
    )


def entries(path: Path) -> dict[str, descriptor.FileEntry]:
    return {entry.name: entry for entry in reading.load(path).files}


def large(hub: Hub, name: str) -> None:
    """Make a file so large that the Hub keeps it in git LFS."""
    os.truncate(hub.folder / name, LARGE + 1)


# ---- A refresh


def test_a_refresh_of_the_shipped_descriptor_changes_sizes_digests_and_revisions_alone(
    pin: Pins, path: Path, hub: Hub
) -> None:
    before = path.read_text(encoding="utf-8").splitlines()
    done = pin()
    assert (done.returncode, done.stderr) == (0, "")
    after = path.read_text(encoding="utf-8").splitlines()
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert len(changed) == 3 * len(hub.files)
    for old, new in changed:
        shape = re.sub(r"\b([0-9a-f]{64}|[0-9a-f]{40}|\d+)(?=,|}|$)", "*", old)
        assert shape in ("    size: *", "    checksum: {$type: sha256, value: *}", "      revision: *,")
        assert re.sub(r"\b([0-9a-f]{64}|[0-9a-f]{40}|\d+)(?=,|}|$)", "*", new) == shape
    for name, file in hub.files.items():
        found = entries(path)[f"gpt2/{name}"]
        source = descriptor.HuggingFace("openai-community/gpt2", COMMIT, name)  # type: ignore[arg-type]
        assert (found.size, found.digest.value, found.sources) == (file.size, file.sha256, (source,))


def test_a_refresh_says_the_commit_and_of_each_file_what_changed(pin: Pins, path: Path, hub: Hub) -> None:
    was, now = entries(path)["gpt2/config.json"], hub.files["config.json"]
    first, *lines, last = pin().stdout.splitlines()
    assert first == f"openai-community/gpt2 at main is commit {COMMIT}"
    assert lines[0] == (
        f"gpt2/config.json: {was.size} bytes, {was.digest.value[:12]}… → {now.size} bytes, {now.sha256[:12]}…"
    )
    assert len(lines) == len(hub.files)
    assert last == f"{path} is written"


def test_a_refresh_at_the_same_commit_leaves_the_file_untouched(pin: Pins, path: Path, hub: Hub) -> None:
    pin()
    before, stat = path.read_bytes(), path.stat()
    done = pin()
    assert done.returncode == 0
    assert done.stdout.count(": unchanged\n") == len(hub.files)
    assert done.stdout.endswith(f"{path} is up to date\n")
    assert path.read_bytes() == before
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns)


def test_comments_quotes_and_layout_survive(pin: Pins, hub: Hub) -> None:
    file = hub.files["config.json"]
    text = f"""\
# above all
{HEAD}files:   # the files
# at the left
-   name:   m/config.json     # a name
    # between

    size:   1   # bytes
    checksum:
        $type:   "sha256"
        value:   'WRONG'   # to be done
    source:
      - $type: hugging_face
        revision:   "main"   # moves
        repo: openai-community/gpt2

        file: config.json
      # - and a mirror
  # below the last one
model_info: {{a:   1 }}   # flow
# the end
"""
    expected = text.replace("size:   1 ", f"size:   {file.size} ").replace("WRONG", file.sha256)
    assert pin.writes(text) == expected.replace('"main"', f'"{COMMIT}"')


@pytest.mark.parametrize(
    "start", ["", "\ufeff", "# 🙂 é \u2028# a line more for YAML\n"], ids=["plain", "mark", "wide"]
)
def test_line_endings_and_characters_of_any_width_survive(pin: Pins, hub: Hub, start: str) -> None:
    file = hub.files["config.json"]
    text = start + HEAD + "files:\n" + entry("config.json", "size: 1", f'checksum: {{$type: sha256, value: "{ZEROS}"}}')
    text = text.replace("\n", "\r\n")
    expected = text.replace("size: 1", f"size: {file.size}").replace(ZEROS, file.sha256)
    expected = expected.replace("revision: main", f"revision: {COMMIT}")
    assert pin.writes(text) == expected
    added = pin.writes(text, "--files", "merges.txt")
    assert added == expected + pinned(hub.files["merges.txt"], "merges.txt").replace("\n", "\r\n")


UNPINNED: list[list[str]] = [
    [],
    ["size:", "checksum:"],
    ["size: # to come", "checksum: null"],
    ["size: '12'", f"checksum: {{$type: sha256, value: {ZEROS}}}"],
    ["size: soon", "checksum: {$type: sha256, value: }"],
    ["size: 12", "checksum: {$type: sha256}"],
    ["size: []", "checksum: {}"],
    ["size: 12", f"checksum: {'0' * 96}"],
    ["size: 12", f"checksum: {{$type: sha384, value: '{'0' * 96}'}}"],
]


@pytest.mark.parametrize("revision", [", revision: main", ", revision: ", ""], ids=["a branch", "empty", "missing"])
def test_what_is_missing_or_a_placeholder_is_filled_in(pin: Pins, path: Path, hub: Hub, revision: str) -> None:
    source = LINE.format("config.json").replace(", revision: main", revision)
    after = pin.writes(
        HEAD + "files:\n" + "".join(entry(f"{n}.json", *u, source=source) for n, u in enumerate(UNPINNED))
    )
    file = hub.files["config.json"]
    for found in reading.load(path).files:
        assert (found.size, found.digest) == (file.size, descriptor.Sha256(file.sha256))
        assert [source.revision for source in found.sources if isinstance(source, descriptor.HuggingFace)] == [COMMIT]
    for number in range(len(UNPINNED)):
        assert f"  - name: m/{number}.json\n    size: {file.size}" in after
    assert after.count("# to come") == 1
    assert pin.writes(after) == after


def test_a_descriptor_in_json_stays_json(pin: Pins, path: Path, hub: Hub) -> None:
    model = yaml.safe_load(path.read_text(encoding="utf-8"))
    after = json.loads(pin.writes(json.dumps(model)))
    assert {found["name"]: found["size"] for found in after["files"]} == {
        f"gpt2/{name}": file.size for name, file in hub.files.items()
    }
    assert {**after, "files": []} == {**model, "files": []}


def test_the_mode_of_the_file_and_a_link_to_it_survive(pin: Pins, path: Path, tmp_path: Path) -> None:
    path.chmod(0o640)
    link = tmp_path / "link.yml"
    link.symlink_to(path)
    pin.path = link
    assert pin().returncode == 0
    assert link.is_symlink()
    assert COMMIT in path.read_text(encoding="utf-8")
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_dry_run_says_what_would_change_and_writes_nothing(pin: Pins, path: Path, hub: Hub) -> None:
    before, listing = path.read_bytes(), list(path.parent.iterdir())
    done = pin("--dry-run")
    assert done.returncode == 0
    assert done.stdout.count("→") == len(hub.files)
    assert "dry run" in done.stdout
    assert (path.read_bytes(), list(path.parent.iterdir())) == (before, listing)


# ---- Revisions and repositories


@pytest.mark.parametrize("revision", ["v1.0", "refs/pr/1", COMMIT])
def test_a_tag_a_branch_or_a_commit_is_resolved(pin: Pins, path: Path, hub: Hub, revision: str) -> None:
    hub.branches = ("v1.0", "refs/pr/1")
    done = pin("--revision", revision)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"openai-community/gpt2 at {revision} is commit {COMMIT}\n")
    assert path.read_text(encoding="utf-8").count(f"revision: {COMMIT},") == len(hub.files)


def test_with_a_repository_a_copied_descriptor_becomes_that_of_a_fine_tune(pin: Pins, path: Path, hub: Hub) -> None:
    hub.repo = "someone/fine-tune"
    assert pin("--repo", "someone/fine-tune").returncode == 0
    sources = [source for found in entries(path).values() for source in found.sources]
    assert {(s.repo, s.revision) for s in sources if isinstance(s, descriptor.HuggingFace)} == {(hub.repo, COMMIT)}
    assert path.read_text(encoding="utf-8").startswith("# gpt-2: token ids in,")


def twin(hub: Hub) -> None:
    """Let the Hub have the repository under a second name."""

    def interfere(handler: Handler) -> bool:
        handler.path = handler.path.replace("/some/twin/", f"/{hub.repo}/")
        return False

    hub.interfere = interfere


def test_each_of_several_repositories_is_resolved(pin: Pins, path: Path, hub: Hub) -> None:
    twin(hub)
    other = LINE.format("merges.txt").replace("openai-community/gpt2", "some/twin")
    pin.writes(HEAD + "files:\n" + entry("config.json") + entry("merges.txt", source=other))
    assert [found.sources[0].repo for found in entries(path).values()] == [hub.repo, "some/twin"]  # type: ignore[union-attr]
    assert sum("/revision/main" in request for request in hub.requests) == 2


def test_sources_in_a_list_are_all_refreshed_and_other_kinds_left_as_they_are(pin: Pins, path: Path, hub: Hub) -> None:
    twin(hub)
    web, local = "https://example.org/config.json", "{$type: local, path: config.json}"
    hub_sources = [LINE.format("config.json"), LINE.format("config.json").replace("openai-community/gpt2", "some/twin")]
    text = HEAD + "files:\n" + entry("config.json", source=f"[{web}, {hub_sources[0]}, {local}, {hub_sources[1]}]")
    pin.writes(text)
    [found] = reading.load(path).files
    web_source, first, local_source, second = found.sources
    assert (web_source, local_source) == (descriptor.Http(web), descriptor.Local("config.json"))
    assert [s.revision for s in (first, second) if isinstance(s, descriptor.HuggingFace)] == [COMMIT, COMMIT]
    assert found.size == hub.files["config.json"].size


def test_sources_in_a_list_that_differ_are_an_error_that_shows_both(pin: Pins, path: Path, hub: Hub) -> None:
    sources = f"[{LINE.format('config.json')}, {LINE.format('merges.txt')}]"
    path.write_text(HEAD + "files:\n" + entry("config.json", source=sources), encoding="utf-8")
    error = pin.fails()
    assert "In file m/config.json: " in error
    for name in ("config.json", "merges.txt"):
        assert f"{name} of {hub.repo} ({hub.files[name].size} bytes, {hub.files[name].sha256[:12]}…)" in error


@pytest.mark.parametrize("source", ["https://example.org/merges.txt", "{$type: local, path: merges.txt}"])
def test_an_entry_without_a_source_on_the_hub_is_left_as_it_is_and_said_so(
    pin: Pins, path: Path, hub: Hub, source: str
) -> None:
    alone = entry("merges.txt", "size: 9", f"checksum: {{$type: sha256, value: '{ZEROS}'}}", source=source)
    path.write_text(HEAD + "files:\n" + alone + entry("config.json"), encoding="utf-8")
    done = pin()
    assert done.returncode == 0, done.stderr
    assert "m/merges.txt: left as it is" in done.stdout
    assert alone in path.read_text(encoding="utf-8")
    assert hub.gets("merges.txt") == 0


# ---- Bytes


def test_a_file_of_git_lfs_is_not_downloaded_and_others_are(pin: Pins, path: Path, hub: Hub) -> None:
    large(hub, "model.safetensors")
    assert pin().returncode == 0
    assert hub.gets("model.safetensors") == 0
    assert all(hub.gets(name) for name in hub.files if name != "model.safetensors")
    assert entries(path)["gpt2/model.safetensors"].digest.value == hub.files["model.safetensors"].sha256


@pytest.mark.parametrize("change", ["flipped", "shorter", "longer"])
def test_bytes_that_are_not_those_of_the_git_blob_are_an_error(pin: Pins, hub: Hub, change: str) -> None:
    data = hub.files["vocab.json"].path.read_bytes()
    wrong = {"flipped": bytes([data[0] ^ 1]) + data[1:], "shorter": data[:-1], "longer": data + b" "}[change]

    def interfere(handler: Handler) -> bool:
        if not handler.path.endswith("/vocab.json"):
            return False
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(wrong)))
        handler.end_headers()
        handler.wfile.write(wrong)
        return True

    hub.interfere = interfere
    error = pin.fails()
    assert "In file gpt2/vocab.json: " in error
    assert f"{len(data):,} bytes of git blob {hub.files['vocab.json'].git_oid}" in error


def test_bytes_without_end_are_an_error(pin: Pins, hub: Hub) -> None:
    sent = 0

    def interfere(handler: Handler) -> bool:
        nonlocal sent
        if not handler.path.endswith("/vocab.json"):
            return False
        handler.close_connection = True
        handler.send_response(200)
        handler.end_headers()
        with contextlib.suppress(OSError):
            while sent < 200_000_000:
                sent += handler.wfile.write(b" " * 100_000)
        return True

    hub.interfere = interfere
    assert "of git blob" in pin.fails()
    assert sent < 100_000_000  # what the sockets' buffers hold, and no more


@pytest.mark.parametrize("words", [[], ["--folder", "m", "--files", "*.txt"]], ids=["refreshed", "new"])
def test_the_pinned_model_downloads(
    pin: Pins, path: Path, run: Command, tmp_path: Path, hub: Hub, words: list[str]
) -> None:
    large(hub, "merges.txt")
    if words:
        path.write_text(HEAD, encoding="utf-8")
    assert pin("--repo", hub.repo, *words).returncode == 0
    done = run("omz_downloader", "--models_dir", tmp_path / "models", "--name", "tiny", **pin.settings)
    assert done.returncode == 0, done.stderr
    names = ["m/merges.txt"] if words else [f"gpt2/{name}" for name in hub.files]
    folder = tmp_path / "public" / "tiny"
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()) == sorted(names)
    for name in names:
        assert (folder / name).read_bytes() == (hub.folder / Path(name).name).read_bytes()


# ---- New entries


EXPORT = """\
# how it is exported
export:
  checkpoint: m
  model_class: GPT2LMHeadModel
  inputs: [{name: input, type: i64, shape: [B, L]}]
  outputs: [{name: output, type: f32, shape: [B, L, 97]}]
"""


@pytest.mark.parametrize("section", ["", "files:\n", "files: []\n", "files: null   # to come\n", "files:\n  []\n"])
def test_a_descriptor_without_files_gets_the_usual_ones(pin: Pins, hub: Hub, section: str) -> None:
    for name in ("onnx/config.json", "special_tokens_map.json", "pytorch_model.bin", "README.md", "other.json"):
        (hub.folder / name).parent.mkdir(exist_ok=True)
        (hub.folder / name).write_text(f"{name}\n")
    with Hub(hub.folder, revision=COMMIT) as fuller:
        pin.settings["HF_ENDPOINT"] = fuller.endpoint
        after = pin.writes(HEAD + section + EXPORT, "--repo", fuller.repo)
        usual = ["config.json", "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"]
        usual += ["special_tokens_map.json", "generation_config.json", "model.safetensors"]
        new = "".join(pinned(fuller.files[name], name) for name in usual)
        comment = "   # to come" if "#" in section else ""
        expected = f"{HEAD}files:{comment}\n{new}{EXPORT}" if section else f"{HEAD}{EXPORT}files:\n{new}"
        assert after == expected


@pytest.mark.parametrize("indent", ["", "  ", "    "])
def test_files_that_match_are_added_at_the_end_of_the_section(pin: Pins, hub: Hub, indent: str) -> None:
    section = "\n".join(indent + line[2:] for line in entry("config.json").splitlines())
    before = f"{HEAD}files:\n{section}  # the last\n\n  # of the next\nmodel_info: {{}}\n"
    after = pin.writes(before, "--files", "merges.txt, vocab.*,tokenizer?config.json,c*.json", "--folder", "m")
    names = ["merges.txt", "vocab.json", "tokenizer_config.json"]
    new = "".join(pinned(hub.files[name], name, indent) for name in names)
    assert after.endswith(f"revision: {COMMIT}}}  # the last\n{new}\n  # of the next\nmodel_info: {{}}\n")
    assert pin.writes(after, "--files", "*.json,merges.txt", "--folder", "m").count("merges.txt") == 2


def test_a_pattern_goes_into_no_folder_by_itself(pin: Pins, path: Path, hub: Hub) -> None:
    (hub.folder / "onnx").mkdir()
    (hub.folder / "onnx" / "a #{c}, b.json").write_text("{}")
    with Hub(hub.folder, revision=COMMIT) as deeper:
        pin.settings["HF_ENDPOINT"] = deeper.endpoint
        assert "has nothing like o*" in pin.fails("--files", "o*")
        pin.writes(HEAD, "--repo", deeper.repo, "--files", "*.txt", "--folder", "m")
        assert list(entries(path)) == ["m/merges.txt"]
        pin.writes(path.read_text(encoding="utf-8"), "--files", "onnx/*")
        assert list(entries(path)) == ["m/merges.txt", "m/onnx/a #{c}, b.json"]
        assert entries(path)["m/onnx/a #{c}, b.json"].sources[0].file == "onnx/a #{c}, b.json"  # type: ignore[union-attr]


def test_a_section_in_brackets_grows_inside_them(pin: Pins, path: Path, hub: Hub) -> None:
    text = f"{HEAD}files: [{{name: m/config.json, source: {LINE.format('config.json')}}} ,]  # all\n"
    after = pin.writes(text, "--files", "merges.txt")
    assert after.endswith("} ,]  # all\n")
    assert list(entries(path)) == ["m/config.json", "m/merges.txt"]
    assert entries(path)["m/merges.txt"].digest.value == hub.files["merges.txt"].sha256


def test_which_repository_new_files_come_from_must_be_clear(pin: Pins, path: Path, hub: Hub) -> None:
    path.write_text(HEAD, encoding="utf-8")
    assert "--repo" in pin.fails("--files", "*")
    assert hub.requests == []
    twin(hub)
    other = LINE.format("merges.txt").replace("openai-community/gpt2", "some/twin")
    path.write_text(HEAD + "files:\n" + entry("config.json") + entry("merges.txt", source=other), encoding="utf-8")
    assert "--repo" in pin.fails("--files", "vocab.json")


def test_where_new_files_go_must_be_clear(pin: Pins, path: Path, hub: Hub) -> None:
    path.write_text(HEAD, encoding="utf-8")
    assert "--folder" in pin.fails("--repo", hub.repo)


@pytest.mark.parametrize("words", [["--files", "*.json,*.gguf"], []], ids=["asked for", "usual"])
def test_a_pattern_without_a_match_is_an_error_that_lists_what_there_is(
    pin: Pins, path: Path, hub: Hub, words: list[str]
) -> None:
    path.write_text(HEAD, encoding="utf-8")
    for name in () if words else list(hub.files):
        hub.files[f"elsewhere/{name}"] = hub.files.pop(name)
    error = pin.fails("--repo", hub.repo, "--folder", "m", *words)
    assert ("has nothing like *.gguf" if words else "nothing like config.json, vocab.json") in error
    assert f"There are: {', '.join(sorted(hub.files))}." in error


# ---- What the Hub refuses


def test_files_that_the_repository_does_not_have_are_named_beside_those_it_has(pin: Pins, hub: Hub) -> None:
    gone = [hub.files.pop(name) and name for name in ("vocab.json", "merges.txt")]
    error = pin.fails()
    assert f"{hub.repo} has at commit {COMMIT} no {', '.join(map(repr, gone))}" in error
    assert f"There are: {', '.join(sorted(hub.files))}." in error
    assert not any("/resolve/" in request for request in hub.requests)


@pytest.mark.parametrize(
    ("words", "says", "advice"),
    [
        (["--repo", "no/body"], "/no/body at main: the Hub answered 404 RepoNotFound", "no such repository"),
        (["--revision", "gone"], "/openai-community/gpt2 at gone: the Hub answered 404 RevisionNotFound", "--revision"),
        (["--repo", "a b"], "/a b at main cannot be looked up: Repo id must", "Check the name"),
    ],
)
def test_a_repository_or_revision_that_is_not_there_is_an_error(
    pin: Pins, words: list[str], says: str, advice: str
) -> None:
    error = pin.fails(*words)
    assert says in error
    assert advice in error


def test_a_gated_repository_needs_the_token_which_is_never_shown(pin: Pins, hub: Hub) -> None:
    hub.token = "hf_secretOfTheTest"
    for settings in ({}, {"HF_TOKEN": "hf_aWrongOne"}):
        error = pin.fails(**settings)
        assert "the Hub answered 401 GatedRepo\nAccept the model's terms" in error
        assert "hf_" not in error
    hub.requests.clear()
    hub.authorizations.clear()
    done = pin(HF_TOKEN=hub.token)
    assert done.returncode == 0, done.stderr
    assert set(hub.authorizations) == {f"Bearer {hub.token}"}
    assert "hf_" not in done.stdout + done.stderr


@pytest.mark.parametrize("token", ["hf_secret€", "hf_secret\x01"])
def test_a_token_that_no_header_can_carry_is_an_error_that_does_not_show_it(pin: Pins, token: str) -> None:
    error = pin.fails(HF_TOKEN=token)
    assert "HF_TOKEN" in error
    assert "hf_secret" not in error


@pytest.mark.parametrize("status", [403, 500])
def test_another_refusal_is_an_error_with_its_status(pin: Pins, hub: Hub, status: int) -> None:
    hub.interfere = lambda handler: handler.refuse(status, "\x1b[31mred") or True
    error = pin.fails()
    assert f"{hub.endpoint}/{hub.repo} at main: the Hub answered {status}\n" in error
    assert "\x1b" not in error


def test_an_answer_that_is_no_json_is_an_error(pin: Pins, hub: Hub) -> None:
    def interfere(handler: Handler) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Length", "7")
        handler.end_headers()
        handler.wfile.write(b"<html/>")
        return True

    hub.interfere = interfere
    assert f"{hub.endpoint}/{hub.repo} at main cannot be looked up: " in pin.fails()


# ---- No network


def test_offline_nothing_is_asked_for(pin: Pins, hub: Hub) -> None:
    assert "HF_HUB_OFFLINE is set" in pin.fails(HF_HUB_OFFLINE="1")
    assert hub.requests == []


def test_a_hub_that_is_not_there_is_an_error_with_address_and_advice(pin: Pins) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
    error = pin.fails(HF_ENDPOINT=endpoint)
    assert f"{endpoint}/openai-community/gpt2 at main cannot be looked up: " in error
    assert "HTTPS_PROXY" in error
    assert "HF_ENDPOINT" in error


def test_a_hub_that_never_answers_is_not_waited_for_for_ever(pin: Pins) -> None:
    code = "from omz_tools.download import snapshot; snapshot.FIRST_ANSWER_SECONDS = 1;"  # a person waits longer
    code += "import sys; from omz_tools.commands.pin import main; sys.exit(main())"
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        pin.command = ("python", "-c", code)
        with comes_to_an_end(20):
            error = pin.fails(HF_ENDPOINT=f"http://127.0.0.1:{listener.getsockname()[1]}")
    assert "no answer within 1 seconds" in error


@pytest.mark.parametrize("commit", ["main", "\x1b]0;title\x07"])
def test_a_commit_that_is_none_is_an_error_that_shows_it_as_text(pin: Pins, hub: Hub, commit: str) -> None:
    hub.revision = commit
    error = pin.fails()
    assert "which is none" in error or "cannot be looked up" in error
    assert all(line.isprintable() for line in error.splitlines())


def test_a_password_in_the_address_of_the_hub_is_not_shown(pin: Pins) -> None:
    error = pin.fails(HF_ENDPOINT="http://me:s3cr3t@127.0.0.1:9")
    assert "http://127.0.0.1:9/openai-community/gpt2" in error
    assert "s3cr3t" not in error


@pytest.mark.parametrize("endpoint", ["huggingface.co", "ftp://127.0.0.1", "http://127.0.0.1:port"])
def test_an_address_of_the_hub_that_is_none_is_an_error_that_shows_it(pin: Pins, endpoint: str) -> None:
    assert f"HF_ENDPOINT is {endpoint!r}" in pin.fails(HF_ENDPOINT=endpoint)


@pytest.mark.parametrize("kind", ["REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "a folder", "none"])
def test_certificates_of_an_authority_of_ones_own_are_taken(
    pin: Pins, path: Path, tmp_path: Path, hub: Hub, kind: str
) -> None:
    large(hub, "merges.txt")  # asked for is the listing alone: the Hub's bytes do not go through TLS here
    authority = trustme.CA()
    bundle = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(bundle)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    server = hub._servers[0]
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    settings = {"HF_ENDPOINT": hub.endpoint.replace("http", "https"), "REQUESTS_CA_BUNDLE": "", "SSL_CERT_FILE": ""}
    if kind == "a folder":
        folder = tmp_path / "authorities"
        folder.mkdir()
        shutil.copy(bundle, folder / "authority.pem")
        subprocess.run(["openssl", "rehash", folder], check=True, capture_output=True)
        settings["SSL_CERT_FILE"] = str(folder)
    elif kind != "none":
        settings[kind] = str(bundle)
    path.write_text(HEAD, encoding="utf-8")
    words = ("--repo", hub.repo, "--files", "merges.txt", "--folder", "m")
    if kind == "none":
        error = pin.fails(*words, **settings)
        assert "CERTIFICATE_VERIFY_FAILED" in error
        assert "REQUESTS_CA_BUNDLE" in error
    else:
        done = pin(*words, **settings)
        assert done.returncode == 0, done.stderr


def test_the_hub_does_not_learn_which_libraries_are_installed(pin: Pins, hub: Hub) -> None:
    agents: set[str] = set()

    def interfere(handler: Handler) -> bool:
        agents.add(handler.headers["User-Agent"])
        return False

    hub.interfere = interfere
    assert pin().returncode == 0
    assert all(agent.startswith("omz_tools/") for agent in agents)
    assert "torch" not in "".join(agents)


def test_importing_the_module_imports_no_client_of_the_hub() -> None:
    code = "import omz_tools.download.pin, sys; sys.exit('huggingface_hub' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- Mistakes


def test_mistakes_elsewhere_are_reported_where_they_stand_and_nothing_is_asked_for(
    pin: Pins, path: Path, hub: Hub
) -> None:
    text = HEAD.replace("license: https", "license: ftp") + "files:\n" + entry("config.json") + "colour: red\n"
    path.write_text(text, encoding="utf-8")
    error = pin.fails()
    assert re.findall(rf"{re.escape(str(path))}:(\d+):(\d+): ", error) == [("3", "10"), ("7", "1")]
    assert hub.requests == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "- a\n",
        HEAD + "files: many\n",
        HEAD + "files: {name: a}\n",
        HEAD + "files:\n" + entry("config.json", "size: &anchor 1"),
        HEAD + "files: &files [*files]\n",
        HEAD + "files:\n" + entry("config.json", source="*nothing"),
    ],
)
def test_what_is_no_descriptor_is_an_error_with_a_place(pin: Pins, path: Path, hub: Hub, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    assert re.search(rf"{re.escape(str(path))}:\d+:\d+: ", pin.fails("--repo", hub.repo, "--folder", "m"))
    assert hub.requests == []


def test_a_descriptor_that_would_not_load_afterwards_is_an_error_and_stays(pin: Pins, path: Path) -> None:
    twice = entry("config.json", "size: 1", "size: 1", f"checksum: {{$type: sha256, value: '{ZEROS}'}}")
    path.write_text(HEAD + "files:\n" + twice + EXPORT, encoding="utf-8")
    error = pin.fails()
    assert "nothing was written; once pinned, the descriptor has 2 mistakes:\n" in error
    assert f"{path}:7:5: the key 'size' stands here twice" in error
    assert "no file of this model is called m/model.safetensors" in error


def test_a_file_that_cannot_be_read_is_an_error_that_names_it(pin: Pins, tmp_path: Path) -> None:
    (tmp_path / "latin.yml").write_bytes("é".encode("latin-1"))
    for name, says in {"absent.yml": "No such file", "latin.yml": "not UTF-8", ".": "Is a directory"}.items():
        pin.path = tmp_path / name
        done = pin()
        assert done.returncode == 1
        assert str(tmp_path / name) in done.stderr
        assert says in done.stderr


@pytest.mark.parametrize("words", [["--files", " ,"], ["--nothing"], ["second.yml"]])
def test_wrong_usage_is_exit_status_2(pin: Pins, words: list[str]) -> None:
    assert pin(*words).returncode == 2


# ---- Edits of YAML text


@pytest.mark.parametrize(
    "value", ["no", "1e5", "a: b", "#", "", "'", "ü", "0" * 64, 7, {"a": "1", "b": None}, "x" * 300]
)
def test_whatever_is_set_is_read_again(value: Any) -> None:
    text = "a: {b: 'old', c: [1, 2]} # one\nd:\n  e: old # two\nf:\n"
    edited = EditedYaml(text)
    for mapping, key in ((at(edited.root, "a"), "b"), (at(edited.root, "d"), "e"), (at(edited.root, "d"), "new")):
        assert mapping
        edited.set(mapping, key, value)
    edited.extend("f", [{"x": value, "y": {"one": value, "two": 2, "three": value}}])
    assert yaml.safe_load(edited.edited()) == {
        "a": {"b": value, "c": [1, 2]},
        "d": {"e": value, "new": value},
        "f": [{"x": value, "y": {"one": value, "two": 2, "three": value}}],
    }
    assert re.findall("# .*", edited.edited())[:2] == ["# one", "# two"]
