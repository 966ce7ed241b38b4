"""Who owns, borrows, makes and wants objects in the tests of faults. All of them can be put at a node, and be killed."""

from __future__ import annotations

import os
from typing import Any, Final

import shoal
from shoal.runtime import current_process
from shoal.testing.cluster import Cluster
from tests.api.gates import wait_until
from tests.process.faults.moments import BIG, PATIENCE_S, SIZE, array, is_right, workers_of

LESS: Final = 2 << 20
"""Size of objects that are not to be caught."""


def get(refs: Any) -> Any:
    """The value, within a time: nothing may hang."""
    return shoal.get(refs, timeout=PATIENCE_S)


def at(number: int) -> dict[str, Any]:
    """Options that only one node can satisfy."""
    return {"resources": {f"node{number}": 0.01}}


@shoal.remote(num_cpus=0)
class Holder:
    """Owns what it puts, keeps what it is lent."""

    def __init__(self) -> None:
        self.box: list[Any] = []
        self.views: list[Any] = []

    def pid(self) -> int:
        return os.getpid()

    def put(self, seeds: list[int], size: int = SIZE) -> list[Any]:
        self.box += [shoal.put(array(seed, size)) for seed in seeds]
        return list(self.box)

    def push_out(self, seeds: list[int], size: int = BIG) -> bool:
        """Make objects and look at them, so that others must go from memory, one for each."""
        try:
            for seed in seeds:
                self.box.append(shoal.put(array(seed, size)))
                self.views.append(shoal.get(self.box[-1]))
            return all(is_right(v, n, size) for v, n in zip(self.views, seeds, strict=True))
        finally:
            # Also if there was no room for one of them.
            self.drop()

    def keep(self, box: list[Any]) -> None:
        self.box = box

    def lend(self, other: Any) -> None:
        """Send it on, and do not wait until that has arrived."""
        other.keep.remote(self.box)

    def count(self) -> int:
        return len(self.box)

    def drop(self) -> None:
        self.box = []
        self.views = []

    def look(self, index: int) -> bool:
        """Have a view of it from now on."""
        self.views.append(shoal.get(self.box[index]))
        return True

    def know(self, count: int) -> None:
        """Know where the first of what it keeps are, and no more of them."""
        shoal.wait(self.box[:count], num_returns=count, fetch_local=False)

    def check(self, seeds: list[int], size: int = SIZE) -> bool:
        """Whether the first of what it keeps are these."""
        values = shoal.get(self.box[: len(seeds)])
        return all(is_right(v, seed, size) for v, seed in zip(values, seeds, strict=True))


@shoal.remote
def make(seed: int, size: int = SIZE) -> Any:
    """An object that the caller owns, and this process makes."""
    return array(seed, size)


@shoal.remote
def pid_of_a_worker() -> int:
    return os.getpid()


@shoal.remote
def check(found: Any, seed: int, size: int = SIZE) -> tuple[bool, int]:
    """Whether an argument is right, and who has looked."""
    return is_right(found, seed, size), os.getpid()


def holders(*numbers: int) -> list[Any]:
    """One at each of these nodes; they run."""
    made = [Holder.options(**at(number)).remote() for number in numbers]
    get([holder.pid.remote() for holder in made])
    return made


def pid_of(holder: Any) -> int:
    return int(get(holder.pid.remote()))


def wait_until_known(refs: list[Any]) -> None:
    """The driver knows where they are. It has not looked at them."""
    assert len(
        shoal.wait(refs, num_returns=len(refs), timeout=PATIENCE_S, fetch_local=False)[0]
    ) == len(refs)


def is_owned(id_: str) -> bool:
    """Whether this process still has an object, for itself or for others."""
    return bytes.fromhex(id_) in current_process.require().objects.entries


def creator_of(ref: Any) -> str:
    return str(ref._entry.value.creator)


def the_only_worker(cluster: Cluster, number: int) -> int:
    """The worker that runs the tasks of a node from now on: those of tests before have ended."""
    found: list[int] = []

    def look() -> bool:
        found[:] = [get(pid_of_a_worker.options(**at(number)).remote())]
        return workers_of(cluster.nodes[number]) == set(found)

    wait_until(look, "there is one worker")
    return found[0]
