"""Who is told to write objects to disk, when the store is full and nobody has idle memory left.

An order goes to one holder: write so many bytes, and give their quota back. Rules:

Rule 1. Those that hold most are told first, as many as it takes for what is missing, and each to write one batch: room comes back
        piece by piece, and no more is written than was needed.
Rule 2. A holder has one order at a time. What is ordered counts as coming, until it is late: the holder may have been stopped.
Rule 3. Who frees less than was ordered has nothing more for now, and is passed over until `begin_round`.
Rule 4. When the disk takes no more, nothing is ordered for a while. What is stored stays stored.

Which memory may be written is for the holder to find out; who waits for it is `core.quotas`' business.
"""

from __future__ import annotations

from collections.abc import Container, Hashable, Mapping
from typing import NamedTuple

Holder = Hashable


class SpillTerms(NamedTuple):
    """How a store spills. Times are nanoseconds.

    Attributes:
        batch: Bytes of one order.
        order_ns: After that an order is late.
        fallback_ns: How long the first in line waits, when nobody has anything to spill, before its object is made on disk.
        retry_ns: How long nothing is ordered after the disk took no more.
        place: Where objects are written, for explanations.
    """

    batch: int
    order_ns: int
    fallback_ns: int
    retry_ns: int
    place: str


class SpillOrder(NamedTuple):
    """Have a holder write `wanted` bytes to disk; what the dead have left the shell writes itself. Ends as one `on_spilled`."""

    holder: Holder
    wanted: int


class _Order(NamedTuple):
    wanted: int
    late_at: int


class SpillOrders:
    """See the module's docstring.

    Attributes:
        error: Why the disk took no more, the last time that something was spilled; "" if it did.
        resting: Whether nothing is ordered, because of that.
        again_at: Until when.
        exhausted: Whether nobody has anything to spill, as far as is known, and nothing is on its way to disk.
    """

    def __init__(self, terms: SpillTerms) -> None:
        self.terms = terms
        self.error = ""
        self.resting = False
        self.again_at = 0
        self.exhausted = False
        self._orders: dict[Holder, _Order] = {}
        self._late: dict[Holder, None] = {}
        self._passed: dict[Holder, None] = {}

    def on_time(self, now: int) -> None:
        """Time has passed."""
        if self.again_at <= now:
            self.resting = False
        self._late.update((h, None) for h, order in self._orders.items() if order.late_at <= now)

    def begin_round(self) -> None:
        """Those who had nothing may have something by now."""
        self._passed.clear()

    def choose(
        self, missing: int, held: Mapping[Holder, int], silent: Container[Holder], now: int
    ) -> list[SpillOrder]:
        """Orders by which `missing` bytes come, if there are as many.

        Args:
            missing: Bytes.
            held: What each holder has.
            silent: Those that do not answer, and would not carry out orders either.
            now: The time.
        """
        if self.resting:
            self.exhausted = False
            return []
        orders, late, passed = self._orders, self._late, self._passed
        missing -= sum(order.wanted for holder, order in orders.items() if holder not in late)
        able = [
            holder
            for holder in held
            if holder not in orders and holder not in passed and holder not in silent
        ]
        able.sort(key=held.__getitem__, reverse=True)
        chosen: list[SpillOrder] = []
        for holder in able:
            if missing <= 0:
                break
            wanted = min(self.terms.batch, held[holder])
            orders[holder] = _Order(wanted, now + self.terms.order_ns)
            chosen.append(SpillOrder(holder, wanted))
            missing -= wanted
        self.exhausted = not able and len(orders) == len(late)
        return chosen

    def on_spilled(self, holder: Holder, freed: int, error: str, now: int) -> None:
        """A holder has carried out its order, or (without one) the disk took no more."""
        order = self._orders.pop(holder, None)
        self._late.pop(holder, None)
        if error:
            self.error = error
            self.resting = True
            self.again_at = now + self.terms.retry_ns
            return
        if freed:
            self.error = ""
        if order is not None and freed < order.wanted:
            self._passed[holder] = None

    def is_disk_full(self, since: int) -> bool:
        """Whether the disk has taken no more while somebody waited who came at `since`, or shortly before."""
        return bool(self.error) and self.again_at >= since

    def on_holder_gone(self, holder: Holder) -> None:
        """A process has ended, and its order with it; what it left is written by others."""
        for known in (self._orders, self._late, self._passed):
            known.pop(holder, None)

    def next_late(self) -> int | None:
        """When the next order is late."""
        late = self._late
        return min((o.late_at for h, o in self._orders.items() if h not in late), default=None)

    def check(self) -> None:
        """Assert the invariants."""
        assert all(holder in self._orders for holder in self._late)
        assert not any(holder in self._orders for holder in self._passed)
        assert all(order.wanted > 0 for order in self._orders.values())
