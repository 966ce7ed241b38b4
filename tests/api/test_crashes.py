"""Workers and owners that die: what is tried again, and what the caller is told when that is over."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

import shoal
from shoal.exceptions import ActorDiedError, ObjectLostError, OwnerDiedError, WorkerCrashedError
from shoal.runtime import current_process
from tests.api.gates import DEADLINE_S, Gate, Trace, alive, wait_until

pytestmark = pytest.mark.usefixtures("shared_cluster")


def get(ref: Any) -> Any:
    return shoal.get(ref, timeout=30)


def exit_now() -> None:
    os._exit(3)


def kill_now() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fault_now() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


@shoal.remote(max_retries=0)
def die(how: Callable[[], None], trace: Trace, times: int = 1_000) -> int:
    trace.add(os.getpid())
    if len(trace) <= times:
        how()
    return len(trace)


@pytest.mark.parametrize("how", [exit_now, kill_now, fault_now])
def test_a_crash_without_retries_is_told_at_once(
    how: Callable[[], None], traces: Callable[[str], Trace]
) -> None:
    trace = traces("tries")
    with pytest.raises(WorkerCrashedError) as caught:
        get(die.remote(how, trace))
    assert isinstance(caught.value, shoal.ShoalError)
    assert len(trace) == 1
    assert "die" in str(caught.value)


@pytest.mark.parametrize("how", [exit_now, kill_now])
def test_a_crash_is_retried_as_often_as_allowed(
    how: Callable[[], None], traces: Callable[[str], Trace]
) -> None:
    trace = traces("tries")
    with pytest.raises(WorkerCrashedError):
        get(die.options(max_retries=2).remote(how, trace))
    assert len(trace) == 3
    assert len(set(trace.words())) == 3


def test_three_retries_unless_said_otherwise(traces: Callable[[str], Trace]) -> None:
    trace = traces("tries")

    @shoal.remote
    def die_always() -> None:
        trace.add("try")
        os._exit(1)

    with pytest.raises(WorkerCrashedError):
        get(die_always.remote())
    assert len(trace) == 4


@pytest.mark.parametrize("max_retries", [3, -1])
def test_a_retry_may_succeed(max_retries: int, traces: Callable[[str], Trace]) -> None:
    trace = traces("tries")
    ref = die.options(max_retries=max_retries).remote(kill_now, trace, times=2)
    assert get(ref) == 3
    assert get(ref) == 3


def test_a_crash_harms_no_other_task(
    gates: Callable[[str], Gate], traces: Callable[[str], Trace]
) -> None:
    @shoal.remote
    def identity(i: int) -> int:
        return i

    before = [identity.remote(i) for i in range(50)]
    crashed = die.remote(kill_now, traces("tries"))
    after = [identity.remote(i) for i in range(50)]
    with pytest.raises(WorkerCrashedError):
        get(crashed)
    assert get(before) == get(after) == list(range(50))


def test_retries_use_the_same_arguments(traces: Callable[[str], Trace]) -> None:
    trace = traces("tries")

    @shoal.remote(max_retries=2)
    def total(values: list[int], scale: int) -> int:
        trace.add("try")
        if len(trace) == 1:
            os._exit(1)
        return scale * sum(values)

    assert get(total.remote(shoal.put(list(range(1_000))), scale=2)) == 999_000


def test_a_parent_survives_the_crash_of_its_child(traces: Callable[[str], Trace]) -> None:
    trace = traces("tries")

    @shoal.remote(max_retries=0)
    def parent() -> str:
        try:
            shoal.get(die.remote(kill_now, trace), timeout=30)
        except WorkerCrashedError:
            return "still here"
        return "no crash"

    assert get(parent.remote()) == "still here"


def test_a_worker_that_is_killed_from_outside(
    gates: Callable[[str], Gate], traces: Callable[[str], Trace]
) -> None:
    gate, trace = gates("go"), traces("pids")

    @shoal.remote(max_retries=1)
    def wait() -> int:
        trace.add(os.getpid())
        if len(trace) == 1:
            gate.wait()
        return os.getpid()

    ref = wait.remote()
    wait_until(lambda: len(trace) == 1, "the task runs")
    os.kill(int(trace.words()[0]), signal.SIGKILL)
    assert str(get(ref)) == trace.words()[1]


def test_an_actor_that_is_killed_from_outside() -> None:
    @shoal.remote
    class Actor:
        def pid(self) -> int:
            return os.getpid()

    actor = Actor.remote()
    os.kill(get(actor.pid.remote()), signal.SIGKILL)
    with pytest.raises(ActorDiedError):
        call_until_it_fails(actor.pid)


def call_until_it_fails(method: Any) -> None:
    """A signal takes its time; calls that come before it still succeed."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        get(method.remote())


# --- owners ------------------------------------------------------------------------------------------------------------------


def test_what_an_actor_put_is_lost_with_it() -> None:
    @shoal.remote
    class Owner:
        def put(self, size: int) -> list[Any]:
            return [shoal.put(bytes(size))]

        def pid(self) -> int:
            return os.getpid()

    owner = Owner.remote()
    small = get(owner.put.remote(10))[0]
    large = get(owner.put.remote(1_000_000))[0]
    pid = get(owner.pid.remote())
    shoal.kill(owner)
    wait_until(lambda: not alive(pid), "the owner's process ends")
    for ref in (small, large):
        with pytest.raises(OwnerDiedError) as caught:
            get(ref)
        assert isinstance(caught.value, ObjectLostError)


def test_a_reference_that_was_pickled_elsewhere_does_not_keep_its_object() -> None:
    ref = shoal.put([1, 2, 3])
    with pytest.warns(UserWarning, match="outside of shoal"):
        data = pickle.dumps(ref)
    assert get(pickle.loads(data)) == [1, 2, 3]
    object_id = ref.binary()
    del ref
    gc.collect()
    # Handles that die are counted a little later, by whichever thread attends to messages next.
    entries = current_process.require().objects.entries
    wait_until(lambda: object_id not in entries, "nothing counts on the object any more")
    with pytest.raises(ObjectLostError):
        get(pickle.loads(data))
