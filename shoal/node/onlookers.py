"""A socket for whoever only looks at the session of one program: commands, and other programs of the same user.

Such a session has no control store that could be asked over a network, and its token is in no file. So this socket has a token of its own,
which opens nothing else: `control.visitors` answers what changes nothing, and whoever says anything else is hung up on.

Everything runs in the daemon's event loop; nothing here blocks.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from typing import Any, Final

import msgspec

from shoal.control.link import ControlLink
from shoal.control.visitors import Visitors
from shoal.messages.boot import Boot
from shoal.messages.control import Call, NodeView
from shoal.messages.membership import Ask
from shoal.node.showing import Showing
from shoal.wire.aio import PeerConnection
from shoal.wire.handshake import ServerHandshake
from shoal.wire.session import bind_private, look_path

_log = logging.getLogger("shoal.node")
_BACKLOG: Final = 64


class Onlookers:
    """See the module's docstring.

    Attributes:
        token: What they must prove.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        boot: Boot,
        control: ControlLink,
        showing: Showing,
    ) -> None:
        self.token = os.urandom(32)
        self._loop = loop
        self._path = look_path(boot.session_dir)
        self._control = control
        self._showing = showing
        self._visitors = Visitors(self._ask)
        self._max_frame_bytes = boot.config.max_frame_bytes
        self._decoder = msgspec.msgpack.Decoder(list[Ask])
        self._connections: dict[PeerConnection, None] = {}
        self._server: asyncio.AbstractServer | None = None

    async def open(self) -> None:
        """Listen."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        bind_private(sock, self._path)
        sock.listen(_BACKLOG)
        sock.setblocking(False)
        self._server = await self._loop.create_unix_server(self._connect, sock=sock)

    def _connect(self) -> PeerConnection:
        handshake = ServerHandshake(self.token)
        connection = PeerConnection(
            self._loop, handshake, self._decoder, self, self._max_frame_bytes
        )
        self._connections[connection] = None
        return connection

    def _ask(self, call: Call) -> asyncio.Future[Any]:
        # Who has no neighbours does not tell how full he is, unless it is asked.
        self._showing.tell_resources()
        self._control.post(NodeView(self._showing.row()))
        return self._control.call(call)

    def on_trusted(self, connection: PeerConnection) -> None:
        """Somebody has proved the token; he speaks first."""

    def on_messages(self, connection: PeerConnection, messages: list[Any]) -> None:
        """Questions."""
        for message in messages:
            self._visitors.on_ask(connection, message)

    def on_closed(self, connection: PeerConnection, error: Exception | None) -> None:
        """Somebody has gone."""
        self._connections.pop(connection, None)
        if error is not None:
            _log.warning("hung up on an onlooker: %s: %s", type(error).__name__, error)

    def close(self) -> None:
        """Hang up on everybody."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.close()
