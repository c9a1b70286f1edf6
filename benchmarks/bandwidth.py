"""How many bytes the memory of this machine moves: no model that needs all of its weights for each token goes faster.

After STREAM (J. D. McCalpin, "Memory Bandwidth and Machine Balance in Current High Performance Computers", IEEE TCCA
Newsletter, December 1995; https://www.cs.virginia.edu/stream/): arrays of at least four times the caches, all
processors at once, bytes as the kernel names them, the best of several passes. Of its kernels there are `copy`, a = b,
and `triad`, a = b + q * c, in the two steps that NumPy has for it. A token only reads, and so does `read`: a + b, block
by block into the cache.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

_PASSES = 10
_LEAST = 256e6  # bytes of an array; a virtual machine may not know how large the caches are that it has a share of
_BLOCK = 1 << 14  # numbers that stay in the cache of a processor between two steps


def measure(threads: int) -> dict[str, float]:
    """GB/s, 1e9 bytes, of each kernel, of so many threads together."""
    size = int(max(_LEAST, 4 * _caches())) // 8 // threads // _BLOCK * _BLOCK
    a, b, c = (np.full((threads, size), number) for number in (1.0, 2.0, 3.0))
    scratch = np.empty((threads, _BLOCK))

    def copy(part: int) -> None:
        np.copyto(a[part], b[part])

    def triad(part: int) -> None:
        for at in range(0, size, _BLOCK):
            np.multiply(c[part, at : at + _BLOCK], 3.0, out=scratch[part])
            np.add(b[part, at : at + _BLOCK], scratch[part], out=a[part, at : at + _BLOCK])

    def read(part: int) -> None:
        for at in range(0, size, _BLOCK):
            np.add(a[part, at : at + _BLOCK], b[part, at : at + _BLOCK], out=scratch[part])

    arrays = {copy: 2, triad: 3, read: 2}
    return {kernel.__name__: _gigabytes(threads, kernel, number * a.nbytes) for kernel, number in arrays.items()}


def _gigabytes(threads: int, kernel: Callable[[int], None], size: int) -> float:
    with ThreadPoolExecutor(threads) as pool:
        seconds = []
        for _ in range(_PASSES):
            began = time.perf_counter()
            list(pool.map(kernel, range(threads)))
            seconds.append(time.perf_counter() - began)
    return size / min(seconds) / 1e9


def _caches() -> int:
    """Bytes of the largest cache that the system knows of; 0 if it knows none."""
    sizes = (path.read_text().strip() for path in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cache/index*/size"))
    return max((int(size.removesuffix("K")) * 1024 for size in sizes), default=0)


def best(measured: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The best of several measurements, kernel by kernel."""
    return {kernel: max(one[kernel] for one in measured) for kernel in measured[0]}


def words(measured: Sequence[Mapping[str, float]]) -> str:
    """The same for people."""
    kernels = ", ".join(f"{kernel} {gigabytes:.1f} GB/s" for kernel, gigabytes in best(measured).items())
    return f"{kernels}, each the best of {len(measured)}"


def most(measured: Sequence[Mapping[str, float]]) -> float:
    """GB/s of the best kernel: the memory is taken to read as fast."""
    return max(best(measured).values())


def limit(table: Mapping[str, Any], measured: Sequence[Mapping[str, float]]) -> float:
    """Tokens/s, in a table of generation.py, of a model that does nothing but read its weights."""
    weights = next(row["weights"] for row in table["rows"].values() if row["weights"])
    return most(measured) * 1e9 / weights
