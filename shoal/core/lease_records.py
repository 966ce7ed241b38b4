"""What the lease queue keeps and what it decides: its limits, effects and records. See `core.leases`."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import NamedTuple

from shoal.core.bundles import Reservation
from shoal.core.pool import Worker, WorkerKey
from shoal.core.resources import CPU, Allocation, Amounts
from shoal.messages.placement import InBundle

Owner = Hashable
"""Whoever asks for leases. Opaque, and never reused for another."""


class Limits(NamedTuple):
    """The bounds that the queue keeps. Times are nanoseconds."""

    fair_share_ns: int
    idle_limit: int
    """Idle workers that are kept. More: quicker next lease, more memory."""
    idle_ns: int
    start_timeout_ns: int
    max_starting: int
    """Forks in flight. More: a burst of actors without CPUs starts faster, and presses harder on the machine."""
    max_workers: int
    """Processes in all: each costs descriptors of the node daemon."""


# --- effects --------------------------------------------------------------------------------------------------------


class ForkWorker(NamedTuple):
    """Fork a worker; report `on_registered`, `on_worker_gone`."""

    worker_id: bytes
    key: WorkerKey


class EndWorker(NamedTuple):
    """End a worker: in good order, or at once if `kill`. Report `on_worker_gone`."""

    worker_id: bytes
    reason: str
    kill: bool


class RetireWorker(NamedTuple):
    """Ask a worker to end unless others count on what it owns. Report `on_worker_gone` or `on_stays`; one that is `spent` ends by
    itself later, others are leased again."""

    worker_id: bytes
    reason: str
    spent: bool


class Grant(NamedTuple):
    """A request is served."""

    owner: Owner
    req: int
    lease_id: int
    worker_id: bytes
    gpu_ids: list[str]


class Refuse(NamedTuple):
    """A request will never be served: its workers do not start."""

    owner: Owner
    req: int
    kind: str
    reason: str


class AskBack(NamedTuple):
    """Ask the owner of a lease to return it when it has drained."""

    owner: Owner
    lease_id: int


class Revoke(NamedTuple):
    """A lease ends with the placement group, or the bundle, that it was of; its worker is ended next. `reason` is a clause."""

    owner: Owner
    lease_id: int
    reason: str


class Pending(NamedTuple):
    """A request waits; its owner is told once. `reason` says why no idle node could serve it; it is "" if it only waits for its turn."""

    owner: Owner
    req: int
    reason: str


Effect = ForkWorker | EndWorker | RetireWorker | Grant | Refuse | AskBack | Revoke | Pending


# --- records --------------------------------------------------------------------------------------------------------


class Request:
    """A wish for a worker. An actor's has `keeps`: what it still holds once it is settled."""

    __slots__ = ("claimant", "keeps", "name", "outlives_job", "owner", "req", "seq", "since")

    def __init__(
        self,
        owner: Owner,
        req: int,
        claimant: Claimant,
        seq: int,
        since: int,
        name: str,
        keeps: Amounts | None,
        outlives_job: bool,
    ) -> None:
        self.owner = owner
        self.req = req
        self.claimant = claimant
        self.seq = seq
        self.since = since
        self.name = name
        self.keeps = keeps
        self.outlives_job = outlives_job

    @property
    def for_actor(self) -> bool:
        """Whether an actor is to live in the worker: only a fresh one will do."""
        return self.keeps is not None


class Claimant:
    """An owner, what it asks for, and of which source (see `core.supply`): its waiting requests, how many leases it holds and works
    with, and since when (as a sequence number) it waits for its turn."""

    __slots__ = ("amounts", "held", "key", "owner", "refs", "since", "source", "told", "waiting")

    def __init__(
        self, owner: Owner, key: WorkerKey, amounts: Amounts, source: InBundle | None
    ) -> None:
        self.owner = owner
        self.key = key
        self.amounts = amounts
        self.source = source
        self.waiting: deque[Request] = deque()
        self.since = 0
        # Leases that count by rule 1, and all requests and leases that refer to this record.
        self.held = 0
        self.refs = 0
        # Whether its owner knows that some of it waits.
        self.told = False


class Lease:
    """A worker in somebody's hands, and what it has there: of a bundle (`reservation`), or of the node."""

    __slots__ = (
        "allocation",
        "asked_back",
        "blocked",
        "granted_at",
        "lease_id",
        "orphaned",
        "request",
        "reservation",
        "settled",
        "worker",
    )

    def __init__(
        self,
        lease_id: int,
        request: Request,
        worker: Worker,
        reservation: Reservation | None,
        allocation: Allocation,
        now: int,
    ) -> None:
        self.lease_id = lease_id
        self.request = request
        self.worker = worker
        self.reservation = reservation
        self.allocation = allocation
        self.granted_at = now
        self.asked_back = False
        self.blocked = False
        self.settled = False
        self.orphaned = False

    @property
    def counts(self) -> bool:
        """Whether it counts among what its claimant holds: an actor's does only while it is being placed, and one
        whose worker waits has lent what others want."""
        return not (self.blocked or self.settled or self.orphaned)

    def out(self) -> dict[str, int]:
        """The amounts that nobody else can have: CPUs that it has lent others can."""
        return {
            name: amount
            for name, amount in self.allocation.amounts
            if name != CPU or not self.blocked
        }
