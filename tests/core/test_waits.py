"""Why tasks and calls wait, read off tables that are put together by hand; and why requests wait in the queue of a node."""

from __future__ import annotations

import pytest

from shoal.core.calls import ActorCalls
from shoal.core.lanes import Lane
from shoal.core.references import Entry
from shoal.core.task_rows import cut, row_of
from shoal.core.tasks import Function, Task, TaskTable
from shoal.core.waits import name_of, short, state_of, why_actor, why_group, why_task
from shoal.ids import IdSource, return_id
from shoal.messages.node import UNIT, Shape, TaskEvent
from shoal.messages.placement import Bundle, GroupInfo, GroupRecord, GroupSpec
from shoal.messages.state import (
    ActorRow,
    AskActor,
    AskRequest,
    AskWhy,
    Follow,
    Reason,
    TaskRow,
)

ME = "10.0.0.1:7000/d-00000001"
HERE = b"n" * 16


class Owner:
    """A process with a table of tasks, and shorthand for explanations."""

    def __init__(self) -> None:
        self.table = TaskTable()
        self.queue = self.table.scheduling_class(Shape((("CPU", UNIT),)))
        self.ids = IdSource(b"p" * 8)

    def task(self, name: str = "work", deps: list[Entry] | None = None) -> Task:
        function = Function(1, name.encode(), name, b"")
        task = Task(self.ids.task_id(), function, self.queue, b"", (), 3)
        if deps:
            task.deps = list(enumerate(deps))
            task.unready = sum(dep.value is None for dep in deps)
        self.table.submit(task)
        return task

    def entry(self, task: Task | None = None, owner: str = "") -> Entry:
        task_id = self.ids.task_id() if task is None else task.task_id
        entry = Entry(return_id(task_id, 0), owner)
        entry.task = task
        return entry

    def lane(self) -> Lane:
        return Lane(self.queue, 1, "10.0.0.1:7000/w-00000001", 42, lambda _lane, _task: None)


def why(task: Task) -> Reason:
    return why_task(task, ME, HERE)


# --- tasks ------------------------------------------------------------------------------------------------------------


def test_a_dependency_is_named_with_who_makes_it_and_followed() -> None:
    owner = Owner()
    maker = owner.task("maker")
    entry = owner.entry(maker)
    task = owner.task("user", [entry])
    reason = why(task)
    assert reason.subject == f"user() ({short(task.task_id)})"
    assert reason.kind == "dependency"
    assert reason.text == (
        f"it waits for an argument: object {short(entry.object_id)}, which maker() makes."
    )
    assert reason.follow == [Follow(AskWhy(maker.task_id.hex()))]
    assert state_of(task) == "PENDING_ARGS_AVAIL"


def test_of_many_dependencies_some_are_named_and_the_others_counted() -> None:
    owner = Owner()
    known = owner.entry()
    known.value = b"known"
    missing = [owner.entry(owner=f"10.0.0.2:7000/w-0000000{i}") for i in range(5)]
    reason = why(owner.task(deps=[known, *missing]))
    assert reason.text.startswith("it waits for 5 arguments: object ")
    assert reason.text.endswith("; and 2 more.")
    assert "which belongs to the process 10.0.0.2:7000/w-00000000" in reason.text
    assert len(reason.follow) == 3


def test_a_queued_task_knows_how_many_are_before_it_and_which_request_is_out() -> None:
    owner = Owner()
    tasks = [owner.task() for _ in range(4)]
    reason = why(tasks[2])
    assert (reason.kind, reason.ahead) == ("resource", 2)
    assert reason.text == (
        "it waits for a worker, and asks for CPU 1; 2 tasks of its kind are before it in the queue of its owner."
    )
    (req, *_) = owner.queue.requests
    assert reason.follow == [Follow(AskRequest(ME, req), HERE)]
    assert state_of(tasks[2]) == "PENDING_NODE_ASSIGNMENT"
    # One that was cancelled is nobody's predecessor.
    owner.table.cancel(tasks[1])
    assert why(tasks[2]).ahead == 1


def test_a_task_that_was_sent_to_a_worker_knows_what_runs_before_it() -> None:
    owner = Owner()
    lane = owner.lane()
    first, second = owner.task(), owner.task()
    for task in (first, second):
        task.function.average_us = 1.0  # type: ignore[union-attr]  # it has one
    (req, *_) = owner.queue.requests
    owner.table.granted(req, owner.queue, lane, 0.0)
    assert (why(first).kind, why(first).ahead) == ("running", 0)
    assert why(first).text == "it was sent to the worker with pid 42, and has not returned."
    assert (why(second).kind, why(second).ahead) == ("turn", 1)
    assert state_of(second) == "SUBMITTED_TO_WORKER"
    owner.table.finished(first, 1)
    assert why(first).text == "it has finished."


def test_a_task_in_place_runs_here() -> None:
    owner = Owner()
    task = owner.task()
    assert owner.table.take(task, owner.queue.shape)
    assert why(task).text == "it runs in the process that submitted it."
    assert state_of(task) == "RUNNING"


# --- calls ------------------------------------------------------------------------------------------------------------


def call(calls: ActorCalls, ids: IdSource, unready: int = 0) -> Task:
    task = Task(ids.task_id(), None, calls, b"", (), 0)
    task.method = "add"
    task.unready = unready
    calls.submit(task)
    return task


def test_calls_wait_for_their_actor_and_for_each_other() -> None:
    ids = IdSource(b"q" * 8)
    calls = ActorCalls(ids.task_id(), lambda _calls, _task: None, class_name="Counter")
    first = call(calls, ids)
    assert name_of(first) == "Counter.add"
    reason = why(first)
    assert reason.text == f"its actor Counter ({short(calls.actor_id)}) is PENDING."
    assert reason.follow == [Follow(AskWhy(calls.actor_id.hex()))]
    calls.pid = 7
    calls.connected(object())
    assert (
        why(first).text
        == f"it was sent to its actor Counter ({short(calls.actor_id)}), which is PENDING."
    )
    assert why(first).follow == [Follow(AskWhy(calls.actor_id.hex()))]
    calls.state = "ALIVE"
    second = call(calls, ids)
    assert (why(first).kind, why(second).kind) == ("running", "calls")
    assert why(second).ahead == 1
    held_up = call(calls, ids, unready=1)
    behind = call(calls, ids)
    assert state_of(behind) == "PENDING_ACTOR_TASK_ORDERING_OR_CONCURRENCY"
    reason = why(behind)
    assert (reason.kind, reason.ahead) == ("calls", 1)
    assert reason.follow == [Follow(AskWhy(held_up.task_id.hex()))]


# --- actors and groups --------------------------------------------------------------------------------------------------


def row(state: str, **more: object) -> ActorRow:
    made = ActorRow(b"a" * 16, "Counter", state, b"j" * 16, "", "", ME, False, (), 5)
    for name, value in more.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("actor", "kind", "text"),
    [
        (row("DEAD", cause="Its node died."), "dead", "it is dead. Its node died."),
        (row("ALIVE", pid=3), "running", "it is alive, in the process with pid 3."),
        (row("PENDING", waits="it needs CPU 9."), "nowhere", "it needs CPU 9."),
        (
            row("PENDING", address="x", pid=3),
            "running",
            "it has a process, pid 3, which gets its arguments or runs its __init__.",
        ),
        (
            row("RESTARTING", node_id=HERE, incarnation=3, cause="It was killed."),
            "resource",
            "it was sent to a node, where it waits for a worker. It has ended 3 times and is to live again. The last time: It was killed.",
        ),
    ],
)
def test_actors_say_what_they_wait_for(actor: ActorRow, kind: str, text: str) -> None:
    reason = why_actor(actor)
    assert (reason.kind, reason.text, reason.since_ns) == (kind, text, 5)
    asks = [Follow(AskActor(actor.actor_id), HERE)] if kind == "resource" else []
    assert reason.follow == asks


def test_groups_say_how_much_of_them_is_reserved() -> None:
    spec = GroupSpec(b"g" * 16, [Bundle((("CPU", UNIT),)), Bundle((("CPU", UNIT),))], name="pair")
    pending = GroupInfo(GroupRecord(spec, "PENDING", [HERE, b""]), "bundle 1: it needs CPU 1.")
    reason = why_group(pending)
    assert reason.subject.startswith("the placement group 'pair' (")
    assert reason.kind == "placement group"
    assert reason.text == "1 of 2 bundles are reserved; bundle 1: it needs CPU 1."
    there = GroupInfo(GroupRecord(spec, "CREATED", [HERE, HERE]), "")
    assert why_group(there).kind == "running"


# --- rows -------------------------------------------------------------------------------------------------------------


def test_what_is_left_out_is_the_oldest_that_has_ended() -> None:
    ended = [
        row_of(TaskEvent(bytes([i]) * 16, "f", "task", 1, i, i + 1, i % 2 == 0), "w", b"j")
        for i in range(1, 5)
    ]
    assert [row.state for row in ended] == ["FAILED", "FINISHED", "FAILED", "FINISHED"]
    waiting = TaskRow(b"w" * 16, "f", "NORMAL_TASK", "PENDING_ARGS_AVAIL")
    assert waiting.end_ns == 0
    kept, left_out = cut([*ended, waiting], 3)
    assert kept == [waiting, ended[3], ended[2]]
    assert left_out == 2
