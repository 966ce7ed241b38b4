"""Random clusters: the indices are what they would be if built anew, and answers are right by a model that looks at all nodes."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from shoal.core.labels import matches, parse_selector
from shoal.core.policy import Demand, Forward, Infeasible, Local, choose
from shoal.core.resources import Amounts
from shoal.core.view import INDICES, View
from shoal.messages.node import UNIT
from shoal.messages.placement import NodeLabels, Selector, Spread, Strategy, ViewRow

NODES = [bytes([number]) for number in range(12)]
DEMANDS: list[Amounts] = [
    (),
    (("CPU", UNIT),),
    (("CPU", 4 * UNIT),),
    (("CPU", UNIT // 2), ("GPU", UNIT // 4)),
    (("memory", 3 * UNIT), ("slot", UNIT)),
]
ZONE_A, NOT_A = parse_selector({"zone": "a"}), parse_selector({"zone": "!a"})
STRATEGIES: list[Strategy | None] = [
    None,
    Spread(),
    NodeLabels((ZONE_A,)),
    NodeLabels((NOT_A, ()), spread=True),
]
amount = st.sampled_from([0, UNIT // 2, UNIT, 4 * UNIT])


@st.composite
def rows(draw: st.DrawFn) -> ViewRow:
    names = ["CPU", *draw(st.sets(st.sampled_from(["GPU", "memory", "slot"])))]
    total = {name: draw(amount) for name in names}
    available = {name: min(of, draw(amount)) for name, of in total.items()}
    return ViewRow(
        draw(st.sampled_from(NODES)),
        draw(st.integers(1, 30)),
        total,
        available,
        {"zone": draw(st.sampled_from("ab"))},
        waiting=draw(st.sampled_from([0, 0, 1, 50])),
        servers=draw(st.integers(0, 4)),
        mean_run_us=draw(st.sampled_from([0, 1_000, 1_000_000])),
        draining=draw(st.sampled_from([False, False, False, True])),
    )


def choices_of(strategy: Strategy | None) -> tuple[Selector, ...]:
    return strategy.choices if isinstance(strategy, NodeLabels) else ((),)


@given(st.data(), st.integers(0, 5))
def test_random_views(data: st.DataObject, seed: int) -> None:
    view, rng = View(NODES[0]), Random(seed)
    versions: dict[bytes, int] = {}
    gone: set[bytes] = set()
    numbers: list[int] = []
    for _ in range(data.draw(st.integers(1, 40))):
        match data.draw(st.integers(0, 6)):
            case 0 | 1 | 2:
                row = data.draw(rows())
                news = row.node_id not in gone and row.version > versions.get(row.node_id, 0)
                assert view.on_row(row) is news
                if news:
                    versions[row.node_id] = row.version
            case 3:
                node_id = data.draw(st.sampled_from(NODES))
                numbers.append(view.deduct(node_id, data.draw(st.sampled_from(DEMANDS))))
            case 4:
                if numbers:
                    view.settle(data.draw(st.sampled_from(numbers)), data.draw(st.integers(0, 30)))
            case 5:
                if data.draw(st.integers(0, 3)) == 0:
                    node_id = data.draw(st.sampled_from(NODES))
                    view.on_removed(node_id)
                    gone.add(node_id)
                    versions.pop(node_id, None)
            case 6:
                without = data.draw(st.sets(st.sampled_from(NODES), max_size=3))
                demand = Demand(
                    data.draw(st.sampled_from(DEMANDS)), data.draw(st.sampled_from(STRATEGIES))
                )
                check_answer(view, demand, rng, without)
        view.check()
        assert {node.node_id for node in view} == versions.keys()


def check_answer(view: View, demand: Demand, rng: Random, without: set[bytes]) -> None:
    answer = choose(view, demand, rng, without)
    able = [
        [
            node
            for node in view
            if node.could_serve(demand.amounts)
            and not node.row.draining
            and matches(node.row.labels, selector)
        ]
        for selector in choices_of(demand.strategy)
    ]
    if not any(able):
        assert isinstance(answer, Infeasible)
        assert "It waits until there is such a node" in answer.reason
        return
    assert isinstance(answer, Local | Forward)
    chosen = view.get(view.local if isinstance(answer, Local) else answer.node_id)
    assert chosen is not None
    roomy = [
        [n for n in nodes if n.has_room(demand.amounts) and n.node_id not in without]
        for nodes in able
    ]
    for nodes in roomy:
        if nodes:
            # The first choice that has room is taken, and room is taken before a queue.
            assert chosen in nodes
            return
    assert chosen in next(nodes for nodes in able if nodes)


@given(st.integers(0, 20))
def test_as_many_indices_are_kept_as_may_be(seed: int) -> None:
    view, rng = View(), Random(seed)
    view.on_row(ViewRow(b"a", 1, {"CPU": UNIT}, {"CPU": UNIT}))
    for number in range(INDICES + 5):
        demand = Demand((("CPU", number + 1),))
        assert choose(view, demand, rng) == Forward(b"a")
        view.check()


def test_choices_are_drawn_from_the_generator_alone() -> None:
    def run(seed: int) -> list[object]:
        view, rng = View(), Random(seed)
        for number in range(100):
            view.on_row(ViewRow(bytes([number]), 1, {"CPU": 8 * UNIT}, {"CPU": 8 * UNIT}))
        answers: list[object] = []
        for _ in range(50):
            answer = choose(view, Demand((("CPU", UNIT),), Spread()), rng)
            assert isinstance(answer, Forward)
            view.deduct(answer.node_id, (("CPU", UNIT),))
            answers.append(answer)
        assert len(set(answers)) == 50
        return answers

    assert run(1) == run(1)
    assert run(1) != run(2)
