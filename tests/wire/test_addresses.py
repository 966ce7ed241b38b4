"""Names and places of processes."""

from __future__ import annotations

import pytest

from shoal.wire.addresses import (
    NODE,
    WORKER,
    creator_at,
    is_name,
    make_address,
    make_name,
    make_place,
    name_of,
    place_of,
    split_place,
)


def test_an_address_has_a_place_and_a_name() -> None:
    address = make_address("10.0.0.7:6465", make_name(WORKER, bytes.fromhex("1a2b3c4d5e6f")))
    assert address == "10.0.0.7:6465/w-1a2b3c4d"
    assert (place_of(address), name_of(address)) == ("10.0.0.7:6465", "w-1a2b3c4d")
    assert creator_at(address) == "1a2b3c4d"


def test_fresh_names_differ() -> None:
    first, second = make_name(NODE), make_name(NODE)
    assert first != second
    assert is_name(first)


@pytest.mark.parametrize(
    "name", ["", "w-1a2b3c4", "x-1a2b3c4d", "w-1A2B3C4D", "w-1a2b3c4d5", "../etc/pass"]
)
def test_what_is_no_name_makes_no_segments(name: str) -> None:
    assert not is_name(name)
    assert creator_at(f"local/{name}") == ""


@pytest.mark.parametrize(
    ("host", "place"), [("127.0.0.1", "127.0.0.1:6465"), ("fe80::1", "[fe80::1]:6465")]
)
def test_a_place_is_an_address_and_a_port(host: str, place: str) -> None:
    assert make_place(host, 6465) == place
    assert split_place(place) == (host, 6465)


@pytest.mark.parametrize(
    "place", ["local", "", "10.0.0.7", "host:1", "10.0.0.7:0", "10.0.0.7:65536", "1:2:3"]
)
def test_what_cannot_be_connected_to_is_refused_by_name(place: str) -> None:
    with pytest.raises(ValueError, match=r"an IP address and a port, as in 10\.0\.0\.7:6465"):
        split_place(place)
