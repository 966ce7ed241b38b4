"""An async actor's calls: on an asyncio loop in its main thread, which polls the reactor itself, so that a call needs no hop between
threads.

`take` and `cancel` are called by the reactor's leader with the runtime's lock held, in any thread; the rest runs on the loop. What an
actor is otherwise, and what becomes of a call's outcome, is in `worker.host`.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections import deque
from time import perf_counter_ns
from typing import TYPE_CHECKING

from shoal.messages.peer import Call, CallFull
from shoal.runtime.context import current
from shoal.worker.invocation import (
    ActorExit,
    Outcome,
    arguments,
    arguments_on_loop,
    failure,
    pack_result,
)

if TYPE_CHECKING:
    from shoal.wire.connection import Connection
    from shoal.worker.host import ActorHost

Work = tuple["Connection", Call | CallFull]


class ActorLoop:
    """See the module's docstring."""

    def __init__(self, host: ActorHost) -> None:
        self._host = host
        self._reactor = host.process.reactor
        self._limits = host.groups()
        self._running = dict.fromkeys(self._limits, 0)
        self._waiting: dict[str, deque[Work]] = {name: deque() for name in self._limits}
        self._tasks: dict[bytes, asyncio.Task[None]] = {}
        self._flush_scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._thread = threading.get_ident()
        self._loop: asyncio.AbstractEventLoop
        self._ending: asyncio.Event

    async def serve(self) -> None:
        """Serve until the actor ends."""
        self._loop = asyncio.get_running_loop()
        self._ending = asyncio.Event()
        self._reactor.host()
        self._loop.add_reader(self._reactor.fileno(), self._on_readable)
        self._host.serve_with(self)
        if self._host.executor.exiting:
            self._ending.set()
        self._on_readable()
        await self._ending.wait()
        while self._tasks and self._host.executor.exiting:
            await asyncio.wait(list(self._tasks.values()))
            await asyncio.sleep(0)
        self._loop.remove_reader(self._reactor.fileno())
        self._reactor.hosted = False
        with self._host.process.lock:
            # Nothing that still comes is run.
            self._host._serving = None

    def _on_readable(self) -> None:
        self._reactor.pump()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self._reactor.until_next_timer()
        if due is not None:
            self._timer = self._loop.call_later(due, self._on_readable)

    # --- calls (with the lock held) ------------------------------------------------------------------------------

    def take(self, work: Work) -> None:
        """A call has come."""
        if threading.get_ident() == self._thread:
            self._admit(work)
        else:
            self._loop.call_soon_threadsafe(self._admit, work)

    def _admit(self, work: Work) -> None:
        if self._host.ended:
            return
        group = self._host.group_of(work[1])
        if group not in self._limits:
            group = ""
        if self._running[group] >= self._limits[group]:
            self._waiting[group].append(work)
            return
        self._running[group] += 1
        task = self._loop.create_task(self._call(group, work))
        self._tasks[work[1].task_id] = task

    def cancel(self, task_id: bytes) -> None:
        """Cancel a coroutine."""

        def cancel() -> None:
            task = self._tasks.get(task_id)
            # One that has not begun is answered when it does: a coroutine cancelled before its first step answers nothing.
            if task is not None and self._host.has_begun(task_id):
                task.cancel()

        self._loop.call_soon_threadsafe(cancel)

    def stop_soon(self) -> None:
        """The node wants the actor to end."""
        self._loop.call_soon_threadsafe(self._ending.set)

    # --- on the loop ---------------------------------------------------------------------------------------------

    async def _call(self, group: str, work: Work) -> None:
        connection, message = work
        host = self._host
        try:
            await self._execute(connection, message)
        except ActorExit:
            host.end("exit_actor() was called in it")
            self._ending.set()
        finally:
            self._tasks.pop(message.task_id, None)
            waiting = self._waiting[group]
            self._running[group] -= 1
            if waiting:
                self._admit(waiting.popleft())

    async def _execute(self, connection: Connection, message: Call | CallFull) -> None:
        host = self._host
        process = host.process
        job = host.job_of(message)
        context = host.begin(connection, job, message.name if type(message) is CallFull else "")
        if context is None:
            self._flush_soon()
            return
        current.set(context)
        start = perf_counter_ns()
        try:
            method = host.method(job.name)
            if job.returns < 0:
                assert type(message) is CallFull
                outcome = await host.executor.streams.run_async(
                    connection, context, job, method, message.window
                )
            else:
                if process.store.remote is None:
                    args, kwargs = arguments(process, job)
                else:
                    args, kwargs = await arguments_on_loop(process, job)
                result = method(*args, **kwargs)
                if inspect.isawaitable(result):
                    result = await result
                del args, kwargs
                end = perf_counter_ns()
                answer, lent = pack_result(process, job, result, (end - start) // 1000)
                outcome = Outcome(answer, lent, start, end)
                del result
        except ActorExit:
            raise
        except BaseException as error:
            if isinstance(error, SystemExit):
                raise ActorExit from error
            end = perf_counter_ns()
            if isinstance(error, asyncio.CancelledError) and context.cancelled:
                error = KeyboardInterrupt()
            outcome = Outcome(
                failure(process, context, job, error, (end - start) // 1000), [], start, end
            )
        host.finish(connection, job, outcome)
        self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        self._reactor.flush()
