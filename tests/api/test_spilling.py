"""More than fits into the store: objects go to disk, are read from there, and leave it again."""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shoal
from shoal.runtime import current_process
from tests.api.gates import wait_until

MEGABYTE = 1024 * 1024
CAPACITY = 50 * MEGABYTE

pytestmark = [
    pytest.mark.usefixtures("shared_cluster"),
    pytest.mark.cluster(
        num_cpus=2,
        object_store_memory=CAPACITY,
        _system_config={"store_full_timeout_s": 20.0, "spill_fallback_s": 0.2},
    ),
]


def get(ref: Any) -> Any:
    return shoal.get(ref, timeout=60)


def array(seed: int, size: int) -> Any:
    return np.arange(seed, seed + size // 8, dtype=np.int64)


def folder() -> Path:
    return Path(current_process.require().session_dir) / "spill"


def on_disk() -> int:
    return sum(path.stat().st_blocks * 512 for path in folder().iterdir())


def in_memory() -> int:
    shm = Path(current_process.require().registered.shm_dir)
    return sum(p.stat().st_blocks * 512 for p in shm.iterdir() if p.suffix != ".locks")


@pytest.fixture(autouse=True)
def clean() -> Any:
    """Each test leaves nothing on disk."""
    yield
    gc.collect()
    wait_until(lambda: list(folder().iterdir()) == [], "what was spilled is freed")


@shoal.remote
def make(seed: int, size: int) -> Any:
    return array(seed, size)


@shoal.remote
def check(given: Any, seed: int, size: int) -> bool:
    return np.array_equal(given, array(seed, size))


@shoal.remote
def make_many(seeds: list[int], size: int) -> list[Any]:
    return [shoal.put(array(seed, size)) for seed in seeds]


@shoal.remote
def pid_and_result(seed: int, size: int) -> Any:
    return {"pid": os.getpid(), "array": array(seed, size)}


@pytest.mark.parametrize("size", [200_000, 3 * MEGABYTE, 20 * MEGABYTE])
def test_three_times_what_fits_is_kept(size: int) -> None:
    count = 3 * CAPACITY // size
    refs = [shoal.put(array(seed, size)) for seed in range(count)]
    assert on_disk() >= CAPACITY
    assert in_memory() <= CAPACITY
    checks = [check.remote(ref, seed, size) for seed, ref in enumerate(refs)]
    assert all(get(checks))
    for seed, ref in enumerate(refs):
        assert np.array_equal(get(ref), array(seed, size))


@pytest.mark.parametrize("size", [200_000, 3 * MEGABYTE])
def test_results_of_tasks_are_kept(size: int) -> None:
    count = 3 * CAPACITY // size
    refs = [make.remote(seed, size) for seed in range(count)]
    assert all(get([check.remote(ref, seed, size) for seed, ref in enumerate(refs)]))
    assert on_disk() > 0


def test_what_workers_own_is_kept() -> None:
    size, per_worker = 3 * MEGABYTE, 8
    lent = get([make_many.remote([10 * n + i for i in range(per_worker)], size) for n in range(6)])
    for n, refs in enumerate(lent):
        for i, ref in enumerate(refs):
            assert np.array_equal(get(ref), array(10 * n + i, size))


@pytest.mark.parametrize("size", [CAPACITY + MEGABYTE, 4 * CAPACITY])
def test_an_object_larger_than_the_store_is_made_on_disk(size: int) -> None:
    ref = shoal.put(array(1, size))
    assert on_disk() >= size
    assert np.array_equal(get(ref), array(1, size))
    assert get(check.remote(ref, 1, size))
    assert get(check.remote(make.remote(2, size), 2, size))


def test_what_is_looked_at_stays_and_the_rest_is_made_on_disk() -> None:
    size = 9 * MEGABYTE
    refs = [shoal.put(array(seed, size)) for seed in range(5)]
    views = [get(ref) for ref in refs]
    before = [view.copy() for view in views]
    more = [shoal.put(array(seed, size)) for seed in range(5, 9)]
    assert on_disk() >= 3 * size
    for view, copy in zip(views, before, strict=True):
        assert np.array_equal(view, copy)
    for seed, ref in enumerate(more, 5):
        assert np.array_equal(get(ref), array(seed, size))
    del views, view, refs, ref
    # There is room again, and it is used.
    again = [shoal.put(array(seed, size)) for seed in range(20, 24)]
    assert in_memory() > 3 * size
    del again


def test_a_spilled_object_outlives_the_process_that_made_it() -> None:
    size = 9 * MEGABYTE
    ref = pid_and_result.remote(7, size)
    pid = get(ref)["pid"]
    more = [make.remote(seed, size) for seed in range(10)]
    assert all(get([check.remote(ref, seed, size) for seed, ref in enumerate(more)]))
    assert on_disk() >= size
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "it is gone")
    more += [make.remote(seed, size) for seed in range(10, 16)]
    assert all(get([check.remote(ref, seed, size) for seed, ref in enumerate(more)]))
    assert np.array_equal(get(ref)["array"], array(7, size))


def test_streams_and_actors_go_through_the_disk_too() -> None:
    size = 5 * MEGABYTE

    @shoal.remote
    class Keeper:
        def __init__(self) -> None:
            self.kept: list[Any] = []

        def keep(self, seeds: list[int]) -> int:
            self.kept += [shoal.put(array(seed, size)) for seed in seeds]
            return len(self.kept)

        def stream(self) -> Any:
            for ref in self.kept:
                yield shoal.get(ref)

    keeper = Keeper.remote()
    assert get(keeper.keep.remote(list(range(20)))) == 20
    items = keeper.stream.options(num_returns="streaming").remote()
    for seed, ref in enumerate(items):
        assert np.array_equal(get(ref), array(seed, size))
    shoal.kill(keeper)


def test_memory_of_what_was_spilled_is_used_again() -> None:
    """Round after round through the store leaves no more behind than the first."""
    size = 3 * MEGABYTE
    for _ in range(5):
        refs = [shoal.put(array(seed, size)) for seed in range(40)]
        assert np.array_equal(get(refs[0]), array(0, size))
        del refs
        gc.collect()
        wait_until(lambda: list(folder().iterdir()) == [], "it is freed")
        assert in_memory() <= CAPACITY
