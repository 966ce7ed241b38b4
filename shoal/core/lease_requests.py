"""The requests that wait in a lease queue, by claimant, until each is served, withdrawn or refused.

The record of a claimant is there for as long as a request or a lease refers to it. What an idle node could not give waits apart from the
others, and is in nobody's way.

Leaves to `core.leases` who is served when.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from shoal.core.explanations import why_waiting
from shoal.core.lease_records import Claimant, Owner, Request
from shoal.core.pool import WorkerKey
from shoal.core.resources import Amounts
from shoal.core.supply import Supply
from shoal.core.turns import Turns
from shoal.messages.placement import InBundle


class LeaseRequests:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._claimants: dict[tuple[Owner, WorkerKey, Amounts, InBundle | None], Claimant] = {}
        self._requests: dict[tuple[Owner, int], Request] = {}
        self._infeasible: dict[tuple[Owner, int], Request] = {}
        self._last_seq = 0
        self._in_line = 0
        self.turns = Turns()

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests.values())

    def get(self, owner: Owner, req: int) -> Request | None:
        """A request that waits."""
        return self._requests.get((owner, req))

    def is_infeasible(self, request: Request) -> bool:
        """Whether a request waits for more than the node has."""
        return (request.owner, request.req) in self._infeasible

    # --- coming and going ----------------------------------------------------------------------------------------

    def claimant(
        self, owner: Owner, key: WorkerKey, amounts: Amounts, source: InBundle | None
    ) -> Claimant:
        """The record of a claimant; made if there is none."""
        claimant_key = (owner, key, amounts, source)
        claimant = self._claimants.get(claimant_key)
        if claimant is None:
            claimant = self._claimants[claimant_key] = Claimant(owner, key, amounts, source)
        return claimant

    def add(
        self,
        req: int,
        claimant: Claimant,
        now: int,
        *,
        name: str,
        keeps: Amounts | None,
        outlives_job: bool,
        feasible: bool,
    ) -> None:
        """One more request of a claimant."""
        claimant.refs += 1
        request = Request(
            claimant.owner, req, claimant, self.next_seq(), now, name, keeps, outlives_job
        )
        self._requests[claimant.owner, req] = request
        if feasible:
            if not claimant.waiting:
                claimant.since = request.seq
            claimant.waiting.append(request)
            self.turns.moved(claimant)
            self._in_line += claimant.source is None
        else:
            self._infeasible[claimant.owner, req] = request

    def next_seq(self) -> int:
        """A number higher than all before: a place at the end of the line."""
        self._last_seq += 1
        return self._last_seq

    def served(self, request: Request) -> None:
        """A request is served; its lease refers to the claimant from now on."""
        del self._requests[request.owner, request.req]
        self._leave(request)

    def last_in_line(self, claimant: Claimant) -> None:
        """A claimant has had its turn."""
        claimant.since = self.next_seq()
        self.turns.moved(claimant)

    def remove(self, request: Request) -> None:
        """A request is not needed any more, or refused."""
        key = request.owner, request.req
        del self._requests[key]
        if self._infeasible.pop(key, None) is None:
            self._leave(request)
        self.drop_ref(request.claimant)

    def _leave(self, request: Request) -> None:
        """It waits for its turn no longer."""
        claimant = request.claimant
        claimant.waiting.remove(request)
        claimant.told = claimant.told and bool(claimant.waiting)
        self.turns.moved(claimant)
        self._in_line -= claimant.source is None

    def drop_ref(self, claimant: Claimant) -> None:
        """A request or lease of a claimant is no more."""
        claimant.refs -= 1
        if not claimant.refs:
            del self._claimants[claimant.owner, claimant.key, claimant.amounts, claimant.source]

    # --- questions -----------------------------------------------------------------------------------------------

    def those(self, which: Callable[[Request], bool]) -> list[Request]:
        """The requests of which that is so."""
        return [request for request in self._requests.values() if which(request)]

    def in_line(self) -> int:
        """How many requests wait for what the node itself has."""
        return self._in_line

    def before(self, request: Request) -> int:
        """How many older requests wait for resources of the same source."""
        source = request.claimant.source
        return sum(
            other.seq < request.seq
            and other.claimant.source == source
            and key not in self._infeasible
            for key, other in self._requests.items()
        )

    def explain(
        self,
        request: Request,
        supply: Supply,
        *,
        leases: int,
        starting: int,
        most_workers: int,
    ) -> str:
        """Why a request waits, as a sentence. `most_workers` is 0 while more may start."""
        source, amounts = request.claimant.source, request.claimant.amounts
        if self.is_infeasible(request):
            return supply.why_infeasible(source, amounts)
        books = supply.resources
        if source is not None:
            if not supply.fits(source, amounts):
                return supply.ledger.why_waiting(source, amounts)
            books = next(found for _, found in supply.books(source) if found.fits(amounts))
        return why_waiting(
            books,
            amounts,
            requests_before=self.before(request),
            leases=leases,
            starting=starting,
            most_workers=most_workers,
        )

    def check(self, leases: int, held: dict[int, int]) -> None:
        """Assert the invariants; `leases` there are in all, and `held` of them count, by claimant."""
        queued = refs = 0
        for claimant in self._claimants.values():
            refs += claimant.refs
            assert claimant.held == held.get(id(claimant), 0)
            seqs = [request.seq for request in claimant.waiting]
            assert seqs == sorted(seqs)
            queued += len(seqs)
        self.turns.check(self._claimants.values())
        assert self._in_line == sum(
            len(claimant.waiting)
            for claimant in self._claimants.values()
            if claimant.source is None
        )
        assert queued + len(self._infeasible) == len(self._requests)
        assert refs == len(self._requests) + leases
