"""The node's share in the object store: quotas for processes, and what dead processes leave behind.

A process manages its own segments; the node knows only how many bytes it may use. When it has ended, its segments still
hold objects that others refer to: from then on the node frees them, block by block, as their owners say so, and
the rest when the job ends. What a dead process holds is measured, not believed: the blocks that its files have.

Some of it nobody will ever speak of: what the process itself owned, and what its owners told it to free when it could not
hear them any more. So when a process has left anything, every client is asked what of it it still uses (see
`node.inquiries`); what nobody uses is freed. The same goes for blocks that living processes made for an owner that has ended
(*abandoned* ones).

Limit: which blocks of a dead process live, the node does not know. A process that ends in order gives its idle memory back
first; what one that crashed had idle stays until its job ends, and so do the pages at the edges of freed blocks.
"""

from __future__ import annotations

import asyncio
import logging
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from shoal.clock import monotonic_ns
from shoal.core.quotas import Granted, StoreQuotas, Wanted
from shoal.messages.boot import Boot
from shoal.messages.stores import (
    Abandoned,
    FreeAbandoned,
    InUse,
    LetGo,
    QuotaGranted,
    QuotaRequest,
    QuotaWanted,
)
from shoal.messages.values import Location
from shoal.node.clients import Client, Clients
from shoal.node.inquiries import Inquiries, Used
from shoal.wire.addresses import creator_at

if TYPE_CHECKING:
    from shoal.store.extents import Extents

_log = logging.getLogger("shoal.node")

_BLOCK: Final = 512
_HELD_RETRY_S: Final = 1.0


class _Estate:
    """What one dead process left: its segments with the bytes that each takes.

    Attributes:
        freed: What was freed of each slab.
    """

    __slots__ = ("address", "freed", "job_id", "segments")

    def __init__(self, address: str, job_id: bytes, segments: dict[str, int]) -> None:
        self.address = address
        self.job_id = job_id
        self.segments = segments
        self.freed: dict[str, Extents] = {}

    def bytes(self) -> int:
        return sum(self.segments.values())


class Holder(Protocol):
    """Who draws quota: a client, or the daemon itself, for copies."""

    address: str

    @property
    def send(self) -> Callable[[Any], None]:
        """Takes answers, and wishes of others."""


class StoreKeeper:
    """See the module's docstring. Processes are known by the short name that their segments carry.

    Attributes:
        when_swept: Called with the name of each process that has ended and of which nothing is left.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, boot: Boot, all_clients: Clients) -> None:
        self._loop = loop
        self._directory = Path(boot.shm_dir)
        config = boot.config
        self.quotas = StoreQuotas(
            boot.store_bytes, config.quota_chunk_bytes, int(config.store_full_timeout_s * 1e9)
        )
        # Those that have drawn quota, by short name.
        self._clients: dict[str, Holder] = {}
        self.inquiries = Inquiries(
            loop, all_clients, self._free_unused, self._job_of, config.inquiry_patience_s
        )
        self.when_swept: list[Callable[[str], None]] = []
        # Blocks of living processes by the owner that has ended, and their maker's short name.
        self._abandoned: dict[str, dict[str, set[Location]]] = {}
        # The job of whoever was the first to say so: of the same circle as the owner's (`core.circles`).
        self._abandoned_in: dict[str, bytes] = {}
        self._estates: dict[str, _Estate] = {}
        self._held: list[Location] = []
        self._timer: asyncio.TimerHandle | None = None
        self._retry: asyncio.TimerHandle | None = None

    # --- quotas --------------------------------------------------------------------------------------------------

    def on_request(self, client: Holder, message: QuotaRequest) -> None:
        """A process wants room."""
        creator = creator_at(client.address)
        self._clients[creator] = client
        self.quotas.on_request(creator, str(client), message.req, message.needed, monotonic_ns())
        self._drain()

    def on_return(self, client: Holder, returned: int) -> None:
        """A process gives room back."""
        self.quotas.on_return(creator_at(client.address), returned)
        self._drain()

    def _drain(self) -> None:
        outbox = self.quotas.outbox
        effects = outbox[:]
        outbox.clear()
        for effect in effects:
            match effect:
                case Granted(holder, req, granted, explanation):
                    client = self._clients.get(str(holder))
                    if client is not None:
                        client.send(QuotaGranted(req, granted, explanation))
                case Wanted(holder, wanted, itself):
                    client = self._clients.get(str(holder))
                    if client is not None:
                        client.send(QuotaWanted(wanted, itself))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self.quotas.next_deadline()
        if deadline is not None:
            delay_s = max(0, deadline - monotonic_ns()) / 1e9
            self._timer = self._loop.call_later(delay_s, self._tick)

    def _tick(self) -> None:
        self.quotas.on_tick(monotonic_ns())
        self._drain()

    # --- the dead ------------------------------------------------------------------------------------------------

    def on_process_gone(self, address: str, job_id: bytes) -> bool:
        """A process has ended: what it left is the node's now. Whether there is anything."""
        creator = creator_at(address)
        drew = self._clients.pop(creator, None) is not None
        self.quotas.on_holder_gone(creator)
        if not self.quotas.held(creator):
            if drew:
                # It gave everything back. Its lock file is left.
                self._sweep(creator)
            self._drain()
            return False
        from shoal.store.layout import parse_segment

        segments = {}
        for entry in os.scandir(self._directory):
            parts = parse_segment(entry.name)
            if parts is not None and parts[0] == creator:
                segments[entry.name] = entry.stat().st_blocks * _BLOCK
        estate = self._estates[creator] = _Estate(address, job_id, segments)
        self._account(creator, estate)
        self._drain()
        return bool(segments)

    def estates(self) -> list[tuple[str, dict[str, int]]]:
        """The processes that have ended and left something: their addresses, and their segments with the bytes of each."""
        return [(estate.address, dict(estate.segments)) for estate in self._estates.values()]

    def ask_who_uses(self, address: str) -> None:
        """Ask everybody what they use of what a process has left."""
        self.inquiries.ask([address])

    def on_in_use(self, client: Client, message: InUse) -> None:
        """A client says what it uses of what a process has left."""
        self.inquiries.on_in_use(client, message)

    def on_abandoned(self, client: Client, message: Abandoned) -> None:
        """A client has made blocks for a process that has ended."""
        makers = self._abandoned.setdefault(message.owner, {})
        makers.setdefault(creator_at(client.address), set()).update(message.locations)
        self._abandoned_in.setdefault(message.owner, client.job.job_id)
        self.inquiries.ask([message.owner])

    def on_let_go(self, _client: Client, message: LetGo) -> None:
        """A client uses less of what processes left that have ended."""
        for address in message.addresses:
            if address in self._abandoned or self._estate_of(address) is not None:
                self.inquiries.ask_later(address)
            self.inquiries.on_let_go(address)

    def _estate_of(self, address: str) -> _Estate | None:
        # Processes of other nodes may have the same name.
        estate = self._estates.get(creator_at(address))
        return estate if estate is not None and estate.address == address else None

    def _job_of(self, address: str) -> bytes:
        estate = self._estate_of(address)
        return self._abandoned_in.get(address, b"") if estate is None else estate.job_id

    def on_client_gone(self, client: Client) -> None:
        """A client has ended: it uses nothing."""
        self.inquiries.on_client_gone(client)

    def _free_unused(self, address: str, used: Used) -> None:
        """Everybody has said what they use of what a process made or owned: free all else."""
        makers = self._abandoned.get(address, {})
        for creator, blocks in list(makers.items()):
            unused = [b for b in blocks if (b.offset, b.size) not in used.get(b.segment, ())]
            blocks.difference_update(unused)
            client = self._clients.get(creator)
            if client is not None and unused:
                client.send(FreeAbandoned(address, unused))
            if client is None or not blocks:
                # Of what a maker leaves that has ended itself, its estate takes care.
                del makers[creator]
        if not makers:
            self._abandoned.pop(address, None)
            self._abandoned_in.pop(address, None)
        estate = self._estate_of(address)
        if estate is not None:
            self._free_unused_of(creator_at(address), estate, used)
        elif not makers:
            self.inquiries.forget(address)

    def _free_unused_of(self, creator: str, estate: _Estate, used: Used) -> None:
        unused: list[Location] = []
        for segment in list(estate.segments):
            blocks = used.get(segment)
            if not blocks:
                # Unlinking is safe at any time: whoever has it mapped keeps it.
                (self._directory / segment).unlink(missing_ok=True)
                del estate.segments[segment]
                estate.freed.pop(segment, None)
            elif segment.endswith("s"):
                unused += self._gaps(estate, segment, blocks)
        self._account(creator, estate)
        self.free(unused)

    def _gaps(self, estate: _Estate, slab: str, used: set[tuple[int, int]]) -> list[Location]:
        """What lies between the blocks of a slab that are used, freed, or about to be."""
        from shoal.store.layout import ALIGNMENT, round_up

        pending = {(held.offset, held.size) for held in self._held if held.segment == slab}
        taken = [(offset, round_up(max(1, size), ALIGNMENT)) for offset, size in used | pending]
        if slab in estate.freed:
            taken += estate.freed[slab].ranges()
        taken.append(((self._directory / slab).stat().st_size, 0))
        gaps: list[Location] = []
        end = 0
        for offset, size in sorted(taken):
            if offset > end:
                gaps.append(Location(slab, end, offset - end))
            end = max(end, offset + size)
        return gaps

    def on_job_gone(self, job_id: bytes) -> None:
        """A job has ended: nobody refers to what its dead processes left."""
        for creator in [c for c, estate in self._estates.items() if estate.job_id == job_id]:
            self._sweep(creator)
            self.inquiries.forget(self._estates.pop(creator).address)
            self.quotas.on_swept(creator, 0)
        self._drain()

    def free(self, locations: list[Location]) -> None:
        """Owners say that these objects are dead; their creators are too."""
        from shoal.store.layout import parse_segment

        touched: dict[str, _Estate] = {}
        for location in locations:
            parts = parse_segment(location.segment)
            estate = None if parts is None else self._estates.get(parts[0])
            # An unknown one has been swept already, or its creator lives and will hear of it from the owner.
            if parts is None or estate is None or location.segment not in estate.segments:
                continue
            creator, number, slab = parts
            try:
                if not slab:
                    # Unlinking is safe at any time: whoever has it mapped keeps it.
                    (self._directory / location.segment).unlink(missing_ok=True)
                    del estate.segments[location.segment]
                elif self._is_held(creator, number, location):
                    self._held.append(location)
                    continue
                else:
                    self._free_block(estate, location)
            except OSError as error:
                _log.warning("cannot free %s: %s", location, error)
            touched[creator] = estate
        for creator, estate in touched.items():
            self._account(creator, estate)
        if self._held and self._retry is None:
            self._retry = self._loop.call_later(_HELD_RETRY_S, self._retry_held)
        self._drain()

    def _retry_held(self) -> None:
        self._retry = None
        held, self._held = self._held, []
        self.free(held)

    def _is_held(self, creator: str, number: int, location: Location) -> bool:
        """Whether somebody looks at a block of a slab: its memory must not be cleared under their eyes."""
        from shoal.store import locks
        from shoal.store.layout import lock_file, lock_range

        try:
            fd = locks.open_lock_file(self._directory / lock_file(creator), create=False)
        except FileNotFoundError:
            return False
        try:
            start, length = lock_range(number, location.offset, location.size, slab=True)
            return locks.is_held(fd, start, length)
        finally:
            os.close(fd)

    def _free_block(self, estate: _Estate, location: Location) -> None:
        """Give a block's pages back to the system: those that no block shares which still lives."""
        from shoal.store.extents import Extents
        from shoal.store.layout import ALIGNMENT, PAGE, round_up

        freed = estate.freed.setdefault(location.segment, Extents())
        start, size = freed.give(location.offset, round_up(max(1, location.size), ALIGNMENT))
        first, end = round_up(start, PAGE), (start + size) // PAGE * PAGE
        path = self._directory / location.segment
        if first < end:
            with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
                memory.madvise(mmap.MADV_REMOVE, first, min(end, len(memory)) - first)
        left = path.stat().st_blocks * _BLOCK
        if left:
            estate.segments[location.segment] = left
        else:
            path.unlink(missing_ok=True)
            del estate.segments[location.segment]
            del estate.freed[location.segment]

    def _account(self, creator: str, estate: _Estate) -> None:
        if not estate.segments:
            # Its lock file.
            self._sweep(creator)
            del self._estates[creator]
            if estate.address not in self._abandoned:
                self.inquiries.forget(estate.address)
        self.quotas.on_swept(creator, estate.bytes())

    def _sweep(self, creator: str) -> None:
        from shoal.store.session import sweep

        sweep(self._directory, creator)
        for listener in self.when_swept:
            listener(creator)

    def close(self) -> None:
        """Stop the timers."""
        self.inquiries.close()
        for timer in (self._timer, self._retry):
            if timer is not None:
                timer.cancel()
