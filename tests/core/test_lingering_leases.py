"""Leases with nothing to run, while something else of the same owner waits: the node says so, and the owner lets them go."""

from __future__ import annotations

from shoal.core.lanes import CancelLease, RequestLease, ReturnLease
from shoal.core.lease_records import Grant, Pending
from shoal.core.tasks import State
from shoal.messages.node import UNIT, Shape
from tests.core.test_leases import CPU1, HALF, Node
from tests.core.test_tasks import GPU, Bench

# --- the node says what waits -----------------------------------------------------------------------------------------


def test_what_is_not_served_at_once_is_told_once_for_each_claim() -> None:
    node = Node(cpus=1)
    node.request(1)
    assert [type(effect) for effect in node.settle()] == [Grant]
    assert node.told == []
    first = node.request(1, HALF)
    node.request(1, HALF)
    other = node.request(2)
    node.settle()
    assert node.told == [Pending(1, first, ""), Pending(2, other, "")]
    node.request(1, HALF)
    node.settle(50)
    assert len(node.told) == 2


def test_what_waits_only_until_its_worker_has_started_is_not_told() -> None:
    node = Node(cpus=1)
    node.hold = True
    node.request(1)
    node.settle()
    assert node.told == []
    behind = node.request(2)
    node.settle()
    assert node.told == [Pending(2, behind, "")]


def test_a_claim_that_has_been_served_is_told_anew() -> None:
    node = Node(cpus=1)
    node.request(1)
    (grant,) = node.grants()
    for number in range(2):
        req = node.request(1, HALF)
        node.settle()
        assert node.told[number:] == [Pending(1, req, "")]
        node.queue.on_cancel(1, req)
    assert grant.lease_id


def test_what_waits_for_many_forks_is_told_when_it_turns_out_to_wait_for_more() -> None:
    node = Node(cpus=2)
    node.hold = True
    # As many forks as may be at once, and more: nobody looks at those behind them yet.
    for owner in range(8):
        node.request(owner, Shape(()))
    waits = node.request(9, Shape((("CPU", 2 * UNIT),)))
    node.request(10, CPU1)
    node.settle()
    assert node.told == []
    node.hold = False
    while node.starting:
        node.queue.on_registered(node.starting.pop(0), node.now)
        node.settle()
    told = [pending.req for pending in node.told]
    assert waits in told or waits + 1 in told


# --- the owner lets go --------------------------------------------------------------------------------------------------


def test_a_lease_that_idles_goes_at_once_while_another_class_waits() -> None:
    bench = Bench(lease_idle_ms=60_000)
    (task,) = bench.submit("a")
    lane = bench.grant()
    bench.reply(task)
    bench.effects()
    gpus = bench.table.scheduling_class(GPU)
    bench.table.submit(bench.task("b", queue=gpus))
    assert [type(effect) for effect in bench.effects()] == [RequestLease]
    # That a worker was asked for is no reason yet: the node may have one.
    bench.table.delayed(gpus)
    assert bench.effects() == [ReturnLease(lane)]
    assert bench.queue.lanes == []


def test_a_lease_goes_as_soon_as_it_idles_while_another_class_waits() -> None:
    bench = Bench(lease_idle_ms=60_000)
    first, second = bench.submit("a", "b")
    lane = bench.grant()
    gpus = bench.table.scheduling_class(GPU)
    bench.table.submit(bench.task("c", queue=gpus))
    bench.effects()
    bench.table.delayed(gpus)
    bench.reply(first)
    assert second.state is State.PUSHED
    assert not any(isinstance(effect, ReturnLease) for effect in bench.effects())
    bench.reply(second)
    assert ReturnLease(lane) in bench.effects()


def test_a_lease_stays_when_what_waited_has_been_served() -> None:
    bench = Bench(lease_idle_ms=60_000)
    (task,) = bench.submit("a")
    lane = bench.grant()
    gpus = bench.table.scheduling_class(GPU)
    other = bench.task("b", queue=gpus)
    bench.table.submit(other)
    bench.table.delayed(gpus)
    bench.table.cancel(other)
    bench.reply(task)
    assert not any(isinstance(effect, ReturnLease) for effect in bench.effects())
    # Next time the node may have a worker at once.
    bench.table.submit(bench.task("c", queue=gpus))
    assert [type(effect) for effect in bench.effects()] == [RequestLease]
    assert bench.queue.lanes == [lane]


def test_the_leases_of_the_class_that_waits_stay() -> None:
    bench = Bench(lease_idle_ms=60_000)
    first, second = bench.submit("a", "b")
    lane = bench.grant()
    bench.table.delayed(bench.queue)
    bench.reply(first)
    bench.reply(second)
    assert all(isinstance(effect, RequestLease | CancelLease) for effect in bench.effects())
    assert bench.queue.lanes == [lane]


def test_classes_of_one_shape_and_different_places_let_go_for_each_other() -> None:
    bench = Bench(lease_idle_ms=60_000)
    (task,) = bench.submit("a")
    lane = bench.grant()
    bench.reply(task)
    there = bench.table.scheduling_class(bench.queue.shape, "10.0.0.2:6380")
    bench.table.submit(bench.task("b", queue=there))
    bench.effects()
    bench.table.delayed(there)
    assert bench.effects() == [ReturnLease(lane)]
