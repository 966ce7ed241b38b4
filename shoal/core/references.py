"""The table of objects that a process owns or borrows, and when each may go.

Rules
-----
1. The process that makes an object *owns* it: it keeps the value or its place, and decides when it is freed.
2. An entry lives while anything counts on it: handles in this process (`local`), pending tasks that use it and objects that
   contain it (`holds`), and registered borrowers (owner only).
3. A reference that reaches another process makes that process a *borrower*. Until a borrower is registered with the
   owner, somebody who is registered (or the owner itself) keeps a hold on its behalf:

   - the arguments of a task are held by its caller until the reply; before it replies, the executor registers
     itself for every borrowed reference that it still holds and is not registered for (`unregistered`);
   - references inside a result are registered *for the caller* by the executor before it replies, also with the
     caller itself when it owns them: the executor's own registration may be given up on another connection, which
     may be faster than the reply;
   - references inside a fetched value are registered at once, and the containing object is held until the owners have
     acknowledged that.

   So there is no moment at which an object is reachable and its owner does not know: no message has to win a race.
4. Registrations are counted, and a borrower gives up as many as were made for it; they commute, so messages of
   different peers may arrive in any order (a count may be negative for a moment).
5. When a process dies, its registrations go with it.

What a crash costs
------------------
- *An executor dies after it has registered its caller for references in a result, and before it has replied.* The caller will
  never give those registrations up, for it does not know of them. The owner asks it, and drops them (`core.vouchers`).
- *A caller dies before its call has returned.* What it passed is covered by nobody any more, and may be freed while the executor
  still has references to it. A task's worker ends with its caller, so only an actor can notice: a reference that it
  has kept from such a call raises `ObjectLostError`, or is registered like any other if the owner still had the object.
  Nothing leaks: registering what is gone counts nothing.

Freeing an object releases what it contains, in a loop rather than by recursion: chains may be a million long. And an object may contain
a million references. What it contains is released, and registered, a batch at a time, and the runtime serves others in between
(`unfinished`, `release_some`).

Effects are appended to `outbox` and carried out by the runtime. Values never pass through here by copy. All methods are called
with the runtime's lock held.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, TypeVar

from shoal.core.reference_effects import (
    AskToRecount,
    Countdown,
    DropOrphan,
    Effect,
    EndActor,
    Forsake,
    FreeValue,
    GiveUp,
    RegisterBorrower,
)
from shoal.core.vouchers import Vouchers
from shoal.errors import InternalError
from shoal.messages.values import Failed, Refs, Stored

K = TypeVar("K")
V = TypeVar("V")

_WITHOUT_REFS: Final = frozenset({bytes, Failed})

BATCH: Final = 4_096
"""References that are dealt with at a time, and named by one message. That takes some milliseconds, and nobody else is served meanwhile."""

_LARGE: Final = 65_536
"""Tables that had so many entries are made anew when most are gone: Python's dictionaries grow, and never shrink."""


_FEW: Final = 4
"""Borrowers of one object. As many as most have: a dictionary of its own for each would be a third of what a million references take."""

_KINDS: Final = 1_024


class Entry:
    """One object, as one process knows it.

    Attributes:
        owner: Address of the owner; "" if this process owns it, and its own address if it has owned and freed it.
        value: None while unknown or pending; then `bytes` (a plain inline pickle), or `Inline`, `Stored`, `Failed`.
        local: Handles in this process.
        holds: Pending tasks that use it, objects that contain it, and references on their way.
        registrations: How often this process is registered with the owner (borrowed objects).
        borrowers: Address to count of registrations (owned objects). Of a few it is never changed, for entries share it.
        contains: Entries of the references inside the value, each held once by this entry.
        waiters: Who is told when the value comes: `waiter(entry)` each.
        task: The task that makes it (kept as lineage while the value is `Stored`).
        actor_id: For the entry of an actor's handle, the actor.
        dropped: The entry has left the table; a value that comes later is freed at once.
        site: Where the program made it, and when (nanoseconds since the epoch). Only there if that is recorded.
    """

    __slots__ = (
        "actor_id",
        "borrowers",
        "contains",
        "dropped",
        "fetching",
        "holds",
        "local",
        "object_id",
        "owner",
        "registrations",
        "site",
        "task",
        "value",
        "waiters",
    )
    site: tuple[str, int]

    def __init__(self, object_id: bytes, owner: str = "", local: int = 0, holds: int = 0) -> None:
        self.object_id = object_id
        self.owner = owner
        self.value: Any = None
        self.local = local
        self.holds = holds
        self.registrations = 0
        self.borrowers: dict[str, int] | None = None
        self.contains: list[Entry] | None = None
        self.waiters: list[Any] | None = None
        self.task: Any = None
        self.actor_id: bytes | None = None
        self.dropped = False
        self.fetching = False

    def __repr__(self) -> str:
        owner = f" owner={self.owner}" if self.owner else ""
        return (
            f"<Entry {self.object_id.hex()}{owner} local={self.local} holds={self.holds} "
            f"borrowers={self.borrowers} registrations={self.registrations}>"
        )


def _remake(table: dict[K, V]) -> None:
    kept = list(table.items())
    table.clear()
    table.update(kept)


class ObjectTable:
    """See the module's docstring."""

    __slots__ = (
        "_alike",
        "_asked",
        "_batch",
        "_most",
        "_next_token",
        "_releases",
        "address",
        "by_borrower",
        "entries",
        "orphaned",
        "outbox",
        "shrunk",
        "unfinished",
        "unregistered",
        "vouchers",
    )

    def __init__(self, address: str = "", batch: int = BATCH) -> None:
        self.address = address
        self._batch = batch
        self._most = 0
        # Very much memory has become free since somebody has last set this to False.
        self.shrunk = False
        self.entries: dict[bytes, Entry] = {}
        self.outbox: list[Effect] = []
        self.by_borrower: dict[str, dict[Entry, None]] = {}
        # What `Entry.borrowers` are where there are few: one dictionary for all entries whose borrowers are the same.
        self._alike: dict[tuple[tuple[str, int], ...], dict[str, int]] = {}
        # What freed objects contained and has not been released: lists that become shorter.
        self.unfinished: list[list[Entry]] = []
        # Borrowed entries that their owners may not know of yet: somebody else's hold covers them for now. The number is
        # the token of the registration that was asked for, 0 while none was.
        self.unregistered: dict[Entry, int] = {}
        # Entries whose owners have ended, with values in shared memory that are still there.
        self.orphaned: dict[Entry, None] = {}
        self.vouchers = Vouchers()
        self._next_token = 0
        # What each awaited acknowledgement is about (all of one owner), and what it releases: entries that are held, countdowns.
        self._asked: dict[int, list[Entry]] = {}
        self._releases: dict[int, list[Entry | Countdown]] = {}

    # --- entries -------------------------------------------------------------------------------------------------

    def own(self, object_id: bytes, local: int = 1) -> Entry:
        """Enter an object that this process owns, with `local` handles."""
        entry = self.entries[object_id] = Entry(object_id, "", local)
        return entry

    def borrow(self, ref: tuple[bytes, str]) -> Entry:
        """The entry of a reference that came from outside, by its id and its owner; it may turn out to be an owned one."""
        object_id, owner = ref
        entry = self.entries.get(object_id)
        if entry is None:
            entry = self.entries[object_id] = Entry(object_id, owner)
            # Ours, but gone, if we are named: whoever sent it kept no hold (it has died, or the reference was pickled by hand). Its
            # owner is not "", so that nobody is registered for it, or gives up what was not counted.
            if owner != self.address:
                self.unregistered[entry] = 0
        return entry

    def borrow_all(self, refs: Iterable[Refs]) -> list[Entry]:
        """The entries of the references inside a value."""
        return [
            self.borrow((object_id, some.owner)) for some in refs for object_id in some.object_ids
        ]

    def drop_locals(self, dropped: Iterable[Entry]) -> None:
        """Handles have died: one for each time an entry is named."""
        for entry in dropped:
            entry.local -= 1
            if not entry.local and not entry.holds:
                self.consider(entry)

    def hold(self, entry: Entry) -> None:
        """Something other than a handle counts on the entry."""
        entry.holds += 1

    def unhold(self, entry: Entry) -> None:
        """It does not any more."""
        entry.holds -= 1
        if not entry.holds and not entry.local:
            self.consider(entry)

    def consider(self, entry: Entry) -> None:
        """Free the entry if nothing counts on it, and what that releases in turn."""
        todo = [entry]
        while todo:
            entry = todo.pop()
            if entry.local or entry.holds or entry.borrowers or entry.dropped:
                continue
            entry.dropped = True
            self.entries.pop(entry.object_id, None)
            entry.task = None
            if entry.owner:
                self.unregistered.pop(entry, None)
                if entry.registrations:
                    vouchers = self.vouchers.drop(entry)
                    self.outbox.append(
                        GiveUp(entry.owner, entry.object_id, entry.registrations, vouchers)
                    )
                    entry.registrations = 0
                if entry in self.orphaned:
                    del self.orphaned[entry]
                    self.outbox.append(DropOrphan(entry.owner, entry.value))
            elif entry.actor_id is not None:
                self.outbox.append(EndActor(entry.actor_id))
            elif type(entry.value) is Stored:
                self.outbox.append(FreeValue(entry.value))
            if entry.waiters is not None:
                self.outbox.append(Forsake(entry.waiters, entry))
                entry.waiters = None
            contains = entry.contains
            if contains is not None:
                entry.contains = None
                if len(contains) > self._batch:
                    self.unfinished.append(contains)
                    contains = []
                for inner in contains:
                    inner.holds -= 1
                    if not inner.holds and not inner.local:
                        todo.append(inner)
            # Views that users still hold keep shared memory alive; the entry itself needs its value no more.
            entry.value = None

    def release_some(self) -> None:
        """Go on with what `unfinished` has: one batch."""
        if self.unfinished:
            contains = self.unfinished[-1]
            part = contains[-self._batch :]
            del contains[-self._batch :]
            if not contains:
                self.unfinished.pop()
            for inner in part:
                self.unhold(inner)
            self.shrink()

    def shrink(self) -> None:
        """Give back the memory of tables that were much larger. To be called when some entries have gone."""
        count = len(self.entries)
        if count > self._most:
            self._most = count
        elif self._most > _LARGE and count < self._most // 8:
            self._most = count
            self.shrunk = True
            _remake(self.entries)
            _remake(self.unregistered)

    # --- values --------------------------------------------------------------------------------------------------

    def complete(
        self,
        entry: Entry,
        value: Any,
        refs: list[Refs],
        registered: bool | None,
        voucher: str = "",
    ) -> list[Any] | None:
        """The value of an entry is known. Returns who waits for it.

        `refs` are the references inside. With `registered`, their owners have this process registered for each of
        them already, by `voucher` (a task's result); without (a fetched value) that is asked for now; None leaves the references as they
        are (a value made in this process).
        """
        if refs:
            self.contain(entry, self.borrow_all(refs), registered, voucher)
        if entry.dropped:
            # Nobody wants it any more.
            if type(value) is Stored and not entry.owner:
                self.outbox.append(FreeValue(value))
            contains, entry.contains = entry.contains, None
            if contains:
                self.unfinished.append(contains)
                self.release_some()
            return None
        entry.value = value
        entry.fetching = False
        waiters, entry.waiters = entry.waiters, None
        return waiters

    def refuse(self, value: Any, voucher: str) -> None:
        """A value has come, for which this process was registered with the owners of what is inside, and nobody waits for it any
        more: an item of a stream that came before, the reply of an actor's earlier life."""
        entry = Entry(b"")
        entry.dropped = True
        refs = [] if type(value) in _WITHOUT_REFS else value.refs
        self.complete(entry, value, refs, True, voucher)

    def contain(
        self,
        outer: Entry,
        inners: list[Entry],
        registered: bool | None = None,
        voucher: str = "",
    ) -> None:
        """`outer` holds the entries of the references inside its value; see `complete` about `registered`."""
        unknown: dict[Entry, None] = {}
        for inner in inners:
            inner.holds += 1
            if inner.owner:
                if registered:
                    inner.registrations += 1
                    self.unregistered.pop(inner, None)
                    if voucher and voucher != inner.owner:
                        self.vouchers.take(inner, voucher)
                elif registered is False and not inner.registrations:
                    unknown[inner] = None
            elif registered and inner.borrowers and self.address in inner.borrowers:
                # Ours, and back home: it was registered for the journey.
                self._count(inner, self.address, -1)
                self.vouchers.give_back(inner, voucher, self.address, 1)
        for token in self._register_own(unknown):
            outer.holds += 1
            self._releases[token].append(outer)
        if outer.contains is None:
            outer.contains = inners
        else:
            outer.contains.extend(inners)

    # --- borrowing, as the borrower or lender --------------------------------------------------------------------

    def _register_own(self, entries: Iterable[Entry]) -> list[int]:
        tokens = self._register(entries, self.address)
        for token in tokens:
            for entry in self._asked[token]:
                entry.registrations += 1
                self.unregistered[entry] = token
        return tokens

    def _register(self, entries: Iterable[Entry], borrower: str) -> list[int]:
        """Ask the owners of these to register a borrower. Returns the tokens."""
        by_owner: dict[str, list[Entry]] = {}
        for entry in entries:
            by_owner.setdefault(entry.owner, []).append(entry)
        tokens: list[int] = []
        for owner, theirs in by_owner.items():
            for start in range(0, len(theirs), self._batch):
                asked = theirs[start : start + self._batch]
                token = self._next_token = self._next_token + 1
                tokens.append(token)
                self._asked[token] = asked
                self._releases[token] = []
                ids = [entry.object_id for entry in asked]
                self.outbox.append(RegisterBorrower(owner, ids, borrower, token))
        return tokens

    def register_before(self, lent: Iterable[Entry], borrower: str) -> Countdown | None:
        """What must be acknowledged before a task's reply may leave.

        Borrowed entries that are still alive here, though only the caller's hold covers them, are registered for this
        process. `lent` are the entries of references inside the result: they are registered for `borrower`, the
        caller, which counts that registration when the result arrives. Returns None if there is nothing to wait for.
        """
        countdown = Countdown()
        # The replies to other calls asked for some; until the owners have answered, only our caller covers those.
        tokens = list(dict.fromkeys(token for token in self.unregistered.values() if token))
        tokens += self._register_own([e for e, token in self.unregistered.items() if not token])
        for entry in lent:
            if not entry.owner:
                self.register(entry.object_id, borrower)
            else:
                entry.holds += 1
                countdown.held.append(entry)
        tokens += self._register(countdown.held, borrower)
        for token in tokens:
            self._releases[token].append(countdown)
        countdown.missing = len(tokens)
        return countdown if countdown.missing else None

    def acknowledge(self, token: int) -> list[Countdown]:
        """An owner has answered a registration. Returns the countdowns that this brought to zero."""
        asked = self._asked.pop(token, None)
        if asked is None:
            return []
        for entry in asked:
            if self.unregistered.get(entry) == token:
                del self.unregistered[entry]
        ended: list[Countdown] = []
        for waiting in self._releases.pop(token):
            if isinstance(waiting, Entry):
                self.unhold(waiting)
                continue
            waiting.missing -= 1
            if not waiting.missing:
                ended.append(waiting)
        return ended

    def release_held(self, countdown: Countdown) -> None:
        """The reply has been handed to the wire: what was held for it may go."""
        held, countdown.held = countdown.held, []
        for entry in held:
            self.unhold(entry)

    def owner_died(self, owner: str) -> tuple[list[Entry], list[Countdown]]:
        """A process died. Returns the entries borrowed from it, and the countdowns that need not wait any more."""
        entries = [entry for entry in list(self.entries.values()) if entry.owner == owner]
        for entry in entries:
            if type(entry.value) is Stored:
                self.orphaned[entry] = None
        tokens = [token for token, asked in self._asked.items() if asked[0].owner == owner]
        return entries, [countdown for token in tokens for countdown in self.acknowledge(token)]

    def has_lent(self) -> bool:
        """Whether another process has references to objects that this one owns."""
        return any(borrower != self.address for borrower in self.by_borrower)

    def is_counted_on(self) -> bool:
        """Whether another process counts on an object that this one owns, or something here waits for a value or an
        acknowledgement."""
        return (
            bool(self._asked)
            or self.has_lent()
            or any(entry.waiters for entry in list(self.entries.values()))
        )

    # --- borrowing, as the owner ---------------------------------------------------------------------------------

    def register(self, object_id: bytes, borrower: str, voucher: str = "") -> bool:
        """Register a borrower of an owned object; False if it is gone. `voucher` is who asked for it, if that is another process."""
        entry = self.entries.get(object_id)
        if entry is None or entry.owner:
            return False
        self._count(entry, borrower, 1)
        if voucher:
            self.vouchers.give(entry, voucher, borrower)
        return True

    def give_up(
        self,
        object_id: bytes,
        borrower: str,
        count: int,
        vouchers: Iterable[tuple[str, int]] = (),
    ) -> None:
        """A borrower gives up registrations; see `GiveUp`."""
        entry = self.entries.get(object_id)
        if entry is None or entry.owner:
            return
        for voucher, of_voucher in vouchers:
            self.vouchers.give_back(entry, voucher, borrower, of_voucher)
        self._count(entry, borrower, -count)
        if not entry.borrowers and not entry.holds and not entry.local:
            self.consider(entry)

    def _count(self, entry: Entry, borrower: str, more: int) -> None:
        borrowers = entry.borrowers or {}
        count = borrowers.get(borrower, 0) + more
        self._set_count(entry, borrower, count)
        if count:
            self.by_borrower.setdefault(borrower, {})[entry] = None
            return
        of_peer = self.by_borrower.get(borrower)
        if of_peer is not None:
            of_peer.pop(entry, None)
            if not of_peer:
                del self.by_borrower[borrower]

    def _set_count(self, entry: Entry, borrower: str, count: int) -> None:
        borrowers = entry.borrowers
        if borrowers is None:
            borrowers = {}
        elif len(borrowers) <= _FEW:
            borrowers = borrowers.copy()
        if count:
            borrowers[borrower] = count
        else:
            borrowers.pop(borrower, None)
        if not borrowers:
            entry.borrowers = None
        elif len(borrowers) > _FEW:
            entry.borrowers = borrowers
        else:
            if len(self._alike) > _KINDS:
                self._alike.clear()
            entry.borrowers = self._alike.setdefault(tuple(borrowers.items()), borrowers)

    def forget_borrower(self, borrower: str) -> None:
        """A process died: its registrations go."""
        for entry in self.by_borrower.pop(borrower, {}):
            self.vouchers.forget_borrower(entry, borrower)
            self._set_count(entry, borrower, 0)
            if not entry.borrowers and not entry.holds and not entry.local:
                self.consider(entry)
        self.shrink()

    def voucher_died(self, voucher: str) -> None:
        """A process died, and all is read that it said: what it vouched for and did not say must not stay. See `core.vouchers`."""
        to_ask: dict[str, list[bytes]] = {}
        for entry, borrower in self.vouchers.given_by(voucher):
            if borrower == self.address:
                # It would have come back with what was read.
                self._drop_untaken(entry, voucher, borrower, taken=0)
            else:
                to_ask.setdefault(borrower, []).append(entry.object_id)
        self.outbox += (AskToRecount(borrower, voucher, ids) for borrower, ids in to_ask.items())

    def recount(self, voucher: str, object_ids: Iterable[bytes]) -> list[tuple[bytes, int]]:
        """As a borrower: how many vouchers of a process that has died are taken and not given up, by object. Those that are none
        are left out."""
        entries = (self.entries.get(object_id) for object_id in object_ids)
        return [
            (entry.object_id, count)
            for entry in entries
            if entry is not None and (count := self.vouchers.taken(entry, voucher))
        ]

    def on_counted(
        self,
        voucher: str,
        borrower: str,
        object_ids: Iterable[bytes],
        counts: Iterable[tuple[bytes, int]],
    ) -> None:
        """A borrower has counted what `AskToRecount` asked for."""
        taken = dict(counts)
        for object_id in object_ids:
            entry = self.entries.get(object_id)
            if entry is not None:
                self._drop_untaken(entry, voucher, borrower, taken.get(object_id, 0))

    def _drop_untaken(self, entry: Entry, voucher: str, borrower: str, taken: int) -> None:
        untaken = self.vouchers.take_back(entry, voucher, borrower) - taken
        if untaken > 0 and entry.borrowers is not None:
            self._count(entry, borrower, -untaken)
            if not entry.borrowers and not entry.holds and not entry.local:
                self.consider(entry)

    # --- invariants ----------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise `InternalError` if the table contradicts itself."""
        held: dict[int, int] = {}
        for object_id, entry in self.entries.items():
            if entry.object_id != object_id or entry.dropped:
                raise InternalError(f"the table holds a dropped or misplaced entry: {entry!r}")
            if entry.local < 0 or entry.holds < 0:
                raise InternalError(f"an entry has negative counts: {entry!r}")
            if entry.owner and entry.borrowers:
                raise InternalError(f"a borrowed entry has borrowers of its own: {entry!r}")
            for inner in entry.contains or ():
                held[id(inner)] = held.get(id(inner), 0) + 1
                if inner.holds < held[id(inner)]:
                    raise InternalError(
                        f"a contained entry is not held by what contains it: {inner!r}"
                    )
