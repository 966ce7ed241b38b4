"""Questions about the cluster: nodes, resources, the timeline."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any, Final

from shoal.messages.node import UNIT, NodeRow, NodesQuery
from shoal.messages.state import AskTasks, Findings, Survey, TaskRow
from shoal.runtime import current_process
from shoal.wire.addresses import LOCAL, place_of

if TYPE_CHECKING:
    from shoal.runtime.process import Process

_LIVES: Final = 0
_STOPPED: Final = 1
_FAILED: Final = 2
"""How Ray programs know why a node is dead: not at all, it was told to end, or it was not."""

_MOST_EVENTS: Final = 100_000
_ANSWER_WITHIN_MS: Final = 5_000


def node_rows(process: Process) -> list[NodeRow]:
    """The nodes as the control store knows them."""
    rows: list[NodeRow] = process.node.query(NodesQuery, list[NodeRow])
    return rows


def nodes() -> list[dict[str, Any]]:
    """The nodes, a dictionary each, with the keys that Ray programs read."""
    return [
        {
            "NodeID": row.node_id.hex(),
            "Alive": row.alive,
            "NodeManagerAddress": row.address,
            "NodeManagerHostname": row.hostname,
            "NodeManagerPort": 0,
            "ObjectManagerPort": 0,
            "ObjectStoreSocketName": "",
            "RayletSocketName": row.socket,
            "MetricsExportPort": 0,
            "NodeName": row.name,
            "RuntimeEnvAgentPort": 0,
            "DeathReason": _LIVES if row.alive else _STOPPED if row.stopped else _FAILED,
            "DeathReasonMessage": _sentence(row.cause),
            "alive": row.alive,
            "Resources": _amounts(row.total),
            "Labels": dict(row.labels),
        }
        for row in node_rows(current_process.require())
    ]


def _sentence(clause: str) -> str:
    return f"It {clause.rstrip('.')}." if clause else ""


def cluster_resources() -> dict[str, float]:
    """What the living nodes have in total, by resource."""
    return _sum([row.total for row in node_rows(current_process.require()) if row.alive])


def available_resources() -> dict[str, float]:
    """What of it is free now, by resource; what is used up is left out."""
    free = _sum([row.available for row in node_rows(current_process.require()) if row.alive])
    return {name: amount for name, amount in free.items() if amount > 0}


def _amounts(units: dict[str, int]) -> dict[str, float]:
    return {name: amount / UNIT for name, amount in units.items()}


def _sum(all_units: list[dict[str, int]]) -> dict[str, float]:
    total: dict[str, int] = {}
    for units in all_units:
        for name, amount in units.items():
            total[name] = total.get(name, 0) + amount
    return _amounts(total)


def timeline(filename: str | None = None) -> list[dict[str, Any]] | None:
    """What ran where and when, on all nodes, in the format of Chrome's tracing (chrome://tracing, Perfetto).

    Args:
        filename: Where to write it as JSON; without it, the events are returned.
    """
    process = current_process.require()
    question = AskTasks(_MOST_EVENTS, unfinished=False)
    found: Findings = process.node.query(
        lambda req: Survey(req, question, [], _ANSWER_WITHIN_MS), Findings
    )
    events = found.tasks
    if found.left_out:
        warnings.warn(
            f"the timeline has the latest {len(events):,} tasks only, and {found.left_out:,} others are left out",
            stacklevel=2,
        )
    lines = _lines(events)
    trace: list[dict[str, Any]] = [
        {"name": "process_name", "ph": "M", "pid": number, "args": {"name": name}}
        for number, name in lines.values()
    ]
    trace += [
        {
            "name": event.name,
            "cat": "actor" if event.kind == "ACTOR_TASK" else "task",
            "ph": "X",
            "pid": lines[event.worker][0],
            "tid": lines[event.worker][0],
            "ts": event.start_ns / 1000,
            "dur": (event.end_ns - event.start_ns) / 1000,
            "args": {"task_id": event.task_id.hex(), "ok": event.state == "FINISHED"},
        }
        for event in sorted(events, key=lambda event: event.start_ns)
    ]
    if filename is None:
        return trace
    with open(filename, "w", encoding="utf-8") as file:
        json.dump(trace, file)
    return None


def _lines(events: list[TaskRow]) -> dict[str, tuple[int, str]]:
    """By process: a number, which is its pid unless that of another node has the same, and what to call it."""
    lines: dict[str, tuple[int, str]] = {}
    taken: set[int] = set()
    for event in sorted(events, key=lambda event: event.pid):
        if event.worker not in lines:
            number = event.pid
            while number in taken:
                number += 1 << 22
            taken.add(number)
            place = place_of(event.worker)
            where = "" if place == LOCAL else f" at {place}"
            lines[event.worker] = number, f"worker {event.pid}{where}"
    return lines
