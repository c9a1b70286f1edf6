"""Token ids so far, logits of the next token: by an IR that computes them anew, or by one that keeps a state.

Both give the same; what they cost differs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from omz_tools.errors import ModelError, SelectionError
from omz_tools.export import ir, stateful
from omz_tools.system import libraries

# Processors with bf16 units would use them unasked, and the text would be another one.
_SETTINGS = {"INFERENCE_PRECISION_HINT": "f32"}
# For an IR with a state that does not say how it is to be kept; see `stateful.CACHE`.
_CACHE_PRECISION = "f16"
_LAST = "last"
_BLOCK = 8  # tokens


class Predictor(Protocol):
    """A model that says what comes next.

    Attributes:
        way: how it computes that, for people.
        vocabulary: the number of tokens that it has logits of.
    """

    way: str
    vocabulary: int

    def logits(self, rows: Sequence[Sequence[int]]) -> Any:
        """The logits of the token after each row, f32 [B, vocabulary].

        Args:
            rows: token ids of each text so far, at least one, below `vocabulary`, no more than the model has positions.

        Raises:
            ModelError: the runtime failed.
        """


def load(xml: Path, positions: int, device: str = "CPU") -> Predictor:
    """A model, compiled for a device of OpenVINO.

    Args:
        xml: its IR.
        positions: how many tokens a row will have at most.
        device: where it is to be computed.

    Raises:
        ModelError: it cannot be read or compiled, or is none that predicts tokens.
        SelectionError: there is no such device.
        ConversionError: OpenVINO is not installed.
    """
    openvino = libraries.load("openvino")
    model = ir.load(xml)
    inputs = {port.get_any_name() for port in model.inputs}
    scores = model.outputs[0].get_partial_shape()
    if scores.rank != openvino.Dimension(3) or scores[2].is_dynamic:
        raise ModelError(f"{xml} does not give logits [B, L, vocabulary], but {scores}", hint=_EXPECTED)
    if inputs >= {"input_ids", "attention_mask"} and model.get_variables():
        return _Stateful(xml, model, device)
    if len(inputs) == 1 and model.inputs[0].get_partial_shape().rank == openvino.Dimension(2):
        return _Stateless(xml, model, positions, device)
    raise ModelError(f"{xml} takes {', '.join(sorted(inputs))}, which is no text alone", hint=_EXPECTED)


_EXPECTED = "Give an IR that omz_converter made of a model that predicts text."


class _Stateless:
    """One input of token ids [B, L]: the whole text is computed for each token.

    Attention is causal, so what stands to the right of a text changes nothing. Shorter ones are filled up there, and
    all to a multiple of some tokens: OpenVINO prepares itself anew for each length that it has not seen.
    """

    way = "no key/value cache: the whole text is computed anew for each token"

    def __init__(self, xml: Path, model: Any, positions: int, device: str) -> None:
        self.vocabulary: int = model.outputs[0].get_partial_shape()[2].get_length()
        self._positions = positions
        self._xml, self._type = xml, model.inputs[0].get_element_type().to_dtype()
        opset = libraries.load("openvino.opset13")
        last = opset.parameter([-1, 1], libraries.load("numpy").int64, name=_LAST)
        last.output(0).set_names({_LAST})
        _give_one_alone(model, last, 1)
        model.add_parameters([last])
        model.validate_nodes_and_infer_types()
        self._compiled = _compile(xml, model, device, _SETTINGS)

    def logits(self, rows: Sequence[Sequence[int]]) -> Any:
        np = libraries.load("numpy")
        longest = max(map(len, rows))
        ids = np.zeros((len(rows), min(longest + -longest % _BLOCK, self._positions)), self._type)
        for place, row in zip(ids, rows, strict=True):
            place[: len(row)] = row
        last = np.array([[len(row) - 1] for row in rows], np.int64)
        return _run(self._xml, self._compiled, {0: ids, _LAST: last})[:, 0]


def _give_one_alone(model: Any, position: Any, batch_dims: int = 0) -> None:
    """Let a model compute the logits of one position of each row alone, of which a node gives the index.

    Those of all positions take a third of gpt-2's work, and 200 kB of memory each.
    """
    opset = libraries.load("openvino.opset13")
    scores = model.outputs[0].get_partial_shape()
    port = model.outputs[0].get_node().input(0)
    product = port.get_source_output().get_node()
    if product.get_type_name() == "MatMul" and product.get_input_partial_shape(0).rank == scores.rank:
        port = product.input(0)
    one = opset.gather(port.get_source_output(), position, opset.constant(1), batch_dims)
    port.replace_source_output(one.output(0))


class _Stateful:
    """Inputs and state as OpenVINO GenAI has them: a model that keeps what it has computed is given new tokens alone.

    A row that begins with one of the last call goes on from its state, in whichever order they come; rows that do not
    all do so, each by as many tokens, begin anew, filled up at the left, where the mask hides it.
    """

    def __init__(self, xml: Path, model: Any, device: str) -> None:
        self.vocabulary: int = model.outputs[0].get_partial_shape()[2].get_length()
        self._xml = xml
        kept = stateful.asks_for_cache(model) or _CACHE_PRECISION
        self.way = f"with a key/value cache in {kept}"
        self._inputs = {port.get_any_name() for port in model.inputs}
        _give_one_alone(model, libraries.load("openvino.opset13").constant([-1]))
        model.validate_nodes_and_infer_types()
        self._request = _compile(xml, model, device, _SETTINGS, {stateful.CACHE_SETTING: kept}).create_infer_request()
        self._rows: list[list[int]] = []
        self._mask: Any = None
        # OpenVINO lays weights out when it first meets a prompt, and again when it first meets a token alone.
        for row in ([0, 0], [0, 0, 0]):
            self.logits([row])
        self._rows = []

    def logits(self, rows: Sequence[Sequence[int]]) -> Any:
        np = libraries.load("numpy")
        before = [self._before(row) for row in rows]
        new = {len(row) - len(self._rows[place]) for row, place in zip(rows, before, strict=True) if place is not None}
        if None in before or len(new) != 1:
            self._request.reset_state()
            before, count = list(range(len(rows))), max(map(len, rows))
            seen = np.zeros((len(rows), 0), np.int64)
        else:
            [count] = new
            seen = self._mask[before]
        ids, mask = np.zeros((2, len(rows), count), np.int64)
        for tokens, shown, row in zip(ids, mask, rows, strict=True):
            fresh = row[-count:]
            tokens[count - len(fresh) :], shown[count - len(fresh) :] = fresh, 1
        self._mask = np.concatenate([seen, mask], axis=1)
        positions = np.maximum(self._mask.cumsum(axis=1) - 1, 0)[:, -count:]
        given = {
            "input_ids": ids, "attention_mask": self._mask, "position_ids": positions,
            "beam_idx": np.array(before, np.int32),
        }  # fmt: skip
        self._rows = []  # whatever comes of this run, the state is another one
        found = _run(self._xml, self._request, {name: given[name] for name in given if name in self._inputs})[:, -1]
        self._rows = [list(row) for row in rows]
        return found

    def _before(self, row: Sequence[int]) -> int | None:
        """The row of the last call that this one goes on from."""
        begins = (n for n, known in enumerate(self._rows) if len(known) < len(row) and row[: len(known)] == known)
        return next(begins, None)


def _compile(xml: Path, model: Any, device: str, *settings: dict[str, str]) -> Any:
    core = libraries.load("openvino").Core()
    known = core.available_devices
    if device.partition(":")[0].partition(".")[0] not in {*known, *(one.partition(".")[0] for one in known), *_VIRTUAL}:
        raise SelectionError(f"There is no device {device!r}", hint=f"There are: {', '.join(known)}.")
    wanted = {name: value for some in settings for name, value in some.items()}
    if device != "CPU":  # of the others not all know these
        supported = {} if device.partition(":")[0] in _VIRTUAL else core.get_property(device, "SUPPORTED_PROPERTIES")
        wanted = {name: value for name, value in wanted.items() if name in supported}
    try:
        return core.compile_model(model, device, wanted)
    except Exception as error:
        raise ModelError(f"OpenVINO could not compile {xml} for {device}: {libraries.reason(error)}") from error


_VIRTUAL = ("AUTO", "HETERO", "MULTI", "BATCH")


def _run(xml: Path, runner: Any, inputs: dict[Any, Any]) -> Any:
    """The first output f32 [B, L, vocabulary], which stays until the next run."""
    try:
        run = runner if callable(runner) else runner.infer
        return run(inputs, share_inputs=True, share_outputs=True)[0]
    except Exception as error:
        raise ModelError(f"OpenVINO could not run {xml}: {libraries.reason(error)}") from error
