"""On which node an actor is to live: the seam between the control store and the policy.

Pure: a function of the actor's specification and of the rows of all nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from shoal.core.resources import Amounts, amount_text, amounts_text
from shoal.messages.node import ActorSpec
from shoal.messages.placement import ViewRow


def choose_node(spec: ActorSpec, rows: Iterable[ViewRow], home: bytes) -> bytes | None:
    """The node for a life of an actor; None if no node could ever take it. `home` is the node of the process that created it.

    Where there is room now: at home, or else where most is left. Where there is none, it waits in the queue of a node that could
    take it: at home, or else where most is free.
    """
    demand = spec.placement_shape.resources
    best: tuple[bool, bool, int, bytes] | None = None
    for row in rows:
        if row.draining or not _covers(row.total, demand):
            continue
        has_room = _covers(row.available, demand)
        left = min(
            (row.available.get(name, 0) - amount for name, amount in demand),
            default=row.available.get("CPU", 0),
        )
        rank = (has_room, row.node_id == home, left, row.node_id)
        if best is None or rank > best:
            best = rank
    return None if best is None else best[3]


def why_nowhere(spec: ActorSpec, rows: Iterable[ViewRow]) -> str:
    """Why `choose_node` has found none, and what to change."""
    demand = spec.placement_shape.resources
    most: dict[str, int] = {}
    count = 0
    for row in rows:
        count += 1
        for name, _ in demand:
            most[name] = max(most.get(name, 0), row.total.get(name, 0))
    has = ", ".join(f"{name} {amount_text(most.get(name, 0))}" for name, _ in demand)
    return (
        f"it needs {amounts_text(demand)}, and no node of the cluster has that much (nodes: {count}; the most that one has: {has}). "
        "It waits until such a node joins: start one, or ask for less in the options of the actor"
    )


def less(row: ViewRow, demand: Amounts) -> ViewRow:
    """A row after a placement of which the node does not know yet."""
    available = dict(row.available)
    for name, amount in demand:
        available[name] = available.get(name, 0) - amount
    return ViewRow(
        row.node_id,
        row.version,
        row.total,
        available,
        row.labels,
        row.waiting,
        row.servers,
        row.mean_run_us,
        row.draining,
    )


def _covers(amounts: Mapping[str, int], demand: Amounts) -> bool:
    return all(amount <= amounts.get(name, 0) for name, amount in demand)
