"""How many there are in which state."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from shoal.util.records import ActorState, ObjectState, TaskState


def task_summary(states: list[TaskState]) -> dict[str, Any]:
    """By function or method."""
    summary: dict[str, dict[str, Any]] = {}
    for state in states:
        key = state.func_or_class_name
        group = summary.setdefault(
            key, {"func_or_class_name": key, "type": state.type, "state_counts": {}}
        )
        _count(group, state.state)
    calls = sum(state.type == "ACTOR_TASK" for state in states)
    return {
        "summary": summary,
        "total_tasks": len(states) - calls,
        "total_actor_tasks": calls,
        "summary_by": "func_name",
    }


def actor_summary(states: list[ActorState]) -> dict[str, Any]:
    """By class."""
    summary: dict[str, dict[str, Any]] = {}
    for state in states:
        key = state.class_name
        _count(summary.setdefault(key, {"class_name": key, "state_counts": {}}), state.state)
    return {"summary": summary, "total_actors": len(states), "summary_by": "class"}


def object_summary(states: Iterable[ObjectState]) -> dict[str, Any]:
    """By the task that made them; of each object what its owner says."""
    summary: dict[str, dict[str, Any]] = {}
    owned = [state for state in states if state.is_owner]
    for state in owned:
        key = state.task_name or "put"
        group = summary.setdefault(
            key, {"task_name": key, "total_objects": 0, "total_size_bytes": 0, "state_counts": {}}
        )
        group["total_objects"] += 1
        group["total_size_bytes"] += max(0, state.object_size)
        _count(group, state.state)
    return {"summary": summary, "total_objects": len(owned), "summary_by": "task"}


def _count(group: dict[str, Any], state: str) -> None:
    counts = group["state_counts"]
    counts[state] = counts.get(state, 0) + 1
