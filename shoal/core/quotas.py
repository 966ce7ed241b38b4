"""The capacity of a node's object store, shared out to processes in chunks.

A process draws bytes before it creates segments and gives them back when it unlinks them, so that the node need not see
every object. Rules:

Rule 1. What is granted and not returned never exceeds the capacity.
Rule 2. Requests are served in order; one that must wait holds back the younger ones, or a stream of small ones would
        starve it.
Rule 3. While somebody waits, all holders are asked to give back what they do not use, again and again: what is in use now
        may be idle soon. Who waits itself is asked as well, but not for quota that is not in use: it has counted on that.
Rule 4. A request that has waited `timeout_ns`, or that asks for more than there is at all, is answered with nothing and an
        explanation that names the biggest holders.
Rule 5. What a dead process held stays counted, since its segments still exist, until the shell says they are gone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Final, NamedTuple

Holder = Hashable
_NAMED_HOLDERS: Final = 5
_ASK_AGAIN_NS: Final = 100_000_000
_MOST_PATIENCE_NS: Final = 1_600_000_000


class Granted(NamedTuple):
    """The answer to a request; nothing was granted if `explanation` is not empty."""

    holder: Holder
    req: int
    granted: int
    explanation: str = ""


class Wanted(NamedTuple):
    """Ask a holder to give back what it does not use, up to `wanted` bytes. `itself`: it is among those who wait."""

    holder: Holder
    wanted: int
    itself: bool = False


Effect = Granted | Wanted


class _Waiting(NamedTuple):
    holder: Holder
    req: int
    needed: int
    deadline: int


class StoreQuotas:
    """See the module's docstring. Times are nanoseconds."""

    def __init__(self, capacity: int, chunk: int, timeout_ns: int) -> None:
        self.outbox: list[Effect] = []
        self.capacity = capacity
        self._chunk = chunk
        self._timeout_ns = timeout_ns
        self._held: dict[Holder, int] = {}
        self._names: dict[Holder, str] = {}
        self._dead: dict[Holder, None] = {}
        self._granted = 0
        self._waiting: deque[_Waiting] = deque()
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

    def on_request(self, holder: Holder, name: str, req: int, needed: int, now: int) -> None:
        """A process asks for at least `needed` bytes; `name` is how explanations call it."""
        self._names[holder] = name
        needed = max(1, needed)
        if needed > self.capacity:
            explanation = (
                f"{needed:,} bytes were asked for, but the whole object store has {self.capacity:,}; "
                "start shoal with a larger object_store_memory, or make smaller objects"
            )
            self.outbox.append(Granted(holder, req, 0, explanation))
            return
        self._waiting.append(_Waiting(holder, req, needed, now + self._timeout_ns))
        self._serve()
        if self._waiting and self._waiting[-1].req == req and self._waiting[-1].holder == holder:
            self._patience_ns = _ASK_AGAIN_NS
            self._ask(needed, now)

    def on_return(self, holder: Holder, returned: int) -> None:
        """A process gives bytes back; more than it holds counts as all that it holds."""
        self._release(holder, returned)
        self._serve()

    def on_holder_gone(self, holder: Holder) -> None:
        """A process has ended. What it held stays counted until `on_swept`."""
        self._waiting = deque(w for w in self._waiting if w.holder != holder)
        if self._held.get(holder):
            self._dead[holder] = None
        else:
            self._forget(holder)
        self._serve()

    def on_swept(self, holder: Holder, left: int) -> None:
        """The segments of a process that has ended now take up `left` bytes."""
        if holder in self._dead:
            self._release(holder, max(0, self._held[holder] - left))
            if not self._held.get(holder):
                self._forget(holder)
            self._serve()

    def on_tick(self, now: int) -> None:
        """Time has passed."""
        late = [w for w in self._waiting if w.deadline <= now]
        if late:
            self._waiting = deque(w for w in self._waiting if w.deadline > now)
            for waiting in late:
                self.outbox.append(
                    Granted(waiting.holder, waiting.req, 0, self._explain(waiting.needed))
                )
            self._serve()
        if self._waiting and self._ask_at <= now:
            self._ask(sum(w.needed for w in self._waiting) - self.free, now)

    def next_deadline(self) -> int | None:
        """When to call `on_tick`."""
        if not self._waiting:
            return None
        return min(self._ask_at, *(w.deadline for w in self._waiting))

    # --- inner workings ------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        while self._waiting and self._waiting[0].needed <= self.free:
            waiting = self._waiting.popleft()
            # A whole chunk while there is room; only what is needed when others wait for the rest.
            wish = waiting.needed if self._waiting else max(waiting.needed, self._chunk)
            granted = min(wish, self.free)
            self._held[waiting.holder] = self._held.get(waiting.holder, 0) + granted
            self._granted += granted
            self.outbox.append(Granted(waiting.holder, waiting.req, granted))

    def _ask(self, wanted: int, now: int) -> None:
        self._ask_at = now + self._patience_ns
        self._patience_ns = min(2 * self._patience_ns, _MOST_PATIENCE_NS)
        waiting = {w.holder for w in self._waiting}
        for holder in self._held:
            if holder not in self._dead:
                self.outbox.append(Wanted(holder, wanted, holder in waiting))

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

    def _explain(self, needed: int) -> str:
        biggest = sorted(self._held.items(), key=lambda item: -item[1])
        holders = [
            f"{self._names.get(holder, 'a process')}{' (ended)' if holder in self._dead else ''} {held:,}"
            for holder, held in biggest[:_NAMED_HOLDERS]
        ]
        if len(biggest) > _NAMED_HOLDERS:
            rest = sum(held for _, held in biggest[_NAMED_HOLDERS:])
            holders.append(f"{len(biggest) - _NAMED_HOLDERS} others {rest:,}")
        return (
            f"no room for {needed:,} bytes came free in {self._timeout_ns / 1e9:g} s; {self._granted:,} of "
            f"{self.capacity:,} bytes are taken: {'; '.join(holders)}. Drop references to large objects, or start shoal "
            "with a larger object_store_memory"
        )

    def check(self) -> None:
        """Assert the invariants."""
        assert sum(self._held.values()) == self._granted <= self.capacity
        assert all(held > 0 for held in self._held.values())
        assert all(holder in self._held for holder in self._dead)
        if self._waiting:
            assert self._waiting[0].needed > self.free, "the first in line could be served"
