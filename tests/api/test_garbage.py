"""References that nobody can reach, but that were not dropped: they do not fill the store, and keep no actor."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from typing import Any

import numpy
import pytest

import shoal
from tests.api.gates import DEADLINE_S, alive, wait_until

MEGABYTE = 1024 * 1024
HALF = 45 * MEGABYTE

pytestmark = [
    pytest.mark.usefixtures("shared_cluster"),
    pytest.mark.cluster(
        num_cpus=2,
        object_store_memory=100 * MEGABYTE,
        _system_config={"spill": False},
    ),
]


def get(ref: Any) -> Any:
    return shoal.get(ref, timeout=2 * DEADLINE_S)


def half() -> Any:
    return numpy.ones(HALF, dtype=numpy.uint8)


def lose(*things: Any) -> None:
    """Leave things in a cycle that nothing refers to."""
    cycle = list(things)
    cycle.append(cycle)


@shoal.remote
def make() -> Any:
    return half()


@shoal.remote(num_cpus=0)
class Loser:
    def put(self) -> None:
        lose(shoal.put(half()))

    def lose(self, box: Any) -> None:
        lose(box)

    def pid(self) -> int:
        return os.getpid()


@pytest.fixture
def seldom() -> Iterator[None]:
    """This process collects cycles only if it is told to."""
    thresholds = gc.get_threshold()
    gc.set_threshold(1_000_000)
    yield
    gc.set_threshold(*thresholds)


@pytest.mark.usefixtures("seldom")
@pytest.mark.parametrize("where", ["creator", "owner of results", "actor", "borrower"])
def test_a_store_full_of_garbage_has_room(where: str) -> None:
    loser = Loser.remote()
    for _ in range(3):
        if where == "creator":
            lose(shoal.put(half()))
        elif where == "owner of results":
            result = make.remote()
            shoal.wait([result], timeout=DEADLINE_S)
            lose(result)
            del result
        elif where == "actor":
            get(loser.put.remote())
        else:
            get(loser.lose.remote([shoal.put(half())]))


def test_a_worker_that_idles_lets_go_of_an_actor_in_a_cycle() -> None:
    @shoal.remote
    def leave_an_actor() -> int:
        loser = Loser.remote()
        lose(loser)
        pid: int = shoal.get(loser.pid.remote())
        return pid

    pid = get(leave_an_actor.remote())
    wait_until(lambda: not alive(pid), "the actor ends")
