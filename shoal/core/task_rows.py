"""Rows of tasks that have run, from what processes remember of them; and which rows are left out if there are too many."""

from __future__ import annotations

from shoal.messages.node import TaskEvent
from shoal.messages.state import ObjectRow, TaskRow


def row_of(event: TaskEvent, worker: str, job_id: bytes, actor_id: bytes = b"") -> TaskRow:
    """The row of a finished run. `worker` is the address of the process that ran it."""
    return TaskRow(
        event.task_id,
        event.name,
        "ACTOR_TASK" if event.kind == "actor" else "NORMAL_TASK",
        "FINISHED" if event.ok else "FAILED",
        job_id=job_id,
        actor_id=actor_id,
        worker=worker,
        pid=event.pid,
        start_ns=event.start_ns,
        end_ns=event.end_ns,
    )


def cut(rows: list[TaskRow], limit: int) -> tuple[list[TaskRow], int]:
    """At most so many: those that are not finished first, then the latest. And how many were left out."""
    rows = sorted(rows, key=lambda row: (row.end_ns > 0, -row.end_ns, -row.start_ns))
    return rows[:limit], max(0, len(rows) - limit)


def largest(rows: list[ObjectRow], limit: int) -> tuple[list[ObjectRow], int]:
    """At most so many, the largest if some are left out; and how many those are."""
    if len(rows) <= limit:
        return rows, 0
    return sorted(rows, key=lambda row: -row.size)[:limit], len(rows) - limit
