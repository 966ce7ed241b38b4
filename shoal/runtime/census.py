"""What this process knows of tasks and objects, told when somebody asks: for the state API, for `shoal why`, and in timeouts.

Everything is read off the tables that are there anyhow. A question costs a look through all of them, with the runtime's lock held; while
nobody asks it costs nothing. A worker adds what it runs (`runs`, see `worker.runs`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from shoal.core.calls import ActorCalls
from shoal.core.task_rows import cut
from shoal.core.tasks import State, Task
from shoal.core.waits import name_of, short, state_of, why_task
from shoal.ids import task_of
from shoal.messages.state import (
    AskActor,
    AskMemory,
    AskObjects,
    AskRequest,
    AskTasks,
    AskWhy,
    Findings,
    Follow,
    Found,
    Inquire,
    Question,
    Reason,
    TaskRow,
)
from shoal.runtime.inventory import Inventory
from shoal.runtime.waiting import FutureWaiter, GetWaiter

if TYPE_CHECKING:
    from shoal.core.references import Entry
    from shoal.runtime.process import Process

_MOST_REASONS: Final = 3
"""Tasks that are explained if several ids begin with the same digits, and objects that are named if several are waited for."""

_MOST_STEPS: Final = 8
"""How far a chain of dependencies is followed in a text."""


class Census:
    """See the module's docstring. All methods are called with the runtime's lock held.

    Attributes:
        runs: The rows of what this process runs, and (if that is asked for) remembers to have run.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        self.runs: Callable[[bool], list[TaskRow]] = lambda _finished: []
        self.node_handlers: dict[type, Callable[[Any], None]] = {Inquire: self._on_inquire}

    def _on_inquire(self, message: Inquire) -> None:
        self._process.node.send_locked(Found(message.number, self._answer(message.question)))

    def _answer(self, question: Question) -> Findings:
        match question:
            case AskTasks(limit, unfinished, finished):
                rows = [row for row in self.runs(finished) if unfinished or row.end_ns]
                if unfinished:
                    rows += [self._task_row(task) for task in self._tasks()]
                rows, left_out = cut(rows, limit)
                return Findings(tasks=rows, left_out=left_out)
            case AskObjects(limit):
                objects, left_out = self._inventory().rows(limit, handles=False)
                return Findings(objects=objects, left_out=left_out)
            case AskMemory(limit):
                inventory = self._inventory()
                objects, left_out = inventory.rows(limit, handles=True)
                memory = inventory.memory(limit)
                return Findings(objects=objects, left_out=left_out, processes=[memory])
            case AskWhy(prefix):
                return Findings(reasons=self._why(prefix))
        return Findings()

    # --- tasks ---------------------------------------------------------------------------------------------------

    def _tasks(self) -> Iterator[Task]:
        """All tasks and calls of this process that are not finished."""
        process = self._process
        seen: set[bytes] = set()

        def all_of_them() -> Iterator[Task]:
            for queue in process.owner.tasks.classes.values():
                yield from queue.queue
                for lane in queue.lanes:
                    yield from lane.inflight.values()
            for link in process.actors.links():
                yield from link.queue
                yield from link.inflight.values()
            yield from process.submissions.not_begun()
            for entry in process.objects.entries.values():
                if isinstance(entry.task, Task):
                    yield entry.task

        for task in all_of_them():
            if task.state is not State.FINISHED and task.task_id not in seen:
                seen.add(task.task_id)
                yield task

    def _task_row(self, task: Task) -> TaskRow:
        process = self._process
        call = task.function is None
        link: ActorCalls | None = task.queue if call else None
        worker, pid = "", 0
        if task.state is State.HERE:
            worker, pid = process.address, process.pid
        elif task.lane is not None:
            worker, pid = task.lane.address, task.lane.pid
        return TaskRow(
            task.task_id,
            name_of(task),
            "ACTOR_TASK" if call else "NORMAL_TASK",
            state_of(task),
            task.attempt,
            process.job_id,
            process.address,
            b"" if link is None else link.actor_id,
            () if task.queue is None or call else task.queue.shape.resources,
            worker,
            pid,
        )

    def _why(self, prefix: str) -> list[Reason]:
        process = self._process
        reasons = [
            why_task(task, process.address, process.node_id)
            for task in self._tasks()
            if task.task_id.hex().startswith(prefix)
        ]
        if len(reasons) < _MOST_REASONS:
            reasons += [
                self._why_runs(row)
                for row in self.runs(False)
                if row.task_id.hex().startswith(prefix)
            ]
        return reasons[:_MOST_REASONS]

    def _why_runs(self, row: TaskRow) -> Reason:
        process = self._process
        subject = f"{row.name}() ({short(row.task_id)})"
        text = f"it runs in the process with pid {process.pid}"
        awaited = self._awaited()
        if awaited:
            names = ", ".join(f"object {short(entry.object_id)}" for entry in awaited)
            text += f", where somebody waits for {names}"
        makers = dict.fromkeys(task_of(entry.object_id) for entry in awaited)
        follow = [Follow(AskWhy(task_id.hex())) for task_id in makers]
        return Reason(subject, "running", f"{text}.", process.node_id, row.start_ns, follow=follow)

    def _awaited(self) -> list[Entry]:
        """What threads and futures of this process wait for at this moment."""
        entries = self._process.objects.entries.values()
        found = (
            entry
            for entry in entries
            if entry.waiters is not None
            and any(
                type(one) is FutureWaiter or (type(one) is GetWaiter and one.current is entry)
                for one in entry.waiters
            )
        )
        return list(islice(found, _MOST_REASONS))

    def _inventory(self) -> Inventory:
        return Inventory(self._process, list(self._tasks()))

    # --- for timeouts --------------------------------------------------------------------------------------------

    def explain(self, entry: Entry) -> tuple[str, AskRequest | AskActor | None]:
        """What an object that is not ready waits for, and of what others know more: the request for a worker, or the actor."""
        process = self._process
        steps: list[str] = []
        while len(steps) < _MOST_STEPS:
            task = entry.task
            if not isinstance(task, Task):
                owner = entry.owner or "this process"
                steps.append(
                    f"object {short(entry.object_id)} has not been produced by its owner ({owner})"
                )
                break
            reason = why_task(task, process.address, process.node_id)
            steps.append(f"{reason.subject}: {reason.text}")
            missing = [dep for _, dep in task.deps or () if dep.value is None]
            if task.unready and missing:
                entry = missing[0]
                continue
            for follow in reason.follow:
                if isinstance(follow.question, AskRequest):
                    return " ".join(steps), follow.question
            if reason.kind == "actor":
                return " ".join(steps), AskActor(task.queue.actor_id)
            break
        return " ".join(steps), None
