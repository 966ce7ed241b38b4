"""What an owner does when the node has no worker for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shoal.core.lanes import Lane
from shoal.core.tasks import State, Task
from shoal.errors import RuntimeEnvSetupError, ShoalError
from shoal.messages.node import LeaseRefused, LeaseRequest
from shoal.messages.peer import Done, Pause
from shoal.messages.values import Failed
from shoal.runtime.values import error_of
from tests.runtime.owners import Bench


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    # Each task fills a lane.
    bench.function.average_us = 1_000_000
    return bench


def refuse(bench: Bench, *reqs: int, kind: str = "start") -> None:
    """The node refuses requests, in one batch."""
    for req in reqs:
        bench.owner.leases.node_handlers[LeaseRefused](LeaseRefused(req, kind, "they all died"))
    bench.settle()


def requests(bench: Bench) -> list[int]:
    return [message.req for message in bench.node if isinstance(message, LeaseRequest)]


def error(task: Task) -> BaseException:
    value = task.returns[0].value
    assert isinstance(value, Failed)
    return error_of(value)


@pytest.mark.parametrize("kind", ["start", "env"])
def test_without_any_worker_the_tasks_fail_and_are_told_what_to_do(bench: Bench, kind: str) -> None:
    tasks = bench.submit(b"a", b"b")
    bench.settle()
    (req,) = requests(bench)
    refuse(bench, req, kind=kind)
    for task in tasks:
        assert "they all died" in str(error(task))
    if kind == "env":
        assert isinstance(error(tasks[0]), RuntimeEnvSetupError)
    else:
        assert type(error(tasks[0])) is ShoalError
        assert "/run/session/logs" in str(error(tasks[0]))
    assert bench.timers == []


def test_with_a_worker_the_tasks_wait_for_it_and_more_are_asked_for_later(bench: Bench) -> None:
    a, b, c = bench.submit(b"a", b"b", b"c")
    bench.settle()
    lane = bench.grant()
    bench.settle()
    asked = requests(bench)
    refuse(bench, asked[-1])
    assert (a.state, b.state, c.state) == (State.PUSHED, State.QUEUED, State.QUEUED)
    (warning,) = bench.warnings
    assert "they all died" in warning
    bench.hear(lane, Done(b"a", b"value", 1_000_000))
    assert b.state is State.PUSHED
    assert requests(bench) == asked
    # That the worker is idle in between has put a look at idle leases on the list as well.
    for timer in bench.timers[:]:
        timer()
    assert requests(bench) != asked
    bench.hear(lane, Done(b"b", b"value", 1_000_000))
    bench.hear(lane, Done(b"c", b"value", 1_000_000))
    assert [task.returns[0].value for task in (a, b, c)] == [b"value"] * 3


def lose(bench: Bench, lane: Lane) -> None:
    assert bench.owner.tasks.lost(lane) == []
    bench.settle()


def want(bench: Bench, lane: Lane) -> None:
    bench.owner.tasks.wanted(lane)
    bench.hear(lane, Done(b"a", b"value", 1_000_000))


@pytest.mark.parametrize("close", [lambda bench, lane: bench.hear(lane, Pause()), want, lose])
def test_a_second_refusal_without_a_worker_that_is_open_fails_the_tasks(
    bench: Bench, close: Callable[[Bench, Lane], None]
) -> None:
    bench.submit(b"a")
    bench.settle()
    lane = bench.grant()
    waiting = bench.submit(b"b")
    bench.settle()
    refuse(bench, requests(bench)[-1])
    # The refusal is not a second old, and the only worker takes nothing more.
    close(bench, lane)
    refuse(bench, requests(bench)[-1])
    for task in waiting:
        assert "they all died" in str(error(task))
    assert not bench.queue.refused
    # And those that come later are not caught in what is left of the first one.
    for timer in bench.timers[:]:
        timer()
    (late,) = bench.submit(b"c")
    bench.settle()
    refuse(bench, requests(bench)[-1])
    assert "they all died" in str(error(late))


def test_refusals_in_one_batch_are_one(bench: Bench) -> None:
    bench.submit(*(bytes([number]) for number in range(20)))
    bench.settle()
    bench.grant()
    bench.settle()
    asked = requests(bench)[1:]
    assert len(asked) == 16
    refuse(bench, *asked)
    assert len(bench.warnings) == len(bench.timers) == 1
    (again,) = bench.timers
    again()
    assert len(requests(bench)[1:]) == 32
    refuse(bench, requests(bench)[-1])
    # The time of each refusal counts.
    assert len(bench.timers) == 2


def test_with_nothing_left_to_do_a_refusal_is_no_news(bench: Bench) -> None:
    (task,) = bench.submit(b"a")
    bench.settle()
    (req,) = requests(bench)
    bench.owner.cancel(task, force=False, recursive=False)
    refuse(bench, req)
    assert bench.warnings == []
    assert bench.timers == []
