"""What the result of a stage depends on: while that is the same, nothing is done twice."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

# Names and versions, settings, digests: all of it JSON.
Ingredients = dict[str, Any]


def key(ingredients: Ingredients) -> str:
    """The name under which a result with these ingredients is kept: a sha256 in hex."""
    return hashlib.sha256(json.dumps(ingredients, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def changes(old: Ingredients, new: Ingredients) -> str:
    """What is different, in words for people; empty if nothing is."""
    found = list(_changes("", old, new))
    more = f", and {len(found) - 3} more" if len(found) > 3 else ""
    return ", ".join(found[:3]) + more


def _changes(place: str, old: Any, new: Any) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            yield from _changes(f"{place} {name}".strip(), old.get(name), new.get(name))
    elif old != new:
        yield f"{place} is {_word(new)}, was {_word(old)}"


def _word(value: Any) -> str:
    text = "not there" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:12]}…"
