"""Very many objects at a time: what must not recurse, and must not grow with the square of their number.

Nothing here looks at a clock. What would be slow for many is counted for some thousands: messages, calls, what is left in tables. The full
sizes, with times and memory, are rows of `bench` (see `docs/scale.md`).
"""

from __future__ import annotations

from typing import Any

import pytest

import shoal
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
