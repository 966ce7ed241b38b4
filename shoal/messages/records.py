"""What the control store writes down about actors and nodes, for its own restart or its successor.

A conversation with whoever reads it later: fields are added at the end, with a default, and none changes its meaning. A change
that an older version must not read raises `SCHEMA` of the SQLite storage and `VERSION` of the Redis storage.

The specification of an actor, which may hold the code of a class, is a record of its own (`ActorSpec`): it is written once, and these
on every change.
"""

from __future__ import annotations

import msgspec

from shoal.messages.node import ActorChange, Job, NodeRow


class LivingActor(msgspec.Struct, array_like=True, tag=1):
    """An actor that is not dead.

    Who watches it is not here: whoever does asks again when the control store is back. Nor is how often it was restarted,
    which is its incarnation.
    """

    job_id: bytes
    state: str
    incarnation: int
    address: str
    pid: int
    cause: str
    """Of the end of its last life."""
    draining: str
    """Why it ends when what was called has run; a wish that must not be forgotten, for nobody utters it twice."""
    ending: str
    """Why it said itself that it ends. Forgotten, its end would look like a crash, and it would be started again."""
    node_id: bytes = b""
    """Where this life was sent, if it was."""


class DeadActor(msgspec.Struct, array_like=True, tag=2):
    """One whose cause of death is remembered."""

    change: ActorChange


ActorRecord = LivingActor | DeadActor


class NodeRecord(msgspec.Struct, array_like=True):
    """A node that is in the cluster, and is expected to come back when the control store does."""

    row: NodeRow
    session: int


class HeardRecord(msgspec.Struct, array_like=True):
    """The last message of a node whose effect was written down, with that effect: whoever hears it again knows it."""

    session: int
    number: int


class JobRecord(msgspec.Struct, array_like=True):
    """A job, and the node of its driver. `ended` says why it is over, if it is: it is kept while detached actors of it live."""

    job: Job
    node_id: bytes
    ended: str = ""
