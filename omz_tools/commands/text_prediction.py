"""omz_text_prediction: a converted model continues prompts, token by token."""

import argparse
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from omz_tools.commands.arguments import Parser, positive, run
from omz_tools.descriptors import zoo
from omz_tools.descriptors.descriptor import PRECISIONS
from omz_tools.errors import SelectionError, context
from omz_tools.generation import continuing, options, output, places, sampling
from omz_tools.generation.continuing import Model, Wish
from omz_tools.generation.places import Place
from omz_tools.generation.sampling import Sampling
from omz_tools.progress.reporting import PlainReporter, Reporter, writing
from omz_tools.system import libraries


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0, 1 for an error, or 2 for wrong usage."""
    parser = _parser()
    args = parser.parse(argv)
    _check(parser, args)
    reporter = PlainReporter(sys.stderr)  # standard output is for the text alone
    seed = options.new_seed() if args.seed is None else args.seed
    wish = Wish(args.max_tokens, Sampling(args.temperature, args.top_k, args.top_p, seed), tuple(args.stop))

    work = _write if args.serve is None else _serve
    return run(lambda: work(args, wish, reporter), reporter)


def _parser() -> Parser:
    parser = Parser(
        "Continue prompts with a converted model. The text, prompt and continuation, goes to standard output as it "
        "comes; all else to standard error. Takes the options of Open Model Zoo's gpt2_text_prediction_demo, but for "
        "its -d, which is --device here."
    )
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("--name", metavar="NAME", help="a model of the zoo, downloaded and converted")
    choice.add_argument(
        "-m", "--model", type=Path, metavar="PATH", help="the .xml of an IR, or a folder that omz_converter filled"
    )
    parser.add_argument(
        "--models_dir", type=Path, action="append", default=[], metavar="DIR",
        help="a folder of your own model.yml descriptors, which go before the shipped ones; may be repeated",
    )  # fmt: skip
    parser.add_argument("-d", "--download_dir", type=Path, metavar="DIR", help="where the models are (default: here)")
    parser.add_argument(
        "-o", "--output_dir", type=Path, metavar="DIR", help="where the converted models are (default: there)"
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        metavar="P",
        help="FP32, FP16 or FP16-INT8 (default: the first of these that is there)",
    )
    parser.add_argument("--device", default="CPU", metavar="DEVICE", help="of OpenVINO (default: CPU)")
    parser.add_argument(
        "-v", "--vocab", type=Path, metavar="FILE", help="the tokenizer's vocab.json (default: that of the checkpoint)"
    )
    parser.add_argument("--merges", type=Path, metavar="FILE", help="and its merges.txt")
    parser.add_argument(
        "-i", "--input", action="append", metavar="TEXT",
        help="a prompt; may be repeated (default: each line of standard input; on a terminal, an empty one ends it)",
    )  # fmt: skip
    parser.add_argument("--batch_size", type=positive, default=1, metavar="N", help="prompts at a time (default: 1)")
    parser.add_argument(
        "--max_tokens", "--max_sample_token_num", type=options.max_tokens, default=40, metavar="N",
        help="new tokens of each text (default: 40)",
    )  # fmt: skip
    parser.add_argument(
        "--max_seq_len", type=positive, metavar="N",
        help="tokens of a text at most, the prompt counted (default, and most: as many as the model has positions)",
    )  # fmt: skip
    parser.add_argument("--dynamic_shape", action="store_true", help="changes nothing: texts are never filled up")
    parser.add_argument(
        "--temperature", type=options.temperature, default=1.0, metavar="T",
        help="what logits are divided by before a token is drawn; 0: the most probable one, always (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--top_k", type=options.top_k, default=0, metavar="N",
        help="draw from the N most probable tokens (default: 0, all)",
    )  # fmt: skip
    parser.add_argument(
        "--top_p", type=options.top_p, default=0.9, metavar="P",
        help="draw from the most probable tokens that together have probability P (default: 0.9; 1: all)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=options.seed, metavar="N",
        help="the same one gives the same text (default: another one each time)",
    )  # fmt: skip
    parser.add_argument(
        "--stop", type=options.stop, action="append", default=[], metavar="TEXT",
        help="end a text before this comes in it; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--serve", type=_port, nargs="?", const=8000, metavar="PORT",
        help="serve a page to try the model with, and open it; the options above are what it begins with (default: "
        "port 8000; 0: any that is free)",
    )  # fmt: skip
    parser.add_argument(
        "--host", metavar="HOST",
        help="the name or address that the page is served at, 0.0.0.0 for all of this machine; there is no password "
        "(default: 127.0.0.1, which no other machine reaches)",
    )  # fmt: skip
    return parser


def _check(parser: Parser, args: argparse.Namespace) -> None:
    """Wrong usage ends here."""
    if args.model and (args.download_dir or args.output_dir):
        parser.error("-d and -o are folders of models that --name chooses from; a device is said with --device")
    if bool(args.vocab) != bool(args.merges):
        parser.error("--vocab and --merges go together")
    if args.host and args.serve is None:
        parser.error("--host goes with --serve")
    if args.serve is not None and (len(args.input or ()) > 1 or args.batch_size > 1):
        parser.error("--serve begins with one prompt, and continues one at a time")


def _load(args: argparse.Namespace, wish: Wish, reporter: Reporter) -> tuple[Place, Model]:
    place, device = _place(args), args.device.upper()
    began = time.monotonic()
    model = continuing.load(place, device, args.max_seq_len)
    sampling.chooser(wish.sampling)  # loads what draws: that takes seconds, and is no part of the first text
    seconds = time.monotonic() - began
    reporter.note(f"{place.xml} on {device}, {model.predictor.way}; loaded in {seconds:.2f} s")
    return place, model


def _write(args: argparse.Namespace, wish: Wish, reporter: Reporter) -> int:
    """Continue all prompts, on standard output."""
    _, model = _load(args, wish, reporter)
    if args.temperature and args.seed is None:
        reporter.note(f"--seed {wish.sampling.seed} gives the same text again")
    batches = list(_batches(args.input, args.batch_size)) if args.input else ([line] for line in _lines())
    failed = shown = False
    for batch in batches:
        prompts: list[tuple[str, list[int]]] = []
        for prompt in batch:
            try:
                prompts.append((prompt, model.encode(prompt)))
            except SelectionError as error:  # of this prompt; the others may be better
                reporter.error(error)
                failed = True
        if prompts:
            output.write(model, prompts, wish, reporter, first=not shown)
            shown = True
    return 1 if failed else 0


def _serve(args: argparse.Namespace, wish: Wish, reporter: Reporter) -> int:
    """Serve the page until a signal comes."""
    for name in ("starlette", "uvicorn"):
        libraries.load(name, extra="serve")
    from omz_tools.page import application, serving

    host = args.host or "127.0.0.1"
    listener = serving.listening(host, args.serve)
    place, model = _load(args, wish, reporter)
    about = application.about(
        model, wish, name=place.name, file=place.xml, device=args.device.upper(), prompt="".join(args.input or ()),
        seed=args.seed,
    )  # fmt: skip
    if serving.reached_from_afar(listener):
        reporter.note("Whoever reaches this machine can use the page; there is no password.")

    def ready() -> None:
        url = serving.address(listener)
        with writing():
            print(url, flush=True)
        reporter.note("Ctrl-C ends it.")
        serving.show(url)

    serving.serve(model, about, wish, listener, host, ready)
    return 0


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 65535")
    return int(text)


def _place(args: argparse.Namespace) -> Place:
    files = (args.vocab, args.merges) if args.vocab else None
    if args.model:
        return places.of_path(args.model, args.precision, files)
    entries = zoo.select(zoo.find(args.models_dir), [args.name])
    if len(entries) > 1:
        names = ", ".join(entry.name for entry in entries)
        raise SelectionError(f"{args.name!r} names several models: {names}", hint="Choose one of them.")
    model = entries[0].load()
    download_dir = args.download_dir or Path()
    with context(f"model {model.name}"):
        return places.of_model(model, download_dir, args.output_dir or download_dir, args.precision, files)


def _batches(prompts: list[str], size: int) -> Iterator[list[str]]:
    rest = iter(prompts)
    while batch := list(itertools.islice(rest, size)):
        yield batch


def _lines() -> Iterator[str]:
    """The lines of standard input that are not empty; on a terminal, until one is.

    Raises:
        SelectionError: there are none, or they are no text.
    """
    asked = sys.stdin is not None and sys.stdin.isatty()
    given = False
    while True:
        if asked:
            print("> ", end="", file=sys.stderr, flush=True)
        try:
            line = sys.stdin.readline() if sys.stdin else ""
        except UnicodeDecodeError as error:
            raise SelectionError(f"standard input is not text: {error}", hint="Write it in UTF-8.") from None
        if line.strip():
            given = True
            yield line.rstrip("\r\n")
        elif asked or not line:
            break
    if asked and not line:  # Ctrl-D leaves the cursor behind the question
        print(file=sys.stderr)
    if not asked and not given:
        raise SelectionError("there is no prompt", hint="Give one with -i, or a line of standard input for each.")


if __name__ == "__main__":
    sys.exit(main())
