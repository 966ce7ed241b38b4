"""Tasks of this process whose workers were ended because memory was short: tried again after a while, or given up.

Feeds `core.tasks` and `core.memory_retries`. All methods are called with the runtime's lock held, but for those that a timer calls.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from shoal.core.byte_amounts import bytes_text
from shoal.core.memory_report import ADVICE
from shoal.core.memory_retries import Shortages
from shoal.core.tasks import State, Task, TaskTable
from shoal.core.waits import name_of
from shoal.errors import OutOfMemoryError
from shoal.messages.values import Failed
from shoal.serial.exceptions import dump_exception

if TYPE_CHECKING:
    from shoal.core.lanes import Lane
    from shoal.messages.memory import MemoryEnd
    from shoal.runtime.process import Process


class MemoryShortages:
    """See the module's docstring. `fail` tells who waits for a task."""

    def __init__(
        self, process: Process, tasks: TaskTable, fail: Callable[[Task, Failed], None]
    ) -> None:
        self._process = process
        self._tasks = tasks
        self._fail = fail
        # Ends that were told and not dealt with yet: what the dead said last is read before.
        self._ends: dict[str, MemoryEnd] = {}
        self._pausing: dict[Task, None] = {}

    def note(self, address: str, end: MemoryEnd) -> None:
        """A worker was ended, says its node."""
        self._ends[address] = end

    def end_of(self, address: str) -> MemoryEnd | None:
        """Whether this is why a process has ended; asked once."""
        return self._ends.pop(address, None)

    def is_pausing(self) -> bool:
        """Whether a task waits to be tried again."""
        return bool(self._pausing)

    def on_lost(self, lane: Lane, end: MemoryEnd, cause: str) -> None:
        """A worker is gone: the task that it ran is taken off its lane."""
        task = self._tasks.set_aside(lane)
        if task is None:
            return
        assert task.function is not None
        shortages: Shortages = getattr(task, "shortages", None) or Shortages()
        task.shortages = shortages
        shortages.on_end(end.private_bytes, alone=end.alone)
        config = self._process.config
        if not task.function.retriable:
            why_not = "it may not be tried again (max_retries=0)"
        else:
            why_not = shortages.why_not(config.task_oom_retries)
        if why_not:
            error = OutOfMemoryError(_explanation(task, lane, end, cause, why_not))
            self._fail(task, Failed(dump_exception(error)))
            return
        self._pausing[task] = None
        pause_ms = shortages.pause_ms(config.oom_retry_ms, config.oom_retry_most_ms)
        self._process.reactor.call_later(pause_ms / 1000, partial(self._try_again, task))

    def _try_again(self, task: Task) -> None:
        process = self._process
        with process.lock:
            self._pausing.pop(task, None)
            # It may have been cancelled meanwhile.
            if task.state is State.WAITING:
                self._tasks.retry(task)
                process.settle()
                process.reactor.flush_locked()


def _explanation(task: Task, lane: Lane, end: MemoryEnd, cause: str, why_not: str) -> str:
    shortages = task.shortages
    times = "once" if shortages.count == 1 else f"{shortages.count} times"
    had = ""
    if shortages.count > 1 and shortages.most_bytes:
        had += f" The most that it had of these times was {bytes_text(shortages.most_bytes)}."
    if end.peak_bytes:
        had += f" At its peak {bytes_text(end.peak_bytes)} of it were resident, with what it had mapped of the object store."
    return (
        f"{name_of(task)}() ran out of memory {times}, and {why_not}. The worker that ran it last (pid={lane.pid}) {cause}.{had} "
        f"{end.report} {ADVICE}"
    )
