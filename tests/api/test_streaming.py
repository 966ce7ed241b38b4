"""Generators as tasks and methods: items as they come, errors midway, early stops, backpressure."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import numpy as np
import pytest

import shoal
from tests.api.gates import Gate, Trace, wait_until

pytestmark = pytest.mark.usefixtures("shared_cluster")


@shoal.remote
def count(n: int) -> Iterator[int]:
    yield from range(n)


@shoal.remote(max_retries=0)
def fail_after(n: int) -> Iterator[int]:
    yield from range(n)
    raise ValueError("no more")


@shoal.remote
class Source:
    def count(self, n: int) -> Iterator[int]:
        yield from range(n)

    def plain(self) -> int:
        return 42


@shoal.remote
class AsyncSource:
    async def count(self, n: int) -> AsyncIterator[int]:
        for i in range(n):
            await asyncio.sleep(0)
            yield i

    async def fail_after(self, n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i
        raise ValueError("no more")


def get(ref: Any) -> Any:
    return shoal.get(ref, timeout=30)


# --- items -----------------------------------------------------------------------------------------------------------------


def test_a_generator_gives_references_to_what_it_yields() -> None:
    items = count.remote(5)
    assert isinstance(items, shoal.ObjectRefGenerator)
    refs = list(items)
    assert all(isinstance(ref, shoal.ObjectRef) for ref in refs)
    assert get(refs) == [0, 1, 2, 3, 4]
    with pytest.raises(StopIteration):
        next(items)


def test_streaming_may_be_asked_for_by_name() -> None:
    assert [get(ref) for ref in count.options(num_returns="streaming").remote(3)] == [0, 1, 2]


def test_an_empty_stream() -> None:
    assert list(count.remote(0)) == []


def test_items_come_before_the_generator_has_ended(gates: Callable[[str], Gate]) -> None:
    gate = gates("second")

    @shoal.remote
    def two() -> Iterator[str]:
        yield "first"
        gate.wait()
        yield "second"

    items = two.remote()
    assert get(next(items)) == "first"
    gate.open()
    assert get(next(items)) == "second"


def test_a_long_stream_of_small_items() -> None:
    assert [get(ref) for ref in count.remote(2_000)] == list(range(2_000))


def test_large_items() -> None:
    @shoal.remote
    def arrays(n: int) -> Iterator[np.ndarray]:
        for i in range(n):
            yield np.full(200_000, float(i))

    assert [get(ref)[-1] for ref in arrays.remote(5)] == [0, 1, 2, 3, 4]


def test_items_that_are_kept_stay() -> None:
    refs = list(count.remote(100))
    gc.collect()
    assert get(refs) == list(range(100))


def test_items_as_arguments_of_tasks() -> None:
    @shoal.remote
    def double(x: int) -> int:
        return 2 * x

    assert get([double.remote(ref) for ref in count.remote(10)]) == [2 * i for i in range(10)]


def test_what_a_stream_tells_about_itself(gates: Callable[[str], Gate]) -> None:
    gate = gates("second")

    @shoal.remote
    def two() -> Iterator[int]:
        yield 1
        gate.wait()
        yield 2

    items = two.remote()
    next(items)
    assert items._next_sync(timeout_s=0).is_nil()
    assert not items.next_ready()
    assert not items.is_finished()
    assert shoal.wait([items.completed()], timeout=0)[0] == []
    gate.open()
    wait_until(items.next_ready, "the second item is ready")
    assert get(next(items)) == 2
    shoal.wait([items.completed()], timeout=30)
    assert list(items) == []
    assert items.is_finished()


def test_a_stream_cannot_be_passed_on() -> None:
    @shoal.remote
    def use(items: Any) -> None:
        pass

    items = count.remote(2)
    with pytest.raises((TypeError, ValueError)):
        use.remote(items)
    assert [get(ref) for ref in items] == [0, 1]


def test_a_task_reads_the_stream_of_another() -> None:
    @shoal.remote
    def total(n: int) -> int:
        return sum(shoal.get(ref, timeout=30) for ref in count.remote(n))

    assert get(total.remote(20)) == 190


# --- asynchronously ----------------------------------------------------------------------------------------------------------


def test_async_iteration() -> None:
    async def main() -> list[int]:
        return [await ref async for ref in count.remote(20)]

    assert asyncio.run(asyncio.wait_for(main(), 30)) == list(range(20))


def test_two_streams_in_one_loop() -> None:
    async def read(n: int) -> list[int]:
        return [await ref async for ref in count.remote(n)]

    async def main() -> list[list[int]]:
        return await asyncio.gather(read(5), read(7))

    assert asyncio.run(asyncio.wait_for(main(), 30)) == [list(range(5)), list(range(7))]


# --- actors ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Source, AsyncSource], ids=["sync", "async"])
def test_methods_that_generate(kind: Any) -> None:
    source = kind.remote()
    assert [get(ref) for ref in source.count.remote(10)] == list(range(10))
    named = source.count.options(num_returns="streaming").remote(3)
    assert [get(ref) for ref in named] == [0, 1, 2]


def test_streams_and_plain_calls_of_one_actor() -> None:
    source = Source.remote()
    items, answer = source.count.remote(5), source.plain.remote()
    assert get(answer) == 42
    assert [get(ref) for ref in items] == list(range(5))


def test_streams_of_an_async_actor_flow_side_by_side() -> None:
    @shoal.remote
    class Turns:
        """Each of two streams waits for the other at every item."""

        def __init__(self) -> None:
            self.turn = 0
            self.changed = asyncio.Condition()

        async def every_other(self, mine: int, n: int) -> AsyncIterator[int]:
            for i in range(n):
                async with self.changed:
                    await self.changed.wait_for(lambda: self.turn % 2 == mine)
                    self.turn += 1
                    self.changed.notify_all()
                yield 2 * i + mine

    turns = Turns.remote()
    even, odd = turns.every_other.remote(0, 10), turns.every_other.remote(1, 10)
    assert [get(ref) for ref in even] == list(range(0, 20, 2))
    assert [get(ref) for ref in odd] == list(range(1, 20, 2))


# --- errors ------------------------------------------------------------------------------------------------------------------


def test_an_error_midway_is_the_last_item() -> None:
    items = fail_after.remote(3)
    assert [get(next(items)) for _ in range(3)] == [0, 1, 2]
    failed = next(items)
    with pytest.raises(ValueError, match="no more"):
        get(failed)
    with pytest.raises(StopIteration):
        next(items)
    assert shoal.wait([items.completed()], timeout=30)[0] == [items.completed()]


def test_an_error_before_the_first_item() -> None:
    items = fail_after.remote(0)
    with pytest.raises(ValueError, match="no more"):
        get(next(items))


def test_an_error_midway_in_a_coroutine() -> None:
    items = AsyncSource.remote().fail_after.remote(2)
    assert [get(next(items)) for _ in range(2)] == [0, 1]
    with pytest.raises(ValueError, match="no more"):
        get(next(items))


def test_an_argument_that_failed() -> None:
    @shoal.remote(max_retries=0)
    def fail() -> int:
        raise KeyError("no length")

    with pytest.raises(KeyError, match="no length"):
        get(next(count.remote(fail.remote())))


def test_items_that_cannot_be_sent() -> None:
    @shoal.remote(max_retries=0)
    def locks() -> Iterator[Any]:
        yield 1
        yield threading.Lock()

    items = locks.remote()
    assert get(next(items)) == 1
    with pytest.raises(TypeError, match="lock"):
        get(next(items))


# --- pace --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 3])
def test_backpressure_keeps_the_producer_near_the_consumer(
    window: int, traces: Callable[[str], Trace]
) -> None:
    made = traces("made")

    @shoal.remote(_generator_backpressure_num_objects=window)
    def produce(n: int) -> Iterator[int]:
        for i in range(n):
            made.add(i)
            yield i

    for consumed, ref in enumerate(produce.remote(20), start=1):
        assert get(ref) == consumed - 1
        # At most `window` that were not taken, and the one that it works on.
        assert len(made) <= consumed + window + 1


def test_backpressure_is_an_option_of_a_call_and_of_methods(
    traces: Callable[[str], Trace],
) -> None:
    made = traces("made")

    @shoal.remote
    class Producer:
        def produce(self, n: int) -> Iterator[int]:
            for i in range(n):
                made.add(i)
                yield i

    produce = Producer.remote().produce.options(_generator_backpressure_num_objects=1)
    for consumed, ref in enumerate(produce.remote(10), start=1):
        assert get(ref) == consumed - 1
        assert len(made) <= consumed + 2


def test_a_stream_that_nobody_reads_any_more_ends(traces: Callable[[str], Trace]) -> None:
    ended = traces("ended")

    @shoal.remote(_generator_backpressure_num_objects=2)
    def produce() -> Iterator[int]:
        try:
            yield from range(50)
        finally:
            ended.add("ended")

    items = produce.remote()
    assert get(next(items)) == 0
    del items
    gc.collect()
    wait_until(lambda: len(ended) == 1, "the generator ends")


def test_items_that_nobody_took_are_freed() -> None:
    @shoal.remote
    def arrays() -> Iterator[np.ndarray]:
        for _ in range(10):
            yield np.ones(2_000_000)

    fits = shoal.cluster_resources()["object_store_memory"]
    for _ in range(3):
        items = arrays.remote()
        next(items)
        shoal.wait([items.completed()], timeout=30)
        del items
        gc.collect()
    assert fits == shoal.cluster_resources()["object_store_memory"]
