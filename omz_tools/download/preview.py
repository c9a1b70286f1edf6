"""What a download is about to do: what, how much, from where, and whether the disk has room."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from omz_tools.descriptors.descriptor import Source
from omz_tools.download import pinned
from omz_tools.download.pinned import How, Means, Want
from omz_tools.download.pipeline import Download
from omz_tools.download.sources import is_remote, location
from omz_tools.network.connections import origin
from omz_tools.progress.reporting import files_text, size_text
from omz_tools.system import files


def preview(plans: Sequence[Download], means: Means) -> str:
    """The plans as text: for each model where its files will come from, then the room on each disk."""
    lines: list[str] = []
    for plan in plans:
        wants = [want for want, _ in plan.wants]
        lines.append(f"{plan.model.name}: {_amount(wants)}, license {plan.model.descriptor.license}")
        ways: dict[str, list[Want]] = {}
        for want, how in plan.wants:
            ways.setdefault(_way(want, how, means), []).append(want)
        for way, some in ways.items():
            kept = sum(pinned.kept(want, means) for want in some) if way.startswith("to fetch") else 0
            lines.append(f"  {_amount(some)} {way}" + (f", {size_text(kept)} kept of an earlier run" if kept else ""))
    for folder, size in _needed(plans, means):
        lines.append(f"{size_text(size)} needed in {folder}, {size_text(files.disk_of(folder)[1])} free")
    return "\n".join(lines)


def fitting(plans: Sequence[Download], means: Means) -> Means:
    """The means with which the plans fit on the disks: where the cache has no room, nothing is added to it.

    Raises:
        DiskError: the disk of the output has no room, even so.
    """
    if means.store and means.fills_store:
        for folder, size in _needed(plans, means):
            if (free := files.disk_of(folder)[1]) < size:
                means.note(
                    f"... {size_text(size)} are needed in {folder} and {size_text(free)} are free; "
                    f"doing without adding to the cache {means.store.folder}"
                )
                means = replace(means, fills_store=False)
                break
    for folder, size in _needed(plans, means):
        files.room_for(folder, size)
    return means


def _needed(plans: Sequence[Download], means: Means) -> list[tuple[Path, int]]:
    """The bytes that the plans need on each disk, with a folder on it, besides what is kept of earlier runs."""
    sizes: Counter[int] = Counter()
    folders: dict[int, Path] = {}
    kept: set[tuple[Path, str]] = set()

    def need(folder: Path, size: int) -> None:
        disk, _ = files.disk_of(folder)
        folders.setdefault(disk, folder)
        sizes[disk] += size

    for plan in plans:
        for want, how in plan.wants:
            if how is not How.IN_PLACE:
                need(plan.folder, want.size)
                if how is not How.CACHED and means.store and means.fills_store and _is_writable(means.store.folder):
                    need(means.store.folder, want.size)
                place = (pinned.workplace(want, means), want.digest)
                if how is How.FETCHED and place not in kept:
                    kept.add(place)
                    need(place[0], -pinned.makes_room(want, means))
    return [(folders[disk], size) for disk, size in sizes.items()]


def _is_writable(folder: Path) -> bool:
    parents = (folder.absolute(), *folder.absolute().parents)
    existing = next(f for f in parents if os.path.lexists(f))
    return os.path.isdir(existing) and os.access(existing, os.W_OK)  # noqa: PTH112


def _amount(wants: Sequence[Want]) -> str:
    return f"{files_text(len(wants))}, {size_text(sum(want.entry.size for want in wants))}"


def _way(want: Want, how: How, means: Means) -> str:
    if how is How.CACHED and means.store:
        return f"from the cache {means.store.folder}"
    if how is not How.FETCHED:
        return str(how.value)
    return f"to fetch from {_whereabouts(want.entry.sources[0], want)}"


def _whereabouts(source: Source, want: Want) -> str:
    place = location(source, want.folder)
    # Without the port that every URL of its kind has.
    return origin(place).removesuffix(":443").removesuffix(":80") if is_remote(source) else str(Path(place).parent)
