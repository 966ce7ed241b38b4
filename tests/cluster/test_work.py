"""Tasks, actors and references between the nodes of a cluster."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shoal
from shoal.testing.cluster import Cluster
from tests.api.gates import Gate, wait_until

PATIENCE_S = 30

pytestmark = pytest.mark.usefixtures("three")


@shoal.remote
def where() -> str:
    return shoal.get_runtime_context().get_node_id()


@shoal.remote
def stay(seconds: float) -> str:
    time.sleep(seconds)
    return shoal.get_runtime_context().get_node_id()


@shoal.remote
def wait_for(gate: Gate) -> None:
    gate.wait()


@shoal.remote
def add(x: Any, y: Any) -> Any:
    return x + y


@shoal.remote
def fail(text: str) -> None:
    raise ValueError(text)


@shoal.remote
class Counter:
    def __init__(self, start: int = 0) -> None:
        self.value = start

    def add(self, by: int = 1) -> int:
        self.value += by
        return self.value

    def where(self) -> str:
        return shoal.get_runtime_context().get_node_id()

    def pid(self) -> int:
        return os.getpid()

    def keep(self, box: list[Any]) -> None:
        self.box = box

    def kept(self) -> Any:
        return shoal.get(self.box[0])


def on(number: int) -> dict[str, Any]:
    """Options that only one node can satisfy."""
    return {"resources": {f"node{number}": 0.01}}


def get(refs: Any) -> Any:
    return shoal.get(refs, timeout=PATIENCE_S)


def wait_until_all_is_free() -> None:
    wait_until(lambda: shoal.available_resources().get("CPU") == 6, "all leases are given back")


@pytest.fixture
def nodes(three: Cluster) -> list[str]:
    return [node.node_id for node in three.nodes]


def test_the_nodes_are_all_there(nodes: list[str]) -> None:
    rows = shoal.nodes()
    assert {row["NodeID"] for row in rows if row["Alive"]} == set(nodes)
    assert shoal.cluster_resources()["CPU"] == 6
    assert shoal.get_runtime_context().get_node_id() == nodes[0]


@pytest.mark.parametrize("number", range(3))
def test_a_task_runs_where_its_resources_are(number: int, nodes: list[str]) -> None:
    assert get(where.options(**on(number)).remote()) == nodes[number]


def test_more_tasks_than_one_node_can_run_are_spread(nodes: list[str]) -> None:
    assert set(get([stay.remote(0.3) for _ in range(6)])) == set(nodes)


def test_an_error_comes_back_from_another_node() -> None:
    with pytest.raises(ValueError, match="from afar") as caught:
        get(fail.options(**on(1)).remote("from afar"))
    assert isinstance(caught.value, shoal.exceptions.TaskError)


def test_references_travel_and_are_resolved_everywhere() -> None:
    small = shoal.put(20)
    there = add.options(**on(1)).remote(small, 1)
    back = add.options(**on(2)).remote(there, there)
    assert get(back) == 42


def test_tasks_call_tasks_on_other_nodes(nodes: list[str]) -> None:
    @shoal.remote
    def outer() -> list[str]:
        return shoal.get([where.options(resources={f"node{i}": 0.01}).remote() for i in range(3)])

    assert get(outer.options(**on(1)).remote()) == nodes


@pytest.mark.parametrize("number", range(3))
def test_an_actor_lives_where_its_resources_are(number: int, nodes: list[str]) -> None:
    counter = Counter.options(**on(number)).remote(40)
    assert get(counter.where.remote()) == nodes[number]
    assert get([counter.add.remote() for _ in range(3)]) == [41, 42, 43]


def test_handles_travel_to_other_nodes() -> None:
    @shoal.remote
    def use(handle: Any) -> int:
        return shoal.get(handle.add.remote())

    counter = Counter.options(**on(1)).remote()
    assert get(use.options(**on(2)).remote(counter)) == 1
    assert get(use.options(**on(0)).remote(counter)) == 2
    assert get(counter.add.remote()) == 3


def test_an_actor_is_found_by_name_from_every_node() -> None:
    @shoal.remote
    def find() -> int:
        return shoal.get(shoal.get_actor("the one").add.remote())

    counter = Counter.options(name="the one", **on(1)).remote()
    get(counter.pid.remote())
    assert [get(find.options(**on(i)).remote()) for i in range(3)] == [1, 2, 3]
    with pytest.raises(ValueError, match="the one"):
        get(Counter.options(name="the one", **on(2)).remote().pid.remote())


def test_a_lent_reference_is_kept_by_an_actor_of_another_node() -> None:
    keeper = Counter.options(**on(2)).remote()
    ref = add.options(**on(1)).remote(1, 2)
    get(keeper.keep.remote([ref]))
    del ref
    assert get(keeper.kept.remote()) == 3


def test_a_value_owned_by_a_worker_of_another_node_is_fetched_from_it() -> None:
    @shoal.remote
    class Owner:
        def make(self) -> list[Any]:
            self.ref = shoal.put("owned far away")
            return [self.ref]

    owner = Owner.options(**on(1)).remote()
    (ref,) = get(owner.make.remote())
    assert get(ref) == "owned far away"


def test_await_works_across_nodes() -> None:
    async def both() -> list[int]:
        refs = [add.options(**on(i)).remote(i, i) for i in (1, 2)]
        return list(await asyncio.gather(*refs))

    assert asyncio.run(both()) == [2, 4]


def test_a_task_of_another_node_is_cancelled(tmp_path: Path) -> None:
    started = tmp_path / "started"

    @shoal.remote
    def forever() -> None:
        started.touch()
        while True:
            time.sleep(0.01)

    ref = forever.options(**on(1)).remote()
    deadline = time.monotonic() + PATIENCE_S
    while not started.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    shoal.cancel(ref)
    with pytest.raises(shoal.exceptions.TaskCancelledError):
        get(ref)


def test_an_actor_of_another_node_is_killed_and_its_callers_hear_why() -> None:
    counter = Counter.options(**on(2)).remote()
    get(counter.add.remote())
    shoal.kill(counter)
    with pytest.raises(shoal.exceptions.ActorDiedError, match="kill"):
        get(counter.add.remote())


def test_a_worker_that_dies_on_another_node_is_told_and_retried(tmp_path: Path) -> None:
    marker = tmp_path / "died once"

    @shoal.remote(max_retries=1)
    def die_once() -> str:
        if not marker.exists():
            marker.touch()
            os._exit(7)
        return "alive"

    @shoal.remote(max_retries=0)
    def die() -> None:
        os._exit(7)

    assert get(die_once.options(**on(1)).remote()) == "alive"
    with pytest.raises(shoal.exceptions.WorkerCrashedError, match="code 7"):
        get(die.options(**on(1)).remote())


def test_an_actor_of_another_node_restarts() -> None:
    counter = Counter.options(max_restarts=1, max_task_retries=1, **on(1)).remote(10)
    pid = get(counter.pid.remote())
    os.kill(pid, 9)
    assert get(counter.add.remote()) == 11
    assert get(counter.pid.remote()) != pid


def test_a_stream_comes_from_another_node() -> None:
    @shoal.remote(num_returns="streaming")
    def count(n: int) -> Iterator[int]:
        yield from range(n)

    assert [get(ref) for ref in count.options(**on(2)).remote(5)] == list(range(5))


def test_wait_sees_tasks_of_all_nodes(tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    held = wait_for.options(**on(1)).remote(gate)
    quick = where.options(**on(2)).remote()
    assert shoal.wait([held, quick], timeout=PATIENCE_S) == ([quick], [held])
    gate.open()
    assert shoal.wait([held], timeout=PATIENCE_S) == ([held], [])


def test_nothing_is_leased_for_long_when_all_is_done() -> None:
    get([stay.remote(0.05) for _ in range(12)])
    wait_until_all_is_free()


@shoal.remote
def make_large(megabytes: int) -> Any:
    return np.ones(megabytes << 17)


@shoal.remote
def where_is(array: Any, *more: Any) -> str:
    return shoal.get_runtime_context().get_node_id()


@pytest.mark.parametrize("number", [1, 2])
def test_tasks_go_where_the_bytes_of_their_arguments_are(number: int, nodes: list[str]) -> None:
    # A node that is busy, with leases that idle after the tests before, is not where waiting is shortest.
    wait_until_all_is_free()
    large = make_large.options(**on(number)).remote(32)
    small = make_large.options(**on(0)).remote(1)
    shoal.wait([large, small], num_returns=2, fetch_local=False)
    # Also while the driver's own node, which has nothing to do, has leases of the same shape.
    get(where.remote())
    assert [get(where_is.remote(large)) for _ in range(3)] == [nodes[number]] * 3
    assert get(where_is.remote(small, large)) == nodes[number]
    # One that is not there yet when it is submitted. So large that moving it takes longer than waiting, also if the driver still sees
    # there the leases of the tasks before.
    late = make_large.options(**on(number)).remote(256)
    assert get(where_is.remote(late)) == nodes[number]


def test_small_arguments_do_not_matter(nodes: list[str]) -> None:
    ref = add.options(**on(1)).remote(1, 2)
    get(ref)
    assert get(where_is.remote(ref)) == nodes[0]
