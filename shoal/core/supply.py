"""What leases of a node are made of: its own resources, less what placement groups have reserved there, or those reservations.

Every demand has one source: a bundle, if it names one, and else the node. What is reserved never goes to who has no part in the
group, and a lease of a bundle never takes more of the node. (`core.bundles` has the books of the bundles.)

Leaves to the lease queue whose turn it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from shoal.core.bundles import BundleLedger, Draw, Reservation
from shoal.core.explanations import why_infeasible
from shoal.core.resources import Allocation, Amounts, NodeResources
from shoal.messages.node import Shape
from shoal.messages.placement import InBundle


def source_of(shape: Shape) -> InBundle | None:
    """Where a shape's resources come from: a bundle, or (None) the node. Equal sources are equal values."""
    strategy = shape.strategy
    if not isinstance(strategy, InBundle):
        return None
    return InBundle(strategy.group_id, strategy.index) if strategy.captures else strategy


class Supply:
    """See the module's docstring."""

    def __init__(self, resources: NodeResources) -> None:
        self.resources = resources
        self.ledger = BundleLedger(resources)

    def feasible(self, source: InBundle | None, amounts: Amounts) -> bool:
        """Whether it could ever be had. Of a bundle that is not here yet that is not known."""
        if source is None:
            return self.resources.feasible(amounts)
        return not self.ledger.knows(source) or self.ledger.feasible(source, amounts)

    def fits(
        self,
        source: InBundle | None,
        amounts: Amounts,
        reserved: Mapping[str, int] | None = None,
    ) -> bool:
        """Whether it can be taken now, with `reserved` amounts of the same source left untouched."""
        if source is None:
            return self.resources.fits(amounts, reserved)
        return self.ledger.fits(source, amounts, reserved)

    def take(
        self, source: InBundle | None, amounts: Amounts
    ) -> tuple[Reservation | None, Allocation]:
        """Take what `fits`; the bundle that it comes from, if it is one, and what it is."""
        if source is None:
            return None, self.resources.take(amounts)
        draw = self.ledger.draw(source, amounts)
        return draw.reservation, draw.allocation

    def give_back(self, reservation: Reservation | None, allocation: Allocation) -> None:
        """Return what was taken."""
        if reservation is None:
            self.resources.give_back(allocation)
        else:
            self.ledger.give_back(Draw(reservation, allocation))

    def books_of(self, reservation: Reservation | None) -> NodeResources:
        """The books from which something was taken."""
        return self.resources if reservation is None else reservation.books

    def books(self, source: InBundle | None) -> Iterator[tuple[Reservation | None, NodeResources]]:
        """All books that a source stands for: of index -1, those of all bundles of the group that are here."""
        if source is None:
            yield None, self.resources
            return
        for reservation in self.ledger.matching(source):
            yield reservation, reservation.books

    def available(self, source: InBundle | None) -> dict[str, int]:
        """What is free of a source."""
        available: dict[str, int] = {}
        for _, books in self.books(source):
            for name, amount in books.available.items():
                available[name] = available.get(name, 0) + amount
        return available

    def why_infeasible(self, source: InBundle | None, amounts: Amounts) -> str:
        """Why something that is not `feasible` is not, and what would help, as a sentence."""
        if source is None:
            return why_infeasible(self.resources, amounts)
        return self.ledger.why_waiting(source, amounts)

    def check(self, out: Iterable[tuple[Reservation | None, Mapping[str, int]]]) -> None:
        """Assert that what is `out` (amounts that are not lent), reserved and free is all there is."""
        self.resources.check()
        self.ledger.check()
        free: dict[int, dict[str, int]] = {id(None): dict(self.resources.total)}
        count: dict[int, int] = {}
        for reservation in self.ledger:
            free[id(reservation)] = dict(reservation.books.total)
            for name, amount in reservation.allocation.amounts:
                free[id(None)][name] -= amount
        for holder, amounts in out:
            count[id(holder)] = count.get(id(holder), 0) + 1
            for name, amount in amounts.items():
                free[id(holder)][name] -= amount
        assert free[id(None)] == self.resources.available, (
            "what is free, leased and reserved is not all there is"
        )
        for reservation in self.ledger:
            assert free[id(reservation)] == reservation.books.available
            assert count.get(id(reservation), 0) == reservation.out
