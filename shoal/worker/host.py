"""An actor in its process: `__init__`, then its calls, one after the other, in threads, or on an asyncio loop.

| kind | which thread runs a method | order |
|---|---|---|
| plain | the main thread | as the calls of each caller come |
| threads (`max_concurrency` > 1, or concurrency groups) | the threads of the method's group | begins in that order |
| async (any `async def` method) | the main thread, which runs a loop that also serves the sockets | begins in that order |

The handlers (`takes`, `cancel`, `on_exit`) are called by the reactor's leader with the runtime's lock held. Until `__init__` has
returned, calls stay in the executor's inbox.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from shoal.messages.node import ActorExiting, ActorSpec, ActorStarted, StartActor
from shoal.messages.peer import Call, CallFull, Failure
from shoal.messages.values import Inline
from shoal.runtime.context import TaskContext, current
from shoal.runtime.refs import ObjectRef
from shoal.serial.exceptions import dump_exception
from shoal.worker.actor_loop import ActorLoop, Work
from shoal.worker.functions import set_resources
from shoal.worker.invocation import (
    ActorExit,
    Job,
    Outcome,
    arguments,
    failure,
    perform,
    task_error,
)

if TYPE_CHECKING:
    from shoal.wire.connection import Connection
    from shoal.worker.executor import Executor

_STOP: Final = None

_MOST_CANCELLED: Final = 10_000
"""Calls that are remembered to be cancelled before they have begun. Of some it is heard just when they have been answered."""


class ActorHost:
    """See the module's docstring."""

    def __init__(self, executor: Executor, message: StartActor) -> None:
        self.executor = executor
        self.process = executor.process
        self.spec: ActorSpec = message.spec
        self.incarnation = message.incarnation
        self._gpu_ids = message.gpu_ids
        self.instance: Any = None
        # The actor ended by its own wish: what still waits will not run.
        self.ended = False
        self._methods: dict[str, Callable[..., Any]] = {}
        # Cancelled, and neither running nor, most likely, answered; the oldest are forgotten.
        self._cancelled: dict[bytes, None] = {}
        self.contexts: dict[bytes, TaskContext] = {}
        self._serving: _Threads | ActorLoop | None = None
        executor.host = self
        executor.process.host = self

    # --- life ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Make the actor and serve it until it ends."""
        self.executor.source.name = self.spec.class_name
        if not self._start():
            return
        if self.spec.is_async:
            loop = ActorLoop(self)
            asyncio.run(loop.serve())
        elif self._limit() > 1 or self.spec.concurrency_groups:
            self._run_threads()
        else:
            self._run_plain()

    def _start(self) -> bool:
        """Call `__init__` and report; False if it raised."""
        spec = self.spec
        process = self.process
        set_resources(process, spec.shape, self._gpu_ids)
        args: Any = spec.args
        if type(args) is Inline and not args.buffers and not args.refs:
            args = args.data
        job = Job(
            spec.actor_id,
            f"{spec.class_name}.__init__",
            args,
            spec.deps,
            1,
            self.incarnation,
            None,
            spec.actor_id,
        )
        context = self._context(job)
        token = current.set(context)
        try:
            cls = self.executor.functions.load_code(spec.code_id, spec.code, spec.class_name)
            positional, named = arguments(process, job)
            positional = self._await_arguments(positional, named)
            self.instance = cls(*positional, **named)
            del positional, named
        except BaseException as error:  # noqa: BLE001 - user code; whatever it raises is reported
            failed = task_error(process, job, error)
            cause = f"its __init__ raised {type(error).__name__}: {error}"
            if isinstance(error, ActorExit):
                cause = "exit_actor() was called in its __init__"
            process.node.send_now(
                ActorStarted(spec.actor_id, self.incarnation, dump_exception(failed), cause)
            )
            return False
        finally:
            current.reset(token)
        self._register_kept()
        process.node.send_now(ActorStarted(spec.actor_id, self.incarnation))
        return True

    def _await_arguments(
        self, positional: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[Any, ...]:
        """Fetch the arguments that were not known when the actor was created; its CPU is lent meanwhile."""
        if not self.spec.awaited:
            return positional
        process = self.process
        filled = list(positional)
        for key, ref in self.spec.awaited:
            with process.lock:
                entry = process.objects.borrow((ref.object_id, ref.owner))
                entry.local += 1
            value = process.waiting.get_one(ObjectRef._of(entry, process.drop), None)
            if isinstance(key, int):
                filled[key] = value
            else:
                named[key] = value
        return tuple(filled)

    def _register_kept(self) -> None:
        """References that `__init__` kept are borrowed from now on."""
        process = self.process
        process.settle_now()
        with process.lock:
            process.objects.register_before((), "")
            process.borrowing.carry_out()

    def _limit(self) -> int:
        spec = self.spec
        if spec.max_concurrency:
            return spec.max_concurrency
        return self.process.config.async_concurrency if spec.is_async else 1

    def groups(self) -> dict[str, int]:
        """Concurrency groups and their limits; "" is the default one."""
        return {"": self._limit(), **self.spec.concurrency_groups}

    def group_of(self, message: Call | CallFull) -> str:
        """The group in which a call runs."""
        if type(message) is CallFull and message.group:
            return message.group
        return self.spec.method_groups.get(message.method, "")

    def end(self, cause: str) -> None:
        """The actor ends by its own wish: tell the node, and take no more calls."""
        self.process.node.send_now(ActorExiting(self.spec.actor_id, cause))
        self.ended = True
        self.executor.exiting = cause
        self.executor.inbox.clear()

    def on_exit(self) -> None:
        """The node wants the actor to end when its calls have run."""
        if self._serving is not None:
            self._serving.stop_soon()

    # --- calls ---------------------------------------------------------------------------------------------------

    def job_of(self, message: Call | CallFull) -> Job:
        """What a call message asks for."""
        spec = self.spec
        if isinstance(message, Call):
            return Job(
                message.task_id,
                message.method,
                message.args,
                [],
                1,
                0,
                spec.class_name,
                spec.actor_id,
            )
        args: Any = message.args
        if type(args) is Inline and not args.buffers and not args.refs:
            args = args.data
        return Job(
            message.task_id,
            message.method,
            args,
            message.deps,
            message.returns,
            message.attempt,
            spec.class_name,
            spec.actor_id,
        )

    def method(self, name: str) -> Callable[..., Any]:
        """A method of the actor.

        Raises:
            AttributeError: it has none of that name.
        """
        method = self._methods.get(name)
        if method is None:
            if name == "__ray_ready__":
                method = _ready
            elif name == "__ray_call__":
                method = self._call_function
            elif name == "__ray_terminate__":
                method = _terminate
            else:
                method = getattr(self.instance, name)
            self._methods[name] = method
        return method

    def _call_function(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return function(self.instance, *args, **kwargs)

    def _context(self, job: Job, name: str = "") -> TaskContext:
        context = TaskContext(
            "actor",
            job.task_id,
            self.process.ids,
            name or f"{self.spec.class_name}.{job.name}",
            job.name,
            self.spec.actor_id,
            job.attempt,
        )
        context.children = {}
        return context

    def begin(self, connection: Connection, job: Job, name: str) -> TaskContext | None:
        """A call begins; None if it was cancelled while it waited (that has been answered)."""
        if job.task_id in self._cancelled:
            del self._cancelled[job.task_id]
            context = self._context(job)
            context.cancelled = True
            answer = failure(self.process, context, job, KeyboardInterrupt(), 0)
            self.executor.reply(connection, Outcome(answer, [], 0, 0))
            return None
        context = self._context(job, name)
        self.contexts[job.task_id] = context
        return context

    def finish(self, connection: Connection, job: Job, outcome: Outcome) -> None:
        """A call has ended: answer it."""
        self.contexts.pop(job.task_id, None)
        self.executor.runs.record(job, "actor", outcome)
        self.executor.reply(connection, outcome)

    def execute(self, connection: Connection, message: Call | CallFull) -> None:
        """Run a call in this thread.

        Raises:
            ActorExit: the actor ends with it.
        """
        job = self.job_of(message)
        name = message.name if type(message) is CallFull else ""
        context = self.begin(connection, job, name)
        if context is None:
            return
        try:
            method = self.method(job.name)
        except Exception as error:  # noqa: BLE001 - a property of the user's class may raise anything
            answer = failure(self.process, context, job, error, 0)
            outcome = Outcome(answer, [], 0, 0)
        else:
            try:
                if job.returns < 0:
                    assert type(message) is CallFull
                    outcome = self.executor.streams.run(
                        connection, context, job, method, message.window
                    )
                else:
                    outcome = perform(self.process, context, job, method)
                if (
                    type(outcome.message) is Failure
                    and "builtins.SystemExit" in outcome.message.cause_types
                ):
                    raise ActorExit
            except ActorExit:
                self.contexts.pop(job.task_id, None)
                raise
        self.finish(connection, job, outcome)

    def has_begun(self, task_id: bytes) -> bool:
        """Whether a call runs."""
        return task_id in self.contexts

    def takes(self, connection: Connection, message: Call | CallFull) -> bool:
        """Take a call, if it need not go through the inbox."""
        serving = self._serving
        if serving is None:
            return False
        serving.take((connection, message))
        return True

    def cancel(self, task_id: bytes, recursive: bool) -> None:
        """Cancel a call that runs or waits for a thread; a plain or threaded method only sees a flag."""
        context = self.contexts.get(task_id)
        if context is not None:
            context.cancelled = True
            if recursive:
                for child in list((context.children or {}).values()):
                    self.process.owner.cancel(child, force=False, recursive=True)
        elif self._serving is not None:
            self._cancelled[task_id] = None
            if len(self._cancelled) > _MOST_CANCELLED:
                del self._cancelled[next(iter(self._cancelled))]
        if self._serving is not None:
            self._serving.cancel(task_id)

    # --- one at a time -------------------------------------------------------------------------------------------

    def _run_plain(self) -> None:
        executor = self.executor
        inbox = executor.inbox
        while True:
            try:
                connection, message = inbox.popleft()
            except IndexError:
                if executor.exiting:
                    return
                executor.wait_for_work()
                continue
            if connection is None:
                continue
            try:
                self.execute(connection, message)
            except ActorExit:
                self.end("exit_actor() was called in it")
                return
            executor.flush_if_due()

    # --- threads -------------------------------------------------------------------------------------------------

    def _run_threads(self) -> None:
        executor = self.executor
        serving = _Threads(self, self.groups())
        self._switch_to(serving)
        while not executor.exiting:
            executor.wait_for_work()
        serving.stop()

    def _switch_to(self, serving: _Threads | ActorLoop) -> None:
        """From now on calls go to `serving`; those that came before go first."""
        with self.process.lock:
            inbox = self.executor.inbox
            while inbox:
                connection, message = inbox.popleft()
                if connection is not None:
                    serving.take((connection, message))
            self._serving = serving

    def serve_with(self, serving: ActorLoop) -> None:
        """The loop is running and takes calls."""
        self._switch_to(serving)


def _ready() -> bool:
    return True


def _terminate() -> None:
    raise ActorExit


class _Threads:
    """The threads of an actor, by concurrency group. Threads are started as they are needed."""

    def __init__(self, host: ActorHost, groups: dict[str, int]) -> None:
        self._host = host
        self._groups = {name: _ThreadGroup(host, name, limit) for name, limit in groups.items()}

    def take(self, work: Work) -> None:
        name = self._host.group_of(work[1])
        group = self._groups.get(name)
        (self._groups[""] if group is None else group).take(work)

    def cancel(self, task_id: bytes) -> None:
        """Threads cannot be interrupted: the method sees `is_canceled()`."""

    def stop_soon(self) -> None:
        """The main thread sees `exiting` and stops the groups."""

    def stop(self) -> None:
        """Let the threads finish what was taken, and end them."""
        for group in self._groups.values():
            group.stop()


class _ThreadGroup:
    """Up to `limit` threads and their queue."""

    def __init__(self, host: ActorHost, name: str, limit: int) -> None:
        self._host = host
        self._name = name or "default"
        self._limit = limit
        self._queue: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        # Threads without work less work without a thread. Counted here and not as threads come to the queue: one that has
        # been woken but does not run yet would count as idle, and the next call of the batch would wait behind it.
        self._spare = 0
        self._lock = threading.Lock()

    def take(self, work: Work) -> None:
        self._queue.put(work)
        with self._lock:
            self._spare -= 1
            if self._spare < 0 and len(self._threads) < self._limit:
                self._spare += 1
                thread = threading.Thread(
                    target=self._run, name=f"{self._name}-{len(self._threads)}", daemon=True
                )
                self._threads.append(thread)
                thread.start()

    def _run(self) -> None:
        host = self._host
        executor = host.executor
        while True:
            work = self._queue.get()
            if work is _STOP:
                return
            if host.ended:
                continue
            connection, message = work
            try:
                host.execute(connection, message)
            except ActorExit:
                host.end("exit_actor() was called in it")
                executor.stir()
                return
            with self._lock:
                self._spare += 1
            # The main thread waits at the sockets and would not see it go.
            host.process.reactor.flush()

    def stop(self) -> None:
        for _ in self._threads:
            self._queue.put(_STOP)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
