"""Who gives and who waits: the policies behind rules 1, 3 and 4 of the lease queue (see `core.leases`), as functions.

They look at the queue's records and change none.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final

from shoal.core.lease_records import Claimant, Lease
from shoal.core.pool import WorkerState
from shoal.core.resources import CPU, Amounts

_FIRST_BURST_NS: Final = 1_000_000_000


def turn(claimant: Claimant) -> tuple[int, int]:
    """Rule 1: those with the fewest leases first; among them, who has waited longest."""
    return claimant.held, claimant.since


# --- rule 4: a large request reserves, in bursts --------------------------------------------------------------------


def burst(age_ns: int) -> tuple[bool, int]:
    """Whether a request that has waited so long reserves what it needs now, and for how long that stays so.

    It reserves for 1 s, lets others pass for 3 s, reserves for 2 s, lets pass for 6 s, and so on.
    """
    length = 4 * _FIRST_BURST_NS
    while age_ns >= length:
        age_ns -= length
        length *= 2
    reserved = length // 4
    if age_ns < reserved:
        return True, reserved - age_ns
    return False, length - age_ns


def returns_may_serve(
    amounts: Amounts, available: Mapping[str, int], leases: Iterable[Lease]
) -> bool:
    """Whether a demand would fit if all tasks ended: actors may live for ever, and reserving behind them is in vain."""
    returning = dict(available)
    for lease in leases:
        if lease.request.keeps is None:
            for name, amount in lease.allocation.amounts:
                if name != CPU or not lease.blocked:
                    returning[name] = returning.get(name, 0) + amount
    return all(returning.get(name, 0) >= amount for name, amount in amounts)


# --- rule 3: old leases are asked back ------------------------------------------------------------------------------


def leases_to_ask_back(
    waiting: Callable[[Collection[str]], Iterable[Claimant]],
    leases: Iterable[Lease],
    available: Mapping[str, int],
    *,
    ripe_before: int,
) -> tuple[list[Lease], int | None]:
    """The leases to ask for: as few as would serve the first request of each claimant that waits; and when the oldest of the leases was
    granted that are still too young to be asked for. `waiting` gives, in the order of their turns, the claimants that ask for any of some
    resources. It is asked for no more of them than there is something for.
    """
    ripe: list[Lease] = []
    young: int | None = None
    coming = {name: max(0, amount) for name, amount in available.items()}
    for lease in leases:
        if lease.asked_back or lease.worker.state is WorkerState.ENDING:
            _add(coming, lease.allocation.amounts)
        elif lease.request.keeps is None and not lease.blocked:
            if lease.granted_at <= ripe_before:
                ripe.append(lease)
            elif young is None or lease.granted_at < young:
                young = lease.granted_at
    if not ripe:
        return [], young
    # Those with the most leases give first; among theirs, the oldest.
    ripe.sort(key=_richest_first)
    names = {name for lease in ripe for name, _ in lease.allocation.amounts}
    asked: list[Lease] = []
    for claimant in waiting(names):
        # Those that come hold no less than this one.
        if not ripe or 0 < claimant.held >= ripe[0].request.claimant.held - 1:
            break
        short = _short_of(claimant.amounts, coming)
        for lease in list(ripe) if short else ():
            if not short:
                break
            if _owes(lease.request.claimant, claimant) and short.keys() & dict(
                lease.allocation.amounts
            ):
                ripe.remove(lease)
                asked.append(lease)
                _add(coming, lease.allocation.amounts)
                short = _short_of(claimant.amounts, coming)
        for name, amount in claimant.amounts:
            coming[name] = max(0, coming.get(name, 0) - amount)
    return asked, young


def _owes(holder: Claimant, claimant: Claimant) -> bool:
    """Whether fairness wants a lease of `holder` for `claimant`: with a difference of one, they would only trade places."""
    return holder is not claimant and (claimant.held == 0 or holder.held > claimant.held + 1)


def _richest_first(lease: Lease) -> tuple[int, int]:
    return -lease.request.claimant.held, lease.lease_id


def _short_of(amounts: Amounts, coming: Mapping[str, int]) -> dict[str, int]:
    return {
        name: amount - coming.get(name, 0)
        for name, amount in amounts
        if amount > coming.get(name, 0)
    }


def _add(amounts: dict[str, int], more: Amounts) -> None:
    for name, amount in more:
        amounts[name] = amounts.get(name, 0) + amount
