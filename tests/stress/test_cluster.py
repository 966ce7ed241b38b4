"""Everything at once, between three nodes, for `--stress-seconds`; and then nothing is left."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from typing import Any, Final

import pytest

import shoal
from shoal.runtime import current_process
from shoal.testing.cluster import Cluster
from shoal.util import state
from shoal.util.memory import memory_report
from tests.api.gates import wait_until
from tests.stress.drivers import Driver, Shared
from tests.stress.test_mixed import known_objects, run_all

pytestmark = [pytest.mark.stress, pytest.mark.timeout(600)]

THREADS: Final = 4
NODES: Final = 3
CPUS: Final = 2
SEED: Final = int(os.environ.get("SHOAL_STRESS_SEED", "20"))


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    options = [{"num_cpus": CPUS, "object_store_memory": 10**9} for _ in range(NODES)]
    with Cluster(initialize_head=False) as made:
        made.add_nodes(options)
        with made.connect():
            yield made


def held_in_stores() -> list[str]:
    """What is there although no object is: blocks that leak, and bytes that the dead have left."""
    with state.asking(None, 30) as questions:
        report = memory_report(questions)
    held = [f"{block.kind}: {block.why}" for block in report.blocks]
    held += [f"left by ended: {node.asdict()}" for node in report.nodes if node.left_by_ended]
    return held + [f"not compared: {who}" for who in report.silent]


@pytest.mark.parametrize("crashes", [False, True], ids=["", "with crashes"])
def test_mixed_load_between_nodes(cluster: Cluster, stress_seconds: float, crashes: bool) -> None:
    """Half of the time without, half with tasks that kill their workers."""
    until = time.monotonic() + stress_seconds / 2
    shared = Shared()
    drivers = [Driver(SEED + n, shared, crashes) for n in range(THREADS)]
    run_all(drivers, until)
    assert sum(count for driver in drivers for count in driver.done.values()) > 0
    del shared, drivers
    gc.collect()
    process: Any = current_process.require()
    wait_until(lambda: known_objects() == [], f"no object is known any more: {known_objects()}")
    with process.lock:
        process.objects.check()
        process.owner.tasks.check()
    assert process.store.arena.stats().live_blocks == 0
    wait_until(lambda: held_in_stores() == [], f"the stores are empty: {held_in_stores()}")
    wait_until(
        lambda: shoal.available_resources().get("CPU") == NODES * CPUS,
        "all leases have been given back",
    )
    assert all(node.is_alive() for node in cluster.nodes)
