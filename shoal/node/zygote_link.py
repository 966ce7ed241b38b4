"""The head's end of the line to the zygote: orders out, births and deaths in. Never blocks the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import deque
from typing import Final, Protocol

import msgspec

from shoal.messages.node import Job
from shoal.messages.zygote import Exited, Fork, Forked, FromZygote, Kill, Preload

_MAX_PACKET_BYTES: Final = 64 * 1024
_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(FromZygote).decode


class ZygoteEvents(Protocol):
    """What the zygote reports."""

    def on_forked(self, worker_id: bytes, pid: int, error: str) -> None:
        """A worker exists, or could not be made (pid 0)."""

    def on_exited(self, pid: int, status: int, peak_bytes: int) -> None:
        """A worker has ended; its process group is dead."""

    def on_zygote_lost(self) -> None:
        """The zygote is gone, and all workers with it."""


class ZygoteLink:
    """See the module's docstring."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, sock: socket.socket, events: ZygoteEvents
    ) -> None:
        sock.setblocking(False)
        self._loop = loop
        self._sock = sock
        self._events = events
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        self._open = True
        loop.add_reader(sock, self._on_readable)

    def fork(
        self, worker_id: bytes, job: Job, environ: dict[str, str], stdout: int, stderr: int
    ) -> None:
        """Order a worker. Takes over the two descriptors."""
        data = _encode(Fork(worker_id, job, environ))
        self._send(data, [stdout, stderr], worker_id)

    def preload(self, modules: list[str], sys_path: list[str]) -> None:
        """Import modules before further forks."""
        self._send(_encode(Preload(modules, sys_path)), [], b"")

    def kill(self, pid: int, number: int) -> None:
        """Signal a worker's process group, unless it has been reaped."""
        self._send(_encode(Kill(pid, number)), [], b"")

    def close(self) -> None:
        """Hang up. The zygote takes this as the end of the session: it kills the workers and cleans up."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)
            self._sock.close()
            while self._unsent:
                _close_all(self._unsent.popleft()[1])

    # --- sending -------------------------------------------------------------------------------------------------

    def _send(self, data: bytes, fds: list[int], worker_id: bytes) -> None:
        if not self._open:
            _close_all(fds)
            return
        if self._unsent:
            self._unsent.append((data, fds))
            return
        try:
            self._send_now(data, fds)
        except BlockingIOError:
            self._unsent.append((data, fds))
            self._loop.add_writer(self._sock, self._on_writable)
        except OSError as error:
            _close_all(fds)
            if worker_id and not isinstance(error, ConnectionError):
                # The packet is too large for the kernel: an environment or module path of 200 KB and more.
                reason = f"could not be ordered: {error.strerror} ({len(data):,} bytes of job and environment)"
                self._loop.call_soon(self._events.on_forked, worker_id, 0, reason)

    def _send_now(self, data: bytes, fds: list[int]) -> None:
        if fds:
            socket.send_fds(self._sock, [data], fds)
            _close_all(fds)
        else:
            self._sock.send(data)

    def _on_writable(self) -> None:
        while self._unsent:
            data, fds = self._unsent[0]
            try:
                self._send_now(data, fds)
            except BlockingIOError:
                return
            except OSError:
                # The zygote is gone, which the reader reports.
                _close_all(fds)
            self._unsent.popleft()
        self._loop.remove_writer(self._sock)

    # --- receiving -----------------------------------------------------------------------------------------------

    def _on_readable(self) -> None:
        while self._open:
            try:
                data = self._sock.recv(_MAX_PACKET_BYTES)
            except BlockingIOError:
                return
            except ConnectionError:
                data = b""
            if not data:
                self.close()
                self._events.on_zygote_lost()
                return
            message = _decode(data)
            if isinstance(message, Forked):
                self._events.on_forked(message.worker_id, message.pid, message.error)
            else:
                assert isinstance(message, Exited)
                self._events.on_exited(message.pid, message.status, message.peak_bytes)


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
