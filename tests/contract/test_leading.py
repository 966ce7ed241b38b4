"""Two control stores over one Redis: who leads, who takes over, and that both never write."""

from __future__ import annotations

import asyncio

import pytest
from redis import Redis

from shoal.control.storage import LeadershipLost, StorageInUse, Write
from shoal.control.storage.redis import RedisStorage
from tests.contract.places import until
from tests.contract.servers import RedisServer
from tests.contract.test_redis import MakeRedis, storage_at, tables_at


async def vanish(storage: RedisStorage) -> None:
    """What is left of a control store whose process was killed: nothing, and a lease that runs down."""
    assert storage._task is not None
    storage._task.cancel()
    await asyncio.wait([storage._task])
    await storage._client.aclose()


def test_a_leader_that_lives_is_not_displaced(shared_redis: RedisServer) -> None:
    async def scenario() -> None:
        first = storage_at(shared_redis.url, "lead-1", lease_s=0.5)
        await first.load()
        second = storage_at(shared_redis.url, "lead-1", lease_s=0.5)
        with pytest.raises(StorageInUse, match=r"is led by another control store .*, pid"):
            await second.load()
        # Idle for several times the lease, and it leads still.
        await asyncio.sleep(1.5)
        await first.commit([Write("t", b"k", b"v")])
        assert first.state.text == "ok"
        await first.close()

    asyncio.run(scenario())


def test_a_successor_waits_for_the_lease_of_the_dead(shared_redis: RedisServer) -> None:
    async def scenario() -> None:
        first = storage_at(shared_redis.url, "lead-2", lease_s=1.0)
        await first.load()
        await first.commit([Write("t", b"k", b"v")])
        await vanish(first)
        second = storage_at(shared_redis.url, "lead-2", lease_s=1.0)
        heard: list[str] = []
        second.state.listen(heard.append)
        assert await second.load() == {"t": {b"k": b"v"}}
        assert heard[0].startswith("waiting: the cluster is led by ")
        assert heard[-1] == "ok"
        await second.close()

    asyncio.run(scenario())


def test_one_that_ends_in_good_order_leaves_at_once(shared_redis: RedisServer) -> None:
    async def scenario() -> None:
        for _ in range(2):
            storage = storage_at(shared_redis.url, "lead-3", lease_s=3600)
            heard: list[str] = []
            storage.state.listen(heard.append)
            # A successor that had to wait would do so for an hour.
            async with asyncio.timeout(30):
                await storage.load()
            assert heard in ([], ["ok"])
            await storage.close()

    asyncio.run(scenario())


def test_a_standby_takes_over(shared_redis: RedisServer) -> None:
    async def scenario() -> None:
        first = storage_at(shared_redis.url, "lead-4", lease_s=0.5)
        await first.load()
        standby = storage_at(f"{shared_redis.url}?standby=yes", "lead-4", lease_s=0.5)
        loading = asyncio.create_task(standby.load())
        await until(standby.state, "waiting: ")
        # Longer than the lease, and it waits still.
        await asyncio.sleep(1.0)
        await first.commit([Write("t", b"k", b"last")])
        assert not loading.done()
        await vanish(first)
        async with asyncio.timeout(10):
            assert await loading == {"t": {b"k": b"last"}}
        await standby.commit([Write("t", b"k", b"next")])
        await standby.close()
        assert await tables_at(shared_redis.url, "lead-4") == {"t": {b"k": b"next"}}

    asyncio.run(scenario())


def test_a_displaced_leader_cannot_write(shared_redis: RedisServer) -> None:
    """It slept through the end of its lease, and has commits to make when it wakes."""

    async def scenario() -> None:
        first = storage_at(shared_redis.url, "lead-5", lease_s=3600)
        await first.load()
        await first.commit([Write("t", b"k", b"first")])
        with Redis.from_url(shared_redis.url) as client:
            client.delete("shoal:{lead-5}:lease")
        second = storage_at(shared_redis.url, "lead-5", lease_s=3600)
        assert await second.load() == {"t": {b"k": b"first"}}
        with pytest.raises(LeadershipLost, match=r"another one .* took over"):
            await first.commit([Write("t", b"k", b"stale")])
        assert first.state.text.startswith("failed: this control store does not lead")
        with pytest.raises(LeadershipLost):
            await first.commit([Write("t", b"k", b"staler")])
        await second.commit([Write("t", b"other", b"second")])
        await first.close()
        # The loser's leaving does not free the winner's lease.
        third = storage_at(shared_redis.url, "lead-5", lease_s=3600)
        loading = asyncio.create_task(third.load())
        await until(third.state, "waiting: ")
        loading.cancel()
        await asyncio.wait([loading])
        await second.close()
        expected = {"t": {b"k": b"first", b"other": b"second"}}
        assert await tables_at(shared_redis.url, "lead-5") == expected

    asyncio.run(scenario())


def test_an_idle_leader_that_is_displaced_notices(shared_redis: RedisServer) -> None:
    async def scenario() -> None:
        first = storage_at(shared_redis.url, "lead-6", lease_s=0.3)
        await first.load()
        with Redis.from_url(shared_redis.url) as client:
            client.set("shoal:{lead-6}:lease", "somebody, pid 7 [x]", px=60_000)
            client.hset(
                "shoal:{lead-6}:meta", mapping={"leader": "somebody, pid 7 [x]", "epoch": 9}
            )
        assert "somebody, pid 7" in await until(first.state, "failed: ")
        await first.close()

    asyncio.run(scenario())


def test_a_lease_that_ran_out_unclaimed_is_taken_up_again(shared_redis: RedisServer) -> None:
    """Nobody else has led meanwhile: then there is no reason to stop."""

    async def scenario() -> None:
        first = storage_at(shared_redis.url, "lead-7", lease_s=3600)
        await first.load()
        with Redis.from_url(shared_redis.url) as client:
            client.delete("shoal:{lead-7}:lease")
        await first.commit([Write("t", b"k", b"v")])
        assert first.state.text == "ok"
        await first.close()

    asyncio.run(scenario())


def test_a_leader_of_earlier_that_a_failover_brings_back_does_not_write_beside(
    make_redis: MakeRedis,
) -> None:
    """The new master had not heard of the second leader. Whoever reaches it first, only one of the two goes on."""

    async def scenario() -> None:
        server = make_redis(durable=False)
        first = storage_at(server.url, lease_s=3600)
        await first.load()
        await first.commit([Write("t", b"k", b"first")])
        with Redis.from_url(server.url) as client:
            before = client.hgetall("shoal:{c}:meta")
            client.delete("shoal:{c}:lease")
            second = storage_at(server.url, lease_s=3600)
            await second.load()
            await second.commit([Write("t", b"lost", b"second")])
            # As the server was before the second came, but for the lease.
            client.delete("shoal:{c}:meta", "shoal:{c}:lease")
            client.hset("shoal:{c}:meta", mapping=before)
            client.hdel("shoal:{c}:table:t", "lost")
        await first.commit([Write("t", b"k", b"again")])
        with pytest.raises(LeadershipLost):
            await second.commit([Write("t", b"k", b"stale")])
        await second.close()
        await first.close()
        assert await tables_at(server.url) == {"t": {b"k": b"again"}}

    asyncio.run(scenario())
