"""When another process counts as dead here, and who is told.

The node daemon declares it (`PeerGone`): it knows how the process ended. That a connection broke is no end yet, and neither is the
daemon's word while there is something left to read of what the process said last. Where a connection broke and the daemon says nothing
for a while, the process cannot be spoken with any more, and the daemon is asked to end it.

Guarantees: each death is told once, to all parts of the process in the same order, after the last that could be read from it. Who is gone
(`Peers.gone`) and of whom something is left to read (`Peers.ended`) is written in `peers`, which refuses the dead.

All methods are called by the reactor's leader: `on_closed` takes the lock, `on_peer_gone` is called with it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from shoal.errors import ShoalError
from shoal.messages.node import KillProcess

if TYPE_CHECKING:
    from shoal.messages.node import PeerGone
    from shoal.runtime.process import Process
    from shoal.wire.connection import Connection

logger = logging.getLogger("shoal")

_VERDICT_S: Final = 2.0
"""How long the node may take to declare a process dead whose connection broke."""

_LAST_WORDS_S: Final = 1.0
"""How long the connections of a process that has ended may take to end."""


class Deaths:
    """See the module's docstring.

    Attributes:
        listeners: Called with the address of each process that has ended, with the lock held.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        self._peers = process.peers
        self.listeners: list[Callable[[str], None]] = []

    def on_closed(self, connection: Connection, error: Exception | None) -> None:
        """A connection to another process broke. Whether the process has ended is for the node to say."""
        process, peers = self._process, self._peers
        if isinstance(error, ShoalError):
            logger.warning("a connection was refused or broken: %s", error)
        with process.lock:
            address = connection.peer_address
            peers.forget_connection(connection)
            if not address or address in peers.gone or process.closed:
                return
            ended = peers.ended.get(address)
            if ended is not None:
                if not peers.is_connected(address):
                    self._tell(address, ended)
                return
            cause = "closed its connection" if error is None else f"lost its connection ({error})"
            peers.watch(address)
            process.reactor.call_later(_VERDICT_S, partial(self._judge, address, cause))

    def _judge(self, address: str, cause: str) -> None:
        """The node has had its time to say what became of a process whose connection broke (without the lock)."""
        process, peers = self._process, self._peers
        with process.lock:
            if address not in peers.gone and peers.connection_to(address) is None:
                # If it lives, it cannot be spoken with any more: what follows is up to the node, as for any death.
                process.node.send_locked(KillProcess(address, f"a peer {cause}"))
                self._tell(address, cause)

    def on_peer_gone(self, message: PeerGone) -> None:
        """A process has ended. What it said last may be unread: its connections are read to their ends first."""
        process, peers = self._process, self._peers
        address, cause = message.address, message.cause
        if message.memory is not None:
            process.owner.shortages.note(address, message.memory)
        if not peers.is_connected(address):
            self._tell(address, cause)
            return

        def conclude() -> None:
            with process.lock:
                self._tell(address, cause)

        if peers.ended.setdefault(address, cause) is cause:
            # Not for ever: a process that it forked may hold them.
            process.reactor.call_later(_LAST_WORDS_S, conclude)

    def _tell(self, address: str, cause: str) -> None:
        process, peers = self._process, self._peers
        if address in peers.gone:
            return
        peers.forget(address, cause)
        process.callbacks.append(partial(process.store.forget, address))
        process.owner.process_died(address, cause)
        process.actors.process_died(address)
        process.borrowing.process_died(address, cause)
        for listener in self.listeners:
            listener(address)
        process.inquiries.process_died(address)
        process.settle()
        process.tick()
