"""The table: every row, its unit, what it is compared with and the ratio to be reached.

Guarantees: names are unique and stable (results of different days are compared by them); a
ratio above 1 always means that shoal is better, whether more or less of the unit is good.
Leaves to others: what the programs do (``workloads/``), how samples are taken (``measure.py``).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from bench.clusters import Nodes
from bench.measure import Duration, Fresh, Kind, Laps, Rate, Reading
from bench.workloads import (
    actors,
    clusters,
    large,
    objects,
    pool,
    sessions,
    shuffle,
    sockets,
    tasks,
)


class Better(Enum):
    MORE = "more"
    LESS = "less"


@dataclass(frozen=True, slots=True)
class Target:
    """What a row is to reach: a ratio to a rival in the same run, or a ceiling of its own."""

    ratio: float | None = None
    rival: str | None = None
    ceiling: float | None = None

    def __str__(self) -> str:
        if self.ratio is not None:
            return f"≥ {self.ratio:g} × {self.rival}"
        return f"≤ {self.ceiling:g}"


@dataclass(frozen=True, slots=True, eq=False)  # a row equals itself only, and can be hashed
class Row:
    """One line of the table.

    ``kind`` is None for the row that no session measures: the installed size.  ``session``
    groups rows that share a process, one after another; a Fresh row has a process of its own.
    ``launches`` is how many processes a round gives to each peer, ``max_rounds`` caps the
    rounds of rows that take Ray a minute.  ``slow`` rows are left out by ``--quick``.
    ``rival_kind`` is the program of a rival that cannot run the row's own.  ``nodes``: the session
    is a cluster.
    """

    name: str
    title: str
    unit: str
    better: Better
    target: Target
    kind: Kind | None
    session: str
    rival_kind: Kind | None = None
    timeout_s: float = 60.0
    launches: int = 1
    max_rounds: int | None = None
    slow: bool = False
    nodes: Nodes | None = None

    @property
    def peers(self) -> tuple[str, ...]:
        return ("shoal",) if self.target.rival is None else ("shoal", self.target.rival)

    def kind_for(self, peer: str) -> Kind | None:
        if self.rival_kind is not None and peer == self.target.rival:
            return self.rival_kind
        return self.kind


def _ray(ratio: float) -> Target:
    return Target(ratio=ratio, rival="ray")


_NOT_SLOWER_THAN_POOL = Target(ratio=1.0, rival="pool")
_MORE, _LESS = Better.MORE, Better.LESS

ROWS: tuple[Row, ...] = (
    Row(
        "task-sync",
        "task, submit and get one at a time",
        "tasks/s",
        _MORE,
        _ray(10),
        Rate(tasks.one_at_a_time),
        "tasks",
    ),
    Row(
        "task-in-flight",
        "tasks, 1000 in flight",
        "tasks/s",
        _MORE,
        _ray(20),
        Rate(tasks.in_flight),
        "tasks",
    ),
    Row(
        "task-queue-100k",
        "100,000 tasks queued at once, all fetched",
        "s",
        _LESS,
        _ray(20),
        Duration(tasks.queue_100k),
        "queue",
        timeout_s=300,
        max_rounds=2,
        slow=True,
    ),
    Row(
        "task-two-clients",
        "two clients (actors) submitting tasks",
        "tasks/s",
        _MORE,
        _ray(10),
        Rate(tasks.two_clients),
        "tasks-two-clients",
    ),
    Row(
        "task-chain",
        "chain of 200 dependent tasks",
        "tasks/s",
        _MORE,
        _ray(15),
        Rate(tasks.chain),
        "tasks",
    ),
    Row(
        "actor-sync",
        "actor call, one at a time",
        "calls/s",
        _MORE,
        _ray(6),
        Rate(actors.one_at_a_time),
        "actors",
    ),
    Row(
        "actor-in-flight",
        "actor calls, 1000 in flight",
        "calls/s",
        _MORE,
        _ray(7),
        Rate(actors.in_flight),
        "actors",
    ),
    Row(
        "actor-2x2",
        "2 actors calling 2 actors",
        "calls/s",
        _MORE,
        _ray(6),
        Rate(actors.two_by_two),
        "actors",
    ),
    Row(
        "async-actor-sync",
        "async actor, one at a time",
        "calls/s",
        _MORE,
        _ray(5),
        Rate(actors.async_one_at_a_time),
        "actors",
    ),
    Row(
        "async-actor-in-flight",
        "async actor, 1000 in flight",
        "calls/s",
        _MORE,
        _ray(10),
        Rate(actors.async_in_flight),
        "actors",
    ),
    Row(
        "actor-object-argument",
        "actor calls with an object argument",
        "calls/s",
        _MORE,
        _ray(10),
        Rate(actors.object_argument),
        "actors",
    ),
    Row(
        "put-small",
        "`put` small",
        "puts/s",
        _MORE,
        _ray(20),
        Rate(objects.put_small),
        "objects",
    ),
    Row(
        "get-small",
        "`get` small",
        "gets/s",
        _MORE,
        _ray(10),
        Rate(objects.get_small),
        "objects",
    ),
    Row(
        "put-1mb",
        "`put` 1 MB, steady state",
        "puts/s",
        _MORE,
        _ray(5),
        Rate(objects.put_1mb, patience=2),
        "objects",
    ),
    Row(
        "put-100mb",
        "`put` 100 MB, steady state",
        "GB/s",
        _MORE,
        _ray(2),
        Rate(objects.put_100mb, patience=4),
        "objects",
    ),
    Row(
        "return-10mb",
        "tasks that return 10 MB",
        "GB/s",
        _MORE,
        _ray(1.3),
        Rate(objects.return_10mb, patience=4),
        "objects",
    ),
    Row(
        "wait-one-by-one",
        "`wait` one by one through 1000 refs",
        "rounds/s",
        _MORE,
        _ray(12),
        Rate(tasks.wait_one_by_one),
        "tasks",
    ),
    Row(
        "get-10k-refs",
        "`get` an object holding 10,000 refs",
        "gets/s",
        _MORE,
        _ray(2),
        Rate(objects.get_10k_refs),
        "refs",
    ),
    Row(
        "task-10k-arguments",
        "a task with 10,000 object arguments",
        "s",
        _LESS,
        _ray(3),
        Duration(tasks.many_arguments, repeats=3),
        "fans",
    ),
    Row(
        "task-3k-returns",
        "a task with 3,000 returns",
        "s",
        _LESS,
        _ray(2),
        Duration(tasks.many_returns, repeats=10),
        "fans",
    ),
    Row(
        "init-first-task",
        "`init` plus first task",
        "s",
        _LESS,
        _ray(10),
        Fresh(sessions.init_and_first_task),
        "init",
        launches=2,
    ),
    Row(
        "actors-40-new",
        "40 new actors, each answered once",
        "s",
        _LESS,
        _ray(30),
        Duration(actors.forty_new),
        "forty-actors",
        timeout_s=120,
        slow=True,
    ),
    Row(
        "actors-1000-time",
        "1,000 actors alive on one machine, each answered once: time",
        "s",
        _LESS,
        Target(ceiling=10),
        Duration(actors.thousand_new),
        "thousand-actors-time",
        timeout_s=120,
        slow=True,
    ),
    Row(
        "actors-1000-memory",
        "1,000 actors alive on one machine: unique memory of each",
        "MB",
        _LESS,
        Target(ceiling=5),
        Reading(sessions.thousand_actors_memory),
        "thousand-actors-memory",
        timeout_s=120,
        max_rounds=1,
        slow=True,
    ),
    Row(
        "memory-idle",
        "memory of all processes, idle (unique set size)",
        "MB",
        _LESS,
        _ray(5),
        Reading(sessions.idle_memory),
        "idle",
    ),
    Row(
        "installed-size",
        "installed size of the core in a fresh environment",
        "MB",
        _LESS,
        _ray(10),
        None,
        "install",
        timeout_s=900,
        max_rounds=1,
        slow=True,
    ),
    Row(
        "cluster-up",
        "4-node cluster up, and a first task on every node",
        "s",
        _LESS,
        _ray(5),
        Fresh(clusters.up_and_first_tasks),
        "cluster-up",
        launches=2,
    ),
    Row(
        "cluster-spread",
        "tasks spread over 4 nodes, 1000 in flight",
        "tasks/s",
        _MORE,
        _ray(10),
        Rate(clusters.spread),
        "cluster",
        nodes=clusters.NODES,
    ),
    Row(
        "cluster-actor",
        "an actor made on another node and answered",
        "s",
        _LESS,
        _ray(10),
        Laps(clusters.actor_elsewhere),
        "cluster",
        nodes=clusters.NODES,
    ),
    Row(
        "group-sync",
        "placement group over 4 nodes made, waited for, removed",
        "groups/s",
        _MORE,
        _ray(5),
        Rate(clusters.groups_one_at_a_time),
        "groups",
        nodes=clusters.NODES,
    ),
    Row(
        "group-in-flight",
        "100 placement groups made, waited for, removed",
        "groups/s",
        _MORE,
        _ray(5),
        Rate(clusters.groups_in_flight),
        "groups",
        nodes=clusters.NODES,
    ),
    Row(
        "move-100mb",
        "`get` of 100 MB from another node",
        "GB/s",
        _MORE,
        _ray(1.5),
        Laps(clusters.move_100mb, patience=2),
        "move",
        nodes=clusters.PAIR,
    ),
    Row(
        "move-100mb-bare",
        "`get` of 100 MB from another node, against two bare sockets",
        "GB/s",
        _MORE,
        Target(ratio=0.6, rival="sockets"),
        Laps(clusters.move_100mb, patience=2),
        "move-bare",
        rival_kind=Laps(sockets.move_100mb, patience=2),
        nodes=clusters.PAIR,
    ),
    Row(
        "broadcast-200mb",
        "200 MB as an argument at 4 other nodes",
        "GB/s",
        _MORE,
        _ray(1.5),
        Laps(clusters.broadcast_200mb, patience=2),
        "broadcast",
        nodes=clusters.AUDIENCE,
    ),
    Row(
        "shuffle-10gb",
        "10 GB shuffled (64 × 64) at 4 nodes with stores of 250 MB",
        "s",
        _LESS,
        _ray(1.5),
        Duration(shuffle.shuffle_10gb),
        "shuffle",
        timeout_s=600,
        max_rounds=1,
        slow=True,
        nodes=shuffle.NODES,
    ),
    Row(
        "many-get",
        "`get` of 10,000 objects of 200 KB at a store of 1 GB",
        "s",
        _LESS,
        _ray(1),
        Reading(large.get_many),
        "many-get",
        timeout_s=240,
        max_rounds=1,
        slow=True,
        nodes=large.TIGHT,
    ),
    Row(
        "many-arguments",
        "a task with 10,000 arguments of 200 KB",
        "s",
        _LESS,
        _ray(1),
        Reading(large.pass_many),
        "many-arguments",
        timeout_s=240,
        max_rounds=1,
        slow=True,
        nodes=large.TIGHT,
    ),
    Row(
        "many-move",
        "`get` of 10,000 objects of 200 KB from another node",
        "s",
        _LESS,
        _ray(1),
        Reading(large.move_many),
        "many-move",
        timeout_s=240,
        max_rounds=1,
        slow=True,
        nodes=large.TIGHT,
    ),
    Row(
        "refs-100k",
        "an object of 100,000 refs: put, and read by another process",
        "s",
        _LESS,
        _ray(1),
        Reading(large.box_of_refs(large.HELD)),
        "refs-100k",
        timeout_s=240,
        max_rounds=1,
        slow=True,
        nodes=large.ROOMY,
    ),
    Row(
        "refs-1m",
        "an object of 1,000,000 refs: put, and read by another process",
        "s",
        _LESS,
        Target(ceiling=60),
        Reading(large.box_of_refs(large.REFS)),
        "refs-1m",
        timeout_s=120,
        max_rounds=1,
        slow=True,
        nodes=large.ROOMY,
    ),
    Row(
        "drop-100k",
        "100,000 refs dropped in random order",
        "s",
        _LESS,
        _ray(1),
        Reading(large.drop_at_random),
        "drop-100k",
        timeout_s=240,
        max_rounds=1,
        slow=True,
        nodes=large.ROOMY,
    ),
    Row(
        "huge-5gb",
        "`put` of 5 GB at a store of 2 GB",
        "s",
        _LESS,
        _ray(1),
        Reading(large.put_huge),
        "huge-5gb",
        timeout_s=400,
        max_rounds=1,
        slow=True,
        nodes=large.HUGE_STORE,
    ),
    Row(
        "pool-sync",
        "against `multiprocessing.Pool(2)`: single round trips",
        "tasks/s",
        _MORE,
        _NOT_SLOWER_THAN_POOL,
        Rate(tasks.one_at_a_time),
        "pool",
        rival_kind=Rate(pool.one_at_a_time),
    ),
    Row(
        "pool-in-flight-20k",
        "against `multiprocessing.Pool(2)`: 20,000 small tasks in flight",
        "tasks/s",
        _MORE,
        _NOT_SLOWER_THAN_POOL,
        Rate(tasks.in_flight_20k),
        "pool",
        rival_kind=Rate(
            pool.in_flight_20k, beside={"one map() call, chunksize=1 (tasks/s)": pool.map_20k}
        ),
    ),
)

BY_NAME = {row.name: row for row in ROWS}


def select(patterns: Iterable[str]) -> tuple[Row, ...]:
    """The rows whose name matches any of the shell patterns, in the order of the table.

    Raises ``ValueError`` for a pattern that matches nothing, which is always a typing mistake.
    """
    wanted: set[str] = set()
    for pattern in patterns:
        matches = fnmatch.filter(BY_NAME, pattern)
        if not matches:
            raise ValueError(
                f"no row is called {pattern!r}; `python -m bench --list` shows all names"
            )
        wanted.update(matches)
    return tuple(row for row in ROWS if row.name in wanted)
