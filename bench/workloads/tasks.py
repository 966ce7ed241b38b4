"""Stateless tasks: round trips, pipelines, queues, chains, waiting, fan-in and fan-out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench.measure import Batch
from bench.peers import Core

IN_FLIGHT = 1_000
QUEUED = 100_000
POOL_IN_FLIGHT = 20_000
CHAIN = 200
ARGUMENTS = 10_000
RETURNS = 3_000


def one_at_a_time(ray: Core) -> Iterator[Batch]:
    """Submit a task, get its result, and only then submit the next."""

    @ray.remote
    def tiny() -> bytes:
        return b"ok"

    def batch() -> float:
        for _ in range(50):
            ray.get(tiny.remote())
        return 50

    yield batch


def in_flight(ray: Core, count: int = IN_FLIGHT) -> Iterator[Batch]:
    """Submit ``count`` tasks, then get all their results at once."""

    @ray.remote
    def tiny() -> bytes:
        return b"ok"

    def batch() -> float:
        results = ray.get([tiny.remote() for _ in range(count)])
        return len(results)

    yield batch


def in_flight_20k(ray: Core) -> Iterator[Batch]:
    """As many tasks in flight as the row against ``multiprocessing.Pool`` asks for."""
    return in_flight(ray, POOL_IN_FLIGHT)


def queue_100k(ray: Core) -> Iterator[Batch]:
    """Submit 100,000 tasks without looking back, then fetch every result."""

    @ray.remote
    def tiny() -> bytes:
        return b"ok"

    ray.get([tiny.remote() for _ in range(100)])

    def batch() -> float:
        results = ray.get([tiny.remote() for _ in range(QUEUED)])
        if len(results) != QUEUED:
            raise AssertionError(f"{len(results)} results for {QUEUED} tasks")
        return QUEUED

    yield batch


def two_clients(ray: Core) -> Iterator[Batch]:
    """Two actors submit tasks at the same time, each getting all of its own results."""

    @ray.remote
    def tiny() -> bytes:
        return b"ok"

    class Client:
        def submit(self, count: int) -> int:
            return len(ray.get([tiny.remote() for _ in range(count)]))

    client_class = ray.remote(Client)
    clients = [client_class.remote() for _ in range(2)]

    def batch() -> float:
        counts = ray.get([client.submit.remote(IN_FLIGHT) for client in clients])
        return float(sum(counts))

    yield batch
    for client in clients:
        ray.kill(client)


def chain(ray: Core) -> Iterator[Batch]:
    """200 tasks, each taking the result of the one before it; only the last one is fetched."""

    @ray.remote
    def step(value: int) -> int:
        return value + 1

    def batch() -> float:
        ref: Any = 0
        for _ in range(CHAIN):
            ref = step.remote(ref)
        if ray.get(ref) != CHAIN:
            raise AssertionError("the chain lost a link")
        return CHAIN

    yield batch


def wait_one_by_one(ray: Core) -> Iterator[Batch]:
    """1,000 tasks are submitted and taken from the pending list one ``wait`` at a time.

    One round is the whole list, submission included.
    """

    @ray.remote
    def tiny() -> bytes:
        return b"ok"

    def batch() -> float:
        pending = [tiny.remote() for _ in range(IN_FLIGHT)]
        while pending:
            _, pending = ray.wait(pending)
        return 1

    yield batch


def many_arguments(ray: Core) -> Iterator[Batch]:
    """One task that takes 10,000 objects as arguments (the objects exist beforehand)."""

    @ray.remote
    def count(*arguments: int) -> int:
        return len(arguments)

    objects = [ray.put(number) for number in range(ARGUMENTS)]
    ray.get(count.remote(*objects[:10]))

    def batch() -> float:
        if ray.get(count.remote(*objects)) != ARGUMENTS:
            raise AssertionError("an argument was lost")
        return 1

    yield batch


def many_returns(ray: Core) -> Iterator[Batch]:
    """One task that returns 3,000 objects, all of which are fetched."""

    @ray.remote
    def numbers(count: int) -> tuple[int, ...]:
        return tuple(range(count))

    ray.get(numbers.options(num_returns=10).remote(10))

    def batch() -> float:
        values = ray.get(numbers.options(num_returns=RETURNS).remote(RETURNS))
        if values[-1] != RETURNS - 1:
            raise AssertionError("the returned values are not the ones sent")
        return 1

    yield batch
