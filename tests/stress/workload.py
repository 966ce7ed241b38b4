"""The tasks and actors of the stress tests, and how the content of arrays tells that they are whole.

Workers import this module, so it imports little. An array is a run of numbers that begins with its seed: whoever has it can check
it against nothing but the seed and the length, and a block that was used again too early shows.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

import shoal
from shoal.runtime import current_process
from shoal.wire.addresses import creator_at

Array = np.ndarray[Any, np.dtype[np.int64]]


def make_array(seed: int, length: int) -> Array:
    return np.arange(seed, seed + length, dtype=np.int64)


def check_array(array: Array, seed: int, length: int) -> None:
    """Raise unless `array` is what `make_array(seed, length)` made."""
    assert array.shape == (length,), f"{array.shape} instead of ({length},)"
    expected = make_array(seed, length)
    if not np.array_equal(array, expected):
        wrong = np.flatnonzero(array != expected)
        raise AssertionError(
            f"array {seed} of {length} is damaged in {wrong.size} places, first at {wrong[0]}: "
            f"{array[wrong[0]]} instead of {expected[wrong[0]]}"
        )


class OddError(Exception):
    """An exception of the user's own, with a signature of its own."""

    def __init__(self, code: int, *, hint: str) -> None:
        super().__init__(code, hint)
        self.code = code
        self.hint = hint

    def __reduce__(self) -> Any:
        return _odd, (self.code, self.hint)


def _odd(code: int, hint: str) -> OddError:
    return OddError(code, hint=hint)


# --- tasks ----------------------------------------------------------------------------------------------------------


@shoal.remote
def echo(value: Any) -> Any:
    return value


@shoal.remote
def add(*numbers: int, extra: int = 0) -> int:
    return sum(numbers) + extra


@shoal.remote
def fibonacci(n: int) -> int:
    if n < 2:
        return n
    return sum(shoal.get([fibonacci.remote(n - 1), fibonacci.remote(n - 2)]))


@shoal.remote
def count_leaves(depth: int, width: int) -> int:
    """A tree of tasks, whose nodes wait for some of their children before the others."""
    if depth == 0:
        return 1
    missing = [count_leaves.remote(depth - 1, width) for _ in range(width)]
    total = 0
    while missing:
        ready, missing = shoal.wait(missing, num_returns=1)
        total += sum(shoal.get(ready))
    return total


@shoal.remote
def refs_to_leaves(depth: int, width: int) -> list[Any]:
    """The same, with references returned through every level instead of values."""
    if depth == 0:
        return [shoal.put(1)]
    children = [refs_to_leaves.remote(depth - 1, width) for _ in range(width)]
    return [leaf for child in shoal.get(children) for leaf in child]


@shoal.remote
def array(seed: int, length: int) -> Array:
    return make_array(seed, length)


@shoal.remote
def arrays(seeds: list[int], length: int) -> Any:
    return [make_array(seed, length) for seed in seeds]


@shoal.remote
def check(given: Array, seed: int, length: int) -> int:
    check_array(given, seed, length)
    return seed


@shoal.remote
def check_all(refs: list[Any], seeds: list[int], length: int) -> int:
    """References inside a container; their values are looked at here."""
    for got, seed in zip(shoal.get(refs), seeds, strict=True):
        check_array(got, seed, length)
    return len(refs)


@shoal.remote
def lend(seeds: list[int], length: int) -> dict[int, Any]:
    """Objects that this worker owns, some of them tasks' results."""
    return {
        seed: shoal.put(make_array(seed, length)) if seed % 2 else array.remote(seed, length)
        for seed in seeds
    }


@shoal.remote
def slice_of(given: Array, start: int, stop: int) -> Array:
    """A view of an argument as the result."""
    return given[start:stop]


@shoal.remote
def stream(seed: int, length: int, count: int, fail_at: int = -1) -> Iterator[Array]:
    for n in range(count):
        if n == fail_at:
            raise OddError(n, hint="stream")
        yield make_array(seed + n, length)


@shoal.remote
def fail(code: int, kind: str) -> None:
    if kind == "value":
        raise ValueError(f"code {code}")
    if kind == "key":
        raise KeyError(code)
    raise OddError(code, hint="task")


@shoal.remote
def fail_below(depth: int, code: int, kind: str) -> int:
    """An error that comes up through several tasks."""
    if depth == 0:
        return int(shoal.get(fail.remote(code, kind)) or 0)
    return int(shoal.get(fail_below.remote(depth - 1, code, kind)))


@shoal.remote
def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@shoal.remote
def sleep_below(depth: int, seconds: float) -> float:
    if depth == 0:
        return float(shoal.get(sleep.remote(seconds)))
    return float(shoal.get(sleep_below.remote(depth - 1, seconds)))


@shoal.remote(max_retries=0)
def crash() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@shoal.remote
def use_actor(counter: Any, times: int) -> list[int]:
    return shoal.get([counter.increment.remote() for _ in range(times)])


# --- actors ---------------------------------------------------------------------------------------------------------


@shoal.remote
class Counter:
    """State and order; keeps references, and gives them back."""

    def __init__(self, start: int = 0) -> None:
        self._count = start
        self._kept: dict[int, Any] = {}

    def increment(self) -> int:
        self._count += 1
        return self._count

    def keep(self, key: int, refs: list[Any]) -> int:
        self._kept[key] = refs
        return len(self._kept)

    def take(self, key: int) -> list[Any]:
        return list(self._kept.pop(key))

    def check_kept(self, key: int, seeds: list[int], length: int) -> int:
        for got, seed in zip(shoal.get(self._kept[key]), seeds, strict=True):
            check_array(got, seed, length)
        return len(seeds)

    def fail(self, code: int) -> None:
        raise OddError(code, hint="actor")

    def array(self, seed: int, length: int) -> Array:
        return make_array(seed, length)

    def stream(self, seed: int, length: int, count: int) -> Iterator[Array]:
        for n in range(count):
            yield make_array(seed + n, length)

    def total(self, depth: int, width: int) -> int:
        return int(shoal.get(count_leaves.remote(depth, width)))


@shoal.remote(max_concurrency=4)
class Threaded:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sum = 0

    def add(self, number: int) -> int:
        with self._lock:
            self._sum += number
            return self._sum

    def sum(self) -> int:
        return self._sum

    def nested(self, depth: int, width: int) -> int:
        return int(shoal.get(count_leaves.remote(depth, width)))

    def array(self, seed: int, length: int) -> Array:
        return make_array(seed, length)


@shoal.remote
class Async:
    async def add(self, a: int, b: int) -> int:
        await asyncio.sleep(0)
        return a + b

    async def nested(self, depth: int, width: int) -> int:
        return int(await count_leaves.remote(depth, width))

    async def gather(self, count: int) -> int:
        return sum(await asyncio.gather(*(echo.remote(n) for n in range(count))))

    async def forever(self) -> None:
        await asyncio.sleep(1000)

    async def check(self, boxed: list[Any], seed: int, length: int) -> int:
        check_array(await boxed[0], seed, length)
        return seed


# --- what is left ---------------------------------------------------------------------------------------------------


@shoal.remote
def store_of_this_worker(pause_s: float) -> tuple[str, int, int]:
    """The worker's name in shared memory, its live objects, and how many objects it knows of. Pauses, so that several of these run on
    several workers."""
    time.sleep(pause_s)
    process = current_process.require()
    arena = process.store._arena
    with process.lock:
        process.settle()
        process.objects.check()
        known = len(process.objects.entries)
    creator = creator_at(process.address)
    return creator, 0 if arena is None else arena.stats().live_blocks, known
