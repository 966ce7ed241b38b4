"""What an owner does when the node has no worker for it."""

from __future__ import annotations

import pytest

from shoal.core.tasks import State, Task
from shoal.errors import RuntimeEnvSetupError, ShoalError
from shoal.messages.node import LeaseRefused, LeaseRequest
from shoal.messages.peer import Done
from shoal.messages.values import Failed
from shoal.runtime.values import error_of
from tests.runtime.owners import Bench


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    # Each task fills a lane.
    bench.function.average_us = 1_000_000
    return bench


def refuse(bench: Bench, req: int, kind: str = "start") -> None:
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
    refuse(bench, req, kind)
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
