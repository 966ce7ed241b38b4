"""One connection of the hot path: a non-blocking socket that carries batches of messages.

Owns the socket, the handshake on it, and what waits to be sent. Guarantees that messages of one side arrive whole and
in order, and that nothing is decoded for a peer that has not proved the token.

Threads: only the reactor's current leader calls `on_ready`; everything else (`send`, `flush`, `close`) is called with
the runtime's lock held. The handler takes that lock itself.

What cannot be sent (a message too large for a frame, or with something in it that has no encoding) is left out, and the
handler told at once, who knows what to send in its place, or how to answer for it otherwise. If it does not, the connection ends
there: nothing follows a message that is missing. A handler that raises when it is handed messages ends the connection, too: half
of a batch is handled then.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import resource
import socket
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from shoal.errors import AuthenticationError, InternalError, ProtocolError
from shoal.wire.addresses import split_place
from shoal.wire.door import encode_preface, tune
from shoal.wire.framing import HEADER_BYTES, Buffer, FrameDecoder, cut_frame, encode_frame
from shoal.wire.handshake import (
    HANDSHAKE_BYTES,
    UNDECODABLE,
    ClientHandshake,
    ServerHandshake,
    refusal,
)
from shoal.wire.session import bind_private

if TYPE_CHECKING:
    import ssl

    from shoal.wire.reactor import Reactor
    from shoal.wire.tls_stream import TlsStream

logger = logging.getLogger("shoal")

_ACCEPT_AGAIN_S: Final = 0.2
_KEPT_BUFFER_BYTES: Final = 256 * 1024
_EPOLLIN: Final = 0x001
_EPOLLOUT: Final = 0x004

_pack_into = struct.Struct("<I").pack_into
_encoder = msgspec.msgpack.Encoder()
_encode = _encoder.encode
_encode_into = _encoder.encode_into


class Handler(Protocol):
    """What a connection reports to. All but `on_unsent` are called by the reactor's leader, without the lock."""

    def on_messages(self, connection: Connection, messages: list[Any]) -> None:
        """A batch has arrived."""

    def on_closed(self, connection: Connection, error: Exception | None) -> None:
        """The connection is gone; `error` tells why, unless the peer closed it between frames."""

    def on_unsent(self, connection: Connection, message: Any, reason: str) -> None:
        """A message is left out since it cannot be sent; `reason` is a clause such as "is too large…".

        Called with the lock, by whoever flushes. What it sends on this connection goes in the place of the message, before those
        that follow. It may change nothing else right now: the flush may be part of any change.

        Raises:
            InternalError: nobody can be told, and nothing may follow: the connection ends.
        """


class Connection:
    """A connection to one peer, from either end.

    Attributes:
        peer_address: Where the other side can be reached ("" while not known).
        lane: Which lane's or actor's replies come on it (the owner's business).
        peer: The record of the process at the other end (the business of `Peers`).
        out: Messages for the next frame. Hot paths append to it and then call `touch`.
        closed: No more messages will be sent or handed out.
    """

    __slots__ = (
        "_buffer",
        "_decode",
        "_decoder",
        "_greeting",
        "_handshake",
        "_most_bytes",
        "_on_readable",
        "_reactor",
        "_settled",
        "_sock",
        "_unsent",
        "_watching_write",
        "closed",
        "dirty",
        "fd",
        "handler",
        "lane",
        "out",
        "peer",
        "peer_address",
    )

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.socket | None,
        handshake: ClientHandshake | ServerHandshake,
        handler: Handler,
        messages: Any,
        *,
        max_frame_bytes: int,
        peer_address: str = "",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`sock` is connected; without one, `connect` makes it. With `tls`, it was accepted and must begin with TLS."""
        self._reactor = reactor
        self._sock: socket.socket | TlsStream
        self.fd = -1
        self._handshake: ClientHandshake | ServerHandshake | None = handshake
        self.handler = handler
        self.peer_address = peer_address
        self.lane: Any = None
        self.peer: Any = None
        self.out: list[Any] = []
        self.dirty = False
        self.closed = False
        self._buffer = bytearray(4096)
        self._unsent = bytearray()
        self._settled: Callable[[], None] | None = None
        self._watching_write = False
        self._most_bytes = HEADER_BYTES + max_frame_bytes
        self._decoder = FrameDecoder(max_frame_bytes)
        self._greeting = bytearray()
        self._decode: Callable[[Any], list[Any]] = messages.decode
        self._on_readable: Callable[[Buffer], None] = self._receive_handshake
        if sock is not None:
            self._take(sock)
            if tls is None:
                self._begin()
            else:
                self._begin_tls(sock, tls, b"")

    def _take(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self.fd = sock.fileno()

    def _begin_tls(self, sock: socket.socket, context: ssl.SSLContext, preface: bytes) -> None:
        """Let a stream in TLS take the socket's place; the rest waits until it is open."""
        # Here, so that processes without TLS do not load it.
        from shoal.wire.tls_stream import TlsStream

        stream = self._sock = TlsStream(sock, context, server=not preface, preface=preface)
        self._reactor.register(self.fd, functools.partial(self._open_tls, stream))
        if preface:
            self._reactor.modify(self.fd, _EPOLLIN | _EPOLLOUT)

    def _open_tls(self, stream: TlsStream, _mask: int) -> None:
        """The socket of a stream that is not open yet is ready (the leader, without the lock)."""
        try:
            with self._reactor.lock:
                if self.closed:
                    return
                awaited = stream.advance()
                if awaited:
                    self._reactor.modify(self.fd, awaited)
                else:
                    self._reactor.unregister(self.fd)
                    self._begin()
        except (ProtocolError, OSError) as error:
            self.fail(None if isinstance(error, ConnectionResetError) else error)

    def _begin(self) -> None:
        assert self._handshake is not None
        self._reactor.register(self.fd, self.on_ready)
        self._send_raw(self._handshake.outbox)

    def connect(self, path: str) -> bool:
        """Connect to a Unix socket, if none was given; False if the other side has no room for it now. What is sent meanwhile waits.
        Never blocks, and may be called again also when it has raised.

        Raises:
            OSError: nobody listens there, or this process can have no socket (`descriptors.is_shortage`).
        """
        if self.fd < 0:
            self._take(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        assert isinstance(self._sock, socket.socket)
        try:
            self._sock.connect(path)
        except BlockingIOError:
            return False
        self._begin()
        return True

    def connect_to_door(self, place: str, name: str, tls: ssl.SSLContext | None = None) -> None:
        """Connect to the process called `name` of another node, with `tls` in TLS. Never blocks: that nobody is there is found out
        later, as the end of a connection is.

        Raises:
            OSError: there is no way to that place, or this process can have no socket.
        """
        host, port = split_place(place)
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        try:
            self._take(sock)
            tune(sock)
            with contextlib.suppress(BlockingIOError):
                sock.connect((host, port))
        except OSError:
            sock.close()
            self.fd = -1
            raise
        if tls is not None:
            self._begin_tls(sock, tls, encode_preface(name))
            return
        # Not sent before the socket says that it is connected, and then at the head of all.
        self._unsent += encode_preface(name)
        self._begin()

    # --- sending (with the runtime's lock) -----------------------------------------------------------------------

    def send(self, message: Any) -> None:
        """Put a message into the next frame, which leaves at the next flush."""
        self.out.append(message)
        if not self.dirty:
            self.dirty = True
            self._reactor.dirty.append(self)

    def touch(self) -> None:
        """Tell the reactor that `out` has something to flush."""
        if not self.dirty:
            self.dirty = True
            self._reactor.dirty.append(self)

    def flush(self) -> None:
        """Send what waits, as one frame. Never blocks: what the kernel does not take goes out when it can."""
        if self._unsent or self.closed or self._handshake is not None:
            return
        out = self.out
        if not out:
            self.dirty = False
            return
        buffer = self._buffer
        try:
            _encode_into(out, buffer, HEADER_BYTES)
        except Exception:  # noqa: BLE001 - whatever it is, it is found and reported one by one
            self._flush_in_parts()
            return
        size = len(buffer)
        if size > self._most_bytes:
            self._flush_in_parts()
            return
        _pack_into(buffer, 0, size - HEADER_BYTES)
        out.clear()
        self.dirty = False
        try:
            sent = self._sock.send(buffer)
        except BlockingIOError:
            sent = 0
        except OSError:
            # The peer is gone: the reactor reads the end of the stream and reports it, with what came before it.
            return
        if sent < size:
            self._unsent += memoryview(buffer)[sent:]
            self._watch_write(True)
        if size > _KEPT_BUFFER_BYTES:
            self._buffer = bytearray(4096)

    def _flush_in_parts(self) -> None:
        """Send what waits as several frames, since the peer would refuse a single one; without what cannot be sent at all."""
        self._buffer = bytearray(4096)
        frames: list[bytes] = []
        todo = [self._take_out()]
        self.dirty = False
        try:
            while todo:
                part = todo.pop()
                reason = self._append_frame(frames, part)
                half = len(part) // 2
                if reason and half:
                    todo += [part[half:], part[:half]]
                elif reason:
                    self._replace(frames, part[0], reason)
        except Exception as error:  # noqa: BLE001 - a defect of ours: the connection ends, and its handler tells why
            self._send_raw(frames)
            self._break_off(error)
        else:
            self._send_raw(frames)

    def _take_out(self) -> list[Any]:
        taken = self.out[:]
        self.out.clear()
        return taken

    def _append_frame(self, frames: list[bytes], messages: list[Any]) -> str:
        """Make a frame of messages; returns why that cannot be done, if so."""
        try:
            payload = _encode(messages)
        except Exception as error:  # noqa: BLE001 - reported for the message that causes it
            return f"cannot be encoded: {type(error).__name__}: {error}"
        if HEADER_BYTES + len(payload) > self._most_bytes:
            return (
                f"is too large: it has {len(payload):,} bytes, and a message may have "
                f"{self._most_bytes - HEADER_BYTES:,} (max_frame_bytes)"
            )
        frames.append(encode_frame(payload))
        return ""

    def _replace(self, frames: list[bytes], message: Any, reason: str) -> None:
        """A message cannot be sent: make a frame of what the handler has in its place."""
        self.handler.on_unsent(self, message, reason)
        instead = self._take_out()
        reason = self._append_frame(frames, instead) if instead else ""
        if reason:
            raise InternalError(f"what should replace a {type(message).__name__} {reason}")

    def _break_off(self, error: Exception) -> None:
        """Send nothing more, and end."""
        with contextlib.suppress(OSError):
            # It fails if the peer is gone, which the leader finds out.
            self._sock.shutdown(socket.SHUT_WR)
        self._reactor.call_later(0, functools.partial(self.fail, error))

    def _send_raw(self, frames: list[bytes]) -> None:
        if not frames:
            return
        data = b"".join(frames)
        frames.clear()
        try:
            sent = 0 if self._unsent else self._sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            return
        if sent < len(data):
            self._unsent += data[sent:]
            self._watch_write(True)

    def _watch_write(self, on: bool) -> None:
        if on != self._watching_write:
            self._watching_write = on
            (self._reactor.behind.add if on else self._reactor.behind.discard)(self.fd)
            self._reactor.modify(self.fd, _EPOLLIN | _EPOLLOUT if on else _EPOLLIN)

    def _on_writable(self) -> None:
        with self._reactor.lock:
            if self.closed:
                # While we waited for the lock. The descriptor may be another's by now.
                return
            if self._unsent:
                try:
                    sent = self._sock.send(self._unsent)
                except BlockingIOError:
                    return
                except OSError:
                    self._unsent.clear()
                    self._watch_write(False)
                    return
                del self._unsent[:sent]
            if not self._unsent:
                self._watch_write(False)
                self.flush()

    # --- receiving (the leader, without the lock) ----------------------------------------------------------------

    def on_ready(self, mask: int) -> None:
        """The socket is readable or writable."""
        if mask & _EPOLLOUT:
            self._on_writable()
            if not mask & ~_EPOLLOUT:
                return
        try:
            received = self._sock.recv_into(self._reactor.receive_buffer)
        except BlockingIOError:
            return
        except OSError as error:
            self.fail(None if isinstance(error, ConnectionResetError) else error)
            return
        if not received:
            broken = self._decoder.pending_bytes + len(self._greeting)
            self.fail(
                ProtocolError(
                    f"the peer closed the connection in the middle of a frame ({broken} bytes of it came)"
                )
                if broken
                else None
            )
            return
        try:
            self._on_readable(self._reactor.received[:received])
        except (ProtocolError, AuthenticationError) as error:
            self.fail(error)
        except Exception as error:
            # Our bug. It is none of the business of whoever happens to lead, and the rest of the batch is lost.
            logger.exception("what %s sent could not be handled", self.peer_address or "a peer")
            self.fail(InternalError(f"what it sent could not be handled: {error!r}"))

    def _receive(self, data: Buffer) -> None:
        for payload in self._decoder.feed(data):
            try:
                messages = self._decode(payload)
            except UNDECODABLE as error:
                reason = refusal(payload)
                if reason is not None:
                    raise AuthenticationError(f"refused: {reason}") from None
                raise ProtocolError(f"a message does not fit its schema: {error}") from None
            if self.closed:
                return
            self.handler.on_messages(self, messages)

    def _receive_handshake(self, data: Buffer) -> None:
        handshake = self._handshake
        assert handshake is not None
        greeting = self._greeting
        greeting += data
        while (payload := cut_frame(greeting, HANDSHAKE_BYTES)) is not None:
            try:
                trusted = handshake.receive(payload)
            finally:
                with self._reactor.lock:
                    self._send_raw(handshake.outbox)
            if trusted:
                break
        else:
            return
        if isinstance(handshake, ServerHandshake):
            self.peer_address = handshake.peer_address
        self._on_readable = self._receive
        with self._reactor.lock:
            self._handshake = None
            self._settle()
            self.flush()
        if greeting:
            # The client may send data right behind its proof.
            self._receive(bytes(greeting))
            greeting.clear()

    # --- ending --------------------------------------------------------------------------------------------------

    def expect_proof_within(self, seconds: float, settled: Callable[[], None]) -> None:
        """End the connection if the peer has not proved the token by then (with the lock). `settled` is called, with the lock, when it has,
        or when the connection has ended."""
        self._settled = settled

        def judge() -> None:
            if self._handshake is not None:
                self.fail(AuthenticationError(f"no proof of the token within {seconds:g} s"))

        self._reactor.call_later(seconds, judge)
        if self.closed:
            self._settle()

    def _settle(self) -> None:
        settled, self._settled = self._settled, None
        if settled is not None:
            settled()

    def fail(self, error: Exception | None) -> None:
        """End the connection, and tell the handler. Takes the lock."""
        with self._reactor.lock:
            if self.closed:
                return
            self.close()
        self.handler.on_closed(self, error)

    def close(self) -> None:
        """Close the socket. The handler is not told: closing is its own decision."""
        if self.closed:
            return
        self.closed = True
        if self.fd >= 0:
            self._reactor.unregister(self.fd)
            self._sock.close()
        self.out.clear()
        self._unsent.clear()
        self._settle()

    def abandon(self) -> None:
        """Close this process's copy of a socket that is its parent's."""
        self.closed = True
        if self.fd >= 0:
            with contextlib.suppress(OSError):
                self._sock.close()


class Listener:
    """Listens on a Unix socket from the moment it is made; accepts once it is started.

    So a process can be reached before it announces its address, and is answered when it is ready. While it is out of
    descriptors it pauses: those who want to connect wait, and nobody spins.
    """

    def __init__(self, reactor: Reactor, path: str, backlog: int = 128) -> None:
        self._reactor = reactor
        self._on_accept: Callable[[socket.socket], None]
        self._closed = False
        self._has_paused = False
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._sock.setblocking(False)
            bind_private(self._sock, path)
            self._sock.listen(backlog)
        except OSError:
            self._sock.close()
            raise
        self.path = path

    def start(self, on_accept: Callable[[socket.socket], None]) -> None:
        """Hand every connection to `on_accept` (called by the leader, without the lock)."""
        self._on_accept = on_accept
        self._reactor.register(self._sock.fileno(), self._on_ready)

    def _on_ready(self, _mask: int) -> None:
        while True:
            try:
                sock, _ = self._sock.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                self._pause(error)
                return
            self._on_accept(sock)

    def _pause(self, error: OSError) -> None:
        """Out of descriptors or memory. Those who wait would make every poll return at once."""
        if not self._has_paused:
            self._has_paused = True
            most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            logger.warning(
                "this process (pid=%d) can accept no connections at the moment: %s. It may have %d files open (ulimit -n); who "
                "wants to connect waits until some are closed. Said once",
                os.getpid(),
                error.strerror,
                most,
            )
        with self._reactor.lock:
            if not self._closed:
                self._reactor.unregister(self._sock.fileno())
                self._reactor.call_later(_ACCEPT_AGAIN_S, self._resume)

    def _resume(self) -> None:
        with self._reactor.lock:
            if not self._closed:
                self._reactor.register(self._sock.fileno(), self._on_ready)

    def abandon(self) -> None:
        """Close this process's copy of a socket that is its parent's."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._sock.close()

    def close(self) -> None:
        """Stop listening and remove the socket's file."""
        self._closed = True
        self._reactor.unregister(self._sock.fileno())
        self._sock.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
