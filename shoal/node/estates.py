"""What processes have left in the object store: files that the node now frees, block by block, and writes to disk when room is wanted.

What an estate holds is measured, not believed: the blocks that its files have. A segment is in shared memory, or on disk if its creator
(or the node, for others) has spilled it; of one that was just being written there are two files, of which the flag says which is right
(see `store.spilling`).

Everything runs in the daemon's event loop, but for the writing: that has a thread, one segment at a time. Until it is back, what is
to be done with that segment waits.

Limit: which blocks of a dead process live, the node does not know. A process that ends in order gives its idle memory back
first; what one that crashed had idle stays until its job ends, and so do the pages at the edges of freed blocks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import mmap
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from shoal.messages.values import Location
from shoal.node.inquiries import Used

if TYPE_CHECKING:
    from shoal.store.extents import Extents

_log = logging.getLogger("shoal.node")

_BLOCK: Final = 512
_HELD_RETRY_S: Final = 1.0


class Estate:
    """What one dead process left.

    Attributes:
        address: Where the process was.
        job_id: Its job.
        segments: The bytes that each takes, wherever it is.
        on_disk: Those of them that are in the spill folder.
        freed: What was freed of each slab.
        moving: The one that is just being written to disk; "" if none is.
        postponed: Blocks of it that have died since.
        doomed: Whether nobody uses any block of it.
    """

    __slots__ = (
        "address",
        "doomed",
        "freed",
        "job_id",
        "moving",
        "on_disk",
        "postponed",
        "segments",
    )

    def __init__(self, address: str, job_id: bytes) -> None:
        self.address = address
        self.job_id = job_id
        self.segments: dict[str, int] = {}
        self.on_disk: set[str] = set()
        self.freed: dict[str, Extents] = {}
        self.moving = ""
        self.postponed: list[Location] = []
        self.doomed = False

    def bytes(self) -> int:
        """What it takes of shared memory."""
        return sum(taken for name, taken in self.segments.items() if name not in self.on_disk)

    def forget(self, segment: str) -> None:
        """A segment is gone."""
        del self.segments[segment]
        self.on_disk.discard(segment)
        self.freed.pop(segment, None)


class Heir(Protocol):
    """Who hears of the estates."""

    def on_estate(self, creator: str, left: int) -> None:
        """An estate takes `left` bytes of shared memory."""

    def on_estate_gone(self, creator: str, address: str) -> None:
        """Nothing is left of one."""


class _Writing:
    """An order to write so much of an estate. `names` are the segments to try, the last one first."""

    def __init__(
        self, creator: str, wanted: int, names: list[str], done: Callable[[int, int, str], None]
    ) -> None:
        self.creator = creator
        self.wanted = wanted
        self.names = names
        self.done = done
        self.freed = 0
        self.written = 0
        self.error = ""


class Estates:
    """See the module's docstring. Processes are known by the short name that their segments carry.

    Args:
        loop: The daemon's.
        directory: The shared memory of the session.
        spill_directory: Where segments are spilled; None if none are.
        disk_fraction: How full that disk may become.
        heir: Who hears of them.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        directory: Path,
        spill_directory: Path | None,
        disk_fraction: float,
        heir: Heir,
    ) -> None:
        self._loop = loop
        self._directory = directory
        self._spill_directory = spill_directory
        self._disk_fraction = disk_fraction
        self._heir = heir
        self._estates: dict[str, Estate] = {}
        self._held: list[Location] = []
        self._retry: asyncio.TimerHandle | None = None
        self._writer: ThreadPoolExecutor | None = None
        self._closed = False

    def __iter__(self) -> Iterator[Estate]:
        return iter(self._estates.values())

    def of(self, address: str, creator: str) -> Estate | None:
        """The estate of the process that was there. Processes of other nodes may have the same name."""
        estate = self._estates.get(creator)
        return estate if estate is not None and estate.address == address else None

    # --- from death to the last block ----------------------------------------------------------------------------

    def on_death(self, creator: str, address: str, job_id: bytes) -> bool:
        """A process has ended: what it left is the node's now. Whether there is anything."""
        estate = self._estates[creator] = Estate(address, job_id)
        for name in self._files_of(creator, self._directory):
            estate.segments[name] = self._taken(self._directory / name)
        if self._spill_directory is not None:
            for name in self._files_of(creator, self._spill_directory):
                if name in estate.segments and not self._choose(name):
                    continue
                estate.segments[name] = self._taken(self._spill_directory / name)
                estate.on_disk.add(name)
        left = bool(estate.segments)
        self._account(creator, estate)
        return left

    def _files_of(self, creator: str, directory: Path) -> list[str]:
        from shoal.store.layout import parse_segment

        return [
            name
            for name in os.listdir(directory)
            if (parts := parse_segment(name)) is not None and parts[0] == creator
        ]

    def _choose(self, name: str) -> bool:
        """Of a segment there are two files, because its creator was killed while it spilled that: remove the wrong one. Whether the
        right one is on disk."""
        from shoal.store import locks
        from shoal.store.layout import lock_file, parse_segment
        from shoal.store.spilling import is_spilled

        assert self._spill_directory is not None
        parts = parse_segment(name)
        assert parts is not None
        creator, number, _ = parts
        spilled = False
        with contextlib.suppress(FileNotFoundError):
            fd = locks.open_lock_file(self._directory / lock_file(creator), create=False)
            try:
                spilled = is_spilled(fd, number)
            finally:
                os.close(fd)
        wrong = self._directory if spilled else self._spill_directory
        (wrong / name).unlink(missing_ok=True)
        return spilled

    def _taken(self, path: Path) -> int:
        return path.stat().st_blocks * _BLOCK

    def _size(self, slab: str) -> int:
        """The length of its file, wherever that is: it may have been written to disk just now."""
        for directory in (self._directory, self._spill_directory):
            if directory is not None:
                with contextlib.suppress(FileNotFoundError):
                    return (directory / slab).stat().st_size
        return 0

    def _path(self, estate: Estate, segment: str) -> Path:
        if segment in estate.on_disk:
            assert self._spill_directory is not None
            return self._spill_directory / segment
        return self._directory / segment

    def on_job_gone(self, job_id: bytes) -> list[str]:
        """A job has ended: nobody refers to what its dead processes left. Where these were."""
        addresses = []
        for creator in [c for c, estate in self._estates.items() if estate.job_id == job_id]:
            estate = self._estates.pop(creator)
            addresses.append(estate.address)
            self._end(creator, estate.address)
            self._heir.on_estate(creator, 0)
        return addresses

    def sweep(self, creator: str) -> None:
        """Remove all files of a creator, its lock file too."""
        from shoal.store.session import sweep

        for directory in (self._directory, self._spill_directory):
            if directory is not None:
                sweep(directory, creator)

    def _end(self, creator: str, address: str) -> None:
        self.sweep(creator)
        self._heir.on_estate_gone(creator, address)

    def _account(self, creator: str, estate: Estate) -> None:
        if not estate.segments:
            # Its lock file.
            del self._estates[creator]
            self._end(creator, estate.address)
        self._heir.on_estate(creator, estate.bytes())

    # --- freeing -------------------------------------------------------------------------------------------------

    def free_unused(self, creator: str, estate: Estate, used: Used) -> None:
        """Everybody has said what they use of an estate: free all else."""
        unused: list[Location] = []
        for segment in list(estate.segments):
            blocks = used.get(segment)
            if blocks and segment.endswith("s"):
                unused += self._gaps(estate, segment, blocks)
            elif blocks:
                continue
            elif segment == estate.moving:
                estate.doomed = True
            else:
                # Unlinking is safe at any time: whoever has it mapped keeps it.
                self._path(estate, segment).unlink(missing_ok=True)
                estate.forget(segment)
        self._account(creator, estate)
        self.free(unused)

    def _gaps(self, estate: Estate, slab: str, used: set[tuple[int, int]]) -> list[Location]:
        """What lies between the blocks of a slab that are used, freed, or about to be."""
        from shoal.store.layout import ALIGNMENT, round_up

        waiting = [held for held in (*self._held, *estate.postponed) if held.segment == slab]
        pending = {(held.offset, held.size) for held in waiting}
        taken = [(offset, round_up(max(1, size), ALIGNMENT)) for offset, size in used | pending]
        if slab in estate.freed:
            taken += estate.freed[slab].ranges()
        taken.append((self._size(slab), 0))
        gaps: list[Location] = []
        end = 0
        for offset, size in sorted(taken):
            if offset > end:
                gaps.append(Location(slab, end, offset - end))
            end = max(end, offset + size)
        return gaps

    def free(self, locations: list[Location]) -> None:
        """Owners say that these objects are dead; their creators are too."""
        from shoal.store.layout import parse_segment

        touched: dict[str, Estate] = {}
        for location in locations:
            parts = parse_segment(location.segment)
            estate = None if parts is None else self._estates.get(parts[0])
            # An unknown one has been swept already, or its creator lives and will hear of it from the owner.
            if parts is None or estate is None or location.segment not in estate.segments:
                continue
            if location.segment == estate.moving:
                estate.postponed.append(location)
                continue
            creator, number, slab = parts
            try:
                if not slab:
                    # Unlinking is safe at any time: whoever has it mapped keeps it.
                    self._path(estate, location.segment).unlink(missing_ok=True)
                    estate.forget(location.segment)
                elif self._is_held(creator, number, location):
                    self._held.append(location)
                    continue
                else:
                    self._free_block(estate, location)
            except OSError as error:
                _log.warning("cannot free %s: %s", location, error)
            touched[creator] = estate
        for creator, estate in touched.items():
            self._account(creator, estate)
        if self._held and self._retry is None:
            self._retry = self._loop.call_later(_HELD_RETRY_S, self._retry_held)

    def _retry_held(self) -> None:
        self._retry = None
        held, self._held = self._held, []
        self.free(held)

    def _is_held(self, creator: str, number: int, location: Location) -> bool:
        """Whether somebody looks at a block of a slab: its memory must not be cleared under their eyes."""
        from shoal.store import locks
        from shoal.store.layout import lock_file, lock_range

        try:
            fd = locks.open_lock_file(self._directory / lock_file(creator), create=False)
        except FileNotFoundError:
            return False
        try:
            start, length = lock_range(number, location.offset, location.size, slab=True)
            return locks.is_held(fd, start, length)
        finally:
            os.close(fd)

    def _free_block(self, estate: Estate, location: Location) -> None:
        """Give a block's pages back to the system (or the disk): those that no block shares which still lives."""
        from shoal.store.extents import Extents
        from shoal.store.layout import ALIGNMENT, PAGE, round_up

        freed = estate.freed.setdefault(location.segment, Extents())
        start, size = freed.give(location.offset, round_up(max(1, location.size), ALIGNMENT))
        first, end = round_up(start, PAGE), (start + size) // PAGE * PAGE
        path = self._path(estate, location.segment)
        if first < end:
            with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
                memory.madvise(mmap.MADV_REMOVE, first, min(end, len(memory)) - first)
        left = self._taken(path)
        if left:
            estate.segments[location.segment] = left
        else:
            path.unlink(missing_ok=True)
            estate.forget(location.segment)

    # --- writing to disk -----------------------------------------------------------------------------------------

    def spill(self, creator: str, wanted: int, done: Callable[[int, int, str], None]) -> None:
        """Write `wanted` bytes of an estate to disk. `done` hears, in any case, how many bytes of memory came free, how many were
        written, and what went wrong with the disk."""
        estate = self._estates.get(creator)
        names = [] if estate is None else [n for n in estate.segments if n not in estate.on_disk]
        if estate is not None:
            # The largest one first: of slabs only parts may live.
            names.sort(key=estate.segments.__getitem__)
        self._write_next(_Writing(creator, wanted, names, done))

    def _write_next(self, writing: _Writing) -> None:
        estate = self._estates.get(writing.creator)
        while (
            estate is not None
            and writing.names
            and writing.freed < writing.wanted
            and not writing.error
        ):
            name = writing.names.pop()
            if name in estate.segments:
                estate.moving = name
                if self._writer is None:
                    self._writer = ThreadPoolExecutor(1, "shoal-spilling")
                self._writer.submit(self._write, writing, estate, name)
                return
        # Not from inside the call that ordered it.
        self._loop.call_soon(writing.done, writing.freed, writing.written, writing.error)

    def _write(self, writing: _Writing, estate: Estate, name: str) -> None:
        """In the thread."""
        from shoal.store.spilling import spill_segment

        freed: int | None = None
        error = ""
        try:
            assert self._spill_directory is not None
            freed = spill_segment(self._directory, self._spill_directory, name, self._disk_fraction)
        except FileNotFoundError:
            # It is gone: its job has ended.
            pass
        except OSError as failure:
            error = failure.strerror or str(failure)
        except Exception as failure:  # noqa: BLE001 - a defect of ours, but who waits for room must hear of an end
            _log.exception("spilling %s failed", name)
            error = str(failure)
        if not self._closed:
            with contextlib.suppress(RuntimeError):
                # The loop may have ended.
                self._loop.call_soon_threadsafe(
                    self._on_written, writing, estate, name, freed, error
                )

    def _on_written(
        self, writing: _Writing, estate: Estate, name: str, freed: int | None, error: str
    ) -> None:
        assert self._spill_directory is not None
        creator, path = writing.creator, self._spill_directory / name
        estate.moving = ""
        writing.error = error
        if self._estates.get(creator) is not estate:
            # Nobody refers to any of it any more: its job has ended in the meantime.
            self.sweep(creator)
        else:
            if freed is not None:
                writing.freed += freed
                estate.segments[name] = self._taken(path)
                estate.on_disk.add(name)
                writing.written += estate.segments[name]
            if estate.doomed:
                self._path(estate, name).unlink(missing_ok=True)
                estate.forget(name)
            estate.doomed = False
            postponed, estate.postponed = estate.postponed, []
            self._account(creator, estate)
            self.free(postponed)
        self._write_next(writing)

    def close(self) -> None:
        """Stop the timer; what is being written nobody waits for."""
        self._closed = True
        if self._retry is not None:
            self._retry.cancel()
        if self._writer is not None:
            self._writer.shutdown(wait=False, cancel_futures=True)
