"""A process that is stopped (SIGSTOP, Ctrl-Z) cannot say what it uses: it counts as using whatever it may know of, and holds up nobody
who has never met it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shoal
from shoal.testing.cluster import Cluster, ClusterNode
from tests.api.gates import alive, wait_until
from tests.process.programs import Program

PATIENCE_S = 30
LARGE = 200_000
OTHERS = """
import numpy as np
import shoal

shoal.init({address!r}, num_cpus=None)

@shoal.remote(num_cpus=0, resources={{"node0": 0.01}})
class Maker:
    def make(self):
        # In a slab, where what is freed is cleared, for others.
        self.made = [shoal.put(np.full(30_000, n)) for n in range(4)]
        return self.made, os.getpid()

maker = Maker.remote()
refs, pid = shoal.get(maker.make.remote())
# They are known here, and nobody looks at them.
shoal.wait(refs, num_returns=4)
say(pid)
assert sys.stdin.readline() == "go on\\n"
say([int(shoal.get(ref)[-1]) for ref in refs])
assert sys.stdin.readline() == "end\\n"
shoal.shutdown()
"""


@shoal.remote(num_cpus=0)
class Keeper:
    def put(self) -> list[Any]:
        self.kept = [shoal.put(np.ones(LARGE))]
        return self.kept

    def pid(self) -> int:
        return os.getpid()


def get(refs: Any) -> Any:
    return shoal.get(refs, timeout=PATIENCE_S)


def segments_of(node: ClusterNode) -> set[str]:
    """What there is in the store of a node."""
    folder = Path((Path(node.session_dir) / "shm").read_text())
    return {path.name for path in folder.iterdir() if not path.name.endswith("locks")}


@pytest.fixture(scope="module")
def two() -> Iterator[Cluster]:
    with Cluster(initialize_head=False, system_config={"inquiry_patience_s": 0.2}) as cluster:
        cluster.add_nodes([{"num_cpus": 2, "resources": {f"node{n}": 100}} for n in range(2)])
        cluster.wait_for_nodes()
        with cluster.connect():
            yield cluster


@contextmanager
def stopped(process: Program) -> Iterator[None]:
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


def leave_and_see_it_go(node: ClusterNode, number: int) -> None:
    """An actor owns an object, and is killed: what it has left goes when all have been asked, or are not waited for."""
    before = segments_of(node)
    owner = Keeper.options(resources={f"node{number}": 0.01}).remote()
    (ref,) = get(owner.put.remote())
    assert get(ref).sum() == LARGE
    assert segments_of(node) - before
    shoal.kill(owner)
    del ref
    wait_until(lambda: segments_of(node) <= before, "it goes", PATIENCE_S)


def test_a_stopped_driver_keeps_what_it_may_know_and_holds_up_nobody_else(
    two: Cluster, tmp_path: Path
) -> None:
    with Program(tmp_path, OTHERS.format(address=two.address)) as others:
        maker = int(others.line(PATIENCE_S))
        before = segments_of(two.nodes[0])
        with stopped(others):
            # Nobody but the stopped one knows what is left of its actor, and of whom to ask.
            os.kill(maker, signal.SIGKILL)
            wait_until(lambda: not alive(maker), "it is dead")
            for number, node in enumerate(two.nodes):
                leave_and_see_it_go(node, number)
            assert before <= segments_of(two.nodes[0])
        others.tell("go on")
        assert others.line(PATIENCE_S) == "[0, 1, 2, 3]"
        others.tell("end")
        others.wait()
