"""Scheduling classes come and go with those who know them: rule 5 of the table of tasks."""

from __future__ import annotations

from shoal.core.lanes import Lane, ReturnLease
from shoal.messages.node import Shape
from tests.core.test_tasks import CPU, Bench


def test_classes_that_nobody_knows_any_more_go_when_their_leases_have() -> None:
    bench = Bench(lease_idle_ms=50)
    table = bench.table
    for amount in range(1, 101):
        queue = table.scheduling_class(Shape((("memory", amount),)))
        task = bench.task(f"t{amount}", queue=queue)
        table.submit(task)
        (req,) = bench.requests()
        lane = Lane(queue, amount, "address", 1, lambda _lane, _task: None)
        table.granted(req, queue, lane, float(amount))
        assert table.scheduling_class(Shape((("memory", amount),))) is queue
        table.finished(task, 10)
        table.refill(lane, float(amount))
        table.expire(amount + 0.01)
        assert list(table.classes.values()) == [queue]
        table.expire(amount + 0.1)
        assert bench.effects() == [ReturnLease(lane)]
        assert not table.classes
        del queue, task, lane
    assert list(table._known.values()) == [bench.queue]


def test_a_class_that_a_function_knows_is_the_same_after_it_was_idle() -> None:
    bench = Bench(lease_idle_ms=50)
    for round_ in range(3):
        (task,) = bench.submit(f"t{round_}")
        lane = bench.grant()
        bench.effects()
        bench.table.finished(task, 10)
        bench.table.refill(lane, float(round_))
        bench.table.expire(round_ + 0.1)
        assert not bench.table.classes
        assert bench.table.scheduling_class(CPU) is bench.queue
        bench.effects()
