from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.store.layout import (
    MAX_SLAB_BYTES,
    PAGE,
    SEGMENT_SHIFT,
    check_creator,
    lock_range,
    parse_segment,
    segment_capacity,
    segment_name,
)


@given(
    st.from_regex(r"[0-9A-Za-z]{1,64}", fullmatch=True),
    st.integers(0, (1 << 40) - 1),
    st.booleans(),
)
def test_names_of_segments_can_be_read_back(creator: str, number: int, slab: bool) -> None:
    assert parse_segment(segment_name(creator, number, slab=slab)) == (creator, number, slab)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "abc",
        "abc-",
        "-1",
        "../abc-1",
        "abc-1/../../etc",
        "abc-1x",
        "abc-1ss",
        "abc-1\n",
        "abc.locks",
        "abc-9999999999999",
        "a" * 65 + "-1",
        "abc-١",
    ],
)
def test_what_is_no_segment_does_not_become_a_path(name: str) -> None:
    assert parse_segment(name) is None


@pytest.mark.parametrize("creator", ["", "a/b", "a-b", "..", "a" * 65])
def test_creators_have_plain_names(creator: str) -> None:
    with pytest.raises(ValueError, match="letters and digits"):
        check_creator(creator)


@given(st.integers(1, 1 << 40))
def test_a_capacity_wastes_a_sixteenth_at_most_and_is_a_capacity_itself(size: int) -> None:
    capacity = segment_capacity(size)
    assert size <= capacity
    assert capacity % PAGE == 0
    assert capacity - size < max(PAGE, size / 16)
    assert segment_capacity(capacity) == capacity


def test_locks_of_different_blocks_are_disjoint_and_those_of_neighbours_touch() -> None:
    ranges = [
        lock_range(0, 0, 5 << 30, slab=False),
        lock_range(1, 0, 1, slab=False),
        lock_range(2, 0, 0, slab=True),
        lock_range(2, 64, 65, slab=True),
        lock_range(2, 192, 64, slab=True),
        lock_range(2, 256, MAX_SLAB_BYTES - 256, slab=True),
    ]
    for (start, length), (following, _) in itertools.pairwise(ranges):
        assert length > 0  # 0 would mean: to the end of all files
        assert start + length == following
    assert sum(ranges[-1]) < 3 << (SEGMENT_SHIFT - 6)
