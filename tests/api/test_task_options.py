"""Options of remote functions, retries, and the processes that tasks run in."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

import shoal
from tests.api.gates import Trace

pytestmark = pytest.mark.usefixtures("shared_cluster")


@shoal.remote
def add(left: int, right: int = 10) -> int:
    return left + right


def get(ref: Any) -> Any:
    return shoal.get(ref, timeout=30)


# --- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"no_such_option": 1}, "no_such_option"),
        ({"max_restarts": 1}, "max_restarts"),
        ({"num_cpus": -1}, "num_cpus"),
        ({"num_gpus": -0.5}, "num_gpus"),
        ({"memory": -1}, "memory"),
        ({"num_returns": -1}, "num_returns"),
        ({"max_retries": -2}, "max_retries"),
        ({"max_calls": -1}, "max_calls"),
        ({"resources": {"CPU": 1}}, "CPU"),
        ({"resources": {"GPU": 1}}, "GPU"),
        ({"_generator_backpressure_num_objects": 0}, "backpressure"),
    ],
)
def test_an_option_that_does_not_exist_or_fit_is_refused_by_name(
    options: dict[str, Any], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        shoal.remote(**options)(lambda: None)


@pytest.mark.parametrize(
    "options", [{"no_such_option": 1}, {"max_calls": 1}, {"num_cpus": -1}, {"num_returns": -1}]
)
def test_options_are_checked_when_they_are_changed(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        add.options(**options)


def test_streaming_is_for_generators() -> None:
    with pytest.raises(ValueError, match="streaming"):
        shoal.remote(num_returns="streaming")(lambda: 1)


def test_options_change_a_call_and_not_the_function() -> None:
    @shoal.remote
    def name() -> str | None:
        return shoal.get_runtime_context().get_task_name()

    renamed = name.options(name="renamed")
    assert get(renamed.remote()) == "renamed"
    assert str(get(name.remote())).endswith("name")


def test_options_of_the_decorator_hold_unless_changed() -> None:
    @shoal.remote(num_returns=2, name="first")
    def both() -> tuple[str | None, int]:
        return shoal.get_runtime_context().get_task_name(), 0

    assert get(both.remote()) == ["first", 0]
    assert get(both.options(name="second").remote()) == ["second", 0]
    assert get(both.options(num_returns=1).remote()) == ("first", 0)


def test_the_decorator_without_options_has_no_parentheses() -> None:
    with pytest.raises((AssertionError, TypeError)):
        shoal.remote()


@pytest.mark.parametrize("strategy", ["DEFAULT", "SPREAD"])
def test_scheduling_strategies_by_name(strategy: str) -> None:
    assert get(add.options(scheduling_strategy=strategy).remote(1)) == 11


def test_an_unknown_scheduling_strategy_is_refused() -> None:
    with pytest.raises((ValueError, TypeError)):
        add.options(scheduling_strategy="SIDEWAYS").remote(1)


# --- retries and worker processes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("retry_exceptions", "attempts"),
    [
        (False, 1),
        (True, 3),
        ([ValueError], 3),
        ([KeyError], 1),
        ([KeyError, ArithmeticError, ValueError], 3),
    ],
)
def test_exceptions_are_retried_as_asked(
    retry_exceptions: Any, attempts: int, traces: Callable[[str], Trace]
) -> None:
    tried = traces("tried")

    @shoal.remote(max_retries=2, retry_exceptions=retry_exceptions)
    def fail() -> None:
        tried.add("try")
        raise ValueError("always")

    with pytest.raises(ValueError, match="always"):
        get(fail.remote())
    assert len(tried) == attempts


def test_a_retry_may_succeed(traces: Callable[[str], Trace]) -> None:
    tried = traces("tried")

    @shoal.remote
    def third_time() -> int:
        tried.add("try")
        if len(tried) < 3:
            raise ConnectionError("not yet")
        return len(tried)

    assert get(third_time.options(max_retries=5, retry_exceptions=[OSError]).remote()) == 3


def test_max_calls_counts_tasks_that_may_not_be_run_again_as_well() -> None:
    @shoal.remote(max_calls=2)
    def pid() -> int:
        return os.getpid()

    once = pid.options(max_retries=0)
    pids = [get(function.remote()) for function in (pid, once, pid, once, pid, once)]
    assert all(pids.count(one) <= 2 for one in pids)


def test_max_calls_ends_the_worker_process() -> None:
    @shoal.remote(max_calls=2)
    def pid() -> int:
        return os.getpid()

    pids = [get(pid.remote()) for _ in range(6)]
    assert all(pids.count(one) <= 2 for one in pids)


def test_every_call_in_a_process_of_its_own() -> None:
    @shoal.remote(max_calls=1)
    def pid() -> int:
        return os.getpid()

    assert len(set(get([pid.remote() for _ in range(12)]))) == 12


def test_state_of_a_module_lasts_in_a_process() -> None:
    """A worker is an ordinary process: what a function keeps is there for its next call in the same process."""

    def counter() -> Any:
        calls: list[int] = []

        @shoal.remote
        def count() -> tuple[int, int]:
            calls.append(1)
            return os.getpid(), len(calls)

        return count

    count = counter()
    seen: dict[int, int] = {}
    for _ in range(10):
        pid, calls = get(count.remote())
        assert calls == seen.get(pid, 0) + 1
        seen[pid] = calls
