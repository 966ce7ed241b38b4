"""The records that `shoal.util.state` gives, with the columns that programs of Ray read, and how they come from what was found.

Ids are hexadecimal digits, resources are in the units of users, times are milliseconds since the epoch; None is what nobody knows, and what
is a detail that was not asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from shoal.messages.control import EndedProcess
from shoal.messages.node import UNIT, NodeRow
from shoal.messages.state import Findings, ObjectRow, TaskRow
from shoal.runtime.asking import Questions
from shoal.wire.addresses import place_of


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
    is where the bytes are that it knows of, None if they are in the memory of the process."""

    DETAILS: ClassVar[frozenset[str]] = frozenset(
        {"owner", "other_references", "borrowers", "process"}
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


@dataclass
class NodeState(Record):
    """A node. `state` is "ALIVE" or "DEAD"."""

    DETAILS: ClassVar[frozenset[str]] = frozenset({"labels", "place", "pid"})

    node_id: str
    node_ip: str
    node_name: str
    state: str
    hostname: str
    resources_total: dict[str, float]
    resources_available: dict[str, float]
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


# --- from what was found --------------------------------------------------------------------------------------------


class Where:
    """Which node is at a place."""

    def __init__(self, questions: Questions) -> None:
        # The dead first: a place may have been taken again.
        rows = sorted(questions.nodes(), key=lambda row: row.alive)
        self._nodes = {row.place: row.node_id.hex() for row in rows}

    def of(self, address: str) -> str | None:
        """The node of the process at an address."""
        return self._nodes.get(place_of(address)) if address else None

    def at(self, place: str) -> str | None:
        """The node whose door is there."""
        return self._nodes.get(place)


def actor_states(questions: Questions) -> list[ActorState]:
    """Those that live first."""
    rows = sorted(questions.actors(), key=lambda row: row.state == "DEAD")
    return [
        ActorState(
            row.actor_id.hex(),
            row.class_name,
            row.state,
            row.job_id.hex(),
            row.name,
            row.node_id.hex() or None,
            row.pid or None,
            row.namespace,
            row.detached,
            _amounts(row.resources),
            row.incarnation,
            row.cause or None,
            row.waits or None,
            row.since_ns // 1_000_000,
        )
        for row in rows
    ]


def task_states(found: Findings, where: Where) -> list[TaskState]:
    """One for each task: what its owner says, and what the process says that runs or ran it."""
    owned: dict[bytes, TaskRow] = {}
    ran: dict[bytes, TaskRow] = {}
    for row in found.tasks:
        if row.owner:
            owned[row.task_id] = row
        else:
            before = ran.get(row.task_id)
            # That it runs now is newer than how an earlier attempt ended.
            if before is None or (before.end_ns and (not row.end_ns or row.end_ns > before.end_ns)):
                ran[row.task_id] = row
    states = [_task_state(row, ran.get(task_id), where) for task_id, row in owned.items()]
    states += [_task_state(row, row, where) for task_id, row in ran.items() if task_id not in owned]
    # Python's sort is stable: what is not finished stays in its order, the latest that ended come next.
    states.sort(key=lambda state: -state.end_time_ms if state.end_time_ms else -float("inf"))
    return states


def _task_state(row: TaskRow, run: TaskRow | None, where: Where) -> TaskState:
    if run is not None and run.end_ns and run is not row:
        # Its owner has not finished with it: an earlier attempt, or an answer that is on its way.
        run = None
    shown = run or row
    return TaskState(
        row.task_id.hex(),
        row.name,
        shown.state,
        row.kind,
        row.job_id.hex(),
        where.of(shown.worker),
        shown.pid or None,
        row.attempt,
        row.name,
        row.actor_id.hex() or None,
        _amounts(row.resources),
        shown.start_ns // 1_000_000 or None,
        shown.end_ns // 1_000_000 or None,
        row.owner or None,
        shown.worker or None,
    )


def object_states(found: Findings, where: Where) -> list[ObjectState]:
    """The largest first."""
    rows = sorted(found.objects, key=lambda row: -row.size)
    return [_object_state(row, where) for row in rows]


def _object_state(row: ObjectRow, where: Where) -> ObjectState:
    return ObjectState(
        row.object_id.hex(),
        row.size,
        row.state,
        row.owner == row.process,
        where.at(row.place),
        row.pid,
        row.local_references,
        row.task_name,
        row.owner,
        row.other_references,
        row.borrowers,
        row.process,
    )


def node_states(questions: Questions) -> list[NodeState]:
    """As they were told."""
    return [_node_state(row) for row in questions.nodes()]


def _node_state(row: NodeRow) -> NodeState:
    return NodeState(
        row.node_id.hex(),
        row.address,
        row.name,
        "ALIVE" if row.alive else "DEAD",
        row.hostname,
        _amounts(row.total.items()),
        _amounts(row.available.items()),
        dict(row.labels),
        row.place,
        row.pid,
    )


def worker_states(found: Findings, ended: list[EndedProcess]) -> list[WorkerState]:
    """Those that live, then those that have ended, the latest first."""
    states = [
        WorkerState(
            row.worker_id.hex() or None,
            True,
            row.kind,
            row.state,
            row.node_id.hex(),
            row.pid,
            row.job_id.hex(),
            row.runs,
            _amounts(row.resources),
            None,
            row.since_ns // 1_000_000 or None,
            None,
            row.address,
        )
        for row in found.workers
    ]
    for process in reversed(ended):
        pid = re.search(r"pid (\d+)", process.who)
        states.append(
            WorkerState(
                None,
                False,
                "DRIVER" if "driver" in process.who else "WORKER",
                "DEAD",
                process.node_id.hex(),
                int(pid[1]) if pid else None,
                exit_detail=process.how,
                end_time_ms=process.at_ns // 1_000_000,
                address=process.address,
            )
        )
    return states


def job_states(questions: Questions) -> list[JobState]:
    """Those that run first."""
    rows = sorted(questions.jobs(), key=lambda row: bool(row.ended))
    return [
        JobState(
            row.job.job_id.hex(),
            "FINISHED" if row.ended else "RUNNING",
            row.job.entrypoint,
            "DRIVER",
            row.ended,
            row.node_id.hex() or None,
            row.job.namespace,
            row.job.owner,
        )
        for row in rows
    ]


def placement_group_states(questions: Questions) -> list[PlacementGroupState]:
    """As they were told."""
    states = []
    for info in questions.groups():
        record, spec = info.record, info.record.spec
        bundles = [
            {
                "bundle_index": index,
                "resources": _amounts(bundle.resources),
                "node_id": place.hex() or None,
            }
            for index, (bundle, place) in enumerate(zip(spec.bundles, record.places, strict=False))
        ]
        states.append(
            PlacementGroupState(
                spec.group_id.hex(),
                spec.name,
                spec.job_id.hex(),
                record.state,
                spec.strategy,
                bundles,
                spec.detached,
                info.waits or None,
            )
        )
    return states


def _amounts(units: Any) -> dict[str, float]:
    return {name: amount / UNIT for name, amount in units}
