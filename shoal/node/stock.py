"""What the store of this node holds, told when somebody asks: who has drawn how much, copies, what the dead left, and files of nobody.

Read off the tables of the daemon, in its event loop, and one listing of the store's folders, in memory and on disk: that is done by the
thread that has the estates (`node.inheritance`). While nobody asks it costs nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

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


class _Found(NamedTuple):
    """By the thread: what the dead have left, and the segments of those that nobody knew then, as maker, name and bytes."""

    estates: list[Estate]
    others: list[tuple[str, str, int]]


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

    def tell(self, limit: int, then: Callable[[StoreMemory], None]) -> None:
        """Everything, of lists at most `limit` entries; `then` gets it in the loop."""
        look = partial(self._look, limit, self._living())
        self._keeper.inheritance.look(look, partial(self._compose, limit, then))

    def _living(self) -> set[str]:
        """Those that may have segments, by short name."""
        living = {creator_at(client.address) for client in self._clients}
        living.add(creator_at(make_address(self._place, daemon_name(self._node_id))))
        return living

    def _look(self, limit: int, living: set[str], left: Iterable[estates.Estate]) -> _Found:
        """In the thread."""
        from shoal.store.layout import parse_segment

        left = list(left)
        dead = {creator_at(estate.address) for estate in left}
        others: list[tuple[str, str, int]] = []
        for directory in self._directories:
            for entry in os.scandir(directory) if os.path.isdir(directory) else ():
                parts = parse_segment(entry.name)
                if parts is not None and parts[0] not in dead and parts[0] not in living:
                    with contextlib.suppress(FileNotFoundError):
                        others.append((parts[0], entry.name, entry.stat().st_blocks * _BLOCK))
        return _Found([_estate(estate, limit) for estate in left[:limit]], others)

    def _compose(self, limit: int, then: Callable[[StoreMemory], None], found: _Found) -> None:
        quotas = self._keeper.quotas
        held = sorted(quotas.holdings().items(), key=lambda item: -item[1])
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
        # Whoever has come while the folders were listed is no stranger either.
        living = self._living()
        strays = [(name, size) for creator, name, size in found.others if creator not in living]
        told = StoreMemory(
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
            found.estates,
            strays[:limit],
            unknown[:limit],
            freed[:limit],
        )
        then(told)


def _estate(estate: estates.Estate, limit: int) -> Estate:
    """As it is told, with at most `limit` segments."""
    segments = list(estate.segments.items())[:limit]
    return Estate(
        estate.address,
        [one for one in segments if one[0] not in estate.on_disk],
        [one for one in segments if one[0] in estate.on_disk],
    )
