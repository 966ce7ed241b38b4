"""What tests, tasks and threads tell each other, by files: so that nobody sleeps until something has probably happened.

A `Gate` is opened once and can be waited for; a `Trace` is a list of words that several processes append to. Both are
sent to tasks by their path, and both belong to one test: the fixtures `gates` and `traces` make them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

DEADLINE_S: Final = 30.0
"""How long a test waits for what must happen, in seconds: far longer than it takes, on a busy machine too."""

_PAUSE_S: Final = 0.004


def wait_until(condition: Callable[[], object], what: str, seconds: float = DEADLINE_S) -> None:
    """Wait until `condition()` is true, and fail with `what` should that take too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"this did not happen within {seconds:g} s: {what}")
        time.sleep(_PAUSE_S)


def alive(pid: int) -> bool:
    """Whether there is a process of that id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class Gate:
    """Something that has happened or not."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def open(self) -> None:
        """Let through whoever waits, now and later."""
        self._path.touch()

    def is_open(self) -> bool:
        """Whether it was opened."""
        return self._path.exists()

    def wait(self, seconds: float = DEADLINE_S) -> None:
        """Wait until it is open."""
        wait_until(self.is_open, f"{self._path.name} opens", seconds)


class Trace:
    """Words in the order in which they were written, by whomever."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, word: object) -> None:
        """Append a word. One write of a short line: those of other processes come before or after."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{word}\n")

    def words(self) -> list[str]:
        """All words so far."""
        return self._path.read_text("utf-8").split() if self._path.exists() else []

    def __len__(self) -> int:
        return len(self.words())
