"""Which node a demand goes to, rule by rule."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import pytest

from shoal.core.labels import parse_selector
from shoal.core.policy import (
    Answer,
    Demand,
    Fail,
    Forward,
    Infeasible,
    Local,
    Wait,
    choose,
    conditions_text,
    too_busy,
)
from shoal.core.resources import CPU, GPU, Amounts, as_amounts
from shoal.core.view import View
from shoal.messages.node import UNIT
from shoal.messages.placement import (
    InBundle,
    LabelTerm,
    NodeAffinity,
    NodeLabels,
    Spread,
    Strategy,
    ViewRow,
)

CPU1: Amounts = ((CPU, UNIT),)
HERE = b"here"
MB = 1_000_000


class Cluster:
    """A view, filled by hand."""

    def __init__(self, local: bytes = HERE) -> None:
        self.view = View(local)
        self.rng = Random(1)
        self._version = 0

    def node(
        self,
        node_id: bytes,
        cpus: float = 4,
        used: float = 0,
        *,
        labels: dict[str, str] | None = None,
        more: dict[str, float] | None = None,
        **fields: Any,
    ) -> None:
        self._version += 1
        total = dict(as_amounts({CPU: cpus, **(more or {})}))
        available = dict(total)
        available[CPU] = round((cpus - used) * UNIT)
        row = ViewRow(node_id, self._version, total, available, labels or {}, **fields)
        assert self.view.on_row(row)
        self.view.check()

    def ask(self, amounts: Amounts = CPU1, strategy: Strategy | None = None, **more: Any) -> Answer:
        without = more.pop("without", ())
        return choose(self.view, Demand(amounts, strategy, **more), self.rng, without)

    def place(
        self, count: int, amounts: Amounts = CPU1, strategy: Strategy | None = None
    ) -> Counter[bytes]:
        """Where so many demands go, one after the other, each counted where it went."""
        places: Counter[bytes] = Counter()
        for _ in range(count):
            answer = self.ask(amounts, strategy)
            node_id = self.view.local if isinstance(answer, Local) else answer.node_id  # type: ignore[union-attr] # a test that gets another answer fails here
            self.view.deduct(node_id, amounts)
            places[node_id] += 1
        self.view.check()
        return places


def test_the_local_node_is_filled_to_half_then_others_then_all() -> None:
    cluster = Cluster()
    for node_id in (HERE, b"a", b"b"):
        cluster.node(node_id)
    assert cluster.place(2) == {HERE: 2}
    first = cluster.place(2)
    assert len(first) == 1, "the next one is packed as well"
    assert HERE not in first
    assert cluster.place(2).total() == 2
    # All are half full: from here on they fill evenly, and the local one wins ties.
    assert cluster.place(3) == {HERE: 1, b"a": 1, b"b": 1}
    assert cluster.place(3) == {HERE: 1, b"a": 1, b"b": 1}


def test_spread_takes_the_emptiest_every_time() -> None:
    cluster = Cluster()
    for number in range(20):
        cluster.node(bytes([number]))
    assert set(cluster.place(20, strategy=Spread()).values()) == {1}
    assert cluster.place(20, strategy=Spread()).total() == 20
    cluster = Cluster()
    cluster.node(HERE, used=1)
    cluster.node(b"a", used=2)
    assert cluster.ask(strategy=Spread()) == Local()
    cluster.node(HERE, used=3)
    assert cluster.ask(strategy=Spread()) == Forward(b"a")


def test_a_full_local_node_forwards_to_where_there_is_room() -> None:
    cluster = Cluster()
    cluster.node(HERE, used=4)
    cluster.node(b"a", used=4)
    cluster.node(b"b", used=3)
    assert cluster.ask() == Forward(b"b")


def test_gpus_are_left_to_what_needs_them() -> None:
    cluster = Cluster()
    cluster.node(HERE, used=4)
    cluster.node(b"gpu", more={GPU: 2})
    cluster.node(b"plain", used=3)
    assert cluster.ask() == Forward(b"plain")
    assert cluster.ask(as_amounts({GPU: 0.5})) == Forward(b"gpu")
    cluster.node(b"plain", used=4)
    assert cluster.ask() == Forward(b"gpu")


def test_custom_fractional_and_memory_resources_are_all_counted() -> None:
    cluster = Cluster()
    cluster.node(HERE)
    cluster.node(b"a", more={"memory": 4e9, "slot": 1})
    need = as_amounts({CPU: 0.5, "memory": 3e9, "slot": 0.25})
    assert cluster.ask(need) == Forward(b"a")
    cluster.view.deduct(b"a", need)
    # No memory is left for a second one, but it could be served there and nowhere else.
    assert not cluster.view.get(b"a").has_room(need)  # type: ignore[union-attr] # it was put there above
    assert cluster.ask(need) == Forward(b"a")


def test_a_demand_for_nothing_stays_here() -> None:
    cluster = Cluster()
    cluster.node(HERE, cpus=0)
    cluster.node(b"a")
    assert cluster.ask(()) == Local()


# --- waiting --------------------------------------------------------------------------------------------------------


def test_what_asks_for_nothing_is_spread_all_the_same() -> None:
    """It leaves the nodes as they are: of those that are as good, the one is taken whose turn was longest ago."""
    cluster = Cluster()
    for node_id in (HERE, b"a", b"b", b"c"):
        cluster.node(node_id)
    assert set(cluster.place(40, (), Spread()).values()) == {10}
    cluster.node(b"a", used=2)
    assert set(cluster.place(30, (), Spread())) == {HERE, b"b", b"c"}


def test_when_all_are_full_work_goes_where_one_waits_much_less() -> None:
    cluster = Cluster()
    cluster.node(HERE, used=4, waiting=8, servers=4, mean_run_us=100_000)
    cluster.node(b"a", used=4, waiting=7, servers=4, mean_run_us=100_000)
    assert cluster.ask() == Local()
    cluster.node(b"a", used=4, waiting=1, servers=4, mean_run_us=100_000)
    assert cluster.ask() == Forward(b"a")
    # The queue is short, but what is in it takes long.
    cluster.node(b"a", used=4, waiting=1, servers=4, mean_run_us=10_000_000)
    assert cluster.ask() == Local()


def test_what_was_forwarded_counts_before_a_row_shows_it() -> None:
    cluster = Cluster()
    cluster.node(HERE, used=4, servers=4, waiting=40)
    cluster.node(b"a", used=4, servers=4)
    places = cluster.place(100)
    assert 20 < places[b"a"] < 60, "not all at once to the node that was the shorter queue"


def test_deductions_of_what_a_node_has_not_got_leave_nothing_behind() -> None:
    cluster = Cluster()
    cluster.node(HERE)
    odd = as_amounts({"odd": 1})
    numbers = [cluster.view.deduct(HERE, amounts) for amounts in (odd, CPU1, odd)]
    for number in numbers:
        cluster.view.check()
        cluster.view.settle(number, 0)
    cluster.view.check()
    node = cluster.view.get(HERE)
    assert node is not None
    assert node.free == {CPU: 4 * UNIT, "odd": 0}


def test_a_node_that_was_busy_is_asked_last() -> None:
    cluster = Cluster()
    cluster.node(HERE, used=4)
    cluster.node(b"a", used=2)
    cluster.node(b"b", used=3)
    assert cluster.ask() == Forward(b"a")
    assert cluster.ask(without={b"a"}) == Forward(b"b")
    # Here one waits for less than it takes to be sure that elsewhere is better.
    assert cluster.ask(without={b"a", b"b"}) == Local()
    assert cluster.ask(as_amounts({CPU: 4}), without={HERE, b"a", b"b"}) != Infeasible("")


def test_a_node_that_is_much_busier_than_was_thought_says_so() -> None:
    assert too_busy(50_000, 0)
    assert not too_busy(1_000, 0)
    assert not too_busy(150_000, 100_000)
    assert too_busy(300_000, 100_000)


# --- locality -------------------------------------------------------------------------------------------------------


def test_work_goes_where_its_large_arguments_are() -> None:
    cluster = Cluster()
    cluster.node(HERE)
    cluster.node(b"a", used=3)
    cluster.node(b"b")
    assert cluster.ask(holders={b"a": 100 * MB}, size_bytes=100 * MB) == Forward(b"a")
    assert cluster.ask(holders={HERE: 60 * MB, b"a": 40 * MB}, size_bytes=100 * MB) == Local()
    assert cluster.ask(holders={HERE: 40 * MB, b"a": 60 * MB}, size_bytes=100 * MB) == Forward(b"a")


def test_small_arguments_do_not_matter() -> None:
    cluster = Cluster()
    cluster.node(HERE)
    cluster.node(b"a")
    assert cluster.ask(holders={b"a": MB}, size_bytes=MB) == Local()


def test_a_long_queue_outweighs_bytes_and_the_measured_bandwidth_decides() -> None:
    cluster = Cluster()
    cluster.node(HERE)
    cluster.node(b"a", used=4, waiting=10, servers=4, mean_run_us=200_000)
    on_a = {"holders": {b"a": 100 * MB}, "size_bytes": 100 * MB}
    assert cluster.ask(**on_a) == Local()
    for _ in range(100):
        cluster.view.on_transferred(100 * MB, 100 * 10**9)
    assert cluster.view.bandwidth < 2 * MB
    assert cluster.ask(**on_a) == Forward(b"a")
    before = cluster.view.bandwidth
    cluster.view.on_transferred(1_000, 1)
    assert cluster.view.bandwidth == before, "small transfers say nothing about bandwidth"


def test_bytes_on_a_node_that_could_never_serve_the_demand_do_not_draw_it_there() -> None:
    cluster = Cluster()
    cluster.node(HERE)
    cluster.node(b"a", cpus=0)
    assert cluster.ask(holders={b"a": 100 * MB}, size_bytes=100 * MB) == Local()


# --- affinity -------------------------------------------------------------------------------------------------------


def test_hard_affinity_waits_for_its_node_and_fails_when_that_is_gone() -> None:
    cluster = Cluster()
    cluster.node(HERE)
    cluster.node(b"a", used=4)
    assert cluster.ask(strategy=NodeAffinity(b"a")) == Forward(b"a")
    assert cluster.ask(strategy=NodeAffinity(HERE)) == Local()
    never = cluster.ask(as_amounts({CPU: 5}), NodeAffinity(b"a"))
    assert isinstance(never, Infeasible)
    assert "needs CPU 5 where that node has 4" in never.reason
    unknown = cluster.ask(strategy=NodeAffinity(b"z"))
    assert isinstance(unknown, Infeasible)
    assert "there is no such node" in unknown.reason
    cluster.view.on_removed(b"a")
    gone = cluster.ask(strategy=NodeAffinity(b"a"))
    assert isinstance(gone, Fail)
    assert "has left the cluster or died" in gone.reason


def test_soft_affinity_prefers_its_node_and_takes_another() -> None:
    cluster = Cluster()
    cluster.node(HERE)
    cluster.node(b"a", used=4)
    assert cluster.ask(strategy=NodeAffinity(b"a", soft=True)) == Forward(b"a")
    assert cluster.ask(strategy=NodeAffinity(b"a", soft=True, spill=True)) == Local()
    assert cluster.ask(strategy=NodeAffinity(b"z", soft=True)) == Local()
    assert cluster.ask(as_amounts({CPU: 5}), NodeAffinity(b"a", soft=True)) != Local()
    full = cluster.ask(strategy=NodeAffinity(b"a", fail=True))
    assert isinstance(full, Fail)
    assert "has no room" in full.reason


# --- labels ---------------------------------------------------------------------------------------------------------


def test_labels_hard_and_soft() -> None:
    cluster = Cluster()
    cluster.node(HERE, labels={"zone": "a"})
    cluster.node(b"b", labels={"zone": "b"})
    cluster.node(b"c", labels={"zone": "c", "disk": "ssd"})
    zone_b = parse_selector({"zone": "b"})
    assert cluster.ask(strategy=NodeLabels((zone_b,))) == Forward(b"b")
    assert cluster.ask(strategy=NodeLabels((parse_selector({"zone": "!in(a,b)"}),))) == Forward(
        b"c"
    )
    assert cluster.ask(strategy=NodeLabels(((LabelTerm("disk", "exists"),),))) == Forward(b"c")
    assert cluster.ask(strategy=NodeLabels(((LabelTerm("disk", "!exists"),),))) == Local()
    soft = NodeLabels((zone_b, ()))
    assert cluster.ask(strategy=soft) == Forward(b"b")
    cluster.node(b"b", used=4, labels={"zone": "b"})
    assert cluster.ask(strategy=soft) == Local(), "what is only preferred is not waited for"
    assert cluster.ask(strategy=NodeLabels((zone_b,))) == Forward(b"b"), "what is needed is"
    spread = NodeLabels((parse_selector({"zone": "in(a,c)"}),), spread=True)
    assert cluster.place(4, strategy=spread) == {HERE: 2, b"c": 2}


def test_labels_that_no_node_has() -> None:
    cluster = Cluster()
    cluster.node(HERE, labels={"zone": "a"})
    strategy = NodeLabels((parse_selector({"zone": "z"}),))
    answer = cluster.ask(strategy=strategy)
    assert isinstance(answer, Infeasible)
    assert answer.reason.startswith("the only node does not have the labels zone=z.")
    cluster.node(b"z", labels={"zone": "z"})
    assert cluster.ask(strategy=strategy) == Forward(b"z")


# --- infeasible -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("need", "text", "flags"),
    [
        ({CPU: 9}, "it needs CPU 9, and of the 2 nodes none has more than 8.", "--num-cpus=9"),
        ({GPU: 1}, "it needs GPU 1, and of the 2 nodes none has any.", "--num-gpus=1"),
        (
            {CPU: 8, "slot": 1},
            "it needs CPU 8, slot 1 together, and of the 2 nodes none has all of it.",
            "--num-cpus=8 --resources='{\"slot\": 1}'",
        ),
    ],
)
def test_what_no_node_has_is_said_with_what_would_help(
    need: dict[str, float], text: str, flags: str
) -> None:
    cluster = Cluster()
    cluster.node(HERE, cpus=8)
    cluster.node(b"a", more={"slot": 1})
    answer = cluster.ask(as_amounts(need))
    assert isinstance(answer, Infeasible)
    assert answer.reason.startswith(text)
    assert (
        f"start one (`shoal start --address=HOST:PORT {flags}`), or ask for less" in answer.reason
    )
    # Where such a node joins, it is served.
    cluster.node(b"big", cpus=16, more={"slot": 1, GPU: 1})
    assert cluster.ask(as_amounts(need)) == Forward(b"big")


def test_nodes_that_drain_or_are_gone_take_nothing_new() -> None:
    cluster = Cluster()
    cluster.node(b"a")
    assert cluster.ask() == Forward(b"a")
    cluster.node(b"a", draining=True)
    assert isinstance(cluster.ask(), Infeasible)
    pinned = cluster.ask(strategy=NodeAffinity(b"a"))
    assert isinstance(pinned, Infeasible)
    assert "about to leave" in pinned.reason
    cluster.view.on_removed(b"a")
    answer = cluster.ask()
    assert isinstance(answer, Infeasible)
    assert "there is no node that takes work" in answer.reason


# --- placement groups -----------------------------------------------------------------------------------------------


def test_bundles_name_their_nodes() -> None:
    cluster = Cluster()
    for node_id in (HERE, b"a", b"b"):
        cluster.node(node_id)
    group = b"group"
    assert isinstance(cluster.ask(strategy=InBundle(group)), Wait)
    cluster.view.on_group(group, [b"a", b"", HERE])
    assert cluster.ask(strategy=InBundle(group, 0)) == Forward(b"a")
    waits = cluster.ask(strategy=InBundle(group, 1))
    assert isinstance(waits, Wait)
    assert "bundle 1 of placement group" in waits.reason
    assert cluster.ask(strategy=InBundle(group, 2)) == Local()
    assert cluster.ask(strategy=InBundle(group)) == Local()
    assert cluster.ask(strategy=InBundle(group), without={HERE}) == Forward(b"a")
    wrong = cluster.ask(strategy=InBundle(group, 3))
    assert isinstance(wrong, Fail)
    assert "has 3 bundles" in wrong.reason
    cluster.view.on_group(group, [b"", b"", b""])
    assert isinstance(cluster.ask(strategy=InBundle(group)), Wait)
    cluster.view.on_group_removed(group)
    assert isinstance(cluster.ask(strategy=InBundle(group, 0)), Wait)


def test_strategies_in_words() -> None:
    assert conditions_text(None) == ""
    assert conditions_text(Spread()) == "on the emptiest node"
    assert conditions_text(NodeAffinity(b"\xaa", soft=True)) == "preferably on node aa"
    soft = NodeLabels((parse_selector({"zone": "a"}), ()))
    assert conditions_text(soft) == "on a node with zone=a, or else any labels"
    assert conditions_text(InBundle(b"\xbb", 2)) == "in bundle 2 of placement group bb"
