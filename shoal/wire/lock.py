"""The lock that guards a reactor, and all that its messages change: the runtime's one lock.

It is reentrant, and tells whether this thread has it: Python may run user code, finalizers and signal handlers, in the middle of
a locked section (see `runtime.reentry`).
"""

from __future__ import annotations

from _thread import RLock
from types import TracebackType
from typing import Protocol, cast


class ReentrantLock(Protocol):
    """What is used of the interpreter's own reentrant lock. `_is_owned` is how `threading.Condition` asks it, too."""

    def __enter__(self) -> object: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...
    def _is_owned(self) -> bool: ...


def make_lock() -> ReentrantLock:
    """The lock of a runtime, written in C."""
    return cast("ReentrantLock", RLock())
