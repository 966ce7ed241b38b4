"""Between a client and its node daemon: how much of the object store each may use, and what becomes of the objects of processes that
have ended. The numbers of these messages are those of a part of `messages.node`.
"""

from __future__ import annotations

import msgspec

from shoal.messages.values import Location


class QuotaRequest(msgspec.Struct, array_like=True, tag=50):
    """Ask for at least `needed` more bytes of object store."""

    req: int
    needed: int


class QuotaGranted(msgspec.Struct, array_like=True, tag=51):
    """The answer: `granted` bytes (0: the store stayed full; `explanation` names the biggest holders)."""

    req: int
    granted: int
    explanation: str = ""


class QuotaReturn(msgspec.Struct, array_like=True, tag=52):
    """Bytes given back to the node."""

    returned: int


class QuotaWanted(msgspec.Struct, array_like=True, tag=53):
    """Node to client: somebody waits for room; give back what is idle, up to `wanted` bytes. `itself`: the client is among those
    who wait, and keeps the quota that it does not use: it counts on that."""

    wanted: int
    itself: bool = False


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
