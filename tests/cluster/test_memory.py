"""What keeps objects alive on several nodes, what the stores hold for it, and what the dead leave."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import numpy as np

import shoal
from shoal.testing.cluster import Cluster
from shoal.util import state
from shoal.util.memory import MemoryReport, memory_report
from shoal.util.records import MemoryObject, NodeMemory
from tests.api.gates import wait_until

LARGE = 200_000
PATIENCE_S = 60


def get(refs: Any) -> Any:
    return shoal.get(refs, timeout=PATIENCE_S)


def on(number: int) -> dict[str, Any]:
    """Options that only one node can satisfy."""
    return {"resources": {f"node{number}": 0.01}}


@shoal.remote
def make() -> Any:
    return np.ones(LARGE)


@shoal.remote(num_cpus=0)
class Keeper:
    """Owns and keeps, wherever it is put."""

    def __init__(self) -> None:
        self.kept: Any = None

    def put(self) -> list[Any]:
        self.kept = [shoal.put(np.ones(LARGE))]
        return list(self.kept)

    def keep(self, box: list[Any]) -> int:
        self.kept = box
        return os.getpid()

    def look(self, box: list[Any]) -> int:
        self.kept = shoal.get(box[0])
        return os.getpid()

    def pid(self) -> int:
        return os.getpid()


def report() -> MemoryReport:
    with state.asking(None, PATIENCE_S) as questions:
        return memory_report(questions)


def until(ref: Any, condition: Callable[[MemoryObject], object]) -> MemoryObject:
    """What is known of an object, once it is as it must become."""
    found: list[MemoryObject] = []
    id_ = ref.hex()

    def look() -> bool:
        found[:] = [one for one in report().objects if one.object_id == id_]
        return bool(found) and bool(condition(found[0]))

    try:
        wait_until(look, "it is told")
    except AssertionError:
        raise AssertionError(f"it stays {found}") from None
    return found[0]


def node_memory(node_id: str) -> NodeMemory:
    return next(node for node in report().nodes if node.node_id == node_id)


def test_owner_maker_copy_and_borrower_on_three_nodes(three: Cluster) -> None:
    ids = [node.node_id for node in three.nodes]
    ref = make.options(**on(1)).remote()
    shoal.wait([ref], fetch_local=False, timeout=PATIENCE_S)
    one = until(ref, lambda one: one.location == "SHARED_MEMORY")
    assert (one.node_id, one.nodes) == (ids[0], [ids[1]])
    assert one.why == f"the driver (pid {os.getpid()}) has 1 reference"
    keeper = Keeper.options(**on(2)).remote()
    pid = get(keeper.look.remote([ref]))
    one = until(ref, lambda one: len(one.references) == 2)
    assert one.nodes == [ids[1], ids[2]]
    who = f"actor Keeper (pid {pid}) on node {ids[2][:8]}"
    assert f"a view of it is still in use in {who}" in one.why
    assert one.references[1]["node_id"] == ids[2]
    assert node_memory(ids[2]).copies >= 8 * LARGE
    assert node_memory(ids[2]).copies_count == 1
    assert node_memory(ids[1]).objects >= 8 * LARGE
    id_ = ref.hex()
    del ref
    wait_until(lambda: id_ not in {one.object_id for one in report().objects}, "it is freed")

    def freed() -> list[str]:
        return [one.why for one in report().blocks if one.node_id == ids[2]]

    # The copy is no object any more; the actor looks at it all the same.
    wait_until(freed, "the copy is dropped")
    assert freed() == [
        f"the copy of an object is dropped, but a view of it is still in use in actor Keeper (pid {pid})"
    ]
    assert node_memory(ids[2]).freed_in_view >= 8 * LARGE
    shoal.kill(keeper)
    wait_until(lambda: not freed(), "nobody looks at it")


def test_what_an_actor_owns_and_the_driver_borrows_until_its_owner_dies(three: Cluster) -> None:
    ids = [node.node_id for node in three.nodes]
    keeper = Keeper.options(**on(1)).remote()
    (ref,) = get(keeper.put.remote())
    one = until(ref, lambda one: len(one.references) == 2)
    assert (one.node_id, one.nodes, one.owner_type) == (ids[1], [ids[1]], "actor Keeper")
    who = f"borrowed by the driver (pid {os.getpid()}) on node {ids[0][:8]}, which has 1 reference"
    assert who in one.why
    assert get(ref).sum() == LARGE
    pid = get(keeper.pid.remote())
    os.kill(pid, signal.SIGKILL)
    one = until(ref, lambda one: "its owner has ended" in one.why)
    assert f"and the driver (pid {os.getpid()})" in one.why
    assert "has not let go of it" in one.why
    assert (one.owner_pid, one.owner_type) == (None, "")
    wait_until(lambda: node_memory(ids[1]).left_by_ended >= 8 * LARGE, "it is the node's")
    assert [block for block in report().blocks if block.kind == "LEAKED"] == []
    del ref
    wait_until(lambda: node_memory(ids[1]).left_by_ended == 0, "it is freed")


def test_groups_by_node_are_those_of_the_owners(three: Cluster) -> None:
    ids = [node.node_id for node in three.nodes]
    keepers = [Keeper.options(**on(number)).remote() for number in range(3)]
    refs = [get(keeper.put.remote())[0] for keeper in keepers]
    groups = {group.group: group for group in report().groups("node")}
    assert set(groups) >= set(ids)
    assert all(groups[id_].stored >= 8 * LARGE for id_ in ids)
    found = report()
    for number, ref in enumerate(refs):
        one = next(one for one in found.objects if one.object_id == ref.hex())
        assert found.group_of(one, "node") == ids[number]
    for keeper in keepers:
        shoal.kill(keeper)


def test_a_process_that_does_not_answer_is_named_and_nothing_is_said_of_leaks(
    three: Cluster,
) -> None:
    keeper = Keeper.options(**on(1)).remote()
    (ref,) = get(keeper.put.remote())
    pid = get(keeper.pid.remote())
    os.kill(pid, signal.SIGSTOP)
    try:
        with state.asking(None, 1) as questions:
            found = memory_report(questions)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert any(f"pid {pid}" in silent for silent in found.silent)
    (one,) = [one for one in found.objects if one.object_id == ref.hex()]
    assert "(which did not answer, or is gone)" in found.group_of(one, "owner")
    assert [block for block in found.blocks if block.kind == "LEAKED"] == []
    shoal.kill(keeper)
