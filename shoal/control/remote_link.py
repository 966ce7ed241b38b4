"""The way of a node daemon to a control store in another process: a `ControlLink` over a connection that may break.

::

    call, post ─► Outgoing ─► Said ──► control store        Given ─► Incoming ─► on_order, answers
                     ▲                                        View ─► on_order (ViewChanged)
                     └── again, after each reconnection

Guarantees: what is called and posted takes effect once and in order, whatever happens to connections and to the control store, as long as
its storage keeps what it knew; every call is answered, or fails when the node's time in the cluster is over; orders come once and in order.
A control store that was started anew hears again who watches which actor, which it does not write down.

The node is told once that it has to end (`on_end`): because it was declared dead, because it may not come back, or because nobody has
answered for `control_retry_s`. Until then it goes on: what runs needs no control store.

What waits is bounded: views by being replaced, the rest by `orders_backlog`.

Everything runs in the daemon's event loop; nothing here blocks.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec

from shoal.clock import monotonic_ns
from shoal.config import Config, view_s
from shoal.control.link import ControlError, ControlUnreachable, NotAdmitted, OnOrder
from shoal.core.streams import Entry, Incoming, Outgoing
from shoal.errors import AuthenticationError, ProtocolError
from shoal.messages.control import (
    ANSWERS,
    ActorChanged,
    Call,
    ClientGone,
    GroupChanged,
    NodeDied,
    NodeJoined,
    NodeState,
    NodeView,
    Post,
    ViewChanged,
    WatchActor,
    WatchGroup,
)
from shoal.messages.membership import (
    Alive,
    Answer,
    Ask,
    Given,
    Join,
    Joined,
    Latest,
    Leave,
    NotWanted,
    Said,
    Taken,
    ToMember,
    View,
    ViewTaken,
)
from shoal.messages.node import NodeRow
from shoal.messages.placement import BundleHeld, ViewRow
from shoal.version import __version__
from shoal.wire.addresses import make_place
from shoal.wire.aio import PeerConnection, dial
from shoal.wire.door import CONTROL
from shoal.wire.handshake import ClientHandshake
from shoal.wire.tls import explain

_log = logging.getLogger("shoal.node")

_SECOND: Final = 1_000_000_000
_FIRST_PAUSE_S: Final = 0.02
_LONGEST_PAUSE_S: Final = 1.0
_ANSWER_TIMEOUT_S: Final = 10.0
_LEAVE_TIMEOUT_S: Final = 1.0
_MOST_UNREAD_BYTES: Final = 64 * 1024
"""While the control store has so much to read, views are not sent, but replaced."""

_decoders: dict[type, msgspec.msgpack.Decoder[Any]] = {}


class _Asked(NamedTuple):
    entry: Entry[Any]
    answer: asyncio.Future[Any]
    kind: type


class RemoteLink:
    """See the module's docstring. `lives` says which lives of actors the node has, as (actor, incarnation), `bundles` what it has
    reserved; `context` is for TLS."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        host: str,
        port: int,
        *,
        token: bytes,
        config: Config,
        row: NodeRow,
        session: int,
        lives: Callable[[], list[tuple[bytes, int]]],
        bundles: Callable[[], list[BundleHeld]] = list,
        on_order: OnOrder,
        on_end: Callable[[str], None],
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.joined: Joined | None = None
        self._loop = loop
        self._host = host
        self._port = port
        self._token = token
        self._config = config
        self._row = row
        self._session = session
        self._lives = lives
        self._bundles = bundles
        self._on_order = on_order
        self._on_end = on_end
        self._context = context
        self._decoder = msgspec.msgpack.Decoder(list[ToMember])
        self._outgoing: Outgoing[Post | Ask] = Outgoing(config.stream_window, config.orders_backlog)
        self._incoming = Incoming()
        self._asked: dict[int, _Asked] = {}
        # The nodes of which this one was told.
        self._nodes: dict[bytes, NodeRow] = {}
        self._req = 0
        self._watches: dict[tuple[bytes, int], WatchActor] = {}
        self._group_watches: dict[bytes, WatchGroup] = {}
        self._view: ViewRow | None = None
        self._view_unsent = False
        self._view_timer: asyncio.TimerHandle | None = None
        # The connection on which we have joined, and one on which we are about to, with what comes of that.
        self._connection: PeerConnection | None = None
        self._trial: tuple[PeerConnection, asyncio.Future[Joined]] | None = None
        self._scheduled = False
        self._returning: asyncio.Task[None] | None = None
        self._heartbeat: asyncio.TimerHandle | None = None
        self._beat_at = 0
        self._heard_at = 0
        self._over = ""
        # The connection on which it was said that this node leaves has ended.
        self._left = asyncio.Event()

    # --- joining -------------------------------------------------------------------------------------------------

    async def join(self, retry_s: float | None = None) -> Joined:
        """Become a node of the cluster.

        Raises:
            ControlUnreachable: nobody answers there.
            AuthenticationError: whoever answers does not hold the same token, or runs another version.
            ProtocolError: whoever answers does not speak shoal.
            NotAdmitted: the control store does not want this node.
        """
        return await self._reach(self._config.control_retry_s if retry_s is None else retry_s)

    async def _reach(self, retry_s: float) -> Joined:
        deadline = monotonic_ns() + round(retry_s * _SECOND)
        pause = _FIRST_PAUSE_S
        while True:
            try:
                return await self._try()
            except ssl.SSLError as error:
                raise ControlUnreachable(
                    f"the control store at {self._where} cannot be spoken with: {explain(error, server=False)}"
                ) from error
            except OSError as error:
                if isinstance(error, TimeoutError):
                    # It had its time already; and if it did hear us, it takes the end of that attempt for ours.
                    pause = _FIRST_PAUSE_S
                if monotonic_ns() >= deadline:
                    raise ControlUnreachable(
                        f"cannot reach the control store at {self._where}, tried for {retry_s:g} s: {self._why(error)}. Is `shoal start "
                        "--head` running there, is that its address and port, and does a firewall let it through?"
                    ) from error
            # Nodes that lost the same control store should not come back all at once.
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    @property
    def _where(self) -> str:
        return make_place(self._host, self._port)

    def _why(self, error: OSError) -> str:
        if isinstance(error, TimeoutError) and not str(error):
            return "it does not answer"
        if self._context is not None and isinstance(error, ConnectionResetError):
            # Also how one that does not speak TLS ends the attempt.
            return explain(error, server=False).rstrip(".")
        return str(error) or type(error).__name__

    async def _try(self) -> Joined:
        joined: asyncio.Future[Joined] = self._loop.create_future()

        def make(preface: bytes) -> PeerConnection:
            connection = PeerConnection(
                self._loop,
                ClientHandshake(self._token),
                self._decoder,
                self,
                self._config.max_frame_bytes,
                preface=preface,
            )
            self._trial = (connection, joined)
            return connection

        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                connection = await dial(
                    self._loop, self._host, self._port, CONTROL, make, self._context
                )
                while not joined.done():
                    await asyncio.wait([joined], timeout=self._config.node_heartbeat_s)
                    if connection.trusted:
                        # It may take long to say that we have joined, while its storage is away, and counts our signs of life.
                        connection.send(Alive())
                return joined.result()
        finally:
            trial, self._trial = self._trial, None
            if trial is not None and trial[0] is not self._connection:
                trial[0].close()

    def on_trusted(self, connection: PeerConnection) -> None:
        """The control store holds the token."""
        before = self.joined
        connection.send(
            Join(
                self._row,
                self._session,
                __version__,
                before is not None,
                0 if before is None else before.control,
                self._incoming.last,
                min(self._asked, default=self._req + 1),
                self._lives(),
                self._bundles(),
            )
        )

    def _on_joined(self, connection: PeerConnection, message: Joined) -> None:
        before, self.joined = self.joined, message
        self._connection = connection
        if before is None or before.control == message.control:
            self._outgoing.on_taken(message.taken)
            self._outgoing.rewind()
            if before is None:
                self._nodes = {row.node_id: row for row in message.nodes}
        else:
            _log.warning("the control store at %s was started anew", self._where)
            self._incoming = Incoming()
            self._outgoing.rewind([asked.entry for asked in self._asked.values()])
            for watch in self._watches.values():
                self._outgoing.push(watch)
            for group_watch in self._group_watches.values():
                self._outgoing.push(group_watch)
            self._catch_up(message.nodes)
        self._heard_at = monotonic_ns()
        self._beat_at = 0
        self._beat()
        self._view_unsent = self._view is not None
        self._send_view()
        self._schedule()

    def _catch_up(self, nodes: list[NodeRow]) -> None:
        """Tell of the nodes that have come and gone between two control stores, of which no stream tells."""
        now = {row.node_id: row for row in nodes}
        for node_id, row in list(self._nodes.items()):
            if node_id not in now:
                row.alive = False
                row.cause = "was not there any more when the control store was started anew"
                self._on_news(NodeDied(row, row.cause))
        for node_id, row in now.items():
            if node_id not in self._nodes:
                self._on_news(NodeJoined(row))

    def _on_news(self, order: NodeJoined | NodeDied) -> None:
        if isinstance(order, NodeJoined):
            self._nodes[order.row.node_id] = order.row
        else:
            self._nodes.pop(order.row.node_id, None)
        self._on_order(order)

    # --- connections ---------------------------------------------------------------------------------------------

    def on_messages(self, connection: PeerConnection, messages: list[Any]) -> None:
        """A batch of the control store."""
        self._heard_at = monotonic_ns()
        for message in messages:
            if connection is self._connection:
                self._on_message(connection, message)
            elif isinstance(message, Joined) and self._trial and self._trial[0] is connection:
                self._on_joined(connection, message)
                if not self._trial[1].done():
                    self._trial[1].set_result(message)
            elif isinstance(message, NotWanted):
                self._refused(connection, message.reason)
            else:
                raise ProtocolError(f"{type(message).__name__} before this node has joined")
            if connection.closed:
                return

    def _on_message(self, connection: PeerConnection, message: Any) -> None:
        match message:
            case Given(number, missed, inner):
                if missed:
                    _log.warning("this node was too slow for %d events; it has the newest", missed)
                if self._incoming.is_new(number):
                    self._on_given(inner)
                connection.send(Taken(self._incoming.last))
            case View(rows, current):
                self._on_order(ViewChanged(rows, current))
                connection.send(ViewTaken())
            case Taken(number):
                self._outgoing.on_taken(number)
                self._schedule()
            case Alive():
                # That something came is what it says.
                return
            case NotWanted(reason):
                self._refused(connection, reason)
            case _:
                raise ProtocolError(f"{type(message).__name__} to a node that has joined")

    def _refused(self, connection: PeerConnection, reason: str) -> None:
        if self._trial is not None and self._trial[0] is connection:
            if not self._trial[1].done():
                self._trial[1].set_exception(NotAdmitted(reason))
        else:
            self._end(reason)
        connection.close()

    def on_closed(self, connection: PeerConnection, error: Exception | None) -> None:
        """A connection has ended."""
        if self._trial is not None and self._trial[0] is connection and not self._trial[1].done():
            self._trial[1].set_exception(error or ConnectionResetError("it closed the connection"))
        if connection is not self._connection:
            return
        self._connection = None
        self._left.set()
        if self._heartbeat is not None:
            self._heartbeat.cancel()
        if not self._over:
            _log.warning(
                "lost the control store at %s: %s", self._where, error or "it closed the connection"
            )
            self._returning = self._loop.create_task(self._return())

    async def _return(self) -> None:
        try:
            await self._reach(self._config.control_retry_s)
        except (ControlUnreachable, AuthenticationError, ProtocolError, NotAdmitted) as error:
            self._end(str(error))
        else:
            _log.info("this node is back at the control store at %s", self._where)

    # --- what the control store tells ----------------------------------------------------------------------------

    def _on_given(self, message: Any) -> None:
        if isinstance(message, Answer):
            self._on_answer(message)
            return
        if isinstance(message, ActorChanged) and message.change.state == "DEAD":
            for client in message.clients:
                self._watches.pop((message.change.actor_id, client), None)
        elif isinstance(message, GroupChanged) and message.change.state == "REMOVED":
            self._group_watches.pop(message.change.group_id, None)
        if isinstance(message, NodeJoined | NodeDied):
            self._on_news(message)
        else:
            self._on_order(message)

    def _on_answer(self, message: Answer) -> None:
        asked = self._asked.pop(message.req, None)
        # Nobody may wait for it any more.
        if asked is None or asked.answer.done():
            return
        if message.error:
            asked.answer.set_exception(ControlError(message.error))
            return
        decoder = _decoders.get(asked.kind)
        if decoder is None:
            decoder = _decoders[asked.kind] = msgspec.msgpack.Decoder(ANSWERS[asked.kind])
        try:
            asked.answer.set_result(decoder.decode(message.result))
        except msgspec.MsgspecError as error:
            asked.answer.set_exception(
                ControlError(f"InternalError: the answer to {asked.kind.__name__}: {error}")
            )

    # --- what the node tells -------------------------------------------------------------------------------------

    def call(self, message: Call) -> asyncio.Future[Any]:
        """Ask; the future gets the answer, or a `ControlError`."""
        answer: asyncio.Future[Any] = self._loop.create_future()
        if self._over:
            answer.set_exception(ControlError(f"NodeDiedError: {self._over}"))
            return answer
        self._req += 1
        entry = self._outgoing.push(Ask(self._req, message))
        self._asked[self._req] = _Asked(entry, answer, type(message))
        self._schedule()
        return answer

    def post(self, message: Post) -> None:
        """Tell."""
        if self._over:
            return
        match message:
            case NodeView(row):
                self._view = row
                self._view_unsent = True
                if self._view_timer is None:
                    self._send_view()
                return
            case NodeState(row):
                self._row = row
            case WatchActor(actor_id, client, _):
                self._watches[actor_id, client] = message
            case WatchGroup(group_id):
                self._group_watches[group_id] = message
            case ClientGone(client, _, _, _):
                for watch in [watch for watch in self._watches if watch[1] == client]:
                    del self._watches[watch]
        self._outgoing.push(message)
        self._schedule()

    def _schedule(self) -> None:
        """Everything of one turn of the loop leaves together."""
        if not self._scheduled and not self._over:
            self._scheduled = True
            self._loop.call_soon(self._send)

    def _send(self) -> None:
        self._scheduled = False
        if self._outgoing.waiting > self._config.orders_backlog:
            self._end(
                f"the control store at {self._where} has not taken {self._outgoing.waiting:,} reports of this node"
            )
        connection = self._connection
        if connection is not None:
            for entry in self._outgoing.take():
                connection.send(Said(entry.number, entry.message))

    def _send_view(self) -> None:
        """Send the newest row, unless there was one just now, or the last ones are not read."""
        self._view_timer = None
        connection = self._connection
        if connection is None or self._view is None or not self._view_unsent:
            return
        if connection.pending_bytes < _MOST_UNREAD_BYTES:
            self._view_unsent = False
            connection.send(Latest(self._view))
        pause_s = view_s(self._config, len(self._nodes))
        self._view_timer = self._loop.call_later(pause_s, self._send_view)

    # --- signs of life -------------------------------------------------------------------------------------------

    def _beat(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.cancel()
        connection, joined = self._connection, self.joined
        if connection is None or joined is None:
            return
        now = monotonic_ns()
        late = self._beat_at and now - self._beat_at > 2 * joined.heartbeat_s * _SECOND
        if not late and now - self._heard_at > joined.timeout_s * _SECOND:
            connection.fail(ConnectionError(f"it has said nothing for {joined.timeout_s:g} s"))
            return
        # If we were stopped ourselves, what it has said meanwhile is not read yet.
        connection.send(Alive())
        self._beat_at = now
        self._heartbeat = self._loop.call_later(joined.heartbeat_s, self._beat)

    # --- ending --------------------------------------------------------------------------------------------------

    def _end(self, reason: str) -> None:
        """The node's time in the cluster is over."""
        if not self._over:
            self._stop(reason)
            self._on_end(reason)

    def close(self, reason: str = "was stopped") -> None:
        """Leave the cluster. `reason` is a clause."""
        if self._over:
            return
        if self._connection is not None:
            self._connection.send(Leave(reason))
        self._stop("this node has left the cluster")

    async def leave(self, reason: str = "was stopped", *, stopped: bool = True) -> None:
        """The same, and be sure that the control store has heard of it, unless that takes long. `stopped`: this node was told to."""
        connection = self._connection
        if self._over or connection is None:
            self.close(reason)
            return
        self._left.clear()
        connection.send(Leave(reason, stopped))
        connection.finish()
        self._stop("this node has left the cluster")
        try:
            async with asyncio.timeout(_LEAVE_TIMEOUT_S):
                await self._left.wait()
        except TimeoutError:
            connection.abort()

    def _stop(self, reason: str) -> None:
        self._over = reason
        for timer in (self._heartbeat, self._view_timer):
            if timer is not None:
                timer.cancel()
        if self._returning is not None and self._returning is not asyncio.current_task(self._loop):
            self._returning.cancel()
        if self._connection is not None:
            self._connection.close()
        for asked in self._asked.values():
            if not asked.answer.done():
                asked.answer.set_exception(ControlError(f"NodeDiedError: {reason}"))
        self._asked.clear()
