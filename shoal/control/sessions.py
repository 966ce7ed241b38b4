"""The conversation of the control store with the nodes of other processes: who may join, what each has, what it is told.

::

    connections ─► Sessions ─► Membership (who lives)      ─► ControlStore (what follows)
                       │  ▲                                          │
                       │  └──────── NodeSession.give (orders) ◄──────┘
                       └─► views, as each node takes them

A `NodeSession` (`control.node_session`) is the control store's end of the two streams with a node; connections come and go under it.
Guarantees: what a node says takes effect once and is acknowledged when that is durable; what it is told arrives once and in order; a node
that takes nothing costs bounded memory, gets the newest state of everything when it takes something again, and ends when its time is up.
Whoever only looks is answered over his connection, which is closed if he does not read.

A control store that was stopped itself (a debugger, a laptop that slept) cannot tell who lives: it gives the nodes time to be heard first.

Everything runs in one event loop; nothing here blocks.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
from typing import Any, Final

import msgspec

from shoal.clock import monotonic_ns
from shoal.config import Config, view_s
from shoal.control.answers import Heard
from shoal.control.encoded_rows import EncodedRows
from shoal.control.node_session import NodeSession
from shoal.control.store import ControlStore
from shoal.control.visitors import LOOKS, Visitors
from shoal.core.membership import Identity, Membership, MemberState, NodeDown, NodeUp
from shoal.errors import ProtocolError
from shoal.messages.control import (
    FindActor,
    GetKey,
    ListKeys,
    ListNames,
    NodeView,
)
from shoal.messages.membership import (
    Alive,
    Answer,
    Ask,
    Join,
    Joined,
    Latest,
    Leave,
    NotWanted,
    Said,
    Taken,
    ToControl,
    ViewTaken,
)
from shoal.messages.node import NodeRow
from shoal.messages.placement import ViewRow
from shoal.version import __version__
from shoal.wire.addresses import LOCAL
from shoal.wire.aio import PeerConnection
from shoal.wire.handshake import ServerHandshake

_log = logging.getLogger("shoal.control")
_SECOND: Final = 1_000_000_000
_READS: Final = (*LOOKS, FindActor, GetKey, ListKeys, ListNames)
"""What changes nothing, so that it may be asked again."""


class Sessions:
    """See the module's docstring: the handler of the connections that `accept` makes."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, store: ControlStore, token: bytes, config: Config
    ) -> None:
        self.loop = loop
        self.config = config
        self._store = store
        self._visitors = Visitors(functools.partial(store.call, b""))
        self._token = token
        self._number = int.from_bytes(os.urandom(7), "big") + 1
        self._decoder = msgspec.msgpack.Decoder(list[ToControl])
        self._members = Membership(config.node_timeout_s, config.node_reconnect_s)
        self._sessions: dict[bytes, NodeSession] = {}
        self._connections: dict[PeerConnection, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0
        self._claims_over = False
        self._views_due: asyncio.TimerHandle | None = None
        self._rows = EncodedRows(store.nodes.board)
        store.nodes.on_change(self._plan_views)

    def start(self) -> None:
        """Expect the nodes that the store's predecessor knew. After `ControlStore.load`."""
        restored = self._store.restored
        assert restored is not None, "the store is loaded first"
        known = [
            _identity(record.row, record.session)
            for _, record in sorted(restored.nodes.items(), key=lambda item: item[0])
        ]
        self._members.restore(known, monotonic_ns())
        self._follow()

    def accept(self) -> PeerConnection:
        """A connection, for a socket on which somebody wants to speak with the control store."""
        connection = PeerConnection(
            self.loop,
            ServerHandshake(self._token),
            self._decoder,
            self,
            self.config.max_frame_bytes,
        )
        self._connections[connection] = None
        return connection

    def close(self) -> None:
        """Hang up on everybody."""
        for timer in (self._timer, self._views_due):
            if timer is not None:
                timer.cancel()
        for connection in list(self._connections):
            connection.close()

    # --- connections ---------------------------------------------------------------------------------------------

    def on_trusted(self, connection: PeerConnection) -> None:
        """It must join before anything else."""

    def on_closed(self, connection: PeerConnection, error: Exception | None) -> None:
        """A connection has ended."""
        self._connections.pop(connection, None)
        session: NodeSession | None = connection.user
        if error is not None:
            who = session.node_id.hex()[:8] if session else "a peer that had not joined"
            _log.warning("closed the connection of %s: %s: %s", who, type(error).__name__, error)
        if session is not None:
            session.connection = None
            self._members.on_disconnected(session.node_id, session.session, monotonic_ns())
            self._follow()

    def on_messages(self, connection: PeerConnection, messages: list[Any]) -> None:
        """A batch of a node."""
        for message in messages:
            session: NodeSession | None = connection.user
            if session is None:
                if isinstance(message, Ask):
                    self._visitors.on_ask(connection, message)
                    continue
                if not isinstance(message, Join):
                    raise ProtocolError(f"{type(message).__name__} from a node that has not joined")
                self._on_join(connection, message)
            else:
                self._on_message(session, message)
            if connection.closed:
                return
        if connection.user is not None:
            self._on_end_of_batch(connection, connection.user)

    def _on_end_of_batch(self, connection: PeerConnection, session: NodeSession) -> None:
        refusal = self._members.on_heard(session.node_id, session.session, monotonic_ns())
        if refusal:
            self._send_away(connection, refusal)
            return
        # Everything that came in this batch, at once: when it is durable, it is acknowledged.
        last = session.incoming.last
        if last:
            self._store.when_durable(functools.partial(session.acknowledge, last))

    def _send_away(self, connection: PeerConnection, reason: str) -> None:
        connection.send(NotWanted(reason))
        connection.close()

    # --- joining -------------------------------------------------------------------------------------------------

    def _on_join(self, connection: PeerConnection, message: Join) -> None:
        row = message.row
        reason = self._why_not(message)
        if not reason:
            who = _identity(row, message.session)
            reason = self._members.on_join(who, monotonic_ns(), again=message.again)
        if reason:
            _log.warning("refused the node %s (%s): %s", row.name, row.place, reason)
            self._follow()
            self._send_away(connection, reason)
            return
        # Of a node that was replaced by this one (`NodeDown`), and of this one's coming, the others hear first.
        new = self._follow(message)
        session = self._sessions[row.node_id]
        for before in [each for each in self._connections if each.user is session]:
            # It has given that one up; we had not noticed.
            before.user = None
            before.close()
        session.connection = None
        connection.user = session
        _log.info("the node %s (%s) has %s", row.name, row.place, "joined" if new else "come back")
        # When it is written down that it belongs to the cluster, or it would be refused by our successor.
        self._store.when_durable(functools.partial(self._welcome, connection, session, message))

    def _welcome(self, connection: PeerConnection, session: NodeSession, message: Join) -> None:
        if connection.closed or connection.user is not session:
            return
        if self._sessions.get(session.node_id) is not session:
            return
        connection.send(
            Joined(
                self._store.cluster_id,
                self._store.name,
                self._number,
                session.durable,
                self.config.node_heartbeat_s,
                self.config.node_timeout_s,
                self._store.nodes.living() + self._expected(),
            )
        )
        session.on_connection(connection, message.taken if message.control == self._number else 0)
        self._plan_views()

    def _expected(self) -> list[NodeRow]:
        """Nodes that have not come back, and are not given up."""
        restored = self._store.restored
        if restored is None or not self._members.expecting:
            return []
        return [
            record.row
            for node_id, record in restored.nodes.items()
            if self._members.state(node_id) is MemberState.EXPECTED
        ]

    def _why_not(self, message: Join) -> str:
        if message.version != __version__:
            return f"the node runs shoal {message.version}, the cluster {__version__}: install the same version everywhere"
        return ""

    # --- messages ------------------------------------------------------------------------------------------------

    def _on_message(self, session: NodeSession, message: Any) -> None:
        match message:
            case Said(number, inner):
                if session.incoming.is_new(number):
                    self._on_said(session, number, inner)
            case Latest(row):
                if row.node_id != session.node_id:
                    raise ProtocolError("a node tells the row of another")
                self._store.post(session.node_id, NodeView(row))
            case ViewTaken():
                session.view_on_way = False
                self._plan_views()
            case Taken(number):
                self._store.forget_answers(session.node_id, session.on_taken(number))
            case Alive():
                if session.connection is not None:
                    session.connection.send(Alive())
            case Leave(reason, stopped):
                self._members.on_leave(session.node_id, session.session, reason, stopped=stopped)
                self._follow()
            case _:
                raise ProtocolError(f"{type(message).__name__} from a node that has joined already")

    def _on_said(self, session: NodeSession, number: int, message: Any) -> None:
        store, node_id = self._store, session.node_id
        repeated = number <= session.heard_before
        if not isinstance(message, Ask):
            if not repeated:
                store.post(node_id, message, Heard(session.session, number, 0))
            return
        if repeated and store.restored is not None:
            # Answered by an earlier control store. If it changed nothing there is no record, and it can be asked once more.
            answered = store.restored.answers.get(node_id, {}).get(message.req)
            if answered is not None:
                session.answer(Answer(message.req, answered, ""), needed=True)
                return
        heard = Heard(session.session, max(number, session.heard_before), message.req)
        answer = store.call(node_id, message.call, heard)
        needed = not isinstance(message.call, _READS)
        answer.add_done_callback(functools.partial(session.on_answered, message.req, needed))

    # --- what follows --------------------------------------------------------------------------------------------

    def _follow(self, joining: Join | None = None) -> bool:
        """Carry out what the membership has decided; whether somebody new has joined."""
        new = False
        while self._members.outbox:
            effects, self._members.outbox = self._members.outbox, []
            for effect in effects:
                match effect:
                    case NodeUp(_, back):
                        assert joining is not None
                        new = not back
                        self._on_up(joining, back)
                    case NodeDown():
                        self._on_down(effect)
        if not self._claims_over and not self._members.expecting:
            self._claims_over = True
            self._store.on_claims_over()
        self._arm()
        return new

    def _on_up(self, joining: Join, back: bool) -> None:
        row = joining.row
        session = self._sessions.get(row.node_id)
        if session is None:
            restored = self._store.restored
            heard = restored.heard.get(row.node_id) if restored is not None else None
            known = heard is not None and heard.session == joining.session
            number = heard.number if heard is not None and known else 0
            session = NodeSession(
                self.loop,
                self.config,
                row.node_id,
                joining.session,
                number,
                self._check_backlog,
            )
            self._sessions[row.node_id] = session
        if back:
            self._store.on_node_back(row, session.give)
            if joining.control != self._number:
                # Before it is decided that nobody else is expected: what nobody claims is lost then.
                self._store.forget_answers(row.node_id, before=joining.oldest_ask)
                self._store.on_claims(row.node_id, joining.lives, joining.bundles)
        else:
            self._store.on_node_up(row, joining.session, session.give)

    def _on_down(self, down: NodeDown) -> None:
        node_id, name, cause, stopped = down
        _log.warning("the node %s (%s) is dead: it %s", name, node_id.hex()[:8], cause)
        session = self._sessions.pop(node_id, None)
        self._store.on_node_down(node_id, name, cause, stopped=stopped)
        for connection in [each for each in self._connections if each.user is session]:
            connection.user = None
            self._send_away(connection, f"the node was declared dead: it {cause}")
        if session is not None:
            session.connection = None

    def _check_backlog(self, session: NodeSession) -> None:
        """Give up a node that takes nothing."""
        config = self.config
        if session.backlog > config.orders_backlog:
            cause = f"has let {session.backlog:,} orders and answers wait"
        elif session.unread_bytes > config.answers_unread_bytes + config.max_frame_bytes:
            cause = f"has let {session.unread_bytes >> 20:,} MiB of answers wait"
        else:
            return
        if not session.given_up:
            session.given_up = True
            self.loop.call_soon(self._give_up, session, cause)

    def _give_up(self, session: NodeSession, cause: str) -> None:
        self._members.on_leave(session.node_id, session.session, cause)
        self._follow()

    # --- time ----------------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        deadline = self._members.next_deadline()
        if deadline is None or (self._timer is not None and self._timer_at <= deadline):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = deadline
        delay = max(0, deadline - monotonic_ns()) / _SECOND
        self._timer = self.loop.call_later(delay, self._on_timer)

    def _on_timer(self) -> None:
        now = monotonic_ns()
        late_s = (now - self._timer_at) / _SECOND
        self._timer = None
        heartbeat_s = self.config.node_heartbeat_s
        if late_s > heartbeat_s:
            # We were stopped, and what the nodes have sent meanwhile is not read yet.
            _log.warning("the control store itself stood still for %.1f s", late_s)
            self._timer_at = now + round(2 * heartbeat_s * _SECOND)
            self._timer = self.loop.call_later(2 * heartbeat_s, self._on_timer)
            return
        self._members.tick(now)
        self._follow()

    # --- views ---------------------------------------------------------------------------------------------------

    def _plan_views(self) -> None:
        if self._views_due is None:
            delay = view_s(self.config, len(self._sessions))
            self._views_due = self.loop.call_later(delay, self._send_views)

    def _send_views(self) -> None:
        self._views_due = None
        board = self._store.nodes.board
        # Most nodes have the same version: what they are sent is looked up and encoded once.
        found: dict[int, tuple[list[ViewRow], msgspec.Raw]] = {}
        for session in self._sessions.values():
            connection = session.connection
            if connection is None or session.view_on_way or session.view == board.version:
                continue
            current = session.view > 0
            known = found.get(session.view)
            if known is None:
                rows = board.since(session.view)
                known = rows, self._rows.view(rows, current=current)
                found[session.view] = known
            rows, view = known
            session.view = board.version
            if current and all(row.node_id == session.node_id for row in rows):
                # It told us itself.
                continue
            session.view_on_way = True
            connection.send(view)


def _identity(row: NodeRow, session: int) -> Identity:
    name = row.name or row.hostname or row.node_id.hex()[:8]
    return Identity(row.node_id, session, "" if row.place == LOCAL else row.place, name)
