"""What does not fit into a message: an error for those whom it concerns, and nobody else notices."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
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
    with pytest.raises(
        UnserializableError,
        match=r"raised an exception \(builtins.ValueError\) that cannot be sent",
    ) as caught:
        get(fail.remote())
    # What helps against too many values is no advice here.
    assert "list or array" not in str(caught.value)


def test_an_exception_that_is_too_large_is_retried_as_any_other(tmp_path: Path) -> None:
    tried = tmp_path / "tried"

    @shoal.remote(max_retries=1, retry_exceptions=[ValueError])
    def fail_once() -> str:
        if tried.exists():
            return "done"
        tried.touch()
        raise ValueError("x" * 2 * LIMIT)

    assert get(fail_once.remote()) == "done"


def test_a_result_with_too_many_references_is_told_as_such() -> None:
    @shoal.remote
    def refer() -> list[Any]:
        return [shoal.put(number) for number in range(3_000)]

    with pytest.raises(UnserializableError, match=r"cannot be sent.*fewer"):
        get(refer.remote())


@pytest.mark.parametrize("in_actor", [False, True], ids=["task", "actor"])
def test_an_item_that_cannot_be_sent_is_an_error_in_its_place(in_actor: bool) -> None:
    def items() -> Iterator[Any]:
        yield 1
        yield [shoal.put(number) for number in range(3_000)]
        yield 3

    @shoal.remote
    class Source:
        def items(self) -> Iterator[Any]:
            return items()

    source = Source.remote().items if in_actor else shoal.remote(max_retries=0)(items)
    stream = source.options(num_returns="streaming").remote()
    one, large, three = (stream._next_sync(30) for _ in range(3))
    assert get(one) == 1
    with pytest.raises(UnserializableError, match=r"item 1 of the stream cannot be sent"):
        get(large)
    assert get(three) == 3
    with pytest.raises(StopIteration):
        stream._next_sync(30)
    assert get(stream.completed()) == 3


def test_an_exception_behind_an_item_that_cannot_be_sent_comes_after_it() -> None:
    @shoal.remote(max_retries=0)
    def items() -> Iterator[Any]:
        yield [shoal.put(number) for number in range(3_000)]
        raise ValueError("the end")

    stream = items.options(num_returns="streaming").remote()
    for error in (UnserializableError, ValueError):
        with pytest.raises(error):
            get(stream._next_sync(30))
    with pytest.raises(StopIteration):
        stream._next_sync(30)


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
    with pytest.raises(UnserializableError, match=r"asked for.*cannot be encoded") as caught:
        get(strange)
    # Nothing was started, and nothing has printed.
    assert "printed" not in str(caught.value)
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
