"""Tasks whose workers were ended because memory was short: they pause, and nobody is charged for it."""

from __future__ import annotations

from shoal.core.tasks import State
from tests.core.test_tasks import Bench


def test_when_memory_was_short_the_task_that_ran_pauses_and_nobody_is_charged() -> None:
    bench = Bench()
    bench.function(average_us=1)
    head, second = bench.submit("a", "b")
    lane = bench.grant()
    assert bench.table.set_aside(lane) is head
    assert bench.table.lost(lane, charge=False) == []
    bench.took_pushes()
    assert (head.state, second.state) == (State.WAITING, State.QUEUED)
    assert (head.retries, second.retries, second.attempt) == (3, 3, 0)
    bench.grant()
    assert bench.took_pushes() == [(2, "b")]
    bench.reply(second)
    assert bench.took_pushes() == []
    # Memory may be there by now.
    bench.table.retry(head)
    assert bench.took_pushes() == [(2, "a")]
    assert (head.retries, head.attempt) == (3, 1)


def test_a_task_that_pauses_can_be_cancelled() -> None:
    bench = Bench()
    (task,) = bench.submit("a")
    lane = bench.grant()
    assert bench.table.set_aside(lane) is task
    assert bench.table.lost(lane, charge=False) == []
    assert bench.table.cancel(task) is State.WAITING
    assert task.state is State.FINISHED
    bench.table.check()


def test_what_is_cancelled_or_revoked_is_not_set_aside() -> None:
    bench = Bench()
    (task,) = bench.submit("a")
    lane = bench.grant()
    bench.table.cancel(task)
    assert bench.table.set_aside(lane) is None
    assert bench.table.lost(lane, charge=False) == [task]
    assert bench.table.set_aside(lane) is None
