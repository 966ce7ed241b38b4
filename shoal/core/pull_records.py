"""What `core.pulls` keeps of each object, and what it wants done.

The picture of the states is in `core.pulls`; only its `Pulls` changes records.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable
from typing import Final, NamedTuple

from shoal.messages.transfer import Why
from shoal.messages.values import Location

Client = Hashable

FIRST_PAUSE_NS: Final = 20_000_000


class Key(NamedTuple):
    """An object: where its block is, and at which node."""

    place: str
    location: Location


# --- effects ----------------------------------------------------------------------------------------------------------


class Fetch(NamedTuple):
    """Get the bytes that are missing from `source`, into the block made for the first attempt."""

    key: Key
    attempt: int
    source: str
    whole: bool
    gave_up: tuple[str, ...]


class Stop(NamedTuple):
    """Break off an attempt. Its outcome is still to be reported."""

    key: Key
    attempt: int


class Discard(NamedTuple):
    """Free the block of a copy, whole or not."""

    key: Key


class Answer(NamedTuple):
    """Answer a wish: the copy, or why there is none. `cause`: how the node ended that had the object."""

    client: Client
    req: int
    location: Location | None
    error: str = ""
    cause: str = ""


Effect = Fetch | Stop | Discard | Answer


# --- state ------------------------------------------------------------------------------------------------------------


class State(enum.Enum):
    """See the module's picture. GONE is not in the books any more."""

    QUEUED = "queued"
    FETCHING = "fetching"
    RETRYING = "retrying"
    ENDING = "ending"
    WHOLE = "whole"
    GONE = "gone"


MOVES: Final[dict[State, frozenset[State]]] = {
    State.QUEUED: frozenset({State.FETCHING, State.GONE}),
    State.FETCHING: frozenset({State.WHOLE, State.RETRYING, State.ENDING, State.GONE}),
    State.RETRYING: frozenset({State.FETCHING, State.GONE}),
    State.ENDING: frozenset({State.QUEUED, State.GONE}),
    State.WHOLE: frozenset({State.GONE}),
    State.GONE: frozenset(),
}

UNDER_WAY: Final = frozenset({State.FETCHING, State.RETRYING, State.ENDING})
"""These have a block, or are about to, and count against the limits."""


class Stage(enum.Enum):
    """How much of an object is here, for those who would get it from this node."""

    NONE = 0
    PENDING = 1
    RECEIVING = 2
    WHOLE = 3


class Copy:
    """One object, from the first wish until its copy is dropped.

    Attributes:
        why: The most urgent of its wishes.
        wishes: Not answered yet, as (client, number).
        pins: Answered, and not mapped yet.
        holders: Where it may be got, the origin first; those that had it not are taken out.
        attempt: Number of the latest fetch; no two fetches have the same.
        asked: Of these, who was asked since the last pause.
        failures: Of these, how often each failed in a row without sending a byte.
        failing_since: And when the first of these failures was.
        gave_up: Who was named by the origin in vain.
        receiving: The source has begun to send.
        dead: The object is dead: its copy goes when nobody has it pinned.
    """

    __slots__ = (
        "asked",
        "attempt",
        "cause",
        "dead",
        "failing_since",
        "failures",
        "gave_up",
        "holders",
        "key",
        "location",
        "pause_ns",
        "pins",
        "reason",
        "receiving",
        "resume_at",
        "source",
        "state",
        "why",
        "wishes",
    )

    def __init__(self, key: Key, why: Why) -> None:
        self.key = key
        self.why = why
        self.state = State.QUEUED
        self.wishes: dict[tuple[Client, int], None] = {}
        self.pins: dict[tuple[Client, int], None] = {}
        self.attempt = 0
        self.source = ""
        self.receiving = False
        self.location: Location | None = None
        self.dead = False
        self.forget_sources()

    def forget_sources(self) -> None:
        """Begin anew."""
        self.holders: dict[str, None] = {self.key.place: None}
        self.asked: dict[str, None] = {}
        self.failures: dict[str, int] = {}
        self.failing_since: dict[str, int] = {}
        self.gave_up: dict[str, None] = {}
        self.pause_ns = FIRST_PAUSE_NS
        self.resume_at = 0
        self.reason = ""
        self.cause = ""

    @property
    def size(self) -> int:
        return self.key.location.size

    def __repr__(self) -> str:
        return (
            f"<copy of {self.key}: {self.state.value}, attempt {self.attempt}, {len(self.wishes)} wishes, "
            f"{len(self.pins)} pins, from {self.source or 'nowhere'}{', dead' if self.dead else ''}>"
        )
