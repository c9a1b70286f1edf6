"""How far tests of many cases look: at a sample of them, or with OMZ_FAULTS=full in the environment at all."""

import os
from typing import TypeVar

T = TypeVar("T")


def full() -> bool:
    """Whether all cases are asked for."""
    return os.environ.get("OMZ_FAULTS") == "full"


def sample(few: T, all: T) -> T:
    """What there is to try: `few` by default."""
    return all if full() else few
