"""The layers of a model that are alike: a graph traced with two of them becomes the graph of a deeper model.

Tracing takes time for each layer, and most models are one layer many times. What repeats is found in the traced graph
itself: both layers must do the same, node by node, each with its own parameters, inputs and outputs, and with what the
one before hands on. Where they do not, nothing is changed, and the whole model is to be traced. What is computed once
for all layers stands among the nodes of the first, and belongs to none.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from omz_tools.system import libraries

TRACED = 2


@dataclass
class _Pair:
    """The first and the second layer, and how they correspond.

    Attributes:
        prefixes: what the names of the layers' parameters, inputs and outputs begin with, before a layer's number.
        first, second: their nodes.
        made_first, made_second: the place (node, output) that each value in them comes from.
        handed: for each place in a layer that the next one takes a value from, what the first layer takes there.
    """

    prefixes: tuple[str, ...]
    first: list[Any]
    second: list[Any]
    made_first: dict[Any, tuple[int, int]]
    made_second: dict[Any, tuple[int, int]]
    handed: dict[tuple[int, int], Any] = field(default_factory=dict)

    def alike(self) -> bool:
        return len(self.first) == len(self.second) and all(map(self._same_node, self.first, self.second))

    def _same_node(self, one: Any, other: Any) -> bool:
        return (
            one.op_identifier() == other.op_identifier()
            and len(one.inputs) == len(other.inputs)
            and _attributes(one) == _attributes(other) is not None
            and [(v.type, v.shape) for v in one.outputs] == [(v.type, v.shape) for v in other.outputs]
            and all(map(self._same_input, one.inputs, other.inputs))
        )

    def _same_input(self, one: Any, other: Any) -> bool:
        if one in self.made_first or other in self.made_second:
            return self.made_first.get(one) == self.made_second.get(other)
        if other in self.made_first:
            return self.handed.setdefault(self.made_first[other], one) is one
        if one is not None and other is not None and _of_layer(other, self.prefixes, 1):
            return bool(one.name == self.name(other, 0))
        return one is other

    def same_outputs(self, outputs: Iterable[Any]) -> bool:
        """Whether the outputs of the graph that come from the layers are the same of both."""
        outputs = list(outputs)
        first = {self.made_first[v]: v.name for v in outputs if v in self.made_first}
        second = {self.made_second[v]: v for v in outputs if v in self.made_second}
        return first == {place: self.name(value, 0) for place, value in second.items()} and all(
            value.name.startswith(_begin(self.prefixes, 1)) for value in second.values()
        )

    def name(self, of_second: Any, layer: int) -> str:
        """The name in a layer of what is called as `of_second` in the second."""
        name = str(of_second.name)
        prefix = next((p for p in self.prefixes if name.startswith(f"{p}1.")), name)
        return f"{prefix}{layer}." + name.removeprefix(f"{prefix}1.")


def deepen(graph: Any, prefixes: tuple[str, ...], depth: int) -> bool:
    """Make a graph of `depth` layers of one of two.

    Args:
        graph: an onnx_ir graph whose parameters are initializers; it is changed.
        prefixes: what the names of the layers' parameters, inputs and outputs begin with, before a layer's number.
        depth: how many layers there shall be, at least two.

    Returns:
        Whether both layers are alike; otherwise the graph is as it was.
    """
    nodes = list(graph)
    begin, middle = (next((i for i, n in enumerate(nodes) if _uses(n, prefixes, k)), len(nodes)) for k in (0, 1))
    first = _dependent(nodes[begin:middle], prefixes)
    second, after = nodes[middle : middle + len(first)], nodes[middle + len(first) :]
    pair = _Pair(prefixes, first, second, _places(first), _places(second))
    # Nothing behind the second layer may look back to the first, or belong to a layer.
    strays = any(v in pair.made_first or _of_layer(v, prefixes) for node in after for v in node.inputs)
    if strays or not first or not after or not pair.same_outputs(graph.outputs) or not pair.alike():
        return False
    last = second
    given = [(pair.made_second[value], value) for value in graph.outputs if value in pair.made_second]
    for layer in range(TRACED, depth):
        last = _next(graph, pair, layer, last)
        for (place, output), of_second in given:
            value = last[place].outputs[output]
            value.name = pair.name(of_second, layer)
            graph.outputs.append(value)
    for node in after:
        for index, value in enumerate(node.inputs):
            if value in pair.made_second:
                place, output = pair.made_second[value]
                node.replace_input_with(index, last[place].outputs[output])
    return True


def _next(graph: Any, pair: _Pair, layer: int, previous: list[Any]) -> list[Any]:
    """Put one more layer behind the last one, whose nodes are `previous`."""
    ir = libraries.load("onnx_ir")
    made: list[Any] = []
    own: dict[str, Any] = {}

    def value(of_second: Any) -> Any:
        if of_second in pair.made_second:
            place, output = pair.made_second[of_second]
            return made[place].outputs[output]
        if of_second in pair.made_first:
            place, output = pair.made_first[of_second]
            return previous[place].outputs[output]
        if of_second is None or not _of_layer(of_second, pair.prefixes, 1):
            return of_second
        name = pair.name(of_second, layer)
        if name not in own:
            own[name] = ir.Value(name=name, type=of_second.type, shape=of_second.shape)
            if of_second.is_initializer():
                graph.initializers.add(own[name])
            else:
                behind = max(place for place, v in enumerate(graph.inputs) if _of_layer(v, pair.prefixes))
                graph.inputs.insert(behind + 1, own[name])
        return own[name]

    for node in pair.second:
        copy = ir.Node(
            node.domain,
            node.op_type,
            [value(v) for v in node.inputs],
            list(node.attributes.values()),
            overload=node.overload,
            num_outputs=len(node.outputs),
            version=node.version,
        )
        for new, old in zip(copy.outputs, node.outputs, strict=True):
            new.type, new.shape = old.type, old.shape
        made.append(copy)
    graph.insert_after(previous[-1], made)
    return made


def _dependent(nodes: list[Any], prefixes: tuple[str, ...]) -> list[Any]:
    """Those of the nodes that depend on a parameter of the first layer, directly or not."""
    made: set[Any] = set()
    dependent = []
    for node in nodes:
        if _uses(node, prefixes, 0) or not made.isdisjoint(node.inputs):
            dependent.append(node)
            made.update(node.outputs)
    return dependent


def _uses(node: Any, prefixes: tuple[str, ...], layer: int) -> bool:
    return any(_of_layer(value, prefixes, layer) for value in node.inputs)


def _of_layer(value: Any, prefixes: tuple[str, ...], layer: int | None = None) -> bool:
    """Whether a value is a parameter or an input of a layer, or of any."""
    if value is None or not (value.is_initializer() or value.is_graph_input()):
        return False
    return bool(value.name.startswith(prefixes if layer is None else _begin(prefixes, layer)))


def _begin(prefixes: tuple[str, ...], layer: int) -> tuple[str, ...]:
    return tuple(f"{prefix}{layer}." for prefix in prefixes)


def _places(nodes: list[Any]) -> dict[Any, tuple[int, int]]:
    return {value: (i, j) for i, node in enumerate(nodes) for j, value in enumerate(node.outputs)}


def _attributes(node: Any) -> dict[str, Any] | None:
    """The attributes of a node; None if one is no plain number, word or list, for such are not compared."""
    plain = (int, float, str, tuple)
    if not all(isinstance(attribute.value, plain) for attribute in node.attributes.values()):
        return None
    return {name: (attribute.type, attribute.value) for name, attribute in node.attributes.items()}
