"""A program that commits one number after another and says on its output which are durable, until it is killed.

Usage: python -m tests.contract.writer URL CLUSTER
"""

from __future__ import annotations

import asyncio
import os
import sys

from shoal.control.storage import Write
from shoal.control.storage.opening import open_storage

IN_FLIGHT = 20


async def write_for_ever(url: str, cluster: str) -> None:
    storage = open_storage(url, cluster=cluster, lease_s=1.0)
    rows = (await storage.load()).get("t", {})
    first = max((int(key) for key in rows), default=-1) + 1
    gate = asyncio.Semaphore(IN_FLIGHT)

    def tell(number: int) -> None:
        gate.release()
        os.write(1, b"%d\n" % number)

    number = first
    while True:
        await gate.acquire()
        # Two tables, so that half a commit would show.
        writes = [Write("t", b"%d" % number, b"x" * 100), Write("other", b"%d" % number, b"y")]
        future = storage.commit(writes)
        assert future is not None
        future.add_done_callback(lambda _, n=number: tell(n))
        number += 1


if __name__ == "__main__":
    asyncio.run(write_for_ever(sys.argv[1], sys.argv[2]))
