"""The ways of generating a text that generation.py compares: each is asked for tokens, and timed as they come."""

import math
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import measuring
import numpy as np

# Tokens that the demo is asked for when it fills each request up to its longest: all of them cost the same, seconds.
PADDED = 8


@dataclass(frozen=True)
class Prompt:
    """The same prompt as a text and as token ids."""

    text: str
    ids: list[int]


@dataclass(frozen=True)
class Generated:
    """One text.

    Attributes:
        tokens: how many came.
        first: seconds from the prompt to the first of them.
        seconds: from the prompt to the last.
        ids: which ones came; empty where the way does not tell.
    """

    tokens: int
    first: float
    seconds: float
    ids: tuple[int, ...] = ()

    @property
    def rate(self) -> float:
        """Tokens/s of the whole text."""
        return self.tokens / self.seconds

    @property
    def next(self) -> float:
        """Seconds of a token that is not the first: their mean."""
        return (self.seconds - self.first) / (self.tokens - 1)


@dataclass(frozen=True)
class Compiled:
    """What OpenVINO made of an IR.

    Attributes:
        weights: bytes, as they lie in memory, that each token needs.
        cache: the type of the keys and values that are kept.
        threads: how many compute.
    """

    weights: int
    cache: str
    threads: int


Generate = Callable[[Prompt, int], Generated]
# Started, it gives what generates, and what is known of the IR.
Way = Callable[[], AbstractContextManager[tuple[Generate, Compiled | None]]]


def loop(xml: Path, settings: Mapping[str, str]) -> Way:
    """The least loop there is: the most probable token, by NumPy's argmax, goes into the next request."""
    return lambda: _asking(_loop, xml, dict(settings))


def genai(folder: Path, settings: Mapping[str, str]) -> Way:
    """openvino_genai.LLMPipeline as it starts: token ids in, the most probable token each time, to a streamer."""
    return lambda: _asking(_genai, folder, dict(settings))


def command(folder: Path, *options: str) -> Way:
    """omz_text_prediction as a whole process, by what it writes; loading does not count, and nothing is warmed up."""

    def generate(prompt: Prompt, count: int) -> Generated:
        words = ["omz_text_prediction", "-m", folder, "-i", prompt.text, "--max_tokens", str(count), *options]
        said = Output(words)
        size = len(prompt.text.encode())
        began, first, last = said.at(size), said.at(size + 1), said.pieces[-1][0]
        [tokens] = re.findall(r"^([\d,]+) tokens,", said.errors, re.MULTILINE)
        return Generated(int(tokens.replace(",", "")), first - began, last - began)

    return _process(generate)


def demo(python: Path, script: Path, xml: Path, tokenizer: Sequence[Path], *, dynamic: bool) -> Way:
    """Open Model Zoo's demo as a whole process, by the lines that it writes; loading does not count.

    Args:
        python: the one that it runs with.
        script: gpt2_text_prediction_demo.py.
        xml: an IR with one input and one output.
        tokenizer: vocab.json and merges.txt.
        dynamic: whether requests are as long as the text; otherwise each is filled up to 1024 tokens.
    """
    vocabulary, merges = tokenizer
    files = ["-m", xml, "-v", vocabulary, "--merges", merges]

    def generate(prompt: Prompt, count: int) -> Generated:
        wanted = count if dynamic else min(count, PADDED)
        words = [python, script, *files, "-i", prompt.text, "--max_sample_token_num", str(wanted)]
        said = Output(words + ["--dynamic_shape"] * dynamic, {"PYTHONPATH": None})
        [began], [end] = said.lines("Input prompt: "), said.lines(" requests were processed in ")
        requests = said.lines("Sequence of length ")
        return Generated(len(requests), requests[0] - began, end - began)

    return _process(generate)


def _process(generate: Generate) -> Way:
    @contextmanager
    def start() -> Iterator[tuple[Generate, None]]:
        yield generate, None

    return start


class Output:
    """What a command wrote until it ended, piece by piece, with the time at which each piece came.

    Raises SystemExit if it failed; its last words are in the message.
    """

    def __init__(self, command: Sequence[str | Path], settings: Mapping[str, str | None] | None = None) -> None:
        words = measuring.found(command)
        self.pieces: list[tuple[float, bytes]] = []
        with tempfile.TemporaryFile() as errors:
            environment = measuring.environment(settings)
            process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=errors)
            while piece := os.read(process.stdout.fileno(), 1 << 16):
                self.pieces.append((time.perf_counter(), piece))
            process.wait()
            errors.seek(0)
            self.errors = errors.read().decode(errors="replace")
        if process.returncode:
            said = b"".join(piece for _, piece in self.pieces).decode(errors="replace")
            sys.exit(f"{' '.join(words)} failed:\n{(said + self.errors)[-2000:]}")

    def at(self, size: int) -> float:
        """When so many bytes had come."""
        for seconds, piece in self.pieces:
            size -= len(piece)
            if size <= 0:
                return seconds
        raise EOFError

    def lines(self, text: str) -> list[float]:
        """When each line with this text in it had come."""
        whole = b"".join(piece for _, piece in self.pieces)
        ends = [found.end() for found in re.finditer(rb"[^\n]*\n", whole) if text.encode() in found[0]]
        return [self.at(end) for end in ends]


@contextmanager
def _asking(answer: Callable[..., None], *more: Any) -> Iterator[tuple[Generate, Compiled | None]]:
    """A process that says what it has loaded, and then generates on request."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=answer, args=(theirs, *more), daemon=True)
    process.start()
    theirs.close()

    def generate(prompt: Prompt, count: int) -> Generated:
        ours.send((prompt.ids, count))
        arrivals, ids = ours.recv()
        return Generated(len(ids), arrivals[0], arrivals[-1], tuple(ids))

    yield generate, ours.recv()
    process.kill()
    process.join()


def _loop(asked: Connection, xml: Path, settings: dict[str, str]) -> None:
    import openvino

    model = openvino.Core().compile_model(xml, "CPU", settings)
    request, names = model.create_infer_request(), {port.get_any_name() for port in model.inputs}
    asked.send(_compiled(model))
    beams = np.zeros(1, np.int32)
    while True:
        ids, count = asked.recv()
        arrivals, found = [], []
        tokens, begin = np.array([ids]), 0
        mask, positions = np.ones((1, len(ids) + count), np.int64), np.arange(len(ids) + count)[None]
        began = time.perf_counter()
        request.reset_state()
        while len(found) < count:
            end = begin + tokens.shape[1]
            given = {
                "input_ids": tokens, "attention_mask": mask[:, :end], "position_ids": positions[:, begin:end],
                "beam_idx": beams,
            }  # fmt: skip
            wanted = {name: given[name] for name in names}
            logits = request.infer(wanted, share_inputs=True, share_outputs=True)[0]
            found.append(int(logits[0, -1].argmax()))
            arrivals.append(time.perf_counter() - began)
            tokens, begin = np.array([found[-1:]]), end
        asked.send((arrivals, found))


def _compiled(model: Any) -> Compiled:
    """Bytes of weights are those that the matrix products take, tables of scales and biases included.

    The tables of tokens and positions are left out: of them a token needs a row each.
    """
    weights = 0
    for node in model.get_runtime_model().get_ops():
        if node.get_rt_info()["layerType"].astype(str) == "FullyConnected":
            for port in node.input_values()[1:]:
                weights += math.prod(port.get_shape()) * port.get_element_type().bitwidth // 8
    cache = model.get_property("KV_CACHE_PRECISION").to_string()
    return Compiled(weights, cache, model.get_property("INFERENCE_NUM_THREADS"))


def _genai(asked: Connection, folder: Path, settings: dict[str, str]) -> None:
    import openvino
    import openvino_genai

    class Clock(openvino_genai.StreamerBase):
        def __init__(self) -> None:
            super().__init__()
            self.arrivals: list[float] = []
            self.ids: list[int] = []

        def write(self, token: int | list[int]) -> Any:
            now = time.perf_counter()
            some = token if isinstance(token, list) else [token]
            self.ids += some
            self.arrivals += [now] * len(some)
            return openvino_genai.StreamingStatus.RUNNING

        def end(self) -> None:
            pass

    pipeline = openvino_genai.LLMPipeline(folder, "CPU", **settings)
    asked.send(None)
    while True:
        ids, count = asked.recv()
        wish = openvino_genai.GenerationConfig(max_new_tokens=count, do_sample=False, ignore_eos=True)
        clock = Clock()
        tensors = (openvino.Tensor(array) for array in (np.array([ids]), np.ones((1, len(ids)), np.int64)))
        given = openvino_genai.TokenizedInputs(*tensors)
        began = time.perf_counter()
        pipeline.generate(given, wish, clock)
        asked.send(([arrival - began for arrival in clock.arrivals], clock.ids))
