"""Between a node daemon and the control store: actors, names, keys and values, jobs, nodes.

In a session of one machine the two are in one process and hand each other these very messages; with a control store of its own, they
travel inside those of `messages.membership`. Calls are answered; posts are not. Both arrive in the order in which they were made, and
take effect once.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from shoal.messages.node import ActorChange, ActorInfo, ActorSpec, Job, NodeRow
from shoal.messages.placement import GroupChange, GroupInfo, GroupSpec, ViewRow
from shoal.messages.state import ActorRow, DemandRow, Findings, Question

# --- calls ----------------------------------------------------------------------------------------------------------


class CreateActor(msgspec.Struct, array_like=True, tag=1):
    """Answered by `ActorInfo`; fails with "ActorAlreadyExistsError: …".

    `job` is there if the job's driver is not of this node: what its own node says of the job may arrive later than this.
    """

    spec: ActorSpec
    job_id: bytes
    get_if_exists: bool
    job: Job | None = None


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
    """Answered by a list of `NodeRow`: the nodes that live, and those that have died lately."""


class ListJobs(msgspec.Struct, array_like=True, tag=9):
    """Answered by a list of `JobRow`: those that run, and those that have ended lately."""


class ListEndedProcesses(msgspec.Struct, array_like=True, tag=10):
    """Answered by a list of `EndedProcess`, the latest last."""

    limit: int


class ClusterStatus(msgspec.Struct, array_like=True, tag=12):
    """Answered by `StatusOfCluster`."""


class CreateGroup(msgspec.Struct, array_like=True, tag=13):
    """Answered by none; fails with "ValueError: …"."""

    spec: GroupSpec


class RemoveGroup(msgspec.Struct, array_like=True, tag=14):
    """Answered by none, also if there is no such group. `cause` is a clause."""

    group_id: bytes
    cause: str


class ListGroups(msgspec.Struct, array_like=True, tag=15):
    """Answered by a list of `GroupInfo`: that of an id, that of a name, or all."""

    group_id: bytes = b""
    name: str = ""
    namespace: str = ""


class SurveyNodes(msgspec.Struct, array_like=True, tag=16):
    """Ask nodes something (none named: all), for at most `within_ms`. Answered by `Findings`."""

    question: Question
    node_ids: list[bytes]
    within_ms: int


class ListActors(msgspec.Struct, array_like=True, tag=17):
    """Answered by a list of `ActorRow`: those that live, and those that have died lately."""


# --- what calls are answered by -------------------------------------------------------------------------------------


class JobRow(msgspec.Struct, array_like=True):
    """A job. `node_id` is where its driver is, if that is known; `ended` why it is over, a clause, or ""."""

    job: Job
    node_id: bytes
    ended: str


class EndedProcess(msgspec.Struct, array_like=True):
    """A worker or driver that has ended: `who` as in "the worker, pid 12", `how` as in "was killed by SIGKILL"."""

    node_id: bytes
    address: str
    who: str
    how: str
    at_ns: int
    """Nanoseconds since the epoch, by the clock of the control store."""


class StatusOfCluster(msgspec.Struct, array_like=True):
    """How the control store is."""

    name: str
    cluster_id: bytes
    version: str
    pid: int
    storage: str
    """Its address, without passwords."""
    storage_state: str
    storage_since_ns: int
    """Since when it is in that state, in nanoseconds since the epoch."""
    nodes: list[NodeRow]
    actors: int
    jobs: int
    waiting: list[str]
    """Why actors wait that no node could take."""
    views: list[ViewRow] = []
    """The latest state of the nodes that live: how many requests wait at each, among others."""
    demands: list[DemandRow] = []
    """Actors and placement groups that wait for a place, the most frequent demands."""


# --- posts: node to control store -----------------------------------------------------------------------------------


class NodeState(msgspec.Struct, array_like=True, tag=20):
    """A node introduces itself, or its resources have changed."""

    row: NodeRow


class JobStarted(msgspec.Struct, array_like=True, tag=21):
    """A driver has registered."""

    job: Job


class JobEnded(msgspec.Struct, array_like=True, tag=22):
    """A driver is gone. `reason` is a clause; `kill`: what it left is not to end in good order."""

    job_id: bytes
    reason: str
    kill: bool = False


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
    """`shoal.kill`. `owner` is as in `WatchActor`: what is killed may not have arrived yet."""

    actor_id: bytes
    no_restart: bool
    owner: str = ""


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
    """No process can be had for this life. `kind` is as in `ActorChange`."""

    actor_id: bytes
    incarnation: int
    reason: str
    kind: str = ""


class NodeView(msgspec.Struct, array_like=True, tag=32):
    """What the node has and what is free has changed. Of several that were not sent yet, the newest leaves."""

    row: ViewRow


class WatchGroup(msgspec.Struct, array_like=True, tag=34):
    """Send `GroupChanged` for this placement group to the node, now and on every change."""

    group_id: bytes


class BundlesPrepared(msgspec.Struct, array_like=True, tag=35):
    """The answer to `PrepareBundles`: whether they are reserved. `row` is the node after that."""

    group_id: bytes
    attempt: int
    reserved: bool
    row: ViewRow


class BundlesReleased(msgspec.Struct, array_like=True, tag=36):
    """`ReleaseBundles` was carried out; `row` is the node after that. What is still in use is free later."""

    row: ViewRow


class NodeFound(msgspec.Struct, array_like=True, tag=37):
    """What the node and its processes know: the answer to `SurveyNode`."""

    number: int
    findings: Findings


# --- orders: control store to node ----------------------------------------------------------------------------------


class PlaceActor(msgspec.Struct, array_like=True, tag=40):
    """Find a process for this life of an actor. The node may not know its job yet, nor have heard that it is over."""

    spec: ActorSpec
    incarnation: int
    job_id: bytes
    job: Job | None = None
    job_over: bool = False


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


class EndJob(msgspec.Struct, array_like=True, tag=43):
    """A job is over: end what it left on this node. `reason` is a clause."""

    job_id: bytes
    reason: str
    kill: bool


class NodeJoined(msgspec.Struct, array_like=True, tag=44):
    """A node has joined the cluster."""

    row: NodeRow


class NodeDied(msgspec.Struct, array_like=True, tag=45):
    """A node is dead, with all that ran there. `row` is what was known of it; `cause` is a clause: "sent no heartbeat for 10 s"."""

    row: NodeRow
    cause: str


class ViewChanged(msgspec.Struct, array_like=True, tag=46):
    """The rows of other nodes that are new, in their latest state. `current`: that of nodes which are not named has not
    changed, and was told before; else these are all there are."""

    rows: list[ViewRow]
    current: bool


class ActorWaits(msgspec.Struct, array_like=True, tag=47):
    """An actor that a process of this node created fits no node of the cluster: its driver should know."""

    job_id: bytes
    name: str
    class_name: str
    reason: str


class PrepareBundles(msgspec.Struct, array_like=True, tag=48):
    """Reserve bundles of a placement group (number and amounts of each), all or none. Answered by `BundlesPrepared`."""

    group_id: bytes
    attempt: int
    bundles: list[tuple[int, tuple[tuple[str, int], ...]]]


class CommitBundles(msgspec.Struct, array_like=True, tag=49):
    """What was reserved in a round may be used."""

    group_id: bytes
    attempt: int


class ReleaseBundles(msgspec.Struct, array_like=True, tag=50):
    """Give up what was reserved in a round (0: in all), and end the leases out of it, for `reason`, a clause."""

    group_id: bytes
    attempt: int
    reason: str


class GroupChanged(msgspec.Struct, array_like=True, tag=51):
    """A placement group that the node watches."""

    change: GroupChange


class GroupWaits(msgspec.Struct, array_like=True, tag=52):
    """A placement group of a job fits no cluster like this one: its driver should know."""

    job_id: bytes
    name: str
    reason: str


class SurveyNode(msgspec.Struct, array_like=True, tag=53):
    """What do you know? Answered by `NodeFound`, within that time."""

    number: int
    question: Question
    within_ms: int


Call = (
    CreateActor
    | FindActor
    | ListNames
    | PutKey
    | GetKey
    | DeleteKey
    | ListKeys
    | ListNodes
    | ListJobs
    | ListEndedProcesses
    | ClusterStatus
    | CreateGroup
    | RemoveGroup
    | ListGroups
    | SurveyNodes
    | ListActors
)
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
    | NodeView
    | WatchGroup
    | BundlesPrepared
    | BundlesReleased
    | NodeFound
)
Order = (
    PlaceActor
    | StopActor
    | ActorChanged
    | EndJob
    | NodeJoined
    | NodeDied
    | ViewChanged
    | ActorWaits
    | PrepareBundles
    | CommitBundles
    | ReleaseBundles
    | GroupChanged
    | GroupWaits
    | SurveyNode
)

ANSWERS: Final[dict[type, Any]] = {
    CreateActor: ActorInfo,
    FindActor: ActorInfo | None,
    ListNames: list[tuple[str, str]],
    PutKey: bool,
    GetKey: bytes | None,
    DeleteKey: int,
    ListKeys: list[bytes],
    ListNodes: list[NodeRow],
    ListJobs: list[JobRow],
    ListEndedProcesses: list[EndedProcess],
    ClusterStatus: StatusOfCluster,
    CreateGroup: None,
    RemoveGroup: None,
    ListGroups: list[GroupInfo],
    SurveyNodes: Findings,
    ListActors: list[ActorRow],
}
"""By call, the type of its answer."""
