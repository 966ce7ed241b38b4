"""Actors: calls one at a time and pipelined, between actors, asynchronous, and new ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench.measure import Batch
from bench.peers import Core

IN_FLIGHT = 1_000
NEW_ACTORS = 40


def one_at_a_time(ray: Core) -> Iterator[Batch]:
    """Call a method, get its result, and only then call again."""
    return _round_trips(ray, _echo(ray))


def async_one_at_a_time(ray: Core) -> Iterator[Batch]:
    """The same, with an ``async def`` method."""
    return _round_trips(ray, _async_echo(ray))


def in_flight(ray: Core) -> Iterator[Batch]:
    """1,000 calls to one actor, then all the results at once."""
    return _pipeline(ray, _echo(ray))


def async_in_flight(ray: Core) -> Iterator[Batch]:
    """The same, with an ``async def`` method."""
    return _pipeline(ray, _async_echo(ray))


def object_argument(ray: Core) -> Iterator[Batch]:
    """1,000 calls to one actor, each taking an object (made by ``put``) as its argument."""

    class Echo:
        def answer(self, value: int) -> int:
            return value

    actor = ray.remote(Echo).remote()
    ray.get(actor.answer.remote(0))

    def batch() -> float:
        ref = ray.put(7)
        results = ray.get([actor.answer.remote(ref) for _ in range(IN_FLIGHT)])
        if results[-1] != 7:
            raise AssertionError("the actor saw another value")
        return len(results)

    yield batch
    ray.kill(actor)


def two_by_two(ray: Core) -> Iterator[Batch]:
    """Two actors each call two other actors 500 times and get all the results."""

    class Client:
        def __init__(self, servers: list[Any]) -> None:
            self.servers = servers

        def call(self, count: int) -> int:
            refs = [server.answer.remote() for _ in range(count) for server in self.servers]
            return len(ray.get(refs))

    server_class, client_class = _echo(ray), ray.remote(Client)
    servers = [server_class.remote() for _ in range(2)]
    clients = [client_class.remote(servers) for _ in range(2)]

    def batch() -> float:
        calls = ray.get([client.call.remote(IN_FLIGHT // 2) for client in clients])
        return float(sum(calls))

    yield batch
    for actor in (*clients, *servers):
        ray.kill(actor)


def forty_new(ray: Core) -> Iterator[Batch]:
    """40 actors are made, and each answers once."""
    return _new_actors(ray, NEW_ACTORS)


def thousand_new(ray: Core) -> Iterator[Batch]:
    """1,000 actors are made, each answers once, and all are alive at the end."""
    return _new_actors(ray, 1_000)


def _new_actors(ray: Core, count: int) -> Iterator[Batch]:
    newborn = _echo(ray)
    first = newborn.remote()
    ray.get(first.answer.remote())
    ray.kill(first)
    alive: list[Any] = []

    def batch() -> float:
        alive.extend(newborn.remote() for _ in range(count))
        answers = ray.get([actor.answer.remote() for actor in alive])
        return len(answers)

    yield batch
    for actor in alive:
        ray.kill(actor)


def _echo(ray: Core) -> Any:
    class Echo:
        def answer(self) -> bytes:
            return b"ok"

    return ray.remote(Echo)


def _async_echo(ray: Core) -> Any:
    class AsyncEcho:
        async def answer(self) -> bytes:
            return b"ok"

    return ray.remote(AsyncEcho)


def _round_trips(ray: Core, actor_class: Any) -> Iterator[Batch]:
    actor = actor_class.remote()

    def batch() -> float:
        for _ in range(50):
            ray.get(actor.answer.remote())
        return 50

    yield batch
    ray.kill(actor)


def _pipeline(ray: Core, actor_class: Any) -> Iterator[Batch]:
    actor = actor_class.remote()

    def batch() -> float:
        results = ray.get([actor.answer.remote() for _ in range(IN_FLIGHT)])
        return len(results)

    yield batch
    ray.kill(actor)
