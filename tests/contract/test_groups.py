"""Placement groups of a control store, over each storage: reserved, written down, taken up by the next one, and told to nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from shoal.control.link import ControlError
from shoal.control.restoring import GROUPS
from shoal.control.storage import Storage
from shoal.control.store import ControlStore
from shoal.core.bundles import BundleLedger
from shoal.core.resources import NodeResources
from shoal.messages.control import (
    ActorChanged,
    BundlesPrepared,
    BundlesReleased,
    CommitBundles,
    CreateActor,
    CreateGroup,
    GroupChanged,
    GroupWaits,
    JobEnded,
    JobStarted,
    ListGroups,
    NodeView,
    Order,
    PlaceActor,
    PrepareBundles,
    ReleaseBundles,
    RemoveGroup,
    WatchActor,
    WatchGroup,
)
from shoal.messages.node import GROUP_REMOVED, UNIT, Shape
from shoal.messages.placement import Bundle, GroupRecord, GroupSpec, InBundle, ViewRow
from tests.contract.members import node_row
from tests.contract.places import Place
from tests.contract.test_control_store import JOB, spec

CPU1 = Bundle((("CPU", UNIT),))


def group(number: int = 1, *bundles: Bundle, **fields: Any) -> GroupSpec:
    group_id = number.to_bytes(16, "big")
    return GroupSpec(group_id, list(bundles) or [CPU1], namespace="ns", job_id=JOB.job_id, **fields)


class Node:
    """A node with books of its own that does what it is told; `silent`: it answers nothing."""

    def __init__(self, cluster: Cluster, number: int, cpus: int = 2) -> None:
        self.row = node_row(number, cpus)
        self.resources = NodeResources(self.row.total)
        self.ledger = BundleLedger(self.resources)
        self.orders: list[Order] = []
        self.silent = False
        self._cluster = cluster
        self._version = 0

    @property
    def node_id(self) -> bytes:
        return self.row.node_id

    def view(self) -> ViewRow:
        self._version += 1
        resources = self.resources
        return ViewRow(
            self.node_id, self._version, dict(resources.total), dict(resources.available)
        )

    def on_order(self, order: Order) -> None:
        self.orders.append(order)
        post = self._cluster.store.post
        match order:
            case PrepareBundles(group_id, attempt, bundles) if not self.silent:
                done = self.ledger.prepare(group_id, attempt, bundles)
                post(self.node_id, BundlesPrepared(group_id, attempt, done, self.view()))
            case CommitBundles(group_id, attempt):
                self.ledger.commit(group_id, attempt)
            case ReleaseBundles(group_id, attempt, _):
                self.ledger.release(group_id, attempt)
                post(self.node_id, BundlesReleased(self.view()))
        self._cluster.heard.set()

    def states(self, group_id: bytes) -> list[str]:
        """What it was told of a group."""
        return [
            order.change.state
            for order in self.orders
            if isinstance(order, GroupChanged) and order.change.group_id == group_id
        ]


class Cluster:
    """A control store with nodes."""

    def __init__(self, storage: Storage) -> None:
        self.heard = asyncio.Event()
        self.failures: list[Exception] = []
        self.store = ControlStore(asyncio.get_running_loop(), storage, self.failures.append)
        self.nodes: list[Node] = []

    def join(self, *nodes: Node, back: bool = False) -> None:
        for node in nodes:
            node._cluster = self
            self.nodes.append(node)
            if back:
                self.store.on_node_back(node.row, node.on_order)
                self.store.on_claims(node.node_id, [], node.ledger.held())
            else:
                self.store.on_node_up(node.row, 1, node.on_order)
            self.store.post(node.node_id, NodeView(node.view()))

    async def record(self, number: int = 1) -> GroupRecord:
        found = await self.store.call(b"", ListGroups(number.to_bytes(16, "big")))
        assert len(found) == 1
        record: GroupRecord = found[0].record
        return record

    async def until(self, condition: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(20):
            while not await condition():
                self.heard.clear()
                try:
                    # Not everything that counts is an order.
                    await asyncio.wait_for(self.heard.wait(), 0.02)
                except TimeoutError:
                    continue

    async def becomes(self, state: str, number: int = 1) -> GroupRecord:
        async def is_so() -> bool:
            return (await self.record(number)).state == state

        await self.until(is_so)
        return await self.record(number)

    async def create(self, spec: GroupSpec) -> None:
        await self.store.call(self.nodes[0].node_id, CreateGroup(spec))


def over(place: Place, scenario: Callable[[Cluster], Awaitable[Any]]) -> Any:
    """Run a scenario on a control store that starts over a place and ends in good order."""

    async def run() -> Any:
        cluster = Cluster(place.open())
        await cluster.store.load()
        try:
            return await scenario(cluster)
        finally:
            await cluster.store.close()
            assert cluster.failures == []

    return asyncio.run(run())


def test_a_group_is_reserved_and_whoever_watches_hears_of_it(place: Place) -> None:
    async def scenario(cluster: Cluster) -> None:
        first, second = Node(cluster, 1), Node(cluster, 2)
        cluster.join(first, second)
        spec = group(1, CPU1, CPU1, strategy="STRICT_SPREAD")
        await cluster.create(spec)
        cluster.store.post(second.node_id, WatchGroup(spec.group_id))
        record = await cluster.becomes("CREATED")
        assert set(record.places) == {first.node_id, second.node_id}

        async def told() -> bool:
            return "CREATED" in second.states(spec.group_id)

        await cluster.until(told)
        assert first.states(spec.group_id) == []
        for node in (first, second):
            assert [bundle.committed for bundle in node.ledger.held()] == [True]

    over(place, scenario)


def test_the_next_control_store_has_the_groups(place: Place) -> None:
    nodes: list[Node] = []

    async def first(cluster: Cluster) -> None:
        nodes.extend(Node(cluster, number) for number in (1, 2))
        cluster.join(*nodes)
        await cluster.create(group(1, CPU1, CPU1, strategy="SPREAD", name="kept"))
        await cluster.create(group(2, CPU1))
        await cluster.create(group(3, Bundle((("CPU", 8 * UNIT),))))
        await cluster.becomes("CREATED", 1)
        await cluster.becomes("CREATED", 2)
        await cluster.store.call(b"", RemoveGroup(group(2).group_id, "was removed"))

    async def second(cluster: Cluster) -> None:
        before = [node.ledger.held() for node in nodes]
        cluster.join(*nodes, back=True)
        record = await cluster.record(1)
        assert record.state == "CREATED"
        assert [node.ledger.held() for node in nodes] == before
        # What was removed is forgotten, what waited waits.
        assert await cluster.store.call(b"", ListGroups(group(2).group_id)) == []
        assert (await cluster.record(3)).state == "PENDING"
        with pytest.raises(ControlError, match="named 'kept' exists"):
            await cluster.create(group(4, name="kept"))
        cluster.join(Node(cluster, 3, cpus=8))
        await cluster.becomes("CREATED", 3)

    async def third(cluster: Cluster) -> None:
        # One has lost what it had, another has what nobody knows of.
        lost = nodes[0].ledger.held()[0]
        nodes[0].ledger.release(lost.group_id, lost.attempt)
        assert nodes[1].ledger.prepare(b"x" * 16, 7, [(0, CPU1.resources)])
        cluster.join(*nodes, back=True)

        async def again() -> bool:
            record = await cluster.record(1)
            held = {bundle.group_id for node in nodes for bundle in node.ledger.held()}
            return record.state == "CREATED" and b"x" * 16 not in held

        await cluster.until(again)
        record = await cluster.record(1)
        held = {
            bundle.index: node.node_id
            for node in nodes
            for bundle in node.ledger.held()
            if bundle.group_id == group(1).group_id
        }
        assert held == dict(enumerate(record.places))

    for scenario in (first, second, third):
        over(place, scenario)


def test_what_was_removed_is_not_written_down_any_more(place: Place) -> None:
    async def first(cluster: Cluster) -> None:
        cluster.join(Node(cluster, 1))
        await cluster.create(group(1))
        await cluster.becomes("CREATED")
        await cluster.store.call(b"", RemoveGroup(group(1).group_id, "was removed"))
        assert (await cluster.record(1)).cause == "was removed"

    over(place, first)

    async def look() -> Any:
        storage = place.open()
        tables = await storage.load()
        await storage.close()
        return tables.get(GROUPS, {})

    assert asyncio.run(look()) == {}


def test_groups_end_with_their_job_unless_they_are_detached(place: Place) -> None:
    async def scenario(cluster: Cluster) -> None:
        node = Node(cluster, 1)
        cluster.join(node)
        cluster.store.post(node.node_id, JobStarted(JOB))
        await cluster.create(group(1))
        await cluster.create(group(2, detached=True))
        for number in (1, 2):
            await cluster.becomes("CREATED", number)
        cluster.store.post(node.node_id, JobEnded(JOB.job_id, "its driver has shut down"))
        record = await cluster.becomes("REMOVED", 1)
        assert "its driver has shut down" in record.cause
        assert (await cluster.record(2)).state == "CREATED"

        async def released() -> bool:
            return {bundle.group_id for bundle in node.ledger.held()} == {group(2).group_id}

        await cluster.until(released)

    over(place, scenario)


def test_what_a_dead_node_had_is_reserved_elsewhere(place: Place) -> None:
    async def scenario(cluster: Cluster) -> None:
        first, second = Node(cluster, 1), Node(cluster, 2)
        cluster.join(first, second)
        await cluster.create(group(1, CPU1, CPU1, strategy="STRICT_SPREAD"))
        record = await cluster.becomes("CREATED")
        kept = record.places.index(first.node_id)
        cluster.store.on_node_down(second.node_id, "second", "sent no heartbeat for 10 s")
        record = await cluster.record()
        assert record.state == "RESCHEDULING"
        assert record.places[kept] == first.node_id
        assert record.places[1 - kept] == b""
        third = Node(cluster, 3)
        cluster.join(third)
        record = await cluster.becomes("CREATED")
        assert record.places[kept] == first.node_id
        assert record.places[1 - kept] == third.node_id

    over(place, scenario)


def test_a_node_that_refuses_is_asked_again_when_it_has_room(place: Place) -> None:
    async def scenario(cluster: Cluster) -> None:
        node = Node(cluster, 1)
        cluster.join(node)
        # Taken since its last row.
        taken = node.resources.take((("CPU", 2 * UNIT),))
        await cluster.create(group(1))

        async def refused() -> bool:
            return any(isinstance(order, PrepareBundles) for order in node.orders)

        await cluster.until(refused)
        assert (await cluster.record()).state == "PENDING"
        node.resources.give_back(taken)
        cluster.store.post(node.node_id, NodeView(node.view()))
        await cluster.becomes("CREATED")

    over(place, scenario)


def test_what_no_cluster_like_this_can_hold_is_said_once(place: Place) -> None:
    async def scenario(cluster: Cluster) -> None:
        node = Node(cluster, 1)
        cluster.join(node)
        cluster.store.post(node.node_id, JobStarted(JOB))
        await cluster.create(group(1, Bundle((("CPU", 64 * UNIT),))))

        def said() -> list[GroupWaits]:
            return [order for order in node.orders if isinstance(order, GroupWaits)]

        async def is_said() -> bool:
            return bool(said())

        await cluster.until(is_said)
        for _ in range(5):
            cluster.store.post(node.node_id, NodeView(node.view()))
        await cluster.record()
        assert len(said()) == 1
        assert "CPU 64" in said()[0].reason
        cluster.join(Node(cluster, 2, cpus=64))
        await cluster.becomes("CREATED")

    over(place, scenario)


def test_actors_of_a_group_wait_for_it_go_where_it_is_and_end_with_it(place: Place) -> None:
    async def scenario(cluster: Cluster) -> None:
        node = Node(cluster, 1)
        node.silent = True
        cluster.join(node)
        await cluster.create(group(1))
        shape = Shape((), strategy=InBundle(group(1).group_id, 0))
        actor = spec(7, shape=shape, placement_shape=shape, owner=f"{node.row.place}/d-1")
        cluster.store.post(node.node_id, WatchActor(actor.actor_id, 5, actor.owner))
        await cluster.store.call(node.node_id, CreateActor(actor, JOB.job_id, False))
        assert not any(isinstance(order, PlaceActor) for order in node.orders)

        async def asked() -> bool:
            return any(isinstance(order, PrepareBundles) for order in node.orders)

        await cluster.until(asked)
        (order,) = [order for order in node.orders if isinstance(order, PrepareBundles)]
        assert node.ledger.prepare(order.group_id, order.attempt, order.bundles)
        prepared = BundlesPrepared(order.group_id, order.attempt, True, node.view())
        cluster.store.post(node.node_id, prepared)

        async def placed() -> bool:
            return any(isinstance(order, PlaceActor) for order in node.orders)

        await cluster.until(placed)
        await cluster.store.call(b"", RemoveGroup(group(1).group_id, "was removed"))
        # Of a group that is gone no actor is made.
        late = spec(8, shape=shape, placement_shape=shape, owner=actor.owner)
        cluster.store.post(node.node_id, WatchActor(late.actor_id, 5, late.owner))
        await cluster.store.call(node.node_id, CreateActor(late, JOB.job_id, False))

        def ends() -> dict[bytes, tuple[str, str]]:
            return {
                order.change.actor_id: (order.change.kind, order.change.cause)
                for order in node.orders
                if isinstance(order, ActorChanged) and order.change.state == "DEAD"
            }

        async def both_dead() -> bool:
            return len(ends()) == 2

        await cluster.until(both_dead)
        for actor_id in (actor.actor_id, late.actor_id):
            kind, cause = ends()[actor_id]
            assert kind == GROUP_REMOVED
            assert "was removed" in cause

    over(place, scenario)


def test_a_group_that_nobody_knows_counts_as_removed(place: Place) -> None:
    async def scenario(cluster: Cluster) -> None:
        node = Node(cluster, 1)
        cluster.join(node)
        cluster.store.post(node.node_id, WatchGroup(b"?" * 16))

        async def told() -> bool:
            return node.states(b"?" * 16) == ["REMOVED"]

        await cluster.until(told)

    over(place, scenario)


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (group(1, strategy="SIDEWAYS"), "none of PACK, SPREAD"),
        (GroupSpec(b"g" * 16, []), "at least one bundle"),
        (group(1, Bundle(())), "asks for nothing"),
        (group(1, Bundle((("CPU", -1),))), "not a demand"),
    ],
)
def test_a_group_that_cannot_be_is_refused(place: Place, bad: GroupSpec, text: str) -> None:
    async def scenario(cluster: Cluster) -> None:
        cluster.join(Node(cluster, 1))
        with pytest.raises(ControlError, match=text):
            await cluster.create(bad)

    over(place, scenario)
