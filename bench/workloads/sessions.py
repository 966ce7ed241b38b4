"""A session itself: how fast it starts, what it weighs when idle, what an actor adds to it."""

from __future__ import annotations

import time

from bench.measure import Census, Plan, Samples
from bench.peers import CPUS, Core, Peer, Stopwatch
from bench.workloads import actors

MB = 1e6


def init_and_first_task(peer: Peer) -> Samples:
    """From the call of ``init`` to the answer of the first task, in a fresh interpreter.

    Importing the module is not part of the figure; it is shown beside it, alone and included.
    """
    watch = Stopwatch()
    ray = peer.load()
    import_s = watch.lap()
    ray.init(**peer.init_options)
    init_s = watch.lap()

    @ray.remote
    def tiny() -> bytes:
        return b"ok"

    if ray.get(tiny.remote()) != b"ok":
        raise AssertionError("the first task answered something else")
    first_task_s = watch.lap()
    ray.shutdown()
    return Samples(
        [init_s + first_task_s],
        {
            "import (s)": import_s,
            "import, init and first task (s)": import_s + init_s + first_task_s,
            "first task alone (s)": first_task_s,
            "shutdown (s)": watch.lap(),
        },
    )


def idle_memory(ray: Core, census: Census, plan: Plan) -> Samples:
    """Unique memory of the driver and of everything it started, after a few tasks and a rest."""

    @ray.remote
    def tiny() -> bytes:
        return b"ok"

    ray.get([tiny.remote() for _ in range(10 * CPUS)])
    time.sleep(plan.settle_s)
    seen = census()
    return Samples(
        [seen["unique_bytes"] / MB],
        {
            "processes": seen["processes"],
            "proportional set size (MB)": seen["proportional_bytes"] / MB,
        },
    )


def thousand_actors_memory(ray: Core, census: Census, plan: Plan) -> Samples:
    """What 1,000 living actors add to the unique memory of the session, divided by 1,000.

    The driver's and the daemons' books about them are included.
    """
    opened = actors.thousand_new(ray)
    make = next(opened)
    time.sleep(plan.settle_s)
    before = census()
    count = make()
    time.sleep(plan.settle_s)
    after = census()
    next(opened, None)
    return Samples(
        [(after["unique_bytes"] - before["unique_bytes"]) / count / MB],
        {
            "processes added": after["processes"] - before["processes"],
            "proportional set size per actor (MB)": (
                (after["proportional_bytes"] - before["proportional_bytes"]) / count / MB
            ),
        },
    )
