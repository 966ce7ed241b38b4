"""Large values by every way through the store: far more than fits at once passes, because each leaves when it is done with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import shoal

MEGABYTE = 1024 * 1024


def megabytes(count: int) -> np.ndarray:
    return np.ones(count * MEGABYTE, dtype=np.uint8)


def get(ref: Any) -> Any:
    return shoal.get(ref, timeout=30)


@shoal.remote
def size(values: np.ndarray) -> int:
    return values.size


@shoal.remote
def make(count: int) -> np.ndarray:
    return megabytes(count)


@shoal.remote
def put_one(count: int) -> list[Any]:
    return [shoal.put(megabytes(count))]


@shoal.remote
def stream(count: int) -> Iterator[np.ndarray]:
    for _ in range(3):
        yield megabytes(count)


@shoal.remote(max_retries=0)
def fail(values: np.ndarray) -> None:
    raise ValueError(values.size)


@shoal.remote
class Actor:
    def __init__(self, values: np.ndarray | None = None) -> None:
        self.kept = values

    def size(self, values: np.ndarray) -> int:
        return values.size

    def make(self, count: int) -> np.ndarray:
        return megabytes(count)

    def keep(self, values: np.ndarray) -> int:
        self.kept = values
        return values.size


def failed(ref: Any) -> int:
    with pytest.raises(ValueError, match=r"\d+") as caught:
        get(ref)
    return caught.value.cause.args[0]


def first_of(items: Any) -> int:
    first = get(next(items)).size
    shoal.wait([items.completed()], timeout=30)
    return first


def ready(ref: Any) -> int:
    assert shoal.wait([ref], timeout=30)[0] == [ref]
    return 20 * MEGABYTE


WAYS: dict[str, Callable[[Any], int]] = {
    "put": lambda _: get(shoal.put(megabytes(20))).size,
    "argument_by_value": lambda _: get(size.remote(megabytes(20))),
    "argument_by_name": lambda _: get(size.remote(values=megabytes(20))),
    "argument_by_reference": lambda _: get(size.remote(shoal.put(megabytes(20)))),
    "result": lambda _: get(make.remote(20)).size,
    "result_as_argument": lambda _: get(size.remote(make.remote(20))),
    "result_that_nobody_gets": lambda _: ready(make.remote(20)),
    "put_by_a_task": lambda _: get(get(put_one.remote(20))[0]).size,
    "inside_another_object": lambda _: get(get(shoal.put([shoal.put(megabytes(20))]))[0]).size,
    "stream": lambda _: first_of(stream.remote(20)),
    "argument_of_a_failure": lambda _: failed(fail.remote(megabytes(20))),
    "argument_of_a_method": lambda actor: get(actor.size.remote(megabytes(20))),
    "result_of_a_method": lambda actor: get(actor.make.remote(20)).size,
    "kept_by_an_actor_for_a_while": lambda actor: get(actor.keep.remote(megabytes(20))),
    "argument_of_an_actor": lambda _: get(Actor.remote(megabytes(20)).make.remote(20)).size,
}


@pytest.mark.cluster(
    num_cpus=2,
    object_store_memory=100 * MEGABYTE,
    # Room that comes back at all comes back at once; what does not is told without waiting for long.
    _system_config={"store_full_timeout_s": 1.0},
)
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("way", WAYS)
def test_far_more_than_fits_passes_through(way: str) -> None:
    actor = Actor.remote()
    for _ in range(12):
        assert WAYS[way](actor) == 20 * MEGABYTE
    # What processes keep for their next objects, others can have.
    assert get(shoal.put(megabytes(70))).size == 70 * MEGABYTE
