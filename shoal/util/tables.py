"""What there is in a cluster, as records: asked for, put together and put in order."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from shoal.messages.node import UNIT, NodeRow
from shoal.messages.state import AskObjects, AskTasks, AskWorkers, ObjectRow, TaskRow
from shoal.runtime.asking import Questions
from shoal.util.holdings import age_s, clauses, location_of
from shoal.util.records import (
    MOST,
    ActorState,
    Found,
    JobState,
    NodeState,
    ObjectState,
    PlacementGroupState,
    TaskState,
    WorkerState,
)
from shoal.wire.addresses import place_of


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


def actor_states(questions: Questions) -> Found[ActorState]:
    """Those that live first."""
    rows = sorted(questions.actors(), key=lambda row: row.state == "DEAD")
    states = [
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
    return Found(states)


def task_states(questions: Questions) -> Found[TaskState]:
    """One for each task: what its owner says, and what the process says that runs or ran it."""
    found = questions.survey(AskTasks(MOST))
    return Found(merged(found.tasks, Where(questions)), found.left_out, found.silent)


def merged(rows: Iterable[TaskRow], where: Where) -> list[TaskState]:
    """The states of tasks of which several processes may have told. Those that are not finished first, then the latest."""
    owned: dict[bytes, TaskRow] = {}
    ran: dict[bytes, TaskRow] = {}
    for row in rows:
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


def object_states(questions: Questions) -> Found[ObjectState]:
    """The largest first."""
    found = questions.survey(AskObjects(MOST))
    where = Where(questions)
    rows = sorted(found.objects, key=lambda row: -row.size)
    return Found([_object_state(row, where) for row in rows], found.left_out, found.silent)


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
        row.holdings[0].kind if row.holdings else "",
        location_of(row),
        "; ".join(clauses(row, lambda address: _process(row, address))),
        row.call_site,
        age_s(row),
        row.borrowed_by,
    )


def _process(row: ObjectRow, address: str) -> str:
    return f"the process with pid {row.pid}" if address == row.process else address


def node_states(questions: Questions) -> Found[NodeState]:
    """As they were told."""
    return Found([_node_state(row) for row in questions.nodes()])


def _node_state(row: NodeRow) -> NodeState:
    return NodeState(
        row.node_id.hex(),
        row.address,
        row.name,
        "ALIVE" if row.alive else "DEAD",
        row.hostname,
        _amounts(row.total.items()),
        _amounts(row.available.items()),
        row.cause or None,
        dict(row.labels),
        row.place,
        row.pid,
    )


def worker_states(questions: Questions) -> Found[WorkerState]:
    """Those that live, then those that have ended, the latest first."""
    found = questions.survey(AskWorkers(MOST))
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
    for process in reversed(questions.ended(MOST)):
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
    return Found(states, found.left_out, found.silent)


def job_states(questions: Questions) -> Found[JobState]:
    """Those that run first."""
    rows = sorted(questions.jobs(), key=lambda row: bool(row.ended))
    states = [
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
    return Found(states)


def placement_group_states(questions: Questions) -> Found[PlacementGroupState]:
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
    return Found(states)


def _amounts(units: Any) -> dict[str, float]:
    return {name: amount / UNIT for name, amount in units}
