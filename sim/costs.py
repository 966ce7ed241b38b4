"""What decisions cost on this machine, as the number of nodes grows: measured, with nothing else in the process."""

from __future__ import annotations

from random import Random
from time import perf_counter
from typing import Final, NamedTuple

from shoal.core.policy import Demand, Forward, choose
from shoal.core.resources import CPU, GPU
from shoal.core.view import View
from shoal.messages.node import UNIT
from shoal.messages.placement import ViewRow
from sim.world import CPUS, DEMANDS, SHARES

_BATCH: Final = 200
"""Decisions, or rows, that are timed together: few, so that some batches run without being interrupted."""


class DecisionCosts(NamedTuple):
    """A decision is what a home does for a request: choose, count it as taken, and settle that."""

    nodes: int
    decision_us: float
    row_us: float
    index_ms: float


def make_view(nodes: int, rng: Random) -> View:
    """A view of a cluster in which CPUs are free here and there."""
    view = View((0).to_bytes(16, "big"))
    for number in range(nodes):
        total = {CPU: CPUS * UNIT, "memory": (64 << 30) * UNIT}
        if number % 10 == 9:
            total[GPU] = UNIT
        view.on_row(renewed(ViewRow(number.to_bytes(16, "big"), 0, total, total), rng))
    return view


def renewed(row: ViewRow, rng: Random) -> ViewRow:
    """The next row of a node, with other CPUs free."""
    available = row.total | {CPU: rng.randint(0, CPUS) * UNIT}
    return ViewRow(row.node_id, row.version + 1, row.total, available)


def decide(view: View, rng: Random, demands: list[Demand]) -> None:
    """Decisions, one after the other."""
    for demand in demands:
        answer = choose(view, demand, rng)
        node_id = answer.node_id if isinstance(answer, Forward) else view.local
        view.settle(view.deduct(node_id, demand.amounts), 0)


def measure(nodes: int, batches: int = 200) -> DecisionCosts:
    """The best of many short batches: others use this machine, too."""
    rng = Random(1)
    view = make_view(nodes, rng)
    began = perf_counter()
    view.candidates(((CPU, 3 * UNIT),))
    index_s = perf_counter() - began
    decide(view, rng, list(DEMANDS))
    decision_s = row_s = float("inf")
    known = list(view)
    for _ in range(batches):
        demands = rng.choices(DEMANDS, SHARES, k=_BATCH)
        rows = [renewed(node.row, rng) for node in rng.sample(known, min(nodes, _BATCH))]
        began = perf_counter()
        decide(view, rng, demands)
        decided = perf_counter()
        for row in rows:
            view.on_row(row)
        row_s = min(row_s, (perf_counter() - decided) / len(rows))
        decision_s = min(decision_s, (decided - began) / _BATCH)
    return DecisionCosts(nodes, decision_s * 1e6, row_s * 1e6, index_s * 1e3)
