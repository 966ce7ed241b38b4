"""What workers that have ended had run: the latest runs, as `timeline()` and lists of tasks show them.

Kept encoded, at some sixty bytes each instead of the half kilobyte that they take as objects: there may be a hundred thousand of them, and
hardly anybody asks. The daemon's event loop only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from shoal.core.task_rows import row_of
from shoal.messages.node import TaskEvent
from shoal.messages.state import TaskRow

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(list[TaskEvent]).decode


class _Past(NamedTuple):
    """Of one worker."""

    address: str
    job_id: bytes
    number: int
    events: bytes


class PastRuns:
    """See the module's docstring. Of more than `most` those go whose workers ended first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._workers: deque[_Past] = deque()
        self._count = 0

    def add(self, address: str, job_id: bytes, events: Sequence[TaskEvent]) -> None:
        """A worker ends, and has run this."""
        if not events:
            return
        self._workers.append(_Past(address, job_id, len(events), _encode(events)))
        self._count += len(events)
        while self._count > self._most:
            self._count -= self._workers.popleft().number

    def rows(self) -> list[TaskRow]:
        """All of them, those of the worker that ended first at the beginning."""
        return [
            row_of(event, worker.address, worker.job_id)
            for worker in self._workers
            for event in _decode(worker.events)
        ]
