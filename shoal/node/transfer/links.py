"""Bulk connections: blocking sockets between two daemons, with messages and runs of bytes on them.

::

    connect, preface `bulk` ─► (TLS) ─► proof of the token ─► message │ message, bytes │ message …

Guarantees: nothing is decoded for a peer that has not proved the token; nobody is waited for longer than `patience_s` without a
byte; `abort` ends whatever another thread does on the link, at once.

A link belongs to one thread at a time; only `abort` may be called by others. Without TLS the kernel does the waiting
(`SO_RCVTIMEO`): a Python timeout would make each call two, and a large `recv_into` many.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import struct
from threading import Lock
from time import monotonic
from typing import Final

import msgspec

from shoal.errors import ProtocolError
from shoal.messages.transfer import Bulk
from shoal.wire.addresses import split_place
from shoal.wire.door import BULK, encode_preface, tune
from shoal.wire.framing import HEADER_BYTES, encode_frame
from shoal.wire.handshake import HANDSHAKE_BYTES, UNDECODABLE, ClientHandshake
from shoal.wire.tls import explain

_MESSAGE_BYTES: Final = 16 * 1024 * 1024
_SECURE_BYTES: Final = 4 * 1024 * 1024
"""Of a file that TLS must see, so much is in memory at a time."""
"""A batch of dead copies is the longest message."""

_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Bulk)
_timeval: Final = struct.Struct("@ll")
_RESET: Final = struct.pack("@ii", 1, 0)
"""As SO_LINGER: without waiting for anything."""


class LinkBrokenError(ConnectionError):
    """The peer closed, or did not answer in time, or does not keep to the protocol."""


class LinkRefusedError(LinkBrokenError):
    """The peer does not trust this node, and has said so."""


def open_bulk(place: str, timeout_s: float, context: ssl.SSLContext | None = None) -> socket.socket:
    """Connect to the door of a node, for bytes of objects.

    Raises:
        OSError: nobody is there.
        ValueError: it is not the place of a door.
    """
    host, port = split_place(place)
    sock = socket.create_connection((host, port), timeout_s)
    try:
        tune(sock)
        sock.sendall(encode_preface(BULK))
        if context is not None:
            sock = _begin_tls(sock, context)
    except BaseException:
        sock.close()
        raise
    return sock


def _begin_tls(sock: socket.socket, context: ssl.SSLContext) -> ssl.SSLSocket:
    try:
        return context.wrap_socket(sock)
    except TimeoutError:
        raise
    except OSError as error:
        raise ConnectionError(explain(error, server=False)) from None


class Link:
    """See the module's docstring."""

    def __init__(self, sock: socket.socket, patience_s: float) -> None:
        self._sock = sock
        self._secure = isinstance(sock, ssl.SSLSocket)
        self._patience_s = patience_s
        self.be_patient(patience_s)

    def be_patient(self, seconds: float) -> None:
        """Wait so long for the next byte, or for room for one."""
        self._patience_s = seconds
        if self._secure:
            self._sock.settimeout(seconds)
            return
        self._sock.settimeout(None)
        whole = int(seconds)
        limit = _timeval.pack(whole, max(1, int((seconds - whole) * 1e6)))
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    # --- messages ------------------------------------------------------------------------------------------------

    def prove(self, token: bytes, address: str) -> None:
        """The handshake, as the side that has connected.

        Raises:
            AuthenticationError: the peer refuses, or is not of this cluster.
            LinkBrokenError: it broke off.
        """
        machine = ClientHandshake(token, address)
        done = False
        while not done:
            self._flush(machine)
            payload = self._receive_frame(HANDSHAKE_BYTES)
            if payload is None:
                raise LinkBrokenError("closed the connection in the middle of the handshake")
            done = machine.receive(payload)
        self._flush(machine)

    def _flush(self, machine: ClientHandshake) -> None:
        for frame in machine.outbox:
            self.send_bytes(frame)
        machine.outbox.clear()

    def send(self, message: Bulk) -> None:
        """Send a message."""
        self.send_bytes(encode_frame(_encoder.encode(message)))

    def receive(self) -> Bulk | None:
        """The next message; None if the peer has closed the link between two.

        Raises:
            LinkBrokenError: it does not come.
            ProtocolError: it is none.
        """
        payload = self._receive_frame(_MESSAGE_BYTES)
        if payload is None:
            return None
        try:
            message: Bulk = _decoder.decode(payload)
        except UNDECODABLE as error:
            raise ProtocolError(f"a bulk connection carries what is no message: {error}") from None
        return message

    def _receive_frame(self, limit: int) -> bytearray | None:
        header = bytearray(HEADER_BYTES)
        if not self._fill(memoryview(header), may_end=True):
            return None
        size = int.from_bytes(header, "little")
        if size > limit:
            raise ProtocolError(
                f"a message announces {size:,} bytes, more than the limit of {limit:,} on a connection for objects"
            )
        payload = bytearray(size)
        self._fill(memoryview(payload))
        return payload

    # --- bytes ---------------------------------------------------------------------------------------------------

    def receive_into(self, view: memoryview) -> int:
        """Receive the bytes of all of `view`, or fewer if no more come; how many.

        Raises:
            LinkBrokenError: none came.
        """
        flags = 0 if self._secure else socket.MSG_WAITALL
        try:
            count = self._sock.recv_into(view, len(view), flags)
        except (TimeoutError, BlockingIOError):
            raise LinkBrokenError(f"sent nothing for {self._patience_s:g} s") from None
        except ssl.SSLError as error:
            # The other side judges our certificate after it has let us begin.
            raise LinkRefusedError(
                f"broke the connection: {explain(error, server=False)}"
            ) from None
        except OSError as error:
            raise LinkBrokenError(f"broke the connection: {error.strerror or error}") from None
        if not count:
            raise LinkBrokenError("closed the connection")
        return count

    def _fill(self, view: memoryview, *, may_end: bool = False) -> bool:
        done = 0
        while done < len(view):
            try:
                done += self.receive_into(view[done:])
            except LinkBrokenError as error:
                if may_end and not done and str(error) == "closed the connection":
                    return False
                raise
        return True

    def receive_exactly(self, size: int) -> bytearray:
        """The next `size` bytes; raises as `receive_into`."""
        data = bytearray(size)
        self._fill(memoryview(data))
        return data

    def send_bytes(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`.

        Raises:
            LinkBrokenError: the peer does not take it.
        """
        view = memoryview(data)
        try:
            while view:
                view = view[self._sock.send(view) :]
        except (TimeoutError, BlockingIOError):
            raise LinkBrokenError(f"took nothing for {self._patience_s:g} s") from None
        except OSError as error:
            raise LinkBrokenError(f"broke the connection: {error.strerror or error}") from None

    def send_range(self, fd: int, offset: int, count: int) -> None:
        """Send a range of a file, by `sendfile` unless TLS must see the bytes.

        Raises:
            LinkBrokenError: the peer does not take it, or the file is shorter.
        """
        if self._secure:
            while count:
                piece = min(count, _SECURE_BYTES)
                self.send_bytes(read_range(fd, offset, piece))
                offset += piece
                count -= piece
            return
        try:
            while count:
                sent = os.sendfile(self._sock.fileno(), fd, offset, count)
                if not sent:
                    raise LinkBrokenError("wants more bytes than the file has")
                offset += sent
                count -= sent
        except BlockingIOError:
            raise LinkBrokenError(f"took nothing for {self._patience_s:g} s") from None
        except LinkBrokenError:
            raise
        except OSError as error:
            raise LinkBrokenError(f"broke the connection: {error.strerror or error}") from None

    # --- the end -------------------------------------------------------------------------------------------------

    def is_quiet(self) -> bool:
        """Whether nothing has come that nobody asked for; the end of the connection, most of all."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return not poll.poll(0)

    def abort(self) -> None:
        """End it for both sides. Any thread."""
        with contextlib.suppress(OSError):
            # When it is closed, it is reset: a peer that has much to send and was told to wait would not notice that nobody reads it any
            # more, and wait until its patience is over.
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            # Not an SSLSocket's own, which would forget that it is one and let its thread read what is encrypted.
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the descriptor; by the thread that uses the link."""
        self._sock.close()


def read_range(fd: int, offset: int, count: int) -> bytearray:
    """A range of a file.

    Raises:
        LinkBrokenError: the file is shorter.
    """
    data = bytearray(count)
    view = memoryview(data)
    done = 0
    while done < count:
        got = os.preadv(fd, [view[done:]], offset + done)
        if not got:
            raise LinkBrokenError("wants more bytes than the file has")
        done += got
    return data


class LinkPool:
    """Links to other daemons that nobody uses just now. Any thread."""

    def __init__(self, idle_s: float) -> None:
        self._idle_s = idle_s
        self._lock = Lock()
        self._closed = False
        # The one used last is at the end, and is taken first.
        self._idle: dict[str, list[tuple[float, Link]]] = {}

    def take(self, place: str) -> Link | None:
        """A link to a node that is likely to be good."""
        while True:
            with self._lock:
                links = self._idle.get(place)
                if not links:
                    return None
                _, link = links.pop()
                if not links:
                    del self._idle[place]
            if link.is_quiet():
                return link
            link.close()

    def give(self, place: str, link: Link) -> None:
        """A link is not used any more, and has nothing on it."""
        with self._lock:
            if not self._closed:
                self._idle.setdefault(place, []).append((monotonic(), link))
                return
        link.close()

    def trim(self) -> bool:
        """Close links that have been idle for long; whether any are left."""
        limit = monotonic() - self._idle_s
        old: list[Link] = []
        with self._lock:
            for place, links in list(self._idle.items()):
                old += [link for since, link in links if since < limit]
                links[:] = [item for item in links if item[0] >= limit]
                if not links:
                    del self._idle[place]
            left = bool(self._idle)
        for link in old:
            link.close()
        return left

    def forget(self, place: str) -> None:
        """A node has ended."""
        with self._lock:
            links = self._idle.pop(place, [])
        for _, link in links:
            link.close()

    def close(self) -> None:
        """Close all, and those that are given from now on."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, {}
        for links in idle.values():
            for _, link in links:
                link.close()
