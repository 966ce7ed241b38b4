"""The lease queue of a node: who gets a worker, when a worker is forked, and who is asked to give one back.

A *claimant* is an owner together with what it asks for (job, shape). The queue keeps each claimant's requests in order
and is fair between claimants:

Rule 1. When resources are free, the claimant that holds the fewest leases comes first; among equals, the one that has
        waited longest since it began to ask or last had one, however many requests it has.
Rule 2. A request whose resources are free but that has no worker yet keeps them while a worker is forked for it, so that
        nobody younger slips in between; forks in flight are therefore bounded by free resources.
Rule 3. A lease older than `fair_share_ns` is asked back, once, when a claimant that holds none (or at least two fewer) waits for what it
        holds. What its owner has nothing to do for, it gives back before that if something else of its own waits: therefore it is told of
        what is not served at once. Leases of workers that wait themselves are left alone: they have lent their CPUs.
Rule 4. A request too big to be served from what small ones leave over reserves what it needs, in bursts that double: a
        quarter of the time in the long run. Never reserving would starve it; reserving always would let one request idle
        the node behind a holder that never ends, or deadlock with it.
Rule 5. What no idle node could give is not refused: it waits, and its owner is told why and what would help.
Rule 6. A request of a placement group takes from the group's bundles here, and from nothing else; no other request takes from those.
        Rules 1 to 4 hold among the requests of a bundle as they do among those of the node. One whose bundle is not here
        (yet) waits. When a bundle is given up, the leases out of it end.

Every lease is settled by its return, by the end of its owner, or by the end of its worker, whichever comes first; the
others then find nothing to do. A worker that is not needed any more *retires*: it stays while others count on objects that it
owns (see `core.pool`). One whose lease's owner has ended may still run that owner's task: it interrupts that first, and is not
reused.

Whose turn it is, `core.turns` keeps ready, so that a decision does not look at all that waits.

The shell turns the effects in `outbox` into messages, forks and signals, in order, and reports what comes of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Final

from shoal.core import fairness
from shoal.core.bundles import Reservation
from shoal.core.lease_reasons import explain
from shoal.core.lease_records import (
    AskBack,
    Claimant,
    Effect,
    EndWorker,
    ForkWorker,
    Grant,
    Lease,
    Limits,
    Owner,
    Pending,
    Refuse,
    Request,
    RetireWorker,
    Revoke,
)
from shoal.core.lease_requests import LeaseRequests
from shoal.core.pool import Worker, WorkerKey, WorkerPool, WorkerState
from shoal.core.resources import NOTHING, Amounts, NodeResources
from shoal.core.supply import Supply, source_of
from shoal.core.turns import Granting
from shoal.messages.node import Shape
from shoal.messages.placement import InBundle

_MAX_START_FAILURES: Final = 3
_MEMORY: Final = 8
"""Leases over which their mean duration moves."""


class LeaseQueue:
    """See the module's docstring. `new_worker_id` makes ids that were never used before."""

    def __init__(
        self,
        resources: NodeResources,
        limits: Limits,
        new_worker_id: Callable[[], bytes],
    ) -> None:
        self.outbox: list[Effect] = []
        self.supply = Supply(resources)
        self.pool = WorkerPool(limits.idle_limit, limits.idle_ns, limits.start_timeout_ns)
        self._limits = limits
        self._new_worker_id = new_worker_id
        self._requests = LeaseRequests()
        self._leases: dict[int, Lease] = {}
        self._start_failures: dict[WorkerKey, int] = {}
        self._last_lease_id = 0
        self._mean_lease_ns = 0
        self._deadline: int | None = None
        self._changed = False
        # Claimants with requests that have not been waiting yet when a pass was over.
        self._untold: dict[Claimant, None] = {}

    # --- events from owners --------------------------------------------------------------------------------------

    def on_request(
        self,
        owner: Owner,
        req: int,
        job_id: bytes,
        shape: Shape,
        now: int,
        *,
        name: str = "",
        keeps: Amounts | None = None,
        outlives_job: bool = False,
    ) -> None:
        """`owner` asks for a worker. For an actor, `keeps` is what it holds once it runs, and `outlives_job` says
        that the end of its job does not end it."""
        if self._requests.get(owner, req) is not None:
            # The same request once more: a resent message.
            return
        source = source_of(shape)
        claimant = self._requests.claimant(
            owner, WorkerKey(job_id, shape.env), shape.resources, source
        )
        feasible = self.supply.feasible(source, shape.resources)
        self._requests.add(
            req,
            claimant,
            now,
            name=name,
            keeps=keeps,
            outlives_job=outlives_job,
            feasible=feasible,
        )
        if feasible:
            self._changed = True
            if keeps is None and not claimant.told:
                self._untold[claimant] = None
        else:
            self.outbox.append(
                Pending(owner, req, self.supply.why_infeasible(source, shape.resources))
            )

    def on_cancel(self, owner: Owner, req: int) -> None:
        """The request is not needed any more. If it was served meanwhile, its owner returns the lease."""
        request = self._requests.get(owner, req)
        if request is not None:
            self._withdraw(request)

    def on_return(self, owner: Owner, lease_id: int, discard: bool, now: int) -> None:
        """A lease comes back. Worth nothing if it was settled already, or is not the owner's."""
        lease = self._leases.get(lease_id)
        if lease is None or lease.request.owner != owner or lease.orphaned:
            return
        worker = lease.worker
        if worker.state is not WorkerState.LEASED:
            return
        if discard or lease.allocation.gpus:
            # What the task left on the GPU goes with the process, and the GPU is free only then; unless somebody counts on
            # what the worker owns, which may take for ever.
            reason = "its lease was returned and the worker is not used again"
            self.retire(worker, reason, spent=True, now=now)
            self._orphan(lease)
        else:
            self._settle(lease)
            self.pool.make_idle(worker, now)
        self._mean_lease_ns += (now - lease.granted_at - self._mean_lease_ns) // _MEMORY
        self._changed = True

    def on_owner_gone(self, owner: Owner, now: int, reason: str) -> None:
        """An owner has ended: what it asked for is dropped, and the workers it held retire."""
        for request in self._requests.those(lambda r: r.owner == owner):
            self._withdraw(request)
        for lease in [held for held in self._leases.values() if held.request.owner == owner]:
            if lease.worker.state is WorkerState.LEASED:
                self.retire(lease.worker, reason, spent=True, now=now)
            self._orphan(lease)
        self._changed = True

    def on_job_gone(self, job_id: bytes, now: int, reason: str, *, kill: bool) -> None:
        """A job has ended, and all workers of it with it, but for actors that outlive it."""
        for request in self._requests.those(
            lambda r: r.claimant.key.job_id == job_id and not r.outlives_job
        ):
            self._withdraw(request)
        for worker in list(self.pool):
            if worker.key.job_id != job_id:
                continue
            lease = self._leases.get(worker.lease_id)
            if lease is not None and lease.request.outlives_job:
                continue
            self._end(worker, reason, kill=kill, now=now)
            if lease is not None:
                self._orphan(lease)
        self._changed = True

    # --- events of placement groups --------------------------------------------------------------------------------

    def on_prepare(
        self, group_id: bytes, attempt: int, bundles: Iterable[tuple[int, Amounts]]
    ) -> bool:
        """Reserve bundles, all or none; whether they are."""
        self._changed = True
        return self.supply.ledger.prepare(group_id, attempt, bundles)

    def on_commit(self, group_id: bytes, attempt: int) -> None:
        """What was reserved may be used."""
        self.supply.ledger.commit(group_id, attempt)
        self._changed = True

    def on_release(self, group_id: bytes, attempt: int, now: int, reason: str) -> None:
        """Bundles are given up; the leases out of them end, and their workers at once."""
        used = self.supply.ledger.release(group_id, attempt)
        for lease in list(self._leases.values()):
            if lease.reservation in used:
                self.outbox.append(Revoke(lease.request.owner, lease.lease_id, reason))
                self._end(lease.worker, reason, kill=True, now=now)
                self._orphan(lease)
        self._changed = True

    # --- events from workers -------------------------------------------------------------------------------------

    def prestart(self, key: WorkerKey, count: int, now: int) -> None:
        """Fork workers before anybody asks, as many as may idle."""
        ready = self.pool.idle_of(key) + self.pool.starting_of(key)
        for _ in range(min(count, self._limits.idle_limit) - ready):
            self._fork(key, now)

    def on_registered(self, worker_id: bytes, now: int) -> bool:
        """A worker is there; False if it is not one that was waited for."""
        worker = self.pool.get(worker_id)
        if worker is None or worker.state is not WorkerState.STARTING:
            return False
        self._start_failures.pop(worker.key, None)
        self.pool.make_idle(worker, now)
        self._changed = True
        return True

    def on_worker_gone(self, worker_id: bytes, now: int, cause: str) -> Lease | None:
        """A worker's process has ended, or could not be forked; the lease that ends with it, if any."""
        worker = self.pool.get(worker_id)
        if worker is None:
            return None
        # A late starter that was killed for it counts as well: it never registered.
        never_registered = all(state is not WorkerState.IDLE for _, state in worker.story)
        started = worker.state is WorkerState.STARTING or (
            worker.state is WorkerState.ENDING and never_registered
        )
        lease = self._leases.get(worker.lease_id)
        if lease is not None:
            self._settle(lease)
        self.pool.remove(worker)
        if started:
            self._count_start_failure(worker.key, cause)
        self._changed = True
        return lease

    def on_stays(self, worker_id: bytes, now: int) -> None:
        """A worker that was asked to retire is counted on by others."""
        worker = self.pool.get(worker_id)
        if worker is None or worker.state is not WorkerState.RETIRING:
            return
        lease = self._leases.get(worker.lease_id)
        if lease is not None:
            self._settle(lease)
            worker.lease_id = 0
        self.pool.stay(worker, now)
        self._changed = True

    def on_blocked(self, worker_id: bytes) -> None:
        """A worker waits inside a task: its CPUs are lent."""
        lease = self._lease_of(worker_id)
        if lease is not None and not lease.blocked:
            self._uncount(lease)
            lease.blocked = True
            self._books_of(lease).lend_cpus(lease.allocation)
            self._changed = True

    def on_unblocked(self, worker_id: bytes) -> None:
        """It goes on, and its CPUs are counted again."""
        lease = self._lease_of(worker_id)
        if lease is not None and lease.blocked:
            self._books_of(lease).reclaim_cpus(lease.allocation)
            lease.blocked = False
            self._count(lease)
            self._changed = True

    def on_settled(self, lease_id: int) -> None:
        """An actor runs: it keeps only what it holds for life."""
        lease = self._leases.get(lease_id)
        if lease is None or lease.settled or lease.request.keeps is None:
            return
        self._uncount(lease)
        lease.settled = True
        books = self._books_of(lease)
        if lease.blocked:
            # Lent CPUs that are given back for good need not be reclaimed first, but the books are simpler this way.
            books.reclaim_cpus(lease.allocation)
        lease.allocation = books.shrink(lease.allocation, lease.request.keeps)
        if lease.blocked:
            books.lend_cpus(lease.allocation)
        self._changed = True

    def end_worker(self, worker_id: bytes, reason: str, now: int, *, kill: bool) -> None:
        """End a worker for a reason of the caller's; its lease holds until its process is gone."""
        worker = self.pool.get(worker_id)
        if worker is not None:
            self._end(worker, reason, kill=kill, now=now)
            self._changed = True

    def on_env_failed(self, key: WorkerKey, reason: str) -> None:
        """The environment of these workers cannot be made: refuse what waits for them."""
        self._refuse_all(key, "env", reason)

    # --- time ----------------------------------------------------------------------------------------------------

    def advance(self, now: int) -> None:
        """Grant, fork, ask back and end what is due. The shell calls this after every batch of events and at
        `next_deadline`."""
        if not self._changed and (self._deadline is None or now < self._deadline):
            return
        self._changed = False
        self._deadline = None
        for worker in self.pool.late_starters(now):
            self._end(worker, "it did not register in time after its start", kill=True, now=now)
        granting = self._grant(now)
        self._tell_who_waits(granting)
        self._ask_back(granting, now)
        for worker in self.pool.surplus(now):
            self.retire(worker, "it idled longer than idle workers are kept", spent=False, now=now)
        self._due(self.pool.next_deadline())

    def next_deadline(self) -> int | None:
        """When to call `advance` though nothing happened."""
        return self._deadline

    def _due(self, at: int | None) -> None:
        if at is not None and (self._deadline is None or at < self._deadline):
            self._deadline = at

    # --- granting ------------------------------------------------------------------------------------------------

    def _grant(self, now: int) -> Granting:
        """Serve what can be served, by rules 1, 2 and 4."""
        pool = self.pool
        granting = Granting(
            self._requests.turns, self.supply, self._reserve(now), self._limits.max_starting
        )
        while (turn := granting.next()) is not None:
            _, request = turn
            if pool.has_idle(request.claimant.key, for_actor=request.for_actor):
                self._serve(request, now)
                granting.served(*turn)
            else:
                granting.kept_for_fork(*turn)
                if not pool.idle_count and granting.kept >= self._limits.max_starting:
                    # No worker is there, and no more may start.
                    granting.cut_short()
        granting.end()
        for key, count in granting.forks.items():
            for _ in range(count - pool.starting_of(key)):
                if not self._may_fork(key, now, fresh=key in granting.for_actors):
                    break
                self._fork(key, now)
        return granting

    def _serve(self, request: Request, now: int) -> None:
        claimant = request.claimant
        self._requests.served(request)
        self._last_lease_id += 1
        worker = self.pool.lease(
            claimant.key, self._last_lease_id, now, for_actor=request.for_actor
        )
        assert worker is not None
        reservation, allocation = self.supply.take(claimant.source, claimant.amounts)
        lease = Lease(self._last_lease_id, request, worker, reservation, allocation, now)
        self._leases[lease.lease_id] = lease
        self._count(lease)
        gpu_ids = self._books_of(lease).ids_of(allocation)
        self.outbox.append(
            Grant(request.owner, request.req, lease.lease_id, worker.worker_id, gpu_ids)
        )

    def _reserve(self, now: int) -> dict[InBundle | None, Amounts]:
        """By source, what is reserved at this moment, by rule 4: what the oldest request needs that does not fit, if what it misses is
        in the hands of tasks, which end, not of actors, which may not."""
        self._requests.turns.refresh()
        return {
            request.claimant.source: request.claimant.amounts
            for request in self._requests.turns.oldest_unmet(self.supply)
            if self._reserves(request.claimant.source, request, now)
        }

    def _reserves(self, source: InBundle | None, request: Request, now: int) -> bool:
        books = list(self.supply.books(source))
        if not books:
            # Its bundle is not here.
            return False
        age = now - request.since - self._limits.fair_share_ns
        if age < 0:
            self._due(now - age)
            return False
        reserves, for_ns = fairness.burst(age)
        self._due(now + for_ns)
        return reserves and any(
            fairness.returns_may_serve(
                request.claimant.amounts,
                resources.available,
                (lease for lease in self._leases.values() if lease.reservation is holder),
            )
            for holder, resources in books
        )

    def _tell_who_waits(self, granting: Granting) -> None:
        """Tell owners that something is not served at once: what idles in their hands for something else, they give back."""
        for claimant in list(self._untold):
            request = granting.unserved(claimant)
            if request is not None:
                claimant.told = True
                self.outbox.append(Pending(request.owner, request.req, ""))
            if request is not None or not claimant.waiting:
                del self._untold[claimant]

    def _ask_back(self, granting: Granting, now: int) -> None:
        """Ask for leases by rule 3."""
        rotas = [
            rota for rota in self._requests.turns if next(granting.left(rota), None) is not None
        ]
        if not rotas:
            return
        by_holder: dict[Reservation | None, list[Lease]] = {}
        for lease in self._leases.values():
            by_holder.setdefault(lease.reservation, []).append(lease)
        for rota in rotas:
            asked, ripe_at = fairness.leases_to_ask_back(
                partial(granting.left, rota),
                [
                    lease
                    for holder, _ in self.supply.books(rota.source)
                    for lease in by_holder.get(holder, ())
                ],
                self.supply.available(rota.source),
                ripe_before=now - self._limits.fair_share_ns,
            )
            for lease in asked:
                lease.asked_back = True
                self.outbox.append(AskBack(lease.request.owner, lease.lease_id))
            if ripe_at is not None:
                self._due(ripe_at + self._limits.fair_share_ns)

    # --- workers -------------------------------------------------------------------------------------------------

    def _may_fork(self, key: WorkerKey, now: int, *, fresh: bool) -> bool:
        if self.pool.starting_count >= self._limits.max_starting:
            return False
        if len(self.pool) < self._limits.max_workers:
            return True
        idle = self.pool.longest_idle(lambda w: w.key == key and (w.fresh or not fresh), now)
        if idle is not None:
            reason = "the node has as many processes as it may"
            self.retire(idle, reason, spent=False, now=now)
        else:
            # Those that were counted on may not be any more.
            self._due(now + self._limits.idle_ns)
        return False

    def _fork(self, key: WorkerKey, now: int) -> None:
        worker_id = self._new_worker_id()
        self.pool.add(worker_id, key, now)
        self.outbox.append(ForkWorker(worker_id, key))

    def _end(self, worker: Worker, reason: str, *, kill: bool, now: int) -> None:
        if self.pool.end(worker, now) or kill:
            # A worker that was asked politely may still be killed; the shell forgets orders for the dead.
            self.outbox.append(EndWorker(worker.worker_id, reason, kill))

    def retire(self, worker: Worker, reason: str, *, spent: bool, now: int) -> None:
        """Ask a worker to end unless it is counted on; it is leased, or idles."""
        self.pool.retire(worker, now, spent=spent)
        self.outbox.append(RetireWorker(worker.worker_id, reason, spent))

    def _count_start_failure(self, key: WorkerKey, cause: str) -> None:
        failures = self._start_failures.get(key, 0) + 1
        self._start_failures[key] = failures
        if failures >= _MAX_START_FAILURES:
            del self._start_failures[key]
            self._refuse_all(
                key,
                "start",
                f"{failures} workers in a row ended before they were ready; the last one {cause}",
            )

    def _refuse_all(self, key: WorkerKey, kind: str, reason: str) -> None:
        for request in self._requests.those(lambda r: r.claimant.key == key):
            self._withdraw(request)
            self.outbox.append(Refuse(request.owner, request.req, kind, reason))

    # --- books ---------------------------------------------------------------------------------------------------

    def _withdraw(self, request: Request) -> None:
        self._requests.remove(request)
        self._changed = True

    def _books_of(self, lease: Lease) -> NodeResources:
        return self.supply.books_of(lease.reservation)

    def _settle(self, lease: Lease) -> None:
        """End a lease and free what it holds."""
        del self._leases[lease.lease_id]
        if lease.blocked:
            self._books_of(lease).reclaim_cpus(lease.allocation)
            lease.blocked = False
        else:
            self._uncount(lease)
        self.supply.give_back(lease.reservation, lease.allocation)
        lease.reservation, lease.allocation = None, NOTHING
        # Its claimant has had its turn, and goes to the end of the line.
        self._requests.last_in_line(lease.request.claimant)
        self._requests.drop_ref(lease.request.claimant)

    def _orphan(self, lease: Lease) -> None:
        """The owner has no part in it any more; its resources are free when the worker's process is gone."""
        self._uncount(lease)
        lease.orphaned = True

    def _count(self, lease: Lease) -> None:
        if lease.counts:
            lease.request.claimant.held += 1
            self._requests.turns.moved(lease.request.claimant)

    def _uncount(self, lease: Lease) -> None:
        if lease.counts:
            lease.request.claimant.held -= 1
            self._requests.turns.moved(lease.request.claimant)

    def _lease_of(self, worker_id: bytes) -> Lease | None:
        worker = self.pool.get(worker_id)
        if worker is None or worker.state is not WorkerState.LEASED:
            return None
        return self._leases.get(worker.lease_id)

    # --- questions -----------------------------------------------------------------------------------------------

    @property
    def resources(self) -> NodeResources:
        """What the node has."""
        return self.supply.resources

    def lease(self, lease_id: int) -> Lease | None:
        """A lease that is not settled."""
        return self._leases.get(lease_id)

    @property
    def requests(self) -> LeaseRequests:
        """Those that wait."""
        return self._requests

    def leases(self) -> Iterator[Lease]:
        """All that are not settled."""
        return iter(self._leases.values())

    def most_workers(self) -> int:
        """How many processes there may be if there are so many; 0 while more may start."""
        return self._limits.max_workers if len(self.pool) >= self._limits.max_workers else 0

    def load(self) -> tuple[int, int, int]:
        """What says how long a newcomer waits: requests that could be served, leases that may end, and how long one lasts (ns)."""
        leases = sum(not (lease.settled or lease.orphaned) for lease in self._leases.values())
        return self._requests.in_line(), leases, self._mean_lease_ns

    def knows(self, owner: Owner, req: int) -> bool:
        """Whether a request waits here."""
        return self._requests.get(owner, req) is not None

    def owners(self) -> set[Owner]:
        """Whoever waits for a lease or has one."""
        waiting = {request.owner for request in self._requests}
        return waiting | {lease.request.owner for lease in self._leases.values()}

    def explain(self, owner: Owner, req: int) -> str:
        """Why a request still waits, in a sentence; "" if it does not."""
        return explain(self, owner, req)

    def check(self) -> None:
        """Assert the invariants."""
        self.pool.check()
        held: dict[int, int] = {}
        for lease in self._leases.values():
            assert lease.worker.lease_id == lease.lease_id
            assert lease.worker.state not in {WorkerState.STARTING, WorkerState.IDLE}
            assert self.pool.get(lease.worker.worker_id) is lease.worker
            if lease.counts:
                held[id(lease.request.claimant)] = held.get(id(lease.request.claimant), 0) + 1
        self.supply.check((lease.reservation, lease.out()) for lease in self._leases.values())
        leased = [w for w in self.pool if w.lease_id]
        assert len(leased) == len(self._leases)
        self._requests.check(len(self._leases), held)
        assert self.pool.starting_count <= max(self._limits.max_starting, self._limits.idle_limit)
