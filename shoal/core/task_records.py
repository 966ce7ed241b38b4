"""What the table of tasks keeps: remote functions, tasks, and where a task is.

Records only, changed in place: there may be a hundred thousand tasks. Who changes them, and when, is the business of `core.tasks`; calls of
actors' methods (`core.calls`) have the same record.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final

from shoal.core.memory_retries import Shortages


class State(IntEnum):
    """Where a task is."""

    WAITING = 0
    QUEUED = 1
    PUSHED = 2
    HERE = 3
    FINISHED = 4


_WAITING: Final = State.WAITING


class Function:
    """A remote function: what is sent once per connection, and how long it has been taking. `holds` are the entries of the references
    that it captured."""

    __slots__ = (
        "average_us",
        "code",
        "function_id",
        "holds",
        "index",
        "max_calls",
        "name",
        "retriable",
        "target",
    )

    def __init__(
        self,
        index: int,
        function_id: bytes,
        name: str,
        code: Any,
        max_calls: int = 0,
        retriable: bool = True,
    ) -> None:
        self.index = index
        self.function_id = function_id
        self.name = name
        self.code = code
        self.max_calls = max_calls
        self.holds: list[Any] = []
        # Whether its tasks may be run again at all: with `max_retries=0` they may not.
        self.retriable = retriable
        self.average_us = -1.0
        # What error messages about arguments look at for the names of parameters.
        self.target: Any = name


class Task:
    """One task, or one call of an actor's method (then `function` is None and `method` names it).

    Attributes:
        args: Arguments: `bytes` when they are a plain inline pickle, else `Inline` or `Stored`.
        deps: (key, entry) of top-level arguments that are references; resolved when the task is pushed.
        holds: Entries that the task keeps alive until it has finished (its deps, and references inside its arguments).
        returns: Entries of the results (for a stream: the one that its generator counts on).
        return_count: Number of results; -1 for a stream.
        retries: Retries left after the loss of a worker; -1 for ever.
        siblings: The unfinished tasks that the same parent submitted, by id; for recursive cancelling.
        waits_since_ns: Since when it waits for dependencies, in nanoseconds since the epoch. Only there if it has had to.
        shortages: How often its worker was ended for want of memory. Only there if one was.
        error_retry: Which exceptions of the user's code are retried too: False, True, or class names.
    """

    __slots__ = (
        "args",
        "attempt",
        "cancelled",
        "cost_us",
        "deps",
        "error_retry",
        "function",
        "group",
        "holds",
        "lane",
        "method",
        "name",
        "queue",
        "retries",
        "return_count",
        "returns",
        "shortages",
        "siblings",
        "state",
        "stream",
        "suspect",
        "task_id",
        "unready",
        "waits_since_ns",
        "window",
    )
    waits_since_ns: int
    shortages: Shortages

    def __init__(
        self,
        task_id: bytes,
        function: Function | None,
        queue: Any,
        args: Any,
        returns: Any,
        retries: int,
    ) -> None:
        self.task_id = task_id
        self.function = function
        self.queue = queue
        self.args = args
        self.returns = returns
        self.retries = retries
        self.return_count = 1
        self.state: State = _WAITING
        self.deps: list[tuple[int | str, Any]] | None = None
        self.holds: list[Any] | None = None
        self.unready = 0
        self.attempt = 0
        self.lane: Any = None
        self.cost_us = 0.0
        self.suspect = False
        self.cancelled = False
        self.error_retry: bool | tuple[str, ...] = False
        self.stream: Any = None
        self.window = 0
        self.method = ""
        self.name = ""
        self.group = ""
        self.siblings: dict[bytes, Task] | None = None

    def __repr__(self) -> str:
        what = self.method or (self.function.name if self.function else "?")
        return f"<Task {what} {self.task_id.hex()} {self.state.name} attempt={self.attempt}>"
