"""Memory of dead objects leaves the stores of a cluster that does nothing more, without anybody waiting for room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import shoal
from shoal.testing import Cluster
from tests.api.gates import wait_until

MB = 1 << 20


@shoal.remote
def make(seed: int) -> Any:
    return np.full(5 * MB, seed, dtype=np.uint8)


def bytes_in_store(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.iterdir())


def test_nothing_stays_warm_in_a_cluster_that_is_idle() -> None:
    with Cluster(head_node_args={"num_cpus": 1}, system_config={"store_idle_s": 0.2}) as cluster:
        cluster.add_node(num_cpus=1, resources={"other": 1})
        cluster.connect()
        folders = [Path((Path(n.session_dir) / "shm").read_text()) for n in cluster.nodes]
        own = [shoal.put(np.full(size, 7, dtype=np.uint8)) for size in (300_000, 3 * MB, 9 * MB)]
        brought = [make.options(resources={"other": 1}).remote(seed) for seed in range(3)]
        arrays = shoal.get([*own, *brought], timeout=60)
        assert all(bytes_in_store(folder) > 12 * MB for folder in folders)
        kept = arrays[0]
        del own, brought, arrays
        # The locks of the creators are there as long as these; so is the page of the object that is looked at.
        wait_until(lambda: bytes_in_store(folders[1]) < MB, "the other node's memory went back")
        wait_until(lambda: bytes_in_store(folders[0]) < MB, "that of copies and of the driver too")
        assert (kept == 7).all()
        # There is room as before.
        again = shoal.put(np.full(9 * MB, 8, dtype=np.uint8))
        assert (shoal.get(again) == 8).all()
