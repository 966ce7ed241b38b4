"""TLS for connections of the reactor: a socket's stand-in that encrypts, and never blocks.

::

    accepted:   first byte looked at ─► handshake ─► open         (without TLS: refused in clear)
    connected:  preface in clear     ─► handshake ─► open

Rule 1. Until it is open only `advance` is called, whenever the socket is ready; it returns for what to wait.
Rule 2. Open, it has those methods of a socket that `Connection` uses, with the same meaning. In particular, `BlockingIOError` means that
        epoll will tell when to go on. OpenSSL keeps what it has decrypted of a record where epoll does not see it, so a
        record is always read to its end: into a buffer that has no room for a whole one, nothing is read.
Rule 3. What was refused with `BlockingIOError` is sent again, beginning with the same bytes; more may follow them. OpenSSL insists.

Threads: the reactor's leader receives without the runtime's lock while others send with it, and OpenSSL's objects are not made for that,
so each call takes a lock of its own. It is held for as long as copying and encrypting take.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from mmap import mmap
from typing import Final

from shoal.errors import AuthenticationError
from shoal.wire.framing import Buffer
from shoal.wire.tls import explain, refuse_plain

_RECORD_BYTES: Final = 16 * 1024
"""What a record of TLS may hold."""

_EPOLLIN: Final = 0x001
_EPOLLOUT: Final = 0x004


class TlsError(AuthenticationError, ConnectionError):
    """A connection could not be, or go on, in TLS."""


class TlsStream:
    """See the module's docstring."""

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        *,
        server: bool,
        preface: bytes = b"",
    ) -> None:
        """`sock` does not block and is connected, or about to be; it belongs to the stream from now on."""
        self._sock: socket.socket = sock
        self._context = context
        self._server = server
        self._preface = preface
        self._lock = threading.Lock()
        self._tls: ssl.SSLSocket | None = None

    # --- opening -------------------------------------------------------------------------------------------------

    def advance(self) -> int:
        """Do what can be done of the opening now. Returns for what to wait (bits of epoll), or 0 once it is open.

        Raises:
            ProtocolError: a client came without TLS; it has been told.
            TlsError: the two do not come to terms; says why.
            OSError: the connection is gone.
        """
        try:
            if self._preface:
                sent = self._sock.send(self._preface)
                self._preface = self._preface[sent:]
                if self._preface:
                    return _EPOLLOUT
            if self._tls is None:
                if self._server:
                    refuse_plain(self._sock)
                self._tls = self._context.wrap_socket(
                    self._sock, server_side=self._server, do_handshake_on_connect=False
                )
                self._sock = self._tls
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return _EPOLLIN
        except ssl.SSLWantWriteError:
            return _EPOLLIN | _EPOLLOUT
        except BlockingIOError:
            return _EPOLLOUT if self._preface else _EPOLLIN
        except OSError as error:
            if self._tls is None and not isinstance(error, ssl.SSLError):
                # Nobody is there, as without TLS.
                raise
            raise TlsError(f"no TLS with the peer: {explain(error, server=self._server)}") from None
        return 0

    # --- as a socket ---------------------------------------------------------------------------------------------

    def send(self, data: Buffer) -> int:
        """Send what the kernel takes; how much that was.

        Raises:
            BlockingIOError: it takes nothing now.
            OSError: the connection is gone.
        """
        tls = self._opened()
        sent = 0
        with memoryview(data) as view, self._lock:
            while sent < len(view):
                try:
                    sent += tls.send(view[sent:])
                except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
                    break
        if len(data) and not sent:
            raise BlockingIOError
        return sent

    def recv_into(self, buffer: Buffer | mmap) -> int:
        """Receive what is there, up to the size of `buffer`; 0 at the end of the stream.

        Raises:
            BlockingIOError: there is nothing now.
            OSError: the connection is gone.
        """
        with memoryview(buffer) as view:
            received = self._receive(view)
        if received is None:
            raise BlockingIOError
        return received

    def _receive(self, view: memoryview) -> int | None:
        read: Callable[[memoryview], int] = self._opened().recv_into
        received = 0
        with self._lock:
            while len(view) - received >= _RECORD_BYTES:
                try:
                    size = read(view[received:])
                except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    break
                except OSError as error:
                    if received:
                        # What came before goes first; the end is still to be seen the next time.
                        break
                    if isinstance(error, ssl.SSLError):
                        # The other side judges our certificate after it has let us begin.
                        raise TlsError(
                            f"no TLS with the peer: {explain(error, server=self._server)}"
                        ) from None
                    raise
                if not size:
                    return received
                received += size
        return received or None

    def shutdown(self, how: int) -> None:
        """Close one direction, or both. The other side sees an end of the stream that TLS has not announced: frames say whether it
        came in the middle of something."""
        # Not SSLSocket.shutdown, after which what is received would not be decrypted.
        socket.socket.shutdown(self._sock, how)

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def _opened(self) -> ssl.SSLSocket:
        assert self._tls is not None
        return self._tls
