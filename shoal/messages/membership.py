"""How a node daemon and a control store in another process keep up the way between them, and what they say goes over it.

::

    node                                           control store
      │ (preface, handshake)                              │
      │ Join ───────────────────────────────────────────► │
      │ ◄─────────────────────────── Joined, or NotWanted │
      │ Said(number, post or Ask) ──────────────────────► │   written down, then
      │ ◄───────────────────────────────── Taken(number)  │
      │ ◄──────────────── Given(number, order or Answer)  │
      │ Taken(number) ──────────────────────────────────► │
      │ Latest(row) ────────────────────────────────────► │   not numbered: only the newest matters
      │ ◄──────────────────────────────────── View(rows)  │
      │ ViewTaken ──────────────────────────────────────► │   the next View leaves after this
      │ Alive ──────────────────────────────────────────► │
      │ ◄───────────────────────────────────────── Alive  │

Whoever only looks (`shoal status`) sends `Ask` instead of `Join`, and gets `Answer`.

After a connection has broken both say, in `Join` and `Joined`, what they have of the other, and send the rest again. See
`core.streams`.
"""

from __future__ import annotations

import msgspec

from shoal.messages.control import Call, Order, Post
from shoal.messages.node import NodeRow
from shoal.messages.placement import BundleHeld, ViewRow

# --- node to control store ------------------------------------------------------------------------------------------


class Join(msgspec.Struct, array_like=True, tag=1):
    """Be a node of the cluster, for the first time or again."""

    row: NodeRow
    session: int
    """Drawn when the daemon started."""
    version: str
    again: bool
    """It had joined before."""
    control: int
    """The session of the control store that it had joined, 0 if none."""
    taken: int
    """The last message that it has of that one."""
    oldest_ask: int
    """The first question of which it has no answer; whatever came before needs none."""
    lives: list[tuple[bytes, int]]
    """(actor, incarnation) of each life that it has."""
    bundles: list[BundleHeld] = []
    """What it has reserved for placement groups."""


class Ask(msgspec.Struct, array_like=True, tag=100):
    """A question. `req` ascends, and names it in the answer."""

    req: int
    call: Call


class Said(msgspec.Struct, array_like=True, tag=2):
    """A numbered post or question."""

    number: int
    message: Post | Ask


class Latest(msgspec.Struct, array_like=True, tag=3):
    """The node's row, as it is now."""

    row: ViewRow


class ViewTaken(msgspec.Struct, array_like=True, tag=4):
    """The last `View` was taken."""


class Leave(msgspec.Struct, array_like=True, tag=5):
    """The node ends. `reason` is a clause: "was stopped". `stopped`: it was told to."""

    reason: str
    stopped: bool = True


# --- both ways ------------------------------------------------------------------------------------------------------


class Taken(msgspec.Struct, array_like=True, tag=10):
    """Everything up to this number has been taken; on the side of the control store, what follows from it is durable."""

    number: int


class Alive(msgspec.Struct, array_like=True, tag=11):
    """A heartbeat."""


# --- control store to node ------------------------------------------------------------------------------------------


class Joined(msgspec.Struct, array_like=True, tag=20):
    """The node is in the cluster. Of `nodes` that come or go after this, `Given` messages tell."""

    cluster_id: bytes
    cluster_name: str
    control: int
    """The session of the control store: another number means that it was started anew."""
    taken: int
    """The last message that it has of this node."""
    heartbeat_s: float
    timeout_s: float
    nodes: list[NodeRow]


class NotWanted(msgspec.Struct, array_like=True, tag=21):
    """The node may not join, or must end: a sentence that says why."""

    reason: str


class Answer(msgspec.Struct, array_like=True, tag=101):
    """The answer to an `Ask`: MessagePack of what `ANSWERS` says, or an error, as in `Reply`."""

    req: int
    result: bytes
    error: str


class Given(msgspec.Struct, array_like=True, tag=22):
    """A numbered order or answer. `missed`: so many events before it were superseded, since the node did not take them."""

    number: int
    missed: int
    message: Order | Answer


class View(msgspec.Struct, array_like=True, tag=23):
    """As in `ViewChanged`."""

    rows: list[ViewRow]
    current: bool


class EncodedView(msgspec.Struct, array_like=True, tag=23):
    """A `View` as it is made: its rows are encoded already. The same bytes."""

    rows: list[msgspec.Raw]
    current: bool


ToControl = Join | Ask | Said | Latest | ViewTaken | Leave | Taken | Alive
ToMember = Joined | Answer | NotWanted | Given | View | Taken | Alive
