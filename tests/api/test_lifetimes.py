"""Lifetimes where they are easily got wrong: references that exist only for a moment, and values of calls that fail half way."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy
import pytest

import shoal
from shoal.exceptions import TaskCancelledError, UnserializableError
from shoal.messages.peer import Cancel
from shoal.runtime import current_process
from shoal.util import state
from shoal.util.memory import memory_report
from tests.api.gates import DEADLINE_S, Gate
from tests.api.tasks import wait_for

LARGE = 300_000
"""Items of an array that goes to shared memory."""

pytestmark = pytest.mark.usefixtures("shared_cluster")


def get(ref: Any) -> Any:
    return shoal.get(ref, timeout=DEADLINE_S)


def leaks() -> list[str]:
    with state.asking(None, DEADLINE_S) as questions:
        return [block.why for block in memory_report(questions).blocks if block.kind == "LEAKED"]


# --- what waits keeps what it waits for ----------------------------------------------------------------------------------


@pytest.fixture
def waiting_thread() -> Callable[..., list[Any]]:
    """Runs a function in a thread; lets `meanwhile` happen once that waits; what the function returned, or raised."""

    def run(function: Callable[[], Any], meanwhile: Callable[[], object]) -> list[Any]:
        process = current_process.require()
        begun = threading.Event()
        entered = process.reactor.wait
        found: list[Any] = []

        def wait(*args: Any) -> bool:
            if threading.current_thread() is thread:
                begun.set()
            return entered(*args)

        def body() -> None:
            try:
                found.append(function())
            except Exception as error:  # noqa: BLE001 - the test looks at it
                found.append(error)

        thread = threading.Thread(target=body)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(process.reactor, "wait", wait)
            thread.start()
            assert begun.wait(DEADLINE_S)
            meanwhile()
            thread.join()
        return found

    return run


@pytest.mark.parametrize("call", ["get", "wait"])
def test_a_list_that_another_thread_empties_meanwhile(
    call: str, waiting_thread: Callable[..., list[Any]], gates: Callable[[str], Gate]
) -> None:
    gate = gates("meanwhile")
    refs = [wait_for.remote(gate, number) for number in range(3)]

    def function() -> Any:
        if call == "get":
            return shoal.get(refs, timeout=DEADLINE_S)
        ready, rest = shoal.wait(refs, num_returns=3, timeout=DEADLINE_S)
        return [*map(get, ready), *rest]

    def meanwhile() -> None:
        refs.clear()
        current_process.require().settle_now()
        gate.open()

    assert waiting_thread(function, meanwhile) == [[0, 1, 2]]


# --- references that only pickling has made ------------------------------------------------------------------------------


class PutWhenPickled:
    """Puts its content when it is pickled: nobody else has the reference."""

    def __reduce__(self) -> tuple[Any, ...]:
        return list, ((shoal.put(7),),)


@shoal.remote
def look(box: list[Any], **more: Any) -> Any:
    return shoal.get(box[0])


@shoal.remote(num_cpus=0)
class Looker:
    def __init__(self, box: Any = None) -> None:
        self.box = box

    def look(self, box: Any = None) -> Any:
        return shoal.get((box or self.box)[0])


@pytest.fixture
def dropped_is_counted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if another thread counted dead handles each time when arguments are pickled, and nothing else has happened yet."""
    process = current_process.require()
    start, adopt = process.submissions.start, process.actors._adopt

    def settle_and_start(*args: Any) -> None:
        process.settle()
        start(*args)

    def settle_and_adopt(*args: Any) -> None:
        process.settle()
        adopt(*args)

    monkeypatch.setattr(process.submissions, "start", settle_and_start)
    monkeypatch.setattr(process.actors, "_adopt", settle_and_adopt)


@pytest.mark.usefixtures("dropped_is_counted_at_once")
@pytest.mark.parametrize("way", ["task", "options", "call", "stored", "actor", "named"])
def test_a_reference_that_only_pickling_has_made(way: str) -> None:
    box = PutWhenPickled()
    if way == "task":
        assert get(look.remote(box)) == 7
    elif way == "options":
        assert get(look.options(name="looks").remote(box)) == 7
    elif way == "call":
        assert get(Looker.remote().look.remote(box)) == 7
    elif way == "stored":
        assert get(look.remote(box, more=numpy.ones(LARGE))) == 7
    elif way == "actor":
        assert get(Looker.remote(box).look.remote()) == 7
    else:
        assert get(Looker.options(name="looker").remote(box).look.remote()) == 7


# --- what fails half way -------------------------------------------------------------------------------------------------


@shoal.remote(num_returns=2)
def half_a_result() -> Any:
    return numpy.ones(LARGE), threading.Lock()


@shoal.remote(num_cpus=0)
class HalfAResult:
    @shoal.method(num_returns=2)
    def make(self) -> Any:
        return numpy.ones(LARGE), threading.Lock()


def test_results_that_cannot_all_be_sent_leave_nothing() -> None:
    actor = HalfAResult.remote()
    for one, other in (half_a_result.remote(), actor.make.remote()):
        for ref in (one, other):
            with pytest.raises(UnserializableError):
                get(ref)
    assert leaks() == []


def test_large_arguments_of_an_actor_whose_class_cannot_be_sent_leave_nothing() -> None:
    class Locked:
        lock = threading.Lock()

        def __init__(self, values: Any) -> None:
            self.values = values

    with pytest.raises(UnserializableError, match="lock"):
        shoal.remote(Locked).remote(numpy.ones(LARGE))
    assert leaks() == []


# --- what is cancelled ---------------------------------------------------------------------------------------------------


@shoal.remote(num_cpus=0)
class Endless:
    @shoal.method(num_returns="streaming")
    async def count(self) -> AsyncIterator[int]:
        yield 1
        await asyncio.sleep(10 * DEADLINE_S)


def test_a_cancelled_async_generator_says_so() -> None:
    items = Endless.remote().count.remote()
    assert get(next(items)) == 1
    shoal.cancel(items)
    with pytest.raises(TaskCancelledError):
        get(next(items))


@shoal.remote(num_cpus=0, max_concurrency=2)
class Threaded:
    def remembered(self) -> int:
        process = current_process.require()
        return len(process.host._cancelled)


def test_cancelled_calls_that_have_been_answered_are_forgotten() -> None:
    actor = Threaded.remote()
    assert get(actor.remembered.remote()) == 0
    process, link = actor._connect()
    with process.lock:
        for _ in range(12_000):
            link.connection.send(Cancel(os.urandom(16), recursive=False))
    assert get(actor.remembered.remote()) == 10_000
