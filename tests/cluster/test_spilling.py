"""Objects of several nodes, more of them than fit: written to disk where they are, fetched from there, and counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import shoal
from shoal.cli.status import _store_line
from shoal.messages.placement import StoreRow
from shoal.testing import Cluster
from tests.api.gates import wait_until

MB = 1 << 20
CAPACITY = 40 * MB
SIZE = 5 * MB


@shoal.remote
def make(seed: int, size: int) -> Any:
    return np.full(size, seed, dtype=np.uint8)


@shoal.remote
def check(found: Any, seed: int) -> bool:
    return bool((found == seed).all())


def stores(cluster: Cluster) -> list[StoreRow]:
    return [view.store for view in cluster.status().views if view.store is not None]


def test_objects_come_from_the_disk_of_other_nodes_and_larger_ones_go_to_ones_own(
    tmp_path: Path,
) -> None:
    options = {"num_cpus": 2, "object_store_memory": CAPACITY}
    with Cluster(head_node_args=options, system_config={"spill_fallback_s": 0.2}) as cluster:
        other = cluster.add_node(
            **options, resources={"other": 4}, object_spilling_directory=str(tmp_path)
        )
        cluster.connect()
        there = make.options(resources={"other": 1})
        refs = [there.remote(seed, SIZE) for seed in range(20)]
        large = there.remote(100, CAPACITY + MB)
        shoal.wait([*refs, large], num_returns=21, timeout=60)
        (folder,) = tmp_path.iterdir()
        assert any(folder.iterdir())
        wait_until(lambda: any(s.on_disk > CAPACITY for s in stores(cluster)), "status knows of it")
        assert all(row.capacity == CAPACITY and row.used <= CAPACITY for row in stores(cluster))
        line = _store_line(cluster.status().views)
        assert " / 80 MiB, spilled " in line
        assert " on disk (" in line
        # Through this node, which has no room for all of them either.
        for seed, ref in enumerate(refs):
            assert (shoal.get(ref, timeout=60) == seed).all()
        found = shoal.get(large, timeout=60)
        assert (found == 100).all()
        here = check.options(resources={"node:__internal_head__": 0.001})
        assert all(shoal.get([here.remote(ref, n) for n, ref in enumerate(refs)], timeout=60))
        del found, refs, ref, large
        wait_until(lambda: not any(folder.iterdir()), "what is dead leaves the disk")
        wait_until(lambda: all(row.on_disk == 0 for row in stores(cluster)), "status knows of it")
        cluster.remove_node(other)
        assert not any(tmp_path.iterdir())
