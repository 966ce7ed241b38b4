"""What processes of several nodes made or owned goes when nobody on any node uses it any more, and not before."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shoal
from shoal.errors import OwnerDiedError
from shoal.runtime import current_process
from shoal.testing.cluster import Cluster, ClusterNode
from tests.api.gates import alive, wait_until

LARGE = 200_000
PATIENCE_S = 30

pytestmark = pytest.mark.usefixtures("three")


def get(refs: Any) -> Any:
    return shoal.get(refs, timeout=PATIENCE_S)


def on(number: int) -> dict[str, Any]:
    """Options that only one node can satisfy."""
    return {"resources": {f"node{number}": 0.01}}


# All CPUs of a node: so both run in the same worker.
@shoal.remote(num_cpus=2)
def make() -> Any:
    return np.ones(LARGE)


@shoal.remote(num_cpus=0)
class Keeper:
    """Owns and keeps, wherever it is put."""

    def __init__(self) -> None:
        self.kept: Any = None

    def have_made(self, where: dict[str, Any]) -> None:
        self.kept = [make.options(**where).remote()]
        shoal.wait(self.kept)

    def pid(self) -> int:
        return os.getpid()

    def put(self) -> list[Any]:
        self.kept = [shoal.put(np.ones(LARGE))]
        return list(self.kept)

    def lend(self) -> list[Any]:
        return list(self.kept)

    def keep(self, box: list[Any]) -> float:
        self.kept = box
        return float(shoal.get(box[0]).sum())

    def total(self) -> float:
        return float(shoal.get(self.kept[0]).sum())

    def let_go(self) -> None:
        self.kept = None


# All CPUs of a node: so both run in the same worker.
@shoal.remote(num_cpus=2)
def live_blocks() -> int:
    arena = current_process.require().store._arena
    return 0 if arena is None else arena.stats().live_blocks


def blocks_of(node: ClusterNode) -> int:
    """How many segments there are in the store of a node."""
    folder = Path((Path(node.session_dir) / "shm").read_text())
    return len([path for path in folder.iterdir() if not path.name.endswith("lock")])


def test_what_another_node_made_for_a_dead_owner_goes_with_its_last_user(three: Cluster) -> None:
    owner = Keeper.options(**on(2)).remote()
    get(owner.have_made.remote(on(1)))
    borrower = Keeper.options(**on(0)).remote()
    assert get(borrower.keep.remote(get(owner.lend.remote()))) == LARGE
    wait_until(lambda: get(live_blocks.options(**on(1)).remote()) == 1, "it is there")
    shoal.kill(owner)
    # It has its value, and a user: it stays.
    assert get(borrower.total.remote()) == LARGE
    for _ in range(3):
        assert get(live_blocks.options(**on(1)).remote()) == 1
    get(borrower.let_go.remote())
    wait_until(lambda: get(live_blocks.options(**on(1)).remote()) == 0, "nobody uses it any more")


def test_what_a_dead_actor_of_another_node_owned_goes_with_its_last_user(three: Cluster) -> None:
    before = blocks_of(three.nodes[1])
    owner = Keeper.options(**on(1)).remote()
    (ref,) = get(owner.put.remote())
    (unseen,) = get(owner.lend.remote())
    view = get(ref)
    assert blocks_of(three.nodes[1]) > before
    shoal.kill(owner)
    assert view.sum() == LARGE
    del ref, unseen, view
    wait_until(lambda: blocks_of(three.nodes[1]) <= before, "nobody uses what it made")


def test_what_nobody_has_fetched_is_lost_with_its_owner(three: Cluster) -> None:
    before = blocks_of(three.nodes[1])
    owner = Keeper.options(**on(1)).remote()
    (ref,) = get(owner.put.remote())
    pid = get(owner.pid.remote())
    shoal.kill(owner)
    wait_until(lambda: not alive(pid), "it is dead")
    with pytest.raises(OwnerDiedError):
        get(ref)
    del ref
    wait_until(lambda: blocks_of(three.nodes[1]) <= before, "nobody uses what it made")
