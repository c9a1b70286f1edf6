"""A strict part of YAML, read into typed frozen values, with every mistake at its line and column.

Descriptors are data from strangers. What makes YAML dangerous or surprising is refused by name: anchors and aliases (a
few hundred bytes can expand for seconds), merge keys, tags, duplicate keys, deep nesting, and unquoted words that YAML
1.1 takes for something else (`no`, `0x10`, `1:30`, dates).
"""

import functools
import math
import re
import types
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
import yaml

T = TypeVar("T")

MAX_BYTES = 1 << 20
MAX_DEPTH = 16

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_RESOLVER = yaml.resolver.Resolver()
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)\Z")
# With a dot or an exponent: 2e-05 is how JSON is written.
_FLOAT = re.compile(r"[-+]?(0|[1-9][0-9]*)(\.[0-9]+([eE][-+]?[0-9]+)?|[eE][-+]?[0-9]+)\Z")
_WORDS = {"": None, "~": None, "null": None, "true": True, "false": False}


@dataclass(frozen=True, order=True)
class Mistake:
    """One thing wrong in a file; `line` and `column` count from 1."""

    line: int
    column: int
    text: str


class Mistakes(Exception):
    """Everything that is wrong in one file."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        super().__init__(mistakes)
        self.mistakes = sorted(set(mistakes))


@dataclass(frozen=True)
class Node:
    """A value of the file and where it begins.

    Attributes:
        value: a scalar, a list of nodes, or a dict of nodes.
        line: counted from 1, as the column is.
        column: in characters.
        keys: of a dict, the nodes of its keys.
        refused: whether it is written in a way that is refused, so that no more need be said of it.
    """

    value: Any
    line: int
    column: int
    keys: dict[str, "Node"] = field(default_factory=dict)
    refused: bool = False

    def mistake(self, text: str) -> Mistake:
        return Mistake(self.line, self.column, text)

    def items(self, key: str) -> list["Node"]:
        """The items of the list at `key`; none if there is no list."""
        node = self.at(key)
        return node.value if node is not self and isinstance(node.value, list) else []

    def at(self, *path: str | int) -> "Node":
        """The node at a path of keys and indices, or the nearest one above it."""
        node = self
        for step in path:
            inside: Any = node.value if isinstance(node.value, dict | list) else ()
            try:
                node = inside[step]
            except (KeyError, IndexError, TypeError):
                break
        return node


def parse(text: str) -> tuple[Node, list[Mistake]]:
    """Read YAML text into nodes, and list the uses of parts of YAML that are refused.

    Raises:
        Mistakes: it is not YAML, or so far from it that nothing else can be said.
    """
    if len(text) > MAX_BYTES:
        raise Mistakes([Mistake(1, 1, f"the file is longer than {MAX_BYTES} characters")])
    if bad := yaml.reader.Reader.NON_PRINTABLE.search(text):
        line, column = text.count("\n", 0, bad.start()) + 1, bad.start() - text.rfind("\n", 0, bad.start())
        raise Mistakes([Mistake(line, column, f"the character {bad[0]!r} may not stand in YAML")])
    builder = _Builder()
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise Mistakes([Mistake(line, column, f"not YAML: {error.problem or error.context}")]) from None
    if builder.root is None:
        raise Mistakes([*builder.mistakes, Mistake(1, 1, "the file is empty")])
    return builder.root, builder.mistakes


class _Builder:
    """Builds nodes from parser events, iteratively, so that depth is a limit and not a crash."""

    def __init__(self) -> None:
        self.root: Node | None = None
        self.mistakes: list[Mistake] = []
        self._open: list[tuple[Node, list[Node]]] = []  # containers being read; a mapping collects key, value, key, …

    def take(self, event: Any) -> None:
        line, column = event.start_mark.line + 1, event.start_mark.column + 1
        if isinstance(event, yaml.AliasEvent):
            self.mistakes.append(Mistake(line, column, f"an alias (*{event.anchor:.80}); write the value out"))
            self._add(Node(None, line, column, refused=True))
        elif isinstance(event, yaml.DocumentStartEvent):
            if self.root is not None:
                raise Mistakes([*self.mistakes, Mistake(line, column, "a second document; one file, one model")])
        elif isinstance(event, yaml.NodeEvent):
            refused = self._refuse(event, line, column)
            if isinstance(event, yaml.ScalarEvent):
                before = len(self.mistakes)
                value = self._scalar(event, line, column)
                self._add(Node(value, line, column, refused=refused or len(self.mistakes) > before))
            else:
                if len(self._open) >= MAX_DEPTH:
                    raise Mistakes([*self.mistakes, Mistake(line, column, f"nested deeper than {MAX_DEPTH} levels")])
                value = {} if isinstance(event, yaml.MappingStartEvent) else []
                self._open.append((Node(value, line, column, refused=refused), []))
        elif isinstance(event, yaml.CollectionEndEvent):
            node, items = self._open.pop()
            if isinstance(node.value, dict):
                self._fill(node, items)
            else:
                node.value.extend(items)
            self._add(node)

    def _refuse(self, event: Any, line: int, column: int) -> bool:
        before = len(self.mistakes)
        if event.anchor:
            self.mistakes.append(Mistake(line, column, f"an anchor (&{event.anchor}); write the value out"))
        if event.tag and event.tag != "!":
            self.mistakes.append(Mistake(line, column, f"a tag ({event.tag:.80}); tags are refused"))
        return len(self.mistakes) > before

    def _add(self, node: Node) -> None:
        if self._open:
            self._open[-1][1].append(node)
        else:
            self.root = node

    def _fill(self, mapping: Node, items: list[Node]) -> None:
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key.value, str):
                self.mistakes.append(key.mistake("a key must be a word"))
            elif key.value in mapping.value:
                self.mistakes.append(key.mistake(f"the key {key.value!r:.80} stands here twice"))
            else:
                mapping.value[key.value] = value
                mapping.keys[key.value] = key

    def _scalar(self, event: yaml.ScalarEvent, line: int, column: int) -> Any:
        text = event.value
        if not event.implicit[0]:
            return text  # quoted or block text
        if text in _WORDS:
            return _WORDS[text]
        if _INTEGER.match(text) and len(text) < 20:
            return int(text)
        if _FLOAT.match(text) and math.isfinite(float(text)):
            return float(text)
        if text == "<<":
            self.mistakes.append(Mistake(line, column, "a merge key (<<); write the keys out"))
        elif _RESOLVER.resolve(yaml.ScalarNode, text, (True, False)) != "tag:yaml.org,2002:str":  # type: ignore[no-untyped-call]
            mistake = f"{text!r:.80} does not mean the same to every reader; quote it"
            self.mistakes.append(Mistake(line, column, mistake))
        return text


def decode(node: Node, kind: type[T], known: Sequence[Mistake] = ()) -> T:
    """Turn nodes into a value of type `kind`: a msgspec Struct of structs, tuples, dicts, unions and checked scalars.

    A union is chosen by what stands there: a mapping by its `$type`, else by being a list or a scalar. A class with a
    classmethod `parse(str)` that raises ValueError checks its own text.

    Args:
        node: what stands in the file.
        kind: what it must be.
        known: mistakes found before; where one lies, no other is reported.

    Raises:
        Mistakes: with everything that does not fit, and `known`.
    """
    mistakes: list[Mistake] = []
    value = _decode(node, kind, mistakes)
    places = {(mistake.line, mistake.column) for mistake in known}
    mistakes = [*known, *(mistake for mistake in mistakes if (mistake.line, mistake.column) not in places)]
    if mistakes:
        raise Mistakes(mistakes)
    return value  # type: ignore[no-any-return]


def _decode(node: Node, kind: Any, mistakes: list[Mistake]) -> Any:
    if node.refused:
        mistakes.append(node.mistake("this cannot be read"))  # `parse` has said why, at the same place
        return None
    return _value(node, kind, mistakes)


def _value(node: Node, kind: Any, mistakes: list[Mistake]) -> Any:
    origin = get_origin(kind)
    if origin is Annotated and get_origin(get_args(kind)[0]) is not None:
        return _bounded(node, kind, mistakes)
    if origin in (Union, types.UnionType):
        return _union(node, get_args(kind), mistakes)
    if origin is tuple:
        if not isinstance(node.value, list):
            mistakes.append(node.mistake(f"a list is needed here, not {_name(node.value)}"))
            return ()
        return tuple(_decode(item, get_args(kind)[0], mistakes) for item in node.value)
    if origin is dict:
        if not isinstance(node.value, dict):
            mistakes.append(node.mistake(f"a mapping is needed here, not {_name(node.value)}"))
            return {}
        return {key: _decode(value, get_args(kind)[1], mistakes) for key, value in node.value.items()}
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return _struct(node, kind, mistakes)
    if isinstance(kind, type) and hasattr(kind, "parse") and isinstance(node.value, str):
        try:
            return kind.parse(node.value)
        except ValueError as error:
            mistakes.append(node.mistake(str(error)))
            return None
    return _leaf(plain(node), kind, node, mistakes)


def _bounded(node: Node, kind: Any, mistakes: list[Mistake]) -> Any:
    """A list with bounds on its length, which can be wrong beside mistakes in the items."""
    inner: list[Mistake] = []
    value = _decode(node, get_args(kind)[0], inner)
    mistakes += inner
    if not inner:
        return _leaf(value, kind, node, mistakes)
    if isinstance(node.value, list):
        _leaf(value, Annotated[(tuple[Any, ...], *get_args(kind)[1:])], node, mistakes)
    return value


@functools.cache
def _fields(kind: type[msgspec.Struct]) -> tuple[dict[str, Any], dict[str, msgspec.structs.FieldInfo]]:
    """The types of a struct's fields by name, and the fields by their keys; finding them out takes long."""
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    return get_type_hints(kind, include_extras=True), fields


def _struct(node: Node, kind: type[msgspec.Struct], mistakes: list[Mistake]) -> Any:
    if not isinstance(node.value, dict):
        mistakes.append(node.mistake(f"a mapping is needed here, not {_name(node.value)}"))
        return None
    config = kind.__struct_config__
    before = len(mistakes)
    hints, fields = _fields(kind)
    found: dict[str, Any] = {}
    for key, value in node.value.items():
        if key in fields:
            found[fields[key].name] = _decode(value, hints[fields[key].name], mistakes)
        elif key != config.tag_field:
            known = ", ".join(fields)
            mistakes.append(node.keys[key].mistake(f"unknown key {key!r:.80}; the keys here are {known}"))
    missing = [name for name in fields if fields[name].required and name not in node.value]
    mistakes += [node.mistake(f"the key {name!r} is missing") for name in missing]
    return kind(**found) if len(mistakes) == before else None


def _union(node: Node, options: tuple[Any, ...], mistakes: list[Mistake]) -> Any:
    structs = [o for o in options if isinstance(o, type) and issubclass(o, msgspec.Struct)]
    others = [o for o in options if o not in structs]
    if isinstance(node.value, dict) and structs:
        if len(structs) == 1 and structs[0].__struct_config__.tag is None:
            return _struct(node, structs[0], mistakes)
        tags = {o.__struct_config__.tag: o for o in structs}
        tag = node.at("$type")
        if tag is node or not isinstance(tag.value, str) or tag.value not in tags:
            mistakes.append(tag.mistake(f"'$type' must be one of {', '.join(map(str, tags))}"))
            return None
        return _struct(node, tags[tag.value], mistakes)
    if not others:
        mistakes.append(node.mistake(f"a mapping is needed here, not {_name(node.value)}"))
        return None
    if node.value is None and type(None) in options:
        return None
    fitting = [o for o in others if (get_origin(o) is tuple) == isinstance(node.value, list) and o is not type(None)]
    if not fitting or isinstance(node.value, dict):
        mistakes.append(node.mistake(f"{_name(node.value)} does not fit here"))
        return None
    attempts: list[list[Mistake]] = []
    for option in fitting:
        attempt: list[Mistake] = []
        value = _decode(node, option, attempt)
        if not attempt:
            return value
        attempts.append(attempt)
    mistakes += attempts[0]
    return None


def _leaf(value: Any, kind: Any, node: Node, mistakes: list[Mistake]) -> Any:
    try:
        return msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError as error:
        text = str(error).replace(" - at `$`", "")
        if get_origin(kind) is Literal:
            text = f"must be one of {', '.join(map(str, get_args(kind)))}"
        if isinstance(value, int | float) and "`str`" in text:
            text += "; quote it"
        mistakes.append(node.mistake(f"{text} (here: {value!r:.80})"))
        return None


def plain(node: Node) -> Any:
    """The node and all below it as plain Python values."""
    if isinstance(node.value, dict):
        return {key: plain(value) for key, value in node.value.items()}
    if isinstance(node.value, list):
        return [plain(item) for item in node.value]
    return node.value


def _name(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    return f"{value!r:.60}"
