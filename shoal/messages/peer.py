"""Between two processes that run user code: the data plane.

Either side of a connection may send any of these. Messages of one sender arrive in order.

Tasks::

    owner                                     executor
      │ Bind(lease)   once a lease             │
      │ Define(f)     once a function ───────► │
      │ Push(task) ──────────────────────────► │ runs it
      │ ◄──────── Done / Results / Failure     │
      │ ◄──────── HandBack(ids), Pause/Resume  │ it blocks, or a long task holds up the others

`Push`, `Call` and `Done` are the lean forms for what nearly every task is (arguments and one result that are plain
inline pickles); `PushFull`, `CallFull` and `Results` say everything.
"""

from __future__ import annotations

import msgspec

from shoal.messages.node import Shape
from shoal.messages.values import Dep, Inline, Location, Ref, Stored, Value

# --- tasks: owner to executor ---------------------------------------------------------------------------------------


class Define(msgspec.Struct, array_like=True, tag=1):
    """A function that later pushes on this connection name by `index`. `retriable`: its tasks may be run again."""

    index: int
    function_id: bytes
    name: str
    code: Inline | Stored
    max_calls: int = 0
    retriable: bool = True


class Bind(msgspec.Struct, array_like=True, tag=2):
    """The lease under which the tasks that follow run, and what it assigns."""

    lease_id: int
    shape: Shape
    gpu_ids: list[str] = []


class Push(msgspec.Struct, array_like=True, tag=3, gc=False):
    """Run a task: one result, arguments inline."""

    task_id: bytes
    function: int
    args: bytes


class PushFull(msgspec.Struct, array_like=True, tag=4):
    """Run a task. `returns` is the number of results, -1 for a stream; `window` bounds unconsumed stream items
    (0: no bound)."""

    task_id: bytes
    function: int
    args: Inline | Stored
    deps: list[Dep] = []
    returns: int = 1
    attempt: int = 0
    name: str = ""
    window: int = 0


class Call(msgspec.Struct, array_like=True, tag=5, gc=False):
    """Call an actor's method: one result, arguments inline. Calls of one caller run in the order they arrive."""

    task_id: bytes
    method: str
    args: bytes


class CallFull(msgspec.Struct, array_like=True, tag=6):
    """Call an actor's method; see `PushFull`. `group` is the concurrency group ("" for the method's own)."""

    task_id: bytes
    method: str
    args: Inline | Stored
    deps: list[Dep] = []
    returns: int = 1
    attempt: int = 0
    name: str = ""
    window: int = 0
    group: str = ""


class Cancel(msgspec.Struct, array_like=True, tag=7):
    """Cancel a task: take it out of the queue, or interrupt it. `recursive` cancels what it submitted as well."""

    task_id: bytes
    recursive: bool = True


class CancelObject(msgspec.Struct, array_like=True, tag=9):
    """A borrower asks the owner of an object to cancel the task that makes it."""

    object_id: bytes
    force: bool
    recursive: bool


class StreamConsumed(msgspec.Struct, array_like=True, tag=8):
    """The owner has consumed `count` items of a stream in total; -1: it wants no more."""

    task_id: bytes
    count: int


# --- tasks: executor to owner ---------------------------------------------------------------------------------------


class Done(msgspec.Struct, array_like=True, tag=10, gc=False):
    """A task finished with one plain inline result. `took_us` is the run time of the user's code."""

    task_id: bytes
    data: bytes
    took_us: int


class Results(msgspec.Struct, array_like=True, tag=11):
    """A task finished. For a stream, `values` is empty and `stream_length` is how many items it made."""

    task_id: bytes
    values: list[Value]
    took_us: int
    stream_length: int = -1


class Failure(msgspec.Struct, array_like=True, tag=12):
    """A task failed. `error` is the pickled exception; `application` says that the user's code raised it, and
    `cause_types` names the classes of the user's exception (module.qualname, most derived first), by which the owner
    decides about `retry_exceptions`. `stream_length` counts the items made before it failed, for a stream."""

    task_id: bytes
    error: bytes
    took_us: int
    application: bool = True
    cause_types: list[str] = []
    stream_length: int = -1


class StreamItem(msgspec.Struct, array_like=True, tag=13):
    """Item number `index` of a stream."""

    task_id: bytes
    index: int
    value: Value


class HandBack(msgspec.Struct, array_like=True, tag=14):
    """Tasks that the executor has not started and will not run; their owner places them anew."""

    task_ids: list[bytes]


class Pause(msgspec.Struct, array_like=True, tag=15):
    """The executor waits inside a task (or is busy with a long one): push nothing until `Resume`."""

    retiring: bool = False


class Resume(msgspec.Struct, array_like=True, tag=16):
    """The executor takes tasks again."""


# --- objects --------------------------------------------------------------------------------------------------------


class Fetch(msgspec.Struct, array_like=True, tag=20):
    """A borrower asks the owner for an object; the owner answers `Fetched` once the value exists."""

    object_id: bytes


class Fetched(msgspec.Struct, array_like=True, tag=21):
    """The owner's answer to `Fetch`."""

    object_id: bytes
    value: Value


class Borrow(msgspec.Struct, array_like=True, tag=22):
    """Register `borrower` (an address) as a holder of objects with their owner. Whoever lends references keeps its
    own holds until `Borrowed` with this `token` comes back."""

    object_ids: list[bytes]
    borrower: str
    token: int


class Borrowed(msgspec.Struct, array_like=True, tag=23):
    """The owner has registered a borrower for those of the objects that are not gone already."""

    token: int


class Release(msgspec.Struct, array_like=True, tag=24):
    """The sender gives up `count` registrations of each of these objects. `vouchers` are those among them that other processes had made
    for it, by their addresses: as many for each object."""

    object_ids: list[bytes]
    count: int
    vouchers: list[tuple[str, int]] = []


class FreeBlocks(msgspec.Struct, array_like=True, tag=25):
    """The owner tells the process that created these blocks that their objects are dead."""

    locations: list[Location]


class Recount(msgspec.Struct, array_like=True, tag=26):
    """An owner asks a borrower: of the registrations that `voucher` has made for it, how many does it know of? Answered when the borrower
    has read all that `voucher` said, which has died."""

    voucher: str
    object_ids: list[bytes]


class Counted(msgspec.Struct, array_like=True, tag=27):
    """The answer to `Recount`: the objects that were asked for, and how often those are registered of which the borrower knows."""

    voucher: str
    object_ids: list[bytes]
    counts: list[tuple[bytes, int]]


PeerMessage = (
    Define
    | Bind
    | Push
    | PushFull
    | Call
    | CallFull
    | Cancel
    | CancelObject
    | StreamConsumed
    | Done
    | Results
    | Failure
    | StreamItem
    | HandBack
    | Pause
    | Resume
    | Fetch
    | Fetched
    | Borrow
    | Borrowed
    | Release
    | FreeBlocks
    | Recount
    | Counted
)

__all__ = [
    "Bind",
    "Borrow",
    "Borrowed",
    "Call",
    "CallFull",
    "Cancel",
    "CancelObject",
    "Counted",
    "Define",
    "Dep",
    "Done",
    "Failure",
    "Fetch",
    "Fetched",
    "FreeBlocks",
    "HandBack",
    "Inline",
    "Pause",
    "PeerMessage",
    "Push",
    "PushFull",
    "Recount",
    "Ref",
    "Release",
    "Results",
    "Resume",
    "Stored",
    "StreamConsumed",
    "StreamItem",
    "Value",
]
