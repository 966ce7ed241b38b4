"""What placement groups have reserved on one node, and what is taken out of it.

::

              prepare                 commit                 release             nothing is out
    (nobody) ────────► PREPARED ────────────────► COMMITTED ────────► LEAVING ───────────────► (nobody)
                          └──────────── release ─────────────────────────▲

A bundle's amounts are taken from the node when they are prepared, GPUs as instances. Leases with that bundle draw from the
bundle's own books, never from the node's, and only once it is committed. So a node is never promised twice, whatever the order
of messages. A bundle that is released serves nobody any more; what it had goes back to the node, at once and whole, when
the last lease out of it is settled (the shell ends the workers).

Orders may come twice: each has the number of its round (*attempt*), and a reservation belongs to one round.

Leaves to `core.groups` which bundles go where, and to the lease queue whose turn it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import Final, NamedTuple

from shoal.core.resources import Allocation, Amounts, NodeResources, amounts_text
from shoal.messages.placement import BundleHeld, InBundle

ALL: Final = 0
"""As the number of a round: all rounds."""


class BundleState(Enum):
    """Of a reservation."""

    PREPARED = "prepared"
    COMMITTED = "committed"
    LEAVING = "leaving"


class Reservation:
    """One bundle on this node. `books` are the resources that it has, and what of them is free."""

    __slots__ = ("allocation", "attempt", "books", "group_id", "index", "out", "state")

    def __init__(
        self,
        group_id: bytes,
        index: int,
        attempt: int,
        allocation: Allocation,
        books: NodeResources,
    ) -> None:
        self.group_id = group_id
        self.index = index
        self.attempt = attempt
        self.allocation = allocation
        self.books = books
        self.state = BundleState.PREPARED
        # Leases out of it. Not seen in the amounts: a lease may hold nothing, and CPUs are lent.
        self.out = 0

    @property
    def whole(self) -> bool:
        """Whether nothing is out."""
        return not self.out


class Draw(NamedTuple):
    """What a lease has out of a bundle."""

    reservation: Reservation
    allocation: Allocation


class BundleLedger:
    """See the module's docstring."""

    def __init__(self, resources: NodeResources) -> None:
        self._resources = resources
        # A released bundle may still be leaving when another round reserves the same one anew.
        self._held: dict[tuple[bytes, int], Reservation] = {}
        self._leaving: dict[int, Reservation] = {}

    def __iter__(self) -> Iterator[Reservation]:
        yield from self._held.values()
        yield from self._leaving.values()

    # --- orders of the control store -----------------------------------------------------------------------------

    def prepare(
        self, group_id: bytes, attempt: int, bundles: Iterable[tuple[int, Amounts]]
    ) -> bool:
        """Reserve bundles, all or none. True if they are reserved, now or since this order first came."""
        resources = self._resources
        made: list[Reservation] = []
        for index, amounts in bundles:
            held = self._held.get((group_id, index))
            if held is not None and held.attempt == attempt:
                continue
            if held is not None or not resources.fits(amounts):
                # A bundle that this node still has from another round was not released: the order is out of date.
                for reservation in made:
                    self._remove(reservation)
                return False
            allocation = resources.take(amounts)
            books = NodeResources(dict(amounts), resources.ids_of(allocation))
            reservation = Reservation(group_id, index, attempt, allocation, books)
            self._held[group_id, index] = reservation
            made.append(reservation)
        return True

    def commit(self, group_id: bytes, attempt: int) -> None:
        """What was prepared in a round may be used."""
        for reservation in self._of(group_id, attempt):
            reservation.state = BundleState.COMMITTED

    def release(self, group_id: bytes, attempt: int = ALL) -> list[Reservation]:
        """Give up what was reserved in a round; the bundles out of which leases are still held. Their workers are to be ended,
        and each lease settled by `give_back`."""
        used = []
        for reservation in self._of(group_id, attempt):
            if reservation.whole:
                self._remove(reservation)
            else:
                del self._held[group_id, reservation.index]
                reservation.state = BundleState.LEAVING
                self._leaving[id(reservation)] = reservation
                used.append(reservation)
        return used

    def _of(self, group_id: bytes, attempt: int) -> list[Reservation]:
        return [
            reservation
            for reservation in self._held.values()
            if reservation.group_id == group_id and attempt in {ALL, reservation.attempt}
        ]

    def _remove(self, reservation: Reservation) -> None:
        if self._leaving.pop(id(reservation), None) is None:
            del self._held[reservation.group_id, reservation.index]
        self._resources.give_back(reservation.allocation)

    # --- leases --------------------------------------------------------------------------------------------------

    def knows(self, bundle: InBundle) -> bool:
        """Whether such a bundle is on this node, usable or about to be."""
        return any(True for _ in self.matching(bundle))

    def feasible(self, bundle: InBundle, amounts: Amounts) -> bool:
        """Whether such a bundle could give this if nothing were out."""
        return any(found.books.feasible(amounts) for found in self.matching(bundle))

    def fits(
        self, bundle: InBundle, amounts: Amounts, reserved: Mapping[str, int] | None = None
    ) -> bool:
        """Whether `draw` would find it, with `reserved` amounts left untouched."""
        return self._fitting(bundle, amounts, reserved) is not None

    def draw(self, bundle: InBundle, amounts: Amounts) -> Draw:
        """Take what `fits`: from that bundle; for index -1 from the first of the group that has it."""
        reservation = self._fitting(bundle, amounts)
        assert reservation is not None, "draw() what fits"
        reservation.out += 1
        return Draw(reservation, reservation.books.take(amounts))

    def give_back(self, draw: Draw) -> bool:
        """A lease is settled. True if that frees resources of the node."""
        reservation = draw.reservation
        reservation.books.give_back(draw.allocation)
        reservation.out -= 1
        if reservation.state is BundleState.LEAVING and reservation.whole:
            self._remove(reservation)
            return True
        return False

    def matching(self, bundle: InBundle) -> Iterator[Reservation]:
        """The reservations that are, or are about to be, that bundle; for index -1 all of the group."""
        if bundle.index >= 0:
            found = self._held.get((bundle.group_id, bundle.index))
            if found is not None:
                yield found
            return
        for reservation in self._held.values():
            if reservation.group_id == bundle.group_id:
                yield reservation

    def _fitting(
        self, bundle: InBundle, amounts: Amounts, reserved: Mapping[str, int] | None = None
    ) -> Reservation | None:
        for reservation in self.matching(bundle):
            if reservation.state is BundleState.COMMITTED and reservation.books.fits(
                amounts, reserved
            ):
                return reservation
        return None

    # --- questions -----------------------------------------------------------------------------------------------

    def free(self) -> dict[bytes, dict[str, int]]:
        """By group, what is free of what may be used of it on this node."""
        groups: dict[bytes, dict[str, int]] = {}
        for reservation in self._held.values():
            if reservation.state is BundleState.COMMITTED:
                free = groups.setdefault(reservation.group_id, {})
                for name, amount in reservation.books.available.items():
                    free[name] = free.get(name, 0) + amount
        return groups

    def held(self) -> list[BundleHeld]:
        """What this node claims when the control store comes back."""
        return [
            BundleHeld(
                reservation.group_id,
                reservation.index,
                reservation.attempt,
                reservation.state is BundleState.COMMITTED,
            )
            for reservation in self._held.values()
        ]

    def why_waiting(self, bundle: InBundle, amounts: Amounts) -> str:
        """Why a demand for a bundle is not served here, as a sentence."""
        name = f"placement group {bundle.group_id.hex()[:12]}"
        which = f"bundle {bundle.index} of {name}" if bundle.index >= 0 else name
        matching = list(self.matching(bundle))
        if not matching:
            return f"{which} is not on this node."
        if not any(found.books.feasible(amounts) for found in matching):
            has = "; ".join(
                amounts_text(tuple(sorted(found.books.total.items()))) for found in matching
            )
            return (
                f"it needs {amounts_text(amounts)}, and {which} has {has}. It can never run there: "
                "ask for less, or make the group with larger bundles."
            )
        if all(found.state is BundleState.PREPARED for found in matching):
            return f"{which} is being reserved."
        return f"it asks for {amounts_text(amounts)} of {which}, where others have taken too much."

    def check(self) -> None:
        """Assert the invariants."""
        for key, reservation in self._held.items():
            assert key == (reservation.group_id, reservation.index)
            assert reservation.state is not BundleState.LEAVING
            if reservation.state is BundleState.PREPARED:
                assert reservation.whole
        for reservation in self:
            reservation.books.check()
            assert dict(reservation.allocation.amounts) == reservation.books.total
        for reservation in self._leaving.values():
            assert reservation.state is BundleState.LEAVING
            assert not reservation.whole, "what nobody uses has gone back to the node"
