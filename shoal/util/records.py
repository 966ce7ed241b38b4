"""The records that `shoal.util.state` gives, with the columns that programs of Ray read.

Ids are hexadecimal digits, resources are in the units of users, times are milliseconds since the epoch; None is what nobody knows, and what
is a detail that was not asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Final, Generic, TypeVar

MOST: Final = 10_000
"""The highest `limit` of a list, and what every process is asked for at the most."""


class Record:
    """A row: its columns are attributes, and keys as of a dictionary. `DETAILS` are the columns that are None unless they are asked for."""

    DETAILS: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def columns(cls) -> list[str]:
        """The names of all columns."""
        return [one.name for one in fields(cls)]  # type: ignore[arg-type]  # every record is a dataclass

    @classmethod
    def short_columns(cls) -> list[str]:
        """Those that are not details."""
        return [column for column in cls.columns() if column not in cls.DETAILS]

    def hide_details(self) -> None:
        """Forget them."""
        for column in self.DETAILS:
            setattr(self, column, None)

    def keys(self) -> list[str]:
        """The names of the columns."""
        return self.columns()

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns())

    def __getitem__(self, column: str) -> Any:
        if column not in self.columns():
            raise KeyError(column)
        return getattr(self, column)

    def get(self, column: str, default: Any = None) -> Any:
        """The value of a column, `default` if there is no such column."""
        return getattr(self, column) if column in self.columns() else default

    def asdict(self) -> dict[str, Any]:
        """The columns and their values."""
        return {column: getattr(self, column) for column in self.columns()}


@dataclass
class ActorState(Record):
    """An actor. `state` is "PENDING", "ALIVE", "RESTARTING" or "DEAD"."""

    DETAILS: ClassVar[frozenset[str]] = frozenset(
        {
            "is_detached",
            "required_resources",
            "num_restarts",
            "death_cause",
            "pending_reason",
            "state_since_ms",
        }
    )

    actor_id: str
    class_name: str
    state: str
    job_id: str
    name: str
    node_id: str | None
    pid: int | None
    namespace: str = ""
    is_detached: bool | None = None
    required_resources: dict[str, float] | None = None
    num_restarts: int | None = None
    death_cause: str | None = None
    pending_reason: str | None = None
    state_since_ms: int | None = None


@dataclass
class TaskState(Record):
    """A task or call. `state` is one of those that Ray has; `owner` and `worker` are addresses of processes."""

    DETAILS: ClassVar[frozenset[str]] = frozenset(
        {"required_resources", "start_time_ms", "end_time_ms", "owner", "worker"}
    )

    task_id: str
    name: str
    state: str
    type: str
    job_id: str
    node_id: str | None
    worker_pid: int | None
    attempt_number: int
    func_or_class_name: str
    actor_id: str | None = None
    required_resources: dict[str, float] | None = None
    start_time_ms: int | None = None
    end_time_ms: int | None = None
    owner: str | None = None
    worker: str | None = None


@dataclass
class ObjectState(Record):
    """An object, as one process knows it: its owner, or one that borrows it. The size is in bytes, -1 if it is not known there; `node_id`
    is where the bytes are that it knows of, None if they are in the memory of the process. `reference_type` is one of
    `messages.inventory.KINDS`, and `why` says all that counts on it there; `call_site` is "" and `age_s` None unless the cluster has
    `record_call_sites`."""

    DETAILS: ClassVar[frozenset[str]] = frozenset(
        {
            "owner",
            "other_references",
            "borrowers",
            "process",
            "location",
            "why",
            "call_site",
            "age_s",
            "borrowed_by",
        }
    )

    object_id: str
    object_size: int
    state: str
    is_owner: bool
    node_id: str | None
    pid: int
    local_references: int
    task_name: str = ""
    owner: str | None = None
    other_references: int | None = None
    borrowers: int | None = None
    process: str | None = None
    reference_type: str = ""
    location: str | None = None
    why: str | None = None
    call_site: str | None = None
    age_s: float | None = None
    borrowed_by: list[str] | None = None


@dataclass
class NodeState(Record):
    """A node. `state` is "ALIVE" or "DEAD"; `state_message` says why it is dead, a clause."""

    DETAILS: ClassVar[frozenset[str]] = frozenset({"labels", "place", "pid"})

    node_id: str
    node_ip: str
    node_name: str
    state: str
    hostname: str
    resources_total: dict[str, float]
    resources_available: dict[str, float]
    state_message: str | None = None
    labels: dict[str, str] | None = None
    place: str | None = None
    pid: int | None = None


@dataclass
class WorkerState(Record):
    """A driver or worker. One that has ended has no id any more, and `exit_detail` says how it ended."""

    DETAILS: ClassVar[frozenset[str]] = frozenset(
        {"resources", "exit_detail", "state_since_ms", "end_time_ms", "address"}
    )

    worker_id: str | None
    is_alive: bool
    worker_type: str
    state: str
    node_id: str
    pid: int | None
    job_id: str | None = None
    runs: str = ""
    resources: dict[str, float] | None = None
    exit_detail: str | None = None
    state_since_ms: int | None = None
    end_time_ms: int | None = None
    address: str | None = None


@dataclass
class JobState(Record):
    """A job. `status` is "RUNNING", or "FINISHED" when its driver is gone, however it went: `message` says how."""

    DETAILS: ClassVar[frozenset[str]] = frozenset({"namespace", "driver_address"})

    job_id: str
    status: str
    entrypoint: str
    type: str
    message: str
    driver_node_id: str | None
    namespace: str | None = None
    driver_address: str | None = None


@dataclass
class PlacementGroupState(Record):
    """A placement group. `bundles` have their resources and their nodes."""

    DETAILS: ClassVar[frozenset[str]] = frozenset({"bundles", "is_detached", "pending_reason"})

    placement_group_id: str
    name: str
    creator_job_id: str
    state: str
    strategy: str
    bundles: list[dict[str, Any]] | None = None
    is_detached: bool | None = None
    pending_reason: str | None = None


@dataclass
class MemoryObject(Record):
    """A live object, as all processes know it together. `size` is in bytes, -1 if nobody knows; `location` is "INLINE", "SHARED_MEMORY",
    "DISK" (spilled), "PENDING" (it is being made), "FAILED" or "ACTOR" (no object: the handles of an actor). `nodes` have its bytes in
    their stores. `references` has one entry for each process that has any: `process`, `pid`, `who`, `node_id`, `types`,
    `local_references`. `why` says why it cannot be freed."""

    object_id: str
    size: int
    location: str
    reference_type: str
    owner: str
    owner_pid: int | None
    owner_type: str
    node_id: str | None
    nodes: list[str]
    task_name: str
    call_site: str
    age_s: float | None
    why: str
    references: list[dict[str, Any]]


@dataclass
class MemoryBlock(Record):
    """Memory of a node's store that is of no object: `kind` is "FREED" (somebody still looks at it) or "LEAKED" (no process accounts for
    it)."""

    kind: str
    node_id: str | None
    block: str
    size: int
    why: str


@dataclass
class NodeMemory(Record):
    """The store of a node, in bytes: `capacity` is the sum of what follows it, up to `free`. `on_disk` was spilled, and takes no
    capacity. `inline` is not in the store, but in the memory of the processes that own small objects. `leaked` is a part of `objects`,
    `copies` and `left_by_ended`, or of no account at all."""

    node_id: str
    node_name: str
    capacity: int
    objects: int
    copies: int
    freed_in_view: int
    idle: int
    reserved: int
    left_by_ended: int
    free: int
    on_disk: int
    objects_count: int
    copies_count: int
    inline: int
    inline_count: int
    leaked: int


@dataclass
class MemoryGroup(Record):
    """Objects counted by their owners, all that have something in common. `types` counts them by the types of their owners' references."""

    group: str
    count: int
    size: int
    stored: int
    inline: int
    types: dict[str, int]


R = TypeVar("R", bound=Record)


@dataclass
class Found(Generic[R]):
    """What was found: `left_out` more were not looked at, and `silent` did not answer in time."""

    states: list[R]
    left_out: int = 0
    silent: list[str] = field(default_factory=list)
