"""Resources: what may run at the same time, what is handed out, what waits and why."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import shoal
from shoal.exceptions import GetTimeoutError
from tests.api.gates import Gate, Trace, wait_until
from tests.api.scripts import run_script

pytestmark = [
    pytest.mark.usefixtures("shared_cluster"),
    pytest.mark.cluster(num_cpus=2, num_gpus=2, resources={"slot": 1, "licence": 3}),
]


@shoal.remote
def hold(gate: Gate, value: Any = None) -> Any:
    gate.wait()
    return value


@shoal.remote
def meet(own: Gate, all_gates: list[Gate]) -> int:
    """Returns once all of its kind run at the same time."""
    own.open()
    for gate in all_gates:
        gate.wait()
    return len(all_gates)


@shoal.remote
def enter(trace: Trace) -> None:
    trace.add("+")
    time.sleep(0.002)
    trace.add("-")


def most_at_once(trace: Trace) -> int:
    inside = most = 0
    for word in trace.words():
        inside += 1 if word == "+" else -1
        most = max(most, inside)
    return most


def get(ref: Any) -> Any:
    return shoal.get(ref, timeout=30)


def free(name: str) -> float:
    return shoal.available_resources().get(name, 0)


# --- how many at once ------------------------------------------------------------------------------------------------------


def test_fractions_share_a_cpu(gates: Callable[[str], Gate]) -> None:
    made = [gates(f"half{i}") for i in range(4)]
    refs = [meet.options(num_cpus=0.5).remote(gate, made) for gate in made]
    assert get(refs) == [4] * 4


def test_no_more_run_at_once_than_there_are_cpus(traces: Callable[[str], Trace]) -> None:
    trace = traces("inside")
    get([enter.remote(trace) for _ in range(30)])
    assert most_at_once(trace) <= 2


def test_a_task_of_all_cpus_runs_alone(traces: Callable[[str], Trace]) -> None:
    trace = traces("inside")
    get([enter.options(num_cpus=2).remote(trace) for _ in range(10)])
    assert most_at_once(trace) == 1


def test_tasks_without_cpus_are_not_bounded_by_them(gates: Callable[[str], Gate]) -> None:
    made = [gates(f"free{i}") for i in range(6)]
    assert get([meet.options(num_cpus=0).remote(gate, made) for gate in made]) == [6] * 6


def test_custom_resources_bound_what_runs_at_once(
    traces: Callable[[str], Trace], gates: Callable[[str], Gate]
) -> None:
    trace = traces("inside")
    get([enter.options(num_cpus=0, resources={"slot": 1}).remote(trace) for _ in range(10)])
    assert most_at_once(trace) == 1
    made = [gates(f"third{i}") for i in range(6)]
    options = {"num_cpus": 0, "resources": {"licence": 0.5}}
    assert get([meet.options(**options).remote(gate, made) for gate in made]) == [6] * 6


def test_small_fractions_add_up_exactly(gates: Callable[[str], Gate]) -> None:
    made = [gates(f"tenth{i}") for i in range(10)]
    options = {"num_cpus": 0, "resources": {"slot": 0.1}}
    assert get([meet.options(**options).remote(gate, made) for gate in made]) == [10] * 10
    wait_until(lambda: free("slot") == 1, "the slot is free again")


def test_what_is_held_is_not_available(gates: Callable[[str], Gate]) -> None:
    gate = gates("release")
    ref = hold.options(num_cpus=1, resources={"licence": 2}).remote(gate)
    wait_until(lambda: free("licence") == 1, "two licences are taken")
    assert free("CPU") == 1
    gate.open()
    get(ref)
    wait_until(lambda: (free("licence"), free("CPU")) == (3, 2), "all of it is free again")
    total = shoal.cluster_resources()
    assert (total["CPU"], total["GPU"], total["licence"]) == (2, 2, 3)


def test_what_a_task_holds_it_can_ask() -> None:
    @shoal.remote(num_cpus=0.5, resources={"licence": 1})
    def assigned() -> dict[str, float]:
        return shoal.get_runtime_context().get_assigned_resources()

    assert get(assigned.remote()) == {"CPU": 0.5, "licence": 1}


def test_memory_is_a_resource(gates: Callable[[str], Gate]) -> None:
    total = shoal.cluster_resources()["memory"]
    gate = gates("release")
    ref = hold.options(memory=int(total / 2)).remote(gate)
    wait_until(lambda: free("memory") < total, "memory is reserved")
    assert total - free("memory") == int(total / 2)
    gate.open()
    get(ref)
    wait_until(lambda: free("memory") == total, "it is free again")


# --- actors ------------------------------------------------------------------------------------------------------------------


class Plain:
    def ready(self) -> bool:
        return True

    def wait(self, own: Gate, all_gates: list[Gate]) -> int:
        own.open()
        for gate in all_gates:
            gate.wait()
        return len(all_gates)

    def assigned(self) -> dict[str, float]:
        return shoal.get_runtime_context().get_assigned_resources()


def test_actors_hold_no_cpu_unless_they_say_so(gates: Callable[[str], Gate]) -> None:
    actors = [shoal.remote(Plain).remote() for _ in range(5)]
    made = [gates(f"actor{i}") for i in range(5)]
    refs = [actor.wait.remote(gate, made) for actor, gate in zip(actors, made, strict=True)]
    assert get(refs) == [5] * 5
    wait_until(lambda: free("CPU") == 2, "no CPU is held")


def test_an_actor_holds_what_it_asked_for_until_it_ends() -> None:
    actor = shoal.remote(num_cpus=1, resources={"slot": 1})(Plain).remote()
    assert get(actor.assigned.remote()) == {"CPU": 1, "slot": 1}
    wait_until(lambda: (free("CPU"), free("slot")) == (1, 0), "CPU and slot are held")
    shoal.kill(actor)
    wait_until(lambda: (free("CPU"), free("slot")) == (2, 1), "both are free again")


def test_an_actor_waits_until_there_is_room() -> None:
    holder = shoal.remote(resources={"slot": 1})(Plain).remote()
    get(holder.ready.remote())
    waiting = shoal.remote(resources={"slot": 1})(Plain).remote()
    ready = waiting.ready.remote()
    assert shoal.wait([ready], timeout=0)[0] == []
    shoal.kill(holder)
    assert get(ready)


# --- CPUs of those who wait --------------------------------------------------------------------------------------------------


def test_a_task_that_waits_lends_its_cpu(gates: Callable[[str], Gate]) -> None:
    gate = gates("child")

    @shoal.remote(num_cpus=2)
    def parent() -> Any:
        child = hold.options(num_cpus=2).remote(gate, "child")
        shoal.wait([child], timeout=30)
        return shoal.get(child, timeout=30)

    ref = parent.remote()
    gate.open()
    assert get(ref) == "child"


def test_a_task_that_waits_for_an_actor_lends_its_cpu() -> None:
    @shoal.remote(num_cpus=2)
    def parent() -> bool:
        actor = shoal.remote(num_cpus=2)(Plain).remote()
        return shoal.get(actor.ready.remote(), timeout=30)

    assert get(parent.remote())


@pytest.mark.timeout(100)  # 22,000 tasks, on whatever machine this is
def test_recursion_needs_few_processes() -> None:
    """The issue's example: about 22,000 tasks that wait for each other, on two CPUs."""

    @shoal.remote
    def fib(n: int) -> int:
        if n < 2:
            return n
        return sum(shoal.get([fib.remote(n - 1), fib.remote(n - 2)]))

    ref = fib.remote(20)
    me, most = psutil.Process(), 0
    while not shoal.wait([ref], timeout=0.1)[0]:
        most = max(most, len(me.children(recursive=True)))
    assert shoal.get(ref, timeout=1) == 6765
    assert most <= 40


# --- what cannot be had ------------------------------------------------------------------------------------------------------


def test_what_is_infeasible_waits_and_says_why() -> None:
    ref = hold.options(num_cpus=50).remote(None)
    with pytest.raises(GetTimeoutError, match="CPU"):
        shoal.get(ref, timeout=0.2)
    shoal.cancel(ref)


def test_an_infeasible_task_warns_once_with_what_would_help(tmp_path: Path) -> None:
    result = run_script(
        tmp_path,
        """
        import shoal
        shoal.init(num_cpus=2)

        @shoal.remote(resources={"unobtainable": 2})
        def f():
            pass

        refs = [f.remote() for _ in range(3)]
        assert shoal.wait(refs, timeout=3)[0] == []

        @shoal.remote
        def feasible():
            return 1
        assert shoal.get(feasible.remote(), timeout=30) == 1
        """,
    )
    warnings = [line for line in result.stderr.splitlines() if "unobtainable" in line]
    assert len(warnings) == 1, result.stderr
    assert "resources={'unobtainable': 2}" in warnings[0]


# --- GPUs and threads --------------------------------------------------------------------------------------------------------


@shoal.remote
def visible_gpus(own: Gate, all_gates: list[Gate]) -> tuple[str, list[int], list[str]]:
    own.open()
    for gate in all_gates:
        gate.wait()
    context = shoal.get_runtime_context()
    return (
        os.environ["CUDA_VISIBLE_DEVICES"],
        [int(one) for one in shoal.get_gpu_ids()],
        context.get_accelerator_ids()["GPU"],
    )


def test_each_task_sees_gpus_of_its_own(gates: Callable[[str], Gate]) -> None:
    made = [gates("one"), gates("other")]
    seen = get([visible_gpus.options(num_gpus=1).remote(gate, made) for gate in made])
    assert sorted(devices for devices, _, _ in seen) == ["0", "1"]
    for devices, ids, accelerators in seen:
        assert ids == [int(devices)]
        assert accelerators == [devices]


def test_a_task_of_two_gpus_sees_both(gates: Callable[[str], Gate]) -> None:
    gate = gates("both")
    devices, ids, _ = get(visible_gpus.options(num_gpus=2).remote(gate, [gate]))
    assert devices == "0,1"
    assert ids == [0, 1]


def test_halves_share_a_gpu(gates: Callable[[str], Gate]) -> None:
    made = [gates(f"half{i}") for i in range(4)]
    refs = [visible_gpus.options(num_cpus=0, num_gpus=0.5).remote(gate, made) for gate in made]
    devices = [devices for devices, _, _ in get(refs)]
    assert sorted(devices) == ["0", "0", "1", "1"]


def test_an_actor_keeps_its_gpu() -> None:
    @shoal.remote(num_gpus=1)
    class Trainer:
        def device(self) -> str:
            return os.environ["CUDA_VISIBLE_DEVICES"]

    one, other = Trainer.remote(), Trainer.remote()
    assert sorted(get([one.device.remote(), other.device.remote()])) == ["0", "1"]
    assert get(one.device.remote()) == get(one.device.remote())
    wait_until(lambda: free("GPU") == 0, "both GPUs are held")


def test_a_fraction_above_one_gpu_is_refused() -> None:
    with pytest.raises(ValueError, match="num_gpus"):
        hold.options(num_gpus=1.5).remote(None)


@pytest.mark.parametrize(("num_cpus", "threads"), [(0.5, "1"), (1, "1"), (2, "2")])
def test_libraries_use_as_many_threads_as_the_task_has_cpus(num_cpus: float, threads: str) -> None:
    @shoal.remote
    def omp() -> str | None:
        return os.environ.get("OMP_NUM_THREADS")

    if "OMP_NUM_THREADS" not in os.environ:
        assert get(omp.options(num_cpus=num_cpus).remote()) == threads


def test_the_users_own_number_of_threads_stays(tmp_path: Path) -> None:
    result = run_script(
        tmp_path,
        """
        import os
        import shoal
        shoal.init(num_cpus=2)

        @shoal.remote(num_cpus=2)
        def omp():
            return os.environ["OMP_NUM_THREADS"]

        print(shoal.get(omp.remote(), timeout=30))
        """,
        variables={"OMP_NUM_THREADS": "7"},
    )
    assert result.stdout == "7\n"
