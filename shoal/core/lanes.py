"""What serves the tasks of a process: the workers that it has leased, and the queues that share them.

Records only. Who changes them, and when, is the business of `core.tasks`; what it wants done about leases it says in the effects
below, and the runtime does it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from shoal.messages.placement import Spread

if TYPE_CHECKING:
    from shoal.core.tasks import Task
    from shoal.messages.node import Shape


class Lane:
    """A leased worker. `push(task)` puts a task on its connection."""

    __slots__ = (
        "address",
        "connection",
        "given",
        "gpu_ids",
        "idle_since",
        "inflight",
        "lease_id",
        "load_us",
        "paused",
        "pid",
        "push",
        "queue",
        "retiring",
        "returned",
        "revoked",
        "wanted",
    )

    def __init__(
        self,
        queue: SchedulingClass,
        lease_id: int,
        address: str,
        pid: int,
        push: Callable[[Lane, Task], None],
    ) -> None:
        self.queue = queue
        self.lease_id = lease_id
        self.address = address
        self.pid = pid
        self.push = push
        self.gpu_ids: list[str] = []
        self.connection: Any = None
        self.inflight: dict[bytes, Task] = {}
        self.load_us = 0.0
        # How many tasks it was given; kept for classes that are spread.
        self.given = 0
        self.idle_since = 0.0
        self.paused = False
        self.wanted = False
        self.retiring = False
        self.returned = False
        # Why its worker is about to end, if that is not for what it runs: a clause.
        self.revoked = ""

    def is_open(self) -> bool:
        """Whether new tasks may be pushed at all."""
        return not (self.paused or self.wanted or self.retiring or self.returned)

    def __repr__(self) -> str:
        return f"<Lane lease={self.lease_id} pid={self.pid} inflight={len(self.inflight)} load={self.load_us:.0f}us>"


class SchedulingClass:
    """A scheduling class: the queue of the tasks of one shape, and the lanes that serve it. `place` is where their arguments are, if
    that matters. `even`: they are to be spread evenly."""

    __slots__ = (
        "__weakref__",
        "even",
        "lanes",
        "place",
        "queue",
        "refused",
        "requests",
        "room",
        "shape",
    )

    def __init__(self, shape: Shape, place: str = "") -> None:
        self.shape = shape
        self.place = place
        self.even = isinstance(shape.strategy, Spread)
        self.queue: deque[Task] = deque()
        self.lanes: list[Lane] = []
        self.requests: dict[int, None] = {}
        # No further worker was to be had: those that are there do the work, until `ask_again`.
        self.refused = False
        # False only while every lane is known to be full: then a submit is a mere append.
        self.room = True


class RequestLease(NamedTuple):
    """Ask the node for a worker; answer with `granted` or `refused` under the same number."""

    req: int
    queue: SchedulingClass
    backlog: int
    name: str


class CancelLease(NamedTuple):
    """The request is not needed any more."""

    req: int


class ReturnLease(NamedTuple):
    """Give the worker back."""

    lane: Lane


Effect = RequestLease | CancelLease | ReturnLease
