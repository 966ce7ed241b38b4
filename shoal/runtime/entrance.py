"""Where a process can be reached by others: its own Unix socket and, on a node with a door, the doorstep to which that passes
connections.

Both are there from the moment that an `Entrance` is made, before anybody is told the address; who comes early waits.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from shoal.wire.addresses import LOCAL, name_of, place_of
from shoal.wire.connection import Listener
from shoal.wire.door import Doorstep
from shoal.wire.session import doorstep_path, socket_path

if TYPE_CHECKING:
    from shoal.wire.reactor import Reactor

_BACKLOG: Final = 4096


class Accept(Protocol):
    """Takes a connection: one of the same node, or one that came through the door, of which `settled` is to be told (see `Doorstep`)."""

    def __call__(
        self, sock: socket.socket, settled: Callable[[], None] | None = None, /
    ) -> None: ...


class Entrance:
    """See the module's docstring."""

    def __init__(self, reactor: Reactor, session_dir: str, address: str) -> None:
        name = name_of(address)
        self._listener = Listener(reactor, socket_path(session_dir, name), backlog=_BACKLOG)
        self._doorstep: Doorstep | None = None
        if place_of(address) != LOCAL:
            try:
                self._doorstep = Doorstep(reactor, doorstep_path(session_dir, name))
            except BaseException:
                self._listener.close()
                raise

    def open(self, on_accept: Accept, most_strangers: int) -> None:
        """Hand every connection to `on_accept` (called by the reactor's leader, without the lock). From the door, no more are taken while
        so many of them have not proved the token."""
        self._listener.start(on_accept)
        if self._doorstep is not None:
            self._doorstep.start(on_accept, most_strangers)

    def abandon(self) -> None:
        """Close the sockets of a child that was forked; the files stay, and the parent in them."""
        self._listener.abandon()
        if self._doorstep is not None:
            self._doorstep.abandon()

    def close(self) -> None:
        """Take nobody in any more, and remove the files."""
        self._listener.close()
        if self._doorstep is not None:
            self._doorstep.close()
