"""What the store of this node holds, told when somebody asks: who has drawn how much, copies, what the dead left, and files of nobody.

Read off the tables of the daemon and one listing of the store's folders, in memory and on disk. Everything runs in the daemon's event loop; while nobody asks it
costs nothing.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

from shoal.core import pull_records
from shoal.messages.boot import Boot
from shoal.messages.inventory import Arena, Copy, Estate, StoreMemory
from shoal.messages.values import Location
from shoal.node import estates
from shoal.node.clients import Clients
from shoal.node.neighbours import daemon_name
from shoal.node.store import StoreKeeper
from shoal.wire.addresses import creator_at, make_address
from shoal.wire.session import spill_path

if TYPE_CHECKING:
    from shoal.node.outside import Outside

_BLOCK: Final = 512


class Stock:
    """See the module's docstring. A session of one machine has no `outside`."""

    def __init__(
        self,
        boot: Boot,
        node_id: bytes,
        clients: Clients,
        keeper: StoreKeeper,
        outside: Outside | None,
    ) -> None:
        self._place = boot.place
        self._directories = [boot.shm_dir]
        if boot.config.spill:
            self._directories.append(spill_path(boot.session_dir))
        self._node_id = node_id
        self._clients = clients
        self._keeper = keeper
        self._transfers = None if outside is None else outside.transfers

    def tell(self, limit: int) -> StoreMemory:
        """Everything, of lists at most `limit` entries."""
        quotas = self._keeper.quotas
        held = sorted(quotas.holdings().items(), key=lambda item: -item[1])
        left = self._keeper.estates()
        arena = Arena()
        copies: list[pull_records.Copy] = []
        unknown: list[Location] = []
        freed: list[Location] = []
        transfers = self._transfers
        if transfers is not None:
            copies = sorted(transfers.copies(), key=lambda copy: -copy.size)
            unknown, freed = transfers.other_blocks()
            stats = transfers.stats()
            if stats is not None:
                arena = stats.told()
        return StoreMemory(
            self._node_id,
            self._place,
            quotas.capacity,
            [(str(creator), amount) for creator, amount in held[:limit]],
            arena,
            [
                Copy(c.key.place, c.key.location, c.state is pull_records.State.WHOLE, len(c.pins))
                for c in copies[:limit]
            ],
            len(copies),
            [_estate(estate, limit) for estate in left[:limit]],
            self._strays({creator_at(estate.address) for estate in left})[:limit],
            unknown[:limit],
            freed[:limit],
        )

    def _strays(self, dead: set[str]) -> list[tuple[str, int]]:
        """Segments of processes that neither live nor have left anything that is known, and their bytes."""
        from shoal.store.layout import parse_segment

        known = dead | {creator_at(client.address) for client in self._clients}
        known.add(creator_at(make_address(self._place, daemon_name(self._node_id))))
        strays = []
        for directory in self._directories:
            for entry in os.scandir(directory) if os.path.isdir(directory) else ():
                parts = parse_segment(entry.name)
                if parts is not None and parts[0] not in known:
                    with contextlib.suppress(FileNotFoundError):
                        strays.append((entry.name, entry.stat().st_blocks * _BLOCK))
        return strays


def _estate(estate: estates.Estate, limit: int) -> Estate:
    """As it is told, with at most `limit` segments."""
    segments = list(estate.segments.items())[:limit]
    return Estate(
        estate.address,
        [one for one in segments if one[0] not in estate.on_disk],
        [one for one in segments if one[0] in estate.on_disk],
    )
