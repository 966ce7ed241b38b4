"""Where the bytes of a task's arguments are, so that the task goes there instead of them coming to it.

Only in clusters, and only for tasks whose arguments are large: these are queued by where most of their bytes are, beside their shape, so
that a lease is asked for where all tasks of its queue have theirs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.messages.values import Stored
from shoal.wire.addresses import place_of

if TYPE_CHECKING:
    from shoal.core.tasks import Task


def bytes_by_place(task: Task) -> dict[str, int]:
    """How many bytes of a task's arguments are stored at each place."""
    found: dict[str, int] = {}
    values = [entry.value for _, entry in task.deps or ()]
    for value in (*values, task.args):
        if type(value) is Stored:
            place = place_of(value.creator)
            found[place] = found.get(place, 0) + value.location.size
    return found


def main_place(task: Task, least_bytes: int) -> str:
    """Where most of the bytes are; "" if there are fewer than `least_bytes` in all."""
    found = bytes_by_place(task)
    if sum(found.values()) < least_bytes:
        return ""
    return max(found, key=lambda place: found[place])
