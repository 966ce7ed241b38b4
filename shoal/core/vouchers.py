"""Registrations that one process has made for another, until it is certain that the other knows of them.

An executor registers its caller for the references inside a result, and then replies (rule 3 of `core.references`). If it dies in
between, or its reply is lost with it, the caller has registrations that it will never give up, for it does not know of them. So the
owner notes who has *vouched* for whom, and the caller whose vouchers it has *taken*: with the reply. When a process dies, what it
had vouched for and nobody has taken is found out by asking::

    owner                                    caller
      │ the executor has died                  │ the executor has died, and all is read that it said
      │ Recount(executor, objects) ──────────► │
      │ ◄──────────── Counted(executor, counts)│ how many of its vouchers are taken, and not given up
      │ what was not taken is dropped          │

What a caller gives up names the vouchers among it, and travels on the same connection before its answer: so the two counts are of the same
moment. Of itself an owner need not ask.

Nothing here is on a path that is often taken: only references that come back inside results, from somebody who does not own them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shoal.core.references import Entry


class Vouchers:
    """See the module's docstring. One table's, as an owner and as a caller."""

    __slots__ = ("_by_voucher", "_given", "_taken")

    def __init__(self) -> None:
        # As the owner: who vouched for which borrower, how often; and the same by who vouched.
        self._given: dict[Entry, dict[tuple[str, str], int]] = {}
        self._by_voucher: dict[str, dict[Entry, None]] = {}
        # As the caller: whose vouchers are among the registrations.
        self._taken: dict[Entry, dict[str, int]] = {}

    def __bool__(self) -> bool:
        return bool(self._given or self._by_voucher or self._taken)

    # --- as the owner --------------------------------------------------------------------------------------------

    def give(self, entry: Entry, voucher: str, borrower: str) -> None:
        """`voucher` has had `borrower` registered once more."""
        given = self._given.setdefault(entry, {})
        given[voucher, borrower] = given.get((voucher, borrower), 0) + 1
        self._by_voucher.setdefault(voucher, {})[entry] = None

    def give_back(self, entry: Entry, voucher: str, borrower: str, count: int) -> None:
        """So many of them the borrower has known of, and given up."""
        given = self._given.get(entry)
        if given is None or (voucher, borrower) not in given:
            # They were counted when the voucher died.
            return
        given[voucher, borrower] -= count
        if given[voucher, borrower] <= 0:
            self.take_back(entry, voucher, borrower)

    def take_back(self, entry: Entry, voucher: str, borrower: str) -> int:
        """Forget them. Returns how many there were."""
        given = self._given.get(entry)
        if given is None:
            return 0
        count = given.pop((voucher, borrower), 0)
        if not given:
            del self._given[entry]
        of_voucher = self._by_voucher.get(voucher)
        if of_voucher is not None and not any(by == voucher for by, _ in given):
            of_voucher.pop(entry, None)
            if not of_voucher:
                del self._by_voucher[voucher]
        return count

    def forget_borrower(self, entry: Entry, borrower: str) -> None:
        """It has died, and its registrations with it."""
        for voucher, other in list(self._given.get(entry, ())):
            if other == borrower:
                self.take_back(entry, voucher, borrower)

    def given_by(self, voucher: str) -> list[tuple[Entry, str]]:
        """What is to be counted after the death of `voucher`: entries and borrowers."""
        return [
            (entry, borrower)
            for entry in self._by_voucher.get(voucher, ())
            for by, borrower in self._given[entry]
            if by == voucher
        ]

    # --- as the caller -------------------------------------------------------------------------------------------

    def take(self, entry: Entry, voucher: str) -> None:
        """A result has come with a registration that `voucher` has made."""
        taken = self._taken.setdefault(entry, {})
        taken[voucher] = taken.get(voucher, 0) + 1

    def taken(self, entry: Entry, voucher: str) -> int:
        """How many of its vouchers are among the registrations."""
        return self._taken.get(entry, {}).get(voucher, 0)

    def drop(self, entry: Entry) -> tuple[tuple[str, int], ...]:
        """All registrations are given up. Returns whose vouchers were among them, and how many."""
        taken = self._taken.pop(entry, None)
        return () if taken is None else tuple(taken.items())
