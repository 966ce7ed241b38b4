"""Clusters for tests: they are real, come and go as told, and end with the process that made them, however that ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import shoal
from shoal.cluster_utils import Cluster as ClusterByItsOtherName
from shoal.runtime.joining import choose_node, find_nodes
from shoal.testing import Cluster
from shoal.wire.session import folder_name
from tests.leaks import SHARED_MEMORY

PATIENCE_S = 30


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@pytest.fixture
def two_nodes() -> Iterator[Cluster]:
    with Cluster(head_node_args={"num_cpus": 1}) as cluster:
        cluster.add_node(num_cpus=1, resources={"disk": 1}, labels={"zone": "a"})
        yield cluster


def test_it_has_the_name_that_users_know() -> None:
    assert ClusterByItsOtherName is Cluster


def test_nodes_have_what_they_were_given(two_nodes: Cluster) -> None:
    two_nodes.wait_for_nodes()
    rows = {row.node_id.hex(): row for row in two_nodes.rows()}
    head, second = two_nodes.nodes
    assert rows.keys() == {head.node_id, second.node_id}
    assert rows[head.node_id].total["CPU"] == 10_000
    assert "node:__internal_head__" in rows[head.node_id].total
    assert "node:__internal_head__" not in rows[second.node_id].total
    assert rows[second.node_id].total["disk"] == 10_000
    assert rows[second.node_id].labels["zone"] == "a"
    assert rows[second.node_id].place == second.place
    assert head.session_dir != second.session_dir
    assert two_nodes.head_node is head
    assert two_nodes.worker_nodes == [second]


def test_tasks_run_where_their_resources_are(two_nodes: Cluster) -> None:
    @shoal.remote(resources={"disk": 1})
    def where() -> str:
        return str(shoal.get_runtime_context().get_node_id())

    with two_nodes.connect():
        assert shoal.get(where.remote()) == two_nodes.nodes[1].node_id
        assert shoal.cluster_resources()["CPU"] == 2
    assert not shoal.is_initialized()
    # The cluster is there for the next driver.
    with shoal.init(two_nodes.address):
        assert shoal.get(where.remote()) == two_nodes.nodes[1].node_id


@pytest.mark.parametrize("graceful", [True, False])
def test_a_node_that_is_removed_is_gone(two_nodes: Cluster, graceful: bool) -> None:
    second = two_nodes.nodes[1]
    two_nodes.remove_node(second, allow_graceful=graceful)
    assert not second.is_alive()
    assert not os.path.exists(second.session_dir)
    two_nodes.wait_for_nodes()
    assert [row.node_id.hex() for row in two_nodes.rows() if row.alive] == [
        two_nodes.head_node.node_id
    ]


def test_several_nodes_are_added_at_once(two_nodes: Cluster) -> None:
    added = two_nodes.add_nodes([{"num_cpus": 1}, {"num_cpus": 2}])
    assert len(two_nodes.nodes) == 4
    totals = {row.node_id.hex(): row.total["CPU"] for row in two_nodes.rows()}
    assert [totals[node.node_id] for node in added] == [10_000, 20_000]


def test_an_unknown_option_of_a_node_is_named(two_nodes: Cluster) -> None:
    with pytest.raises(ValueError, match="a node has no option 'cpus'; the options are: num_cpus"):
        two_nodes.add_node(cpus=1)
    with pytest.raises(ValueError, match="cannot have less than nothing"):
        two_nodes.add_node(num_cpus=-1)
    assert len(two_nodes.nodes) == 2


def test_a_cluster_may_begin_without_nodes() -> None:
    with Cluster(initialize_head=False) as cluster:
        assert cluster.rows() == []
        node = cluster.add_node()
        assert node.is_head


def test_a_cluster_that_cannot_start_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(shoal.exceptions.InternalError, match="the control store could not start"):
        Cluster(storage=f"sqlite://{tmp_path}/no/such/folder/file")


def test_waiting_for_a_node_that_has_ended_says_what_it_said(two_nodes: Cluster) -> None:
    second = two_nodes.nodes[1]
    os.kill(second.pid, signal.SIGKILL)
    wait_for(lambda: not second.is_alive())
    with pytest.raises(TimeoutError, match="has ended; its last words"):
        two_nodes.wait_for_nodes()


def test_the_control_store_may_be_killed_and_started_again(tmp_path: Path) -> None:
    storage = f"sqlite://{tmp_path}/control.db"
    with Cluster(head_node_args={"num_cpus": 1}, storage=storage) as cluster:
        cluster.kill_control()
        cluster.restart_control()
        cluster.wait_for_nodes()
        with cluster.connect():
            assert shoal.get(shoal.remote(len).remote("abc")) == 3


PROGRAM = """
import os, sys, time
from shoal.testing import Cluster
cluster = Cluster(head_node_args={"num_cpus": 1}, connect=True)
cluster.add_node(num_cpus=1)
print(cluster.control_pid, *[node.pid for node in cluster.nodes], *[node.session_dir for node in cluster.nodes], flush=True)
if "end" in sys.argv:
    sys.exit()
time.sleep(100)
"""


@pytest.mark.parametrize("how", ["end", "kill"])
def test_nothing_stays_when_the_program_ends(how: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, how], stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        control, head, second, *folders = program.stdout.readline().split()
        everybody = [psutil.Process(int(pid)) for pid in (control, head, second) if how == "kill"]
        everybody += [child for process in everybody for child in process.children(recursive=True)]
        if how == "kill":
            program.kill()
        assert program.wait(PATIENCE_S) == (0 if how == "end" else -signal.SIGKILL)
    wait_for(lambda: not any(os.path.exists(folder) for folder in folders))
    wait_for(lambda: not any(map(is_alive, everybody)))
    names = [folder_name(folder) for folder in folders]
    assert not any((SHARED_MEMORY / name).exists() for name in names)


def is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


# --- joining -------------------------------------------------------------------------------------------------------------


def test_auto_joins_the_newest_cluster(two_nodes: Cluster) -> None:
    with Cluster(head_node_args={"num_cpus": 1}) as newer, shoal.init("auto") as context:
        assert context["address"] == newer.address
        assert context["node_id"] == newer.head_node.node_id
    with shoal.init("auto") as context:
        assert context["address"] == two_nodes.address


def test_the_variable_joins_and_an_argument_overrides_it(
    two_nodes: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOAL_ADDRESS", two_nodes.address)
    with shoal.init() as context:
        assert context["address"] == two_nodes.address
    with shoal.init("local", num_cpus=1) as context:
        assert context["address"] != two_nodes.address


def test_without_an_address_a_session_is_of_ones_own(two_nodes: Cluster) -> None:
    with shoal.init(num_cpus=1) as context:
        assert context["node_id"] not in {node.node_id for node in two_nodes.nodes}


def test_a_name_of_the_host_will_do(two_nodes: Cluster) -> None:
    port = two_nodes.address.rpartition(":")[2]
    with shoal.init(f"localhost:{port}") as context:
        assert context["address"] == two_nodes.address


def test_options_of_sessions_are_refused(two_nodes: Cluster) -> None:
    with pytest.raises(
        ValueError, match=r"num_cpus, _memory: init\(\) cannot set this when it joins"
    ):
        shoal.init(two_nodes.address, num_cpus=1, _memory=1)
    with pytest.raises(ValueError, match="_system_config: init"):
        shoal.init(two_nodes.address, _system_config={"max_retries": 1})
    assert not shoal.is_initialized()


def test_who_finds_no_cluster_hears_which_there_are(two_nodes: Cluster) -> None:
    with pytest.raises(ConnectionError) as caught:
        shoal.init("127.0.0.1:1")
    text = str(caught.value)
    assert "cannot join the cluster at 127.0.0.1:1: no node of it runs on this machine" in text
    assert two_nodes.address in text
    assert "shoal start --address=127.0.0.1:1" in text
    assert not shoal.is_initialized()


def test_what_is_no_address_is_said(two_nodes: Cluster) -> None:
    for address in ("host:port", "ray://127.0.0.1:1", ":6465", "h:0"):
        with pytest.raises(ValueError, match="is not the address of a cluster"):
            shoal.init(address)


def test_a_dead_node_is_not_joined(two_nodes: Cluster) -> None:
    head, second = two_nodes.nodes
    assert choose_node(two_nodes.address).file.node_id == head.node_id
    os.kill(head.pid, signal.SIGKILL)
    wait_for(lambda: len(find_nodes()) == 1)
    assert choose_node(two_nodes.address).file.node_id == second.node_id


def test_two_drivers_share_a_cluster(two_nodes: Cluster) -> None:
    other = (
        "import sys, shoal; shoal.init(sys.argv[1], namespace='shared')\n"
        "@shoal.remote(num_cpus=0)\n"
        "class Box:\n"
        "    def get(self): return 7\n"
        "box = Box.options(name='box').remote(); shoal.get(box.get.remote())\n"
        "print('made', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", other, two_nodes.address]
    with (
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as driver,
        shoal.init(two_nodes.address, namespace="shared"),
    ):
        assert driver.stdout is not None
        assert driver.stdout.readline() == "made\n"
        box = shoal.get_actor("box")
        assert shoal.get(box.get.remote()) == 7
        driver.communicate("")
        # It was not detached.
        with pytest.raises(shoal.exceptions.ShoalError):
            shoal.get(box.get.remote(), timeout=PATIENCE_S)


@pytest.mark.parametrize("name", ["clusters.md", "placement.md", "lifetimes.md"])
def test_the_program_of_the_page_runs(name: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / name).read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
