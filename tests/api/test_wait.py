"""`wait`: what is ready, what is not, in which order, and what it refuses."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import shoal
from tests.api.gates import Gate

pytestmark = pytest.mark.usefixtures("shared_cluster")


@shoal.remote(num_cpus=0)
def pending(gate: Gate, value: Any = None) -> Any:
    gate.wait()
    return value


def ready(count: int) -> list[Any]:
    refs = [shoal.put(i) for i in range(count)]
    shoal.get(refs, timeout=30)
    return refs


def test_both_lists_keep_the_order_of_the_argument(gates: Callable[[str], Gate]) -> None:
    gate = gates("late")
    done, late = ready(3), [pending.remote(gate) for _ in range(3)]
    mixed = [late[0], done[0], late[1], done[1], done[2], late[2]]
    assert shoal.wait(mixed, num_returns=3, timeout=10) == (done, late)


@pytest.mark.parametrize("num_returns", [1, 2, 4])
def test_no_more_are_returned_than_were_asked_for(num_returns: int) -> None:
    done = ready(5)
    chosen, others = shoal.wait(done, num_returns=num_returns, timeout=10)
    assert len(chosen) == num_returns
    assert chosen == [ref for ref in done if ref in chosen]
    assert others == [ref for ref in done if ref not in chosen]


def test_all_of_them() -> None:
    done = ready(4)
    assert shoal.wait(done, num_returns=4, timeout=10) == (done, [])


def test_it_waits_for_what_is_missing(gates: Callable[[str], Gate]) -> None:
    first, second = gates("first"), gates("second")
    refs = [pending.remote(first), pending.remote(second)]
    second.open()
    assert shoal.wait(refs, timeout=30) == ([refs[1]], [refs[0]])
    first.open()
    assert shoal.wait(refs, num_returns=2, timeout=30) == (refs, [])


def test_one_by_one() -> None:
    @shoal.remote
    def identity(i: int) -> int:
        return i

    left = [identity.remote(i) for i in range(20)]
    values = []
    while left:
        [ref], left = shoal.wait(left, timeout=30)
        values.append(shoal.get(ref, timeout=0))
    assert sorted(values) == list(range(20))


# --- timeouts ----------------------------------------------------------------------------------------------------------


def test_timeout_zero_only_looks(gates: Callable[[str], Gate]) -> None:
    gate = gates("late")
    done, late = ready(1), pending.remote(gate)
    assert shoal.wait([late], timeout=0) == ([], [late])
    assert shoal.wait([late, *done], num_returns=2, timeout=0) == (done, [late])


def test_when_the_time_is_up_it_returns_what_there_is(gates: Callable[[str], Gate]) -> None:
    gate = gates("late")
    [done], late = ready(1), pending.remote(gate)
    start = time.monotonic()
    assert shoal.wait([late, done], num_returns=2, timeout=0.2) == ([done], [late])
    assert 0.2 <= time.monotonic() - start < 10


def test_a_timeout_is_not_waited_for_when_all_is_ready() -> None:
    start = time.monotonic()
    shoal.wait(ready(2), num_returns=2, timeout=60)
    assert time.monotonic() - start < 30


# --- what counts as ready ------------------------------------------------------------------------------------------------


def test_a_failure_is_ready() -> None:
    @shoal.remote(max_retries=0)
    def fail() -> None:
        raise ValueError("no")

    ref = fail.remote()
    assert shoal.wait([ref], timeout=30) == ([ref], [])


def test_several_results_of_one_task_are_waited_for_apart() -> None:
    @shoal.remote(num_returns=2)
    def pair() -> tuple[int, int]:
        return 1, 2

    refs = pair.remote()
    assert shoal.wait(refs, num_returns=2, timeout=30) == (refs, [])


def test_generators_are_ready_when_their_next_item_is(gates: Callable[[str], Gate]) -> None:
    gate = gates("second")

    @shoal.remote
    def stream(gate: Gate) -> Iterator[int]:
        yield 1
        gate.wait()
        yield 2

    items = stream.remote(gate)
    assert shoal.wait([items], timeout=30) == ([items], [])
    assert shoal.get(next(items), timeout=30) == 1
    assert shoal.wait([items], timeout=0) == ([], [items])
    gate.open()
    assert shoal.wait([items], timeout=30) == ([items], [])
    assert shoal.get(next(items), timeout=30) == 2


def test_borrowed_references_can_be_waited_for(gates: Callable[[str], Gate]) -> None:
    gate = gates("late")

    @shoal.remote(num_cpus=0)
    def wait_there(refs: list[Any]) -> tuple[int, int]:
        done, left = shoal.wait(refs, num_returns=2, timeout=0)
        gate.open()
        all_done, _ = shoal.wait(left, num_returns=len(left), timeout=30)
        return len(done), len(all_done)

    refs = [*ready(1), pending.remote(gate)]
    first, rest = shoal.get(wait_there.remote(refs), timeout=30)
    assert first + rest == 2


# --- what is refused -------------------------------------------------------------------------------------------------------


def test_nothing_to_wait_for() -> None:
    assert shoal.wait([], timeout=0) == ([], [])


@pytest.mark.parametrize("argument", ["refs", 1, None, {}, ()], ids=repr)
def test_only_lists_are_taken(argument: Any) -> None:
    with pytest.raises(TypeError):
        shoal.wait(argument, timeout=0)


def test_a_single_reference_is_refused() -> None:
    with pytest.raises(TypeError):
        shoal.wait(shoal.put(1), timeout=0)


def test_a_tuple_or_set_of_references_is_refused() -> None:
    refs = ready(2)
    for wrong in (tuple(refs), set(refs)):
        with pytest.raises(TypeError):
            shoal.wait(wrong, timeout=0)


def test_a_list_of_something_else_is_refused() -> None:
    with pytest.raises(TypeError):
        shoal.wait([shoal.put(1), 2], timeout=0)


def test_references_must_be_unique() -> None:
    ref = shoal.put(1)
    with pytest.raises(ValueError, match=r"unique|once|twice|[Dd]uplicate"):
        shoal.wait([ref, shoal.put(2), ref], timeout=0)


@pytest.mark.parametrize("num_returns", [0, -1, 3])
def test_num_returns_is_within_one_and_the_length(num_returns: int) -> None:
    with pytest.raises(ValueError):
        shoal.wait(ready(2), num_returns=num_returns, timeout=0)
