"""Whatever hypothesis can think of arrives as it was sent, by either way."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.serial import deserialize_args, serialize_args
from tests.serial.ways import WAYS, Way

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.complex_numbers(allow_nan=False),
    st.text(max_size=20),
    st.binary(max_size=20),
)
large = st.builds(
    lambda seed, size: seed * size,
    st.binary(min_size=1, max_size=3),
    st.integers(20_000, 70_000),
)
hashable = st.recursive(
    scalars, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=5
)
values = st.recursive(
    scalars | large | large.map(bytearray),
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.tuples(inner, inner),
        st.dictionaries(hashable, inner, max_size=4),
        st.sets(hashable, max_size=4),
    ),
    max_leaves=20,
)


@pytest.mark.parametrize("way", WAYS)
@given(value=values)
def test_nested_containers(way: Way, value: Any) -> None:
    back = way(value)
    assert back == value
    assert type(back) is type(value)


@given(args=st.lists(values, max_size=4), kwargs=st.dictionaries(st.text(), values, max_size=3))
def test_arguments(args: list[Any], kwargs: dict[str, Any]) -> None:
    serialized = serialize_args(tuple(args), kwargs)
    back = deserialize_args(serialized.data, [bytes(b) for b in serialized.buffers])
    assert back == (tuple(args), kwargs)


@pytest.mark.parametrize("way", WAYS)
@given(value=st.floats())
def test_floats_keep_sign_and_nan(way: Way, value: float) -> None:
    back = way([value])[0]
    assert math.copysign(1, back) == math.copysign(1, value)
    assert back == value or (math.isnan(back) and math.isnan(value))


@st.composite
def graphs(draw: st.DrawFn) -> list[list[Any]]:
    """Lists that hold each other in any way, cycles included."""
    nodes: list[list[Any]] = [[i] for i in range(draw(st.integers(1, 6)))]
    edges = st.integers(0, len(nodes) - 1)
    for source, target in draw(st.lists(st.tuples(edges, edges), max_size=12)):
        nodes[source].append(nodes[target])
    return nodes


@pytest.mark.parametrize("way", WAYS)
@given(nodes=graphs())
def test_graphs_keep_their_shape(way: Way, nodes: list[list[Any]]) -> None:
    back = way(nodes)
    place = {id(node): i for i, node in enumerate(nodes)}
    place_back = {id(node): i for i, node in enumerate(back)}
    for node, node_back in zip(nodes, back, strict=True):
        assert node_back[0] == node[0]
        assert [place[id(n)] for n in node[1:]] == [place_back[id(n)] for n in node_back[1:]]
