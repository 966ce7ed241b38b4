"""What tests put behind a door."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

Settled = asyncio.Future[None]


def at_once() -> Settled:
    """Of a visitor who does not count."""
    settled: Settled = asyncio.get_running_loop().create_future()
    settled.set_result(None)
    return settled


def turn_away(sock: socket.socket) -> Settled:
    """For a door behind which nobody is at home."""
    sock.close()
    return at_once()


def keep_in(kept: list[socket.socket]) -> Callable[[socket.socket], Settled]:
    """For a door of which the test looks at the visitors."""

    def accept(sock: socket.socket) -> Settled:
        kept.append(sock)
        return at_once()

    return accept
