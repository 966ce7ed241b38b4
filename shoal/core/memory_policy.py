"""What the memory monitor of a node does when memory is short: who ends, and why that one.

A pure function of a snapshot. Rules, in this order:

Rule 1. What nobody counts on goes first: workers that idle are asked to retire, if that frees what is worth it.
Rule 2. A worker whose end would free too little is left alone, unless all are small and have much together.
Rule 3. Tasks that may be tried again, before actors that may restart, before tasks that may not be tried again, before other actors.
Rule 4. Among those, the owner that has most of them here gives one up: so each owner keeps as many as the others, and at least one that
        gets done.
Rule 5. Among its own, the one that began last: it has done least.

There is one victim at a time; whether that was enough is seen when it is gone. The daemon and the zygote are not in a snapshot.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from enum import IntEnum
from typing import Final, NamedTuple

_SMALL_PART: Final = 256
"""A worker that has less than one part in so many of the limit is small (rule 2)."""

_MUCH_PART: Final = 16
"""Small workers that have one part in so many of the limit together have much."""


class Kind(IntEnum):
    """What a worker runs, those first whose end hurts least."""

    TASK = 0
    """A task that may be tried again."""
    ACTOR = 1
    """An actor that may restart."""
    LAST_TASK = 2
    """A task that may not be tried again."""
    LAST_ACTOR = 3
    """An actor that may not restart."""


_PLURALS: Final = {
    Kind.TASK: "tasks that may be tried again",
    Kind.ACTOR: "actors that may restart",
    Kind.LAST_TASK: "tasks",
    Kind.LAST_ACTOR: "actors",
}


class Occupant(NamedTuple):
    """A worker in a snapshot.

    Attributes:
        kind: None if it idles.
        owner: On whose behalf it runs that.
        since: When that began, in nanoseconds.
        private_bytes: Its memory that nobody shares, so not what it has mapped of the object store.
    """

    worker_id: bytes
    kind: Kind | None
    owner: Hashable
    since: int
    private_bytes: int


class Retire(NamedTuple):
    """Ask these idle workers to end."""

    worker_ids: list[bytes]


class Kill(NamedTuple):
    """End this worker. `why` is a sentence; `alone`: no other worker has enough to make a difference."""

    worker_id: bytes
    why: str
    alone: bool


class Wait(NamedTuple):
    """Nobody is to end. `why` is a sentence."""

    why: str


Decision = Retire | Kill | Wait


def decide(occupants: Sequence[Occupant], limit_bytes: int) -> Decision:
    """Whom to end, when no more than `limit_bytes` may be used and nearly that is."""
    worth = max(1, limit_bytes // _SMALL_PART)
    idle = [one for one in occupants if one.kind is None and one.private_bytes >= worth]
    if idle:
        return Retire(sorted(one.worker_id for one in idle))
    busy = [one for one in occupants if one.kind is not None]
    large = [one for one in busy if one.private_bytes >= worth]
    if not large:
        together = sum(one.private_bytes for one in busy)
        if together < max(1, limit_bytes // _MUCH_PART):
            return Wait(
                "No worker of this node has enough memory that ending it would help: others use it."
            )
        large = busy
    kind = min(one.kind for one in large if one.kind is not None)
    groups: dict[Hashable, list[Occupant]] = {}
    for one in large:
        if one.kind is kind:
            groups.setdefault(one.owner, []).append(one)
    group = max(groups.values(), key=lambda members: (len(members), _age_key(_newest(members))))
    victim = _newest(group)
    return Kill(victim.worker_id, _why(kind, large, group, len(groups)), alone=len(large) == 1)


def _age_key(one: Occupant) -> tuple[int, bytes]:
    return one.since, one.worker_id


def _newest(members: Sequence[Occupant]) -> Occupant:
    return max(members, key=_age_key)


def _why(kind: Kind, large: list[Occupant], group: list[Occupant], owners: int) -> str:
    if len(large) == 1:
        return "It is the only worker here whose end would free much."
    those = _PLURALS[kind]
    if kind in {Kind.LAST_TASK, Kind.LAST_ACTOR}:
        prefix = "Nothing here may be tried again. "
    else:
        prefix = ""
    if len(group) == 1:
        if owners == 1:
            return f"{prefix}It is the only one of the {those} here whose end would free much."
        return f"{prefix}Of the {those} here it began last."
    if owners == 1:
        return f"{prefix}Of the {len(group)} {those} here it began last."
    return f"{prefix}Its owner has {len(group)} {those} here, as many as anybody, and of those it began last."
