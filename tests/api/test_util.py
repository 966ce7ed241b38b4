"""`shoal.util`: pools of actors, queues, named actors, serializers."""

from __future__ import annotations

import asyncio
import io
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import shoal
from shoal import exceptions
from shoal.util import ActorPool
from shoal.util.queue import Empty, Full, Queue
from tests.api.gates import Gate

pytestmark = pytest.mark.usefixtures("shared_cluster")

MakeGate = Callable[[str], Gate]


@shoal.remote(num_cpus=0)
class Worker:
    def double(self, value: int) -> int:
        return 2 * value

    def fail(self, value: int) -> int:
        raise ValueError(f"no {value}")

    def hold(self, gate: Gate, value: int) -> int:
        gate.wait()
        return value

    @shoal.method(num_returns=2)
    def both(self, value: int) -> tuple[int, int]:
        return value, -value

    def die(self) -> None:
        shoal.actor.exit_actor()


def double(actor: Any, value: int) -> Any:
    return actor.double.remote(value)


@pytest.fixture
def pool() -> ActorPool[int]:
    return ActorPool([Worker.remote(), Worker.remote()])


# --- pools -----------------------------------------------------------------------------------------------------------------


def test_a_pool_maps_in_order(pool: ActorPool[int]) -> None:
    assert list(pool.map(double, range(20))) == [2 * n for n in range(20)]
    assert pool.has_free()
    assert not pool.has_next()


def test_a_pool_maps_out_of_order(pool: ActorPool[int], gates: MakeGate) -> None:
    gate = gates("first")

    def call(actor: Any, value: int) -> Any:
        return actor.hold.remote(gate, value) if value == 0 else actor.double.remote(value)

    results = pool.map_unordered(call, range(5))
    assert [next(results) for _ in range(4)] == [2, 4, 6, 8]
    gate.open()
    assert list(results) == [0]


def test_mapping_starts_before_results_are_wanted(pool: ActorPool[int], gates: MakeGate) -> None:
    gate = gates("go")
    results = pool.map(lambda actor, value: actor.hold.remote(gate, value), [1, 2])
    assert not pool.has_free()
    gate.open()
    assert list(results) == [1, 2]


def test_mapping_drops_results_that_nobody_took(pool: ActorPool[int]) -> None:
    for value in range(5):
        pool.submit(double, value)
    assert list(pool.map(double, [50])) == [100]


def test_submissions_wait_for_an_actor(pool: ActorPool[int]) -> None:
    assert pool.has_free()
    for value in range(4):
        pool.submit(double, value)
    assert not pool.has_free()
    assert [pool.get_next(timeout=30) for _ in range(4)] == [0, 2, 4, 6]
    with pytest.raises(StopIteration):
        pool.get_next()
    with pytest.raises(StopIteration):
        pool.get_next_unordered()


def test_the_oldest_result_after_an_unordered_one(pool: ActorPool[int], gates: MakeGate) -> None:
    gate = gates("first")
    pool.submit(lambda actor, value: actor.hold.remote(gate, value), 1)
    pool.submit(double, 2)
    assert pool.get_next_unordered(timeout=30) == 4
    gate.open()
    assert pool.get_next(timeout=30) == 1


def test_a_pool_waits_no_longer_than_it_may(pool: ActorPool[int], gates: MakeGate) -> None:
    gate = gates("never")
    pool.submit(lambda actor, value: actor.hold.remote(gate, value), 1)
    for take in (pool.get_next, pool.get_next_unordered):
        with pytest.raises(TimeoutError, match="1 calls run and 0 wait"):
            take(timeout=0.02)
    assert pool.has_next()
    assert pool.get_next(timeout=0.02, ignore_if_timedout=True) is None
    assert not pool.has_next()
    gate.open()
    assert list(pool.map(double, [1, 2])) == [2, 4]


def test_an_actor_goes_on_after_a_failed_call(pool: ActorPool[int]) -> None:
    pool.submit(lambda actor, value: actor.fail.remote(value), 1)
    pool.submit(double, 2)
    with pytest.raises(ValueError, match="no 1"):
        pool.get_next(timeout=30)
    assert pool.get_next(timeout=30) == 4
    assert {pool.pop_idle(), pool.pop_idle()} != {None}
    assert pool.pop_idle() is None


def test_a_dead_actor_leaves_the_pool() -> None:
    pool: ActorPool[int] = ActorPool([Worker.remote()])
    pool.submit(lambda actor, _: actor.die.remote(), 1)
    pool.submit(double, 2)
    with pytest.raises(exceptions.ActorDiedError):
        pool.get_next(timeout=30)
    with pytest.raises(RuntimeError, match="the pool has none left"):
        pool.get_next(timeout=30)
    pool.push(Worker.remote())
    assert pool.get_next(timeout=30) == 4


def test_calls_with_several_results(pool: ActorPool[int]) -> None:
    results = pool.map_unordered(lambda actor, value: actor.both.remote(value), [3])
    assert list(results) == [[3, -3]]


def test_what_a_pool_refuses(pool: ActorPool[int]) -> None:
    actor = pool.pop_idle()
    assert actor is not None
    pool.push(actor)
    with pytest.raises(ValueError, match="in the pool already"):
        pool.push(actor)
    with pytest.raises(TypeError, match="handles of actors"):
        ActorPool([Worker])  # type: ignore[list-item]  # the error that is tested
    with pytest.raises(TypeError, match="returned a int"):
        pool.submit(lambda _, value: value, 1)
    assert list(pool.map(double, [1])) == [2]


# --- queues ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def make_queue() -> Iterator[Callable[..., Queue]]:
    made: list[Queue] = []

    def make(maxsize: int = 0, **options: Any) -> Queue:
        made.append(Queue(maxsize, actor_options={"num_cpus": 0, **options}))
        return made[-1]

    yield make
    for each in made:
        each.shutdown(force=True)


MakeQueue = Callable[..., Queue]


def test_a_queue_keeps_the_order(make_queue: MakeQueue) -> None:
    items = make_queue()
    assert items.empty()
    for n in range(10):
        items.put(n)
    assert (len(items), items.size(), items.qsize()) == (10, 10, 10)
    assert not items.empty()
    assert not items.full()
    assert [items.get() for _ in range(10)] == list(range(10))


def test_a_full_and_an_empty_queue(make_queue: MakeQueue) -> None:
    items = make_queue(1)
    with pytest.raises(Empty):
        items.get_nowait()
    with pytest.raises(queue.Empty, match="still after"):
        items.get(timeout=0.01)
    items.put_nowait("a")
    assert items.full()
    with pytest.raises(Full, match="holds 1 items"):
        items.put_nowait("b")
    with pytest.raises(queue.Full):
        items.put("b", timeout=0.01)
    assert items.get() == "a"
    for call in (items.put_nowait, items.put):
        call("c")
        assert items.get_nowait() == "c"


@pytest.mark.parametrize("timeout", [-1, -0.5])
def test_a_queue_refuses_negative_timeouts(make_queue: MakeQueue, timeout: float) -> None:
    items = make_queue()
    with pytest.raises(ValueError, match="0 or more seconds"):
        items.get(timeout=timeout)
    with pytest.raises(ValueError, match="0 or more seconds"):
        items.put(1, timeout=timeout)


def test_batches_go_in_whole_or_not_at_all(make_queue: MakeQueue) -> None:
    items = make_queue(3)
    items.put_nowait_batch(n for n in range(2))
    with pytest.raises(Full, match="holds 2 of 3"):
        items.put_nowait_batch([2, 3])
    with pytest.raises(Empty, match="there are 2"):
        items.get_nowait_batch(3)
    assert items.get_nowait_batch(2) == [0, 1]
    assert items.get_nowait_batch(0) == []
    with pytest.raises(ValueError, match="0 or more"):
        items.get_nowait_batch(-1)
    with pytest.raises(TypeError, match="an integer"):
        items.get_nowait_batch("2")  # type: ignore[arg-type]  # the error that is tested
    with pytest.raises(TypeError, match="iterable"):
        items.put_nowait_batch(1)  # type: ignore[arg-type]  # the error that is tested


def test_a_queue_between_tasks(make_queue: MakeQueue) -> None:
    @shoal.remote
    def produce(out: Queue, count: int) -> None:
        for n in range(count):
            out.put(n)

    @shoal.remote
    def consume(source: Queue, count: int) -> list[int]:
        return [source.get(timeout=30) for _ in range(count)]

    items = make_queue(2)
    taken = consume.remote(items, 20)
    shoal.get(produce.remote(items, 20), timeout=30)
    assert shoal.get(taken, timeout=30) == list(range(20))


def test_many_waiting_gets_do_not_keep_a_put_out(make_queue: MakeQueue) -> None:
    items = make_queue()
    actor = items.actor
    assert actor is not None
    # More than an async actor runs at once by default.
    refs = [actor.get.remote(None) for _ in range(1100)]
    items.put_nowait_batch(range(1100))
    assert [value for (value,) in shoal.get(refs, timeout=30)] == list(range(1100))


def test_a_blocked_put_goes_on_when_there_is_room(make_queue: MakeQueue) -> None:
    items = make_queue(1)
    items.put("first")
    thread = threading.Thread(target=items.put, args=("second",))
    thread.start()
    assert items.get(timeout=30) == "first"
    assert items.get(timeout=30) == "second"
    thread.join(30)
    assert not thread.is_alive()


def test_a_queue_in_coroutines(make_queue: MakeQueue) -> None:
    items = make_queue(1)

    async def exchange() -> list[str]:
        taking = asyncio.create_task(items.get_async())
        await items.put_async("a")
        first = await taking
        with pytest.raises(Empty):
            await items.get_async(block=False)
        await items.put_async("b", timeout=30)
        with pytest.raises(Full):
            await items.put_async("c", block=False)
        return [first, await items.get_async(timeout=30)]

    assert asyncio.run(exchange()) == ["a", "b"]


@pytest.mark.parametrize("force", [False, True])
def test_a_queue_is_shut_down(make_queue: MakeQueue, force: bool) -> None:
    items = make_queue()
    actor = items.actor
    assert actor is not None
    items.put(1)
    items.shutdown(force=force)
    items.shutdown()
    with pytest.raises(exceptions.ActorDiedError):
        shoal.get(actor.qsize.remote(), timeout=30)
    with pytest.raises(exceptions.ShoalError, match="shut down"):
        items.put(1)


def test_options_of_a_queues_actor(make_queue: MakeQueue) -> None:
    items = make_queue(name="jobs of this test")
    items.put(1)
    assert shoal.get(shoal.get_actor("jobs of this test").qsize.remote(), timeout=30) == 1


# --- names, addresses, serializers ---------------------------------------------------------------------------------------------


def test_named_actors_are_listed() -> None:
    here = Worker.options(name="here").remote()
    there = Worker.options(name="there", namespace="elsewhere").remote()
    assert shoal.util.list_named_actors() == ["here"]
    namespace = shoal.get_runtime_context().namespace
    everywhere = shoal.util.list_named_actors(all_namespaces=True)
    assert sorted(everywhere, key=lambda row: row["name"]) == [
        {"name": "here", "namespace": namespace},
        {"name": "there", "namespace": "elsewhere"},
    ]
    for actor in (here, there):
        shoal.kill(actor)


def test_the_address_of_the_node() -> None:
    ask = shoal.remote(shoal.util.get_node_ip_address)
    [node] = shoal.nodes()
    assert shoal.util.get_node_ip_address() == node["NodeManagerAddress"]
    assert shoal.get(ask.remote(), timeout=30) == node["NodeManagerAddress"]


class Door:
    """Holds a lock, which cannot be sent."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.lock = threading.Lock()


def test_a_serializer_of_ones_own() -> None:
    @shoal.remote
    def number(door: Door) -> int:
        return door.number

    with pytest.raises(TypeError, match="lock"):
        number.remote(Door(5))
    shoal.util.register_serializer(Door, serializer=lambda door: door.number, deserializer=Door)
    try:
        assert shoal.get(number.remote(Door(5)), timeout=30) == 5
    finally:
        shoal.util.deregister_serializer(Door)
    with pytest.raises(exceptions.UnserializableError):
        number.remote(Door(5))


def test_what_stands_in_the_way_of_sending() -> None:
    out = io.StringIO()
    can, failures = shoal.util.inspect_serializability(Door(1), name="door", print_file=out)
    assert not can
    assert {failure.name for failure in failures} == {"lock"}
    assert "door: cannot be sent" in out.getvalue()
