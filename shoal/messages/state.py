"""What a cluster tells about itself when it is asked: tasks, objects, workers, and why something waits.

Nobody reports any of this unasked. A question goes from whoever asks to the control store, from there to the nodes that it concerns, and
from each node to its processes if they are the ones who know; the answers go back the same way, and are put together where they meet::

    client ── Survey ──► its node ── SurveyNodes ──► control store ── SurveyNode ──► nodes ── Inquire ──► processes
       ◄────── Reply ───────┘ ◄──────── answer ──────────┘ ◄──────── NodeFound ───────┘ ◄────── Found ────────┘

Every step has a time limit and a limit for rows; what was left out and who did not answer is said. Times are nanoseconds since the epoch,
by the clock of the machine that tells them; 0 means that nobody knows.
"""

from __future__ import annotations

import msgspec

from shoal.messages.inventory import Holding, ProcessMemory, StoreMemory
from shoal.messages.values import Location

# --- questions ------------------------------------------------------------------------------------------------------


class AskTasks(msgspec.Struct, array_like=True, tag=1):
    """Tasks and calls: those that are not finished, and (`finished`) those that processes remember. At most `limit` of each process."""

    limit: int
    unfinished: bool = True
    finished: bool = True


class AskObjects(msgspec.Struct, array_like=True, tag=2):
    """Objects that processes own or borrow, at most `limit` of each process: the largest."""

    limit: int


class AskWorkers(msgspec.Struct, array_like=True, tag=3):
    """Drivers and workers that live."""

    limit: int


class AskWhy(msgspec.Struct, array_like=True, tag=4):
    """Why a task or call waits whose id begins with these hexadecimal digits: asked of the processes that have it."""

    id: str


class AskRequest(msgspec.Struct, array_like=True, tag=5):
    """Why a request for a worker waits, asked at the home of the request: the node of the process at `address`, which made it."""

    address: str
    req: int


class AskHosted(msgspec.Struct, array_like=True, tag=6):
    """The same, asked of the node to which home has forwarded it."""

    home: bytes
    client: int
    req: int


class AskActor(msgspec.Struct, array_like=True, tag=7):
    """Why an actor does not run: asked of no node in particular, the control store tells what it knows, and asks on where that leads to
    the node that it was sent to. Asked of that node: why it has no process there."""

    actor_id: bytes


class AskDemands(msgspec.Struct, array_like=True, tag=9):
    """What waits at a node to be served: its `limit` most frequent demands."""

    limit: int


class AskMemory(msgspec.Struct, array_like=True, tag=8):
    """Objects and handles of actors, as of `AskObjects`; with them what processes and nodes tell of the memory of objects, at most
    `limit` of each kind of detail."""

    limit: int


Question = (
    AskTasks
    | AskObjects
    | AskWorkers
    | AskWhy
    | AskRequest
    | AskHosted
    | AskActor
    | AskMemory
    | AskDemands
)


# --- answers --------------------------------------------------------------------------------------------------------


class TaskRow(msgspec.Struct, array_like=True, gc=False):
    """A task, a call of an actor's method, as its owner or the process that runs (or ran) it knows it."""

    task_id: bytes
    name: str
    kind: str
    """"NORMAL_TASK" or "ACTOR_TASK"."""
    state: str
    attempt: int = 0
    job_id: bytes = b""
    owner: str = ""
    """Address of the process that submitted it, if an owner tells this."""
    actor_id: bytes = b""
    resources: tuple[tuple[str, int], ...] = ()
    worker: str = ""
    """Address of the process that it was sent to."""
    pid: int = 0
    start_ns: int = 0
    end_ns: int = 0


class ObjectRow(msgspec.Struct, array_like=True, gc=False):
    """An object, as one process knows it. `place` is where its bytes are: that of a node's door (see `wire.addresses`), "inline" for a
    value in the memory of the process itself, "" if there is none."""

    object_id: bytes
    owner: str
    state: str
    """"PENDING", "READY" or "FAILED"."""
    size: int
    """In bytes, -1 if it is not known."""
    place: str
    local_references: int
    other_references: int
    borrowers: int
    task_name: str = ""
    process: str = ""
    """Address of the process that tells this."""
    pid: int = 0
    holdings: list[Holding] = []
    """What counts on it there, in the order of `inventory.KINDS`."""
    borrowed_by: list[str] = []
    """Addresses of processes that are registered with the owner; not all of them if they are many."""
    creator: str = ""
    """Address of the process that has made its block, `location`, if it has one."""
    location: Location | None = None
    call_site: str = ""
    """Where the program put it or submitted its task, if that is recorded."""
    since_ns: int = 0
    """Since when this process knows it, if that is recorded."""
    handle: bool = False
    """It is no object: the handles of an actor count here."""


class WorkerRow(msgspec.Struct, array_like=True):
    """A process that runs user code."""

    worker_id: bytes
    kind: str
    """"WORKER" or "DRIVER"."""
    state: str
    pid: int
    address: str
    job_id: bytes
    node_id: bytes
    since_ns: int = 0
    runs: str = ""
    """What it was leased for last: the name of a task, or the class of an actor."""
    resources: tuple[tuple[str, int], ...] = ()
    """What it holds."""


class ActorRow(msgspec.Struct, array_like=True):
    """An actor that lives, or has died lately, as the control store knows it."""

    actor_id: bytes
    class_name: str
    state: str
    job_id: bytes
    name: str
    namespace: str
    owner: str
    detached: bool
    resources: tuple[tuple[str, int], ...]
    since_ns: int
    """Since when it is in that state, as far as this control store knows."""
    incarnation: int = 0
    address: str = ""
    pid: int = 0
    cause: str = ""
    node_id: bytes = b""
    """Where it runs, or was sent."""
    waits: str = ""
    """Why no node has it, as a sentence."""


class Holder(msgspec.Struct, array_like=True):
    """Who has some of what something else waits for."""

    name: str
    pid: int
    resources: tuple[tuple[str, int], ...]
    since_ns: int


class Reason(msgspec.Struct, array_like=True):
    """Why something waits. `text` is a sentence about `subject`; `kind` is one of the words in `core.waits`."""

    subject: str
    kind: str
    text: str
    node_id: bytes = b""
    since_ns: int = 0
    ahead: int = -1
    """How many others are served before it, -1 if that is not known."""
    holders: list[Holder] = []
    """Who has what it waits for, those with the most first; not all of them if they are many."""
    follow: list[Follow] = []
    """Where to ask on: what it waits for waits itself."""


class Follow(msgspec.Struct, array_like=True):
    """A question that leads on, and the node that knows the answer (b"": any may)."""

    question: Question
    node_id: bytes = b""


TASKS = "task"
ACTORS = "actor"
GROUPS = "placement group"


class DemandRow(msgspec.Struct, array_like=True):
    """What is demanded and not served: so many of one `kind` (`TASKS`, `ACTORS`, `GROUPS`), each of which wants these bundles, so many
    times each. Without a kind: so many of all that was left out."""

    kind: str
    bundles: list[tuple[tuple[tuple[str, int], ...], int]]
    count: int
    since_ns: int
    """Since when the oldest waits, in nanoseconds since the epoch."""
    name: str = ""
    """Of the oldest."""
    where: str = ""
    """The strategy of a group; of tasks and actors, whether they are to run in one."""
    nowhere: bool = False
    """Whether no node has what it takes, not even idle."""
    node_id: bytes = b""
    """At which node they wait, b"" if at none."""


class Findings(msgspec.Struct, array_like=True):
    """What was found. `left_out` rows were over the limits; `silent` names who did not answer in time."""

    tasks: list[TaskRow] = []
    objects: list[ObjectRow] = []
    workers: list[WorkerRow] = []
    reasons: list[Reason] = []
    left_out: int = 0
    silent: list[str] = []
    processes: list[ProcessMemory] = []
    stores: list[StoreMemory] = []
    demands: list[DemandRow] = []


# --- between a client and its node ------------------------------------------------------------------------------------


class Survey(msgspec.Struct, array_like=True, tag=120):
    """Client to node: ask this of some nodes (none named: of all), for at most `within_ms`. Answered by `Reply` with `Findings`."""

    req: int
    question: Question
    node_ids: list[bytes]
    within_ms: int


class Inquire(msgspec.Struct, array_like=True, tag=121):
    """Node to client: what do you know? Answered by `Found`."""

    number: int
    question: Question


class Found(msgspec.Struct, array_like=True, tag=122):
    """Client to node: what it knows. `number` is 0 for what a worker leaves behind when it ends."""

    number: int
    findings: Findings


class WhyLease(msgspec.Struct, array_like=True, tag=123):
    """Client to node: why does this request of mine for a worker wait? Answered by `Reply` with a sentence, "" if it does not. This
    node only tells what it knows itself."""

    req: int
    request: int


class Look(msgspec.Struct, array_like=True, tag=124):
    """Client to node: ask the control store for a list, by the name of the question in `messages.control`: one of those that whoever is no
    node may ask, too. Answered by `Reply`, as that question is. `limit` is for those that have one."""

    req: int
    kind: str
    limit: int = 0
