"""Workers that own objects which others use: they stay for them; and when they die all the same, nothing is left behind."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shoal
from shoal.exceptions import OwnerDiedError
from tests.api.gates import Gate, Trace, alive, wait_until

pytestmark = pytest.mark.cluster(
    num_cpus=2, object_store_memory=10**9, _system_config={"idle_worker_s": 0.2}
)

LARGE = 1_000_000


def get(ref: Any) -> Any:
    return shoal.get(ref, timeout=30)


@shoal.remote
def lend(size: int) -> tuple[int, list[Any]]:
    """An object that this worker owns."""
    return os.getpid(), [shoal.put(np.ones(size))]


@shoal.remote(max_calls=1)
def lend_once() -> tuple[int, list[Any]]:
    return os.getpid(), [shoal.put(10)]


@shoal.remote(num_cpus=0)
def pid_of_one_of_many(own: Gate, all_gates: list[Gate]) -> int:
    """Returns once all of its kind run at the same time."""
    own.open()
    for gate in all_gates:
        gate.wait()
    # Long for a task, so that none is queued behind another that waits for it.
    time.sleep(0.02)
    return os.getpid()


@shoal.remote
class Owner:
    def lend(self) -> list[Any]:
        return [shoal.put(np.ones(LARGE))]

    def pid(self) -> int:
        return os.getpid()


@shoal.remote(num_cpus=0, max_restarts=1, max_task_retries=-1)
class Restarting:
    def __init__(self, values: Any, box: list[Any]) -> None:
        self.values = values
        self.box = box

    def total(self) -> float:
        return float(self.values.sum() + shoal.get(self.box[0]).sum())

    def pid(self) -> int:
        return os.getpid()


@shoal.remote(num_cpus=0)
def make_detached(name: str) -> int:
    detached = Restarting.options(name=name, lifetime="detached")
    actor = detached.remote(np.ones(LARGE), [shoal.put(np.ones(LARGE))])
    assert shoal.get(actor.total.remote()) == 2 * LARGE
    return os.getpid()


@pytest.fixture
def surplus(gates: Callable[[str], Gate]) -> Callable[[], set[int]]:
    """Makes more workers than a node of two CPUs keeps; the pids."""
    numbers = itertools.count()

    def make() -> set[int]:
        number = next(numbers)
        own = [gates(f"{number}-{n}") for n in range(6)]
        return set(get([pid_of_one_of_many.remote(gate, own) for gate in own]))

    return make


def ends_with_others(pid: int, surplus: Callable[[], set[int]]) -> bool:
    """Whether a worker is among those that end when there are too many. Two are kept, and it may be one of them."""
    workers = surplus() | {pid}
    wait_until(lambda: sum(map(alive, workers)) <= 2, "surplus workers end")
    return not alive(pid)


@pytest.mark.parametrize("size", [10, LARGE])
def test_an_idle_worker_stays_while_others_use_what_it_owns(
    cluster: Any, surplus: Callable[[], set[int]], size: int
) -> None:
    lender, (ref,) = get(lend.remote(size))
    others: set[int] = set()

    def few_others_live() -> bool:
        return sum(map(alive, others)) <= 2

    # The longest idle are asked to end first: each time again, it is among them.
    for _ in range(3):
        others = surplus() - {lender}
        assert len(others) >= 5
        wait_until(few_others_live, "surplus workers end")
        assert alive(lender)
    assert get(ref).sum() == size
    del ref
    wait_until(lambda: ends_with_others(lender, surplus), "it is one of those that end")


def test_an_idle_worker_stays_for_what_a_detached_actor_restarts_with(
    cluster: Any, surplus: Callable[[], set[int]]
) -> None:
    maker = get(make_detached.remote("restarts"))
    others = surplus() - {maker}
    wait_until(lambda: sum(map(alive, others)) <= 2, "surplus workers end")
    assert alive(maker)
    actor = shoal.get_actor("restarts")
    os.kill(get(actor.pid.remote()), signal.SIGKILL)
    assert get(actor.total.remote()) == 2 * LARGE
    shoal.kill(actor)
    wait_until(lambda: ends_with_others(maker, surplus), "it is one of those that end")


def test_an_actor_does_not_begin_where_a_task_owns_something(cluster: Any) -> None:
    lenders = [get(lend.remote(LARGE)) for _ in range(4)]
    pids = {pid for pid, _ in lenders}
    actors = [Owner.remote() for _ in range(4)]
    assert pids.isdisjoint(get([actor.pid.remote() for actor in actors]))
    for actor in actors:
        shoal.kill(actor)
    assert [get(refs[0]).sum() for _, refs in lenders] == [LARGE] * 4


def test_a_worker_with_its_last_call_stays_while_others_use_what_it_owns(cluster: Any) -> None:
    pid, (ref,) = get(lend_once.remote())
    other = get(lend_once.remote())[0]
    assert other != pid
    wait_until(lambda: not alive(other), "the other ends: nobody uses what it owned")
    assert alive(pid)
    assert get(ref) == 10
    del ref
    wait_until(lambda: not alive(pid), "it ends when nobody uses what it owned")


@shoal.remote
def sleep(pids: Trace, stubborn: bool) -> None:
    pids.add(os.getpid())
    while True:
        try:
            time.sleep(1000)
        except BaseException:
            if not stubborn:
                raise


@shoal.remote(num_cpus=0)
class Starter:
    def start(self, pids: Trace, stubborn: bool) -> int:
        self.refs = [sleep.remote(pids, stubborn) for _ in range(2)]
        return os.getpid()


@pytest.mark.parametrize("stubborn", [False, True], ids=["", "that cannot be interrupted"])
@pytest.mark.parametrize("size", [10, LARGE])
def test_a_worker_that_lent_something_outlives_whoever_it_works_for(
    cluster: Any, traces: Callable[[str], Trace], size: int, stubborn: bool
) -> None:
    """It does not outlive work that ignores the interrupt: the CPU is wanted by others."""
    lender, (ref,) = get(lend.remote(size))
    pids = traces("pids")
    starter = Starter.remote()
    pid = get(starter.start.remote(pids, stubborn))
    wait_until(lambda: len(pids) == 2, "both sleep")
    assert str(lender) in pids.words()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: shoal.available_resources().get("CPU") == 2, "nobody works for the dead")
    others = [int(word) for word in pids.words() if word != str(lender)]
    wait_until(lambda: not any(map(alive, others)), "who has lent nothing ends at once")
    if stubborn:
        assert not alive(lender)
        with pytest.raises(OwnerDiedError, match="the process that it worked for has ended"):
            get(ref)
        return
    assert get(ref).sum() == size
    del ref
    wait_until(lambda: not alive(lender), "it is not used again")


def test_what_a_dead_actor_owned_goes_with_its_last_view(cluster: Any) -> None:
    folder = Path(cluster["object_store_address"])
    actor = Owner.remote()
    (ref,) = get(actor.lend.remote())
    (unseen,) = get(actor.lend.remote())
    view = get(ref)
    pid = get(actor.pid.remote())
    assert list(folder.iterdir())
    shoal.kill(actor)
    wait_until(lambda: not alive(pid), "the actor ends")
    with pytest.raises(OwnerDiedError):
        get(unseen)
    assert get(ref).sum() == LARGE, "what was fetched before stays"
    del ref, unseen
    wait_until(lambda: not list(folder.iterdir()), "nobody uses anything that the actor made")
    assert view.sum() == LARGE


@pytest.mark.cluster(num_cpus=2, object_store_memory=10**9, _system_config={"idle_worker_s": 600})
def test_what_others_made_for_a_dead_owner_is_freed(cluster: Any) -> None:
    folder = Path(cluster["object_store_address"])

    @shoal.remote(num_cpus=0.5)
    def make() -> Any:
        return np.ones(LARGE)

    @shoal.remote
    class Keeper:
        def __init__(self) -> None:
            self.refs = [make.remote() for _ in range(3)]

        def wait(self) -> int:
            shoal.wait(self.refs, num_returns=3)
            return os.getpid()

        def first(self) -> list[Any]:
            return self.refs[:1]

    keeper = Keeper.remote()
    pid = get(keeper.wait.remote())
    # Those that made them are nobody's any more: the keeper's end does not take them along.
    wait_until(lambda: shoal.available_resources().get("CPU") == 2, "leases are given back")
    (ref,) = get(keeper.first.remote())
    assert get(ref).sum() == LARGE
    os.kill(pid, signal.SIGKILL)

    @shoal.remote(num_cpus=0)
    def live_blocks() -> tuple[int, int]:
        from shoal.runtime import current_process

        time.sleep(0.2)
        arena = current_process.require().store._arena
        return os.getpid(), 0 if arena is None else arena.stats().live_blocks

    def live() -> int:
        return sum(dict(get([live_blocks.remote() for _ in range(4)])).values())

    wait_until(lambda: live() == 1, "only the one is left that is used")
    del ref
    wait_until(lambda: live() == 0, "nothing is left that anybody uses")
    assert folder.exists()
