"""Tasks of this process from the queue to the end: pushed to workers, answered by them, tried again, cancelled.

Owns the table of tasks: carries out what `core.tasks` decides and feeds it what the workers say. The way in is `submitting`; the workers
themselves are leased by `leases`. Pushing and the replies are the hot path: see `bench/` before and after a change.

Threads: everything is called with the lock held, most of it by the reactor's leader.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from shoal.core.lanes import Lane
from shoal.core.reference_effects import FreeValue
from shoal.core.tasks import State, Task, TaskTable
from shoal.errors import (
    ShoalError,
    TaskCancelledError,
    TaskPlacementGroupRemoved,
    WorkerCrashedError,
)
from shoal.messages.node import KillProcess
from shoal.messages.peer import (
    Cancel,
    Define,
    Done,
    Failure,
    HandBack,
    Pause,
    Push,
    PushFull,
    Results,
    Resume,
    StreamConsumed,
    StreamItem,
)
from shoal.messages.values import Dep, Failed, Inline, Stored
from shoal.runtime.leases import Leases
from shoal.runtime.shortages import MemoryShortages
from shoal.runtime.values import LARGE_MESSAGE_BYTES, wire_args
from shoal.serial.exceptions import dump_exception
from shoal.serial.values import serialize

if TYPE_CHECKING:
    from shoal.runtime.process import Process
    from shoal.wire.connection import Connection


class Owner:
    """See the module's docstring."""

    def __init__(self, process: Process) -> None:
        config = process.config
        self._process = process
        self._objects = process.objects
        self._reactor = process.reactor
        self.tasks = TaskTable(
            config.window_us,
            config.window_tasks,
            config.lease_requests_per_shape,
            config.lease_idle_ms,
        )
        self.leases = Leases(process, self.tasks, self._push, self.fail)
        self.shortages = MemoryShortages(process, self.tasks, self.fail)
        self._touched: dict[Any, None] = {}
        # Tasks to be ended by force that are behind others on their lanes.
        self._forced: dict[Task, None] = {}
        self.handlers: dict[type, Callable[[Any, Any], None]] = {
            Done: self._on_done,
            Results: self._on_results,
            Failure: self._on_failure,
            StreamItem: self._on_stream_item,
            HandBack: self._on_hand_back,
            Pause: self._on_pause,
            Resume: self._on_resume,
        }

    # --- pushing -------------------------------------------------------------------------------------------------

    def _push(self, lane: Lane, task: Task) -> None:
        connection: Connection = lane.connection
        function = task.function
        assert function is not None
        defined = connection.peer.defined
        if function.index not in defined:
            defined.add(function.index)
            connection.out.append(
                Define(
                    function.index,
                    function.function_id,
                    function.name,
                    function.code,
                    function.max_calls,
                    function.retriable,
                )
            )
        args = task.args
        if (
            type(args) is bytes
            and task.deps is None
            and task.return_count == 1
            and not task.attempt
            and not task.name
        ):
            connection.out.append(Push(task.task_id, function.index, args))
            large = len(args) > LARGE_MESSAGE_BYTES
        else:
            message = PushFull(
                task.task_id,
                function.index,
                wire_args(args),
                self.resolve_deps(task),
                task.return_count,
                task.attempt,
                task.name,
                task.window,
            )
            connection.out.append(message)
            if task.stream is not None and task.stream.consumed:
                # Its consumer has left already, or has taken items of an earlier attempt.
                connection.out.append(StreamConsumed(task.task_id, task.stream.consumed))
            large = True
        connection.touch()
        if large or len(lane.inflight) == 1:
            connection.flush()

    @staticmethod
    def resolve_deps(task: Task) -> list[Dep]:
        """The values (or places) of a task's references, which are known by now."""
        if task.deps is None:
            return []
        return [
            Dep(key, Inline(value) if type(value := entry.value) is bytes else value)
            for key, entry in task.deps
        ]

    # --- replies -------------------------------------------------------------------------------------------------

    def _on_done(self, connection: Connection, message: Done) -> None:
        lane = connection.lane
        if lane is None:
            return
        task = lane.inflight.get(message.task_id)
        if task is None:
            return
        (lane if task.function is None else self.tasks).finished(task, message.took_us)
        self._touched[lane] = None
        entry = task.returns[0]
        entry.task = None
        if not entry.dropped:
            entry.value = message.data
            waiters = entry.waiters
            if waiters is not None:
                entry.waiters = None
                for waiter in waiters:
                    waiter(entry)
        if task.holds is not None or task.siblings is not None or type(task.args) is Stored:
            self._release(task)

    def _release(self, task: Task) -> None:
        if task.siblings is not None:
            task.siblings.pop(task.task_id, None)
            task.siblings = None
        if type(task.args) is Stored:
            # Large arguments were put into shared memory for this task alone.
            self._objects.outbox.append(FreeValue(task.args))
            task.args = b""
        holds, task.holds = task.holds, None
        for entry in holds or ():
            self._objects.unhold(entry)

    def _finished(self, connection: Connection, task_id: bytes, took_us: int) -> Task | None:
        lane = connection.lane
        task = None if lane is None else lane.inflight.get(task_id)
        if task is None:
            return None
        (lane if task.function is None else self.tasks).finished(task, took_us)
        self._touched[lane] = None
        return task  # type: ignore[no-any-return]  # the lane's dictionary holds tasks

    def _on_results(self, connection: Connection, message: Results) -> None:
        task = self._finished(connection, message.task_id, message.took_us)
        if task is None:
            # An earlier life of an actor has answered after all.
            for value in message.values:
                self._objects.refuse(value, connection.peer_address)
            return
        self.succeed(task, message, True, connection.peer_address)

    def succeed(
        self, task: Task, message: Results, registered: bool | None, voucher: str = ""
    ) -> None:
        """A task has finished, elsewhere (at `voucher`) or, with `registered` None, in this process."""
        if task.stream is not None:
            task.stream.end(message.stream_length)
            for entry in task.returns:
                entry.task = None
                self._process.complete(
                    entry, serialize(message.stream_length).data, [], registered=True
                )
        else:
            self.complete_returns(task, message.values, registered, voucher)
        self._release(task)

    def complete_returns(
        self, task: Task, values: list[Any], registered: bool | None, voucher: str
    ) -> None:
        """The results of a task are known."""
        process = self._process
        for entry, value in zip(task.returns, values, strict=True):
            kind = type(value)
            # Whoever makes a stored object again needs its task: lineage.
            entry.task = task if kind is Stored else None
            if kind is Inline and not value.buffers and not value.refs:
                process.complete(entry, value.data, [], registered=True)
            else:
                refs = [] if kind is Failed else value.refs
                process.arrivals.complete(entry, value, refs, registered, voucher)

    def _on_failure(self, connection: Connection, message: Failure) -> None:
        task = self._finished(connection, message.task_id, message.took_us)
        if task is not None:
            self.fail_or_retry(task, message)

    def fail_or_retry(self, task: Task, message: Failure) -> None:
        """The user's code raised, or the task could not be run."""
        if (
            message.application
            and task.retries
            and not task.cancelled
            and self._retries_error(task, message)
        ):
            if task.retries > 0:
                task.retries -= 1
            (task.queue if task.function is None else self.tasks).retry(task)
            return
        if task.stream is not None and message.stream_length >= 0:
            task.stream.fail(message.stream_length, Failed(message.error))
        self.fail(task, Failed(message.error))

    @staticmethod
    def _retries_error(task: Task, message: Failure) -> bool:
        allowed = task.error_retry
        return allowed is True or (
            bool(allowed) and any(name in allowed for name in message.cause_types)  # type: ignore[operator]  # a tuple
        )

    def fail(self, task: Task, failed: Failed) -> None:
        """The task will have no value; everybody who waits for it is told."""
        task.state = State.FINISHED
        if task.stream is not None:
            task.stream.fail(-1, failed)
        for entry in task.returns:
            entry.task = None
            self._process.complete(entry, failed, [], registered=True)
        self._release(task)

    def _on_stream_item(self, connection: Connection, message: StreamItem) -> None:
        lane = connection.lane
        task = None if lane is None else lane.inflight.get(message.task_id)
        if task is not None and task.stream is not None:
            task.stream.item(message.index, message.value, connection.peer_address)
        else:
            self._objects.refuse(message.value, connection.peer_address)

    def _on_hand_back(self, connection: Connection, message: HandBack) -> None:
        lane = connection.lane
        if isinstance(lane, Lane):
            for task in self.tasks.handed_back(lane, message.task_ids):
                assert task.function is not None
                self.fail(task, cancelled(task.function.name, task.task_id))
            self._touched[lane] = None

    def _on_pause(self, connection: Connection, message: Pause) -> None:
        if isinstance(connection.lane, Lane):
            self.tasks.paused(connection.lane, message.retiring)

    def _on_resume(self, connection: Connection, _message: Resume) -> None:
        if isinstance(connection.lane, Lane):
            self.tasks.resumed(connection.lane)

    def settle(self) -> None:
        """After a batch: fill the lanes that have room again, and carry out what the table decided."""
        touched = self._touched
        if touched:
            if self._forced:
                self._enforce()
            now = monotonic()
            for lane in touched:
                if type(lane) is Lane:
                    self.tasks.refill(lane, now)
                    if not lane.inflight:
                        self.leases.look_later()
            touched.clear()
        if self.tasks.outbox:
            self.leases.carry_out()

    # --- failures and cancelling ---------------------------------------------------------------------------------

    def process_died(self, address: str, cause: str) -> None:
        """A worker is gone (with the lock held)."""
        memory = self.shortages.end_of(address)
        for lane in self.leases.forget_worker(address):
            if memory is not None:
                self.shortages.on_lost(lane, memory, cause)
            for task in self.tasks.lost(lane, charge=memory is None):
                assert task.function is not None
                if task.cancelled:
                    self.fail(task, cancelled(task.function.name, task.task_id))
                    continue
                tries = task.attempt + 1
                error: ShoalError = WorkerCrashedError(
                    f"the worker that ran {task.function.name}() (pid={lane.pid}) {cause}; the task was tried "
                    f"{tries} time{'s' if tries > 1 else ''} and has no retries left (max_retries)"
                )
                if lane.revoked:
                    error = TaskPlacementGroupRemoved(
                        f"{task.function.name}() was ended (pid={lane.pid}): {lane.revoked}"
                    )
                self.fail(task, Failed(dump_exception(error)))

    def cancel(self, task: Task, force: bool, recursive: bool) -> None:
        """Cancel a task (with the lock held); see `shoal.cancel`."""
        if self._process.submissions.withdraw(task):
            task.state = State.FINISHED
            name = task.method or (task.function.name if task.function else "")
            self.fail(task, cancelled(name, task.task_id))
            return
        connection = task.lane.connection if task.lane is not None else None
        state = (task.queue if task.function is None else self.tasks).cancel(task)
        name = task.method or (task.function.name if task.function else "")
        if state in {State.WAITING, State.QUEUED}:
            self.fail(task, cancelled(name, task.task_id))
        elif state is State.PUSHED and connection is not None:
            lane = task.lane
            if force and isinstance(lane, Lane):
                if _is_head(lane, task):
                    self._end_worker(lane, task)
                    return
                self._forced[task] = None
            connection.send(Cancel(task.task_id, recursive))

    def _enforce(self) -> None:
        """A worker runs its lane's tasks in order. So one that is behind another in our record has not begun, or the
        replies of all before it are on their way: it is cancelled as without force, and its worker killed only if it comes to
        the head all the same. What runs before it is never harmed. What is behind it has most likely not begun, and runs
        elsewhere without charge; nothing that may not run twice is ever pushed behind another (rule 3 of `core.tasks`).
        """
        for task in list(self._forced):
            lane = task.lane
            if task.state is not State.PUSHED or not isinstance(lane, Lane):
                del self._forced[task]
            elif _is_head(lane, task):
                del self._forced[task]
                self._end_worker(lane, task)

    def _end_worker(self, lane: Lane, task: Task) -> None:
        assert task.function is not None
        reason = f"shoal.cancel(force=True) ended {task.function.name}()"
        self._process.node.send_locked(KillProcess(lane.address, reason))
        # Should its reply be on the way, or a retry of others due: nothing may follow into this worker.
        self.tasks.paused(lane, retiring=True)

    def consumed(self, task: Task, count: int) -> None:
        """The consumer of a stream has taken `count` items (with the lock held)."""
        if task.lane is not None and task.lane.connection is not None:
            task.lane.connection.send(StreamConsumed(task.task_id, count))


def _is_head(lane: Lane, task: Task) -> bool:
    """Whether a task that was pushed may have begun."""
    return next(iter(lane.inflight.values())) is task


def cancelled(name: str, task_id: bytes) -> Failed:
    """The failed value of a cancelled task."""
    return Failed(dump_exception(TaskCancelledError(f"{name}() was cancelled", task_id.hex())))
