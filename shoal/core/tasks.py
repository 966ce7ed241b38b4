"""The tasks that a process owns: which wait, which are queued, which run where, and what happens when a worker is lost.

::

    WAITING ──dependencies known──► QUEUED ──pushed on a lane──► PUSHED ──reply──► FINISHED
                                      ▲ │                          │
                                      │ └──run in place──► HERE ───┼──────────────► FINISHED
                                      └──handed back, worker lost──┘
    any of them ──cancel, no retries left──► FINISHED

A *lane* is a leased worker, seen from here. Tasks of one *scheduling class* (the shape of resources they need) share one
queue and its lanes (`core.lanes`), whatever function they run, so that a lease serves a whole program.

Rules
-----
1. A lane has room while the expected run time of what is in flight on it is below `window_us`. A function that has not run
   yet counts as a full window; so short tasks pipeline deeply, and unknown or long ones never queue behind each other.
2. A queue is spread over lanes: idle ones first, then each at most its share. With the strategy SPREAD, each task goes to the lane that was
   given fewest, of those with room.
3. When a worker is lost, the task at its head is charged a retry; the ones behind it had most likely not begun, and are
   only *suspects*: they run alone on a lane the next time, so that the one that kills workers is found by itself.
   A task that may not be retried always runs alone: nothing else may blur whether it had begun.
4. A lease is asked for while tasks are queued that no lane has room for, and returned when nothing was queued for
   `lease_idle_ms`, or as soon as it has drained when the node wants it back. While the node lets tasks of another class wait for
   a worker, leases with nothing to run are returned at once.
5. The table has the classes that anything is queued, asked for or leased for. Others are there as long as somebody knows them, a remote
   function or a task: a program may draw the amounts of its tasks from a distribution, and have a shape for each.

Hot path: called once per task, batches where there are any, records changed in place. All methods are called with the
runtime's lock held. `push` and `outbox` are the only ways out.
"""

from __future__ import annotations

from collections import deque
from heapq import heapify, heappop, heapreplace
from typing import Final
from weakref import WeakValueDictionary

from shoal.core.lanes import CancelLease, Effect, Lane, RequestLease, ReturnLease, SchedulingClass
from shoal.core.task_records import Function, State, Task
from shoal.errors import InternalError
from shoal.messages.node import Shape

__all__ = ["Function", "State", "Task", "TaskTable"]

_OVERHEAD_US: Final = 4
"""What a task costs a worker besides the user's code; keeps the window finite for functions of 0 µs."""

_WAITING, _QUEUED, _PUSHED, _HERE, _FINISHED = State


class TaskTable:
    """See the module's docstring."""

    __slots__ = (
        "_delayed",
        "_idle_s",
        "_known",
        "_max_requests",
        "_next_request",
        "_window_tasks",
        "_window_us",
        "classes",
        "outbox",
    )

    def __init__(
        self,
        window_us: int = 1000,
        window_tasks: int = 1024,
        max_requests: int = 16,
        lease_idle_ms: int = 50,
    ) -> None:
        self._window_us = window_us
        self._window_tasks = window_tasks
        self._max_requests = max_requests
        self._idle_s = lease_idle_ms / 1000
        self._next_request = 0
        # Shapes for which the node has no worker at present. (It knows shapes only; of places, several classes may share one.)
        self._delayed: dict[Shape, None] = {}
        self.classes: dict[tuple[Shape, str], SchedulingClass] = {}
        # All of them, also those that only others hold.
        self._known: WeakValueDictionary[tuple[Shape, str], SchedulingClass] = WeakValueDictionary()
        self.outbox: list[Effect] = []

    def scheduling_class(self, shape: Shape, place: str = "") -> SchedulingClass:
        """The class of a shape, and of a place to which tasks are to go if they can; made on first use."""
        queue = self._known.get((shape, place))
        if queue is None:
            queue = self._known[shape, place] = SchedulingClass(shape, place)
        return queue

    # --- in ------------------------------------------------------------------------------------------------------

    def submit(self, task: Task) -> None:
        """Queue a task, or let it wait for the dependencies that are not known yet."""
        if task.unready:
            return
        task.state = _QUEUED
        queue = task.queue
        queue.queue.append(task)
        if queue.room:
            self.dispatch(queue)

    def dependency_ready(self, task: Task) -> None:
        """One of the task's dependencies is known."""
        task.unready -= 1
        if not task.unready and task.state is _WAITING:
            self.submit(task)

    def dispatch(self, queue: SchedulingClass) -> None:
        """Push what the lanes have room for; ask for more lanes if something is left."""
        tasks = queue.queue
        while tasks and tasks[0].state is not _QUEUED:
            tasks.popleft()
        if not tasks:
            self._withdraw(queue)
            return
        lanes = queue.lanes
        if lanes:
            open_lanes = [lane for lane in lanes if lane.is_open()]
            if queue.even:
                self._deal(open_lanes, tasks)
                open_lanes = []
            for lane in open_lanes:
                if not lane.inflight:
                    self._push(lane, tasks, 1)
            if tasks and open_lanes:
                share = -(-len(tasks) // len(open_lanes))
                for lane in open_lanes:
                    self._push(lane, tasks, share)
        if tasks:
            queue.room = False
            self._request(queue)
        else:
            self._withdraw(queue)

    def _deal(self, lanes: list[Lane], tasks: deque[Task]) -> None:
        """Each task to the lane that was given fewest, of those with room."""
        heap = [(lane.given, number, lane) for number, lane in enumerate(lanes)]
        heapify(heap)
        while heap and tasks:
            given, number, lane = heap[0]
            inflight = len(lane.inflight)
            self._push(lane, tasks, 1)
            if len(lane.inflight) == inflight:
                heappop(heap)
            else:
                lane.given = given + 1
                heapreplace(heap, (lane.given, number, lane))

    def _push(self, lane: Lane, tasks: deque[Task], most: int) -> None:
        inflight = lane.inflight
        window = self._window_us
        push = lane.push
        while (
            most
            and tasks
            and (lane.load_us < window or not inflight)
            and len(inflight) < self._window_tasks
        ):
            task = tasks[0]
            if task.state is not _QUEUED:
                tasks.popleft()
                continue
            if task.suspect or not task.retries:
                cost = float(window)
                if inflight:
                    return
            else:
                average = task.function.average_us  # type: ignore[union-attr]  # tasks of a class have a function
                cost = average + _OVERHEAD_US if average >= 0 else float(window)
            tasks.popleft()
            task.state = _PUSHED
            task.lane = lane
            task.cost_us = cost
            lane.load_us += cost
            inflight[task.task_id] = task
            most -= 1
            push(lane, task)

    def _request(self, queue: SchedulingClass) -> None:
        if queue.refused and any(lane.is_open() for lane in queue.lanes):
            return
        # Whatever is queued was asked for once.
        self.classes[queue.shape, queue.place] = queue
        wanted = min(len(queue.queue), self._max_requests)
        while len(queue.requests) < wanted:
            req = self._next_request = self._next_request + 1
            queue.requests[req] = None
            head = queue.queue[0]
            self.outbox.append(
                RequestLease(
                    req, queue, len(queue.queue), head.function.name if head.function else ""
                )
            )

    def _withdraw(self, queue: SchedulingClass) -> None:
        """Nothing is queued. Classes that are spread keep their requests until a lane has idled: nodes whose grants take longer than the
        others take for all that is queued would never get anything."""
        if queue.requests:
            self._delayed.pop(queue.shape, None)
            if not (queue.even and queue.lanes):
                self._cancel_requests(queue)

    def _cancel_requests(self, queue: SchedulingClass) -> None:
        self._delayed.pop(queue.shape, None)
        self.outbox.extend(CancelLease(req) for req in queue.requests)
        queue.requests.clear()

    # --- leases --------------------------------------------------------------------------------------------------

    def granted(self, req: int, queue: SchedulingClass, lane: Lane, now: float) -> None:
        """The node leases a worker. (A grant that crossed a cancel does not come here: the runtime returns it at once.)"""
        queue.requests.pop(req, None)
        if not queue.requests:
            self._delayed.pop(queue.shape, None)
        queue.refused = False
        lane.idle_since = now
        lane.given = min((other.given for other in queue.lanes), default=0)
        queue.lanes.append(lane)
        queue.room = True
        self.dispatch(queue)
        self._settle(lane)

    def delayed(self, queue: SchedulingClass) -> None:
        """The node has no worker for this class now. What idles here for other classes may be all that it lacks."""
        if not (queue.queue and queue.requests):
            return
        self._delayed[queue.shape] = None
        for other in self.classes.values():
            for lane in list(other.lanes):
                self._settle(lane)

    def _others_wait(self, queue: SchedulingClass) -> bool:
        """Whether another class waits for a worker that the node does not have."""
        return any(
            other.requests and other.queue and other.shape in self._delayed and other is not queue
            for other in self.classes.values()
        )

    def refused(self, req: int, queue: SchedulingClass, *, for_good: bool = False) -> list[Task]:
        """No worker could be had. Returns the tasks that fail by that: all that are queued, unless open lanes serve them and it is
        not `for_good`.

        Those keep the queue going, however slowly, and `queue.refused` says that no more are asked for before `ask_again`.
        Lanes that are not open do not count: the task of a paused one may be waiting for what is queued here.
        """
        queue.requests.pop(req, None)
        self._cancel_requests(queue)
        if not for_good and any(lane.is_open() for lane in queue.lanes):
            queue.refused = True
            return []
        queue.refused = False
        failed: list[Task] = []
        for task in queue.queue:
            # One that ran in place and is retried stands in the queue twice.
            if task.state is _QUEUED:
                task.state = _FINISHED
                failed.append(task)
        queue.queue.clear()
        # The next one that comes is tried again.
        queue.room = True
        return failed

    def ask_again(self, queue: SchedulingClass) -> None:
        """Some time has passed since a refusal: workers may be had again."""
        if queue.refused:
            queue.refused = False
            self.dispatch(queue)

    def wanted(self, lane: Lane) -> None:
        """The node wants the lease back."""
        lane.wanted = True
        self._settle(lane)

    def paused(self, lane: Lane, retiring: bool) -> None:
        """The worker waits inside a task, or ends after this one."""
        lane.paused = True
        lane.retiring = lane.retiring or retiring
        if lane.queue.queue:
            lane.queue.room = True
            self.dispatch(lane.queue)
        self._settle(lane)

    def resumed(self, lane: Lane) -> None:
        """The worker takes tasks again."""
        lane.paused = False
        # It need not catch up with the others, for that would be all work for one.
        lane.given = max(other.given for other in (lane, *lane.queue.lanes))
        self.refill(lane, lane.idle_since)

    def expire(self, now: float) -> float | None:
        """Return leases that have been idle for long. Returns when to look again, if there is reason to."""
        soonest: float | None = None
        for key, queue in list(self.classes.items()):
            for lane in list(queue.lanes):
                if lane.inflight:
                    continue
                due = lane.idle_since + self._idle_s
                if due <= now:
                    self._return(lane)
                elif soonest is None or due < soonest:
                    soonest = due
            if not (queue.lanes or queue.queue or queue.requests):
                del self.classes[key]
        return soonest

    def _settle(self, lane: Lane) -> None:
        if not lane.inflight and (
            lane.wanted or lane.retiring or (self._delayed and self._others_wait(lane.queue))
        ):
            self._return(lane)

    def _return(self, lane: Lane) -> None:
        if lane.returned:
            return
        lane.returned = True
        lane.queue.lanes.remove(lane)
        lane.queue.room = True
        self.outbox.append(ReturnLease(lane))
        if lane.queue.queue:
            self.dispatch(lane.queue)
        elif lane.queue.requests:
            self._cancel_requests(lane.queue)

    # --- out -----------------------------------------------------------------------------------------------------

    def finished(self, task: Task, took_us: int) -> None:
        """A pushed task has replied. The caller refills the lane once it has gone through the batch."""
        lane = task.lane
        lane.inflight.pop(task.task_id, None)
        lane.load_us = lane.load_us - task.cost_us if lane.inflight else 0.0
        task.state = _FINISHED
        task.lane = None
        function = task.function
        if function is not None:
            average = function.average_us
            function.average_us = took_us if average < 0 else average + (took_us - average) * 0.125

    def refill(self, lane: Lane, now: float) -> None:
        """A lane has room again, or is idle."""
        queue = lane.queue
        if queue.queue:
            queue.room = True
            self.dispatch(queue)
        elif not queue.room:
            queue.room = True
            if queue.requests:
                self._cancel_requests(queue)
        if not lane.inflight:
            lane.idle_since = now
            self._settle(lane)

    def retry(self, task: Task) -> None:
        """Queue a task again, at the front; its state is whatever failed it."""
        task.attempt += 1
        task.lane = None
        task.state = _QUEUED
        task.queue.queue.appendleft(task)
        task.queue.room = True
        self.dispatch(task.queue)

    def handed_back(self, lane: Lane, task_ids: list[bytes]) -> list[Task]:
        """The worker will not run these; they go to the front of the queue in their order. Returns those that were cancelled
        meanwhile: the word of that will not find them at the worker."""
        queue = lane.queue
        cancelled: list[Task] = []
        for task_id in reversed(task_ids):
            task = lane.inflight.pop(task_id, None)
            if task is None:
                continue
            lane.load_us -= task.cost_us
            task.lane = None
            if task.cancelled:
                task.state = _FINISHED
                cancelled.append(task)
            else:
                task.state = _QUEUED
                queue.queue.appendleft(task)
        queue.room = True
        self.dispatch(queue)
        self._settle(lane)
        return cancelled

    def set_aside(self, lane: Lane) -> Task | None:
        """The worker was ended for what it had, not for what it did: take the task at its head, which most likely had begun, off the lane.
        It waits until `retry`. None if there is none, or it was cancelled, which `lost` sees to; that is called next."""
        task = next(iter(lane.inflight.values()), None)
        if task is None or task.cancelled or lane.revoked:
            return None
        del lane.inflight[task.task_id]
        lane.load_us -= task.cost_us
        task.lane = None
        task.state = _WAITING
        return task

    def lost(self, lane: Lane, *, charge: bool = True) -> list[Task]:
        """The worker is gone. Requeues what may be retried and returns the tasks that have failed. `charge`: the task at its head may
        be why."""
        if lane.returned and not lane.inflight:
            return []
        if not lane.returned:
            lane.returned = True
            lane.queue.lanes.remove(lane)
        failed: list[Task] = []
        again: list[Task] = []
        for number, task in enumerate(lane.inflight.values()):
            task.lane = None
            if task.cancelled:
                task.state = _FINISHED
                failed.append(task)
                continue
            if (charge and number == 0) or not task.retries:
                if not task.retries:
                    task.state = _FINISHED
                    failed.append(task)
                    continue
                if task.retries > 0:
                    task.retries -= 1
                task.attempt += 1
            task.suspect = True
            task.state = _QUEUED
            again.append(task)
        lane.inflight.clear()
        lane.load_us = 0.0
        queue = lane.queue
        queue.queue.extendleft(reversed(again))
        queue.room = True
        self.dispatch(queue)
        return failed

    def take(self, task: Task, shape: Shape) -> bool:
        """Take a queued task of this shape out of its queue, to run it in place; False if it has begun elsewhere."""
        if task.state is not _QUEUED or task.queue is None or task.queue.shape != shape:
            return False
        task.state = _HERE
        return True

    def cancel(self, task: Task) -> State:
        """Cancel a task. Returns the state it was in: up to QUEUED it will not run; PUSHED ones must be told."""
        state = task.state
        if state is not _FINISHED:
            task.cancelled = True
            task.retries = 0
            if state in {_WAITING, _QUEUED}:
                task.state = _FINISHED
                self._drop_finished(task.queue)
        return state

    def _drop_finished(self, queue: SchedulingClass) -> None:
        """If nothing but cancelled tasks is queued, no worker is wanted any more."""
        tasks = queue.queue
        while tasks and tasks[0].state is not _QUEUED:
            tasks.popleft()
        if not tasks and queue.requests:
            self._cancel_requests(queue)
            queue.room = True

    # --- invariants ----------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise `InternalError` if the table contradicts itself."""
        for key, queue in self._known.items():
            if (queue.queue or queue.lanes or queue.requests) and self.classes.get(
                key
            ) is not queue:
                raise InternalError(f"the class of {queue.shape} is in use, and not in the table")
        for key, queue in self.classes.items():
            if (queue.shape, queue.place) != key:
                raise InternalError(
                    f"the class of {queue.shape} is filed under another shape or place"
                )
            for lane in queue.lanes:
                if lane.returned:
                    raise InternalError(f"a returned lane is still in use: {lane!r}")
                if self._delayed and not lane.inflight and self._others_wait(queue):
                    raise InternalError(f"{lane!r} idles while another class waits")
                for task in lane.inflight.values():
                    if task.state is not _PUSHED or task.lane is not lane:
                        raise InternalError(f"{task!r} is in flight on {lane!r} but does not know")
                cost = sum(task.cost_us for task in lane.inflight.values())
                if abs(cost - lane.load_us) > 1e-3 * max(cost, 1.0):
                    raise InternalError(
                        f"the load of {lane!r} is not the sum of its tasks ({cost})"
                    )
            ready = {task.task_id: task for task in queue.queue if task.state is _QUEUED}
            for task in ready.values():
                if task.lane is not None or task.queue is not queue:
                    raise InternalError(f"{task!r} is queued, but belongs elsewhere")
            if ready and not queue.requests and not any(lane.inflight for lane in queue.lanes):
                raise InternalError(
                    f"{len(ready)} tasks are queued, but nothing will ever run them"
                )
