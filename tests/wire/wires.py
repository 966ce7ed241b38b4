"""Connections over pairs of sockets. The test's own thread leads the reactor, so nothing happens but what it lets happen."""

from __future__ import annotations

import socket
import ssl
from _thread import allocate_lock
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from shoal.wire.connection import Connection
from shoal.wire.framing import cut_frame, encode_frame
from shoal.wire.handshake import TOKEN_BYTES, ClientHandshake, ServerHandshake
from shoal.wire.reactor import Reactor, Waiter, decoder_of

TOKEN = b"t" * TOKEN_BYTES
OTHER = b"o" * TOKEN_BYTES
MESSAGES = decoder_of(int | bytes)
PATIENCE_S = 20
LIMIT = 16 * 1024 * 1024


class Wire:
    """A reactor, and everything that a test made for it."""

    def __init__(self) -> None:
        self.reactor = Reactor(allocate_lock(), watch_us=2_000)
        self.ends: list[End] = []
        self.sockets: list[socket.socket] = []
        self.changed = Waiter()

    def serve(self, condition: Callable[[], Any]) -> None:
        """Lead until `condition` holds."""
        while not condition():
            self.changed = Waiter()
            assert self.reactor.wait(self.changed, PATIENCE_S), "nothing more happens"

    def socketpair(self, send_buffer: int = 0) -> tuple[socket.socket, socket.socket]:
        pair = socket.socketpair()
        for sock in pair:
            sock.settimeout(PATIENCE_S)
            if send_buffer:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        self.sockets += pair
        return pair

    def client(self, sock: socket.socket, token: bytes = TOKEN, **options: Any) -> End:
        return End(self, sock, ClientHandshake(token, "/run/client.sock"), **options)

    def server(self, sock: socket.socket, token: bytes = TOKEN, **options: Any) -> End:
        return End(self, sock, ServerHandshake(token), **options)

    def pair(self, send_buffer: int = 0, **options: Any) -> tuple[End, End]:
        ours, theirs = self.socketpair(send_buffer)
        return self.client(ours, **options), self.server(theirs, **options)

    def close(self) -> None:
        with self.reactor.lock:
            for end in self.ends:
                end.connection.close()
        self.reactor.close()
        for sock in self.sockets:
            sock.close()


class End:
    """A connection and its handler, which keeps what it is told."""

    def __init__(
        self,
        wire: Wire,
        sock: socket.socket | None,
        handshake: ClientHandshake | ServerHandshake,
        messages: Any = MESSAGES,
        max_frame_bytes: int = LIMIT,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.wire = wire
        self.batches: list[list[Any]] = []
        self.closed: list[Exception | None] = []
        self.unsent: list[tuple[Any, str]] = []
        self.instead: Callable[[Any], Any] | None = None
        self.on_batch: Callable[[], None] | None = None
        wire.ends.append(self)
        with wire.reactor.lock:
            self.connection = Connection(
                wire.reactor,
                sock,
                handshake,
                self,
                messages,
                max_frame_bytes=max_frame_bytes,
                tls=tls,
            )

    @property
    def received(self) -> list[Any]:
        return [message for batch in self.batches for message in batch]

    def send(self, *messages: Any) -> None:
        """Send messages as one batch."""
        with self.wire.reactor.lock:
            for message in messages:
                self.connection.send(message)
        self.wire.reactor.flush()

    def error(self) -> Exception | None:
        """Why the connection ended, once it has."""
        self.wire.serve(lambda: self.closed)
        (error,) = self.closed
        return error

    # The handler's part.

    def on_messages(self, connection: Connection, messages: list[Any]) -> None:
        assert connection is self.connection
        assert not self.wire.reactor.lock.locked()
        self.batches.append(messages)
        if self.on_batch is not None:
            self.on_batch()
        self.wire.changed.finish()

    def on_unsent(self, connection: Connection, message: Any, reason: str) -> None:
        assert connection is self.connection
        assert self.wire.reactor.lock.locked()
        self.unsent.append((message, reason))
        if self.instead is not None:
            connection.send(self.instead(message))
        self.wire.changed.finish()

    def on_closed(self, connection: Connection, error: Exception | None) -> None:
        assert connection.closed
        self.closed.append(error)
        self.wire.changed.finish()


def greet(wire: Wire, sock: socket.socket) -> bytes:
    """Speak a client's part of the handshake by hand, up to its proof, which is returned and not sent."""
    client = ClientHandshake(TOKEN, "/run/by-hand.sock")
    sock.sendall(b"".join(client.outbox))
    client.outbox.clear()
    wire.reactor.pump()
    assert client.receive(read_frame(sock))
    return b"".join(client.outbox)


def read_frame(sock: socket.socket) -> bytes:
    data = bytearray()
    while (payload := cut_frame(data, LIMIT)) is None:
        data += sock.recv(1) or pytest.fail("the connection ended before a frame was whole")
    return payload


def frame(*messages: Any) -> bytes:
    return encode_frame(msgspec.msgpack.encode(list(messages)))
