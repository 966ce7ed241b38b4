"""The capacity of a node's object store, shared out to processes in chunks.

A process draws bytes before it creates segments and gives them back when it unlinks them, so that the node need not see
every object. Rules:

Rule 1. What is granted and not returned never exceeds the capacity.
Rule 2. Requests are served in order; one that must wait holds back the younger ones, or a stream of small ones would
        starve it.
Rule 3. While somebody waits, all holders are asked to give back what they do not use, again and again: what is in use now
        may be idle soon. Who waits itself is asked as well, but not for quota that is not in use: it has counted on that.
Rule 4. When all have said what they can spare (or some keep silent for too long: a process may be stopped) and it is not enough,
        holders are told to write objects to disk: see `core.spilling`.
Rule 5. When nobody has anything to spill, whoever is first in line has its object made on disk after a while; what is larger than
        the whole store is at once.
Rule 6. A request that has waited `timeout_ns` is made on disk too. Only where that cannot be (the disk is full, or spilling is off)
        is it answered with nothing and an explanation that names the biggest holders.
Rule 7. What a dead process held stays counted, since its segments still exist, until the shell says they are gone.

::

              somebody waits              all have answered, or time is up
    QUIET ────────────────────► ASKING ◄────────────────────────────────► SPILLING ─► orders; in the end, on disk
      ▲  nobody waits             │         somebody new waits, or it is time to ask again    │
      └───────────────────────────┴───────────────────────────────────────────────────────────┘
"""

from __future__ import annotations

import enum
from collections import deque
from typing import Final, NamedTuple

from shoal.core.spilling import Holder, SpillOrder, SpillOrders, SpillTerms

_NAMED_HOLDERS: Final = 5
_ASK_AGAIN_NS: Final = 100_000_000
_MOST_PATIENCE_NS: Final = 1_600_000_000


class Granted(NamedTuple):
    """The answer to a request. Nothing was granted if `explanation` is not empty (`disk_full`: the disk took nothing either), or if
    `on_disk` is set: then the object, of `size` bytes, is to be made there."""

    holder: Holder
    req: int
    granted: int
    explanation: str = ""
    on_disk: bool = False
    disk_full: bool = False
    size: int = 0


class Wanted(NamedTuple):
    """Ask a holder to give back what it does not use, up to `wanted` bytes. `itself`: it is among those who wait."""

    holder: Holder
    wanted: int
    itself: bool = False


Effect = Granted | Wanted | SpillOrder


class _Stage(enum.Enum):
    QUIET = "nobody waits"
    ASKING = "holders say what they have idle"
    SPILLING = "holders write to disk"


class _Waiting(NamedTuple):
    holder: Holder
    req: int
    needed: int
    size: int
    since: int
    deadline: int


class StoreQuotas:
    """See the module's docstring. Times are nanoseconds.

    Args:
        capacity: Bytes.
        chunk: Bytes granted at a time, while there is room.
        timeout_ns: Rule 6.
        spill: How to spill; None turns it off.
        ask_ns: How long holders may take to say what they have idle.
    """

    def __init__(
        self,
        capacity: int,
        chunk: int,
        timeout_ns: int,
        spill: SpillTerms | None = None,
        ask_ns: int = 0,
    ) -> None:
        self.outbox: list[Effect] = []
        self.capacity = capacity
        self._chunk = chunk
        self._timeout_ns = timeout_ns
        self._spill = None if spill is None else SpillOrders(spill)
        self._ask_ns = ask_ns
        self._held: dict[Holder, int] = {}
        self._names: dict[Holder, str] = {}
        self._dead: dict[Holder, None] = {}
        self._granted = 0
        self._waiting: deque[_Waiting] = deque()
        # For more than the whole store, while the disk is full.
        self._beyond: deque[_Waiting] = deque()
        self._stage = _Stage.QUIET
        # Holders that are to answer in this round, and those that still owe an answer from an earlier one: a stopped process does not
        # hold up the others again and again.
        self._asked: dict[Holder, None] = {}
        self._silent: dict[Holder, None] = {}
        self._answers_until = 0
        self._somebody_new = False
        # When to ask the holders again, if somebody waits; each time later than the time before, since most have said by then
        # what they can spare.
        self._ask_at = 0
        self._patience_ns = _ASK_AGAIN_NS

    @property
    def free(self) -> int:
        """Bytes that nobody holds."""
        return self.capacity - self._granted

    def held(self, holder: Holder) -> int:
        """Bytes that a process holds, dead or alive."""
        return self._held.get(holder, 0)

    def holdings(self) -> dict[Holder, int]:
        """Who holds how much."""
        return dict(self._held)

    # --- events --------------------------------------------------------------------------------------------------

    def on_request(
        self, holder: Holder, name: str, req: int, needed: int, now: int, *, size: int = 0
    ) -> None:
        """A process asks for at least `needed` bytes, for an object of `size`; `name` is how explanations call it."""
        self._names[holder] = name
        largest = max(needed, size)
        waiting = _Waiting(holder, req, max(1, needed), largest, now, now + self._timeout_ns)
        if largest <= self.capacity:
            self._waiting.append(waiting)
            self._serve()
            if self._waiting and self._waiting[-1] is waiting:
                self._somebody_new = True
                self._ask_at = min(self._ask_at, now + _ASK_AGAIN_NS)
                self._patience_ns = _ASK_AGAIN_NS
        elif self._spill is not None:
            self._beyond.append(waiting)
        else:
            explanation = (
                f"{largest:,} bytes were asked for, but the whole object store has {self.capacity:,}; "
                "start shoal with a larger object_store_memory, or make smaller objects"
            )
            self.outbox.append(Granted(holder, req, 0, explanation))
        self._advance(now)

    def on_return(self, holder: Holder, returned: int, now: int, *, asked: bool = False) -> None:
        """A process gives bytes back; more than it holds counts as all that it holds. `asked`: it answers a `Wanted`."""
        if asked:
            self._heard_from(holder)
        self._release(holder, returned)
        self._serve()
        self._advance(now)

    def on_spilled(self, holder: Holder, freed: int, error: str, now: int) -> None:
        """A process has carried out a `SpillOrder`, and gives `freed` bytes back; the dead do so by `on_swept`, before this. `error`:
        the disk took no more."""
        if self._spill is not None:
            self._spill.on_spilled(holder, freed, error, now)
        if holder not in self._dead:
            self._release(holder, freed)
            self._serve()
        self._advance(now)

    def on_holder_gone(self, holder: Holder, now: int) -> None:
        """A process has ended. What it held stays counted until `on_swept`."""
        self._waiting = deque(w for w in self._waiting if w.holder != holder)
        self._beyond = deque(w for w in self._beyond if w.holder != holder)
        self._heard_from(holder)
        if self._spill is not None:
            self._spill.on_holder_gone(holder)
        if self._held.get(holder):
            self._dead[holder] = None
        else:
            self._forget(holder)
        self._serve()
        self._advance(now)

    def on_swept(self, holder: Holder, left: int, now: int) -> None:
        """The segments of a process that has ended now take up `left` bytes."""
        if holder in self._dead:
            self._release(holder, max(0, self._held[holder] - left))
            if not self._held.get(holder):
                self._forget(holder)
            self._serve()
            self._advance(now)

    def on_tick(self, now: int) -> None:
        """Time has passed."""
        if self._spill is not None:
            self._spill.on_time(now)
        self._advance(now)
        late = [w for w in (*self._beyond, *self._waiting) if w.deadline <= now]
        if late:
            self._beyond = deque(w for w in self._beyond if w.deadline > now)
            self._waiting = deque(w for w in self._waiting if w.deadline > now)
            for waiting in late:
                if self._spill is not None and not self._spill.is_disk_full(waiting.since):
                    # It is only that the disk is slow, or much is written for others.
                    self._grant_on_disk(waiting)
                else:
                    explanation = self._explain(waiting.needed)
                    disk_full = self._spill is not None
                    self.outbox.append(
                        Granted(waiting.holder, waiting.req, 0, explanation, disk_full=disk_full)
                    )
            self._serve()
            self._advance(now)

    def next_deadline(self) -> int | None:
        """When to call `on_tick`."""
        times = [w.deadline for w in (*self._beyond, *self._waiting)]
        spill = self._spill
        if times and spill is not None and spill.resting:
            times.append(spill.again_at)
        if self._waiting:
            times.append(self._answers_until if self._stage is _Stage.ASKING else self._ask_at)
            if spill is not None and self._stage is _Stage.SPILLING:
                late_at = spill.next_late()
                if late_at is not None:
                    times.append(late_at)
                if spill.exhausted:
                    times.append(self._waiting[0].since + spill.terms.fallback_ns)
        return min(times, default=None)

    # --- granting ------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        while self._waiting and self._waiting[0].needed <= self.free:
            waiting = self._waiting.popleft()
            # A whole chunk while there is room; only what is needed when others wait for the rest.
            wish = waiting.needed if self._waiting else max(waiting.needed, self._chunk)
            granted = min(wish, self.free)
            self._held[waiting.holder] = self._held.get(waiting.holder, 0) + granted
            self._granted += granted
            self.outbox.append(Granted(waiting.holder, waiting.req, granted))

    def _grant_on_disk(self, waiting: _Waiting) -> None:
        self.outbox.append(Granted(waiting.holder, waiting.req, 0, on_disk=True, size=waiting.size))

    def _release(self, holder: Holder, returned: int) -> None:
        held = self._held.get(holder, 0)
        returned = min(returned, held)
        self._granted -= returned
        if held > returned:
            self._held[holder] = held - returned
        else:
            self._held.pop(holder, None)

    def _forget(self, holder: Holder) -> None:
        self._dead.pop(holder, None)
        self._names.pop(holder, None)

    # --- getting room --------------------------------------------------------------------------------------------

    def _advance(self, now: int) -> None:
        """Do what is next for those who wait."""
        spill = self._spill
        if spill is not None and not spill.resting:
            while self._beyond:
                self._grant_on_disk(self._beyond.popleft())
        while self._waiting:
            if self._stage is _Stage.QUIET:
                self._ask(now)
            if self._stage is _Stage.ASKING:
                if self._asked and now < self._answers_until:
                    return
                self._silent.update(self._asked)
                self._asked.clear()
                self._stage = _Stage.SPILLING
            if spill is not None:
                self._have_spilled(spill, now)
            # Only after orders were given: or where requests come all the time, nobody would do anything but ask.
            if self._waiting:
                if not self._somebody_new and now < self._ask_at:
                    return
                self._ask(now)
        self._stage = _Stage.QUIET
        self._somebody_new = False

    def _ask(self, now: int) -> None:
        """Begin a round: who has idle memory? Those that owe an answer are not asked again."""
        self._stage = _Stage.ASKING
        self._somebody_new = False
        self._answers_until = now + self._ask_ns
        if self._ask_at <= now:
            self._ask_at = now + self._patience_ns
            self._patience_ns = min(2 * self._patience_ns, _MOST_PATIENCE_NS)
            if self._spill is not None:
                self._spill.begin_round()
        missing = self._missing()
        waiting = {w.holder for w in self._waiting}
        for holder in self._held:
            if holder not in self._dead and not self._owes_answer(holder):
                self._asked[holder] = None
                self.outbox.append(Wanted(holder, missing, holder in waiting))

    def _owes_answer(self, holder: Holder) -> bool:
        return holder in self._asked or holder in self._silent

    def _heard_from(self, holder: Holder) -> None:
        self._asked.pop(holder, None)
        self._silent.pop(holder, None)

    def _have_spilled(self, spill: SpillOrders, now: int) -> None:
        """Have holders write to disk; if there is nothing to be written, those who have waited for long enough do it themselves."""
        while self._waiting:
            self.outbox += spill.choose(self._missing(), self._held, self._silent, now)
            first = self._waiting[0]
            if not spill.exhausted or now < first.since + spill.terms.fallback_ns:
                return
            self._grant_on_disk(self._waiting.popleft())
            self._serve()

    def _missing(self) -> int:
        """Bytes that those who wait need, and that are not free."""
        return min(self.capacity, sum(w.needed for w in self._waiting)) - self.free

    # --- words ---------------------------------------------------------------------------------------------------

    def _explain(self, needed: int) -> str:
        biggest = sorted(self._held.items(), key=lambda item: -item[1])
        holders = [
            f"{self._names.get(holder, 'a process')}{' (ended)' if holder in self._dead else ''} {held:,}"
            for holder, held in biggest[:_NAMED_HOLDERS]
        ]
        if len(biggest) > _NAMED_HOLDERS:
            rest = sum(held for _, held in biggest[_NAMED_HOLDERS:])
            holders.append(f"{len(biggest) - _NAMED_HOLDERS} others {rest:,}")
        spill = self._spill
        disk = " Spilling to disk is turned off."
        advice = (
            "Drop references to large objects, turn spilling on (SHOAL_SPILL=true), or start shoal with a larger "
            "object_store_memory"
        )
        if spill is not None:
            disk = f" Spilling to {spill.terms.place} has stopped: {spill.error}."
            advice = (
                "Make room there, drop references to large objects, or start shoal with a larger object_store_memory or another "
                "object_spilling_directory"
            )
        return (
            f"no room for {needed:,} bytes came free in {self._timeout_ns / 1e9:g} s; {self._granted:,} of "
            f"{self.capacity:,} bytes are taken: {'; '.join(holders)}.{disk} {advice}"
        )

    def check(self) -> None:
        """Assert the invariants."""
        assert sum(self._held.values()) == self._granted <= self.capacity
        assert all(held > 0 for held in self._held.values())
        assert all(holder in self._held for holder in self._dead)
        assert not any(self._owes_answer(holder) for holder in self._dead)
        assert (self._stage is _Stage.QUIET) == (not self._waiting)
        if self._waiting:
            assert self._waiting[0].needed > self.free, "the first in line could be served"
        if self._beyond:
            assert self._spill is not None
            assert self._spill.resting, "the disk is well, and somebody waits for it"
        if self._spill is not None:
            self._spill.check()
