"""A cluster of three nodes for each module, and this process as its driver."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.testing.cluster import Cluster
from tests.conftest import checked_at_the_end


@pytest.fixture(scope="module")
def three(request: pytest.FixtureRequest, session_root: Path) -> Iterator[Cluster]:
    """Nodes with two CPUs each and a resource of their own: node0 (the driver's), node1, node2."""
    options = [{"num_cpus": 2, "resources": {f"node{i}": 100}} for i in range(3)]
    checked = checked_at_the_end(request.config, session_root)
    with checked, Cluster(initialize_head=False) as cluster:
        cluster.add_nodes(options)
        with cluster.connect():
            yield cluster
