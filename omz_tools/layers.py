"""The layers of a model that are alike: a graph traced with three of them becomes the graph of a deeper model.

Tracing takes time for each layer, and most models are one layer many times. What repeats is found in the traced graph
itself: the second and the third layer must do the same, node by node, each with its own parameters and with what the
layer before hands on. Where they do not, nothing is changed, and the whole model is to be traced. (The first layer does
not count: it also holds what is computed once for all.)
"""

from dataclasses import dataclass, field
from typing import Any

from omz_tools import libraries

TRACED = 3


@dataclass
class _Pair:
    """The second and the third layer, and how they correspond.

    Attributes:
        prefix: what the names of all layers' parameters begin with, before the number of the layer.
        second, third: their nodes.
        made_second, made_third: the place (node, output) that each value in them comes from.
        handed: for each place in a layer that the next one takes a value from, what the second layer takes there.
    """

    prefix: str
    second: list[Any]
    third: list[Any]
    made_second: dict[Any, tuple[int, int]]
    made_third: dict[Any, tuple[int, int]]
    handed: dict[tuple[int, int], Any] = field(default_factory=dict)

    def alike(self) -> bool:
        return len(self.second) == len(self.third) and all(map(self._same_node, self.second, self.third))

    def _same_node(self, one: Any, other: Any) -> bool:
        return (
            one.op_identifier() == other.op_identifier()
            and len(one.inputs) == len(other.inputs)
            and _attributes(one) == _attributes(other) is not None
            and [(v.type, v.shape) for v in one.outputs] == [(v.type, v.shape) for v in other.outputs]
            and all(map(self._same_input, one.inputs, other.inputs))
        )

    def _same_input(self, one: Any, other: Any) -> bool:
        if one in self.made_second or other in self.made_third:
            return self.made_second.get(one) == self.made_third.get(other)
        if other in self.made_second:
            return self.handed.setdefault(self.made_second[other], one) is one
        if one is not None and other is not None and other.name.startswith(f"{self.prefix}2."):
            return bool(one.name == self.parameter(other, 1))
        return one is other

    def parameter(self, of_third: Any, layer: int) -> str:
        """The name in a layer of what is the parameter `of_third` in the third."""
        return f"{self.prefix}{layer}." + str(of_third.name).removeprefix(f"{self.prefix}2.")


def deepen(graph: Any, prefix: str, depth: int) -> bool:
    """Make a graph of `depth` layers of one of three.

    Args:
        graph: an onnx_ir graph whose parameters are initializers; it is changed.
        prefix: what the names of all layers' parameters begin with, before the number of the layer.
        depth: how many layers there shall be, at least three.

    Returns:
        Whether the second and the third layer are alike; otherwise the graph is as it was.
    """
    nodes = list(graph)
    firsts = (next((i for i, node in enumerate(nodes) if _uses(node, f"{prefix}{n}.")), len(nodes)) for n in (1, 2))
    begin, middle = firsts
    end = 2 * middle - begin
    second, third, after = nodes[begin:middle], nodes[middle:end], nodes[end:]
    pair = _Pair(prefix, second, third, _places(second), _places(third))
    # Nothing behind the third layer may look back to the second, or belong to a layer.
    strays = any(v in pair.made_second or _of_layer(v, prefix) for node in after for v in node.inputs)
    outputs = any(v in pair.made_second or v in pair.made_third for v in graph.outputs)
    if strays or outputs or not second or not after or not pair.alike():
        return False
    last = third
    for layer in range(TRACED, depth):
        last = _next(graph, pair, layer, last)
    for node in after:
        for index, value in enumerate(node.inputs):
            if value in pair.made_third:
                place, output = pair.made_third[value]
                node.replace_input_with(index, last[place].outputs[output])
    return True


def _next(graph: Any, pair: _Pair, layer: int, previous: list[Any]) -> list[Any]:
    """Put one more layer behind the last one, whose nodes are `previous`."""
    ir = libraries.load("onnx_ir")
    made: list[Any] = []

    def value(of_third: Any) -> Any:
        if of_third in pair.made_third:
            place, output = pair.made_third[of_third]
            return made[place].outputs[output]
        if of_third in pair.made_second:
            place, output = pair.made_second[of_third]
            return previous[place].outputs[output]
        if of_third is None or not of_third.name.startswith(f"{pair.prefix}2."):
            return of_third
        name = pair.parameter(of_third, layer)
        if name not in graph.initializers:
            graph.initializers.add(ir.Value(name=name, type=of_third.type, shape=of_third.shape))
        return graph.initializers[name]

    for node in pair.third:
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


def _uses(node: Any, prefix: str) -> bool:
    return any(_of_layer(value, prefix) for value in node.inputs)


def _of_layer(value: Any, prefix: str) -> bool:
    return value is not None and value.is_initializer() and value.name.startswith(prefix)


def _places(nodes: list[Any]) -> dict[Any, tuple[int, int]]:
    return {value: (i, j) for i, node in enumerate(nodes) for j, value in enumerate(node.outputs)}


def _attributes(node: Any) -> dict[str, Any] | None:
    """The attributes of a node; None if one is no plain number, word or list, for such are not compared."""
    plain = (int, float, str, tuple)
    if not all(isinstance(attribute.value, plain) for attribute in node.attributes.values()):
        return None
    return {name: (attribute.type, attribute.value) for name, attribute in node.attributes.items()}
