"""Submitting: from a call in the program to a task that is in its queue, or with its actor.

Owns the way in, and on it the tasks that finalizers have submitted in the middle of our work and that begin after it. A task is held
here only for that long; what becomes of it is up to `owner`. All of this is the hot path: see `bench/` before and after a change.

Threads: user threads call `submit`, `submit_call` and `pack_args`, without the lock, and pickle in them; `start` and what follows from it
is done with the lock held. A thread that does nothing else is made to look at the replies now and then (`after_submit`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import copy_context
from functools import partial
from time import time_ns
from typing import TYPE_CHECKING, Any, Final

from shoal.core.lanes import SchedulingClass
from shoal.core.references import Entry
from shoal.core.tasks import Function, State, Task
from shoal.errors import NodeDiedError
from shoal.ids import FIRST_RETURN, return_id
from shoal.messages.values import Failed
from shoal.runtime.locality import main_place
from shoal.runtime.owner import Owner
from shoal.runtime.reentry import do_later
from shoal.runtime.refs import ObjectRef
from shoal.serial.exceptions import dump_exception
from shoal.serial.values import serialize_args
from shoal.wire.addresses import LOCAL, place_of

if TYPE_CHECKING:
    from shoal.core.calls import ActorCalls
    from shoal.runtime.process import Process

_PUMP_EVERY: Final = 32
"""Submissions after which a thread that only submits looks at the replies."""


class Submissions:
    """See the module's docstring."""

    def __init__(self, process: Process, owner: Owner) -> None:
        self._process = process
        self._owner = owner
        self._tasks = owner.tasks
        self._objects = process.objects
        self._reactor = process.reactor
        self._in_cluster = place_of(process.address) != LOCAL
        # Tasks that finalizers have submitted in the middle of our work, and that begin after it.
        self._not_begun: dict[Task, None] = {}
        self._submitted = 0

    def not_begun(self) -> list[Task]:
        """Tasks that finalizers have submitted, and that are about to begin."""
        return list(self._not_begun)

    def withdraw(self, task: Task) -> bool:
        """See that a task does not begin (with the lock held); False if it has begun."""
        if task not in self._not_begun:
            return False
        del self._not_begun[task]
        return True

    def pack_args(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], target: Any
    ) -> tuple[Any, list[tuple[int | str, Entry]] | None, list[Entry] | None, Sequence[Any]]:
        """Arguments ready for the wire: the packed rest, top-level references by key, every entry they count on, and the handles
        that were found inside.

        The entries are not held yet: the caller keeps `args`, `kwargs` and those handles until the task is made. (Handles inside
        may have been made by the `__reduce__` of some argument, or be taken out of it by another thread: nobody else need have them.)
        """
        deps: list[tuple[int | str, Entry]] | None = None
        for index, value in enumerate(args):
            if isinstance(value, ObjectRef):
                if deps is None:
                    deps = []
                deps.append((index, value._entry))
        if deps:
            positions = {key for key, _ in deps}
            args = tuple(None if i in positions else value for i, value in enumerate(args))
        if kwargs:
            named: list[tuple[int | str, Entry]] = [
                (key, value._entry) for key, value in kwargs.items() if isinstance(value, ObjectRef)
            ]
            if named:
                kwargs = {**kwargs, **dict.fromkeys(str(key) for key, _ in named)}
                deps = [*(deps or ()), *named]
        serialized = serialize_args(args, kwargs, target=target)
        values = self._process.values
        entries = values.entries_in(serialized) if serialized.refs else None
        packed = values.pack(serialized, entries or [])
        if deps is not None:
            held = [entry for _, entry in deps]
            return packed, deps, held + entries if entries else held, serialized.refs
        return packed, None, entries, serialized.refs

    def submit(
        self,
        function: Function,
        queue: SchedulingClass,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        retries: int,
    ) -> ObjectRef[Any]:
        """Submit a task with one result and no other options: the common case."""
        process = self._process
        task_id = process.ids.task_id()
        if args or kwargs:
            packed, deps, holds, _kept = self.pack_args(args, kwargs, function.target)
        else:
            packed, deps, holds = b"", None, None
        entry = Entry(task_id[:13] + FIRST_RETURN, "", 1)
        task = Task(task_id, function, queue, packed, (entry,), retries)
        entry.task = task
        if process.lock._is_owned():  # `is_reentered`, without the call
            self._objects.entries[entry.object_id] = entry
            self.start_later(task, deps, holds)
            return ObjectRef._of(entry, process.drop)
        with process.lock:
            self._objects.entries[entry.object_id] = entry
            self.start(task, deps, holds)
        ref: ObjectRef[Any] = ObjectRef.__new__(ObjectRef)
        ref._entry = entry
        ref._drop = process.drop
        self.after_submit()
        return ref

    def submit_call(
        self,
        link: ActorCalls,
        method: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        retries: int,
        handle: Entry | None,
    ) -> ObjectRef[Any]:
        """Call an actor's method with one result and no other options: the common case.

        `handle` is the entry that the actor's handles count on: the call keeps the actor alive until it has returned.
        """
        process = self._process
        task_id = process.ids.task_id()
        if args or kwargs:
            packed, deps, holds, _kept = self.pack_args(args, kwargs, method)
            if handle is not None:
                holds = [handle] if holds is None else [handle, *holds]
        else:
            packed, deps, holds = b"", None, None if handle is None else [handle]
        entry = Entry(task_id[:13] + FIRST_RETURN, "", 1)
        task = Task(task_id, None, link, packed, (entry,), retries)
        task.method = method
        entry.task = task
        if process.lock._is_owned():  # `is_reentered`, without the call
            self._objects.entries[entry.object_id] = entry
            self.start_later(task, deps, holds)
            return ObjectRef._of(entry, process.drop)
        with process.lock:
            self._objects.entries[entry.object_id] = entry
            self.start(task, deps, holds)
        ref: ObjectRef[Any] = ObjectRef.__new__(ObjectRef)
        ref._entry = entry
        ref._drop = process.drop
        self.after_submit()
        return ref

    def start(self, task: Task, deps: Any, holds: list[Entry] | None) -> None:
        """Hand a task to its queue (or its actor), with the lock held."""
        if holds is not None:
            task.holds = holds
            for entry in holds:
                entry.holds += 1
        if self._process.node.lost:
            self._owner.fail(task, Failed(dump_exception(NodeDiedError(self._process.node.lost))))
            return
        children = self._process.children()
        if children is not None:
            task.siblings = children
            children[task.task_id] = task
        if deps is not None:
            task.deps = deps
            process = self._process
            for _, entry in deps:
                if entry.value is None and entry.task is None:
                    process.borrowing.fetch(entry)
                if entry.value is None:
                    task.unready += 1
                    process.when_known(entry, partial(self._on_dependency, task))
                elif type(entry.value) is Failed:
                    self._owner.fail(task, entry.value)
                    return
            if task.unready:
                task.waits_since_ns = time_ns()
        if task.function is None:
            if not task.queue.submit(task):
                self._process.actors.fail_dead(task.queue, task)
            elif task.queue.connection is None:
                self._process.actors.keep(task.queue)
            return
        if deps is not None and self._in_cluster and not task.unready:
            self._go_to_the_bytes(task)
        self._tasks.submit(task)
        if self._tasks.outbox:
            self._process.settle()
            self._reactor.flush_locked()

    def start_later(self, task: Task, deps: Any, holds: list[Entry] | None) -> None:
        """The same, when this thread is in the middle of the runtime's work (see `runtime.reentry`)."""
        process = self._process
        # The handles may be gone by then.
        for entry in holds or ():
            entry.holds += 1
        self._not_begun[task] = None
        context = copy_context()

        def start() -> None:
            with process.lock:
                if task in self._not_begun:
                    del self._not_begun[task]
                    # As a child of the task that submitted it, whoever leads now.
                    context.run(self.start, task, deps, holds)
                for entry in holds or ():
                    self._objects.unhold(entry)
                process.settle()
                self._reactor.flush_locked()

        do_later(process, f"{task.name or task.method or 'a task'}.remote()", start)

    def after_submit(self) -> None:
        """Keep things moving while a thread does nothing but submit. May raise `KeyboardInterrupt`: the references that the
        caller returns must exist by now, or what they count would never be freed."""
        self._submitted += 1
        if self._submitted % _PUMP_EVERY == 0:
            self._reactor.pump()
            if self._reactor.interrupted is not None:
                self._reactor.interrupted()
        elif self._reactor.dirty:
            self._reactor.nudge()

    def make_returns(self, task_id: bytes, count: int) -> list[Entry]:
        """Entries for `count` results, with a handle each (with the lock held)."""
        own = self._objects.own
        return [own(return_id(task_id, index)) for index in range(count)]

    def _on_dependency(self, task: Task, entry: Entry) -> None:
        if task.state is State.FINISHED:
            return
        table = task.queue if task.function is None else self._tasks
        if type(entry.value) is Failed:
            table.cancel(task)
            self._owner.fail(task, entry.value)
            return
        if self._in_cluster and task.unready == 1 and task.function is not None:
            self._go_to_the_bytes(task)
        table.dependency_ready(task)

    def _go_to_the_bytes(self, task: Task) -> None:
        """All arguments of a task are known: if they are large, it is queued by where they are."""
        place = main_place(task, self._process.config.locality_bytes)
        if place != task.queue.place:
            task.queue = self._tasks.scheduling_class(task.queue.shape, place)
