"""Who comes to the node's door: each connection is taken to the process that it is for, by its preface (see `wire.door`).

Guarantees: nothing but the preface is read of a connection that is for another process; whoever says no preface, or a wrong one,
loses the connection, with the reason in the log, and costs a bounded number of descriptors for a bounded time.

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
from shoal.wire.descriptors import is_shortage
from shoal.wire.door import BULK, PREFACE_BYTES, decode_preface, pass_on, tune
from shoal.wire.session import doorstep_path

_log = logging.getLogger("shoal.node")

_PREFACE_TIMEOUT_S: Final = 10.0
_PASSING_TIMEOUT_S: Final = 10.0
_PASS_AGAIN_S: Final = 0.002
_SHORT_AGAIN_S: Final = 0.2
_MOST_UNSAID: Final = 1024
"""Connections that have not said for whom they come. More wait in the kernel."""


class Doorkeeper:
    """See the module's docstring. `accept_own` takes what is for the daemon called `name`, `accept_bulk` what is for the bytes of
    objects; both own the socket then."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        door: socket.socket,
        session_dir: str,
        name: str,
        accept_own: Callable[[socket.socket], None],
        accept_bulk: Callable[[socket.socket], None],
    ) -> None:
        self._loop = loop
        self._door = door
        self._session_dir = session_dir
        self._name = name
        self._accept_own = accept_own
        self._accept_bulk = accept_bulk
        self._passing = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._passing.setblocking(False)
        self._visitors: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(_MOST_UNSAID)
        door.setblocking(False)
        self._task = loop.create_task(self._keep())

    async def _keep(self) -> None:
        while True:
            await self._room.acquire()
            try:
                sock, (host, *_) = await self._loop.sock_accept(self._door)
            except OSError as error:
                self._room.release()
                if not is_shortage(error) and not isinstance(error, ConnectionError):
                    raise
                await asyncio.sleep(_SHORT_AGAIN_S)
                continue
            visitor = self._loop.create_task(self._lead_in(sock, str(host)))
            self._visitors.add(visitor)
            visitor.add_done_callback(self._visitors.discard)

    async def _lead_in(self, sock: socket.socket, host: str) -> None:
        taken = False
        try:
            sock.setblocking(False)
            tune(sock)
            async with asyncio.timeout(_PREFACE_TIMEOUT_S):
                name = decode_preface(await self._read_preface(sock))
            taken = await self._hand_over(sock, name)
        except TimeoutError:
            _log.warning("a connection from %s did not say for whom it comes", host)
        except (ProtocolError, OSError) as error:
            _log.warning("refused a connection from %s: %s", host, error)
        finally:
            if not taken:
                sock.close()
            self._room.release()

    async def _read_preface(self, sock: socket.socket) -> bytes:
        # Not a byte more: the rest is for another process to read.
        data = b""
        while len(data) < PREFACE_BYTES:
            piece = await self._loop.sock_recv(sock, PREFACE_BYTES - len(data))
            if not piece:
                break
            data += piece
        return data

    async def _hand_over(self, sock: socket.socket, name: str) -> bool:
        """Give a connection away; whether the socket is somebody else's now."""
        if name == self._name:
            self._accept_own(sock)
            return True
        if name == BULK:
            self._accept_bulk(sock)
            return True
        if not is_name(name):
            raise ProtocolError(f"nobody of this node is called {name!r}")
        async with asyncio.timeout(_PASSING_TIMEOUT_S):
            while True:
                try:
                    pass_on(self._passing, sock, doorstep_path(self._session_dir, name))
                except BlockingIOError:
                    await asyncio.sleep(_PASS_AGAIN_S)
                except (FileNotFoundError, ConnectionRefusedError):
                    # It has ended: whoever wants to speak with it hears so from its own node.
                    break
                else:
                    break
        return False

    def close(self) -> None:
        """Close the door."""
        self._task.cancel()
        for visitor in list(self._visitors):
            visitor.cancel()
        self._door.close()
        self._passing.close()
