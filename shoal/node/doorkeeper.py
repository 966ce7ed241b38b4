"""Who comes to the node's door: each connection is taken to the process that it is for, by its preface (see `wire.door`).

Guarantees that nothing but the preface is read of a connection that is for another process; what strangers cost is bounded (see
`wire.doorway`).

Everything runs in the daemon's event loop; nothing here blocks.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Final

from shoal.errors import ProtocolError
from shoal.wire.addresses import is_name
from shoal.wire.door import BULK, pass_on
from shoal.wire.doorway import Doorway, Settled
from shoal.wire.session import doorstep_path

_log = logging.getLogger("shoal.node")

_PASSING_TIMEOUT_S: Final = 10.0
_PASS_AGAIN_S: Final = 0.002


class Doorkeeper:
    """See the module's docstring. `accept_own` takes what is for the daemon called `name`, `accept_bulk` what is for the bytes of
    objects; both own the socket then, and tell when its peer is no stranger any more. There are at most `most_strangers`."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        door: socket.socket,
        session_dir: str,
        name: str,
        accept_own: Callable[[socket.socket], Settled],
        accept_bulk: Callable[[socket.socket], Settled],
        most_strangers: int,
    ) -> None:
        self._session_dir = session_dir
        self._name = name
        self._accept_own = accept_own
        self._accept_bulk = accept_bulk
        self._passing = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._passing.setblocking(False)
        self._doorway = Doorway(loop, door, self._show_in, _log, most_strangers)

    async def _show_in(self, sock: socket.socket, name: str) -> Settled | None:
        """Give a connection away. One that was passed on is for its process to count, which takes no more than it may
        have (`wire.door.Doorstep`); until it has been taken, it counts here."""
        if name == self._name:
            return self._accept_own(sock)
        if name == BULK:
            return self._accept_bulk(sock)
        if not is_name(name):
            raise ProtocolError(f"nobody of this node is called {name!r}")
        try:
            async with asyncio.timeout(_PASSING_TIMEOUT_S):
                await self._pass_on(sock, doorstep_path(self._session_dir, name))
        except TimeoutError:
            raise ProtocolError(
                f"{name} has taken no connection for {_PASSING_TIMEOUT_S:g} s"
            ) from None
        return None

    async def _pass_on(self, sock: socket.socket, doorstep: str) -> None:
        while True:
            try:
                pass_on(self._passing, sock, doorstep)
            except BlockingIOError:
                await asyncio.sleep(_PASS_AGAIN_S)
            except (FileNotFoundError, ConnectionRefusedError):
                # It has ended: whoever wants to speak with it hears so from its own node.
                return
            else:
                return

    def close(self) -> None:
        """Close the door."""
        self._doorway.close()
        self._passing.close()
