"""Leases for the clients of this node: from its own workers alone (`Leasing`), or from those of the whole cluster (`Lending`).

The clients ask in the same words in both. In a cluster the *home* (`core.forwarding`) decides where each request is asked for; what goes
into the own queue, and what comes out of it, is told to it.

Everything runs in the daemon's event loop. Whoever calls any of these lets the workers advance afterwards.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

from shoal.clock import monotonic_ns
from shoal.core import forwarding
from shoal.core.demands import IN_GROUP, Demands
from shoal.core.forwarding import (
    HERE,
    NOWHERE,
    AskAt,
    CancelHere,
    Deliver,
    Deny,
    Explain,
    GiveBackAt,
    Home,
    OwnerEndedAt,
    QueueHere,
    Recall,
    WithdrawAt,
)
from shoal.core.lease_records import AskBack, Grant, Pending, Refuse, Revoke
from shoal.core.policy import Demand, Fail, Infeasible, Wait, choose
from shoal.core.resources import check_amounts
from shoal.core.view import View
from shoal.errors import ProtocolError
from shoal.messages.neighbours import (
    Ask,
    Busy,
    Gave,
    GiveBack,
    Introduce,
    OwnerEnded,
    Refused,
    Revoked,
    Waits,
    WantBack,
    Withdraw,
)
from shoal.messages.node import (
    GROUP_REMOVED,
    UNPLACEABLE,
    Job,
    LeaseCancel,
    LeaseGranted,
    LeasePending,
    LeaseRefused,
    LeaseRequest,
    LeaseReturn,
    LeaseRevoked,
    LeaseWanted,
    Shape,
)
from shoal.messages.placement import GroupChange, InBundle, NodeAffinity, NodeLabels, ViewRow
from shoal.messages.state import TASKS
from shoal.node.clients import Client, Clients
from shoal.node.neighbours import Neighbour, Neighbours
from shoal.node.workers import Process, Workers


class LeaseOwners(Protocol):
    """Whoever answers for those who have asked the queue of this node for leases."""

    def on_granted(self, grant: Grant, process: Process) -> None:
        """There is a worker."""

    def on_refused(self, refusal: Refuse) -> None:
        """There will never be one."""

    def on_asked_back(self, ask: AskBack) -> None:
        """Others wait for it."""

    def on_revoked(self, revoked: Revoke) -> None:
        """It ends with its placement group."""

    def on_pending(self, pending: Pending) -> None:
        """It waits: for its turn, or since it cannot be had as things stand."""


class Whereabouts(NamedTuple):
    """Where a request waits (`HERE`, `NOWHERE` or a node's id, see `core.forwarding`), why nowhere, what it is for, and since when. Of one
    that is here, the lease queue knows the rest."""

    at: bytes
    reason: str = ""
    name: str = ""
    since: int = 0


class Leasing:
    """From the workers of this node. `row` gives its present state."""

    def __init__(self, workers: Workers, clients: Clients, row: Callable[[], ViewRow]) -> None:
        self._workers = workers
        self._queue = workers.queue
        self._clients = clients
        self._row = row

    # --- what clients say ----------------------------------------------------------------------------------------

    def on_request(self, client: Client, message: LeaseRequest) -> None:
        """A client wants a worker."""
        strategy = message.shape.strategy
        if isinstance(strategy, NodeAffinity | NodeLabels):
            answer = self._may_run_here(message.shape)
            if answer is not None:
                answer.req = message.req
                client.send(answer)
                return
        self._queue.on_request(
            client.number,
            message.req,
            client.job.job_id,
            message.shape,
            monotonic_ns(),
            name=message.name,
        )

    def _may_run_here(self, shape: Shape) -> LeaseRefused | LeasePending | None:
        """Whether the only node will do (None), or what to answer."""
        row = self._row()
        view = View(row.node_id)
        view.on_row(row)
        match choose(view, Demand(shape.resources, shape.strategy), random.Random(0)):
            case Fail(reason):
                return LeaseRefused(0, UNPLACEABLE, reason)
            case Wait(reason) | Infeasible(reason):
                # No other node will ever join a session of one machine: there is nothing to ask again for.
                return LeasePending(0, reason)
        return None

    def on_cancel(self, client: Client, message: LeaseCancel) -> None:
        """It wants none any more."""
        self._queue.on_cancel(client.number, message.req)

    def on_return(self, client: Client, message: LeaseReturn) -> None:
        """It gives one back."""
        self._queue.on_return(client.number, message.lease_id, message.discard, monotonic_ns())

    def on_client_gone(self, number: int, reason: str) -> None:
        """A client has ended."""
        self._queue.on_owner_gone(number, monotonic_ns(), reason)

    def on_job_over(self, job_id: bytes) -> None:
        """A job has ended."""

    def count_nowhere(self, demands: Demands, epoch_ns: int) -> None:
        """Count the requests of clients that are in no queue. `epoch_ns` is as for `count_queue`."""

    def where(self, number: int, req: int) -> Whereabouts | None:
        """Where a request of a client waits; None if it does not."""
        return Whereabouts(HERE) if self._queue.knows(number, req) else None

    # --- what the queue of this node decides about requests of its clients -----------------------------------------

    def on_granted(self, grant: Grant, process: Process) -> None:
        """There is a worker."""
        client = self._clients.get(grant.owner)
        if client is not None:
            client.send(
                LeaseGranted(grant.req, grant.lease_id, process.address, process.pid, grant.gpu_ids)
            )

    def on_refused(self, refusal: Refuse) -> None:
        """There will never be one."""
        client = self._clients.get(refusal.owner)
        if client is not None:
            client.send(LeaseRefused(refusal.req, refusal.kind, refusal.reason))

    def on_asked_back(self, ask: AskBack) -> None:
        """Others wait for it."""
        client = self._clients.get(ask.owner)
        if client is not None:
            client.send(LeaseWanted(ask.lease_id))

    def on_revoked(self, revoked: Revoke) -> None:
        """It ends with its placement group."""
        client = self._clients.get(revoked.owner)
        if client is not None:
            client.send(LeaseRevoked(revoked.lease_id, revoked.reason))

    # --- placement groups ----------------------------------------------------------------------------------------

    def on_group(self, change: GroupChange) -> None:
        """What has become of a group, or is known of it."""
        if change.state != "REMOVED":
            return
        for request in list(self._queue.requests):
            source = request.claimant.source
            if source is not None and source.group_id == change.group_id:
                client = self._clients.get(request.owner)
                if client is not None:
                    self._queue.on_cancel(request.owner, request.req)
                    client.send(LeaseRefused(request.req, GROUP_REMOVED, why_removed(change)))

    def on_pending(self, pending: Pending) -> None:
        """It waits."""
        client = self._clients.get(pending.owner)
        if client is not None:
            client.send(LeasePending(pending.req, pending.reason))


def why_removed(change: GroupChange) -> str:
    """Why nothing will run in a group that was removed, as a clause about the group."""
    return f"placement group {change.group_id.hex()[:12]} {change.cause or 'was removed'}"


def check_shape(shape: Shape) -> None:
    """Raise `ProtocolError` if a client asks for what nobody can ask for."""
    try:
        check_amounts(shape.resources)
    except ValueError as error:
        raise ProtocolError(str(error)) from None


class _Wish(NamedTuple):
    """What a request was for, and when it was made."""

    job: Job
    shape: Shape
    name: str
    since: int


class Lending(Leasing):
    """From the workers of the cluster. `row` gives the present state of this node, `later` calls something when `explain_ms` are over;
    `is_over` tells whether a job has ended."""

    def __init__(
        self,
        node_id: bytes,
        workers: Workers,
        clients: Clients,
        neighbours: Neighbours,
        row: Callable[[], ViewRow],
        later: Callable[[Callable[[], None]], object],
        is_over: Callable[[bytes], bool],
    ) -> None:
        super().__init__(workers, clients, row)
        self.view = View(node_id)
        self.home = Home(self.view, random.Random())
        self._neighbours = neighbours
        self._wishes: dict[tuple[int, int], _Wish] = {}
        # By job, the nodes that know it from here.
        self._introduced: dict[bytes, set[bytes]] = {}
        self._is_over = is_over
        self._later = later
        self._unexplained: set[tuple[int, int]] = set()
        # Rows of nodes that have not joined yet, as far as we have heard.
        self._early: dict[bytes, ViewRow] = {}
        self.view.on_row(row())

    # --- what clients say ----------------------------------------------------------------------------------------

    def on_request(self, client: Client, message: LeaseRequest) -> None:
        key = client.number, message.req
        self._wishes[key] = _Wish(client.job, message.shape, message.name, monotonic_ns())
        self._look_at_myself()
        shape = message.shape
        holders: dict[bytes, int] = {}
        for place, size in message.holders:
            node = self._neighbours.at(place) or self._neighbours.me
            if node.place == place:
                holders[node.node_id] = size
        demand = Demand(shape.resources, shape.strategy, holders, sum(holders.values()))
        self.home.on_request(*key, demand)
        self._obey()

    def on_cancel(self, client: Client, message: LeaseCancel) -> None:
        self.home.on_cancel(client.number, message.req)
        self._wishes.pop((client.number, message.req), None)
        self._obey()

    def on_return(self, client: Client, message: LeaseReturn) -> None:
        if message.lease_id > 0:
            super().on_return(client, message)
            return
        self.home.on_return(client.number, message.lease_id, discard=message.discard)
        self._obey()

    def on_client_gone(self, number: int, reason: str) -> None:
        super().on_client_gone(number, reason)
        self.home.on_owner_gone(number, reason)
        for key in [key for key in self._wishes if key[0] == number]:
            del self._wishes[key]
        self._obey()

    def on_job_over(self, job_id: bytes) -> None:
        self._introduced.pop(job_id, None)

    def count_nowhere(self, demands: Demands, epoch_ns: int) -> None:
        for (number, req), wish in self._wishes.items():
            at, reason = self.home.where(number, req) or (HERE, "")
            if at == NOWHERE:
                in_group = isinstance(wish.shape.strategy, InBundle)
                demands.add(
                    TASKS,
                    [(wish.shape.resources, 1)],
                    wish.since + epoch_ns,
                    name=wish.name,
                    where=IN_GROUP if in_group else "",
                    nowhere=bool(reason) and not in_group,
                )

    def where(self, number: int, req: int) -> Whereabouts | None:
        found, wish = self.home.where(number, req), self._wishes.get((number, req))
        if found is None or wish is None:
            return None
        return Whereabouts(*found, wish.name, wish.since)

    # --- what the queue of this node decides -----------------------------------------------------------------------

    def on_granted(self, grant: Grant, process: Process) -> None:
        self._look_at_myself()
        self._done(grant.owner, grant.req)
        super().on_granted(grant, process)

    def on_refused(self, refusal: Refuse) -> None:
        self._done(refusal.owner, refusal.req)
        super().on_refused(refusal)

    def _done(self, owner: object, req: int) -> None:
        assert isinstance(owner, int)
        self.home.on_granted_here(owner, req)
        self._wishes.pop((owner, req), None)

    # --- what hosts say ------------------------------------------------------------------------------------------

    def on_gave(self, node: Neighbour, message: Gave) -> None:
        """A node has leased a worker to a client of ours."""
        self.home.on_gave(
            node.node_id,
            message.owner,
            message.req,
            message.lease_id,
            message.address,
            message.pid,
            message.gpu_ids,
            message.version,
        )
        self._obey()

    def on_busy(self, node: Neighbour, message: Busy) -> None:
        """A node would let a client of ours wait longer than was thought."""
        self._look_at_myself()
        self.home.on_busy(node.node_id, message.owner, message.req, message.row)
        self._obey()

    def on_node_refused(self, node: Neighbour, message: Refused) -> None:
        """A node will never serve a request."""
        self.home.on_refused(node.node_id, message.owner, message.req, message.kind, message.reason)
        self._obey()

    def on_waits(self, _node: Neighbour, message: Waits) -> None:
        """A request waits there for its turn. If it has been served or moved meanwhile, its client does not mind."""
        client = self._clients.get(message.owner)
        if client is not None:
            client.send(LeasePending(message.req, ""))

    def on_want_back(self, node: Neighbour, message: WantBack) -> None:
        """Others wait there for what a client of ours has."""
        self.home.on_want_back(node.node_id, message.lease_id)
        self._obey()

    def on_node_revoked(self, node: Neighbour, message: Revoked) -> None:
        """A node ends a lease of a client of ours."""
        self.home.on_revoked(node.node_id, message.lease_id, message.reason)
        self._obey()

    def on_group(self, change: GroupChange) -> None:
        if change.state == "REMOVED":
            self.home.on_group_removed(change.group_id, why_removed(change))
        elif change.state != "PENDING":
            self.home.on_group(change.group_id, change.places)
        self._obey()

    # --- the cluster ---------------------------------------------------------------------------------------------

    def on_rows(self, rows: list[ViewRow]) -> None:
        """The latest state of other nodes."""
        news = False
        for row in rows:
            if row.node_id == self.view.local:
                continue
            if self._neighbours.get(row.node_id) is None:
                self._early[row.node_id] = row
            else:
                news |= self.view.on_row(row)
        if news:
            self._look_again()

    def on_node_joined(self, node_id: bytes) -> None:
        """A node can be asked now."""
        row = self._early.pop(node_id, None)
        if row is not None:
            self.on_rows([row])

    def on_node_died(self, node_id: bytes) -> None:
        """A node cannot be asked any more."""
        self._early.pop(node_id, None)
        for known in self._introduced.values():
            known.discard(node_id)
        self._look_at_myself()
        self.home.on_node_gone(node_id)
        self._obey()

    def on_room(self) -> None:
        """This node may have room for what waits elsewhere."""
        self._look_again()

    def _look_again(self) -> None:
        self._look_at_myself()
        self.home.on_view_changed()
        self._obey()

    def _look_at_myself(self) -> None:
        self.view.on_row(self._row())

    # --- what the home decides -----------------------------------------------------------------------------------

    def _obey(self) -> None:
        outbox = self.home.outbox
        while outbox:
            effects = outbox[:]
            outbox.clear()
            for effect in effects:
                self._carry_out(effect)

    def _carry_out(self, effect: object) -> None:
        match effect:
            case QueueHere(int(owner), req):
                wish = self._wishes[owner, req]
                self._queue.on_request(
                    owner, req, wish.job.job_id, wish.shape, monotonic_ns(), name=wish.name
                )
            case CancelHere(owner, req):
                self._queue.on_cancel(owner, req)
            case AskAt(node_id, int(owner), req, expected_us):
                self._ask(node_id, owner, req, expected_us)
            case WithdrawAt(node_id, int(owner), req):
                self._tell(node_id, Withdraw(owner, req))
            case GiveBackAt(node_id, int(owner), number, discard):
                self._tell(node_id, GiveBack(owner, number, discard))
            case OwnerEndedAt(node_id, int(owner), reason):
                self._tell(node_id, OwnerEnded(owner, reason))
            case Deliver(int(owner), req, lease_id, address, pid, gpu_ids):
                self._answer(owner, req, LeaseGranted(req, lease_id, address, pid, gpu_ids))
            case Deny(int(owner), req, kind, reason):
                self._answer(owner, req, LeaseRefused(req, kind, reason))
            case Explain(int(owner), req, _):
                if (owner, req) not in self._unexplained:
                    self._unexplained.add((owner, req))
                    self._later(partial(self._explain, owner, req))
            case forwarding.Revoke(owner, lease_id, reason):
                client = self._clients.get(owner)
                if client is not None:
                    client.send(LeaseRevoked(lease_id, reason))
            case Recall(owner, lease_id):
                client = self._clients.get(owner)
                if client is not None:
                    client.send(LeaseWanted(lease_id))
            case _:
                raise AssertionError(effect)

    def _explain(self, owner: int, req: int) -> None:
        """Say why a request waits, if it still does."""
        self._unexplained.discard((owner, req))
        at, reason = self.home.where(owner, req) or (NOWHERE, "")
        client = self._clients.get(owner)
        if client is not None and at == NOWHERE and reason:
            client.send(LeasePending(req, reason))

    def _ask(self, node_id: bytes, owner: int, req: int, expected_us: int) -> None:
        wish = self._wishes[owner, req]
        job_id = wish.job.job_id
        known = self._introduced.setdefault(job_id, set())
        # Of a job that is over an actor may live on: the other node may have forgotten the job.
        over = self._is_over(job_id)
        if node_id not in known or over:
            known.add(node_id)
            self._tell(node_id, Introduce(wish.job, over))
        self._tell(node_id, Ask(owner, req, job_id, wish.shape, wish.name, expected_us))

    def _tell(
        self, node_id: bytes, message: Ask | Introduce | Withdraw | GiveBack | OwnerEnded
    ) -> None:
        node = self._neighbours.get(node_id)
        if node is not None:
            self._neighbours.send(node, message)

    def _answer(self, owner: int, req: int, message: LeaseGranted | LeaseRefused) -> None:
        self._wishes.pop((owner, req), None)
        client = self._clients.get(owner)
        if client is not None:
            client.send(message)
