"""What waits lends its CPU, in whichever way it waits; gives back what was queued behind it; and has its CPU again when it goes on.

On one CPU, so that whoever kept it would wait for ever. (The rules are those of decision 0004; recursion is in `tests/api/test_resources`.)
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
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


async def awaited(ref: Any) -> int:
    return int(await ref)


async def gathered() -> int:
    return int(sum(await asyncio.gather(*(answer.remote() for _ in range(3)))) / 3)


def by_a_thread(wait: Callable[[], int]) -> int:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(wait).result()


def by_polling() -> int:
    future = answer.remote().future()
    while not future.done():
        time.sleep(0.01)
    return int(future.result())


async def next_of_a_stream() -> int:
    return int(await (await anext(answers.remote())))


WAYS: Final[dict[str, Callable[[], int]]] = {
    "get": lambda: int(get(answer.remote())),
    "get of a list": lambda: int(get([answer.remote(), answer.remote()])[1]),
    "wait": by_wait,
    "next of a stream": lambda: int(get(next(answers.remote()))),
    "a new actor": lambda: int(get(Answerer.remote().answer.remote())),
    "a placement group": by_a_group,
    "await": lambda: asyncio.run(awaited(answer.remote())),
    "gather": lambda: asyncio.run(gathered()),
    "await of a call": lambda: asyncio.run(awaited(Answerer.remote().answer.remote())),
    "async next of a stream": lambda: asyncio.run(next_of_a_stream()),
    "result": lambda: int(answer.remote().future().result()),
    "polling": by_polling,
    "get in a thread": lambda: by_a_thread(lambda: int(get(answer.remote()))),
    "wait in a thread": lambda: by_a_thread(by_wait),
}


@shoal.remote(num_cpus=1)
def task(way: str) -> int:
    return WAYS[way]()


class _Actor:
    def method(self, way: str) -> int:
        return WAYS[way]()


@shoal.remote(num_cpus=1)
class Actor(_Actor):
    """Its methods run in the main thread."""


@pytest.mark.parametrize("way", WAYS)
def test_a_task_that_waits_lends_its_cpu(way: str) -> None:
    assert get(task.remote(way)) == 42


@pytest.mark.parametrize("way", WAYS)
def test_an_actor_that_waits_lends_its_cpu(way: str) -> None:
    actor = Actor.remote()
    assert get(actor.method.remote(way)) == 42
    # It holds it all the same, for as long as it lives.
    assert free_cpus() == 0


@shoal.remote(num_cpus=1, max_concurrency=2)
class Threaded(_Actor):
    """Its methods run in threads."""


@shoal.remote(num_cpus=1)
class Async:
    async def method(self) -> int:
        return await awaited(answer.remote())

    async def both(self) -> list[int]:
        return list(await asyncio.gather(awaited(answer.remote()), awaited(answer.remote())))


@pytest.mark.parametrize("way", WAYS)
def test_an_actor_with_threads_that_waits_lends_its_cpu(way: str) -> None:
    assert get(Threaded.remote().method.remote(way)) == 42


def test_an_async_actor_that_awaits_lends_its_cpu() -> None:
    actor = Async.remote()
    assert get(actor.method.remote()) == 42
    assert get(actor.both.remote()) == [42, 42]
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


def test_who_awaits_has_it_again_when_it_goes_on(gates: Callable[[str], Gate]) -> None:
    first, second, goes_on = gates("first"), gates("second"), gates("goes on")
    holder = Holder.options(max_concurrency=2).remote()

    @shoal.remote(num_cpus=1)
    def awaits() -> int:
        async def both() -> int:
            refs = holder.through.remote(first), holder.through.remote(second)
            value = int(await refs[0])
            # The other is still waited for; but this process has something to do.
            task = asyncio.ensure_future(awaited(refs[1]))
            while not goes_on.is_open():  # noqa: ASYNC110 - it is to be busy
                await asyncio.sleep(0)
            return value + await task

        return asyncio.run(both())

    ref = awaits.remote()
    wait_until(lambda: free_cpus() == 1, "it is lent")
    first.open()
    wait_until(lambda: free_cpus() == 0, "it is taken back")
    goes_on.open()
    wait_until(lambda: free_cpus() == 1, "it is lent again")
    second.open()
    assert get(ref) == 84


def test_what_a_task_leaves_waiting_lends_nothing_of_the_next(
    gates: Callable[[str], Gate],
) -> None:
    gate, asleep, goes_on = gates("gate"), gates("asleep"), gates("goes on")
    holder = Holder.remote()

    @shoal.remote(num_cpus=1)
    def leaves() -> int:
        holder.through.remote(gate).future()
        return os.getpid()

    @shoal.remote(num_cpus=1)
    def idles() -> int:
        asleep.open()
        goes_on.wait()
        return os.getpid()

    pid = get(leaves.remote())
    ref = idles.remote()
    asleep.wait()
    lent = [free_cpus() for _ in range(20) if not time.sleep(0.02)]
    goes_on.open()
    assert get(ref) == pid
    assert lent == [0.0] * 20
    gate.open()


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
