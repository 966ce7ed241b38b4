"""Whose turn it is in the lease queue: the trees against plain lists, a pass against one that looks at every claimant, and what it
costs."""

from __future__ import annotations

import itertools
import sys
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.core.demand_tree import DemandTree
from shoal.core.lease_records import Claimant, ForkWorker, Grant, Limits, Request
from shoal.core.lease_requests import LeaseRequests
from shoal.core.leases import LeaseQueue
from shoal.core.pool import WorkerKey
from shoal.core.resources import Amounts, NodeResources
from shoal.core.supply import Supply
from shoal.core.turns import Granting
from shoal.messages.node import UNIT, Shape
from shoal.messages.placement import InBundle
from tests.core.test_leases_random import MS, new_queue, worker_ids

KEY = WorkerKey(b"job", "")
GROUP = b"group"

a_share = st.integers(1, 4).map(lambda quarters: quarters * UNIT // 4)
demands = st.fixed_dictionaries(
    {}, optional={"CPU": a_share, "GPU": a_share, "memory": a_share}
).map(lambda amounts: tuple(sorted(amounts.items())))


# --- the tree ---------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(0, 9), st.booleans(), st.integers(0, 5), demands), max_size=60),
    st.lists(demands, min_size=1, max_size=4),
)
def test_a_tree_finds_what_a_look_at_every_item_finds(
    changes: list[tuple[int, bool, int, Amounts]], frees: list[Amounts]
) -> None:
    tree = DemandTree[int]()
    items: dict[int, tuple[tuple[int, int], Amounts]] = {}
    for serial, (item, there, key, amounts) in enumerate(changes):
        if not there:
            tree.discard(item)
            items.pop(item, None)
            continue
        # What an item asks for stays as it is.
        amounts = items[item][1] if item in items else amounts
        items[item] = ((key, serial), amounts)
        tree.put(item, *items[item])
        tree.check()
    ordered = sorted(items, key=lambda item: items[item][0])
    assert list(tree) == ordered
    assert len(tree) == len(ordered)
    for free in frees:
        node = NodeResources(dict(free))
        met = [item for item in ordered if node.fits(items[item][1])]
        unmet = [item for item in ordered if item not in met]
        assert tree.first_met(node.fits) == (met[0] if met else None)
        assert tree.first_unmet(node.fits) == (unmet[0] if unmet else None)
        names = {name for name, _ in free}
        assert list(tree.asking_for(names)) == [
            item for item in ordered if any(name in names for name, _ in items[item][1])
        ]


# --- a pass -----------------------------------------------------------------------------------------------------------


def looking_at_all(
    claimants: list[Claimant],
    supply: Supply,
    reserved: dict[InBundle | None, Amounts],
    idle: list[bool],
    most_forks: int,
) -> list[tuple[Request, bool]]:
    """Rules 1 and 2 as they are written, by a look at every claimant for every turn: who has one, and whether there was a worker."""
    turns: list[tuple[Request, bool]] = []
    waiting = {claimant: list(claimant.waiting) for claimant in claimants}
    held = {claimant: claimant.held for claimant in claimants}
    forks = dict.fromkeys(claimants, 0)
    workers = iter(idle)
    while True:
        fitting = [
            claimant
            for claimant in claimants
            if waiting[claimant]
            and forks[claimant] < most_forks
            and supply.fits(
                claimant.source, claimant.amounts, dict(reserved.get(claimant.source, ()))
            )
        ]
        if not fitting:
            return turns
        claimant = min(fitting, key=lambda claimant: (held[claimant], claimant.since))
        worker = next(workers, False)
        turns.append((waiting[claimant].pop(0), worker))
        supply.take(claimant.source, claimant.amounts)
        held[claimant] += 1
        forks[claimant] += not worker


def books() -> Supply:
    supply = Supply(NodeResources({"CPU": 6 * UNIT, "GPU": 3 * UNIT, "memory": 3 * UNIT}))
    supply.ledger.prepare(GROUP, 1, [(0, (("CPU", UNIT),)), (1, (("CPU", UNIT), ("GPU", UNIT)))])
    supply.ledger.commit(GROUP, 1)
    return supply


@given(
    claimants=st.lists(
        st.tuples(
            st.integers(0, 2),
            demands,
            st.sampled_from([None, None, InBundle(GROUP, 0), InBundle(GROUP, 1), InBundle(GROUP)]),
            st.integers(1, 4),
        ),
        max_size=12,
    ),
    reserved=demands,
    idle=st.lists(st.booleans(), max_size=20),
)
def test_a_pass_gives_turns_as_if_it_had_looked_at_every_claim(
    claimants: list[tuple[int, Amounts, InBundle | None, int]],
    reserved: Amounts,
    idle: list[bool],
) -> None:
    requests = LeaseRequests()
    made: dict[Claimant, None] = {}
    numbers = itertools.count()
    for owner, (held, amounts, source, count) in enumerate(claimants):
        claimant = requests.claimant(owner, KEY, amounts, source)
        claimant.held = held
        made[claimant] = None
        for _ in range(count):
            requests.add(
                next(numbers), claimant, 0, name="", keeps=None, outlives_job=False, feasible=True
            )
    most_forks = 2
    expected = looking_at_all(list(made), books(), {None: reserved}, idle, most_forks)

    supply = books()
    granting = Granting(requests.turns, supply, {None: reserved}, most_forks)
    turns: list[tuple[Request, bool]] = []
    workers = iter(idle)
    free_before = dict(supply.resources.available)
    granted: dict[str, int] = {}
    while (turn := granting.next()) is not None:
        rota, request = turn
        worker = next(workers, False)
        turns.append((request, worker))
        if worker:
            requests.served(request)
            reservation, allocation = supply.take(rota.source, request.claimant.amounts)
            request.claimant.held += 1
            if reservation is None:
                for name, amount in allocation.amounts:
                    granted[name] = granted.get(name, 0) + amount
            granting.served(*turn)
        else:
            granting.kept_for_fork(*turn)
    granting.end()
    assert turns == expected
    assert granting.kept == sum(not worker for _, worker in turns)
    assert sum(granting.forks.values()) == granting.kept
    for name, amount in supply.resources.available.items():
        assert amount == free_before[name] - granted.get(name, 0)
    requests.turns.check(made)
    served = {request for request, worker in turns if worker}
    kept = {request for request, worker in turns if not worker}
    for rota in requests.turns:
        left = list(granting.left(rota))
        assert left == sorted(left, key=lambda claimant: (claimant.held, claimant.since))
        for claimant in made:
            if claimant.source == rota.source:
                assert (claimant in left) == any(r not in kept for r in claimant.waiting)
    assert not served & {request for claimant in made for request in claimant.waiting}


def test_tasks_of_a_claim_need_not_wait_until_a_worker_has_started_for_an_actor_of_it() -> None:
    queue = new_queue(cpus=3)
    shape = Shape((("CPU", UNIT),))
    queue.on_request(1, 1, b"job", shape, 0)
    queue.advance(0)
    (fork,) = (effect for effect in queue.outbox if isinstance(effect, ForkWorker))
    queue.on_registered(fork.worker_id, 0)
    queue.advance(0)
    (grant,) = (effect for effect in queue.outbox if isinstance(effect, Grant))
    queue.outbox.clear()
    queue.on_return(1, grant.lease_id, False, 0)
    # The worker that idles now has run a task: no actor can begin in it, but the task behind the actor can.
    queue.on_request(1, 2, b"job", shape, 0, keeps=())
    queue.on_request(1, 3, b"job", shape, 0)
    queue.advance(0)
    queue.check()
    assert [effect.req for effect in queue.outbox if isinstance(effect, Grant)] == [3]
    assert any(isinstance(effect, ForkWorker) for effect in queue.outbox)
    assert queue.knows(1, 2)


# --- what it costs ----------------------------------------------------------------------------------------------------


class Steps:
    """Counts the lines of `shoal/core` that are executed within it: a measure of work that is the same on every machine."""

    def __init__(self) -> None:
        self.count = 0
        self._before: Any = None

    def __enter__(self) -> Steps:
        self._before = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *args: object) -> None:
        sys.settrace(self._before)

    def _call(self, frame: FrameType, event: str, arg: object) -> Any:
        return self._line if "/shoal/core/" in frame.f_code.co_filename else None

    def _line(self, frame: FrameType, event: str, arg: object) -> Any:
        self.count += event == "line"
        return self._line


def serve_all(shapes: list[Shape], monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Serve a request of each shape, on two CPUs, with each lease given back at once: how often a demand was held against what is
    free, and how many lines were executed."""
    total = {"CPU": 2 * UNIT, "memory": 1_000 * UNIT}
    limits = Limits(100 * MS, 2, 1_000 * MS, 60_000 * MS, max_starting=8, max_workers=100)
    queue = LeaseQueue(NodeResources(total), limits, worker_ids())
    looks = 0
    fits = queue.supply.fits

    def counted(*args: Any) -> bool:
        nonlocal looks
        looks += 1
        return fits(*args)

    monkeypatch.setattr(queue.supply, "fits", counted)
    served = now = 0
    with Steps() as steps:
        for req, shape in enumerate(shapes):
            queue.on_request(1, req, b"job", shape, now)
            queue.advance(now)
        while served < len(shapes):
            # They are old enough to be asked for before they come back.
            now += 120 * MS
            effects, queue.outbox[:] = queue.outbox[:], []
            queue.advance(now)
            for effect in effects:
                if isinstance(effect, ForkWorker):
                    queue.on_registered(effect.worker_id, now)
                elif isinstance(effect, Grant):
                    served += 1
                    queue.on_return(effect.owner, effect.lease_id, False, now)
                queue.advance(now)
    queue.check()
    assert not len(queue.requests)
    return looks, steps.count


KINDS = {
    "tasks with a memory each of their own": lambda n: (("CPU", UNIT), ("memory", n + 1)),
    "tasks with more CPU each": lambda n: (("CPU", UNIT // 2 + n),),
    "tasks with less CPU each": lambda n: (("CPU", 2 * UNIT - n),),
    "tasks with a resource of which there is little": lambda n: (("memory", 300 * UNIT + n),),
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_shapes_that_wait_are_not_all_looked_at_for_every_grant(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, many = 64, 512
    costs = {
        count: serve_all([Shape(KINDS[kind](n)) for n in range(count)], monkeypatch)
        for count in (few, many)
    }
    for measure, name in enumerate(("looks", "lines executed")):
        for_few, for_many = costs[few][measure] / few, costs[many][measure] / many
        # Eight times as many shapes: a logarithm grows by half.
        assert for_many < 2 * for_few, f"{name} for each grant: {for_few:.0f}, {for_many:.0f}"
    assert costs[many][0] / many < 60
