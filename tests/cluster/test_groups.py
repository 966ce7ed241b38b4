"""Placement groups and scheduling strategies over the nodes of a cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import shoal
from shoal.exceptions import (
    ActorPlacementGroupRemoved,
    TaskPlacementGroupRemoved,
)
from shoal.testing.cluster import Cluster
from shoal.util import placement_group, placement_group_table, remove_placement_group
from shoal.util.placement_group import PlacementGroup
from shoal.util.scheduling_strategies import (
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
)
from tests.api.gates import Gate, Trace, wait_until
from tests.cluster.placing import PATIENCE_S, Resident, get, places, where, within
from tests.conftest import checked_at_the_end

Group = Callable[..., PlacementGroup]


@pytest.fixture(scope="module")
def four(request: pytest.FixtureRequest, session_root: Path) -> Iterator[Cluster]:
    """Nodes with two CPUs each, in the zones a and b by turns: node0 (the driver's) to node3."""
    options = [
        {"num_cpus": 2, "resources": {f"node{i}": 100}, "labels": {"zone": "ab"[i % 2]}}
        for i in range(4)
    ]
    checked = checked_at_the_end(request.config, session_root)
    with checked, Cluster(initialize_head=False) as cluster:
        cluster.add_nodes(options)
        with cluster.connect():
            yield cluster


@pytest.fixture
def make() -> Iterator[Group]:
    """Makes groups that are removed at the end, with what runs in them."""
    made: list[PlacementGroup] = []

    def make_one(*bundles: dict[str, float], **options: Any) -> PlacementGroup:
        made.append(placement_group(list(bundles), **options))
        return made[-1]

    yield make_one
    for group in made:
        remove_placement_group(group)


@shoal.remote
def stay(seconds: float) -> str:
    time.sleep(seconds)
    return shoal.get_runtime_context().get_node_id()


@shoal.remote
def nested() -> tuple[str, str]:
    return shoal.get_runtime_context().get_node_id(), shoal.get(where.remote())


@shoal.remote(max_retries=0)
def hold(gate: Gate, began: Trace) -> None:
    began.add("task")
    gate.wait()


# --- the four strategies ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("four")
@pytest.mark.parametrize(
    ("strategy", "bundles", "least", "most"),
    [
        ("PACK", 2, 1, 1),
        ("PACK", 4, 2, 3),
        ("STRICT_PACK", 2, 1, 1),
        ("SPREAD", 3, 3, 3),
        ("SPREAD", 6, 4, 4),
        ("STRICT_SPREAD", 4, 4, 4),
    ],
)
def test_bundles_are_where_the_strategy_says_and_work_is_where_they_are(
    make: Group, strategy: str, bundles: int, least: int, most: int
) -> None:
    group = make(*[{"CPU": 1}] * bundles, strategy=strategy)
    nodes = places(group)
    assert least <= len(set(nodes)) <= most
    tasks = [where.options(scheduling_strategy=within(group, i)).remote() for i in range(bundles)]
    assert get(tasks) == nodes
    anywhere = [where.options(scheduling_strategy=within(group)).remote() for _ in range(bundles)]
    assert set(get(anywhere)) <= set(nodes)
    actors = [
        Resident.options(scheduling_strategy=within(group, i)).remote() for i in range(bundles)
    ]
    assert get([actor.where.remote() for actor in actors]) == nodes


@pytest.mark.usefixtures("four")
def test_work_for_any_bundle_uses_all_of_them(make: Group) -> None:
    group = make(*[{"CPU": 1}] * 4, strategy="STRICT_SPREAD")
    nodes = places(group)
    within_group = stay.options(scheduling_strategy=within(group))
    assert set(get([within_group.remote(0.5) for _ in range(4)])) == set(nodes)


@pytest.mark.usefixtures("four")
def test_captured_children_stay_in_the_group_whatever_its_node(make: Group) -> None:
    group = make({"CPU": 1, "node2": 1}, {"CPU": 1, "node3": 1}, strategy="STRICT_SPREAD")
    nodes = places(group)
    for index in (0, 1):
        here, child = get(nested.options(scheduling_strategy=within(group, index, True)).remote())
        assert here == nodes[index]
        assert child in nodes


def test_bundles_go_to_nodes_with_their_labels(make: Group, four: Cluster) -> None:
    group = make(
        {"CPU": 1},
        {"CPU": 1},
        strategy="SPREAD",
        bundle_label_selector=[{"zone": "a"}, {"zone": "!a"}],
    )
    ids = [node.node_id for node in four.nodes]
    nodes = places(group)
    assert nodes[0] in {ids[0], ids[2]}
    assert nodes[1] in {ids[1], ids[3]}


def test_a_preferred_node_is_taken(make: Group, four: Cluster) -> None:
    for node in four.nodes:
        group = make({"CPU": 1}, strategy="STRICT_PACK", _soft_target_node_id=node.node_id)
        assert places(group) == [node.node_id]


@pytest.mark.usefixtures("four")
def test_what_is_reserved_nobody_else_gets_and_removal_frees_it(make: Group) -> None:
    group = make(*[{"CPU": 2}] * 4, strategy="STRICT_SPREAD")
    places(group)
    outside = where.remote()
    second = make({"CPU": 1})
    assert shoal.wait([outside], timeout=0.3)[0] == []
    assert not second.wait(0.1)
    remove_placement_group(group)
    assert get(outside)
    assert second.wait(PATIENCE_S)


@pytest.mark.usefixtures("four")
def test_removal_ends_work_on_all_nodes(make: Group, tmp_path: Path) -> None:
    group = make(*[{"CPU": 2}] * 4, strategy="STRICT_SPREAD")
    gate, began = Gate(tmp_path / "gate"), Trace(tmp_path / "began")
    tasks = [
        hold.options(scheduling_strategy=within(group, i)).remote(gate, began) for i in range(4)
    ]
    actors = [Resident.options(scheduling_strategy=within(group, i)).remote() for i in range(4)]
    calls = [actor.hold.remote(gate, began) for actor in actors]
    wait_until(lambda: len(began) == 8, "all of them run")
    remove_placement_group(group)
    for task in tasks:
        with pytest.raises(TaskPlacementGroupRemoved):
            get(task)
    for call in calls:
        with pytest.raises(ActorPlacementGroupRemoved):
            get(call)
    wait_until(lambda: shoal.available_resources().get("CPU") == 8, "all CPUs are free again")


@pytest.mark.usefixtures("four")
def test_many_groups_come_and_go(make: Group) -> None:
    for _ in range(3):
        groups = [make({"CPU": 1}, {"CPU": 1}, strategy="SPREAD") for _ in range(10)]
        # Four of them fit at a time; the others come when those go.
        for group in groups:
            assert get(group.ready()) == group
            remove_placement_group(group)
    wait_until(lambda: shoal.available_resources().get("CPU") == 8, "all CPUs are free again")


# --- the other strategies ---------------------------------------------------------------------------------------------


def test_affinity_and_labels_name_nodes(four: Cluster) -> None:
    for node in four.nodes:
        strategies = [
            NodeAffinitySchedulingStrategy(node.node_id, soft=False),
            NodeLabelSchedulingStrategy({"shoal.io/node-id": In(node.node_id)}),
        ]
        for strategy in strategies:
            assert get(where.options(scheduling_strategy=strategy).remote()) == node.node_id
            actor = Resident.options(scheduling_strategy=strategy).remote()
            assert get(actor.where.remote()) == node.node_id
    zone_b = {four.nodes[1].node_id, four.nodes[3].node_id}
    assert get(where.options(label_selector={"zone": "b"}).remote()) in zone_b
    fallback = [{"label_selector": {"zone": "b"}}]
    chosen = where.options(label_selector={"zone": "c"}, fallback_strategy=fallback)
    assert get(chosen.remote()) in zone_b
    softly = NodeLabelSchedulingStrategy({"zone": In("b")}, soft={"zone": In("c")})
    assert get(where.options(scheduling_strategy=softly).remote()) in zone_b


def test_spread_uses_all_nodes_where_the_default_does_not(four: Cluster) -> None:
    ids = {node.node_id for node in four.nodes}

    def nodes_of(strategy: str) -> set[str]:
        wait_until(lambda: shoal.available_resources().get("CPU") == 8, "all CPUs are free")
        # Two fit on half of a node.
        half = stay.options(scheduling_strategy=strategy, num_cpus=0.5)
        return set(get([half.remote(0.3) for _ in range(4)]))

    # That all CPUs are free takes a moment to get around.
    wait_until(lambda: nodes_of("SPREAD") == ids, "all nodes are used")
    wait_until(lambda: nodes_of("DEFAULT") < ids, "not all nodes are used")


def test_actors_spread_too(four: Cluster) -> None:
    ids = {node.node_id for node in four.nodes}

    def nodes_of_actors() -> set[str]:
        wait_until(lambda: shoal.available_resources().get("CPU") == 8, "all CPUs are free")
        resident = Resident.options(scheduling_strategy="SPREAD", num_cpus=0.5)
        actors = [resident.remote() for _ in range(4)]
        return set(get([actor.where.remote() for actor in actors]))

    wait_until(lambda: nodes_of_actors() == ids, "all nodes are used")


@shoal.remote(resources={"node1": 1})
class Elsewhere:
    """Gets groups that were made a moment ago."""

    def wait(self, group: PlacementGroup) -> bool:
        return group.wait(PATIENCE_S)

    def use(self, task: Any) -> str:
        return str(shoal.get(task.remote()))


def test_a_group_may_be_given_away_as_soon_as_it_is_made(four: Cluster, make: Group) -> None:
    elsewhere = Elsewhere.remote()
    for _ in range(20):
        group = make({"CPU": 1, "node2": 1})
        assert get(elsewhere.wait.remote(group))
        remove_placement_group(group)
    for _ in range(20):
        group = make({"CPU": 1, "node2": 1})
        task = where.options(num_cpus=1, scheduling_strategy=within(group))
        assert get(elsewhere.use.remote(task)) == four.nodes[2].node_id
        remove_placement_group(group)


def test_a_group_that_was_made_and_removed_is_gone(four: Cluster, make: Group) -> None:
    group = make({"CPU": 1})
    remove_placement_group(group)
    assert placement_group_table(group)["state"] == "REMOVED"
    assert not group.wait(PATIENCE_S)
