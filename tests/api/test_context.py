"""What running code can ask: where it is, what the cluster has, and what ran when."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shoal
from shoal.exceptions import RuntimeEnvSetupError
from tests.api.gates import Gate, Trace, alive, wait_until
from tests.api.tasks import identity

pytestmark = [
    pytest.mark.usefixtures("shared_cluster"),
    pytest.mark.cluster(
        num_cpus=2,
        resources={"licence": 3},
        namespace="tests",
        labels={"zone": "north"},
        runtime_env={"env_vars": {"OF_THE_JOB": "job"}},
    ),
]


def get(ref: Any) -> Any:
    return shoal.get(ref, timeout=30)


# --- the runtime context -----------------------------------------------------------------------------------------------------


def test_a_driver_is_in_no_task_and_no_actor() -> None:
    context = shoal.get_runtime_context()
    assert context.get_task_id() is None
    assert context.get_actor_id() is None
    assert context.namespace == "tests"
    assert len(context.get_job_id()) > 0
    assert context.get_worker_id()
    assert not context.was_current_actor_reconstructed
    with pytest.raises(RuntimeError):
        _ = context.current_actor


def test_a_task_knows_where_it_is() -> None:
    @shoal.remote(name="named")
    def ask() -> dict[str, Any]:
        context = shoal.get_runtime_context()
        return {
            "job": context.get_job_id(),
            "node": context.get_node_id(),
            "worker": context.get_worker_id(),
            "task": context.get_task_id(),
            "name": context.get_task_name(),
            "actor": context.get_actor_id(),
            "namespace": context.namespace,
            "resources": context.get_assigned_resources(),
        }

    ref = ask.remote()
    here, there = shoal.get_runtime_context(), get(ref)
    assert there["job"] == here.get_job_id()
    assert there["node"] == here.get_node_id()
    assert there["worker"] != here.get_worker_id()
    assert there["task"] == ref.task_id().hex()
    assert there["name"] == "named"
    assert there["actor"] is None
    assert there["namespace"] == "tests"
    assert there["resources"] == {"CPU": 1}


def test_an_actor_knows_where_it_is() -> None:
    @shoal.remote
    class Asker:
        def __init__(self) -> None:
            self.at_first = shoal.get_runtime_context().get_actor_id()

        def ask(self) -> tuple[Any, ...]:
            context = shoal.get_runtime_context()
            return (
                self.at_first,
                context.get_actor_id(),
                context.get_actor_name(),
                context.get_task_id(),
                context.was_current_actor_reconstructed,
                context.current_actor,
            )

    asker = Asker.options(name="asker").remote()
    ref = asker.ask.remote()
    at_first, actor_id, name, task_id, reconstructed, me = get(ref)
    assert at_first == actor_id == asker._actor_id.hex()
    assert name == "asker"
    assert task_id == ref.task_id().hex()
    assert not reconstructed
    assert me == asker


def test_tasks_differ_and_processes_may_not() -> None:
    @shoal.remote
    def ask() -> tuple[str, str, int]:
        context = shoal.get_runtime_context()
        return context.get_task_id(), context.get_worker_id(), os.getpid()

    seen = get([ask.remote() for _ in range(20)])
    assert len({task for task, _, _ in seen}) == 20
    assert len({worker for _, worker, _ in seen}) == len({pid for _, _, pid in seen})


def test_a_context_is_that_of_the_code_that_asks() -> None:
    """Of a parent again, after it has waited for its child."""

    @shoal.remote
    def child() -> str:
        return shoal.get_runtime_context().get_task_id()

    @shoal.remote
    def parent() -> tuple[str, str, str]:
        context = shoal.get_runtime_context()
        before = context.get_task_id()
        inside = shoal.get(child.remote(), timeout=30)
        return before, inside, context.get_task_id()

    before, inside, after = get(parent.remote())
    assert before == after != inside


def test_the_name_of_a_call_can_be_chosen() -> None:
    @shoal.remote
    class Asker:
        def name(self) -> str:
            return shoal.get_runtime_context().get_task_name()

    asker = Asker.remote()
    assert "name" in get(asker.name.remote())
    assert get(asker.name.options(name="chosen").remote()) == "chosen"


def test_the_rest_of_what_a_context_tells() -> None:
    @shoal.remote
    def ask() -> tuple[Any, ...]:
        context = shoal.get_runtime_context()
        return (
            context.get_placement_group_id(),
            context.get_node_labels()["zone"],
            json.loads(context.get_runtime_env_string())["env_vars"],
            context.is_canceled(),
            context.gcs_address,
        )

    group, zone, env_vars, canceled, address = get(ask.remote())
    assert group is None
    assert zone == "north"
    assert env_vars == {"OF_THE_JOB": "job"}
    assert not canceled
    assert address == shoal.get_runtime_context().gcs_address


# --- the runtime environment -----------------------------------------------------------------------------------------------


@shoal.remote
def variables(*names: str) -> list[str | None]:
    return [os.environ.get(name) for name in names]


def test_variables_of_the_job_and_of_a_task() -> None:
    assert get(variables.remote("OF_THE_JOB", "OF_THE_TASK")) == ["job", None]
    own = variables.options(runtime_env={"env_vars": {"OF_THE_TASK": "task"}})
    assert get(own.remote("OF_THE_JOB", "OF_THE_TASK")) == ["job", "task"]
    other = variables.options(runtime_env={"env_vars": {"OF_THE_JOB": "task"}})
    assert get(other.remote("OF_THE_JOB", "OF_THE_TASK")) == ["task", None]
    assert get(variables.remote("OF_THE_JOB", "OF_THE_TASK")) == ["job", None]
    assert "OF_THE_JOB" not in os.environ


def test_variables_of_an_actor() -> None:
    @shoal.remote(runtime_env={"env_vars": {"OF_THE_ACTOR": "actor"}})
    class Reader:
        def __init__(self) -> None:
            self.at_first = os.environ.get("OF_THE_ACTOR")

        def read(self) -> tuple[str | None, str | None]:
            return self.at_first, os.environ.get("OF_THE_JOB")

    assert get(Reader.remote().read.remote()) == ("actor", "job")


def test_what_a_task_starts_has_its_environment() -> None:
    @shoal.remote(runtime_env={"env_vars": {"OF_THE_TASK": "parent"}})
    def parent() -> list[str | None]:
        return shoal.get(variables.remote("OF_THE_TASK", "OF_THE_JOB"), timeout=30)

    assert get(parent.remote()) == ["parent", "job"]


def test_a_working_directory_and_modules(tmp_path: Path) -> None:
    (tmp_path / "of_the_directory.py").write_text("VALUE = 'imported'")
    (tmp_path / "file.txt").write_text("read")

    @shoal.remote(runtime_env={"working_dir": str(tmp_path)})
    def use() -> tuple[str, str]:
        import of_the_directory

        return of_the_directory.VALUE, Path("file.txt").read_text()

    assert get(use.remote()) == ("imported", "read")


def test_code_can_ask_for_its_environment() -> None:
    @shoal.remote(runtime_env={"env_vars": {"OF_THE_TASK": "task"}})
    def ask() -> Any:
        return shoal.get_runtime_context().runtime_env

    assert get(ask.remote())["env_vars"]["OF_THE_TASK"] == "task"
    assert shoal.get_runtime_context().runtime_env["env_vars"] == {"OF_THE_JOB": "job"}


def test_an_environment_that_cannot_be_made() -> None:
    missing = identity.options(runtime_env={"working_dir": "/no/such/folder"})
    with pytest.raises((RuntimeEnvSetupError, ValueError), match="/no/such/folder"):
        get(missing.remote(1))
    assert get(identity.remote(1)) == 1


@pytest.mark.parametrize("env", [{"env_vars": {"A": 1}}, {"env_vars": [1]}, "text"], ids=repr)
def test_an_environment_that_makes_no_sense_is_refused(env: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        identity.options(runtime_env=env).remote(1)


# --- the cluster -------------------------------------------------------------------------------------------------------------


def test_nodes() -> None:
    [node] = shoal.nodes()
    assert node["NodeID"] == shoal.get_runtime_context().get_node_id()
    assert node["Alive"] is True
    assert node["alive"] is True
    assert node["NodeManagerHostname"] == socket.gethostname()
    assert node["NodeManagerAddress"]
    assert node["Resources"]["CPU"] == 2
    assert node["Resources"]["licence"] == 3
    assert node["Labels"]["zone"] == "north"
    assert {"NodeName", "NodeManagerPort", "ObjectStoreSocketName", "RayletSocketName"} <= set(node)


def test_cluster_resources() -> None:
    total = shoal.cluster_resources()
    assert (total["CPU"], total["licence"]) == (2, 3)
    assert total["memory"] > 0
    assert total["object_store_memory"] > 0
    assert any(name.startswith("node:") for name in total)
    assert total["node:__internal_head__"] == 1


def test_available_resources() -> None:
    wait_until(
        lambda: shoal.available_resources().get("CPU") == 2, "what earlier tests used is free"
    )
    available, total = shoal.available_resources(), shoal.cluster_resources()
    assert set(available) <= set(total)
    assert all(available[name] <= total[name] for name in available)


def test_they_can_be_asked_in_tasks() -> None:
    @shoal.remote
    def ask() -> tuple[float, int]:
        return shoal.cluster_resources()["CPU"], len(shoal.nodes())

    assert get(ask.remote()) == (2, 1)


# --- the timeline ------------------------------------------------------------------------------------------------------------


def test_the_timeline_is_a_chrome_trace(tmp_path: Path, traces: Callable[[str], Trace]) -> None:
    ran = traces("pids")

    @shoal.remote(name="seen_in_the_timeline")
    def work() -> None:
        ran.add(os.getpid())

    get([work.remote() for _ in range(3)])

    def mine() -> list[dict[str, Any]]:
        return [event for event in shoal.timeline() if "seen_in_the_timeline" in event["name"]]

    wait_until(lambda: len(mine()) >= 3, "the tasks are in the timeline")
    for event in mine():
        assert event["ph"] == "X"
        assert event["ts"] > 0
        assert event["dur"] >= 0
        assert event["cat"]
        assert "pid" in event
        assert "tid" in event
    path = tmp_path / "timeline.json"
    shoal.timeline(str(path))
    assert any("seen_in_the_timeline" in event["name"] for event in json.loads(path.read_text()))


def test_actors_and_failures_are_in_the_timeline(gates: Callable[[str], Gate]) -> None:
    @shoal.remote
    class Recorded:
        def method_in_the_timeline(self) -> None:
            pass

    @shoal.remote(max_retries=0)
    def failure_in_the_timeline() -> None:
        raise ValueError("no")

    get(Recorded.remote().method_in_the_timeline.remote())
    with pytest.raises(ValueError, match="no"):
        get(failure_in_the_timeline.remote())

    def recorded() -> str:
        return " ".join(event["name"] for event in shoal.timeline())

    for name in ("method_in_the_timeline", "failure_in_the_timeline"):
        wait_until(lambda name=name: name in recorded(), f"{name} is there")


def test_all_that_a_worker_has_run_is_in_the_timeline_when_it_has_ended() -> None:
    """What it remembers is far more than a socket takes at once."""
    calls = 9_000

    @shoal.remote
    class Busy:
        def much_in_the_timeline(self, number: int) -> None:
            pass

        def pid(self) -> int:
            return os.getpid()

    busy = Busy.remote()
    pid = get(busy.pid.remote())
    for _ in range(9):
        get([busy.much_in_the_timeline.remote(n) for n in range(calls // 9)])
    del busy
    wait_until(lambda: not alive(pid), "the actor has ended")

    def recorded() -> int:
        return sum("much_in_the_timeline" in event["name"] for event in shoal.timeline())

    wait_until(lambda: recorded() == calls, "all its calls are there")
