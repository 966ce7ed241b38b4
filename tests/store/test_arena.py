from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pytest

from shoal.errors import InternalError, ObjectFreedError, ObjectStoreFullError
from shoal.store import Arena, Location, QuotaExhausted, Reader, copy_into
from shoal.store import segment as segment_module
from tests.store.conftest import MB, bytes_in_files, mappings_of, open_descriptors, place

SIZES = [0, 1, 63, 64, 65, 100_000, MB - 1, MB, MB + 1, 10 * MB]


def put(arena: Arena, content: bytes) -> Location:
    block = arena.create(len(content))
    copy_into(block.buffer, memoryview(content))
    return block.location


@pytest.mark.parametrize("size", SIZES)
def test_what_is_put_can_be_viewed_by_its_maker_and_by_a_reader(
    arena: Arena, reader: Reader, size: int
) -> None:
    content = os.urandom(size)
    location = put(arena, content)
    assert location.size == size
    for view in (arena.view(location), reader.view(location)):
        assert view == content
        assert view.readonly
        assert view.format == "B"
        assert view.nbytes == size
        with pytest.raises(TypeError):
            view[:1] = b"x"


def test_blocks_begin_at_multiples_of_64(arena: Arena) -> None:
    blocks = [arena.create(size) for size in (1, 100, 7, MB, 65, 2 * MB)]
    for block in blocks:
        assert np.frombuffer(block.buffer, dtype=np.uint8).ctypes.data % 64 == 0


def test_files_are_for_this_user_only(arena: Arena, directory: Path) -> None:
    arena.create(100)
    arena.create(MB)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}


def test_small_objects_share_a_file_and_large_ones_have_their_own(
    arena: Arena, directory: Path
) -> None:
    small = {arena.create(50_000).location.segment for _ in range(100)}
    large = {arena.create(MB).location.segment for _ in range(3)}
    assert len(small) == 1
    assert len(large) == 3
    assert {path.name for path in directory.iterdir()} == small | large | {"abc.locks"}


@pytest.mark.parametrize("size", [1000, 3 * MB])
def test_a_freed_block_is_used_again_at_once(arena: Arena, size: int) -> None:
    first = put(arena, bytes(size))
    backed = arena.stats().backed_bytes
    arena.free(first)
    again = put(arena, bytes(size))
    assert place(again) == place(first)
    assert again != first
    assert arena.stats().backed_bytes == backed


def test_a_warm_segment_serves_sizes_somewhat_below_its_own(arena: Arena) -> None:
    first = put(arena, bytes(10 * MB))
    arena.free(first)
    assert put(arena, bytes(9 * MB)).segment == first.segment
    assert put(arena, bytes(5 * MB)).segment != first.segment


@pytest.mark.parametrize("size", [1000, 3 * MB])
def test_a_block_is_not_used_again_while_its_maker_views_it(arena: Arena, size: int) -> None:
    content = os.urandom(size)
    location = put(arena, content)
    array = np.frombuffer(arena.view(location), dtype=np.uint8)[1:]
    arena.free(location)
    assert arena.stats().quarantined_blocks == 1
    assert place(put(arena, bytes(size))) != place(location)
    assert array.tobytes() == content[1:]
    del array
    assert place(put(arena, bytes(size))) == place(location)
    assert arena.stats().quarantined_blocks == 0


def test_a_block_is_not_used_again_while_it_is_still_being_filled(arena: Arena) -> None:
    block = arena.create(1000)
    arena.free(block.location)
    assert place(arena.create(1000).location) != place(block.location)


@pytest.mark.parametrize("size", [1_000, 2 * MB])
def test_blocks_are_told_by_what_became_of_their_objects(
    arena: Arena, reader: Reader, size: int
) -> None:
    live, mine, theirs = [put(arena, bytes(size)) for _ in range(3)]
    my_view, their_view = arena.view(mine), reader.view(theirs)
    assert arena.blocks() == ([live, mine, theirs], [], [mine], [])
    assert reader.viewed() == [theirs]
    arena.free(mine)
    arena.free(theirs)
    assert arena.blocks() == ([live], [mine, theirs], [mine], [])
    # Nothing is made meanwhile that would look at them again.
    del my_view
    assert arena.blocks() == ([live], [theirs], [], [])
    del their_view
    assert arena.blocks() == ([live], [], [], [])
    assert reader.viewed() == []


def test_freeing_twice_and_viewing_what_was_freed_are_refused(arena: Arena) -> None:
    location = put(arena, b"x")
    arena.free(location)
    for use in (arena.free, arena.view):
        with pytest.raises(ObjectFreedError, match="no live object of arena 'abc'"):
            use(location)
    with pytest.raises(ObjectFreedError):
        arena.view(Location("abc-99", 0, 1))


def test_what_is_at_the_place_of_a_freed_object_is_not_that_object(arena: Arena) -> None:
    dead = put(arena, b"x")
    arena.free(dead)
    alive = put(arena, b"y")
    assert place(alive) == place(dead)
    for use in (arena.free, arena.view):
        with pytest.raises(ObjectFreedError):
            use(dead)
    assert arena.view(alive) == b"y"


def test_negative_sizes_and_odd_settings_are_refused(arena: Arena, directory: Path) -> None:
    with pytest.raises(ValueError, match="-1 bytes"):
        arena.create(-1)
    with pytest.raises(ValueError, match="at least twice"):
        Arena(directory, "x", large_bytes=MB, slab_bytes=MB)
    with pytest.raises(ValueError, match="letters and digits"):
        Arena(directory, "../x")


def test_two_arenas_of_one_name_are_refused(arena: Arena, directory: Path) -> None:
    with pytest.raises(FileExistsError):
        Arena(directory, "abc")


# --- quota ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [100, 5000, MB, 10 * MB + 1])
def test_a_grant_of_what_was_said_to_be_missing_is_enough(directory: Path, size: int) -> None:
    arena = Arena(directory, "q")
    with pytest.raises(QuotaExhausted) as caught:
        arena.create(size)
    arena.grant(caught.value.needed_bytes)
    arena.create(size)
    stats = arena.stats()
    assert bytes_in_files(directory) == stats.backed_bytes == stats.quota_bytes
    arena.close(unlink=True)


def test_a_process_with_one_small_object_holds_little(directory: Path) -> None:
    arena = Arena(directory, "q", quota_bytes=64 * MB)
    arena.create(150_000)
    assert bytes_in_files(directory) <= 256 << 10
    arena.close(unlink=True)


def test_memory_freed_in_one_size_is_taken_for_another_before_quota_is_asked_for(
    directory: Path,
) -> None:
    arena = Arena(directory, "q", quota_bytes=32 * MB)
    for size in (30 * MB, 2 * MB, 20 * MB, 100_000, 31 * MB):
        locations = [put(arena, bytes(size)) for _ in range(max(1, 30 * MB // size))]
        assert bytes_in_files(directory) == arena.stats().backed_bytes <= 32 * MB
        for location in locations:
            arena.free(location)
    arena.close(unlink=True)


def test_free_ranges_between_live_objects_give_their_pages_to_a_large_one(directory: Path) -> None:
    arena = Arena(directory, "q", quota_bytes=16 * MB)
    locations = [put(arena, bytes([i]) * 500_000) for i in range(30)]
    kept = [(location, i) for i, location in enumerate(locations) if i % 10 == 0]
    for i, location in enumerate(locations):
        if i % 10:
            arena.free(location)
    put(arena, bytes(10 * MB))
    assert bytes_in_files(directory) == arena.stats().backed_bytes <= 16 * MB
    for location, i in kept:
        assert arena.view(location) == bytes([i]) * 500_000
    # And the holes are filled again.
    more = [put(arena, bytes([i]) * 100_000) for i in range(20)]
    for i, location in enumerate(more):
        assert arena.view(location) == bytes([i]) * 100_000
    arena.close(unlink=True)


def test_reclaim_takes_unused_quota_first_then_the_longest_idle(directory: Path) -> None:
    arena = Arena(directory, "q", quota_bytes=40 * MB)
    first, second = (put(arena, bytes(16 * MB)) for _ in range(2))
    arena.free(second)
    arena.free(first)
    assert arena.reclaim(5 * MB) == 5 * MB
    assert len(list(directory.iterdir())) == 3
    assert arena.reclaim(4 * MB) == 3 * MB + 16 * MB
    assert not (directory / second.segment).exists()
    assert (directory / first.segment).exists()
    arena.close(unlink=True)


@pytest.mark.parametrize("size", [500_000, 16 * MB])
def test_reclaim_removes_dead_objects_that_are_viewed_last(directory: Path, size: int) -> None:
    arena = Arena(directory, "q", quota_bytes=64 * MB)
    reader = Reader(directory)
    content = os.urandom(size)
    location = put(arena, content)
    view = reader.view(location)
    arena.free(location)
    assert arena.reclaim(1 << 40) == 64 * MB
    assert arena.stats().quota_bytes == 0 == bytes_in_files(directory)
    assert view == content
    del view
    # Nothing of it is kept for later: the memory is free.
    reader.forget("q")
    arena.close(unlink=True)
    assert mappings_of(directory) == []
    reader.close()


def test_memory_removed_is_free_at_once_even_if_readers_keep_its_mapping(directory: Path) -> None:
    arena = Arena(directory, "q", quota_bytes=64 * MB)
    reader = Reader(directory)
    location = put(arena, bytes(16 * MB))
    assert reader.view(location)[-1] == 0
    held = os.open(directory / location.segment, os.O_RDONLY)
    try:
        arena.free(location)
        arena.reclaim(1 << 40)
        assert os.fstat(held).st_nlink == 0
        assert os.fstat(held).st_blocks == 0
        assert reader.stats().idle_mappings == 1
    finally:
        os.close(held)
    reader.forget("q")
    assert reader.stats().mappings == 0
    reader.close()
    arena.close(unlink=True)


def test_a_full_file_system_is_an_error_by_name_and_costs_no_quota(
    arena: Arena, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, offset: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(segment_module.os, "posix_fallocate", full)
    for size in (1000, 5 * MB):
        with pytest.raises(ObjectStoreFullError, match=r"no room for .* more bytes"):
            arena.create(size)
    assert arena.stats().backed_bytes == 0 == bytes_in_files(directory)
    monkeypatch.undo()
    for size in (1000, 5 * MB):
        assert arena.view(put(arena, b"x" * size)) == b"x" * size


def test_a_file_system_without_holes_only_costs_tightness(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.store.mapping.Mapping.discard", lambda *_: False)
    arena = Arena(directory, "q", quota_bytes=8 * MB)
    locations = [put(arena, bytes(500_000)) for _ in range(12)]
    for location in locations[1:]:
        arena.free(location)
    with pytest.raises(QuotaExhausted):
        arena.create(6 * MB)
    arena.free(locations[0])
    arena.create(6 * MB)
    arena.close(unlink=True)


def test_sizes_made_in_turn_can_keep_their_memory_if_the_caller_gets_more_quota(
    directory: Path,
) -> None:
    arena = Arena(directory, "q", quota_bytes=0)
    asked = 0
    for _ in range(10):
        for size in (10 * MB, 7 * MB, 200_000, 3 * MB):
            try:
                block = arena.create(size, recycle=False)
            except QuotaExhausted as exhausted:
                asked += 1
                arena.grant(exhausted.needed_bytes)
                block = arena.create(size, recycle=False)
            arena.free(block.location)
            del block
    assert asked == 4
    assert len(list(directory.iterdir())) == 5
    arena.close(unlink=True)


# --- bounds ---------------------------------------------------------------------------------------------------------


def test_descriptors_do_not_grow_with_objects(arena: Arena, reader: Reader) -> None:
    for size in (1000, 200_000, 2 * MB):
        arena.free(put(arena, bytes(size)))
    before = len(open_descriptors())
    for i in range(10_000):
        location = arena.create((1000, 200_000, 2 * MB)[i % 3]).location
        reader.view(location)
        arena.free(location)
    kept = [arena.create(MB).location for _ in range(100)]
    views = [reader.view(location) for location in kept]
    assert len(open_descriptors()) <= before + 1  # the creator's lock file, opened by the reader
    assert len(views) == 100


def test_twenty_gigabytes_pass_through_a_quarter(directory: Path) -> None:
    arena = Arena(directory, "q", quota_bytes=256 * MB)
    source = memoryview(bytearray(os.urandom(MB)) * 100)
    sizes = [10 * MB, 100_000, 100 * MB, MB, 777_777, 33 * MB]
    total = i = 0
    kept: list[Location] = []
    while total < 20 << 30:
        size = sizes[i % len(sizes)]
        block = arena.create(size)
        copy_into(block.buffer, source[:size])
        kept.append(block.location)
        del block
        if len(kept) > 2:
            arena.free(kept.pop(0))
        total += size
        i += 1
        if i % 50 == 0:
            assert bytes_in_files(directory) == arena.stats().backed_bytes <= 256 * MB
    for location in kept:
        assert arena.view(location) == source[: location.size]
    arena.close(unlink=True)


# --- the end --------------------------------------------------------------------------------------------------------


def test_views_outlive_the_arena_and_the_files(directory: Path) -> None:
    arena = Arena(directory, "q", quota_bytes=64 * MB)
    reader = Reader(directory)
    contents = [os.urandom(size) for size in (1000, 2 * MB)]
    locations = [put(arena, content) for content in contents]
    views = [reader.view(location) for location in locations]
    views += [arena.view(location) for location in locations]
    arena.close(unlink=True)
    arena.close(unlink=True)
    assert list(directory.iterdir()) == []
    assert views == contents * 2
    with pytest.raises(ObjectFreedError):
        Reader(directory).view(locations[0])
    reader.close()


def test_a_closed_arena_that_leaves_its_files_leaves_live_objects_only(
    directory: Path, reader: Reader
) -> None:
    arena = Arena(directory, "q", quota_bytes=64 * MB)
    contents = [os.urandom(size) for size in (500_000, 2 * MB)]
    dead = [put(arena, bytes(size)) for size in (700_000, 4 * MB, 5 * MB)]
    live = [put(arena, content) for content in contents]
    viewed = reader.view(dead[2])
    for location in dead:
        arena.free(location)
    arena.close(unlink=False)
    assert bytes_in_files(directory) <= 500_000 + 2 * MB + 3 * 4096
    assert [reader.view(location) for location in live] == contents
    assert not any(viewed)


@pytest.mark.parametrize("unlink", [True, False])
def test_an_arena_without_live_objects_leaves_nothing(directory: Path, unlink: bool) -> None:
    arena = Arena(directory, "q", quota_bytes=64 * MB)
    for size in (100, 3 * MB):
        arena.free(put(arena, bytes(size)))
    arena.close(unlink=unlink)
    assert list(directory.iterdir()) == []


def test_closing_takes_no_memory_from_under_live_objects(directory: Path, reader: Reader) -> None:
    # A reader that has the segment mapped already may begin to view a live object after its maker has ended.
    arena = Arena(directory, "q", quota_bytes=64 * MB)
    contents = [os.urandom(size) for size in (5000, 2 * MB)]
    locations = [put(arena, content) for content in contents]
    for location in locations:
        reader.view(location)
    arena.close(unlink=True)
    assert [reader.view(location) for location in locations] == contents


def test_a_closed_arena_makes_nothing_and_has_nothing_to_free(directory: Path) -> None:
    arena = Arena(directory, "q", quota_bytes=64 * MB)
    location = put(arena, b"x")
    arena.close(unlink=False)
    assert (directory / location.segment).exists()
    arena.free(location)
    for size in (1, MB):
        with pytest.raises(InternalError, match="'q' is closed"):
            arena.create(size)
    with pytest.raises(InternalError):
        arena.view(location)
