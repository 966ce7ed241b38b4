"""Many threads at one reactor for a second or two: a thread that is forgotten sleeps for ever, and its test fails."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from _thread import get_ident

import pytest

from shoal.wire.reactor import Waiter
from tests.wire.reactors import Bench, Interruption, until, waited_in_time


def test_a_wake_up_is_never_lost(bench: Bench) -> None:
    # Two threads wake a leader that does nothing but sleep: each must see it turn after each of its calls.
    _, leader = bench.leader()
    stop = time.monotonic() + 1.0

    def wake() -> None:
        while time.monotonic() < stop:
            turns = bench.reactor._turns
            bench.reactor.wake()
            until(lambda turns=turns: bench.reactor._turns > turns)  # type: ignore[misc]  # the loop's own

    threads = [threading.Thread(target=wake) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with bench.reactor.lock:
        leader.waiter.finish()
    bench.reactor.wake()
    assert leader.ended() is True


@pytest.mark.parametrize("with_service", [False, True], ids=["alone", "with-service"])
def test_many_threads_wait_and_finish_and_none_is_forgotten(
    bench: Bench, with_service: bool
) -> None:
    """Guarantees 1 and 2: one polls, and if a thread waits, some thread polls. Whoever is forgotten hangs here."""
    reactor = bench.reactor
    if with_service:
        # It would also come to the help of whoever was forgotten; hence the round without it.
        reactor.start()
    waiters = 6
    stop = time.monotonic() + 1.5
    polling = 0
    rounds = [0] * waiters
    problems: list[str] = []

    def mind() -> None:
        nonlocal polling
        polling += 1
        if polling != 1:
            problems.append(f"{polling} threads poll")
        polling -= 1

    reactor.after_poll = mind
    interruption = Interruption(reactor)

    def wait(waiter: Waiter, timeout_s: float) -> None:
        with contextlib.suppress(KeyboardInterrupt):
            reactor.wait(waiter, timeout_s)

    def finished(waiter: Waiter) -> bool:
        while True:
            try:
                return waited_in_time(reactor, waiter)
            except KeyboardInterrupt:
                continue

    def run(number: int) -> None:
        rng = random.Random(number)
        source = bench.sources[number]
        while time.monotonic() < stop and not problems:
            source.waiter = Waiter()
            source.fire()
            match rng.randrange(8):
                case 0:
                    # User code, during which the service thread may take over.
                    time.sleep(rng.choice([0.0005, 0.005]))
                case 1:
                    reactor.pump()
                case 2:
                    wait(source.waiter, rng.choice([0, 0.0001, 0.002]))
                case 3:
                    interruption.wanted = get_ident()
                    reactor.interrupt()
                case 4:
                    with reactor.lock:
                        reactor.call_later(0.001, lambda: None)
            if not finished(source.waiter):
                problems.append(f"thread {number} waits for ever")
            rounds[number] += 1

    for _ in range(waiters):
        bench.source()
    threads = [threading.Thread(target=run, args=(number,)) for number in range(waiters)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert min(rounds) > 0
    assert reactor._followers == {}
    if with_service:
        last = bench.source()
        last.fire()
        until(lambda: last.waiter.done)


def test_threads_hand_work_to_one_another_and_none_is_forgotten(served: Bench) -> None:
    """As the calls of a program do: one finishes what another waits for, without any descriptor of its own."""
    reactor = served.reactor
    stop = time.monotonic() + 1.5
    ring: list[Waiter] = [Waiter() for _ in range(6)]
    problems: list[str] = []

    def run(number: int) -> None:
        last = False
        while not (last or problems):
            if not waited_in_time(reactor, ring[number]):
                problems.append(f"thread {number} waits for ever")
            # Seen before the turn is passed on: so whoever ends has passed it on, and all after it see the same.
            last = time.monotonic() > stop
            with reactor.lock:
                ring[number] = Waiter()
                following = ring[(number + 1) % len(ring)]
                following.finish()
            # Whoever leads may be the one who is done.
            reactor.wake()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(ring))]
    for thread in threads:
        thread.start()
    with reactor.lock:
        ring[0].finish()
    reactor.wake()
    for thread in threads:
        thread.join()
    assert problems == []


def test_a_service_thread_with_much_to_do_never_keeps_a_waiter_out(served: Bench) -> None:
    # Another process speaks all the time, while this one runs user code and waits now and then.
    reactor = served.reactor
    chatter = served.source()
    stop = time.monotonic() + 1.0

    def chat() -> None:
        while time.monotonic() < stop:
            chatter.fire()
            time.sleep(0.0002)

    thread = threading.Thread(target=chat)
    thread.start()
    source = served.source()
    while time.monotonic() < stop:
        time.sleep(0.003)
        source.waiter = Waiter()
        source.fire()
        assert waited_in_time(reactor, source.waiter)
    thread.join()
