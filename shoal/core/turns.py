"""Whose turn it is among the claims that wait in a lease queue, and one pass of granting.

The claims of each source stand in a *line*, in two orders: by turn (rule 1 of `core.leases`) and by age (rule 4). Both are trees that
know the bounds of what is asked for (`core.demand_tree`), so that what is decided when a lease comes back costs some steps for each
grant, not for each claim: a thousand shapes that wait are no reason to look at all of them a thousand times.

The records are changed first, in many places, and the lines follow: whoever changes a claim says so (`Turns.moved`), and the next
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
from shoal.core.lease_records import Claim, Request
from shoal.core.pool import WorkerKey
from shoal.core.resources import Allocation, Amounts
from shoal.core.supply import Supply
from shoal.messages.placement import InBundle


class Line:
    """The claims with requests that can be served, of one source."""

    __slots__ = ("by_age", "by_turn", "source")

    def __init__(self, source: InBundle | None) -> None:
        self.source = source
        self.by_turn = DemandTree[Claim]()
        self.by_age = DemandTree[Claim]()


class Turns:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._lines: dict[InBundle | None, Line] = {}
        self._moved: dict[Claim, None] = {}

    def __iter__(self) -> Iterator[Line]:
        return iter(self._lines.values())

    def moved(self, claim: Claim) -> None:
        """What a claim waits for, has, or waits since has changed."""
        self._moved[claim] = None

    def refresh(self) -> None:
        """Put what has moved in its place."""
        for claim in self._moved:
            self.place(claim)
        self._moved.clear()

    def place(self, claim: Claim) -> None:
        """Put a claim in its place."""
        line = self._lines.get(claim.source)
        if claim.waiting:
            if line is None:
                line = self._lines[claim.source] = Line(claim.source)
            line.by_turn.put(claim, fairness.turn(claim), claim.amounts)
            line.by_age.put(claim, (claim.waiting[0].seq,), claim.amounts)
        elif line is not None:
            line.by_turn.discard(claim)
            line.by_age.discard(claim)
            if not line.by_age:
                del self._lines[claim.source]

    def oldest_unmet(self, supply: Supply) -> Iterator[Request]:
        """Of each line, the oldest request that does not fit now, if there is one."""
        for line in self._lines.values():
            claim = line.by_age.first_unmet(partial(supply.fits, line.source))
            if claim is not None:
                yield claim.waiting[0]

    def check(self, claims: Iterable[Claim]) -> None:
        """Assert the invariants."""
        self.refresh()
        waiting = [claim for claim in claims if claim.waiting]
        assert sum(len(line.by_turn) for line in self) == len(waiting)
        for claim in waiting:
            line = self._lines[claim.source]
            assert line.by_turn.key_of(claim) == fairness.turn(claim)
            assert line.by_age.key_of(claim) == (claim.waiting[0].seq,)
        for line in self:
            line.by_turn.check()
            line.by_age.check()


class Granting:
    """One pass: `next` has the turn, until nobody is left whose demand fits; each is `served`, or `kept_for_fork`, at once.

    What is free only becomes less meanwhile: who did not fit once does not fit later.

    Args:
        reserved: By source, the amounts that rule 4 keeps.
        most_forks: How many requests of one claim may wait for workers to start.

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
        # How many of a claim's requests have had their turn in this pass but wait for a fork.
        self._ahead: dict[Claim, int] = {}
        self._kept: list[tuple[Reservation | None, Allocation]] = []
        self._cut_short = False
        # The first of each line that fits. Turns are never equal.
        self._heads: list[tuple[Key, Line, Claim]] = []
        turns.refresh()
        for line in turns:
            self._seek(line)

    def _fits(self, line: Line, amounts: Amounts) -> bool:
        return self._supply.fits(line.source, amounts, self._reserved.get(line.source))

    def _seek(self, line: Line) -> None:
        claim = line.by_turn.first_met(partial(self._fits, line))
        if claim is not None:
            heappush(self._heads, (line.by_turn.key_of(claim), line, claim))

    def next(self) -> tuple[Line, Request] | None:
        """The request whose turn it is, of those that fit."""
        while self._heads:
            _, line, claim = heappop(self._heads)
            # Lines of one placement group draw from the same bundles.
            if line.source is None or self._fits(line, claim.amounts):
                return line, claim.waiting[self._ahead.get(claim, 0)]
            self._seek(line)
        return None

    def served(self, line: Line, request: Request) -> None:
        """It has what it waited for."""
        self._go_on(line, request.claim, self._ahead.get(request.claim, 0))

    def kept_for_fork(self, line: Line, request: Request) -> None:
        """By rule 2, what it needs is nobody else's while a worker starts."""
        claim = request.claim
        self._kept.append(self._supply.take(claim.source, claim.amounts))
        self.forks[claim.key] = self.forks.get(claim.key, 0) + 1
        if request.for_actor:
            self.for_actors.add(claim.key)
        self._ahead[claim] = self._ahead.get(claim, 0) + 1
        self._go_on(line, claim, self._ahead[claim])

    def _go_on(self, line: Line, claim: Claim, ahead: int) -> None:
        if ahead in {len(claim.waiting), self._most_forks}:
            # It has no more turns in this pass.
            line.by_turn.discard(claim)
        else:
            # As if it held more. How old it is matters only in the next pass.
            held, since = fairness.turn(claim)
            line.by_turn.put(claim, (held + ahead, since), claim.amounts)
        self._seek(line)

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
        for claim in self._ahead:
            self._turns.moved(claim)
        self._turns.refresh()

    def unserved(self, claim: Claim) -> Request | None:
        """After the end: the first request of a claim that did not fit, or found nothing left. None if they all wait for forks only, or
        were not looked at."""
        ahead = self._ahead.get(claim, 0)
        if self._cut_short or ahead >= min(len(claim.waiting), self._most_forks):
            return None
        return claim.waiting[ahead]

    def left(self, line: Line, names: Collection[str] | None = None) -> Iterator[Claim]:
        """After the end: the claims that still wait, in the order of their turns; only those that ask for any of these resources."""
        claims = line.by_turn if names is None else line.by_turn.asking_for(names)
        return (claim for claim in claims if len(claim.waiting) > self._ahead.get(claim, 0))
