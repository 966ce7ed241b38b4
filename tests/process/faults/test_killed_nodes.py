"""The fault matrix, second part: a node is killed, with all that runs there. See `test_killed.py`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

import shoal
from shoal.exceptions import ActorDiedError, NodeDiedError, ObjectLostError, OwnerDiedError
from shoal.testing.cluster import Cluster
from tests.api.gates import wait_until
from tests.process.faults.conftest import node_options
from tests.process.faults.moments import (
    BIG,
    MB,
    SIZE,
    array,
    arriving,
    being_spilled,
    copies_at,
    files_of,
    files_on_disk,
    is_right,
    kill,
    shared_memory,
    spill_folder,
    stopped_in_the_middle,
)
from tests.process.faults.roles import (
    LESS,
    at,
    creator_of,
    get,
    holders,
    make,
    pid_of_a_worker,
    wait_until_known,
)

SEEDS = [1, 2, 3]

NODE_DIED = r"its node \(.*\) closed its connection to the control store"


def test_node_idle(mortal: Cluster) -> None:
    here, there = mortal.nodes
    mortal.add_node(**node_options(2))
    files = files_of(there)
    owner, reader = holders(1, 2)
    (owned,) = get(owner.put.remote([9], LESS))
    seen, unseen = (make.options(**at(1)).remote(seed, LESS) for seed in (1, 2))
    wait_until_known([seen, unseen])
    view = get(seen)
    get(reader.keep.remote([seen]))
    assert get(reader.check.remote([1], LESS))
    mine = shoal.put(array(3, LESS))
    mortal.remove_node(there, allow_graceful=False)
    assert is_right(view, 1, LESS)
    assert is_right(get(seen), 1, LESS)
    # Nor does the copy of another node go before the object.
    assert get(reader.check.remote([1], LESS))
    with pytest.raises(ObjectLostError, match=NODE_DIED) as caught:
        get(unseen)
    assert isinstance(caught.value.__cause__, NodeDiedError)
    with pytest.raises(OwnerDiedError):
        get(owned)
    assert is_right(get(mine), 3, LESS)
    wait_until(lambda: not any(path.exists() for path in files), "its files are removed")
    assert here.is_alive()


@pytest.mark.parametrize("size", [SIZE, 480 * MB], ids=["to memory", "to disk"])
def test_node_mid_transfer(mortal: Cluster, beside: ThreadPoolExecutor, size: int) -> None:
    here, there = mortal.nodes
    files = files_of(there)
    lost = make.options(**at(1)).remote(1, size)
    wait_until_known([lost])
    folder = (shared_memory if size == SIZE else spill_folder)(here.session_dir)
    value = beside.submit(get, lost)
    with stopped_in_the_middle(there.pid, lambda: arriving(folder, 1, size), "a copy"):
        mortal.remove_node(there, allow_graceful=False)
    with pytest.raises(ObjectLostError, match=NODE_DIED) as caught:
        value.result()
    assert isinstance(caught.value.__cause__, NodeDiedError)
    wait_until(lambda: copies_at(here.node_id) == 0, "half a copy is dropped")
    wait_until(lambda: files_on_disk(mortal, 0) == [], "from the disk, too")
    wait_until(lambda: not any(path.exists() for path in files), "its files are removed")
    # The other way: who was to get it dies.
    disk = str(files[-1].parent)
    there = mortal.add_node(**node_options(1, object_spilling_directory=disk))
    files = files_of(there)
    (reader,) = holders(1)
    mine = shoal.put(array(2, size))
    get(reader.keep.remote([mine]))
    folder = (shared_memory if size == SIZE else spill_folder)(there.session_dir)
    answer = reader.check.remote([2], size)
    with stopped_in_the_middle(there.pid, lambda: arriving(folder, 2, size), "a copy"):
        mortal.remove_node(there, allow_graceful=False)
    with pytest.raises(ActorDiedError):
        get(answer)
    assert is_right(get(mine), 2, size)
    wait_until(lambda: not any(path.exists() for path in files), "its files are removed")


@pytest.mark.parametrize("writer", ["a worker", "the node itself"])
def test_node_mid_spill(mortal: Cluster, writer: str) -> None:
    _, there = mortal.nodes
    files = files_of(there)
    pid = get(pid_of_a_worker.options(**at(1)).remote())
    refs = [make.options(**at(1)).remote(seed, BIG) for seed in SEEDS]
    wait_until_known(refs)
    address, folder = creator_of(refs[0]), spill_folder(there.session_dir)
    (other,) = holders(1)
    if writer == "the node itself":
        # What the dead have left is written by the node.
        kill(pid)
        pid = there.pid
    view = get(refs[2])
    more = other.push_out.remote([4] * 3)
    with stopped_in_the_middle(pid, lambda: being_spilled(folder, address), "a segment"):
        mortal.remove_node(there, allow_graceful=False)
    with pytest.raises(ActorDiedError):
        get(more)
    for ref in refs[:2]:
        with pytest.raises(ObjectLostError, match=NODE_DIED):
            get(ref)
    assert is_right(view, 3, BIG)
    wait_until(lambda: not any(path.exists() for path in files), "its files are removed")
