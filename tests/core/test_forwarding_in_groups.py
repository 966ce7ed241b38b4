"""The home of requests that are to run in a placement group: where they go, and what the group's end does to them."""

from __future__ import annotations

from random import Random
from typing import Any

from shoal.core.forwarding import (
    HERE,
    NOWHERE,
    AskAt,
    CancelHere,
    Deny,
    Home,
    QueueHere,
    Revoke,
    WithdrawAt,
)
from shoal.core.policy import Demand
from shoal.core.view import View
from shoal.messages.node import GROUP_REMOVED, UNIT, UNPLACEABLE
from shoal.messages.placement import InBundle, ViewRow

LOCAL, SECOND, THIRD = (bytes([number]) * 16 for number in (1, 2, 3))
GROUP = b"g" * 16
CPU1 = (("CPU", UNIT),)


def row(node_id: bytes, version: int = 1, *, free: int = 0, in_group: int | None = None) -> ViewRow:
    """A node with two CPUs, of which so many are free, and so many more in the group's bundles there."""
    groups = {} if in_group is None else {GROUP: {"CPU": in_group * UNIT}}
    return ViewRow(
        node_id, version, {"CPU": 2 * UNIT}, {"CPU": free * UNIT}, groups=groups, servers=1
    )


class House:
    """A home with three nodes, none of which has anything free but for groups."""

    def __init__(self, *in_group: int | None) -> None:
        self.home = Home(View(LOCAL), Random(1))
        for node_id, amount in zip((LOCAL, SECOND, THIRD), in_group, strict=True):
            self.home.view.on_row(row(node_id, in_group=amount))
        self._reqs = 0

    def request(self, index: int = -1) -> int:
        self._reqs += 1
        self.home.on_request(7, self._reqs, Demand(CPU1, InBundle(GROUP, index)))
        return self._reqs

    def effects(self) -> list[Any]:
        self.home.check()
        effects = self.home.outbox[:]
        self.home.outbox.clear()
        return effects


def test_a_request_waits_until_its_group_has_places_and_says_nothing() -> None:
    house = House(None, None, None)
    req = house.request(1)
    assert house.effects() == []
    at, reason = house.home.where(7, req) or (b"", "")
    assert at == NOWHERE
    assert "has not been reserved yet" in reason
    house.home.on_group(GROUP, [LOCAL, SECOND])
    (ask,) = house.effects()
    assert isinstance(ask, AskAt)
    assert ask.node_id == SECOND


def test_requests_for_any_bundle_go_where_the_group_has_room() -> None:
    house = House(1, 1, 1)
    house.home.on_group(GROUP, [LOCAL, SECOND, THIRD])
    house.request()
    house.request()
    house.request()
    first, *others = house.effects()
    assert isinstance(first, QueueHere)
    assert {effect.node_id for effect in others} == {SECOND, THIRD}


def test_a_request_that_waits_moves_to_a_bundle_that_has_become_free() -> None:
    house = House(0, 0, 0)
    house.home.on_group(GROUP, [SECOND, THIRD])
    req = house.request()
    (ask,) = house.effects()
    other = THIRD if ask.node_id == SECOND else SECOND
    # That the node itself has room does not help.
    house.home.view.on_row(row(LOCAL, 2, free=2, in_group=None))
    house.home.on_view_changed()
    assert house.effects() == []
    house.home.view.on_row(row(other, 2, in_group=1))
    house.home.on_view_changed()
    withdrawn, asked = house.effects()
    assert withdrawn == WithdrawAt(ask.node_id, 7, req)
    assert asked == AskAt(other, 7, req, 0)


def test_a_request_follows_its_bundle() -> None:
    house = House(1, 1, 1)
    house.home.on_group(GROUP, [SECOND])
    req = house.request(0)
    house.effects()
    house.home.on_group(GROUP, [b""])
    assert house.effects() == [WithdrawAt(SECOND, 7, req)]
    house.home.on_group(GROUP, [LOCAL])
    assert house.effects() == [QueueHere(7, req)]
    # Told again, it stays.
    house.home.on_group(GROUP, [LOCAL])
    assert house.effects() == []
    assert house.home.where(7, req) == (HERE, "")


def test_when_a_group_is_removed_all_its_requests_are_denied() -> None:
    house = House(1, 1, None)
    house.home.on_group(GROUP, [LOCAL, SECOND, b""])
    here, there, nowhere = house.request(0), house.request(1), house.request(2)
    house.home.on_request(7, 99, Demand(CPU1))
    house.effects()
    house.home.on_group_removed(GROUP, "the group was removed")
    effects = house.effects()
    assert CancelHere(7, here) in effects
    assert WithdrawAt(SECOND, 7, there) in effects
    denied = [effect for effect in effects if isinstance(effect, Deny)]
    assert [deny.req for deny in denied] == [here, there, nowhere]
    assert {deny.kind for deny in denied} == {GROUP_REMOVED}
    assert house.home.where(7, 99) is not None


def test_a_bundle_that_there_is_not_is_denied() -> None:
    house = House(1, None, None)
    house.home.on_group(GROUP, [LOCAL])
    req = house.request(5)
    (deny,) = house.effects()
    assert (deny.req, deny.kind) == (req, UNPLACEABLE)


def test_a_lease_that_its_node_revokes_is_gone_and_not_given_back() -> None:
    house = House(None, 1, None)
    house.home.on_group(GROUP, [SECOND])
    req = house.request()
    house.home.on_gave(SECOND, 7, req, 11, "second/w-1", 123, [], 2)
    *_, delivered = house.effects()
    house.home.on_revoked(SECOND, 11, "its placement group was removed")
    assert house.effects() == [Revoke(7, delivered.lease_id, "its placement group was removed")]
    house.home.on_return(7, delivered.lease_id, discard=False)
    assert house.effects() == []
    assert house.home.lease_count() == 0
