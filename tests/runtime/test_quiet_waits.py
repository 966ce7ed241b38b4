"""Whether a worker in which somebody waits quietly lends its CPU: by what its process uses between looks, without one."""

from __future__ import annotations

import threading
from collections.abc import Callable

from shoal.worker.quiet_waits import QuietWaits

LOOK_S = 0.05


class World:
    """A process with a clock: what it uses is set, what it lends is noted."""

    def __init__(self, look_s: float = LOOK_S) -> None:
        self.now = 0.0
        self.used = 0.0
        self.has_cpu = True
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.told: list[str] = []
        self.looks = 0
        self.waits = QuietWaits(
            threading.RLock(),  # type: ignore[arg-type]  # has all that is used of it
            look_s,
            self._call_later,
            is_lender=lambda: self.has_cpu,
            lend=lambda: self.told.append("lent"),
            take_back=lambda: self.told.append("taken back"),
            clock=lambda: self.now,
            used=lambda: self.used,
        )

    def _call_later(self, delay_s: float, timer: Callable[[], None]) -> None:
        self.timers.append((self.now + delay_s, timer))

    def go_on(self, seconds: float, busy: float = 0.0) -> list[str]:
        """Time passes, in which the process uses this part of a CPU; what it did about its own."""
        end = self.now + seconds
        while due := [timer for timer in self.timers if timer[0] <= end]:
            first = min(due, key=lambda timer: timer[0])
            self.timers.remove(first)
            self._pass_to(first[0], busy)
            self.looks += 1
            first[1]()
        self._pass_to(end, busy)
        told, self.told = self.told, []
        return told

    def _pass_to(self, when: float, busy: float) -> None:
        self.used += (when - self.now) * busy
        self.now = when


def test_who_waits_and_does_nothing_lends_until_it_has_what_it_waits_for() -> None:
    world = World()
    wait = world.waits.begin()
    assert world.go_on(LOOK_S * 0.9) == []
    assert world.go_on(LOOK_S * 0.2) == ["lent"]
    assert world.go_on(60) == []
    world.waits.end(wait)
    assert world.told == ["taken back"]


def test_who_computes_meanwhile_keeps_it_until_it_has_done() -> None:
    world = World()
    wait = world.waits.begin()
    assert world.go_on(10, busy=1.0) == []
    assert world.go_on(3 * LOOK_S) == ["lent"]
    world.waits.end(wait)


def test_who_asks_now_and_then_whether_it_is_there_waits() -> None:
    world = World()
    world.waits.begin()
    assert world.go_on(1, busy=0.05) == ["lent"]


def test_short_waits_lend_nothing() -> None:
    world = World()
    for _ in range(200):
        wait = world.waits.begin()
        assert world.go_on(LOOK_S / 2) == []
        world.waits.end(wait)
        assert world.go_on(LOOK_S / 8) == []


def test_who_goes_on_because_one_of_several_is_there_has_it_again_soon() -> None:
    world = World()
    first, second = world.waits.begin(), world.waits.begin()
    # For so long that looks have become rare.
    assert world.go_on(60) == ["lent"]
    world.waits.end(first)
    assert world.go_on(1.2 * LOOK_S, busy=1.0) == ["taken back"]
    assert world.go_on(3 * LOOK_S) == ["lent"]
    world.waits.end(second)
    assert world.told == ["taken back"]


def test_who_has_several_and_does_nothing_about_the_first_goes_on_lending() -> None:
    world = World()
    waits = [world.waits.begin() for _ in range(10)]
    assert world.go_on(1) == ["lent"]
    for wait in waits[1:]:
        world.waits.end(wait)
        assert world.go_on(LOOK_S / 3) == []
    world.waits.end(waits[0])
    assert world.told == ["taken back"]


def test_the_end_of_a_task_is_the_end_of_its_waits() -> None:
    world = World()
    wait = world.waits.begin()
    assert world.go_on(1) == ["lent"]
    world.waits.forget()
    assert world.told == ["taken back"]
    world.told.clear()
    world.waits.end(wait)
    assert world.go_on(10) == []


def test_who_has_no_cpu_is_not_looked_at() -> None:
    world = World()
    world.has_cpu = False
    world.waits.begin()
    assert world.go_on(10) == []
    assert world.looks == 0


def test_it_can_be_turned_off() -> None:
    world = World(look_s=0)
    world.waits.begin()
    assert world.go_on(10) == []
    assert world.looks == 0


def test_a_long_wait_costs_a_look_a_second() -> None:
    world = World()
    world.waits.begin()
    assert world.go_on(3600) == ["lent"]
    assert world.looks < 3700
    # Nor do timers become more when waits come and go.
    for _ in range(1000):
        world.waits.end(world.waits.begin())
    assert len(world.timers) <= 2
