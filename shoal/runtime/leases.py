"""The workers that this process has leased: asked for, used, given back.

Carries out the effects of `core.tasks` towards the node, and feeds it what the node says. All methods are called with the
runtime's lock held.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from shoal.core.lanes import CancelLease, Lane, RequestLease, ReturnLease, SchedulingClass
from shoal.core.tasks import Task, TaskTable
from shoal.errors import (
    RuntimeEnvSetupError,
    ShoalError,
    TaskPlacementGroupRemoved,
    TaskUnschedulableError,
    UnserializableError,
)
from shoal.messages.node import (
    GROUP_REMOVED,
    UNPLACEABLE,
    LeaseCancel,
    LeaseGranted,
    LeasePending,
    LeaseRefused,
    LeaseRequest,
    LeaseReturn,
    LeaseRevoked,
    LeaseWanted,
)
from shoal.messages.peer import Bind
from shoal.messages.values import Failed
from shoal.runtime.locality import bytes_by_place
from shoal.serial.exceptions import dump_exception
from shoal.wire.session import log_dir

if TYPE_CHECKING:
    from shoal.runtime.process import Process

_ASK_AGAIN_S: Final = 1.0
"""How long after a refusal more workers are asked for, while some are there."""


class Leases:
    """See the module's docstring. `push` puts a task on a lane's connection; `fail` tells who waits for a task."""

    def __init__(
        self,
        process: Process,
        tasks: TaskTable,
        push: Callable[[Lane, Task], None],
        fail: Callable[[Task, Failed], None],
    ) -> None:
        self._process = process
        self._node = process.node
        self._tasks = tasks
        self._push = push
        self._fail = fail
        self._idle_s = process.config.lease_idle_ms / 1000
        self._expiring = False
        self._requests: dict[int, SchedulingClass] = {}
        # Classes that will ask again, after a refusal.
        self._refused: dict[SchedulingClass, None] = {}
        # Classes that nothing can serve as things stand, and of which the user knows.
        self._explained: dict[SchedulingClass, None] = {}
        self._lanes: dict[str, dict[Lane, None]] = {}
        self._lanes_by_lease: dict[int, Lane] = {}
        self.node_handlers: dict[type, Callable[[Any], None]] = {
            LeaseGranted: self._on_granted,
            LeaseRefused: self._on_refused,
            LeaseWanted: self._on_wanted,
            LeaseRevoked: self._on_revoked,
            LeasePending: self._on_pending,
        }

    def carry_out(self) -> None:
        """Carry out what the table of tasks has decided."""
        outbox = self._tasks.outbox
        node = self._node
        # Returning a lane may let the table ask for another.
        for effect in outbox:
            if type(effect) is RequestLease:
                self._requests[effect.req] = effect.queue
                request = LeaseRequest(effect.req, effect.queue.shape, effect.backlog, effect.name)
                if effect.queue.place and effect.queue.queue:
                    request.holders = list(bytes_by_place(effect.queue.queue[0]).items())
                node.send_locked(request)
            elif type(effect) is CancelLease:
                self._requests.pop(effect.req, None)
                node.send_locked(LeaseCancel(effect.req))
            elif type(effect) is ReturnLease:
                self._give_back(effect.lane, discard=effect.lane.retiring)
        outbox.clear()

    def _on_granted(self, message: LeaseGranted) -> None:
        queue = self._requests.pop(message.req, None)
        if queue is None:
            self._node.send_locked(LeaseReturn(message.lease_id))
            return
        lane = Lane(queue, message.lease_id, message.address, message.pid, self._push)
        lane.gpu_ids = message.gpu_ids
        try:
            connection = self._process.peers.connect(message.address)
        except ConnectionError:
            queue.requests.pop(message.req, None)
            self._node.send_locked(LeaseReturn(message.lease_id, discard=True))
            queue.room = True
            self._tasks.dispatch(queue)
            return
        lane.connection = connection
        connection.lane = lane
        self._lanes.setdefault(message.address, {})[lane] = None
        self._lanes_by_lease[lane.lease_id] = lane
        connection.send(Bind(lane.lease_id, queue.shape, lane.gpu_ids))
        self._explained.pop(queue, None)
        self._tasks.granted(message.req, queue, lane, monotonic())
        if not lane.inflight:
            self.look_later()

    def _give_back(self, lane: Lane, discard: bool) -> None:
        self._forget(lane)
        self._node.send_locked(LeaseReturn(lane.lease_id, discard))

    def _forget(self, lane: Lane) -> None:
        self._lanes_by_lease.pop(lane.lease_id, None)
        lanes = self._lanes.get(lane.address)
        if lanes is not None:
            lanes.pop(lane, None)
            if not lanes:
                del self._lanes[lane.address]
        if lane.connection is not None and lane.connection.lane is lane:
            lane.connection.lane = None

    def look_later(self) -> None:
        """A lane is idle: see in a while whether it should be given back."""
        if not self._expiring:
            self._expiring = True
            self._process.reactor.call_later(self._idle_s, self._expire)

    def _expire(self) -> None:
        with self._process.lock:
            self._expiring = False
            again = self._tasks.expire(monotonic())
            self._process.settle()
            if again is not None:
                self.look_later()

    def _on_refused(self, message: LeaseRefused) -> None:
        queue = self._requests.pop(message.req, None)
        if queue is None:
            return
        error: ShoalError
        for_good = False
        if message.kind == "env":
            error = RuntimeEnvSetupError(message.reason)
        elif message.kind == GROUP_REMOVED:
            for_good = True
            error = TaskPlacementGroupRemoved(f"the task cannot run: {message.reason}")
        elif message.kind == UNPLACEABLE:
            for_good = True
            error = TaskUnschedulableError(f"the task can never run: {message.reason}")
        else:
            error = ShoalError(
                f"no worker could be started: {message.reason}. What they printed is in "
                f"{log_dir(self._process.session_dir)}; once the cause is gone, submit the task again, which asks for "
                "workers anew"
            )
        self._refuse(message.req, queue, message.reason, error, for_good=for_good)

    def unsent(self, req: int, reason: str) -> None:
        """A request cannot be sent to the node."""
        queue = self._requests.pop(req, None)
        if queue is not None:
            error = UnserializableError(
                f"no worker can be asked for: the request {reason}. It holds the names of the function and of its resources, and "
                "its runtime environment: use text that can be encoded, and not more of it than a message may have"
            )
            self._refuse(req, queue, f"the request {reason}", error)

    def _refuse(
        self,
        req: int,
        queue: SchedulingClass,
        reason: str,
        error: ShoalError,
        *,
        for_good: bool = False,
    ) -> None:
        # The table withdraws them all. The refusals of the others are often in the same batch, before it is carried out.
        for other in queue.requests:
            self._requests.pop(other, None)
        tasks = self._tasks.refused(req, queue, for_good=for_good)
        if tasks:
            failed = Failed(dump_exception(error))
            for task in tasks:
                self._fail(task, failed)
        elif queue.refused:
            self._process.warn(
                f"no more workers can be started: {reason}. What is queued waits for those that are there"
            )
            if queue not in self._refused:
                self._refused[queue] = None
                self._process.reactor.call_later(_ASK_AGAIN_S, partial(self._ask_again, queue))

    def _ask_again(self, queue: SchedulingClass) -> None:
        with self._process.lock:
            self._refused.pop(queue, None)
            self._tasks.ask_again(queue)
            self._process.settle()

    def _on_wanted(self, message: LeaseWanted) -> None:
        lane = self._lanes_by_lease.get(message.lease_id)
        if lane is not None:
            self._tasks.wanted(lane)

    def _on_revoked(self, message: LeaseRevoked) -> None:
        lane = self._lanes_by_lease.get(message.lease_id)
        if lane is not None:
            lane.revoked = message.reason
            self._tasks.paused(lane, retiring=True)

    def _on_pending(self, message: LeasePending) -> None:
        if not message.req:
            # About an actor or a placement group, which the reason names.
            self._process.warn(message.reason)
            return
        queue = self._requests.get(message.req)
        if not message.reason:
            if queue is not None:
                self._tasks.delayed(queue)
            return
        # Once for all requests of the class, however the cluster changes while it waits.
        if queue is not None and queue not in self._explained:
            self._explained[queue] = None
            self._process.warn(f"{_tasks_of(queue)} waits: {message.reason}")

    def is_in_use(self) -> bool:
        """Whether any worker is leased or asked for: until a while after the last task."""
        return bool(self._lanes_by_lease or self._requests)

    def forget_worker(self, address: str) -> list[Lane]:
        """A process has ended. Returns the lanes that it was."""
        lanes = list(self._lanes.get(address, ()))
        for lane in lanes:
            self._forget(lane)
        return lanes


def _tasks_of(queue: SchedulingClass) -> str:
    """What waits in a queue, for the user."""
    name = next((task.function.name for task in queue.queue if task.function is not None), "")
    return f"the task {name}()" if name else "a task"
