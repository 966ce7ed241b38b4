"""Whom a forced cancel ends: the owner's record of what runs where, with a worker played by the test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from shoal.core.tasks import State, Task
from shoal.errors import TaskCancelledError
from shoal.messages.peer import Cancel, Done, HandBack
from shoal.messages.values import Failed
from shoal.runtime.values import error_of
from tests.runtime.owners import Bench


@pytest.fixture
def bench() -> Bench:
    return Bench()


def was_cancelled(task: Task) -> bool:
    value = task.returns[0].value
    return isinstance(value, Failed) and isinstance(error_of(value), TaskCancelledError)


def test_the_head_of_a_lane_ends_with_its_worker_and_nothing_follows_it(bench: Bench) -> None:
    head, behind = bench.submit(b"head", b"behind")
    lane = bench.grant()
    bench.force(head)
    assert bench.killed() == [lane.address]
    assert not lane.is_open()
    # What comes now goes to another worker, although this one would have room.
    bench.submit(b"later")
    assert b"later" not in lane.inflight
    for task in bench.owner.tasks.lost(lane):
        assert task is head
    assert (behind.state, behind.retries) == (State.QUEUED, 3)


def test_a_reply_that_crosses_the_kill_brings_no_new_task_to_the_worker(bench: Bench) -> None:
    (head,) = bench.submit(b"head")
    lane = bench.grant()
    bench.force(head)
    bench.submit(b"later")
    bench.hear(lane, Done(b"head", b"value", 1))
    assert not lane.inflight
    assert lane.returned


def test_what_runs_before_a_task_survives_its_forced_cancel(bench: Bench) -> None:
    head, victim, _ = bench.submit(b"head", b"victim", b"third")
    lane = bench.grant()
    bench.force(victim)
    assert bench.killed() == []
    assert lane.connection[-1] == Cancel(b"victim", True)
    assert lane.is_open()
    assert head.state is State.PUSHED


def test_a_task_that_comes_to_the_head_all_the_same_ends_with_its_worker(bench: Bench) -> None:
    _, _, victim = bench.submit(b"first", b"second", b"victim")
    lane = bench.grant()
    bench.force(victim)
    bench.hear(lane, Done(b"first", b"value", 1))
    assert bench.killed() == []
    bench.hear(lane, Done(b"second", b"value", 1))
    assert bench.killed() == [lane.address]
    # Once.
    bench.hear(lane, Done(b"victim", b"value", 1))
    assert bench.killed() == [lane.address]


@pytest.mark.parametrize(
    "ends",
    [
        lambda: [Done(b"head", b"value", 1), Done(b"victim", b"value", 1)],
        lambda: [HandBack([b"victim", b"third"]), Done(b"head", b"value", 1)],
    ],
    ids=["finished", "handed back"],
)
def test_a_task_that_is_over_in_time_costs_no_worker(
    bench: Bench, ends: Callable[[], list[Any]]
) -> None:
    _, victim, third = bench.submit(b"head", b"victim", b"third")
    lane = bench.grant()
    bench.force(victim)
    bench.hear(lane, *ends())
    assert victim.state is State.FINISHED
    assert bench.killed() == []
    assert third.state is State.PUSHED
    assert was_cancelled(victim) is (victim.returns[0].value != b"value")
