"""What keeps each object alive, in `list_objects` and in reports of memory: every kind of reference, made and dropped."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

import shoal
from shoal.runtime import current_process
from shoal.serial.values import serialize
from shoal.util import state
from shoal.util.memory import MemoryReport, memory_report
from shoal.util.records import MemoryObject
from tests.api.gates import Gate, wait_until

PATIENCE_S = 30
LARGE = 300_000
"""Items of an array that goes to shared memory."""

pytestmark = pytest.mark.usefixtures("shared_cluster")


def report() -> MemoryReport:
    with state.asking(None, PATIENCE_S) as questions:
        return memory_report(questions)


def live(ref: shoal.ObjectRef[Any] | str) -> MemoryObject | None:
    id_ = ref if isinstance(ref, str) else ref.hex()
    return next((one for one in report().objects if one.object_id == id_), None)


def settled(
    ref: shoal.ObjectRef[Any] | str, condition: Callable[[MemoryObject], object], what: str
) -> MemoryObject:
    """The object, once it is as it must become."""
    found: list[MemoryObject | None] = []

    def look() -> bool:
        found[:] = [live(ref)]
        return found[0] is not None and bool(condition(found[0]))

    wait_until(look, f"{what}: {found}")
    assert found[0] is not None
    return found[0]


@pytest.fixture
def gate(gates: Callable[[str], Gate]) -> Gate:
    return gates("gate")


@shoal.remote
def hold(gate: Gate, _argument: Any = None) -> int:
    gate.wait(PATIENCE_S)
    return os.getpid()


@shoal.remote
class Keeper:
    def __init__(self, *_made_of: Any) -> None:
        self.kept: Any = None

    def keep(self, box: Any) -> int:
        self.kept = box
        return os.getpid()

    def look(self, box: Any) -> int:
        self.kept = shoal.get(box[0])
        return os.getpid()


def test_references_of_this_process() -> None:
    small, large = shoal.put(3), shoal.put(numpy.ones(LARGE))
    more = [small, *[shoal.ObjectRef(small.binary()) for _ in range(2)]]
    (row,) = state.get_objects(small.hex())
    assert (row.reference_type, row.location) == ("LOCAL_REFERENCE", "INLINE")
    assert row.why == f"the process with pid {os.getpid()} has 3 references"
    one, two = live(small), live(large)
    assert one is not None
    assert two is not None
    assert one.why == f"the driver (pid {os.getpid()}) has 3 references"
    assert (two.location, two.size >= 8 * LARGE) == ("SHARED_MEMORY", True)
    assert two.nodes == [shoal.get_runtime_context().get_node_id()]
    assert (two.owner_pid, two.owner_type) == (os.getpid(), "driver")
    assert [ref["types"] for ref in two.references] == [["LOCAL_REFERENCE"]]
    del more, small, large
    wait_until(lambda: live(one.object_id) is None, "it is gone")


def test_a_view_pins_an_object_and_its_memory_after_it() -> None:
    ref = shoal.put(numpy.ones(LARGE))
    array = shoal.get(ref)
    one = live(ref)
    assert one is not None
    assert one.reference_type == "PINNED_IN_MEMORY"
    assert f"a view of it is still in use in the driver (pid {os.getpid()})" in one.why
    del ref
    wait_until(lambda: live(one.object_id) is None, "it is freed")
    (block,) = [block for block in report().blocks if block.kind == "FREED"]
    assert block.size == one.size
    assert block.why.endswith(f"still in use in the driver (pid {os.getpid()})")
    del array


def test_an_argument_and_the_worker_that_looks_at_it(gate: Gate) -> None:
    ref = shoal.put(numpy.ones(LARGE))
    running = hold.options(name="looker").remote(gate, ref)
    id_ = ref.hex()
    del ref
    one = settled(id_, lambda one: len(one.references) == 2, "the worker looks at it")
    assert [ref["types"] for ref in one.references] == [
        ["USED_BY_PENDING_TASK"],
        ["PINNED_IN_MEMORY"],
    ]
    assert one.reference_type == "PINNED_IN_MEMORY"
    assert one.references[1]["who"] == "worker"
    assert f"an argument of looker() ({running.hex()[:26]}), which was sent to pid" in one.why
    assert "a view of it is still in use in the worker (pid" in one.why
    gate.open()
    shoal.get(running, timeout=PATIENCE_S)
    wait_until(lambda: live(id_) is None, "it is freed")


def test_an_argument_of_a_task_that_waits_for_another(gate: Gate) -> None:
    ref = shoal.put("argument")
    first = hold.options(name="first one").remote(gate)
    second = hold.options(name="second one").remote(gate, [ref, first])
    third = hold.options(name="third one").remote(first, ref)
    one = live(ref)
    assert one is not None
    assert one.references[0]["types"] == ["USED_BY_PENDING_TASK", "LOCAL_REFERENCE"]
    assert "an argument of third one()" in one.why
    assert f"which waits for 1 of its arguments: object {first.hex()}" in one.why
    pending = live(first)
    assert pending is not None
    assert (pending.location, pending.size, pending.task_name) == ("PENDING", -1, "first one")
    shoal.cancel(third)
    gate.open()
    shoal.get([first, second], timeout=PATIENCE_S)


def test_what_is_inside_objects_functions_and_actors() -> None:
    inner = shoal.put("inner")
    id_ = inner.hex()
    outer = shoal.put([inner])

    @shoal.remote
    def captures() -> Any:
        return inner

    runner = shoal.get(captures.remote(), timeout=PATIENCE_S)
    assert runner == inner
    keeper = Keeper.options(num_cpus=0).remote()
    pid = shoal.get(keeper.keep.remote([inner]), timeout=PATIENCE_S)
    one = settled(id_, lambda one: "captured by" in one.why and "borrowed" in one.why, "all tell")
    assert f"inside object {outer.hex()}, captured by" in one.why
    assert f"borrowed by actor Keeper (pid {pid}), which has 1 reference" in one.why
    # The worker that ran the function has what that captured, too.
    assert {ref["pid"] for ref in one.references} >= {os.getpid(), pid}
    handle = next(
        other
        for other in report().objects
        if other.location == "ACTOR" and "1 handle of the actor" in other.why
    )
    assert (handle.reference_type, handle.size) == ("ACTOR_HANDLE", -1)
    assert all(row.reference_type != "ACTOR_HANDLE" for row in state.list_objects(limit=10_000))
    del keeper
    wait_until(lambda: live(handle.object_id) is None, "the actor's handle is gone")


def test_what_only_a_borrower_needs() -> None:
    ref = shoal.put("lent")
    id_ = ref.hex()
    keeper = Keeper.options(num_cpus=0).remote()
    pid = shoal.get(keeper.keep.remote([ref]), timeout=PATIENCE_S)
    del ref
    one = settled(id_, lambda one: "LOCAL" not in str(one.references[0]["types"]), "it is lent")
    assert one.references[0]["types"] == ["BORROWED"]
    assert one.why == f"borrowed by actor Keeper (pid {pid}), which has 1 reference"
    rows = state.get_objects(id_)
    owner = next(row for row in rows if row.is_owner)
    borrower = next(row for row in rows if not row.is_owner)
    assert owner.borrowed_by == [borrower.process]
    assert owner.reference_type == "BORROWED"
    assert str(borrower.process) in str(owner.why)
    shoal.kill(keeper)
    wait_until(lambda: live(id_) is None, "the borrower is gone")


def test_what_its_borrower_looks_at() -> None:
    ref = shoal.put(numpy.ones(LARGE))
    keeper = Keeper.options(num_cpus=0).remote()
    pid = shoal.get(keeper.look.remote([ref]), timeout=PATIENCE_S)
    one = settled(ref, lambda one: "in use" in one.why, "the actor looks at it")
    assert f"in use in actor Keeper (pid {pid})" in one.why
    shoal.kill(keeper)


def test_items_of_a_generator_that_nobody_has_taken() -> None:
    @shoal.remote
    def items() -> Iterator[int]:
        yield from range(3)

    generator = items.remote()
    first = next(generator)

    def waiting() -> list[MemoryObject]:
        return [one for one in report().objects if one.reference_type == "GENERATOR_ITEM"]

    wait_until(lambda: len(waiting()) == 2, "the others wait")
    assert "nobody has taken from its generator yet" in waiting()[0].why
    del generator, first
    wait_until(lambda: not waiting(), "they are gone")


def test_all_are_counted_when_few_are_listed() -> None:
    refs = [shoal.put(number) for number in range(200)]
    refs.append(shoal.put(numpy.ones(LARGE)))
    with state.asking(None, PATIENCE_S) as questions:
        found = memory_report(questions, limit=3)
    assert found.count >= 201
    assert len(found.objects) == 3
    assert found.more == found.count - 3
    assert found.objects[0].object_id == refs[-1].hex()
    (group,) = [one for one in found.groups("type") if one.group == "LOCAL_REFERENCE"]
    assert group.count >= 201
    assert group.stored >= 8 * LARGE
    assert sum(one.size for one in found.groups("owner")) == found.size
    (node,) = found.groups("node")
    assert (node.group, node.count) == (shoal.get_runtime_context().get_node_id(), found.count)
    with pytest.raises(ValueError, match="grouped by owner, node, call-site, type, not by 'x'"):
        found.groups("x")


def test_the_accounts_of_the_store_add_up() -> None:
    ref = shoal.put(numpy.ones(LARGE))
    freed = shoal.get(shoal.put(numpy.ones(LARGE)))
    wait_until(lambda: report().nodes[0].freed_in_view >= 8 * LARGE, "it is freed")
    (node,) = report().nodes
    parts = node.objects + node.copies + node.freed_in_view + node.idle
    assert parts + node.reserved + node.left_by_ended + node.free == node.capacity
    assert node.objects >= 8 * LARGE
    assert node.leaked == 0
    del ref, freed


def test_what_was_spilled_is_on_disk() -> None:
    ref = shoal.put(numpy.ones(LARGE))
    arena = current_process.require().store.arena
    assert arena.spill(1).freed > 0
    one = live(ref)
    assert one is not None
    assert one.location == "DISK"
    (node,) = report().nodes
    assert node.on_disk >= one.size
    assert leaks() == []
    del ref
    wait_until(lambda: report().nodes[0].on_disk == 0, "it is freed")


def test_what_a_detached_actor_was_made_of() -> None:
    argument = shoal.put("argument")
    id_ = argument.hex()
    detached = Keeper.options(num_cpus=0, name="detached one", lifetime="detached")
    keeper = detached.remote([argument])
    del argument
    assert shoal.get(keeper.keep.remote(None), timeout=PATIENCE_S)
    handles = [one for one in report().objects if one.location == "ACTOR"]
    (row,) = [one for one in handles if one.reference_type == "ACTOR_HANDLE"]
    # It is no object that would never be made.
    assert row.object_id not in {one.object_id for one in state.list_objects(limit=10_000)}
    assert live(id_) is not None
    shoal.kill(keeper)
    wait_until(lambda: live(id_) is None, "it is freed")


# --- leaks ------------------------------------------------------------------------------------------------------------


def leaks() -> list[str]:
    return [block.why for block in report().blocks if block.kind == "LEAKED"]


def test_a_block_that_nobody_counts_on_is_a_leak() -> None:
    process = current_process.require()
    assert leaks() == []
    serialized = serialize(bytes(1_000_000), subject="a block")
    location = process.store.write(serialized, serialized.size_bytes)
    (why,) = leaks()
    assert why == f"driver (pid {os.getpid()}) made it, and no process accounts for it"
    (node,) = report().nodes
    assert node.leaked == location.size
    process.store.free(location)
    assert leaks() == []


def test_a_result_that_its_owner_has_forgotten_is_a_leak() -> None:
    @shoal.remote
    def large() -> Any:
        return numpy.ones(LARGE)

    ref = large.remote()
    shoal.wait([ref], timeout=PATIENCE_S)
    assert leaks() == []
    process = current_process.require()
    with process.lock:
        value, ref._entry.value = ref._entry.value, b""
    (why,) = leaks()
    assert why.startswith("worker (pid ")
    assert why.endswith(f"made it for driver (pid {os.getpid()}), which does not know of it")
    with process.lock:
        ref._entry.value = value


def test_a_file_of_nobody_is_a_leak() -> None:
    stray = Path(current_process.require().registered.shm_dir) / "0a0b0c0d-0"
    stray.write_bytes(bytes(5_000))
    assert leaks() == ["no process that lives, or has left anything, made it"]
    stray.unlink()
    assert leaks() == []
