"""The actor class that most tests of actors use. In a module of its own: workers import nothing else for it."""

from __future__ import annotations

import os

import shoal


class PlainCounter:
    """Counts."""

    def __init__(self, start: int = 0, *, step: int = 1) -> None:
        self.total = start
        self.step = step

    def add(self, times: int = 1) -> int:
        self.total += times * self.step
        return self.total

    def pid(self) -> int:
        return os.getpid()

    def fail(self) -> None:
        raise ValueError(f"at {self.total}")

    @shoal.method(num_returns=2)
    def both(self) -> tuple[int, int]:
        return self.total, self.step

    def _private(self) -> str:
        return "private"


Counter = shoal.remote(PlainCounter)
