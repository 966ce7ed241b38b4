"""References: as arguments and inside values, how long they keep what they name, and what they are."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import signal
import warnings
from collections.abc import Callable
from typing import Any

import pytest

import shoal
from shoal.exceptions import ActorDiedError, ObjectLostError, OwnerDiedError
from tests.api.counters import Counter
from tests.api.gates import Gate, Trace, alive, wait_until
from tests.api.tasks import identity, wait_for

pytestmark = pytest.mark.usefixtures("shared_cluster")

LARGE = 4 * 1024 * 1024
"""Bytes: well above what travels inside messages."""


@shoal.remote
def kinds(*args: Any, **kwargs: Any) -> list[str]:
    return [type(value).__name__ for value in (*args, *kwargs.values())]


def get(ref: Any) -> Any:
    return shoal.get(ref, timeout=30)


# --- references as arguments ---------------------------------------------------------------------------------------------


def test_references_as_arguments_arrive_as_values() -> None:
    ref, small = identity.remote(5), shoal.put("x")
    assert get(kinds.remote(ref, small, key=ref)) == ["int", "str", "int"]


def test_a_task_waits_for_its_arguments(gates: Callable[[str], Gate]) -> None:
    gate = gates("argument")
    ref = identity.remote(wait_for.remote(gate, 7))
    assert shoal.wait([ref], timeout=0)[0] == []
    gate.open()
    assert get(ref) == 7


def test_references_inside_containers_stay_references() -> None:
    ref = identity.remote(5)
    assert get(kinds.remote([ref])) == ["list"]

    @shoal.remote
    def look_into(items: list[Any], table: dict[str, Any]) -> tuple[bool, bool, int]:
        first, second = items[0], table["deep"][0]
        return (
            isinstance(first, shoal.ObjectRef),
            first == second,
            shoal.get(second, timeout=30),
        )

    assert get(look_into.remote([ref], {"deep": (ref,)})) == (True, True, 5)


def test_references_in_objects_keep_what_they_name() -> None:
    class Box:
        def __init__(self, ref: Any) -> None:
            self.ref = ref

    outer = shoal.put(Box(shoal.put([1, 2, 3])))
    gc.collect()
    assert get(get(outer).ref) == [1, 2, 3]


def test_references_three_levels_deep() -> None:
    innermost = shoal.put(b"x" * LARGE)
    outer = shoal.put([shoal.put([innermost])])
    del innermost
    gc.collect()
    [middle] = get(outer)
    del outer
    [inner] = get(middle)
    del middle
    assert get(inner) == b"x" * LARGE


def test_a_reference_captured_by_a_function_is_kept() -> None:
    def reader(ref: Any) -> Any:
        @shoal.remote
        def read() -> Any:
            return shoal.get(ref, timeout=30)

        return read

    read = reader(shoal.put("captured"))
    gc.collect()
    assert get([read.remote(), read.remote()]) == ["captured"] * 2


def test_an_object_lives_until_the_task_that_uses_it_has_run(gates: Callable[[str], Gate]) -> None:
    gate = gates("use")

    @shoal.remote
    def later(gate: Gate, boxed: list[Any]) -> int:
        gate.wait()
        return len(shoal.get(boxed[0], timeout=30))

    ref = shoal.put(bytes(LARGE))
    result = later.remote(gate, [ref])
    del ref
    gc.collect()
    gate.open()
    assert get(result) == LARGE


def test_an_object_lives_as_long_as_an_actor_keeps_its_reference() -> None:
    @shoal.remote
    class Keeper:
        def keep(self, boxed: list[Any]) -> None:
            self.boxed = boxed

        def size(self) -> int:
            return len(shoal.get(self.boxed[0], timeout=30))

        def give(self) -> list[Any]:
            boxed, self.boxed = self.boxed, []
            return boxed

    for value in (bytes(LARGE), bytes(10)):
        keeper = Keeper.remote()
        ref = shoal.put(value)
        get(keeper.keep.remote([ref]))
        del ref
        gc.collect()
        assert get(keeper.size.remote()) == len(value)
        [ref] = get(keeper.give.remote())
        assert get(ref) == value


def test_references_handed_on_by_one_task_after_another() -> None:
    """Owned by a third process, borrowed by a second, and then by this one."""

    @shoal.remote
    def make(size: int) -> list[Any]:
        return [shoal.put(bytes(size)), identity.remote(bytes(size))]

    @shoal.remote
    def hand_on(size: int) -> dict[str, Any]:
        return {"handed on": shoal.get(make.remote(size), timeout=30)}

    for size in (10, LARGE):
        refs = get(hand_on.remote(size))["handed on"]
        gc.collect()
        assert [len(value) for value in get(refs)] == [size, size]


def test_many_references_made_by_a_task() -> None:
    @shoal.remote
    def make(n: int) -> list[Any]:
        return [shoal.put(i) for i in range(n)]

    refs = get(make.remote(500))
    assert get(refs) == list(range(500))


def test_what_a_task_puts_outlives_it() -> None:
    @shoal.remote
    def make() -> list[Any]:
        return [shoal.put(i) for i in range(3)] + [shoal.put(bytes(LARGE))]

    *small, large = get(make.remote())
    assert get(small) == [0, 1, 2]
    assert len(get(large)) == LARGE


def test_references_of_tasks_that_are_still_running_travel(gates: Callable[[str], Gate]) -> None:
    gate = gates("inner")

    @shoal.remote
    def start() -> list[Any]:
        return [wait_for.remote(gate, "done")]

    [inner] = get(start.remote())
    gate.open()
    assert get(inner) == "done"


@pytest.mark.parametrize("dies", [False, True], ids=["by an exception", "with its worker"])
def test_what_each_attempt_of_a_task_puts_is_an_object_of_its_own(
    traces: Callable[[str], Trace], dies: bool
) -> None:
    tried = traces("tried")

    @shoal.remote
    class Keeper:
        def keep(self, boxed: list[Any]) -> None:
            self.boxed = boxed

        def kept(self, boxed: list[Any]) -> list[Any]:
            return [shoal.get(refs[0], timeout=30) for refs in (self.boxed, boxed)]

    @shoal.remote(max_retries=1, retry_exceptions=True)
    def put_and_fail_once(keeper: Any) -> list[Any]:
        ref = shoal.put(f"attempt {len(tried)}")
        if len(tried) == 0:
            shoal.get(keeper.keep.remote([ref]), timeout=30)
            tried.add("once")
            if dies:
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("again")
        return [ref]

    keeper = Keeper.remote()
    second = get(put_and_fail_once.remote(keeper))
    assert get(second) == ["attempt 1"]
    if dies:
        with pytest.raises(OwnerDiedError):
            get(keeper.kept.remote(second))
    else:
        assert get(keeper.kept.remote(second)) == ["attempt 0", "attempt 1"]


def test_many_references_at_once() -> None:
    refs = [shoal.put(i) for i in range(2_000)]

    @shoal.remote
    def add_up(*numbers: int) -> int:
        return sum(numbers)

    assert get(refs) == list(range(2_000))
    assert get(add_up.remote(*refs[:500])) == sum(range(500))
    assert get(get(shoal.put(refs))) == list(range(2_000))


# --- outside of shoal ----------------------------------------------------------------------------------------------------


def test_what_is_pickled_outside_of_shoal_keeps_nothing_alive_and_that_is_said_once() -> None:
    ref, counter = shoal.put("value"), Counter.remote()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        by_pickle, by_cloudpickle = pickle.dumps([ref]), shoal.cloudpickle.dumps([ref])
        handle, _ = pickle.dumps(counter), pickle.dumps(counter)
    of_ref, of_handle = caught
    assert "ObjectLostError" in str(of_ref.message)
    assert "ActorDiedError" in str(of_handle.message)
    assert of_ref.filename == of_handle.filename == __file__
    # As long as there is a reference that is counted, all is well.
    for pickled in (by_pickle, by_cloudpickle):
        [same] = pickle.loads(pickled)
        assert same == ref
        assert get(same) == "value"
    assert get(pickle.loads(handle).add.remote()) == 1
    del ref, same
    gc.collect()
    [lost] = pickle.loads(by_pickle)
    with pytest.raises(ObjectLostError, match="pickled by hand"):
        get(lost)
    assert shoal.wait([lost]) == ([lost], [])
    pid = get(counter.pid.remote())
    del counter
    gc.collect()
    wait_until(lambda: not alive(pid), "the actor ends")
    with pytest.raises(ActorDiedError):
        get(pickle.loads(handle).add.remote())


def test_a_pickle_made_by_another_process_is_good_while_that_one_keeps_a_reference() -> None:
    @shoal.remote
    class Keeper:
        def pickle(self) -> bytes:
            self.ref = shoal.put("kept")
            with warnings.catch_warnings(record=True):
                warnings.simplefilter("always")
                return pickle.dumps(self.ref)

        def drop(self) -> None:
            del self.ref

    keeper = Keeper.remote()
    pickled = get(keeper.pickle.remote())
    assert get(pickle.loads(pickled)) == "kept"
    get(keeper.drop.remote())
    gc.collect()
    with pytest.raises(ObjectLostError, match="pickled by hand"):
        get(pickle.loads(pickled))


def test_copies_of_references_and_handles_are_counted() -> None:
    counter = Counter.remote()
    things = {"ref": [shoal.put(7)], "handle": counter}
    copied = copy.deepcopy(things)
    [shallow] = map(copy.copy, things["ref"])
    del things, counter
    gc.collect()
    assert get([*copied["ref"], shallow, copied["handle"].add.remote()]) == [7, 7, 1]


# --- what a reference is -------------------------------------------------------------------------------------------------


def test_references_are_equal_by_the_object_they_name() -> None:
    ref, other = shoal.put(1), shoal.put(1)
    [same] = get(shoal.put([ref]))
    assert same == ref
    assert hash(same) == hash(ref)
    assert ref != other
    assert ref != 1
    assert len({ref, same, other}) == 2


def test_ids_of_a_reference() -> None:
    ref = identity.remote(1)
    assert ref.hex() == ref.binary().hex()
    assert ref.hex() in repr(ref)
    assert len(ref.binary()) == ref.size()
    assert not ref.is_nil()
    assert shoal.ObjectRef.nil().is_nil()
    assert shoal.ObjectRef.from_random() != shoal.ObjectRef.from_random()
    assert ref.job_id().hex() == shoal.get_runtime_context().get_job_id()


def test_the_task_of_a_reference() -> None:
    @shoal.remote
    def own_id() -> str:
        return shoal.get_runtime_context().get_task_id()

    ref = own_id.remote()
    assert ref.task_id().hex() == get(ref)


def test_a_callback_is_called_with_the_value() -> None:
    seen: list[Any] = []
    ref = identity.remote("done")
    ref._on_completed(seen.append)
    wait_until(lambda: seen, "the callback runs")
    assert seen == ["done"]


def test_a_callback_without_the_value(gates: Callable[[str], Gate]) -> None:
    gate = gates("value")
    seen: list[Any] = []
    ref = wait_for.remote(gate, "value")
    ref._on_ready(seen.append)
    gate.open()
    wait_until(lambda: seen, "the callback runs")
    assert seen == [None]


def test_generators_of_references_cannot_be_pickled() -> None:
    @shoal.remote
    def count() -> Any:
        yield 1

    stream = count.remote()
    with pytest.raises((TypeError, ValueError)):
        pickle.dumps(stream)
    assert [get(ref) for ref in stream] == [1]
