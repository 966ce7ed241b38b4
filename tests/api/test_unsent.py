"""What does not fit into a message: an error for those whom it concerns, and nobody else notices."""

from __future__ import annotations

import os
from typing import Any

import pytest

import shoal
from shoal.errors import ActorDiedError, UnserializableError

LIMIT = 100_000
PIECE = b"x" * 5_000
MANY = 100

pytestmark = [
    pytest.mark.usefixtures("shared_cluster"),
    pytest.mark.cluster(num_cpus=2, _system_config={"max_frame_bytes": LIMIT}),
]


@shoal.remote
def count(*pieces: bytes) -> int:
    return sum(map(len, pieces))


@shoal.remote(num_returns=MANY)
def split() -> list[bytes]:
    return [PIECE] * MANY


@shoal.remote
def fail() -> None:
    raise ValueError("x" * 2 * LIMIT)


@shoal.remote
class Counter:
    def count(self, *pieces: bytes) -> int:
        return sum(map(len, pieces))

    def pid(self) -> int:
        return os.getpid()


def get(ref: Any) -> Any:
    return shoal.get(ref, timeout=30)


def pieces(number: int) -> list[Any]:
    return [shoal.put(PIECE) for _ in range(number)]


def test_a_task_with_too_many_arguments_fails_and_those_beside_it_do_not() -> None:
    before = [count.remote(piece) for piece in pieces(10)]
    large = count.remote(*pieces(MANY))
    after = [count.remote(piece) for piece in pieces(10)]
    with pytest.raises(UnserializableError, match=r"count\(\) cannot be sent .*max_frame_bytes"):
        get(large)
    assert get(before + after) == [len(PIECE)] * 20
    # As the error advises.
    assert get(count.remote(*[PIECE] * MANY)) == MANY * len(PIECE)


def test_the_arguments_of_a_task_that_cannot_be_sent_are_freed() -> None:
    entries = shoal.runtime.current_process.require().objects.entries
    arguments = pieces(MANY)
    ids = {ref._entry.object_id for ref in arguments}
    ref = count.remote(*arguments)
    del arguments
    with pytest.raises(UnserializableError):
        get(ref)
    get(count.remote())
    assert not ids & entries.keys()


def test_too_many_results_are_an_error_for_each() -> None:
    refs = split.remote()
    for ref in refs:
        with pytest.raises(UnserializableError, match="cannot be sent"):
            get(ref)
    assert get(count.remote(PIECE)) == len(PIECE)


def test_an_exception_that_is_too_large_is_told_as_such() -> None:
    with pytest.raises(UnserializableError, match="cannot be sent"):
        get(fail.remote())


def test_a_call_with_too_many_arguments_fails_and_the_actor_lives() -> None:
    actor = Counter.remote()
    pid = get(actor.pid.remote())
    large = actor.count.remote(*pieces(MANY))
    small = actor.count.remote(*pieces(3))
    with pytest.raises(UnserializableError, match=r"count\(\) cannot be sent"):
        get(large)
    assert get(small) == 3 * len(PIECE)
    assert get(actor.pid.remote()) == pid


def test_a_name_that_is_no_text_fails_its_task_alone() -> None:
    named = count.options(name="\ud800").remote(PIECE)
    other = count.remote(PIECE)
    with pytest.raises(UnserializableError, match="cannot be encoded"):
        get(named)
    assert get(other) == len(PIECE)


def test_resources_that_are_no_text_fail_their_task_alone() -> None:
    strange = count.options(resources={"\ud800": 1}).remote(PIECE)
    with pytest.raises(shoal.errors.ShoalError, match="cannot be encoded"):
        get(strange)
    assert get(count.remote(PIECE)) == len(PIECE)


def test_an_actor_that_cannot_be_asked_for_is_dead() -> None:
    strange = Counter.options(resources={"\ud800": 1}).remote()
    # The node, asked about it, may be quicker to say that it knows of no such actor.
    with pytest.raises(ActorDiedError, match=r"cannot be encoded|not known"):
        get(strange.pid.remote())
    with pytest.raises(ActorDiedError, match="cannot be encoded"):
        get(strange.pid.remote())
    assert get(Counter.remote().count.remote(PIECE)) == len(PIECE)


def test_a_named_actor_that_cannot_be_asked_for_is_refused_at_once() -> None:
    with pytest.raises(UnserializableError, match="cannot be encoded"):
        Counter.options(name="\ud800").remote()
