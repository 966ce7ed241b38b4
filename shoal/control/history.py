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
        self.processes: deque[EndedProcess] = deque()
        self.jobs: deque[JobRow] = deque(maxlen=ENDED_JOBS)
        self._most = config.ended_processes
        self._by_address: dict[str, EndedProcess] = {}

    def on_ended(self, process: EndedProcess) -> None:
        """A worker or driver has ended."""
        self.processes.append(process)
        self._by_address[process.address] = process
        if len(self.processes) > self._most:
            self._by_address.pop(self.processes.popleft().address, None)

    def end_of(self, address: str) -> EndedProcess | None:
        """How the process at an address has ended, if that is remembered."""
        return self._by_address.get(address)


def latest(items: deque[T], limit: int) -> list[T]:
    """The last so many, in order."""
    skipped = max(0, len(items) - max(0, limit))
    return [item for number, item in enumerate(items) if number >= skipped]
