"""The home of lease requests among nodes that are simulated: messages take their time, views are old, nodes die."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import pytest

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
from shoal.core.policy import Demand, too_busy
from shoal.core.resources import CPU, Amounts
from shoal.core.view import View
from shoal.messages.node import UNIT
from shoal.messages.placement import NodeAffinity, Spread, ViewRow

LOCAL = b"node-0"


class Host:
    """A node: a queue, leases, and a row that is told now and then. Owners that ended are not heard of again."""

    def __init__(self, node_id: bytes, cpus: int) -> None:
        self.node_id = node_id
        self.total = cpus * UNIT
        self.free = self.total
        self.version = 1
        self.waiting: deque[tuple[Any, int, int]] = deque()
        self.leases: dict[int, tuple[Any, int]] = {}
        self.numbers = 0
        self.alive = True

    def row(self) -> ViewRow:
        self.version += 1
        return ViewRow(
            self.node_id,
            self.version,
            {CPU: self.total},
            {CPU: self.free},
            waiting=len(self.waiting),
            servers=len(self.leases),
            mean_run_us=1000,
        )

    def ask(self, owner: Any, req: int, amount: int, expected_us: int) -> ViewRow | None:
        row = self.row()
        ahead_us = (len(self.waiting) + 1) * 1000 // max(1, len(self.leases))
        if self.free < amount and too_busy(ahead_us, expected_us):
            return row
        assert all((o, r) != (owner, req) for o, r, _ in self.waiting), "the same request twice"
        self.waiting.append((owner, req, amount))
        return None

    def withdraw(self, owner: Any, req: int) -> None:
        self.waiting = deque(w for w in self.waiting if w[:2] != (owner, req))

    def end_owner(self, owner: Any) -> None:
        self.waiting = deque(w for w in self.waiting if w[0] != owner)
        for number in [n for n, (o, _) in self.leases.items() if o == owner]:
            self.give_back(number)

    def give_back(self, number: int) -> None:
        lease = self.leases.pop(number, None)
        if lease is not None:
            self.free += lease[1]

    def grants(self) -> list[tuple[Any, int, int]]:
        granted = []
        while self.waiting and self.waiting[0][2] <= self.free:
            owner, req, amount = self.waiting.popleft()
            self.free -= amount
            self.numbers += 1
            self.leases[self.numbers] = (owner, amount)
            granted.append((owner, req, self.numbers))
        return granted


class World:
    """A home, the hosts, and what is on its way between them: in order for each pair, late for each in its own way."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.hosts = {
            b"node-%d" % i: Host(b"node-%d" % i, self.rng.choice([1, 2, 4])) for i in range(4)
        }
        self.home = Home(View(LOCAL), self.rng)
        for host in self.hosts.values():
            self.home.view.on_row(host.row())
        self.to: dict[bytes, deque[Any]] = {node_id: deque() for node_id in self.hosts}
        self.back: dict[bytes, deque[Any]] = {node_id: deque() for node_id in self.hosts}
        self.demands: dict[tuple[int, int], Demand] = {}
        # Of each request: what its owner knows.
        self.state: dict[tuple[int, int], str] = {}
        self.held: dict[tuple[int, int], tuple[bytes, int]] = {}
        self.gone: set[int] = set()

    # --- the owners' side ---

    def request(self, owner: int, req: int, demand: Demand) -> None:
        self.demands[owner, req] = demand
        self.state[owner, req] = "waits"
        self.refresh()
        self.home.on_request(owner, req, demand)
        self.obey()

    def cancel(self, owner: int, req: int) -> None:
        if self.state[owner, req] == "waits":
            self.state[owner, req] = "cancelled"
        self.home.on_cancel(owner, req)
        self.obey()

    def give_back(self, key: tuple[int, int]) -> None:
        node_id, lease_id = self.held.pop(key)
        self.state[key] = "returned"
        if node_id == LOCAL:
            self.hosts[LOCAL].give_back(lease_id)
        else:
            self.home.on_return(key[0], lease_id, discard=False)
        self.obey()

    def end_owner(self, owner: int) -> None:
        self.gone.add(owner)
        self.refresh()
        self.home.on_owner_gone(owner, "was killed")
        self.hosts[LOCAL].end_owner(owner)
        for key in [key for key in self.state if key[0] == owner]:
            self.state[key] = "gone"
            self.held.pop(key, None)
        self.obey()

    def granted(self, key: tuple[int, int], node_id: bytes, lease_id: int) -> None:
        state = self.state[key]
        assert state in {"waits", "cancelled"}, f"{key} is granted, and it {state}"
        if state == "cancelled":
            # As owners do.
            self.held[key] = (node_id, lease_id)
            self.give_back(key)
            self.state[key] = "cancelled"
        else:
            self.state[key] = "held"
            self.held[key] = (node_id, lease_id)

    # --- the home's side ---

    def refresh(self) -> None:
        self.home.view.on_row(self.hosts[LOCAL].row())

    def obey(self) -> None:
        outbox = self.home.outbox
        while outbox:
            effect = outbox.pop(0)
            match effect:
                case QueueHere(owner, req):
                    amount = self.demands[owner, req].amounts[0][1]
                    assert self.hosts[LOCAL].ask(owner, req, amount, 1 << 60) is None
                case CancelHere(owner, req):
                    self.hosts[LOCAL].withdraw(owner, req)
                case (
                    AskAt(node_id)
                    | WithdrawAt(node_id)
                    | GiveBackAt(node_id)
                    | OwnerEndedAt(node_id)
                ):
                    assert node_id != LOCAL
                    self.to[node_id].append(effect)
                case Deliver(owner, req, lease_id, address):
                    self.granted((owner, req), address.encode(), lease_id)
                case Deny(owner, req):
                    assert self.state[owner, req] == "waits"
                    self.state[owner, req] = "denied"
                case Explain() | Recall():
                    pass

    def serve_here(self) -> None:
        for owner, req, number in self.hosts[LOCAL].grants():
            self.refresh()
            self.home.on_granted_here(owner, req)
            self.granted((owner, req), LOCAL, number)
        self.obey()

    # --- time ---

    def step(self) -> None:
        """Something happens: a message arrives somewhere, or a host serves."""
        node_id = self.rng.choice(list(self.hosts))
        host = self.hosts[node_id]
        if node_id == LOCAL:
            self.serve_here()
            return
        if not host.alive:
            return
        match self.rng.randrange(4):
            case 0 if self.to[node_id]:
                self.arrive(host, self.to[node_id].popleft())
            case 1 if self.back[node_id]:
                self.hear(host, self.back[node_id].popleft())
            case 2:
                for owner, req, number in host.grants():
                    self.back[node_id].append(("gave", owner, req, number, host.row().version))
            case 3:
                # Of rows only the newest is on its way.
                self.back[node_id] = deque(m for m in self.back[node_id] if m[0] != "row")
                self.back[node_id].append(("row", host.row()))

    def arrive(self, host: Host, effect: Any) -> None:
        match effect:
            case AskAt(_, owner, req, expected_us):
                amount = self.demands[owner, req].amounts[0][1]
                row = host.ask(owner, req, amount, expected_us)
                if row is not None:
                    self.back[host.node_id].append(("busy", owner, req, row))
            case WithdrawAt(_, owner, req):
                host.withdraw(owner, req)
            case GiveBackAt(_, _, number):
                host.give_back(number)
            case OwnerEndedAt(_, owner):
                host.end_owner(owner)

    def hear(self, host: Host, message: Any) -> None:
        self.refresh()
        match message:
            case ("gave", owner, req, number, version):
                address = host.node_id.decode()
                self.home.on_gave(host.node_id, owner, req, number, address, 1, [], version)
            case ("busy", owner, req, row):
                self.home.on_busy(host.node_id, owner, req, row)
            case ("row", row):
                if self.home.view.on_row(row):
                    self.home.on_view_changed()
        self.obey()

    def kill(self, node_id: bytes) -> None:
        self.hosts[node_id].alive = False
        self.to[node_id].clear()
        self.back[node_id].clear()
        for key in [key for key, (at, _) in self.held.items() if at == node_id]:
            del self.held[key]
            self.state[key] = "lost"
        self.refresh()
        self.home.on_node_gone(node_id)
        self.obey()

    def drain(self) -> None:
        """Everything arrives, and everybody serves, until nothing moves."""
        for _ in range(200):
            for _ in range(200):
                self.step()
            self.refresh()
            self.home.on_view_changed()
            self.obey()
            self.home.check()
            for key in list(self.held):
                self.give_back(key)
            if "waits" not in self.state.values():
                break
        for _ in range(1000):
            self.step()


def demand(rng: random.Random) -> Demand:
    amounts: Amounts = ((CPU, rng.choice([UNIT // 2, UNIT, 2 * UNIT])),)
    strategy = rng.choice(
        [None, None, Spread(), NodeAffinity(b"node-%d" % rng.randrange(4), soft=True)]
    )
    return Demand(amounts, strategy)


@pytest.mark.parametrize("seed", range(30))
def test_every_request_is_answered_once_and_nothing_stays_behind(seed: int) -> None:
    world = World(seed)
    rng = world.rng
    # Somebody can serve the largest demand whoever dies.
    world.hosts[LOCAL].total = world.hosts[LOCAL].free = 2 * UNIT
    world.refresh()
    for req in range(120):
        owner = rng.randrange(5)
        if owner not in world.gone:
            world.request(owner, req, demand(rng))
            if rng.random() < 0.2:
                world.home.on_request(owner, req, world.demands[owner, req])
                world.obey()
        for _ in range(rng.randrange(12)):
            world.step()
        if world.held and rng.random() < 0.5:
            world.give_back(rng.choice(list(world.held)))
        if rng.random() < 0.1:
            world.cancel(*rng.choice(list(world.state)))
        if rng.random() < 0.02:
            world.end_owner(rng.randrange(5))
        if rng.random() < 0.015:
            world.kill(b"node-%d" % rng.randrange(1, 4))
        world.home.check()
    world.drain()
    assert set(world.state.values()) <= {"returned", "cancelled", "gone", "lost", "denied"}
    assert "denied" not in world.state.values()
    assert list(world.home.waiting()) == []
    assert world.home.lease_count() == 0
    for host in world.hosts.values():
        if host.alive:
            assert not host.waiting
            assert not host.leases
            assert host.free == host.total
    for node in world.home.view:
        assert not [1 for _, shown_by in node.deducted.values() if not shown_by]


def test_what_waits_in_a_queue_moves_when_another_node_has_room() -> None:
    world = World(1)
    for host in world.hosts.values():
        host.total = host.free = UNIT
        world.home.view.on_row(host.row())
    one = Demand(((CPU, UNIT),))
    for req in range(6):
        world.request(1, req, one)
    asked = [effect for queue in world.to.values() for effect in queue]
    assert len(asked) >= 3, "all four nodes are used"
    before = [world.home.where(1, req) for req in range(6)]
    assert all(where is not None and where[0] != NOWHERE for where in before)
    assert [where for where in before if where is not None and where[0] == HERE]
    world.drain()
    assert set(world.state.values()) == {"returned"}


def test_of_many_that_are_nowhere_all_are_placed_when_a_node_comes() -> None:
    """There may be no other change of the view after that."""
    view = View(LOCAL)
    view.on_row(ViewRow(LOCAL, 1, {CPU: UNIT}, {CPU: UNIT}))
    home = Home(view, random.Random(1))
    for number in range(600):
        home.on_request("owner", number, Demand(((f"r{number}", UNIT),)))
        assert home.where("owner", number) != (HERE, "")
    home.outbox.clear()
    for number in (599, 300):
        node_id = b"new %d" % number
        amounts = {f"r{number}": UNIT}
        view.on_row(ViewRow(node_id, 1, amounts, dict(amounts)))
        home.on_view_changed()
        home.check()
        asked = [effect for effect in home.outbox if isinstance(effect, AskAt)]
        home.outbox.clear()
        assert [(effect.node_id, effect.req) for effect in asked] == [(node_id, number)]
