"""Generator tasks: each item leaves as soon as it is yielded.

With a window, the generator rests while so many items are unconsumed; it goes on when the consumer has taken some, and ends when
the consumer wants no more.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Final

from shoal.messages.peer import Failure, Results, StreamConsumed, StreamItem
from shoal.runtime.context import current
from shoal.runtime.values import wire_value
from shoal.wire.reactor import Waiter
from shoal.worker.invocation import (
    ActorExit,
    Job,
    Outcome,
    arguments,
    arguments_on_loop,
    failure,
    pack_value,
)

if TYPE_CHECKING:
    from shoal.runtime.context import TaskContext
    from shoal.wire.connection import Connection
    from shoal.worker.executor import Executor


_MAX_EARLY: Final = 1_000


class _Flow:
    """How far the consumer of a stream has come. `count` is guarded by the runtime's lock."""

    __slots__ = ("consumer", "count", "loop", "waiter", "wake")

    def __init__(self, consumer: str) -> None:
        self.consumer = consumer
        self.count = 0
        self.waiter: Waiter | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.wake: asyncio.Event | None = None


class Streams:
    """The streams that run in this process."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._flows: dict[bytes, _Flow] = {}
        # What was said of streams that have not begun here (or that have ended).
        self._early: dict[bytes, int] = {}
        executor.process.deaths.listeners.append(self.consumer_died)

    def on_consumed(self, _connection: Connection, message: StreamConsumed) -> None:
        """The consumer has taken items, or wants no more (with the lock held)."""
        flow = self._flows.get(message.task_id)
        if flow is not None:
            self._set(flow, message.count)
            return
        # A consumer may leave before the stream begins, and one that waits for a retry has taken some already.
        self._early[message.task_id] = message.count
        if len(self._early) > _MAX_EARLY:
            del self._early[next(iter(self._early))]

    def _begin(self, task_id: bytes, consumer: str) -> _Flow:
        flow = _Flow(consumer)
        with self._executor.process.lock:
            flow.count = self._early.pop(task_id, 0)
            self._flows[task_id] = flow
        return flow

    def consumer_died(self, address: str) -> None:
        """A process has ended: nobody wants its streams any more (with the lock held)."""
        for flow in list(self._flows.values()):
            if flow.consumer == address:
                self._set(flow, -1)

    @staticmethod
    def _set(flow: _Flow, count: int) -> None:
        flow.count = count
        if flow.waiter is not None:
            flow.waiter.finish()
        if flow.loop is not None and flow.wake is not None:
            flow.loop.call_soon_threadsafe(flow.wake.set)

    def run(
        self,
        connection: Connection,
        context: TaskContext,
        job: Job,
        call: Callable[..., Any],
        window: int,
    ) -> Outcome:
        """Run a generator function in this thread and answer it."""
        process = self._executor.process
        flow = self._begin(job.task_id, connection.peer_address)
        token = current.set(context)
        start = perf_counter_ns()
        sent = 0
        try:
            args, kwargs = arguments(process, job)
            iterator = self._iterator(job, call(*args, **kwargs))
            del args, kwargs
            for item in iterator:
                self._send(connection, job, sent, item)
                # While it rests, it keeps nothing.
                del item
                sent += 1
                if not self._may_go_on(flow, sent, window):
                    break
            end = perf_counter_ns()
            return Outcome(Results(job.task_id, [], (end - start) // 1000, sent), [], start, end)
        except ActorExit:
            raise
        except BaseException as error:  # noqa: BLE001 - user code; everything it raises becomes the answer
            end = perf_counter_ns()
            return Outcome(self._failed(context, job, error, start, end, sent), [], start, end)
        finally:
            current.reset(token)
            del self._flows[job.task_id]

    async def run_async(
        self,
        connection: Connection,
        context: TaskContext,
        job: Job,
        call: Callable[..., Any],
        window: int,
    ) -> Outcome:
        """Run an async generator (or a generator) method on the actor's loop and answer it."""
        process = self._executor.process
        flow = self._begin(job.task_id, connection.peer_address)
        flow.loop = asyncio.get_running_loop()
        flow.wake = asyncio.Event()
        current.set(context)
        start = perf_counter_ns()
        sent = 0
        try:
            args, kwargs = await arguments_on_loop(process, job)
            result = call(*args, **kwargs)
            if inspect.isawaitable(result):
                result = await result
            iterator: AsyncIterator[Any] = (
                aiter(result)
                if hasattr(result, "__aiter__")
                else _as_async(self._iterator(job, result))
            )
            async for item in iterator:
                self._send(connection, job, sent, item)
                # While it rests, it keeps nothing.
                del item
                sent += 1
                while window and flow.count >= 0 and sent - flow.count >= window:
                    flow.wake.clear()
                    await flow.wake.wait()
                if flow.count < 0:
                    break
            end = perf_counter_ns()
            return Outcome(Results(job.task_id, [], (end - start) // 1000, sent), [], start, end)
        except ActorExit:
            raise
        except BaseException as error:  # noqa: BLE001 - as above
            end = perf_counter_ns()
            if isinstance(error, asyncio.CancelledError) and context.cancelled:
                error = KeyboardInterrupt()
            return Outcome(self._failed(context, job, error, start, end, sent), [], start, end)
        finally:
            del self._flows[job.task_id]

    def _failed(
        self, context: TaskContext, job: Job, error: BaseException, start: int, end: int, sent: int
    ) -> Failure:
        answer = failure(self._executor.process, context, job, error, (end - start) // 1000)
        answer.stream_length = sent
        return answer

    @staticmethod
    def _iterator(job: Job, result: Any) -> Iterator[Any]:
        if not hasattr(result, "__iter__"):
            raise TypeError(
                f'{job.name}() has num_returns="streaming" and must be a generator or return an iterable; it returned '
                f"a {type(result).__name__}"
            )
        return iter(result)

    def _send(self, connection: Connection, job: Job, index: int, item: Any) -> None:
        process = self._executor.process
        value, handles = pack_value(process, item, f"item {index} of {job.name}()")
        lent = [] if connection.closed else process.values.entries_of(handles)
        message = StreamItem(job.task_id, index, wire_value(value))
        with process.lock:
            if connection.closed:
                process.deliveries.discard([message.value])
            else:
                process.deliveries.deliver(connection.peer_address, [message.value])
            countdown = (
                process.objects.register_before(lent, connection.peer_address) if lent else None
            )
            sent = Waiter()

            def send() -> None:
                if not connection.closed:
                    connection.send(message)
                sent.finish()

            if countdown is None:
                send()
            else:
                process.borrowing.carry_out()
                process.borrowing.defer(countdown, send)
            process.reactor.flush_locked()
        # Items must not be overtaken by those that follow: wait for the owners of what this one lends.
        process.reactor.wait(sent)

    def _may_go_on(self, flow: _Flow, sent: int, window: int) -> bool:
        if not window:
            return flow.count >= 0
        process = self._executor.process
        while flow.count >= 0 and sent - flow.count >= window:
            waiter = Waiter()
            with process.lock:
                if flow.count < 0 or sent - flow.count < window:
                    break
                flow.waiter = waiter
            process.reactor.wait(waiter)
        return flow.count >= 0


async def _as_async(iterator: Iterator[Any]) -> AsyncIterator[Any]:
    for item in iterator:
        yield item
        await asyncio.sleep(0)
