"""Amounts and GPU instances: exact, and never given twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.core.resources import (
    CPU,
    GPU,
    Allocation,
    NodeResources,
    amount_text,
    amounts_text,
    as_amounts,
)
from shoal.messages.node import UNIT

demands = st.builds(
    lambda cpu, gpu, slot: as_amounts({CPU: cpu, GPU: gpu, "slot": slot}),
    st.sampled_from([0, 0.1, 1 / 3, 0.5, 1, 2]),
    st.sampled_from([0, 0.25, 0.3, 0.5, 1, 1.5, 2]),
    st.sampled_from([0, 1]),
)


def node(cpus: float = 2, gpus: float = 3) -> NodeResources:
    return NodeResources({CPU: round(cpus * UNIT), GPU: round(gpus * UNIT), "slot": 2 * UNIT})


def test_amounts_are_exact() -> None:
    third = as_amounts({CPU: 1 / 3})
    assert third == ((CPU, 3333),)
    assert as_amounts({CPU: 0, "a": 1}) == (("a", UNIT),)
    with pytest.raises(ValueError, match=r"at least 0\.0001"):
        as_amounts({CPU: -1})
    with pytest.raises(ValueError, match=r"at least 0\.0001"):
        as_amounts({CPU: 0.00001})


def test_amounts_read_as_users_write_them() -> None:
    assert [amount_text(a) for a in (UNIT, UNIT // 2, 1, 25 * UNIT, -5000)] == [
        "1",
        "0.5",
        "0.0001",
        "25",
        "-0.5",
    ]
    assert amounts_text(()) == "nothing"
    assert amounts_text(((CPU, UNIT), (GPU, 5000))) == "CPU 1, GPU 0.5"


@given(st.lists(st.tuples(st.booleans(), demands), max_size=40), st.sampled_from([0, 0.5, 1, 3]))
def test_taking_and_giving_back_keeps_the_books(
    steps: list[tuple[bool, tuple[tuple[str, int], ...]]], gpus: float
) -> None:
    resources = node(gpus=gpus)
    held: list[Allocation] = []
    for take, amounts in steps:
        if take and resources.fits(amounts):
            assert resources.feasible(amounts)
            allocation = resources.take(amounts)
            assert allocation.amounts == amounts
            assert sum(share for _, share in allocation.gpus) == dict(amounts).get(GPU, 0)
            held.append(allocation)
        elif held:
            resources.give_back(held.pop(0))
        resources.check()
        for name, total in resources.total.items():
            taken = sum(dict(a.amounts).get(name, 0) for a in held)
            assert resources.available[name] == total - taken
        shares: dict[int, int] = {}
        for allocation in held:
            for index, share in allocation.gpus:
                shares[index] = shares.get(index, 0) + share
        assert all(share <= UNIT for share in shares.values())
    for allocation in held:
        resources.give_back(allocation)
    assert resources.available == resources.total


@given(demands, demands)
def test_an_allocation_shrinks_to_a_part_of_it(
    amounts: tuple[tuple[str, int], ...], part: tuple[tuple[str, int], ...]
) -> None:
    resources = node()
    kept = tuple((n, min(a, dict(part).get(n, 0))) for n, a in amounts if dict(part).get(n))
    allocation = resources.take(amounts) if resources.fits(amounts) else None
    if allocation is None:
        return
    smaller = resources.shrink(allocation, kept)
    resources.check()
    assert smaller.amounts == kept
    assert {index for index, _ in smaller.gpus} <= {index for index, _ in allocation.gpus}
    resources.give_back(smaller)
    assert resources.available == resources.total


def test_shares_of_a_gpu_come_from_one_instance() -> None:
    resources = node(gpus=2)
    first, second = resources.take(((GPU, 6000),)), resources.take(((GPU, 6000),))
    assert first.gpus != second.gpus
    # 0.8 is free in all, but in two pieces of 0.4.
    assert not resources.fits(((GPU, 8000),))
    assert (
        resources.missing(((GPU, 8000),)) == [(GPU, 8000, 4000)] or resources.available[GPU] == 8000
    )
    assert resources.fits(((GPU, 4000),))


def test_small_shares_fill_a_gpu_that_is_in_use() -> None:
    resources = node(gpus=2)
    half = resources.take(((GPU, 5000),))
    assert resources.take(((GPU, 2500),)).gpus[0][0] == half.gpus[0][0]
    assert resources.ids_of(resources.take(((GPU, UNIT),))) == ["1"]


def test_ids_of_gpus_are_those_that_were_given() -> None:
    resources = NodeResources({GPU: 2 * UNIT}, ["GPU-a", "GPU-b"])
    assert resources.ids_of(resources.take(((GPU, 2 * UNIT),))) == ["GPU-a", "GPU-b"]
    with pytest.raises(ValueError, match="only 1 ids"):
        NodeResources({GPU: 2 * UNIT}, ["GPU-a"])


def test_only_cpus_fall_below_zero() -> None:
    resources = node(cpus=1)
    first = resources.take(((CPU, UNIT), ("slot", UNIT)))
    resources.lend_cpus(first)
    second = resources.take(((CPU, UNIT),))
    resources.reclaim_cpus(first)
    assert resources.available[CPU] == -UNIT
    resources.check()
    assert not resources.fits(((CPU, 1),))
    resources.give_back(second)
    resources.give_back(first)
    assert resources.available == resources.total


def test_what_is_reserved_is_left_alone() -> None:
    resources = node(cpus=2)
    assert resources.fits(((CPU, UNIT),), {CPU: UNIT})
    assert not resources.fits(((CPU, UNIT),), {CPU: 2 * UNIT})
    assert resources.fits((("slot", UNIT),), {CPU: 2 * UNIT})


def test_what_a_node_lacks_is_named() -> None:
    resources = node(cpus=2, gpus=1)
    assert resources.lacking(((CPU, 3 * UNIT), ("ring", UNIT))) == [
        (CPU, 3 * UNIT, 2 * UNIT),
        ("ring", UNIT, 0),
    ]
    assert resources.lacking(((GPU, 15_000),)) == [(GPU, 15_000, UNIT)]
    assert not resources.feasible(((GPU, 15_000),))
    assert not resources.lacking(((CPU, 2 * UNIT),))
