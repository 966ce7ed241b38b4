"""Redis behind a relay that cuts connections anywhere: in a request, between request and answer, in an answer. What the relay had
heard of a request by then reaches the server later, when the same commits have come again and others have followed.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from shoal.control.storage import Tables, Write
from shoal.control.storage import redis as redis_storage
from tests.contract.servers import RedisServer
from tests.contract.test_redis import storage_at, tables_at
from tests.contract.test_storage import apply

COMMITS = 400
CUTS = 25


class Relay:
    """One port in front of a server. `cuts` connections are cut, each after a random number of bytes either way."""

    def __init__(self, server: RedisServer, rng: random.Random, cuts: int) -> None:
        self._server = server
        self._rng = rng
        self.cuts_left = cuts
        self.late = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[int]:
        relaying = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        try:
            yield relaying.sockets[0].getsockname()[1]
        finally:
            relaying.close()
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=10)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        cut = self.cuts_left > 0
        self.cuts_left -= cut
        limit = self._rng.choice([1, 1_000, 10_000, 40_000]) if cut else None
        back_limit = self._rng.choice([10, 1_000, 100_000]) if cut else None
        late = self._rng.choice([0.0, 0.02, 0.2])
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._server.port)
        over = asyncio.Event()
        there = asyncio.create_task(self._pump(reader, server_writer, limit, late, over))
        back = asyncio.create_task(self._pump(server_reader, writer, back_limit, 0.0, over))
        # Whichever way is cut first, the client's connection ends now, and what it said arrives in its own time.
        await over.wait()
        writer.close()
        await there
        server_writer.close()
        await back

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        limit: int | None,
        late: float,
        over: asyncio.Event,
    ) -> None:
        try:
            while heard := await reader.read(65536):
                if limit is not None and len(heard) >= limit:
                    # The last of it: some of it, or all.
                    whole = self._rng.random() < 0.5
                    if late:
                        over.set()
                        await asyncio.sleep(late)
                        self.late += 1
                    writer.write(heard if whole else heard[: self._rng.randrange(len(heard))])
                    await writer.drain()
                    return
                limit = None if limit is None else limit - len(heard)
                writer.write(heard)
                await writer.drain()
        except OSError:
            return  # the other side was cut
        finally:
            over.set()


@pytest.mark.parametrize("seed", range(6))
def test_whatever_breaks_each_commit_takes_effect_once_and_in_order(
    shared_redis: RedisServer, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_storage, "_FIRST_PAUSE_S", 0.002)
    monkeypatch.setattr(redis_storage, "_LONGEST_PAUSE_S", 0.01)
    rng = random.Random(seed)
    cluster = f"broken-{seed}"

    async def scenario() -> None:
        relay = Relay(shared_redis, rng, CUTS)
        model: Tables = {}
        async with relay.open() as port:
            storage = storage_at(f"redis://127.0.0.1:{port}", cluster, lease_s=0.5, retry_s=60)
            await storage.load()
            futures = []
            for number in range(COMMITS):
                # The same few keys over and over, so that a commit out of order shows.
                writes = [
                    Write(
                        "t",
                        b"%d" % rng.randrange(5),
                        rng.choice([None, b"%d" % number, bytes(500)]),
                    )
                    for _ in range(rng.randrange(1, 4))
                ]
                apply(model, writes)
                futures.append(storage.commit(writes))
                if rng.random() < 0.2:
                    async with asyncio.timeout(60):
                        await futures[-1]
            async with asyncio.timeout(60):
                await asyncio.gather(*futures)
            await storage.close()
        # Not for nothing: the cuts were made, and some of what was cut off came late.
        assert relay.cuts_left < CUTS / 2
        assert relay.late > 0
        assert await tables_at(shared_redis.url, cluster) == {t: r for t, r in model.items() if r}

    asyncio.run(scenario())
