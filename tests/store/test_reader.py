"""How long views live, and what a reader keeps."""

from __future__ import annotations

import gc
import os
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest

from shoal.errors import InternalError, ObjectFreedError, ProtocolError
from shoal.store import Arena, Location, Reader, locks
from shoal.store.layout import lock_file, lock_range, parse_segment
from tests.store.conftest import MB, mappings_of, open_descriptors, place

pytestmark = pytest.mark.skipif(not locks.SUPPORTED, reason="no open file description locks here")

SIZES = [0, 1, 5000, 3 * MB]


def put(arena: Arena, content: bytes) -> Location:
    block = arena.create(len(content))
    block.buffer[:] = content
    return block.location


def is_locked(directory: Path, location: Location) -> bool:
    parts = parse_segment(location.segment)
    assert parts is not None
    creator, number, slab = parts
    fd = locks.open_lock_file(directory / lock_file(creator), create=False)
    try:
        return locks.is_held(fd, *lock_range(number, location.offset, location.size, slab=slab))
    finally:
        os.close(fd)


@pytest.mark.parametrize("size", SIZES)
def test_the_lock_is_held_exactly_while_something_derived_from_a_view_lives(
    arena: Arena, reader: Reader, directory: Path, size: int
) -> None:
    location = put(arena, bytes(size))
    assert not is_locked(directory, location)
    view = reader.view(location)
    assert is_locked(directory, location)
    part = view[: size // 2]
    array = np.frombuffer(part, dtype=np.uint8)
    del view, part
    tail = array[1:][::2].reshape(-1, 1)
    del array
    gc.collect()
    assert is_locked(directory, location)
    del tail
    assert not is_locked(directory, location)
    assert reader.stats().viewed_blocks == 0


def test_arrays_from_out_of_band_pickles_hold_it(
    arena: Arena, reader: Reader, directory: Path
) -> None:
    original = {"a": np.arange(1000.0), "b": np.arange(200_000)}
    buffers: list[pickle.PickleBuffer] = []
    stream = pickle.dumps(original, protocol=5, buffer_callback=buffers.append)
    sizes = [buffer.raw().nbytes for buffer in buffers]
    location = put(arena, b"".join(buffer.raw() for buffer in buffers))
    view = reader.view(location)
    loaded = pickle.loads(stream, buffers=[view[: sizes[0]], view[sizes[0] :]])
    del view
    arena.free(location)
    del loaded["a"]
    assert is_locked(directory, location)
    assert np.array_equal(loaded["b"], original["b"])
    with pytest.raises(ValueError, match="read-only"):
        loaded["b"][0] = 1
    loaded.clear()
    assert not is_locked(directory, location)


def test_each_view_counts_and_blocks_are_told_apart(
    arena: Arena, reader: Reader, directory: Path
) -> None:
    locations = [put(arena, bytes([i]) * 1000) for i in range(10)]
    views = [[reader.view(location) for location in locations] for _ in range(3)]
    assert reader.stats().viewed_blocks == 10
    views[0].clear()
    views[1].clear()
    for i in (3, 0, 9, 1, 2, 4, 5, 8, 7, 6):
        assert is_locked(directory, locations[i])
        assert views[2][i] == bytes([i]) * 1000
        views[2][i] = memoryview(b"")
        assert not is_locked(directory, locations[i])


def test_views_in_reference_cycles_end_with_the_collector(
    arena: Arena, reader: Reader, directory: Path
) -> None:
    location = put(arena, bytes(1000))
    cycle: list[object] = [reader.view(location)]
    cycle.append(cycle)
    del cycle
    gc.collect()
    assert not is_locked(directory, location)


@pytest.mark.parametrize("size", [5000, 3 * MB])
def test_a_freed_block_waits_for_readers(arena: Arena, reader: Reader, size: int) -> None:
    content = os.urandom(size)
    location = put(arena, content)
    view = reader.view(location)
    arena.free(location)
    others = [put(arena, bytes(size)) for _ in range(5)]
    assert place(location) not in map(place, others)
    assert view == content
    del view
    assert place(put(arena, bytes(size))) == place(location)


def test_a_segment_used_again_is_not_mapped_again(
    arena: Arena, reader: Reader, directory: Path
) -> None:
    for i in range(20):
        location = put(arena, bytes([i]) * (3 * MB))
        assert reader.view(location) == bytes([i]) * (3 * MB)
        arena.free(location)
    assert reader.stats().mappings == 1
    assert len(mappings_of(directory)) == 2  # the creator's and the reader's


def test_idle_mappings_are_bounded_in_number_and_bytes(arena: Arena, directory: Path) -> None:
    locations = [put(arena, bytes(MB)) for _ in range(20)]
    for limits in ({"idle_mappings": 3}, {"idle_bytes": 3 * MB}):
        reader = Reader(directory, **limits)
        views = [reader.view(location) for location in locations]
        assert reader.stats().mappings == 20
        for i in range(20):
            views[i] = memoryview(b"")
        assert reader.stats().idle_mappings == 3
        assert reader.stats().idle_bytes == 3 * MB
        # Those that became idle last are kept.
        views = [reader.view(location) for location in locations[-3:]]
        assert reader.stats().mappings == 3
        views.append(reader.view(locations[0]))
        assert reader.stats().mappings == 4
        views.clear()
        reader.close()


def test_mappings_of_removed_files_are_dropped(
    arena: Arena, reader: Reader, directory: Path
) -> None:
    large, small = put(arena, bytes(MB)), put(arena, bytes(1000))
    views = [reader.view(large), reader.view(small)]
    (directory / large.segment).unlink()
    views.clear()
    assert reader.stats().mappings == 1
    (directory / small.segment).unlink()
    reader.forget("abc")
    assert reader.stats().mappings == 0


def test_mapping_something_new_looks_after_what_is_idle(
    arena: Arena, reader: Reader, directory: Path
) -> None:
    first, second = put(arena, bytes(1000)), put(arena, bytes(MB))
    reader.view(first)
    (directory / first.segment).unlink()
    reader.view(second)
    assert reader.stats().mappings == 1


def test_an_ended_creator_can_be_forgotten(arena: Arena, reader: Reader, directory: Path) -> None:
    other = Arena(directory, "other", quota_bytes=MB)
    for maker in (arena, other):
        reader.view(put(maker, bytes(1000)))
    reader.forget("other")
    assert reader.stats().mappings == 1
    assert reader.stats().descriptors == 0
    other.close(unlink=True)


def test_descriptors_are_few_with_many_creators(reader: Reader, directory: Path) -> None:
    arenas = [Arena(directory, f"c{i}", quota_bytes=MB) for i in range(40)]
    locations = [put(arena, bytes([i])) for i, arena in enumerate(arenas)]
    before = len(open_descriptors())
    for i, location in enumerate(locations):
        assert reader.view(location) == bytes([i])
    assert len(open_descriptors()) <= before + 8
    views = [reader.view(location) for location in locations]
    assert reader.stats().descriptors == 40
    assert all(is_locked(directory, location) for location in locations)
    views.clear()
    assert len(open_descriptors()) <= before + 8
    for arena in arenas:
        arena.close(unlink=True)


@pytest.mark.parametrize(
    "location",
    [
        Location("abc-0s", -1, 1),
        Location("abc-0s", 0, -1),
        Location("abc-0s", 0, 1 << 40),
        Location("abc-0s", 32 * MB, 1),
        Location("abc-0s", 0, 999),
        Location("../../etc/passwd", 0, 1),
        Location("", 0, 1),
    ],
)
def test_locations_that_no_creator_made_are_refused(
    arena: Arena, reader: Reader, location: Location
) -> None:
    real = put(arena, bytes(1000))
    assert real == Location("abc-0s", 0, 1000, 1)
    held = reader.view(real)
    with pytest.raises(ProtocolError):
        reader.view(location)
    del held
    assert reader.stats().viewed_blocks == 0


def test_an_object_whose_file_is_gone_is_an_error_by_name(reader: Reader) -> None:
    with pytest.raises(ObjectFreedError, match="gone-1 is no longer in"):
        reader.view(Location("gone-1", 0, 10))


def test_closing_leaves_live_views_locked_until_they_die(arena: Arena, directory: Path) -> None:
    reader = Reader(directory)
    location = put(arena, b"abc" * 1000)
    view = reader.view(location)
    reader.close()
    with pytest.raises(InternalError, match="closed"):
        reader.view(Location("abc-7", 0, 1))
    del reader
    gc.collect()
    assert is_locked(directory, location)
    assert view == b"abc" * 1000
    before = len(open_descriptors())
    del view
    assert not is_locked(directory, location)
    assert len(open_descriptors()) == before - 1


def test_a_view_that_dies_while_the_reader_is_busy_is_let_go_by_whoever_was(
    arena: Arena, reader: Reader, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The collector may run at any allocation, also while this very thread holds the reader's lock.
    first, second = put(arena, bytes(1000)), put(arena, bytes(1000))
    views = [reader.view(first)]
    hold = Reader._hold

    def hold_and_collect(self: Reader, *args: object) -> object:
        views.clear()
        return hold(self, *args)  # type: ignore[arg-type]  # the arguments of the function it stands for

    monkeypatch.setattr(Reader, "_hold", hold_and_collect)
    view = reader.view(second)
    assert view.nbytes == 1000
    assert not is_locked(directory, first)
    assert is_locked(directory, second)


def test_a_new_view_inherits_the_lock_of_one_that_has_just_died(
    arena: Arena, reader: Reader, directory: Path
) -> None:
    location = put(arena, bytes(1000))
    view = reader.view(location)
    with reader._lock:  # as if another thread were busy
        del view
    assert is_locked(directory, location)
    view = reader.view(location)
    assert reader.stats().viewed_blocks == 1
    assert is_locked(directory, location)
    del view
    assert not is_locked(directory, location)


def test_views_die_in_any_thread(arena: Arena, reader: Reader, directory: Path) -> None:
    locations = [put(arena, bytes(1000)) for _ in range(50)]
    views = [reader.view(location) for location in locations]
    threads = [threading.Thread(target=views.pop) for _ in locations]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not any(is_locked(directory, location) for location in locations)
