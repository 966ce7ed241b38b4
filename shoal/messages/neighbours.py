"""Between the daemons of two nodes: leases for processes of the other node, the ends of processes, what workers print.

Each daemon opens a connection of its own to each node to which it has something to say, and says it there, numbered; the other
acknowledges. After a break what was not acknowledged is said again, and taken once::

    speaker                                listener
      │ Greet(node, place, to) ─────────────► │
      │ ◄──────────────────── Welcome(taken)  │     or Unwelcome(reason), and the end
      │ Said(1, …), Said(2, …) ─────────────► │
      │ ◄────────────────────────── Taken(2)  │

A lease, from the *home* of a request, which is the node of the process that asks, and the *host*, where a worker is to be had::

    Ask(owner, req, shape) ──► …queue… ──► Gave(owner, req, lease_id, address) ──► GiveBack(owner, lease_id)
                                     └───► Busy(owner, req)       its view of the host was too old: home asks elsewhere
                                     └───► Refused(owner, req, reason)
    Withdraw(owner, req) is answered by nothing; a `Gave` that crossed it is given back.

An `owner` is the number that the home's daemon has for one of its clients.
"""

from __future__ import annotations

import msgspec

from shoal.messages.memory import MemoryEnd
from shoal.messages.node import Job, Log, Shape
from shoal.messages.placement import ViewRow
from shoal.messages.values import Location

# --- the connection -------------------------------------------------------------------------------------------------


class Greet(msgspec.Struct, array_like=True, tag=1):
    """The speaker, and whom it believes to reach. A daemon that starts anew has a new id."""

    node_id: bytes
    place: str
    to: bytes


class Welcome(msgspec.Struct, array_like=True, tag=2):
    """The listener has had everything from this speaker up to number `taken`."""

    taken: int


class Unwelcome(msgspec.Struct, array_like=True, tag=3):
    """The listener does not listen: it is another node, or believes that the speaker's node is dead."""

    reason: str


class Taken(msgspec.Struct, array_like=True, tag=4):
    """Everything up to this number has arrived."""

    number: int


# --- leases: home to host -------------------------------------------------------------------------------------------


class Introduce(msgspec.Struct, array_like=True, tag=10):
    """A job for which leases will be asked. `over`: it has ended, and something of it lives on."""

    job: Job
    over: bool = False


class Ask(msgspec.Struct, array_like=True, tag=11):
    """Ask for a worker. `expected_us` is how long home believes that the request will wait; if it would be much longer, the answer
    is `Busy`."""

    owner: int
    req: int
    job_id: bytes
    shape: Shape
    name: str
    expected_us: int


class Withdraw(msgspec.Struct, array_like=True, tag=12):
    """The request is not needed any more."""

    owner: int
    req: int


class GiveBack(msgspec.Struct, array_like=True, tag=13):
    """Give a worker back; see `LeaseReturn`."""

    owner: int
    lease_id: int
    discard: bool


class OwnerEnded(msgspec.Struct, array_like=True, tag=14):
    """A process has ended that asked for leases. `reason` is a clause."""

    owner: int
    reason: str


# --- leases: host to home -------------------------------------------------------------------------------------------


class Gave(msgspec.Struct, array_like=True, tag=20):
    """A worker is leased."""

    owner: int
    req: int
    lease_id: int
    address: str
    pid: int
    gpu_ids: list[str]
    version: int
    """The host's rows from this one on show it."""


class Busy(msgspec.Struct, array_like=True, tag=21):
    """No worker can be had now; this is how the node is."""

    owner: int
    req: int
    row: ViewRow


class Refused(msgspec.Struct, array_like=True, tag=22):
    """There will be no worker; see `LeaseRefused`."""

    owner: int
    req: int
    kind: str
    reason: str


class Revoked(msgspec.Struct, array_like=True, tag=24):
    """A lease ends with its placement group; see `LeaseRevoked`."""

    owner: int
    lease_id: int
    reason: str


class WantBack(msgspec.Struct, array_like=True, tag=23):
    """Others wait for this lease; see `LeaseWanted`."""

    owner: int
    lease_id: int


class Waits(msgspec.Struct, array_like=True, tag=25):
    """A request is not served at once; see `LeasePending`."""

    owner: int
    req: int


# --- processes ------------------------------------------------------------------------------------------------------


class WatchProcess(msgspec.Struct, array_like=True, tag=30):
    """Tell me (`ProcessEnded`) when a process of yours ends; at once if it has."""

    address: str


class ProcessEnded(msgspec.Struct, array_like=True, tag=31):
    """It has ended; see `PeerGone`."""

    address: str
    cause: str
    expected: bool
    memory: MemoryEnd | None = None


class EndProcess(msgspec.Struct, array_like=True, tag=32):
    """End a worker of yours with SIGKILL; see `KillProcess`."""

    address: str
    reason: str


class Lines(msgspec.Struct, array_like=True, tag=33):
    """What a worker of a job has printed, for the job's driver at your node."""

    job_id: bytes
    log: Log


# --- objects of processes that have ended ---------------------------------------------------------------------------


class UsesAsked(msgspec.Struct, array_like=True, tag=40):
    """What do your clients use of what these processes have left? As in `WhoUses`, and at the end the job of each (empty if not known);
    answered by a `UsesTold` for each."""

    ended: list[tuple[int, str, str, bytes]]


class UsesTold(msgspec.Struct, array_like=True, tag=41):
    """As in `InUse`, of all clients of the node."""

    number: int
    locations: list[Location]


class AskAgain(msgspec.Struct, array_like=True, tag=42):
    """Our clients use less of what a process has left than we have told."""

    address: str


class NothingLeft(msgspec.Struct, array_like=True, tag=43):
    """Of what a process had left, of which your clients have named something, nothing is there any more: you need not tell us more."""

    address: str


Neighbourly = (
    Introduce
    | Ask
    | Withdraw
    | GiveBack
    | OwnerEnded
    | Gave
    | Busy
    | Refused
    | WantBack
    | Waits
    | Revoked
    | WatchProcess
    | ProcessEnded
    | EndProcess
    | Lines
    | UsesAsked
    | UsesTold
    | AskAgain
    | NothingLeft
)
"""What is said, once and in order."""


class Said(msgspec.Struct, array_like=True, tag=5):
    """Message number `number`."""

    number: int
    message: Neighbourly


ToListener = Greet | Said
ToSpeaker = Welcome | Unwelcome | Taken
