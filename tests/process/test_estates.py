"""What the dead have left, while it is written to disk: blocks that die, jobs that end, and files of which there are two."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shoal.messages.values import Location
from shoal.node.estates import Estate
from shoal.node.inheritance import Inheritance
from shoal.store import Arena, Reader, mapping, spilling

MB = 1 << 20
MAKER = "w0000001"
ADDRESS = f"local/w-{MAKER}"
JOB = b"j" * 16


class Heir:
    """Hears of the estates."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.left: dict[str, int] = {}
        self.gone: list[str] = []

    def on_left(self, address: str) -> None:
        self.found.append(address)

    def on_estate(self, creator: str, left: int) -> None:
        self.left[creator] = left

    def on_estate_gone(self, creator: str, address: str) -> None:
        self.gone.append(address)


class Setting:
    """A dead process with an object of 4 MB and four small ones, and who inherits that."""

    def __init__(self, tmp_path: Path, loop: asyncio.AbstractEventLoop) -> None:
        self.memory, self.disk = tmp_path / "memory", tmp_path / "disk"
        for folder in (self.memory, self.disk):
            folder.mkdir()
        self.loop = loop
        arena = Arena(self.memory, MAKER, 64 * MB, spill_directory=self.disk)
        blocks = [arena.create(size) for size in (4 * MB, *[200_000] * 4)]
        for number, block in enumerate(blocks):
            block.buffer[:] = bytes([number]) * len(block.buffer)
        self.locations = [block.location for block in blocks]
        del blocks, block
        arena.close(unlink=False)
        self.heir = Heir()
        self.estates = Inheritance(loop, self.memory, self.disk, 1.0, self.heir)
        self.answers: list[tuple[int, int, str]] = []

    async def die(self) -> None:
        self.estates.on_death(MAKER, ADDRESS, JOB)
        await self.until(lambda: self.heir.found == [ADDRESS] and MAKER in self.heir.left)

    async def look(self) -> list[Estate]:
        """What there is, when all is done that was said before."""
        found: list[list[Estate]] = []
        self.estates.look(list, found.append)
        await self.until(lambda: found)
        return found[0]

    def spill(self, wanted: int) -> None:
        self.estates.spill(MAKER, wanted, lambda *answer: self.answers.append(answer))

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(30):
            while not condition():  # noqa: ASYNC110 - what changes are files, too
                await asyncio.sleep(0.005)

    def content(self, location: Location) -> bytes:
        reader = Reader(self.memory, self.disk)
        view = reader.view(location)
        found = bytes(view)
        del view
        reader.close()
        return found

    def names(self, folder: Path) -> list[str]:
        return sorted(path.name for path in folder.iterdir())


def run(tmp_path: Path, play: Callable[[Setting], Any]) -> None:
    async def main() -> None:
        setting = Setting(tmp_path, asyncio.get_running_loop())
        try:
            await play(setting)
        finally:
            setting.estates.close()

    asyncio.run(main())


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event]]:
    """A segment is opened to be written, and what follows waits until it may go on."""
    begun, go_on = threading.Event(), threading.Event()
    real = spilling.write_out

    def slowly(*arguments: Any) -> int:
        begun.set()
        assert go_on.wait(30)
        return real(*arguments)

    monkeypatch.setattr(spilling, "write_out", slowly)
    yield begun, go_on
    go_on.set()


def test_what_was_left_is_written_the_largest_first_and_read_from_there(tmp_path: Path) -> None:
    async def play(s: Setting) -> None:
        await s.die()
        before = s.heir.left[MAKER]
        s.spill(MB)
        await s.until(lambda: s.answers)
        ((freed, written, error),) = s.answers
        assert (freed, error) == (before - s.heir.left[MAKER], "")
        assert written >= 4 * MB
        assert s.names(s.disk) == [s.locations[0].segment]
        s.spill(1 << 40)
        await s.until(lambda: len(s.answers) == 2)
        assert s.heir.left[MAKER] == 0
        assert s.names(s.memory) == [f"{MAKER}.locks"]
        for number, location in enumerate(s.locations):
            assert s.content(location) == bytes([number]) * location.size
        # There is nothing more to be written, and that is said.
        s.spill(1)
        await s.until(lambda: len(s.answers) == 3)
        assert s.answers[2] == (0, 0, "")
        s.estates.free(s.locations[:2])
        await s.look()
        assert s.names(s.disk) == [s.locations[1].segment]
        assert s.content(s.locations[2]) == bytes([2]) * 200_000
        s.estates.free_unused(MAKER, {})
        await s.look()
        assert s.names(s.disk) == s.names(s.memory) == []
        assert s.heir.gone == [ADDRESS]

    run(tmp_path, play)


def test_what_is_looked_at_stays(tmp_path: Path) -> None:
    async def play(s: Setting) -> None:
        await s.die()
        reader = Reader(s.memory, s.disk)
        view = reader.view(s.locations[0])
        s.spill(MB)
        await s.until(lambda: s.answers)
        # The slab went instead.
        assert s.names(s.disk) == [s.locations[1].segment]
        assert view[:1] == b"\0"
        del view
        reader.close()

    run(tmp_path, play)


def test_blocks_that_die_while_they_are_written_are_freed_afterwards(
    tmp_path: Path, gate: tuple[threading.Event, threading.Event]
) -> None:
    begun, go_on = gate

    async def play(s: Setting) -> None:
        await s.die()
        large, *small = s.locations
        s.spill(1 << 40)
        await s.until(begun.is_set)
        s.estates.free([large])
        await s.look()
        assert large.segment in s.names(s.memory)
        go_on.set()
        await s.until(lambda: s.answers)
        assert s.names(s.disk) == [small[0].segment]
        # Everybody says that only one of the others is used: the pages between are given back.
        before = (s.disk / small[0].segment).stat().st_blocks
        used = {small[0].segment: {(small[2].offset, small[2].size)}}
        s.estates.free_unused(MAKER, used)
        await s.look()
        assert (s.disk / small[0].segment).stat().st_blocks < before / 2
        assert s.content(small[2]) == bytes([3]) * 200_000

    run(tmp_path, play)


@pytest.mark.parametrize("rest", [False, True], ids=["all of it", "but for one"])
def test_what_nobody_uses_goes_when_it_is_written(
    tmp_path: Path, gate: tuple[threading.Event, threading.Event], rest: bool
) -> None:
    begun, go_on = gate

    async def play(s: Setting) -> None:
        await s.die()
        small = s.locations[1]
        s.spill(1 << 40)
        await s.until(begun.is_set)
        used = {small.segment: {(small.offset, small.size)}} if rest else {}
        s.estates.free_unused(MAKER, used)
        go_on.set()
        await s.until(lambda: s.answers)
        assert s.names(s.disk) == ([small.segment] if rest else [])
        assert s.heir.left[MAKER] == 0
        assert s.heir.gone == ([] if rest else [ADDRESS])
        assert s.names(s.memory) == ([f"{MAKER}.locks"] if rest else [])

    run(tmp_path, play)


def test_a_job_that_ends_in_the_middle_leaves_nothing(
    tmp_path: Path, gate: tuple[threading.Event, threading.Event]
) -> None:
    begun, go_on = gate

    async def play(s: Setting) -> None:
        await s.die()
        s.spill(1 << 40)
        await s.until(begun.is_set)
        assert s.estates.on_job_gone(JOB) == [ADDRESS]
        go_on.set()
        await s.until(lambda: s.answers)
        assert s.names(s.disk) == s.names(s.memory) == []

    run(tmp_path, play)


@pytest.mark.parametrize("flag", [False, True])
def test_of_two_files_the_flag_says_which_is_right(tmp_path: Path, flag: bool) -> None:
    """The maker was killed while it wrote, before or after it had said so."""

    async def play(s: Setting) -> None:
        large = s.locations[0]
        data = (s.memory / large.segment).read_bytes()
        # Before the flag it is not whole.
        (s.disk / large.segment).write_bytes(data if flag else data[:MB])
        with (s.memory / f"{MAKER}.locks").open("r+b") as locks:
            if flag:
                spilling.set_spilled(locks.fileno(), 0)
        await s.die()
        assert (large.segment in s.names(s.disk)) is flag
        assert (large.segment in s.names(s.memory)) is not flag
        assert s.content(large) == bytes(large.size)

    run(tmp_path, play)


def test_a_full_disk_is_told_and_nothing_is_lost(tmp_path: Path) -> None:
    async def play(s: Setting) -> None:
        await s.die()
        before = s.heir.left[MAKER]
        s.estates._estates._disk_fraction = 0.0
        s.spill(MB)
        await s.until(lambda: s.answers)
        ((freed, written, error),) = s.answers
        assert (freed, written) == (0, 0)
        assert "full" in error
        assert s.names(s.disk) == []
        assert s.heir.left[MAKER] == before
        assert s.content(s.locations[0]) == bytes(4 * MB)

    run(tmp_path, play)


# --- a disk that is slow, or fails ---------------------------------------------------------------------------------------


class Disk:
    """Removes files when it may, and fails as it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ready = threading.Event()
        self.ready.set()
        self.error = 0
        self.failed = 0
        self._unlink = Path.unlink

        def unlink(path: Path, **how: Any) -> None:
            self.remove(path, **how)

        monkeypatch.setattr(Path, "unlink", unlink)

    def remove(self, path: Path, **how: Any) -> None:
        assert self.ready.wait(30)
        if self.error:
            self.failed += 1
            raise OSError(self.error, os.strerror(self.error))
        self._unlink(path, **how)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def test_the_loop_does_not_wait_for_the_disk(tmp_path: Path, disk: Disk) -> None:
    async def play(s: Setting) -> None:
        await s.die()
        left = s.heir.left[MAKER]
        disk.ready.clear()
        s.estates.free(s.locations)
        s.spill(1 << 40)
        assert s.estates.on_job_gone(JOB) == [ADDRESS]
        await asyncio.sleep(0.1)
        assert s.estates.of(ADDRESS, MAKER) is None
        # Nothing is counted as gone before it is.
        assert s.heir.left[MAKER] == left
        assert s.heir.gone == []
        disk.ready.set()
        await s.until(lambda: s.heir.gone == [ADDRESS])
        await s.until(lambda: s.heir.left[MAKER] == 0)
        assert s.names(s.disk) == s.names(s.memory) == []

    run(tmp_path, play)


@pytest.mark.parametrize("ended", [False, True], ids=["freed", "its job has ended"])
def test_what_cannot_be_removed_is_said_once_and_tried_again(
    tmp_path: Path, disk: Disk, caplog: pytest.LogCaptureFixture, ended: bool
) -> None:
    async def play(s: Setting) -> None:
        await s.die()
        left = s.heir.left[MAKER]
        disk.error = errno.EIO
        if ended:
            s.estates.on_job_gone(JOB)
        else:
            s.estates.free_unused(MAKER, {})
        await s.until(lambda: disk.failed >= 4)
        assert s.heir.left[MAKER] == left
        assert len(s.names(s.memory)) == 3
        disk.error = 0
        await s.until(lambda: s.heir.gone == [ADDRESS])
        assert s.names(s.memory) == []
        await s.until(lambda: s.heir.left[MAKER] == 0)

    with caplog.at_level(logging.INFO, "shoal.node"):
        run(tmp_path, play)
    (said,) = [record.getMessage() for record in caplog.records]
    assert os.strerror(errno.EIO) in said
    assert str(tmp_path / "memory") in said


@pytest.mark.parametrize("spilled", [False, True], ids=["in memory", "on disk"])
def test_where_no_holes_can_be_made_a_slab_goes_with_its_last_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spilled: bool
) -> None:
    def refuse(*_: Any) -> int:
        ctypes.set_errno(errno.EOPNOTSUPP)
        return -1

    async def play(s: Setting) -> None:
        await s.die()
        if spilled:
            s.spill(1 << 40)
            await s.until(lambda: s.answers)
        monkeypatch.setattr(mapping, "_madvise", refuse)
        large, *small = s.locations
        slab = small[0].segment
        s.estates.free([large])
        (estate,) = await s.look()
        taken = estate.segments[slab]
        # Everybody says that two of the blocks are used: the rest is freed, and stays charged.
        used = {slab: {(small[n].offset, small[n].size) for n in (0, 2)}}
        s.estates.free_unused(MAKER, used)
        s.estates.free([small[0]])
        (estate,) = await s.look()
        assert estate.segments == {slab: taken}
        assert s.content(small[2]) == bytes([3]) * 200_000
        s.estates.free([small[2]])
        await s.until(lambda: s.heir.gone == [ADDRESS])
        assert s.names(s.disk) == s.names(s.memory) == []

    run(tmp_path, play)


def test_holes_that_a_disk_fails_to_make_are_made_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = mapping._madvise
    failures: list[int] = []

    def fail(*_: Any) -> int:
        failures.append(1)
        ctypes.set_errno(errno.EIO)
        return -1

    async def play(s: Setting) -> None:
        await s.die()
        small = s.locations[1:]
        monkeypatch.setattr(mapping, "_madvise", fail)
        (before,) = [estate.segments[small[0].segment] for estate in await s.look()]
        s.estates.free(small[:2])
        await s.until(lambda: len(failures) >= 2)
        (estate,) = await s.look()
        assert estate.segments[small[0].segment] == before
        monkeypatch.setattr(mapping, "_madvise", real)
        await s.until(lambda: s.heir.left[MAKER] <= before + 4 * MB - 300_000)
        assert s.content(small[2]) == bytes([3]) * 200_000

    run(tmp_path, play)


def test_the_pages_between_blocks_that_are_freed_one_by_one_come_back(tmp_path: Path) -> None:
    async def play(s: Setting) -> None:
        await s.die()
        small = s.locations[1:]
        for location in (small[0], small[2], small[1]):
            s.estates.free([location])
        (estate,) = await s.look()
        freed = small[3].offset
        assert estate.segments[small[0].segment] <= MB - freed // 4096 * 4096
        assert s.content(small[3]) == bytes([4]) * 200_000

    run(tmp_path, play)


def test_a_block_that_is_freed_twice_is_freed_once_and_so_are_the_others(tmp_path: Path) -> None:
    """Nobody uses it, when all are asked; the word of its owner, who had let go of it just before, comes later."""

    async def play(s: Setting) -> None:
        await s.die()
        kept, dropped, other, last = s.locations[1:]
        used = {kept.segment: {(one.offset, one.size) for one in (kept, last)}}
        s.estates.free_unused(MAKER, used)
        (estate,) = await s.look()
        freed = estate.freed[kept.segment]
        assert freed.missing(dropped.offset, 2 * dropped.size) == []
        s.estates.free([other, last])
        assert await s.look() == [estate]
        freed.check()
        assert s.content(kept) == bytes([1]) * kept.size
        s.estates.free([kept])
        assert await s.look() == []
        assert s.heir.gone == [ADDRESS]

    run(tmp_path, play)
