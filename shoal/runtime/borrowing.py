"""What owners and borrowers say to each other, and the effects of the object table carried out.

All methods are called with the runtime's lock held.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from shoal.core.reference_effects import (
    AskToRecount,
    Countdown,
    DropOrphan,
    EndActor,
    Forsake,
    FreeValue,
    GiveUp,
    RegisterBorrower,
)
from shoal.core.references import BATCH, Entry
from shoal.core.tasks import Task
from shoal.errors import ObjectLostError, OwnerDiedError
from shoal.messages.node import ActorUnreferenced
from shoal.messages.peer import (
    Borrow,
    Borrowed,
    CancelObject,
    Counted,
    Fetch,
    Fetched,
    FreeBlocks,
    Recount,
    Release,
)
from shoal.messages.stores import FreeOrphans, LetGo
from shoal.messages.values import Failed, Location, Stored
from shoal.runtime.values import wire_value
from shoal.serial.exceptions import dump_exception

if TYPE_CHECKING:
    from shoal.runtime.process import Process
    from shoal.wire.connection import Connection


_FREED: Final = (
    "its owner has freed it, because no reference to it was left. References count while they are variables, or inside arguments, "
    "results and objects that are put, but not in what was pickled by hand: keep one until the object is not used any more"
)


def _lost(object_id: bytes, why: str) -> Failed:
    error = ObjectLostError(f"object {object_id.hex()} is lost: {why}", object_id.hex())
    return Failed(dump_exception(error))


class Borrowing:
    """See the module's docstring."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._objects = process.objects
        self.handlers: dict[type, Callable[[Any, Any], None]] = {
            Fetch: self._on_fetch,
            Fetched: self._on_fetched,
            Borrow: self._on_borrow,
            Borrowed: self._on_borrowed,
            Release: self._on_release,
            CancelObject: self._on_cancel_object,
            FreeBlocks: self._on_free_blocks,
            Recount: self._on_recount,
            Counted: self._on_counted,
        }
        # Questions about processes of which not all is read that they said, by those: who asks, and about what.
        self._to_recount: dict[str, list[tuple[str, list[bytes]]]] = {}

    # --- as the borrower -----------------------------------------------------------------------------------------

    def fetch(self, entry: Entry) -> None:
        """Ask the owner for a value that is not known here, unless that was done."""
        if entry.fetching or entry.value is not None:
            return
        if not entry.owner or entry.owner == self._process.address:
            if entry.task is None and entry.actor_id is None:
                self._lose(entry, _FREED)
            return
        entry.fetching = True
        try:
            connection = self._process.peers.connect(entry.owner)
        except ConnectionError as error:
            cause = self._process.peers.gone.get(entry.owner, f"cannot be reached ({error})")
            self._owner_died(entry, cause)
            return
        connection.send(Fetch(entry.object_id))

    def _on_fetched(self, _connection: Connection, message: Fetched) -> None:
        entry = self._objects.entries.get(message.object_id)
        if entry is None or entry.value is not None:
            return
        value = message.value
        refs = [] if isinstance(value, Failed) else value.refs
        self._process.arrivals.complete(entry, value, refs, registered=False)

    def cancel(self, entry: Entry, force: bool, recursive: bool) -> None:
        """Ask the owner to cancel the task that makes a borrowed object."""
        self._send_to_owner(entry.owner, CancelObject(entry.object_id, force, recursive))

    def _on_cancel_object(self, _connection: Connection, message: CancelObject) -> None:
        entry = self._objects.entries.get(message.object_id)
        if entry is not None and entry.value is None and isinstance(entry.task, Task):
            force = message.force and entry.task.function is not None
            self._process.owner.cancel(entry.task, force, message.recursive)

    def _lose(self, entry: Entry, why: str) -> None:
        self._process.complete(entry, _lost(entry.object_id, why), [], registered=True)

    def _forsake(self, waiters: list[Callable[[Entry], None]], entry: Entry) -> None:
        entry.value = _lost(entry.object_id, _FREED)
        for waiter in waiters:
            waiter(entry)

    def _owner_died(self, entry: Entry, cause: str) -> None:
        error = OwnerDiedError(
            f"object {entry.object_id.hex()} is lost: the process that owned it {cause}. What a process puts, and the "
            "results of the tasks that it submits, go with it: let a process do that which lives as long as the object is used, "
            "such as the driver, or let the task return the value itself",
            entry.object_id.hex(),
        )
        self._process.complete(entry, Failed(dump_exception(error)), [], registered=True)

    def _on_recount(self, connection: Connection, message: Recount) -> None:
        asks, voucher = connection.peer_address, message.voucher
        if voucher in self._process.peers.gone:
            self._count_vouchers(voucher, asks, message.object_ids)
        else:
            # Its replies may be on their way.
            self._to_recount.setdefault(voucher, []).append((asks, message.object_ids))
            self._process.peers.watch(voucher)

    def _count_vouchers(self, voucher: str, owner: str, object_ids: list[bytes]) -> None:
        # What was vouched for must be in before it is counted.
        self._process.arrivals.finish_arrivals()
        # What is given up already, and not yet said, must be heard before the count that it is not in any more.
        self.carry_out()
        counts = self._objects.recount(voucher, object_ids)
        self._send_to_owner(owner, Counted(voucher, object_ids, counts))

    def _on_borrowed(self, _connection: Connection, message: Borrowed) -> None:
        for countdown in self._objects.acknowledge(message.token):
            self._leave(countdown)

    def _leave(self, countdown: Countdown) -> None:
        """Everything that a reply waited for is acknowledged."""
        if countdown.reply is not None:
            countdown.reply()
        self._objects.release_held(countdown)

    def defer(self, countdown: Countdown, reply: Any) -> None:
        """Let `reply` leave once `countdown` has come to zero."""
        countdown.reply = reply
        if not countdown.missing:
            self._leave(countdown)

    # --- as the owner --------------------------------------------------------------------------------------------

    def _on_fetch(self, connection: Connection, message: Fetch) -> None:
        entry = self._objects.entries.get(message.object_id)
        if entry is None or entry.owner:
            connection.send(Fetched(message.object_id, _lost(message.object_id, _FREED)))
        elif entry.value is not None:
            connection.send(Fetched(message.object_id, wire_value(entry.value)))
        else:
            self._process.when_known(entry, functools.partial(self._answer, connection))

    def _answer(self, connection: Connection, entry: Entry) -> None:
        if not connection.closed:
            connection.send(Fetched(entry.object_id, wire_value(entry.value)))

    def _on_borrow(self, connection: Connection, message: Borrow) -> None:
        peers = self._process.peers
        # Whoever lends may not have heard that the borrower is gone; its registration would stay for ever.
        asks = connection.peer_address
        borrower = message.borrower
        if borrower not in peers.gone:
            voucher = "" if asks == borrower else asks
            register = self._objects.register
            if sum(register(object_id, borrower, voucher) for object_id in message.object_ids):
                # The borrower may never have connected: its end must be heard of all the same.
                peers.watch(borrower)
        connection.send(Borrowed(message.token))

    def _on_release(self, connection: Connection, message: Release) -> None:
        borrower, give_up = connection.peer_address, self._objects.give_up
        for object_id in message.object_ids:
            give_up(object_id, borrower, message.count, message.vouchers)
        if len(message.object_ids) == BATCH:
            self._objects.shrink()

    def _on_counted(self, connection: Connection, message: Counted) -> None:
        self._objects.on_counted(
            message.voucher, connection.peer_address, message.object_ids, message.counts
        )

    def _on_free_blocks(self, connection: Connection, message: FreeBlocks) -> None:
        process = self._process
        process.deliveries.freed(connection.peer_address, message.locations)
        process.store.tell_freed()

    # --- effects -------------------------------------------------------------------------------------------------

    def carry_out(self) -> None:
        """Carry out what the object table has decided."""
        outbox = self._objects.outbox
        process = self._process
        blocks: dict[str, list[Location]] = {}
        let_go: dict[str, None] = {}
        given_up: dict[tuple[str, int, tuple[tuple[str, int], ...]], list[bytes]] = {}
        while outbox:
            effects = outbox.copy()
            outbox.clear()
            for effect in effects:
                if type(effect) is FreeValue:
                    stored: Stored = effect.value
                    if stored.creator == process.address:
                        process.store.free(stored.location)
                    else:
                        blocks.setdefault(stored.creator, []).append(stored.location)
                elif type(effect) is GiveUp:
                    alike = (effect.owner, effect.registrations, effect.vouchers)
                    given_up.setdefault(alike, []).append(effect.object_id)
                elif type(effect) is DropOrphan:
                    let_go[effect.owner] = let_go[effect.value.creator] = None
                elif type(effect) is RegisterBorrower:
                    sent = self._send_to_owner(
                        effect.owner, Borrow(effect.object_ids, effect.borrower, effect.token)
                    )
                    if not sent:
                        # The owner is gone and will never answer; whoever asks for the object is told that.
                        for countdown in self._objects.acknowledge(effect.token):
                            self._leave(countdown)
                elif type(effect) is AskToRecount:
                    self._send_to_owner(effect.borrower, Recount(effect.voucher, effect.object_ids))
                elif type(effect) is Forsake:
                    self._forsake(effect.waiters, effect.entry)
                elif type(effect) is EndActor:
                    process.node.send_locked(ActorUnreferenced(effect.actor_id))
        for (owner, count, vouchers), object_ids in given_up.items():
            for start in range(0, len(object_ids), BATCH):
                part = object_ids[start : start + BATCH]
                self._send_to_owner(owner, Release(part, count, list(vouchers)))
        if let_go:
            process.node.send_locked(LetGo(list(let_go)))
        for creator, locations in blocks.items():
            if not self._send_to_owner(creator, FreeBlocks(locations)):
                process.node.send_locked(FreeOrphans(locations, creator))
        process.store.tell_freed()

    def _send_to_owner(self, address: str, message: Any) -> bool:
        if address in self._process.peers.gone:
            return False
        try:
            self._process.peers.connect(address).send(message)
        except ConnectionError:
            return False
        return True

    def process_died(self, address: str, cause: str) -> None:
        """A process has ended: its registrations and what it owned go with it."""
        self._process.arrivals.finish_arrivals()
        self._objects.forget_borrower(address)
        self._objects.voucher_died(address)
        for owner, object_ids in self._to_recount.pop(address, ()):
            self._count_vouchers(address, owner, object_ids)
        entries, ended = self._objects.owner_died(address)
        for entry in entries:
            if entry.value is None and (entry.waiters or entry.fetching):
                self._owner_died(entry, cause)
        for countdown in ended:
            self._leave(countdown)
