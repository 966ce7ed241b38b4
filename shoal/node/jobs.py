"""The jobs of which a node has heard: what its workers must know of each.

A job that is over may still be asked for: by actors that outlive it, and by nodes that have not heard. So it is forgotten only when
`REMEMBERED` later ones are over, too, and nothing of it is left here.

Used from the daemon's loop only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from shoal.messages.node import Job

REMEMBERED: Final = 1_000
"""Jobs that are over and are kept, at some kilobytes each."""

_LOOKS: Final = 2


class Jobs(dict[bytes, Job]):
    """By id; see the module's docstring."""

    def __init__(self, on_forgotten: Callable[[bytes], None]) -> None:
        """`on_forgotten` hears of each job of which nothing is left."""
        super().__init__()
        self._on_forgotten = on_forgotten
        self._over: dict[bytes, None] = {}
        # Of those that have ended before anything of them was here, the last: word of such a job may still come from others.
        self._past: dict[bytes, None] = {}

    def learn(self, job: Job, in_use: Callable[[bytes], bool], *, over: bool) -> None:
        """Another node, or the control store, names a job; as far as that knows, it is `over`."""
        job_id = job.job_id
        self.setdefault(job_id, job)
        if over or job_id in self._past:
            self._past.pop(job_id, None)
            self.on_over(job_id, in_use)

    def on_over(self, job_id: bytes, in_use: Callable[[bytes], bool]) -> None:
        """A job has ended. `in_use` tells whether anything of a job runs or waits here."""
        if job_id in self:
            self._over.pop(job_id, None)
            self._over[job_id] = None
        else:
            self._past[job_id] = None
            if len(self._past) > REMEMBERED:
                del self._past[next(iter(self._past))]
        # Two for one, so that those that stay in use do not stand before the others for long.
        for _ in range(_LOOKS):
            if len(self._over) <= REMEMBERED:
                return
            oldest = next(iter(self._over))
            del self._over[oldest]
            if in_use(oldest):
                self._over[oldest] = None
            else:
                del self[oldest]
                self._on_forgotten(oldest)

    def is_over(self, job_id: bytes) -> bool:
        """Whether a job has ended, of those that are remembered."""
        return job_id in self._over
