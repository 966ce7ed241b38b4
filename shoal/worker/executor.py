"""Takes work off the inbox, runs it, replies.

Threads: the worker's main thread runs `run` and, in it, all normal tasks. The handlers are called by the reactor's leader with the
runtime's lock held; that is the main thread itself while it waits, and the service thread while user code runs. So
`inbox` is filled by one of them and emptied by the main thread.

What a worker does before a task of its waits, and behind one that runs for long, is in `blocking`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Final

from shoal.errors import TaskCancelledError
from shoal.messages.node import (
    Exit,
    Retire,
    StartActor,
)
from shoal.messages.peer import (
    Bind,
    Call,
    CallFull,
    Cancel,
    Define,
    Done,
    Failure,
    HandBack,
    Pause,
    Push,
    PushFull,
    Results,
    StreamConsumed,
)
from shoal.messages.values import Inline
from shoal.runtime.context import TaskContext
from shoal.serial.exceptions import dump_exception
from shoal.wire.reactor import Waiter
from shoal.worker.blocking import WorkerBlocking
from shoal.worker.functions import Definition, Functions
from shoal.worker.host import ActorHost
from shoal.worker.invocation import Job, Outcome, failure, perform
from shoal.worker.retirement import Retirement
from shoal.worker.runs import Runs
from shoal.worker.streaming import Streams

if TYPE_CHECKING:
    from shoal.messages.node import Job as DriverJob
    from shoal.runtime.process import Process
    from shoal.wire.connection import Connection
    from shoal.worker.output import Source

_MAX_EARLY: Final = 1_000

_IDLES_S: Final = 1.0
"""After so long without work, a worker has nothing to do, and looks for garbage once."""


class Executor:
    """See the module's docstring. `interrupt` interrupts the main thread."""

    def __init__(
        self, process: Process, source: Source, job: DriverJob, interrupt: Callable[[], None]
    ) -> None:
        config = process.config
        self._interrupt = interrupt
        self.process = process
        self.source = source
        self.inbox: deque[tuple[Connection | None, Any]] = deque()
        self.functions = Functions(process)
        self.streams = Streams(self)
        self.host: ActorHost | None = None
        self.exiting = ""
        self.runs = Runs(process, config.task_events, self._what_runs)
        self._idle = Waiter()
        self._main = threading.get_ident()
        self._flush_ns = config.flush_us * 1000
        self._flush_bytes = config.flush_bytes
        self._pending_bytes = 0
        self._last_flush = 0
        self.running: dict[bytes, TaskContext] = {}
        # Cancelled, and neither in the inbox nor running: just taken out, just answered, or unknown.
        self._early: dict[bytes, None] = {}
        self.busy_since = 0
        self._env = job.env
        self.blocking = WorkerBlocking(self)
        process.handlers.update(
            {
                Define: self._on_define,
                Bind: self._on_bind,
                Push: self._on_work,
                PushFull: self._on_work,
                Call: self._on_call,
                CallFull: self._on_call,
                Cancel: self._on_cancel,
                StreamConsumed: self.streams.on_consumed,
            }
        )
        process.node_handlers.update(
            {
                StartActor: self._on_start_actor,
                Exit: self._on_exit,
                Retire: Retirement(self).on_retire,
            }
        )
        process.waiting.blocking = self.blocking
        process.reactor.watch = self.blocking.watch

    # --- handlers (with the lock held) ---------------------------------------------------------------------------

    def _on_define(self, connection: Connection, message: Define) -> None:
        functions = connection.peer.functions
        functions[message.index] = Definition(
            message, functions.values() if message.max_calls else ()
        )

    def _on_bind(self, connection: Connection, message: Bind) -> None:
        self.blocking.bind(connection, message.shape)
        self.inbox.append((None, message))
        self._idle.finish()

    def _on_work(self, connection: Connection, message: Push | PushFull) -> None:
        blocking = self.blocking
        if blocking.takes_none:
            connection.send(HandBack([message.task_id]))
            return
        self.inbox.append((connection, message))
        if not self._idle.done:
            self._idle.finish()
        elif not blocking.watch_due and self.process.reactor.service_leads:
            # The main thread is in user code and nobody looks in regularly: see to it in time.
            blocking.watch_later()

    def _on_call(self, connection: Connection, message: Call | CallFull) -> None:
        host = self.host
        if host is not None and host.takes(connection, message):
            return
        self.inbox.append((connection, message))
        if not self._idle.done:
            self._idle.finish()

    def _on_start_actor(self, message: StartActor) -> None:
        self.inbox.appendleft((None, message))
        self._idle.finish()

    def _on_exit(self, message: Exit) -> None:
        if message.now:
            self.inbox.clear()
        self.leave(message.reason or "it was asked to end")

    def leave(self, reason: str) -> None:
        """End in good order, when what is queued has run (with the lock held)."""
        self.exiting = reason
        if self.host is not None:
            self.host.on_exit()
        self._idle.finish()

    def is_busy(self) -> bool:
        """Whether anything runs or waits to be run (with the lock held)."""
        return bool(self.inbox or self.running)

    def abandon(self) -> None:
        """Forget what waits to be run and interrupt what runs, once: nobody wants the results (with the lock held)."""
        self.inbox.clear()
        begun = [context for context in self.running.values() if not context.cancelled]
        for context in begun:
            context.cancelled = True
            self.cancel_children(context)
        if begun:
            self._interrupt()

    def _what_runs(self) -> tuple[list[TaskContext], int, bytes]:
        running = list(self.running.values())
        since = self.busy_since if len(running) == 1 else 0
        if self.host is None:
            return running, since, b""
        return [*running, *self.host.contexts.values()], since, self.host.spec.actor_id

    def _on_cancel(self, connection: Connection, message: Cancel) -> None:
        for position, (origin, work) in enumerate(self.inbox):
            if getattr(work, "task_id", None) == message.task_id and origin is connection:
                del self.inbox[position]
                error = TaskCancelledError(
                    "the task was cancelled before it began", message.task_id.hex()
                )
                connection.send(
                    Failure(message.task_id, dump_exception(error), 0, application=False)
                )
                return
        if self.host is not None:
            self.host.cancel(message.task_id, message.recursive)
            return
        # In this order, as the main thread looks after it has noted what it runs: one of the two sees the other.
        early = self._early
        early[message.task_id] = None
        if len(early) > _MAX_EARLY:
            del early[next(iter(early))]
        context = self.running.get(message.task_id)
        if context is None:
            return
        early.pop(message.task_id, None)
        context.cancelled = True
        if message.recursive:
            self.cancel_children(context)
        self._interrupt()

    def _check_early(self, context: TaskContext) -> None:
        """A task is about to begin: not if it was cancelled after it had left the inbox."""
        if context.task_id in self._early:
            context.cancelled = True
            raise KeyboardInterrupt

    def cancel_children(self, context: TaskContext) -> None:
        """Cancel what a task submitted; some of it may run in place, in this very thread. Once more at the task's end, for
        what it submitted until the interrupt found it: each is told once, or it would be interrupted while it cleans up."""
        context.recursive = True
        children = context.children or {}
        told = list(children.values())
        children.clear()
        for child in told:
            self.process.owner.cancel(child, force=False, recursive=True)
            inner = self.running.get(child.task_id)
            if inner is not None:
                inner.cancelled = True
                self.cancel_children(inner)

    def interrupt_wanted(self) -> bool:
        """Whether a signal to the main thread means that what it runs is cancelled."""
        return any(context.cancelled for context in self.running.values())

    # --- the main loop -------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Work until told to end."""
        inbox = self.inbox
        while True:
            try:
                connection, message = inbox.popleft()
            except IndexError:
                if self.exiting:
                    return
                self.wait_for_work()
                continue
            kind = type(message)
            if kind is Push:
                self._run_push(connection, message)
            elif kind is PushFull:
                self._run_push_full(connection, message)
            elif kind is Bind:
                self.functions.bind(message)
            elif kind is StartActor:
                self._become_actor(message)
                return
            # Calls before the actor exists cannot be: the node announces the address after StartActor.

    def wait_for_work(self) -> None:
        """Send what is pending and wait until there is something in the inbox, or the worker is to end."""
        process = self.process
        with process.lock:
            process.settle()
            process.reactor.flush_locked()
            self._pending_bytes = 0
            if self.inbox or self.exiting:
                return
            self._early.clear()
            self._idle.done = False
        if not process.reactor.wait(self._idle, _IDLES_S):
            if process.garbage.collect(idle=True):
                process.settle_now()
            process.reactor.wait(self._idle)
        self._last_flush = perf_counter_ns()

    def _become_actor(self, message: StartActor) -> None:
        ActorHost(self, message).run()

    # --- tasks ---------------------------------------------------------------------------------------------------

    def _run_push(self, connection: Connection | None, message: Push) -> None:
        assert connection is not None
        definition = connection.peer.functions[message.function]
        job = Job(message.task_id, definition.name, message.args, [], 1, 0)
        self._execute(connection, definition, job)

    def _run_push_full(self, connection: Connection | None, message: PushFull) -> None:
        assert connection is not None
        definition = connection.peer.functions[message.function]
        name = message.name or definition.name
        args = message.args
        if type(args) is Inline and not args.buffers and not args.refs:
            packed: Any = args.data
        else:
            packed = args
        job = Job(message.task_id, name, packed, message.deps, message.returns, message.attempt)
        if message.returns < 0:
            self._execute(connection, definition, job, message.window)
        else:
            self._execute(connection, definition, job)

    def context_of(self, job: Job, function_name: str) -> TaskContext:
        """What the code of a task is told about itself."""
        context = TaskContext(
            "task", job.task_id, self.process.ids, job.name, function_name, None, job.attempt
        )
        context.children = {}
        return context

    def _execute(
        self,
        connection: Connection,
        definition: Definition,
        job: Job,
        stream_window: int | None = None,
    ) -> None:
        process = self.process
        if definition.retriable is not self.runs.retriable:
            self.runs.tell_kind(definition.retriable)
        context = self.context_of(job, definition.name)
        task_id = job.task_id
        self.source.name = job.name
        self.running[task_id] = context
        self.busy_since = perf_counter_ns()
        try:
            if self._early:
                self._check_early(context)
            call = self.functions.load(definition)
        except BaseException as error:  # noqa: BLE001 - importing the user's code can raise anything
            outcome = Outcome(failure(process, context, job, error, 0), [], 0, 0)
        else:
            if stream_window is None:
                outcome = perform(process, context, job, call)
            else:
                outcome = self.streams.run(connection, context, job, call, stream_window)
        self.busy_since = 0
        del self.running[task_id]
        if context.recursive:
            with process.lock:
                self.cancel_children(context)
                process.settle()
        self.runs.record(job, "task", outcome)
        if definition.max_calls:
            self._count_call(connection, definition)
        self.reply(connection, outcome)
        blocking = self.blocking
        if blocking.paused_for_long:
            blocking.end_long_pause()
        if blocking.quiet.waits:
            blocking.forget_waits()
        self.flush_if_due()

    def flush_if_due(self) -> None:
        """Send replies that have waited for `flush_us`, or are many."""
        now = perf_counter_ns()
        if (
            self._pending_bytes > self._flush_bytes
            or now - self._last_flush > self._flush_ns
            # The service thread sits at the sockets until something comes: it would not see this go.
            or self.process.reactor.service_leads
        ):
            self._last_flush = now
            self._pending_bytes = 0
            self.process.reactor.flush()

    def stir(self) -> None:
        """Make the main thread look at the inbox and at `exiting`."""
        with self.process.lock:
            self._idle.finish()
        self.process.reactor.wake()

    def reply(self, connection: Connection, outcome: Outcome) -> None:
        """Answer a call, once the owners of what it lends or keeps know of it."""
        message = outcome.message
        process = self.process
        objects = process.objects
        if objects.unregistered:
            # What the call has dropped it does not keep. There may be very much of it.
            process.settle_now()
        with process.lock:
            if type(message) is Results:
                if connection.closed:
                    process.deliveries.discard(message.values)
                else:
                    process.deliveries.deliver(connection.peer_address, message.values)
            if outcome.lent or objects.unregistered:
                process.settle()
                # A caller that is gone borrows nothing more.
                lent = [] if connection.closed else process.values.entries_of(outcome.lent)
                countdown = objects.register_before(lent, connection.peer_address)
                if countdown is not None:
                    process.borrowing.carry_out()

                    def leave() -> None:
                        if not connection.closed:
                            connection.send(message)

                    process.borrowing.defer(countdown, leave)
                    process.reactor.flush_locked()
                    return
            if connection.closed:
                return
            connection.out.append(message)
            if not connection.dirty:
                connection.touch()
        self._pending_bytes += len(message.data) + 64 if type(message) is Done else 256

    def _count_call(self, connection: Connection, definition: Definition) -> None:
        definition.calls[0] += 1
        if definition.calls[0] < definition.max_calls:
            return
        with self.process.lock:
            self.blocking.hand_back()
            connection.send(Pause(retiring=True))
            self.blocking.take_no_more()
