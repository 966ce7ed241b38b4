"""The control store's TCP port: lets in who comes for it, and hands the connections to `Sessions`.

A connection begins with the preface of `wire.door`, in clear, and names the control store; then follow TLS, if the cluster has it, and
the proof of the token (see `wire.doorway`). Guarantees that nothing listens beyond loopback unless it was asked to.

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
from shoal.wire.aio import HANDSHAKE_TIMEOUT_S, PeerConnection, adopt
from shoal.wire.door import CONTROL
from shoal.wire.doorway import Doorway, Settled
from shoal.wire.tls import await_client_hello, explain

_log = logging.getLogger("shoal.control")

LOOPBACK: Final = "127.0.0.1"
_BACKLOG: Final = 4096


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
    """See the module's docstring. `accept` makes the protocol of a connection; `most_strangers` is the door's bound
    (`door_strangers`); `context` is for TLS."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listening: socket.socket,
        accept: Callable[[], PeerConnection],
        most_strangers: int,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._loop = loop
        self._listening = listening
        self._accept = accept
        self._context = context
        self._doorway = Doorway(loop, listening, self._show_in, _log, most_strangers)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._listening.getsockname()[1])

    async def _show_in(self, sock: socket.socket, name: str) -> Settled:
        if name != CONTROL:
            raise ProtocolError(
                f"it comes for {name!r}, but this is the control store; is the address of a node meant?"
            )
        if self._context is not None:
            await await_client_hello(self._loop, sock, HANDSHAKE_TIMEOUT_S)
        host = sock.getpeername()[0]
        connection = self._accept()
        try:
            await adopt(self._loop, sock, connection, self._context)
        except ssl.SSLError as error:
            _log.warning("refused a connection from %s: %s", host, explain(error, server=True))
        except OSError as error:
            _log.warning("lost a connection from %s: %s", host, error)
        # The transport owns the socket, also if it has failed.
        return connection.settled

    async def close(self) -> None:
        """Let nobody in any more."""
        await asyncio.gather(*self._doorway.close(), return_exceptions=True)
