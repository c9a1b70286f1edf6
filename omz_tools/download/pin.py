"""The `files` section of a descriptor, brought up to date with the Hub: commits, sizes and digests."""

import fnmatch
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import yaml

from omz_tools.descriptors import reading
from omz_tools.descriptors.descriptor import Descriptor
from omz_tools.descriptors.edited_yaml import EditedYaml, at, text_at
from omz_tools.descriptors.located_yaml import Mistakes, decode, parse
from omz_tools.download.snapshot import Snapshot, look_up
from omz_tools.errors import DescriptorError, IntegrityError, SelectionError, SourceError, context
from omz_tools.network.transport import Transport
from omz_tools.system.files import disk_errors, replacing

# What a checkpoint of a language model is made of, at the top of its repository.
USUAL = (
    "config.json", "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "generation_config.json", "model.safetensors.index.json", "*.safetensors",
)  # fmt: skip


@dataclass(frozen=True)
class Wish:
    """What is asked for.

    Attributes:
        revision: a branch, tag or commit.
        repo: the repository, instead of those that the descriptor names.
        patterns: files of the repository to be added; if empty, the usual ones where the section has no entry.
        folder: where added files go below the model's folder, instead of where the descriptor has its checkpoint.
    """

    revision: str = "main"
    repo: str | None = None
    patterns: tuple[str, ...] = ()
    folder: str | None = None


def pin(path: Path, wish: Wish, note: Callable[[str], None], *, dry_run: bool = False) -> None:
    """Refresh the entries of a model.yml whose sources are on the Hub, and add those that are wished for.

    Args:
        path: the model.yml; it is replaced as a whole, or stays as it was.
        wish: which repository, revision and files.
        note: hears of every file.
        dry_run: whether to leave the file as it is.

    Raises:
        DescriptorError: it has mistakes outside of `files`, or would have some afterwards.
        SelectionError: which repository or folder is meant is not said, or nothing matches a pattern.
        SourceError, UnreachableError: the Hub has no such repository, revision or file, or does not answer.
        IntegrityError: the Hub sends other bytes than it lists, or the sources of a file differ.
        DiskError: the file cannot be written.
    """
    draft = _read(path)
    section = at(draft.root, "files")
    entries = section.value if isinstance(section, yaml.SequenceNode) else []
    named = [(wish.repo or text_at(s, "repo"), text_at(s, "file")) for entry in entries for s in _on_hub(entry)]
    repos = [wish.repo] if wish.repo else list(dict.fromkeys(repo for repo, _ in named))
    if not repos:
        raise SelectionError(f"{path} names no repository of the Hub", hint="Name one with --repo OWNER/NAME.")
    snapshots = {repo: look_up(repo, wish.revision) for repo in repos}
    for repo, snapshot in snapshots.items():
        note(f"{repo} at {wish.revision} is commit {snapshot.commit}")
        if missing := [file for where, file in named if where == repo and file not in snapshot.files]:
            raise SourceError(
                f"{repo} has at commit {snapshot.commit} no {', '.join(map(repr, missing))}",
                hint=f"Nothing was written. {snapshot.contents}",
            )
    added = _added(draft, entries, wish, snapshots) if wish.patterns or not entries else {}

    transport = Transport()
    for entry in entries:
        name = text_at(entry, "name")
        with context(f"file {name}"):
            note(f"{name}: {_refresh(draft, entry, wish.repo, snapshots, transport)}")
    items = []
    for name, file in added.items():
        snapshot = snapshots[repos[0]]
        with context(f"file {name}"):
            size, digest = snapshot.size_and_digest(file, transport)
        source = {"$type": "hugging_face", "repo": snapshot.repo, "file": file, "revision": snapshot.commit}
        items.append({"name": name, "size": size, "checksum": {"$type": "sha256", "value": digest}, "source": source})
        note(f"{name}: new, {_bytes(size, digest)}")
    draft.extend("files", items)
    _write(draft, path, note, dry_run=dry_run)


def _added(draft: EditedYaml, entries: list[yaml.Node], wish: Wish, snapshots: dict[str, Snapshot]) -> dict[str, str]:
    """What files that match and are in no entry yet will be called, and their paths in the repository."""
    if len(snapshots) > 1:
        raise SelectionError("the descriptor names several repositories", hint="Say which one is meant with --repo.")
    [snapshot] = snapshots.values()
    matching = {p: [f for f in sorted(snapshot.files) if _matches(f, p)] for p in wish.patterns or USUAL}
    without = [pattern for pattern in matching if not matching[pattern]]
    if without and (wish.patterns or len(without) == len(matching)):
        raise SelectionError(
            f"{snapshot.repo} has nothing like {', '.join(without)}", hint=f"Nothing was written. {snapshot.contents}"
        )
    first = str(PurePosixPath(text_at(entries[0], "name")).parent) if entries else ""
    folder = wish.folder or text_at(draft.root, "export", "checkpoint") or first
    if not folder:
        raise SelectionError("the descriptor does not say where the files go", hint="Name a folder with --folder.")
    names = {str(PurePosixPath(folder) / file): file for files in matching.values() for file in files}
    taken = {text_at(entry, "name") for entry in entries}
    pinned = {text_at(source, "file") for entry in entries for source in _on_hub(entry)}
    return {name: file for name, file in names.items() if name not in taken and file not in pinned}


def _matches(file: str, pattern: str) -> bool:
    """As in a shell: no * goes beyond a folder."""
    parts, patterns = file.split("/"), pattern.split("/")
    return len(parts) == len(patterns) and all(map(fnmatch.fnmatchcase, parts, patterns))


def _on_hub(entry: yaml.Node) -> list[yaml.Node]:
    """The sources of an entry that are on the Hub."""
    source = at(entry, "source")
    sources = source.value if isinstance(source, yaml.SequenceNode) else [source]
    return [source for source in sources if source and text_at(source, "$type") == "hugging_face"]


def _refresh(
    draft: EditedYaml, entry: yaml.Node, repo: str | None, snapshots: dict[str, Snapshot], transport: Transport
) -> str:
    """Set what the Hub says of the file of an entry; what is new about it, in words."""
    found: dict[tuple[int, str], str] = {}
    for source in _on_hub(entry):
        snapshot, file = snapshots[repo or text_at(source, "repo")], text_at(source, "file")
        found[snapshot.size_and_digest(file, transport)] = f"{file} of {snapshot.repo}"
        draft.set(source, "repo", snapshot.repo)
        draft.set(source, "revision", snapshot.commit)
    if not found:
        return "left as it is, for no source of it is on the Hub"
    if len(found) > 1:
        differing = ", ".join(f"{place} ({_bytes(*what)})" for what, place in found.items())
        raise IntegrityError(f"its sources are different files: {differing}", hint="Nothing was written.")
    [(size, digest)] = found
    before = text_at(entry, "size"), text_at(entry, "checksum", "value") or text_at(entry, "checksum")
    draft.set(entry, "size", size)
    checksum = at(entry, "checksum")
    if isinstance(checksum, yaml.MappingNode) and checksum.value:
        draft.set(checksum, "$type", "sha256")
        draft.set(checksum, "value", digest)
    else:
        draft.set(entry, "checksum", {"$type": "sha256", "value": digest})
    return "unchanged" if before == (str(size), digest) else f"{_bytes(*before)} → {_bytes(size, digest)}"


def _bytes(size: int | str, digest: str) -> str:
    return f"{size or '?'} bytes, {digest[:12] or '?'}…"


def _read(path: Path) -> EditedYaml:
    """The descriptor; mistakes in `files` are what pinning is for. Raises DescriptorError if it has others."""
    try:
        text = path.read_bytes().decode("utf-8")
        root, mistakes = parse(text)
        if any(getattr(event, "anchor", None) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise Mistakes(mistakes)  # no value that stands for others can be changed in its place
        draft = EditedYaml(text)
        try:
            decode(root, Descriptor, mistakes)
        except Mistakes as error:
            # Only a list can be corrected, and nothing be made one.
            correctable = isinstance(root.at("files").value, list | None)
            if others := [m for m in error.mistakes if not (correctable and draft.is_in("files", m.line, m.column))]:
                raise Mistakes(others) from None
    except Mistakes as error:
        lines = [f"{path}:{m.line}:{m.column}: {m.text}" for m in error.mistakes]
        raise DescriptorError(
            "\n".join(["the descriptor has mistakes that no pin corrects:", *lines]), hint="Correct the lines named."
        ) from None
    except UnicodeDecodeError as error:
        raise DescriptorError(f"{path}: not UTF-8 text (byte {error.start})", hint="Save it as UTF-8.") from None
    except OSError as error:
        raise DescriptorError(f"{path} cannot be read: {error.strerror}", hint="Name a model.yml.") from None
    return draft


def _write(draft: EditedYaml, path: Path, note: Callable[[str], None], *, dry_run: bool) -> None:
    """Replace the descriptor by the edited one. Raises DescriptorError if that would not load."""
    data = draft.edited().encode()
    with disk_errors("Trying out", path), tempfile.TemporaryDirectory() as folder:
        trial = Path(folder, "model.yml")
        trial.write_bytes(data)
        try:
            reading.load(trial)
        except DescriptorError as error:
            error.what = f"nothing was written; once pinned, {error.what.replace(str(trial), str(path))}"
            error.hint = "Correct the lines named; where pins add lines, the numbers count them."
            raise
    if draft.text == draft.edited():
        note(f"{path} is up to date")
    elif dry_run:
        note(f"{path} stays as it is: this is a dry run")
    else:
        with replacing(path.resolve()) as temporary, disk_errors("Writing", path):
            temporary.write_bytes(data)
            shutil.copymode(path, temporary)
        note(f"{path} is written")
