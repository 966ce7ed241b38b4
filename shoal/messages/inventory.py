"""What processes and nodes tell of the memory of objects: what counts on each, where its bytes are, and which blocks there are.

Parts of the answers of a survey (see `messages.state`). Sizes are bytes, times nanoseconds since the epoch, 0 if nobody knows.
"""

from __future__ import annotations

from typing import Final

import msgspec

from shoal.messages.values import Location

# --- why an object is there -----------------------------------------------------------------------------------------

ACTOR_HANDLE: Final = "ACTOR_HANDLE"
"""Handles of an actor, which keep it alive; no object, but counted like one."""

PINNED_IN_MEMORY: Final = "PINNED_IN_MEMORY"
"""The process looks at its bytes: an array (or another view of them) is alive."""

USED_BY_PENDING_TASK: Final = "USED_BY_PENDING_TASK"
"""An argument, or inside one, of a task or call that has not finished."""

LOCAL_REFERENCE: Final = "LOCAL_REFERENCE"
"""Variables and containers of the process hold references."""

CAPTURED_IN_OBJECT: Final = "CAPTURED_IN_OBJECT"
"""A reference to it is inside another object, a remote function, or what an actor was made of."""

GENERATOR_ITEM: Final = "GENERATOR_ITEM"
"""An item of a generator that was not taken yet."""

BORROWED: Final = "BORROWED"
"""Said by the owner: other processes hold references."""

OWNER_GONE: Final = "OWNER_GONE"
"""Said by a borrower: the owner has ended, and the bytes stay until this process is asked and does not use them."""

IN_TRANSIT: Final = "IN_TRANSIT"
"""A message that has to do with it is on its way."""

KINDS: Final = (
    ACTOR_HANDLE,
    PINNED_IN_MEMORY,
    USED_BY_PENDING_TASK,
    LOCAL_REFERENCE,
    CAPTURED_IN_OBJECT,
    GENERATOR_ITEM,
    BORROWED,
    OWNER_GONE,
    IN_TRANSIT,
)
"""All kinds. The first that a process has of an object is called *the* type of its reference."""


class Holding(msgspec.Struct, array_like=True, gc=False):
    """Something in one process that counts on an object. `text` says what, if the kind does not: a clause."""

    kind: str
    count: int = 1
    text: str = ""


# --- what there is, in numbers --------------------------------------------------------------------------------------


class ObjectGroup(msgspec.Struct, array_like=True, gc=False):
    """Objects that one process owns, counted: those made at one place of the program, with one kind of reference."""

    call_site: str
    """"" if it was not recorded."""
    maker: str
    """The name of the task that makes them; "" for what was put, and for results that are there."""
    kind: str
    where: str
    count: int
    size: int


class Arena(msgspec.Struct, array_like=True, gc=False):
    """The shared memory of one process."""

    quota: int = 0
    backed: int = 0
    live: int = 0
    live_blocks: int = 0
    freed: int = 0
    """Of dead objects that somebody still looks at."""
    spilled: int = 0
    """Of live objects that are on disk, and not in `live`."""


# --- blocks ---------------------------------------------------------------------------------------------------------

MADE: Final = "MADE"
"""Live in the shared memory of the process that tells it, which does not count on it itself: made for `owner`, or ("") for nobody known."""

COUNTED: Final = "COUNTED"
"""Made by another process, and counted on by the one that tells it."""

FREED: Final = "FREED"
"""Of a dead object that somebody still looks at: told by the process that made it."""

VIEWED: Final = "VIEWED"
"""Looked at by the process that tells it."""


class Block(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A block as a process knows it. `place` is where its node is; `owner` is told with `MADE`."""

    kind: str
    place: str
    location: Location
    owner: str = ""


class ProcessMemory(msgspec.Struct, array_like=True):
    """What one process tells. `who` is what to call it: driver, worker, or which actor."""

    address: str
    pid: int
    who: str
    arena: Arena
    groups: list[ObjectGroup]
    """Of all objects that it owns, also of those that are not listed one by one."""
    blocks: list[Block]
    blocks_left_out: int = 0
    spilled: list[str] = []
    """Its segments that are on disk."""


class Copy(msgspec.Struct, array_like=True, gc=False):
    """An object of another node, brought here: `location` is that of the original, at `place`."""

    place: str
    location: Location
    whole: bool
    pins: int


class Estate(msgspec.Struct, array_like=True, gc=False):
    """What a process left that has ended: names and bytes of segments, in memory and on disk."""

    address: str
    segments: list[tuple[str, int]]
    on_disk: list[tuple[str, int]] = []


class StoreMemory(msgspec.Struct, array_like=True):
    """What a node daemon tells of the store of its node."""

    node_id: bytes
    place: str
    capacity: int
    held: list[tuple[str, int]]
    """Who has drawn how much of the capacity, by the digits of its name."""
    arena: Arena
    """The daemon's own, which has the copies."""
    copies: list[Copy]
    copies_count: int
    estates: list[Estate]
    strays: list[tuple[str, int]]
    """Files that belong to nobody who is known, and their bytes."""
    unknown: list[Location]
    """Blocks of the daemon's own that are no copy."""
    freed: list[Location]
    """Those of copies that are dropped, and that somebody still looks at."""
