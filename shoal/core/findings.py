"""What is done with answers to a question about the cluster, in a node and in the control store: they are put together, and cut."""

from __future__ import annotations

from shoal.core.task_rows import cut, largest
from shoal.messages.state import (
    AskMemory,
    AskObjects,
    AskTasks,
    AskWorkers,
    Findings,
    Question,
)


def take_in(found: Findings, new: Findings) -> None:
    """Add what somebody else has found. Who was silent there is for the caller to name."""
    found.tasks += new.tasks
    found.objects += new.objects
    found.workers += new.workers
    found.reasons += new.reasons
    found.demands += new.demands
    found.processes += new.processes
    found.stores += new.stores
    found.left_out += new.left_out


def cut_down(found: Findings, question: Question) -> None:
    """Leave out what is more than was asked for, and count it."""
    left_out = 0
    match question:
        case AskTasks(limit):
            found.tasks, left_out = cut(found.tasks, limit)
        case AskObjects(limit) | AskMemory(limit):
            found.objects, left_out = largest(found.objects, limit)
        case AskWorkers(limit):
            left_out = max(0, len(found.workers) - limit)
            del found.workers[limit:]
    found.left_out += left_out
