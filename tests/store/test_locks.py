"""Which of many blocks nobody looks at: the same as asking for each, in fewer questions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.store import Arena, QuotaExhausted, Reader, locks

pytestmark = pytest.mark.skipif(not locks.SUPPORTED, reason="needs open file description locks")

Places = list[tuple[int, int]]


@st.composite
def places(draw: st.DrawFn) -> Places:
    """Ranges in order that do not overlap, some of which touch."""
    found: Places = []
    position = 0
    for gap, length in draw(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), max_size=30)):
        found.append((position + gap, length))
        position += gap + length
    return found


@given(places(), st.data())
def test_it_is_the_same_as_asking_for_each(ranges: Places, data: st.DataObject) -> None:
    path = f"/dev/shm/shoal-test-locks-{os.getpid()}"
    asker = locks.open_lock_file(path, create=True)
    readers = [locks.open_lock_file(path, create=False) for _ in range(2)]
    os.unlink(path)
    try:
        for fd in readers:
            for start, length in ranges:
                if data.draw(st.booleans()):
                    locks.hold(fd, start, length)
            # Also what lies between them, such as blocks that live.
            locks.hold(fd, data.draw(st.integers(0, 100)), 1)
        expected = [n for n, place in enumerate(ranges) if not locks.is_held(asker, *place)]
        assert sorted(locks.unheld(asker, ranges)) == expected
    finally:
        for fd in (asker, *readers):
            os.close(fd)


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often the kernel was asked."""
    asked = [0]
    control = locks._control

    def count(fd: int, command: int, lock: bytes) -> bytes:
        asked[0] += command == locks._GET
        return control(fd, command, lock)  # type: ignore[return-value]  # bytes for bytes

    monkeypatch.setattr(locks, "_control", count)
    return asked


def test_blocks_that_were_made_in_a_row_and_are_held_cost_few_questions(
    directory: Path, questions: list[int]
) -> None:
    arena, reader = Arena(directory, "q", quota_bytes=64 << 20), Reader(directory)
    made = [arena.create(5_000).location for _ in range(3_000)]
    views = [reader.view(location) for location in made]
    for location in made:
        arena.free(location)
    questions[0] = 0
    assert arena.reclaim(1) == 1
    assert arena.stats().quarantined_blocks == 3_000
    assert questions[0] < 100
    # The grid is broken up.
    del views[::100]
    arena.reclaim(1)
    assert arena.stats().quarantined_blocks == 3_000 - 30
    assert questions[0] < 300
    del views
    arena.close(unlink=True)
    reader.close()


def test_many_blocks_without_room_do_not_each_look_at_all_that_are_held(
    directory: Path, questions: list[int]
) -> None:
    arena, reader = Arena(directory, "q", quota_bytes=16 << 20), Reader(directory)
    views, made = [], []
    while True:
        try:
            made.append(arena.create(5_000).location)
        except QuotaExhausted:
            break
        views.append(reader.view(made[-1]))
    for location in made:
        arena.free(location)
    questions[0] = 0
    for _ in range(1_000):
        with pytest.raises(QuotaExhausted):
            arena.create(5_000)
    assert len(made) > 3_000
    assert questions[0] < 1_000 * 200
    del views
    # A block that comes free is found, if not by the first.
    arena.create(5_000)
    arena.close(unlink=True)
    reader.close()
