"""Which nodes belong to the cluster, and when one of them is dead.

::

                  join                    connection closed
    (nobody) ───────────► ALIVE ─────────────────────────────► AWAY
                           ▲ │ no sign of life for `timeout_s`  │ │
                           │ └───────────► DEAD ◄───────────────┘ │ not back within `reconnect_s`
                           └──────────────────────────────────────┘ join, with the same session
    (restored) EXPECTED ── join ──► ALIVE;  not there after `timeout_s` ──► DEAD

A node is known by its id, and by the number of its *session*, which its daemon draws when it starts. Guarantees:

- a node that was declared dead stays dead: what its session says later is refused, with the reason why it was declared dead;
- one place (the address of its door) and one id belong to at most one node that is not dead. A newcomer at the place of a node whose
  connection has closed proves that the other has ended, since a port has one listener;
- each coming and each death is an effect, once, in order.

What follows from a death is for others. Times are in nanoseconds, as everywhere in cores.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from enum import Enum
from typing import Final, NamedTuple

REMEMBERED: Final = 10_000
"""Dead nodes whose cause is kept. More: later callers get the true reason, at some 200 bytes each."""

_SECOND: Final = 1_000_000_000


class MemberState(Enum):
    """Of a node that is not dead."""

    ALIVE = "ALIVE"
    AWAY = "AWAY"
    """Its connection has closed; it may come back."""
    EXPECTED = "EXPECTED"
    """An earlier control store knew it."""


class Identity(NamedTuple):
    """Who joins. `place` is "" for a node without a door; `name` is for people."""

    node_id: bytes
    session: int
    place: str
    name: str


class NodeUp(NamedTuple):
    """A node has joined. `back`: it was known, and nobody was told otherwise."""

    node_id: bytes
    back: bool


class NodeDown(NamedTuple):
    """A node is dead. `cause` is a clause: "sent no heartbeat for 10 s". `stopped`: it was told to end, and said so itself."""

    node_id: bytes
    name: str
    cause: str
    stopped: bool = False


Effect = NodeUp | NodeDown


class _Member:
    __slots__ = ("identity", "since_ns", "state")

    def __init__(self, identity: Identity, state: MemberState, since_ns: int) -> None:
        self.identity = identity
        self.state = state
        # Its last sign of life, or when its connection closed.
        self.since_ns = since_ns


class Membership:
    """See the module's docstring."""

    def __init__(self, timeout_s: float, reconnect_s: float) -> None:
        self.outbox: list[Effect] = []
        self._timeout_ns = round(timeout_s * _SECOND)
        self._reconnect_ns = round(reconnect_s * _SECOND)
        self._members: dict[bytes, _Member] = {}
        self._places: dict[str, bytes] = {}
        # Who may be overdue next stands first: of those alive or expected, and of those away.
        self._heard: OrderedDict[bytes, None] = OrderedDict()
        self._away: OrderedDict[bytes, None] = OrderedDict()
        self._expected: dict[bytes, None] = {}
        self._dead: OrderedDict[tuple[bytes, int], str] = OrderedDict()

    # --- questions -----------------------------------------------------------------------------------------------

    @property
    def expecting(self) -> bool:
        """Whether nodes of an earlier control store have not come back yet, nor been given up."""
        return bool(self._expected)

    def state(self, node_id: bytes) -> MemberState | None:
        """Of a node that is not dead."""
        member = self._members.get(node_id)
        return None if member is None else member.state

    def __len__(self) -> int:
        return len(self._members)

    def next_deadline(self) -> int | None:
        """When `tick` is due."""
        deadlines = []
        if self._heard:
            first = next(iter(self._heard))
            deadlines.append(self._members[first].since_ns + self._timeout_ns)
        if self._away:
            first = next(iter(self._away))
            deadlines.append(self._members[first].since_ns + self._reconnect_ns)
        return min(deadlines, default=None)

    # --- events --------------------------------------------------------------------------------------------------

    def restore(self, known: Iterable[Identity], now: int) -> None:
        """The nodes that an earlier control store knew. They have `timeout_s` to come back."""
        assert not self._members
        for identity in sorted(known):
            self._add(identity, MemberState.EXPECTED, now)
            self._expected[identity.node_id] = None

    def on_join(self, who: Identity, now: int, *, again: bool = False) -> str:
        """A node wants to join, or to come back. `again`: it had joined before.

        Returns "" if it may, or why not.
        """
        dead = self._dead.get((who.node_id, who.session))
        if dead is not None:
            return _refusal(who.name, dead)
        member = self._members.get(who.node_id)
        if member is not None:
            if member.identity.session != who.session:
                return (
                    f"duplicate node: a node with the id {who.node_id.hex()} ({member.identity.name}) is in the cluster already, "
                    "with another session. Start this one anew, so that it draws an id of its own"
                )
            self._set(member, MemberState.ALIVE, now)
            self.outbox.append(NodeUp(who.node_id, back=True))
            return ""
        if again:
            return (
                "the control store does not know this node any more: it was declared dead, or the control store was started anew "
                "over a storage that keeps nothing. Start the node again"
            )
        holder = self._members.get(self._places.get(who.place, b"")) if who.place else None
        if holder is not None:
            if holder.state is MemberState.ALIVE:
                return (
                    f"duplicate node: the node {holder.identity.name} is in the cluster already, with its door at {who.place}. "
                    "Stop that one first, or give this one another port"
                )
            self._die(holder, f"has ended: another node has opened its door at {who.place}")
        self._add(who, MemberState.ALIVE, now)
        self.outbox.append(NodeUp(who.node_id, back=False))
        return ""

    def on_heard(self, node_id: bytes, session: int, now: int) -> str:
        """A sign of life. Returns "" or, for a session that is over, why it is."""
        member = self._members.get(node_id)
        if member is None or member.identity.session != session:
            cause = self._dead.get((node_id, session), "is not known to this control store")
            return _refusal(node_id.hex()[:8], cause)
        if member.state is MemberState.ALIVE:
            member.since_ns = now
            self._heard.move_to_end(node_id)
        return ""

    def on_disconnected(self, node_id: bytes, session: int, now: int) -> None:
        """The connection of a session has closed."""
        member = self._members.get(node_id)
        if (
            member is not None
            and member.identity.session == session
            and member.state is MemberState.ALIVE
        ):
            self._set(member, MemberState.AWAY, now)

    def on_leave(self, node_id: bytes, session: int, cause: str, *, stopped: bool = False) -> None:
        """A node ends: by its own word, or because it was given up. `cause` is a clause."""
        member = self._members.get(node_id)
        if member is not None and member.identity.session == session:
            self._die(member, cause, stopped=stopped)

    def tick(self, now: int) -> None:
        """Declare dead whoever is overdue."""
        while self._away:
            member = self._members[next(iter(self._away))]
            if member.since_ns + self._reconnect_ns > now:
                break
            seconds = self._reconnect_ns / _SECOND
            self._die(
                member,
                f"closed its connection to the control store, and was not back in {seconds:g} s",
            )
        while self._heard:
            member = self._members[next(iter(self._heard))]
            if member.since_ns + self._timeout_ns > now:
                break
            if member.state is MemberState.EXPECTED:
                self._die(member, "did not come back after the control store had restarted")
            else:
                self._die(member, f"sent no heartbeat for {self._timeout_ns / _SECOND:g} s")

    # --- states --------------------------------------------------------------------------------------------------

    def _add(self, who: Identity, state: MemberState, now: int) -> None:
        member = self._members[who.node_id] = _Member(who, state, now)
        if who.place:
            self._places[who.place] = who.node_id
        self._set(member, state, now)

    def _set(self, member: _Member, state: MemberState, now: int) -> None:
        """The only writer of a member's state."""
        node_id = member.identity.node_id
        member.state = state
        member.since_ns = now
        self._expected.pop(node_id, None)
        self._away.pop(node_id, None)
        self._heard.pop(node_id, None)
        (self._away if state is MemberState.AWAY else self._heard)[node_id] = None

    def _die(self, member: _Member, cause: str, *, stopped: bool = False) -> None:
        node_id, session, place, name = member.identity
        del self._members[node_id]
        if self._places.get(place) == node_id:
            del self._places[place]
        self._expected.pop(node_id, None)
        self._away.pop(node_id, None)
        self._heard.pop(node_id, None)
        self._dead[node_id, session] = cause
        if len(self._dead) > REMEMBERED:
            self._dead.popitem(last=False)
        self.outbox.append(NodeDown(node_id, name, cause, stopped))

    def check(self) -> None:
        """Assert the invariants."""
        assert self._heard.keys() | self._away.keys() == self._members.keys()
        assert not self._heard.keys() & self._away.keys()
        for node_id, member in self._members.items():
            assert member.identity.node_id == node_id
            assert (member.state is MemberState.AWAY) == (node_id in self._away)
            assert (member.state is MemberState.EXPECTED) == (node_id in self._expected)
            assert (node_id, member.identity.session) not in self._dead
            if member.identity.place:
                assert self._places[member.identity.place] == node_id
        assert self._expected.keys() <= self._members.keys()
        for order in (self._heard, self._away):
            times = [self._members[node_id].since_ns for node_id in order]
            assert times == sorted(times)
        assert set(self._places.values()) <= self._members.keys()


def _refusal(name: str, cause: str) -> str:
    return (
        f"the node {name} was declared dead: it {cause}. Its work has been given to others, so it must end; "
        "start it again to have it back"
    )
