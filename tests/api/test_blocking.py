"""What waits lends its CPU, in whichever way it waits; gives back what was queued behind it; and has its CPU again when it goes on.

On one CPU, so that whoever kept it would wait for ever. (The rules are those of decision 0004; recursion is in `tests/api/test_resources`.)
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

import shoal
from shoal.errors import WorkerCrashedError
from shoal.util.placement_group import placement_group, remove_placement_group
from tests.api.gates import Gate, Trace, wait_until

pytestmark = [
    pytest.mark.cluster(num_cpus=1),
    pytest.mark.usefixtures("shared_cluster", "all_back"),
]

PATIENCE_S: Final = 60


def get(ref: Any) -> Any:
    return shoal.get(ref, timeout=PATIENCE_S)


def free_cpus() -> float:
    return shoal.available_resources().get("CPU", 0.0)


@pytest.fixture
def all_back() -> Iterator[None]:
    """Before and after each test the CPU is free, and there is one."""
    wait_until(lambda: free_cpus() == 1, "the CPU is free")
    yield
    wait_until(lambda: free_cpus() == 1, "the CPU is free again, and not twice")


# --- ways of waiting --------------------------------------------------------------------------------------------------

# Of another shape than those who wait for them, so that nobody runs them in place.
HALF: Final = {"num_cpus": 0.5}


@shoal.remote(**HALF)
def answer() -> int:
    return 42


@shoal.remote(**HALF)
def answers() -> Iterator[int]:
    yield 42


@shoal.remote(**HALF)
class Answerer:
    def answer(self) -> int:
        return 42


def by_wait() -> int:
    ready, _ = shoal.wait([answer.remote()], timeout=PATIENCE_S)
    return int(shoal.get(ready[0], timeout=0))


def by_a_group() -> int:
    group = placement_group([{"CPU": 0.5}])
    try:
        return 42 if group.wait(PATIENCE_S) else 0
    finally:
        remove_placement_group(group)


WAYS: Final[dict[str, Callable[[], int]]] = {
    "get": lambda: int(get(answer.remote())),
    "get of a list": lambda: int(get([answer.remote(), answer.remote()])[1]),
    "wait": by_wait,
    "next of a stream": lambda: int(get(next(answers.remote()))),
    "a new actor": lambda: int(get(Answerer.remote().answer.remote())),
    "a placement group": by_a_group,
}


@shoal.remote(num_cpus=1)
def task(way: str) -> int:
    return WAYS[way]()


@shoal.remote(num_cpus=1)
class Actor:
    def method(self, way: str) -> int:
        return WAYS[way]()


@pytest.mark.parametrize("way", WAYS)
def test_a_task_that_waits_lends_its_cpu(way: str) -> None:
    assert get(task.remote(way)) == 42


@pytest.mark.parametrize("way", WAYS)
def test_an_actor_that_waits_lends_its_cpu(way: str) -> None:
    actor = Actor.remote()
    assert get(actor.method.remote(way)) == 42
    # It holds it all the same, for as long as it lives.
    assert free_cpus() == 0


# --- the CPU of who waits -----------------------------------------------------------------------------------------------


@shoal.remote(num_cpus=0)
class Holder:
    """Answers when a gate is open."""

    def through(self, gate: Gate) -> int:
        gate.wait()
        return 42


def test_it_is_lent_for_as_long_as_the_wait_lasts(gates: Callable[[str], Gate]) -> None:
    asked, goes_on = gates("asked"), gates("goes on")
    holder = Holder.remote()

    @shoal.remote(num_cpus=1)
    def waits() -> int:
        value = int(get(holder.through.remote(asked)))
        goes_on.wait()
        return value

    ref = waits.remote()
    wait_until(lambda: free_cpus() == 1, "it is lent")
    asked.open()
    wait_until(lambda: free_cpus() == 0, "it is taken back")
    goes_on.open()
    assert get(ref) == 42


def test_what_is_queued_behind_one_who_waits_runs_elsewhere(gates: Callable[[str], Gate]) -> None:
    gate = gates("gate")
    holder = Holder.remote()

    @shoal.remote
    def waits_or_not(number: int) -> int:
        return int(get(holder.through.remote(gate))) if number == 3 else number

    # Known to be short, so that many are sent to one worker at a time.
    assert get([waits_or_not.remote(0) for _ in range(200)]) == [0] * 200
    refs = [waits_or_not.remote(number) for number in range(50)]
    others = [ref for number, ref in enumerate(refs) if number != 3]
    assert get(others) == [number for number in range(50) if number != 3]
    assert shoal.wait([refs[3]], timeout=0)[0] == []
    gate.open()
    assert get(refs[3]) == 42


def test_who_is_killed_while_it_waits_gives_back_what_it_held_once(
    gates: Callable[[str], Gate], traces: Callable[[str], Trace]
) -> None:
    pids, never = traces("pids"), gates("never")
    holder = Holder.remote()

    @shoal.remote(num_cpus=1, max_retries=0)
    def waits() -> Any:
        pids.add(os.getpid())
        return get(holder.through.remote(never))

    ref = waits.remote()
    wait_until(lambda: pids.words() and free_cpus() == 1, "it is lent")
    # Somebody uses it meanwhile.
    assert get(answer.remote()) == 42
    os.kill(int(pids.words()[0]), signal.SIGKILL)
    with pytest.raises(WorkerCrashedError):
        get(ref)
    never.open()
