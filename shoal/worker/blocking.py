"""What a worker does before a task of its waits, and behind one that runs for long (decision 0004).

What must never happen, and how it is avoided
---------------------------------------------
- *A task waits for one that is queued behind it.* Before the main thread blocks, it hands its queue back to the owner and
  tells it to push no more (`lend`); pushes that cross this message are handed back as they come.
- *Short tasks wait behind a long one.* When a task has run for `handback_us`, the service thread hands back what is queued
  behind it and pauses the owner; the pause ends with the task.
- *Recursion needs a process for every level.* A task that waits for a task of its own that has not begun, of the same
  shape, runs it in place.
- *A task waits, but not in its main thread, or not in a way that can be seen.* It lends when its process does nothing (`quiet_waits`).

Owns: whom the worker serves and in which shape, how often its CPU is lent, whether it takes tasks. Threads: `run_in_place`, `lend` and
`take_back` are called by the thread that waits, and take the lock; `watch` by the service thread, and takes it; `bind`, `watch_later`,
`hand_back` and `take_no_more` are called with it.
"""

from __future__ import annotations

import threading
from time import perf_counter_ns
from typing import TYPE_CHECKING, Final

from shoal.core.tasks import Function, State, Task
from shoal.messages.node import Blocked, Shape, Unblocked
from shoal.messages.peer import Done, Failure, HandBack, Pause, Push, PushFull, Results, Resume
from shoal.messages.values import Inline
from shoal.runtime.context import TaskContext
from shoal.worker.invocation import Job, Outcome, failure, perform, was_interrupted
from shoal.worker.quiet_waits import QuietWaits

if TYPE_CHECKING:
    from shoal.core.references import Entry
    from shoal.wire.connection import Connection
    from shoal.worker.executor import Executor

_MAX_IN_PLACE: Final = 64
"""How deeply tasks run inside one another before a worker prefers to wait for others."""


class WorkerBlocking:
    """See the module's docstring (a `runtime.waiting.Blocking`). Made by the main thread.

    Attributes:
        takes_none: Tasks that come are handed back: something waits, or runs for long, or the worker is spent.
        paused_for_long: A task has run for long with others behind it.
        watch_due: `watch` is going to be called.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._process = executor.process
        self._main = threading.get_ident()
        self._handback_ns = executor.process.config.handback_us * 1000
        self._lender: Connection | None = None
        self._shape: Shape | None = None
        self._lent = 0
        self._in_place = 0
        # Of threads that the program has started, the waits that they are in.
        self._threads: dict[int, list[int]] = {}
        self.quiet = QuietWaits(
            self._process.lock,
            self._process.config.idle_lend_ms / 1000,
            self._process.reactor.call_later,
            is_lender=self._has_cpu,
            lend=self._give_away,
            take_back=self._get_back,
        )
        self.takes_none = False
        self.paused_for_long = False
        self.watch_due = False

    def bind(self, lender: Connection, shape: Shape) -> None:
        """The worker serves this owner from now on."""
        self._lender = lender
        self._shape = shape

    def take_no_more(self) -> None:
        """Hand back whatever still comes, for good."""
        self._lent += 1
        self._look()

    def _look(self) -> None:
        self.takes_none = bool(self._lent) or self.paused_for_long

    # --- waiting -------------------------------------------------------------------------------------------------

    def run_in_place(self, entry: Entry) -> bool:
        """Run the task that makes `entry` in this thread, if it is ours, has not begun, and is of our shape."""
        executor = self._executor
        task = entry.task
        if (
            type(task) is not Task
            or task.state is not State.QUEUED
            or task.function is None
            or task.function.max_calls
            or task.return_count < 0
            or self._shape is None
            or self._in_place >= _MAX_IN_PLACE
            or threading.get_ident() != self._main
            or executor.host is not None
        ):
            return False
        process = self._process
        with process.lock:
            if not process.owner.tasks.take(task, self._shape):
                return False
        self._run_here(task)
        return True

    def _run_here(self, task: Task) -> None:
        executor = self._executor
        process = self._process
        function = task.function
        assert function is not None
        job = Job(
            task.task_id,
            task.name or function.name,
            task.args,
            process.owner.resolve_deps(task),
            task.return_count,
            task.attempt,
        )
        context = executor.context_of(job, function.name)
        before = executor.source.name
        executor.source.name = job.name
        executor.running[task.task_id] = context
        self._in_place += 1
        try:
            outcome = self._perform_own(context, job, function)
        finally:
            self._in_place -= 1
            executor.source.name = before
            del executor.running[task.task_id]
        if context.recursive:
            with process.lock:
                executor.cancel_children(context)
        executor.runs.record(job, "task", outcome)
        message = outcome.message
        outer_cancelled = executor.interrupt_wanted()
        with process.lock:
            if outer_cancelled and not context.cancelled and was_interrupted(message):
                # The interrupt was meant for a task further out: this one runs elsewhere.
                process.owner.tasks.retry(task)
                process.settle()
                raise KeyboardInterrupt
            task.state = State.FINISHED
            if isinstance(message, Failure):
                process.owner.fail_or_retry(task, message)
            elif isinstance(message, Done):
                process.owner.succeed(
                    task, Results(message.task_id, [Inline(message.data)], 0), registered=None
                )
            else:
                process.owner.succeed(task, message, registered=None)
            process.settle()
            if process.tick_waiters:
                process.tick()
        if outer_cancelled:
            raise KeyboardInterrupt

    def _perform_own(self, context: TaskContext, job: Job, function: Function) -> Outcome:
        try:
            call = self._executor.functions.load_own(function)
        except BaseException as error:  # noqa: BLE001 - importing the user's code can raise anything
            return Outcome(failure(self._process, context, job, error, 0), [], 0, 0)
        return perform(self._process, context, job, call)

    def _has_cpu(self) -> bool:
        """Whether a task or actor has a CPU here that others could have meanwhile."""
        executor = self._executor
        if executor.host is not None:
            shape: Shape | None = executor.host.spec.shape
        else:
            shape = self._shape if executor.running else None
        return shape is not None and any(name == "CPU" for name, _ in shape.resources)

    def lend(self) -> bool:
        """This thread is about to wait. If it is the main one: give its CPU and its queue away. Of others it is noted that they wait."""
        if self._lender is None and self._executor.host is None:
            return False
        me = threading.get_ident()
        if me == self._main:
            self._give_away()
        else:
            with self._process.lock:
                self._threads.setdefault(me, []).append(self.quiet.begin())
        return True

    def take_back(self) -> None:
        """It runs again."""
        me = threading.get_ident()
        if me == self._main:
            self._get_back()
            return
        with self._process.lock:
            waits = self._threads[me]
            self.quiet.end(waits.pop())
            if not waits:
                del self._threads[me]

    def _give_away(self) -> None:
        executor = self._executor
        process = self._process
        with process.lock:
            self._lent += 1
            self._look()
            if self._lent == 1:
                if self._lender is not None and executor.host is None:
                    self.hand_back()
                    if not self._lender.closed:
                        self._lender.send(Pause())
                process.node.send_locked(Blocked())
            process.settle()
            process.reactor.flush_locked()

    def _get_back(self) -> None:
        executor = self._executor
        process = self._process
        with process.lock:
            self._lent -= 1
            self._look()
            if self._lent == 0:
                process.node.send_locked(Unblocked())
                if self._lender is not None and executor.host is None and not self._lender.closed:
                    self._lender.send(Resume())
            process.reactor.flush_locked()

    def begin_wait(self) -> int:
        """Somebody waits for an object without a thread of ours (with the lock held); what to call the wait."""
        return self.quiet.begin()

    def end_wait(self, number: int) -> None:
        """It is there (with the lock held)."""
        self.quiet.end(number)

    def forget_waits(self) -> None:
        """The task is over in which somebody has waited without a thread of ours."""
        with self._process.lock:
            self.quiet.forget()

    def hand_back(self) -> None:
        """Give every task that has not begun back to its owner (with the lock held)."""
        executor = self._executor
        kept = []
        returned: dict[Connection, list[bytes]] = {}
        for connection, message in executor.inbox:
            if connection is not None and type(message) in {Push, PushFull}:
                returned.setdefault(connection, []).append(message.task_id)
            else:
                kept.append((connection, message))
        if not returned:
            return
        executor.inbox.clear()
        executor.inbox.extend(kept)
        for connection, task_ids in returned.items():
            if not connection.closed:
                connection.send(HandBack(task_ids))

    # --- long tasks ----------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Hand back what is queued behind a task that has run for long. Any thread, without the lock."""
        executor = self._executor
        self.watch_due = False
        since = executor.busy_since
        if not since or not executor.inbox or executor.host is not None or self.paused_for_long:
            return
        ran = perf_counter_ns() - since
        process = self._process
        with process.lock:
            if executor.busy_since != since or self._lent:
                return
            if ran < self._handback_ns:
                if process.reactor.service_leads:
                    self._watch_in(self._handback_ns - ran)
                return
            lender = self._lender
            self.hand_back()
            if lender is not None and not lender.closed:
                self.paused_for_long = True
                self._look()
                lender.send(Pause())
            process.reactor.flush_locked()

    def watch_later(self) -> None:
        """Something has come while a task runs: look after it in time."""
        self._watch_in(self._handback_ns)

    def _watch_in(self, delay_ns: int) -> None:
        self.watch_due = True
        self._process.reactor.call_later(delay_ns / 1e9, self.watch)

    def end_long_pause(self) -> None:
        """The task that has run for long is over."""
        with self._process.lock:
            self.paused_for_long = False
            self._look()
            if self._lender is not None and not self._lender.closed:
                self._lender.send(Resume())
