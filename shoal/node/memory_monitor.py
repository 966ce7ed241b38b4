"""The memory monitor: sees to it that this node does not run out of memory. Near the limit it ends a worker, before the kernel ends
anything.

::

    every memory_monitor_refresh_ms          over the threshold
        levels() ───────────────────────────► WhatRuns to all workers ──50 ms──► snapshot ─► core.memory_policy ─► retire or kill

While memory is not short, a look costs a few small files; processes are looked at, and asked, only when it is. One worker is ended at
a time, and the next look waits until it is gone. A task that was ended is tried again by its owner (`runtime.shortages`), an
actor restarts if it may.

The kernel may be quicker. Then a worker ends by a SIGKILL that nobody here ordered while the kernel's own count of such kills went up: it
is told as what it most likely is.

Everything runs in the daemon's event loop.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from shoal.clock import monotonic_ns
from shoal.core.memory_policy import Kill, Kind, Occupant, Retire, Wait, decide
from shoal.core.memory_report import Bound, MemoryUse, in_use, kernel_clause, monitor_clause, report
from shoal.core.pool import WorkerState
from shoal.messages.memory import MemoryEnd, Runs, WhatRuns
from shoal.node.memory_reading import Level, MemoryReading, folder_bytes

if TYPE_CHECKING:
    from shoal.core.pool import Worker
    from shoal.messages.boot import Boot
    from shoal.node.workers import Process, Workers

_log = logging.getLogger("shoal.node")

_ANSWER_S: Final = 0.05
"""How long workers have to say what they run. What a silent one runs is guessed from its lease: it may be in code that holds the GIL,
and memory goes on growing meanwhile."""

_KILLED_S: Final = 5.0
"""How long the end of one worker is waited for before another is chosen."""

_SAY_AGAIN_S: Final = 60.0
"""How often the log says that memory is short and nothing can be done about it."""

_KERNEL_S: Final = 2.0
"""How long a kill that the kernel has counted may stand for the end of a worker."""

_MOST_OTHERS: Final = 3


class Occupation:
    """What the monitor knows of one worker's process beside its memory.

    Attributes:
        restarts: Whether the actor that it is may restart; None if it is none.
        retriable: Whether the tasks that it runs may be tried again.
        name: What ran when it was asked last ("" if it did not say), and since when.
        end: Why it was ended, if that was for memory.
    """

    __slots__ = ("end", "name", "restarts", "retriable", "since")

    def __init__(self) -> None:
        self.restarts: bool | None = None
        self.retriable = True
        self.name = ""
        self.since = 0
        self.end: MemoryEnd | None = None

    def on_runs(self, message: Runs) -> None:
        """The worker says what it runs."""
        self.retriable = message.retriable
        self.name = message.name
        self.since = monotonic_ns() - message.ran_ns


class MemoryMonitor:
    """See the module's docstring."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        boot: Boot,
        workers: Workers,
        reading: MemoryReading | None = None,
    ) -> None:
        config = boot.config
        self._loop = loop
        self._shm_dir = boot.shm_dir
        self._workers = workers
        self._period_s = config.memory_monitor_refresh_ms / 1000
        self._threshold = config.memory_usage_threshold
        self._budget = config.memory_limit_bytes
        self._reading = MemoryReading() if reading is None else reading
        self._timer: asyncio.TimerHandle | None = None
        self._victim: Process | None = None
        self._victim_until = 0.0
        self._said_at = -_SAY_AGAIN_S
        # Kills of the kernel that no end of a worker stands for yet, and until when they count.
        self._kernel_kills = 0
        self._unexplained = 0
        self._unexplained_until = 0.0
        if self._period_s > 0:
            self._kernel_kills = self._reading.oom_kills()
            self._later()

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _later(self) -> None:
        self._timer = self._loop.call_later(self._period_s, self._look)

    def _look(self) -> None:
        self._count_kernel_kills()
        level = None if self._waits_for_victim() else self._short()
        if level is None:
            self._later()
            return
        for worker in self._workers.queue.pool:
            process = self._workers.process(worker.worker_id)
            if (
                worker.state is WorkerState.LEASED
                and process is not None
                and process.client is not None
            ):
                process.client.send(WhatRuns())
        self._timer = self._loop.call_later(_ANSWER_S, self._act)

    def _waits_for_victim(self) -> bool:
        victim = self._victim
        if victim is None:
            return False
        if victim.status is not None or self._loop.time() > self._victim_until:
            self._victim = None
        return self._victim is not None

    def _short(self) -> Level | None:
        """The level that is worst, if it is over the threshold."""
        levels = self._reading.levels()
        if self._budget:
            used = folder_bytes(self._shm_dir)
            used += sum(self._reading.of_groups(self._workers.pids()).values())
            levels.append(Level("this node's memory_limit_bytes", used, self._budget))
        worst = max(levels, key=lambda level: level.part, default=None)
        return worst if worst is not None and worst.part > self._threshold else None

    # --- acting --------------------------------------------------------------------------------------------------

    def _act(self) -> None:
        level = self._short()
        if level is not None:
            occupants = self._occupants()
            match decide(occupants, level.limit):
                case Retire(worker_ids):
                    self._workers.retire(worker_ids, "memory is short, and it idles")
                case Kill(worker_id, why, alone):
                    process = self._workers.process(worker_id)
                    assert process is not None
                    self._kill(process, level, occupants, why, alone=alone)
                case Wait(why):
                    self._say(f"{in_use(self._bound(level))}, and nothing is done: {why}")
        self._later()

    def _occupants(self) -> list[Occupant]:
        queue, now = self._workers.queue, monotonic_ns()
        by_group = self._reading.of_groups(self._workers.pids())
        found: list[Occupant] = []
        for worker in queue.pool:
            process = self._workers.process(worker.worker_id)
            if process is None or not process.pid or process.ordered:
                continue
            private = by_group.get(process.pid, 0)
            if worker.state is WorkerState.LEASED:
                found.append(self._occupant(worker, process, private))
            elif worker.state is WorkerState.IDLE and worker.stays_until <= now:
                found.append(Occupant(worker.worker_id, None, None, worker.since, private))
        return found

    def _occupant(self, worker: Worker, process: Process, private: int) -> Occupant:
        lease = self._workers.queue.lease(worker.lease_id)
        assert lease is not None
        known = process.occupation
        if known.restarts is not None:
            kind = Kind.ACTOR if known.restarts else Kind.LAST_ACTOR
        else:
            kind = Kind.TASK if known.retriable else Kind.LAST_TASK
        since = max(lease.granted_at, known.since)
        return Occupant(worker.worker_id, kind, lease.request.owner, since, private)

    def _kill(
        self,
        process: Process,
        level: Level,
        occupants: list[Occupant],
        why: str,
        *,
        alone: bool,
    ) -> None:
        private = {one.worker_id: one.private_bytes for one in occupants}
        clause = monitor_clause(self._bound(level), private[process.worker_id])
        text = self._report(private)
        process.occupation.end = MemoryEnd(private[process.worker_id], alone, text)
        what = f"{self._name(process)} {clause}. {why}"
        _log.warning("%s %s", what, text)
        self._workers.tell_driver(process.job.job_id, f"{what} {self._outlook(process)}")
        self._workers.order_end(
            process, clause, reason="memory is short", kill=True, expected=False
        )
        self._victim = process
        self._victim_until = self._loop.time() + _KILLED_S
        self._workers.advance()

    def _outlook(self, process: Process) -> str:
        known = process.occupation
        if known.restarts is not None:
            return "The actor restarts." if known.restarts else "The actor is lost."
        return (
            "The task is tried again when a while has passed, unless that was often enough."
            if known.retriable
            else "The task fails, since it may not be tried again."
        )

    def _report(self, private: dict[bytes, int]) -> str:
        workers: list[MemoryUse] = []
        for worker_id, used in private.items():
            process = self._workers.process(worker_id)
            if process is not None:
                workers.append(MemoryUse(self._name(process), used))
        others = [
            MemoryUse(f"{usage.name} (pid {usage.pid})", usage.private_bytes)
            for usage in self._reading.biggest(self._workers.pids(), _MOST_OTHERS)
        ]
        return report(folder_bytes(self._shm_dir), workers, others)

    def _name(self, process: Process) -> str:
        who = f"the worker with pid {process.pid}"
        worker = self._workers.queue.pool.get(process.worker_id)
        if worker is None or worker.state is not WorkerState.LEASED:
            return f"{who}, which idled,"
        known = process.occupation
        lease = self._workers.queue.lease(worker.lease_id)
        assert lease is not None
        if known.restarts is not None:
            return f"{who}, which was an actor of class {lease.request.name},"
        if known.name and known.since >= lease.granted_at:
            return f"{who}, which ran {known.name}(),"
        return f"{who}, which was leased for {lease.request.name or 'a task'}(),"

    def _bound(self, level: Level) -> Bound:
        return Bound(level.name, level.used, level.limit, self._threshold)

    def _say(self, text: str) -> None:
        now = self._loop.time()
        if now - self._said_at >= _SAY_AGAIN_S:
            self._said_at = now
            _log.warning("%s", text)

    # --- the kernel ----------------------------------------------------------------------------------------------

    def _count_kernel_kills(self) -> None:
        kills = self._reading.oom_kills()
        now = self._loop.time()
        if now > self._unexplained_until:
            self._unexplained = 0
        if kills > self._kernel_kills:
            self._unexplained += kills - self._kernel_kills
            self._unexplained_until = now + _KERNEL_S
        self._kernel_kills = kills

    def on_killed(self, process: Process) -> str:
        """A worker has ended by a SIGKILL that nobody ordered. Why, as a clause, if it was the kernel; "" if it was not."""
        if self._period_s <= 0:
            return ""
        self._count_kernel_kills()
        if not self._unexplained:
            return ""
        clause = kernel_clause(self._unexplained)
        self._unexplained -= 1
        occupants = self._occupants()
        text = self._report({one.worker_id: one.private_bytes for one in occupants})
        process.occupation.end = MemoryEnd(0, alone=False, report=text)
        what = f"{self._name(process)} {clause}."
        _log.warning("%s %s", what, text)
        self._workers.tell_driver(process.job.job_id, f"{what} {self._outlook(process)}")
        return clause
