"""`cancel`: of what waits, of what runs, by force, with what it started, and of actors' calls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import shoal
from shoal.exceptions import TaskCancelledError, WorkerCrashedError
from tests.api.gates import Gate, Trace, wait_until

pytestmark = [
    pytest.mark.usefixtures("shared_cluster"),
    pytest.mark.cluster(num_cpus=2, resources={"slot": 1, "part": 1}),
]


@shoal.remote(num_cpus=0)
def work(begun: Gate, gate: Gate, trace: Trace) -> str:
    trace.add("begin")
    try:
        # From here on it may be interrupted at any moment.
        begun.open()
        gate.wait(60)
    except BaseException as error:
        trace.add(type(error).__name__)
        raise
    trace.add("end")
    return "finished"


def get(ref: Any) -> Any:
    return shoal.get(ref, timeout=30)


# --- tasks that have not begun -----------------------------------------------------------------------------------------------


def test_a_queued_task_never_runs(
    gates: Callable[[str], Gate], traces: Callable[[str], Trace]
) -> None:
    gate, trace = gates("go"), traces("queued")
    first_begun, second_begun = gates("first"), gates("second")
    slot = work.options(resources={"slot": 1})
    first = slot.remote(first_begun, gate, traces("first"))
    first_begun.wait()
    second = slot.remote(second_begun, gate, trace)
    third = slot.remote(gates("third"), gate, traces("third"))
    shoal.cancel(second)
    with pytest.raises(TaskCancelledError):
        get(second)
    gate.open()
    assert get([first, third]) == ["finished"] * 2
    assert trace.words() == []


def test_a_task_that_waits_for_an_argument(
    gates: Callable[[str], Gate], traces: Callable[[str], Trace]
) -> None:
    begun, gate, ran = gates("begun"), gates("argument"), traces("ran")

    @shoal.remote
    def use(value: Any) -> None:
        ran.add(value)

    argument = work.remote(begun, gate, traces("argument"))
    user = use.remote(argument)
    shoal.cancel(user)
    with pytest.raises(TaskCancelledError):
        get(user)
    gate.open()
    assert get(argument) == "finished"
    assert ran.words() == []


def test_what_depends_on_a_cancelled_task_is_cancelled_too(
    gates: Callable[[str], Gate], traces: Callable[[str], Trace]
) -> None:
    begun, gate = gates("begun"), gates("never")

    @shoal.remote
    def use(value: Any) -> Any:
        return value

    ref = work.remote(begun, gate, traces("work"))
    user = use.remote(ref)
    begun.wait()
    shoal.cancel(ref)
    with pytest.raises(TaskCancelledError):
        get(user)


# --- tasks that run ----------------------------------------------------------------------------------------------------------


def test_a_running_task_is_interrupted(
    gates: Callable[[str], Gate], traces: Callable[[str], Trace]
) -> None:
    begun, gate, trace = gates("begun"), gates("never"), traces("trace")
    ref = work.remote(begun, gate, trace)
    begun.wait()
    shoal.cancel(ref)
    with pytest.raises(TaskCancelledError):
        get(ref)
    wait_until(lambda: trace.words() == ["begin", "KeyboardInterrupt"], "the task is interrupted")


def test_an_interrupted_sleep_ends_at_once(gates: Callable[[str], Gate]) -> None:
    begun = gates("begun")

    @shoal.remote
    def sleep() -> None:
        begun.open()
        time.sleep(120)

    ref = sleep.remote()
    begun.wait()
    start = time.monotonic()
    shoal.cancel(ref)
    with pytest.raises(TaskCancelledError):
        get(ref)
    assert time.monotonic() - start < 20


def test_a_cancelled_task_is_not_retried(
    gates: Callable[[str], Gate], traces: Callable[[str], Trace]
) -> None:
    begun, gate, trace = gates("begun"), gates("never"), traces("trace")
    ref = work.options(max_retries=5, retry_exceptions=True).remote(begun, gate, trace)
    begun.wait()
    shoal.cancel(ref)
    with pytest.raises(TaskCancelledError):
        get(ref)
    assert trace.words().count("begin") == 1


def test_the_next_task_runs_undisturbed(
    gates: Callable[[str], Gate], traces: Callable[[str], Trace]
) -> None:
    @shoal.remote
    def answer(i: int) -> int:
        return i

    for i in range(10):
        begun = gates(f"begun{i}")
        ref = work.remote(begun, gates("never"), traces(f"trace{i}"))
        begun.wait()
        shoal.cancel(ref)
        assert get([answer.remote(j) for j in range(20)]) == list(range(20))
        with pytest.raises(TaskCancelledError):
            get(ref)


def test_a_finished_task_keeps_its_value() -> None:
    @shoal.remote
    def answer() -> int:
        return 42

    ref = answer.remote()
    assert get(ref) == 42
    shoal.cancel(ref)
    assert get(ref) == 42


def test_cancelling_twice_is_cancelling(
    gates: Callable[[str], Gate], traces: Callable[[str], Trace]
) -> None:
    begun = gates("begun")
    ref = work.remote(begun, gates("never"), traces("trace"))
    begun.wait()
    shoal.cancel(ref)
    shoal.cancel(ref)
    with pytest.raises(TaskCancelledError):
        get(ref)
    shoal.cancel(ref)


def test_force_ends_what_cannot_be_interrupted(gates: Callable[[str], Gate]) -> None:
    begun = gates("begun")

    @shoal.remote
    def stubborn() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                begun.open()
                time.sleep(0.1)
            except KeyboardInterrupt:
                continue

    ref = stubborn.remote()
    begun.wait()
    shoal.cancel(ref, force=True)
    with pytest.raises((TaskCancelledError, WorkerCrashedError)):
        get(ref)


# --- children ----------------------------------------------------------------------------------------------------------------


def test_what_a_task_submits_while_it_is_being_cancelled_is_cancelled_too(
    gates: Callable[[str], Gate],
) -> None:
    begun = gates("begun")

    @shoal.remote(num_cpus=0, resources={"part": 0.1})
    def sleep() -> None:
        time.sleep(600)

    @shoal.remote
    def submit() -> None:
        from shoal.runtime import current_process
        from shoal.runtime.context import current

        ids, context = current_process.require().ids, current.get()

        class SlowIds:
            """The cancel comes while `submit` makes the id. In a file of the engine's, where nothing is interrupted."""

            def task_id(self) -> bytes:
                begun.open()
                wait()
                return ids.task_id()

        source = "def wait():\n    while not context.cancelled:\n        sleep(0.01)\n"
        names: dict[str, Any] = {"context": context, "sleep": time.sleep}
        exec(compile(source, shoal.__path__[0] + "/engine.py", "exec"), names)
        wait = names["wait"]
        current_process.require().ids = SlowIds()
        try:
            sleep.remote()
            time.sleep(60)
        finally:
            current_process.require().ids = ids

    ref = submit.remote()
    begun.wait()
    shoal.cancel(ref)
    with pytest.raises(TaskCancelledError):
        get(ref)
    wait_until(
        lambda: shoal.available_resources().get("part") == 1, "nothing runs that it submitted"
    )


@pytest.mark.parametrize("recursive", [True, False])
def test_children_are_cancelled_too_unless_told_otherwise(
    recursive: bool, gates: Callable[[str], Gate], traces: Callable[[str], Trace]
) -> None:
    begun, gate, trace = gates("begun"), gates("child"), traces("child")

    @shoal.remote(num_cpus=0)
    def parent() -> Any:
        return shoal.get(work.remote(begun, gate, trace), timeout=60)

    ref = parent.remote()
    begun.wait()
    shoal.cancel(ref, recursive=recursive)
    with pytest.raises(TaskCancelledError):
        get(ref)
    if not recursive:
        gate.open()
    last = "KeyboardInterrupt" if recursive else "end"
    wait_until(lambda: trace.words() == ["begin", last], f"the child's last word is {last}")


def test_a_child_that_cleans_up_is_not_interrupted_again(
    gates: Callable[[str], Gate], traces: Callable[[str], Trace]
) -> None:
    """Its parent looks for children twice: when it is cancelled, and when it ends."""
    begun, parent_ended, trace = gates("begun"), gates("ended"), traces("child")

    @shoal.remote(num_cpus=1)
    def child() -> None:
        try:
            begun.open()
            time.sleep(60)
        except KeyboardInterrupt:
            trace.add("interrupted")
            parent_ended.wait()
            # Python code, so that an interrupt finds it.
            for _ in range(50):
                time.sleep(0.004)
            trace.add("clean")

    @shoal.remote(num_cpus=0)
    def parent() -> None:
        shoal.get(child.remote(), timeout=60)

    ref = parent.remote()
    begun.wait()
    shoal.cancel(ref)
    with pytest.raises(TaskCancelledError):
        get(ref)
    parent_ended.open()
    wait_until(lambda: trace.words() == ["interrupted", "clean"], "the child has cleaned up")


def test_a_parent_goes_on_when_its_child_is_cancelled(
    gates: Callable[[str], Gate], traces: Callable[[str], Trace]
) -> None:
    begun, never, kept = gates("begun"), gates("never"), gates("kept")
    trace = traces("child")

    @shoal.remote
    class Box:
        def put(self, boxed: list[Any]) -> None:
            self.boxed = boxed

        def get(self) -> list[Any]:
            return self.boxed

    @shoal.remote(num_cpus=0)
    def parent(box: Any) -> str:
        child = work.remote(begun, never, trace)
        shoal.get(box.put.remote([child]), timeout=30)
        kept.open()
        try:
            shoal.get(child, timeout=60)
        except TaskCancelledError:
            return "went on"
        return "was not told"

    box = Box.remote()
    ref = parent.remote(box)
    kept.wait()
    begun.wait()
    shoal.cancel(get(box.get.remote())[0])
    assert get(ref) == "went on"


# --- actors ------------------------------------------------------------------------------------------------------------------


@shoal.remote
class Sync:
    def work(self, begun: Gate, trace: Trace) -> bool:
        begun.open()
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if shoal.get_runtime_context().is_canceled():
                trace.add("saw")
                return True
            time.sleep(0.002)
        return False

    def hold(self, begun: Gate, gate: Gate) -> str:
        begun.open()
        gate.wait()
        return "held"

    def note(self, trace: Trace) -> str:
        trace.add("ran")
        return "noted"


def test_a_running_method_sees_that_it_was_cancelled(
    gates: Callable[[str], Gate], traces: Callable[[str], Trace]
) -> None:
    begun, trace = gates("begun"), traces("trace")
    actor = Sync.remote()
    ref = actor.work.remote(begun, trace)
    begun.wait()
    shoal.cancel(ref)
    wait_until(lambda: trace.words() == ["saw"], "the method sees it")
    assert get(actor.note.remote(trace)) == "noted"


def test_a_queued_call_of_an_actor_never_runs(
    gates: Callable[[str], Gate], traces: Callable[[str], Trace]
) -> None:
    begun, gate, trace = gates("begun"), gates("held"), traces("trace")
    actor = Sync.remote()
    held = actor.hold.remote(begun, gate)
    begun.wait()
    queued = actor.note.remote(trace)
    shoal.cancel(queued)
    with pytest.raises(TaskCancelledError):
        get(queued)
    gate.open()
    assert get(held) == "held"
    assert trace.words() == []
    assert get(actor.note.remote(trace)) == "noted"


def test_a_coroutine_is_cancelled_as_asyncio_does(
    gates: Callable[[str], Gate], traces: Callable[[str], Trace]
) -> None:
    @shoal.remote
    class Async:
        async def work(self, begun: Gate, trace: Trace) -> None:
            try:
                begun.open()
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                trace.add("CancelledError")
                raise

        async def answer(self) -> int:
            return 42

    begun, trace = gates("begun"), traces("trace")
    actor = Async.remote()
    ref = actor.work.remote(begun, trace)
    begun.wait()
    shoal.cancel(ref)
    with pytest.raises(TaskCancelledError):
        get(ref)
    wait_until(lambda: trace.words() == ["CancelledError"], "the coroutine is cancelled")
    assert get(actor.answer.remote()) == 42


def test_actors_are_not_cancelled_by_force(gates: Callable[[str], Gate]) -> None:
    begun, gate = gates("begun"), gates("held")
    actor = Sync.remote()
    ref = actor.hold.remote(begun, gate)
    begun.wait()
    with pytest.raises(ValueError, match="force"):
        shoal.cancel(ref, force=True)
    gate.open()
    assert get(ref) == "held"


# --- generators --------------------------------------------------------------------------------------------------------------


def test_a_stream_ends_when_it_is_cancelled(
    gates: Callable[[str], Gate], traces: Callable[[str], Trace]
) -> None:
    gate, trace = gates("never"), traces("trace")

    @shoal.remote
    def stream() -> Iterator[int]:
        yield 1
        try:
            gate.wait(60)
        except KeyboardInterrupt:
            trace.add("interrupted")
            raise
        yield 2

    items = stream.remote()
    assert get(next(items)) == 1
    shoal.cancel(items)
    with pytest.raises(TaskCancelledError):
        get(next(items))
    wait_until(lambda: trace.words() == ["interrupted"], "the generator is interrupted")


# --- what can be cancelled -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("thing", [1, "ref", None, []], ids=repr)
def test_only_references_can_be_cancelled(thing: Any) -> None:
    with pytest.raises(TypeError):
        shoal.cancel(thing)


def test_a_borrowed_reference_can_be_cancelled(
    gates: Callable[[str], Gate], traces: Callable[[str], Trace]
) -> None:
    begun, trace = gates("begun"), traces("trace")
    never = gates("never")

    @shoal.remote(num_cpus=0)
    def cancel(boxed: list[Any]) -> None:
        shoal.cancel(boxed[0])

    ref = work.remote(begun, never, trace)
    begun.wait()
    get(cancel.remote([ref]))
    with pytest.raises(TaskCancelledError):
        get(ref)
