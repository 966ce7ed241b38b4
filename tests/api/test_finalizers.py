"""Finalizers and signal handlers of the user's that Python runs in the middle of shoal's own work.

The garbage collector may run in any thread at any allocation, also while the runtime's tables are half changed and locked.
What user code asks of shoal there is done a little later; where it would have to wait, it is told that it cannot.
"""

from __future__ import annotations

import gc
import itertools
import signal
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import shoal
from shoal.exceptions import ActorDiedError, ShoalError, TaskCancelledError
from shoal.runtime import current_process
from shoal.wire.framing import FrameDecoder
from tests.api.gates import Trace, wait_until

pytestmark = pytest.mark.usefixtures("shared_cluster")


def get(ref: Any) -> Any:
    return shoal.get(ref, timeout=30)


@shoal.remote
def echo(value: Any, *_: Any) -> Any:
    return value


@shoal.remote
def numbers() -> Iterator[int]:
    yield from (1, 2)


@shoal.remote(num_cpus=0)
class Counter:
    def __init__(self) -> None:
        self.count = 0

    def add(self, number: int = 1) -> int:
        self.count += number
        return self.count


def is_dead(counter: Any) -> bool:
    try:
        get(counter.add.remote(0))
    except ActorDiedError:
        return True
    return False


@pytest.fixture
def lock() -> Any:
    """What this thread holds while shoal is at work in it."""
    return current_process.require().lock


def test_a_task_begins_later(lock: Any) -> None:
    argument = shoal.put(2)
    with lock:
        plain = echo.remote(1)
        with_reference = echo.remote(argument, [plain])
        first, second = echo.options(num_returns=2).remote((3, 4))
        del argument
    assert get([plain, with_reference, first, second]) == [1, 2, 3, 4]


def test_a_call_is_made_later(lock: Any) -> None:
    known, unknown = Counter.remote(), Counter.remote()
    assert get(known.add.remote()) == 1
    with lock:
        refs = [known.add.remote(), unknown.add.remote(), unknown.add.options(name="x").remote()]
        del unknown
    assert get(refs) == [2, 1, 2]


def test_an_actor_is_killed_and_a_task_cancelled_later(lock: Any) -> None:
    counter = Counter.remote()
    get(counter.add.remote())
    waiting = echo.options(resources={"nothing of it": 1}).remote(1)
    with lock:
        shoal.kill(counter)
        shoal.cancel(waiting)
    with pytest.raises(TaskCancelledError):
        get(waiting)
    wait_until(lambda: is_dead(counter), "the actor is killed")


def test_what_must_wait_is_refused(lock: Any) -> None:
    ref = echo.remote(1)
    counter = Counter.remote()
    get(ref)
    later = echo.options(resources={"nothing of it": 1}).remote(2)
    items = numbers.remote()
    for wait in (
        lambda: shoal.get(later),
        lambda: shoal.wait([later]),
        lambda: next(items),
        later.future,
        Counter.remote,
        lambda: shoal.get_actor("nobody"),
        shoal.nodes,
        shoal.shutdown,
    ):
        with lock, pytest.raises(ShoalError, match="finalizer"):
            wait()
    shoal.cancel(later)
    assert get(counter.add.remote()) == 1
    assert [get(item) for item in items] == [1, 2]


@pytest.fixture
def frequent_collections() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(7, 3, 3)
    yield
    gc.set_threshold(*before)


class Owner:
    """An object in a cycle, which tidies up when the collector finds it."""

    made = 0
    ended = 0

    def __init__(self, counter: Any, victim: Any) -> None:
        Owner.made += 1
        self.counter = counter
        self.victim = victim
        self.me = self

    def __del__(self) -> None:
        Owner.ended += 1
        self.counter.add.remote()
        if self.victim is not None:
            shoal.kill(self.victim)


@pytest.mark.usefixtures("frequent_collections")
def test_finalizers_that_use_shoal_run_wherever_the_collector_does() -> None:
    Owner.made = Owner.ended = 0
    counter = Counter.remote()
    victims = []
    for round_ in range(150):
        victim = Counter.remote() if round_ % 15 == 0 else None
        if victim is not None:
            victims.append(victim)
        refs = []
        for n in range(20):
            if n % 5 == 0:
                Owner(counter, victim if n == 0 else None)
            refs.append(echo.remote(n, shoal.put(n)))
        assert get(refs) == list(range(20))
    gc.collect()
    assert Owner.ended == Owner.made == 600
    wait_until(lambda: get(counter.add.remote(0)) == 600, "every finalizer's call has been made")
    wait_until(lambda: all(map(is_dead, victims)), "every finalizer has killed its actor")


def test_a_signal_handler_may_submit_at_any_moment() -> None:
    refs: list[Any] = []
    # A handler may be interrupted by the next one.
    numbers = itertools.count()
    previous = signal.signal(signal.SIGALRM, lambda *_: refs.append(echo.remote(next(numbers))))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        for _ in range(100):
            assert get([echo.remote(n) for n in range(20)]) == list(range(20))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert len(refs) > 10
    assert sorted(get(refs)) == list(range(len(refs)))


def test_what_is_cancelled_before_it_begins_does_not_begin(
    lock: Any, traces: Callable[[str], Trace]
) -> None:
    trace = traces("ran")
    counter = Counter.remote()
    assert get(counter.add.remote()) == 1

    @shoal.remote
    def run() -> None:
        trace.add("ran")

    get(run.remote())
    reactor = current_process.require().reactor
    # Nobody leads meanwhile, as while user code keeps the leader busy.
    with busy(reactor):
        with lock:
            task, call = run.remote(), counter.add.remote()
        shoal.cancel(task)
        shoal.cancel(call)
        for ref in (task, call):
            with pytest.raises(TaskCancelledError):
                get(ref)
    assert get(counter.add.remote()) == 2
    get(run.remote())
    assert trace.words() == ["ran", "ran"]
    with lock:
        assert not current_process.require().actors.have_calls()


@contextmanager
def busy(reactor: Any) -> Iterator[None]:
    # A service thread that leads steps down for one that pumps.
    wait_until(lambda: reactor.pump() or reactor._leadership.acquire(False), "nobody leads")
    try:
        yield
    finally:
        reactor._leadership.release()
        reactor.want_service()


@pytest.mark.usefixtures("frequent_collections")
def test_finalizers_that_store_large_values() -> None:
    """Where the store itself is interrupted they are refused; elsewhere they store."""
    large = b"x" * 300_000
    stored: deque[Any] = deque(maxlen=3)
    outcomes = {"stored": 0, "refused": 0}

    class Keeper:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            try:
                stored.append(shoal.put(large))
                assert len(get(stored[0])) == len(large)
            except ShoalError as error:
                assert "finalizer" in str(error)  # noqa: PT017 - a matter of where the collector runs
                outcomes["refused"] += 1
            else:
                outcomes["stored"] += 1

    refs: deque[Any] = deque(maxlen=5)
    for _ in range(2_000):
        Keeper()
        refs.append(shoal.put(large))
    gc.collect()
    assert sum(outcomes.values()) == 2_000
    assert all(get(ref) == large for ref in refs)
    stored.clear()
    refs.clear()
    arena = current_process.require().store.arena
    get(shoal.put(large))
    wait_until(lambda: arena.stats().live_blocks == 0, "everything stored is freed")


def test_a_finalizer_in_the_middle_of_handling_messages_may_not_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    later = echo.options(resources={"nothing of it": 1}).remote(1)
    refused: list[str] = []
    feed = FrameDecoder.feed

    def interrupted(decoder: FrameDecoder, data: Any) -> Any:
        # What was read is not decoded yet: another round would read over it.
        with pytest.raises(ShoalError) as caught:
            shoal.get(later, timeout=1)
        refused.append(str(caught.value))
        return feed(decoder, data)

    monkeypatch.setattr(FrameDecoder, "feed", interrupted)
    assert get([echo.remote(n) for n in range(20)]) == list(range(20))
    monkeypatch.undo()
    shoal.cancel(later)
    assert refused
    assert all("finalizer" in text for text in refused)
