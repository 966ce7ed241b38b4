"""Placement groups, and work that is tied to nodes, when nodes and control stores come and go."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import shoal
from shoal.exceptions import ActorUnavailableError, ActorUnschedulableError, TaskUnschedulableError
from shoal.testing.cluster import Cluster, ClusterNode
from shoal.util import (
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from shoal.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tests.api.gates import wait_until
from tests.cluster.placing import PATIENCE_S, Resident, get, places, where, within


def _kill(cluster: Cluster, node_id: str) -> ClusterNode:
    node = next(node for node in cluster.nodes if node.node_id == node_id)
    cluster.remove_node(node, allow_graceful=False)
    return node


def test_what_a_dead_node_had_is_reserved_elsewhere_and_work_follows() -> None:
    with Cluster(initialize_head=False) as cluster:
        cluster.add_nodes([{"num_cpus": 1} for _ in range(3)])
        with cluster.connect():
            driver = cluster.nodes[0].node_id
            group = placement_group([{"CPU": 1}] * 3, strategy="STRICT_SPREAD")
            before = places(group)
            lost = next(i for i, node in enumerate(before) if node != driver)
            strategy = within(group, lost)
            actor = Resident.options(
                scheduling_strategy=strategy, max_restarts=1, num_cpus=0
            ).remote()
            assert get(actor.where.remote()) == before[lost]
            _kill(cluster, before[lost])
            wait_until(
                lambda: placement_group_table(group)["state"] == "RESCHEDULING", "it is missed"
            )
            task = where.options(scheduling_strategy=strategy).remote()
            ready = group.ready()
            assert shoal.wait([task, ready], timeout=0.3)[0] == []
            (new,) = cluster.add_nodes([{"num_cpus": 1}])
            assert get(ready) == group
            after = places(group)
            assert after[lost] == new.node_id
            assert [node for i, node in enumerate(after) if i != lost] == [
                node for i, node in enumerate(before) if i != lost
            ]
            assert get(task) == new.node_id
            assert _where_at_last(actor) == new.node_id

            affinity = NodeAffinitySchedulingStrategy(before[lost], soft=False)
            with pytest.raises(TaskUnschedulableError, match="has left the cluster or died"):
                get(where.options(scheduling_strategy=affinity).remote())
            doomed = Resident.options(scheduling_strategy=affinity).remote()
            with pytest.raises(ActorUnschedulableError, match="has left the cluster or died"):
                get(doomed.where.remote())
            softly = NodeAffinitySchedulingStrategy(before[lost], soft=True)
            remove_placement_group(group)
            assert get(where.options(scheduling_strategy=softly).remote())


def _where_at_last(actor: Any) -> str:
    """Where an actor is after its restart."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            found: str = get(actor.where.remote())
        except ActorUnavailableError:
            assert time.monotonic() < deadline
        else:
            return found


def test_a_group_that_fits_nowhere_says_why_and_starts_when_a_node_joins() -> None:
    with Cluster(initialize_head=False) as cluster:
        cluster.add_nodes([{"num_cpus": 1}, {"num_cpus": 1}])
        with cluster.connect():
            group = placement_group([{"CPU": 1}, {"CPU": 1, "disk": 1}], strategy="STRICT_SPREAD")
            task = where.options(scheduling_strategy=within(group, 1)).remote()
            actor = Resident.options(scheduling_strategy=within(group, 0)).remote()
            call = actor.where.remote()
            assert not group.wait(0.3)
            waits = placement_group_table(group)["waits"]
            assert "bundle 1: it needs disk 1" in waits
            assert "start one" in waits
            assert shoal.wait([task, call], timeout=0.1)[0] == []
            new = cluster.add_node(num_cpus=1, resources={"disk": 1})
            assert get(task) == new.node_id
            assert get(call) in places(group)


def test_groups_outlive_the_control_store(tmp_path: Path) -> None:
    with Cluster(initialize_head=False, storage=f"sqlite://{tmp_path}/control.db") as cluster:
        cluster.add_nodes([{"num_cpus": 1} for _ in range(2)])
        with cluster.connect():
            group = placement_group([{"CPU": 1}] * 2, strategy="STRICT_SPREAD", name="kept")
            before = places(group)
            # Both nodes know by now that they may use what they have reserved.
            for index in (0, 1):
                assert (
                    get(where.options(scheduling_strategy=within(group, index)).remote())
                    == before[index]
                )
            cluster.kill_control()
            assert get(where.options(scheduling_strategy=within(group, 1)).remote()) == before[1]
            cluster.restart_control()
            cluster.wait_for_nodes()
            assert places(group) == before
            remove_placement_group(group)
            other = placement_group([{"CPU": 1}] * 2, strategy="STRICT_SPREAD", name="kept")
            assert sorted(places(other)) == sorted(before)


DRIVER = """
import sys, time
import shoal
from shoal.util import placement_group

shoal.init(address=sys.argv[1], namespace="n")
own = placement_group([{"CPU": 1}] * 2, strategy="STRICT_SPREAD", name="own")
kept = placement_group([{"CPU": 1}] * 2, strategy="STRICT_SPREAD", name="kept", lifetime="detached")
assert own.wait(60) and kept.wait(60)
print(own.id.hex(), kept.id.hex(), flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_the_groups_of_a_driver_go_with_it_unless_they_are_detached(number: int) -> None:
    with Cluster(initialize_head=False) as cluster:
        cluster.add_nodes([{"num_cpus": 2} for _ in range(2)])
        environ = {**os.environ, "SHOAL_TOKEN": cluster.token.hex()}
        with subprocess.Popen(
            [sys.executable, "-c", DRIVER, cluster.address],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environ,
        ) as driver:
            assert driver.stdout is not None
            own, kept = driver.stdout.readline().split()
            driver.send_signal(number)
            try:
                driver.wait(PATIENCE_S)
            finally:
                driver.kill()
        with cluster.connect(namespace="n"):
            group = get_placement_group("kept")
            assert group.id.hex() == kept
            wait_until(lambda: placement_group_table()[own]["state"] == "REMOVED", "one goes")
            assert "its driver" in placement_group_table()[own]["cause"]
            wait_until(lambda: shoal.available_resources()["CPU"] == 2, "what it had is free")
            nodes = places(group)
            assert get(where.options(scheduling_strategy=within(group, 1)).remote()) == nodes[1]
            remove_placement_group(group)
            wait_until(lambda: shoal.available_resources()["CPU"] == 4, "all is free")
