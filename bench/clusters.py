"""Clusters of either system under test: several nodes on this machine, and the process that measures as their driver.

Both come from the same name, ``cluster_utils.Cluster``.  Guarantees: node *i* has the resource ``node{i}``, so that a workload
can say where something is to be; each cluster starts in the quickest way that its ``Cluster`` knows (shoal's ``add_nodes`` starts
all at the same time; Ray's ``add_node`` is told not to wait, and then all are waited for).  Imported inside Ray's environment too,
so only the standard library is used.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.peers import Core, Peer

MB = 1_000_000


@dataclass(frozen=True, slots=True)
class Nodes:
    """How many nodes, with how much shared memory each.  They have one CPU each, as in either peer's tests."""

    count: int
    object_store_memory: int = 256 * MB

    def options(self, index: int) -> dict[str, Any]:
        """What ``add_node`` is given; both peers know these names."""
        return {
            "num_cpus": 1,
            "resources": {resource_of(index): 1_000},
            "object_store_memory": self.object_store_memory,
        }


def resource_of(index: int) -> str:
    """The resource that only this node has; the driver is at node 0."""
    return f"node{index}"


def on_node(index: int) -> dict[str, Any]:
    """Options of a task or an actor that is to run at a node."""
    return {"resources": {resource_of(index): 1}}


def start(peer: Peer, nodes: Nodes) -> Any:
    """A cluster with all its nodes, which the control store knows of."""
    module = importlib.import_module(f"{peer.module}.cluster_utils")
    first, *others = (nodes.options(index) for index in range(nodes.count))
    cluster = module.Cluster(
        initialize_head=True, head_node_args={**first, "include_dashboard": False}
    )
    if hasattr(cluster, "add_nodes"):
        cluster.add_nodes(others)
    else:
        for options in others:
            cluster.add_node(wait=False, **options)
        cluster.wait_for_nodes()
    return cluster


def connect(core: Core, cluster: Any, options: Mapping[str, Any]) -> None:
    """Make this process a driver at node 0."""
    core.init(address=cluster.address, **options)


@contextmanager
def opened(peer: Peer, nodes: Nodes) -> Iterator[Core]:
    """A cluster, and this process connected to it."""
    core = peer.load()
    cluster = start(peer, nodes)
    try:
        connect(core, cluster, peer.driver_options)
        try:
            yield core
        finally:
            core.shutdown()
    finally:
        cluster.shutdown()
