"""A master, a replica and a sentinel: the storage follows the master.

The sentinel is told when to make the replica the master. By itself it would take whoever does not answer in time for dead, on a busy
machine the living, too, and for a moment there would be no master that it could name.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from redis import Redis
from redis.exceptions import ResponseError
from redis.sentinel import Sentinel

from shoal.control.storage import OK, Write
from tests.contract.places import until
from tests.contract.servers import RedisServer
from tests.contract.test_redis import MakeRedis, storage_at, tables_at


def wait_until_replica_is_known(sentinel: RedisServer) -> None:
    deadline = time.monotonic() + 30
    with Redis(port=sentinel.port) as client:
        while True:
            state = client.sentinel_master("ours")
            if state["num-slaves"] == 1 and "master" in state["flags"] and not state["is_sdown"]:
                return
            assert time.monotonic() < deadline, state
            time.sleep(0.05)


def fail_over(sentinel: RedisServer) -> None:
    deadline = time.monotonic() + 30
    with Redis(port=sentinel.port) as client:
        while True:
            try:
                client.execute_command("SENTINEL", "FAILOVER", "ours")
            except ResponseError as error:
                # It may not have heard of the replica's state yet.
                if "NOGOODSLAVE" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return


def test_a_failover_loses_nothing(make_redis: MakeRedis, tmp_path: Path) -> None:
    master = make_redis(durable=False)
    make_redis("--replicaof", "127.0.0.1", str(master.port), durable=False)
    folder = tmp_path / "redis-2"
    folder.mkdir()
    (folder / "sentinel.conf").write_text(
        f"sentinel monitor ours 127.0.0.1 {master.port} 1\n"
        "sentinel down-after-milliseconds ours 60000\n"
        "sentinel failover-timeout ours 5000\n"
    )
    sentinel = make_redis(sentinel=True)
    url = f"redis+sentinel://127.0.0.1:{sentinel.port}/ours?wait=1"

    async def scenario() -> None:
        storage = storage_at(url, lease_s=3600)
        await storage.load()
        async with asyncio.timeout(90):
            for number in range(20):
                await storage.commit([Write("t", b"%d" % number, b"v")])
            await asyncio.to_thread(wait_until_replica_is_known, sentinel)
            await storage.close()
            again = storage_at(url.removesuffix("?wait=1"), lease_s=3600)
            await again.load()
            await asyncio.to_thread(master.kill)
            # Made while nobody is master.
            after = again.commit([Write("t", b"after", b"v")])
            await until(again.state, "retrying: ")
            await asyncio.to_thread(fail_over, sentinel)
            await after
            assert again.state.text == OK
            await again.close()
        found = Sentinel([("127.0.0.1", sentinel.port)]).discover_master("ours")
        assert found[1] != master.port
        tables = await tables_at(url.removesuffix("?wait=1"))
        assert len(tables["t"]) == 21

    asyncio.run(scenario())
