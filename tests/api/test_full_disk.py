"""A disk that takes no more: what is told, and that nothing is lost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import shoal
from shoal.exceptions import OutOfDiskError

MEGABYTE = 1024 * 1024
CAPACITY = 50 * MEGABYTE


def get(ref: Any) -> Any:
    return shoal.get(ref, timeout=60)


def array(seed: int, size: int) -> Any:
    return np.arange(seed, seed + size // 8, dtype=np.int64)


@pytest.mark.cluster(
    num_cpus=1,
    object_store_memory=CAPACITY,
    _system_config={"store_full_timeout_s": 1.0, "spill_disk_fraction": 0.0001},
)
def test_a_full_disk_is_told_and_loses_nothing(cluster: Any) -> None:
    refs = [shoal.put(array(seed, 10 * MEGABYTE)) for seed in range(4)]
    with pytest.raises(OutOfDiskError, match=r"driver \(pid.*more than 0% full"):
        shoal.put(array(0, 20 * MEGABYTE))
    with pytest.raises(OutOfDiskError, match="object_spilling_directory"):
        shoal.put(array(0, 2 * CAPACITY))
    for seed, ref in enumerate(refs):
        assert np.array_equal(get(ref), array(seed, 10 * MEGABYTE))
    del refs, ref
    assert np.array_equal(get(shoal.put(array(5, 40 * MEGABYTE))), array(5, 40 * MEGABYTE))


@pytest.mark.cluster(
    num_cpus=1,
    object_store_memory=CAPACITY,
    _system_config={
        "store_full_timeout_s": 1.0,
        "spill_local_bytes": 15 * MEGABYTE,
        "spill_retry_s": 0.2,
    },
)
def test_a_budget_is_a_full_disk(cluster: Any) -> None:
    refs = [shoal.put(array(seed, 10 * MEGABYTE)) for seed in range(5)]
    with pytest.raises(
        OutOfDiskError, match=r"budget of 15,728,640 bytes \(spill_local_bytes\) is taken"
    ):
        refs += [shoal.put(array(seed, 10 * MEGABYTE)) for seed in range(5, 9)]
    with pytest.raises(OutOfDiskError, match="spill_local_bytes"):
        shoal.put(array(0, 2 * CAPACITY))
    for seed, ref in enumerate(refs):
        assert np.array_equal(get(ref), array(seed, 10 * MEGABYTE))
    del refs, ref
    again = [shoal.put(array(seed, 10 * MEGABYTE)) for seed in range(5)]
    assert np.array_equal(get(again[0]), array(0, 10 * MEGABYTE))
