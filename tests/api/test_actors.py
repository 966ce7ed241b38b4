"""Actors: state, order of calls, and classes."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

import shoal
from tests.api.counters import Counter, PlainCounter
from tests.api.gates import Gate

pytestmark = pytest.mark.usefixtures("shared_cluster")


def get(ref: Any) -> Any:
    return shoal.get(ref, timeout=30)


# --- state and arguments -------------------------------------------------------------------------------------------------


def test_an_actor_keeps_its_state() -> None:
    counter = Counter.remote(10, step=2)
    assert get([counter.add.remote(), counter.add.remote(3)]) == [12, 18]
    assert get(counter.add.remote(times=0)) == 18


def test_actors_are_apart_from_each_other_and_from_here() -> None:
    one, other = Counter.remote(), Counter.remote(100)
    get([one.add.remote(), other.add.remote()])
    assert get([one.add.remote(), other.add.remote()]) == [2, 102]
    assert len({*get([one.pid.remote(), other.pid.remote()]), os.getpid()}) == 3


def test_arguments_that_do_not_fit_are_refused_at_the_call() -> None:
    with pytest.raises(TypeError):
        Counter.remote(1, 2)
    counter = Counter.remote()
    with pytest.raises(TypeError):
        counter.add.remote(1, 2, 3)
    assert get(counter.add.remote()) == 1


def test_references_as_arguments_arrive_as_values() -> None:
    start = shoal.put(40)
    counter = Counter.remote(start)
    assert get(counter.add.remote(shoal.put(2))) == 42


def test_a_failing_method_leaves_the_actor_alive() -> None:
    counter = Counter.remote(5)
    with pytest.raises(ValueError, match="at 5"):
        get(counter.fail.remote())
    assert get(counter.add.remote()) == 6


def test_methods_with_several_results() -> None:
    counter = Counter.remote(3)
    total, step = counter.both.remote()
    assert get([total, step]) == [3, 1]
    assert get(counter.both.options(num_returns=1).remote()) == (3, 1)


def test_methods_that_begin_with_an_underscore() -> None:
    assert get(Counter.remote()._private.remote()) == "private"


def test_a_result_may_be_dropped() -> None:
    counter = Counter.remote()
    for _ in range(10):
        counter.add.remote()
    assert get(counter.add.remote()) == 11


# --- order ---------------------------------------------------------------------------------------------------------------


def test_calls_of_one_caller_run_in_the_order_of_submission() -> None:
    @shoal.remote
    class Log:
        def __init__(self) -> None:
            self.seen: list[int] = []

        def add(self, i: int) -> None:
            self.seen.append(i)

        def all(self) -> list[int]:
            return self.seen

    log = Log.remote()
    for i in range(500):
        log.add.remote(i)
    assert get(log.all.remote()) == list(range(500))


def test_a_call_that_waits_for_an_argument_holds_its_place(gates: Callable[[str], Gate]) -> None:
    gate = gates("argument")

    @shoal.remote
    def late(gate: Gate) -> int:
        gate.wait()
        return 100

    counter = Counter.remote()
    refs = [counter.add.remote(), counter.add.remote(late.remote(gate)), counter.add.remote()]
    gate.open()
    assert get(refs) == [1, 101, 102]


def test_a_call_whose_argument_failed_does_not_hold_up_the_next() -> None:
    @shoal.remote(max_retries=0)
    def fail() -> int:
        raise ValueError("no number")

    counter = Counter.remote()
    refs = [counter.add.remote(), counter.add.remote(fail.remote()), counter.add.remote()]
    with pytest.raises(ValueError, match="no number"):
        get(refs[1])
    assert get([refs[0], refs[2]]) == [1, 2]


def test_calls_of_several_callers_all_arrive() -> None:
    counter = Counter.remote()

    @shoal.remote(num_cpus=0.5)
    def call(counter: Any, times: int) -> list[int]:
        return shoal.get([counter.add.remote() for _ in range(times)], timeout=30)

    seen = get([call.remote(counter, 50) for _ in range(4)])
    assert all(one == sorted(one) for one in seen)
    assert sorted(value for one in seen for value in one) == list(range(1, 201))


# --- classes ---------------------------------------------------------------------------------------------------------------


def test_an_actor_class_is_not_called_directly() -> None:
    with pytest.raises(TypeError, match="remote"):
        Counter()


def test_a_method_is_not_called_directly() -> None:
    counter = Counter.remote()
    with pytest.raises(TypeError, match="remote"):
        counter.add()


def test_an_actor_class_cannot_be_inherited_from() -> None:
    with pytest.raises(TypeError) as caught:

        class Child(Counter):  # type: ignore[misc, valid-type]  # this is what must fail
            pass

    assert type(caught.value).__name__ == "ActorClassInheritanceException"


def test_the_plain_class_can_be_inherited_from() -> None:
    @shoal.remote
    class Doubling(PlainCounter):
        def add(self, times: int = 1) -> int:
            return super().add(2 * times)

    child = Doubling.remote(1)
    assert get(child.add.remote()) == 3
    assert get(child.both.remote()) == [3, 1]


def test_class_and_static_methods_and_attributes() -> None:
    @shoal.remote
    class Mixed:
        names: tuple[str, ...] = ("a", "b")

        @staticmethod
        def static(x: int) -> int:
            return x + 1

        @classmethod
        def named(cls) -> tuple[str, ...]:
            return cls.names

    mixed = Mixed.remote()
    assert get([mixed.static.remote(1), mixed.named.remote()]) == [2, ("a", "b")]


def test_a_class_without_init() -> None:
    @shoal.remote
    class Empty:
        def here(self) -> bool:
            return True

    assert get(Empty.remote().here.remote())


def test_an_actor_that_is_callable() -> None:
    @shoal.remote
    class Adder:
        def __call__(self, x: int) -> int:
            return x + 1

    assert get(Adder.remote().__call__.remote(1)) == 2


def test_a_method_that_does_not_exist() -> None:
    counter = Counter.remote()
    with pytest.raises(AttributeError, match="missing"):
        _ = counter.missing


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"no_such_option": 1}, "no_such_option"),
        ({"num_returns": 2}, "num_returns"),
        ({"max_restarts": -2}, "max_restarts"),
        ({"max_concurrency": 0}, "max_concurrency"),
        ({"lifetime": "for ever"}, "lifetime"),
        ({"num_cpus": -1}, "num_cpus"),
        ({"get_if_exists": True}, "name"),
    ],
)
def test_an_option_that_does_not_exist_or_fit_is_refused_by_name(
    options: dict[str, Any], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        shoal.remote(**options)(PlainCounter).remote()


@pytest.mark.parametrize("options", [{"no_such_option": 1}, {"num_returns": -1}])
def test_options_of_methods_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        Counter.remote().add.options(**options).remote()


def test_the_method_decorator_needs_options_that_exist() -> None:
    with pytest.raises((ValueError, TypeError, AssertionError)):
        shoal.method(no_such_option=1)
