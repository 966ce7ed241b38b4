"""Remote functions: what they take and return, their options, and how they nest."""

from __future__ import annotations

import functools
import os
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import shoal
from shoal.exceptions import TaskError
from tests.api.gates import Trace, wait_until
from tests.api.scripts import run_script

pytestmark = pytest.mark.usefixtures("shared_cluster")


@shoal.remote
def add(left: int, right: int = 10) -> int:
    return left + right


@shoal.remote
def factorial(n: int) -> int:
    return 1 if n < 2 else n * shoal.get(factorial.remote(n - 1), timeout=60)


def get(ref: Any) -> Any:
    return shoal.get(ref, timeout=30)


# --- arguments ---------------------------------------------------------------------------------------------------------


def test_positional_keyword_and_default_arguments() -> None:
    assert get(add.remote(1, 2)) == 3
    assert get(add.remote(1)) == 11
    assert get(add.remote(right=1, left=4)) == 5


def test_variable_arguments_arrive_as_they_were_passed() -> None:
    @shoal.remote
    def echo(
        first: Any, /, *rest: Any, key: Any = None, **others: Any
    ) -> tuple[Any, tuple[Any, ...], Any, dict[str, Any]]:
        return first, rest, key, others

    assert get(echo.remote(1)) == (1, (), None, {})
    assert get(echo.remote(1, 2, 3, key=4, args=5, kwargs=6)) == (
        1,
        (2, 3),
        4,
        {"args": 5, "kwargs": 6},
    )


@pytest.mark.parametrize(
    ("args", "kwargs"), [((), {}), ((1, 2, 3), {}), ((1,), {"left": 2}), ((1,), {"other": 2})]
)
def test_arguments_that_do_not_fit_are_refused_at_the_call(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    with pytest.raises(TypeError):
        add.remote(*args, **kwargs)


def test_arguments_and_results_are_copies() -> None:
    @shoal.remote
    def extend(items: list[int]) -> list[int]:
        items.append(3)
        return items

    items = [1, 2]
    assert get(extend.remote(items)) == [1, 2, 3]
    assert items == [1, 2]


def test_a_function_must_be_called_with_remote() -> None:
    with pytest.raises(TypeError, match="remote"):
        add(1, 2)


# --- what can be remote ------------------------------------------------------------------------------------------------


def test_lambdas_and_partial_results_of_functions() -> None:
    double = shoal.remote(lambda x: 2 * x)
    assert get([double.remote(i) for i in range(5)]) == [0, 2, 4, 6, 8]


def test_a_closure_carries_its_variables() -> None:
    def scaled(factor: int) -> Any:
        @shoal.remote
        def scale(x: int) -> int:
            return factor * x

        return scale

    assert get([scaled(3).remote(5), scaled(4).remote(5)]) == [15, 20]


def test_a_decorated_function() -> None:
    def doubled(function: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(function)
        def wrapper(*args: int, **kwargs: int) -> int:
            return 2 * function(*args, **kwargs)

        return wrapper

    @shoal.remote
    @doubled
    def one_more(x: int) -> int:
        return x + 1

    assert get(one_more.remote(4)) == 10


def test_functions_of_other_modules() -> None:
    assert get(shoal.remote(textwrap.dedent).remote("  indented")) == "indented"


def test_functions_of_one_name_are_not_mixed_up() -> None:
    made = []
    for answer in (1, 2):

        @shoal.remote
        def same_name(answer: int = answer) -> int:
            return answer

        made.append(same_name)
    assert get([function.remote() for function in made]) == [1, 2]


def test_remote_functions_and_actor_classes_as_arguments() -> None:
    @shoal.remote
    class Holder:
        def __init__(self, value: int) -> None:
            self.value = value

        def get(self) -> int:
            return self.value

    @shoal.remote
    def apply(function: Any, actor_class: Any, value: int) -> tuple[int, int]:
        actor = actor_class.remote(value)
        return tuple(shoal.get([function.remote(value), actor.get.remote()], timeout=30))

    assert get(apply.remote(add, Holder, 3)) == (13, 3)


@pytest.mark.filterwarnings("error")
def test_a_closure_may_be_large() -> None:
    table = bytes(5_000_000)

    @shoal.remote
    def size() -> int:
        return len(table)

    assert get([size.remote() for _ in range(3)]) == [5_000_000] * 3


@pytest.mark.parametrize("thing", [3, "f", None])
def test_only_functions_and_classes_can_be_remote(thing: Any) -> None:
    with pytest.raises(TypeError):
        shoal.remote(thing)


def test_a_coroutine_function_is_no_task() -> None:
    async def later() -> int:
        return 1

    with pytest.raises(ValueError, match="async"):
        shoal.remote(later)


def test_the_function_itself_stays_at_hand() -> None:
    assert add._function(1, 2) == 3
    assert add._remote(args=[1], kwargs={"right": 5}) is not None
    assert get(add._remote(args=[1], kwargs={"right": 5})) == 6


def test_functions_and_classes_of_main(tmp_path: Path) -> None:
    result = run_script(
        tmp_path,
        """
        import dataclasses
        import enum

        import shoal

        OFFSET = 100

        class Colour(enum.Enum):
            RED = 1

        @dataclasses.dataclass
        class Point:
            x: int

            def moved(self):
                return Point(self.x + OFFSET)

        class Refused(Exception):
            pass

        def plain(point):
            return point.moved()

        @shoal.remote
        def move(point):
            return plain(point)

        @shoal.remote
        def same_colour(colour):
            return colour is Colour.RED

        @shoal.remote
        def refuse():
            raise Refused("no")

        @shoal.remote
        def count_down(n):
            return [n] + (shoal.get(count_down.remote(n - 1)) if n else [])

        shoal.init(num_cpus=2)
        point = shoal.get(move.remote(Point(1)), timeout=30)
        assert point == Point(101) and type(point) is Point, point
        assert shoal.get(same_colour.remote(Colour.RED), timeout=30)
        assert shoal.get(count_down.remote(3), timeout=30) == [3, 2, 1, 0]
        try:
            shoal.get(refuse.remote(), timeout=30)
        except Refused as error:
            print("caught", error.cause)
        """,
    )
    assert result.stdout.splitlines()[-1] == "caught no"


# --- results -----------------------------------------------------------------------------------------------------------


def test_a_task_without_result_returns_none() -> None:
    @shoal.remote
    def nothing() -> None:
        pass

    assert get(nothing.remote()) is None


def test_num_returns_zero_gives_no_reference_but_runs(traces: Callable[[str], Trace]) -> None:
    ran = traces("ran")

    @shoal.remote(num_returns=0)
    def quiet() -> None:
        ran.add("ran")

    assert quiet.remote() is None
    wait_until(lambda: len(ran) == 1, "the task without a result runs")


def test_num_returns_one_keeps_a_tuple_together() -> None:
    @shoal.remote(num_returns=1)
    def pair() -> tuple[int, int]:
        return 1, 2

    assert get(pair.remote()) == (1, 2)


def test_several_results_are_several_references() -> None:
    @shoal.remote(num_returns=3)
    def triple() -> tuple[int, list[int], str]:
        return 1, [2], "three"

    refs = triple.remote()
    assert isinstance(refs, list)
    assert len(refs) == 3
    assert get(refs) == [1, [2], "three"]
    assert get(refs[1]) == [2]


def test_several_results_of_a_generator() -> None:
    @shoal.remote(num_returns=3)
    def squares() -> Iterator[int]:
        yield from (i * i for i in range(3))

    assert get(squares.remote()) == [0, 1, 4]


@pytest.mark.parametrize("value", [(1, 2), (1, 2, 3, 4), 5])
def test_a_wrong_number_of_results_fails_all_of_them(value: Any) -> None:
    @shoal.remote(num_returns=3, max_retries=0)
    def wrong() -> Any:
        return value

    for ref in wrong.remote():
        with pytest.raises(TaskError):
            get(ref)


def test_a_result_may_be_a_reference() -> None:
    @shoal.remote
    def later() -> Any:
        return add.remote(1, 2)

    inner = get(later.remote())
    assert isinstance(inner, shoal.ObjectRef)
    assert get(inner) == 3


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


# --- nesting -------------------------------------------------------------------------------------------------------------


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
