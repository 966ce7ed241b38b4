"""The *home* of lease requests: where each is asked for, here or at another node, until it is granted.

Each request of a client of this node has one of these states::

    HERE       in the lease queue of this node
    AT(node)   forwarded to that node, whose queue has it, or which is about to say that it is too busy
    NOWHERE    no node can serve it as the cluster stands; its owner has been told why

and moves between them when the view of the cluster changes, as the policy says (`core.policy.choose`). What waits in a queue, here or
there, is moved only to a node that has room: a place in a queue is worth something.

Guarantees
- A request is granted to its owner at most once, and refused or granted in the end unless it is withdrawn. A grant that comes for a request
  which has been withdrawn, or granted elsewhere meanwhile, is returned at once.
- A request that is sent again is the same request.
- When a node is gone, what it had queued is asked for elsewhere; its leases are gone with it, which their owners hear as the end of the
  workers.
- Leases of other nodes have negative numbers, so that they are not taken for those of the own queue.

The shell carries out the effects in `outbox`, in order. Used from the daemon's loop only.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from shoal.core.candidates import charge
from shoal.core.policy import Demand, Fail, Forward, Infeasible, Local, Wait, choose
from shoal.core.view import View
from shoal.messages.node import GROUP_REMOVED, UNPLACEABLE
from shoal.messages.placement import InBundle, ViewRow

if TYPE_CHECKING:
    from random import Random

_MOST_MOVES: Final = 256
"""Requests in queues that are looked at again for one change of the view; the others' turn comes with the next. Those that are nowhere are
all looked at, but only when nodes have come, gone or changed: there may be no next change."""

Owner = Hashable


# --- effects --------------------------------------------------------------------------------------------------------


class QueueHere(NamedTuple):
    """Put a request into the queue of this node; report `on_granted_here` or `on_refused_here`."""

    owner: Owner
    req: int


class CancelHere(NamedTuple):
    """Take it out again. If it was granted in the same moment, that has been reported."""

    owner: Owner
    req: int


class AskAt(NamedTuple):
    """Forward a request. `expected_us` is how long this node believes that it would wait there."""

    node_id: bytes
    owner: Owner
    req: int
    expected_us: int


class WithdrawAt(NamedTuple):
    """Take it back."""

    node_id: bytes
    owner: Owner
    req: int


class GiveBackAt(NamedTuple):
    """Return a lease to the node that gave it; `number` is the node's own."""

    node_id: bytes
    owner: Owner
    number: int
    discard: bool


class OwnerEndedAt(NamedTuple):
    """Tell a node that an owner has ended who had something there."""

    node_id: bytes
    owner: Owner
    reason: str


class Deliver(NamedTuple):
    """A request is granted by another node."""

    owner: Owner
    req: int
    lease_id: int
    address: str
    pid: int
    gpu_ids: list[str]


class Deny(NamedTuple):
    """A request will never be granted; `kind` as in `LeaseRefused`."""

    owner: Owner
    req: int
    kind: str
    reason: str


class Explain(NamedTuple):
    """A request waits for the cluster to change. Once for each reason."""

    owner: Owner
    req: int
    reason: str


class Revoke(NamedTuple):
    """A lease of another node ends with the placement group that it is of."""

    owner: Owner
    lease_id: int
    reason: str


class Recall(NamedTuple):
    """Others wait for this lease."""

    owner: Owner
    lease_id: int


Effect = (
    QueueHere
    | CancelHere
    | AskAt
    | WithdrawAt
    | GiveBackAt
    | OwnerEndedAt
    | Deliver
    | Deny
    | Explain
    | Revoke
    | Recall
)


# --- records --------------------------------------------------------------------------------------------------------

HERE: Final = b"here"
NOWHERE: Final = b""


class _Request:
    """`at` is a node's id, HERE or NOWHERE. `charged` is what it takes where it is, and `deduction` the number of that in the view."""

    __slots__ = ("at", "charged", "deduction", "demand", "owner", "reason", "req", "without")

    def __init__(self, owner: Owner, req: int, demand: Demand) -> None:
        self.owner = owner
        self.req = req
        self.demand = demand
        self.charged = charge(demand.amounts, demand.strategy)
        self.at = NOWHERE
        self.deduction = 0
        self.reason = ""
        # Nodes that have just said that they are too busy.
        self.without: set[bytes] = set()


class _Lease(NamedTuple):
    owner: Owner
    node_id: bytes
    number: int


class Home:
    """See the module's docstring. `view` has a row of this node, too, which the shell keeps as it is."""

    def __init__(self, view: View, rng: Random) -> None:
        self.outbox: list[Effect] = []
        self.view = view
        self._rng = rng
        self._requests: dict[tuple[Owner, int], _Request] = {}
        self._leases: dict[int, _Lease] = {}
        self._numbers: dict[tuple[bytes, int], int] = {}
        self._last_lease_id = 0
        # Of the view, when requests that are nowhere were last looked at.
        self._generation = view.generation

    # --- the owners ----------------------------------------------------------------------------------------------

    def on_request(self, owner: Owner, req: int, demand: Demand) -> None:
        """An owner of this node wants a worker."""
        if (owner, req) in self._requests:
            return
        request = self._requests[owner, req] = _Request(owner, req, demand)
        self._place(request)

    def on_cancel(self, owner: Owner, req: int) -> None:
        """The request is not needed any more. If it was served meanwhile, its owner returns the lease."""
        request = self._requests.pop((owner, req), None)
        if request is not None:
            self._take_back(request)

    def on_return(self, owner: Owner, lease_id: int, *, discard: bool) -> None:
        """A lease of another node comes back. Worth nothing if it is not the owner's, or gone."""
        lease = self._leases.get(lease_id)
        if lease is not None and lease.owner == owner:
            self._forget(lease_id)
            self.outbox.append(GiveBackAt(lease.node_id, owner, lease.number, discard))

    def on_owner_gone(self, owner: Owner, reason: str) -> None:
        """An owner has ended: so do its requests, and what it held."""
        nodes: dict[bytes, None] = {}
        for request in [r for r in self._requests.values() if r.owner == owner]:
            del self._requests[owner, request.req]
            self._settle(request, 0)
            if request.at == HERE:
                self.outbox.append(CancelHere(owner, request.req))
            elif request.at != NOWHERE:
                nodes[request.at] = None
        for lease_id in [i for i, lease in self._leases.items() if lease.owner == owner]:
            nodes[self._leases[lease_id].node_id] = None
            self._forget(lease_id)
        for node_id in nodes:
            self.outbox.append(OwnerEndedAt(node_id, owner, reason))

    # --- the queue of this node ----------------------------------------------------------------------------------

    def on_granted_here(self, owner: Owner, req: int) -> None:
        """The own queue has served a request; the lease is its business."""
        request = self._requests.pop((owner, req), None)
        if request is not None:
            # The row of this node shows it at once.
            self._settle(request, 0)

    def on_refused_here(self, owner: Owner, req: int) -> None:
        """The own queue will never serve it, and nor would others: its workers do not start, or its environment cannot be made."""
        self.on_granted_here(owner, req)

    # --- other nodes ---------------------------------------------------------------------------------------------

    def on_gave(
        self,
        node_id: bytes,
        owner: Owner,
        req: int,
        number: int,
        address: str,
        pid: int,
        gpu_ids: list[str],
        version: int,
    ) -> None:
        """A node has leased a worker; its rows from `version` on show it."""
        request = self._requests.get((owner, req))
        if request is None or request.at != node_id:
            self.outbox.append(GiveBackAt(node_id, owner, number, discard=False))
            return
        del self._requests[owner, req]
        self._settle(request, version)
        self._last_lease_id -= 1
        lease_id = self._last_lease_id
        self._leases[lease_id] = _Lease(owner, node_id, number)
        self._numbers[node_id, number] = lease_id
        self.outbox.append(Deliver(owner, req, lease_id, address, pid, gpu_ids))

    def on_busy(self, node_id: bytes, owner: Owner, req: int, row: ViewRow) -> None:
        """A node would let a request wait much longer than was thought."""
        request = self._requests.get((owner, req))
        if request is not None and request.at == node_id:
            self._settle(request, 0)
            request.at = NOWHERE
        self.view.on_row(row)
        if request is not None and request.at == NOWHERE:
            request.without.add(node_id)
            self._place(request)

    def on_refused(self, node_id: bytes, owner: Owner, req: int, kind: str, reason: str) -> None:
        """A node will never serve a request."""
        request = self._requests.get((owner, req))
        if request is not None and request.at == node_id:
            del self._requests[owner, req]
            self._settle(request, 0)
            self.outbox.append(Deny(owner, req, kind, reason))

    def on_want_back(self, node_id: bytes, number: int) -> None:
        """Others wait there for a lease."""
        lease_id = self._numbers.get((node_id, number))
        if lease_id is not None:
            self.outbox.append(Recall(self._leases[lease_id].owner, lease_id))

    def on_revoked(self, node_id: bytes, number: int, reason: str) -> None:
        """A node ends a lease."""
        lease_id = self._numbers.get((node_id, number))
        if lease_id is not None:
            owner = self._leases[lease_id].owner
            self._forget(lease_id)
            self.outbox.append(Revoke(owner, lease_id, reason))

    def on_node_gone(self, node_id: bytes) -> None:
        """A node has left or died."""
        self.view.on_removed(node_id)
        for lease_id in [i for i, lease in self._leases.items() if lease.node_id == node_id]:
            self._forget(lease_id)
        for request in [r for r in self._requests.values() if r.at == node_id]:
            request.deduction = 0
            request.at = NOWHERE
            self._place(request)
        self.on_view_changed()

    def on_view_changed(self) -> None:
        """Rows are new: what waits may be served elsewhere."""
        if self._generation != self.view.generation:
            self._generation = self.view.generation
            for request in [r for r in self._requests.values() if r.at == NOWHERE]:
                request.without.clear()
                self._place(request)
        for key, request in list(islice(self._requests.items(), _MOST_MOVES)):
            # To the end of the line, so that the others have their turn the next time.
            self._requests[key] = self._requests.pop(key)
            if request.at != NOWHERE:
                request.without.clear()
                self._move(request)

    # --- placement groups ----------------------------------------------------------------------------------------

    def on_group(self, group_id: bytes, places: Sequence[bytes]) -> None:
        """The bundles of a group are there now; b"" for one that has no place."""
        self.view.on_group(group_id, places)
        for request in self._of_group(group_id):
            strategy = request.demand.strategy
            assert isinstance(strategy, InBundle)
            there = places if strategy.index < 0 else places[strategy.index : strategy.index + 1]
            node_id = self.view.local if request.at == HERE else request.at
            if request.at == NOWHERE or node_id not in there:
                self._take_back(request)
                request.at = NOWHERE
                self._place(request)

    def on_group_removed(self, group_id: bytes, reason: str) -> None:
        """A group is no more, and nothing that asks for it will be served. `reason` is a sentence."""
        self.view.on_group_removed(group_id)
        for request in self._of_group(group_id):
            del self._requests[request.owner, request.req]
            self._take_back(request)
            self.outbox.append(Deny(request.owner, request.req, GROUP_REMOVED, reason))

    def _of_group(self, group_id: bytes) -> list[_Request]:
        return [
            request
            for request in self._requests.values()
            if isinstance(request.demand.strategy, InBundle)
            and request.demand.strategy.group_id == group_id
        ]

    # --- deciding ------------------------------------------------------------------------------------------------

    def _place(self, request: _Request) -> None:
        """Decide about a request that is nowhere."""
        match choose(self.view, request.demand, self._rng, request.without):
            case Local():
                self._put(request, HERE)
            case Forward(node_id):
                self._put(request, node_id)
            case Wait(reason):
                # Somebody is about to change that, and has reported what stands in the way.
                request.reason = reason
            case Infeasible(reason):
                if request.reason != reason:
                    request.reason = reason
                    self.outbox.append(Explain(request.owner, request.req, reason))
            case Fail(reason):
                del self._requests[request.owner, request.req]
                self.outbox.append(Deny(request.owner, request.req, UNPLACEABLE, reason))

    def _put(self, request: _Request, at: bytes) -> None:
        view = self.view
        node_id = view.local if at == HERE else at
        node = view.get(node_id)
        expected_us = 0
        if node is not None:
            in_bundle = isinstance(request.demand.strategy, InBundle)
            wait_us = node.bundle_wait_us if in_bundle else node.wait_us
            expected_us = wait_us(request.charged)
        request.at = at
        request.deduction = view.deduct(node_id, request.charged)
        request.reason = ""
        if at == HERE:
            self.outbox.append(QueueHere(request.owner, request.req))
        else:
            self.outbox.append(AskAt(node_id, request.owner, request.req, expected_us))

    def _move(self, request: _Request) -> None:
        """Take a request that waits to a node with room, if there is one now."""
        view, demand = self.view, request.demand
        present = view.local if request.at == HERE else request.at
        # Where it is, it does not stand in its own way.
        view.settle(request.deduction, 0)
        request.deduction = 0
        node = view.get(present)
        if node is None or not node.has_room(request.charged):
            answer = choose(view, demand, self._rng)
            match answer:
                case Local():
                    target = view.local
                case Forward(node_id):
                    target = node_id
                case _:
                    target = present
            better = view.get(target)
            if target != present and better is not None and better.has_room(request.charged):
                self._take_back(request)
                self._put(request, HERE if target == view.local else target)
                return
        request.deduction = view.deduct(present, request.charged)

    def _take_back(self, request: _Request) -> None:
        self._settle(request, 0)
        if request.at == HERE:
            self.outbox.append(CancelHere(request.owner, request.req))
        elif request.at != NOWHERE:
            self.outbox.append(WithdrawAt(request.at, request.owner, request.req))

    def _settle(self, request: _Request, version: int) -> None:
        if request.deduction:
            self.view.settle(request.deduction, version)
            request.deduction = 0

    def _forget(self, lease_id: int) -> None:
        lease = self._leases.pop(lease_id)
        del self._numbers[lease.node_id, lease.number]

    # --- questions -----------------------------------------------------------------------------------------------

    def where(self, owner: Owner, req: int) -> tuple[bytes, str] | None:
        """Where a request is (`HERE`, `NOWHERE` or a node's id), and why nowhere; None if it does not wait."""
        request = self._requests.get((owner, req))
        return None if request is None else (request.at, request.reason)

    def waiting(self) -> Iterator[tuple[Owner, int, Demand]]:
        """All requests that wait."""
        for request in self._requests.values():
            yield request.owner, request.req, request.demand

    def lease_count(self) -> int:
        """How many leases of other nodes are out."""
        return len(self._leases)

    def check(self) -> None:
        """Assert the invariants."""
        for request in self._requests.values():
            assert (request.at == NOWHERE) == (request.deduction == 0)
        assert len(self._numbers) == len(self._leases)
        for lease_id, lease in self._leases.items():
            assert lease_id < 0
            assert self._numbers[lease.node_id, lease.number] == lease_id
        self.view.check()
