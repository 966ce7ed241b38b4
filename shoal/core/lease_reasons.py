"""Why a request waits in the lease queue of a node: what is not free, who has it, since when it waits, and how many are before it.

Pure. Looks through all requests and leases of the node, for one question of a user.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from shoal.core.lease_records import Lease, Owner, Request
from shoal.messages.placement import InBundle
from shoal.messages.state import Holder, Reason

if TYPE_CHECKING:
    from shoal.core.leases import LeaseQueue

_MOST_HOLDERS: Final = 5


def explain(queue: LeaseQueue, owner: Owner, req: int) -> str:
    """Why a request waits, as a sentence; "" if it does not."""
    request = queue.requests.get(owner, req)
    if request is None:
        return ""
    return queue.requests.explain(
        request,
        queue.supply,
        leases=sum(1 for _ in queue.leases()),
        starting=queue.pool.starting_of(request.claimant.key),
        most_workers=queue.most_workers(),
    )


def why_request(
    queue: LeaseQueue,
    owner: Owner,
    req: int,
    node_id: bytes,
    epoch_ns: int,
    pid_of: Callable[[bytes], int],
) -> Reason | None:
    """Why a request waits, None if it does not. `epoch_ns` is what must be added to the queue's clock for time since the epoch, `pid_of`
    tells the pid of a worker."""
    request = queue.requests.get(owner, req)
    if request is None:
        return None
    amounts, source = request.claimant.amounts, request.claimant.source
    available = queue.supply.available(source)
    infeasible = queue.requests.is_infeasible(request)
    missing = {name for name, amount in amounts if amount > available.get(name, 0)}
    return Reason(
        f"the request for a worker for {request.name}" if request.name else "the request",
        _kind(queue, request, bool(missing)),
        explain(queue, owner, req),
        node_id,
        request.since + epoch_ns,
        -1 if infeasible else queue.requests.before(request),
        [] if infeasible else _holders(queue, source, missing, epoch_ns, pid_of),
    )


def _kind(queue: LeaseQueue, request: Request, misses: bool) -> str:
    key, source = request.claimant.key, request.claimant.source
    if queue.requests.is_infeasible(request):
        return "nowhere"
    if source is not None and not queue.supply.ledger.knows(source):
        return "placement group"
    if misses or not queue.supply.fits(source, request.claimant.amounts):
        return "resource"
    if queue.most_workers():
        return "processes"
    if queue.pool.starting_of(key):
        return "environment" if key.env else "worker start"
    return "turn"


def _holders(
    queue: LeaseQueue,
    source: InBundle | None,
    missing: set[str],
    epoch_ns: int,
    pid_of: Callable[[bytes], int],
) -> list[Holder]:
    """Who has most of what is missing."""

    def has(lease: Lease) -> int:
        return sum(amount for name, amount in lease.out().items() if name in missing)

    there = [holder for holder, _ in queue.supply.books(source)]
    leases = [lease for lease in queue.leases() if lease.reservation in there and has(lease)]
    leases.sort(key=lambda lease: (-has(lease), lease.lease_id))
    return [
        Holder(
            lease.request.name,
            pid_of(lease.worker.worker_id),
            tuple(sorted(lease.out().items())),
            lease.granted_at + epoch_ns,
        )
        for lease in leases[:_MOST_HOLDERS]
    ]
