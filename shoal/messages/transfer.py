"""The conversations about objects of other nodes: a process with its own daemon, and daemons with each other.

::

    process ──Pull──► own daemon ──Ask──► daemon of a node that has the object
            ◄─Pulled─            ◄─Sending, then the bytes─
            ──PullDone──►        ◄─Elsewhere, or Missing─
            ──Freed──►           ──CopiesDead──► daemons that have copies ──Noted──►
                                 ──OrphansDead──► the daemon where their maker was ──Noted──►

The first is part of `messages.node`, and its messages are in the unions there. The second goes over `bulk` connections: frames of
one message each, and behind a `Sending` as many bytes as the object has from `start` on, in pieces of `chunk_bytes`, each
followed by its CRC-32 (4 bytes, little-endian) if `checked`.
"""

from __future__ import annotations

import enum

import msgspec

from shoal.messages.values import Location


class Why(enum.IntEnum):
    """What an object is wanted for; the smaller is served first."""

    GET = 0
    WAIT = 1
    ARGUMENTS = 2


# --- a process and its daemon ---------------------------------------------------------------------------------------


class Pull(msgspec.Struct, array_like=True, tag=90):
    """Client to node: bring an object of another node here. Answered by `Pulled`."""

    req: int
    location: Location
    creator: str
    why: Why = Why.GET


class Pulled(msgspec.Struct, array_like=True, tag=91):
    """Node to client: the copy is at `location`, and stays until `PullDone`. Or `error`, "ErrorClass: text"; `cause` says how the
    node ended that had the object, if it did."""

    req: int
    location: Location | None = None
    error: str = ""
    cause: str = ""


class PullDone(msgspec.Struct, array_like=True, tag=92):
    """Client to node: the copy is mapped and locked, or not wanted any more; sent once for each `Pull`, unless that failed."""

    req: int


class Freed(msgspec.Struct, array_like=True, tag=93):
    """Client to node, in clusters: these blocks of the client are dead, and so are all copies of them."""

    locations: list[Location]


# --- daemons --------------------------------------------------------------------------------------------------------


class Ask(msgspec.Struct, array_like=True, tag=0):
    """Send the object that is at `location` of the node at `place`, from byte `start` on.

    `whole`: not from a copy that is still arriving. `gave_up`: nodes that were named as having it, and had not.
    """

    place: str
    location: Location
    start: int
    peer: str
    whole: bool = False
    gave_up: list[str] = []


class Sending(msgspec.Struct, array_like=True, tag=1):
    """The bytes follow. `places`: who else has it, or is getting it, should this node die meanwhile."""

    chunk_bytes: int
    checked: bool
    places: list[str] = []


class Elsewhere(msgspec.Struct, array_like=True, tag=2):
    """Not now, since enough are being served; nodes that have it, or are getting it."""

    places: list[str]


class Missing(msgspec.Struct, array_like=True, tag=3):
    """It is not here."""

    reason: str


class CopiesDead(msgspec.Struct, array_like=True, tag=4):
    """The blocks at these locations of the node at `place` are dead. Answered by `Noted`."""

    place: str
    locations: list[Location]


class OrphansDead(msgspec.Struct, array_like=True, tag=6):
    """These blocks of the listener's node, whose makers have ended, are dead. Answered by `Noted`."""

    locations: list[Location]


class Noted(msgspec.Struct, array_like=True, tag=5):
    """Understood."""


Bulk = Ask | Sending | Elsewhere | Missing | CopiesDead | OrphansDead | Noted
