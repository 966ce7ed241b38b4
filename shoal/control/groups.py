"""The placement groups of a cluster: a shell over the table that decides about them (`core.groups`).

Guarantees: a group is written down before anybody hears of what became of it; whoever watches a group hears of its present state at once,
and then of every change; the view by which groups and actors are placed has the places of all groups.

A removed group is not written down any more, but remembered for a while. One that is not known counts as removed: ids are not used twice.

Leaves the connections, and when what was written is durable, to `control.store`, which calls `settle` after every event.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from random import Random
from typing import Final

import msgspec

from shoal.clock import monotonic_ns
from shoal.config import Config
from shoal.control.journal import Journal
from shoal.control.link import ControlError
from shoal.control.nodes import Nodes
from shoal.control.restoring import GROUPS
from shoal.core import group_records as effects
from shoal.core.demands import Demands, count_groups
from shoal.core.group_records import GroupLimits
from shoal.core.groups import GroupTable
from shoal.messages.control import (
    BundlesPrepared,
    BundlesReleased,
    CommitBundles,
    CreateGroup,
    GroupChanged,
    GroupWaits,
    ListGroups,
    Order,
    PrepareBundles,
    ReleaseBundles,
    RemoveGroup,
)
from shoal.messages.placement import (
    BundleHeld,
    GroupChange,
    GroupInfo,
    GroupRecord,
    InBundle,
    Strategy,
)

_MS: Final = 1_000_000
_SECOND: Final = 1_000_000_000
_UNKNOWN: Final = "is not known: it was removed long ago, or belongs to another cluster"
_encode: Final = msgspec.msgpack.Encoder().encode


class Groups:
    """See the module's docstring.

    Args:
        order: Gives an order to a node, once what was written is durable.
        home_of: The node of a job's driver, b"" if it is gone.
        on_due: Called when it is time to `settle` though nothing has happened.
        on_removed: A group was removed: its id, and why, a clause.
        on_placed: The places of a group have changed.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        nodes: Nodes,
        journal: Journal,
        config: Config,
        *,
        order: Callable[[bytes, Order], None],
        home_of: Callable[[bytes], bytes],
        on_due: Callable[[], None],
        on_removed: Callable[[bytes, str], None],
        on_placed: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._nodes = nodes
        self._journal = journal
        self._order = order
        self._home_of = home_of
        self._on_due = on_due
        self._on_removed = on_removed
        self._on_placed = on_placed
        limits = GroupLimits(
            prepare_timeout_ns=round(config.group_prepare_timeout_s * _SECOND),
            retry_ns=config.group_retry_ms * _MS,
            retry_most_ns=config.group_retry_most_ms * _MS,
            remembered=config.groups_remembered,
        )
        self._table = GroupTable(nodes.view, limits, Random())
        self._watchers: dict[bytes, dict[bytes, None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: int | None = None

    def restore(self, records: Iterable[GroupRecord]) -> None:
        """The groups that were written down."""
        self._table.restore(records, monotonic_ns())
        for record in self._table.records():
            self._tell_view(record)

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()

    # --- calls ---------------------------------------------------------------------------------------------------

    def create(self, message: CreateGroup) -> None:
        """Make a group.

        Raises:
            ControlError: it cannot be made; says why.
        """
        fault = self._table.on_create(message.spec, monotonic_ns())
        if fault:
            raise ControlError(fault)

    def remove(self, message: RemoveGroup) -> None:
        """Remove a group, if it is there."""
        self._table.on_remove(message.group_id, message.cause, monotonic_ns())

    def list(self, message: ListGroups) -> list[GroupInfo]:
        """The groups that are asked for."""
        if not message.group_id and not message.name:
            return [self._info(record) for record in self._table.records()]
        group_id = message.group_id or self._table.find(message.name, message.namespace)
        record = None if group_id is None else self._table.record(group_id)
        return [] if record is None else [self._info(record)]

    def _info(self, record: GroupRecord) -> GroupInfo:
        return GroupInfo(record, self._table.explain(record.spec.group_id))

    def count(self, demands: Demands) -> None:
        """Count what groups miss."""
        count_groups(demands, self._table.unsettled(), time.time_ns() - monotonic_ns())

    # --- posts ---------------------------------------------------------------------------------------------------

    def watch(self, node_id: bytes, group_id: bytes) -> None:
        """A node wants to know what becomes of a group."""
        change = self._change(group_id)
        if change.state != "REMOVED":
            self._watchers.setdefault(group_id, {})[node_id] = None
        self._order(node_id, GroupChanged(change))

    def on_prepared(self, node_id: bytes, message: BundlesPrepared) -> None:
        """A node has reserved what it was asked for, or could not."""
        self._nodes.set_view(message.row)
        answer = self._table.on_prepared if message.reserved else self._table.on_refused
        answer(node_id, message.group_id, message.attempt, message.row.version, monotonic_ns())
        self._table.on_view_changed()

    def on_released(self, message: BundlesReleased) -> None:
        """A node has given bundles up."""
        self._nodes.set_view(message.row)
        self._table.on_released(monotonic_ns())

    def on_view_changed(self) -> None:
        """A node has told its row: there may be room where there was none."""
        self._table.on_view_changed()

    # --- nodes and jobs ------------------------------------------------------------------------------------------

    def on_node_gone(self, node_id: bytes) -> None:
        """A node is dead, and what was reserved there is lost."""
        for watchers in self._watchers.values():
            watchers.pop(node_id, None)
        self._table.on_node_gone(node_id, monotonic_ns())

    def on_claims(self, node_id: bytes, held: Iterable[BundleHeld]) -> None:
        """A node that has come back after a restart of the control store says what it has reserved."""
        self._table.on_node_back(node_id, held, monotonic_ns())

    def on_job_gone(self, job_id: bytes, reason: str) -> bool:
        """A job is over. `reason` is a clause. Whether it had groups."""
        self._table.on_job_gone(job_id, f"was removed with its job: {reason}", monotonic_ns())
        return bool(self._table.outbox)

    # --- questions -----------------------------------------------------------------------------------------------

    def why_gone(self, strategy: Strategy | None) -> str:
        """Why what asks for a certain group can never have it; "" if it may."""
        if not isinstance(strategy, InBundle):
            return ""
        change = self._change(strategy.group_id)
        if change.state != "REMOVED":
            return ""
        return f"placement group {strategy.group_id.hex()[:12]} {change.cause}"

    def _change(self, group_id: bytes) -> GroupChange:
        record = self._table.record(group_id)
        if record is None:
            return GroupChange(group_id, "REMOVED", [], _UNKNOWN)
        return GroupChange(group_id, record.state, record.places, record.cause)

    # --- what follows --------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Carry out what the table has decided, and see when it wants to decide next."""
        table = self._table
        table.advance(monotonic_ns())
        outbox = table.outbox
        if outbox:
            taken = outbox[:]
            outbox.clear()
            for effect in taken:
                self._carry_out(effect)
        deadline = table.next_deadline()
        if deadline == self._timer_at:
            return
        self._timer_at = deadline
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if deadline is not None:
            delay_s = max(0, deadline - monotonic_ns()) / _SECOND
            self._timer = self._loop.call_later(delay_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = self._timer_at = None
        self._on_due()

    def _carry_out(self, effect: effects.Effect) -> None:
        match effect:
            case effects.Prepare(node_id, group_id, attempt, bundles):
                self._order(node_id, PrepareBundles(group_id, attempt, list(bundles)))
            case effects.Commit(node_id, group_id, attempt):
                self._order(node_id, CommitBundles(group_id, attempt))
            case effects.Release(node_id, group_id, attempt):
                reason = self._change(group_id).cause or "gave its bundles on this node up"
                order = ReleaseBundles(group_id, attempt, f"its placement group {reason}")
                self._order(node_id, order)
            case effects.GroupChanged(group_id):
                self._changed(group_id)
            case effects.GroupImpossible(group_id, reason):
                record = self._table.record(group_id)
                if record is not None:
                    spec = record.spec
                    waits = GroupWaits(spec.job_id, spec.name, reason)
                    self._order(self._home_of(spec.job_id), waits)

    def _changed(self, group_id: bytes) -> None:
        record = self._table.record(group_id)
        if record is None:
            return
        removed = record.state == "REMOVED"
        self._journal.write(GROUPS, group_id, None if removed else _encode(record))
        self._tell_view(record)
        change = self._change(group_id)
        watchers = self._watchers.get(group_id, {})
        for node_id in watchers:
            self._order(node_id, GroupChanged(change))
        if removed:
            self._watchers.pop(group_id, None)
            self._on_removed(group_id, f"its placement group {record.cause}")
        elif record.state != "PENDING":
            self._on_placed()

    def _tell_view(self, record: GroupRecord) -> None:
        group_id = record.spec.group_id
        if record.state == "REMOVED":
            self._nodes.view.on_group_removed(group_id)
        elif record.state != "PENDING":
            self._nodes.view.on_group(group_id, record.places)
