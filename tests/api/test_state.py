"""`shoal.util.state` on one node: what the lists show, their arguments, and what is refused with which words."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

import pytest

import shoal
from shoal.util import state
from tests.api.gates import Gate, wait_until

PATIENCE_S = 30

pytestmark = pytest.mark.usefixtures("shared_cluster")


@shoal.remote
def hold(gate: Gate) -> int:
    gate.wait()
    return os.getpid()


@shoal.remote
def fail() -> None:
    raise ValueError("as it should")


@shoal.remote
class Counter:
    def pid(self) -> int:
        return os.getpid()


def of(name: str) -> list[state.TaskState]:
    return state.list_tasks(filters=[("name", "=", name)], detail=True, limit=10_000)


def test_a_task_is_listed_while_it_waits_runs_and_when_it_is_over(
    gates: Callable[[str], Gate],
) -> None:
    gate = gates("gate")
    named = hold.options(name="seen in lists", num_cpus=0.5)
    first = named.remote(gate)
    wait_until(lambda: [task.state for task in of("seen in lists")] == ["RUNNING"], "it runs")
    (task,) = of("seen in lists")
    assert task.task_id == first.task_id().hex()
    assert task.type == "NORMAL_TASK"
    assert task.required_resources == {"CPU": 0.5}
    assert task.node_id == shoal.get_runtime_context().get_node_id()
    assert task.job_id == shoal.get_runtime_context().get_job_id()
    gate.open()
    pid = shoal.get(first, timeout=PATIENCE_S)
    assert task.worker_pid == pid
    wait_until(lambda: [t.state for t in of("seen in lists")] == ["FINISHED"], "it is over")
    (task,) = of("seen in lists")
    assert task.end_time_ms is not None
    assert task.start_time_ms is not None
    assert task.end_time_ms >= task.start_time_ms
    found = state.get_task(first.task_id().hex())
    assert found is not None
    assert found.name == "seen in lists"
    assert state.get_task("f" * 32) is None


def test_failures_are_told_apart_and_counted() -> None:
    ref = fail.options(name="fails in lists").remote()
    with pytest.raises(ValueError, match="as it should"):
        shoal.get(ref, timeout=PATIENCE_S)
    wait_until(lambda: [task.state for task in of("fails in lists")] == ["FAILED"], "it is known")
    summary = state.summarize_tasks()["cluster"]["summary"]
    assert summary["fails in lists"] == {
        "func_or_class_name": "fails in lists",
        "type": "NORMAL_TASK",
        "state_counts": {"FAILED": 1},
    }


def test_actors_are_listed_with_their_lives_and_deaths() -> None:
    counter = Counter.options(name="listed", num_cpus=0.25).remote()
    pid = shoal.get(counter.pid.remote(), timeout=PATIENCE_S)
    (row,) = state.list_actors(filters=[("name", "=", "listed"), ("state", "=", "alive")])
    assert (row.class_name, row.pid) == ("Counter", pid)
    assert row["actor_id"] == row.actor_id
    assert row.is_detached is None
    detailed = state.get_actor(row.actor_id)
    assert detailed is not None
    assert detailed.is_detached is False
    assert detailed.required_resources == {"CPU": 0.25}
    assert state.why(row.actor_id)[0].text == f"it is alive, in the process with pid {pid}."
    shoal.kill(counter)
    wait_until(lambda: _state_of(row.actor_id) == "DEAD", "it is dead")
    dead = state.get_actor(row.actor_id)
    assert dead is not None
    assert dead.class_name == "Counter"
    assert dead.death_cause is not None
    assert "shoal.kill" in dead.death_cause
    assert "it is dead." in str(state.why(row.actor_id))
    assert state.summarize_actors()["cluster"]["summary"]["Counter"]["state_counts"]["DEAD"] >= 1


def _state_of(actor_id: str) -> str:
    found = state.get_actor(actor_id)
    assert found is not None
    return found.state


def test_nodes_jobs_and_workers_are_listed(gates: Callable[[str], Gate]) -> None:
    context = shoal.get_runtime_context()
    (node,) = state.list_nodes(detail=True)
    assert (node.node_id, node.state) == (context.get_node_id(), "ALIVE")
    assert node.resources_total["CPU"] == shoal.cluster_resources()["CPU"]
    job = state.get_job(context.get_job_id())
    assert job is not None
    assert (job.status, job.driver_node_id) == ("RUNNING", node.node_id)
    gate = gates("gate")
    ref = hold.options(name="holds").remote(gate)
    wait_until(lambda: [task.state for task in of("holds")] == ["RUNNING"], "it runs")
    workers = state.list_workers(filters=[("is_alive", "=", True)], detail=True)
    pids = {worker.pid: worker for worker in workers}
    assert pids[os.getpid()].worker_type == "DRIVER"
    (task,) = of("holds")
    worker = pids[task.worker_pid]
    assert (worker.state, worker.resources) == ("LEASED", {"CPU": 1.0})
    assert worker.worker_id is not None
    again = state.get_worker(worker.worker_id)
    assert again is not None
    assert again.pid == worker.pid
    gate.open()
    shoal.get(ref, timeout=PATIENCE_S)


def test_objects_are_listed_and_summed_up_by_what_made_them() -> None:
    ref = shoal.put(bytes(2_000_000))
    (row,) = state.get_objects(ref.hex())
    assert (row.state, row.is_owner, row.local_references) == ("READY", True, 1)
    assert row.object_size >= 2_000_000
    assert row.node_id == shoal.get_runtime_context().get_node_id()
    put = state.summarize_objects()["cluster"]["summary"]["put"]
    assert put["total_size_bytes"] >= 2_000_000
    del ref
    wait_until(lambda: state.get_objects(row.object_id) == [], "it is gone")


def test_more_than_the_limit_is_said() -> None:
    refs = [shoal.put(i) for i in range(5)]
    with pytest.warns(UserWarning, match="3 of [0-9]+ are shown: raise limit"):
        assert len(state.list_objects(limit=3)) == 3
    del refs


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"limit": 0}, "limit is from 1 to 10,000, not 0"),
        ({"limit": 10_001}, "limit is from 1 to 10,000"),
        ({"timeout": 0}, "timeout is in seconds and positive"),
        ({"filters": [("name", "=")]}, "a filter is"),
        ({"filters": [("name", "<", 1)]}, 'compares with "=" or "!="'),
        ({"filters": [("nome", "=", 1)]}, "no column 'nome' to filter by: TaskState has task_id, "),
    ],
)
def test_wrong_arguments_are_refused_with_what_is_right(
    arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        state.list_tasks(**arguments)


@pytest.mark.parametrize(
    ("id_", "words"),
    [
        ("no", "not the id of a task, actor or placement group"),
        ("xyzxyz", "hexadecimal digits"),
        ("f" * 32, "`shoal list tasks` shows what is remembered"),
    ],
)
def test_ids_that_nobody_knows_are_refused_with_what_to_do(id_: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        state.why(id_)


def test_the_beginning_of_several_ids_is_refused_with_all_of_them(
    gates: Callable[[str], Gate],
) -> None:
    gate = gates("gate")
    refs = [hold.remote(gate) for _ in range(2)]
    with pytest.raises(ValueError, match="Give more digits") as raised:
        # Both were submitted by this process, one after the other: the last digits of its count tell them apart.
        state.why(refs[0].hex()[:23])
    for ref in refs:
        assert ref.hex()[:26] in str(raised.value)
    gate.open()
    shoal.get(refs, timeout=PATIENCE_S)


@pytest.mark.parametrize("wait", [shoal.get, lambda ref: ref.future().result()])
def test_a_task_that_waits_inside_for_another_leads_on_to_that(
    gates: Callable[[str], Gate], wait: Callable[[Any], int]
) -> None:
    gate = gates("gate")

    @shoal.remote(name="outer one", num_cpus=0.5)
    def outer() -> int:
        # Another shape: it cannot run in place.
        inner = hold.options(name="inner one", num_cpus=0.25).remote(gate)
        return wait(inner)

    ref = outer.remote()

    def explained() -> list[str]:
        return [step.subject.partition("(")[0] for step in state.why(ref.hex())]

    wait_until(lambda: explained() == ["outer one"] * 2 + ["inner one"] * 2, "it leads on")
    steps = state.why(ref.hex())
    assert "where somebody waits for object" in steps[1].text
    assert [step.depth for step in steps] == [0, 0, 1, 1]
    gate.open()
    shoal.get(ref, timeout=PATIENCE_S)


@shoal.remote
class Slow:
    def __init__(self, gate: Gate, *, crashes: bool) -> None:
        if crashes and not gate.is_open():
            os._exit(3)
        gate.wait()

    def pid(self) -> int:
        return os.getpid()


@pytest.mark.parametrize(
    ("options", "crashes", "words"),
    [
        ({"num_gpus": 3}, False, r"it needs GPU 3 where this node has none"),
        ({}, False, r"it has a process, pid \d+, which gets its arguments or runs its __init__"),
        (
            {"max_restarts": -1, "max_task_retries": -1},
            True,
            r"It has ended \d+ times and is to live again.*code 3",
        ),
    ],
)
def test_who_waits_in_vain_for_a_call_hears_what_its_actor_waits_for(
    options: dict[str, Any], crashes: bool, words: str, gates: Callable[[str], Gate]
) -> None:
    gate = gates("gate")
    actor = Slow.options(**options).remote(gate, crashes=crashes)
    ref = actor.pid.remote()

    def told() -> str:
        with pytest.raises(shoal.exceptions.GetTimeoutError) as raised:
            shoal.get(ref, timeout=0.5)
        return str(raised.value)

    # The cluster is not waited for if it is busy: it may take several tries.
    wait_until(lambda: re.search(words, told()), f"{words!r} is told")
    wait_until(lambda: re.search(words, str(state.why(ref))), "why() says the same of the call,")
    wait_until(lambda: re.search(words, str(state.why(actor))), "and of the actor")
    shoal.kill(actor)


def test_only_what_stands_for_an_id_has_a_reason() -> None:
    with pytest.raises(TypeError, match="or a placement group, not a int"):
        state.why(7)  # type: ignore[arg-type]  # that is the point


def test_records_are_read_by_attribute_key_and_as_dictionaries() -> None:
    (node,) = state.list_nodes()
    assert dict(node) == node.asdict()
    assert node["node_id"] == node.get("node_id") == node.node_id
    assert node.get("nothing", 3) == 3
    assert node.labels is None
    with pytest.raises(KeyError):
        node["nothing"]
