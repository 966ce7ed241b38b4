"""The jobs of a cluster. One that is over is kept for as long as detached actors of it live: they may start again, and their workers need
to know of the job.

A job begins when the node of its driver says so. Another node may be quicker to name it, with an actor of it (`learn`): such a job is
treated like one that is over until its own node is heard, so that it is kept while the actor lives, and counts as nobody's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

import msgspec

from shoal.control.history import History
from shoal.control.journal import Journal
from shoal.control.restoring import JOBS
from shoal.messages.control import JobRow
from shoal.messages.node import Job
from shoal.messages.records import JobRecord

_UNHEARD: Final = "its driver's node has not said that it runs"

_encode: Final = msgspec.msgpack.Encoder().encode


class Jobs:
    """See the module's docstring. What changes is written to the journal."""

    def __init__(self, journal: Journal, history: History) -> None:
        self._journal = journal
        self._history = history
        self._records: dict[bytes, JobRecord] = {}
        # Those of them that are over, and whether one may be forgotten since somebody last looked.
        self._ended: set[bytes] = set()
        self._look = False

    def restore(self, records: dict[bytes, JobRecord]) -> None:
        """What an earlier control store knew."""
        self._records = records
        self._ended = {job_id for job_id, record in records.items() if record.ended}
        self._look = True

    def __iter__(self) -> Iterator[JobRecord]:
        """Those that run."""
        return iter([record for record in self._records.values() if not record.ended])

    def rows(self) -> list[JobRow]:
        """Those that have ended lately, and those that run."""
        return [*self._history.jobs, *(JobRow(record.job, record.node_id, "") for record in self)]

    def get(self, job_id: bytes) -> Job | None:
        """A job that runs, or of which something lives."""
        record = self._records.get(job_id)
        return None if record is None else record.job

    def is_over(self, job_id: bytes) -> bool:
        """Whether its driver's node has said that a job has ended."""
        record = self._records.get(job_id)
        return record is not None and bool(record.ended) and record.ended != _UNHEARD

    def node_of(self, job_id: bytes) -> bytes:
        """Where the driver of a job is that runs, b"" if there is none."""
        record = self._records.get(job_id)
        return b"" if record is None or record.ended else record.node_id

    def start(self, job: Job, node_id: bytes) -> None:
        """A driver has registered at a node."""
        self._write(JobRecord(job, node_id))

    def learn(self, job: Job) -> None:
        """There is an actor of this job, and another node than its driver's says so."""
        if job.job_id not in self._records:
            self._write(JobRecord(job, b"", _UNHEARD))

    def end(self, job_id: bytes, reason: str) -> None:
        """A job is over."""
        record = self._records.get(job_id)
        if record is not None and not record.ended:
            self._history.jobs.append(JobRow(record.job, record.node_id, reason))
            self._write(JobRecord(record.job, record.node_id, reason))

    def _write(self, record: JobRecord) -> None:
        job_id = record.job.job_id
        self._records[job_id] = record
        if record.ended:
            self._ended.add(job_id)
            self._look = True
        else:
            self._ended.discard(job_id)
        self._journal.write(JOBS, job_id, _encode(record))

    def forget(self, living: Collection[bytes]) -> list[bytes]:
        """Drop the jobs that are over and are not among those of which something lives; which these were."""
        self._look = False
        forgotten = sorted(self._ended.difference(living))
        for job_id in forgotten:
            self._ended.discard(job_id)
            del self._records[job_id]
            self._journal.write(JOBS, job_id, None)
        return forgotten

    def is_past(self, job_id: bytes) -> bool:
        """Whether a job is over and nothing of it lives, as far as that is remembered."""
        return job_id not in self._records and any(
            row.job.job_id == job_id for row in self._history.jobs
        )

    def on_actor_gone(self) -> None:
        """It may have been the last of its job."""
        self._look = True

    @property
    def may_forget(self) -> bool:
        """Whether `forget` may find any. Not after each message: whoever asks looks through all actors."""
        return self._look and bool(self._ended)
