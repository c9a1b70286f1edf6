"""Text from models with a key/value cache: tokens/s and time to the first token, and what the memory would allow.

MODEL_DIR is what `omz_converter` and `omz_converter --variant stateful` made of a model: FP16/gpt-2.xml, and
stateful/FP16/openvino_model.xml with its tokenizer beside it; and the same of other precisions. Compared are, where
they are named:

- FP16 with FP16-INT8, whose weights are half as many bytes
- what optimum-intel made of the same weights, OPTIMUM_DIR/FP16/openvino_model.xml and so on, with a Python of its own:
  optimum-cli export openvino -m CHECKPOINT --task text-generation-with-past --weight-format fp16 OPTIMUM_DIR/FP16
- Open Model Zoo's gpt2_text_prediction_demo.py as it is, on IRs without a cache, by an OpenVINO that it still runs on

IRs with a cache, ours and optimum-intel's, are run by one loop and the OpenVINO of this environment: with the same type
of cached keys and values, and then without any setting, so that the IR decides. All ways take the most probable token;
only the commands by their plain names draw one, as they do unless told otherwise.

Each way has a process of its own. Those that loop are started anew in each turn, since where weights come to lie in
memory makes ten percent, and they alternate, after a short text to warm up. A command makes one text in a turn, its
first after loading, which never counts. No prompt comes twice. tokens/s are of the whole text; "next" is the mean time
of a token that is not the first. The limit is what the memory gives, measured in each turn, over the bytes of weights
that a token needs.
"""

import argparse
import importlib.util
import shutil
import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bandwidth
import generating
import measuring
import numpy as np
import openvino
from generating import Compiled, Generate, Generated, Prompt, Way

MODEL = "openvino_model.xml"
WARM_UP = 8  # tokens: OpenVINO lays weights out when it first meets a prompt, and when it first meets a token
OURS, OPTIMUM, GENAI = "omz_tools", "optimum-intel", "omz_tools with openvino_genai"
GREEDY, SAMPLING = "omz_text_prediction --temperature 0", "omz_text_prediction"
# What a precision is compared with, where both are there, and how that one is called then.
BESIDE = {"FP16-INT8": ("FP16", f"{OURS}, weights in f16")}
DYNAMIC, PADDED = "Open Model Zoo's demo --dynamic_shape", "Open Model Zoo's demo"


def main() -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("model_dir", type=Path, metavar="MODEL_DIR", help="with stateful/FP16 and others")
    parser.add_argument("--optimum", type=Path, metavar="OPTIMUM_DIR", help="with FP16 and others of optimum-intel")
    parser.add_argument("--incumbent", type=Path, metavar="PYTHON", help="one with openvino 2024.6 and tokenizers")
    parser.add_argument("--incumbent_demo", type=Path, metavar="SCRIPT", help="Open Model Zoo's demo")
    parser.add_argument(
        "--incumbent_ir", type=Path, metavar="IR_DIR", help="FP16/gpt-2.xml for it (default: MODEL_DIR)"
    )
    parser.add_argument("--precisions", nargs="+", metavar="P", help="default: those in MODEL_DIR/stateful")
    parser.add_argument("--cache", default="f16", metavar="TYPE", help="the same one for all (default: f16)")
    parser.add_argument(
        "--prompts", type=int, nargs="+", default=[32, 512], metavar="N", help="tokens (default: 32 512)"
    )
    parser.add_argument("--tokens", type=int, default=128, metavar="N", help="new ones of each text (default: 128)")
    parser.add_argument("--turns", type=int, default=8, metavar="N", help="an even number is fair (default: 8)")
    parser.add_argument("--rounds", type=int, default=1, metavar="N", help="texts in each turn (default: 1)")
    parser.add_argument("--threads", type=int, metavar="N", help="of each that loops (default: OpenVINO's)")
    parser.add_argument("--command_turns", type=int, default=2, metavar="N", help="those of commands (default: 2)")
    args = parser.parse_args()
    if bool(args.incumbent) != bool(args.incumbent_demo):
        parser.error("--incumbent and --incumbent_demo go together")
    precisions = args.precisions or sorted(xml.parent.name for xml in args.model_dir.glob(f"stateful/*/{MODEL}"))
    texts = f"median of {args.turns} x {args.rounds} texts, of commands {min(args.turns, args.command_turns)}"
    texts += f", {args.threads} thread" + "s" * (args.threads > 1) if args.threads else ""
    title = f"{args.tokens} new tokens, {texts}, OpenVINO {openvino.get_version().split('-')[0]}"
    measuring.say(title)
    memory: list[dict[str, float]] = []
    tables = []
    for precision in precisions:
        made = compare(precision, args, memory)
        for table in made:
            measuring.say(text(table, memory))
        tables += made
    measuring.say(f"memory: {bandwidth.words(memory)}")
    measuring.write(args.json, "generation", {"title": title, "memory": memory, "tables": tables})


@dataclass(frozen=True)
class Group:
    """Ways that are there at the same time and alternate.

    Attributes:
        ways: by their names.
        turns: how often they are started.
        rounds: the texts in each turn; those below 0 are to warm up.
    """

    ways: dict[str, Way]
    turns: int
    rounds: range


@dataclass
class Row:
    """What a way did: the texts, and what is known of the IR."""

    texts: list[Generated] = field(default_factory=list)
    compiled: Compiled | None = None


Rows = dict[str, Row]


def compare(precision: str, args: argparse.Namespace, memory: list[dict[str, float]]) -> list[dict[str, Any]]:
    """A table for each prompt; how fast the memory is goes to `memory` in each turn."""
    folder = args.model_dir / "stateful" / precision
    prompts = [draw_prompts(folder, count, range(-1, args.rounds)) for count in args.prompts]
    groups = all_ways(precision, args)
    tables: list[Rows] = [{name: Row() for group in groups for name in group.ways} for _ in prompts]
    for turn in range(args.turns):
        threads = []
        for group in groups:
            if turn >= group.turns:
                continue
            with ExitStack() as stack:
                names = sorted(group.ways, reverse=turn % 2 == 0)
                started = {name: stack.enter_context(group.ways[name]()) for name in names}
                threads += [compiled.threads for _, compiled in started.values() if compiled]
                for rows, given in zip(tables, prompts, strict=True):
                    in_turn(rows, started, given, args.tokens, group.rounds)
        memory.append(bandwidth.measure(max(threads)))
    return [as_table(precision, count, rows, args.cache) for count, rows in zip(args.prompts, tables, strict=True)]


def all_ways(precision: str, args: argparse.Namespace) -> list[Group]:
    """As many as there are: some loop, and are compared in two groups; each command is for itself."""
    ours = args.model_dir / "stateful" / precision
    folders = {OPTIMUM: args.optimum / precision} if args.optimum and (args.optimum / precision).is_dir() else {}
    folders[OURS] = ours
    threads = {"INFERENCE_NUM_THREADS": str(args.threads)} if args.threads else {}
    settings = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": args.cache, **threads}
    same = {cached(name, args.cache): generating.loop(folder / MODEL, settings) for name, folder in folders.items()}
    if precision in BESIDE and (ours.parent / BESIDE[precision][0]).is_dir():
        other, name = BESIDE[precision]
        same[cached(name, args.cache)] = generating.loop(ours.parent / other / MODEL, settings)
    as_it_is = {name: generating.loop(folder / MODEL, threads) for name, folder in folders.items()}
    if importlib.util.find_spec("openvino_genai"):
        as_it_is[GENAI] = generating.genai(ours, threads)
    commands = {}
    if shutil.which(measuring.found(["omz_text_prediction"])[0]):
        commands |= {GREEDY: generating.command(ours, "--temperature", "0"), SAMPLING: generating.command(ours)}
    for xml in ((args.incumbent_ir or args.model_dir) / precision).glob("*.xml") if args.incumbent else ():
        start = [args.incumbent, args.incumbent_demo, xml, (ours / "vocab.json", ours / "merges.txt")]
        commands |= {DYNAMIC: generating.demo(*start, dynamic=True), PADDED: generating.demo(*start, dynamic=False)}
    loops = [Group(ways, args.turns, range(-1, args.rounds)) for ways in (same, as_it_is)]
    return loops + [Group({name: way}, args.command_turns, range(1)) for name, way in commands.items()]


def cached(name: str, cache: str) -> str:
    return f"{name}, cache in {cache}"


def draw_prompts(folder: Path, count: int, rounds: range) -> dict[int, Prompt]:
    """For each round so many words, each of which is one token of the tokenizer in `folder`.

    None begins as another one does: OpenVINO GenAI keeps what it has computed of a prompt.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    # A space is written so in a vocabulary of bytes.
    words = sorted(word[1:] for word in tokenizer.get_vocab() if word.startswith("Ġ"))
    words = [f" {word}" for word in words if word.isascii() and word.isalpha()]
    draw = np.random.default_rng(0)
    firsts = draw.choice(words, len(rounds), replace=False)
    texts = ["".join([first, *draw.choice(words, count - 1)]) for first in firsts]
    prompts = [Prompt(text, tokenizer.encode(text).ids) for text in texts]
    assert all(len(prompt.ids) == count for prompt in prompts)
    return dict(zip(rounds, prompts, strict=True))


def in_turn(
    rows: Rows,
    started: Mapping[str, tuple[Generate, Compiled | None]],
    prompts: Mapping[int, Prompt],
    count: int,
    rounds: range,
) -> None:
    """Let each continue the prompts of the rounds; whoever was started first is first in every other round."""
    for turn in rounds:
        for name in list(started)[:: -1 if turn % 2 else 1]:
            generate, compiled = started[name]
            if turn < 0:
                generate(prompts[turn], min(count, WARM_UP))
            else:
                rows[name].compiled = compiled
                rows[name].texts.append(generate(prompts[turn], count))


def as_table(precision: str, count: int, rows: Rows, cache: str) -> dict[str, Any]:
    """What all ways made of prompts of `count` tokens, as it is written down."""
    rows = {name: row for name, row in rows.items() if row.texts}
    pairs = [
        (cached(OURS, cache), cached(OPTIMUM, cache)), (OURS, OPTIMUM), (GENAI, OURS), (GREEDY, DYNAMIC),
        (GREEDY, PADDED), (SAMPLING, DYNAMIC), (SAMPLING, PADDED),
        *((cached(OURS, cache), cached(name, cache)) for _, name in BESIDE.values()),
    ]  # fmt: skip
    return {
        "precision": precision,
        "prompt": count,
        "rows": {
            name: {
                "weights": row.compiled and row.compiled.weights,
                "cache": row.compiled and row.compiled.cache,
                "texts": [
                    {
                        "tokens": one.tokens,
                        "seconds": one.seconds,
                        "first": one.first,
                        "rate": one.rate,
                        "next": one.next,
                    }
                    for one in row.texts
                ],
            }
            for name, row in rows.items()
        },
        "ratios": [ratio(rows, *pair) for pair in pairs if rows.keys() >= {*pair}],
    }


def ratio(rows: Rows, some: str, other: str) -> dict[str, Any]:
    """How one way did beside another one that took turns with it, and how many tokens of both are equal."""
    ours, theirs = rows[some].texts, rows[other].texts
    ratios = {
        what: measuring.ratio([getattr(one, what) for one in ours], [getattr(one, what) for one in theirs])
        for what in ("rate", "first", "next")
    }
    both = list(zip(ours[0].ids, theirs[0].ids, strict=False))
    same = next((at for at, (one, another) in enumerate(both) if one != another), len(both))
    return {"of": some, "to": other, **ratios} | ({"same": same} if both else {})


def text(table: Mapping[str, Any], memory: Sequence[Mapping[str, float]]) -> str:
    """The table for people."""
    moved = bandwidth.most(memory)
    lines = [f"{table['precision']}, prompt of {table['prompt']} tokens"]
    for name, row in table["rows"].items():
        rates = [one["rate"] for one in row["texts"]]
        first, token = (statistics.median(one[what] for one in row["texts"]) * 1e3 for what in ("first", "next"))
        line = f"{name:42}  {statistics.median(rates):6.2f} tokens/s  ({min(rates):.2f} to {max(rates):.2f})"
        line += f"  first {first:8.1f} ms  next {token:8.2f} ms"
        if row["weights"]:
            read = row["weights"] / token / 1e6
            line += f"  {row['weights'] / 1e6:.0f} MB: {read:.1f} GB/s, {read / moved:.0%}  cache {row['cache']}"
        lines.append(line)
    for pair in table["ratios"]:
        line = f"{pair['of']} beside {pair['to']}: tokens/s x{pair['rate']:.3f}, first x{pair['first']:.3f}"
        line += f", next x{pair['next']:.3f}" + (f", the first {pair['same']} tokens equal" if "same" in pair else "")
        lines.append(line)
    lines.append(f"{'(limit of the memory)':42}  {bandwidth.limit(table, memory):6.2f} tokens/s")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
