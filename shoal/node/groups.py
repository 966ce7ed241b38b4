"""Placement groups on a node: what is reserved here, and what becomes of the groups that processes of this node use.

The control store orders (prepare, commit, release), and the lease queue has the books. A node hears of a group from the moment on in which
one of its processes asks for it or for a lease in it; of one that the control store does not know it hears that it was removed. So
no node need know of all groups, and none waits for a group that is gone.

Everything runs in the daemon's event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from shoal.clock import monotonic_ns
from shoal.control.link import ControlLink
from shoal.messages.control import (
    BundlesPrepared,
    BundlesReleased,
    CommitBundles,
    CreateGroup,
    GroupChanged,
    GroupWaits,
    ListGroups,
    PrepareBundles,
    ReleaseBundles,
    RemoveGroup,
    WatchGroup,
)
from shoal.messages.node import LeasePending
from shoal.messages.placement import (
    GroupChange,
    GroupCreate,
    GroupQuery,
    GroupRemove,
    GroupWatch,
)
from shoal.node.clients import Client, Clients
from shoal.node.leasing import Leasing
from shoal.node.queries import Queries
from shoal.node.showing import Showing
from shoal.node.workers import Workers

_log = logging.getLogger("shoal.node")
_REMEMBERED: Final = 1_000
"""Removed groups of which a node remembers that they are; it asks again about others."""

Order = PrepareBundles | CommitBundles | ReleaseBundles | GroupChanged | GroupWaits


class PlacementGroups:
    """See the module's docstring."""

    def __init__(
        self,
        workers: Workers,
        clients: Clients,
        control: ControlLink,
        leasing: Leasing,
        queries: Queries,
        showing: Showing,
    ) -> None:
        self._workers = workers
        self._clients = clients
        self._control = control
        self._leasing = leasing
        self._queries = queries
        self._showing = showing
        # Groups that were asked for: None until the control store has answered.
        self._known: dict[bytes, GroupChange | None] = {}
        self._removed: dict[bytes, GroupChange] = {}
        self._watchers: dict[bytes, dict[int, None]] = {}
        self.client_handlers: dict[type, Callable[[Client, Any], None]] = {
            GroupCreate: self._on_create,
            GroupRemove: self._on_remove,
            GroupQuery: self._on_query,
            GroupWatch: self._on_watch,
        }
        self._orders: dict[type, Callable[..., None]] = {
            PrepareBundles: self._prepare,
            CommitBundles: self._commit,
            ReleaseBundles: self._release,
            GroupChanged: self._changed,
            GroupWaits: self._waits,
        }

    # --- what clients ask ----------------------------------------------------------------------------------------

    def _on_create(self, client: Client, message: GroupCreate) -> None:
        """A client wants a group; it will want to know what becomes of it, too."""
        spec = message.spec
        spec.job_id = client.job.job_id
        self._ask(client, message.req, CreateGroup(spec))
        self._on_watch(client, GroupWatch(spec.group_id))

    def _on_remove(self, client: Client, message: GroupRemove) -> None:
        """A client wants a group no more."""
        self._ask(client, message.req, RemoveGroup(message.group_id, "was removed"))

    def _ask(self, client: Client, req: int, call: CreateGroup | RemoveGroup) -> None:
        if req:
            self._queries.ask(client, req, call)
        else:
            self._control.call(call).add_done_callback(_unheard)

    def _on_query(self, client: Client, message: GroupQuery) -> None:
        """A client asks which groups there are."""
        call = ListGroups(message.group_id, message.name, message.namespace)
        self._queries.ask(client, message.req, call)

    def _on_watch(self, client: Client, message: GroupWatch) -> None:
        """A client wants to know what becomes of a group."""
        known = self._find(message.group_id)
        if known is not None:
            client.send(known)
        if known is None or known.state != "REMOVED":
            self._watchers.setdefault(message.group_id, {})[client.number] = None

    def on_lease_wanted(self, group_id: bytes) -> None:
        """Somebody has asked for a lease in a group."""
        known = self._find(group_id)
        if known is not None:
            self._leasing.on_group(known)

    def _find(self, group_id: bytes) -> GroupChange | None:
        """What is known of a group. If nothing is, it is asked for."""
        removed = self._removed.get(group_id)
        if removed is not None:
            return removed
        if group_id not in self._known:
            self._known[group_id] = None
            self._control.post(WatchGroup(group_id))
        return self._known[group_id]

    def on_client_gone(self, client: Client) -> None:
        """A client has ended."""
        for watchers in self._watchers.values():
            watchers.pop(client.number, None)

    # --- orders of the control store -----------------------------------------------------------------------------

    def on_order(self, order: Order) -> None:
        """The control store orders or tells something."""
        self._orders[type(order)](order)
        self._workers.advance()

    def _prepare(self, order: PrepareBundles) -> None:
        self._showing.tell()
        reserved = self._workers.queue.on_prepare(order.group_id, order.attempt, order.bundles)
        row = self._showing.promised_row()
        self._control.post(BundlesPrepared(order.group_id, order.attempt, reserved, row))

    def _commit(self, order: CommitBundles) -> None:
        self._workers.queue.on_commit(order.group_id, order.attempt)

    def _release(self, order: ReleaseBundles) -> None:
        queue = self._workers.queue
        queue.on_release(order.group_id, order.attempt, monotonic_ns(), order.reason)
        self._control.post(BundlesReleased(self._showing.promised_row()))

    def _changed(self, order: GroupChanged) -> None:
        change = order.change
        group_id = change.group_id
        if change.state == "REMOVED":
            self._known.pop(group_id, None)
            self._removed[group_id] = change
            if len(self._removed) > _REMEMBERED:
                del self._removed[next(iter(self._removed))]
            watchers = self._watchers.pop(group_id, {})
        else:
            self._known[group_id] = change
            watchers = self._watchers.get(group_id, {})
        self._leasing.on_group(change)
        for number in watchers:
            client = self._clients.get(number)
            if client is not None:
                client.send(change)

    def _waits(self, order: GroupWaits) -> None:
        driver = self._clients.driver_of(order.job_id)
        if driver is not None:
            name = f" {order.name!r}" if order.name else ""
            driver.send(LeasePending(0, f"the placement group{name} waits: {order.reason}"))


def _unheard(answer: asyncio.Future[Any]) -> None:
    """Nobody waits for the answer: the changes of the group say what there is to say."""
    if not answer.cancelled() and answer.exception() is not None:
        _log.warning("a placement group: %s", answer.exception())
