"""What a text may be asked for with, as people write it: on a command line, or in the fields of a page.

Each function takes what was written and gives the value; argparse.ArgumentTypeError says what is wrong with it.
"""

import argparse
import secrets


def temperature(text: str) -> float:
    number = _number(text)
    if number is None or not (number == 0 or 0.01 <= number <= 100):
        raise argparse.ArgumentTypeError(f"{text!r} is neither 0 nor a number from 0.01 to 100")
    return number


def top_p(text: str) -> float:
    number = _number(text)
    if number is None or not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return number


def top_k(text: str) -> int:
    if not _digits(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 on")
    return int(text)


def max_tokens(text: str) -> int:
    if not _digits(text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def seed(text: str) -> int:
    if not _digits(text) or int(text) >= 1 << 64:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 to 2**64 - 1")
    return int(text)


def new_seed() -> int:
    """One for a text that nobody gave a seed for; short enough to be written down."""
    return secrets.randbelow(1 << 32)


def stop(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("an empty text is everywhere")
    return text


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _digits(text: str) -> bool:
    return text.isdecimal() and len(text) <= 100  # Python refuses to read thousands of them
