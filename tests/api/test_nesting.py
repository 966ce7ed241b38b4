"""Tasks that wait for tasks: to any depth, and without waiting for what is queued behind them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

import shoal
from tests.api.gates import Trace

pytestmark = pytest.mark.usefixtures("shared_cluster")


@shoal.remote
def add(left: int, right: int = 10) -> int:
    return left + right


@shoal.remote
def factorial(n: int) -> int:
    return 1 if n < 2 else n * shoal.get(factorial.remote(n - 1), timeout=60)


def get(ref: Any) -> Any:
    return shoal.get(ref, timeout=30)


def test_tasks_nest_deeper_than_there_are_cpus() -> None:
    assert get(factorial.remote(12)) == 479001600


def test_a_closure_that_calls_itself() -> None:
    @shoal.remote
    def depth(n: int) -> int:
        return 0 if n == 0 else 1 + shoal.get(depth.remote(n - 1), timeout=30)

    assert get(depth.remote(5)) == 5


def test_tasks_start_actors_that_start_tasks() -> None:
    @shoal.remote
    class Adder:
        def total(self, numbers: list[int]) -> int:
            refs = [add.remote(number, 0) for number in numbers]
            return sum(shoal.get(refs, timeout=30))

    @shoal.remote
    def outer() -> int:
        adder = Adder.remote()
        return shoal.get(adder.total.remote([1, 2, 3]), timeout=30)

    assert get(outer.remote()) == 6


def test_a_tree_of_tasks_whose_leaves_outnumber_the_cpus() -> None:
    @shoal.remote
    def tree(depth: int) -> int:
        if depth == 0:
            return 1
        return sum(shoal.get([tree.remote(depth - 1) for _ in range(3)], timeout=60))

    assert get(tree.remote(3)) == 27


def test_a_task_does_not_wait_for_one_queued_behind_it() -> None:
    """Short tasks are sent to a worker in batches: a child may be queued behind the parent that waits for it."""

    @shoal.remote
    def child(i: int) -> int:
        return i

    @shoal.remote
    def parent(i: int) -> int:
        return shoal.get(child.remote(i), timeout=60)

    get([child.remote(i) for i in range(100)])  # short enough to be sent many at a time
    refs = [parent.remote(i) for i in range(40)]
    assert shoal.get(refs, timeout=60) == list(range(40))


def test_a_long_task_does_not_hold_up_those_sent_after_it(traces: Callable[[str], Trace]) -> None:
    done = traces("done")

    @shoal.remote
    def quick_or_slow(i: int) -> None:
        if i == 50:
            deadline = time.monotonic() + 30
            while len(done) < 99 and time.monotonic() < deadline:
                time.sleep(0.01)
            assert len(done) == 99, "tasks wait behind this one"
        done.add(i)

    shoal.get([quick_or_slow.remote(i) for i in range(100)], timeout=60)
    assert done.words()[-1] == "50"
