"""What the dead have left, while it is written to disk: blocks that die, jobs that end, and files of which there are two."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shoal.messages.values import Location
from shoal.node.estates import Estates
from shoal.store import Arena, Reader, spilling

MB = 1 << 20
MAKER = "w0000001"
ADDRESS = f"local/w-{MAKER}"
JOB = b"j" * 16


class Heir:
    """Hears of the estates."""

    def __init__(self) -> None:
        self.left: dict[str, int] = {}
        self.gone: list[str] = []

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
        self.estates = Estates(loop, self.memory, self.disk, 1.0, self.heir)
        self.answers: list[tuple[int, int, str]] = []

    def die(self) -> bool:
        return self.estates.on_death(MAKER, ADDRESS, JOB)

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
        assert s.die()
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
        assert s.names(s.disk) == [s.locations[1].segment]
        assert s.content(s.locations[2]) == bytes([2]) * 200_000
        s.estates.free_unused(MAKER, next(iter(s.estates)), {})
        assert s.names(s.disk) == s.names(s.memory) == []
        assert s.heir.gone == [ADDRESS]

    run(tmp_path, play)


def test_what_is_looked_at_stays(tmp_path: Path) -> None:
    async def play(s: Setting) -> None:
        s.die()
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
        s.die()
        large, *small = s.locations
        s.spill(1 << 40)
        await s.until(begun.is_set)
        s.estates.free([large])
        assert large.segment in s.names(s.memory)
        go_on.set()
        await s.until(lambda: s.answers)
        assert s.names(s.disk) == [small[0].segment]
        # Everybody says that only one of the others is used: the pages between are given back.
        before = (s.disk / small[0].segment).stat().st_blocks
        used = {small[0].segment: {(small[2].offset, small[2].size)}}
        s.estates.free_unused(MAKER, next(iter(s.estates)), used)
        assert (s.disk / small[0].segment).stat().st_blocks < before / 2
        assert s.content(small[2]) == bytes([3]) * 200_000

    run(tmp_path, play)


@pytest.mark.parametrize("rest", [False, True], ids=["all of it", "but for one"])
def test_what_nobody_uses_goes_when_it_is_written(
    tmp_path: Path, gate: tuple[threading.Event, threading.Event], rest: bool
) -> None:
    begun, go_on = gate

    async def play(s: Setting) -> None:
        s.die()
        small = s.locations[1]
        s.spill(1 << 40)
        await s.until(begun.is_set)
        used = {small.segment: {(small.offset, small.size)}} if rest else {}
        s.estates.free_unused(MAKER, next(iter(s.estates)), used)
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
        s.die()
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
        s.die()
        assert (large.segment in s.names(s.disk)) is flag
        assert (large.segment in s.names(s.memory)) is not flag
        assert s.content(large) == bytes(large.size)

    run(tmp_path, play)


def test_a_full_disk_is_told_and_nothing_is_lost(tmp_path: Path) -> None:
    async def play(s: Setting) -> None:
        s.die()
        before = s.heir.left[MAKER]
        s.estates._disk_fraction = 0.0
        s.spill(MB)
        await s.until(lambda: s.answers)
        ((freed, written, error),) = s.answers
        assert (freed, written) == (0, 0)
        assert "full" in error
        assert s.names(s.disk) == []
        assert s.heir.left[MAKER] == before
        assert s.content(s.locations[0]) == bytes(4 * MB)

    run(tmp_path, play)
