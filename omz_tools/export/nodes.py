"""The names of an IR's nodes, which are not to depend on what a process did before."""

import re
from typing import Any

# A name that OpenVINO makes up: the type of a node, and a count that runs through the whole process.
_MADE_UP = re.compile(r"[A-Z][A-Za-z0-9]*_\d+")


def rename(model: Any, *, tensors: bool = False) -> None:
    """Count the nodes that OpenVINO named anew: its count goes on from one model to the next in a process.

    With `tensors`, what they give is called as they are, where it has such a name, too.
    """
    for number, node in enumerate(model.get_ordered_ops()):
        if _MADE_UP.match(node.get_friendly_name()):
            node.set_friendly_name(f"{node.get_type_name()}_{number}")
        for place, output in enumerate(node.outputs() if tensors else ()):
            own = f"{node.get_friendly_name()}:{place}"
            output.set_names({own if _MADE_UP.fullmatch(name) else name for name in output.get_names()})
