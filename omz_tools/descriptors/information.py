"""What a descriptor says, in the JSON of Open Model Zoo's omz_info_dumper: the same keys, in the same order."""

from collections.abc import Iterable
from typing import Any

from omz_tools.descriptors import reading
from omz_tools.descriptors.descriptor import PRECISIONS, Descriptor
from omz_tools.descriptors.zoo import Entry, stages
from omz_tools.errors import context


def of(entries: dict[str, Entry], chosen: Iterable[Entry]) -> list[dict[str, Any]]:
    """All about the chosen models; what is a stage of a composite stands there.

    Args:
        entries: all models by name.
        chosen: some of them.

    Raises:
        DescriptorError: a descriptor has mistakes, or a stage is no model.
    """
    composites = {
        stage.name: entry.name for entry in entries.values() if entry.is_composite for stage in stages(entries, entry)
    }
    chosen = list(chosen)
    names = {entry.name for entry in chosen}
    return [
        _of_composite(entries, entry) if entry.is_composite else _of_model(entry, composites.get(entry.name))
        for entry in chosen
        if composites.get(entry.name) not in names
    ]


def _of_composite(entries: dict[str, Entry], entry: Entry) -> dict[str, Any]:
    with context(f"model {entry.name}"):
        composite = reading.load_composite(entry.path)
        parts = [_of_model(stage, entry.name) for stage in stages(entries, entry)]
    return {
        "name": entry.name,
        "composite_model_name": entry.name,
        "description": composite.description,
        "framework": composite.framework,
        "license_url": composite.license,
        "model_config": None,
        "precisions": parts[0]["precisions"],
        "subdirectory": entry.subdirectory,
        "task_type": composite.task_type,
        "input_info": [],
        "model_stages": parts,
    }


def _of_model(entry: Entry, composite: str | None) -> dict[str, Any]:
    said = entry.load().descriptor
    return {
        "name": entry.name,
        "composite_model_name": composite,
        "description": said.description,
        "framework": said.framework,
        "license_url": said.license,
        "model_config": f"{entry.root.name}/{entry.path.relative_to(entry.root).as_posix()}",
        "precisions": _precisions(said),
        "subdirectory": entry.subdirectory,
        "task_type": said.task_type,
        "input_info": [
            {"name": info.name, "shape": list(info.shape or ()), "layout": info.layout} for info in said.input_info
        ],
        "model_stages": [],
    }


def _precisions(said: Descriptor) -> list[str]:
    """Those a model is converted to; of one that is published as IR, those that there are files of."""
    if said.framework != "dldt":
        return sorted(said.precisions)
    return [precision for precision in PRECISIONS if any(file.name.startswith(f"{precision}/") for file in said.files)]
