"""Clusters of several nodes: starting one, tasks and actors at other nodes, placement groups, objects between nodes.

The driver is at node 0.  `bench.clusters` says what the nodes are.  numpy is imported where it is used: the tasks that make arrays
do so at the other nodes.
"""

from __future__ import annotations

import importlib
import os
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from bench import clusters
from bench.clusters import MB, Nodes, on_node
from bench.measure import Batch, Samples
from bench.peers import Core, Peer, Stopwatch

NODES = Nodes(4)
PAIR = Nodes(2, object_store_memory=1_000 * MB)
AUDIENCE = Nodes(5, object_store_memory=1_000 * MB)
"""A node with the driver, and four that are broadcast to."""

IN_FLIGHT = 1_000
GROUPS_IN_FLIGHT = 100
MOVED = 100 * MB
BROADCAST = 200 * MB
_GB = 1e9
_PATIENCE_S = 30.0
_LEAST_SHARE = 0.02
"""Of all tasks, each node must have run so many: four workers share fewer processors, and who has one at the moment runs more."""


def up_and_first_tasks(peer: Peer) -> Samples:
    """From nothing to four nodes, a driver, and the answers of one task at each, in a fresh interpreter.

    Importing the modules is not part of the figure; it is shown beside it.
    """
    watch = Stopwatch()
    ray = peer.load()
    importlib.import_module(f"{peer.module}.cluster_utils")
    import_s = watch.lap()
    cluster = clusters.start(peer, NODES)
    up_s = watch.lap()
    clusters.connect(ray, cluster, peer.driver_options)
    connected_s = watch.lap()

    @ray.remote
    def where() -> int:
        return os.getppid()

    asked = [where.options(**on_node(index)).remote() for index in range(NODES.count)]
    if len(set(ray.get(asked))) != NODES.count:
        raise AssertionError("two of the tasks ran at the same node")
    tasks_s = watch.lap()
    ray.shutdown()
    cluster.shutdown()
    return Samples(
        [up_s + connected_s + tasks_s],
        {
            "import (s)": import_s,
            "nodes (s)": up_s,
            "init (s)": connected_s,
            "first tasks (s)": tasks_s,
            "shutdown (s)": watch.lap(),
        },
    )


def spread(ray: Core) -> Iterator[Batch]:
    """1,000 tasks with the strategy SPREAD over four nodes, then all their results.

    Workers are children of a process that each node has one of; so a task that returns its parent's pid says where it ran.
    """
    ran: Counter[int] = Counter()

    @ray.remote
    def where() -> int:
        return os.getppid()

    spread_out = where.options(scheduling_strategy="SPREAD")

    def batch() -> float:
        results = ray.get([spread_out.remote() for _ in range(IN_FLIGHT)])
        ran.update(results)
        return len(results)

    # Every node has a worker before it counts how many tasks each got.
    ray.get([where.options(**on_node(index)).remote() for index in range(NODES.count)])
    watch, there = Stopwatch(), 0
    while there < NODES.count:
        there = len(set(ray.get([spread_out.remote() for _ in range(IN_FLIGHT)])))
        if time.perf_counter() - watch.since > _PATIENCE_S:
            raise AssertionError(f"tasks are spread over {there} nodes only")
    yield batch
    if len(ran) != NODES.count or min(ran.values()) < _LEAST_SHARE * ran.total():
        raise AssertionError(f"the tasks were not spread: {sorted(ran.values())} per node")


def actor_elsewhere(ray: Core) -> Iterator[Batch]:
    """An actor is made at another node and answers: seconds until then. Then it is killed."""

    class Echo:
        def answer(self) -> bytes:
            return b"ok"

    echo = ray.remote(Echo).options(**on_node(1))

    def lap() -> float:
        watch = Stopwatch()
        actor = echo.remote()
        ray.get(actor.answer.remote())
        seconds = watch.lap()
        ray.kill(actor)
        return seconds

    yield lap


def groups_one_at_a_time(ray: Core) -> Iterator[Batch]:
    """A placement group with one bundle at each of four nodes: made, waited for, removed; then the next."""
    util = importlib.import_module(f"{ray.__name__}.util")
    bundles = [{"CPU": 1}] * NODES.count

    def batch() -> float:
        for _ in range(5):
            group = util.placement_group(bundles, strategy="STRICT_SPREAD")
            if not group.wait(_PATIENCE_S):
                raise AssertionError("a placement group was not ready in time")
            util.remove_placement_group(group)
        return 5

    yield batch


def groups_in_flight(ray: Core) -> Iterator[Batch]:
    """100 small placement groups are made, all are waited for, and all removed."""
    util = importlib.import_module(f"{ray.__name__}.util")
    bundles = [{"CPU": 0.01}] * 2

    def batch() -> float:
        groups = [util.placement_group(bundles, strategy="SPREAD") for _ in range(GROUPS_IN_FLIGHT)]
        if not all(group.wait(_PATIENCE_S) for group in groups):
            raise AssertionError("a placement group was not ready in time")
        for group in groups:
            util.remove_placement_group(group)
        return GROUPS_IN_FLIGHT

    yield batch


def move_100mb(ray: Core) -> Iterator[Batch]:
    """`get` of a result of 100 MB that is at another node: gigabytes per second, from the call to the array."""

    @ray.remote
    def make() -> Any:
        import numpy as np

        return np.ones(MOVED, dtype=np.uint8)

    make_there = make.options(**on_node(1))

    def lap() -> float:
        ref = make_there.remote()
        ray.wait([ref], fetch_local=False)
        watch = Stopwatch()
        array = ray.get(ref)
        seconds = watch.lap()
        if array.nbytes != MOVED or array[-1] != 1:
            raise AssertionError("another array came")
        return MOVED / _GB / seconds

    yield lap


def broadcast_200mb(ray: Core) -> Iterator[Batch]:
    """200 MB that the driver `put` are an argument of one actor at each of four other nodes: gigabytes delivered per second."""
    import numpy as np

    class Listener:
        def take(self, array: Any) -> int:
            return int(array[-1]) + len(array)

    listeners = [
        ray.remote(Listener).options(**on_node(index)).remote()
        for index in range(1, AUDIENCE.count)
    ]
    array = np.ones(BROADCAST, dtype=np.uint8)
    ray.get([listener.take.remote(array[:1]) for listener in listeners])

    def lap() -> float:
        ref = ray.put(array)
        watch = Stopwatch()
        answers = ray.get([listener.take.remote(ref) for listener in listeners])
        seconds = watch.lap()
        if answers != [BROADCAST + 1] * len(listeners):
            raise AssertionError("somebody heard something else")
        return len(listeners) * BROADCAST / _GB / seconds

    yield lap
    for listener in listeners:
        ray.kill(listener)
