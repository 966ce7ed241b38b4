"""A lock that tells whether this thread has it.

Python may run user code, finalizers and signal handlers, in the middle of any locked section. A thread that waited there for its own
lock would wait for ever; so locks that user code can come to are reentrant, and those who enter ask first (see
`runtime.reentry`).
"""

from __future__ import annotations

from _thread import RLock
from types import TracebackType
from typing import Protocol, cast


class ReentrantLock(Protocol):
    """What is used of the interpreter's own reentrant lock. `_is_owned` is how `threading.Condition` asks it, too; called as it is
    where each call counts."""

    def acquire(self, blocking: bool = True) -> bool: ...
    def release(self) -> None: ...

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
    """A new one, written in C."""
    return cast("ReentrantLock", RLock())
