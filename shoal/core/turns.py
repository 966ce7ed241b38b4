"""Whose turn it is among the claimants that wait in a lease queue, and one pass of granting.

The claimants of each source stand in a *rota*, in two orders: by turn (rule 1 of `core.leases`) and by age (rule 4). Both are trees that
know the bounds of what is asked for (`core.demand_tree`), so that what is decided when a lease comes back costs some steps for each
grant, not for each claimant: a thousand shapes that wait are no reason to look at all of them a thousand times.

The records are changed first, in many places, and the rotas follow: whoever changes a claimant says so (`Turns.moved`), and the next
pass puts it in its place.

Leaves to `core.leases` what becomes of whoever has the turn, and to `core.fairness` what leases are asked back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import partial
from heapq import heappop, heappush

from shoal.core import fairness
from shoal.core.bundles import Reservation
from shoal.core.demand_tree import DemandTree, Key
from shoal.core.lease_records import Claimant, Request
from shoal.core.pool import WorkerKey
from shoal.core.resources import Allocation, Amounts
from shoal.core.supply import Supply
from shoal.messages.placement import InBundle


class Rota:
    """The claimants with requests that can be served, of one source, in the two orders."""

    __slots__ = ("by_age", "by_turn", "source")

    def __init__(self, source: InBundle | None) -> None:
        self.source = source
        self.by_turn = DemandTree[Claimant]()
        self.by_age = DemandTree[Claimant]()


class Turns:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._rotas: dict[InBundle | None, Rota] = {}
        self._moved: dict[Claimant, None] = {}

    def __iter__(self) -> Iterator[Rota]:
        return iter(self._rotas.values())

    def moved(self, claimant: Claimant) -> None:
        """What a claimant waits for, has, or waits since has changed."""
        self._moved[claimant] = None

    def refresh(self) -> None:
        """Put what has moved in its place."""
        for claimant in self._moved:
            self.place(claimant)
        self._moved.clear()

    def place(self, claimant: Claimant) -> None:
        """Put a claimant in its place."""
        rota = self._rotas.get(claimant.source)
        if claimant.waiting:
            if rota is None:
                rota = self._rotas[claimant.source] = Rota(claimant.source)
            rota.by_turn.put(claimant, fairness.turn(claimant), claimant.amounts)
            rota.by_age.put(claimant, (claimant.waiting[0].seq,), claimant.amounts)
        elif rota is not None:
            rota.by_turn.discard(claimant)
            rota.by_age.discard(claimant)
            if not rota.by_age:
                del self._rotas[claimant.source]

    def oldest_unmet(self, supply: Supply) -> Iterator[Request]:
        """Of each rota, the oldest request that does not fit now, if there is one."""
        for rota in self._rotas.values():
            claimant = rota.by_age.first_unmet(partial(supply.fits, rota.source))
            if claimant is not None:
                yield claimant.waiting[0]

    def check(self, claimants: Iterable[Claimant]) -> None:
        """Assert the invariants."""
        self.refresh()
        waiting = [claimant for claimant in claimants if claimant.waiting]
        assert sum(len(rota.by_turn) for rota in self) == len(waiting)
        for claimant in waiting:
            rota = self._rotas[claimant.source]
            assert rota.by_turn.key_of(claimant) == fairness.turn(claimant)
            assert rota.by_age.key_of(claimant) == (claimant.waiting[0].seq,)
        for rota in self:
            rota.by_turn.check()
            rota.by_age.check()


class Granting:
    """One pass: `next` has the turn, until nobody is left whose demand fits; each is `served`, or `kept_for_fork`, at once.

    What is free only becomes less meanwhile: who did not fit once does not fit later.

    Args:
        reserved: By source, the amounts that rule 4 keeps.
        most_forks: How many requests of one claimant may wait for workers to start.

    Attributes:
        forks: How many workers of each kind are to start, or are starting.
        for_actors: The kinds of which an actor waits for one.
    """

    def __init__(
        self,
        turns: Turns,
        supply: Supply,
        reserved: Mapping[InBundle | None, Amounts],
        most_forks: int,
    ) -> None:
        self.forks: dict[WorkerKey, int] = {}
        self.for_actors: set[WorkerKey] = set()
        self._turns = turns
        self._supply = supply
        self._reserved = {source: dict(amounts) for source, amounts in reserved.items()}
        self._most_forks = most_forks
        # How many of a claimant's requests have had their turn in this pass but wait for a fork.
        self._ahead: dict[Claimant, int] = {}
        self._kept: list[tuple[Reservation | None, Allocation]] = []
        self._cut_short = False
        # The first of each rota that fits. Turns are never equal.
        self._heads: list[tuple[Key, Rota, Claimant]] = []
        turns.refresh()
        for rota in turns:
            self._seek(rota)

    def _fits(self, rota: Rota, amounts: Amounts) -> bool:
        return self._supply.fits(rota.source, amounts, self._reserved.get(rota.source))

    def _seek(self, rota: Rota) -> None:
        claimant = rota.by_turn.first_met(partial(self._fits, rota))
        if claimant is not None:
            heappush(self._heads, (rota.by_turn.key_of(claimant), rota, claimant))

    def next(self) -> tuple[Rota, Request] | None:
        """The request whose turn it is, of those that fit."""
        while self._heads:
            _, rota, claimant = heappop(self._heads)
            # Lines of one placement group draw from the same bundles.
            if rota.source is None or self._fits(rota, claimant.amounts):
                return rota, claimant.waiting[self._ahead.get(claimant, 0)]
            self._seek(rota)
        return None

    def served(self, rota: Rota, request: Request) -> None:
        """It has what it waited for."""
        self._go_on(rota, request.claimant, self._ahead.get(request.claimant, 0))

    def kept_for_fork(self, rota: Rota, request: Request) -> None:
        """By rule 2, what it needs is nobody else's while a worker starts."""
        claimant = request.claimant
        self._kept.append(self._supply.take(claimant.source, claimant.amounts))
        self.forks[claimant.key] = self.forks.get(claimant.key, 0) + 1
        if request.for_actor:
            self.for_actors.add(claimant.key)
        self._ahead[claimant] = self._ahead.get(claimant, 0) + 1
        self._go_on(rota, claimant, self._ahead[claimant])

    def _go_on(self, rota: Rota, claimant: Claimant, ahead: int) -> None:
        if ahead in {len(claimant.waiting), self._most_forks}:
            # It has no more turns in this pass.
            rota.by_turn.discard(claimant)
        else:
            # As if it held more. How old it is matters only in the next pass.
            held, since = fairness.turn(claimant)
            rota.by_turn.put(claimant, (held + ahead, since), claimant.amounts)
        self._seek(rota)

    @property
    def kept(self) -> int:
        """How many requests wait for a fork."""
        return len(self._kept)

    def cut_short(self) -> None:
        """Nobody else can be served: the others need not be looked at."""
        self._cut_short = True
        self._heads.clear()

    def end(self) -> None:
        """The books are as they were, less what was granted."""
        for reservation, allocation in self._kept:
            self._supply.give_back(reservation, allocation)
        for claimant in self._ahead:
            self._turns.moved(claimant)
        self._turns.refresh()

    def unserved(self, claimant: Claimant) -> Request | None:
        """After the end: the first request of a claimant that did not fit, or found nothing left. None if they all wait for forks only, or
        were not looked at."""
        ahead = self._ahead.get(claimant, 0)
        if self._cut_short or ahead >= min(len(claimant.waiting), self._most_forks):
            return None
        return claimant.waiting[ahead]

    def left(self, rota: Rota, names: Collection[str] | None = None) -> Iterator[Claimant]:
        """After the end: the claimants that still wait, in the order of their turns; only those that ask for any of these resources."""
        claimants = rota.by_turn if names is None else rota.by_turn.asking_for(names)
        return (
            claimant
            for claimant in claimants
            if len(claimant.waiting) > self._ahead.get(claimant, 0)
        )
