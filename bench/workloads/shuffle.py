"""An all-to-all of more than fits into memory: every mapper makes a part for every reducer.

The parts are numbers in a row, so their sum is known beforehand, and a wrong or a missing one shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench.clusters import MB, Nodes
from bench.measure import Batch
from bench.peers import Core

NODES = Nodes(4, object_store_memory=250 * MB)
"""Together a tenth of what goes through them."""

SHUFFLED = 10_000 * MB
WIDTH = 64
"""Mappers, and reducers."""

_NUMBERS = SHUFFLED // 8 // WIDTH // WIDTH
"""In one part."""


def shuffle_10gb(ray: Core) -> Iterator[Batch]:
    """64 tasks make 64 arrays each, 64 tasks add up one array of each; from the first call to the last sum."""

    @ray.remote
    def split(seed: int) -> list[Any]:
        import numpy as np

        return np.split(np.arange(seed, seed + WIDTH * _NUMBERS, dtype=np.uint64), WIDTH)

    @ray.remote
    def add(*parts: Any) -> int:
        return sum(int(part.sum()) for part in parts)

    def batch() -> float:
        split_up = split.options(num_returns=WIDTH)
        parts = [split_up.remote(seed) for seed in range(WIDTH)]
        sums = [add.remote(*column) for column in zip(*parts, strict=True)]
        del parts
        count = WIDTH * _NUMBERS
        expected = sum(seed * count + count * (count - 1) // 2 for seed in range(WIDTH))
        if sum(ray.get(sums)) != expected:
            raise AssertionError("the sum is wrong: something was lost or damaged")
        return 1

    ray.get([add.remote() for _ in range(WIDTH)])
    yield batch
