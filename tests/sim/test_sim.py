"""Small simulated clusters, and what the size of a cluster does to the work behind a decision."""

from __future__ import annotations

import sys
from random import Random
from types import FrameType
from typing import Any

import pytest

from shoal.config import Config
from sim.__main__ import table
from sim.control import Costs
from sim.costs import decide, make_view, measure, renewed
from sim.world import DEMANDS, SHARES, Plan, World


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_request_is_granted_once_though_nodes_die(seed: int) -> None:
    world = World(Plan(nodes=40, seconds=6, homes=8, deaths=0.1, seed=seed))
    result = world.run()
    world.check()
    assert result.requests > 100
    assert sum(not host.alive for host in world.hosts_list) == 4
    # Everybody knows that they are dead, at the latest when the simulation goes on for a while.
    world.settle(30)
    world.check()
    for daemon in world.daemons:
        assert {node.node_id for node in daemon.view} == {
            host.node_id for host in world.hosts_list if host.alive
        }
    for host in world.hosts_list:
        if host.alive:
            assert host.free == host.total, "all leases came back"


def test_one_seed_is_one_history() -> None:
    def history(seed: int) -> tuple[Any, ...]:
        return tuple(World(Plan(nodes=30, seconds=2, homes=5, seed=seed)).run()._replace(wall_s=0))

    assert history(7) == history(7)
    assert history(7) != history(8)


def test_load_is_spread_while_there_is_room() -> None:
    result = World(Plan(nodes=100, seconds=8, homes=20, load=0.7, deaths=0, seed=4)).run()
    median, _, most = result.utilisation
    assert 0.55 < median < 0.85
    assert most < 1
    # Leases take seconds; hardly anybody waits for one that has to end.
    assert result.wait_mean_ms < 50
    assert result.busy_per_request < 0.2
    assert result.granted >= result.requests * 0.95


def test_a_slow_control_store_makes_views_old_and_loses_no_request() -> None:
    plan = Plan(nodes=60, seconds=4, homes=6, deaths=0, seed=5)
    quick = World(plan).run()
    slow_world = World(plan._replace(costs=Costs(copy_us=5_000)))
    slow = slow_world.run()
    assert slow.view_age_s > 5 * quick.view_age_s
    assert slow.messages_out_s < quick.messages_out_s
    assert slow.busy_per_request > quick.busy_per_request
    slow_world.settle(60)
    slow_world.check()


def test_messages_of_the_control_store_are_bounded_in_large_clusters() -> None:
    bounded = Config(views_per_s=2_000)
    few, many = (
        World(Plan(nodes=nodes, seconds=3, homes=10, deaths=0, seed=6, config=bounded)).run()
        for nodes in (200, 600)
    )
    # Rows and batches; beside them there are heartbeats, of which each node has one a second.
    for result, nodes in ((few, 200), (many, 600)):
        assert result.messages_out_s <= 2_000 + 2 * nodes
        assert result.messages_in_s <= 2 * 2_000 + 2 * nodes
    assert many.view_age_s > few.view_age_s
    assert many.granted >= many.requests * 0.95


def calls(function: Any, *args: Any) -> int:
    """How many Python functions are entered meanwhile."""
    count = 0

    def on_event(_frame: FrameType, event: str, _arg: object) -> None:
        nonlocal count
        count += event == "call"

    before = sys.getprofile()
    sys.setprofile(on_event)
    try:
        function(*args)
    finally:
        sys.setprofile(before)
    return count


def test_the_work_of_a_decision_does_not_grow_with_the_cluster() -> None:
    work = {}
    for nodes in (100, 1_000, 10_000):
        rng = Random(3)
        view = make_view(nodes, rng)
        demands = rng.choices(DEMANDS, SHARES, k=300)
        decide(view, rng, list(DEMANDS))
        rows = [renewed(node.row, rng) for node in rng.sample(list(view), 50)]
        work[nodes] = (
            calls(decide, view, rng, demands),
            calls(lambda view=view, rows=rows: [view.on_row(row) for row in rows]),
        )
        view.check()
    for more in (1_000, 10_000):
        for few, many in zip(work[100], work[more], strict=True):
            # Ten or a hundred times the nodes: the same, up to what samples happen to hold.
            assert many < 1.3 * few


def test_what_is_printed() -> None:
    plan = Plan(nodes=10, seconds=1, homes=2, seed=1)
    text = table([plan], [World(plan).run()])
    assert text.splitlines()[0] == "| | 10 nodes |"
    assert "control store: messages in, /s" in text
    assert measure(20, batches=1).nodes == 20
