"""The worker processes of a node: which exist, what each is doing, and which idle ones are kept.

::

    (fork) ─► STARTING ─► IDLE ◄──► LEASED ────────────┐
                 │         ▲ │        │                │
                 │         │ ▼        ▼                ▼
                 │        RETIRING ◄──┘ ──────────► ENDING ─► (gone)
                 └─────────────────────────────────────▲

A worker that retires is asked to end, and may answer that others count on what it owns: references to its objects have gone
out with results. An idle one then goes back to the others; one that is *spent* (never to be leased again) ends by itself
when nobody counts on it any more. A worker may vanish from any state: processes die.

Guarantees: a worker is leased at most once at a time; an idle one is found again only by the job and environment that it
was forked for, the most recently used first (its caches are warm); of the idle ones beyond `idle_limit` the longest idle
retire first. A *fresh* worker has not been leased: actors begin in those only, since an actor's end would take along what
the tasks before it own.

Leaves to `core.leases` who gets a worker and when one is forked, and to the shell to fork, to tell and to kill.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Final, NamedTuple

from shoal.errors import InternalError


class WorkerKey(NamedTuple):
    """What a worker is forked for: leases of another job or environment need another process."""

    job_id: bytes
    env: str


class WorkerState(Enum):
    """What a worker is doing; the values appear in explanations."""

    STARTING = "starting"
    IDLE = "idle"
    LEASED = "leased"
    RETIRING = "retiring"
    ENDING = "ending"


MOVES: Final[dict[WorkerState, frozenset[WorkerState]]] = {
    WorkerState.STARTING: frozenset({WorkerState.IDLE, WorkerState.ENDING}),
    WorkerState.IDLE: frozenset({WorkerState.LEASED, WorkerState.RETIRING, WorkerState.ENDING}),
    WorkerState.LEASED: frozenset({WorkerState.IDLE, WorkerState.RETIRING, WorkerState.ENDING}),
    WorkerState.RETIRING: frozenset({WorkerState.IDLE, WorkerState.ENDING}),
    WorkerState.ENDING: frozenset(),
}


class Worker:
    """One worker process.

    Attributes:
        lease_id: 0 unless it is leased, or ends while its lease's resources are in use.
        fresh: It has never been leased.
        spent: It is not to be leased again.
        stays_until: When it may be asked to retire again, after it said that it is counted on.
    """

    __slots__ = (
        "fresh",
        "key",
        "lease_id",
        "since",
        "spent",
        "state",
        "stays_until",
        "story",
        "worker_id",
    )

    def __init__(self, worker_id: bytes, key: WorkerKey, now: int) -> None:
        self.worker_id = worker_id
        self.key = key
        self.state = WorkerState.STARTING
        self.since = now
        self.lease_id = 0
        self.fresh = True
        self.spent = False
        self.stays_until = 0
        self.story: deque[tuple[int, WorkerState]] = deque([(now, self.state)], maxlen=16)


class WorkerPool:
    """See the module's docstring."""

    def __init__(self, idle_limit: int, idle_ns: int, start_timeout_ns: int) -> None:
        self._idle_limit = idle_limit
        self._idle_ns = idle_ns
        self._start_timeout_ns = start_timeout_ns
        self._workers: dict[bytes, Worker] = {}
        # Workers by state and, where it matters, by key; dicts serve as ordered sets, the latest at the end.
        self._idle: dict[WorkerKey, dict[bytes, Worker]] = {}
        self._idle_by_age: dict[bytes, Worker] = {}
        self._starting: dict[bytes, Worker] = {}

    def __len__(self) -> int:
        return len(self._workers)

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._workers.values())

    def get(self, worker_id: bytes) -> Worker | None:
        """The worker, unless it is gone."""
        return self._workers.get(worker_id)

    @property
    def starting_count(self) -> int:
        """How many were forked and have not registered."""
        return len(self._starting)

    def starting_of(self, key: WorkerKey) -> int:
        """How many of a key were forked and have not registered."""
        return sum(worker.key == key for worker in self._starting.values())

    @property
    def idle_count(self) -> int:
        """How many wait for a lease."""
        return len(self._idle_by_age)

    def idle_of(self, key: WorkerKey) -> int:
        """How many of a key wait for a lease."""
        return len(self._idle.get(key, ()))

    def has_idle(self, key: WorkerKey, *, for_actor: bool) -> bool:
        """Whether a worker of a key waits for a lease, one that is fit for an actor if need be."""
        return self._idle_one(key, for_actor) is not None

    def _idle_one(self, key: WorkerKey, for_actor: bool) -> Worker | None:
        # Fresh ones are for actors, which can begin in no other: tasks take one only if there is no other. From the end,
        # since those used most recently have warm caches.
        idle = self._idle.get(key)
        if not idle:
            return None
        found = next((w for w in reversed(idle.values()) if w.fresh == for_actor), None)
        if found is None and not for_actor:
            found = next(reversed(idle.values()))
        return found

    # --- events --------------------------------------------------------------------------------------------------

    def add(self, worker_id: bytes, key: WorkerKey, now: int) -> None:
        """A worker is being forked."""
        assert worker_id not in self._workers
        self._workers[worker_id] = self._starting[worker_id] = Worker(worker_id, key, now)

    def make_idle(self, worker: Worker, now: int) -> None:
        """It has registered, or its lease was returned."""
        self._move(worker, WorkerState.IDLE, now)
        worker.lease_id = 0

    def lease(self, key: WorkerKey, lease_id: int, now: int, *, for_actor: bool) -> Worker | None:
        """Lease an idle worker of a key: a fresh one for an actor, else the one most recently used."""
        worker = self._idle_one(key, for_actor)
        if worker is None:
            return None
        self._move(worker, WorkerState.LEASED, now)
        worker.lease_id = lease_id
        worker.fresh = False
        return worker

    def retire(self, worker: Worker, now: int, *, spent: bool) -> None:
        """It is asked to end unless it is counted on."""
        self._move(worker, WorkerState.RETIRING, now)
        worker.spent = spent

    def stay(self, worker: Worker, now: int) -> None:
        """It retires, and has said that it is counted on."""
        worker.stays_until = now + self._idle_ns
        if not worker.spent:
            self.make_idle(worker, now)

    def end(self, worker: Worker, now: int) -> bool:
        """It is told to end, or killed; False if it was already."""
        if worker.state is WorkerState.ENDING:
            return False
        self._move(worker, WorkerState.ENDING, now)
        return True

    def remove(self, worker: Worker) -> None:
        """Its process is gone."""
        self._unlist(worker)
        del self._workers[worker.worker_id]

    # --- time ----------------------------------------------------------------------------------------------------

    def surplus(self, now: int) -> list[Worker]:
        """Idle workers beyond the limit that have idled long enough to retire, the longest idle first."""
        extra = len(self._idle_by_age) - self._idle_limit
        ripe: list[Worker] = []
        for worker in self._idle_by_age.values():
            if len(ripe) >= extra or worker.since + self._idle_ns > now:
                break
            ripe.append(worker)
        return ripe

    def longest_idle(self, useful: Callable[[Worker], bool], now: int) -> Worker | None:
        """The longest idle worker that is not `useful`, and has not just said that it is counted on: the one to retire when
        the node may have no more processes."""
        for worker in self._idle_by_age.values():
            if worker.stays_until <= now and not useful(worker):
                return worker
        return None

    def late_starters(self, now: int) -> list[Worker]:
        """Workers that have not registered in time."""
        late = []
        for worker in self._starting.values():
            if worker.since + self._start_timeout_ns > now:
                break
            late.append(worker)
        return late

    def next_deadline(self) -> int | None:
        """When `surplus` or `late_starters` may have something new."""
        deadlines = []
        if len(self._idle_by_age) > self._idle_limit:
            deadlines.append(next(iter(self._idle_by_age.values())).since + self._idle_ns)
        if self._starting:
            deadlines.append(next(iter(self._starting.values())).since + self._start_timeout_ns)
        return min(deadlines, default=None)

    # --- states --------------------------------------------------------------------------------------------------

    def _move(self, worker: Worker, state: WorkerState, now: int) -> None:
        """The only writer of a worker's state."""
        if state not in MOVES[worker.state]:
            told = ", ".join(f"{old.value} at {at}" for at, old in worker.story)
            raise InternalError(
                f"worker {worker.worker_id.hex()[:8]} cannot go from {worker.state.value} to {state.value} "
                f"(its story: {told})"
            )
        self._unlist(worker)
        worker.state = state
        worker.since = now
        worker.story.append((now, state))
        if state is WorkerState.IDLE:
            self._idle.setdefault(worker.key, {})[worker.worker_id] = worker
            self._idle_by_age[worker.worker_id] = worker

    def _unlist(self, worker: Worker) -> None:
        if worker.state is WorkerState.STARTING:
            del self._starting[worker.worker_id]
        elif worker.state is WorkerState.IDLE:
            del self._idle_by_age[worker.worker_id]
            idle = self._idle[worker.key]
            del idle[worker.worker_id]
            if not idle:
                del self._idle[worker.key]

    def check(self) -> None:
        """Assert the invariants."""
        for worker in self._workers.values():
            listed = worker.worker_id in self._idle_by_age
            assert listed == (worker.state is WorkerState.IDLE)
            assert listed == (worker.worker_id in self._idle.get(worker.key, {}))
            starting = worker.worker_id in self._starting
            assert starting == (worker.state is WorkerState.STARTING)
            if worker.state is WorkerState.LEASED:
                assert worker.lease_id
            if worker.state in {WorkerState.IDLE, WorkerState.STARTING}:
                assert not worker.lease_id
        assert len(self._idle_by_age) + len(self._starting) <= len(self._workers)
        ages = [worker.since for worker in self._idle_by_age.values()]
        assert ages == sorted(ages)
