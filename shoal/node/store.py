"""The node's share in the object store: quotas for processes, and what becomes of the objects of those that have ended.

A process manages its own segments; the node knows only how many bytes it may use. When it has ended, its segments still
hold objects that others refer to: from then on the node frees them, block by block, as their owners say so, and
the rest when the job ends (see `node.estates`, which has a thread of its own: everything here runs in the daemon's event loop, and waits
for no disk).

Some of it nobody will ever speak of: what the process itself owned, and what its owners told it to free when it could not
hear them any more. So when a process has left anything, every client is asked what of it it still uses (see
`node.inquiries`); what nobody uses is freed. The same goes for blocks that living processes made for an owner that has ended
(*abandoned* ones).

When the store is full, processes are told to write objects to disk (`core.spilling` says which); what the dead left the node
writes itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

from shoal.clock import monotonic_ns
from shoal.config import Config
from shoal.core.quotas import Granted, StoreQuotas, Wanted
from shoal.core.spilling import SpillOrder, SpillTerms
from shoal.errors import ProtocolError
from shoal.messages.boot import Boot
from shoal.messages.node import Reply
from shoal.messages.stores import (
    Abandoned,
    AwayDead,
    BringBack,
    FreeAbandoned,
    FreeOrphans,
    InUse,
    LetGo,
    QuotaGranted,
    QuotaRequest,
    QuotaReturn,
    QuotaWanted,
    Spilled,
    SpillWanted,
)
from shoal.messages.values import Location
from shoal.node.clients import Client, Clients
from shoal.node.disk import SpillAccounts
from shoal.node.disk_room import DiskRoom, DiskTerms
from shoal.node.inheritance import Inheritance, Left
from shoal.node.inquiries import Inquiries, Used
from shoal.node.store_row import StoreRows
from shoal.wire.addresses import creator_at
from shoal.wire.session import spill_path, spill_target

_ADVICE: Final = (
    "Drop references to large objects, make room there, or choose another object_spilling_directory"
)
_OTHERS_EVERY_S: Final = 2.0


class Holder(Protocol):
    """Who draws quota: a client, or the daemon itself, for copies."""

    address: str

    @property
    def send(self) -> Callable[[Any], None]:
        """Takes answers, wishes of others, and orders to write to disk."""


class StoreKeeper:
    """See the module's docstring. Processes are known by the short name that their segments carry.

    Attributes:
        room: Room on the disk.
        inheritance: What processes have left that have ended.
        when_swept: Called with the name of each process that has ended and of which nothing is left.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, boot: Boot, all_clients: Clients) -> None:
        self._loop = loop
        config = boot.config
        spill_directory = spill_path(boot.session_dir) if config.spill else ""
        terms = _terms(config, boot.store_bytes, spill_target(boot.session_dir) or spill_directory)
        self._batch = 0 if terms is None else terms.batch
        self.quotas = StoreQuotas(
            boot.store_bytes,
            config.quota_chunk_bytes,
            int(config.store_full_timeout_s * 1e9),
            terms,
            config.spill_ask_ms * 1_000_000,
        )
        self.disk = SpillAccounts(spill_directory)
        folder = Path(spill_directory) if spill_directory else None
        self.room = _room(loop, boot, folder)
        self.rows = StoreRows(loop, self.quotas, self.disk)
        # Those that have drawn quota, by short name.
        self._clients: dict[str, Holder] = {}
        self._all_clients = all_clients
        # When those are asked next that hold no quota.
        self._others_from = 0.0
        self.inquiries = Inquiries(
            loop, all_clients, self._free_unused, self._job_of, config.inquiry_patience_s
        )
        self.when_swept: list[Callable[[str], None]] = []
        # Blocks of living processes by the owner that has ended, and their maker's short name.
        self._abandoned: dict[str, dict[str, set[Location]]] = {}
        # The job of whoever was the first to say so: of the same circle as the owner's (`core.circles`).
        self._abandoned_in: dict[str, bytes] = {}
        self.inheritance = Inheritance(
            loop,
            Path(boot.shm_dir),
            folder,
            config.spill_disk_fraction,
            self,
            self.room.remote,
        )
        self._timer: asyncio.TimerHandle | None = None
        self.client_handlers: dict[type, Callable[[Client, Any], None]] = {
            QuotaRequest: self.on_request,
            QuotaReturn: self.on_return,
            Spilled: self.on_spilled,
            BringBack: self.on_bring_back,
            AwayDead: self.on_away_dead,
            FreeOrphans: lambda _, m: self.free(m.locations),
            InUse: self.on_in_use,
            Abandoned: self.on_abandoned,
            LetGo: self.on_let_go,
        }

    # --- quotas --------------------------------------------------------------------------------------------------

    def on_request(self, client: Holder, message: QuotaRequest) -> None:
        """A process wants room."""
        creator = creator_at(client.address)
        self._clients[creator] = client
        now = monotonic_ns()
        self.quotas.on_request(
            creator, str(client), message.req, message.needed, now, size=message.size
        )
        self._drain()

    def on_return(self, client: Holder, message: QuotaReturn) -> None:
        """A process gives room back, or says that it cannot."""
        creator = creator_at(client.address)
        self.quotas.on_return(creator, message.returned, monotonic_ns(), asked=message.asked)
        self._drain()

    def on_spilled(self, client: Holder, message: Spilled) -> None:
        """A process has written objects to disk, or has found that full."""
        self._on_spilled(creator_at(client.address), message.freed, message.written, message.error)

    def on_bring_back(self, client: Client, message: BringBack) -> None:
        """A process does not find a segment on disk."""
        from shoal.store.layout import parse_segment

        remote = self.room.remote
        if parse_segment(message.segment) is None or remote is None:
            raise ProtocolError(f"{message.segment!r} cannot be at a remote target")

        def answer(error: str) -> None:
            client.send(Reply(message.req, error=error))

        remote.bring(message.segment, partial(self._tell_loop, answer))

    def on_away_dead(self, _client: Client, message: AwayDead) -> None:
        """Segments of a process are dead, and were not on the disk."""
        from shoal.store.layout import parse_segment

        remote = self.room.remote
        if remote is None or any(parse_segment(name) is None for name in message.segments):
            raise ProtocolError("segments are dead that cannot be at a remote target")
        remote.forget(message.segments)

    def _tell_loop(self, event: Callable[..., None], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):
            # The loop may have ended.
            self._loop.call_soon_threadsafe(event, *args)

    def _on_spilled(self, creator: str, freed: int, written: int, error: str) -> None:
        if error and self.room.on_full(
            self._batch, partial(self._on_spilled, creator, freed, written, "")
        ):
            # There will be room there in a moment.
            return
        now = monotonic_ns()
        self.disk.on_spilled(creator, written, error, now)
        self.quotas.on_spilled(creator, freed, error, now)
        self._drain()

    def _drain(self) -> None:
        self.rows.on_change()
        outbox = self.quotas.outbox
        effects = outbox[:]
        outbox.clear()
        for effect in effects:
            creator = str(effect.holder)
            match effect:
                case Granted(_, req, granted, explanation, on_disk, disk_full):
                    answer = QuotaGranted(req, granted, explanation, on_disk, disk_full)
                    if on_disk:
                        self.disk.on_use()
                        let_write = partial(self._let_write, creator, answer)
                        self.room.before(effect.size, self.disk.ordered, let_write)
                    else:
                        self._send(creator, answer)
                case Wanted(_, wanted, itself):
                    self._send(creator, QuotaWanted(wanted, itself))
                    self._ask_others()
                case SpillOrder(_, wanted):
                    others = self.disk.ordered
                    self.disk.on_order(creator, wanted, monotonic_ns())
                    self.room.before(wanted, others, partial(self._spill, creator, wanted))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self.quotas.next_deadline()
        if deadline is not None:
            delay_s = max(0, deadline - monotonic_ns()) / 1e9
            self._timer = self._loop.call_later(delay_s, self._tick)

    def _send(self, creator: str, message: Any) -> None:
        client = self._clients.get(creator)
        if client is not None:
            client.send(message)

    def _ask_others(self) -> None:
        """Memory is short: those who hold nothing of it may hold references to what others have made."""
        now = self._loop.time()
        if now >= self._others_from:
            self._others_from = now + _OTHERS_EVERY_S
            for client in self._all_clients:
                if not self.quotas.held(creator_at(client.address)):
                    client.send(QuotaWanted(0))

    def _let_write(self, creator: str, answer: QuotaGranted, error: str) -> None:
        """An object may be made on disk, unless that is refused."""
        if error:
            self.disk.on_spilled(creator, 0, error, monotonic_ns())
            explanation = f"the object has no room in the object store, and cannot go to disk: {error}. {_ADVICE}"
            answer = QuotaGranted(answer.req, 0, explanation, disk_full=True)
        self._send(creator, answer)

    def _spill(self, creator: str, wanted: int, error: str) -> None:
        if error:
            self._on_spilled(creator, 0, 0, error)
        elif creator in self._clients:
            self._send(creator, SpillWanted(wanted))
        else:
            self._spill_estate(creator, wanted)

    def _tick(self) -> None:
        self.quotas.on_tick(monotonic_ns())
        self._drain()

    def _spill_estate(self, creator: str, wanted: int) -> None:
        def done(freed: int, written: int, error: str) -> None:
            # The machine knows already what came free.
            self._on_spilled(creator, freed, written, error)

        self.inheritance.spill(creator, wanted, done)

    # --- the dead ------------------------------------------------------------------------------------------------

    def on_process_gone(self, address: str, job_id: bytes) -> None:
        """A process has ended: what it left is the node's now."""
        creator = creator_at(address)
        drew = self._clients.pop(creator, None) is not None
        self.disk.on_holder_gone(creator)
        self.quotas.on_holder_gone(creator, monotonic_ns())
        if drew:
            # Others have made nothing.
            self.inheritance.on_death(creator, address, job_id)
        self._drain()

    def on_left(self, address: str) -> None:
        """A process has left something: ask everybody what they use of it."""
        self.inquiries.ask([address])

    def on_estate(self, creator: str, left: int) -> None:
        """What a process has left takes so much memory now."""
        self.quotas.on_swept(creator, left, monotonic_ns())
        self._drain()

    def on_estate_gone(self, creator: str, address: str) -> None:
        """Nothing is left of what a process made."""
        if address not in self._abandoned:
            self.inquiries.forget(address)
        for listener in self.when_swept:
            listener(creator)

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
            if address in self._abandoned or self._left_by(address) is not None:
                self.inquiries.ask_later(address)
            self.inquiries.on_let_go(address)

    def _left_by(self, address: str) -> Left | None:
        return self.inheritance.of(address, creator_at(address))

    def _job_of(self, address: str) -> bytes:
        left = self._left_by(address)
        return self._abandoned_in.get(address, b"") if left is None else left.job_id

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
        if self._left_by(address) is not None:
            self.inheritance.free_unused(creator_at(address), used)
        elif not makers:
            self.inquiries.forget(address)

    def on_job_gone(self, job_id: bytes) -> None:
        """A job has ended: nobody refers to what its dead processes left."""
        for address in self.inheritance.on_job_gone(job_id):
            self.inquiries.forget(address)
        self._drain()

    def free(self, locations: list[Location]) -> None:
        """Owners say that these objects are dead; their creators are too."""
        self.inheritance.free(locations)

    def close(self) -> None:
        """Stop the timers."""
        self.inquiries.close()
        self.inheritance.close()
        self.room.close()
        self.rows.close()
        if self._timer is not None:
            self._timer.cancel()


def _room(loop: asyncio.AbstractEventLoop, boot: Boot, folder: Path | None) -> DiskRoom:
    if folder is None:
        return DiskRoom(loop, None)
    config = boot.config
    terms = DiskTerms(folder, config.spill_disk_fraction, config.spill_local_bytes)
    if not config.spill_remote:
        return DiskRoom(loop, terms)
    from shoal.node.remote_spill import RemoteSpill

    directory = Path(boot.shm_dir)
    remote = RemoteSpill(boot.session_dir, directory, folder, config.spill_remote, terms.shortage)
    return DiskRoom(loop, terms, remote)


def _terms(config: Config, capacity: int, place: str) -> SpillTerms | None:
    if not config.spill:
        return None
    return SpillTerms(
        batch=max(1, min(config.spill_batch_bytes, capacity // 8)),
        order_ns=int(config.spill_order_s * 1e9),
        fallback_ns=int(config.spill_fallback_s * 1e9),
        retry_ns=int(config.spill_retry_s * 1e9),
        place=place,
    )
