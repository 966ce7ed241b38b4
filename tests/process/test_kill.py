"""Processes are killed with SIGKILL: workers, actors, drivers. Work goes on where it can, the rest ends with a reason, and
nothing stays behind."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shoal
from shoal.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    OwnerDiedError,
    TaskError,
    WorkerCrashedError,
)
from tests.api.counters import PlainCounter
from tests.api.gates import Gate, Trace, wait_until
from tests.process.programs import GONE_S, Program, end_of

pytestmark = pytest.mark.usefixtures("cluster")


def kill_writer_of(trace: Trace, attempt: int = 0) -> int:
    """Kill the process that wrote its pid as word number `attempt`; the pid."""
    wait_until(lambda: len(trace) > attempt, "the task begins")
    pid = int(trace.words()[attempt])
    os.kill(pid, signal.SIGKILL)
    return pid


@shoal.remote
def pid_then_wait(trace: Trace, gate: Gate) -> int:
    trace.add(os.getpid())
    gate.wait()
    return os.getpid()


# --- workers --------------------------------------------------------------------------------------------------------


def test_a_task_whose_worker_is_killed_runs_again(tmp_path: Path) -> None:
    trace, gate = Trace(tmp_path / "pids"), Gate(tmp_path / "gate")
    ref = pid_then_wait.remote(trace, gate)
    killed = kill_writer_of(trace)
    gate.open()
    again = shoal.get(ref, timeout=30)
    assert again != killed
    assert trace.words() == [str(killed), str(again)]


def test_a_task_fails_when_its_retries_are_used_up(tmp_path: Path) -> None:
    trace, gate = Trace(tmp_path / "pids"), Gate(tmp_path / "gate")
    ref = pid_then_wait.options(max_retries=1).remote(trace, gate)
    for attempt in range(2):
        pid = kill_writer_of(trace, attempt)
    with pytest.raises(WorkerCrashedError, match="SIGKILL") as caught:
        shoal.get(ref, timeout=30)
    assert f"pid={pid}" in str(caught.value)
    assert "tried 2 times" in str(caught.value)
    assert len(trace) == 2


def test_a_task_without_retries_runs_once(tmp_path: Path) -> None:
    trace, gate = Trace(tmp_path / "pids"), Gate(tmp_path / "gate")
    ref = pid_then_wait.options(max_retries=0).remote(trace, gate)
    kill_writer_of(trace)
    with pytest.raises(WorkerCrashedError, match="max_retries"):
        shoal.get(ref, timeout=30)
    assert len(trace) == 1


@pytest.mark.cluster(num_cpus=1)
def test_what_was_queued_behind_the_killer_of_workers_is_not_harmed() -> None:
    @shoal.remote
    def number(n: int) -> int:
        return n

    @shoal.remote(max_retries=2)
    def kill_yourself() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    # The average run time is known from here on, so that many are in flight on the worker.
    assert shoal.get([number.remote(n) for n in range(50)]) == list(range(50))
    before = [number.remote(n) for n in range(100)]
    deadly = kill_yourself.remote()
    after = [number.remote(n) for n in range(100)]
    assert shoal.get(before + after, timeout=60) == [*range(100), *range(100)]
    with pytest.raises(WorkerCrashedError, match="tried 3 times"):
        shoal.get(deadly, timeout=30)


def test_the_children_of_a_killed_task_end_and_its_retry_makes_new_ones(tmp_path: Path) -> None:
    parents, children = Trace(tmp_path / "parents"), Trace(tmp_path / "children")
    gate = Gate(tmp_path / "gate")

    @shoal.remote
    def parent() -> int:
        parents.add(os.getpid())
        # Two CPUs: not to be run in place, the child asks for more than its parent has.
        return shoal.get(pid_then_wait.options(num_cpus=2).remote(children, gate))

    ref = parent.remote()
    wait_until(lambda: len(children) > 0, "the child begins")
    (first,) = children.words()
    kill_writer_of(parents)
    wait_until(lambda: not Path(f"/proc/{first}").exists(), "the orphan ends", GONE_S)
    gate.open()
    assert str(shoal.get(ref, timeout=30)) == children.words()[-1] != first


def test_a_stream_whose_worker_is_killed_goes_on_without_a_gap(tmp_path: Path) -> None:
    trace, gate = Trace(tmp_path / "pids"), Gate(tmp_path / "gate")

    @shoal.remote(num_returns="streaming")
    def numbers() -> Any:
        trace.add(os.getpid())
        for n in range(6):
            if n == 3:
                gate.wait()
            yield np.full(50_000, n)

    stream = numbers.remote()
    got = [int(shoal.get(next(stream))[0]) for _ in range(3)]
    kill_writer_of(trace)
    gate.open()
    got += [int(shoal.get(ref)[0]) for ref in stream]
    assert got == list(range(6))
    assert len(trace) == 2


def test_objects_outlive_the_worker_that_made_them() -> None:
    @shoal.remote
    def make() -> tuple[int, np.ndarray[Any, Any]]:
        return os.getpid(), np.arange(500_000)

    ref = make.remote()
    pid, array = shoal.get(ref)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the maker is gone")
    assert int(array.sum()) == 499_999 * 250_000

    @shoal.remote
    def read(made: tuple[int, np.ndarray[Any, Any]]) -> int:
        return int(made[1][-1])

    assert shoal.get(read.remote(ref), timeout=30) == 499_999


def test_an_object_owned_by_a_killed_worker_is_lost_by_name(tmp_path: Path) -> None:
    trace, gate = Trace(tmp_path / "pids"), Gate(tmp_path / "gate")

    @shoal.remote
    class Owner:
        def lend(self) -> list[Any]:
            return [pid_then_wait.remote(trace, gate)]

        def pid(self) -> int:
            return os.getpid()

    owner = Owner.remote()
    pid = shoal.get(owner.pid.remote())
    (borrowed,) = shoal.get(owner.lend.remote())
    wait_until(lambda: len(trace) > 0, "the task begins")
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(OwnerDiedError, match="SIGKILL"):
        shoal.get(borrowed, timeout=30)


# --- actors ---------------------------------------------------------------------------------------------------------


class Counter(PlainCounter):
    def pid_then_wait(self, trace: Trace, gate: Gate) -> int:
        self.add()
        trace.add(os.getpid())
        gate.wait()
        return self.total


def test_an_actor_killed_during_a_call_fails_it_and_all_later_ones(tmp_path: Path) -> None:
    trace, gate = Trace(tmp_path / "pids"), Gate(tmp_path / "gate")
    actor = shoal.remote(Counter).remote()
    running = actor.pid_then_wait.remote(trace, gate)
    queued = [actor.add.remote() for _ in range(10)]
    kill_writer_of(trace)
    for ref in [running, *queued]:
        with pytest.raises(ActorDiedError, match="SIGKILL"):
            shoal.get(ref, timeout=30)
    with pytest.raises(ActorDiedError, match=r"Counter.*SIGKILL"):
        shoal.get(actor.add.remote(), timeout=30)


def test_an_actor_with_restarts_begins_anew_and_the_lost_call_says_so(tmp_path: Path) -> None:
    trace, gate = Trace(tmp_path / "pids"), Gate(tmp_path / "gate")
    actor = shoal.remote(Counter).options(max_restarts=1).remote()
    assert shoal.get(actor.add.remote()) == 1
    running = actor.pid_then_wait.remote(trace, gate)
    killed = kill_writer_of(trace)
    with pytest.raises(ActorUnavailableError, match="max_task_retries"):
        shoal.get(running, timeout=30)
    assert shoal.get(actor.add.remote(), timeout=30) == 1
    pid = shoal.get(actor.pid.remote())
    assert pid != killed
    os.kill(pid, signal.SIGKILL)
    # No restart is left. Whether this call was on its way when it died or came later: it is dead.
    with pytest.raises(ActorDiedError, match="SIGKILL"):
        shoal.get(actor.add.remote(), timeout=30)


def test_an_actor_with_restarts_and_retries_makes_the_lost_calls_again_in_order(
    tmp_path: Path,
) -> None:
    trace, gate = Trace(tmp_path / "pids"), Gate(tmp_path / "gate")
    actor = shoal.remote(Counter).options(max_restarts=-1, max_task_retries=-1).remote()
    running = actor.pid_then_wait.remote(trace, gate)
    queued = [actor.add.remote() for _ in range(10)]
    for attempt in range(3):
        kill_writer_of(trace, attempt)
    gate.open()
    assert shoal.get([running, *queued], timeout=30) == list(range(1, 12))
    assert len(set(trace.words())) == 4


@pytest.mark.parametrize("kind", ["threads", "async"])
def test_every_concurrent_call_of_a_killed_actor_fails(tmp_path: Path, kind: str) -> None:
    gate = Gate(tmp_path / "gate")
    begun = Trace(tmp_path / "begun")

    class Threaded:
        def wait(self) -> None:
            begun.add(os.getpid())
            gate.wait()

    class Async:
        async def wait(self) -> None:
            import asyncio

            begun.add(os.getpid())
            await asyncio.sleep(1000)

    cls = {"threads": Threaded, "async": Async}[kind]
    actor = shoal.remote(cls).options(max_concurrency=8).remote()
    refs = [actor.wait.remote() for _ in range(20)]
    wait_until(lambda: len(begun) == 8, "eight calls run")
    kill_writer_of(begun)
    for ref in refs:
        with pytest.raises(ActorDiedError, match="SIGKILL"):
            shoal.get(ref, timeout=30)
    assert len(begun) == 8


def test_a_task_sees_the_death_of_an_actor_as_its_own_error(tmp_path: Path) -> None:
    trace, gate = Trace(tmp_path / "pids"), Gate(tmp_path / "gate")

    @shoal.remote
    def ask(actor: Any) -> int:
        return shoal.get(actor.pid_then_wait.remote(trace, gate))

    actor = shoal.remote(Counter).remote()
    ref = ask.remote(actor)
    kill_writer_of(trace)
    with pytest.raises(ActorDiedError) as caught:
        shoal.get(ref, timeout=30)
    assert isinstance(caught.value, TaskError)


# --- drivers --------------------------------------------------------------------------------------------------------

BUSY = """
import numpy as np
import shoal

context = shoal.init(num_cpus=3)

@shoal.remote
def busy(path):
    child = subprocess.Popen(["sleep", "1000"])
    open(path, "w").close()
    while True:
        pass

@shoal.remote
def waits(path, ref):
    subprocess.Popen(["sleep", "1000"])
    open(path, "w").close()
    return shoal.get(ref[0])

@shoal.remote
class Actor:
    def __init__(self, path):
        self.array = shoal.put(np.ones(1_000_000))
        self.child = subprocess.Popen(["sleep", "1000"])
        open(path, "w").close()

    def array_ref(self):
        return [self.array]

@shoal.remote
def large():
    return np.ones(1_000_000)

objects = [shoal.put(np.ones(1_000_000)), *[large.remote() for _ in range(4)]]
views = shoal.get(objects)
marks = [os.path.abspath(f"mark{n}") for n in range(4)]
actor = Actor.remote(marks[0])
views.append(shoal.get(shoal.get(actor.array_ref.remote())[0]))
running = [busy.remote(marks[1]), busy.remote(marks[2])]
waiting = waits.remote(marks[3], [running[0]])
while not all(map(os.path.exists, marks)):
    time.sleep(0.01)
say_session(context)
"""


def busy_program(tmp_path: Path, last: str) -> Program:
    return Program(tmp_path, f"{BUSY}\n{last}")


@pytest.mark.parametrize(
    "last",
    ["time.sleep(1000)", "shoal.get(waiting)", "shoal.wait(running)", "while True: pass"],
    ids=["sleeping", "in get", "in wait", "computing"],
)
def test_a_killed_driver_leaves_nothing_behind(tmp_path: Path, last: str) -> None:
    with busy_program(tmp_path, last) as program:
        session = program.session()
        family = program.descendants()
        names = [process.name() for process in family]
        assert names.count("sleep") == 4
        assert names.count("shoal:worker") >= 4
        assert session.folder.exists()
        assert list(session.shared_memory.iterdir())
        program.kill()
        wait_until(end_of(family), "every process of the session ends", GONE_S)
        wait_until(lambda: not session.exist(), "its files are removed", GONE_S)


def test_a_killed_driver_ends_a_job_that_ignores_signals(tmp_path: Path) -> None:
    source = """
    import shoal
    context = shoal.init(num_cpus=1)

    @shoal.remote
    def stubborn(path):
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        child = subprocess.Popen(["sh", "-c", "trap '' TERM HUP; sleep 1000; sleep 1000"])
        open(path, "w").close()
        while True:
            try:
                time.sleep(1000)
            except BaseException:
                pass

    ref = stubborn.remote("mark")
    while not os.path.exists("mark"):
        time.sleep(0.01)
    say_session(context)
    time.sleep(1000)
    """
    with Program(tmp_path, source) as program:
        session = program.session()
        family = program.descendants()
        program.kill()
        wait_until(end_of(family), "every process of the session ends", GONE_S)
        wait_until(lambda: not session.exist(), "its files are removed", GONE_S)


def test_a_killed_driver_does_not_disturb_another(tmp_path: Path, cluster: Any) -> None:
    @shoal.remote
    def twice(n: int) -> int:
        return 2 * n

    with busy_program(tmp_path, "time.sleep(1000)") as program:
        other = program.session()
        family = program.descendants()
        refs = [twice.remote(n) for n in range(1000)]
        program.kill()
        assert shoal.get(refs, timeout=30) == [2 * n for n in range(1000)]
        wait_until(end_of(family), "every process of the other session ends", GONE_S)
        wait_until(lambda: not other.exist(), "the files of the other session are removed", GONE_S)
    assert Path(cluster["session_dir"]).exists()
    assert shoal.get(twice.remote(4)) == 8
