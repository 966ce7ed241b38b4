"""Where work may run, and what a cluster's daemons tell each other so that they can choose: strategies, rows, groups.

A strategy is part of a `Shape`, so it is frozen and hashable: two tasks with equal strategies share leases. No strategy (None)
is the default: the local node first, pack until nodes are half full, then spread.

A row is the latest state of one node. It has a version, which the node raises whenever it says something new; whoever has
a row throws away older ones of the same node.
"""

from __future__ import annotations

import msgspec

# --- strategies -----------------------------------------------------------------------------------------------------


class Spread(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """The emptiest node that has room."""


class NodeAffinity(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """A certain node. `soft`: if that node is gone or could never serve it, anywhere. `spill`: also when it is merely busy.
    `fail`: rather than wait for the node while it is busy, fail."""

    node_id: bytes
    soft: bool = False
    spill: bool = False
    fail: bool = False


class LabelTerm(msgspec.Struct, array_like=True, frozen=True):
    """A condition on one label: `op` is "in", "!in", "exists" or "!exists"; the last two have no values."""

    key: str
    op: str
    values: tuple[str, ...] = ()


Selector = tuple[LabelTerm, ...]
"""Conditions that must all hold, sorted by key. Empty: any node."""


class NodeLabels(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """Nodes with certain labels. `choices` are tried in their order: the first that has a node with room is taken, or else the
    first that has a node at all. Soft conditions are a choice with them, before one without. `spread`: as in `Spread`, within
    a choice."""

    choices: tuple[Selector, ...]
    spread: bool = False


class InBundle(msgspec.Struct, array_like=True, frozen=True, tag=4):
    """Out of what a placement group has reserved: bundle `index`, or any of its bundles (-1). `captures`: what runs there submits its
    own tasks and actors into the same group, unless it says otherwise."""

    group_id: bytes
    index: int = -1
    captures: bool = False


Strategy = Spread | NodeAffinity | NodeLabels | InBundle

# --- rows -----------------------------------------------------------------------------------------------------------


class StoreRow(msgspec.Struct, array_like=True, frozen=True):
    """How full the object store of a node is, in bytes: at most a few seconds old."""

    capacity: int
    used: int
    """Handed out to processes, whether they use all of it or not."""
    on_disk: int = 0
    """What its spill folder takes now."""
    written: int = 0
    """What was spilled since the node began, without objects that were made on disk."""
    spent_ms: int = 0
    """How long processes have written that, added up."""


class ViewRow(msgspec.Struct, array_like=True):
    """The latest state of a node, as those who choose nodes need it. Amounts are in 1/10,000.

    `waiting` counts the requests in its lease queue that could run there, `servers` how many leases it has out, and `mean_run_us`
    is how long a lease of it lasts, a moving average: together they say how long a newcomer would wait.
    """

    node_id: bytes
    version: int
    total: dict[str, int]
    available: dict[str, int]
    labels: dict[str, str] = {}
    waiting: int = 0
    servers: int = 0
    mean_run_us: int = 0
    draining: bool = False
    """It takes nothing new."""
    groups: dict[bytes, dict[str, int]] = {}
    """By placement group, what is free of what the group may use here."""
    store: StoreRow | None = None


# --- placement groups -----------------------------------------------------------------------------------------------


class Bundle(msgspec.Struct, array_like=True, frozen=True):
    """What is reserved together on one node: amounts as in a `Shape`, and labels that the node must have."""

    resources: tuple[tuple[str, int], ...]
    selector: Selector = ()


class GroupSpec(msgspec.Struct, array_like=True):
    """A placement group as it was asked for. `strategy` is "PACK", "SPREAD", "STRICT_PACK" or "STRICT_SPREAD"."""

    group_id: bytes
    bundles: list[Bundle]
    strategy: str = "PACK"
    name: str = ""
    namespace: str = ""
    detached: bool = False
    job_id: bytes = b""
    target: bytes = b""
    """The node that is preferred, if any."""


class GroupRecord(msgspec.Struct, array_like=True):
    """What the control store writes down about a group, and tells those who ask. `state` is "PENDING", "CREATED",
    "RESCHEDULING" or "REMOVED"; `places` has a node for each bundle (b"" where there is none now); `attempt` numbers the
    rounds of reservation, so that late answers are known."""

    spec: GroupSpec
    state: str
    places: list[bytes]
    attempt: int = 0
    cause: str = ""
    """Why it was removed."""


class GroupInfo(msgspec.Struct, array_like=True):
    """A group, and why it is not there yet: a sentence, "" if it is."""

    record: GroupRecord
    waits: str


# --- between a client and its node ------------------------------------------------------------------------------------


class GroupCreate(msgspec.Struct, array_like=True, tag=110):
    """Make a placement group. Answered by `Reply` once it is accepted, not once it is reserved. The node fills in the job."""

    req: int
    """0: there is no answer; what becomes of it `GroupChange` tells, which whoever makes a group gets without asking."""
    spec: GroupSpec


class GroupRemove(msgspec.Struct, array_like=True, tag=111):
    """Remove a placement group, and end what runs in it. Answered by `Reply`, unless `req` is 0."""

    req: int
    group_id: bytes


class GroupQuery(msgspec.Struct, array_like=True, tag=112):
    """Which groups there are: all, the one of an id, or the one that has a name. Answered by `Reply` with a list of `GroupInfo`."""

    req: int
    group_id: bytes = b""
    name: str = ""
    namespace: str = ""


class GroupWatch(msgspec.Struct, array_like=True, tag=113):
    """Send `GroupChange` for this group: now and on every change."""

    group_id: bytes


class GroupChange(msgspec.Struct, array_like=True, tag=114):
    """State and places of a placement group, as in `GroupRecord`. One that nobody knows (any more) is "REMOVED". `cause` is a clause."""

    group_id: bytes
    state: str
    places: list[bytes]
    cause: str = ""


# --- between a node and the control store -----------------------------------------------------------------------------


class BundleHeld(msgspec.Struct, array_like=True):
    """A reservation that a node has, as it claims it when the control store comes back."""

    group_id: bytes
    index: int
    attempt: int
    committed: bool
