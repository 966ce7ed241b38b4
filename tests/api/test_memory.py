"""A store with little room that may not use the disk: what is told when a value does not fit, and that the room comes back."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

import shoal
from shoal.exceptions import ObjectStoreFullError
from shoal.runtime import current_process

MEGABYTE = 1024 * 1024

pytestmark = [
    pytest.mark.usefixtures("shared_cluster"),
    pytest.mark.cluster(
        num_cpus=2,
        object_store_memory=100 * MEGABYTE,
        _system_config={"store_full_timeout_s": 1.0, "spill": False},
    ),
]


def get(ref: Any) -> Any:
    return shoal.get(ref, timeout=30)


def megabytes(count: int) -> np.ndarray:
    return np.ones(count * MEGABYTE, dtype=np.uint8)


@shoal.remote
def size(values: np.ndarray) -> int:
    return values.size


@shoal.remote
def make(count: int) -> np.ndarray:
    return megabytes(count)


def test_the_room_is_what_was_given() -> None:
    assert shoal.cluster_resources()["object_store_memory"] == 100 * MEGABYTE


def test_a_value_that_can_never_fit_is_refused() -> None:
    with pytest.raises(ObjectStoreFullError):
        shoal.put(megabytes(200))
    assert get(shoal.put(megabytes(10))).size == 10 * MEGABYTE


def test_when_it_is_full_it_says_so_and_room_comes_back() -> None:
    kept = [shoal.put(megabytes(20)) for _ in range(4)]
    with pytest.raises(ObjectStoreFullError):
        shoal.put(megabytes(40))
    kept.clear()
    gc.collect()
    assert get(shoal.put(megabytes(40))).size == 40 * MEGABYTE


def test_what_this_process_has_just_dropped_is_room_at_once() -> None:
    """Without asking the node, which would take time."""
    node = current_process.require().node
    kept = [shoal.put(megabytes(30)) for _ in range(3)]
    asked = node._next_req
    kept.clear()
    again = [shoal.put(megabytes(30)) for _ in range(3)]
    assert node._next_req == asked
    assert [get(ref).size for ref in again] == [30 * MEGABYTE] * 3


def test_a_result_that_does_not_fit_fails_its_task() -> None:
    with pytest.raises(shoal.ShoalError, match=r"store|room|memory"):
        get(make.options(max_retries=0).remote(200))
    assert get(make.remote(10)).size == 10 * MEGABYTE


def test_puts_wait_for_the_tasks_that_use_what_was_put() -> None:
    """Three times what fits is put as fast as it goes, and every piece is dropped when its task has run."""
    results = [size.remote(shoal.put(megabytes(5))) for _ in range(60)]
    assert get(results) == [5 * MEGABYTE] * 60
