"""What counts on an object, in words: clauses for what one process tells (see `shoal.messages.inventory`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Container

from shoal.messages import inventory
from shoal.messages.inventory import Holding
from shoal.messages.state import ObjectRow


def clauses(
    row: ObjectRow, name: Callable[[str], str], told: Container[str] = frozenset()
) -> list[str]:
    """Why the process that told of it needs an object. `name` names processes by their addresses; borrowers that are `told` have told of
    the object themselves, and are not named again."""
    who = name(row.process)
    holdings = row.holdings
    if row.owner == row.process:
        found = [
            _of_owner(holding, who) for holding in holdings if holding.kind != inventory.BORROWED
        ]
        borrowers = _borrowers(row, name, told)
        return [*found, borrowers] if borrowers else found
    gone = [one for one in holdings if one.kind == inventory.OWNER_GONE]
    found = [f"its owner has ended, and {who} has not let go of it" for _ in gone]
    age = age_s(row)
    since = "" if age is None else f" (for {age:.1f} s)"
    parts = [_of_borrower(holding) for holding in holdings if holding.kind != inventory.OWNER_GONE]
    if parts:
        found.append(f"borrowed by {who}{since}, {', and '.join(parts)}")
    return found


def _of_owner(holding: Holding, who: str) -> str:
    match holding.kind:
        case inventory.ACTOR_HANDLE:
            return f"{who} has {_handles(holding)}"
        case inventory.PINNED_IN_MEMORY:
            return view_in(who)
        case inventory.LOCAL_REFERENCE:
            return f"{who} has {_count(holding.count, 'reference')}"
    return _text(holding)


def _of_borrower(holding: Holding) -> str:
    match holding.kind:
        case inventory.ACTOR_HANDLE:
            return f"which has {_handles(holding)}"
        case inventory.PINNED_IN_MEMORY:
            return "where a view of it is still in use"
        case inventory.LOCAL_REFERENCE:
            return f"which has {_count(holding.count, 'reference')}"
    return f"where it is {_text(holding)}"


def _handles(holding: Holding) -> str:
    return (
        f"{_count(holding.count, 'handle')} of the actor"
        if holding.count
        else "no handle of the actor"
    )


def _text(holding: Holding) -> str:
    match holding.kind:
        case inventory.GENERATOR_ITEM:
            return "an item that nobody has taken from its generator yet"
        case inventory.IN_TRANSIT:
            return "part of a message that is on its way"
    return holding.text


def _borrowers(row: ObjectRow, name: Callable[[str], str], told: Container[str]) -> str:
    untold = [name(address) for address in row.borrowed_by if address not in told]
    more = row.borrowers - len(row.borrowed_by)
    if more > 0:
        untold.append(f"{more:,} more")
    return f"borrowed by {', '.join(untold)}" if untold else ""


def view_in(who: str) -> str:
    """The clause about a view."""
    return f"a view of it is still in use in {who}"


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def location_of(row: ObjectRow) -> str:
    """Where the value is."""
    if row.handle:
        return "ACTOR"
    if row.state != "READY":
        return row.state
    return "INLINE" if row.location is None else "SHARED_MEMORY"


def age_s(row: ObjectRow) -> float | None:
    """For how long the process has known it, in seconds."""
    return max(0.0, (time.time_ns() - row.since_ns) / 1e9) if row.since_ns else None
