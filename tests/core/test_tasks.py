"""The table of tasks, rule by rule. Random histories with a node and workers are in `test_tasks_random`."""

from __future__ import annotations

import itertools

import pytest

from shoal.core.lanes import (
    CancelLease,
    Effect,
    Lane,
    RequestLease,
    ReturnLease,
    SchedulingClass,
)
from shoal.core.tasks import Function, State, Task, TaskTable
from shoal.errors import InternalError
from shoal.messages.node import UNIT, Shape
from shoal.messages.placement import Spread

CPU = Shape((("CPU", UNIT),))
GPU = Shape((("GPU", UNIT),))


class Bench:
    """A table, and the shorthand to make tasks and workers for it."""

    def __init__(self, **limits: int) -> None:
        self.table = TaskTable(**limits)
        self.queue = self.table.scheduling_class(CPU)
        self.pushed: list[tuple[int, str]] = []
        self._lease_ids = itertools.count(1)
        self._functions: dict[str, Function] = {}

    def function(self, name: str = "f", average_us: float | None = None) -> Function:
        function = self._functions.get(name)
        if function is None:
            function = Function(len(self._functions), name.encode(), name, b"")
            self._functions[name] = function
        if average_us is not None:
            function.average_us = average_us
        return function

    def task(
        self,
        name: str,
        retries: int = 3,
        unready: int = 0,
        function: Function | None = None,
        queue: SchedulingClass | None = None,
    ) -> Task:
        function = function or self.function()
        task = Task(name.encode(), function, queue or self.queue, b"", (), retries)
        task.unready = unready
        return task

    def submit(self, *names: str, retries: int = 3, function: Function | None = None) -> list[Task]:
        tasks = [self.task(name, retries, function=function) for name in names]
        for task in tasks:
            self.table.submit(task)
        self.table.check()
        return tasks

    def effects(self) -> list[Effect]:
        self.table.check()
        found = self.table.outbox[:]
        self.table.outbox.clear()
        return found

    def requests(self) -> list[int]:
        return [effect.req for effect in self.effects() if isinstance(effect, RequestLease)]

    def grant(self, req: int | None = None, now: float = 0.0) -> Lane:
        """A worker for a request, the oldest one unless told."""
        if req is None:
            req = next(iter(self.queue.requests))
        lane = Lane(self.queue, next(self._lease_ids), "address", 1, self._push)
        self.table.granted(req, self.queue, lane, now)
        self.table.check()
        return lane

    def _push(self, lane: Lane, task: Task) -> None:
        self.pushed.append((lane.lease_id, task.task_id.decode()))

    def reply(self, *tasks: Task, took_us: int = 10, now: float = 0.0) -> None:
        """A batch of replies from one worker."""
        lane = tasks[0].lane
        for task in tasks:
            assert task.lane is lane
            self.table.finished(task, took_us)
        self.table.refill(lane, now)
        self.table.check()

    def took_pushes(self) -> list[tuple[int, str]]:
        pushed, self.pushed = self.pushed, []
        return pushed


def test_a_task_asks_for_a_worker_runs_and_finishes() -> None:
    bench = Bench()
    (task,) = bench.submit("one")
    (request,) = bench.effects()
    assert request == RequestLease(1, bench.queue, 1, "f")
    assert task.state is State.QUEUED
    lane = bench.grant(1)
    assert bench.took_pushes() == [(1, "one")]
    assert (task.state, task.lane) == (State.PUSHED, lane)
    bench.reply(task)
    assert (task.state, task.lane) == (State.FINISHED, None)
    assert lane.load_us == 0
    assert bench.effects() == []


def test_a_task_waits_for_all_of_its_dependencies() -> None:
    bench = Bench()
    task = bench.task("one", unready=2)
    bench.table.submit(task)
    bench.table.dependency_ready(task)
    assert bench.effects() == []
    bench.table.dependency_ready(task)
    assert task.state is State.QUEUED
    assert len(bench.effects()) == 1


def test_requests_follow_the_queue_up_to_their_limit_and_end_with_it() -> None:
    bench = Bench(max_requests=2)
    bench.submit("a", "b", "c")
    # The first one asks; the others are mere appends until there is news.
    assert bench.requests() == [1]
    bench.grant(1)
    assert bench.requests() == [2, 3]
    bench.function(average_us=1)
    bench.grant(2)
    assert [task for _, task in bench.took_pushes()] == ["a", "b", "c"]
    assert bench.effects() == [CancelLease(3)]


def test_an_unknown_function_fills_a_lane_and_a_known_short_one_pipelines() -> None:
    bench = Bench(window_us=1000)
    tasks = bench.submit(*"abcde")
    bench.grant()
    assert bench.took_pushes() == [(1, "a")]
    bench.reply(tasks[0], took_us=6)
    assert bench.took_pushes() == [(1, name) for name in "bcde"]
    assert tasks[1].cost_us == 10


def test_the_window_counts_expected_time() -> None:
    bench = Bench(window_us=1000)
    bench.function(average_us=396)
    bench.submit(*"abcde")
    lane = bench.grant()
    # 400 µs each: the third one begins inside the window.
    assert bench.took_pushes() == [(1, "a"), (1, "b"), (1, "c")]
    assert lane.load_us == 1200


def test_the_window_has_a_limit_for_tasks_of_no_length() -> None:
    bench = Bench(window_us=1000, window_tasks=3)
    bench.function(average_us=0)
    bench.submit(*"abcde")
    bench.grant()
    assert len(bench.took_pushes()) == 3


def test_a_long_task_is_never_queued_behind_another() -> None:
    bench = Bench(window_us=1000)
    bench.function("long", average_us=5000)
    long = bench.submit("a", "b", function=bench.function("long"))
    bench.grant()
    assert bench.took_pushes() == [(1, "a")]
    bench.reply(long[0], took_us=5000)
    assert bench.took_pushes() == [(1, "b")]


def test_the_average_follows_what_tasks_take() -> None:
    bench = Bench()
    function = bench.function()
    (task,) = bench.submit("a")
    bench.grant()
    bench.reply(task, took_us=80)
    assert function.average_us == 80
    (task,) = bench.submit("b")
    bench.reply(task, took_us=160)
    assert function.average_us == 90


def test_idle_lanes_come_first_and_the_rest_is_shared() -> None:
    bench = Bench(window_us=1000)
    bench.function(average_us=0)
    bench.submit("a")
    bench.grant()
    bench.table.granted(
        0, bench.queue, second := Lane(bench.queue, 2, "address", 1, bench._push), 0.0
    )
    bench.took_pushes()
    bench.table.paused(second, retiring=False)
    bench.queue.lanes[0].paused = True
    bench.submit(*"bcdefg")
    bench.queue.lanes[0].paused = False
    bench.table.resumed(second)
    assert bench.took_pushes() == [
        (2, "b"),
        (1, "c"),
        (1, "d"),
        (1, "e"),
        (2, "f"),
        (2, "g"),
    ]


def test_a_submit_to_full_lanes_is_a_mere_append() -> None:
    bench = Bench()
    bench.submit("a")
    bench.grant()
    bench.submit("b")
    assert len(bench.requests()) == 2
    bench.submit(*"cdefgh")
    assert bench.effects() == []
    assert not bench.queue.room


# --- leases --------------------------------------------------------------------------------------------------------------


def test_an_idle_lease_is_returned_after_its_time() -> None:
    bench = Bench(lease_idle_ms=50)
    (task,) = bench.submit("a")
    lane = bench.grant(now=10.0)
    bench.effects()
    assert bench.table.expire(20.0) is None
    bench.reply(task, now=20.0)
    assert bench.table.expire(20.01) == pytest.approx(20.05)
    assert bench.effects() == []
    assert bench.table.expire(20.06) is None
    assert bench.effects() == [ReturnLease(lane)]
    assert bench.queue.lanes == []


def test_a_lease_that_is_wanted_back_drains_first() -> None:
    bench = Bench()
    (task,) = bench.submit("a")
    lane = bench.grant()
    bench.effects()
    bench.table.wanted(lane)
    (other,) = bench.submit("b")
    assert bench.took_pushes() == [(1, "a")]
    assert bench.requests() == [2]
    bench.reply(task)
    assert bench.effects() == [ReturnLease(lane)]
    assert other.state is State.QUEUED


def test_an_idle_lease_that_is_wanted_back_goes_at_once_and_only_once() -> None:
    bench = Bench(lease_idle_ms=50)
    (task,) = bench.submit("a")
    lane = bench.grant()
    bench.reply(task)
    bench.effects()
    bench.table.wanted(lane)
    bench.table.wanted(lane)
    bench.table.expire(100.0)
    assert bench.effects() == [ReturnLease(lane)]


def test_a_retiring_worker_is_returned_after_its_last_task() -> None:
    bench = Bench()
    (task,) = bench.submit("a")
    lane = bench.grant()
    bench.effects()
    bench.table.paused(lane, retiring=True)
    assert bench.effects() == []
    bench.reply(task)
    assert bench.effects() == [ReturnLease(lane)]


def test_a_paused_worker_gets_nothing_and_others_are_asked_for() -> None:
    bench = Bench()
    bench.function(average_us=1)
    bench.submit("a")
    lane = bench.grant()
    bench.effects()
    bench.table.paused(lane, retiring=False)
    bench.submit("b")
    assert bench.took_pushes() == [(1, "a")]
    assert bench.requests() == [2]
    bench.table.resumed(lane)
    assert bench.took_pushes() == [(1, "b")]
    assert bench.effects() == [CancelLease(2)]


def test_a_refusal_fails_what_is_queued_and_the_next_task_asks_again() -> None:
    bench = Bench()
    tasks = bench.submit("a", "b")
    waiting = bench.task("later", unready=1)
    bench.table.submit(waiting)
    assert bench.requests() == [1]
    assert bench.table.refused(1, bench.queue) == tasks
    assert {task.state for task in tasks} == {State.FINISHED}
    assert bench.effects() == []
    bench.table.dependency_ready(waiting)
    assert bench.requests() == [2]


def test_a_refusal_ends_the_other_requests() -> None:
    bench = Bench(max_requests=3)
    tasks = bench.submit("a", "b", "c", "d")
    bench.table.paused(bench.grant(), retiring=False)
    bench.effects()
    # The paused lane serves nobody: what it runs may even wait for these.
    assert bench.table.refused(3, bench.queue) == tasks[1:]
    assert bench.effects() == [CancelLease(2), CancelLease(4)]


def test_a_refusal_fails_nothing_that_an_open_lane_serves() -> None:
    bench = Bench(max_requests=3)
    a, b, c = bench.submit("a", "b", "c")
    bench.grant()
    bench.effects()
    assert bench.table.refused(3, bench.queue) == []
    assert bench.effects() == [CancelLease(2)]
    # No more are asked for while the one that is there does the work.
    bench.reply(a, took_us=5000)
    assert b.state is State.PUSHED
    assert bench.requests() == []
    bench.table.ask_again(bench.queue)
    assert bench.requests() == [4]
    # A second time: nothing to be forgotten.
    bench.table.ask_again(bench.queue)
    assert bench.effects() == []
    bench.reply(b, took_us=5000)
    bench.reply(c)
    assert {task.state for task in (a, b, c)} == {State.FINISHED}


@pytest.mark.parametrize("how", ["paused", "lost"])
def test_workers_are_asked_for_again_at_once_when_the_last_lane_is_closed(how: str) -> None:
    bench = Bench()
    _, waiting = bench.submit("a", "b")
    lane = bench.grant()
    bench.effects()
    assert bench.table.refused(2, bench.queue) == []
    if how == "paused":
        bench.table.paused(lane, retiring=False)
    else:
        bench.table.lost(lane)
    (req, *_) = bench.requests()
    # Now there is nobody left who could run them.
    assert waiting in bench.table.refused(req, bench.queue)


def test_a_grant_ends_what_a_refusal_began() -> None:
    bench = Bench()
    bench.submit("a", "b", "c")
    bench.grant()
    bench.effects()
    bench.table.refused(2, bench.queue)
    bench.table.ask_again(bench.queue)
    bench.grant()
    assert not bench.queue.refused


def test_classes_of_different_shapes_have_nothing_in_common() -> None:
    bench = Bench()
    bench.submit("a")
    bench.effects()
    gpus = bench.table.scheduling_class(GPU)
    bench.table.submit(bench.task("b", queue=gpus))
    assert bench.effects() == [RequestLease(2, gpus, 1, "f")]
    bench.grant(1)
    assert bench.took_pushes() == [(1, "a")]
    assert bench.table.scheduling_class(GPU) is gpus


# --- what goes wrong -----------------------------------------------------------------------------------------------------


def test_tasks_that_are_handed_back_go_to_the_front_in_their_order() -> None:
    bench = Bench()
    bench.function(average_us=1)
    tasks = bench.submit(*"abcd")
    lane = bench.grant()
    bench.took_pushes()
    lane.paused = True
    bench.submit("e")
    assert bench.table.handed_back(lane, [b"b", b"c", b"d", b"unknown"]) == []
    bench.table.check()
    assert [task.task_id for task in bench.queue.queue] == [b"b", b"c", b"d", b"e"]
    assert {task.attempt for task in tasks} == {0}
    assert lane.load_us == tasks[0].cost_us
    bench.table.resumed(lane)
    assert [name for _, name in bench.took_pushes()] == ["b", "c", "d", "e"]


def test_a_task_that_was_cancelled_on_its_way_is_not_queued_again_when_handed_back() -> None:
    bench = Bench()
    bench.function(average_us=1)
    _, cancelled, other = bench.submit("a", "b", "c")
    lane = bench.grant()
    bench.took_pushes()
    assert bench.table.cancel(cancelled) is State.PUSHED
    lane.paused = True
    assert bench.table.handed_back(lane, [b"b", b"c"]) == [cancelled]
    assert cancelled.state is State.FINISHED
    assert list(bench.queue.queue) == [other]


def test_the_head_of_a_lost_worker_is_charged_and_the_others_are_suspects() -> None:
    bench = Bench()
    bench.function(average_us=1)
    head, second, third = bench.submit("a", "b", "c")
    lane = bench.grant()
    assert bench.table.lost(lane) == []
    bench.table.check()
    assert [(task.retries, task.attempt) for task in (head, second, third)] == [
        (2, 1),
        (3, 0),
        (3, 0),
    ]
    bench.took_pushes()
    bench.effects()
    # Each runs alone now, so that the next loss has one culprit.
    bench.grant()
    assert bench.took_pushes() == [(2, "a")]
    bench.reply(head)
    assert bench.took_pushes() == [(2, "b")]


def test_a_task_without_retries_runs_alone_and_fails_with_its_worker() -> None:
    bench = Bench()
    bench.function(average_us=1)
    careful, after = bench.task("a", retries=0), bench.task("b")
    bench.table.submit(careful)
    bench.table.submit(after)
    lane = bench.grant()
    assert bench.took_pushes() == [(1, "a")]
    assert bench.table.lost(lane) == [careful]
    assert careful.state is State.FINISHED
    assert (after.attempt, after.suspect) == (0, False)
    assert bench.table.lost(lane) == []


def test_retries_run_out() -> None:
    bench = Bench()
    (task,) = bench.submit("a", retries=2)
    failed: list[Task] = []
    for attempt in range(3):
        assert (task.attempt, failed) == (attempt, [])
        failed = bench.table.lost(bench.grant())
        bench.table.check()
    assert failed == [task]
    assert task.attempt == 2


def test_retries_without_end() -> None:
    bench = Bench()
    (task,) = bench.submit("a", retries=-1)
    for _ in range(100):
        assert bench.table.lost(bench.grant()) == []
    assert (task.retries, task.attempt, task.state) == (-1, 100, State.QUEUED)


def test_a_cancelled_task_fails_with_its_worker_and_nobody_is_charged_for_it() -> None:
    bench = Bench()
    bench.function(average_us=1)
    head, second = bench.submit("a", "b")
    lane = bench.grant()
    assert bench.table.cancel(head) is State.PUSHED
    assert bench.table.lost(lane) == [head]
    assert (second.retries, second.attempt, second.suspect) == (3, 0, True)


@pytest.mark.parametrize("unready", [0, 1])
def test_a_task_that_is_cancelled_in_time_never_runs(unready: int) -> None:
    bench = Bench()
    task = bench.task("a", unready=unready)
    bench.table.submit(task)
    before = task.state
    assert bench.table.cancel(task) is before
    assert bench.table.cancel(task) is State.FINISHED
    if unready:
        bench.table.dependency_ready(task)
    bench.submit("b")
    bench.grant()
    assert bench.took_pushes() == [(1, "b")]


def test_no_worker_is_wanted_for_tasks_that_were_all_cancelled() -> None:
    bench = Bench()
    tasks = bench.submit("a", "b", "c")
    assert bench.requests() == [1]
    for task in reversed(tasks):
        bench.table.cancel(task)
    assert bench.effects() == [CancelLease(1)]


def test_an_exception_that_is_retried_goes_first() -> None:
    bench = Bench()
    task, _ = bench.submit("a", "b")
    bench.grant()
    bench.took_pushes()
    bench.table.finished(task, 10_000)
    bench.table.retry(task)
    bench.table.refill(bench.queue.lanes[0], 0.0)
    bench.table.check()
    assert bench.took_pushes() == [(1, "a")]
    assert task.attempt == 1


# --- in place ------------------------------------------------------------------------------------------------------------


def test_a_queued_task_of_the_same_shape_may_be_taken_to_run_in_place() -> None:
    bench = Bench()
    first, second = bench.submit("a", "b")
    assert not bench.table.take(first, GPU)
    assert bench.table.take(first, CPU)
    assert first.state is State.HERE
    assert not bench.table.take(first, CPU)
    bench.grant()
    assert bench.took_pushes() == [(1, "b")]
    assert not bench.table.take(second, CPU)


def test_a_task_that_failed_in_place_is_queued_again() -> None:
    bench = Bench()
    tasks = bench.submit("a", "b")
    task = tasks[1]
    for _ in range(3):
        assert bench.table.take(task, CPU)
        task.state = State.FINISHED
        bench.table.retry(task)
        bench.table.check()
    assert task.attempt == 3
    bench.function(average_us=1)
    bench.grant()
    assert bench.took_pushes() == [(1, "b"), (1, "a")]


def test_a_refusal_fails_a_task_once_though_it_stands_in_the_queue_twice() -> None:
    bench = Bench()
    tasks = bench.submit("a", "b")
    assert bench.table.take(tasks[1], CPU)
    tasks[1].state = State.FINISHED
    bench.table.retry(tasks[1])
    assert bench.table.refused(1, bench.queue) == [tasks[1], tasks[0]]


# --- invariants ----------------------------------------------------------------------------------------------------------


def test_check_sees_a_table_that_contradicts_itself() -> None:
    bench = Bench()
    (task,) = bench.submit("a")
    lane = bench.grant()
    lane.load_us += 100
    with pytest.raises(InternalError, match="load"):
        bench.table.check()
    lane.load_us -= 100
    task.state = State.QUEUED
    with pytest.raises(InternalError, match="does not know"):
        bench.table.check()
    task.state = State.PUSHED
    lane.returned = True
    with pytest.raises(InternalError, match="returned lane"):
        bench.table.check()


def test_check_sees_tasks_that_nothing_will_ever_run() -> None:
    bench = Bench()
    bench.submit("a")
    bench.queue.requests.clear()
    with pytest.raises(InternalError, match="nothing will ever run them"):
        bench.table.check()


def test_a_class_that_is_spread_keeps_its_requests_until_a_lane_has_idled() -> None:
    # The queue may be empty before a distant node can answer.
    bench = Bench(lease_idle_ms=50)
    bench.queue = bench.table.scheduling_class(Shape((("CPU", UNIT),), "", Spread()))
    tasks = [bench.task(name, queue=bench.queue) for name in ("one", "two", "three")]
    for task in tasks:
        bench.table.submit(task)
    bench.grant(1)
    assert bench.requests() == [1, 2, 3]
    for task in tasks:
        bench.reply(task)
    assert bench.effects() == []
    late = bench.grant(2, now=0.01)
    assert late in bench.queue.lanes
    bench.table.expire(0.1)
    assert CancelLease(3) in bench.effects()
    assert bench.queue.lanes == []
    assert bench.queue.requests == {}
