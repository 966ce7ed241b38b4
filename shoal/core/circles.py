"""Which jobs may know anything of which: of processes that do not answer, all that the node has to go by.

A process gets references from processes with which it speaks, and from nobody else. So does a job, and whoever meets belongs to one
*circle* from then on. What a process has left can be known in the circle of its job only; and a circle of which some process has met a
process of another node may know anything, since whom that has met is not known here. (On every node that a reference has reached it came
from another one, or from the node where it began.)

Rule 1. Meeting is for ever: a circle only grows, also when those that met have ended.
Rule 2. In doubt, a job may know.
"""

from __future__ import annotations


class _Circle:
    __slots__ = ("abroad", "jobs")

    def __init__(self, job_id: bytes) -> None:
        self.jobs = {job_id}
        self.abroad = False


class Circles:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._circles: dict[bytes, _Circle] = {}

    def enter(self, job_id: bytes) -> None:
        """A process of a job has come."""
        if job_id not in self._circles:
            self._circles[job_id] = _Circle(job_id)

    def met(self, job_id: bytes, other: bytes | None) -> None:
        """A process of a job speaks with one of another, or with one of which the job is not known here."""
        self.enter(job_id)
        mine = self._circles[job_id]
        if other is None:
            mine.abroad = True
            return
        self.enter(other)
        theirs = self._circles[other]
        if mine is theirs:
            return
        if len(mine.jobs) < len(theirs.jobs):
            mine, theirs = theirs, mine
        mine.abroad |= theirs.abroad
        mine.jobs |= theirs.jobs
        for job in theirs.jobs:
            self._circles[job] = mine

    def may_know(self, job_id: bytes, of: bytes) -> bool:
        """Whether processes of a job may have references to what a process of the job `of` has left (empty, if that is not known)."""
        circle = self._circles.get(job_id)
        return circle is None or circle.abroad or not of or of in circle.jobs

    def forget(self, job_id: bytes) -> None:
        """Nothing of a job is left on this node, and nothing will be asked about it."""
        circle = self._circles.pop(job_id, None)
        if circle is not None:
            circle.jobs.discard(job_id)

    def check(self) -> None:
        """Assert the invariants."""
        for job_id, circle in self._circles.items():
            assert job_id in circle.jobs
            assert all(self._circles[job] is circle for job in circle.jobs)
