"""Remote functions: what they take, what can be one, and what they return."""

from __future__ import annotations

import functools
import textwrap
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
