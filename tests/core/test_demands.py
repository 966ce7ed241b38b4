"""What is demanded and not served: counted in a queue, added up over nodes, cut, and written."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from shoal.core.demands import IN_GROUP, Demands, count_groups, count_queue, demand_text
from shoal.core.groups import GroupTable
from shoal.core.view import View
from shoal.messages.node import UNIT, Shape
from shoal.messages.placement import Bundle, GroupSpec, InBundle
from shoal.messages.state import ACTORS, GROUPS, TASKS, DemandRow
from tests.core.test_groups import LIMITS
from tests.core.test_leases import CPU1, CPU2, HALF, Node

HERE = b"n" * 16
EPOCH_NS = 1_000_000_000_000
ONE = (("CPU", UNIT),)


def counted(node: Node, limit: int = 20) -> list[DemandRow]:
    demands = Demands(HERE)
    count_queue(demands, node.queue, EPOCH_NS)
    return demands.rows(limit)


def test_what_waits_in_a_queue_is_counted_by_shape_the_most_frequent_first() -> None:
    node = Node(cpus=1)
    node.request(1, name="first")
    node.grants()
    node.request(2, HALF, name="half")
    node.settle(5)
    asked_at = node.now
    for owner in (1, 2, 3):
        node.request(owner, CPU1, name=f"of {owner}")
        node.settle(5)
    first, second = counted(node)
    assert first == DemandRow(TASKS, [(ONE, 1)], 3, EPOCH_NS + asked_at, "of 1", "", False, HERE)
    assert (second.count, second.bundles, second.name) == (1, [((("CPU", UNIT // 2),), 1)], "half")


def test_what_is_served_is_not_demanded() -> None:
    node = Node(cpus=2)
    node.request(1)
    (grant,) = node.grants()
    assert counted(node) == []
    node.request(1, CPU2)
    node.settle()
    assert [row.count for row in counted(node)] == [1]
    node.give_back(grant)
    node.settle()
    assert counted(node) == []


def test_actors_and_tasks_in_groups_and_what_no_node_has_are_told_apart() -> None:
    node = Node(cpus=1)
    node.request(1)
    node.grants()
    node.request(1)
    node.request(2, keeps=())
    node.request(1, Shape(ONE, strategy=InBundle(b"group-a", 0)))
    node.request(1, Shape(ONE, strategy=InBundle(b"group-b", 1)))
    node.request(1, Shape((("CPU", 9 * UNIT),)))
    node.settle()
    found = {(row.kind, row.where, row.nowhere): row.count for row in counted(node)}
    assert found == {
        (TASKS, "", False): 1,
        (ACTORS, "", False): 1,
        (TASKS, IN_GROUP, False): 2,
        (TASKS, "", True): 1,
    }


def test_groups_are_counted_with_the_bundles_that_they_miss() -> None:
    table = GroupTable(View(), LIMITS, Random(0))
    bundles = [Bundle(ONE), Bundle((("CPU", 2 * UNIT),)), Bundle(ONE)]
    for number in range(2):
        table.on_create(GroupSpec(bytes([number]) * 16, bundles, "SPREAD"), now=7)
    table.advance(7)
    demands = Demands()
    count_groups(demands, table.unsettled(), EPOCH_NS)
    (row,) = demands.rows(20)
    assert (row.kind, row.count, row.since_ns) == (GROUPS, 2, EPOCH_NS + 7)
    assert demand_text(row) == "{CPU: 1} * 2 + {CPU: 2} (SPREAD)"
    table.on_remove(bytes(16), "was removed", now=8)
    again = Demands()
    count_groups(again, table.unsettled(), EPOCH_NS)
    assert [row.count for row in again.rows(20)] == [1]


def row_of(cpus: int, count: int, since_ns: int = 0, node_id: bytes = HERE) -> DemandRow:
    bundles = [((("CPU", cpus * UNIT),), 1)]
    return DemandRow(TASKS, bundles, count, since_ns, f"f{since_ns}", node_id=node_id)


def test_rows_of_many_nodes_are_added_up_and_the_oldest_names_them() -> None:
    total = Demands()
    for row in (row_of(1, 5, 30), row_of(2, 4, 10, b"m" * 16), row_of(1, 2, 20, b"m" * 16)):
        total.add_row(row)
    assert [(row.count, row.since_ns, row.name) for row in total.rows(20)] == [
        (7, 20, "f20"),
        (4, 10, "f10"),
    ]


@given(
    st.lists(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 50)), max_size=12), max_size=4),
    st.integers(1, 5),
)
def test_nothing_is_lost_by_cutting(nodes: list[list[tuple[int, int]]], limit: int) -> None:
    total = Demands()
    for number, demanded in enumerate(nodes):
        at_node = Demands(bytes([number]) * 16)
        for cpus, count in demanded:
            at_node.add(TASKS, [((("CPU", cpus * UNIT),), 1)], number, count=count)
        rows = at_node.rows(limit)
        assert len([row for row in rows if row.kind]) <= limit
        assert all(row.kind for row in rows[:-1])
        counts = [row.count for row in rows if row.kind]
        assert counts == sorted(counts, reverse=True)
        for row in rows:
            total.add_row(row)
    rows = total.rows(limit)
    assert len(rows) <= limit + 1
    assert sum(row.count for row in rows) == sum(count for of in nodes for _, count in of)


def test_rows_that_came_from_elsewhere_stay_as_they_are() -> None:
    row = row_of(1, 5)
    total = Demands()
    total.add_row(row)
    total.add_row(row_of(1, 2))
    assert row.count == 5


def test_demands_are_written_as_users_know_them() -> None:
    resources = (("CPU", UNIT), ("GPU", UNIT // 2), ("memory", (1 << 30) * UNIT))
    assert (
        demand_text(DemandRow(TASKS, [(resources, 1)], 1, 0)) == "{CPU: 1, GPU: 0.5, memory: 1 GiB}"
    )
    assert demand_text(DemandRow(TASKS, [((), 1)], 1, 0, where=IN_GROUP)) == (
        "{} (in a placement group)"
    )
