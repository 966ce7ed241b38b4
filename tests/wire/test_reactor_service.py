"""What the reactor does while no thread of the program waits: the service thread, and an asyncio loop as its host."""

from __future__ import annotations

import contextlib
import select
import threading
from _thread import get_ident
from collections.abc import Iterator

import pytest

from shoal.wire.reactor import Reactor
from tests.wire.reactors import PATIENCE_S, Bench, Outlet, Source, Worker, until

# --- the service thread --------------------------------------------------------------------------------------------------


def test_the_service_thread_serves_while_nobody_waits(served: Bench) -> None:
    source = served.source()
    source.fire()
    until(lambda: source.waiter.done)
    assert source.handled_by == [served.reactor._service.ident]


def test_the_service_thread_steps_down_for_a_thread_that_waits(served: Bench) -> None:
    until(lambda: served.reactor.service_leads)
    source, leader = served.leader()
    assert not served.reactor.service_leads
    source.fire()
    assert leader.ended() is True
    assert source.handled_by == [leader.ident]


def test_the_service_thread_steps_down_for_a_thread_that_pumps(served: Bench) -> None:
    until(lambda: served.reactor.service_leads)

    def stepped_down() -> bool:
        # Each time anew: it comes back when nobody has pumped for a while, perhaps before this thread looks.
        served.reactor.pump()
        return not served.reactor.service_leads

    until(stepped_down)


def test_the_service_thread_takes_over_from_a_leader_that_has_gone(served: Bench) -> None:
    for _ in range(3):
        source, leader = served.leader()
        # Long enough for the service thread to doze.
        until(lambda: served.reactor._dozing)
        source.fire()
        assert leader.ended() is True
        after = served.source()
        after.fire()
        until(lambda after=after: after.waiter.done)  # type: ignore[misc]  # the loop's own
        assert after.handled_by == [served.reactor._service.ident]


def test_a_defect_in_a_handler_does_not_end_the_service_thread(
    served: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    source = served.source()

    def fail() -> None:
        source.on_event = None
        raise ValueError("a defect")

    source.on_event = fail
    source.fire()
    until(lambda: source.handled_by)
    source.fire()
    until(lambda: source.waiter.done)
    assert "a message could not be handled" in caplog.text


def test_a_defect_in_what_it_looks_after_does_not_end_the_service_thread(
    served: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        served.reactor.watch = None
        raise ValueError("a defect")

    def looked_in() -> bool:
        # A thread that comes to the sockets by itself makes the service thread step down and look in.
        served.reactor.pump()
        return served.reactor.watch is None

    served.reactor.watch = fail
    until(looked_in)
    source = served.source()
    source.fire()
    until(lambda: source.waiter.done)
    assert "looking after the process's messages failed" in caplog.text


def test_timers_fire_while_nobody_waits(served: Bench) -> None:
    fired: list[int] = []
    for in_service in (False, True):
        if in_service:
            until(lambda: served.reactor.service_leads)
        with served.reactor.lock:
            served.reactor.call_later(0.01, lambda: fired.append(get_ident()))
        until(lambda: fired)
        assert fired.pop() == served.reactor._service.ident


def test_want_service_brings_the_service_thread_at_once() -> None:
    # Its own look would come after an hour.
    with contextlib.closing(Bench(watch_us=3_600_000_000)) as bench:
        bench.reactor.start()
        until(lambda: bench.reactor._service_ident)
        source = bench.source()
        source.fire()
        bench.reactor.want_service()
        until(lambda: source.waiter.done)


@pytest.mark.parametrize("state", ["looks in", "leads", "dozes"])
def test_what_is_dirty_leaves_without_anybody_waiting(served: Bench, state: str) -> None:
    outlet = Outlet(served.reactor)
    source: Source | None = None
    leader: Worker | None = None
    if state == "leads":
        until(lambda: served.reactor.service_leads)
    elif state == "dozes":
        source, leader = served.leader()
        until(lambda: served.reactor._dozing)
    outlet.touch()
    if state != "looks in":
        served.reactor.nudge()
    until(lambda: outlet.flushed_by)
    assert outlet.flushed_by == [served.reactor._service.ident]
    if source is not None and leader is not None:
        source.fire()
        assert leader.ended() is True


def test_a_leader_flushes_after_each_round(bench: Bench) -> None:
    source, outlet = bench.source(), Outlet(bench.reactor)
    source.on_event = outlet.touch
    source.fire()
    assert bench.reactor.wait(source.waiter)
    assert outlet.flushed_by == [get_ident()]


def test_close_ends_the_service_thread_in_every_state() -> None:
    for state in ("fresh", "leads", "dozes", "hosted"):
        bench = Bench()
        source, leader = bench.leader() if state == "dozes" else (None, None)
        bench.reactor.hosted = state == "hosted"
        bench.reactor.start()
        if state == "leads":
            until(lambda bench=bench: bench.reactor.service_leads)  # type: ignore[misc]  # the loop's own
        if source is not None and leader is not None:
            until(lambda bench=bench: bench.reactor._dozing)  # type: ignore[misc]  # the loop's own
            source.fire()
            assert leader.ended() is True
        bench.close()
        assert not bench.reactor._service.is_alive()


# --- hosted by an asyncio loop -------------------------------------------------------------------------------------------


class Loop:
    """Polls as an asyncio loop does: whenever the reactor's descriptor is readable, and when its timers are due."""

    def __init__(self, reactor: Reactor) -> None:
        self.reactor = reactor
        self.stuck = threading.Event()
        self.free = threading.Event()
        self.ended = False
        reactor.host()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while not self.ended:
            if self.stuck.is_set():
                self.free.wait(PATIENCE_S)
            due_s = self.reactor.until_next_timer()
            readable, _, _ = select.select(
                [self.reactor.fileno()], [], [], 0.05 if due_s is None else due_s
            )
            if readable or due_s is not None:
                self.reactor.pump()

    def close(self) -> None:
        self.ended = True
        self.free.set()
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()


@pytest.fixture
def hosted(served: Bench) -> Iterator[tuple[Bench, Loop]]:
    with contextlib.closing(Loop(served.reactor)) as loop:
        yield served, loop


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that is slow, on a machine under load, is not taken for a stuck one."""
    monkeypatch.setattr("shoal.wire.reactor._HOST_PATIENCE_S", float(PATIENCE_S))


@pytest.mark.usefixtures("patience")
def test_a_loop_that_hosts_the_reactor_handles_its_events(hosted: tuple[Bench, Loop]) -> None:
    bench, loop = hosted
    bench.reactor.want_service()
    until(lambda: not bench.reactor.service_leads)
    source = bench.source()
    source.fire()
    until(lambda: source.waiter.done)
    assert source.handled_by == [loop.thread.ident]


def test_the_service_thread_steps_in_while_the_loop_is_stuck(hosted: tuple[Bench, Loop]) -> None:
    bench, loop = hosted
    loop.stuck.set()
    source, outlet = bench.source(), Outlet(bench.reactor)
    source.fire()
    until(lambda: source.waiter.done)
    assert source.handled_by[-1] in {bench.reactor._service.ident, loop.thread.ident}
    outlet.touch()
    bench.reactor.nudge()
    until(lambda: outlet.flushed_by)


def test_timers_of_other_threads_reach_the_loop(hosted: tuple[Bench, Loop]) -> None:
    bench, loop = hosted
    fired: list[int] = []
    with bench.reactor.lock:
        bench.reactor.call_later(0.01, lambda: fired.append(get_ident()))
    until(lambda: fired)
    assert fired[0] in {loop.thread.ident, bench.reactor._service.ident}


def test_threads_may_wait_beside_the_loop(hosted: tuple[Bench, Loop]) -> None:
    bench, _ = hosted
    for _ in range(20):
        source = bench.source()
        worker = Worker(bench.reactor, source.waiter)
        source.fire()
        assert worker.ended() is True


# --- what a garbage collector leaves -------------------------------------------------------------------------------------


def test_a_backlog_keeps_the_leader_from_sleeping(bench: Bench) -> None:
    backlog: list[int] = [1]
    source = bench.source()

    def attend() -> None:
        if backlog:
            backlog.clear()
            source.fire()

    bench.reactor.backlog = backlog
    bench.reactor.after_poll = attend
    assert bench.reactor.wait(source.waiter, PATIENCE_S)


def test_a_backlog_that_grows_rouses_a_leader_that_sleeps(bench: Bench) -> None:
    backlog: list[int] = []
    source = bench.source()

    def attend() -> None:
        if backlog:
            backlog.clear()
            source.fire()

    bench.reactor.backlog = backlog
    bench.reactor.after_poll = attend
    worker = Worker(bench.reactor, source.waiter)
    until(lambda: bench.reactor.asleep)
    # With the lock held by somebody else, as when an object dies at an inconvenient moment.
    with bench.reactor.lock:
        backlog.append(1)
        bench.reactor.rouse()
    assert worker.ended() is True
