"""Objects: small and large ``put``, small ``get``, large returns, an object full of refs.

numpy is imported where it is used: the rows that measure memory must not carry it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench.measure import Batch
from bench.peers import Core

HELD_REFS = 10_000
GB = 1e9


def put_small(ray: Core) -> Iterator[Batch]:
    """``put`` of a small integer, its ref dropped at once."""

    def batch() -> float:
        for _ in range(200):
            ray.put(0)
        return 200

    yield batch


def get_small(ray: Core) -> Iterator[Batch]:
    """``get`` of the same small object over and over."""
    ref = ray.put(0)

    def batch() -> float:
        for _ in range(200):
            ray.get(ref)
        return 200

    yield batch


def put_1mb(ray: Core) -> Iterator[Batch]:
    """``put`` of a 1 MB array in a loop, each ref dropped at once: puts per second."""
    array, puts = _bytes_array(1_000_000), 20

    def batch() -> float:
        for _ in range(puts):
            ray.put(array)
        return puts

    yield batch


def put_100mb(ray: Core) -> Iterator[Batch]:
    """``put`` of a 100 MB array in a loop, each ref dropped at once: gigabytes per second."""
    array = _bytes_array(100_000_000)

    def batch() -> float:
        ray.put(array)
        return float(array.nbytes / GB)

    yield batch


def return_10mb(ray: Core) -> Iterator[Batch]:
    """20 tasks each return a 10 MB array; the driver gets them one after another.

    The worker keeps the array between tasks, so that the row measures moving it, not making it.
    """
    size, tasks = 10_000_000, 20
    kept: dict[str, Any] = {}

    @ray.remote
    def array() -> Any:
        if "array" not in kept:
            import numpy as np

            kept["array"] = np.full(size, 7, dtype=np.uint8)
        return kept["array"]

    def batch() -> float:
        refs = [array.remote() for _ in range(tasks)]
        refs.reverse()
        while refs:
            value = ray.get(refs.pop())
            if value[-1] != 7:
                raise AssertionError("the array arrived damaged")
        return tasks * size / GB

    yield batch


def get_10k_refs(ray: Core) -> Iterator[Batch]:
    """``get`` of one object, made by a task, that holds refs to 10,000 objects of the task's."""

    @ray.remote
    def refs() -> list[Any]:
        return [ray.put(number) for number in range(HELD_REFS)]

    holder = refs.remote()

    def batch() -> float:
        if len(ray.get(holder)) != HELD_REFS:
            raise AssertionError("a ref was lost")
        return 1

    yield batch


def _bytes_array(size_bytes: int) -> Any:
    import numpy as np

    return np.full(size_bytes, 7, dtype=np.uint8)
