"""Leases of workers of this node for processes of others: the *host's* side of `messages.neighbours`.

A request of another node goes into this node's lease queue as one of its own would, under an owner that names node and client. When the
home's view of this node was too old (`core.policy.too_busy`), it is told so instead, and asks elsewhere (*spillback*).

Leaves the decisions to the lease queue, and what home does with them to `node.leasing`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from shoal.clock import monotonic_ns
from shoal.core.candidates import Node, charge
from shoal.core.lease_records import AskBack, Grant, Pending, Refuse, Revoke
from shoal.core.policy import too_busy
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
from shoal.messages.node import Shape
from shoal.messages.placement import InBundle, ViewRow
from shoal.node.jobs import Jobs
from shoal.node.neighbours import Neighbour, Neighbours
from shoal.node.workers import Process, Workers


def _wait_us(row: ViewRow, shape: Shape) -> int:
    """How long a newcomer would wait here."""
    node, strategy = Node(row), shape.strategy
    if not isinstance(strategy, InBundle):
        return node.wait_us(shape.resources)
    if strategy.index >= 0:
        # It can be nowhere else.
        return 0
    return node.bundle_wait_us(charge(shape.resources, strategy))


class Foreigner(NamedTuple):
    """A client of another node, as an owner of leases here."""

    node_id: bytes
    client: int


class Hosting:
    """See the module's docstring. `row` gives the present state of this node."""

    def __init__(
        self,
        workers: Workers,
        jobs: Jobs,
        neighbours: Neighbours,
        row: Callable[[], ViewRow],
    ) -> None:
        self._workers = workers
        self._jobs = jobs
        self._neighbours = neighbours
        self._row = row

    # --- what homes say ------------------------------------------------------------------------------------------

    def on_introduce(self, _node: Neighbour, message: Introduce) -> None:
        """A job whose processes will ask."""
        self._jobs.learn(message.job, self._workers.has_job, over=message.over)

    def on_ask(self, node: Neighbour, message: Ask) -> None:
        """A process of another node wants a worker."""
        owner = Foreigner(node.node_id, message.owner)
        queue = self._workers.queue
        if not queue.knows(owner, message.req):
            row = self._row()
            if too_busy(_wait_us(row, message.shape), message.expected_us):
                self._neighbours.send(node, Busy(message.owner, message.req, row))
                return
        if message.job_id not in self._jobs:
            reason = f"job {message.job_id.hex()} has not been introduced"
            self._neighbours.send(node, Refused(message.owner, message.req, "start", reason))
            return
        queue.on_request(
            owner,
            message.req,
            message.job_id,
            message.shape,
            monotonic_ns(),
            name=message.name,
        )

    def on_withdraw(self, node: Neighbour, message: Withdraw) -> None:
        """A request is not needed any more."""
        self._workers.queue.on_cancel(Foreigner(node.node_id, message.owner), message.req)

    def on_give_back(self, node: Neighbour, message: GiveBack) -> None:
        """A lease comes back."""
        self._workers.queue.on_return(
            Foreigner(node.node_id, message.owner),
            message.lease_id,
            message.discard,
            monotonic_ns(),
        )

    def on_owner_ended(self, node: Neighbour, message: OwnerEnded) -> None:
        """A process of another node has ended."""
        owner = Foreigner(node.node_id, message.owner)
        self._workers.queue.on_owner_gone(owner, monotonic_ns(), message.reason)

    def on_node_died(self, node: Neighbour, cause: str) -> None:
        """All processes of another node have ended."""
        reason = f"the process that it worked for was lost with its {node}, which {cause}"
        for owner in self._workers.queue.owners():
            if isinstance(owner, Foreigner) and owner.node_id == node.node_id:
                self._workers.queue.on_owner_gone(owner, monotonic_ns(), reason)

    # --- what the lease queue decides ----------------------------------------------------------------------------

    def on_granted(self, grant: Grant, process: Process) -> None:
        """There is a worker."""
        owner = grant.owner
        assert isinstance(owner, Foreigner)
        node = self._neighbours.get(owner.node_id)
        if node is not None:
            self._neighbours.send(
                node,
                Gave(
                    owner.client,
                    grant.req,
                    grant.lease_id,
                    process.address,
                    process.pid,
                    grant.gpu_ids,
                    self._row().version,
                ),
            )

    def on_refused(self, refusal: Refuse) -> None:
        """There will never be a worker."""
        owner = refusal.owner
        assert isinstance(owner, Foreigner)
        node = self._neighbours.get(owner.node_id)
        if node is not None:
            self._neighbours.send(
                node, Refused(owner.client, refusal.req, refusal.kind, refusal.reason)
            )

    def on_revoked(self, revoked: Revoke) -> None:
        """A lease ends with its placement group."""
        owner = revoked.owner
        assert isinstance(owner, Foreigner)
        node = self._neighbours.get(owner.node_id)
        if node is not None:
            reason = revoked.reason
            self._neighbours.send(node, Revoked(owner.client, revoked.lease_id, reason))

    def on_pending(self, pending: Pending) -> None:
        """A request waits. That this node could not even give it if it were idle, home knows from this node's row."""
        owner = pending.owner
        assert isinstance(owner, Foreigner)
        node = self._neighbours.get(owner.node_id)
        if node is not None and not pending.reason:
            self._neighbours.send(node, Waits(owner.client, pending.req))

    def on_asked_back(self, ask: AskBack) -> None:
        """Others wait for a lease."""
        owner = ask.owner
        assert isinstance(owner, Foreigner)
        node = self._neighbours.get(owner.node_id)
        if node is not None:
            self._neighbours.send(node, WantBack(owner.client, ask.lease_id))
