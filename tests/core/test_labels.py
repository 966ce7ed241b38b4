"""Selectors: how users write them, what they match, and what they are told when they cannot be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.core.labels import as_selector, check_labels, matches, parse_selector, selector_text
from shoal.messages.placement import LabelTerm

ZONE_A = {"zone": "a", "disk": "ssd"}


@pytest.mark.parametrize(
    ("condition", "labels", "holds"),
    [
        ("a", {"zone": "a"}, True),
        ("a", {"zone": "b"}, False),
        ("a", {}, False),
        ("!a", {"zone": "b"}, True),
        ("!a", {"zone": "a"}, False),
        ("!a", {}, True),
        ("in(a,b)", {"zone": "b"}, True),
        ("in( a , b )", {"zone": "a"}, True),
        ("in(a,b)", {"zone": "c"}, False),
        ("in(a)", {}, False),
        ("!in(a,b)", {"zone": "c"}, True),
        ("!in(a,b)", {"zone": "a"}, False),
        ("!in(a,b)", {}, True),
    ],
)
def test_conditions(condition: str, labels: dict[str, str], holds: bool) -> None:
    assert matches(labels, parse_selector({"zone": condition})) is holds


def test_exists_and_its_opposite() -> None:
    assert matches(ZONE_A, (LabelTerm("disk", "exists"),))
    assert not matches(ZONE_A, (LabelTerm("gpu", "exists"),))
    assert matches(ZONE_A, (LabelTerm("gpu", "!exists"),))
    assert not matches(ZONE_A, (LabelTerm("disk", "!exists"),))


def test_all_conditions_must_hold_and_none_always_do() -> None:
    assert matches(ZONE_A, parse_selector({"zone": "a", "disk": "!hdd"}))
    assert not matches(ZONE_A, parse_selector({"zone": "a", "disk": "hdd"}))
    assert matches({}, ())


def test_equal_selectors_are_equal_however_they_were_written() -> None:
    first = parse_selector({"zone": "in(b,a,a)", "disk": "ssd"})
    assert first == parse_selector({"disk": "ssd", "zone": "in(a, b)"})
    assert hash(first) == hash(as_selector(reversed(first)))


@pytest.mark.parametrize(
    "condition", ["", "!", "in()", "in(a,)", "!in()", "a b", "in(a", "-a", "a" * 64]
)
def test_what_is_no_condition_is_refused_by_name(condition: str) -> None:
    with pytest.raises(ValueError, match="'zone'"):
        parse_selector({"zone": condition})


@pytest.mark.parametrize("key", ["", "/", "a/", "/a", "a b", "-a", "a" * 64, "a/b/c d"])
def test_names_that_are_none(key: str) -> None:
    with pytest.raises(ValueError, match="cannot name a label"):
        check_labels({key: "a"})


def test_labels_that_nodes_may_have() -> None:
    check_labels({"zone": "eu-1.b", "example.org/rack": "7", "spare": ""})
    with pytest.raises(ValueError, match="cannot be the value of label 'zone'"):
        check_labels({"zone": "über"})


def test_terms_that_are_none() -> None:
    with pytest.raises(ValueError, match="is no condition"):
        as_selector([LabelTerm("zone", "like", ("a",))])
    with pytest.raises(ValueError, match="take none"):
        as_selector([LabelTerm("zone", "exists", ("a",))])
    with pytest.raises(ValueError, match="need some"):
        as_selector([LabelTerm("zone", "in")])


def test_selectors_in_words() -> None:
    selector = as_selector(
        [
            LabelTerm("zone", "in", ("a", "b")),
            LabelTerm("gpu", "exists"),
            LabelTerm("spot", "!exists"),
            LabelTerm("disk", "!in", ("hdd",)),
            LabelTerm("arch", "in", ("arm",)),
        ]
    )
    expected = "arch=arm and disk not in (hdd) and gpu set and spot not set and zone in (a, b)"
    assert selector_text(selector) == expected


names = st.from_regex(r"[a-z][a-z0-9]{0,3}", fullmatch=True)


@given(
    st.dictionaries(names, names), st.dictionaries(names, st.sets(names, min_size=1), min_size=1)
)
def test_a_condition_and_its_negation_share_no_node(
    labels: dict[str, str], wanted: dict[str, set[str]]
) -> None:
    key, values = next(iter(wanted.items()))
    text = f"in({','.join(sorted(values))})"
    assert matches(labels, parse_selector({key: text})) != matches(
        labels, parse_selector({key: f"!{text}"})
    )
