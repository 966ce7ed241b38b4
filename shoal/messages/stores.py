"""Between a client and its node daemon: how much of the object store each may use, what goes to disk when it is full, and what becomes
of the objects of processes that have ended. The numbers of these messages are those of a part of `messages.node`.
"""

from __future__ import annotations

import msgspec

from shoal.messages.values import Location


class QuotaRequest(msgspec.Struct, array_like=True, tag=50):
    """Ask for at least `needed` more bytes of object store, for an object of `size`: what the client has already may be the rest."""

    req: int
    needed: int
    size: int = 0


class QuotaGranted(msgspec.Struct, array_like=True, tag=51):
    """The answer: `granted` bytes. With 0, either `on_disk` is set: the object is to be made in the spill folder, without quota; or the
    store stayed full, and `explanation` names the biggest holders; `disk_full`: the disk took nothing either."""

    req: int
    granted: int
    explanation: str = ""
    on_disk: bool = False
    disk_full: bool = False


class QuotaReturn(msgspec.Struct, array_like=True, tag=52):
    """Bytes given back to the node. `asked`: this answers a `QuotaWanted`; every one of those is answered, with 0 if nothing is idle, so
    that the node knows when all have answered."""

    returned: int
    asked: bool = False


class QuotaWanted(msgspec.Struct, array_like=True, tag=53):
    """Node to client: somebody waits for room; give back what is idle, up to `wanted` bytes. `itself`: the client is among those
    who wait, and keeps the quota that it does not use: it counts on that. Who holds no quota is told, too, now and then, with 0
    `wanted`: it may have references to what others have made, and not know that nobody can reach them."""

    wanted: int
    itself: bool = False


class SpillWanted(msgspec.Struct, array_like=True, tag=70):
    """Node to client: nobody has idle memory left, and somebody waits; write `wanted` bytes of objects to disk and give their quota back.
    Answered by one `Spilled`; there is at most one such order at a time."""

    wanted: int


class Spilled(msgspec.Struct, array_like=True, tag=71):
    """The answer, when the writing is through: `freed` bytes of quota come back with it, and `written` bytes are on disk for them. `error`
    says why it stopped early, if the disk did not take more. Less than was wanted without an error: nothing more can be
    spilled now. Unasked (an object that was to be made on disk found no room there) it tells of an error only."""

    freed: int
    written: int
    error: str = ""


class BringBack(msgspec.Struct, array_like=True, tag=72):
    """Client to node: a segment that was spilled is not in the spill folder; bring it back from the remote target. Answered by
    `Reply`, when it is there."""

    req: int
    segment: str


class AwayDead(msgspec.Struct, array_like=True, tag=73):
    """Client to node: these segments of the client, which were not in the spill folder, are dead."""

    segments: list[str]


class FreeOrphans(msgspec.Struct, array_like=True, tag=54):
    """Blocks whose creating process has ended, to be freed by the node where it was: that of `creator`, or this one."""

    locations: list[Location]
    creator: str = ""


class WhoUses(msgspec.Struct, array_like=True, tag=55):
    """Node to every client: these processes (number of the question, address, cause) have ended, and objects are left that they made
    or owned. Answered by an `InUse` for each."""

    ended: list[tuple[int, str, str]]


class InUse(msgspec.Struct, array_like=True, tag=56):
    """Which objects of the process that question `number` is about this client still counts on; what no client names is freed."""

    number: int
    locations: list[Location]


class Abandoned(msgspec.Struct, array_like=True, tag=57):
    """Client to node: blocks that this client made for the process at `owner`, which has ended and will not free them."""

    owner: str
    locations: list[Location]


class FreeAbandoned(msgspec.Struct, array_like=True, tag=58):
    """Node to client: nobody uses these abandoned blocks any more."""

    owner: str
    locations: list[Location]


class LetGo(msgspec.Struct, array_like=True, tag=59):
    """Client to node: it has let go of objects that these processes, which have ended, made or owned; nobody else will say when
    they are dead, so it is time to ask again."""

    addresses: list[str]
