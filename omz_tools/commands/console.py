"""Where the commands begin: a signal while their modules are loaded ends them as one does later."""

import importlib
import os
import signal
from types import FrameType


def downloader() -> int:
    return _begin("downloader")


def converter() -> int:
    return _begin("converter")


def pin() -> int:
    return _begin("pin")


def cache() -> int:
    return _begin("cache")


def verify() -> int:
    return _begin("verify")


def analyzer() -> int:
    return _begin("analyzer")


def evaluator() -> int:
    return _begin("evaluator")


def text_prediction() -> int:
    return _begin("text_prediction")


def info_dumper() -> int:
    return _begin("info_dumper")


def _begin(name: str) -> int:
    """Load a command and run it; the exit status."""
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGTERM, _end)
    if before != signal.SIG_IGN:
        signal.signal(signal.SIGINT, _end)
    main = importlib.import_module(f"omz_tools.commands.{name}").main
    try:
        signal.signal(signal.SIGINT, before)
        return int(main())
    except KeyboardInterrupt:  # before the work begins, or after it
        return 130


def _end(number: int, frame: FrameType | None) -> None:
    # At once: nothing has been done yet, and of an exception modules that are just loaded would make what they like.
    if number == signal.SIGINT:
        os.write(2, b"Interrupted.\n")
    os._exit(128 + number)
