"""Random histories of placement groups: a table, and nodes that answer late, refuse, die, and are cut off for a while.

After every event: no node is over-committed; a group that is CREATED has every bundle reserved, committed or about to be. When all is
quiet: nodes hold exactly what the table says, and when all groups are removed, nothing.
"""

from __future__ import annotations

from collections import deque
from random import Random

import pytest

from shoal.core.bundle_placing import STRATEGIES
from shoal.core.bundles import BundleLedger, BundleState, Draw
from shoal.core.group_records import Commit, GroupLimits, Prepare, Release
from shoal.core.groups import GroupTable
from shoal.core.resources import CPU, Allocation, NodeResources
from shoal.core.view import View
from shoal.messages.node import UNIT
from shoal.messages.placement import Bundle, GroupRecord, GroupSpec, InBundle, ViewRow

MS = 1_000_000
LIMITS = GroupLimits(500 * MS, 100 * MS, 1_000 * MS, 100)
Order = Prepare | Commit | Release


class Node:
    """A ledger at the end of a way on which orders and answers travel in order."""

    def __init__(self, node_id: bytes, cpus: int) -> None:
        self.node_id = node_id
        self.resources = NodeResources({CPU: cpus * UNIT})
        self.ledger = BundleLedger(self.resources)
        self.orders: deque[Order] = deque()
        self.answers: deque[tuple[bool, bytes, int, ViewRow]] = deque()
        self.draws: list[Draw] = []
        self.others: list[Allocation] = []
        self.version = 0

    def row(self) -> ViewRow:
        self.version += 1
        return ViewRow(
            self.node_id, self.version, self.resources.total, dict(self.resources.available)
        )

    def take_order(self) -> None:
        match self.orders.popleft():
            case Prepare(_, group_id, attempt, bundles):
                prepared = self.ledger.prepare(group_id, attempt, bundles)
                self.answers.append((prepared, group_id, attempt, self.row()))
            case Commit(_, group_id, attempt):
                self.ledger.commit(group_id, attempt)
            case Release(_, group_id, attempt):
                self.ledger.release(group_id, attempt)

    def check(self) -> None:
        self.ledger.check()
        self.resources.check()
        out = sum(reservation.books.total[CPU] for reservation in self.ledger)
        assert (
            self.resources.available[CPU]
            == self.resources.total[CPU] - out - len(self.others) * UNIT
        )


class World:
    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.view = View()
        self.table = GroupTable(self.view, LIMITS, self.rng)
        self.records: dict[bytes, GroupRecord] = {}
        self.nodes: dict[bytes, Node] = {}
        self.now = 0
        self.count = 0
        self.created = 0

    def join(self, cpus: int) -> None:
        self.count += 1
        node = Node(b"n%d" % self.count, cpus)
        self.nodes[node.node_id] = node
        self.view.on_row(node.row())
        self.table.on_view_changed()

    def die(self, node_id: bytes) -> None:
        del self.nodes[node_id]
        self.view.on_removed(node_id)
        self.table.on_node_gone(node_id, self.now)

    def reconnect(self, node: Node) -> None:
        """What was on its way is lost; then the node says what it has."""
        node.orders.clear()
        node.answers.clear()
        self.view.on_row(node.row())
        self.table.on_node_back(node.node_id, node.ledger.held(), self.now)

    def restart(self) -> None:
        """A new table, from what was written down."""
        self.view = View()
        for node in self.nodes.values():
            node.orders.clear()
            node.answers.clear()
            self.view.on_row(node.row())
        self.table = GroupTable(self.view, LIMITS, self.rng)
        self.table.restore(self.records.values(), self.now)
        for node in self.nodes.values():
            self.table.on_node_back(node.node_id, node.ledger.held(), self.now)

    def take_answer(self, node: Node) -> None:
        prepared, group_id, attempt, row = node.answers.popleft()
        self.view.on_row(row)
        answer = self.table.on_prepared if prepared else self.table.on_refused
        answer(node.node_id, group_id, attempt, row.version, self.now)

    def settle(self) -> None:
        self.table.advance(self.now)
        self.table.check()
        self.view.check()
        for effect in self.table.outbox:
            if isinstance(effect, Prepare | Commit | Release):
                if effect.node_id in self.nodes:
                    self.nodes[effect.node_id].orders.append(effect)
            else:
                record = self.table.record(effect.group_id)
                assert record is not None
                self.records[effect.group_id] = record
        self.table.outbox.clear()
        for node in self.nodes.values():
            node.check()
        for record in self.table.records():
            if record.state == "CREATED":
                self.check_created(record)

    def check_created(self, record: GroupRecord) -> None:
        """Every bundle is there, and usable as soon as the orders that are on their way have come."""
        for index, node_id in enumerate(record.places):
            node = self.nodes[node_id]
            (held,) = [
                r
                for r in node.ledger
                if (r.group_id, r.index) == (record.spec.group_id, index)
                and r.state is not BundleState.LEAVING
            ]
            commits = [
                order
                for order in node.orders
                if isinstance(order, Commit) and order.attempt == held.attempt
            ]
            assert held.state is BundleState.COMMITTED or commits

    def calm(self) -> None:
        """Let everything arrive, leases end, and time pass."""
        for _ in range(150):
            self.now += 300 * MS
            for node in self.nodes.values():
                while node.others:
                    node.resources.give_back(node.others.pop())
                while node.orders or node.answers or node.draws:
                    if node.orders:
                        node.take_order()
                    elif node.answers:
                        self.take_answer(node)
                    else:
                        node.ledger.give_back(node.draws.pop())
                self.view.on_row(node.row())
            self.table.on_view_changed()
            self.settle()


def happen(world: World, rng: Random) -> None:
    """Something happens."""
    event = rng.choices(range(12), [5, 12, 12, 2, 2, 2, 3, 3, 4, 0.5, 0.3, 4])[0]
    nodes = list(world.nodes.values())
    records = list(world.table.records())
    node = rng.choice(nodes) if nodes else None
    if event == 0:
        world.created += 1
        spec = GroupSpec(
            b"g%d" % world.created,
            [Bundle(((CPU, rng.randint(1, 3) * UNIT),)) for _ in range(rng.randint(1, 4))],
            rng.choice(STRATEGIES),
            job_id=rng.choice([b"1", b"2"]),
            detached=rng.random() < 0.5,
        )
        assert world.table.on_create(spec, world.now) == ""
    elif event == 3 and records:
        group_id = rng.choice(records).spec.group_id
        world.table.on_remove(group_id, "was removed", world.now)
    elif event == 4 or node is None:
        world.join(rng.randint(1, 4))
    elif event == 1 and node.orders:
        node.take_order()
    elif event == 2 and node.answers:
        world.take_answer(node)
    elif event == 5:
        world.die(node.node_id)
    elif event == 6:
        # A lease out of a bundle.
        for held in node.ledger:
            bundle = InBundle(held.group_id, rng.choice([-1, held.index]))
            if node.ledger.fits(bundle, ((CPU, UNIT),)):
                node.draws.append(node.ledger.draw(bundle, ((CPU, UNIT),)))
                break
    elif event == 7 and node.draws:
        node.ledger.give_back(node.draws.pop())
    elif event == 8:
        world.reconnect(node)
    elif event == 9:
        world.restart()
    elif event == 11:
        # Others take what the view shows as free, and give it back.
        if node.others:
            node.resources.give_back(node.others.pop())
        elif node.resources.fits(((CPU, UNIT),)):
            node.others.append(node.resources.take(((CPU, UNIT),)))
    elif event == 10:
        world.table.on_job_gone(b"1", "ended with its job", world.now)


@pytest.mark.parametrize("seed", range(60))
def test_random_histories_are_all_or_nothing(seed: int) -> None:
    rng = Random(seed)
    world = World(seed)
    for _ in range(rng.randint(1, 4)):
        world.join(rng.randint(1, 4))
    for _ in range(150):
        world.now += rng.choice([0, 0, MS, 110 * MS, 600 * MS])
        happen(world, rng)
        world.settle()
    world.calm()
    for record in world.table.records():
        reserved = {
            held.index: node.node_id
            for node in world.nodes.values()
            for held in node.ledger.held()
            if held.group_id == record.spec.group_id
        }
        assert reserved == {i: node for i, node in enumerate(record.places) if node}
        if record.state != "CREATED":
            assert world.table.explain(record.spec.group_id)
    for record in list(world.table.records()):
        world.table.on_remove(record.spec.group_id, "was removed", world.now)
    world.settle()
    world.calm()
    for node in world.nodes.values():
        assert node.resources.available == node.resources.total
    for seen in world.view:
        assert seen.free == seen.row.total
