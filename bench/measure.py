"""How a workload becomes samples.

A workload comes in one of five kinds:

    Rate      opened once, then a batch of known size is repeated: units per second
    Duration  opened once, then one action is timed, a stated number of times: seconds
    Laps      opened once, then an action that times a part of itself is repeated: its own figure
    Reading   a function that takes the open session and returns its own figure (memory)
    Fresh     a function that gets the peer *before* it is imported and times its start

Guarantees: a Rate is warmed up before the first sample and every sample is long enough for the
clock; what a workload does before its ``yield`` (making actors, objects, warming up) and after
it (killing them) is never timed.  Leaves to others: statistics over samples (``results.py``).
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.peers import Peer

Batch = Callable[[], float]
"""Does some work and returns how many units it did (tasks, calls, gigabytes)."""

Opened = Callable[[Any], Iterator[Batch]]
"""A workload: takes the module under test, sets up, yields its batch, cleans up."""

Census = Callable[[], Mapping[str, Any]]
"""Asks the launcher for the memory of every process of the session."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long to sample.  Raising any of these costs time and narrows the spread."""

    warmup_s: float = 1.0
    sample_s: float = 0.25
    duration_s: float = 2.0
    min_samples: int = 3
    settle_s: float = 3.0
    """How long a session is left alone before it counts as idle."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        return cls(**json.loads(text))


QUICK = Plan(warmup_s=0.3, sample_s=0.1, duration_s=0.5, min_samples=2, settle_s=1.0)


@dataclass(frozen=True, slots=True)
class Samples:
    """What one process measured for one row, in the unit of the row.

    ``beside`` holds figures that are shown with the row but decide nothing.
    """

    values: list[float]
    beside: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rate:
    """``patience`` stretches the plan for rows that take long to become steady."""

    open: Opened
    beside: Mapping[str, Opened] = field(default_factory=dict)
    patience: float = 1.0

    def sample(self, session: Any, plan: Plan) -> Samples:
        values = _rates(self.open, session, plan, self.patience)
        beside = {
            name: statistics.median(_rates(other, session, plan, self.patience))
            for name, other in self.beside.items()
        }
        return Samples(values, beside)


@dataclass(frozen=True, slots=True)
class Duration:
    open: Opened
    repeats: int = 1

    def sample(self, session: Any, plan: Plan) -> Samples:
        with _entered(self.open, session) as action:
            return Samples([_seconds(action) for _ in range(self.repeats)])


@dataclass(frozen=True, slots=True)
class Laps:
    """For what cannot be repeated without preparing each time: the action returns its figure, in the unit of the row."""

    open: Opened
    patience: float = 1.0

    def sample(self, session: Any, plan: Plan) -> Samples:
        with _entered(self.open, session) as lap:
            _repeat(lap, plan.warmup_s * self.patience, 1)
            return Samples(_repeat(lap, plan.duration_s * self.patience, plan.min_samples))


@dataclass(frozen=True, slots=True)
class Reading:
    read: Callable[[Any, Census, Plan], Samples]


@dataclass(frozen=True, slots=True)
class Fresh:
    read: Callable[[Peer], Samples]


Kind = Rate | Duration | Laps | Reading | Fresh


def _rates(opened: Opened, session: Any, plan: Plan, patience: float) -> list[float]:
    """Samples of at least ``sample_s`` each, all batches counted: a slow one cannot hide."""
    with _entered(opened, session) as batch:
        _rate(batch, plan.warmup_s * patience)
        values: list[float] = []
        end = time.perf_counter() + plan.duration_s * patience
        while len(values) < plan.min_samples or time.perf_counter() < end:
            values.append(_rate(batch, plan.sample_s * patience))
        return values


def _rate(batch: Batch, at_least_s: float) -> float:
    """Repeat the batch for a time; return the units it did per second."""
    units, seconds, start = 0.0, 0.0, time.perf_counter()
    while not units or seconds < at_least_s:
        units += batch()
        seconds = time.perf_counter() - start
    return units / seconds


def _repeat(lap: Batch, at_least_s: float, at_least: int) -> list[float]:
    """The figures of so many laps, for so long."""
    values: list[float] = []
    end = time.perf_counter() + at_least_s
    while len(values) < at_least or time.perf_counter() < end:
        values.append(lap())
    return values


def _seconds(action: Batch) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


@contextmanager
def _entered(opened: Opened, session: Any) -> Iterator[Batch]:
    with contextmanager(opened)(session) as batch:
        yield batch
