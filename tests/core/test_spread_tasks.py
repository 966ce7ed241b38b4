"""The table of tasks, where the strategy SPREAD has a class take turns over its lanes."""

from __future__ import annotations

from shoal.core.lanes import Lane
from shoal.messages.node import Shape
from shoal.messages.placement import Spread
from tests.core.test_tasks import CPU, Bench


def spread(lanes: int, average_us: float = 0) -> tuple[Bench, list[Lane]]:
    """A class with the strategy SPREAD, and so many lanes for it, all idle."""
    bench = Bench(window_us=1000)
    bench.queue = bench.table.scheduling_class(Shape(CPU.resources, strategy=Spread()))
    bench.function(average_us=average_us)
    first = bench.submit("first")
    found = [bench.grant(req) for req in range(1, lanes + 1)]
    bench.reply(*first, took_us=0)
    bench.took_pushes()
    return bench, found


def test_tasks_that_are_spread_take_turns_even_if_one_lane_is_always_idle() -> None:
    bench, lanes = spread(3)
    for name in "abcdefgh":
        (task,) = bench.submit(name)
        if task.lane is lanes[0]:
            bench.reply(task, took_us=0)
    assert [lease_id for lease_id, _ in bench.took_pushes()] == [1, 2, 3, 1, 2, 3, 1, 2]


def test_tasks_that_are_spread_do_not_wait_for_a_lane_without_room() -> None:
    bench, lanes = spread(2, average_us=5000)
    bench.submit("a", "b", "c")
    assert bench.took_pushes() == [(1, "a"), (2, "b")]
    bench.reply(*lanes[0].inflight.values(), took_us=5000)
    assert bench.took_pushes() == [(1, "c")]


def test_a_lane_that_waited_need_not_catch_up_with_those_that_are_spread_over() -> None:
    bench, lanes = spread(2)
    bench.table.paused(lanes[1], retiring=False)
    bench.submit(*"abcdefgh")
    bench.table.resumed(lanes[1])
    bench.took_pushes()
    bench.submit(*"ijkl")
    assert sorted(lease_id for lease_id, _ in bench.took_pushes()) == [1, 1, 2, 2]
