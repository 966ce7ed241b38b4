"""What only the Redis storage does: servers that die, hang, forget and come back; commits that come late or twice."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
from redis import Redis

from shoal.control.storage import StorageError, StorageUnavailable, Tables, Write
from shoal.control.storage import redis as redis_storage
from shoal.control.storage import redis_scripts as scripts
from shoal.control.storage.opening import open_storage
from shoal.control.storage.redis import RedisStorage
from tests.contract.kills import kill_while_writing
from tests.contract.places import until
from tests.contract.servers import RedisServer

MakeRedis = Callable[..., RedisServer]


def storage_at(url: str, cluster: str = "c", **options: Any) -> RedisStorage:
    storage = open_storage(url, cluster=cluster, **({"lease_s": 2.0} | options))
    assert isinstance(storage, RedisStorage)
    return storage


async def tables_at(url: str, cluster: str = "c") -> Tables:
    storage = storage_at(url, cluster)
    try:
        return await storage.load()
    finally:
        await storage.close()


def test_clusters_share_a_server(shared_redis: RedisServer) -> None:
    async def scenario() -> None:
        url = shared_redis.url
        names = ["share", "share2", "share.a_b-c"]
        storages = [storage_at(url, name) for name in names]
        for storage in storages:
            assert await storage.load() == {}
        for storage, name in zip(storages, names, strict=True):
            await storage.commit([Write("t", b"k", name.encode())])
        for storage in storages:
            await storage.close()
        for name in names:
            assert await tables_at(url, name) == {"t": {b"k": name.encode()}}
        with Redis.from_url(url) as client:
            ours = {f"shoal:{{{name}}}:" for name in names}
            for key in client.scan_iter("shoal:{share*"):
                assert any(key.decode().startswith(prefix) for prefix in ours)

    asyncio.run(scenario())


def test_a_server_that_is_killed_and_restarted_loses_nothing(make_redis: MakeRedis) -> None:
    async def scenario() -> None:
        server = make_redis()
        storage = storage_at(server.url)
        await storage.load()
        acknowledged: list[int] = []
        futures = []
        for number in range(600):
            future = storage.commit(
                [Write("t", b"%d" % number, b"v"), Write("o", b"last", b"%d" % number)]
            )
            future.add_done_callback(lambda f, n=number: f.exception() or acknowledged.append(n))
            futures.append(future)
            if number % 10 == 0:
                await asyncio.sleep(0.001)
            if number in (200, 400):
                await asyncio.to_thread(server.kill)
                held = storage.commit([])
                await until(storage.state, "retrying: ")
                assert not held.done()
                await asyncio.to_thread(server.start)
        async with asyncio.timeout(20):
            await asyncio.gather(*futures)
        assert acknowledged == list(range(600))
        assert storage.state.text == "ok"
        await storage.close()
        tables = await tables_at(server.url)
        assert tables["t"].keys() == {b"%d" % number for number in range(600)}
        assert tables["o"] == {b"last": b"599"}

    asyncio.run(scenario())


def test_nothing_acknowledged_is_lost_by_a_killed_writer(make_redis: MakeRedis) -> None:
    server = make_redis()
    last = kill_while_writing(server.url, "c", after=100)
    server.kill()
    server.start()
    tables = asyncio.run(tables_at(server.url))
    kept = {int(key) for key in tables["t"]}
    assert kept == set(range(len(kept)))
    assert len(kept) > last
    assert tables["t"].keys() == tables["other"].keys()


def test_a_server_that_hangs_is_waited_out(
    make_redis: MakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.control.storage.redis_address._ANSWER_S", 0.3)

    async def scenario() -> None:
        server = make_redis()
        storage = storage_at(server.url)
        await storage.load()
        server.freeze()
        futures = [storage.commit([Write("t", b"k", b"%d" % n)]) for n in range(5)]
        await until(storage.state, "retrying: ")
        futures += [storage.commit([Write("t", b"k", b"%d" % n)]) for n in range(5, 10)]
        server.thaw()
        async with asyncio.timeout(20):
            await asyncio.gather(*futures)
        await storage.close()
        # What the frozen server found in its old connection it has run late, or before: to no effect either way.
        assert await tables_at(server.url) == {"t": {b"k": b"9"}}

    asyncio.run(scenario())


def test_a_server_that_stays_away_fails_the_storage(make_redis: MakeRedis) -> None:
    async def scenario() -> None:
        server = make_redis()
        storage = storage_at(server.url, retry_s=0.3)
        await storage.load()
        await storage.commit([Write("t", b"k", b"v")])
        server.kill()
        async with asyncio.timeout(20):
            with pytest.raises(StorageUnavailable, match=r"has been away for 0\.3 s"):
                await storage.commit([Write("t", b"k", b"w")])
        assert storage.state.text.startswith("failed: ")
        late = storage.commit([Write("t", b"k", b"x")])
        assert isinstance(late.exception(), StorageUnavailable)
        await storage.close()

    asyncio.run(scenario())


def test_a_server_that_forgets_is_told_again(make_redis: MakeRedis) -> None:
    """One without persistence, as long as this leader began with it."""

    async def scenario() -> None:
        server = make_redis(durable=False)
        storage = storage_at(server.url)
        await storage.load()
        for number in range(100):
            await storage.commit([Write("t", b"%d" % number, b"v")])
        server.kill()
        server.start()
        async with asyncio.timeout(20):
            await storage.commit([Write("t", b"last", b"v")])
        await storage.close()
        assert len((await tables_at(server.url))["t"]) == 101

    asyncio.run(scenario())


def test_a_server_that_forgot_too_much_is_named(
    make_redis: MakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_storage, "_TAIL_COMMITS", 10)

    async def scenario() -> None:
        server = make_redis(durable=False)
        storage = storage_at(server.url)
        await storage.load()
        for number in range(20):
            await storage.commit([Write("t", b"%d" % number, b"v")])
        server.kill()
        server.start()
        async with asyncio.timeout(20):
            with pytest.raises(
                StorageError,
                match=r"came back without what it had acknowledged.*up to 0, .*up to 10",
            ):
                await storage.commit([Write("t", b"last", b"v")])
        await storage.close()

    asyncio.run(scenario())


def test_a_commit_that_comes_twice_or_late_takes_effect_once(shared_redis: RedisServer) -> None:
    """The script itself: what a retry sends again, and what an old connection still held."""

    async def scenario() -> None:
        storage = storage_at(shared_redis.url, "late")
        await storage.load()
        await storage.commit([Write("t", b"k", b"first")])
        await storage.commit([Write("t", b"k", b"second")])
        keys = ["meta", "lease", "tables", "table:t"]

        def commit(token: str, number: int, value: bytes) -> Any:
            with Redis.from_url(shared_redis.url) as client:
                names = [f"shoal:{{late}}:{key}" for key in keys]
                return client.eval(scripts.COMMIT, 4, *names, token, number, 1, b"k", value)

        assert commit(storage._token, 1, b"first") == [b"done"]
        assert commit(storage._token, 4, b"fourth") == [b"gap", 2]
        assert commit("somebody", 3, b"third") == [b"lost", storage._token.encode()]
        await storage.close()
        assert await tables_at(shared_redis.url, "late") == {"t": {b"k": b"second"}}

    asyncio.run(scenario())


def test_a_server_that_takes_no_writes_is_waited_out(make_redis: MakeRedis) -> None:
    """Out of memory, then room again. Nothing of the refused commit is there in between."""

    async def scenario() -> None:
        server = make_redis()
        storage = storage_at(server.url)
        await storage.load()
        await storage.commit([Write("t", b"k", b"v")])
        with Redis.from_url(server.url) as client:
            client.config_set("maxmemory", "1mb")
            future = storage.commit([Write("t", b"k", None), Write("t", b"big", bytes(2_000_000))])
            assert "OOM" in await until(storage.state, "retrying: ")
            assert client.hgetall("shoal:{c}:table:t") == {b"k": b"v"}
            client.config_set("maxmemory", "0")
        async with asyncio.timeout(20):
            await future
        await storage.close()
        assert await tables_at(server.url) == {"t": {b"big": bytes(2_000_000)}}

    asyncio.run(scenario())


def test_users_passwords_and_databases(make_redis: MakeRedis) -> None:
    async def scenario() -> None:
        server = make_redis("--requirepass", "p@ss/word", durable=False)
        place = f"127.0.0.1:{server.port}/3"
        storage = storage_at(f"redis://:p%40ss%2Fword@{place}")
        await storage.load()
        await storage.commit([Write("t", b"k", b"v")])
        await storage.close()
        with Redis(port=server.port, db=3, password="p@ss/word") as client:
            assert client.hgetall("shoal:{c}:table:t") == {b"k": b"v"}
            client.acl_setuser(
                "shoal", enabled=True, passwords=["+secret"], keys=["shoal:*"], commands=["+@all"]
            )
        assert await tables_at(f"redis://shoal:secret@{place}") == {"t": {b"k": b"v"}}
        for wrong in ("", ":wrong@", "shoal:wrong@"):
            with pytest.raises(StorageError, match="refuses the user or password") as refused:
                await tables_at(f"redis://{wrong}{place}")
            assert "wrong" not in str(refused.value).replace("WRONGPASS", "")

    asyncio.run(scenario())


def test_a_newer_layout_is_left_alone(shared_redis: RedisServer) -> None:
    async def scenario() -> None:
        with Redis.from_url(shared_redis.url) as client:
            client.hset("shoal:{newer}:meta", "version", "9")
        with pytest.raises(
            StorageError, match="written by a newer shoal \\(layout 9; this one knows 1\\)"
        ):
            await tables_at(shared_redis.url, "newer")

    asyncio.run(scenario())


def test_a_key_of_somebody_else_is_no_storage(shared_redis: RedisServer) -> None:
    async def scenario() -> None:
        with Redis.from_url(shared_redis.url) as client:
            client.set("shoal:{theirs}:meta", "a string")
        with pytest.raises(StorageError, match="WRONGTYPE"):
            await tables_at(shared_redis.url, "theirs")

    asyncio.run(scenario())


def test_no_server_at_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_storage, "_FIRST_CONTACT_S", 0.2)

    async def scenario() -> None:
        with pytest.raises(StorageUnavailable, match="Check the address, and that the server runs"):
            await tables_at("redis://127.0.0.1:1")

    asyncio.run(scenario())


def test_a_forgetful_server_is_warned_of(
    make_redis: MakeRedis, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "shoal.control.storage"):
        asyncio.run(tables_at(make_redis().url))
        assert "append-only" not in caplog.text
        asyncio.run(tables_at(make_redis(durable=False).url))
    assert "keeps no append-only file" in caplog.text


def test_a_commit_too_large_to_be_one_is_named(
    shared_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_storage, "_MOST_WRITES", 3)

    async def scenario() -> None:
        storage = storage_at(shared_redis.url, "large")
        await storage.load()
        with pytest.raises(StorageError, match="a commit of 4 writes"):
            await storage.commit([Write("t", b"%d" % n, b"") for n in range(4)])
        await storage.close()
        assert await tables_at(shared_redis.url, "large") == {}

    asyncio.run(scenario())


def test_replicas_are_waited_for(make_redis: MakeRedis) -> None:
    async def scenario() -> None:
        master = make_redis(durable=False)
        replica = make_redis("--replicaof", "127.0.0.1", str(master.port), durable=False)
        storage = storage_at(f"{master.url}?wait=1")
        await storage.load()
        async with asyncio.timeout(60):
            await storage.commit([Write("t", b"k", b"v")])
            with Redis(port=replica.port) as client:
                assert client.hgetall("shoal:{c}:table:t") == {b"k": b"v"}
            replica.freeze()
            future = storage.commit([Write("t", b"k", b"w")])
            assert "0 of 1 replicas" in await until(storage.state, "retrying: ")
            assert not future.done()
            replica.thaw()
            await future
            with Redis(port=replica.port) as client:
                assert client.hgetall("shoal:{c}:table:t") == {b"k": b"w"}
        await storage.close()

    asyncio.run(scenario())


def test_an_idle_leader_notices_that_the_server_forgot(make_redis: MakeRedis) -> None:
    """It does not wait for the next commit, which may never come. The connection holds all the while."""

    async def scenario() -> None:
        server = make_redis(durable=False)
        storage = storage_at(server.url, lease_s=0.3)
        await storage.load()
        await storage.commit([Write("t", b"k", b"v")])
        with Redis.from_url(server.url) as client:
            client.flushall()
            await until(storage.state, "retrying: the server has forgotten")
            await until(storage.state, "ok")
            assert client.hgetall("shoal:{c}:table:t") == {b"k": b"v"}
        await storage.close()

    asyncio.run(scenario())


def test_closing_does_not_wait_for_a_server_that_is_away(
    make_redis: MakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_storage, "_CLOSE_S", 0.2)

    async def scenario() -> None:
        server = make_redis()
        storage = storage_at(server.url, retry_s=3600)
        await storage.load()
        await asyncio.to_thread(server.kill)
        lost = storage.commit([Write("t", b"k", b"v")])
        async with asyncio.timeout(20):
            await storage.close()
        assert isinstance(lost.exception(), StorageUnavailable)

    asyncio.run(scenario())
