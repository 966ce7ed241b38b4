"""The asyncio transport of the daemons: one connection, from either side.

Owns the handshake, the framing and the pending output of a connection. Guarantees that nothing is decoded for a peer
that has not proved the token; that batches are handed over whole and in order; that what is sent within one turn of the
event loop leaves as one frame; and that a peer costs bounded memory: frames that announce too much are refused, and one
that does not read what it is sent loses its connection.

Every end of a connection is reported once, with its reason unless the peer simply closed it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from shoal.errors import AuthenticationError, ProtocolError, ShoalError
from shoal.wire.door import encode_preface, tune
from shoal.wire.framing import FrameDecoder, cut_frame, pack_header
from shoal.wire.handshake import (
    HANDSHAKE_BYTES,
    UNDECODABLE,
    ClientHandshake,
    ServerHandshake,
    refusal,
)

if TYPE_CHECKING:
    import ssl

logger = logging.getLogger("shoal")

HANDSHAKE_TIMEOUT_S: Final = 10.0
CLOSE_TIMEOUT_S: Final = 5.0
"""How long what was written last may take to leave when a connection is closed. A machine that has vanished takes nothing, and TCP alone
would try for a quarter of an hour."""
MAX_OUTPUT_BYTES: Final = 256 * 1024 * 1024
"""What may wait for a peer that does not read. Far beyond what a sound peer lets pile up, so only lost ones reach it."""

_encode: Final = msgspec.msgpack.Encoder().encode


def _has_encoding(message: Any) -> bool:
    """Whether a message can be sent. If not, it is a defect of ours, and the others of its batch must leave all the same."""
    try:
        _encode(message)
    except Exception:
        logger.exception("a message (%s) cannot be encoded and is left out", type(message).__name__)
        return False
    return True


class ConnectionHandler(Protocol):
    """What a connection reports to."""

    def on_trusted(self, connection: PeerConnection) -> None:
        """The peer has proved the token."""

    def on_messages(self, connection: PeerConnection, messages: list[Any]) -> None:
        """A batch has arrived. A `ProtocolError` raised here ends the connection with that reason."""

    def on_closed(self, connection: PeerConnection, error: Exception | None) -> None:
        """The connection has ended; also for a peer that was never trusted."""


class PeerConnection(asyncio.Protocol):
    """One connection, accepted (with a `ServerHandshake`) or made (with a `ClientHandshake`; then `preface` is said first of all).

    Attributes:
        peer_address: Where the peer listens itself, by its own word.
        trusted: The peer has proved the token.
        closed: It has ended, or is about to: nothing is handed over or sent any more.
        settled: Done when the peer has proved the token, or the connection has ended without.
        user: For the handler's use.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        handshake: ServerHandshake | ClientHandshake,
        decoder: msgspec.msgpack.Decoder[list[Any]],
        handler: ConnectionHandler,
        max_frame_bytes: int,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
        preface: bytes = b"",
    ) -> None:
        self.peer_address = ""
        self.trusted = False
        self.closed = False
        self.settled = loop.create_future()
        self.user: Any = None
        self._loop = loop
        self._decode = decoder.decode
        self._handler = handler
        self._max_output_bytes = max_output_bytes
        self._handshake = handshake
        self._preface = preface
        self._greeting = bytearray()
        self._frames = FrameDecoder(max_frame_bytes)
        self._out: list[Any] = []
        self._flush_scheduled = False
        self._error: Exception | None = None
        self._transport: asyncio.Transport | None = None
        self._patience: asyncio.TimerHandle | None = None

    # --- receiving -----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._patience = self._loop.call_later(HANDSHAKE_TIMEOUT_S, self._give_up)
        # A server has nothing to say yet.
        self._write(self._preface + b"".join(self._handshake.outbox))
        self._handshake.outbox.clear()

    def data_received(self, data: bytes) -> None:
        if self.closed:
            return
        try:
            if self.trusted:
                self._receive(data)
            else:
                self._greet(data)
        except ShoalError as error:
            self.fail(error)

    def _greet(self, data: bytes) -> None:
        greeting = self._greeting
        greeting += data
        handshake = self._handshake
        while not self.trusted:
            payload = cut_frame(greeting, HANDSHAKE_BYTES)
            if payload is None:
                return
            try:
                self.trusted = handshake.receive(payload)
            finally:
                self._write(b"".join(handshake.outbox))
                handshake.outbox.clear()
        self._stop_waiting()
        self._settle()
        if isinstance(handshake, ServerHandshake):
            self.peer_address = handshake.peer_address
        self._handler.on_trusted(self)
        self._flush()
        if greeting:
            self._receive(bytes(greeting))
            greeting.clear()

    def _receive(self, data: bytes) -> None:
        for payload in self._frames.feed(data):
            try:
                messages = self._decode(payload)
            except UNDECODABLE as error:
                reason = refusal(payload)
                if reason is not None:
                    raise AuthenticationError(f"refused: {reason}") from None
                raise ProtocolError(
                    f"a message does not fit its schema: {error}; both sides must run the same version of shoal"
                ) from None
            self._handler.on_messages(self, messages)
            if self.closed:
                return

    def _settle(self) -> None:
        if not self.settled.done():
            self.settled.set_result(None)

    def _give_up(self) -> None:
        self.fail(AuthenticationError(f"no proof of the token within {HANDSHAKE_TIMEOUT_S:g} s"))

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    # --- sending -------------------------------------------------------------------------------------------------

    def send(self, message: Any) -> None:
        """Send a message with the others of this turn of the loop. Nothing happens on a closed connection: its end is
        reported anyway."""
        if self.closed:
            return
        self._out.append(message)
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    @property
    def pending_bytes(self) -> int:
        """Bytes that wait for the peer to read."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def _flush(self) -> None:
        self._flush_scheduled = False
        if self.closed or not self._out or not self.trusted:
            return
        out, self._out = self._out, []
        try:
            payload = _encode(out)
        except Exception:  # noqa: BLE001 - whatever it is, it is found and reported one by one
            payload = _encode([message for message in out if _has_encoding(message)])
        self._write(pack_header(len(payload)) + payload)

    def _write(self, data: bytes) -> None:
        if self._transport is None or not data:
            return
        self._transport.write(data)
        if self._transport.get_write_buffer_size() > self._max_output_bytes:
            self.fail(
                ProtocolError(f"it does not read: {self.pending_bytes:,} bytes wait for it already")
            )

    # --- ending --------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Send what waits, then close."""
        if not self.closed:
            self._flush()
            self.closed = True
            if self._transport is not None:
                self._close_in_time(self._transport)

    def finish(self) -> None:
        """Send what waits, and hear nothing more; it is for the peer to close, or for `abort`. Whoever closes at once while the other
        side speaks resets the connection, and what was sent last may be lost with that."""
        if not self.closed:
            self._flush()
            self.closed = True

    def abort(self) -> None:
        """End it at once, whatever waits."""
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    def fail(self, error: Exception) -> None:
        """End the connection because of what the peer did."""
        if self.closed:
            return
        self.closed = True
        self._error = error
        if self._transport is not None:
            # `close` still sends the refusal that a handshake left; who does not read has no use for it.
            if self.pending_bytes > self._max_output_bytes:
                self._transport.abort()
            else:
                self._close_in_time(self._transport)

    def _close_in_time(self, transport: asyncio.Transport) -> None:
        """Without this, the end of a connection on which something waits would be reported when the peer reads, or never."""
        transport.close()
        self._stop_waiting()
        self._patience = self._loop.call_later(CLOSE_TIMEOUT_S, transport.abort)

    def never_made(self) -> None:
        """TLS failed before there was a connection: asyncio tells nobody of that end."""
        if self._transport is None and not self.closed:
            self.connection_lost(None)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._stop_waiting()
        self._settle()
        self.closed = True
        self._transport = None
        self._out.clear()
        broken = self._frames.pending_bytes + len(self._greeting)
        if self._error is None and broken and not isinstance(error, ConnectionError):
            self._error = ProtocolError(
                f"it closed the connection in the middle of a frame, after {broken} bytes"
            )
        reason = self._error or (None if isinstance(error, ConnectionError) else error)
        self._handler.on_closed(self, reason)


async def adopt(
    loop: asyncio.AbstractEventLoop,
    sock: socket.socket,
    connection: PeerConnection,
    context: ssl.SSLContext | None = None,
) -> None:
    """Let a connection begin on a socket that was accepted; its handler hears of its end also if that comes before TLS is open.

    Raises:
        OSError: it is not to be (`ssl.SSLError`, if the two do not agree about TLS).
    """
    patience_s = None if context is None else HANDSHAKE_TIMEOUT_S
    try:
        await loop.connect_accepted_socket(
            lambda: connection, sock, ssl=context, ssl_handshake_timeout=patience_s
        )
    except BaseException:
        connection.never_made()
        raise


async def dial(
    loop: asyncio.AbstractEventLoop,
    host: str,
    port: int,
    name: str,
    make: Callable[[bytes], PeerConnection],
    context: ssl.SSLContext | None = None,
) -> PeerConnection:
    """Connect to the process called `name` at a door, by a connection that `make(preface)` makes. What comes of the handshake, its
    handler hears.

    With TLS, the preface goes before it, in clear.

    Raises:
        OSError: nobody is there (`ssl.SSLError`, if the two do not agree about TLS).
    """
    preface = encode_preface(name)
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        sock.setblocking(False)
        tune(sock)
        await loop.sock_connect(sock, (host, port))
        if context is not None:
            await loop.sock_sendall(sock, preface)
            preface = b""
        _, connection = await loop.create_connection(
            lambda: make(preface),
            sock=sock,
            ssl=context,
            server_hostname="" if context is not None else None,
        )
    except BaseException:
        sock.close()
        raise
    return connection
