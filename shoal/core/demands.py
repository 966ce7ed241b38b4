"""What is demanded and cannot be served now, counted by what it is: requests for workers, actors, placement groups.

Every request is counted where it waits: in the lease queue of a node, or, if no node could serve it, at its home. Owners ask for a few
workers at a time (`lease_requests_per_shape`), however many tasks they have, so of tasks there may be more than is counted here.

Pure. Looks at every request, for one question of a user; the answers are as many as there are different demands, and cut.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from shoal.core.byte_amounts import bytes_text
from shoal.core.group_records import Group
from shoal.core.leases import LeaseQueue
from shoal.core.resources import Amounts, amount_text
from shoal.messages.node import UNIT
from shoal.messages.state import ACTORS, GROUPS, TASKS, DemandRow

BYTES: Final = frozenset({"memory", "object_store_memory"})
"""Resources that are counted in bytes."""

IN_GROUP: Final = "in a placement group"

Bundles = list[tuple[Amounts, int]]

_Kind = tuple[str, tuple[tuple[Amounts, int], ...], str, bool]


class Demands:
    """Rows of equal demands, added up. `node_id` is where they wait, b"" if that is no node."""

    def __init__(self, node_id: bytes = b"") -> None:
        self._node_id = node_id
        self._rows: dict[_Kind, DemandRow] = {}

    def add(
        self,
        kind: str,
        bundles: Bundles,
        since_ns: int,
        *,
        name: str = "",
        where: str = "",
        nowhere: bool = False,
        count: int = 1,
    ) -> None:
        """Some more of a kind; the oldest has waited since `since_ns`, and is called `name`."""
        self.add_row(DemandRow(kind, bundles, count, since_ns, name, where, nowhere, self._node_id))

    def add_row(self, row: DemandRow) -> None:
        """What has been counted elsewhere."""
        key = (
            row.kind,
            tuple((amounts, times) for amounts, times in row.bundles),
            row.where,
            row.nowhere,
        )
        known = self._rows.get(key)
        if known is None:
            self._rows[key] = DemandRow(
                row.kind,
                row.bundles,
                row.count,
                row.since_ns,
                row.name,
                row.where,
                row.nowhere,
                self._node_id or row.node_id,
            )
            return
        known.count += row.count
        if row.since_ns < known.since_ns:
            known.since_ns, known.name = row.since_ns, row.name

    def rows(self, limit: int) -> list[DemandRow]:
        """The most frequent ones, of those the oldest first. What was left out is the last row, of no kind: how many, and since when."""
        rows = sorted(self._rows.values(), key=lambda row: (not row.kind, -row.count, row.since_ns))
        shown, others = rows[:limit], rows[limit:]
        if others:
            # What was left out elsewhere is among them.
            shown.append(
                DemandRow(
                    "",
                    [],
                    sum(row.count for row in others),
                    min(row.since_ns for row in others),
                    node_id=self._node_id,
                )
            )
        return shown


def count_queue(demands: Demands, queue: LeaseQueue, epoch_ns: int) -> None:
    """What waits in a lease queue. `epoch_ns` is what must be added to its clock for time since the epoch."""
    for request in queue.requests:
        demands.add(
            ACTORS if request.for_actor else TASKS,
            [(request.claimant.amounts, 1)],
            request.since + epoch_ns,
            name=request.name,
            where="" if request.claimant.source is None else IN_GROUP,
            nowhere=request.claimant.source is None and queue.requests.is_infeasible(request),
        )


def count_groups(demands: Demands, groups: Iterable[Group], epoch_ns: int) -> None:
    """What placement groups miss. `epoch_ns` is as for `count_queue`."""
    for group in groups:
        bundles: dict[Amounts, int] = {}
        for index in group.missing:
            amounts = group.spec.bundles[index].resources
            bundles[amounts] = bundles.get(amounts, 0) + 1
        demands.add(
            GROUPS,
            list(bundles.items()),
            group.since + epoch_ns,
            name=group.spec.name,
            where=group.spec.strategy,
            nowhere=bool(group.told),
        )


def demand_text(row: DemandRow) -> str:
    """A demand as users know it: "{CPU: 1, GPU: 0.5}", "{CPU: 1} * 4 (SPREAD)"."""
    bundles = [
        _braces(amounts) + (f" * {times}" if times > 1 else "") for amounts, times in row.bundles
    ]
    where = f" ({row.where})" if row.where else ""
    return " + ".join(bundles) + where


def _braces(amounts: Iterable[tuple[str, int]]) -> str:
    return "{" + ", ".join(f"{name}: {_amount(name, amount)}" for name, amount in amounts) + "}"


def _amount(name: str, amount: int) -> str:
    return bytes_text(amount / UNIT) if name in BYTES else amount_text(amount)
