"""Which process made a file, said in the file's name, so that others can tell whether it has ended."""

import contextlib
import functools
import hashlib
import os
from pathlib import Path

# Hexadecimal digits; of them so many are the process number, which is below 2**22 on Linux.
TAG = 16
_NUMBER = 6


def tag() -> str:
    """What names this process, 16 hexadecimal digits: the system since its start, and a number in it."""
    return f"{_system() or 0:0{TAG - _NUMBER}x}{os.getpid() % 16**_NUMBER:0{_NUMBER}x}"


def has_ended(tag: str) -> bool:
    """Whether the process that a tag names has certainly ended: it was one of this system, and its number is free.

    False where that cannot be known: for a process of another system, or of this one before it was started again, or
    of another container; and where the number is in use again.
    """
    system, number = int(tag[:-_NUMBER], 16), int(tag[-_NUMBER:], 16)
    if not system or system != _system() or not number:
        return False
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return True
    except OSError:  # another user's
        return False
    return False


@functools.cache
def _system() -> int:
    """A number that just the processes have in common that see each other by number; 0 if that is not known."""
    with contextlib.suppress(OSError):  # no Linux: there is no /proc
        start = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        space = Path("/proc/self/ns/pid").stat().st_ino
        if start:
            return int(hashlib.sha256(f"{start} {space}".encode()).hexdigest()[: TAG - _NUMBER], 16)
    return 0
