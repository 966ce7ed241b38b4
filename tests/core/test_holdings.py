"""What counts on an object, told apart: each kind by itself, and several at once."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.core.holdings import Holdings
from shoal.core.references import Entry, ObjectTable
from shoal.core.tasks import Function, State, Task, TaskTable
from shoal.messages import inventory
from shoal.messages.inventory import KINDS, Holding
from shoal.messages.node import Shape

ME = "10.0.0.1:1/d-00000001"
OTHER = "10.0.0.1:1/w-00000002"


def object_id(number: int) -> bytes:
    return bytes([number]) * 16


def task(name: str, holds: list[Entry], deps: list[tuple[int | str, Entry]] | None = None) -> Task:
    queue = TaskTable().scheduling_class(Shape(()))
    made = Task(object_id(200), Function(0, b"f", name, b""), queue, b"", (), 0)
    made.holds, made.deps = holds, deps
    for entry in holds:
        entry.holds += 1
    return made


def told(
    table: ObjectTable,
    entry: Entry,
    *,
    tasks: list[Task] | None = None,
    items: list[Entry] | None = None,
    captured: list[tuple[str, list[Entry]]] | None = None,
    viewed: bool = False,
) -> list[Holding]:
    holdings = Holdings(
        table.entries.values(), tasks or [], items or [], captured or [], table.orphaned
    )
    found = holdings.of(entry, viewed=viewed)
    assert [one.kind for one in found] == sorted((one.kind for one in found), key=KINDS.index), (
        "not in the order of the kinds"
    )
    assert holdings.kind(entry, viewed=viewed) == found[0].kind
    return found


@pytest.fixture
def table() -> ObjectTable:
    return ObjectTable(ME)


def test_handles_are_counted(table: ObjectTable) -> None:
    entry = table.own(object_id(1), local=2)
    assert told(table, entry) == [Holding(inventory.LOCAL_REFERENCE, 2)]


def test_a_view_goes_before_handles(table: ObjectTable) -> None:
    entry = table.own(object_id(1))
    assert told(table, entry, viewed=True) == [
        Holding(inventory.PINNED_IN_MEMORY),
        Holding(inventory.LOCAL_REFERENCE),
    ]


def test_an_argument_names_the_task_and_what_that_waits_for(table: ObjectTable) -> None:
    entry, missing = table.own(object_id(1), local=0), table.own(object_id(2), local=0)
    waiting = task("f", [entry, missing], [(0, entry), (1, missing)])
    entry.value = b"there"
    waiting.unready = 1
    (one,) = told(table, entry, tasks=[waiting])
    assert (one.kind, one.count) == (inventory.USED_BY_PENDING_TASK, 1)
    name = f"f() ({object_id(200).hex()[:26]})"
    assert one.text == (
        f"an argument of {name}, which waits for 1 of its arguments: object {missing.object_id.hex()}"
    )
    waiting.unready = 0
    (one,) = told(table, entry, tasks=[waiting])
    assert one.text == f"an argument of {name}, which waits for a worker"
    waiting.state = State.HERE
    (one,) = told(table, entry, tasks=[waiting])
    assert one.text == f"an argument of {name}, which runs here"


def test_of_many_tasks_some_are_named(table: ObjectTable) -> None:
    entry = table.own(object_id(1), local=0)
    tasks = [task(f"f{number}", [entry]) for number in range(10)]
    (one,) = told(table, entry, tasks=tasks)
    assert one.count == 10
    assert one.text.count("f") > 3
    assert one.text.endswith(", and 7 more")


def test_what_contains_it_is_named(table: ObjectTable) -> None:
    inner, outer = table.own(object_id(1), local=0), table.own(object_id(2))
    table.contain(outer, [inner])
    assert told(table, inner) == [
        Holding(inventory.CAPTURED_IN_OBJECT, 1, f"inside object {outer.object_id.hex()}")
    ]
    handle = table.own(object_id(3))
    handle.actor_id = object_id(3)
    table.contain(handle, [inner])
    table.hold(inner)
    (one,) = told(table, inner, captured=[("f", [inner])])
    assert one.count == 3
    assert f"one of the arguments of the actor {object_id(3).hex()[:26]}" in one.text
    assert one.text.endswith("captured by f")


def test_handles_of_actors_are_a_kind_of_their_own(table: ObjectTable) -> None:
    entry = table.own(object_id(1), local=2)
    entry.actor_id = object_id(1)
    call = task("f", [entry])
    found = told(table, entry, tasks=[call])
    assert [(one.kind, one.count) for one in found] == [
        (inventory.ACTOR_HANDLE, 2),
        (inventory.USED_BY_PENDING_TASK, 1),
    ]
    assert found[1].text.startswith("needed by f()")


def test_an_item_of_a_generator_that_nobody_has_taken(table: ObjectTable) -> None:
    entry = table.own(object_id(1), local=0)
    table.hold(entry)
    assert told(table, entry, items=[entry]) == [Holding(inventory.GENERATOR_ITEM)]


def test_borrowers_are_the_reason_if_there_is_no_other(table: ObjectTable) -> None:
    entry = table.own(object_id(1), local=0)
    table.register(entry.object_id, OTHER)
    assert told(table, entry) == [Holding(inventory.BORROWED, 1)]


def test_a_borrowed_object_whose_owner_has_ended(table: ObjectTable) -> None:
    entry: Any = table.borrow((object_id(1), OTHER))
    entry.local = 1
    table.orphaned[entry] = None
    assert told(table, entry) == [Holding(inventory.LOCAL_REFERENCE), Holding(inventory.OWNER_GONE)]


def test_what_is_left_is_a_message_on_its_way(table: ObjectTable) -> None:
    entry = table.own(object_id(1), local=1)
    table.hold(entry)
    assert told(table, entry) == [Holding(inventory.LOCAL_REFERENCE), Holding(inventory.IN_TRANSIT)]
    table.drop_locals([entry])
    assert told(table, entry) == [Holding(inventory.IN_TRANSIT)]
