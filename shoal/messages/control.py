"""Between a node daemon and the control store: actors, names, keys and values, jobs, nodes.

On the head the two are in one process and hand each other these very messages; a control store of its own speaks them
over a socket. Calls are answered; posts are not. Both arrive in the order in which they were made.
"""

from __future__ import annotations

import msgspec

from shoal.messages.node import ActorChange, ActorSpec, Job, NodeRow

# --- calls ----------------------------------------------------------------------------------------------------------


class CreateActor(msgspec.Struct, array_like=True, tag=1):
    """Answered by `ActorInfo`; fails with "ActorAlreadyExistsError: …"."""

    spec: ActorSpec
    job_id: bytes
    get_if_exists: bool


class FindActor(msgspec.Struct, array_like=True, tag=2):
    """Answered by `ActorInfo`, or none."""

    namespace: str
    name: str


class ListNames(msgspec.Struct, array_like=True, tag=3):
    """Answered by a list of (namespace, name); `namespace` none means all."""

    namespace: str | None


class PutKey(msgspec.Struct, array_like=True, tag=4):
    """Answered by whether the key is new."""

    namespace: str
    key: bytes
    value: bytes
    overwrite: bool


class GetKey(msgspec.Struct, array_like=True, tag=5):
    """Answered by bytes, or none."""

    namespace: str
    key: bytes


class DeleteKey(msgspec.Struct, array_like=True, tag=6):
    """Answered by how many keys there were."""

    namespace: str
    key: bytes
    by_prefix: bool


class ListKeys(msgspec.Struct, array_like=True, tag=7):
    """Answered by the keys with a prefix."""

    namespace: str
    prefix: bytes


class ListNodes(msgspec.Struct, array_like=True, tag=8):
    """Answered by a list of `NodeRow`."""


# --- posts: node to control store -----------------------------------------------------------------------------------


class NodeState(msgspec.Struct, array_like=True, tag=20):
    """A node introduces itself, or its resources have changed."""

    row: NodeRow


class JobStarted(msgspec.Struct, array_like=True, tag=21):
    """A driver has registered."""

    job: Job


class JobEnded(msgspec.Struct, array_like=True, tag=22):
    """A driver is gone. `reason` is a clause."""

    job_id: bytes
    reason: str


class WatchActor(msgspec.Struct, array_like=True, tag=23):
    """Send `ActorChanged` for this actor to a client of this node, now and on every change. `owner` is the address of the process
    that made it, if it is known and lives."""

    actor_id: bytes
    client: int
    owner: str = ""


class ClientGone(msgspec.Struct, array_like=True, tag=24):
    """A client of this node has ended: `who` as in "the driver, pid 12", `how` as in "exited"."""

    client: int
    address: str
    who: str
    how: str


class KillActor(msgspec.Struct, array_like=True, tag=25):
    """`shoal.kill`."""

    actor_id: bytes
    no_restart: bool


class DropActor(msgspec.Struct, array_like=True, tag=26):
    """The last handle of an actor is gone."""

    actor_id: bytes


class ActorPlaced(msgspec.Struct, array_like=True, tag=27):
    """A life of an actor has a process."""

    actor_id: bytes
    incarnation: int
    address: str
    pid: int


class ActorRuns(msgspec.Struct, array_like=True, tag=28):
    """`__init__` returned, or raised."""

    actor_id: bytes
    incarnation: int
    error: bytes
    cause: str


class ActorLeaves(msgspec.Struct, array_like=True, tag=29):
    """An actor's process says that it ends, and why."""

    actor_id: bytes
    incarnation: int
    cause: str


class ActorGone(msgspec.Struct, array_like=True, tag=30):
    """The process of a life of an actor has ended. `cause` is a clause."""

    actor_id: bytes
    incarnation: int
    cause: str
    expected: bool


class ActorRefused(msgspec.Struct, array_like=True, tag=31):
    """No process can be had for this life."""

    actor_id: bytes
    incarnation: int
    reason: str


# --- orders: control store to node ----------------------------------------------------------------------------------


class PlaceActor(msgspec.Struct, array_like=True, tag=40):
    """Find a process for this life of an actor."""

    spec: ActorSpec
    incarnation: int
    job_id: bytes


class StopActor(msgspec.Struct, array_like=True, tag=41):
    """End this life, placed or not. `reason` is a clause; `how` is "drain" (when what was called has run), "exit" or
    "kill"."""

    actor_id: bytes
    incarnation: int
    reason: str
    how: str


class ActorChanged(msgspec.Struct, array_like=True, tag=42):
    """For these clients of the node."""

    clients: list[int]
    change: ActorChange


Call = CreateActor | FindActor | ListNames | PutKey | GetKey | DeleteKey | ListKeys | ListNodes
Post = (
    NodeState
    | JobStarted
    | JobEnded
    | WatchActor
    | ClientGone
    | KillActor
    | DropActor
    | ActorPlaced
    | ActorRuns
    | ActorLeaves
    | ActorGone
    | ActorRefused
)
Order = PlaceActor | StopActor | ActorChanged
