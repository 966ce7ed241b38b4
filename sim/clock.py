"""Simulated time: a heap of what happens when."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any, Final

US: Final = 1_000
MS: Final = 1_000_000
SECOND: Final = 1_000_000_000


class Clock:
    """Calls functions in the order of their times; those of the same time in the order in which they were asked for."""

    def __init__(self) -> None:
        self.now = 0
        self.events = 0
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._last = 0

    def after(self, delay_ns: int, function: Callable[..., None], *args: Any) -> None:
        """Call a function later."""
        self._last += 1
        heappush(self._heap, (self.now + delay_ns, self._last, function, args))

    def run(self, until_ns: int) -> None:
        """Let time pass."""
        heap = self._heap
        while heap and heap[0][0] <= until_ns:
            self.now, _, function, args = heappop(heap)
            self.events += 1
            function(*args)
        self.now = until_ns
