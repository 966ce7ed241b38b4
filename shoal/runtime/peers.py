"""Connections to the other processes that run user code, one for each address, made when first needed.

Owns the registry and what both sides have told each other on a connection: which functions were defined. All methods but
`accept` are called with the runtime's lock held, and none of them waits. A process that is too busy to accept is asked again by
a timer, as it is when this one can have no more descriptors; what is to be sent to it is kept meanwhile.

The end of a process is declared by the node daemon (`PeerGone`), which knows its exit status; the end of a connection
alone is not an end. What follows when one breaks and the node says nothing is decided in `deaths`.
"""

from __future__ import annotations

import logging
import os
import resource
import socket
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from shoal.messages.node import Watch
from shoal.messages.peer import PeerMessage
from shoal.runtime.node_link import NodeLink
from shoal.wire.addresses import name_of, place_of
from shoal.wire.connection import Connection, Handler
from shoal.wire.descriptors import is_shortage
from shoal.wire.handshake import ClientHandshake, ServerHandshake
from shoal.wire.reactor import Reactor, decoder_of
from shoal.wire.session import socket_path

if TYPE_CHECKING:
    from shoal.config import Config
    from shoal.wire.tls import Tls

logger = logging.getLogger("shoal")

_CONNECT_AGAIN_S: Final = 0.02
_SHORT_AGAIN_S: Final = 0.1
_CONNECT_TIMEOUT_S: Final = 10.0
"""How long the backlog of a process may stay full before it counts as not to be reached."""

_PROOF_TIMEOUT_S: Final = 10.0
"""How long whoever comes through the door may take to prove the token."""

_decoder = decoder_of(PeerMessage)


def _tls_of(config: Config) -> Tls | None:
    if not (config.tls_cert or config.tls_key or config.tls_ca):
        return None
    # Here, so that processes without TLS do not load it.
    from shoal.wire.tls import Tls

    return Tls.of(config)


class Peer:
    """What is known of the process at the other end of a connection.

    Attributes:
        defined: Indices of our functions that were defined there.
        functions: Their functions by index: the executor's records.
    """

    __slots__ = ("address", "connection", "defined", "functions")

    def __init__(self, address: str, connection: Connection) -> None:
        self.address = address
        self.connection = connection
        self.defined: set[int] = set()
        self.functions: dict[int, Any] = {}


class Peers:
    """See the module's docstring."""

    def __init__(
        self,
        reactor: Reactor,
        node: NodeLink,
        token: bytes,
        address: str,
        session_dir: str,
        handler: Handler,
        config: Config,
    ) -> None:
        self._reactor = reactor
        self._node = node
        self._token = token
        self._address = address
        self._place = place_of(address)
        self._session_dir = session_dir
        self._handler = handler
        self._max_frame_bytes = config.max_frame_bytes
        self._tls = _tls_of(config)
        self._by_address: dict[str, Peer] = {}
        self._connections: dict[Connection, None] = {}
        self._has_been_short = False
        self.watched: set[str] = set()
        # Why processes ended whose connections are not read to their ends yet.
        self.ended: dict[str, str] = {}
        self.gone: dict[str, str] = {}

    def connect(self, address: str) -> Connection:
        """The connection to a process.

        Raises:
            ConnectionError: nobody listens there (any more).
        """
        peer = self._by_address.get(address)
        if peer is not None and not peer.connection.closed:
            return peer.connection
        cause = self.gone.get(address)
        if cause is not None:
            # At another node, that nobody is there is found out only later, and then it is no news.
            raise ConnectionError(f"cannot connect to {address}: the process {cause}")
        connection = Connection(
            self._reactor,
            None,
            ClientHandshake(self._token, self._address),
            self._handler,
            _decoder,
            max_frame_bytes=self._max_frame_bytes,
            peer_address=address,
        )
        try:
            self._try_to_connect(connection, monotonic() + _CONNECT_TIMEOUT_S)
        except (OSError, ValueError) as error:
            connection.close()
            raise ConnectionError(f"cannot connect to {address}: {error}") from error
        self._adopt(address, connection)
        return connection

    def _try_to_connect(self, connection: Connection, deadline: float) -> bool:
        """Connect, now or by a timer; False if it has taken too long."""
        try:
            if self._reach(connection):
                return True
            pause_s = _CONNECT_AGAIN_S
        except OSError as error:
            if not is_shortage(error):
                raise
            # The other side has not been asked: its time does not run.
            self._say_short(error)
            pause_s = _SHORT_AGAIN_S
            deadline = monotonic() + _CONNECT_TIMEOUT_S
        if monotonic() >= deadline:
            return False
        self._reactor.call_later(pause_s, partial(self._connect_again, connection, deadline))
        return True

    def _reach(self, connection: Connection) -> bool:
        address = connection.peer_address
        place, name = place_of(address), name_of(address)
        if place == self._place:
            return connection.connect(socket_path(self._session_dir, name))
        connection.connect_to_door(place, name, None if self._tls is None else self._tls.client)
        return True

    def _connect_again(self, connection: Connection, deadline: float) -> None:
        """The backlog of a process was full, or we were short of descriptors (without the lock)."""
        address = connection.peer_address
        try:
            with self._reactor.lock:
                if connection.closed or self._try_to_connect(connection, deadline):
                    return
        except OSError as error:
            connection.fail(ConnectionError(f"cannot connect to {address}: {error}"))
        else:
            connection.fail(
                ConnectionError(
                    f"cannot connect to {address}: for {_CONNECT_TIMEOUT_S:g} s it has accepted nobody"
                )
            )

    def _say_short(self, error: OSError) -> None:
        if not self._has_been_short:
            self._has_been_short = True
            logger.warning(
                "this process (pid=%d) can make no connections at the moment: %s. It may have %d files open (ulimit -n); what is "
                "to be sent waits until some are closed. Said once",
                os.getpid(),
                error.strerror,
                resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            )

    def accept(self, sock: socket.socket, settled: Callable[[], None] | None = None) -> None:
        """Somebody connected to this process; from another node with `settled`, which is called with the lock when that one has proved the
        token, or is gone. Called by the reactor's leader, without the lock, which it takes."""
        tls = None if self._tls is None or settled is None else self._tls.server
        with self._reactor.lock:
            connection = Connection(
                self._reactor,
                sock,
                ServerHandshake(self._token),
                self._handler,
                _decoder,
                max_frame_bytes=self._max_frame_bytes,
                tls=tls,
            )
            self._connections[connection] = None
            if settled is not None:
                connection.expect_proof_within(_PROOF_TIMEOUT_S, settled)

    def admit(self, connection: Connection) -> bool:
        """The first messages have come by a connection: make the record of the process at the other end. False if that is dead.

        It may speak all the same: its node was cut off, is declared dead, and has not heard of that. What it had here has been
        given up, and nobody would forget again what it asks for now.
        """
        address = connection.peer_address
        if address in self.gone:
            self.forget_connection(connection)
            connection.close()
            return False
        self._adopt(address, connection)
        return True

    def _adopt(self, address: str, connection: Connection) -> Peer:
        peer = connection.peer = Peer(address, connection)
        self._connections[connection] = None
        known = self._by_address.get(address)
        if known is None or known.connection.closed:
            self._by_address[address] = peer
        self.watch(address)
        return peer

    def watch(self, address: str) -> None:
        """Be told when the process ends."""
        if address and address not in self.watched:
            self.watched.add(address)
            self._node.send_locked(Watch(address))

    def connection_to(self, address: str) -> Connection | None:
        """The connection to a process, if there is one."""
        peer = self._by_address.get(address)
        return None if peer is None or peer.connection.closed else peer.connection

    def is_connected(self, address: str) -> bool:
        """Whether there is any connection to a process, made by either side."""
        return any(connection.peer_address == address for connection in self._connections)

    def forget_connection(self, connection: Connection) -> None:
        """A connection broke."""
        self._connections.pop(connection, None)
        peer = self._by_address.get(connection.peer_address)
        if peer is not None and peer.connection is connection:
            del self._by_address[connection.peer_address]

    def forget(self, address: str, cause: str) -> None:
        """A process has ended."""
        self.ended.pop(address, None)
        self.gone[address] = cause
        if len(self.gone) > 10_000:
            # Causes explain late messages about the dead; ten thousand of them do.
            del self.gone[next(iter(self.gone))]
        self.watched.discard(address)
        for connection in [c for c in self._connections if c.peer_address == address]:
            connection.close()
            self.forget_connection(connection)

    def abandon(self) -> None:
        """Close this process's copies of sockets that are its parent's."""
        for connection in self._connections:
            connection.abandon()

    def close(self) -> None:
        """Close every connection."""
        for connection in list(self._connections):
            connection.close()
        self._connections.clear()
        self._by_address.clear()
