"""The control store's TCP port: lets in who comes for it, and hands the connections to `Sessions`.

A connection begins with the preface of `wire.door`, in clear, and names the control store; then follow TLS, if the cluster has it, and
the proof of the token. Guarantees: who says no preface, or a wrong one, loses the connection, with the reason in the log, and costs a
bounded number of descriptors for a bounded time; nothing listens beyond loopback unless it was asked to.

Everything runs in one event loop; nothing here blocks.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import ssl
from collections.abc import Callable
from typing import Final

from shoal.errors import ProtocolError
from shoal.wire.aio import PeerConnection
from shoal.wire.descriptors import is_shortage
from shoal.wire.door import CONTROL, PREFACE_BYTES, decode_preface, tune
from shoal.wire.tls import await_client_hello, explain

_log = logging.getLogger("shoal.control")

LOOPBACK: Final = "127.0.0.1"
_BACKLOG: Final = 4096
_PREFACE_TIMEOUT_S: Final = 10.0
_SHORT_AGAIN_S: Final = 0.2
_MOST_UNSAID: Final = 1024
"""Connections that have not said for whom they come. More wait in the kernel."""


def listen(host: str = LOOPBACK, port: int = 0) -> socket.socket:
    """A listening socket; port 0 is any that is free.

    Raises:
        OSError: with a text that says what to do.
    """
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        # A control store that was killed is started again at the same port, where its old connections may still linger.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise OSError(error.errno, _why_not(error, host, port)) from error
    return sock


def _why_not(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} of {host} is taken by another process: stop that one (`shoal stop`, if it is a cluster), or choose another "
            "with --port"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is not an address of this machine: choose one that is"
    return f"cannot listen at {host}, port {port}: {os.strerror(error.errno or 0)}"


class Server:
    """See the module's docstring. `accept` makes the protocol of a connection; `context` is for TLS."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listening: socket.socket,
        accept: Callable[[], PeerConnection],
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._loop = loop
        self._listening = listening
        self._accept = accept
        self._context = context
        self._visitors: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(_MOST_UNSAID)
        self._task = loop.create_task(self._serve())

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._listening.getsockname()[1])

    async def _serve(self) -> None:
        while True:
            await self._room.acquire()
            try:
                sock, (host, *_) = await self._loop.sock_accept(self._listening)
            except OSError as error:
                self._room.release()
                if not is_shortage(error) and not isinstance(error, ConnectionError):
                    raise
                await asyncio.sleep(_SHORT_AGAIN_S)
                continue
            visitor = self._loop.create_task(self._let_in(sock, str(host)))
            self._visitors.add(visitor)
            visitor.add_done_callback(self._visitors.discard)

    async def _let_in(self, sock: socket.socket, host: str) -> None:
        taken = False
        try:
            sock.setblocking(False)
            tune(sock)
            async with asyncio.timeout(_PREFACE_TIMEOUT_S):
                name = decode_preface(await self._read_preface(sock))
            if name != CONTROL:
                raise ProtocolError(
                    f"it comes for {name!r}, but this is the control store; is the address of a node meant?"
                )
            if self._context is not None:
                async with asyncio.timeout(_PREFACE_TIMEOUT_S):
                    await await_client_hello(self._loop, sock)
            # From here on the transport owns the socket, also if TLS fails.
            taken = True
            await self._loop.connect_accepted_socket(self._accept, sock, ssl=self._context)
        except TimeoutError:
            _log.warning("a connection from %s did not say what it wants", host)
        except ssl.SSLError as error:
            _log.warning("refused a connection from %s: %s", host, explain(error, server=True))
        except (ProtocolError, OSError) as error:
            _log.warning("refused a connection from %s: %s", host, error)
        finally:
            if not taken:
                sock.close()
            self._room.release()

    async def _read_preface(self, sock: socket.socket) -> bytes:
        # Not a byte more: the rest is for TLS, or for the handshake.
        data = b""
        while len(data) < PREFACE_BYTES:
            piece = await self._loop.sock_recv(sock, PREFACE_BYTES - len(data))
            if not piece:
                break
            data += piece
        return data

    async def close(self) -> None:
        """Let nobody in any more."""
        tasks = [self._task, *self._visitors]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._listening.close()
