"""The door of a node: one TCP port, and who of the node a connection is for.

Whoever connects to it first says in clear for whom it comes, in a *preface* of 16 bytes::

    0      5 6     16
    ┌──────┬─┬──────┐
    │ shoal│1│ name │     name: a process of the node, or one of `CONTROL`, `BULK`, filled up with zeros
    └──────┴─┴──────┘

The node daemon (`shoal.node.doorkeeper`) reads no more than that of a connection that is for another process: it passes the socket
on, as a datagram with the descriptor to the process's *doorstep*. What follows, TLS and the proof of the token, is between the
two ends. A preface opens nothing; it says where to knock.

Threads: a `Doorstep` is called by the reactor's leader, and told with the runtime's lock that a visitor has settled.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from shoal.errors import ProtocolError
from shoal.wire.session import bind_private

if TYPE_CHECKING:
    from shoal.wire.reactor import Reactor

PREFACE_BYTES: Final = 16
CONTROL: Final = "control"
"""The control store."""
BULK: Final = "bulk"
"""The daemon of the node, for the bytes of objects."""

_MAGIC: Final = b"shoal\x01"
_MOST_AT_ONCE: Final = 64


def encode_preface(name: str) -> bytes:
    """What to say first at a door, to reach the process called `name`."""
    data = _MAGIC + name.encode("ascii")
    if len(data) > PREFACE_BYTES:
        raise ValueError(f"{name!r} is too long for a name")
    return data.ljust(PREFACE_BYTES, b"\0")


def decode_preface(data: bytes) -> str:
    """For whom a connection comes.

    Raises:
        ProtocolError: whoever connected does not speak shoal, or another version of it.
    """
    if len(data) == PREFACE_BYTES and data.startswith(_MAGIC):
        name = data[len(_MAGIC) :].rstrip(b"\0")
        if name.isascii():
            return name.decode("ascii")
    if data.startswith(_MAGIC[:-1]) and not data.startswith(_MAGIC):
        raise ProtocolError(
            f"the preface of a connection has version {data[5:6].hex() or 'none'}, this process speaks {_MAGIC[5:].hex()}; install the same "
            "version of shoal on both sides"
        )
    if data[:1] == b"\x16":
        raise ProtocolError(
            "a connection begins with TLS, where shoal's own greeting is expected; the peer is not shoal"
        )
    raise ProtocolError(
        f"a connection begins with {data!r}, which is not shoal's greeting; the peer is not shoal"
    )


def tune(sock: socket.socket) -> None:
    """Set what every TCP connection of ours has: small messages leave at once."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


class Doorstep:
    """Where a process takes the connections that its node's door has passed on: a Unix datagram socket in the session's folder.

    It takes no more while `most` of those that it took have not settled: the others wait in the kernel and, when that has no
    more room for them, at the door, which counts them among its own.
    """

    def __init__(self, reactor: Reactor, path: str) -> None:
        self._reactor = reactor
        self.path = path
        self._most = 0
        self._strangers = 0
        self._paused = False
        self._closed = False
        self._on_accept: Callable[[socket.socket, Callable[[], None]], None]
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._sock.setblocking(False)
            bind_private(self._sock, path)
        except OSError:
            self._sock.close()
            raise

    def start(
        self, on_accept: Callable[[socket.socket, Callable[[], None]], None], most: int
    ) -> None:
        """Hand every connection to `on_accept` (called by the leader, without the lock), and with it what is to be called, once and with
        the lock, when its peer has proved the token or it has ended."""
        self._on_accept = on_accept
        self._most = most
        self._reactor.register(self._sock.fileno(), self._on_ready)

    def _on_ready(self, _mask: int) -> None:
        for _ in range(_MOST_AT_ONCE):
            with self._reactor.lock:
                if self._paused or self._closed:
                    return
                if self._strangers >= self._most:
                    self._paused = True
                    self._reactor.unregister(self._sock.fileno())
                    return
            try:
                _, fds, _, _ = socket.recv_fds(self._sock, PREFACE_BYTES, 1)
            except BlockingIOError:
                return
            # Without descriptors the kernel had none to give: the connection is lost, and whoever made it notices.
            for fd in fds:
                with self._reactor.lock:
                    self._strangers += 1
                self._on_accept(socket.socket(fileno=fd), self._on_settled)

    def _on_settled(self) -> None:
        """One of those that were taken is no stranger any more (with the lock)."""
        self._strangers -= 1
        if self._paused and not self._closed:
            self._paused = False
            self._reactor.register(self._sock.fileno(), self._on_ready)

    def abandon(self) -> None:
        """Close this process's copy of a socket that is its parent's."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._sock.close()

    def close(self) -> None:
        """Take no more, and remove the socket's file."""
        self._closed = True
        self._reactor.unregister(self._sock.fileno())
        self._sock.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)


def pass_on(passing: socket.socket, sock: socket.socket, doorstep: str) -> None:
    """Give a connection to the process with this doorstep; `passing` is any Unix datagram socket, not blocking.

    Raises:
        BlockingIOError: it has too many to take already; ask again a little later.
        OSError: there is no such process.
    """
    passing.sendmsg(
        [b"c"],
        [(socket.SOL_SOCKET, socket.SCM_RIGHTS, sock.fileno().to_bytes(4, "little"))],
        0,
        doorstep,
    )
