"""What the control store remembers of what is over: processes and jobs. Bounded, in memory only: it explains, and nothing depends on it."""

from __future__ import annotations

from collections import deque
from typing import Final, TypeVar

from shoal.config import Config
from shoal.messages.control import EndedProcess, JobRow

ENDED_JOBS: Final = 1_000

T = TypeVar("T")


class History:
    """See the module's docstring."""

    def __init__(self, config: Config) -> None:
        self.processes: deque[EndedProcess] = deque(maxlen=config.ended_processes)
        self.jobs: deque[JobRow] = deque(maxlen=ENDED_JOBS)


def latest(items: deque[T], limit: int) -> list[T]:
    """The last so many, in order."""
    skipped = max(0, len(items) - max(0, limit))
    return [item for number, item in enumerate(items) if number >= skipped]
