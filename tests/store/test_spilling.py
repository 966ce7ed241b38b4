"""Objects that go to disk, and those who look at them meanwhile."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from shoal.errors import (
    GetTimeoutError,
    InternalError,
    ObjectFreedError,
    ObjectStoreFullError,
    OutOfDiskError,
)
from shoal.store import Arena, Location, Reader, accounts, locks, spilling, sweep
from shoal.store.layout import PAGE, segment_range
from shoal.store.spilling import SpillResult, spill_segment
from tests.store.conftest import MB, bytes_in_files, mappings_of, open_descriptors
from tests.store.peer import Peer, content, digest

pytestmark = pytest.mark.skipif(not locks.SUPPORTED, reason="no open file description locks here")

QUOTA = 256 * MB
SIZES = [100, 5_000, 700_000, MB, 3 * MB]
EVERYTHING = 1 << 60


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "spill"
    path.mkdir()
    yield path
    assert mappings_of(path) == []
    assert [line for line in open_descriptors() if str(path) in line] == []


@pytest.fixture
def arena(directory: Path, disk: Path) -> Iterator[Arena]:
    arena = Arena(directory, "abc", QUOTA, spill_directory=disk)
    yield arena
    arena.close(unlink=True)
    assert list(disk.iterdir()) == []


@pytest.fixture
def reader(directory: Path, disk: Path) -> Iterator[Reader]:
    reader = Reader(directory, disk)
    yield reader
    reader.close()


def put(arena: Arena, size: int, seed: int, *, on_disk: bool = False) -> Location:
    block = arena.create(size, on_disk=on_disk)
    block.buffer[:] = content(size, seed)
    return block.location


def is_on_disk(arena: Arena, location: Location, disk: Path) -> bool:
    return arena.path_of(location).parent == disk


@pytest.mark.parametrize("size", SIZES)
def test_an_object_on_disk_is_read_as_before(
    arena: Arena, reader: Reader, directory: Path, disk: Path, size: int
) -> None:
    location = put(arena, size, 1)
    # This one has it mapped from before.
    assert reader.view(location) == content(size, 1)
    backed = arena.stats().backed_bytes
    result = arena.spill(1)
    assert result.freed == backed
    assert size <= result.written <= size + 2 * PAGE
    assert result.error == ""
    assert is_on_disk(arena, location, disk)
    assert bytes_in_files(directory) == 0
    assert arena.stats().backed_bytes == 0
    assert arena.stats().spilled_bytes == size
    assert arena.stats().quota_bytes == QUOTA - result.freed
    fresh = Reader(directory, disk)
    for reads in (reader, fresh, arena):
        assert reads.view(location) == content(size, 1)
    assert arena.spill(EVERYTHING).freed == 0
    arena.free(location)
    assert list(disk.iterdir()) == []
    with pytest.raises(ObjectFreedError):
        fresh.view(location)
    fresh.close()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("own", [False, True])
def test_what_somebody_looks_at_stays_in_memory(
    arena: Arena, reader: Reader, disk: Path, size: int, own: bool
) -> None:
    location, other = put(arena, size, 1), put(arena, 5 * MB, 2)
    view = (arena if own else reader).view(location)
    array = np.frombuffer(view, dtype=np.uint8)[size // 2 :]
    del view
    arena.spill(EVERYTHING)
    assert is_on_disk(arena, other, disk)
    assert not is_on_disk(arena, location, disk)
    assert bytes(array) == content(size, 1)[size // 2 :]
    del array
    assert arena.spill(EVERYTHING).freed >= size
    assert is_on_disk(arena, location, disk)


def test_what_is_being_filled_stays_in_memory(arena: Arena, disk: Path) -> None:
    for size in SIZES:
        block = arena.create(size)
        arena.spill(EVERYTHING)
        block.buffer[:] = content(size, 3)
        location = block.location
        del block
        assert not is_on_disk(arena, location, disk)
        assert arena.view(location) == content(size, 3)


def test_those_made_longest_ago_go_first_and_no_more_than_needed(arena: Arena, disk: Path) -> None:
    locations = [put(arena, 3 * MB, seed) for seed in range(10)]
    result = arena.spill(7 * MB)
    assert [is_on_disk(arena, at, disk) for at in locations] == [True] * 3 + [False] * 7
    assert result.freed == result.written == 9 * MB
    arena.free(locations[4])
    again = put(arena, 3 * MB, 20)
    assert again.segment == locations[4].segment, "its warm memory is used again"
    arena.spill(6 * 3 * MB)
    assert not is_on_disk(arena, again, disk), "it is the youngest, wherever it is"
    assert [arena.view(at) == content(3 * MB, n) for n, at in enumerate(locations) if n != 4] == [
        True
    ] * 9


def test_a_slab_goes_whole_and_its_blocks_die_one_by_one(
    arena: Arena, reader: Reader, disk: Path
) -> None:
    locations = [put(arena, 100_000, seed) for seed in range(20)]
    for dead in locations[::2]:
        arena.free(dead)
    left = dict(enumerate(locations))
    left = {seed: at for seed, at in left.items() if seed % 2}
    assert arena.spill(1).written < 15 * 100_000, "what was dead is not written"
    assert bytes_in_files(disk) < 15 * 100_000
    new = put(arena, 100_000, 99)
    assert new.segment != locations[0].segment
    for seed, location in left.items():
        assert reader.view(location) == content(100_000, seed)
        assert len(list(disk.iterdir())) == 1
        arena.free(location)
    assert list(disk.iterdir()) == []


def test_objects_may_begin_on_disk(
    directory: Path, disk: Path, arena: Arena, reader: Reader
) -> None:
    for size in (0, 1, 5_000, 3 * MB):
        location = put(arena, size, 1, on_disk=True)
        assert bytes_in_files(directory) == 0
        assert is_on_disk(arena, location, disk)
        assert reader.view(location) == content(size, 1) == arena.view(location)
        assert arena.stats().quota_bytes == QUOTA
        assert arena.stats().spilled_bytes == size
        arena.free(location)
        assert list(disk.iterdir()) == []
    without = Arena(directory, "without")
    with pytest.raises(InternalError, match="no spill folder"):
        without.create(10, on_disk=True)
    assert without.spill(EVERYTHING) == SpillResult(0, 0)
    without.close(unlink=True)


def test_a_file_system_without_direct_writes_takes_it_too(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    real: Any = os.open

    def refuse(path: Any, flags: int, mode: int = 0o777) -> int:
        opened.append(flags & os.O_DIRECT)
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(path, flags, mode)

    location = put(arena, 3 * MB, 1)
    with monkeypatch.context() as patch:
        patch.setattr(spilling.os, "open", refuse)
        assert arena.spill(1).written == 3 * MB
    assert opened == [os.O_DIRECT, 0]
    assert arena.view(location) == content(3 * MB, 1)


def test_smaller_ones_go_where_a_large_one_has_no_room(
    arena: Arena, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large, small = put(arena, 20 * MB, 1), put(arena, MB, 2)

    def nearly_full(folder: Path, wanted: int, disk_fraction: float) -> None:
        if wanted > 5 * MB:
            raise OSError(errno.ENOSPC, "nearly full")

    monkeypatch.setattr(spilling, "check_disk", nearly_full)
    assert arena.spill(EVERYTHING) == SpillResult(MB, MB)
    assert is_on_disk(arena, small, disk)
    assert not is_on_disk(arena, large, disk)
    assert arena.spill(EVERYTHING) == SpillResult(0, 0, "nearly full")


def test_shared_memory_that_is_full_to_the_last_page_changes_nothing(
    arena: Arena, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flags are in it."""
    location = put(arena, 3 * MB, 1)
    before = arena.stats()

    def full(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(accounts, "set_spilled", full)
        assert arena.spill(1) == SpillResult(0, 0, "No space left on device")
        patch.setattr(accounts, "reserve_flag", full)
        with pytest.raises(ObjectStoreFullError, match="full to the last page"):
            arena.create(4 * MB)
    assert arena.stats() == before
    assert list(disk.iterdir()) == []
    assert arena.view(location) == content(3 * MB, 1)
    assert arena.spill(1).freed == 3 * MB


def test_views_of_one_spilled_segment_share_a_mapping_and_leave_none(
    arena: Arena, reader: Reader, disk: Path
) -> None:
    locations = [put(arena, 1_000, seed) for seed in range(50)]
    arena.spill(1)
    for looks in (arena, reader):
        views = [looks.view(location) for location in locations]
        assert len(mappings_of(disk)) == 1
        views.clear()
        assert mappings_of(disk) == []
    assert all(reader.view(at) == content(1_000, seed) for seed, at in enumerate(locations))


def test_who_reads_waits_while_a_segment_is_claimed(
    arena: Arena, reader: Reader, directory: Path, disk: Path
) -> None:
    """For as long as it takes to set the flag: what is found then is on disk."""
    location = put(arena, 3 * MB, 1)
    (disk / location.segment).write_bytes(content(3 * MB, 1))
    fd = os.open(directory / "abc.locks", os.O_RDWR)
    try:
        assert locks.seize(fd, *segment_range(0))
        found: list[bytes] = []
        looks = threading.Thread(target=lambda: found.append(bytes(reader.view(location))))
        looks.start()
        looks.join(0.05)
        assert looks.is_alive()
        spilling.set_spilled(fd, 0)
        locks.release(fd, *segment_range(0))
        looks.join(30)
        assert found == [content(3 * MB, 1)]
    finally:
        os.close(fd)
        (disk / location.segment).unlink()


def test_who_reads_does_not_wait_for_ever_for_a_process_that_is_stopped_just_then(
    arena: Arena, reader: Reader, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_PATIENCE_S", 0.05)
    location, other = put(arena, 3 * MB, 1), put(arena, 2 * MB, 2)
    child = subprocess.Popen(
        [sys.executable, "-c", SEIZES, str(directory / "abc.locks"), *map(str, segment_range(0))],
        stdout=subprocess.PIPE,
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"seized\n"
        os.kill(child.pid, signal.SIGSTOP)
        with pytest.raises(GetTimeoutError, match="just being moved to disk"):
            reader.view(location)
        assert reader.view(other) == content(2 * MB, 2)
        child.kill()
    # Its lock went with it.
    assert reader.view(location) == content(3 * MB, 1)


SEIZES = """
import os, sys, time
from shoal.store import locks
fd = os.open(sys.argv[1], os.O_RDWR)
assert locks.seize(fd, int(sys.argv[2]), int(sys.argv[3]))
print("seized", flush=True)
time.sleep(1000)
"""


def test_a_child_that_is_forked_meanwhile_does_not_keep_the_file(
    arena: Arena, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    children = []

    def forks(source: memoryview, folder: Path, name: str, *rest: Any) -> int:
        real = spilling.os.ftruncate

        def meanwhile(fd: int, length: int) -> None:
            real(fd, length)
            child = os.fork()
            if not child:
                held = [line for line in open_descriptors() if str(disk) in line]
                os._exit(len(held))
            children.append(child)

        with monkeypatch.context() as patch:
            patch.setattr(spilling.os, "ftruncate", meanwhile)
            return spilling.write_out(source, folder, name, *rest)

    put(arena, 3 * MB, 1)
    monkeypatch.setattr(accounts, "write_out", forks)
    assert arena.spill(1).freed == 3 * MB
    assert os.waitpid(children[0], 0)[1] == 0


def test_nothing_more_is_begun_when_the_process_ends(arena: Arena) -> None:
    put(arena, 3 * MB, 1)
    arena.stop_spilling()
    assert arena.spill(1) == SpillResult(0, 0)
    arena.close(unlink=True)
    assert arena.spill(1) == SpillResult(0, 0)


def test_a_full_disk_changes_nothing(
    arena: Arena, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locations = [put(arena, size, seed) for seed, size in enumerate(SIZES * 3)]
    before = arena.stats()

    def full(fd: int, data: object, offset: int) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(spilling.os, "pwrite", full)
        result = arena.spill(EVERYTHING)
    assert (result.freed, result.written) == (0, 0)
    assert result.error == "No space left on device"
    assert arena.stats() == before
    assert list(disk.iterdir()) == []
    arena._slabs.check()
    with monkeypatch.context() as patch:
        patch.setattr(arena, "_disk_fraction", 0.0)
        assert "more than 0% full" in arena.spill(EVERYTHING).error
        with pytest.raises(OutOfDiskError, match=r"cannot go to disk in .*0% full"):
            arena.create(10, on_disk=True)
    assert arena.stats() == before
    for seed, location in enumerate(locations):
        assert arena.view(location) == content(location.size, seed)
        arena.free(location)
    arena.reclaim(EVERYTHING)
    assert arena.stats().backed_bytes == 0


@pytest.mark.parametrize("looks", [False, True])
def test_blocks_come_and_go_while_their_slab_is_written(
    arena: Arena, monkeypatch: pytest.MonkeyPatch, looks: bool
) -> None:
    """If somebody looks at one when it is written, the slab is in use again as before."""
    locations = [put(arena, 50_000, seed) for seed in range(10)]
    views = []

    def meanwhile(*args: Any) -> int:
        for dead in locations[:5]:
            arena.free(dead)
        arena._slabs.check()
        if looks:
            views.append(arena.view(locations[7]))
        return spilling.write_out(*args)

    monkeypatch.setattr(accounts, "write_out", meanwhile)
    assert (arena.spill(1).freed > 0) != looks
    arena._slabs.check()
    assert views == ([content(50_000, 7)] if looks else [])
    views.clear()
    after = put(arena, 50_000, 50)
    assert (after.segment == locations[0].segment) == looks
    for location in [after, *locations[5:]]:
        arena.free(location)
    arena._slabs.check()
    arena.reclaim(EVERYTHING)
    assert arena.stats().backed_bytes == 0


@pytest.mark.parametrize("size", [5_000, 3 * MB])
@pytest.mark.parametrize("looks", [False, True])
def test_all_of_it_may_die_while_it_is_written(
    arena: Arena, reader: Reader, monkeypatch: pytest.MonkeyPatch, size: int, looks: bool
) -> None:
    location = put(arena, size, 1)
    views = []

    def meanwhile(*args: Any) -> int:
        if looks:
            views.append(reader.view(location))
        arena.free(location)
        return spilling.write_out(*args)

    monkeypatch.setattr(accounts, "write_out", meanwhile)
    assert arena.spill(1).freed == 0
    assert arena.stats().quarantined_blocks == looks
    assert views == ([content(size, 1)] if looks else [])
    views.clear()
    assert put(arena, size, 2).segment == location.segment
    arena.reclaim(EVERYTHING)
    assert arena.stats().quarantined_blocks == 0


def test_many_read_while_much_is_spilled(arena: Arena, directory: Path, disk: Path) -> None:
    """Threads with readers of their own and a process: whatever they look at is whole, at any moment."""
    sizes = [3_000, 200_000, MB]
    locations = [put(arena, sizes[n % 3], n) for n in range(60)]
    wanted = [digest(content(at.size, n)) for n, at in enumerate(locations)]
    failures: list[BaseException] = []
    stopped = threading.Event()

    def read(seed: int) -> None:
        rng = random.Random(seed)
        reader = Reader(directory, disk, idle_mappings=rng.choice([2, 64]))
        kept: list[tuple[memoryview, int]] = []
        try:
            while not stopped.is_set():
                n = rng.randrange(len(locations))
                kept.append((reader.view(locations[n]), n))
                if len(kept) > rng.randrange(4):
                    view, n = kept.pop(rng.randrange(len(kept)))
                    assert digest(view) == wanted[n]
                    del view
            for view, n in kept:
                assert digest(view) == wanted[n]
        except BaseException as error:  # noqa: BLE001 - it is raised again by the test
            failures.append(error)
        finally:
            kept.clear()
            reader.close()

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    with Peer(directory, "other", spill=disk) as peer:
        rounds = 0
        while arena.stats().live_bytes and not failures and rounds < 200:
            arena.spill(MB)
            n = rounds % len(locations)
            if rounds >= 3:
                assert peer("look", f"x{rounds % 3}") == wanted[(rounds - 3) % len(locations)]
            assert peer.take(f"x{rounds % 3}", locations[n]) == wanted[n]
            rounds += 1
        stopped.set()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
    arena.spill(EVERYTHING)
    assert arena.stats().live_bytes == 0
    assert all(is_on_disk(arena, at, disk) for at in locations)


@pytest.mark.parametrize("size", [5_000, 3 * MB])
def test_what_a_dead_process_left_can_be_spilled(
    directory: Path, disk: Path, reader: Reader, size: int
) -> None:
    with Peer(directory, "maker", 64 * MB, spill=disk) as peer:
        locations = [peer.put(size, seed) for seed in range(3)]
        os.kill(peer.process.pid, signal.SIGKILL)
        peer.process.wait()
    segments = {location.segment for location in locations}
    mapped = Reader(directory, disk)
    views = [mapped.view(location) for location in locations]
    for name in segments:
        assert spill_segment(directory, disk, name) is None, "somebody looks at it"
    assert list(disk.iterdir()) == []
    views.clear()
    freed = 0
    for name in segments:
        came = spill_segment(directory, disk, name)
        assert came is not None
        freed += came
    assert freed >= 3 * size
    assert bytes_in_files(directory) == 0
    for seed, location in enumerate(locations):
        assert mapped.view(location) == reader.view(location) == content(size, seed)
    with pytest.raises(FileNotFoundError):
        spill_segment(directory, disk, next(iter(segments)))
    with pytest.raises(ValueError, match="not the name"):
        spill_segment(directory, disk, "../x")
    mapped.close()
    sweep(directory, "maker")


def test_a_spill_that_was_broken_off_is_not_seen(directory: Path, disk: Path) -> None:
    """Who spilled was killed before it could set the flag."""
    with Peer(directory, "maker", 64 * MB, spill=disk) as peer:
        location = peer.put(3 * MB, 1)
        (disk / location.segment).write_bytes(b"half")
        reader = Reader(directory, disk)
        assert reader.view(location) == content(3 * MB, 1)
        assert peer("spill", 1) == 3 * MB
        assert reader.view(location) == content(3 * MB, 1)
        assert (disk / location.segment).stat().st_size == 3 * MB
        reader.close()
