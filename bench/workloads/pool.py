"""The two comparisons with ``multiprocessing.Pool``, which has no refs and no remote functions.

The functions are at module level because a pool pickles them by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from multiprocessing.pool import Pool

from bench.measure import Batch
from bench.workloads.tasks import POOL_IN_FLIGHT


def tiny(_: int = 0) -> bytes:
    """The task: the same as in ``tasks.py``."""
    return b"ok"


def one_at_a_time(pool: Pool) -> Iterator[Batch]:
    """Submit a task and wait for its result."""

    def batch() -> float:
        for _ in range(50):
            pool.apply(tiny)
        return 50

    yield batch


def in_flight_20k(pool: Pool) -> Iterator[Batch]:
    """20,000 tasks submitted one by one, each with a handle of its own, then all fetched."""

    def batch() -> float:
        handles = [pool.apply_async(tiny) for _ in range(POOL_IN_FLIGHT)]
        return len([handle.get() for handle in handles])

    yield batch


def map_20k(pool: Pool) -> Iterator[Batch]:
    """The pool's best without chunks: one call, one handle for all of them."""

    def batch() -> float:
        return len(pool.map(tiny, range(POOL_IN_FLIGHT), chunksize=1))

    yield batch
