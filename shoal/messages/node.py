"""Between a process that runs user code (a *client*: driver or worker) and its node daemon: the control plane.

Requests carry a number `req`, unique on their connection; the answer carries the same. Resource amounts are integers
in units of 1/10,000 (`UNIT`), so that fractions add up exactly.

A lease, from its owner's side::

    LeaseRequest(req, shape) ──► …waits… ──► LeaseGranted(req, lease_id, address) ──► LeaseReturn(lease_id)
                                       └───► LeaseRefused(req, reason)
    LeaseCancel(req) is answered by nothing; a grant that crossed it is returned by the owner.

An actor, from its creator's side::

    ActorCreate(req, spec) ──► Reply(req)            accepted (or refused: the name is taken)
    ActorWatch(actor_id)   ──► ActorChange …         now, and on every change: PENDING, ALIVE, RESTARTING, DEAD
"""

from __future__ import annotations

import msgspec

from shoal.config import Config
from shoal.messages.memory import MemoryEnd, Runs, WhatRuns
from shoal.messages.placement import (
    GroupChange,
    GroupCreate,
    GroupQuery,
    GroupRemove,
    GroupWatch,
    Strategy,
)
from shoal.messages.state import Found, Inquire, Look, Survey, WhyLease
from shoal.messages.stores import (
    Abandoned,
    AwayDead,
    BringBack,
    FreeAbandoned,
    FreeOrphans,
    InUse,
    LetGo,
    QuotaGranted,
    QuotaRequest,
    QuotaReturn,
    QuotaWanted,
    Spilled,
    SpillWanted,
    WhoUses,
)
from shoal.messages.transfer import Freed, Pull, PullDone, Pulled
from shoal.messages.values import Dep, Inline, Ref, Stored

UNIT = 10_000
"""One CPU (or one of any resource), in the units that messages carry."""


class Shape(msgspec.Struct, array_like=True, frozen=True):
    """What a task or actor asks of the place where it runs: the key by which leases are shared.

    `resources` are sorted (name, amount) pairs. `env` is the canonical JSON of the runtime environment ("" if none). `strategy` says
    on which node; none is the default (see `messages.placement`).
    """

    resources: tuple[tuple[str, int], ...] = (("CPU", UNIT),)
    env: str = ""
    strategy: Strategy | None = None


class LogFormat(msgspec.Struct, array_like=True):
    """How the job's processes log. `encoding` is "TEXT" or "JSON"; `attributes` of log records are written too."""

    encoding: str
    level: int
    attributes: list[str]


class Job(msgspec.Struct, array_like=True):
    """What a worker must know of the driver on whose behalf it runs."""

    job_id: bytes
    namespace: str
    sys_path: list[str]
    cwd: str
    env: str = ""
    entrypoint: str = ""
    owner: str = ""
    log_format: LogFormat | None = None
    """None: loggers of workers are as Python leaves them."""


# --- registration ---------------------------------------------------------------------------------------------------


class RegisterDriver(msgspec.Struct, array_like=True, tag=1):
    """A driver introduces itself. `preload` names modules that the zygote may import before it forks."""

    pid: int
    address: str
    job: Job
    preload: list[str] = []
    log_to_driver: bool = True


class RegisterWorker(msgspec.Struct, array_like=True, tag=2):
    """A worker introduces itself, with the id that the node gave it."""

    worker_id: bytes
    pid: int
    address: str


class Registered(msgspec.Struct, array_like=True, tag=3):
    """The node's answer to either: what the client must know of the session."""

    node_id: bytes
    job_id: bytes
    session: str
    session_dir: str
    shm_dir: str
    config: Config
    node_ip: str = "127.0.0.1"


# --- leases ---------------------------------------------------------------------------------------------------------


class LeaseRequest(msgspec.Struct, array_like=True, tag=10):
    """Ask for a worker. `backlog` is how many tasks of the shape wait; `name` is one of them, for explanations. `holders` says at which
    places how many bytes of its large arguments are."""

    req: int
    shape: Shape
    backlog: int = 1
    name: str = ""
    holders: list[tuple[str, int]] = []


class LeaseCancel(msgspec.Struct, array_like=True, tag=11):
    """The request is not needed any more."""

    req: int


class LeaseReturn(msgspec.Struct, array_like=True, tag=12):
    """Give a worker back. `discard` asks the node to end it rather than lease it again."""

    lease_id: int
    discard: bool = False


class Blocked(msgspec.Struct, array_like=True, tag=13):
    """The worker that sends this waits inside a task: its CPUs (only those) may go to others."""


class Unblocked(msgspec.Struct, array_like=True, tag=14):
    """The worker runs again; its CPUs are counted again, beyond the total if need be."""


class LeaseGranted(msgspec.Struct, array_like=True, tag=15):
    """A worker is leased. `address` takes peer connections."""

    req: int
    lease_id: int
    address: str
    pid: int
    gpu_ids: list[str] = []


UNPLACEABLE = "placement"
"""Why there is no worker, or no actor: no node may serve it."""
GROUP_REMOVED = "group"
"""Its placement group was removed."""


class LeaseRefused(msgspec.Struct, array_like=True, tag=16):
    """No worker, and there will be none: the environment or the worker's start failed (`kind` is "env" or "start"), or as `UNPLACEABLE`
    and `GROUP_REMOVED` say."""

    req: int
    kind: str
    reason: str


class LeaseWanted(msgspec.Struct, array_like=True, tag=17):
    """Others wait for this lease's resources: the owner pushes no more on it and returns it when it has drained."""

    lease_id: int


class LeaseRevoked(msgspec.Struct, array_like=True, tag=19):
    """A lease ends with its placement group, and its worker next. `reason` is a clause."""

    lease_id: int
    reason: str


class LeasePending(msgspec.Struct, array_like=True, tag=18):
    """A request cannot be satisfied by any node as things stand; `reason` says why and what would help. With `req` 0 it
    goes to the driver, and is about an actor, which the reason names. Without a reason: it only waits for its turn."""

    req: int
    reason: str


# --- processes ------------------------------------------------------------------------------------------------------


class Watch(msgspec.Struct, array_like=True, tag=20):
    """Tell me (`PeerGone`) when the process at `address` ends; at once if it is gone already."""

    address: str


class PeerGone(msgspec.Struct, array_like=True, tag=21):
    """The process has ended. `cause` is a clause such as "was killed by SIGKILL" or "exited with code 3"; `expected`
    tells that it ended by order (lease returned, actor out of scope), `memory` that it ended because its node ran out of memory."""

    address: str
    cause: str
    expected: bool = False
    memory: MemoryEnd | None = None


class KillProcess(msgspec.Struct, array_like=True, tag=22):
    """End the worker at `address` with SIGKILL (a forced cancel). `reason` completes "was killed: …"."""

    address: str
    reason: str


class Exit(msgspec.Struct, array_like=True, tag=23):
    """Node to worker: end in good order when what is queued has run (`now`: at once). Node to driver: the session is
    over, for this reason."""

    reason: str
    now: bool = False


class Retire(msgspec.Struct, array_like=True, tag=26):
    """Node to worker: end in good order, unless others count on what this process owns or has begun. Answered by its end or by
    `Stay`. A `spent` worker that stays ends by itself later. One that still runs something does so for an owner that has ended: it
    ends at once or, when it has lent objects to others, interrupts what it runs before it answers. Others may be leased again."""

    reason: str
    spent: bool


class Stay(msgspec.Struct, array_like=True, tag=27):
    """Worker to node, asked to retire: others count on it."""


class Leaving(msgspec.Struct, array_like=True, tag=28):
    """Worker to node: it stayed for what it owned, and ends now, since nobody counts on that any more."""


class Goodbye(msgspec.Struct, array_like=True, tag=24):
    """A driver leaves: its workers end, their last output is forwarded, then comes `Reply`."""

    req: int


class Log(msgspec.Struct, array_like=True, tag=25):
    """Lines that a worker printed. `source` is the task or actor name, `stream` 1 (stdout) or 2 (stderr)."""

    pid: int
    source: str
    stream: int
    lines: list[str]
    place: str = ""
    """Where the worker's node is, if that is not the driver's."""


# --- actors ---------------------------------------------------------------------------------------------------------


class ActorSpec(msgspec.Struct, array_like=True):
    """Everything that makes an actor, and makes it again."""

    actor_id: bytes
    class_name: str
    code_id: bytes
    code: Inline | Stored
    args: Inline | Stored
    deps: list[Dep]
    shape: Shape
    """What is held while the actor lives."""
    placement_shape: Shape
    """What must be free for it to be placed: one CPU more, when the user asked for none by name."""
    owner: str
    name: str = ""
    namespace: str = ""
    detached: bool = False
    max_restarts: int = 0
    max_task_retries: int = 0
    max_concurrency: int = 0
    """0: the default of its kind (1, or `async_concurrency` for an async actor)."""
    concurrency_groups: dict[str, int] = {}
    method_groups: dict[str, str] = {}
    out_of_order: bool = False
    max_pending_calls: int = -1
    is_async: bool = False
    methods: bytes = b""
    """Per-method options, encoded by the API layer and handed through (see `ActorInfo`)."""
    awaited: list[tuple[int | str, Ref]] = []
    """Top-level arguments that were not known yet: the actor fetches them from their owners before `__init__`."""


class ActorCreate(msgspec.Struct, array_like=True, tag=30):
    """Create an actor. Answered by `Reply` with an `ActorInfo` once it is accepted, not once it runs; with
    `get_if_exists`, the info may be that of an actor that has the name already."""

    req: int
    spec: ActorSpec
    get_if_exists: bool = False


class ActorWatch(msgspec.Struct, array_like=True, tag=31):
    """Send `ActorChange` for this actor: now and on every change. `owner` made it, if the handle says so: its message may still be
    on its way when others hear of the actor."""

    actor_id: bytes
    owner: str = ""


class ActorChange(msgspec.Struct, array_like=True, tag=32):
    """State of an actor: "PENDING", "ALIVE", "RESTARTING" or "DEAD". `incarnation` counts its lives from 0.

    The address is given as soon as the actor's process exists; calls may be sent then and run after `__init__`.
    A dead actor has `cause` (a sentence) and perhaps `error`, the pickled exception of its `__init__`.
    """

    actor_id: bytes
    state: str
    incarnation: int
    address: str = ""
    pid: int = 0
    cause: str = ""
    error: bytes = b""
    kind: str = ""
    """`UNPLACEABLE` or `GROUP_REMOVED`, if that is why it is dead."""


class ActorLookup(msgspec.Struct, array_like=True, tag=33):
    """Find a living actor by name. Answered by `Reply` with `ActorInfo`, or none."""

    req: int
    name: str
    namespace: str


class ActorInfo(msgspec.Struct, array_like=True):
    """What a handle needs: the answer to `ActorLookup` and `ActorCreate`."""

    actor_id: bytes
    class_name: str
    owner: str
    methods: bytes
    max_task_retries: int
    max_pending_calls: int
    is_async: bool
    existed: bool = False


class ActorNames(msgspec.Struct, array_like=True, tag=34):
    """List the names of living actors. Answered by `Reply` with a list of (namespace, name)."""

    req: int
    namespace: str
    all_namespaces: bool


class ActorKill(msgspec.Struct, array_like=True, tag=35):
    """End an actor's process now; it restarts if it may and `no_restart` is false. `owner` is as in `ActorWatch`."""

    actor_id: bytes
    no_restart: bool
    owner: str = ""


class ActorUnreferenced(msgspec.Struct, array_like=True, tag=36):
    """The last handle is gone: the actor ends when what was called has run."""

    actor_id: bytes


class StartActor(msgspec.Struct, array_like=True, tag=37):
    """Node to worker: become this actor. Sent once per process, before any call can arrive."""

    spec: ActorSpec
    incarnation: int
    gpu_ids: list[str] = []


class ActorStarted(msgspec.Struct, array_like=True, tag=38):
    """Worker to node: `__init__` returned, or raised (`error` is the pickled exception, `cause` one line of it)."""

    actor_id: bytes
    incarnation: int
    error: bytes = b""
    cause: str = ""


class ActorExiting(msgspec.Struct, array_like=True, tag=39):
    """Worker to node: the actor ends by its own wish (`exit_actor`), or because its last handle went."""

    actor_id: bytes
    cause: str


# --- queries --------------------------------------------------------------------------------------------------------


class KvPut(msgspec.Struct, array_like=True, tag=60):
    """Store a value. Answered by `Reply`: whether the key is new."""

    req: int
    namespace: str
    key: bytes
    value: bytes
    overwrite: bool = True


class KvGet(msgspec.Struct, array_like=True, tag=61):
    """Read a value. Answered by `Reply`: bytes or none."""

    req: int
    namespace: str
    key: bytes


class KvDelete(msgspec.Struct, array_like=True, tag=62):
    """Delete keys. Answered by `Reply`: how many there were."""

    req: int
    namespace: str
    key: bytes
    by_prefix: bool = False


class KvKeys(msgspec.Struct, array_like=True, tag=63):
    """List the keys with a prefix. Answered by `Reply`."""

    req: int
    namespace: str
    prefix: bytes


class NodesQuery(msgspec.Struct, array_like=True, tag=64):
    """Answered by `Reply` with a list of `NodeRow`."""

    req: int


class NodeRow(msgspec.Struct, array_like=True):
    """One node, as `shoal.nodes()` and the resource queries need it."""

    node_id: bytes
    alive: bool
    address: str
    hostname: str
    name: str
    total: dict[str, int]
    available: dict[str, int]
    labels: dict[str, str]
    socket: str
    pid: int
    place: str = "local"
    """Where its door is (see `wire.addresses`)."""
    cause: str = ""
    """Why it is dead, a clause: "sent no heartbeat for 10 s"."""
    stopped: bool = False
    """Of one that is dead: it was told to end, and did so in good order."""


class TaskEvent(msgspec.Struct, array_like=True, gc=False):
    """One finished run of a task. Times are nanoseconds since the epoch."""

    task_id: bytes
    name: str
    kind: str
    pid: int
    start_ns: int
    end_ns: int
    ok: bool


class Events(msgspec.Struct, array_like=True, tag=66):
    """What a worker that ends remembers of the tasks that it has run."""

    events: list[TaskEvent]


class Reply(msgspec.Struct, array_like=True, tag=67):
    """The answer to a request: `result` is MessagePack of what the request's docstring says; `error` is "" or
    "ErrorClass: text"."""

    req: int
    result: bytes = b""
    error: str = ""


ToNode = (
    RegisterDriver
    | RegisterWorker
    | LeaseRequest
    | LeaseCancel
    | LeaseReturn
    | Blocked
    | Unblocked
    | Watch
    | KillProcess
    | Stay
    | Leaving
    | Runs
    | Goodbye
    | ActorCreate
    | ActorWatch
    | ActorLookup
    | ActorNames
    | ActorKill
    | ActorUnreferenced
    | ActorStarted
    | ActorExiting
    | QuotaRequest
    | QuotaReturn
    | Spilled
    | BringBack
    | AwayDead
    | FreeOrphans
    | InUse
    | Abandoned
    | LetGo
    | KvPut
    | KvGet
    | KvDelete
    | KvKeys
    | NodesQuery
    | Events
    | Survey
    | Found
    | WhyLease
    | Look
    | Pull
    | PullDone
    | Freed
    | GroupCreate
    | GroupRemove
    | GroupQuery
    | GroupWatch
)

FromNode = (
    Registered
    | LeaseGranted
    | LeaseRefused
    | LeaseWanted
    | LeaseRevoked
    | LeasePending
    | PeerGone
    | Exit
    | Retire
    | WhatRuns
    | Log
    | ActorChange
    | StartActor
    | QuotaGranted
    | QuotaWanted
    | SpillWanted
    | WhoUses
    | FreeAbandoned
    | Pulled
    | Inquire
    | GroupChange
    | Reply
)
