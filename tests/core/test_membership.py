"""Which nodes are in the cluster: coming, staying, going, being refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from shoal.core import membership
from shoal.core.membership import Identity, Membership, MemberState, NodeDown, NodeUp

if TYPE_CHECKING:
    import pytest

SECOND = 1_000_000_000
TIMEOUT_S, RECONNECT_S = 10.0, 2.0


def who(number: int, session: int = 1, place: str | None = None) -> Identity:
    place = f"10.0.0.{number}:7000" if place is None else place
    return Identity(bytes([number]) * 16, session, place, f"node-{number}")


def new() -> Membership:
    return Membership(TIMEOUT_S, RECONNECT_S)


def at(seconds: float) -> int:
    return round(seconds * SECOND)


def drain(members: Membership) -> list[Any]:
    members.check()
    effects, members.outbox = members.outbox, []
    return effects


def joined(*numbers: int) -> Membership:
    members = new()
    for number in numbers:
        assert members.on_join(who(number), 0) == ""
    members.outbox.clear()
    return members


def test_a_node_joins_and_stays_while_it_is_heard() -> None:
    members = new()
    assert members.next_deadline() is None
    assert members.on_join(who(1), at(0)) == ""
    assert drain(members) == [NodeUp(who(1).node_id, back=False)]
    for second in range(1, 30):
        assert members.next_deadline() == at(second - 1 + TIMEOUT_S)
        assert members.on_heard(who(1).node_id, 1, at(second)) == ""
        members.tick(at(second))
    assert drain(members) == []


def test_one_that_sends_no_heartbeat_is_dead_and_refused_from_then_on() -> None:
    members = joined(1, 2)
    members.on_heard(who(2).node_id, 1, at(5))
    members.tick(at(9.9))
    assert drain(members) == []
    members.tick(at(10))
    assert drain(members) == [NodeDown(who(1).node_id, "node-1", "sent no heartbeat for 10 s")]
    reason = members.on_heard(who(1).node_id, 1, at(11))
    assert "was declared dead: it sent no heartbeat for 10 s. Its work has been given" in reason
    assert "declared dead" in members.on_join(who(1), at(12), again=True)
    # Its daemon, started again, is another session.
    assert members.on_join(who(1, session=2), at(13)) == ""


def test_a_closed_connection_counts_at_once_but_one_may_come_back() -> None:
    members = joined(1)
    members.on_disconnected(who(1).node_id, 1, at(1))
    assert members.state(who(1).node_id) is MemberState.AWAY
    assert members.next_deadline() == at(3)
    assert members.on_join(who(1), at(2.9), again=True) == ""
    assert drain(members) == [NodeUp(who(1).node_id, back=True)]
    members.on_disconnected(who(1).node_id, 1, at(4))
    members.tick(at(6))
    (down,) = drain(members)
    assert down.cause == "closed its connection to the control store, and was not back in 2 s"


def test_the_end_of_an_old_connection_says_nothing_of_a_new_session() -> None:
    members = joined(1)
    members.on_leave(who(1).node_id, 1, "left")
    assert members.on_join(who(1, session=2), at(1)) == ""
    members.on_disconnected(who(1).node_id, 1, at(2))
    members.on_leave(who(1).node_id, 1, "left")
    assert members.state(who(1).node_id) is MemberState.ALIVE


def test_duplicates_are_refused_by_name() -> None:
    members = joined(1)
    reason = members.on_join(who(1, session=2), at(1))
    assert reason.startswith("duplicate node: a node with the id 0101")
    assert "node-1" in reason
    reason = members.on_join(who(2, place=who(1).place), at(1))
    assert reason.startswith("duplicate node: the node node-1 is in the cluster already")
    assert who(1).place in reason
    assert drain(members) == []
    # Nodes without a door do not stand in each other's way.
    assert members.on_join(who(3, place=""), at(1)) == ""
    assert members.on_join(who(4, place=""), at(1)) == ""


def test_a_newcomer_at_the_place_of_one_that_is_away_proves_its_end() -> None:
    members = joined(1)
    members.on_disconnected(who(1).node_id, 1, at(1))
    assert members.on_join(who(2, place=who(1).place), at(1.5)) == ""
    down, up = drain(members)
    assert down.node_id == who(1).node_id
    assert down.cause == f"has ended: another node has opened its door at {who(1).place}"
    assert up == NodeUp(who(2).node_id, back=False)


def test_an_unknown_node_cannot_come_back() -> None:
    members = new()
    assert "does not know this node any more" in members.on_join(who(1), 0, again=True)
    assert "is not known to this control store" in members.on_heard(who(1).node_id, 1, 0)
    assert drain(members) == []


def test_after_a_restart_nodes_are_expected_for_a_while() -> None:
    members = new()
    members.restore([who(2), who(1)], at(100))
    assert members.expecting
    assert members.on_join(who(2), at(101), again=True) == ""
    assert members.expecting
    members.on_heard(who(2).node_id, 1, at(109))
    members.tick(at(110))
    assert not members.expecting
    up, down = drain(members)
    assert up == NodeUp(who(2).node_id, back=True)
    assert down.cause == "did not come back after the control store had restarted"


def test_the_dead_are_remembered_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "REMEMBERED", 3)
    members = new()
    for session in range(5):
        members.on_join(who(1, session), 0)
        members.on_leave(who(1).node_id, session, "was stopped")
    assert "was stopped" in members.on_heard(who(1).node_id, 4, 0)
    assert "not known" in members.on_heard(who(1).node_id, 0, 0)
    assert len(members) == 0


class AnyLife(RuleBasedStateMachine):
    """A few nodes do whatever nodes do; the deaths and comings of each alternate, and no dead session is heard again."""

    def __init__(self) -> None:
        super().__init__()
        self.members = new()
        self.now = 0
        self.alive: set[bytes] = set()
        self.over: set[tuple[bytes, int]] = set()
        self.sessions: dict[bytes, int] = {}

    @rule(number=st.integers(1, 3), place=st.integers(1, 3), session=st.integers(1, 3))
    def join(self, number: int, place: int, session: int) -> None:
        newcomer = who(number, session, f"host:{place}")
        accepted = not self.members.on_join(newcomer, self.now)
        if accepted:
            assert (newcomer.node_id, session) not in self.over
            self.sessions[newcomer.node_id] = session
        self.follow()
        assert (newcomer.node_id in self.alive) or not accepted

    @rule(number=st.integers(1, 3), session=st.integers(1, 3))
    def heard(self, number: int, session: int) -> None:
        node_id = who(number).node_id
        accepted = not self.members.on_heard(node_id, session, self.now)
        assert accepted == (node_id in self.alive and self.sessions[node_id] == session)

    @rule(number=st.integers(1, 3), session=st.integers(1, 3))
    def disconnect(self, number: int, session: int) -> None:
        self.members.on_disconnected(who(number).node_id, session, self.now)

    @rule(number=st.integers(1, 3), session=st.integers(1, 3))
    def leave(self, number: int, session: int) -> None:
        self.members.on_leave(who(number).node_id, session, "left")
        self.follow()

    @rule(seconds=st.floats(0, 6))
    def wait(self, seconds: float) -> None:
        self.now += at(seconds)
        self.members.tick(self.now)
        self.follow()

    def follow(self) -> None:
        for effect in drain(self.members):
            match effect:
                case NodeUp(node_id, back):
                    assert back == (node_id in self.alive)
                    self.alive.add(node_id)
                case NodeDown(node_id, _, cause):
                    assert cause
                    self.alive.remove(node_id)
                    self.over.add((node_id, self.sessions[node_id]))

    @invariant()
    def sound(self) -> None:
        self.members.check()
        assert len(self.members) == len(self.alive)
        deadline = self.members.next_deadline()
        assert deadline is None or deadline > self.now


TestAnyLife = AnyLife.TestCase
