"""What processes have left in the object store: files that the node now frees, block by block, and writes to disk when room is wanted.

What an estate holds is measured, not believed: the blocks that its files have. A segment is in shared memory, or on disk if its creator
(or the node, for others) has spilled it; of one that was just being written there are two files, of which the flag says which is right
(see `store.spilling`).

The books and the files belong to one thread (`node.chores`), in which everything here runs; the daemon's event loop knows them by way of
`node.inheritance`. Only the writing has another thread, one segment at a time: until it is back, what is to be done with that
segment waits.

The books come first, and `_tidy` brings a file in line with them. Where the disk fails, it is tried again until it works: meanwhile the
segment is charged, and the log has it once. A file system that cannot make holes gives back nothing before a slab's last block is dead.

Limit: which blocks of a dead process live, the node does not know. A process that ends in order gives its idle memory back
first; what one that crashed had idle stays until everybody has said what is in use, and so do the pages at the edges of freed blocks.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from shoal.messages.values import Location
from shoal.node.chores import Chores
from shoal.node.inquiries import Used

if TYPE_CHECKING:
    from shoal.node.remote_spill import RemoteSpill
    from shoal.store.extents import Extents

_log = logging.getLogger("shoal.node")

_BLOCK: Final = 512
_HELD_RETRY_S: Final = 1.0
_FAILED_RETRY_S: Final = 1.0
_LONGEST_RETRY_S: Final = 60.0
_LOOKS: Final = 3


class Estate:
    """What one dead process left.

    Attributes:
        address: Where the process was.
        job_id: Its job.
        segments: The bytes that each takes, wherever it is.
        on_disk: Those of them that are in the spill folder.
        dead: Those of which nobody uses any block: their files are to be removed.
        freed: What was freed of each slab.
        holes: What of that has pages to be given back, as offsets and lengths.
        moving: The segment that is just being written to disk; "" if none is.
        postponed: Blocks of it that have died since.
    """

    __slots__ = (
        "address",
        "dead",
        "freed",
        "holes",
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
        self.dead: set[str] = set()
        self.freed: dict[str, Extents] = {}
        self.holes: dict[str, list[tuple[int, int]]] = {}
        self.moving = ""
        self.postponed: list[Location] = []

    def bytes(self) -> int:
        """What it takes of shared memory."""
        return sum(taken for name, taken in self.segments.items() if name not in self.on_disk)

    def forget(self, segment: str) -> None:
        """A segment is gone."""
        del self.segments[segment]
        self.on_disk.discard(segment)
        self.dead.discard(segment)
        self.freed.pop(segment, None)
        self.holes.pop(segment, None)


class Heir(Protocol):
    """Who hears of the estates, in their thread."""

    def on_found(self, creator: str) -> None:
        """A process that has ended has left something."""

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
        chores: The thread in which all methods are called.
        directory: The shared memory of the session.
        spill_directory: Where segments are spilled; None if none are.
        disk_fraction: How full that disk may become.
        heir: Who hears of them.
        remote: Where segments may go on to from the disk.
    """

    def __init__(
        self,
        chores: Chores,
        directory: Path,
        spill_directory: Path | None,
        disk_fraction: float,
        heir: Heir,
        remote: RemoteSpill | None = None,
    ) -> None:
        self._chores = chores
        self._directory = directory
        self._spill_directory = spill_directory
        self._disk_fraction = disk_fraction
        self._heir = heir
        self._remote = remote
        self._estates: dict[str, Estate] = {}
        self._held: list[Location] = []
        # Segments (or "" for what is left in the end, such as the lock file) of creators with which the disk has failed, and of what
        # the log has been told.
        self._failed: dict[tuple[str, str], None] = {}
        self._told: set[tuple[Path, int | None]] = set()
        self._retry_s = _FAILED_RETRY_S
        self._retrying = False
        self._writer = Chores("shoal-spilling")

    def __iter__(self) -> Iterator[Estate]:
        return iter(self._estates.values())

    # --- from death to the last block ----------------------------------------------------------------------------

    def on_death(self, creator: str, address: str, job_id: bytes) -> None:
        """A process has ended: what it left is the node's now."""
        estate = self._estates[creator] = Estate(address, job_id)
        # Looked at before the disk for what comes back meanwhile, and after it for what goes.
        away = self._away(creator)
        for name in self._files_of(creator, self._directory):
            estate.segments[name] = self._taken(self._directory / name)
        if self._spill_directory is not None:
            for name in self._files_of(creator, self._spill_directory):
                if name in estate.segments and not self._choose(name):
                    continue
                estate.segments[name] = self._taken(self._spill_directory / name)
                estate.on_disk.add(name)
        away |= self._away(creator)
        for name, length in away.items():
            if name in estate.on_disk or (name in estate.segments and not self._choose(name)):
                continue
            estate.segments[name] = length
            estate.on_disk.add(name)
        if estate.segments:
            self._heir.on_found(creator)
        self._account(creator, estate)

    def _away(self, creator: str) -> dict[str, int]:
        return {} if self._remote is None else self._remote.names_of(creator)

    def _files_of(self, creator: str, directory: Path) -> list[str]:
        from shoal.store.layout import parse_segment

        names: list[str] = []
        with contextlib.suppress(FileNotFoundError):
            # The folder goes with the session.
            names = os.listdir(directory)
        return [
            name
            for name in names
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
        try:
            (wrong / name).unlink(missing_ok=True)
        except OSError as error:
            # What is left of it goes with the last of the estate.
            self._complain(wrong / name, error)
        return spilled

    def _taken(self, path: Path) -> int:
        try:
            return path.stat().st_blocks * _BLOCK
        except FileNotFoundError:
            return 0

    def _size(self, slab: str) -> int:
        """The length of its file, wherever that is: it may have been written to disk just now; 0 if it is nowhere."""
        for _ in range(_LOOKS):
            # First the table, then the disk: what comes back is on the disk before it leaves the table. What goes may be missed once.
            length = None if self._remote is None else self._remote.length_of(slab)
            if length is not None:
                return length
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

    def on_job_gone(self, job_id: bytes) -> None:
        """A job has ended: nobody refers to what its dead processes left."""
        for creator, estate in list(self._estates.items()):
            if estate.job_id == job_id:
                estate.dead.update(estate.segments)
                for segment in list(estate.segments):
                    self._tidy(creator, estate, segment)
                self._account(creator, estate)

    def sweep(self, creator: str) -> None:
        """Remove all files of a creator, its lock file too."""
        from shoal.store.session import sweep

        for directory in (self._directory, self._spill_directory):
            if directory is not None:
                with contextlib.suppress(FileNotFoundError):
                    # The folder goes with the session.
                    sweep(directory, creator)

    def _account(self, creator: str, estate: Estate) -> None:
        if not estate.segments:
            self._end(creator, estate)
        self._heir.on_estate(creator, estate.bytes())

    def _end(self, creator: str, estate: Estate) -> None:
        """Of what was known nothing is left: remove its lock file, and what else there may be."""
        try:
            self.sweep(creator)
        except OSError as error:
            self._fail(creator, "", self._directory / creator, error)
            return
        if self._remote is not None:
            self._remote.forget(list(self._remote.names_of(creator)))
        self._failed.pop((creator, ""), None)
        del self._estates[creator]
        self._heir.on_estate_gone(creator, estate.address)

    # --- freeing -------------------------------------------------------------------------------------------------

    def free_unused(self, creator: str, used: Used) -> None:
        """Everybody has said what they use of an estate: free all else."""
        estate = self._estates.get(creator)
        if estate is None:
            return
        unused: list[Location] = []
        for segment in list(estate.segments):
            blocks = used.get(segment)
            if blocks and segment.endswith("s"):
                unused += self._gaps(estate, segment, blocks)
            elif not blocks:
                # Unlinking is safe at any time: whoever has it mapped keeps it.
                estate.dead.add(segment)
                self._tidy(creator, estate, segment)
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

        touched: dict[str, tuple[Estate, dict[str, None]]] = {}
        for location in locations:
            segment = location.segment
            parts = parse_segment(segment)
            estate = None if parts is None else self._estates.get(parts[0])
            # An unknown one has been swept already, or its creator lives and will hear of it from the owner.
            if parts is None or estate is None or segment not in estate.segments:
                continue
            if segment == estate.moving:
                estate.postponed.append(location)
                continue
            creator, number, slab = parts
            if not slab:
                # Unlinking is safe at any time: whoever has it mapped keeps it.
                estate.dead.add(segment)
            elif self._is_held(creator, number, location):
                if not self._held:
                    self._chores.do_in(_HELD_RETRY_S, self._retry_held)
                self._held.append(location)
                continue
            else:
                self._note_freed(estate, location)
            touched.setdefault(creator, (estate, {}))[1][segment] = None
        for creator, (estate, segments) in touched.items():
            for segment in segments:
                self._tidy(creator, estate, segment)
            self._account(creator, estate)

    def _retry_held(self) -> None:
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

    def _note_freed(self, estate: Estate, location: Location) -> None:
        """A block of a slab is dead: the pages that no block shares which still lives can be given back (to the system, or the disk).

        That may be known already: it was in use by nobody when all were asked, and then comes the word of its owner, who let go of it
        just before.
        """
        from shoal.store.extents import Extents
        from shoal.store.layout import ALIGNMENT, PAGE, round_up

        freed = estate.freed.setdefault(location.segment, Extents())
        whole = round_up(max(1, location.size), ALIGNMENT)
        for offset, length in freed.missing(location.offset, whole):
            start, size = freed.give(offset, length)
            # Of what was freed around it before, only the pages at its edges are new.
            start, end = max(start, offset - PAGE), min(start + size, offset + length + PAGE)
            first, last = round_up(start, PAGE), end // PAGE * PAGE
            if first < last:
                estate.holes.setdefault(location.segment, []).append((first, last - first))

    # --- files ---------------------------------------------------------------------------------------------------

    def _tidy(self, creator: str, estate: Estate, segment: str) -> None:
        """Bring the file of a segment in line with the books, as far as the disk lets us."""
        if segment == estate.moving:
            return
        path = self._path(estate, segment)
        try:
            left = 0 if segment in estate.dead else self._punch(estate, segment, path)
            if left:
                estate.segments[segment] = left
            else:
                self._remove(path, segment in estate.on_disk)
                estate.forget(segment)
        except OSError as error:
            self._fail(creator, segment, path, error)
        else:
            self._failed.pop((creator, segment), None)

    def _remove(self, path: Path, on_disk: bool) -> None:
        try:
            path.unlink()
        except FileNotFoundError:
            if on_disk and self._remote is not None:
                # Of the two who remove it the other was first: see `node.remote_spill`.
                self._remote.forget([path.name])

    def _punch(self, estate: Estate, segment: str, path: Path) -> int:
        """Give back what pages of a slab can be; what it takes then, and 0 if nothing in it lives."""
        from shoal.store.mapping import Mapping

        freed = estate.freed.get(segment)
        try:
            with open(path, "r+b") as file:
                length = os.fstat(file.fileno()).st_size
                if freed is not None and freed.size_at(0) >= length:
                    return 0
                holes = estate.holes.get(segment)
                if holes:
                    mapping = Mapping(file.fileno(), length, writable=True)
                    for offset, size in holes:
                        # Where the file system cannot, nothing was given back.
                        mapping.discard(offset, min(size, length - offset))
                    del estate.holes[segment]
                left = os.fstat(file.fileno()).st_blocks * _BLOCK
                # Some file systems count late what was written, so that 0 means nothing there.
                return max(left, _BLOCK) if segment in estate.on_disk else left
        except FileNotFoundError:
            length = self._size(segment)
            if not length or (freed is not None and freed.size_at(0) >= length):
                # With the session's folder, or it is at the remote target, and nothing in it lives.
                return 0
            # There no holes are made.
            return max(_BLOCK, estate.segments[segment])

    def _fail(self, creator: str, segment: str, path: Path, error: OSError) -> None:
        """It is tried again."""
        if not self._retrying:
            self._retrying = True
            self._chores.do_in(self._retry_s, self._retry_failed)
        self._failed[creator, segment] = None
        self._complain(path, error)

    def _complain(self, path: Path, error: OSError) -> None:
        """Once for each folder and kind of error, however many files there are."""
        if (path.parent, error.errno) not in self._told:
            self._told.add((path.parent, error.errno))
            _log.warning(
                "cannot remove or shrink %s, which a process has left that has ended: %s. It is tried again, and stays charged "
                "meanwhile; the same of other files is not said",
                path,
                error.strerror or error,
            )

    def _retry_failed(self) -> None:
        self._retrying = False
        failed, self._failed = self._failed, {}
        self._retry_s = min(2 * self._retry_s, _LONGEST_RETRY_S)
        touched: dict[str, Estate] = {}
        for creator, segment in failed:
            estate = self._estates.get(creator)
            if estate is None:
                continue
            touched[creator] = estate
            if segment in estate.segments:
                self._tidy(creator, estate, segment)
        for creator, estate in touched.items():
            self._account(creator, estate)
        if not self._failed:
            self._retry_s = _FAILED_RETRY_S

    # --- writing to disk -----------------------------------------------------------------------------------------

    def spill(self, creator: str, wanted: int, done: Callable[[int, int, str], None]) -> None:
        """Write `wanted` bytes of an estate to disk. `done` hears, in any case, how many bytes of memory came free, how many were
        written, and what went wrong with the disk."""
        estate = self._estates.get(creator)
        names: list[str] = []
        if estate is not None:
            gone = estate.on_disk | estate.dead
            names = [name for name in estate.segments if name not in gone]
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
            if name in estate.segments and name not in estate.dead:
                estate.moving = name
                self._writer.do(self._write, writing, estate, name)
                return
        writing.done(writing.freed, writing.written, writing.error)

    def _write(self, writing: _Writing, estate: Estate, name: str) -> None:
        """In the writer's thread."""
        from shoal.store.spilling import spill_segment

        freed: int | None = None
        error = ""
        try:
            assert self._spill_directory is not None
            freed = spill_segment(self._directory, self._spill_directory, name, self._disk_fraction)
        except FileNotFoundError:
            # With the session's folder.
            pass
        except OSError as failure:
            error = failure.strerror or str(failure)
        except Exception as failure:  # noqa: BLE001 - a defect of ours, but who waits for room must hear of an end
            _log.exception("spilling %s failed", name)
            error = str(failure)
        self._chores.do(self._on_written, writing, estate, name, freed, error)

    def _on_written(
        self, writing: _Writing, estate: Estate, name: str, freed: int | None, error: str
    ) -> None:
        assert self._spill_directory is not None
        creator = writing.creator
        estate.moving = ""
        writing.error = error
        if freed is not None:
            writing.freed += freed
            estate.on_disk.add(name)
            estate.segments[name] = self._taken(self._spill_directory / name)
            writing.written += estate.segments[name]
        if name in estate.dead:
            self._tidy(creator, estate, name)
        postponed, estate.postponed = estate.postponed, []
        self._account(creator, estate)
        self.free(postponed)
        self._write_next(writing)

    def close(self) -> None:
        """Write nothing more; what is being written nobody waits for. Any thread."""
        self._writer.close()
