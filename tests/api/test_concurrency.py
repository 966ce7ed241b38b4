"""Actors that do several things at once: threads, concurrency groups, coroutines."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import shoal
from tests.api.gates import Gate, Trace, wait_until

pytestmark = pytest.mark.usefixtures("shared_cluster")


def get(ref: Any) -> Any:
    return shoal.get(ref, timeout=30)


# --- threads ---------------------------------------------------------------------------------------------------------------


class Meeting:
    """Methods that only return once enough callers are inside at the same time."""

    def __init__(self, parties: int) -> None:
        self.barrier = threading.Barrier(parties)

    def meet(self) -> str:
        self.barrier.wait(30)
        return threading.current_thread().name


def test_as_many_calls_run_at_once_as_there_may_be() -> None:
    meeting = shoal.remote(max_concurrency=4)(Meeting).remote(4)
    threads = get([meeting.meet.remote() for _ in range(4)])
    assert len(set(threads)) == 4
    assert len(get([meeting.meet.remote() for _ in range(8)])) == 8


def test_no_more_calls_run_at_once_than_there_may_be() -> None:
    @shoal.remote(max_concurrency=2)
    class Crowd:
        def __init__(self) -> None:
            self.lock = threading.Lock()
            self.inside = self.most = 0

        def enter(self) -> None:
            with self.lock:
                self.inside += 1
                self.most = max(self.most, self.inside)
            time.sleep(0.001)
            with self.lock:
                self.inside -= 1

        def largest(self) -> int:
            return self.most

    crowd = Crowd.remote()
    get([crowd.enter.remote() for _ in range(100)])
    assert get(crowd.largest.remote()) <= 2


def test_a_plain_actor_does_one_thing_at_a_time() -> None:
    @shoal.remote
    class Alone:
        def __init__(self) -> None:
            self.inside = 0

        def enter(self) -> int:
            self.inside += 1
            time.sleep(0.001)
            self.inside -= 1
            return self.inside

    alone = Alone.remote()
    assert set(get([alone.enter.remote() for _ in range(50)])) == {0}


def test_methods_of_a_threaded_actor_use_shoal_themselves() -> None:
    @shoal.remote
    def double(x: int) -> int:
        return 2 * x

    @shoal.remote(max_concurrency=4)
    class Caller:
        def call(self, x: int) -> int:
            return shoal.get(double.remote(x), timeout=30)

    caller = Caller.remote()
    assert get([caller.call.remote(i) for i in range(40)]) == [2 * i for i in range(40)]


def test_the_limit_can_be_given_when_the_actor_is_made() -> None:
    meeting = shoal.remote(Meeting).options(max_concurrency=3).remote(3)
    assert len(get([meeting.meet.remote() for _ in range(3)])) == 3


# --- concurrency groups ------------------------------------------------------------------------------------------------------


@shoal.remote(concurrency_groups={"io": 2, "compute": 1})
class Grouped:
    def __init__(self) -> None:
        self.barrier = threading.Barrier(2)

    @shoal.method(concurrency_group="io")
    def meet(self) -> bool:
        self.barrier.wait(30)
        return True

    @shoal.method(concurrency_group="compute")
    def hold(self, entered: Gate, gate: Gate) -> str:
        entered.open()
        gate.wait()
        return "held"

    def plain(self) -> str:
        return "plain"


def test_groups_do_not_wait_for_each_other(gates: Callable[[str], Gate]) -> None:
    entered, gate = gates("entered"), gates("compute")
    grouped = Grouped.remote()
    held = grouped.hold.remote(entered, gate)
    entered.wait()
    assert get([grouped.meet.remote(), grouped.meet.remote()]) == [True, True]
    assert get(grouped.plain.remote()) == "plain"
    gate.open()
    assert get(held) == "held"


def test_the_group_of_a_single_call_can_be_chosen(gates: Callable[[str], Gate]) -> None:
    entered, gate = gates("entered"), gates("compute")
    grouped = Grouped.remote()
    held = grouped.hold.remote(entered, gate)
    entered.wait()
    blocked = grouped.plain.options(concurrency_group="compute").remote()
    assert get(grouped.plain.options(concurrency_group="io").remote()) == "plain"
    assert shoal.wait([blocked], timeout=0)[0] == []
    gate.open()
    assert get([held, blocked]) == ["held", "plain"]


def test_groups_of_coroutines() -> None:
    @shoal.remote(concurrency_groups={"narrow": 1, "wide": 10})
    class Async:
        def __init__(self) -> None:
            self.inside = {"narrow": 0, "wide": 0}
            self.most = {"narrow": 0, "wide": 0}

        async def enter(self, group: str) -> None:
            self.inside[group] += 1
            self.most[group] = max(self.most[group], self.inside[group])
            for _ in range(20):
                await asyncio.sleep(0.001)
            self.inside[group] -= 1

        @shoal.method(concurrency_group="narrow")
        async def narrow(self) -> None:
            await self.enter("narrow")

        @shoal.method(concurrency_group="wide")
        async def wide(self) -> None:
            await self.enter("wide")

        async def largest(self) -> dict[str, int]:
            return self.most

    actor = Async.remote()
    get([method.remote() for _ in range(20) for method in (actor.narrow, actor.wide)])
    largest = get(actor.largest.remote())
    assert largest["narrow"] == 1
    assert 1 < largest["wide"] <= 10


# --- coroutines --------------------------------------------------------------------------------------------------------------


@shoal.remote
class Rendezvous:
    """Coroutines that wait for each other: only possible when all of them are under way at once."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.waiting = 0

    async def wait(self) -> int:
        self.waiting += 1
        await self.event.wait()
        return self.waiting

    async def count(self) -> int:
        return self.waiting

    async def release(self) -> None:
        self.event.set()

    def plain(self) -> str:
        return threading.current_thread().name

    async def thread(self) -> str:
        return threading.current_thread().name


def test_coroutines_of_an_actor_interleave() -> None:
    rendezvous = Rendezvous.remote()
    waiting = [rendezvous.wait.remote() for _ in range(100)]
    wait_until(lambda: get(rendezvous.count.remote()) == 100, "all coroutines wait")
    get(rendezvous.release.remote())
    assert get(waiting) == [100] * 100


def test_coroutines_share_one_thread() -> None:
    rendezvous = Rendezvous.remote()
    assert len(set(get([rendezvous.thread.remote() for _ in range(10)]))) == 1


def test_plain_methods_of_an_async_actor() -> None:
    assert isinstance(get(Rendezvous.remote().plain.remote()), str)


def test_max_concurrency_bounds_coroutines() -> None:
    rendezvous = Rendezvous.options(max_concurrency=3).remote()
    waiting = [rendezvous.wait.remote() for _ in range(3)]
    blocked = rendezvous.count.remote()
    assert shoal.wait([blocked], timeout=0.1)[0] == []
    shoal.kill(rendezvous)
    for ref in (*waiting, blocked):
        with pytest.raises(shoal.exceptions.ActorDiedError):
            get(ref)


def test_coroutines_begin_in_the_order_of_the_calls() -> None:
    @shoal.remote
    class Log:
        def __init__(self) -> None:
            self.seen: list[int] = []

        async def add(self, i: int) -> None:
            self.seen.append(i)
            await asyncio.sleep(0)

        async def all(self) -> list[int]:
            return self.seen

    log = Log.remote()
    get([log.add.remote(i) for i in range(200)])
    assert get(log.all.remote()) == list(range(200))


def test_a_coroutine_awaits_references() -> None:
    @shoal.remote
    def double(x: int) -> int:
        return 2 * x

    @shoal.remote
    class Caller:
        async def total(self, count: int) -> int:
            return sum(await asyncio.gather(*[double.remote(i) for i in range(count)]))

        async def from_argument(self, boxed: list[Any]) -> int:
            return await boxed[0]

        async def from_itself(self) -> int:
            me = shoal.get_runtime_context().current_actor
            return await me.total.remote(3)

    caller = Caller.remote()
    assert get(caller.total.remote(20)) == 380
    assert get(caller.from_argument.remote([double.remote(4)])) == 8
    assert get(caller.from_itself.remote()) == 6


def test_errors_of_coroutines() -> None:
    @shoal.remote
    class Faulty:
        async def fail(self) -> None:
            await asyncio.sleep(0)
            raise ValueError("in a coroutine")

        async def answer(self) -> int:
            return 42

    faulty = Faulty.remote()
    with pytest.raises(ValueError, match="in a coroutine"):
        get(faulty.fail.remote())
    assert get(faulty.answer.remote()) == 42


def test_tasks_that_a_coroutine_starts_go_on_after_it(traces: Callable[[str], Trace]) -> None:
    ran = traces("ran")

    @shoal.remote
    class Background:
        async def start(self) -> str:
            self.task = asyncio.create_task(self.work())
            return "started"

        async def work(self) -> None:
            await asyncio.sleep(0)
            ran.add("worked")

    background = Background.remote()
    assert get(background.start.remote()) == "started"
    wait_until(lambda: ran.words() == ["worked"], "the background task runs")


def test_a_blocking_call_in_a_thread_of_the_loop() -> None:
    @shoal.remote
    def double(x: int) -> int:
        return 2 * x

    @shoal.remote
    class Caller:
        async def call(self, x: int) -> int:
            ref = double.remote(x)
            return await asyncio.to_thread(shoal.get, ref, timeout=30)

    caller = Caller.remote()
    assert get([caller.call.remote(i) for i in range(10)]) == [2 * i for i in range(10)]


def test_each_coroutine_has_its_own_context() -> None:
    @shoal.remote
    class Context:
        def __init__(self) -> None:
            self.event = asyncio.Event()
            self.inside = 0

        async def task_id(self, parties: int) -> tuple[str, str]:
            before = shoal.get_runtime_context().get_task_id()
            self.inside += 1
            if self.inside == parties:
                self.event.set()
            await self.event.wait()
            return before, shoal.get_runtime_context().get_task_id()

    context = Context.remote()
    seen = get([context.task_id.remote(10) for _ in range(10)])
    assert all(before == after for before, after in seen)
    assert len({before for before, _ in seen}) == 10
