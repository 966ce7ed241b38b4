"""Threads that wait at the reactor: who leads, who wakes, timers and interrupts."""

from __future__ import annotations

import math
import random
import time
from _thread import get_ident
from collections.abc import Callable

import pytest

from shoal.wire.reactor import Waiter
from tests.wire.reactors import PATIENCE_S, Bench, Interruption, Worker, until

# --- one thread ----------------------------------------------------------------------------------------------------------


def test_a_thread_that_waits_alone_handles_its_events_itself(bench: Bench) -> None:
    source = bench.source()
    source.fire()
    assert bench.reactor.wait(source.waiter)
    assert source.handled_by == [get_ident()]
    assert bench.reactor._leader == 0


def test_what_has_happened_is_not_waited_for(bench: Bench) -> None:
    waiter = Waiter()
    waiter.finish()
    waiter.finish()
    assert bench.reactor.wait(waiter, 0)


@pytest.mark.parametrize("timeout_s", [0, 0.01])
def test_a_wait_ends_when_its_time_is_up(bench: Bench, timeout_s: float) -> None:
    assert not bench.reactor.wait(Waiter(), timeout_s)


def test_a_wait_of_no_time_handles_what_is_there(bench: Bench) -> None:
    source = bench.source()
    source.fire()
    assert bench.reactor.wait(source.waiter, 0)


@pytest.mark.parametrize("timeout_s", [1e7, 1e12, math.inf])
def test_timeouts_may_be_longer_than_any_clock(bench: Bench, timeout_s: float) -> None:
    first, leader = bench.leader()
    second, follower = bench.follower(timeout_s)
    first.fire()
    assert leader.ended() is True
    until(follower.leads)
    second.fire()
    assert follower.ended() is True
    first.waiter = Waiter()
    first.fire()
    assert bench.reactor.wait(first.waiter, timeout_s)


def test_pump_handles_what_is_there_and_returns(bench: Bench) -> None:
    one, two = bench.source(), bench.source()
    bench.reactor.pump()
    one.fire()
    two.fire()
    bench.reactor.pump()
    assert one.handled_by == two.handled_by == [get_ident()]


def test_a_callback_may_wait_in_turn(bench: Bench) -> None:
    # It leads already, and goes on leading.
    outer, inner = bench.source(), bench.source()

    def callback() -> None:
        bench.reactor.after_poll = None
        inner.fire()
        assert bench.reactor.wait(inner.waiter)

    bench.reactor.after_poll = callback
    outer.fire()
    assert bench.reactor.wait(outer.waiter)
    assert inner.handled_by == [get_ident()]


def test_a_defect_in_a_handler_is_logged_and_never_reaches_who_waits(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    source, other = bench.source(), bench.source()

    def fail() -> None:
        other.fire()
        raise ValueError("a defect")

    source.on_event = fail
    source.fire()
    assert bench.reactor.wait(other.waiter)
    assert "a defect" in caplog.text
    assert not source.waiter.done


def test_a_defect_in_what_follows_a_round_is_logged(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    source = bench.source()

    def fail() -> None:
        raise ValueError("a defect")

    bench.reactor.after_poll = fail
    source.fire()
    assert bench.reactor.wait(source.waiter)
    assert "a defect" in caplog.text


def test_what_interrupts_a_handler_reaches_who_waits_and_leaves_the_reactor_in_order(
    bench: Bench,
) -> None:
    source = bench.source()

    def interrupt() -> None:
        raise KeyboardInterrupt

    source.on_event = interrupt
    source.fire()
    with pytest.raises(KeyboardInterrupt):
        bench.reactor.wait(source.waiter)
    source.on_event = None
    source.fire()
    assert bench.reactor.wait(source.waiter)


def test_a_handler_may_unregister_one_whose_event_is_in_the_same_round(bench: Bench) -> None:
    one, two = bench.source(), bench.source()
    for source, other in ((one, two), (two, one)):
        source.on_event = lambda other=other: bench.reactor.unregister(other.fd)
        source.fire()
    bench.reactor.pump()
    assert len(one.handled_by) + len(two.handled_by) == 1


# --- leaders and followers -----------------------------------------------------------------------------------------------


def test_a_follower_wakes_when_the_leader_handles_what_it_waits_for(bench: Bench) -> None:
    first, leader = bench.leader()
    second, follower = bench.follower()
    second.fire()
    assert follower.ended() is True
    assert second.handled_by == [leader.ident]
    assert leader.leads()
    first.fire()
    assert leader.ended() is True


def test_leadership_passes_to_a_follower_when_the_leader_is_done(bench: Bench) -> None:
    first, leader = bench.leader()
    second, follower = bench.follower()
    first.fire()
    assert leader.ended() is True
    second.fire()
    assert follower.ended() is True
    assert second.handled_by == [follower.ident]


def test_leadership_passes_through_many_hands(bench: Bench) -> None:
    waiting = [bench.leader(), *(bench.follower() for _ in range(10))]
    for source, worker in random.Random(1).sample(waiting, len(waiting)):
        source.fire()
        assert worker.ended() is True
    assert bench.reactor._followers == {}
    assert bench.reactor._leader == 0


def test_one_event_may_free_everybody(bench: Bench) -> None:
    source, leader = bench.leader()
    followers = [Worker(bench.reactor, Waiter()) for _ in range(5)]
    until(lambda: all(follower.follows() for follower in followers))

    def finish_all() -> None:
        with bench.reactor.lock:
            for follower in followers:
                follower.waiter.finish()

    source.on_event = finish_all
    source.fire()
    assert [worker.ended() for worker in (leader, *followers)] == [True] * 6


def test_a_follower_whose_time_is_up_leaves_the_others_alone(bench: Bench) -> None:
    first, leader = bench.leader()
    second, patient = bench.follower()
    impatient = Worker(bench.reactor, Waiter(), 0.01)
    assert impatient.ended() is False
    first.fire()
    assert leader.ended() is True
    second.fire()
    assert patient.ended() is True


def test_a_thread_that_is_interrupted_while_it_leads_hands_leadership_on(bench: Bench) -> None:
    first, leader = bench.leader()
    second, follower = bench.follower()

    def fail() -> None:
        raise KeyboardInterrupt

    first.on_event = fail
    first.fire()
    assert isinstance(leader.ended(), KeyboardInterrupt)
    second.fire()
    assert follower.ended() is True


def test_what_a_thread_outside_finishes_wakes_leader_and_follower(bench: Bench) -> None:
    _, leader = bench.leader()
    _, follower = bench.follower()
    with bench.reactor.lock:
        follower.waiter.finish()
        leader.waiter.finish()
    bench.reactor.wake()
    assert follower.ended() is True
    assert leader.ended() is True


# --- timers --------------------------------------------------------------------------------------------------------------


def test_timers_fire_in_their_order_and_without_the_lock(bench: Bench) -> None:
    fired: list[str] = []
    last = Waiter()

    def fire(name: str) -> Callable[[], None]:
        def callback() -> None:
            assert not bench.reactor.lock._is_owned()
            fired.append(name)
            if len(fired) == 4:
                with bench.reactor.lock:
                    last.finish()

        return callback

    with bench.reactor.lock:
        now = time.monotonic()
        bench.reactor.call_at(now + 0.02, fire("third"))
        bench.reactor.call_later(0.05, fire("fourth"))
        bench.reactor.call_at(now - 1, fire("first"))
        bench.reactor.call_at(now - 1, fire("second"))
        assert bench.reactor.until_next_timer() == 0
    assert bench.reactor.wait(last)
    assert fired == ["first", "second", "third", "fourth"]
    assert bench.reactor.until_next_timer() is None


def test_a_timer_of_another_thread_reaches_a_leader_that_sleeps(bench: Bench) -> None:
    source, leader = bench.leader()
    with bench.reactor.lock:
        bench.reactor.call_later(0, source.fire)
    assert leader.ended() is True


def test_a_timer_does_not_end_the_wait_that_it_interrupts(bench: Bench) -> None:
    fired: list[int] = []
    with bench.reactor.lock:
        bench.reactor.call_later(0.005, lambda: fired.append(1))
    assert not bench.reactor.wait(Waiter(), 0.03)
    assert fired == [1]


def test_a_timer_that_fails_does_not_take_the_others_with_it(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    fired: list[int] = []

    def fail() -> None:
        raise ValueError("a defect")

    with bench.reactor.lock:
        for callback in (fail, lambda: fired.append(1), lambda: fired.append(2)):
            bench.reactor.call_later(0, callback)
    assert not bench.reactor.wait(Waiter(), 0)
    assert fired == [1, 2]
    assert "a defect" in caplog.text


# --- interrupts ----------------------------------------------------------------------------------------------------------


def test_an_interrupt_reaches_the_leader_and_leadership_passes(bench: Bench) -> None:
    interruption = Interruption(bench.reactor)
    _, leader = bench.leader()
    second, follower = bench.follower()
    interruption.wanted = leader.ident or 0
    bench.reactor.interrupt()
    assert isinstance(leader.ended(), KeyboardInterrupt)
    second.fire()
    assert follower.ended() is True


def test_an_interrupt_reaches_a_follower_and_the_others_go_on(bench: Bench) -> None:
    interruption = Interruption(bench.reactor)
    first, leader = bench.leader()
    second, other = bench.follower()
    _, follower = bench.follower()
    interruption.wanted = follower.ident or 0
    bench.reactor.interrupt()
    assert isinstance(follower.ended(), KeyboardInterrupt)
    assert leader.is_alive()
    assert other.is_alive()
    second.fire()
    first.fire()
    assert other.ended() is True
    assert leader.ended() is True


def test_an_interrupt_that_came_before_the_wait_is_noticed_at_once(bench: Bench) -> None:
    # The wake-up may have been taken by whoever led then.
    interruption = Interruption(bench.reactor)
    interruption.wanted = get_ident()
    with pytest.raises(KeyboardInterrupt):
        bench.reactor.wait(Waiter(), PATIENCE_S)
    _, leader = bench.leader()
    interruption.wanted = get_ident()
    with pytest.raises(KeyboardInterrupt):
        bench.reactor.wait(Waiter(), PATIENCE_S)
    with bench.reactor.lock:
        leader.waiter.finish()
    bench.reactor.wake()
    assert leader.ended() is True


def test_a_result_that_is_there_wins_over_an_interrupt(bench: Bench) -> None:
    interruption = Interruption(bench.reactor)
    source = bench.source()

    def interrupt() -> None:
        interruption.wanted = get_ident()

    source.on_event = interrupt
    source.fire()
    assert bench.reactor.wait(source.waiter, PATIENCE_S)
