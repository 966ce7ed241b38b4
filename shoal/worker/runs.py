"""What a worker runs, and what it remembers to have run. Tells the node of it when memory is short (see `messages.memory`)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from time import perf_counter_ns, time_ns
from typing import TYPE_CHECKING

from shoal.core.task_rows import row_of
from shoal.messages.memory import Runs as RunsNow
from shoal.messages.memory import WhatRuns
from shoal.messages.node import Events, TaskEvent
from shoal.messages.peer import Failure
from shoal.messages.state import TaskRow

if TYPE_CHECKING:
    from shoal.runtime.context import TaskContext
    from shoal.runtime.process import Process
    from shoal.worker.invocation import Job, Outcome


class Runs:
    """See the module's docstring. The last `remembered` runs are kept.

    `running` gives the contexts of what runs now, since when (on the clock of `perf_counter_ns`, 0 if that is
    not known), and which actor this is (b"": none).
    """

    def __init__(
        self,
        process: Process,
        remembered: int,
        running: Callable[[], tuple[Iterable[TaskContext], int, bytes]],
    ) -> None:
        self._process = process
        self._running = running
        self._clock_offset = time_ns() - perf_counter_ns()
        self._events: deque[TaskEvent] | None = deque(maxlen=remembered) if remembered else None
        # Whether what runs may be run again, as the node knows it.
        self.retriable = True
        process.census.runs = self.rows
        process.node_handlers[WhatRuns] = self._on_what_runs

    def record(self, job: Job, kind: str, outcome: Outcome) -> None:
        """Remember a finished run."""
        if self._events is not None:
            offset = self._clock_offset
            self._events.append(
                TaskEvent(
                    job.task_id,
                    job.name,
                    kind,
                    self._process.pid,
                    outcome.start_ns + offset,
                    outcome.end_ns + offset,
                    type(outcome.message) is not Failure,
                )
            )

    def tell_kind(self, retriable: bool) -> None:
        """What follows may be run again, or may not, unlike what ran before."""
        self.retriable = retriable
        process = self._process
        with process.lock:
            process.node.send_locked(RunsNow(retriable))
            process.reactor.flush_locked()

    def _on_what_runs(self, _message: WhatRuns) -> None:
        rows = self.rows(False)
        # The last to begin, if several run: in place, inside one another, or as the calls of an actor.
        name, start_ns = (rows[-1].name, rows[0].start_ns) if rows else ("", 0)
        ran_ns = max(0, time_ns() - start_ns) if start_ns else 0
        self._process.node.send_locked(RunsNow(self.retriable, name, ran_ns))

    def leave(self) -> None:
        """Leave what is remembered to the node (with the lock held)."""
        if self._events:
            self._process.node.send_locked(Events(list(self._events)))

    def rows(self, finished: bool) -> list[TaskRow]:
        """What runs, and what has run."""
        process = self._process
        contexts, since, actor_id = self._running()
        rows = [
            TaskRow(
                context.task_id,
                context.name,
                "NORMAL_TASK" if context.actor_id is None else "ACTOR_TASK",
                "RUNNING",
                context.attempt,
                process.job_id,
                actor_id=context.actor_id or b"",
                worker=process.address,
                pid=process.pid,
                start_ns=since + self._clock_offset if since else 0,
            )
            for context in contexts
        ]
        if finished and self._events is not None:
            rows += [row_of(e, process.address, process.job_id, actor_id) for e in self._events]
        return rows
