"""``python -m bench.transfer``: how fast 100 MB come from one node to another, beside two bare sockets.

Both move the same bytes over the same loopback interface, from shared memory to shared memory, in turns: A B A B … The bare side is what
the kernel can do at best: one process sends a file by ``sendfile``, another receives into a mapping whose pages are there, both
over one connection that stays open. shoal's side is a whole ``get`` of a task's result that lies at the other node: the question to
the daemon, its question to the other daemon, the transfer, and mapping the copy.

Prints the median of each, in GB/s, and that of the quotients of neighbours, since other load on the machine slows both.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np

import shoal
from bench.workloads.sockets import bare_sockets
from shoal.testing.cluster import Cluster

_ROOM = 1 << 30


@shoal.remote(resources={"there": 1})
def _make(size: int) -> Any:
    return np.ones(size, dtype=np.uint8)


def _get(size: int) -> float:
    ref = _make.remote(size)
    shoal.wait([ref], fetch_local=False)
    start = time.perf_counter()
    value = shoal.get(ref)
    took = time.perf_counter() - start
    assert value[-1] == 1
    return took


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description="100 MB from node to node, beside bare sockets.")
    parser.add_argument("--mb", type=int, default=100)
    parser.add_argument("--times", type=int, default=20)
    options = parser.parse_args()
    size = options.mb * 1_000_000
    # The sockets first: they fork, and the driver has threads.
    with (
        bare_sockets(size) as move,
        Cluster(head_node_args={"num_cpus": 1, "object_store_memory": _ROOM}) as cluster,
    ):
        cluster.add_node(num_cpus=1, resources={"there": 1}, object_store_memory=_ROOM)
        cluster.wait_for_nodes()
        with cluster.connect():
            for _ in range(3):
                move(), _get(size)
            pairs = [(move(), _get(size)) for _ in range(options.times)]
    ratio = statistics.median(bare / ours for bare, ours in pairs)
    bare, ours = (
        statistics.median(size / 1e9 / took for took in side) for side in zip(*pairs, strict=True)
    )
    print(f"bare sockets {bare:.2f} GB/s, get {ours:.2f} GB/s: {ratio:.0%}")


if __name__ == "__main__":
    main()
