"""YAML text in which some values are replaced and some are added, while all else stays byte for byte.

PyYAML says where each value begins and ends. A library that writes the whole text again, comments included, would fold
and indent it anew.
"""

import re
import sys
from collections.abc import Mapping, Sequence

import yaml

_LINE_END = re.compile(r"\r\n|[\r\n\x85\u2028\u2029]|\Z")


def at(node: yaml.Node | None, *path: str) -> yaml.Node | None:
    """The node at a path of keys; None if there is none."""
    for key in path:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        node = next((value for name, value in pairs if name.value == key), None)
    return node


def text_at(node: yaml.Node | None, *path: str) -> str:
    """The text of the scalar at a path of keys; empty if there is none, or one that a terminal cannot show."""
    found = at(node, *path)
    return found.value if isinstance(found, yaml.ScalarNode) and found.value.isprintable() else ""


class EditedYaml:
    """A text, its nodes, and the edits to it."""

    def __init__(self, text: str) -> None:
        self.text = text
        # Not by the parser in C, which leaves a byte order mark out of its count.
        self.root: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
        self._newline = "\r\n" if "\r\n" in text else "\n"
        self._edits: list[tuple[int, int, str]] = []

    def is_in(self, key: str, line: int, column: int) -> bool:
        """Whether a place, counted from 1, lies in what stands at a key of the root."""
        node = at(self.root, key)
        if node is None:
            return False
        begin, end = ((mark.line + 1, mark.column + 1) for mark in (node.start_mark, node.end_mark))
        return begin == (line, column) or begin < (line, column) < end

    def set(self, mapping: yaml.Node, key: str, value: object) -> None:
        """Let `value` stand at a key, in the quotes that are there; a new key comes after the mapping's first one."""
        node, new = at(mapping, key), _flow(value)
        if node is None:
            first = mapping.value[0][1]
            if _is_flow(mapping):
                self._edits.append((first.end_mark.index, first.end_mark.index, f", {key}: {new}"))
            else:
                self._add_lines(first, [" " * mapping.start_mark.column + f"{key}: {new}"])
            return
        begin, end = node.start_mark.index, node.end_mark.index
        quote = getattr(node, "style", None)
        if quote in ("'", '"') and isinstance(value, str) and re.fullmatch(r"[\w./-]+", value):
            new = f"{quote}{value}{quote}"
        self._edits.append((begin, end, new if begin < end else f" {new}"))

    def extend(self, key: str, items: Sequence[Mapping[str, object]]) -> None:
        """Add mappings to the end of the list at a key of the root; the list is made where there is none."""
        node = at(self.root, key)
        if isinstance(node, yaml.SequenceNode) and node.value and _is_flow(node):
            end = node.value[-1].end_mark.index
            self._edits.append((end, end, "".join(f", {_flow(item)}" for item in items)))
            return
        lines = [line for item in items for line in _block(item)]
        if isinstance(node, yaml.SequenceNode) and node.value:
            self._add_lines(node, [" " * node.start_mark.column + line for line in lines])
            return
        lines = [f"  {line}" for line in lines]
        if node is None:
            end = len(self.text.rstrip())
            self._edits.append((end, end, "".join(self._newline + line for line in [f"{key}:", *lines])))
        else:
            self._edits.append((len(self.text[: node.start_mark.index].rstrip()), node.end_mark.index, ""))
            self._add_lines(node, lines)

    def edited(self) -> str:
        """The text with all edits made."""
        parts, done = [], 0
        for begin, end, new in sorted(self._edits, key=lambda edit: edit[0]):
            parts += [self.text[done:begin], new]
            done = end
        return "".join([*parts, self.text[done:]])

    def _add_lines(self, node: yaml.Node, lines: list[str]) -> None:
        """Add lines below the last one of a node."""
        # For PyYAML a block ends where the next thing begins, behind comments that may be about that.
        while node.value and not _is_flow(node):
            node = node.value[-1] if isinstance(node, yaml.SequenceNode) else node.value[-1][1]
        match = _LINE_END.search(self.text, max(node.end_mark.index - 1, 0))
        end = match.start() if match else len(self.text)
        self._edits.append((end, end, "".join(self._newline + line for line in lines)))


def _is_flow(node: yaml.Node) -> bool:
    """Whether a node is no block: a scalar, or a collection in brackets."""
    return bool(getattr(node, "flow_style", True))


def _flow(value: object) -> str:
    """A value as YAML on one line, quoted where it must be."""
    text: str = yaml.safe_dump([value], default_flow_style=True, sort_keys=False, allow_unicode=True, width=sys.maxsize)
    return text[1:-2]


def _block(item: Mapping[str, object]) -> list[str]:
    """The lines of a mapping in a list. A long mapping in it is opened, its last pair on a line of its own."""
    lines: list[str] = []
    for key, value in item.items():
        line = f"{'  ' if lines else '- '}{key}: {_flow(value)}"
        if isinstance(value, dict) and len(value) > 2:
            *first, (last, end) = value.items()
            lines += [
                f"{line.partition('{')[0]}{{",
                f"    {_flow(dict(first))[1:-1]},",
                f"    {_flow({last: end})[1:-1]},",
                "  }",
            ]
        else:
            lines.append(line)
    return lines
