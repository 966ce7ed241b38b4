"""What the table of placement groups keeps and decides: its limits, states, effects and records. See `core.groups`."""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Final, NamedTuple

from shoal.core.bundle_placing import Placed
from shoal.core.resources import Amounts
from shoal.messages.placement import GroupSpec


class GroupLimits(NamedTuple):
    """The bounds that the table keeps. Times are nanoseconds."""

    prepare_timeout_ns: int
    """How long nodes may take to answer in a round."""
    retry_ns: int
    """How soon a group that found no way, or was refused, is tried again; doubled for each time in a row, up to 16 times that where
    there was no way, and up to `retry_most_ns` after refusals."""
    retry_most_ns: int
    remembered: int
    """Removed groups that are remembered."""


class GroupState(Enum):
    """Of a group; the values are what users see."""

    PENDING = "PENDING"
    CREATED = "CREATED"
    RESCHEDULING = "RESCHEDULING"
    REMOVED = "REMOVED"


MOVES: Final[dict[GroupState, frozenset[GroupState]]] = {
    GroupState.PENDING: frozenset({GroupState.CREATED, GroupState.REMOVED}),
    GroupState.CREATED: frozenset({GroupState.RESCHEDULING, GroupState.REMOVED}),
    GroupState.RESCHEDULING: frozenset({GroupState.CREATED, GroupState.REMOVED}),
    GroupState.REMOVED: frozenset(),
}


# --- effects --------------------------------------------------------------------------------------------------------


class Prepare(NamedTuple):
    """Ask a node to reserve bundles; report `on_prepared` or `on_refused`."""

    node_id: bytes
    group_id: bytes
    attempt: int
    bundles: tuple[tuple[int, Amounts], ...]


class Commit(NamedTuple):
    """What a node prepared in this round may be used."""

    node_id: bytes
    group_id: bytes
    attempt: int


class Release(NamedTuple):
    """A node gives up what it reserved in this round; `bundles.ALL`: in all rounds."""

    node_id: bytes
    group_id: bytes
    attempt: int


class GroupChanged(NamedTuple):
    """The group's record has changed: write it down, then tell."""

    group_id: bytes


class GroupImpossible(NamedTuple):
    """No cluster like this one could hold the group; its driver is told, once for each reason."""

    group_id: bytes
    reason: str


Effect = Prepare | Commit | Release | GroupChanged | GroupImpossible


# --- records --------------------------------------------------------------------------------------------------------


class Round:
    """One try to reserve what a group misses. `unanswered` are the nodes that have not said yes, `versions` the rows that show
    what the others have reserved."""

    __slots__ = ("attempt", "deadline", "placed", "unanswered", "versions")

    def __init__(self, attempt: int, placed: list[Placed], deadline: int) -> None:
        self.attempt = attempt
        self.placed = placed
        self.deadline = deadline
        self.unanswered = dict.fromkeys(item.node_id for item in placed)
        self.versions: dict[bytes, int] = {}


class Group:
    """A placement group. `places` has a node for each bundle, b"" where there is none."""

    __slots__ = (
        "attempt",
        "cause",
        "failures",
        "generation",
        "places",
        "refusals",
        "retry_at",
        "round",
        "seen",
        "since",
        "spec",
        "state",
        "story",
        "told",
    )

    def __init__(self, spec: GroupSpec, now: int) -> None:
        self.spec = spec
        self.state = GroupState.PENDING
        self.places: list[bytes] = [b""] * len(spec.bundles)
        self.attempt = 0
        self.cause = ""
        self.round: Round | None = None
        self.since = now
        # In a row: how often a node had no room after all, and how often no way was found.
        self.refusals = 0
        self.failures = 0
        self.retry_at = now
        # What it was last told to be impossible for, and in which generation of the view that was found out; and the state of the
        # table (see `GroupTable`) in which there was no way.
        self.told = ""
        self.generation = -1
        self.seen = -1
        self.story: deque[tuple[int, GroupState]] = deque([(now, self.state)], maxlen=16)

    @property
    def missing(self) -> list[int]:
        """Bundles without a node."""
        return [index for index, node_id in enumerate(self.places) if not node_id]
