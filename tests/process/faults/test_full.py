"""The fault matrix, third part: the disk for spilled objects is full, or shared memory is, to the last page. See `test_killed.py`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

import shoal
from shoal.exceptions import ObjectStoreFullError, OutOfDiskError
from shoal.runtime import current_process
from shoal.testing.cluster import Cluster
from tests.process.faults.conftest import SETTINGS
from tests.process.faults.moments import (
    BIG,
    MB,
    SIZE,
    array,
    arriving,
    being_spilled,
    is_right,
    shared_memory,
    spill_folder,
    stopped_in_the_middle,
    wait_until_nothing_is_stored,
)
from tests.process.faults.roles import LESS, Holder, at, get, make, wait_until_known
from tests.process.faults.worlds import World, in_a_small_world

SEEDS = [1, 2, 3]
# The first if it was others who were to make room by writing, the second if the object itself was to be made on disk.
DISK_IS_FULL = r"(?s)\(pid .*Spilling to .* has stopped.*Make room|cannot go to disk in .*make room"
IMPATIENT = {
    "store_full_timeout_s": 2.0,
    "spill_retry_s": 0.2,
    "spill_fallback_s": 0.5,
    "spill_order_s": 1.0,
}


@contextmanager
def one_node(world: World, store: int) -> Iterator[Path]:
    """The folder of what it spills."""
    context = shoal.init(
        num_cpus=1,
        object_store_memory=store,
        object_spilling_directory=str(world.disk),
        _system_config=IMPATIENT,
    )
    with context:
        yield spill_folder(context["session_dir"])


@contextmanager
def two_nodes(world: World, *stores: int) -> Iterator[Cluster]:
    """This process is the driver at the first."""
    with Cluster(initialize_head=False, system_config=SETTINGS | IMPATIENT) as cluster:
        cluster.add_nodes(
            [
                {
                    "num_cpus": 1,
                    "object_store_memory": store,
                    "object_spilling_directory": str(world.disk),
                    "resources": {f"node{number}": 100},
                }
                for number, store in enumerate(stores)
            ]
        )
        with cluster.connect():
            yield cluster
            wait_until_nothing_is_stored(cluster)


def put_all(seeds: range, size: int) -> list[Any]:
    return [shoal.put(array(seed, size)) for seed in seeds]


def all_right(refs: list[Any], seeds: range, size: int) -> bool:
    return all(is_right(get(ref), seed, size) for ref, seed in zip(refs, seeds, strict=True))


def on_disk(ref: Any) -> bool:
    """Whether an object of this process is there."""
    return ref._entry.value.location.segment in current_process.require().store.blocks().spilled


# --- the disk ----------------------------------------------------------------------------------------------------------


@in_a_small_world(shm=160 * MB, disk=64 * MB)
def test_disk_full_idle(world: World) -> None:
    seeds = range(1, 21)
    with one_node(world, 64 * MB):
        refs = put_all(seeds, 4 * MB)
        reader = Holder.remote()
        get(reader.keep.remote(refs))
        assert on_disk(refs[0])
        with world.full(world.disk):
            # What is there can be read, whoever does.
            assert all_right(refs, seeds, 4 * MB)
            assert get(reader.check.remote(list(seeds), 4 * MB))
            # What needs no disk goes on as before.
            get(reader.keep.remote(refs[:16]))
            del refs[16:]
            refs += put_all(range(21, 25), 4 * MB)
            # What needs it waits, and then says why.
            with pytest.raises(OutOfDiskError, match=DISK_IS_FULL):
                put_all(range(30, 50), 4 * MB)
            assert all_right(refs[:16], range(1, 17), 4 * MB)
            assert all_right(refs[16:], range(21, 25), 4 * MB)
        more = put_all(range(30, 34), 4 * MB)
        assert all_right(more, range(30, 34), 4 * MB)
        assert all_right(refs[:16], range(1, 17), 4 * MB)


@in_a_small_world(shm=320 * MB, disk=160 * MB)
def test_disk_full_mid_transfer(world: World) -> None:
    with (
        two_nodes(world, 48 * MB, 224 * MB) as cluster,
        ThreadPoolExecutor(1) as beside,
        ExitStack() as full,
    ):
        here, there = cluster.nodes
        refs = [make.options(**at(1)).remote(seed) for seed in (1, 2)]
        wait_until_known(refs)
        # They are larger than the store of the node that wants them, and go to its disk.
        folder = spill_folder(here.session_dir)
        first = beside.submit(get, refs[0])
        with stopped_in_the_middle(there.pid, lambda: arriving(folder, 1), "a copy"):
            full.enter_context(world.full(world.disk))
        # It had its room before its first byte came.
        value = first.result()
        assert is_right(value, 1)
        with pytest.raises(ObjectStoreFullError, match=DISK_IS_FULL):
            get(refs[1])
        assert is_right(value, 1)
        full.close()
        assert is_right(get(refs[1]), 2)
        del value, first, refs


@in_a_small_world(shm=512 * MB, disk=600 * MB)
def test_disk_full_mid_spill(world: World) -> None:
    with one_node(world, 3 * BIG + SIZE) as folder, ExitStack() as full:
        owner, other = Holder.remote(), Holder.remote()
        pid = get(owner.pid.remote())
        refs = get(owner.put.remote(SEEDS, BIG))
        address = refs[0].owner_address()
        more = other.push_out.remote([4] * 3, BIG)
        with stopped_in_the_middle(pid, lambda: being_spilled(folder, address), "a segment"):
            full.enter_context(world.full(world.disk))
        with pytest.raises(OutOfDiskError, match=DISK_IS_FULL):
            get(more)
        # It stays where it was, and half a file stays nowhere.
        assert being_spilled(folder, address) is None
        assert get(owner.check.remote(SEEDS, BIG))
        full.close()
        assert get(other.push_out.remote([4], BIG))
        assert get(owner.check.remote(SEEDS, BIG))


# --- shared memory -----------------------------------------------------------------------------------------------------


@in_a_small_world(shm=160 * MB, disk=128 * MB)
def test_shm_full_idle(world: World) -> None:
    seeds = range(1, 9)
    with one_node(world, 128 * MB) as folder:
        refs = put_all(seeds, 4 * MB)
        # Whoever has made an object before needs not a page of memory for one on disk.
        assert is_right(get(make.remote(10, LESS)), 10, LESS)
        assert os.listdir(folder) == []
        with world.full(world.shared_memory):
            # By others: the store has room, and the machine has none.
            assert all_right(refs, seeds, 4 * MB)
            more = put_all(range(11, 15), 4 * MB)
            made = make.remote(15, 4 * MB)
            assert all_right([*more, made], range(11, 16), 4 * MB)
            assert all(map(on_disk, more))
        again = shoal.put(array(16, 4 * MB))
        assert not on_disk(again)
        assert all_right(refs, seeds, 4 * MB)


@in_a_small_world(shm=400 * MB, disk=256 * MB)
def test_shm_full_mid_transfer(world: World) -> None:
    with (
        two_nodes(world, 160 * MB, 224 * MB) as cluster,
        ThreadPoolExecutor(1) as beside,
        ExitStack() as full,
    ):
        here, there = cluster.nodes
        refs = [make.options(**at(1)).remote(seed) for seed in (1, 2)]
        wait_until_known(refs)
        mine = [shoal.put(array(3, LESS))]
        folder = shared_memory(here.session_dir)
        first = beside.submit(get, refs[0])
        with stopped_in_the_middle(there.pid, lambda: arriving(folder, 1), "a copy"):
            full.enter_context(world.full(world.shared_memory))
        # It had its room before its first byte came.
        assert is_right(first.result(), 1)
        # There is none for another, which goes to disk.
        value = get(refs[1])
        assert is_right(value, 2)
        mine.append(shoal.put(array(4, LESS)))
        assert all_right(mine, range(3, 5), LESS)
        full.close()
        assert os.listdir(spill_folder(here.session_dir))
        del value, first, mine, refs


@in_a_small_world(shm=512 * MB, disk=1000 * MB)
def test_shm_full_mid_spill(world: World) -> None:
    with one_node(world, 3 * BIG + SIZE) as folder:
        owner, other = Holder.remote(), Holder.remote()
        pid = get(owner.pid.remote())
        refs = get(owner.put.remote(SEEDS, BIG))
        address = refs[0].owner_address()
        first = shoal.put(array(7, LESS))
        more = other.push_out.remote([4] * 3, BIG)
        with (
            stopped_in_the_middle(pid, lambda: being_spilled(folder, address), "a segment"),
            world.full(world.shared_memory),
        ):
            # Nobody waits for whoever is stopped: what finds no room is made on disk.
            assert get(more)
            mine = shoal.put(array(5, LESS))
            assert is_right(get(mine), 5, LESS)
            assert on_disk(mine)
        assert get(owner.check.remote(SEEDS, BIG))
        assert get(other.push_out.remote([4, 6], BIG))
        assert get(owner.check.remote(SEEDS, BIG))
        assert all_right([first, mine], range(7, 3, -2), LESS)
