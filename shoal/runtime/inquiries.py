"""Answers to the node's question what this process still uses of what ended processes have left (see `node.inquiries`).

All methods are called with the runtime's lock held.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from shoal.messages.node import PeerGone
from shoal.messages.stores import Abandoned, FreeAbandoned, InUse, WhoUses
from shoal.messages.values import Location, Stored

if TYPE_CHECKING:
    from shoal.runtime.process import Process


class Inquiries:
    """See the module's docstring."""

    def __init__(self, process: Process) -> None:
        self._process = process
        # Asked about, but what they said last is not all read yet.
        self._open: dict[str, None] = {}
        self.node_handlers: dict[type, Callable[[Any], None]] = {
            WhoUses: self._on_who_uses,
            FreeAbandoned: self._on_free_abandoned,
        }

    def _on_who_uses(self, message: WhoUses) -> None:
        process = self._process
        gone: list[str] = []
        for address, cause in message.ended:
            if address in process.peers.gone:
                gone.append(address)
            else:
                self._open[address] = None
                process.on_peer_gone(PeerGone(address, cause))
        if gone:
            self._answer(gone)

    def _answer(self, addresses: list[str]) -> None:
        process = self._process
        # What nobody here looks at any more is not in use.
        process.settle()
        found: dict[str, list[Location]] = {address: [] for address in addresses}
        for entry in list(process.objects.entries.values()):
            value = entry.value
            if type(value) is Stored:
                for address in {value.creator, entry.owner}:
                    if address in found:
                        found[address].append(value.location)
        for address, locations in found.items():
            process.node.send_locked(InUse(address, locations))

    def _on_free_abandoned(self, message: FreeAbandoned) -> None:
        self._process.deliveries.freed(message.owner, message.locations)

    def process_died(self, address: str) -> None:
        """A process has ended, and all is read that it said."""
        process = self._process
        abandoned = process.deliveries.abandoned_by(address)
        if abandoned:
            process.node.send_locked(Abandoned(address, abandoned))
        if address in self._open:
            del self._open[address]
            self._answer([address])
