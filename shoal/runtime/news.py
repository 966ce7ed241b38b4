"""Telling those who wait that a value is known, one after the other.

What one hears may make another value known at once: a task whose argument has failed fails with it, and so does whoever waits for
that task. So news that comes up while news is told waits for its turn. By calls within calls, a chain of some hundred tasks would be
too deep for Python's stack.

All methods are called with the runtime's lock held.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shoal.core.references import Entry, ObjectTable


class News:
    """See the module's docstring."""

    __slots__ = ("_objects", "_telling", "_untold")

    def __init__(self, objects: ObjectTable) -> None:
        self._objects = objects
        self._untold: deque[tuple[Iterable[Callable[[Entry], None]], Entry]] = deque()
        self._telling = False

    def tell(self, waiters: Iterable[Callable[[Entry], None]], entry: Entry) -> None:
        """The value of `entry` is known: tell those who have waited for it, after whoever is being told now."""
        untold = self._untold
        untold.append((waiters, entry))
        # Its last holder may let go of it meanwhile, and they shall see its value.
        self._objects.hold(entry)
        if self._telling:
            return
        self._telling = True
        try:
            while untold:
                waiters, entry = untold.popleft()
                try:
                    for waiter in waiters:
                        waiter(entry)
                finally:
                    self._objects.unhold(entry)
        finally:
            self._telling = False
