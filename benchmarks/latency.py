"""Latency of gpt-2's IR beside that of Open Model Zoo's converter, both run by the OpenVINO of this environment.

IR_DIR has FP16/gpt-2.xml and FP32/gpt-2.xml, as `convert.py --keep DIR` leaves them in DIR/ours and DIR/incumbent.
Both models are compiled for the processor with INFERENCE_PRECISION_HINT f32 and answer the same random token ids in
turn; which of them is first changes from round to round. Each is in a process of its own, and new processes compile
them several times: where weights come to lie in memory makes one and the same file some percent slower or faster until
it is compiled again, and of two in one process the second is always slower. Measured is one synchronous request, its
output included. The ratio is the median of the ratios within each round. Where both were made from the same weights,
the last column shows that they answer alike.
"""

import multiprocessing
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import measuring
import numpy as np
import openvino

SHAPES = ((1, 16), (1, 128), (1, 1024), (4, 256))
PRECISIONS = ("FP16", "FP32")
VOCABULARY = 50257


def main() -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("ir_dir", type=Path, metavar="IR_DIR", help="with FP16/gpt-2.xml and FP32/gpt-2.xml")
    parser.add_argument("--incumbent", type=Path, metavar="IR_DIR", help="the same of Open Model Zoo's converter")
    parser.add_argument("--rounds", type=int, default=6, help="of each shape, after two to warm up (default: 6)")
    parser.add_argument("--compilations", type=int, default=5, help="each with its rounds (default: 5)")
    parser.add_argument("--shapes", type=shape, nargs="+", default=SHAPES, metavar="B,L", help="batch and length")
    args = parser.parse_args()
    folders = {"ours": args.ir_dir} | ({"incumbent": args.incumbent} if args.incumbent else {})
    count = f"{args.compilations} compilations of {args.rounds} rounds"
    title = f"one request, median of {count} in turn, OpenVINO {openvino.get_version().split('-')[0]}, f32"
    measuring.say(title)
    rows = []
    for precision in PRECISIONS:
        found: dict[tuple[int, int], list[Measured]] = {wanted: [] for wanted in args.shapes}
        for turn in range(args.compilations):
            with ExitStack() as stack:
                names = sorted(folders, reverse=turn % 2 == 0)
                runs = {name: stack.enter_context(running(folders[name] / precision / "gpt-2.xml")) for name in names}
                for wanted, measured in found.items():
                    measured.append(in_turn(runs, wanted, args.rounds))
        for (batch, length), measured in found.items():
            row = {"precision": precision, "batch": batch, "length": length, **together(measured)}
            measuring.say(line(row))
            rows.append(row)
    measuring.write(args.json, "latency", {"title": title, "rows": rows})


def shape(text: str) -> tuple[int, int]:
    batch, length = (int(part) for part in text.split(","))
    return batch, length


@contextmanager
def running(xml: Path) -> Iterator[Connection]:
    """A process that has compiled an IR: for token ids it gives the seconds of a request, for None the last answer."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=answer, args=(xml, theirs), daemon=True)
    process.start()
    ours.recv()
    yield ours
    process.kill()
    process.join()


def answer(xml: Path, asked: Connection) -> None:
    model = openvino.Core().compile_model(xml, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
    asked.send(None)
    while True:
        ids = asked.recv()
        if ids is None:
            asked.send(model.get_output_tensor(0).data)
            continue
        began = time.perf_counter()
        model.infer([ids], share_inputs=True, share_outputs=True)
        asked.send(time.perf_counter() - began)


@dataclass
class Measured:
    """Seconds of each request of each model, and how far the answers are apart, relative to the incumbent's largest."""

    seconds: dict[str, list[float]]
    difference: float | None


def in_turn(runs: dict[str, Connection], shape: tuple[int, int], rounds: int) -> Measured:
    ids = np.random.default_rng(0).integers(0, VOCABULARY, shape, dtype=np.int64)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(-2, rounds):
        for name in sorted(runs, reverse=turn % 2 == 0):
            runs[name].send(ids)
            taken = runs[name].recv()
            if turn >= 0:
                seconds[name].append(taken)
    return Measured(seconds, difference(runs) if len(runs) > 1 else None)


def difference(runs: dict[str, Connection]) -> float:
    answers = {}
    for name, run in runs.items():
        run.send(None)
        answers[name] = run.recv()
    return float(np.abs(answers["ours"] - answers["incumbent"]).max() / np.abs(answers["incumbent"]).max())


def together(measured: list[Measured]) -> dict[str, Any]:
    """What all compilations of a shape came to."""
    seconds = {name: [s for one in measured for s in one.seconds[name]] for name in measured[0].seconds}
    found: dict[str, Any] = {"seconds": seconds}
    if len(seconds) > 1:
        found["ratio"] = measuring.ratio(seconds["ours"], seconds["incumbent"])
        found["difference"] = max(one.difference for one in measured)
    return found


def line(row: dict[str, Any]) -> str:
    medians = "  ".join(f"{name} {statistics.median(some) * 1e3:8.1f} ms" for name, some in row["seconds"].items())
    text = f"{row['precision']}  ({row['batch']}, {row['length']:4})  {medians}"
    return text + (f"  x{row['ratio']:.3f}  difference {row['difference']:.1e}" if "ratio" in row else "")


if __name__ == "__main__":
    main()
