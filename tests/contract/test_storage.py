"""The contract of `shoal.control.storage`, asked of every backend."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from shoal.control.storage import Storage, StorageError, Tables, Write
from tests.contract.places import Place


@asynccontextmanager
async def opened(place: Place) -> AsyncIterator[tuple[Storage, Tables]]:
    storage = place.open()
    tables = await storage.load()
    try:
        yield storage, tables
    finally:
        await storage.close()


async def reloaded(place: Place) -> Tables:
    async with opened(place) as (_, tables):
        return tables


async def durable(storage: Storage, *writes: Write) -> None:
    future = storage.commit(writes)
    if future is not None:
        await future


async def all_durable(futures: Sequence[asyncio.Future[None] | None]) -> None:
    await asyncio.gather(*(future for future in futures if future is not None))


def test_what_was_committed_is_there_at_the_next_load(place: Place) -> None:
    async def scenario() -> None:
        async with opened(place) as (storage, tables):
            assert tables == {}
            assert storage.state.text == "ok"
            await durable(storage, Write("a", b"1", b"one"), Write("b", b"1", b"other"))
            await durable(storage, Write("a", b"2", b"two"))
            await durable(storage, Write("a", b"1", b"uno"), Write("b", b"1", None))
        assert await reloaded(place) == {"a": {b"1": b"uno", b"2": b"two"}}
        async with opened(place) as (storage, _):
            await durable(storage, Write("a", b"1", None), Write("never", b"there", None))
            await durable(storage, Write("a", b"2", None))
        assert await reloaded(place) == {}

    asyncio.run(scenario())


def test_the_last_of_several_writes_of_one_key_counts(place: Place) -> None:
    async def scenario() -> None:
        async with opened(place) as (storage, _):
            await durable(
                storage,
                Write("t", b"set", None),
                Write("t", b"set", b"1"),
                Write("t", b"gone", b"1"),
                Write("t", b"gone", None),
                Write("t", b"twice", b"1"),
                Write("t", b"twice", b"2"),
            )
        assert await reloaded(place) == {"t": {b"set": b"1", b"twice": b"2"}}

    asyncio.run(scenario())


def test_commits_given_without_waiting_apply_in_order(place: Place) -> None:
    """Thousands at once on a few keys: the values that stay are those of a dict, and futures are done in order."""

    async def scenario() -> None:
        rng = random.Random(7)
        model: Tables = {}
        done: list[int] = []
        async with opened(place) as (storage, _):
            futures = []
            for number in range(3000):
                writes = [
                    Write(
                        f"t{rng.randrange(3)}",
                        b"%d" % rng.randrange(20),
                        rng.choice([None, b"%d" % number]),
                    )
                    for _ in range(rng.randrange(4))
                ]
                future = storage.commit(writes)
                apply(model, writes)
                if future is not None:
                    future.add_done_callback(lambda _, n=number: done.append(n))
                futures.append(future)
                if number % 500 == 0:
                    await asyncio.sleep(0)
            await all_durable(futures)
            await asyncio.sleep(0)
            assert done == sorted(done)
        assert await reloaded(place) == {table: rows for table, rows in model.items() if rows}

    asyncio.run(scenario())


def apply(model: Tables, writes: Sequence[Write]) -> None:
    for table, key, value in writes:
        if value is None:
            model.get(table, {}).pop(key, None)
        else:
            model.setdefault(table, {})[key] = value


def test_many_tasks_commit_at_once(place: Place) -> None:
    async def scenario() -> None:
        async with opened(place) as (storage, _):

            async def writer(name: int) -> None:
                for step in range(20):
                    await durable(storage, Write("t", b"%d" % name, b"%d" % step))

            await asyncio.gather(*(writer(name) for name in range(50)))
        assert await reloaded(place) == {"t": {b"%d" % name: b"19" for name in range(50)}}

    asyncio.run(scenario())


def test_no_writes_are_a_barrier(place: Place) -> None:
    async def scenario() -> None:
        async with opened(place) as (storage, _):
            first = storage.commit([Write("t", b"k", b"v")])
            await durable(storage)
            assert first is None or first.done()

    asyncio.run(scenario())


def test_close_finishes_what_was_committed(place: Place) -> None:
    async def scenario() -> None:
        storage = place.open()
        await storage.load()
        futures = [storage.commit([Write("t", b"%d" % n, b"v")]) for n in range(500)]
        await storage.close()
        await storage.close()
        assert all(future is None or future.done() for future in futures)
        assert len((await reloaded(place))["t"]) == 500

    asyncio.run(scenario())


@pytest.mark.parametrize("size", [0, 1, 100_000, 20_000_000])
def test_values_of_any_size_and_content(place: Place, size: int) -> None:
    async def scenario() -> None:
        value = random.Random(size).randbytes(size)
        key = bytes(range(256))
        async with opened(place) as (storage, _):
            await durable(storage, Write("odd name: ü, {}*", key, value), Write("t", b"", b""))
        assert await reloaded(place) == {"odd name: ü, {}*": {key: value}, "t": {b"": b""}}

    asyncio.run(scenario())


def test_many_keys(place: Place) -> None:
    async def scenario() -> None:
        rows = {n.to_bytes(16, "big"): b"%d" % n for n in range(50_000)}
        async with opened(place) as (storage, _):
            await durable(storage, *(Write("t", key, value) for key, value in rows.items()))
            await durable(storage, *(Write("t", key, None) for key in list(rows)[:10_000]))
        assert await reloaded(place) == {"t": dict(list(rows.items())[10_000:])}

    asyncio.run(scenario())


def test_a_second_writer_is_refused_and_the_first_goes_on(place: Place) -> None:
    async def scenario() -> None:
        async with opened(place) as (storage, _):
            second = place.open()
            with pytest.raises(StorageError, match="another control store"):
                await second.load()
            await second.close()
            await durable(storage, Write("t", b"k", b"v"))
        assert await reloaded(place) == {"t": {b"k": b"v"}}

    asyncio.run(scenario())


def test_a_storage_that_was_never_loaded_closes(place: Place) -> None:
    async def scenario() -> None:
        await place.open().close()
        # And leaves nothing that keeps the next one out.
        assert await reloaded(place) == {}

    asyncio.run(scenario())
