"""What the cluster says of nodes that are dead: why, and whether they were told to end."""

from __future__ import annotations

import os
import signal

import psutil

import shoal
from shoal.testing.cluster import Cluster
from shoal.util.state import list_nodes
from tests.api.gates import wait_until

LIVES, STOPPED, FAILED = 0, 1, 2


def test_the_cause_of_a_nodes_death_is_listed() -> None:
    with Cluster(initialize_head=False, system_config={"node_reconnect_s": 0.2}) as cluster:
        here, stopped, killed, broken = cluster.add_nodes([{"num_cpus": 1}] * 4)
        with cluster.connect():
            cluster.remove_node(stopped)
            cluster.remove_node(killed, allow_graceful=False)
            (zygote,) = psutil.Process(broken.pid).children()
            os.kill(zygote.pid, signal.SIGKILL)
            wait_until(lambda: not broken.is_alive(), "it cannot go on without its zygote")
            cluster.remove_node(broken)

            rows = {row["NodeID"]: row for row in shoal.nodes()}
            assert {node_id: row["DeathReason"] for node_id, row in rows.items()} == {
                here.node_id: LIVES,
                stopped.node_id: STOPPED,
                killed.node_id: FAILED,
                broken.node_id: FAILED,
            }
            said = {node_id: row["DeathReasonMessage"] for node_id, row in rows.items()}
            assert said[here.node_id] == ""
            assert said[stopped.node_id] == "It was stopped."
            assert said[killed.node_id] == (
                "It closed its connection to the control store, and was not back in 0.2 s."
            )
            assert said[broken.node_id].startswith("It failed: the process that forks workers")
            states = {row.node_id: row for row in list_nodes()}
            assert (states[here.node_id].state, states[here.node_id].state_message) == (
                "ALIVE",
                None,
            )
            assert states[stopped.node_id].state_message == "was stopped"
            assert states[stopped.node_id].state == "DEAD"
