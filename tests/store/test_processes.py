"""Makers and readers in real processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shoal.errors import ObjectFreedError
from shoal.store import Arena, Location, Reader, copy_into, locks, sweep
from tests.store.conftest import MB, bytes_in_files, place
from tests.store.peer import Peer, content, digest

pytestmark = pytest.mark.skipif(not locks.SUPPORTED, reason="no open file description locks here")

SIZES = [5000, 3 * MB]


def put(arena: Arena, size: int, seed: int) -> Location:
    block = arena.create(size)
    copy_into(block.buffer, memoryview(content(size, seed)))
    return block.location


def quarantined(arena: Arena) -> int:
    arena.blocks()  # looks at all of them again
    return arena.stats().quarantined_blocks


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.002)


@pytest.mark.parametrize("size", SIZES)
def test_an_array_in_another_process_keeps_its_block(
    arena: Arena, directory: Path, size: int
) -> None:
    with Peer(directory, "other") as peer:
        location = put(arena, size, seed=1)
        expected = digest(content(size, seed=1))
        assert peer.take("x", location) == expected
        arena.free(location)
        others = [put(arena, size, seed) for seed in range(2, 10)]
        assert place(location) not in map(place, others)
        assert peer("look", "x") == expected
        assert quarantined(arena) == 1
        peer("drop", "x")
        assert quarantined(arena) == 0
        assert place(location) in [place(put(arena, size, seed)) for seed in range(10, 14)]


@pytest.mark.parametrize("size", SIZES)
def test_the_kernel_drops_the_locks_of_a_killed_reader(
    arena: Arena, directory: Path, size: int
) -> None:
    with Peer(directory, "other") as peer:
        location = put(arena, size, seed=1)
        peer.take("x", location)
        arena.free(location)
        assert quarantined(arena) == 1
        os.kill(peer.process.pid, signal.SIGKILL)
        peer.process.wait()
        wait_until(lambda: quarantined(arena) == 0)
        assert place(put(arena, size, seed=2)) == place(location)


@pytest.mark.parametrize("size", SIZES)
def test_a_dead_object_that_is_viewed_can_be_abandoned_to_its_reader(
    arena: Arena, directory: Path, size: int
) -> None:
    with Peer(directory, "other") as peer:
        location = put(arena, size, seed=1)
        expected = peer.take("x", location)
        arena.free(location)
        arena.reclaim(1 << 60)
        assert bytes_in_files(directory) == 0
        arena.grant(64 * MB)
        put(arena, size, seed=2)
        assert peer("look", "x") == expected


def test_views_outlive_their_maker_and_its_files(directory: Path, reader: Reader) -> None:
    with Peer(directory, "maker", 64 * MB) as peer:
        small, large, late = peer.put(5000, 1), peer.put(3 * MB, 2), peer.put(2 * MB, 3)
        views = [reader.view(small), reader.view(large)]
        os.kill(peer.process.pid, signal.SIGKILL)
        peer.process.wait()
    # Until they are swept, the files of a dead process can be read.
    assert digest(reader.view(late)) == digest(content(2 * MB, 3))
    assert sweep(directory, "maker") == 3
    assert list(directory.iterdir()) == []
    with pytest.raises(ObjectFreedError):
        Reader(directory).view(late)
    assert [digest(view) for view in views] == [
        digest(content(5000, 1)),
        digest(content(3 * MB, 2)),
    ]
    views.clear()
    reader.forget("maker")
    assert reader.stats().mappings == 0


def test_objects_go_round_between_processes_that_all_make_and_read(
    arena: Arena, reader: Reader, directory: Path
) -> None:
    with Peer(directory, "p1", 64 * MB) as first, Peer(directory, "p2", 64 * MB) as second:
        for round_ in range(30):
            size = (1000, 300_000, 2 * MB)[round_ % 3]
            location = first.put(size, round_)
            expected = digest(content(size, round_))
            assert second.take(f"x{round_ % 4}", location) == expected
            assert digest(reader.view(location)) == expected
            first.free(location)
            if round_ >= 3:
                # What is kept from earlier rounds has not changed under its holder.
                for back in range(4):
                    earlier = round_ - back
                    kept = content((1000, 300_000, 2 * MB)[earlier % 3], earlier)
                    assert second("look", f"x{earlier % 4}") == digest(kept)
        assert first("quarantined") == 4
        assert reader.stats().viewed_blocks == 0


# --- forks --------------------------------------------------------------------------------------------------------


def test_a_forked_child_cannot_drop_the_locks_of_its_parent(arena: Arena, directory: Path) -> None:
    with Peer(directory, "other") as peer:
        location = put(arena, 5000, seed=1)
        expected = peer.take("x", location)
        assert peer("fork_and_drop")
        arena.free(location)
        assert quarantined(arena) == 1
        assert peer("look", "x") == expected
        peer("drop", "x")
        assert quarantined(arena) == 0


def test_a_forked_child_does_not_keep_the_locks_of_its_parent(
    arena: Arena, directory: Path
) -> None:
    with Peer(directory, "other") as peer:
        location = put(arena, 5000, seed=1)
        peer.take("x", location)
        child = peer("fork_and_stay")
        arena.free(location)
        os.kill(peer.process.pid, signal.SIGKILL)
        peer.process.wait()
        os.kill(child, 0)  # it lives
        wait_until(lambda: quarantined(arena) == 0)
    wait_until(lambda: not Path(f"/proc/{child}").exists())


def test_a_forked_child_is_told_to_make_an_arena_of_its_own(directory: Path) -> None:
    with Peer(directory, "other", 64 * MB) as peer:
        peer.put(1000, 1)
        assert "belongs to the process that forked this one" in peer("fork_and_create")
        assert peer.put(1000, 2).offset == 1024


def test_a_forked_child_reads_with_its_inherited_reader(
    arena: Arena, reader: Reader, directory: Path
) -> None:
    location = put(arena, 5000, seed=1)
    view = reader.view(location)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            own = reader.view(location)
            status = 0 if own == view and reader.stats().viewed_blocks == 1 else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert reader.stats().viewed_blocks == 1
    del view
    assert reader.stats().viewed_blocks == 0
