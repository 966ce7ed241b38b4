"""Random histories of the lease queue: the books balance after every event, and nobody starves."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from shoal.core.bundles import ALL
from shoal.core.lease_records import (
    EndWorker,
    ForkWorker,
    Grant,
    Limits,
    Refuse,
    RetireWorker,
    Revoke,
)
from shoal.core.leases import LeaseQueue
from shoal.core.resources import NodeResources
from shoal.messages.node import UNIT, Shape
from shoal.messages.placement import InBundle

MS = 1_000_000
JOBS = [b"job-a", b"job-b"]
SHAPES = [
    Shape((("CPU", UNIT),)),
    Shape((("CPU", UNIT // 2),)),
    Shape((("CPU", 2 * UNIT),)),
    Shape(()),
    Shape((("CPU", UNIT), ("GPU", UNIT // 2))),
    Shape((("GPU", UNIT),)),
    Shape((("CPU", UNIT), ("slot", UNIT))),
    Shape((("CPU", 9 * UNIT),)),
    Shape((("CPU", UNIT),), strategy=InBundle(b"group-a", 0)),
    Shape((("CPU", UNIT // 2),), strategy=InBundle(b"group-a", -1)),
    Shape((("GPU", UNIT // 2),), strategy=InBundle(b"group-b", 1, captures=True)),
    Shape((), strategy=InBundle(b"group-b")),
]
GROUPS = [b"group-a", b"group-b"]
BUNDLES = [(("CPU", UNIT),), (("CPU", UNIT), ("GPU", UNIT)), (("GPU", UNIT // 2),)]


def worker_ids() -> Callable[[], bytes]:
    numbers = itertools.count(1)
    return lambda: next(numbers).to_bytes(4, "big") + bytes(12)


def new_queue(cpus: int = 2) -> LeaseQueue:
    total = {"CPU": cpus * UNIT, "GPU": 2 * UNIT, "slot": UNIT}
    limits = Limits(
        fair_share_ns=100 * MS,
        idle_limit=2,
        idle_ns=1000 * MS,
        start_timeout_ns=60_000 * MS,
        max_starting=4,
        max_workers=12,
    )
    return LeaseQueue(NodeResources(total), limits, worker_ids())


class World:
    """A shell without processes: it remembers what the queue asked for, and answers when the test says so."""

    def __init__(self, queue: LeaseQueue) -> None:
        self.queue = queue
        self.now = 0
        self.starting: list[bytes] = []
        self.alive: dict[bytes, None] = {}
        self.ending: list[bytes] = []
        self.retiring: dict[bytes, None] = {}
        self.leased: set[bytes] = set()
        self.leases: dict[int, Grant] = {}
        # Whether each request is an actor's.
        self.waiting: dict[tuple[object, int], bool] = {}
        self.reqs = itertools.count(1)
        self.attempts = itertools.count(1)
        self.prepared: list[tuple[bytes, int]] = []

    def settle(self) -> None:
        self.queue.advance(self.now)
        self.queue.check()
        for effect in self.queue.outbox:
            match effect:
                case ForkWorker(worker_id):
                    self.starting.append(worker_id)
                case EndWorker(worker_id):
                    self.retiring.pop(worker_id, None)
                    if worker_id not in self.ending:
                        self.ending.append(worker_id)
                case RetireWorker(worker_id):
                    assert worker_id not in {g.worker_id for g in self.leases.values()}
                    self.retiring[worker_id] = None
                case Grant(owner, req, lease_id, worker_id):
                    assert worker_id in self.alive
                    assert worker_id not in {g.worker_id for g in self.leases.values()}
                    if self.waiting.pop((owner, req)):
                        assert worker_id not in self.leased, (
                            "an actor's worker has never been leased"
                        )
                    self.leased.add(worker_id)
                    self.leases[lease_id] = effect
                case Revoke(owner, lease_id):
                    grant = self.leases.pop(lease_id, None)
                    assert grant is None or grant.owner == owner
                case Refuse(owner, req):
                    del self.waiting[owner, req]
        self.queue.outbox.clear()
        assert len(list(self.queue.pool)) <= 12

    def gone(self, worker_id: bytes) -> None:
        self.alive.pop(worker_id, None)
        if worker_id in self.starting:
            self.starting.remove(worker_id)
        if worker_id in self.ending:
            self.ending.remove(worker_id)
        self.retiring.pop(worker_id, None)
        lease = self.queue.on_worker_gone(worker_id, self.now, "was killed by SIGKILL")
        if lease is not None:
            self.leases.pop(lease.lease_id, None)


@given(st.data(), st.integers(0, 3))
def test_random_histories_keep_the_books_balanced(data: st.DataObject, cpus: int) -> None:
    world = World(new_queue(cpus))
    queue = world.queue
    for _ in range(data.draw(st.integers(1, 60))):
        world.now += data.draw(st.sampled_from([0, MS, 60 * MS, 1500 * MS]))
        match data.draw(st.integers(0, 17)):
            case 14 | 15:
                group, attempt = data.draw(st.sampled_from(GROUPS)), next(world.attempts)
                bundles = data.draw(st.lists(st.sampled_from(BUNDLES), min_size=1, max_size=2))
                if queue.on_prepare(group, attempt, enumerate(bundles)):
                    world.prepared.append((group, attempt))
            case 16:
                if world.prepared:
                    queue.on_commit(*data.draw(st.sampled_from(world.prepared)))
            case 17:
                group, attempt = data.draw(
                    st.sampled_from([*((group, ALL) for group in GROUPS), *world.prepared])
                )
                queue.on_release(group, attempt, world.now, "its placement group was removed")
            case 0 | 1 | 2:
                owner, req = data.draw(st.integers(1, 3)), next(world.reqs)
                shape = data.draw(st.sampled_from(SHAPES))
                keeps = data.draw(st.sampled_from([None, None, (), shape.resources]))
                world.waiting[owner, req] = keeps is not None
                queue.on_request(owner, req, JOBS[owner % 2], shape, world.now, keeps=keeps)
            case 3 | 4:
                if world.starting:
                    worker_id = world.starting.pop(0)
                    if worker_id not in world.ending:
                        world.alive[worker_id] = None
                        assert queue.on_registered(worker_id, world.now)
            case 5 | 6:
                if world.leases:
                    lease_id = data.draw(st.sampled_from(sorted(world.leases)))
                    grant = world.leases.pop(lease_id)
                    queue.on_return(grant.owner, lease_id, data.draw(st.booleans()), world.now)
                    queue.on_return(grant.owner, lease_id, False, world.now)
            case 7:
                if world.waiting:
                    owner_req = data.draw(st.sampled_from(list(world.waiting)))
                    del world.waiting[owner_req]
                    queue.on_cancel(*owner_req)
            case 8:
                if world.leases:
                    lease_id = data.draw(st.sampled_from(sorted(world.leases)))
                    worker_id = world.leases[lease_id].worker_id
                    if data.draw(st.booleans()):
                        queue.on_blocked(worker_id)
                    else:
                        queue.on_unblocked(worker_id)
            case 9:
                candidates = [*world.alive, *world.starting, *world.ending]
                if candidates:
                    world.gone(data.draw(st.sampled_from(candidates)))
            case 10:
                if world.leases:
                    queue.on_settled(data.draw(st.sampled_from(sorted(world.leases))))
            case 11:
                owner = data.draw(st.integers(1, 3))
                queue.on_owner_gone(owner, world.now, "its owner exited")
                world.waiting = {k: v for k, v in world.waiting.items() if k[0] != owner}
                world.leases = {k: g for k, g in world.leases.items() if g.owner != owner}
            case 12 | 13:
                if world.retiring:
                    # Later it may be told to end all the same, or be gone.
                    worker_id = next(iter(world.retiring))
                    queue.on_stays(worker_id, world.now)
                    del world.retiring[worker_id]
                    spent = queue.pool.get(worker_id)
                    assert spent is not None
                    if spent.spent:
                        world.ending.append(worker_id)
        world.settle()
    drain(world)


def _in_group(queue: LeaseQueue, owner: object, req: int) -> bool:
    return any(
        (request.owner, request.req) == (owner, req) and request.claimant.source is not None
        for request in queue.requests
    )


def drain(world: World) -> None:
    """Let every worker live, everything that ends be gone, every group be removed, and every lease come back: all that is feasible
    is served."""
    queue = world.queue
    for group in GROUPS:
        queue.on_release(group, ALL, world.now, "its placement group was removed")
    for owner, req in [key for key in world.waiting if _in_group(queue, *key)]:
        queue.on_cancel(owner, req)
        del world.waiting[owner, req]
    for worker in queue.pool:
        queue.on_unblocked(worker.worker_id)
    for _ in range(1000):
        world.now += 200 * MS
        for lease_id, grant in list(world.leases.items()):
            queue.on_return(grant.owner, lease_id, False, world.now)
            del world.leases[lease_id]
        for worker_id in [*world.ending, *world.retiring]:
            world.gone(worker_id)
        for worker_id in list(world.starting):
            world.starting.remove(worker_id)
            world.alive[worker_id] = None
            assert queue.on_registered(worker_id, world.now)
        world.settle()
        infeasible = [r for r in queue.requests if not queue.resources.feasible(r.claimant.amounts)]
        if len(world.waiting) == len(infeasible) and not world.leases:
            if not world.starting and not world.ending and not world.retiring:
                break
    else:
        raise AssertionError([queue.explain(*key) for key in world.waiting])
    assert queue.resources.available == queue.resources.total
    for owner_req in world.waiting:
        assert "It waits until a node has that much" in queue.explain(*owner_req)
