"""The lease queue of a node: who gets a worker, when a worker is forked, and who is asked to give one back.

A *claimant* is an owner together with what it asks for (job, shape). The queue keeps each claimant's requests in order
and is fair between claimants:

Rule 1. When resources are free, the claimant that holds the fewest leases comes first; among equals, the one that has
        waited longest since it began to ask or last had one, however many requests it has.
Rule 2. A request whose resources are free but that has no worker yet keeps them while a worker is forked for it, so that
        nobody younger slips in between; forks in flight are therefore bounded by free resources.
Rule 3. A lease older than `fair_share_ns` is asked back, once, when a claimant that holds none (or at least two fewer)
        waits for what it holds. Leases of workers that wait themselves are left alone: they have lent their CPUs.
Rule 4. A request too big to be served from what small ones leave over reserves what it needs, in bursts that double: a
        quarter of the time in the long run. Never reserving would starve it; reserving always would let one request idle
        the node behind a holder that never ends, or deadlock with it.
Rule 5. What no idle node could give is not refused: it waits, and its owner is told why and what would help.

Every lease is settled by its return, by the end of its owner, or by the end of its worker, whichever comes first; the
others then find nothing to do. A worker that is not needed any more *retires*: it stays while others count on objects that it
owns (see `core.pool`). One whose lease's owner has ended may still run that owner's task: it retires and is not reused.

The shell turns the effects in `outbox` into messages, forks and signals, in order, and reports what comes of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from shoal.core import fairness
from shoal.core.explanations import why_infeasible, why_waiting
from shoal.core.lease_records import (
    AskBack,
    Claim,
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
)
from shoal.core.pool import Worker, WorkerKey, WorkerPool, WorkerState
from shoal.core.resources import CPU, NOTHING, Allocation, Amounts, NodeResources
from shoal.messages.node import Shape

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
        self.resources = resources
        self.pool = WorkerPool(limits.idle_limit, limits.idle_ns, limits.start_timeout_ns)
        self._limits = limits
        self._new_worker_id = new_worker_id
        self._claims: dict[tuple[Owner, WorkerKey, Amounts], Claim] = {}
        self._requests: dict[tuple[Owner, int], Request] = {}
        self._infeasible: dict[tuple[Owner, int], Request] = {}
        self._leases: dict[int, Lease] = {}
        self._start_failures: dict[WorkerKey, int] = {}
        self._last_lease_id = 0
        self._last_seq = 0
        self._mean_lease_ns = 0
        self._deadline: int | None = None
        self._changed = False

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
        if (owner, req) in self._requests:
            # The same request once more: a resent message.
            return
        key = WorkerKey(job_id, shape.env)
        claim_key = (owner, key, shape.resources)
        claim = self._claims.get(claim_key)
        if claim is None:
            claim = self._claims[claim_key] = Claim(owner, key, shape.resources)
        claim.refs += 1
        self._last_seq += 1
        request = Request(owner, req, claim, self._last_seq, now, name, keeps, outlives_job)
        self._requests[owner, req] = request
        if self.resources.feasible(shape.resources):
            if not claim.waiting:
                claim.since = request.seq
            claim.waiting.append(request)
            self._changed = True
        else:
            self._infeasible[owner, req] = request
            self.outbox.append(Pending(owner, req, why_infeasible(self.resources, shape.resources)))

    def on_cancel(self, owner: Owner, req: int) -> None:
        """The request is not needed any more. If it was served meanwhile, its owner returns the lease."""
        request = self._requests.pop((owner, req), None)
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
            self._retire(worker, reason, spent=True, now=now)
            self._orphan(lease)
        else:
            self._settle(lease)
            self.pool.make_idle(worker, now)
        self._mean_lease_ns += (now - lease.granted_at - self._mean_lease_ns) // _MEMORY
        self._changed = True

    def on_owner_gone(self, owner: Owner, now: int, reason: str) -> None:
        """An owner has ended: what it asked for is dropped, and the workers it held end with it, but for those that run
        nothing and own what others use."""
        for request in [r for r in self._requests.values() if r.owner == owner]:
            del self._requests[owner, request.req]
            self._withdraw(request)
        for lease in [held for held in self._leases.values() if held.request.owner == owner]:
            if lease.worker.state is WorkerState.LEASED:
                self._retire(lease.worker, reason, spent=True, now=now)
            self._orphan(lease)
        self._changed = True

    def on_job_gone(self, job_id: bytes, now: int, reason: str, *, kill: bool) -> None:
        """A job has ended, and all workers of it with it, but for actors that outlive it."""
        for request in list(self._requests.values()):
            if request.claim.key.job_id == job_id and not request.outlives_job:
                del self._requests[request.owner, request.req]
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
            self.resources.lend_cpus(lease.allocation)
            self._changed = True

    def on_unblocked(self, worker_id: bytes) -> None:
        """It goes on, and its CPUs are counted again."""
        lease = self._lease_of(worker_id)
        if lease is not None and lease.blocked:
            self.resources.reclaim_cpus(lease.allocation)
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
        if lease.blocked:
            # Lent CPUs that are given back for good need not be reclaimed first, but the books are simpler this way.
            self.resources.reclaim_cpus(lease.allocation)
        lease.allocation = self.resources.shrink(lease.allocation, lease.request.keeps)
        if lease.blocked:
            self.resources.lend_cpus(lease.allocation)
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
        left = self._grant(now)
        if left:
            self._ask_back(left, now)
        for worker in self.pool.surplus(now):
            self._retire(worker, "it idled longer than idle workers are kept", spent=False, now=now)
        self._due(self.pool.next_deadline())

    def next_deadline(self) -> int | None:
        """When to call `advance` though nothing happened."""
        return self._deadline

    def _due(self, at: int | None) -> None:
        if at is not None and (self._deadline is None or at < self._deadline):
            self._deadline = at

    # --- granting ------------------------------------------------------------------------------------------------

    def _grant(self, now: int) -> list[Claim]:
        """Serve what can be served, by rules 1, 2 and 4; the claims that still wait, in the order of their turns."""
        resources, pool = self.resources, self.pool
        reserved = self._reserve(now)
        kept_for_forks: list[Allocation] = []
        needed: dict[WorkerKey, int] = {}
        for_actors: set[WorkerKey] = set()
        # How many of a claim's requests have their turn in this pass but wait for a fork.
        ahead: dict[int, int] = {}
        stuck: set[Amounts] = set()
        waiting = [claim for claim in self._claims.values() if claim.waiting]
        while waiting:
            best = None
            for claim in waiting:
                if claim.amounts in stuck:
                    continue
                skip = ahead.get(id(claim), 0)
                turn = (claim.held + skip, claim.since)
                if best is None or turn < best[0]:
                    best = (turn, claim, skip)
            if best is None:
                break
            _, claim, skip = best
            request = claim.waiting[skip]
            own_reserve = reserved is not None and reserved.claim is claim
            if not resources.fits(
                claim.amounts,
                None if reserved is None or own_reserve else dict(reserved.claim.amounts),
            ):
                stuck.add(claim.amounts)
                continue
            if pool.has_idle(claim.key, for_actor=request.for_actor):
                self._serve(request, now)
                if not claim.waiting:
                    waiting.remove(claim)
                continue
            kept_for_forks.append(resources.take(claim.amounts))
            needed[claim.key] = needed.get(claim.key, 0) + 1
            if request.for_actor:
                for_actors.add(claim.key)
            ahead[id(claim)] = skip + 1
            if skip + 1 == len(claim.waiting) or skip + 1 >= self._limits.max_starting:
                waiting.remove(claim)
        for allocation in kept_for_forks:
            resources.give_back(allocation)
        for key, count in needed.items():
            for _ in range(count - pool.starting_of(key)):
                if not self._may_fork(key, now, fresh=key in for_actors):
                    break
                self._fork(key, now)
        left = [
            claim for claim in self._claims.values() if len(claim.waiting) > ahead.get(id(claim), 0)
        ]
        left.sort(key=fairness.turn)
        return left

    def _serve(self, request: Request, now: int) -> None:
        claim = request.claim
        claim.waiting.popleft()
        del self._requests[request.owner, request.req]
        self._last_lease_id += 1
        worker = self.pool.lease(claim.key, self._last_lease_id, now, for_actor=request.for_actor)
        assert worker is not None
        allocation = self.resources.take(claim.amounts)
        lease = Lease(self._last_lease_id, request, worker, allocation, now)
        self._leases[lease.lease_id] = lease
        self._count(lease)
        self.outbox.append(
            Grant(
                request.owner,
                request.req,
                lease.lease_id,
                worker.worker_id,
                self.resources.ids_of(allocation),
            )
        )

    def _reserve(self, now: int) -> Request | None:
        """The request that reserves what it needs at this moment, by rule 4: the oldest that does not fit, if what it
        misses is in the hands of tasks, which end, not of actors, which may not."""
        oldest: Request | None = None
        for claim in self._claims.values():
            if claim.waiting:
                request = claim.waiting[0]
                if (oldest is None or request.seq < oldest.seq) and not self.resources.fits(
                    claim.amounts
                ):
                    oldest = request
        if oldest is None:
            return None
        age = now - oldest.since - self._limits.fair_share_ns
        if age < 0:
            self._due(now - age)
            return None
        reserves, for_ns = fairness.burst(age)
        self._due(now + for_ns)
        if reserves and fairness.returns_may_serve(
            oldest.claim.amounts, self.resources.available, self._leases.values()
        ):
            return oldest
        return None

    def _ask_back(self, waiting: list[Claim], now: int) -> None:
        """Ask for leases by rule 3."""
        asked, ripe_at = fairness.leases_to_ask_back(
            waiting,
            self._leases.values(),
            self.resources.available,
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
            self._retire(idle, reason, spent=False, now=now)
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

    def _retire(self, worker: Worker, reason: str, *, spent: bool, now: int) -> None:
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
        for request in [r for r in self._requests.values() if r.claim.key == key]:
            del self._requests[request.owner, request.req]
            self._withdraw(request)
            self.outbox.append(Refuse(request.owner, request.req, kind, reason))

    # --- books ---------------------------------------------------------------------------------------------------

    def _withdraw(self, request: Request) -> None:
        """Take a request, already out of `_requests`, out of its queue."""
        if self._infeasible.pop((request.owner, request.req), None) is None:
            request.claim.waiting.remove(request)
            self._changed = True
        self._drop_ref(request.claim)

    def _settle(self, lease: Lease) -> None:
        """End a lease and free what it holds."""
        del self._leases[lease.lease_id]
        if lease.blocked:
            self.resources.reclaim_cpus(lease.allocation)
            lease.blocked = False
        else:
            self._uncount(lease)
        self.resources.give_back(lease.allocation)
        lease.allocation = NOTHING
        # Its claimant has had its turn, and goes to the end of the line.
        self._last_seq += 1
        lease.request.claim.since = self._last_seq
        self._drop_ref(lease.request.claim)

    def _orphan(self, lease: Lease) -> None:
        """The owner has no part in it any more; its resources are free when the worker's process is gone."""
        self._uncount(lease)
        lease.orphaned = True

    def _count(self, lease: Lease) -> None:
        if lease.counts:
            lease.request.claim.held += 1

    def _uncount(self, lease: Lease) -> None:
        if lease.counts:
            lease.request.claim.held -= 1

    def _drop_ref(self, claim: Claim) -> None:
        claim.refs -= 1
        if not claim.refs:
            del self._claims[claim.owner, claim.key, claim.amounts]

    def _lease_of(self, worker_id: bytes) -> Lease | None:
        worker = self.pool.get(worker_id)
        if worker is None or worker.state is not WorkerState.LEASED:
            return None
        return self._leases.get(worker.lease_id)

    # --- questions -----------------------------------------------------------------------------------------------

    def lease(self, lease_id: int) -> Lease | None:
        """A lease that is not settled."""
        return self._leases.get(lease_id)

    def leases(self) -> Iterator[Lease]:
        """All leases that are not settled."""
        return iter(self._leases.values())

    def load(self) -> tuple[int, int, int]:
        """What says how long a newcomer waits: requests that could be served, leases that may end, and how long one lasts (ns)."""
        leases = sum(not (lease.settled or lease.orphaned) for lease in self._leases.values())
        return len(self._requests) - len(self._infeasible), leases, self._mean_lease_ns

    def knows(self, owner: Owner, req: int) -> bool:
        """Whether a request waits here."""
        return (owner, req) in self._requests

    def owners(self) -> set[Owner]:
        """Whoever waits for a lease or has one."""
        waiting = {request.owner for request in self._requests.values()}
        return waiting | {lease.request.owner for lease in self._leases.values()}

    def waiting_requests(self) -> Iterator[Request]:
        """All requests that wait."""
        return iter(self._requests.values())

    def explain(self, owner: Owner, req: int) -> str:
        """Why a request still waits, in a sentence; "" if it does not."""
        request = self._requests.get((owner, req))
        if request is None:
            return ""
        amounts = request.claim.amounts
        if (owner, req) in self._infeasible:
            return why_infeasible(self.resources, amounts)
        before = sum(
            other.seq < request.seq and other is not request
            for other in self._requests.values()
            if (other.owner, other.req) not in self._infeasible
        )
        full = len(self.pool) >= self._limits.max_workers
        return why_waiting(
            self.resources,
            amounts,
            requests_before=before,
            leases=len(self._leases),
            starting=self.pool.starting_of(request.claim.key),
            most_workers=self._limits.max_workers if full else 0,
        )

    def check(self) -> None:
        """Assert the invariants."""
        self.resources.check()
        self.pool.check()
        free = dict(self.resources.total)
        held: dict[int, int] = {}
        for lease in self._leases.values():
            assert lease.worker.lease_id == lease.lease_id
            assert lease.worker.state not in {WorkerState.STARTING, WorkerState.IDLE}
            assert self.pool.get(lease.worker.worker_id) is lease.worker
            for name, amount in lease.allocation.amounts:
                if name != CPU or not lease.blocked:
                    free[name] -= amount
            if lease.counts:
                held[id(lease.request.claim)] = held.get(id(lease.request.claim), 0) + 1
        assert free == self.resources.available, (
            "what is free and what is leased is not all there is"
        )
        leased = [w for w in self.pool if w.lease_id]
        assert len(leased) == len(self._leases)
        queued = refs = 0
        for claim in self._claims.values():
            refs += claim.refs
            assert claim.held == held.get(id(claim), 0)
            seqs = [request.seq for request in claim.waiting]
            assert seqs == sorted(seqs)
            queued += len(seqs)
        assert queued + len(self._infeasible) == len(self._requests)
        assert refs == len(self._requests) + len(self._leases)
        assert self.pool.starting_count <= max(self._limits.max_starting, self._limits.idle_limit)
