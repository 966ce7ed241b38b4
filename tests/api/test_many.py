"""Very many objects at a time: what must not recurse, and must not grow with the square of their number.

Nothing here looks at a clock. What would be slow for many is counted for some thousands: messages, calls, what is left in tables. The full
sizes, with times and memory, are rows of `bench` (see `docs/scale.md`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import shoal
from shoal.core.references import BATCH
from shoal.messages.peer import Borrow, Release
from shoal.runtime import current_process
from tests.api.gates import wait_until
from tests.api.tasks import wait_for

pytestmark = pytest.mark.usefixtures("shared_cluster")

PATIENCE_S = 60.0
LONG = 3_000
"""A chain that is three times as long as Python's stack is deep."""


@shoal.remote
def echo(value: Any) -> Any:
    return value


@shoal.remote(max_retries=0)
def fail() -> None:
    raise ValueError("the first of all")


def test_the_failure_of_the_first_reaches_the_end_of_a_long_chain() -> None:
    ref = fail.remote()
    for _ in range(LONG):
        ref = echo.remote(ref)
    with pytest.raises(ValueError, match="the first of all"):
        shoal.get(ref, timeout=PATIENCE_S)


def test_cancelling_the_first_cancels_a_long_chain(gates: Any) -> None:
    first = wait_for.remote(gates("first"))
    ref = first
    for _ in range(LONG):
        ref = echo.remote(ref)
    shoal.cancel(first)
    with pytest.raises(shoal.exceptions.TaskCancelledError):
        shoal.get(ref, timeout=PATIENCE_S)


def test_the_result_of_the_first_reaches_the_end_of_a_long_chain(gates: Any) -> None:
    gate = gates("first")
    ref = wait_for.remote(gate, "carried on")
    for _ in range(LONG):
        ref = echo.remote(ref)
    gate.open()
    assert shoal.get(ref, timeout=PATIENCE_S) == "carried on"


# --- references inside one object -----------------------------------------------------------------------------------------


@shoal.remote
class Keeper:
    """Borrows what it is given."""

    def take(self, box: list[Any]) -> int:
        self.kept = shoal.get(box[0], timeout=PATIENCE_S)
        return len(self.kept)

    def read(self, index: int) -> Any:
        return shoal.get(self.kept[index], timeout=PATIENCE_S)

    def drop(self) -> None:
        self.kept = []

    def known(self) -> int:
        return len(current_process.require().objects.entries)


@contextmanager
def counted(*kinds: type) -> Iterator[Counter[str]]:
    """How many messages of these kinds come to this process, and how many objects they name."""
    process = current_process.require()
    found: Counter[str] = Counter()
    before = dict(process.handlers)

    def count(kind: type) -> Any:
        def handle(connection: Any, message: Any) -> None:
            found[kind.__name__] += 1
            found[f"objects of {kind.__name__}"] += len(getattr(message, "object_ids", ()))
            before[kind](connection, message)

        return handle

    with process.lock:
        process.handlers.update({kind: count(kind) for kind in kinds})
    try:
        yield found
    finally:
        with process.lock:
            process.handlers.update({kind: before[kind] for kind in kinds})


def test_an_object_of_many_references_is_borrowed_and_given_up_in_few_messages() -> None:
    many = 5 * BATCH
    table = current_process.require().objects
    keeper = Keeper.remote()
    start = shoal.get(keeper.known.remote(), timeout=PATIENCE_S)
    known = len(table.entries)
    with counted(Borrow, Release) as messages:
        refs = [shoal.put(number) for number in range(many)]
        box = shoal.put(refs)
        assert shoal.get(keeper.take.remote([box]), timeout=PATIENCE_S) == many
        del refs, box
        assert shoal.get(keeper.read.remote(many - 1), timeout=PATIENCE_S) == many - 1
        assert messages["objects of Borrow"] >= many
        # One for a batch, and one for the box.
        assert messages["Borrow"] <= many / BATCH + 2
        shoal.get(keeper.drop.remote(), timeout=PATIENCE_S)
        wait_until(lambda: len(table.entries) <= known, "everything is given up")
        assert messages["objects of Release"] >= many
        # Handles die one by one, and are counted whenever somebody looks.
        assert messages["Release"] < many / 20
    assert shoal.get(keeper.known.remote(), timeout=PATIENCE_S) <= start + 1


@shoal.remote
def make(count: int) -> list[Any]:
    return [shoal.put(number) for number in range(count)]


@shoal.remote
def add_up(box: list[Any]) -> int:
    return sum(shoal.get(box, timeout=PATIENCE_S))


@shoal.remote
def pass_on(box: list[Any]) -> list[Any]:
    return box


@pytest.mark.parametrize("count", [BATCH, 3 * BATCH + 1])
def test_a_result_with_many_references_can_be_read_and_passed_on(count: int) -> None:
    refs = shoal.get(make.remote(count), timeout=PATIENCE_S)
    expected = count * (count - 1) // 2
    assert sum(shoal.get(refs, timeout=PATIENCE_S)) == expected
    again = shoal.get(pass_on.remote(refs), timeout=PATIENCE_S)
    del refs
    assert shoal.get(add_up.remote(again), timeout=PATIENCE_S) == expected
    table = current_process.require().objects
    del again
    wait_until(lambda: len(table.entries) < 10, "everything is given up")


# --- waiting for many -----------------------------------------------------------------------------------------------------


def test_a_wait_for_many_does_not_look_at_all_of_them_for_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waiting = current_process.require().waiting
    looks = 0
    look = waiting._ready

    def count(entries: list[Any], most: int) -> list[int]:
        nonlocal looks
        looks += 1
        return look(entries, most)

    monkeypatch.setattr(waiting, "_ready", count)
    refs = [echo.remote(number) for number in range(2_000)]
    ready, rest = shoal.wait(refs, num_returns=1_500, timeout=PATIENCE_S)
    assert len(ready) == 1_500
    assert ready + rest == sorted(refs, key=lambda ref: (ref not in set(ready), refs.index(ref)))
    ready, rest = shoal.wait(refs, num_returns=2_000, timeout=PATIENCE_S)
    assert (ready, rest) == (refs, [])
    assert looks == 2
    # Nobody is told any more.
    assert not any(ref._entry.waiters for ref in refs)


def test_a_wait_for_many_returns_what_is_ready_when_the_time_is_up(gates: Any) -> None:
    gate = gates("some")
    refs = [
        wait_for.remote(gate) if number % 10 == 0 else shoal.put(number) for number in range(40)
    ]
    ready, rest = shoal.wait(refs, num_returns=39, timeout=0.2)
    assert len(ready) == 36
    assert len(rest) == 4
    gate.open()
    assert len(shoal.wait(refs, num_returns=39, timeout=PATIENCE_S)[0]) == 39


def test_a_task_waits_for_many_tasks_of_its_own() -> None:
    @shoal.remote
    def outer(count: int) -> int:
        refs = [echo.remote(number) for number in range(count)]
        ready, rest = shoal.wait(refs, num_returns=count)
        return sum(shoal.get(ready)) + len(rest)

    assert shoal.get(outer.remote(300), timeout=PATIENCE_S) == 300 * 299 // 2


# --- many in one `get` ----------------------------------------------------------------------------------------------------


def test_one_that_fails_among_many_is_raised_though_others_take_for_ever(gates: Any) -> None:
    never = wait_for.remote(gates("never"))
    refs = [never, *(shoal.put(number) for number in range(LONG)), fail.remote(), never]
    with pytest.raises(ValueError, match="the first of all"):
        shoal.get(refs, timeout=PATIENCE_S)
    assert not never._entry.waiters


def test_a_get_of_many_counts_what_was_not_ready(gates: Any) -> None:
    never = [wait_for.remote(gates("never")) for _ in range(7)]
    refs = [shoal.put(number) for number in range(LONG)] + never
    with pytest.raises(shoal.exceptions.GetTimeoutError, match=f"7 of {LONG + 7} objects were not"):
        shoal.get(refs, timeout=0.1)
    assert not any(ref._entry.waiters for ref in refs)


def test_the_same_reference_may_come_again_and_again(gates: Any) -> None:
    gate = gates("later")
    refs = [wait_for.remote(gate, number) for number in range(2)] * LONG
    gate.open()
    assert shoal.get(refs, timeout=PATIENCE_S) == [0, 1] * LONG


def test_references_in_references_a_thousand_deep() -> None:
    table = current_process.require().objects
    known = len(table.entries)
    ref = shoal.put("the innermost")
    for _ in range(1_000):
        ref = shoal.put([ref])

    @shoal.remote
    def dig(box: list[Any]) -> tuple[Any, int]:
        depth = 0
        value: Any = box
        while isinstance(value, list):
            value = shoal.get(value[0], timeout=PATIENCE_S)
            depth += 1
        return value, depth

    assert shoal.get(dig.remote([ref]), timeout=PATIENCE_S) == ("the innermost", 1_001)
    del ref
    wait_until(lambda: len(table.entries) <= known, "all of them are gone")


def test_a_task_with_a_thousand_results_of_which_some_are_dropped() -> None:
    @shoal.remote(num_returns=1_000)
    def numbers() -> range:
        return range(1_000)

    refs = numbers.remote()
    del refs[::2]
    assert shoal.get(refs, timeout=PATIENCE_S) == list(range(1, 1_000, 2))
