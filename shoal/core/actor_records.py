"""What the directory of actors keeps and decides: states, effects, and the record of an actor. See `core.actors`."""

from __future__ import annotations

from collections.abc import Hashable
from enum import Enum
from typing import Final, NamedTuple

from shoal.messages.node import ActorChange, ActorInfo, ActorSpec
from shoal.messages.records import LivingActor

Watcher = Hashable


class ActorState(Enum):
    """The values are those of `ActorChange.state`."""

    PENDING = "PENDING"
    ALIVE = "ALIVE"
    RESTARTING = "RESTARTING"
    DEAD = "DEAD"


MOVES: Final[dict[ActorState, frozenset[ActorState]]] = {
    ActorState.PENDING: frozenset({ActorState.ALIVE, ActorState.RESTARTING, ActorState.DEAD}),
    ActorState.ALIVE: frozenset({ActorState.RESTARTING, ActorState.DEAD}),
    ActorState.RESTARTING: frozenset({ActorState.ALIVE, ActorState.RESTARTING, ActorState.DEAD}),
    ActorState.DEAD: frozenset(),
}


# --- effects --------------------------------------------------------------------------------------------------------


class Place(NamedTuple):
    """Find a process for this life of an actor; report `on_placed`, `on_started`, `on_process_gone`."""

    spec: ActorSpec
    incarnation: int
    job_id: bytes


class StopHow(Enum):
    """How a life is ended."""

    DRAIN = "drain"
    """When what was called has run."""
    EXIT = "exit"
    """In good order, but now."""
    KILL = "kill"
    """By SIGKILL."""


class Stop(NamedTuple):
    """End this life: forget its placement, or end its process. `reason` is a clause."""

    actor_id: bytes
    incarnation: int
    reason: str
    how: StopHow


class Tell(NamedTuple):
    """Send a change to these watchers."""

    watchers: tuple[Watcher, ...]
    change: ActorChange


class Save(NamedTuple):
    """The record of this actor has changed (`ActorDirectory.record`); write it down before the effects that follow are carried
    out. The specification of a new one, too."""

    actor_id: bytes
    new: bool = False


class SaveForgotten(NamedTuple):
    """What is remembered no more of this process's actors has changed (`ActorDirectory.forgotten`)."""

    process: bytes


Effect = Place | Stop | Tell | Save | SaveForgotten


class Actor:
    """One actor, over all its lives."""

    __slots__ = (
        "address",
        "cause",
        "draining",
        "ending",
        "error",
        "incarnation",
        "job_id",
        "kind",
        "pid",
        "restarts_used",
        "spec",
        "state",
        "watchers",
    )

    def __init__(self, spec: ActorSpec, job_id: bytes) -> None:
        self.spec = spec
        self.job_id = job_id
        self.state = ActorState.PENDING
        self.incarnation = 0
        self.restarts_used = 0
        self.address = ""
        self.pid = 0
        self.cause = ""
        self.error = b""
        # Why it is dead, as in `ActorChange`.
        self.kind = ""
        # Its handles are gone: it ends when what was called has run. (It may not even run yet.)
        self.draining = ""
        # It said itself why it ends.
        self.ending = ""
        self.watchers: dict[Watcher, None] = {}

    def change(self) -> ActorChange:
        """Its present state, as watchers get it."""
        return ActorChange(
            self.spec.actor_id,
            self.state.value,
            self.incarnation,
            self.address,
            self.pid,
            self.cause,
            self.error,
            self.kind,
        )

    def record(self) -> LivingActor:
        """What a later control store must know of it."""
        return LivingActor(
            self.job_id,
            self.state.value,
            self.incarnation,
            self.address,
            self.pid,
            self.cause,
            self.draining,
            self.ending,
        )

    @classmethod
    def restored(cls, spec: ActorSpec, record: LivingActor) -> Actor:
        """The actor that a record is of."""
        actor = cls(spec, record.job_id)
        actor.state = ActorState(record.state)
        actor.incarnation = actor.restarts_used = record.incarnation
        actor.address = record.address
        actor.pid = record.pid
        actor.cause = record.cause
        actor.draining = record.draining
        actor.ending = record.ending
        return actor

    def info(self, *, existed: bool) -> ActorInfo:
        """What a handle to it needs."""
        spec = self.spec
        return ActorInfo(
            spec.actor_id,
            spec.class_name,
            spec.owner,
            spec.methods,
            spec.max_task_retries,
            spec.max_pending_calls,
            spec.is_async,
            existed,
        )
