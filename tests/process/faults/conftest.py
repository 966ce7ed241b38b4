"""Two nodes, and this process as the driver at the first of them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest

from shoal.testing.cluster import Cluster
from tests.conftest import FAILED, checked_at_the_end
from tests.process.faults.moments import BIG, SIZE, wait_until_nothing_is_stored

SETTINGS: Final[dict[str, Any]] = {
    # In tiny pieces, so that transfers have a middle.
    "transfer_chunk_bytes": 1024,
    "transfer_checksums": True,
    # Whoever is stopped is dead only when it is killed.
    "node_timeout_s": 60.0,
    "pull_stall_s": 60.0,
}


def node_options(number: int, **more: Any) -> dict[str, Any]:
    """A node with one CPU, so that one worker runs its tasks, and a store for three objects of `moments.BIG`."""
    return {
        "num_cpus": 1,
        "object_store_memory": 3 * BIG + SIZE,
        "resources": {f"node{number}": 100},
        **more,
    }


@pytest.fixture(scope="module")
def shared_nodes(request: pytest.FixtureRequest, session_root: Path) -> Iterator[Cluster]:
    """Two nodes for all tests of a module in which no node dies."""
    checked = checked_at_the_end(request.config, session_root)
    with checked, Cluster(initialize_head=False, system_config=SETTINGS) as cluster:
        cluster.add_nodes([node_options(number) for number in range(2)])
        with cluster.connect():
            yield cluster


@pytest.fixture
def two(request: pytest.FixtureRequest, shared_nodes: Cluster) -> Iterator[Cluster]:
    """The same; after each test they store nothing."""
    yield shared_nodes
    check_that_nothing_is_stored(request, shared_nodes)


@pytest.fixture
def mortal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    """Two nodes of the test's own, of which the second may die; it spills to `tmp_path / "disk"`."""
    with Cluster(initialize_head=False, system_config=SETTINGS) as cluster:
        disk = str(tmp_path / "disk")
        cluster.add_nodes([node_options(0), node_options(1, object_spilling_directory=disk)])
        with cluster.connect():
            yield cluster
            check_that_nothing_is_stored(request, cluster)


def check_that_nothing_is_stored(request: pytest.FixtureRequest, cluster: Cluster) -> None:
    """But after a failed test, whose traceback keeps its references."""
    if not request.node.stash.get(FAILED, False):
        wait_until_nothing_is_stored(cluster)


@pytest.fixture
def beside() -> Iterator[ThreadPoolExecutor]:
    """A thread that waits for something while the test goes on."""
    with ThreadPoolExecutor(1) as executor:
        yield executor
