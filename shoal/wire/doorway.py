"""Accepting at a door, in an asyncio daemon: each connection is read up to the end of its preface, and shown in.

Guarantees: not a byte more than the preface is read; whoever says none, or a wrong one, loses the connection, with the reason in the log.
Of those who have not proved the token yet there are at most `most`, whether they are still to say the preface or were shown in;
more wait in the kernel. So strangers cost a bounded number of descriptors, each for a bounded time.

Who is meant by the preface, and what follows it, is the business of `show_in(sock, name)`. It gives the socket away and returns what is
done as soon as the visitor has proved the token, or is gone (nobody may be waited for without end); or None, if the socket is to be
closed here, and no longer counts.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Final

from shoal.errors import ProtocolError
from shoal.wire.descriptors import is_shortage
from shoal.wire.door import PREFACE_BYTES, decode_preface, tune

PREFACE_TIMEOUT_S: Final = 10.0
_SHORT_AGAIN_S: Final = 0.2

Settled = asyncio.Future[None]
"""Done when whoever came has proved the token, or is gone."""


class Doorway:
    """See the module's docstring."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listening: socket.socket,
        show_in: Callable[[socket.socket, str], Awaitable[Settled | None]],
        log: logging.Logger,
        most: int,
    ) -> None:
        self._loop = loop
        self._listening = listening
        self._show_in = show_in
        self._log = log
        self._visitors: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(most)
        listening.setblocking(False)
        self._task = loop.create_task(self._keep())

    async def _keep(self) -> None:
        while True:
            await self._room.acquire()
            try:
                sock, (host, *_) = await self._loop.sock_accept(self._listening)
            except OSError as error:
                # The kernel may also pass on what has befallen one connection (its network is down, a firewall forbids it). Whatever it
                # is: a door that stays shut because of it would cut off the node.
                self._room.release()
                if not is_shortage(error) and not isinstance(error, ConnectionError):
                    self._log.warning("cannot accept a connection: %s", error)
                await asyncio.sleep(_SHORT_AGAIN_S)
                continue
            visitor = self._loop.create_task(self._receive(sock, str(host)))
            self._visitors.add(visitor)
            visitor.add_done_callback(self._visitors.discard)

    async def _receive(self, sock: socket.socket, host: str) -> None:
        settled: Settled | None = None
        try:
            sock.setblocking(False)
            tune(sock)
            name = decode_preface(await self._read_preface(sock))
            settled = await self._show_in(sock, name)
        except (ProtocolError, OSError) as error:
            self._log.warning("refused a connection from %s: %s", host, error)
        finally:
            if settled is None:
                sock.close()
                self._room.release()
            else:
                settled.add_done_callback(self._on_settled)

    def _on_settled(self, _settled: Settled) -> None:
        self._room.release()

    async def _read_preface(self, sock: socket.socket) -> bytes:
        data = b""
        try:
            async with asyncio.timeout(PREFACE_TIMEOUT_S):
                while len(data) < PREFACE_BYTES:
                    piece = await self._loop.sock_recv(sock, PREFACE_BYTES - len(data))
                    if not piece:
                        break
                    data += piece
        except TimeoutError:
            raise ProtocolError("it did not say for whom it comes") from None
        return data

    def close(self) -> list[asyncio.Task[None]]:
        """Let nobody in any more; the tasks that end by that."""
        tasks = [self._task, *self._visitors]
        for task in tasks:
            task.cancel()
        self._listening.close()
        return tasks
