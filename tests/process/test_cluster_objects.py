"""Objects in a cluster of real nodes, as programs see them: `get`, `wait`, arguments, actors, futures, and the death of a node."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import shoal
from shoal.exceptions import GetTimeoutError, ObjectLostError
from shoal.runtime import current_process
from shoal.testing.cluster import Cluster
from shoal.wire.addresses import place_of

MB = 1 << 20
PATIENCE_S = 60.0


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Two nodes; the driver is at the first, and only the second has `there`."""
    with Cluster(head_node_args={"num_cpus": 2}) as made:
        made.add_node(num_cpus=2, resources={"there": 10})
        made.wait_for_nodes()
        with made.connect():
            yield made


@shoal.remote(resources={"there": 1})
def array_there(fill: int, size: int) -> Any:
    return np.full(size, fill, dtype=np.uint8)


@shoal.remote(resources={"there": 1})
def total_there(*arrays: Any) -> int:
    return int(sum(int(array.sum(dtype=np.int64)) for array in arrays))


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def is_elsewhere(ref: Any) -> bool:
    process = current_process.require()
    return place_of(ref._entry.value.creator) != place_of(process.address)


def test_values_come_from_the_other_node_and_arguments_go_there(cluster: Cluster) -> None:
    ref = array_there.remote(3, 5 * MB)
    value = shoal.get(ref)
    assert is_elsewhere(ref)
    assert value.shape == (5 * MB,)
    assert int(value.sum(dtype=np.int64)) == 15 * MB
    assert not value.flags.writeable
    mine = [shoal.put(np.full(2 * MB, n, dtype=np.uint8)) for n in range(4)]
    assert shoal.get(total_there.remote(*mine)) == 12 * MB
    # Large arguments that are not references travel in shared memory, too.
    assert shoal.get(total_there.remote(np.full(3 * MB, 2, dtype=np.uint8))) == 6 * MB


def test_many_at_once_and_again(cluster: Cluster) -> None:
    refs = [array_there.remote(n, 300_000 + n) for n in range(20)]
    for _ in range(3):
        values = shoal.get(refs)
        assert [int(value[0]) for value in values] == list(range(20))
        assert [len(value) for value in values] == [300_000 + n for n in range(20)]
        del values


def test_a_value_that_is_looked_at_is_not_asked_for_again(cluster: Cluster) -> None:
    ref = array_there.remote(7, MB)
    first = shoal.get(ref)
    remote = current_process.require().store.remote
    assert remote is not None
    asked = remote._req
    second = shoal.get(ref)
    assert second.ctypes.data == first.ctypes.data
    assert remote._wishes == {}
    assert remote._req <= asked + 1


def test_wait_brings_objects_here_unless_told_not_to(cluster: Cluster) -> None:
    refs = [array_there.remote(n, 2 * MB) for n in range(3)]
    ready, rest = shoal.wait(refs, num_returns=3, timeout=PATIENCE_S, fetch_local=False)
    assert (ready, rest) == (refs, [])
    remote = current_process.require().store.remote
    assert remote is not None
    assert remote._brought == {}
    ready, rest = shoal.wait(refs, num_returns=3, timeout=PATIENCE_S)
    assert (ready, rest) == (refs, [])
    assert len(remote._brought) == 3


def test_futures_and_await(cluster: Cluster) -> None:
    ref = array_there.remote(5, 2 * MB)
    assert int(ref.future().result(PATIENCE_S)[0]) == 5

    async def both() -> list[int]:
        others = [array_there.remote(n, 2 * MB) for n in (8, 9)]
        return [int((await other)[-1]) for other in others]

    assert asyncio.run(both()) == [8, 9]


def test_actors_take_and_give_objects_of_other_nodes(cluster: Cluster) -> None:
    @shoal.remote(resources={"there": 1})
    class Keeper:
        def keep(self, array: Any) -> int:
            self.array = array
            return int(array[0])

        def give(self) -> Any:
            return self.array + 1

    keeper = Keeper.remote()
    ref = shoal.put(np.full(3 * MB, 4, dtype=np.uint8))
    assert shoal.get(keeper.keep.remote(ref)) == 4
    del ref
    assert int(shoal.get(keeper.give.remote())[-1]) == 5


def test_dead_objects_leave_both_nodes(cluster: Cluster) -> None:
    remote = current_process.require().store.remote
    assert remote is not None
    # Ten times what the store of a node holds.
    for n in range(20):
        value = shoal.get(array_there.remote(n, 60 * MB))
        assert int(value[0]) == n
        del value
    for _ in range(20):
        ref = shoal.put(np.full(60 * MB, 1, dtype=np.uint8))
        assert shoal.get(total_there.remote(ref)) == 60 * MB
        del ref


def test_the_death_of_a_node_is_the_cause_of_what_is_lost(cluster: Cluster) -> None:
    other = cluster.worker_nodes[0]

    @shoal.remote(resources={"there": 1}, max_retries=0)
    def once() -> Any:
        return np.zeros(2 * MB, dtype=np.uint8)

    refs = [once.remote() for _ in range(2)]
    shoal.wait(refs, num_returns=2, timeout=PATIENCE_S, fetch_local=False)
    kept = shoal.get(refs[0])
    cluster.remove_node(other, allow_graceful=False)
    with pytest.raises(ObjectLostError) as caught:
        shoal.get(refs[1])
    assert refs[1].hex() in str(caught.value)
    # What is looked at stays.
    assert int(kept.sum()) == 0
    del kept


def test_a_get_with_a_time_limit_says_what_is_on_its_way(cluster: Cluster) -> None:
    ref = array_there.remote(1, 100 * MB)
    shoal.wait([ref], timeout=PATIENCE_S, fetch_local=False)
    with pytest.raises(GetTimeoutError, match="still on its way from another node"):
        shoal.get(ref, timeout=0)
    assert int(shoal.get(ref)[0]) == 1


def test_an_async_actor_goes_on_while_an_argument_is_on_its_way(cluster: Cluster) -> None:
    @shoal.remote(num_cpus=0)
    class Busy:
        async def total(self, *arrays: Any) -> int:
            return sum(int(array.sum(dtype=np.int64)) for array in arrays)

        async def alive(self) -> bool:
            return True

    busy = Busy.remote()
    assert shoal.get(busy.alive.remote(), timeout=PATIENCE_S)
    ref = array_there.remote(1, 10 * MB)
    shoal.wait([ref], fetch_local=False, timeout=PATIENCE_S)
    source = cluster.nodes[1]
    os.kill(source.pid, signal.SIGSTOP)
    try:
        total = busy.total.remote(ref, ref)
        for _ in range(10):
            assert shoal.get(busy.alive.remote(), timeout=PATIENCE_S)
        assert shoal.wait([total], timeout=0) == ([], [total])
    finally:
        os.kill(source.pid, signal.SIGCONT)
    assert shoal.get(total, timeout=PATIENCE_S) == 20 * MB
