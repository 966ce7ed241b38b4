"""JSON lines between a measured process and its launcher.

    worker -> launcher   {"event": "started",  "version": ..., "python": ...}
                         {"event": "begin",    "row": ...}
                         {"event": "census"}                     expects an answer
                         {"event": "measured", "row": ..., "values": [...], "beside": {...}}
                         {"event": "failed",   "row": ..., "error": ...}
                         {"event": "closed",   "shutdown_s": ...}
    launcher -> worker   {"unique_bytes": ..., "proportional_bytes": ..., "processes": ...}

A socket of its own carries them, because the programs under test write what they like to
standard output.  Both ends live here, so that the protocol can be read in one place.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from collections.abc import Mapping
from typing import Any


class Link:
    """One end of the socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._pending = b""
        # The measured process forks: its children must neither keep the launcher waiting for
        # an end of file nor inherit the descriptor through exec.
        sock.set_inheritable(False)

    def send(self, message: Mapping[str, Any]) -> None:
        self._sock.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, timeout_s: float | None = None) -> dict[str, Any] | None:
        """The next message; None when nothing came in time.

        Raises ``EOFError`` when the other end is closed.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while b"\n" not in self._pending:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            readable, _, _ = select.select([self._sock], [], [], left)
            if not readable:
                return None
            chunk = self._sock.recv(65536)
            if not chunk:
                raise EOFError("the other end of the benchmark link is closed")
            self._pending += chunk
        line, self._pending = self._pending.split(b"\n", 1)
        message = json.loads(line)
        if not isinstance(message, dict):
            raise TypeError(f"a message on the benchmark link is an object, not {message!r}")
        return message

    def close(self) -> None:
        self._sock.close()


class PrintedLink:
    """Stands in for a Link when a worker is started by hand: messages go to standard output."""

    def send(self, message: Mapping[str, Any]) -> None:
        print(json.dumps(message), flush=True)

    def receive(self, timeout_s: float | None = None) -> dict[str, Any] | None:
        raise RuntimeError(
            "this row needs the launcher, which reads the memory of the session's processes; "
            f"run `{sys.executable} -m bench --rows ROW` instead of the worker"
        )
