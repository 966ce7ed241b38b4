"""Speaking with the daemons of other nodes: what is said to a neighbour arrives, once and in order, or the neighbour is dead.

Each daemon speaks on connections of its own, made when it first has something to say to a node, and listens on those of the others (see
`messages.neighbours`). A connection that breaks is made again, and what was not acknowledged is said again. Whether a node is dead is for
the control store to say (`on_node_died`); until then a neighbour that cannot be reached is tried again.

Owns the connections and the numbered streams on them. Leaves what the messages mean to `on_message`, which gets the node from which each
comes. Everything runs in the daemon's event loop.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

import msgspec

from shoal.core.streams import Incoming, Outgoing
from shoal.errors import ProtocolError
from shoal.messages.neighbours import (
    Greet,
    Neighbourly,
    Said,
    Taken,
    ToListener,
    ToSpeaker,
    Unwelcome,
    Welcome,
)
from shoal.wire.addresses import NODE, make_address, make_name, split_place
from shoal.wire.aio import HANDSHAKE_TIMEOUT_S, PeerConnection, adopt, dial
from shoal.wire.doorway import Settled
from shoal.wire.handshake import ClientHandshake, ServerHandshake
from shoal.wire.tls import Tls, await_client_hello, explain

_log = logging.getLogger("shoal.node")

_WINDOW: Final = 512
_UNBOUNDED: Final = 1 << 62
_FIRST_PAUSE_S: Final = 0.02
_LONGEST_PAUSE_S: Final = 2.0
_REMEMBERED_DEAD: Final = 10_000

_to_listener: Final = msgspec.msgpack.Decoder(list[ToListener])
_to_speaker: Final = msgspec.msgpack.Decoder(list[ToSpeaker])


def daemon_name(node_id: bytes) -> str:
    """What the daemon of a node is called among its processes."""
    return make_name(NODE, node_id)


class Neighbour:
    """A node."""

    __slots__ = ("name", "node_id", "place")

    def __init__(self, node_id: bytes, place: str, name: str) -> None:
        self.node_id = node_id
        self.place = place
        self.name = name

    @property
    def address(self) -> str:
        """That of its daemon."""
        return make_address(self.place, daemon_name(self.node_id))

    def __str__(self) -> str:
        return f"node {self.name or self.node_id.hex()[:8]} ({self.place})"


class Neighbours:
    """See the module's docstring. `me` is this node; `tls` is what the cluster's TCP connections are in, if anything."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        me: Neighbour,
        token: bytes,
        max_frame_bytes: int,
        on_message: Callable[[Neighbour, Neighbourly], None],
        tls: Tls | None = None,
    ) -> None:
        self.me = me
        self._tls = tls
        self._loop = loop
        self._token = token
        self._max_frame_bytes = max_frame_bytes
        self._on_message = on_message
        self._nodes: dict[bytes, Neighbour] = {}
        self._by_place: dict[str, Neighbour] = {}
        # Why nodes are dead, the latest.
        self._dead: dict[bytes, str] = {}
        self._speakers: dict[bytes, _Speaker] = {}
        self._heard: dict[bytes, Incoming] = {}
        self._listening: dict[PeerConnection, Neighbour | None] = {}
        self._adopting: set[asyncio.Task[Any]] = set()
        self._closed = False

    # --- who there is --------------------------------------------------------------------------------------------

    def on_node_joined(self, node_id: bytes, place: str, name: str) -> None:
        """The control store knows a node."""
        if node_id != self.me.node_id and node_id not in self._dead:
            self._know(node_id, place, name)

    def _know(self, node_id: bytes, place: str, name: str) -> Neighbour:
        node = self._nodes.get(node_id)
        if node is None:
            node = self._nodes[node_id] = Neighbour(node_id, place, name)
            self._by_place[place] = node
        elif name:
            node.name = name
        return node

    def on_node_died(self, node_id: bytes, cause: str) -> Neighbour | None:
        """A node is dead, and nothing more is said to it or heard from it; which it was, if it was known."""
        self._dead[node_id] = cause
        if len(self._dead) > _REMEMBERED_DEAD:
            del self._dead[next(iter(self._dead))]
        node = self._nodes.pop(node_id, None)
        if node is not None and self._by_place.get(node.place) is node:
            del self._by_place[node.place]
        self._heard.pop(node_id, None)
        speaker = self._speakers.pop(node_id, None)
        if speaker is not None:
            speaker.close()
        for connection, other in list(self._listening.items()):
            if other is not None and other.node_id == node_id:
                connection.close()
        return node

    def at(self, place: str) -> Neighbour | None:
        """The node that lives at a place."""
        return self._by_place.get(place)

    def get(self, node_id: bytes) -> Neighbour | None:
        """A node that lives."""
        return self._nodes.get(node_id)

    def __iter__(self) -> Iterator[Neighbour]:
        return iter(list(self._nodes.values()))

    # --- speaking ------------------------------------------------------------------------------------------------

    def send(self, node: Neighbour, message: Neighbourly) -> None:
        """Tell a node something. Nothing happens if it is dead: whoever sends hears of that anyway."""
        if self._closed or self._nodes.get(node.node_id) is not node:
            return
        speaker = self._speakers.get(node.node_id)
        if speaker is None:
            speaker = self._speakers[node.node_id] = _Speaker(self, node)
        speaker.say(message)

    def backlog(self, node: Neighbour) -> int:
        """How many messages wait to be said to a node."""
        speaker = self._speakers.get(node.node_id)
        return 0 if speaker is None else speaker.backlog

    async def dial(self, node: Neighbour, handler: _Speaker) -> PeerConnection:
        """Connect to the daemon of a node."""

        def make(preface: bytes) -> PeerConnection:
            return PeerConnection(
                self._loop,
                ClientHandshake(self._token, self.me.address),
                _to_speaker,
                handler,
                self._max_frame_bytes,
                preface=preface,
            )

        host, port = split_place(node.place)
        context = None if self._tls is None else self._tls.client
        try:
            return await dial(self._loop, host, port, daemon_name(node.node_id), make, context)
        except ssl.SSLError as error:
            raise ConnectionError(explain(error, server=False)) from None

    # --- listening -----------------------------------------------------------------------------------------------

    def accept(self, sock: socket.socket) -> Settled:
        """A daemon has come to the door."""
        connection = PeerConnection(
            self._loop,
            ServerHandshake(self._token),
            _to_listener,
            self,
            self._max_frame_bytes,
        )
        self._listening[connection] = None
        task = self._loop.create_task(self._adopt(sock, connection))
        self._adopting.add(task)
        task.add_done_callback(partial(self._adopted, sock, connection))
        return connection.settled

    async def _adopt(self, sock: socket.socket, connection: PeerConnection) -> None:
        context = None
        try:
            if self._tls is not None:
                context = self._tls.server
                await await_client_hello(self._loop, sock, HANDSHAKE_TIMEOUT_S)
            await adopt(self._loop, sock, connection, context)
        except ssl.SSLError as error:
            _log.warning("refused a daemon at the door: %s", explain(error, server=True))
            raise
        except ProtocolError as error:
            _log.warning("refused a daemon at the door: %s", error)
            raise

    def _adopted(
        self, sock: socket.socket, connection: PeerConnection, task: asyncio.Task[Any]
    ) -> None:
        self._adopting.discard(task)
        if task.cancelled() or task.exception() is not None:
            sock.close()
            connection.never_made()

    def on_trusted(self, connection: PeerConnection) -> None:
        """It must greet before anything else."""

    def on_messages(self, connection: PeerConnection, messages: list[Any]) -> None:
        """Another daemon speaks."""
        node = self._listening.get(connection)
        heard = None
        for message in messages:
            if isinstance(message, Greet):
                node = self._greeted(connection, message)
                if node is None:
                    return
                continue
            if node is None:
                raise ProtocolError("a daemon speaks that has not greeted")
            heard = self._heard[node.node_id]
            if heard.is_new(message.number):
                self._on_message(node, message.message)
        if heard is not None:
            connection.send(Taken(heard.last))

    def _greeted(self, connection: PeerConnection, message: Greet) -> Neighbour | None:
        reason = ""
        if message.to != self.me.node_id:
            reason = f"the node here is {self.me.node_id.hex()[:8]}, not {message.to.hex()[:8]}"
        elif message.node_id in self._dead:
            reason = f"your node was declared dead: it {self._dead[message.node_id]}"
        if reason:
            connection.send(Unwelcome(reason))
            connection.close()
            return None
        # The news of it may still be on the way.
        node = self._know(message.node_id, message.place, "")
        for other, of in list(self._listening.items()):
            if of is node and other is not connection:
                # An older one, of which the end has not been noticed.
                self._listening[other] = None
                other.close()
        self._listening[connection] = node
        heard = self._heard.setdefault(node.node_id, Incoming())
        connection.send(Welcome(heard.last))
        return node

    def on_closed(self, connection: PeerConnection, error: Exception | None) -> None:
        """A daemon has hung up; if it lives, it comes again."""
        node = self._listening.pop(connection, None)
        if error is not None:
            _log.warning("closed a connection of %s: %s", node or "a daemon", error)

    def close(self) -> None:
        """Say and hear nothing more."""
        self._closed = True
        for speaker in self._speakers.values():
            speaker.close()
        for task in self._adopting:
            task.cancel()
        for connection in list(self._listening):
            connection.close()


class _Speaker:
    """The way to one node: what waits to be said, and the connection on which it is, if there is one."""

    def __init__(self, neighbours: Neighbours, node: Neighbour) -> None:
        self._neighbours = neighbours
        self._loop = neighbours._loop
        self._node = node
        self._out: Outgoing[Neighbourly] = Outgoing(_WINDOW, _UNBOUNDED)
        self._connection: PeerConnection | None = None
        self._welcome = False
        self._closed = False
        self._pause_s = _FIRST_PAUSE_S
        self._complained = False
        self._dialing: asyncio.Task[None] = self._loop.create_task(self._dial())
        self._timer: asyncio.TimerHandle | None = None

    @property
    def backlog(self) -> int:
        return self._out.waiting + self._out.unacknowledged

    def say(self, message: Neighbourly) -> None:
        self._out.push(message)
        self._pump()

    def _pump(self) -> None:
        if self._welcome and self._connection is not None:
            for entry in self._out.take():
                self._connection.send(Said(entry.number, entry.message))

    async def _dial(self) -> None:
        try:
            connection = await self._neighbours.dial(self._node, self)
        except OSError as error:
            self._complain(error)
            self._dial_later()
        else:
            if not connection.closed:
                self._connection = connection

    def _dial_later(self) -> None:
        if not self._closed:
            self._timer = self._loop.call_later(self._pause_s, self._dial_again)
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)

    def _dial_again(self) -> None:
        self._dialing = self._loop.create_task(self._dial())

    def _complain(self, error: Exception) -> None:
        if not self._complained:
            self._complained = True
            _log.warning(
                "%s cannot be reached (%s); it is tried again for as long as the control store counts it among the living",
                self._node,
                error,
            )

    def on_trusted(self, connection: PeerConnection) -> None:
        self._connection = connection
        me = self._neighbours.me
        connection.send(Greet(me.node_id, me.place, self._node.node_id))

    def on_messages(self, _connection: PeerConnection, messages: list[Any]) -> None:
        for message in messages:
            match message:
                case Welcome(taken):
                    self._pause_s = _FIRST_PAUSE_S
                    self._complained = False
                    self._welcome = True
                    self._out.on_taken(taken)
                    self._out.rewind()
                case Taken(number):
                    self._out.on_taken(number)
                case Unwelcome(reason):
                    self._complain(ProtocolError(reason))
        self._pump()

    def on_closed(self, _connection: PeerConnection, error: Exception | None) -> None:
        self._connection = None
        self._welcome = False
        if error is not None and not self._closed:
            self._complain(error)
        self._dial_later()

    def close(self) -> None:
        self._closed = True
        self._dialing.cancel()
        if self._timer is not None:
            self._timer.cancel()
        if self._connection is not None:
            self._connection.close()
