"""Memory that no object uses goes back to the system after a while, without anybody asking for it."""

from __future__ import annotations

from pathlib import Path

from shoal.store import Arena
from tests.store.conftest import MB, bytes_in_files

MOST = 1 << 40


def test_what_stayed_idle_between_two_looks_goes(directory: Path) -> None:
    arena = Arena(directory, "abc", 100 * MB)
    kept = arena.create(2 * MB).location
    for location in [arena.create(3 * MB).location for _ in range(3)]:
        arena.free(location)
    assert arena.rest(MOST) == (0, True)
    # One of the three is used again, and idle since later than the others.
    arena.free(arena.create(3 * MB).location)
    given, again = arena.rest(MOST)
    assert given >= 6 * MB
    assert again
    given, again = arena.rest(MOST)
    assert given >= 3 * MB + 80 * MB
    assert not again
    assert arena.stats().quota_bytes == arena.stats().backed_bytes == bytes_in_files(directory)
    assert arena.view(kept).nbytes == 2 * MB
    arena.close(unlink=True)


def test_slabs_and_free_ranges_of_slabs_go_when_no_object_is_made(directory: Path) -> None:
    arena = Arena(directory, "abc", 100 * MB)
    locations = [arena.create(200_000).location for _ in range(50)]
    for location in locations[1:]:
        arena.free(location)
    assert arena.rest(MOST) == (0, True)
    _, again = arena.rest(MOST)
    assert not again
    assert 200_000 <= bytes_in_files(directory) < 600_000
    arena.free(locations[0])
    arena.rest(MOST)
    arena.rest(MOST)
    assert bytes_in_files(directory) == 0
    assert arena.stats().quota_bytes == 0
    arena.close(unlink=True)


def test_what_somebody_looks_at_stays_until_they_do_not(directory: Path) -> None:
    arena = Arena(directory, "abc", 100 * MB)
    location = arena.create(2 * MB).location
    view = arena.view(location)
    arena.free(location)
    for _ in range(3):
        _, again = arena.rest(MOST)
        assert again
    assert view.nbytes == 2 * MB
    del view
    arena.rest(MOST)
    assert arena.rest(MOST) == (2 * MB, False)
    arena.close(unlink=True)


def test_whoever_watches_is_told_once_until_there_is_nothing_more_to_see(directory: Path) -> None:
    told: list[str] = []
    arena = Arena(directory, "abc", when_idle=lambda: told.append("idle"))
    arena.grant(10 * MB)
    arena.free(arena.create(2 * MB).location)
    assert told == ["idle"]
    while arena.rest(MOST)[1]:
        assert told == ["idle"]
    arena.grant(10 * MB)
    arena.free(arena.create(2 * MB).location)
    assert told == ["idle"] * 2
    arena.close(unlink=True)
    assert arena.rest(MOST) == (0, False)


def test_no_more_goes_at_once_than_was_said(directory: Path) -> None:
    arena = Arena(directory, "abc", 100 * MB)
    for location in [arena.create(2 * MB).location for _ in range(10)]:
        arena.free(location)
    arena.rest(2 * MB)
    given, again = arena.rest(2 * MB)
    assert given == 80 * MB + 2 * MB
    assert again
    arena.close(unlink=True)
