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
        # Questions about processes of which not all is read yet that they said last, by address.
        self._open: dict[str, list[int]] = {}
        self.node_handlers: dict[type, Callable[[Any], None]] = {
            WhoUses: self._on_who_uses,
            FreeAbandoned: self._on_free_abandoned,
        }

    def _on_who_uses(self, message: WhoUses) -> None:
        process = self._process
        gone: dict[str, list[int]] = {}
        for number, address, cause in message.ended:
            if address in process.peers.gone:
                gone.setdefault(address, []).append(number)
            else:
                self._open.setdefault(address, []).append(number)
                process.deaths.on_peer_gone(PeerGone(address, cause))
        if gone:
            self._answer(gone)

    def _answer(self, asked: dict[str, list[int]]) -> None:
        process = self._process
        # What nobody here looks at any more is not in use.
        process.settle()
        while process.is_unsettled():
            process.settle()
        found: dict[str, list[Location]] = {address: [] for address in asked}
        for entry in list(process.objects.entries.values()):
            value = entry.value
            if type(value) is Stored:
                for address in {value.creator, entry.owner}:
                    if address in found:
                        found[address].append(value.location)
        for address, locations in found.items():
            for number in asked[address]:
                process.node.send_locked(InUse(number, locations))

    def _on_free_abandoned(self, message: FreeAbandoned) -> None:
        self._process.deliveries.freed(message.owner, message.locations)

    def process_died(self, address: str) -> None:
        """A process has ended, and all is read that it said."""
        process = self._process
        abandoned = process.deliveries.abandoned_by(address)
        if abandoned:
            process.node.send_locked(Abandoned(address, abandoned))
        numbers = self._open.pop(address, None)
        if numbers is not None:
            self._answer({address: numbers})
