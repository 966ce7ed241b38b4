"""What a cluster tells about itself: why something waits, and what there is."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import shoal
from shoal.testing.cluster import Cluster
from shoal.util import state
from shoal.util.placement_group import placement_group, remove_placement_group
from shoal.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from tests.api.gates import Gate, wait_until

PATIENCE_S = 60

INFEASIBLE = """
import sys, shoal
shoal.init(address=sys.argv[1])

@shoal.remote(resources={"late": 1})
def work():
    return "done"

@shoal.remote(num_cpus=100)
class Large:
    def ready(self):
        return "ready"

refs = [work.remote() for _ in range(5)]
large = Large.options(name="big").remote()
answer = large.ready.remote()
print("submitted", flush=True)
print(*shoal.get([*refs, answer]), flush=True)
"""


TOO_SOON = """
import sys, shoal
shoal.init(address=sys.argv[1])
work = shoal.remote(resources={"late": 1})(len).remote("abc")
print("submitted", flush=True)
print(shoal.get(work), flush=True)
"""


@pytest.fixture
def one() -> Iterator[Cluster]:
    with Cluster(head_node_args={"num_cpus": 1}, system_config={"explain_ms": 0}) as cluster:
        yield cluster


def test_a_driver_is_warned_once_of_what_fits_nowhere_and_it_runs_when_a_node_joins(
    one: Cluster,
) -> None:
    environ = {**os.environ, "SHOAL_TOKEN": one.token.hex()}
    with subprocess.Popen(
        [sys.executable, "-c", INFEASIBLE, one.address],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ,
    ) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "submitted\n"
        wait_until(lambda: one.status().waiting != [], "the actor waits")
        # A node that helps nobody is no reason to say it again.
        one.add_node(num_cpus=1)
        one.add_node(num_cpus=128, resources={"late": 1})
        assert driver.stdout.readline().split() == ["done"] * 5 + ["ready"]
        _, errors = driver.communicate(timeout=PATIENCE_S)
    said = [line for line in errors.splitlines() if line.startswith("shoal: ")]
    assert len(said) == 2, errors
    task, actor = sorted(said, reverse=True)
    assert task.startswith(
        "shoal: the task work() waits: it needs late 1, and the only node has none."
    )
    assert "`shoal start --address=HOST:PORT --num-cpus=1 --resources='{\"late\": 1}'`" in task
    assert actor.startswith(
        "shoal: the actor 'big' of class Large waits: it needs CPU 100, and the only node has 1."
    )
    assert "--num-cpus=100" in actor


def test_nobody_is_warned_of_what_fits_before_it_is_time_to_explain() -> None:
    with Cluster(head_node_args={"num_cpus": 1}, system_config={"explain_ms": 60_000}) as cluster:
        environ = {**os.environ, "SHOAL_TOKEN": cluster.token.hex()}
        with subprocess.Popen(
            [sys.executable, "-c", TOO_SOON, cluster.address],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environ,
        ) as driver:
            assert driver.stdout is not None
            assert driver.stdout.readline() == "submitted\n"
            # It takes much longer until there is a node than until the request has found none.
            cluster.add_node(num_cpus=1, resources={"late": 1})
            said, errors = driver.communicate(timeout=PATIENCE_S)
    assert said == "3\n"
    assert errors == ""


# --- three nodes ------------------------------------------------------------------------------------------------------


@shoal.remote
def hold(gate: Gate, _argument: Any = None) -> str:
    gate.wait(PATIENCE_S)
    return shoal.get_runtime_context().get_node_id()


@shoal.remote
class Holder:
    def where(self) -> str:
        return shoal.get_runtime_context().get_node_id()

    def hold(self, gate: Gate) -> None:
        gate.wait(PATIENCE_S)


def on(number: int) -> dict[str, Any]:
    """Options that only one node can satisfy."""
    return {"resources": {f"node{number}": 0.01}}


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.open()


def running(name: str = "hold") -> list[state.TaskState]:
    return state.list_tasks(filters=[("name", "=", name), ("state", "=", "RUNNING")], detail=True)


def why(ref: Any, until: Callable[[state.Explanation], object]) -> state.Explanation:
    """The explanation, once it is as it must become."""
    found: list[state.Explanation] = []

    def look() -> bool:
        found[:] = [state.why(ref if isinstance(ref, str) else ref.hex())]
        return bool(until(found[0]))

    try:
        wait_until(look, "it is explained")
    except AssertionError:
        raise AssertionError(f"the explanation stays\n{found[0] if found else None}") from None
    return found[0]


def test_a_task_behind_a_dependency_names_the_task_that_makes_it_and_where_it_runs(
    three: Cluster, gate: Gate
) -> None:
    first = hold.options(**on(2)).remote(gate)
    second = hold.remote(gate, first)
    third = hold.remote(gate, second)
    steps = why(third, lambda found: found[-1].kind == "running" and len(found) == 4)
    assert [step.kind for step in steps] == ["dependency", "dependency", "running", "running"]
    assert [step.depth for step in steps] == [0, 1, 2, 2]
    assert f"object {second.hex()[:26]}, which hold() makes" in steps[0].text
    assert first.hex()[:26] in steps[1].text
    assert steps[-1].node_id == three.nodes[2].node_id
    assert all(step.waits_s is not None for step in steps if step.kind == "dependency")
    with pytest.raises(shoal.exceptions.GetTimeoutError, match=f"{first.hex()[:26]}.*which hold"):
        shoal.get(third, timeout=0.01)
    gate.open()
    shoal.get(third, timeout=PATIENCE_S)


def test_tasks_behind_busy_cpus_name_who_has_them_and_how_many_are_ahead(
    three: Cluster, gate: Gate
) -> None:
    # One that has not run yet: those that are known to be short are sent to busy workers in advance.
    @shoal.remote
    def occupy(gate: Gate) -> str:
        gate.wait(PATIENCE_S)
        return shoal.get_runtime_context().get_node_id()

    there = occupy.options(name="occupy", **on(1))
    busy = [there.remote(gate) for _ in range(2)]
    wait_until(lambda: len(running("occupy")) == 2, "both CPUs are busy")
    waiting = [there.remote(gate) for _ in range(5)]
    steps = why(waiting[3], lambda found: len(found) > 1 and found[-1].holders)
    assert steps[0].kind == "resource"
    assert steps[0].ahead == 3
    last = steps[-1]
    assert last.kind == "resource"
    assert "CPU 1 is not free (0 of 2 is)" in last.text
    assert last.node_id == three.nodes[1].node_id
    assert last.waits_s is not None
    pids = {task.worker_pid for task in running("occupy")}
    assert all(any(f"pid {pid} " in holder for holder in last.holders) for pid in pids)
    # Whoever waited in vain is told by the node, too.
    with pytest.raises(shoal.exceptions.GetTimeoutError, match="waits for a worker"):
        shoal.get(waiting[3], timeout=0.6)
    gate.open()
    assert set(shoal.get([*busy, *waiting], timeout=PATIENCE_S)) == {three.nodes[1].node_id}


def test_actors_that_wait_for_room_and_actors_that_fit_nowhere_say_so(
    three: Cluster, gate: Gate
) -> None:
    busy = hold.options(**on(2)).remote(gate)
    wait_until(lambda: len(running()) == 1, "a CPU is busy")
    small = Holder.options(num_cpus=2, name="small", **on(2)).remote()
    call = small.where.remote()
    steps = why(call, lambda found: found[-1].holders)
    assert [step.kind for step in steps] == ["actor", "resource", "resource"]
    assert "CPU 2 is not free (1 of 2 is)" in steps[-1].text
    assert steps[-1].node_id == three.nodes[2].node_id
    large = Holder.options(num_cpus=64).remote()
    (row,) = [
        row
        for row in state.list_actors(filters=[("state", "!=", "DEAD")], detail=True)
        if row.pending_reason
    ]
    (step,) = why(row.actor_id, lambda found: found[0].kind == "nowhere")
    assert "it needs CPU 64, and of the 3 nodes none has more than 2" in step.text
    assert step.waits_s is not None
    shoal.kill(large)
    gate.open()
    shoal.get([busy, call], timeout=PATIENCE_S)
    wait_until(
        lambda: not [a for a in state.list_actors(detail=True) if a.pending_reason], "it goes"
    )


def test_a_task_that_no_node_can_serve_says_what_would_help(three: Cluster, gate: Gate) -> None:
    ref = hold.options(resources={"unheard_of": 1}).remote(gate)
    steps = why(ref, lambda found: found[-1].kind == "nowhere")
    assert "it needs unheard_of 1, and of the 3 nodes none has any" in steps[-1].text
    assert "--resources='{\"unheard_of\": 1}'" in steps[-1].text
    shoal.cancel(ref)


def test_placement_groups_and_what_waits_for_them_say_why(three: Cluster, gate: Gate) -> None:
    group = placement_group([{"CPU": 1}, {"CPU": 64}], name="wide")
    strategy = PlacementGroupSchedulingStrategy(placement_group=group)
    ref = hold.options(scheduling_strategy=strategy).remote(gate)
    steps = why(group.id.hex(), lambda found: "it needs CPU 64" in found[0].text)
    assert [step.kind for step in steps] == ["placement group"]
    assert "0 of 2 bundles are reserved" in steps[0].text
    (row,) = state.list_placement_groups(filters=[("name", "=", "wide")], detail=True)
    assert (row.state, row.strategy) == ("PENDING", "PACK")
    assert row.pending_reason is not None
    assert "CPU 64" in row.pending_reason
    waiting = why(ref, lambda found: len(found) > 1)
    assert "placement group" in str(waiting)
    remove_placement_group(group)
    with pytest.raises(shoal.exceptions.TaskPlacementGroupRemoved):
        shoal.get(ref, timeout=PATIENCE_S)


@contextlib.contextmanager
def no_forks(cluster: Cluster) -> Iterator[None]:
    """While this lasts, no node can start a worker."""
    zygotes = [
        child
        for node in cluster.nodes
        for child in psutil.Process(node.pid).children()
        if "zygote" in child.name()
    ]
    assert len(zygotes) == len(cluster.nodes)
    for zygote in zygotes:
        zygote.suspend()
    try:
        yield
    finally:
        for zygote in zygotes:
            zygote.resume()


def test_a_task_waits_for_the_start_of_a_worker_in_its_environment(
    three: Cluster, gate: Gate
) -> None:
    with no_forks(three):
        env = {"env_vars": {"ONLY": "here"}}
        ref = hold.options(runtime_env=env).remote(gate)
        steps = why(ref, lambda found: found[-1].kind == "environment")
        assert "a worker is being started" in steps[-1].text
        assert steps[-1].ahead == 0
    gate.open()
    shoal.get(ref, timeout=PATIENCE_S)


def test_lists_have_what_runs_on_all_nodes_also_for_who_is_no_driver(
    three: Cluster, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    refs = [hold.options(name=f"held {i}", **on(i)).remote(gate) for i in range(3)]
    names = {f"held {i}" for i in range(3)}
    nodes = {f"held {i}": node.node_id for i, node in enumerate(three.nodes)}

    def held(**where: str) -> dict[str, str | None]:
        tasks = state.list_tasks(**where, filters=[("state", "=", "running")])
        return {task.name: task.node_id for task in tasks if task.name in names}

    wait_until(lambda: held() == nodes, "all are listed")
    # By address, straight from the control store.
    monkeypatch.setenv("SHOAL_TOKEN", three.token.hex())
    assert held(address=three.address) == nodes
    assert "runs in the process with pid" in str(state.why(refs[0].hex(), address=three.address))
    environ = {**os.environ, "SHOAL_TOKEN": three.token.hex()}

    def command(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "shoal", *arguments, "--address", three.address],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            env=environ,
            check=False,
        )
        assert done.returncode == 0, done
        return done.stdout

    listed = json.loads(command("list", "tasks", "--filter", "state=running", "--format", "json"))
    assert {row["name"]: row["node_id"] for row in listed if row["name"] in names} == nodes
    table = command("list", "nodes").splitlines()
    assert table[0].split()[:3] == ["NODE_ID", "NODE_IP", "NODE_NAME"]
    assert {line.split()[0] for line in table[1:]} >= {node.node_id for node in three.nodes}
    one = dict(
        line.split(None, 1) for line in command("get", "task", refs[1].hex()[:26]).splitlines()
    )
    assert (one["name"], one["node_id"]) == ("held 1", nodes["held 1"])
    said = command("why", refs[1].hex()[:26])
    assert "runs in the process with pid" in said
    assert "held 2" in command("summary", "tasks")
    workers = state.list_workers(filters=[("is_alive", "=", True)])
    assert {worker.node_id for worker in workers} == set(nodes.values())
    assert [job.status for job in state.list_jobs()] == ["RUNNING"]
    gate.open()
    shoal.get(refs, timeout=PATIENCE_S)

    def in_trace() -> set[str]:
        trace = shoal.timeline()
        assert trace is not None
        return {event["name"] for event in trace if event["name"] in names}

    wait_until(lambda: in_trace() == names, "the timeline has what ran on every node")
    # The states are those after the end.
    ended = state.list_tasks(filters=[("state", "=", "FINISHED")], limit=10_000, detail=True)
    assert {task.name for task in ended} >= names


def test_objects_are_listed_by_who_owns_and_who_borrows_them(three: Cluster) -> None:
    holder = Holder.options(**on(1)).remote()
    shoal.get(holder.where.remote(), timeout=PATIENCE_S)

    @shoal.remote
    class Keeper:
        def keep(self, box: list[Any]) -> None:
            self.kept = box

    keeper = Keeper.options(**on(1)).remote()
    ref = shoal.put(bytes(1_000_000))
    shoal.get(keeper.keep.remote([ref]), timeout=PATIENCE_S)
    wait_until(lambda: len(state.get_objects(ref.hex())) == 2, "owner and borrower")
    owner, borrower = sorted(state.get_objects(ref.hex()), key=lambda row: not row.is_owner)
    assert (owner.is_owner, borrower.is_owner) == (True, False)
    assert owner.pid == os.getpid()
    assert owner.object_size >= 1_000_000
    assert owner.node_id == three.nodes[0].node_id
    assert owner.borrowers == 1
    assert owner.state == "READY"


def test_who_does_not_answer_is_named(three: Cluster, gate: Gate) -> None:
    ref = hold.options(**on(2)).remote(gate)
    wait_until(lambda: len(running()) == 1, "it runs")
    (task,) = running()
    assert task.worker_pid is not None
    os.kill(task.worker_pid, signal.SIGSTOP)
    try:
        with pytest.raises(state.StateApiError, match=rf"worker \(pid {task.worker_pid}\) on node"):
            state.list_tasks(timeout=1)
        with pytest.warns(UserWarning, match="something is missing"):
            assert state.list_tasks(timeout=1, raise_on_missing_output=False)
    finally:
        os.kill(task.worker_pid, signal.SIGCONT)
    gate.open()
    shoal.get(ref, timeout=PATIENCE_S)
