"""Handles on actors: where they travel, how long they keep the actor, and what every actor can do."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest

import shoal
from shoal.exceptions import ActorDiedError
from tests.api.counters import Counter, PlainCounter
from tests.api.gates import Gate, Trace, alive, wait_until

pytestmark = pytest.mark.usefixtures("shared_cluster")


def get(ref: Any) -> Any:
    return shoal.get(ref, timeout=30)


# --- handles -------------------------------------------------------------------------------------------------------------


def test_handles_travel_everywhere() -> None:
    counter = Counter.remote()

    @shoal.remote
    def call(handle: Any, boxed: dict[str, list[Any]]) -> bool:
        shoal.get([handle.add.remote(), boxed["deep"][0].add.remote()], timeout=30)
        return handle == boxed["deep"][0]

    @shoal.remote
    class Keeper:
        def __init__(self, handle: Any) -> None:
            self.handle = handle

        def call(self) -> int:
            return shoal.get(self.handle.add.remote(), timeout=30)

        def give(self) -> Any:
            return self.handle

    assert get(call.remote(counter, {"deep": [counter]}))
    keeper = Keeper.remote(counter)
    assert get(keeper.call.remote()) == 3
    given = get(keeper.give.remote())
    assert given == counter
    assert hash(given) == hash(counter)
    assert get(given.add.remote()) == 4
    assert get(get(shoal.put(counter)).add.remote()) == 5


def test_a_handle_reaches_the_actor_before_the_actor_has_started(
    gates: Callable[[str], Gate],
) -> None:
    gate = gates("start")

    @shoal.remote
    class Slow:
        def __init__(self, gate: Gate) -> None:
            gate.wait()

        def answer(self) -> int:
            return 42

    @shoal.remote(num_cpus=0)
    def ask(handle: Any) -> int:
        return shoal.get(handle.answer.remote(), timeout=30)

    slow = Slow.remote(gate)
    asked = ask.remote(slow)
    assert shoal.wait([asked], timeout=0)[0] == []
    gate.open()
    assert get(asked) == 42


def test_a_handle_made_by_a_task_is_good_after_it() -> None:
    @shoal.remote
    def make() -> Any:
        return Counter.remote(5)

    counter = get(make.remote())
    assert get([counter.add.remote(), counter.add.remote()]) == [6, 7]


def test_handles_of_different_actors_differ() -> None:
    one, other = Counter.remote(), Counter.remote()
    assert one != other
    assert one._actor_id != other._actor_id
    assert repr(one).startswith("Actor(")
    assert one._actor_id.hex() in repr(one)
    assert one._ray_actor_id == one._actor_id


def test_an_actor_passes_on_itself() -> None:
    @shoal.remote
    class Node:
        def value(self) -> int:
            return 8

        def me(self) -> Any:
            return shoal.get_runtime_context().current_actor

    node = Node.remote()
    me = get(node.me.remote())
    assert me == node
    assert get(me.value.remote()) == 8


def test_an_actor_ends_with_its_last_handle() -> None:
    counter = Counter.remote()
    pid = get(counter.pid.remote())
    again = get(shoal.put([counter]))[0]
    del counter
    gc.collect()
    assert get(again.add.remote()) == 1
    del again
    gc.collect()
    wait_until(lambda: not alive(pid), "the actor's process ends")


def test_calls_made_before_the_last_handle_went_still_run(
    gates: Callable[[str], Gate], traces: Callable[[str], Trace]
) -> None:
    gate, ran = gates("go"), traces("ran")

    @shoal.remote
    class Worker:
        def work(self, gate: Gate, ran: Trace, i: int) -> int:
            gate.wait()
            ran.add(i)
            return i

    worker = Worker.remote()
    refs = [worker.work.remote(gate, ran, i) for i in range(5)]
    del worker
    gc.collect()
    gate.open()
    assert get(refs) == list(range(5))
    assert ran.words() == list("01234")


def test_a_call_right_at_creation_is_enough() -> None:
    assert get(Counter.remote(1).add.remote()) == 2


# --- what every actor can do -----------------------------------------------------------------------------------------------


def test_ready_call_and_terminate() -> None:
    counter = Counter.remote(3)
    get(counter.__ray_ready__.remote())

    def doubled(actor: PlainCounter, factor: int) -> int:
        return actor.total * factor

    assert get(counter.__ray_call__.remote(doubled, 5)) == 15
    pid = get(counter.pid.remote())
    counter.__ray_terminate__.remote()
    wait_until(lambda: not alive(pid), "the actor's process ends")
    with pytest.raises(ActorDiedError):
        get(counter.add.remote())


def test_max_pending_calls_limits_what_waits(gates: Callable[[str], Gate]) -> None:
    gate = gates("go")

    @shoal.remote(max_pending_calls=3)
    class Busy:
        def work(self, gate: Gate) -> None:
            gate.wait()

    busy = Busy.remote()
    refs = [busy.work.remote(gate) for _ in range(3)]
    with pytest.raises(shoal.exceptions.PendingCallsLimitExceeded):
        busy.work.remote(gate)
    gate.open()
    get(refs)
    get(busy.work.remote(gate))


def test_the_class_and_its_calls_by_the_names_that_libraries_use() -> None:
    assert Counter.__ray_actor_class__ is PlainCounter or Counter.__ray_metadata__ is not None
    counter = Counter._remote(args=[1], kwargs={"step": 4}, name="by_library")
    assert get(counter.add._remote(args=[2])) == 9


def test_actors_of_actors_to_any_depth() -> None:
    @shoal.remote
    class Nested:
        def __init__(self, depth: int) -> None:
            self.child = Nested.remote(depth - 1) if depth else None

        def depth(self) -> int:
            if self.child is None:
                return 0
            return 1 + shoal.get(self.child.depth.remote(), timeout=30)

    assert get(Nested.remote(4).depth.remote()) == 4
