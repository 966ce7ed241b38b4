"""Carries out what the lease queue decides: forks workers, grants, ends them, and learns how they ended.

Owns the queue (`core.leases`), the record of every worker's process, its output pipes, and the timers of its end. Guarantees:

- a worker that is told to end is gone after `exit_grace_s`: first it is told, at half-time it gets SIGTERM, then SIGKILL;
  one that is asked to retire may say within that time that it stays;
- whoever watches a worker hears of its end after everything that it printed has been passed on;
- the cause of an end is the truth: the reason of the order that ended it, or else what the kernel reported.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import secrets
import signal
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

from shoal.clock import monotonic_ns
from shoal.core.endings import ended_clause, exit_clause, killed_clause
from shoal.core.lease_records import (
    AskBack,
    EndWorker,
    ForkWorker,
    Grant,
    Lease,
    Limits,
    Pending,
    Refuse,
    RetireWorker,
    Revoke,
)
from shoal.core.leases import LeaseQueue
from shoal.core.pool import WorkerKey, WorkerState
from shoal.core.resources import CPU, NodeResources
from shoal.messages.boot import Boot
from shoal.messages.memory import Runs
from shoal.messages.node import UNIT, Exit, Job, Leaving, Retire, Stay
from shoal.node.clients import Client
from shoal.node.environments import EnvironmentFailed, prepare
from shoal.node.logs import WorkerLogs
from shoal.node.memory_monitor import MemoryMonitor, Occupation
from shoal.node.zygote_link import ZygoteLink
from shoal.wire.addresses import LOCAL, WORKER, make_address, make_name
from shoal.wire.session import log_dir

_log = logging.getLogger("shoal.node")

# Descriptors that the daemon itself needs, and those that each worker costs it: two pipes and a connection.
_OWN_FDS: Final = 64
_FDS_PER_WORKER: Final = 3
_LAST_WORDS_S: Final = 0.5
_STDERR: Final = 2


class Process:
    """One worker's process, from the order to fork it until it is reaped.

    Attributes:
        ordered: Why it was told to end ("" if it was not), as a clause about the process.
        leaving: Why it ends by itself when it has done what is queued, or nobody counts on it ("" if it does not).
        told: It has been sent the order to end.
        expected: Its end is nothing to worry about.
        number: That of its client, once it has registered.
        early: What is to be done when its pid is known, if it has registered before.
        occupation: What the memory monitor knows of it.
        status: Its exit status, once it has ended.
    """

    __slots__ = (
        "address",
        "client",
        "early",
        "expected",
        "job",
        "leaving",
        "logs",
        "number",
        "occupation",
        "ordered",
        "pid",
        "status",
        "timers",
        "told",
        "worker_id",
    )

    def __init__(self, worker_id: bytes, address: str, job: Job, logs: WorkerLogs) -> None:
        self.worker_id = worker_id
        self.address = address
        self.job = job
        self.logs = logs
        self.pid = 0
        self.status: int | None = None
        self.client: Client | None = None
        self.early: Callable[[], None] | None = None
        self.number = 0
        self.ordered = ""
        self.leaving = ""
        self.told = False
        self.expected = False
        self.timers: list[asyncio.TimerHandle] = []
        self.occupation = Occupation()


class WorkerEvents(Protocol):
    """What becomes of leases and workers."""

    def on_granted(self, grant: Grant, process: Process) -> None:
        """A request was served with this worker."""

    def on_refused(self, refusal: Refuse) -> None:
        """A request will never be served."""

    def on_asked_back(self, ask: AskBack) -> None:
        """A lease is wanted back."""

    def on_revoked(self, revoked: Revoke) -> None:
        """A lease ends with its placement group."""

    def on_pending(self, pending: Pending) -> None:
        """A request is infeasible as things stand."""

    def on_advanced(self) -> None:
        """The queue has acted on what has happened."""

    def on_process_gone(self, process: Process, cause: str, lease: Lease | None) -> None:
        """A worker's process has ended, and its output has been passed on."""

    def on_lines(self, job_id: bytes, pid: int, source: str, stream: int, lines: list[str]) -> None:
        """A worker printed."""


class Workers:
    """See the module's docstring."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        boot: Boot,
        zygote: ZygoteLink,
        events: WorkerEvents,
        jobs: dict[bytes, Job],
        max_descriptors: int,
    ) -> None:
        self._loop = loop
        self._boot = boot
        self._zygote = zygote
        self._events = events
        self._jobs = jobs
        self._processes: dict[bytes, Process] = {}
        self._by_pid: dict[int, Process] = {}
        self._by_address: dict[str, Process] = {}
        self._timer: asyncio.TimerHandle | None = None
        # In a cluster from anywhere: then hardly two workers of it have the same name, which keeps logs and questions clear.
        numbers = itertools.count(1 if boot.place == LOCAL else secrets.randbelow(1 << 31))
        config = boot.config
        cpus = max(1, boot.total.get(CPU, 0) // UNIT)
        self.queue = LeaseQueue(
            NodeResources(boot.total, boot.gpu_ids),
            Limits(
                fair_share_ns=config.fair_share_ms * 1_000_000,
                idle_limit=max(1, int(config.idle_workers_per_cpu * cpus)),
                idle_ns=int(config.idle_worker_s * 1e9),
                start_timeout_ns=int(config.worker_start_timeout_s * 1e9),
                max_starting=max(8, 4 * cpus),
                max_workers=max(8, (max_descriptors - _OWN_FDS) // _FDS_PER_WORKER),
            ),
            # The first four bytes name the worker's socket and its shared memory: they must be unique on this node for
            # the whole session, which a counter is.
            lambda: next(numbers).to_bytes(4, "big") + os.urandom(12),
        )
        self._memory = MemoryMonitor(loop, boot, self)
        self.client_handlers: dict[type, Callable[[Client, Any], None]] = {
            Stay: self._of_worker(self._on_stay),
            Leaving: self._of_worker(self._on_leaving),
            Runs: self._on_runs,
        }

    # --- questions -----------------------------------------------------------------------------------------------

    def process(self, worker_id: bytes) -> Process | None:
        """A worker's process, until it is reaped."""
        return self._processes.get(worker_id)

    def at(self, address: str) -> Process | None:
        """The worker that listens at an address, until it is reaped."""
        return self._by_address.get(address)

    def ending_of(self, job_id: bytes) -> list[Process]:
        """The workers of a job that were told to end and have not."""
        return [p for p in self._processes.values() if p.ordered and p.job.job_id == job_id]

    def has_job(self, job_id: bytes) -> bool:
        """Whether a worker of a job lives, or is asked for."""
        return any(p.job.job_id == job_id for p in self._processes.values()) or any(
            request.claimant.key.job_id == job_id for request in self.queue.requests
        )

    def pids(self) -> list[int]:
        """The pids of all workers."""
        return list(self._by_pid)

    # --- orders --------------------------------------------------------------------------------------------------

    def prestart(self, job_id: bytes, count: int) -> None:
        """Fork workers for a job before anybody asks."""
        self.queue.prestart(WorkerKey(job_id, ""), count, monotonic_ns())
        self._drain()

    def end_job(self, job_id: bytes, reason: str, *, kill: bool) -> None:
        """End all workers of a job but those of actors that outlive it."""
        self.queue.on_job_gone(job_id, monotonic_ns(), reason, kill=kill)
        self.advance()

    def retire(self, worker_ids: Iterable[bytes], reason: str) -> None:
        """Ask idle workers to end, unless others count on them."""
        for worker_id in worker_ids:
            worker = self.queue.pool.get(worker_id)
            if worker is not None and worker.state is WorkerState.IDLE:
                self.queue.retire(worker, reason, spent=False, now=monotonic_ns())
        self._drain()

    def tell_driver(self, job_id: bytes, text: str) -> None:
        """Show a line at the driver of a job."""
        self._events.on_lines(job_id, 0, "shoal", _STDERR, [text])

    def advance(self) -> None:
        """Let the queue act on what has happened, and carry it out."""
        self.queue.advance(monotonic_ns())
        self._drain()

    def _drain(self) -> None:
        outbox = self.queue.outbox
        while outbox:
            effects = outbox[:]
            outbox.clear()
            for effect in effects:
                self._carry_out(effect)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._events.on_advanced()
        deadline = self.queue.next_deadline()
        if deadline is not None:
            delay_s = max(0, deadline - monotonic_ns()) / 1e9
            self._timer = self._loop.call_later(delay_s, self.advance)

    def _carry_out(self, effect: object) -> None:
        match effect:
            case Grant(worker_id=worker_id):
                self._events.on_granted(effect, self._processes[worker_id])
            case ForkWorker(worker_id, key):
                self._fork(worker_id, key)
            case EndWorker(worker_id, reason, kill):
                process = self._processes.get(worker_id)
                if process is not None:
                    self.end(process, ended_clause(reason), reason=reason, kill=kill)
            case RetireWorker(worker_id, reason, spent):
                process = self._processes.get(worker_id)
                if process is not None:
                    self._ask_to_retire(process, reason, spent=spent)
            case AskBack():
                self._events.on_asked_back(effect)
            case Revoke():
                self._events.on_revoked(effect)
            case Refuse():
                self._events.on_refused(effect)
            case Pending():
                self._events.on_pending(effect)
            case _:
                raise AssertionError(effect)

    def _fork(self, worker_id: bytes, key: WorkerKey) -> None:
        try:
            job, environ = prepare(self._jobs[key.job_id], key.env)
        except EnvironmentFailed as error:
            self.queue.on_env_failed(key, str(error))
            self._fork_failed(worker_id, "could not get its environment")
            return
        job_id = key.job_id

        def on_lines(pid: int, source: str, stream: int, lines: list[str]) -> None:
            self._events.on_lines(job_id, pid, source, stream, lines)

        try:
            logs = WorkerLogs(
                self._loop,
                log_dir(self._boot.session_dir),
                self._boot.config.log_rotate_bytes,
                on_lines,
            )
        except OSError as error:
            self._fork_failed(worker_id, f"could not get its output pipes: {error.strerror}")
            return
        address = make_address(self._boot.place, make_name(WORKER, worker_id))
        process = Process(worker_id, address, job, logs)
        self._processes[worker_id] = process
        self._by_address[address] = process
        self._zygote.fork(worker_id, job, environ, *logs.write_ends)

    def _fork_failed(self, worker_id: bytes, cause: str) -> None:
        self.queue.on_worker_gone(worker_id, monotonic_ns(), cause)
        # Not here: the queue may be in the middle of handing out its effects.
        self._loop.call_soon(self.advance)

    def end(
        self, process: Process, clause: str, *, reason: str, kill: bool, expected: bool = True
    ) -> None:
        """End a worker: ask it and see to it that it goes, or kill it at once. The first order's clause is the cause
        that is told."""
        if not process.ordered:
            process.ordered = clause
            process.expected = expected
        if kill or process.client is None:
            self._signal(process, signal.SIGKILL)
        elif not process.told:
            process.told = True
            for timer in process.timers:
                timer.cancel()
            process.client.send(Exit(reason, now=True))
            grace_s = self._boot.config.exit_grace_s
            process.timers = [
                self._loop.call_later(grace_s / 2, self._signal, process, signal.SIGTERM),
                self._loop.call_later(grace_s, self._signal, process, signal.SIGKILL),
            ]

    def _ask_to_retire(self, process: Process, reason: str, *, spent: bool) -> None:
        if process.client is None:
            # It has lost its connection, and nobody can reach what it owns.
            self.end(process, ended_clause(reason), reason=reason, kill=True)
        elif not process.ordered:
            process.leaving = reason
            process.client.send(Retire(reason, spent))
            self._on_leaving(process)

    def _on_leaving(self, process: Process) -> None:
        """A worker ends in good order: see that it does."""
        grace_s = self._boot.config.exit_grace_s
        process.timers = [self._loop.call_later(grace_s, self._lose_patience, process)]

    def _lose_patience(self, process: Process) -> None:
        """A worker that was asked to retire neither ends nor says that it stays."""
        reason = process.leaving
        self.order_end(process, ended_clause(reason), reason=reason, kill=True)
        self.advance()

    def _on_stay(self, process: Process) -> None:
        """A worker that was asked to retire is counted on."""
        worker = self.queue.pool.get(process.worker_id)
        if worker is None or worker.state is not WorkerState.RETIRING:
            # It has been told to end since.
            return
        for timer in process.timers:
            timer.cancel()
        process.timers = []
        if not worker.spent:
            process.leaving = ""
        self.queue.on_stays(process.worker_id, monotonic_ns())

    def _signal(self, process: Process, number: int) -> None:
        # Before the zygote has told the pid, `on_forked` sees that it was ordered to end.
        if process.pid:
            self._zygote.kill(process.pid, number)

    def _of_worker(self, handle: Callable[[Process], None]) -> Callable[[Client, Any], None]:
        def on_message(client: Client, _message: Any) -> None:
            process = self._processes.get(client.worker_id)
            if process is not None and not process.told:
                handle(process)

        return on_message

    # --- what clients say ----------------------------------------------------------------------------------------

    def on_registered(self, process: Process, client: Client) -> None:
        """The worker has connected and said who it is."""
        process.client = client
        process.number = client.number
        self.queue.on_registered(process.worker_id, monotonic_ns())

    def _on_runs(self, client: Client, message: Runs) -> None:
        """A worker says what it runs."""
        process = self._processes.get(client.worker_id)
        if process is not None:
            process.occupation.on_runs(message)

    def on_disconnected(self, process: Process) -> None:
        """The worker's connection is gone. Its process must follow, for nobody can reach it any more."""
        process.client = None
        if process.status is not None:
            self._reaped(process)
        elif not process.timers:
            grace_s = self._boot.config.exit_grace_s
            process.timers = [self._loop.call_later(grace_s, self._cut_off, process)]

    def _cut_off(self, process: Process) -> None:
        clause = killed_clause("it lost its connection to the node daemon")
        self.order_end(process, clause, reason="it lost its connection", kill=True, expected=False)
        self.advance()

    def order_end(
        self, process: Process, clause: str, *, reason: str, kill: bool, expected: bool = True
    ) -> None:
        """End a worker for a reason that the queue does not know of."""
        self.end(process, clause, reason=reason, kill=kill, expected=expected)
        self.queue.end_worker(process.worker_id, reason, monotonic_ns(), kill=kill)

    # --- what the zygote says ------------------------------------------------------------------------------------

    def on_forked(self, worker_id: bytes, pid: int, error: str) -> None:
        """A worker exists, or could not be made (pid 0)."""
        process = self._processes.get(worker_id)
        if process is None:
            return
        if not pid:
            _log.warning("a worker %s", error)
            self._gone(process, error)
            return
        process.pid = pid
        self._by_pid[pid] = process
        process.logs.start(pid)
        early, process.early = process.early, None
        if early is not None:
            early()
        if process.ordered:
            self._signal(process, signal.SIGKILL)

    def on_exited(self, pid: int, status: int, peak_bytes: int) -> None:
        """A worker has ended."""
        process = self._by_pid.pop(pid, None)
        if process is None:
            return
        process.status = status
        if not process.ordered and status == -signal.SIGKILL:
            # At once: the count of the kernel's kills goes on.
            clause = self._memory.on_killed(process)
            process.ordered = clause
        if process.occupation.end is not None:
            process.occupation.end.peak_bytes = peak_bytes
        if process.client is None:
            self._reaped(process)
        else:
            # What it said last may still be unread: wait for the end of its connection. Not for ever, since a process
            # that it forked may hold it.
            timer = self._loop.call_later(_LAST_WORDS_S, self._reaped, process)
            process.timers.append(timer)

    def _reaped(self, process: Process) -> None:
        assert process.status is not None
        cause = process.ordered
        if not cause and process.leaving and process.status == 0:
            cause = ended_clause(process.leaving)
            process.expected = True
        self._gone(process, cause or exit_clause(process.status))

    def _gone(self, process: Process, cause: str) -> None:
        del self._processes[process.worker_id]
        del self._by_address[process.address]
        for timer in process.timers:
            timer.cancel()
        process.logs.close()
        lease = self.queue.on_worker_gone(process.worker_id, monotonic_ns(), cause)
        self._events.on_process_gone(process, cause, lease)
        self.advance()

    def close(self) -> None:
        """Stop the timers and pass on what workers printed last."""
        self._memory.close()
        if self._timer is not None:
            self._timer.cancel()
        for process in self._processes.values():
            for timer in process.timers:
                timer.cancel()
            process.logs.close()
