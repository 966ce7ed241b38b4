"""A node that runs short of memory ends a worker of another node's process: its owner hears why."""

from __future__ import annotations

import time

import pytest

import shoal
from shoal.exceptions import ActorDiedError, OutOfMemoryError
from shoal.testing.cluster import Cluster

MIB = 1 << 20
TIGHT = {
    "memory_limit_bytes": 400 * MIB,
    "memory_monitor_refresh_ms": 50,
    "oom_retry_ms": 50,
    "task_oom_retries": 1,
}


@shoal.remote(resources={"far": 1})
def swallow() -> int:
    memory = b"x" * (500 * MIB)
    time.sleep(60)
    return len(memory)


@shoal.remote(resources={"far": 1})
class Glutton:
    def swallow(self) -> int:
        memory = b"x" * (500 * MIB)
        time.sleep(60)
        return len(memory)


def test_an_owner_of_another_node_hears_why(capfd: pytest.CaptureFixture[str]) -> None:
    with Cluster(head_node_args={"num_cpus": 1}, system_config=TIGHT) as cluster:
        far = cluster.add_node(num_cpus=1, resources={"far": 1})
        with cluster.connect():
            with pytest.raises(OutOfMemoryError, match="ran out of memory 2 times"):
                shoal.get(swallow.remote(), timeout=60)
            with pytest.raises(ActorDiedError, match="killed by the memory monitor"):
                shoal.get(Glutton.remote().swallow.remote(), timeout=60)
        assert "was killed by the memory monitor of its node" in far.log_tail()
    assert "was killed by the memory monitor of its node" in capfd.readouterr().err
