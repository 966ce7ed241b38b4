"""The actors that have, or wait for, a process on this node.

The control store decides which actor lives; this carries it out: asks the lease queue for a worker, tells it which
actor to be, and reports what becomes of it. A *seat* is one life (incarnation) of an actor here.
"""

from __future__ import annotations

import itertools
import logging
from typing import Final

from shoal.clock import monotonic_ns
from shoal.control.link import ControlLink
from shoal.core.endings import ended_clause, killed_clause
from shoal.core.lease_records import AskBack, Grant, Pending, Refuse, Revoke
from shoal.messages.control import (
    ActorGone,
    ActorLeaves,
    ActorPlaced,
    ActorRefused,
    ActorRuns,
    PlaceActor,
    StopActor,
)
from shoal.messages.node import (
    ActorExiting,
    ActorSpec,
    ActorStarted,
    Exit,
    LeasePending,
    StartActor,
)
from shoal.node.clients import Client, Clients
from shoal.node.jobs import Jobs
from shoal.node.workers import Process, Workers

_log = logging.getLogger("shoal.node")

DIRECTORY: Final = "the actor directory"
"""Who owns the leases of actors, in the lease queue."""


class _Seat:
    __slots__ = ("incarnation", "job_id", "lease_id", "process", "req", "spec")

    def __init__(self, req: int, spec: ActorSpec, incarnation: int, job_id: bytes) -> None:
        self.req = req
        self.spec = spec
        self.incarnation = incarnation
        self.job_id = job_id
        self.lease_id = 0
        self.process: Process | None = None


class ActorSeats:
    """See the module's docstring."""

    def __init__(
        self, workers: Workers, clients: Clients, control: ControlLink, jobs: Jobs
    ) -> None:
        self._workers = workers
        self._jobs = jobs
        self._clients = clients
        self._control = control
        self._reqs = itertools.count(1)
        self._waiting: dict[int, _Seat] = {}
        # By actor and incarnation: the process of an earlier life may still be ending while the next one waits.
        self._seats: dict[tuple[bytes, int], _Seat] = {}
        self._of_process: dict[bytes, _Seat] = {}

    # --- orders of the control store -----------------------------------------------------------------------------

    def place(self, order: PlaceActor) -> None:
        """Find a process for a life of an actor."""
        key = (order.spec.actor_id, order.incarnation)
        if key in self._seats:
            return
        if order.job is not None:
            self._jobs.learn(order.job, self._workers.has_job, over=order.job_over)
        if order.job_id not in self._jobs:
            reason = f"its job {order.job_id.hex()} is not known any more"
            self._control.post(ActorRefused(*key, reason))
            return
        seat = _Seat(next(self._reqs), order.spec, order.incarnation, order.job_id)
        self._seats[key] = seat
        self._waiting[seat.req] = seat
        spec = order.spec
        self._workers.queue.on_request(
            DIRECTORY,
            seat.req,
            order.job_id,
            spec.placement_shape,
            monotonic_ns(),
            name=spec.class_name,
            keeps=spec.shape.resources,
            outlives_job=spec.detached,
        )
        self._workers.advance()

    def stop(self, order: StopActor) -> None:
        """End a life of an actor, whether it has a process yet or not."""
        seat = self._seats.get((order.actor_id, order.incarnation))
        if seat is None:
            return
        if seat.process is None:
            self._workers.queue.on_cancel(DIRECTORY, seat.req)
            self._forget(seat)
        elif order.how == "drain":
            seat.process.leaving = order.reason
            if seat.process.client is not None:
                seat.process.client.send(Exit(order.reason))
        else:
            kill = order.how == "kill"
            clause = killed_clause(order.reason) if kill else ended_clause(order.reason)
            self._workers.order_end(seat.process, clause, reason=order.reason, kill=kill)
        self._workers.advance()

    # --- what the lease queue says -------------------------------------------------------------------------------

    def on_granted(self, grant: Grant, process: Process) -> None:
        """There is a worker for a seat."""
        seat = self._waiting.pop(grant.req)
        seat.lease_id = grant.lease_id
        seat.process = process
        self._of_process[process.worker_id] = seat
        limit = seat.spec.max_restarts
        process.occupation.restarts = limit < 0 or seat.incarnation < limit
        if process.client is not None:
            process.client.send(StartActor(seat.spec, seat.incarnation, grant.gpu_ids))
        placed = ActorPlaced(seat.spec.actor_id, seat.incarnation, process.address, process.pid)
        self._control.post(placed)

    def on_refused(self, refusal: Refuse) -> None:
        """There will never be a worker for a seat."""
        seat = self._waiting[refusal.req]
        self._forget(seat)
        self._control.post(ActorRefused(seat.spec.actor_id, seat.incarnation, refusal.reason))

    def on_pending(self, pending: Pending) -> None:
        """A seat is infeasible as things stand: the driver should know."""
        seat = self._waiting[pending.req]
        spec = seat.spec
        self.tell_driver(seat.job_id, spec.name, spec.class_name, pending.reason)

    def tell_driver(self, job_id: bytes, name: str, class_name: str, reason: str) -> None:
        """An actor of a job has no place as things stand: its driver, if it is of this node, should know."""
        driver = self._clients.driver_of(job_id)
        if driver is not None:
            named = f" {name!r}" if name else ""
            text = f"the actor{named} of class {class_name} waits: {reason}"
            driver.send(LeasePending(0, text))

    def on_revoked(self, _revoked: Revoke) -> None:
        """The control store knows what becomes of an actor whose placement group is removed: it has removed it."""

    def on_asked_back(self, _ask: AskBack) -> None:
        """Nobody asks for the workers of actors."""

    def request_of(self, actor_id: bytes) -> tuple[str, int] | None:
        """The request by which a life of an actor waits for a worker, if one does: its owner and number."""
        for seat in self._waiting.values():
            if seat.spec.actor_id == actor_id:
                return DIRECTORY, seat.req
        return None

    def lives(self) -> list[tuple[bytes, int]]:
        """The lives of actors that this node has: actor and incarnation."""
        return list(self._seats)

    def on_process_gone(self, process: Process, cause: str) -> None:
        """A worker has ended; was it an actor?"""
        seat = self._of_process.pop(process.worker_id, None)
        if seat is not None:
            self._forget(seat)
            gone = ActorGone(seat.spec.actor_id, seat.incarnation, cause, process.expected)
            self._control.post(gone)

    # --- what workers say ----------------------------------------------------------------------------------------

    def on_started(self, client: Client, message: ActorStarted) -> None:
        """`__init__` returned, or raised."""
        seat = self._seat_of(client, message.actor_id)
        if seat is None or seat.incarnation != message.incarnation:
            return
        if not message.error and not message.cause:
            self._workers.queue.on_settled(seat.lease_id)
        self._control.post(
            ActorRuns(message.actor_id, message.incarnation, message.error, message.cause)
        )

    def on_exiting(self, client: Client, message: ActorExiting) -> None:
        """The actor ends by its own wish."""
        seat = self._seat_of(client, message.actor_id)
        if seat is not None and seat.process is not None:
            seat.process.leaving = message.cause
            leaves = ActorLeaves(message.actor_id, seat.incarnation, message.cause)
            self._control.post(leaves)

    def _seat_of(self, client: Client, actor_id: bytes) -> _Seat | None:
        seat = self._of_process.get(client.worker_id)
        if seat is None or seat.spec.actor_id != actor_id:
            _log.warning("%s speaks for actor %s, which it is not", client, actor_id.hex())
            return None
        return seat

    def _forget(self, seat: _Seat) -> None:
        self._waiting.pop(seat.req, None)
        self._seats.pop((seat.spec.actor_id, seat.incarnation), None)
