"""Who is let in for the bytes of objects: TLS, if the cluster has it, and the proof of the token, before a thread is begun.

Guarantees: a stranger costs a descriptor and a task of the loop, for at most `_PATIENCE_S` in all; not a byte more is read than the
handshake has; and whoever is refused is told why, in a way in which it can hear it.

Everything runs in the daemon's event loop; nothing here blocks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

from shoal.errors import AuthenticationError, ProtocolError
from shoal.wire.framing import HEADER_BYTES, cut_frame
from shoal.wire.handshake import HANDSHAKE_BYTES, ServerHandshake
from shoal.wire.tls import explain, refuse_plain

_log = logging.getLogger("shoal.node")

_PATIENCE_S: Final = 10.0

_T = TypeVar("_T")


async def admit(
    loop: asyncio.AbstractEventLoop,
    sock: socket.socket,
    token: bytes,
    context: ssl.SSLContext | None,
) -> socket.socket | None:
    """Demand the proof of the token on a connection of which the preface was read; the socket on which to go on, which blocks. None if
    there is no going on: the reason is in the log, and the socket is closed."""
    sock.setblocking(False)
    try:
        async with asyncio.timeout(_PATIENCE_S):
            if context is not None:
                sock = await _begin_tls(loop, sock, context)
            await _demand_proof(loop, sock, ServerHandshake(token))
    except TimeoutError:
        reason = f"no proof of the token within {_PATIENCE_S:g} s"
    except (AuthenticationError, ProtocolError) as error:
        reason = str(error)
    except OSError as error:
        reason = (
            explain(error, server=True)
            if context is not None
            else f"it broke the connection: {error}"
        )
    except BaseException:
        sock.close()
        raise
    else:
        sock.setblocking(True)
        return sock
    _log.warning("refused a bulk connection: %s", reason)
    with contextlib.suppress(OSError):
        # Unread, it would be answered with a reset that overtakes the refusal.
        sock.recv(65536)
    sock.close()
    return None


async def _begin_tls(
    loop: asyncio.AbstractEventLoop, sock: socket.socket, context: ssl.SSLContext
) -> socket.socket:
    await _when_ready(loop, sock, partial(refuse_plain, sock))
    secure = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
    try:
        await _when_ready(loop, secure, secure.do_handshake)
    except BaseException:
        # Whoever called knows the socket only that was wrapped.
        secure.close()
        raise
    return secure


async def _demand_proof(
    loop: asyncio.AbstractEventLoop, sock: socket.socket, machine: ServerHandshake
) -> None:
    done = False
    while not done:
        payload = await _receive_frame(loop, sock)
        try:
            done = machine.receive(payload)
        finally:
            for data in machine.outbox:
                # A few hundred bytes on a connection that is new: a kernel that does not take them at once never will.
                sock.send(data)
            machine.outbox.clear()


async def _receive_frame(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> bytes:
    data = bytearray()
    while (payload := cut_frame(data, HANDSHAKE_BYTES)) is None:
        missing = HEADER_BYTES - len(data)
        if missing <= 0:
            missing += int.from_bytes(data[:HEADER_BYTES], "little")
        piece = await _when_ready(loop, sock, partial(sock.recv, missing))
        if not piece:
            raise ProtocolError(
                f"it closed the connection in the middle of a frame, after {len(data)} bytes"
                if data
                else "it hung up before it had proved the token"
            )
        data += piece
    return payload


async def _when_ready(
    loop: asyncio.AbstractEventLoop, sock: socket.socket, attempt: Callable[[], _T]
) -> _T:
    """The result of `attempt`, which is made again whenever the socket is ready for it."""
    while True:
        try:
            return attempt()
        except (BlockingIOError, ssl.SSLWantReadError):
            add, remove = loop.add_reader, loop.remove_reader
        except ssl.SSLWantWriteError:
            add, remove = loop.add_writer, loop.remove_writer
        ready = asyncio.Event()
        add(sock.fileno(), ready.set)
        try:
            await ready.wait()
        finally:
            remove(sock.fileno())
