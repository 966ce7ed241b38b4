"""Segments that go on from the disk to a remote target, and come back: whoever reads, frees, dies, or fails meanwhile."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from shoal.errors import ObjectFreedError, ShoalError
from shoal.messages.values import Location
from shoal.node import remote_spill
from shoal.node.chores import Chores
from shoal.node.disk_room import DiskTerms
from shoal.node.estates import Estates
from shoal.node.remote_spill import RemoteSpill
from shoal.runtime.node_link import error_from_text
from shoal.store import Arena, Reader
from shoal.wire.session import REMOTE, folder_name
from tests.process.failing_files import FailingFiles, register
from tests.process.node_sessions import wait_for

MB = 1 << 20
MAKER = "w0000001"


class Process:
    """A process, as far as it knows of the target."""

    def __init__(self, remote: RemoteSpill) -> None:
        self._remote = remote

    def bring(self, segment: str) -> None:
        error = self._remote.bring_within(segment, 60)
        assert error is not None
        if error:
            raise error_from_text(error)

    def forget(self, segment: str) -> None:
        self._remote.forget([segment])


class Setting:
    """A node with a target, and a process that has made objects and spilled them: two large ones, and four that share a slab."""

    def __init__(self, tmp_path: Path, budget: int = 0) -> None:
        register()
        self.memory, self.disk = tmp_path / "memory", tmp_path / "disk"
        self.session, self.place = tmp_path / "s-00000001", tmp_path / "target"
        for folder in (self.memory, self.disk, self.session):
            folder.mkdir()
        self.target = self.place / folder_name(str(self.session))
        self.terms = DiskTerms(self.disk, 1.0, budget)
        self.remote = RemoteSpill(
            str(self.session),
            self.memory,
            self.disk,
            f"failing://{self.place}",
            self.terms.shortage,
        )
        process = Process(self.remote)
        self.arena = Arena(self.memory, MAKER, 64 * MB, spill_directory=self.disk, remote=process)
        self.reader = Reader(self.memory, self.disk, remote=process)
        self.objects: list[Location] = []
        for number, size in enumerate((4 * MB, 3 * MB + 5, *[200_000] * 4)):
            block = self.arena.create(size)
            block.buffer[:] = bytes([number + 1]) * size
            self.objects.append(block.location)
            del block
        assert not self.arena.spill(1 << 40).error

    def move(self, wanted: int = 1 << 40) -> str:
        """Have segments go on; why they did not."""
        answer: Future[str] = Future()
        self.remote.make_room(wanted, lambda _, error: answer.set_result(error))
        return answer.result(60)

    def check(self, reader: Any, numbers: Any = range(6)) -> None:
        for number in numbers:
            location = self.objects[number]
            view = reader.view(location)
            assert view == bytes([number + 1]) * location.size
            del view

    def on_disk(self) -> set[str]:
        return {path.name for path in self.disk.iterdir()}

    def away(self) -> set[str]:
        return {path.name for path in self.target.iterdir()} if self.target.exists() else set()

    @property
    def segments(self) -> set[str]:
        return {location.segment for location in self.objects}

    def settle(self) -> None:
        """All that was said before is done."""
        self.remote.bring_within("w0000009-9", 60)

    def close(self) -> None:
        self.reader.close()
        self.arena.close(unlink=True)
        self.remote.close()


@pytest.fixture
def s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Setting]:
    monkeypatch.setattr(FailingFiles, "broken", False)
    monkeypatch.setattr(FailingFiles, "half", 0)
    setting = Setting(tmp_path)
    yield setting
    setting.close()


def test_segments_go_on_and_come_back_whole(s: Setting) -> None:
    assert not (s.session / REMOTE).exists()
    assert s.move() == ""
    assert s.on_disk() == set()
    assert s.away() == s.segments
    assert (s.session / REMOTE).read_text() == f"failing://{s.place}"
    s.check(s.reader)
    assert s.on_disk() == s.segments
    assert s.away() == set()
    assert s.move() == ""
    s.check(s.arena)
    # Of a slab most is empty, and takes no room.
    (slab,) = [name for name in s.segments if name.endswith("s")]
    assert (s.disk / slab).stat().st_blocks * 512 < 4 * MB < (s.disk / slab).stat().st_size


def test_the_coldest_go_first_and_no_more_than_is_needed(s: Setting) -> None:
    large, other = s.objects[0].segment, s.objects[1].segment
    for age, name in enumerate([large, other]):
        os.utime(s.disk / name, (1_000 + age, 1_000 + age))
    assert s.move(1) == ""
    assert s.away() == {large}
    assert s.move(1) == ""
    assert s.away() == {large, other}


def test_what_is_looked_at_or_being_filled_stays(s: Setting) -> None:
    view = s.reader.view(s.objects[0])
    block = s.arena.create(2 * MB, on_disk=True)
    here = {s.objects[0].segment, block.location.segment}
    assert s.move() == ""
    assert s.on_disk() == here
    del view
    block.buffer[:] = b"x" * (2 * MB)
    location = block.location
    del block
    assert s.move() == ""
    assert s.on_disk() == set()
    assert bytes(s.reader.view(location)) == b"x" * (2 * MB)


def test_what_is_freed_is_removed_wherever_it_is(s: Setting) -> None:
    assert s.move() == ""
    s.check(s.reader, [0])
    for number, location in enumerate(s.objects):
        s.arena.free(location)
        s.settle()
        assert s.objects[number].segment not in s.away() or number in range(2, 5)
    assert s.away() == s.on_disk() == set()
    for location in s.objects:
        with pytest.raises(ObjectFreedError):
            s.reader.view(location)


def test_what_is_freed_while_it_goes_or_comes_is_removed(
    s: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slowly(real: Any) -> Any:
        def do(*args: Any) -> None:
            real(*args)
            begun.set()
            assert go_on.wait(60)

        return do

    target = s.remote._target
    monkeypatch.setattr(target, "put", slowly(target.put))
    moved: Future[str] = Future()
    s.remote.make_room(1 << 40, lambda _, error: moved.set_result(error))
    assert begun.wait(60)
    for location in s.objects[:2]:
        s.arena.free(location)
    go_on.set()
    assert moved.result(60) == ""
    (slab,) = {location.segment for location in s.objects[2:]}
    assert s.away() == {slab}
    begun.clear()
    go_on.clear()
    monkeypatch.setattr(target, "get", slowly(target.get))
    back: Future[str] = Future()
    s.remote.bring(slab, back.set_result)
    assert begun.wait(60)
    for location in s.objects[2:]:
        s.arena.free(location)
    go_on.set()
    assert back.result(60) == ""
    s.settle()
    assert s.away() == s.on_disk() == set()


@pytest.mark.parametrize("how", ["gone", "half"])
def test_where_the_target_fails_nothing_is_lost(
    s: Setting, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "gone":
        monkeypatch.setattr(FailingFiles, "broken", True)
        words = "nobody answers"
    else:
        monkeypatch.setattr(FailingFiles, "half", 100_000)
        words = "the line went dead"
    error = s.move()
    assert words in error
    assert f"failing://{s.place}" in error
    assert s.on_disk() == s.segments
    assert s.away() == set()
    s.check(s.reader)
    monkeypatch.undo()
    assert s.move() == ""
    monkeypatch.setattr(FailingFiles, "broken", True)
    for reader in (s.reader, s.arena):
        with pytest.raises(ShoalError, match="not lost") as raised:
            reader.view(s.objects[0])
        assert type(raised.value).__name__ == "SpillTargetError"
    # What dies meanwhile goes later.
    s.arena.free(s.objects[1])
    s.settle()
    assert s.objects[1].segment in s.away()
    monkeypatch.undo()
    s.check(s.reader, [0, *range(2, 6)])
    assert s.away() == set()


def test_damage_is_noticed(s: Setting) -> None:
    assert s.move() == ""
    path = s.target / s.objects[0].segment
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ShoalError, match="instead of"):
        s.reader.view(s.objects[0])
    assert s.on_disk() == set()


def test_within_a_budget_some_go_when_one_comes_back(tmp_path: Path) -> None:
    s = Setting(tmp_path, budget=6 * MB)
    try:
        assert s.terms.shortage(0) > 0
        assert s.move(s.terms.shortage(0)) == ""
        for _ in range(3):
            s.check(s.reader)
            assert s.terms.shortage(0) == 0
        assert s.on_disk() | s.away() == s.segments
        assert not s.on_disk() & s.away()
    finally:
        s.close()


class Heir:
    """Hears of the estate."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.gone: list[str] = []

    def on_found(self, creator: str) -> None:
        self.found.append(creator)

    def on_estate(self, creator: str, left: int) -> None:
        """It is on disk."""

    def on_estate_gone(self, creator: str, address: str) -> None:
        self.gone.append(creator)


@pytest.mark.parametrize("end", ["freed", "unused", "its job has ended"])
def test_what_the_dead_have_left_there_is_freed(s: Setting, end: str) -> None:
    assert s.move() == ""
    # One is back.
    s.check(s.reader, [0])
    s.arena.close(unlink=False)
    heir, chores = Heir(), Chores("test-estates")
    estates = Estates(chores, s.memory, s.disk, 1.0, heir, s.remote)
    estates.on_death(MAKER, f"local/w-{MAKER}", b"job")
    assert heir.found == [MAKER]
    (estate,) = estates
    assert set(estate.segments) == estate.on_disk == s.segments
    if end == "its job has ended":
        estates.on_job_gone(b"job")
    elif end == "unused":
        small = s.objects[3]
        estates.free_unused(MAKER, {small.segment: {(small.offset, small.size)}})
        s.settle()
        assert s.away() == {small.segment}
        s.check(s.reader, [3])
        assert s.move() == ""
        estates.free([small])
    else:
        estates.free(s.objects)
        s.settle()
        assert s.away() == {s.objects[2].segment}
        # What its edges share is known to be dead when everybody has said what they use.
        estates.free_unused(MAKER, {})
    s.settle()
    assert heir.gone == [MAKER]
    assert s.away() == s.on_disk() == set()
    estates.close()
    chores.close()


def test_of_one_in_memory_and_one_at_the_target_the_flag_says_which_is_right(s: Setting) -> None:
    """The maker was killed after it had said that it is on disk, and before it removed the other; meanwhile that has gone on."""
    name = s.objects[0].segment
    assert s.move() == ""
    (s.memory / name).write_bytes(b"of no use")
    s.arena.close(unlink=False)
    chores = Chores("test-estates")
    estates = Estates(chores, s.memory, s.disk, 1.0, Heir(), s.remote)
    estates.on_death(MAKER, f"local/w-{MAKER}", b"job")
    assert not (s.memory / name).exists()
    (estate,) = estates
    assert estate.on_disk == s.segments
    assert estate.bytes() == 0
    s.check(s.reader)
    estates.close()
    chores.close()


def test_closing_breaks_off_what_goes(s: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()
    real = s.remote._target._go_on

    def slowly() -> None:
        begun.set()
        assert go_on.wait(60)
        real()

    monkeypatch.setattr(s.remote._target, "_go_on", slowly)
    monkeypatch.setattr(remote_spill, "_JOIN_S", 0.0)
    s.remote.make_room(1 << 40, lambda *_: None)
    assert begun.wait(60)
    s.remote.close()
    go_on.set()
    wait_for(lambda: not s.remote._chores._thread.is_alive())  # type: ignore[union-attr]  # it has begun
    assert s.away() == set()
    assert s.on_disk() == s.segments
