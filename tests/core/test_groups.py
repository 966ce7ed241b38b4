"""Placement groups: reserved in two phases, all or nothing, removed at any time; and the ledger of a node that reserves."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from shoal.core.bundles import BundleLedger
from shoal.core.group_records import (
    Commit,
    GroupChanged,
    GroupImpossible,
    GroupLimits,
    Prepare,
    Release,
)
from shoal.core.groups import GroupTable
from shoal.core.labels import parse_selector
from shoal.core.resources import CPU, GPU, NodeResources, as_amounts
from shoal.core.view import View
from shoal.messages.node import UNIT
from shoal.messages.placement import Bundle, BundleHeld, GroupSpec, InBundle, ViewRow

MS = 1_000_000
LIMITS = GroupLimits(
    prepare_timeout_ns=1_000 * MS, retry_ns=100 * MS, retry_most_ns=1_000 * MS, remembered=3
)
A, B, C, D = b"a", b"b", b"c", b"d"


def bundles(*wanted: dict[str, float]) -> list[Bundle]:
    return [Bundle(as_amounts(resources)) for resources in wanted]


class Table:
    """A table, whose nodes are ledgers that answer at once unless the test holds their answers back."""

    def __init__(self, **cpus: float) -> None:
        self.view = View()
        self.table = GroupTable(self.view, LIMITS, Random(1))
        self.now = 0
        self.nodes: dict[bytes, BundleLedger] = {}
        self.resources: dict[bytes, NodeResources] = {}
        self.labels: dict[bytes, dict[str, str]] = {}
        self.versions: dict[bytes, int] = {}
        self.told: list[Any] = []
        self.held_back: list[Prepare] = []
        self.hold: set[bytes] = set()
        for name, count in cpus.items():
            self.join(name.encode(), {CPU: count})

    def join(
        self, node_id: bytes, total: dict[str, float], labels: dict[str, str] | None = None
    ) -> None:
        self.resources[node_id] = NodeResources(dict(as_amounts(total)))
        self.nodes[node_id] = BundleLedger(self.resources[node_id])
        self.labels[node_id] = labels or {}
        self.tell(node_id)
        self.table.on_view_changed()

    def tell(self, node_id: bytes) -> int:
        """A node's row arrives at the table."""
        version = self.versions[node_id] = self.versions.get(node_id, 0) + 1
        resources = self.resources[node_id]
        self.view.on_row(
            ViewRow(
                node_id, version, resources.total, dict(resources.available), self.labels[node_id]
            )
        )
        return version

    def create(self, strategy: str, *wanted: dict[str, float], **more: Any) -> bytes:
        group_id = f"group{len(list(self.table.records()))}".encode()
        spec = GroupSpec(group_id, more.pop("bundles", bundles(*wanted)), strategy, **more)
        assert self.table.on_create(spec, self.now) == ""
        self.settle()
        return group_id

    def settle(self, advance_ms: int = 0) -> None:
        """Let time pass, and all that follows happen."""
        self.now += advance_ms * MS
        while True:
            self.table.advance(self.now)
            self.table.check()
            self.view.check()
            effects = self.table.outbox[:]
            self.table.outbox.clear()
            if not effects:
                return
            for effect in effects:
                match effect:
                    case Prepare(node_id):
                        if node_id in self.hold:
                            self.held_back.append(effect)
                        elif node_id in self.nodes:
                            self.answer(effect)
                    case Commit(node_id, group_id, attempt):
                        self.nodes[node_id].commit(group_id, attempt)
                    case Release(node_id, group_id, attempt):
                        assert self.nodes[node_id].release(group_id, attempt) == []
                        self.tell(node_id)
                        self.table.on_released(self.now)
                    case _:
                        self.told.append(effect)
            for ledger in self.nodes.values():
                ledger.check()

    def answer(self, order: Prepare) -> None:
        node_id, group_id, attempt, wanted = order
        prepared = self.nodes[node_id].prepare(group_id, attempt, wanted)
        version = self.tell(node_id)
        answer = self.table.on_prepared if prepared else self.table.on_refused
        answer(node_id, group_id, attempt, version, self.now)

    def die(self, node_id: bytes) -> None:
        del self.nodes[node_id], self.resources[node_id]
        self.view.on_removed(node_id)
        self.table.on_node_gone(node_id, self.now)
        self.settle()

    def places(self, group_id: bytes) -> list[bytes]:
        record = self.table.record(group_id)
        assert record is not None
        return record.places

    def state(self, group_id: bytes) -> str:
        record = self.table.record(group_id)
        assert record is not None
        return record.state

    def free(self, node_id: bytes) -> float:
        return self.resources[node_id].available[CPU] / UNIT


# --- the four strategies --------------------------------------------------------------------------------------------


def test_strict_pack_takes_one_node_or_waits() -> None:
    table = Table(a=2, b=4, c=2)
    group = table.create("STRICT_PACK", {CPU: 1}, {CPU: 2})
    assert table.places(group) == [B, B]
    assert table.state(group) == "CREATED"
    assert table.free(B) == 1
    other = table.create("STRICT_PACK", {CPU: 1}, {CPU: 2})
    assert table.state(other) == "PENDING"
    assert "has no room for them now (STRICT_PACK)" in table.table.explain(other)
    assert (table.free(A), table.free(B), table.free(C)) == (2, 1, 2)
    table.table.on_remove(group, "was removed", table.now)
    table.settle(1_000)
    table.settle(1_000)
    assert table.places(other) == [B, B]


def test_pack_takes_few_nodes() -> None:
    table = Table(a=3, b=3, c=3)
    assert len(set(table.places(table.create("PACK", *[{CPU: 1}] * 3)))) == 1
    assert len(set(table.places(table.create("PACK", *[{CPU: 1}] * 6)))) == 2


def test_spread_takes_as_many_nodes_as_there_are() -> None:
    table = Table(a=4, b=4, c=4)
    assert len(set(table.places(table.create("SPREAD", *[{CPU: 1}] * 3)))) == 3
    group = table.create("SPREAD", *[{CPU: 1}] * 5)
    assert table.state(group) == "CREATED"
    assert len(set(table.places(group))) == 3


def test_strict_spread_takes_a_node_each_or_waits() -> None:
    table = Table(a=4, b=4, c=4)
    assert len(set(table.places(table.create("STRICT_SPREAD", *[{CPU: 1}] * 3)))) == 3
    group = table.create("STRICT_SPREAD", *[{CPU: 1}] * 4)
    assert table.state(group) == "PENDING"
    assert (table.free(A), table.free(B), table.free(C)) == (3, 3, 3)
    assert "as many nodes (STRICT_SPREAD" in table.table.explain(group)
    (told,) = [effect for effect in table.told if isinstance(effect, GroupImpossible)]
    assert "of the 3 nodes not enough could hold one each" in told.reason
    table.join(D, {CPU: 1})
    table.settle(100)
    assert sorted(table.places(group)) == [A, B, C, D]


def test_strict_spread_finds_a_way_if_there_is_one() -> None:
    table = Table()
    table.join(A, {CPU: 4, GPU: 1})
    table.join(B, {CPU: 4})
    table.join(C, {CPU: 1})
    # The small one fits everywhere, and must leave the nodes to those that fit on one only.
    group = table.create("STRICT_SPREAD", {CPU: 1}, {CPU: 2}, {CPU: 1, GPU: 1})
    assert table.places(group) == [C, B, A]


def test_a_preferred_node_and_labels_are_minded() -> None:
    table = Table(a=4, b=4)
    table.join(C, {CPU: 4}, {"zone": "z"})
    assert table.places(table.create("PACK", {CPU: 1}, target=B)) == [B]
    labelled = [Bundle(((CPU, UNIT),), parse_selector({"zone": "z"})), Bundle(((CPU, UNIT),))]
    assert table.places(table.create("SPREAD", bundles=labelled))[0] == C
    assert set(table.places(table.create("STRICT_PACK", bundles=labelled))) == {C}


# --- two phases -----------------------------------------------------------------------------------------------------


def test_a_refusal_releases_everything_and_another_round_is_tried() -> None:
    table = Table(a=2, b=2)
    # Somebody takes what the view shows as free.
    squatter = table.resources[A].take(((CPU, UNIT),))
    group = table.create("SPREAD", {CPU: 2}, {CPU: 2})
    assert table.state(group) == "PENDING"
    assert table.free(B) == 2
    assert "times in a row" in table.table.explain(group) or "no room" in table.table.explain(group)
    table.resources[A].give_back(squatter)
    table.tell(A)
    table.table.on_view_changed()
    table.settle(1_000)
    assert sorted(table.places(group)) == [A, B]
    record = table.table.record(group)
    assert record is not None
    assert record.attempt == 2


def test_no_answer_in_time_ends_a_round_and_late_answers_do_nothing() -> None:
    table = Table(a=2, b=2)
    table.hold.add(A)
    group = table.create("STRICT_SPREAD", {CPU: 1}, {CPU: 1})
    assert table.state(group) == "PENDING"
    assert "have not answered yet: 61" in table.table.explain(group)
    assert table.free(B) == 1, "prepared"
    assert not table.nodes[B].fits(InBundle(group), ((CPU, UNIT),)), "not usable before all are"
    table.settle(1_000)
    assert table.free(B) == 2, "released"
    (late,) = table.held_back
    table.hold.clear()
    table.settle(1_000)
    assert table.state(group) == "CREATED"
    table.table.on_prepared(A, group, late.attempt, 99, table.now)
    table.table.on_refused(A, group, late.attempt, 99, table.now)
    table.settle()
    assert table.state(group) == "CREATED"


def test_a_group_is_removed_in_the_middle_of_a_round() -> None:
    table = Table(a=2, b=2)
    table.hold.add(A)
    group = table.create("STRICT_SPREAD", {CPU: 1}, {CPU: 1})
    table.table.on_remove(group, "was removed", table.now)
    table.settle()
    assert table.state(group) == "REMOVED"
    assert table.free(B) == 2
    assert table.table.explain(group) == "it was removed."
    table.table.on_remove(group, "was removed", table.now)
    table.settle()


# --- nodes ----------------------------------------------------------------------------------------------------------


def test_what_a_dead_node_had_is_reserved_elsewhere() -> None:
    table = Table(a=2, b=2, c=2)
    group = table.create("STRICT_SPREAD", {CPU: 2}, {CPU: 2})
    dead, kept = table.places(group)
    (spare,) = {A, B, C} - {dead, kept}
    table.die(dead)
    assert table.places(group) == [spare, kept]
    assert table.state(group) == "CREATED"
    table.die(spare)
    assert table.state(group) == "RESCHEDULING"
    assert table.places(group) == [b"", kept]
    assert "1 of its 2 bundles have no node since one died" in table.table.explain(group)
    table.join(D, {CPU: 2})
    table.settle(1_000)
    assert table.places(group) == [D, kept]


def test_a_node_that_dies_in_a_round_is_no_part_of_the_next() -> None:
    table = Table(a=2, b=2, c=2)
    table.hold |= {A, B, C}
    group = table.create("SPREAD", {CPU: 1}, {CPU: 1})
    table.die(table.held_back[0].node_id)
    table.hold.clear()
    table.settle(1_000)
    assert table.state(group) == "CREATED"
    assert set(table.places(group)) <= set(table.nodes)


def test_another_node_dies_while_what_one_had_is_reserved_anew() -> None:
    table = Table(a=1, b=1, c=1, d=1)
    group = table.create("STRICT_SPREAD", *[{CPU: 1}] * 3)
    (spare,) = table.nodes.keys() - set(table.places(group))
    table.hold.add(spare)
    first, second, third = table.places(group)
    table.die(first)
    assert [order.node_id for order in table.held_back] == [spare]
    table.die(second)
    # The round that was under way knows nothing of the second, and must not end in a group that is CREATED.
    table.hold.clear()
    table.answer(table.held_back[0])
    table.settle()
    assert table.state(group) == "RESCHEDULING"
    # On the way to a node nothing overtakes: there, the release came after the order that was held back.
    table.nodes[spare].release(group)
    table.tell(spare)
    table.join(b"e", {CPU: 1})
    table.settle(1_000)
    table.settle(1_000)
    assert set(table.places(group)) == {third, spare, b"e"}


def test_a_node_comes_back_in_the_middle_of_a_round() -> None:
    table = Table(a=1, b=1)
    table.hold.add(B)
    group = table.create("STRICT_SPREAD", {CPU: 1}, {CPU: 1})
    # A has prepared, and said so, before its connection broke: what it claims belongs to no group that is CREATED.
    table.table.on_node_back(A, table.nodes[A].held(), table.now)
    table.settle()
    assert table.free(A) == 1
    table.hold.clear()
    table.answer(table.held_back.pop())
    table.settle()
    assert table.state(group) == "PENDING"
    table.nodes[B].release(group)
    table.tell(B)
    table.settle(1_000)
    table.settle(1_000)
    assert sorted(table.places(group)) == [A, B]
    assert len(table.nodes[A].held()) == len(table.nodes[B].held()) == 1


def test_a_restarted_table_and_its_nodes_agree_again() -> None:
    table = Table(a=2, b=2, c=2)
    kept = table.create("STRICT_SPREAD", {CPU: 1}, {CPU: 1}, {CPU: 1}, name="kept")
    gone = table.create("PACK", {CPU: 1})
    records = [record for record in table.table.records() if record.spec.group_id == kept]
    # The other group was never written down; and one node has lost what it had.
    table.table = GroupTable(table.view, LIMITS, Random(2))
    table.table.restore(records, table.now)
    assert table.table.find("kept", "") == kept
    lost = table.places(kept)[0]
    table.nodes[lost].release(kept)
    table.tell(lost)
    for node_id in (A, B, C):
        table.table.on_node_back(node_id, table.nodes[node_id].held(), table.now)
    assert table.state(kept) == "RESCHEDULING"
    table.settle(1_000)
    assert table.state(kept) == "CREATED"
    assert all(held.group_id != gone for ledger in table.nodes.values() for held in ledger.held())
    assert sum(len(ledger.held()) for ledger in table.nodes.values()) == 3


def test_a_commit_that_was_lost_is_repeated() -> None:
    table = Table(a=2)
    group = table.create("PACK", {CPU: 1})
    (held,) = table.nodes[A].held()
    table.table.on_node_back(A, [BundleHeld(group, 0, held.attempt, False)], table.now)
    assert table.table.outbox == [Commit(A, group, held.attempt)]


# --- lives and names ------------------------------------------------------------------------------------------------


def test_groups_end_with_their_job_unless_detached() -> None:
    table = Table(a=4)
    mine = table.create("PACK", {CPU: 1}, job_id=b"1")
    detached = table.create("PACK", {CPU: 1}, job_id=b"1", detached=True)
    other = table.create("PACK", {CPU: 1}, job_id=b"2")
    table.table.on_job_gone(b"1", "ended with its job", table.now)
    table.settle()
    assert [table.state(group) for group in (mine, detached, other)] == [
        "REMOVED",
        "CREATED",
        "CREATED",
    ]
    assert table.free(A) == 2
    assert table.table.explain(mine) == "it ended with its job."


def test_who_waits_longest_looks_as_soon_as_bundles_are_released() -> None:
    table = Table(a=1)
    first, second, third = (table.create("PACK", {CPU: 1}) for _ in range(3))
    assert [table.state(each) for each in (first, second, third)] == [
        "CREATED",
        "PENDING",
        "PENDING",
    ]
    table.table.on_remove(first, "was removed", table.now)
    # No time passes.
    table.settle()
    assert [table.state(each) for each in (second, third)] == ["CREATED", "PENDING"]


def test_a_name_belongs_to_one_group_and_is_free_after_it() -> None:
    table = Table(a=4)
    group = table.create("PACK", {CPU: 1}, name="x", namespace="n")
    assert table.table.find("x", "n") == group
    assert table.table.find("x", "m") is None
    refusal = table.table.on_create(
        GroupSpec(b"other", bundles({CPU: 1}), name="x", namespace="n"), table.now
    )
    assert "named 'x' exists in namespace 'n' already" in refusal
    table.table.on_remove(group, "was removed", table.now)
    assert table.create("PACK", {CPU: 1}, name="x", namespace="n") != group


def test_the_same_request_again_changes_nothing() -> None:
    table = Table(a=4)
    group = table.create("PACK", {CPU: 1})
    assert table.table.on_create(GroupSpec(group, bundles({CPU: 3})), table.now) == ""
    table.settle()
    assert table.free(A) == 3


def test_removed_groups_are_remembered_for_a_while() -> None:
    table = Table(a=4)
    groups = [table.create("PACK", {CPU: 1}) for _ in range(2)]
    for number in range(4):
        table.table.on_create(GroupSpec(bytes([number]), bundles({CPU: 1})), table.now)
        table.table.on_remove(bytes([number]), "was removed", table.now)
        table.settle()
    assert table.table.record(b"\0") is None
    assert table.table.explain(b"\0") == "there is no such placement group."
    assert table.table.record(b"\3") is not None
    assert all(table.state(group) == "CREATED" for group in groups)


def test_changes_are_told_in_order() -> None:
    table = Table(a=1)
    group = table.create("PACK", {CPU: 1})
    table.table.on_remove(group, "was removed", table.now)
    table.settle()
    assert table.told == [GroupChanged(group)] * 3


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (GroupSpec(b"g", bundles({CPU: 1}), "LOOSE"), "'LOOSE' is none of PACK"),
        (GroupSpec(b"g", []), "at least one bundle"),
        (GroupSpec(b"g", [Bundle(())]), "bundle 0 asks for nothing"),
        (GroupSpec(b"g", [Bundle(((CPU, -1),))]), "bundle 0: "),
    ],
)
def test_what_is_no_group_is_refused(spec: GroupSpec, text: str) -> None:
    table = Table(a=1)
    refusal = table.table.on_create(spec, 0)
    assert refusal.startswith("ValueError")
    assert text in refusal
    assert table.table.record(b"g") is None


def test_what_no_cluster_like_this_could_hold_is_told_once() -> None:
    table = Table(a=2, b=2)
    group = table.create("STRICT_PACK", {CPU: 1}, {CPU: 2})
    large = table.create("SPREAD", {CPU: 1}, {CPU: 3})
    table.settle(1_000)
    table.tell(A)
    table.table.on_view_changed()
    table.settle(1_000)
    told = [effect for effect in table.told if isinstance(effect, GroupImpossible)]
    assert [effect.group_id for effect in told] == [group, large]
    assert "together they need CPU 3, and of the 2 nodes none has more than 2" in told[0].reason
    assert told[1].reason.startswith("bundle 1: it needs CPU 3")
    assert "bundle 1: it needs CPU 3" in table.table.explain(large)
    table.join(C, {CPU: 4})
    table.settle(1_000)
    assert table.places(group) == [C, C]


# --- the ledger of a node -------------------------------------------------------------------------------------------


def test_bundles_are_reserved_all_or_none() -> None:
    resources = NodeResources({CPU: 3 * UNIT})
    ledger = BundleLedger(resources)
    two = ((CPU, 2 * UNIT),)
    assert not ledger.prepare(b"g", 1, [(0, two), (1, two)])
    assert resources.available == resources.total
    assert ledger.prepare(b"g", 2, [(0, two)])
    assert ledger.prepare(b"g", 2, [(0, two)]), "the same order again"
    assert resources.available[CPU] == UNIT
    assert not ledger.prepare(b"g", 3, [(0, ((CPU, UNIT),))]), "it was not released"
    ledger.release(b"g", 1)
    assert resources.available[CPU] == UNIT, "another round's"
    ledger.release(b"g", 2)
    assert resources.available == resources.total
    ledger.check()


def test_leases_draw_from_their_bundle_only() -> None:
    resources = NodeResources({CPU: 4 * UNIT, GPU: 2 * UNIT}, ["7", "8"])
    ledger = BundleLedger(resources)
    half, whole = UNIT // 2, UNIT
    assert ledger.prepare(
        b"g", 1, [(0, ((CPU, UNIT), (GPU, half))), (1, ((CPU, UNIT), (GPU, whole)))]
    )
    cpu: tuple[tuple[str, int], ...] = ((CPU, UNIT),)
    any_bundle, first = InBundle(b"g"), InBundle(b"g", 0)
    assert not ledger.fits(first, cpu)
    assert ledger.why_waiting(first, cpu).endswith("is being reserved.")
    ledger.commit(b"g", 1)
    draws = [ledger.draw(any_bundle, cpu), ledger.draw(any_bundle, cpu)]
    assert [draw.reservation.index for draw in draws] == [0, 1]
    assert not ledger.fits(any_bundle, cpu)
    assert "others have taken too much" in ledger.why_waiting(first, cpu)
    assert resources.available[CPU] == 2 * UNIT
    ledger.give_back(draws[0])
    assert ledger.fits(first, cpu)
    assert not ledger.fits(InBundle(b"g", 1), cpu)
    # Of GPUs a bundle has instances.
    gpu = ledger.draw(InBundle(b"g", 1), ((GPU, whole),))
    assert gpu.reservation.books.ids_of(gpu.allocation) == ["8"], "of the other, half is reserved"
    assert ledger.feasible(first, ((GPU, half),))
    assert not ledger.feasible(first, ((GPU, whole),))
    assert "can never run there" in ledger.why_waiting(first, ((GPU, whole),))
    assert "is not on this node" in ledger.why_waiting(InBundle(b"h"), cpu)
    assert ledger.knows(first)
    assert not ledger.knows(InBundle(b"g", 2))
    ledger.check()


def test_what_is_out_when_a_bundle_is_released_comes_back_whole() -> None:
    resources = NodeResources({CPU: 2 * UNIT})
    ledger = BundleLedger(resources)
    two, one = ((CPU, 2 * UNIT),), ((CPU, UNIT),)
    ledger.prepare(b"g", 1, [(0, two)])
    ledger.commit(b"g", 1)
    draws = [ledger.draw(InBundle(b"g", 0), one), ledger.draw(InBundle(b"g", 0), one)]
    (leaving,) = ledger.release(b"g")
    assert leaving is draws[0].reservation
    assert not ledger.knows(InBundle(b"g", 0))
    assert not ledger.give_back(draws[0])
    assert resources.available[CPU] == 0
    ledger.check()
    assert not ledger.prepare(b"g", 2, [(0, two)])
    assert ledger.give_back(draws[1])
    assert resources.available == resources.total
    assert ledger.prepare(b"g", 2, [(0, two)])
    ledger.check()
