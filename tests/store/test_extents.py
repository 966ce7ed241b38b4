"""The allocator against a deliberately dumb model: a set of free units."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.store.extents import Extents

SPACE = 4096


def test_a_new_one_has_nothing() -> None:
    extents = Extents()
    assert extents.take(1) is None
    assert extents.free_bytes == 0
    assert len(extents) == 0


def test_neighbours_join_in_any_order() -> None:
    for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
        extents = Extents()
        for part in order:
            extents.give(part * 64, 64)
            extents.check()
        assert extents.ranges() == [(0, 192)]


def test_the_place_just_left_by_one_of_the_same_size_is_taken_first() -> None:
    extents = Extents()
    extents.give(0, 100_000)
    places = [extents.take(1000) for _ in range(20)]
    assert None not in places
    extents.give(places[5] or 0, 1000)
    assert extents.take(1000) == places[5]


def test_an_exact_fit_in_a_bin_of_shorter_ranges_is_found() -> None:
    extents = Extents()
    # 96 … 103 share a bin.
    for i, size in enumerate((100, 97, 96)):
        extents.give(i * 1000, size)
    assert extents.take(99) == 0
    extents.check()


def test_removing_the_middle_leaves_both_ends() -> None:
    extents = Extents()
    extents.give(100, 300)
    extents.remove(100, 200, 50)
    assert extents.ranges() == [(100, 100), (250, 150)]
    assert extents.size_at(250) == 150
    assert extents.size_at(200) == 0
    with pytest.raises(ValueError, match="not inside"):
        extents.remove(100, 150, 51)
    extents.check()


@given(st.data())
def test_it_agrees_with_a_set_of_free_units(data: st.DataObject) -> None:
    extents = Extents()
    free: set[int] = set()
    taken: list[tuple[int, int]] = [(0, SPACE)]
    for _ in range(data.draw(st.integers(1, 60), label="steps")):
        if taken and data.draw(st.booleans(), label="give"):
            start, size = taken.pop(data.draw(st.integers(0, len(taken) - 1), label="which"))
            cut = data.draw(st.integers(1, size), label="how much of it")
            extents.give(start, cut)
            free |= set(range(start, start + cut))
            if cut < size:
                taken.append((start + cut, size - cut))
        else:
            size = data.draw(st.integers(1, SPACE // 4), label="size")
            place = extents.take(size)
            if place is not None:
                units = set(range(place, place + size))
                assert units <= free
                free -= units
                taken.append((place, size))
            else:
                # Its own bin is searched only so far, but here bins are short.
                assert all(length < size for _, length in extents.ranges())
        extents.check()
        assert {u for start, size in extents.ranges() for u in range(start, start + size)} == free


def test_the_parts_of_a_range_that_are_not_free() -> None:
    extents = Extents()
    assert extents.missing(10, 20) == [(10, 20)]
    for start in (0, 20, 40):
        extents.give(start, 10)
    assert extents.missing(0, 50) == [(10, 10), (30, 10)]
    assert extents.missing(5, 10) == [(10, 5)]
    assert extents.missing(22, 8) == []
    assert extents.missing(45, 15) == [(50, 10)]
