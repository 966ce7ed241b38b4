"""Graphs of calls that are bound first and executed later."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shoal
from shoal.dag import InputNode, MultiOutputNode
from tests.api.gates import Gate, Trace

pytestmark = pytest.mark.usefixtures("shared_cluster")


@shoal.remote
def add(x: int, y: int = 0) -> int:
    return x + y


@shoal.remote
def echo(value: Any) -> Any:
    return value


@shoal.remote
def total(values: Any) -> int:
    """The sum of references in any container that a graph may hold."""
    if isinstance(values, dict):
        values = list(values.values())
    return sum(total._function(v) if isinstance(v, list | dict) else shoal.get(v) for v in values)


@shoal.remote(num_cpus=0)
class Counter:
    def __init__(self, start: int) -> None:
        self.value = start

    def add(self, amount: int) -> int:
        self.value += amount
        return self.value

    def read(self) -> int:
        return self.value

    @shoal.method(num_returns=2)
    def both(self) -> tuple[int, int]:
        return self.value, -self.value

    def name(self) -> str | None:
        return shoal.get_runtime_context().get_task_name()


def run(node: Any, *args: Any, **kwargs: Any) -> Any:
    return shoal.get(node.execute(*args, **kwargs), timeout=30)


# --- tasks -----------------------------------------------------------------------------------------------------------------


def test_a_graph_of_tasks() -> None:
    dag = add.bind(add.bind(1, 2), y=add.bind(3, y=4))
    ref = dag.execute()
    assert isinstance(ref, shoal.ObjectRef)
    assert shoal.get(ref, timeout=30) == 10
    assert run(dag) == 10


def test_binding_submits_nothing(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "ran.trace")

    @shoal.remote
    def note() -> None:
        trace.add("ran")

    dag = note.bind()
    assert run(echo.bind(1)) == 1
    assert len(trace) == 0
    run(dag)
    assert len(trace) == 1


def test_a_node_is_submitted_once_however_often_it_is_used(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "ran.trace")

    @shoal.remote
    def one() -> int:
        trace.add("ran")
        return 1

    shared = one.bind()
    left, right = add.bind(shared, shared), add.bind(shared, 1)
    dag = add.bind(left, right)
    assert run(dag) == 4
    assert len(trace) == 1
    assert run(dag) == 4
    assert len(trace) == 2


def test_executing_waits_for_nothing(gates: Callable[[str], Gate]) -> None:
    gate = gates("go")

    @shoal.remote
    def held() -> int:
        gate.wait()
        return 1

    ref = add.bind(held.bind(), 1).execute()
    assert shoal.wait([ref], timeout=0) == ([], [ref])
    gate.open()
    assert shoal.get(ref, timeout=30) == 2


def test_nodes_inside_containers() -> None:
    one, two = add.bind(1), add.bind(2)
    assert run(total.bind([one, two])) == 3
    assert run(total.bind({"a": one, "b": [two, two]})) == 5
    assert run(total.bind((one, two))) == 3


def test_a_container_that_changes_later_changes_nothing() -> None:
    values = [add.bind(1)]
    dag = total.bind(values)
    values.append(dag)
    assert run(dag) == 1


def test_arguments_without_nodes_are_passed_on_as_they_are() -> None:
    ref = shoal.put(7)
    assert run(add.bind(ref, 1)) == 8
    assert run(echo.bind([1, {"a": (2,)}])) == [1, {"a": (2,)}]


def test_options_of_bound_functions() -> None:
    pair = echo.options(num_returns=2, name="pair").bind((1, 2))
    assert run(pair) == [1, 2]
    assert run(total.bind(pair)) == 3


def test_a_long_chain() -> None:
    node: Any = 0
    for _ in range(1500):
        node = add.bind(node, 1)
    assert run(node) == 1500


def test_errors_pass_through_a_graph() -> None:
    @shoal.remote
    def fail() -> None:
        raise KeyError("lost")

    with pytest.raises(KeyError):
        run(add.bind(fail.bind(), 1))


# --- actors ----------------------------------------------------------------------------------------------------------------


def test_every_execution_has_actors_of_its_own() -> None:
    counter = Counter.bind(10)
    dag = counter.add.bind(add.bind(2, 3))
    assert run(dag) == 15
    assert run(dag) == 15


def test_methods_run_in_the_order_in_which_they_were_bound() -> None:
    one, two = Counter.bind(10), Counter.bind(add.bind(5, 5))
    before = one.read.bind()
    one.add.bind(2)
    one.add.bind(4)
    two.add.bind(6)
    assert run(add.bind(one.read.bind(), two.read.bind())) == 32
    assert run(before) == 10


def test_a_bound_class_becomes_a_handle() -> None:
    counter = Counter.bind(1).execute()
    assert isinstance(counter, shoal.actor.ActorHandle)
    assert shoal.get(counter.add.remote(1), timeout=30) == 2


def test_a_handle_as_an_argument() -> None:
    @shoal.remote
    def increase(counter: Any) -> int:
        value: int = shoal.get(counter.add.remote(1))
        return value

    assert run(increase.bind(Counter.bind(1))) == 2


def test_methods_of_a_living_actor() -> None:
    counter = Counter.remote(0)
    dag = counter.add.bind(counter.add.bind(1))
    assert run(dag) == 2
    assert run(dag) == 6
    assert shoal.get(counter.read.remote(), timeout=30) == 6


def test_options_of_bound_methods() -> None:
    counter = Counter.bind(1)
    assert run(counter.both.bind()) == [1, -1]
    assert run(counter.name.options(name="mine").bind()) == "mine"
    assert run(Counter.remote(0).name.options(name="yours").bind()) == "yours"


def test_methods_that_are_not_there() -> None:
    with pytest.raises(AttributeError, match="Counter has no method 'forget'"):
        _ = Counter.bind(1).forget
    with pytest.raises(AttributeError, match="underscore"):
        _ = Counter.bind(1)._private


# --- input and output -----------------------------------------------------------------------------------------------------------


def test_one_input() -> None:
    with InputNode() as inp:
        dag = add.bind(inp, add.bind(inp, 1))
    assert run(dag, 3) == 7
    assert run(dag, 5) == 11
    assert run(dag, shoal.put(3)) == 7
    assert inp.execute("x") == "x"


def test_several_inputs() -> None:
    with InputNode() as inp:
        dag = add.bind(add.bind(inp[0], inp[1]), inp.more)
    assert run(dag, 1, 2, more=4) == 7
    assert run(add.bind(inp["more"]), more=3) == 3


def test_parts_of_one_input() -> None:
    with InputNode() as inp:
        first, named, real = echo.bind(inp[0]), echo.bind(inp["name"]), echo.bind(inp.real)
    assert run(first, [7, 8]) == 7
    assert run(named, {"name": 3}) == 3
    assert run(real, 5j) == 0
    assert inp[1].execute("ab") == "b"


def test_input_that_is_not_what_the_graph_takes() -> None:
    with InputNode() as inp:
        whole, parts = echo.bind(inp), echo.bind([inp[1], inp.name])
    with pytest.raises(TypeError, match=r"as one value; execute.. was given 2 by position"):
        whole.execute(1, 2)
    with pytest.raises(TypeError, match="was given nothing"):
        whole.execute()
    with pytest.raises(TypeError, match=r"takes input 'name'; execute.. was given 2 by position"):
        parts.execute(1, 2)
    with pytest.raises(TypeError, match=r"takes input 1; .* 'name'"):
        parts.execute(name=1)
    with pytest.raises(TypeError, match="no InputNode"):
        echo.bind(1).execute(1)
    with pytest.raises(TypeError, match="not known"):
        list(inp)
    with InputNode() as other, pytest.raises(ValueError, match="two InputNodes"):
        add.bind(inp, other).execute(1)


def test_several_outputs() -> None:
    with InputNode() as inp:
        shared = add.bind(inp, 1)
        dag = MultiOutputNode([shared, add.bind(shared, 1), shared])
    refs = dag.execute(1)
    assert refs[0] == refs[2]
    assert shoal.get(refs, timeout=30) == [2, 3, 2]
    with pytest.raises(TypeError, match="takes a list of nodes; 1 is none"):
        MultiOutputNode([1])  # type: ignore[list-item]  # the error that is tested


def test_a_node_cannot_be_sent() -> None:
    with pytest.raises(TypeError, match="part of a graph"):
        echo.remote(add.bind(1))
    with pytest.raises(TypeError, match="part of a graph"):
        run(echo.bind({frozenset([add.bind(1)])}))
