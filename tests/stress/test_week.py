"""A week in seconds: the load of `make week`, so little of it that it fits into every run of the tests.

What it can see is what grows with every task, object or kill, by a kilobyte or more. The tables that have bounds fill meanwhile, and are
far from full; so the limits below leave room for them. `docs/endurance.md` has the long run.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator

import pytest

from tests.stress.week.cluster import Outcome, Plan, run
from tests.stress.week.results import figures

pytestmark = [pytest.mark.stress, pytest.mark.timeout(300)]

MB = 1_000_000
PLAN = Plan(
    tasks=6_000,
    objects=1_200,
    kills=12,
    idle_s=2.0,
    seed=20,
    nodes=2,
    drivers=2,
    store_bytes=60 * MB,
    budget_bytes=80 * MB,
    every_s=0.25,
    most_s=240.0,
    settings={"store_idle_s": 1.0},
)
LASTING = ("driver", "daemon", "control store")
GROWTH = 4 * MB
"""Of a process that lives all the time, in the second half of the load: two kilobytes for each operation of that half."""
IDLE_GROWTH = 128 * 1024


def medians(outcome: Outcome) -> Iterator[tuple[str, float, float]]:
    """Of each process that lives all the time: its kind, and its memory in the second and in the last quarter of the samples."""
    assert outcome.sampler is not None
    sizes: dict[str, list[int]] = defaultdict(list)
    for row in outcome.sampler.rows:
        if row.phase == "load" and row.kind.startswith(LASTING):
            sizes[row.kind].append(row.usage.anonymous)
    for kind, found in sizes.items():
        quarter = len(found) // 4
        assert quarter, f"{kind} has {len(found)} samples"
        yield (
            kind,
            statistics.median(found[quarter : 2 * quarter]),
            statistics.median(found[-quarter:]),
        )


def test_memory_stays_flat_and_nothing_is_left() -> None:
    outcome = run(PLAN, print)
    done = outcome.done
    assert done["tasks"] >= PLAN.tasks
    assert done["objects"] >= PLAN.objects
    assert done["kills"] >= PLAN.kills - PLAN.drivers
    found = figures(outcome)
    assert found.peak_disk > 0, "the store was so small that objects went to disk"
    assert outcome.left == []
    assert outcome.leaks == []
    grown = {kind: late - early for kind, early, late in medians(outcome)}
    assert len(grown) == 1 + PLAN.nodes + PLAN.drivers
    assert all(size < GROWTH for size in grown.values()), grown
    idle = {f"{one.kind} {one.pid}": one.grown_idle for one in found.processes}
    assert all(size < IDLE_GROWTH for size in idle.values()), found.table()
