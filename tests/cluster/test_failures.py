"""What is left of a cluster's work when nodes, drivers and workers end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import shoal
from shoal.exceptions import NodeDiedError
from shoal.testing.cluster import Cluster
from tests.api.gates import Gate, wait_until

PATIENCE_S = 30


def get(refs: Any) -> Any:
    return shoal.get(refs, timeout=PATIENCE_S)


def on(number: int) -> dict[str, Any]:
    """Options that only one node can satisfy."""
    return {"resources": {f"node{number}": 0.01}}


@pytest.fixture
def two() -> Iterator[Cluster]:
    options = [{"num_cpus": 2, "resources": {f"node{i}": 100}} for i in range(2)]
    with Cluster(initialize_head=False) as cluster:
        cluster.add_nodes(options)
        yield cluster


@pytest.fixture
def driven(two: Cluster) -> Iterator[Cluster]:
    with two.connect():
        yield two


@shoal.remote
def node_and_pid() -> tuple[str, int]:
    return shoal.get_runtime_context().get_node_id(), os.getpid()


@shoal.remote
class Holder:
    def __init__(self) -> None:
        self.kept: Any = None

    def node_and_pid(self) -> tuple[str, int]:
        return shoal.get_runtime_context().get_node_id(), os.getpid()

    def put(self, value: Any) -> list[Any]:
        self.kept = shoal.put(value)
        return [self.kept]

    def keep(self, box: list[Any]) -> None:
        self.kept = box


def test_tasks_of_a_node_that_dies_run_elsewhere(driven: Cluster, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    started = tmp_path / "started"
    started.mkdir()

    @shoal.remote(max_retries=1)
    def work() -> str:
        node = shoal.get_runtime_context().get_node_id()
        (started / f"{node}-{os.getpid()}").touch()
        gate.wait()
        return node

    refs = [work.remote() for _ in range(4)]
    wait_until(lambda: len(list(started.iterdir())) == 4, "all run")
    first, second = driven.nodes
    driven.remove_node(second, allow_graceful=False)
    gate.open()
    assert get(refs) == [first.node_id] * 4
    assert {row["NodeID"] for row in shoal.nodes() if row["Alive"]} == {first.node_id}


def test_a_task_that_may_not_be_retried_says_which_node_died(driven: Cluster) -> None:
    @shoal.remote(max_retries=0)
    def forever() -> None:
        time.sleep(1000)

    started = node_and_pid.options(**on(1)).remote()
    get(started)
    ref = forever.options(**on(1)).remote()
    wait_until(lambda: shoal.available_resources().get("CPU", 4) < 4, "it runs")
    driven.remove_node(driven.nodes[1], allow_graceful=False)
    with pytest.raises(shoal.exceptions.WorkerCrashedError, match="its node"):
        get(ref)


def test_an_actor_of_a_node_that_dies_lives_again_elsewhere(driven: Cluster) -> None:
    first, second = driven.nodes
    get([node_and_pid.options(**on(i)).remote() for i in range(2)])
    holders = [
        Holder.options(max_restarts=1, max_task_retries=1, num_cpus=1).remote() for _ in range(3)
    ]
    before = [node for node, _ in get([holder.node_and_pid.remote() for holder in holders])]
    assert set(before) == {first.node_id, second.node_id}
    third = driven.add_node(num_cpus=2)
    driven.remove_node(second, allow_graceful=False)
    after = [node for node, _ in get([holder.node_and_pid.remote() for holder in holders])]
    assert set(after) <= {first.node_id, third.node_id}
    for was, is_now in zip(before, after, strict=True):
        assert was in {second.node_id, is_now}


def test_an_actor_without_restarts_dies_with_its_node_and_says_so(driven: Cluster) -> None:
    holder = Holder.options(**on(1)).remote()
    get(holder.node_and_pid.remote())
    driven.remove_node(driven.nodes[1], allow_graceful=False)
    with pytest.raises(shoal.exceptions.ActorDiedError, match="node"):
        get(holder.node_and_pid.remote())


def test_a_value_whose_owner_died_with_its_node_is_lost_by_name(driven: Cluster) -> None:
    holder = Holder.options(**on(1)).remote()
    (ref,) = get(holder.put.remote("value"))
    driven.remove_node(driven.nodes[1], allow_graceful=False)
    with pytest.raises(shoal.exceptions.OwnerDiedError, match="node"):
        get(ref)


def test_a_node_that_joins_later_takes_what_waited_for_it(driven: Cluster) -> None:
    ref = node_and_pid.options(resources={"late": 1}).remote()
    holder = Holder.options(resources={"late": 1}).remote()
    waiting = holder.node_and_pid.remote()
    assert shoal.wait([ref, waiting], timeout=0.3)[0] == []
    node = driven.add_node(num_cpus=2, resources={"late": 2})
    assert get(ref)[0] == node.node_id
    assert get(waiting)[0] == node.node_id


def test_a_node_that_leaves_in_good_order_is_not_missed(driven: Cluster) -> None:
    first, second = driven.nodes
    assert get(node_and_pid.options(**on(1)).remote())[0] == second.node_id
    driven.remove_node(second)
    assert {get(node_and_pid.remote())[0] for _ in range(4)} == {first.node_id}


DRIVER = """
import sys, time, shoal
shoal.init(address=sys.argv[1])

@shoal.remote
class Plain:
    def pid(self):
        import os
        return os.getpid()

@shoal.remote
def forever():
    time.sleep(1000)

plain = Plain.options(resources={"node1": 0.01}).remote()
left = Plain.options(resources={"node1": 0.01}, name="left behind", namespace="n", lifetime="detached", max_restarts=1, max_task_retries=-1).remote()
refs = [forever.options(resources={f"node{i}": 0.01}, num_cpus=0.5).remote() for i in range(2)]
print(*shoal.get([plain.pid.remote(), left.pid.remote()]), flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize("how", ["killed", "interrupted"])
def test_what_a_driver_leaves_ends_on_all_nodes_but_what_is_detached(
    two: Cluster, how: str
) -> None:
    environ = {**os.environ, "SHOAL_TOKEN": two.token.hex()}
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER, two.address], stdout=subprocess.PIPE, text=True, env=environ
    ) as driver:
        assert driver.stdout is not None
        plain, left = (int(word) for word in driver.stdout.readline().split())
        driver.send_signal(signal.SIGKILL if how == "killed" else signal.SIGINT)
        try:
            driver.wait(PATIENCE_S)
        finally:
            driver.kill()

    def workers() -> set[int]:
        found = set()
        for node in two.nodes:
            for process in psutil.Process(node.pid).children(recursive=True):
                # It may end just now.
                with contextlib.suppress(psutil.NoSuchProcess):
                    if process.name() == "shoal:worker":
                        found.add(process.pid)
        return found

    wait_until(lambda: plain not in workers(), "the actor ends")
    wait_until(lambda: workers() == {left}, "only the detached one is left")
    with two.connect(namespace="n"):
        handle = shoal.get_actor("left behind")
        assert get(handle.pid.remote()) == left
        # Its job is over, and it starts again all the same.
        os.kill(left, signal.SIGKILL)
        wait_until(
            lambda: get(shoal.get_actor("left behind").pid.remote()) != left, "it lives again"
        )
        shoal.kill(handle)


def test_drivers_share_a_cluster_and_do_not_disturb_each_other(two: Cluster) -> None:
    script = (
        "import sys, shoal; shoal.init(address=sys.argv[1])\n"
        "f = shoal.remote(lambda x: x + 1)\n"
        "print(sum(shoal.get([f.remote(i) for i in range(100)])))"
    )
    environ = {**os.environ, "SHOAL_TOKEN": two.token.hex()}
    drivers = [
        subprocess.Popen(
            [sys.executable, "-c", script, two.address],
            stdout=subprocess.PIPE,
            text=True,
            env=environ,
        )
        for _ in range(3)
    ]
    for driver in drivers:
        out, _ = driver.communicate(timeout=PATIENCE_S)
        assert out.strip() == "5050"


def test_a_node_that_stops_answering_is_given_up_and_ends_when_it_wakes() -> None:
    settings = {"node_heartbeat_s": 0.1, "node_timeout_s": 1.0}
    options = [{"num_cpus": 1, "resources": {f"node{i}": 100}} for i in range(2)]
    with Cluster(initialize_head=False, system_config=settings) as cluster:
        first, second = cluster.add_nodes(options)
        with cluster.connect():

            @shoal.remote(max_retries=1)
            def where() -> str:
                return shoal.get_runtime_context().get_node_id()

            holder = Holder.options(**on(1)).remote()
            _, pid = get(holder.node_and_pid.remote())
            assert get(where.options(**on(1)).remote()) == second.node_id
            os.kill(second.pid, signal.SIGSTOP)
            try:
                wait_until(
                    lambda: (
                        [row["NodeID"] for row in shoal.nodes() if row["Alive"]] == [first.node_id]
                    ),
                    "it is given up",
                )

                def is_dead() -> bool:
                    # Its process lives, and answers until this one has heard that the node is given up.
                    try:
                        get(holder.node_and_pid.remote())
                    except shoal.exceptions.ActorDiedError as error:
                        return "heartbeat" in str(error)
                    return False

                wait_until(is_dead, "so is its actor")
                assert get(where.remote()) == first.node_id
                # Its work was given away, and it does not know yet: nobody has to do with its processes any more.
                assert psutil.pid_exists(pid)
            finally:
                os.kill(second.pid, signal.SIGCONT)
            wait_until(lambda: not second.is_alive(), "it ends, as it was told")
            wait_until(lambda: not psutil.pid_exists(pid), "and its workers with it")
            assert "heartbeat" in second.log_tail()
            cluster.remove_node(second)


def test_a_driver_hears_why_its_node_has_ended() -> None:
    with (
        Cluster(head_node_args={"num_cpus": 1}, system_config={"control_retry_s": 0.5}) as cluster,
        cluster.connect(),
    ):
        get(node_and_pid.remote())
        cluster.kill_control()
        wait_until(lambda: not cluster.head_node.is_alive(), "the node gives up", PATIENCE_S)
        with pytest.raises(NodeDiedError, match=r"ended .cannot reach the control store"):
            get(node_and_pid.remote())


@shoal.remote(num_cpus=0)
class Lender:
    def elsewhere(self) -> str:
        return str(get(node_and_pid.options(**on(1)).remote())[0])


def test_an_actor_that_outlives_its_job_has_its_tasks_run_on_other_nodes(two: Cluster) -> None:
    with two.connect(namespace="lenders"):
        lender = Lender.options(name="lender", lifetime="detached", **on(0)).remote()
        # The other node knows the job from here, and later that it is over.
        assert get(lender.elsewhere.remote()) == two.nodes[1].node_id
    with two.connect(namespace="lenders"):
        lender = shoal.get_actor("lender")
        for _ in range(2):
            assert get(lender.elsewhere.remote()) == two.nodes[1].node_id
        shoal.kill(lender)
