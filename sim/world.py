"""A whole simulated cluster: homes that ask, hosts that serve, a control store that tells, and nodes that die.

A few nodes have requests of their own (*homes*, with their real `Home` and a view of all nodes each); all nodes serve. That is how
clusters are used: few drivers, many machines. It is also what fits into memory: a view of 10,000 nodes is 10,000 records, and
10,000 such views are more than this program is for.

Every request is granted once, or its loss is explained by the death of a node; `check` asserts that at the end.
"""

from __future__ import annotations

import statistics
from random import Random
from time import perf_counter
from typing import Final, NamedTuple

from shoal.config import Config, view_s
from shoal.core.forwarding import (
    AskAt,
    CancelHere,
    Deliver,
    GiveBackAt,
    Home,
    QueueHere,
    WithdrawAt,
)
from shoal.core.policy import Demand
from shoal.core.resources import CPU, GPU
from shoal.core.view import View
from shoal.messages.node import UNIT
from shoal.messages.placement import Spread, ViewRow
from sim.clock import MS, SECOND, US, Clock
from sim.control import Control, Costs
from sim.hosts import Host, Request

CPUS: Final = 8
DEMANDS: Final = (
    Demand(((CPU, UNIT),)),
    Demand(((CPU, UNIT),), Spread()),
    Demand(((CPU, 2 * UNIT),)),
    Demand(((CPU, UNIT), (GPU, UNIT))),
)
SHARES: Final = (80, 10, 9, 1)
_MEAN_CPUS: Final = (80 + 10 + 2 * 9 + 1) / 100


class Plan(NamedTuple):
    """What is simulated. `load` is the share of all CPUs that the requests need on average; leases last from a quarter to seven
    quarters of `lease_s`; of `deaths` of the nodes, the machines fail a quarter of the way through."""

    nodes: int
    seconds: float = 5.0
    load: float = 0.7
    lease_s: float = 4.0
    homes: int = 20
    deaths: float = 0.01
    seed: int = 1
    costs: Costs = Costs()
    config: Config = Config()


class Result(NamedTuple):
    """What came of it. All but `wall_s` is the same for the same plan, on every machine."""

    wall_s: float
    events: int
    requests: int
    granted: int
    waiting: int
    forwarded: float
    busy_per_request: float
    moved_per_request: float
    lost: int
    messages_in_s: float
    messages_out_s: float
    bytes_in_s: float
    bytes_out_s: float
    control_cores: float
    round_s: float
    view_age_s: float
    utilisation: tuple[float, float, float]
    wait_mean_ms: float
    wait_p99_ms: float


class _Wanted(NamedTuple):
    demand: Demand
    since: int
    run_ns: int


class _Daemon:
    """A home: what the shell around a `Home` does."""

    def __init__(self, world: World, host: Host, owner: int) -> None:
        self.world = world
        self.host = host
        self.owner = owner
        self.view = View(host.node_id)
        self.home = Home(self.view, world.rng)
        self.wanted: dict[int, _Wanted] = {}
        self.done: set[int] = set()
        self.last_req = 0
        self.view_ages: list[int] = []

    def begin(self) -> None:
        self._next()

    def _next(self) -> None:
        world = self.world
        gap_ns = world.rng.expovariate(world.rate / world.plan.homes) * SECOND
        world.clock.after(round(gap_ns), self._request)

    def _request(self) -> None:
        world = self.world
        if world.accepts:
            self.last_req += 1
            demand = world.rng.choices(DEMANDS, SHARES)[0]
            run_ns = round(world.plan.lease_s * SECOND * world.rng.uniform(0.25, 1.75))
            self.wanted[self.last_req] = _Wanted(demand, world.clock.now, run_ns)
            self.view.on_row(self.host.row())
            self.home.on_request(self.owner, self.last_req, demand)
            self.drain()
            self._next()

    def drain(self) -> None:
        """Carry out what the home has decided."""
        world, outbox = self.world, self.home.outbox
        while outbox:
            effects = outbox[:]
            outbox.clear()
            for effect in effects:
                match effect:
                    case QueueHere(_, req):
                        if req in self.wanted:
                            self.host.take(self._as_request(req, remote=False), world.clock.now)
                    case CancelHere(_, req):
                        self.host.withdraw(self.host.node_id, req)
                    case AskAt(node_id, _, req, expected_us):
                        world.forwarded += 1
                        request = self._as_request(req, remote=True)
                        world.send(world.asked, self, node_id, request, expected_us)
                    case WithdrawAt(node_id, _, req):
                        world.moved += 1
                        world.send(world.withdrawn, self, node_id, req)
                    case GiveBackAt(node_id, _, number, _):
                        world.send(world.given_back, self, node_id, number)
                    case Deliver(_, req, lease_id):
                        run_ns = self.wanted[req].run_ns
                        self._granted(req)
                        world.clock.after(run_ns, self._returns, lease_id)
                    case _:
                        raise AssertionError(f"nothing in this simulation asks for {effect}")

    def _as_request(self, req: int, *, remote: bool) -> Request:
        wanted = self.wanted[req]
        granted = self._granted_there if remote else self._granted_here
        return Request(self.host.node_id, req, wanted.demand.amounts, wanted.run_ns, granted)

    def _granted_here(self, request: Request) -> None:
        self.home.on_granted_here(self.owner, request.req)
        self._granted(request.req)
        world = self.world
        world.clock.after(request.run_ns, self._ends_here, request.req)

    def _ends_here(self, req: int) -> None:
        self.host.give_back(self.host.node_id, req, self.world.clock.now)

    def _granted_there(self, request: Request) -> None:
        """At the host: the answer leaves. The number of the lease there is that of the request."""
        host = self.world.current
        self.world.send(self._on_gave, host.node_id, request.req, host.version)

    def _on_gave(self, node_id: bytes, req: int, version: int) -> None:
        # A node that died after it had answered: its connection breaks after the answer was read.
        self.home.on_gave(node_id, self.owner, req, req, "", 0, [], version)
        self.drain()

    def on_busy(self, node_id: bytes, req: int, row: ViewRow) -> None:
        self.world.busy += 1
        self.view.on_row(self.host.row())
        self.home.on_busy(node_id, self.owner, req, row)
        self.drain()

    def _granted(self, req: int) -> None:
        wanted = self.wanted.pop(req)
        assert req not in self.done, "granted twice"
        self.done.add(req)
        self.world.waits.append(self.world.clock.now - wanted.since)

    def _returns(self, lease_id: int) -> None:
        self.home.on_return(self.owner, lease_id, discard=False)
        self.drain()

    def on_rows(self, rows: list[ViewRow]) -> None:
        for row in rows:
            self.view.on_row(row)
        self.view.on_row(self.host.row())
        self.home.on_view_changed()
        self.drain()

    def on_death(self, node_id: bytes) -> None:
        self.home.on_node_gone(node_id)
        self.drain()

    def note_age(self) -> None:
        """How old is what this home believes of other nodes."""
        world = self.world
        for host in world.rng.sample(world.hosts_list, min(50, len(world.hosts_list))):
            node = self.view.get(host.node_id)
            if host.alive and node is not None and host is not self.host:
                newest = node.row.version >= host.version
                self.view_ages.append(
                    0 if newest else world.clock.now - world.made[host.node_id, node.row.version]
                )


class World:
    """See the module's docstring."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.rng = Random(plan.seed)
        self.clock = Clock()
        homes = min(plan.homes, plan.nodes)
        self.plan = plan._replace(homes=homes)
        self.control = Control(self.clock, plan.config, plan.costs, plan.nodes, homes)
        # Requests a second that keep `load` of the CPUs busy.
        self.rate = plan.load * CPUS * plan.nodes / (plan.lease_s * _MEAN_CPUS)
        self.accepts = True
        self.waits: list[int] = []
        self.forwarded = self.busy = self.moved = self.lost = 0
        # When each row was made that anybody may have.
        self.made: dict[tuple[bytes, int], int] = {}
        self._last_told: dict[bytes, int] = {}
        # Between two rows of one node.
        self._pause_ns = round(view_s(plan.config, plan.nodes) * SECOND)
        self._told_later: set[bytes] = set()
        self.hosts: dict[bytes, Host] = {}
        for number in range(plan.nodes):
            host = self._make_host(number)
            self.hosts[host.node_id] = host
            self._occupy(host)
            self._note(host)
            self.control.join(host.row())
        self.hosts_list = list(self.hosts.values())
        self.current = self.hosts_list[0]
        every = plan.nodes // homes
        self.daemons = [
            _Daemon(self, self.hosts_list[number * every], number) for number in range(homes)
        ]
        for daemon in self.daemons:
            self.control.follow(daemon.host.node_id, daemon.on_rows)
            daemon.begin()
        self.control.on_deaths(self._on_death)
        for host in self.hosts_list:
            self.clock.after(round(self.rng.random() * SECOND), self._heartbeat, host)

    def _make_host(self, number: int) -> Host:
        node_id = number.to_bytes(4, "big") * 4
        total = {
            CPU: CPUS * UNIT,
            "memory": (64 << 30) * UNIT,
            "object_store_memory": (20 << 30) * UNIT,
            f"node:10.{number >> 16}.{number >> 8 & 255}.{number & 255}": UNIT,
        }
        if number % 10 == 9:
            total[GPU] = UNIT
        labels = {"zone": "abc"[number % 3], "shoal.io/node-id": node_id.hex()}
        return Host(node_id, total, labels, self._row_changed)

    def _occupy(self, host: Host) -> None:
        """Leases that were there before: a simulation begins with as much work as there will be."""
        host.mean_run_us = round(self.plan.lease_s * 1e6)
        for number in range(CPUS):
            if self.rng.random() < self.plan.load:
                # Of the leases that are out at a moment, long ones are more than their share.
                length = self.rng.uniform(0.25, 1.75)
                while self.rng.random() > length / 1.75:
                    length = self.rng.uniform(0.25, 1.75)
                left_ns = round(self.rng.uniform(0, length) * self.plan.lease_s * SECOND)
                request = Request(b"", number, ((CPU, UNIT),), left_ns, lambda _: None)
                host.take(request, 0)
                self.clock.after(left_ns, self._vacate, host, number)

    def _vacate(self, host: Host, number: int) -> None:
        if host.alive:
            self.current = host
            host.give_back(b"", number, self.clock.now)

    # --- the network ---------------------------------------------------------------------------------------------

    def send(self, function: object, *args: object) -> None:
        """A message from daemon to daemon takes 0.1 to 0.3 ms. One may overtake another, which is worse than what connections do."""
        assert callable(function)
        self.clock.after(self.rng.randrange(100 * US, 300 * US), function, *args)

    def asked(self, daemon: _Daemon, node_id: bytes, request: Request, expected_us: int) -> None:
        """A forwarded request arrives."""
        host = self.hosts[node_id]
        if not host.alive:
            return
        self.current = host
        if request.req not in daemon.wanted:
            return
        if not host.ask(request, expected_us, self.clock.now):
            self._note(host)
            self.send(daemon.on_busy, node_id, request.req, host.row())

    def withdrawn(self, daemon: _Daemon, node_id: bytes, req: int) -> None:
        """A withdrawal arrives."""
        self.hosts[node_id].withdraw(daemon.host.node_id, req)

    def given_back(self, daemon: _Daemon, node_id: bytes, number: int) -> None:
        """A lease comes back."""
        host = self.hosts[node_id]
        if host.alive:
            self.current = host
            host.give_back(daemon.host.node_id, number, self.clock.now)

    # --- rows and heartbeats -------------------------------------------------------------------------------------

    def _row_changed(self, host: Host) -> None:
        if not host.alive or host.node_id in self._told_later:
            return
        due = self._last_told.get(host.node_id, -self._pause_ns) + self._pause_ns
        self._told_later.add(host.node_id)
        self.clock.after(max(0, due - self.clock.now), self._tell, host)

    def _tell(self, host: Host) -> None:
        self._told_later.discard(host.node_id)
        if host.alive:
            self._last_told[host.node_id] = self.clock.now
            self._note(host)
            self.clock.after(MS // 2, self.control.on_latest, host.row())

    def _note(self, host: Host) -> None:
        self.made[host.node_id, host.version] = self.clock.now

    def _heartbeat(self, host: Host) -> None:
        if host.alive:
            period = round(self.plan.config.node_heartbeat_s * SECOND)
            if self.clock.now - self._last_told.get(host.node_id, -period) >= period:
                self.control.on_alive(host.node_id)
            self.clock.after(period, self._heartbeat, host)

    # --- deaths --------------------------------------------------------------------------------------------------

    def kill(self, host: Host) -> None:
        """A machine fails."""
        host.alive = False
        self.lost += len(host.leases)
        self.control.on_disconnected(host.node_id)

    def _on_death(self, node_id: bytes) -> None:
        for daemon in self.daemons:
            daemon.on_death(node_id)

    # --- a run ---------------------------------------------------------------------------------------------------

    def run(self) -> Result:
        """Simulate; then let all requests be served, and check that they were."""
        plan, clock = self.plan, self.clock
        began = perf_counter()
        end = round(plan.seconds * SECOND)
        clock.run(end // 4)
        homes = {daemon.host.node_id for daemon in self.daemons}
        others = [host for host in self.hosts_list if host.node_id not in homes]
        for host in self.rng.sample(others, min(len(others), round(plan.deaths * plan.nodes))):
            self.kill(host)
        counted_from = clock.now
        for host in self.hosts_list:
            host.begin_count(clock.now)
        self.waits.clear()
        counts_before = vars(self.control.counts).copy()
        requests_before = sum(daemon.last_req for daemon in self.daemons)
        forwarded, busy, moved = self.forwarded, self.busy, self.moved
        step = (end - counted_from) // 20
        while clock.now < end:
            clock.run(min(end, clock.now + step))
            for daemon in self.daemons:
                daemon.note_age()
        counted_s = (end - counted_from) / SECOND
        counts = {
            name: (value - counts_before[name]) / counted_s
            for name, value in vars(self.control.counts).items()
        }
        used = sorted(host.utilisation(counted_from, end) for host in self.hosts_list if host.alive)
        waits = sorted(self.waits)
        requests = sum(daemon.last_req for daemon in self.daemons) - requests_before
        result = Result(
            wall_s=0,
            events=clock.events,
            requests=requests,
            granted=len(waits),
            waiting=sum(len(daemon.wanted) for daemon in self.daemons),
            forwarded=(self.forwarded - forwarded) / requests,
            busy_per_request=(self.busy - busy) / requests,
            moved_per_request=(self.moved - moved) / requests,
            lost=self.lost,
            messages_in_s=counts["messages_in"],
            messages_out_s=counts["messages_out"],
            bytes_in_s=counts["bytes_in"],
            bytes_out_s=counts["bytes_out"],
            control_cores=counts["busy_us"] / 1e6,
            round_s=self.control.round_s(),
            view_age_s=_mean([age for d in self.daemons for age in d.view_ages]) / SECOND,
            utilisation=(used[len(used) // 2], used[len(used) * 99 // 100], used[-1]),
            wait_mean_ms=_mean(waits) / MS,
            wait_p99_ms=waits[len(waits) * 99 // 100] / MS if waits else 0,
        )
        return result._replace(wall_s=perf_counter() - began)

    def settle(self, seconds: float) -> None:
        """No more requests: let those that wait be served."""
        self.accepts = False
        self.clock.run(self.clock.now + round(seconds * SECOND))

    def check(self) -> None:
        """Assert the invariants; after `settle`, also that every request was granted, and once."""
        for host in self.hosts_list:
            host.check()
        for daemon in self.daemons:
            daemon.home.check()
            if not self.accepts:
                assert not daemon.wanted, f"{len(daemon.wanted)} requests were never served"
                assert len(daemon.done) == daemon.last_req


def _mean(values: list[int]) -> float:
    return statistics.fmean(values) if values else 0.0
