"""Objects: `put` and `get`, with and without timeouts, and large values."""

from __future__ import annotations

import array
import gc
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import shoal
from shoal.exceptions import GetTimeoutError
from tests.api.gates import Gate
from tests.api.tasks import identity, wait_for

pytestmark = pytest.mark.usefixtures("shared_cluster")

LARGE = 4 * 1024 * 1024
"""Bytes: well above what travels inside messages."""


def get(ref: Any) -> Any:
    return shoal.get(ref, timeout=30)


# --- put and get -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        None,
        0,
        "text",
        b"",
        b"\x00" * 200_000,
        [1, [2, [3]]],
        {"key": (1, 2.5, {3})},
        bytearray(b"abc"),
        array.array("d", [1.0, 2.0]),
        float("inf"),
        range(5),
        ...,
        2**100,
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_survive_put_and_a_task(value: Any) -> None:
    assert get(shoal.put(value)) == value
    assert get(identity.remote(value)) == value


def test_put_is_a_copy() -> None:
    items = [1, 2]
    ref = shoal.put(items)
    items.append(3)
    assert get(ref) == [1, 2]
    got = get(ref)
    got.append(4)
    assert get(ref) == [1, 2]


def test_get_of_a_list_keeps_order_and_repeats() -> None:
    one, two = shoal.put(1), identity.remote(2)
    assert get([two, one, two]) == [2, 1, 2]
    assert get([]) == []


def test_a_value_can_be_got_again_and_again() -> None:
    ref = identity.remote("again")
    assert [get(ref) for _ in range(3)] == ["again"] * 3


@pytest.mark.parametrize("thing", [1, None, "text", [1], [None]], ids=repr)
def test_get_takes_references_only(thing: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        shoal.get(thing, timeout=5)


def test_get_refuses_a_list_with_one_stranger() -> None:
    with pytest.raises((TypeError, ValueError)):
        shoal.get([shoal.put(1), 2], timeout=5)


def test_put_of_a_reference_is_refused() -> None:
    with pytest.raises(TypeError):
        shoal.put(shoal.put(1))


# --- timeouts ----------------------------------------------------------------------------------------------------------


def test_get_with_timeout_zero_takes_what_is_there(gates: Callable[[str], Gate]) -> None:
    gate = gates("result")
    ref = wait_for.remote(gate, "late")
    with pytest.raises(GetTimeoutError):
        shoal.get(ref, timeout=0)
    gate.open()
    assert get(ref) == "late"
    assert shoal.get(ref, timeout=0) == "late"


def test_get_waits_as_long_as_it_was_told(gates: Callable[[str], Gate]) -> None:
    gate = gates("never")
    ref = wait_for.remote(gate)
    start = time.monotonic()
    with pytest.raises(GetTimeoutError):
        shoal.get([shoal.put(1), ref], timeout=0.2)
    assert 0.2 <= time.monotonic() - start < 10
    gate.open()


def test_a_timeout_in_a_task_is_raised_there(gates: Callable[[str], Gate]) -> None:
    gate = gates("inner")

    @shoal.remote
    def impatient() -> str:
        try:
            shoal.get(wait_for.remote(gate), timeout=0.05)
        except TimeoutError:
            return "timed out"
        return "got it"

    assert get(impatient.remote()) == "timed out"
    gate.open()


def test_get_of_many_fails_at_the_first_failure(gates: Callable[[str], Gate]) -> None:
    """A failure is not kept waiting by values that may take for ever."""
    gate = gates("never")

    @shoal.remote(max_retries=0)
    def fail() -> None:
        raise ValueError("at once")

    slow = wait_for.remote(gate)
    with pytest.raises(ValueError, match="at once"):
        shoal.get([slow, fail.remote()], timeout=10)
    gate.open()


# --- large values ----------------------------------------------------------------------------------------------------------


def test_large_arrays_are_read_in_place_and_only_read() -> None:
    ref = shoal.put(np.arange(1_000_000))
    first, second = get(ref), get(ref)
    assert np.array_equal(first, np.arange(1_000_000))
    assert np.shares_memory(first, second)
    assert not first.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 1


def test_arrow_tables_are_read_in_place() -> None:
    arrow = pytest.importorskip("pyarrow", exc_type=ImportError)
    table = arrow.table({"number": np.arange(1_000_000), "text": ["a", "b"] * 500_000})

    @shoal.remote
    def look(table: Any) -> tuple[int, bool]:
        buffer = table.column("number").chunk(0).buffers()[1]
        return table.num_rows, buffer.is_mutable

    ref = shoal.put(table)
    first, second = get(ref), get(ref)
    assert first.equals(table)
    addresses = {t.column("number").chunk(0).buffers()[1].address for t in (first, second)}
    assert len(addresses) == 1, "both look at the same memory"
    assert get(look.remote(ref)) == (1_000_000, False)


def test_an_array_outlives_its_reference() -> None:
    ref = shoal.put(np.full(1_000_000, 7.0))
    view = get(ref)[10:20]
    del ref
    gc.collect()
    others = [shoal.put(np.zeros(1_000_000)) for _ in range(3)]
    assert view.tolist() == [7.0] * 10
    assert len(others) == 3


def test_large_arguments_and_results() -> None:
    @shoal.remote
    def double(values: np.ndarray, *, times: int) -> np.ndarray:
        assert not values.flags.writeable
        return values * 2 * times

    values = np.ones(1_000_000)
    assert get(double.remote(shoal.put(values), times=1)).sum() == 2_000_000
    assert get(double.remote(values, times=2)).sum() == 4_000_000


def test_structured_values_with_arrays_inside() -> None:
    value = {"weights": [np.ones((300, 300)), np.zeros(4)], "name": "policy"}
    got = get(identity.remote(value))
    assert got["name"] == "policy"
    assert all(
        np.array_equal(ours, theirs)
        for ours, theirs in zip(value["weights"], got["weights"], strict=True)
    )


def test_memory_of_dropped_objects_comes_back() -> None:
    """Far more than fits at once passes through the store, a piece at a time."""
    fits = int(shoal.cluster_resources()["object_store_memory"])
    piece = min(fits // 4, 64 * 1024 * 1024)
    for i in range(12):
        ref = shoal.put(np.full(piece // 8, float(i)))
        assert get(ref)[-1] == i
        del ref
