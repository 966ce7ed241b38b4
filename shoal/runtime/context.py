"""Which task the running code belongs to.

A context variable, so that the threads and coroutines of concurrent actor methods each see their own. Code that runs in a thread
that the user started inside a task belongs to no task: like all code outside of tasks it sees the root context of its
process (`Process.root`).
"""

from __future__ import annotations

import itertools
from contextvars import ContextVar
from typing import Any

from shoal.ids import MAX_RETURNS, IdSource, put_id


class TaskContext:
    """The task (or the driver) that code runs in.

    Attributes:
        kind: "driver", "task" or "actor"; "worker" for the root context of a worker.
        children: The unfinished tasks submitted from here, by id, for recursive cancelling; None where nobody can ask for it.
        cancelled: Somebody asked for the task to end (`get_runtime_context().is_canceled()`).
        recursive: And for its children, too.
    """

    __slots__ = (
        "_ids",
        "_puts",
        "actor_id",
        "attempt",
        "cancelled",
        "children",
        "function_name",
        "kind",
        "name",
        "put_task_id",
        "recursive",
        "task_id",
    )

    def __init__(
        self,
        kind: str,
        task_id: bytes,
        ids: IdSource,
        name: str = "",
        function_name: str = "",
        actor_id: bytes | None = None,
        attempt: int = 0,
    ) -> None:
        self.kind = kind
        self.task_id = task_id
        # What an earlier attempt has put may still be lent, by this process or by another: it keeps its names.
        self.put_task_id = ids.task_id() if attempt else task_id
        self.name = name
        self.function_name = function_name
        self.actor_id = actor_id
        self.attempt = attempt
        self.cancelled = False
        self.recursive = False
        self.children: dict[bytes, Any] | None = None
        self._ids = ids
        self._puts = itertools.count()

    def next_put_id(self) -> bytes:
        """Id for the next object that is put from here."""
        number = next(self._puts)
        if number >= MAX_RETURNS:
            # Only a driver or an actor that lives for long gets here: it goes on under a fresh task id.
            self.put_task_id = self._ids.task_id()
            self._puts = itertools.count(1)
            number = 0
        return put_id(self.put_task_id, number)


current: ContextVar[TaskContext | None] = ContextVar("shoal_task", default=None)
