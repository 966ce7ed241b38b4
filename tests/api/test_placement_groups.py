"""Placement groups and scheduling strategies in a session of one machine."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import shoal
from shoal.exceptions import (
    ActorPlacementGroupRemoved,
    TaskPlacementGroupRemoved,
    TaskUnschedulableError,
)
from shoal.util import (
    get_current_placement_group,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from shoal.util.placement_group import PlacementGroup
from shoal.util.scheduling_strategies import (
    DoesNotExist,
    Exists,
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    NotIn,
    PlacementGroupSchedulingStrategy,
)
from tests.api.gates import Gate, Trace, wait_until

pytestmark = [
    pytest.mark.cluster(
        num_cpus=4, num_gpus=2, resources={"disk": 2}, labels={"zone": "north", "disk": "ssd"}
    ),
    pytest.mark.usefixtures("shared_cluster"),
]

PATIENCE_S = 30
Group = Callable[..., PlacementGroup]


@pytest.fixture
def make() -> Iterator[Group]:
    """Makes groups that are removed at the end, with what runs in them."""
    made: list[PlacementGroup] = []

    def make_one(*bundles: dict[str, float], **options: Any) -> PlacementGroup:
        made.append(placement_group(list(bundles) or [{"CPU": 1}], **options))
        return made[-1]

    yield make_one
    for group in made:
        remove_placement_group(group)
    wait_until(lambda: shoal.available_resources().get("CPU") == 4, "all CPUs are free again")


def get(ref: Any) -> Any:
    return shoal.get(ref, timeout=PATIENCE_S)


def within(group: PlacementGroup, index: int = -1, capture: bool | None = None) -> Any:
    return PlacementGroupSchedulingStrategy(group, index, capture)


@shoal.remote
def where() -> str | None:
    return shoal.get_runtime_context().get_placement_group_id()


@shoal.remote
def nested() -> tuple[str | None, str | None]:
    here = shoal.get_runtime_context().get_placement_group_id()
    return here, shoal.get(where.remote())


@shoal.remote(max_retries=0)
def hold(gate: Gate, began: Trace) -> None:
    began.add("task")
    gate.wait()


@shoal.remote
class Resident:
    def where(self) -> tuple[str | None, str | None]:
        return shoal.get(nested.remote())

    def hold(self, gate: Gate, began: Trace) -> None:
        began.add("call")
        gate.wait()


# --- groups -----------------------------------------------------------------------------------------------------------


def test_a_group_is_reserved_and_freed(make: Group) -> None:
    before = shoal.available_resources()
    group = make({"CPU": 1}, {"CPU": 2, "disk": 1}, strategy="STRICT_PACK", name="mine")
    assert group.wait(PATIENCE_S)
    assert get(group.ready()) == group
    assert group.bundle_specs == [{"CPU": 1}, {"CPU": 2, "disk": 1}]
    assert group.bundle_count == 2
    free = shoal.available_resources()
    assert (free["CPU"], free["disk"]) == (before["CPU"] - 3, before["disk"] - 1)
    assert shoal.cluster_resources()["CPU"] == 4
    row = placement_group_table(group)
    node_id = shoal.get_runtime_context().get_node_id()
    assert row["placement_group_id"] == group.id.hex()
    assert row["bundles"] == {0: {"CPU": 1.0}, 1: {"CPU": 2.0, "disk": 1.0}}
    assert row["bundles_to_node_id"] == {0: node_id, 1: node_id}
    assert (row["name"], row["strategy"], row["state"]) == ("mine", "STRICT_PACK", "CREATED")
    assert placement_group_table()[group.id.hex()] == row
    remove_placement_group(group)
    assert placement_group_table(group)["state"] == "REMOVED"
    assert not group.wait(PATIENCE_S)
    wait_until(lambda: shoal.available_resources() == before, "what it had is free")


def test_a_group_is_found_by_its_name_until_it_is_removed(make: Group) -> None:
    group = make(name="found")
    found = get_placement_group("found")
    assert found == group
    assert hash(found) == hash(group)
    assert found.bundle_specs == group.bundle_specs
    with pytest.raises(ValueError, match="named 'found' exists in namespace"):
        make(name="found")
    remove_placement_group(group)
    with pytest.raises(ValueError, match="no placement group named 'found'"):
        get_placement_group("found")
    assert make(name="found") != group


def test_groups_travel(make: Group) -> None:
    group = make()
    copy = pickle.loads(pickle.dumps(group))
    assert copy == group
    assert copy.bundle_specs == group.bundle_specs

    @shoal.remote
    def look(other: PlacementGroup) -> tuple[bool, list[dict[str, float]]]:
        return other.wait(PATIENCE_S), other.bundle_specs

    assert get(look.remote(group)) == (True, group.bundle_specs)


def test_its_reference_is_an_argument_as_any_other(make: Group) -> None:
    @shoal.remote
    def name(group: PlacementGroup) -> str:
        return group.id.hex()

    group = make()
    assert get(name.remote(group.ready())) == group.id.hex()


def test_a_group_that_does_not_fit_waits_for_room(make: Group) -> None:
    first = make({"CPU": 3})
    assert first.wait(PATIENCE_S)
    second = make({"CPU": 3})
    assert not second.wait(0.1)
    assert "has no room" in placement_group_table(second)["waits"]
    ready = second.ready()
    remove_placement_group(first)
    assert get(ready) == second


def test_what_can_never_fit_says_so(make: Group) -> None:
    group = make({"CPU": 1}, {"CPU": 1}, strategy="STRICT_SPREAD")
    assert not group.wait(0.1)
    assert "STRICT_SPREAD" in placement_group_table(group)["waits"]
    ready = group.ready()
    remove_placement_group(group)
    with pytest.raises(TaskPlacementGroupRemoved, match="never be ready"):
        get(ready)


# --- work in them -----------------------------------------------------------------------------------------------------


def test_tasks_and_actors_run_in_their_bundles_and_beside_them(make: Group) -> None:
    group = make({"CPU": 1}, {"CPU": 1, "GPU": 1})
    group_id = group.id.hex()
    for index in (-1, 0, 1):
        assert get(where.options(scheduling_strategy=within(group, index)).remote()) == group_id
    assert get(where.remote()) is None
    actor = Resident.options(scheduling_strategy=within(group, 0)).remote()
    assert get(actor.where.remote()) == (None, None)
    assert get_current_placement_group() is None
    old = where.options(placement_group=group, placement_group_bundle_index=1)
    assert get(old.remote()) == group_id


def test_work_that_came_before_its_group_waits_for_it(make: Group) -> None:
    blocker = make({"CPU": 3})
    assert blocker.wait(PATIENCE_S)
    group = make({"CPU": 2})
    task = where.options(scheduling_strategy=within(group)).remote()
    actor = Resident.options(scheduling_strategy=within(group, 0, True)).remote()
    call = actor.where.remote()
    assert shoal.wait([task, call], timeout=0.1)[0] == []
    remove_placement_group(blocker)
    assert get(task) == group.id.hex()
    assert get(call) == (group.id.hex(), group.id.hex())


def test_others_do_not_get_what_is_reserved(
    make: Group, gates: Callable[[str], Gate], traces: Callable[[str], Trace]
) -> None:
    group = make({"CPU": 3})
    assert group.wait(PATIENCE_S)
    gate = gates("held")
    held = hold.remote(gate, traces("began"))
    outside = where.remote()
    assert shoal.wait([outside], timeout=0.2)[0] == []
    assert get(where.options(scheduling_strategy=within(group)).remote()) == group.id.hex()
    gate.open()
    get(held)
    assert get(outside) is None


def test_gpus_of_a_bundle_stay_in_it(make: Group) -> None:
    @shoal.remote(num_cpus=0)
    def gpus() -> list[int | str]:
        return shoal.get_gpu_ids()

    group = make({"GPU": 1})
    assert group.wait(PATIENCE_S)
    inside = gpus.options(num_gpus=1, scheduling_strategy=within(group))
    ids = get(inside.remote())
    assert len(ids) == 1
    assert get(inside.remote()) == ids
    assert get(gpus.options(num_gpus=1).remote()) != ids


@pytest.mark.parametrize("capture", [False, True, None])
def test_what_is_submitted_from_a_group_is_captured_if_it_says_so(
    make: Group, capture: bool | None
) -> None:
    group = make({"CPU": 1}, {"CPU": 1})
    group_id = group.id.hex()
    inner = group_id if capture else None
    strategy = within(group, 0, capture)
    assert get(nested.options(scheduling_strategy=strategy).remote()) == (group_id, inner)
    actor = Resident.options(scheduling_strategy=strategy, num_cpus=0).remote()
    assert get(actor.where.remote()) == (inner, inner)


def test_capture_goes_down_all_levels_and_can_be_declined(make: Group) -> None:
    @shoal.remote
    def outer() -> list[Any]:
        context = shoal.get_runtime_context()
        declined = PlacementGroupSchedulingStrategy(None)
        current = get_current_placement_group()
        assert current is not None
        inherited = nested.options(scheduling_strategy=within(current, 0))
        return [
            context.should_capture_child_tasks_in_placement_group,
            current.id.hex(),
            *shoal.get(
                [
                    nested.remote(),
                    where.options(scheduling_strategy=declined).remote(),
                    where.options(scheduling_strategy="DEFAULT").remote(),
                    inherited.remote(),
                ]
            ),
        ]

    group = make({"CPU": 2})
    here = group.id.hex()
    found = get(outer.options(scheduling_strategy=within(group, 0, True)).remote())
    assert found == [True, here, (here, here), None, None, (here, here)]
    # The same worker, later, is in no group.
    assert get(nested.remote()) == (None, None)


def test_a_group_that_is_removed_ends_what_runs_in_it(
    make: Group, gates: Callable[[str], Gate], traces: Callable[[str], Trace]
) -> None:
    group = make({"CPU": 1}, {"CPU": 1})
    gate, began = gates("never"), traces("began")
    task = hold.options(scheduling_strategy=within(group, 0)).remote(gate, began)
    retried = hold.options(scheduling_strategy=within(group, 0), max_retries=3).remote(gate, began)
    actor = Resident.options(scheduling_strategy=within(group, 1), max_restarts=5).remote()
    call = actor.hold.remote(gate, began)
    wait_until(lambda: {"task", "call"} <= set(began.words()), "the task and the actor run")
    remove_placement_group(group)
    for ref in (task, retried):
        with pytest.raises(TaskPlacementGroupRemoved, match="was removed"):
            get(ref)
    with pytest.raises(ActorPlacementGroupRemoved, match="was removed"):
        get(call)
    with pytest.raises(TaskPlacementGroupRemoved):
        get(where.options(scheduling_strategy=within(group)).remote())
    late = Resident.options(scheduling_strategy=within(group)).remote()
    with pytest.raises(ActorPlacementGroupRemoved):
        get(late.where.remote())


# --- strategies -------------------------------------------------------------------------------------------------------


def strategies() -> list[Any]:
    here = shoal.get_runtime_context().get_node_id()
    return [
        "DEFAULT",
        "SPREAD",
        NodeAffinitySchedulingStrategy(here, soft=False),
        NodeAffinitySchedulingStrategy("ab" * 16, soft=True),
        NodeLabelSchedulingStrategy({"zone": In("south", "north"), "rack": DoesNotExist()}),
        NodeLabelSchedulingStrategy({"disk": Exists()}, soft={"zone": NotIn("north")}),
        NodeLabelSchedulingStrategy({"ray.io/node-id": In(here)}),
    ]


def test_strategies_that_the_one_node_meets_run_there() -> None:
    for strategy in strategies():
        assert get(where.options(scheduling_strategy=strategy).remote()) is None
        actor = Resident.options(scheduling_strategy=strategy).remote()
        assert get(actor.where.remote()) == (None, None)


@pytest.mark.parametrize(
    "options",
    [
        {"label_selector": {"zone": "north"}},
        {"label_selector": {"zone": "in(south,north)", "disk": "!hdd"}},
        {
            "label_selector": {"zone": "south"},
            "fallback_strategy": [{"label_selector": {"zone": "north"}}],
        },
    ],
)
def test_label_selectors_that_the_one_node_meets_run_there(options: dict[str, Any]) -> None:
    assert get(where.options(**options).remote()) is None


def test_what_the_one_node_does_not_meet_waits_and_is_reported(
    capfd: pytest.CaptureFixture[str],
) -> None:
    ref = where.options(label_selector={"zone": "south"}).remote()
    assert shoal.wait([ref], timeout=0.2)[0] == []
    seen = ""

    def reported() -> bool:
        nonlocal seen
        seen += capfd.readouterr().err
        return "zone=south" in seen

    wait_until(reported, "the reason is shown")
    shoal.cancel(ref)


def test_a_node_that_is_too_busy_fails_who_will_not_wait(
    gates: Callable[[str], Gate], traces: Callable[[str], Trace]
) -> None:
    here = shoal.get_runtime_context().get_node_id()
    gate, began = gates("busy"), traces("began")
    held = hold.options(num_cpus=4).remote(gate, began)
    wait_until(began.words, "the CPUs are taken")
    strategy = NodeAffinitySchedulingStrategy(here, soft=False, _fail_on_unavailable=True)
    with pytest.raises(TaskUnschedulableError, match="has no room"):
        get(where.options(scheduling_strategy=strategy).remote())
    gate.open()
    get(held)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (([],), "at least one bundle"),
        (({"CPU": 1},), "list of dicts"),
        (([1],), "bundle 0 must be a dict"),
        (([{}],), "bundle 0 asks for nothing"),
        (([{"CPU": 0}],), "bundle 0 asks for nothing"),
        (([{"CPU": -1}],), "bundle 0: CPU must be 0 or more"),
        (([{"CPU": "many"}],), "bundle 0: CPU must be a number"),
        (([{"CPU": 1}, {"GPU": 1.5}],), "bundle 1: GPU=1.5"),
        (([{1: 1}],), "is no name of a resource"),
        (([{"CPU": 1}], "SIDEWAYS"), "strategy must be one of PACK, SPREAD"),
        (([{"CPU": 1}], "PACK", 5), "name must be a string"),
        (([{"CPU": 1}], "PACK", "", "forever"), 'lifetime must be None or "detached"'),
        (([{"CPU": 1}], "SPREAD", "", None, "ab" * 16), "use PACK or STRICT_PACK"),
        (([{"CPU": 1}], "PACK", "", None, "here"), "must be a node's id"),
        (([{"CPU": 1}], "PACK", "", None, None, []), "a dict for each of the 1 bundles"),
        (([{"CPU": 1}], "PACK", "", None, None, [{"a b": "c"}]), "cannot name a label"),
    ],
)
def test_bad_groups_are_refused(arguments: tuple[Any, ...], text: str) -> None:
    with pytest.raises((ValueError, TypeError), match=text):
        placement_group(*arguments)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"scheduling_strategy": "SIDEWAYS"}, "'DEFAULT', 'SPREAD', or one of"),
        ({"scheduling_strategy": 5}, "'DEFAULT', 'SPREAD', or one of"),
        ({"label_selector": "zone"}, "label_selector must be a dict"),
        ({"label_selector": {"zone": "in()"}}, "label_selector: the condition"),
        ({"label_selector": {"a b": "c"}}, "cannot name a label"),
        ({"fallback_strategy": "zone"}, "fallback_strategy must be a list"),
        ({"fallback_strategy": [{"zone": "a"}]}, "the one key 'label_selector'"),
        ({"placement_group_bundle_index": 0}, "there is no placement_group"),
        ({"placement_group": "mine"}, "must be what shoal.util.placement_group"),
    ],
)
def test_bad_places_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises((ValueError, TypeError), match=text):
        where.options(**options)
    with pytest.raises((ValueError, TypeError), match=text):
        Resident.options(**options)


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: NodeAffinitySchedulingStrategy("here", soft=False), "must be a node's id"),
        (
            lambda: NodeAffinitySchedulingStrategy("ab" * 16, False, _spill_on_unavailable=True),
            "needs soft=True",
        ),
        (
            lambda: NodeAffinitySchedulingStrategy("ab" * 16, True, _fail_on_unavailable=True),
            "needs soft=False",
        ),
        (lambda: NodeLabelSchedulingStrategy({}), "needs a condition"),
        (lambda: NodeLabelSchedulingStrategy({"zone": "a"}), "must be a dict of labels to In"),
        (In, "takes the values of a label"),
        (lambda: NotIn(5), "takes the values of a label"),
        (lambda: PlacementGroupSchedulingStrategy("mine"), "must be what"),
        (lambda: PlacementGroupSchedulingStrategy(None, 0), "there is no placement group"),
        (lambda: remove_placement_group("mine"), "takes a PlacementGroup"),
        (lambda: get_placement_group(""), "takes the name of a group"),
        (lambda: PlacementGroup.empty().ready(), "empty placement group"),
    ],
)
def test_bad_strategies_are_refused(build: Callable[[], Any], text: str) -> None:
    with pytest.raises((ValueError, TypeError), match=text):
        build()


def test_what_does_not_fit_its_bundle_is_refused_at_once(make: Group) -> None:
    group = make({"CPU": 1}, {"GPU": 1})
    with pytest.raises(ValueError, match="numbered from 0; -1 is any"):
        within(group, 2)
    with pytest.raises(ValueError, match=r"where\(\) asks for CPU 2, which does not fit into any"):
        where.options(num_cpus=2, scheduling_strategy=within(group))
    with pytest.raises(ValueError, match=r"CPU 1, which does not fit into bundle 1 .*num_cpus=0"):
        Resident.options(scheduling_strategy=within(group, 1))
    with pytest.raises(ValueError, match="give the group a bundle_label_selector"):
        where.options(scheduling_strategy=within(group), label_selector={"zone": "north"})
    with pytest.raises(ValueError, match="both say where to run"):
        where.options(scheduling_strategy="SPREAD", placement_group=group)


def test_the_group_that_stands_for_none_is_none() -> None:
    empty = PlacementGroup.empty()
    assert empty.is_empty
    assert empty.bundle_specs == []
    remove_placement_group(empty)
    strategy = PlacementGroupSchedulingStrategy(empty)
    assert get(where.options(scheduling_strategy=strategy).remote()) is None
