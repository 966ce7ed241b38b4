"""The calls that a process makes to one actor: their order, and what happens to them when the actor restarts or dies.

::

    queue (in order) ──head is ready, actor reachable──► in flight ──reply──► finished
        ▲                                                    │
        └──────────── the actor restarts, retries left ──────┘

Rules
-----
1. Calls leave in the order in which they were made. A call whose arguments are not known yet holds up those behind it, unless
   the actor takes calls out of order (threads, asyncio).
2. A call may be sent as soon as the actor's process exists: it waits there until `__init__` has returned.
3. When an incarnation is lost, calls in flight go back to the front of the queue if they have retries left (`max_task_retries`),
   in their order; the others fail: they may or may not have run.
4. News about an incarnation older than the current one are dropped.

All methods are called with the runtime's lock held. Tasks that fail are returned, never completed here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from shoal.core.tasks import State, Task
from shoal.errors import InternalError


class ActorCalls:
    """See the module's docstring. `push(link, task)` puts a call on the connection."""

    __slots__ = (
        "__weakref__",
        "actor_id",
        "address",
        "cause",
        "class_name",
        "connection",
        "ended",
        "error",
        "incarnation",
        "inflight",
        "kind",
        "out_of_order",
        "pid",
        "push",
        "queue",
        "state",
        "watched",
    )

    def __init__(
        self,
        actor_id: bytes,
        push: Callable[[ActorCalls, Task], None],
        out_of_order: bool = False,
        class_name: str = "",
    ) -> None:
        self.actor_id = actor_id
        self.class_name = class_name
        self.push = push
        self.out_of_order = out_of_order
        self.queue: deque[Task] = deque()
        self.inflight: dict[bytes, Task] = {}
        # Cancelled calls that are still in the queue.
        self.ended = 0
        self.state = "PENDING"
        self.incarnation = 0
        self.address = ""
        self.pid = 0
        self.cause = ""
        self.error = b""
        # Why it is dead, as in `ActorChange`.
        self.kind = ""
        self.connection: Any = None
        self.watched = False

    @property
    def pending(self) -> int:
        """Calls that have no result yet."""
        return len(self.queue) - self.ended + len(self.inflight)

    def submit(self, task: Task) -> bool:
        """Take a call; False if the actor is dead, and the call with it."""
        if self.state == "DEAD":
            task.state = State.FINISHED
            return False
        if (
            not task.unready
            and self.connection is not None
            and (not self.queue or self.out_of_order)
        ):
            task.state = State.PUSHED
            task.lane = self
            self.inflight[task.task_id] = task
            self.push(self, task)
            return True
        self.queue.append(task)
        if task.unready:
            task.state = State.WAITING
        else:
            task.state = State.QUEUED
            self.advance()
        return True

    def dependency_ready(self, task: Task) -> None:
        """One of a call's dependencies is known."""
        task.unready -= 1
        if not task.unready and task.state is State.WAITING:
            task.state = State.QUEUED
            if self.out_of_order and self.connection is not None:
                # It need not look at the others that wait, which may be many.
                self.queue.remove(task)
                self._send(task)
            else:
                self.advance()

    def _send(self, task: Task) -> None:
        task.state = State.PUSHED
        task.lane = self
        self.inflight[task.task_id] = task
        self.push(self, task)

    def advance(self) -> None:
        """Send what may be sent."""
        if self.connection is None:
            return
        queue = self.queue
        kept: list[Task] = []
        while queue:
            task = queue.popleft()
            if task.state is State.FINISHED:
                self.ended -= 1
                continue
            if task.state is State.WAITING:
                kept.append(task)
                if not self.out_of_order:
                    break
                continue
            self._send(task)
        queue.extendleft(reversed(kept))

    def connected(self, connection: Any) -> None:
        """There is a connection to the current incarnation."""
        self.connection = connection
        self.advance()

    def finished(self, task: Task, _took_us: int) -> None:
        """A call has replied."""
        self.inflight.pop(task.task_id, None)
        task.state = State.FINISHED
        task.lane = None

    def refill(self, _lane: Any, _now: float) -> None:
        """Nothing to do: calls are sent as they come."""

    def lost(self) -> list[Task]:
        """The current incarnation is gone. Returns the calls that have failed."""
        self.connection = None
        failed: list[Task] = []
        again: list[Task] = []
        for task in self.inflight.values():
            task.lane = None
            if task.retries and not task.cancelled:
                if task.retries > 0:
                    task.retries -= 1
                task.attempt += 1
                task.state = State.QUEUED
                again.append(task)
            else:
                task.state = State.FINISHED
                failed.append(task)
        self.inflight.clear()
        self.queue.extendleft(reversed(again))
        return failed

    def dead(self, cause: str, error: bytes) -> list[Task]:
        """The actor is dead. Returns every call that waited for it."""
        self.state = "DEAD"
        self.cause = cause
        self.error = error
        self.connection = None
        failed = [
            *self.inflight.values(),
            *(task for task in self.queue if task.state is not State.FINISHED),
        ]
        self.inflight.clear()
        self.queue.clear()
        self.ended = 0
        for task in failed:
            task.state = State.FINISHED
            task.lane = None
        return failed

    def cancel(self, task: Task) -> State:
        """Cancel a call. Returns the state it was in: one that is in flight must be told."""
        state = task.state
        if state is not State.FINISHED:
            task.cancelled = True
            task.retries = 0
            if state is not State.PUSHED:
                task.state = State.FINISHED
                self.ended += 1
                self.advance()
        return state

    def retry(self, task: Task) -> None:
        """Send a call again whose method raised an exception that is to be retried."""
        task.attempt += 1
        task.state = State.QUEUED
        self.queue.append(task)
        self.advance()

    def check(self) -> None:
        """Raise `InternalError` if the record contradicts itself."""
        for task in self.inflight.values():
            if task.state is not State.PUSHED or task.lane is not self:
                raise InternalError(
                    f"{task!r} is in flight to actor {self.actor_id.hex()} but does not know"
                )
        ended = sum(task.state is State.FINISHED for task in self.queue)
        if ended != self.ended:
            raise InternalError(
                f"{ended} calls in the queue have ended, but {self.ended} are known to"
            )
        if self.state == "DEAD" and self.pending:
            raise InternalError(f"a dead actor has {self.pending} pending calls")
