"""What an arena has, what of it is in use, and what can be given back: the base of `shoal.store.arena`.

Guarantees: the bytes of all files in memory never exceed the quota. The lock guards the books; files are removed and written outside
it. A block that is dead and viewed is in quarantine, and its memory is used again when nobody views it any more.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from shoal.errors import InternalError, ObjectStoreFullError
from shoal.lock import make_lock
from shoal.messages import inventory
from shoal.messages.values import Location
from shoal.store import locks
from shoal.store.idle import Range, SlabSpace, WarmPool
from shoal.store.layout import check_creator, lock_file, lock_range, segment_range
from shoal.store.mapping import Mapping, export, view_of
from shoal.store.segment import FULL, Record, Segment, State
from shoal.store.spilling import SpillResult, reserve_flag, set_spilled, write_out

_ALL_AT_ONCE: Final = 256
"""Quarantined blocks that a `create` without quota looks at."""

_IN_TURN: Final = 64
"""How many it looks at if there are more."""


class QuotaExhausted(Exception):  # noqa: N818 - a condition that the caller mends, by `grant`, not an error
    """New pages would exceed the quota. Grant `needed_bytes` or more, and call `create` again."""

    def __init__(self, needed_bytes: int) -> None:
        super().__init__(f"the arena's quota is {needed_bytes:,} bytes short")
        self.needed_bytes = needed_bytes


class ArenaStats(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot of an arena's accounts."""

    quota_bytes: int
    """Granted and not given back."""
    backed_bytes: int
    """Bytes of files: live, quarantined, warm, and lost to rounding. Never above the quota."""
    live_bytes: int
    """Bytes of objects not yet freed that are in memory."""
    live_blocks: int
    """Objects not yet freed, wherever they are."""
    spilled_bytes: int
    """Bytes of objects not yet freed that are on disk."""
    warm_bytes: int
    """Bytes that a `create` of the right size could use at once."""
    quarantined_bytes: int
    """Bytes of freed objects that somebody had views of when they were last looked at."""
    quarantined_blocks: int
    segments: int

    def told(self) -> inventory.Arena:
        """As `shoal memory` hears of it."""
        return inventory.Arena(
            self.quota_bytes,
            self.backed_bytes,
            self.live_bytes,
            self.live_blocks,
            self.quarantined_bytes,
            self.spilled_bytes,
        )


class ArenaBlocks(NamedTuple):
    """The blocks of an arena."""

    live: list[Location]
    """Those of objects not yet freed, wherever they are."""
    freed: list[Location]
    """Of dead objects that somebody has views of."""
    viewed: list[Location]
    """Of both, those that this process itself has views of."""
    spilled: list[str]
    """Names of the segments that are on disk."""


def _location(record: Record) -> Location:
    return Location(record.segment.name, record.offset, record.size, record.serial)


class _Victims(NamedTuple):
    segments: list[Segment]
    holes: list[Range]


class Accounts:
    """See the module's docstring. `directory` and `creator` as of an `Arena`."""

    def __init__(
        self,
        directory: Path,
        creator: str,
        quota_bytes: int,
        spill_directory: Path | None,
        disk_fraction: float,
        when_idle: Callable[[], object] | None,
    ) -> None:
        self._directory: Final = directory
        self._spill_directory: Final = spill_directory
        self._disk_fraction: Final = disk_fraction
        self._creator: Final = check_creator(creator)
        self._lock = make_lock()
        self._closed_because = ""
        self._numbers = itertools.count()
        self._ticks = itertools.count()
        self._serial = 0
        # Somebody will call `rest`, which compares with what it found the last time.
        self._when_idle: Final = when_idle
        self._watched = when_idle is None
        self._rested_at = (0, 0)

        self._quota = quota_bytes
        # Bytes of files and of changes under way: grows before pages are reserved, shrinks after they are gone.
        self._backed = 0
        self._live_bytes = 0
        self._live_blocks = 0
        self._spilled_bytes = 0

        self._segments: dict[str, Segment] = {}
        self._slabs = SlabSpace()
        self._warm = WarmPool()
        self._can_make_holes = True
        self._may_not_spill = False
        self._quarantine: deque[Record] = deque()
        self._lock_fd = locks.open_lock_file(directory / lock_file(creator), create=True)

    @property
    def can_spill(self) -> bool:
        """Whether there is a disk for what finds no room in memory."""
        return self._spill_directory is not None

    # --- quota ------------------------------------------------------------------------------------------------

    def grant(self, quota_bytes: int) -> None:
        """The node daemon allows so many bytes more."""
        with self._lock:
            self._quota += quota_bytes
            watch, self._watched = not self._watched, True
        if watch and self._when_idle is not None:
            self._when_idle()

    def reclaim(self, wanted_bytes: int, *, unused: bool = True) -> int:
        """Others need room: give back `wanted_bytes` if that can be done, and at times more; the quota shrinks by the result.

        Without `unused`, quota that backs nothing is kept: a `create` that asks for more of it counts on it. Dead objects
        that somebody still views are removed last: their memory is not usable by others before the views go, but it is
        no longer the store's either.
        """
        with self._lock:
            self._settle_all()
            given = self._give_unused(wanted_bytes) if unused else 0
            victims = self._choose_victims(wanted_bytes - given)
        given += self._remove(victims, discard=True, shrink_quota=True)
        if given < wanted_bytes:
            with self._lock:
                abandoned = self._abandon(wanted_bytes - given)
            given += self._remove(_Victims(abandoned, []), discard=False, shrink_quota=True)
        return given

    def rest(self, most_bytes: int) -> tuple[int, bool]:
        """Give back what has been idle since this was called the last time, at most about `most_bytes` of it: whole segments. If no
        object was made since then also free ranges of slabs, and quota that backs nothing.

        Returns:
            By how much the quota shrinks, and whether this is to be called again after a while. If not, `when_idle` will say so.
        """
        with self._lock:
            if self._closed_because:
                return 0, False
            self._settle_all()
            before, serial = self._rested_at
            self._rested_at = next(self._ticks), self._serial
            quiet = self._serial == serial
            given = self._give_unused(self._quota) if quiet else 0
            victims = self._choose_victims(most_bytes, before, holes=quiet)
        given += self._remove(victims, discard=True, shrink_quota=True)
        with self._lock:
            idle = self._warm.bytes or self._quarantine or self._slabs.idle()
            self._watched = not quiet or bool(idle)
            return given, self._watched

    def stats(self) -> ArenaStats:
        """The accounts, as of now."""
        with self._lock:
            return ArenaStats(
                quota_bytes=self._quota,
                backed_bytes=self._backed,
                live_bytes=self._live_bytes,
                live_blocks=self._live_blocks,
                spilled_bytes=self._spilled_bytes,
                warm_bytes=self._warm.bytes + self._slabs.free_bytes,
                quarantined_bytes=sum(record.length for record in self._quarantine),
                quarantined_blocks=len(self._quarantine),
                segments=len(self._segments),
            )

    def blocks(self) -> ArenaBlocks:
        """All blocks that hold an object, or held one and are still looked at, as of now."""
        with self._lock:
            self._settle_all()
            live = [
                record for segment in self._segments.values() for record in segment.blocks.values()
            ]
            freed = list(self._quarantine)
            return ArenaBlocks(
                [_location(record) for record in live],
                [_location(record) for record in freed],
                [_location(record) for record in live + freed if record.is_viewed],
                [name for name, one in self._segments.items() if one.state is State.SPILLED],
            )

    # --- spilling ---------------------------------------------------------------------------------------------

    def spill(self, wanted_bytes: int) -> SpillResult:
        """Others need room: bring live objects that nobody views to disk, at least `wanted_bytes` if there are as many; the quota
        shrinks by what came free. Writes in the calling thread, one segment after the other."""
        freed = written = 0
        refused = ""
        folder = self._spill_directory
        if folder is None:
            return SpillResult(0, 0)
        for segment in self._by_age():
            if freed >= wanted_bytes or self._may_not_spill:
                break
            ranges = self._begin_to_leave(segment)
            if not ranges:
                continue
            mapping, path = segment.mapping, segment.path
            assert mapping is not None
            left, size = False, 0
            try:
                size = self._write_out(segment, folder, ranges)
                left = self._end_to_leave(segment, folder)
            except OSError as error:
                refused = error.strerror or str(error)
                if error.errno not in FULL:
                    break
                # There may be room for a smaller one.
            finally:
                if segment.state is State.LEAVING:
                    (folder / segment.name).unlink(missing_ok=True)
                    self._take_back(segment)
            if left:
                freed += self._drop_memory(segment, mapping, path)
                written += size
        return SpillResult(freed, written, "" if freed else refused)

    def stop_spilling(self) -> None:
        """The process ends: begin with no more segments. Any thread."""
        self._may_not_spill = True

    def _by_age(self) -> list[Segment]:
        with self._lock:
            found = [
                (max(record.serial for record in segment.blocks.values()), segment)
                for segment in self._segments.values()
                if segment.blocks and segment.state is not State.SPILLED
            ]
        found.sort(key=lambda pair: pair[0])
        return [segment for _, segment in found]

    def _begin_to_leave(self, segment: Segment) -> list[tuple[int, int]]:
        """What of a segment is to be written; nothing if it must stay."""
        with self._lock:
            movable = (
                not self._closed_because
                and segment.state is State.ACTIVE
                and self._may_leave(segment)
                and not self._is_viewed(segment)
                and not locks.is_held(self._lock_fd, *segment_range(segment.number))
            )
            if not movable:
                return []
            if segment.slab:
                self._slabs.put_aside(segment)
            segment.state = State.LEAVING
            return [(record.offset, record.length) for record in segment.blocks.values()]

    def _is_viewed(self, segment: Segment) -> bool:
        return any(record.is_viewed for record in segment.blocks.values())

    def _write_out(self, segment: Segment, folder: Path, ranges: list[tuple[int, int]]) -> int:
        mapping = segment.mapping
        assert mapping is not None
        source = view_of(export(mapping, 0, mapping.length), mapping.length)
        return write_out(source, folder, segment.name, ranges, self._disk_fraction)

    def _end_to_leave(self, segment: Segment, folder: Path) -> bool:
        """It is written: let everybody find it there, unless somebody looks at it by now."""
        everything = segment_range(segment.number)
        with self._lock:
            if (
                self._closed_because
                or not self._may_leave(segment)
                or self._is_viewed(segment)
                or not locks.seize(self._lock_fd, *everything)
            ):
                return False
            try:
                set_spilled(self._lock_fd, segment.number)
                self._note_left(segment, folder / segment.name)
            finally:
                locks.release(self._lock_fd, *everything)
            return True

    def _drop_memory(self, segment: Segment, mapping: Mapping, path: Path) -> int:
        """Nobody will look for it there. The bytes that came free."""
        mapping.discard(0, segment.length)
        path.unlink(missing_ok=True)
        with self._lock:
            self._backed -= segment.backed_bytes
            # Another thread may have used the room already; what it took is not ours to return.
            return self._give_unused(segment.backed_bytes)

    def _may_leave(self, segment: Segment) -> bool:
        """Something in it lives, and nothing is dead and viewed or under way."""
        return bool(segment.blocks) and segment.busy == len(segment.blocks)

    def _note_left(self, segment: Segment, path: Path) -> None:
        segment.state = State.SPILLED
        segment.mapping, segment.path = None, path
        moved = sum(record.size for record in segment.blocks.values())
        self._live_bytes -= moved
        self._spilled_bytes += moved

    def _take_back(self, segment: Segment) -> None:
        """It stays in memory."""
        with self._lock:
            segment.state = State.ACTIVE
            if self._closed_because:
                return
            if segment.slab:
                self._slabs.bring_back(segment)
            elif not segment.busy:
                self._warm.push(segment)
            if not segment.busy:
                segment.freed_at = next(self._ticks)

    # --- under the lock ---------------------------------------------------------------------------------------

    def _is_held(self, record: Record) -> bool:
        if record.is_viewed:
            return True
        return locks.is_held(self._lock_fd, *self._lock_range(record))

    @staticmethod
    def _lock_range(record: Record) -> tuple[int, int]:
        segment = record.segment
        return lock_range(segment.number, record.offset, record.length, slab=segment.slab)

    def _recycle(self, record: Record) -> None:
        segment = record.segment
        if segment.state is State.LEAVING:
            segment.busy -= 1
            if segment.slab:
                segment.free.append((record.offset, record.length))
            return
        if segment.slab:
            self._slabs.give(segment, record.offset, record.length)
        else:
            segment.busy = 0
            self._warm.push(segment)
        if not segment.busy:
            segment.freed_at = next(self._ticks)

    def _settle(self, probes: int) -> None:
        """Look at so many quarantined blocks again, those that waited longest first."""
        quarantine = self._quarantine
        for _ in range(min(probes, len(quarantine))):
            record = quarantine.popleft()
            if self._is_held(record):
                quarantine.append(record)
            else:
                self._recycle(record)

    def _settle_all(self) -> None:
        """Look at all of them again."""
        quarantine = self._quarantine
        if not quarantine:
            return
        unseen = [
            (self._lock_range(record), record) for record in quarantine if not record.is_viewed
        ]
        unseen.sort(key=lambda pair: pair[0])
        numbers = locks.unheld(self._lock_fd, [place for place, _ in unseen])
        free = {id(unseen[number][1]) for number in numbers}
        for _ in range(len(quarantine)):
            record = quarantine.popleft()
            if id(record) in free:
                self._recycle(record)
            else:
                quarantine.append(record)

    def _charge(self, wanted: int, recycle: bool) -> None:
        """Take `wanted` bytes of quota, from what is idle if need be and allowed."""
        while True:
            with self._lock:
                self._check_open()
                short = self._backed + wanted - self._quota
                if short <= 0:
                    self._backed += wanted
                    return
                if not recycle:
                    raise QuotaExhausted(short)
                if len(self._quarantine) <= _ALL_AT_ONCE:
                    self._settle_all()
                else:
                    # All of it is looked at when others want room too: not for each of ten thousand objects.
                    self._settle(_IN_TURN)
                victims = self._choose_victims(short)
            if not victims.segments and not victims.holes:
                raise QuotaExhausted(short)
            self._remove(victims, discard=True, shrink_quota=False)

    def _refund(self, unused: int) -> None:
        with self._lock:
            self._backed -= unused

    def _give_unused(self, wanted: int) -> int:
        given = max(0, min(wanted, self._quota - self._backed))
        self._quota -= given
        return given

    def _next_number(self) -> int:
        """Of a new segment (under the lock)."""
        number = next(self._numbers)
        if self._spill_directory is not None:
            try:
                reserve_flag(self._lock_fd, number)
            except OSError as error:
                raise ObjectStoreFullError(
                    f"shared memory in {self._directory} is full to the last page: {error.strerror}. Drop objects, give the object "
                    "store less memory than the file system has, or make that larger (in a container: --shm-size)."
                ) from error
        return number

    def _choose_victims(
        self, wanted: int, before: float = float("inf"), *, holes: bool = True
    ) -> _Victims:
        """Take idle memory of about `wanted` bytes out of the books: segments longest idle first, if they are it since `before`, then with
        `holes` the free ranges of slabs in use."""
        victims = _Victims([], [])
        if wanted <= 0:
            return victims
        idle = self._warm.segments() + self._slabs.idle()
        idle.sort(key=lambda segment: segment.freed_at)
        for segment in idle:
            if wanted <= 0 or segment.freed_at >= before:
                break
            (self._slabs if segment.slab else self._warm).remove(segment)
            del self._segments[segment.name]
            victims.segments.append(segment)
            wanted -= segment.backed_bytes
        if holes and self._can_make_holes:
            victims.holes.extend(self._slabs.take_holes(wanted))
        return victims

    def _abandon(self, wanted: int) -> list[Segment]:
        """Take segments that hold nothing but dead, viewed objects out of the books."""
        abandoned: dict[str, Segment] = {}
        waiting: dict[str, int] = {}
        for record in self._quarantine:
            segment = record.segment
            if segment.state is State.LEAVING:
                continue
            waiting[segment.name] = waiting.get(segment.name, 0) + 1
            if wanted > 0 and waiting[segment.name] == segment.busy:
                abandoned[segment.name] = segment
                wanted -= segment.backed_bytes
        if abandoned:
            self._quarantine = deque(
                record for record in self._quarantine if record.segment.name not in abandoned
            )
        for segment in abandoned.values():
            del self._segments[segment.name]
            if segment.slab:
                self._slabs.remove(segment)
        return list(abandoned.values())

    def _remove(self, victims: _Victims, *, discard: bool, shrink_quota: bool) -> int:
        """Remove the files and pages of victims, outside the lock, and then from the accounts."""
        removed = 0
        for segment in victims.segments:
            segment.destroy(discard=discard)
            removed += segment.backed_bytes
        emptied = [slab.discard(offset, length) for slab, offset, length in victims.holes]
        with self._lock:
            for hole, done in zip(victims.holes, emptied, strict=True):
                if done:
                    self._slabs.emptied(*hole)
                    removed += hole[2]
                else:
                    self._can_make_holes = False
                    self._slabs.give(*hole)
            self._backed -= removed
            if shrink_quota:
                # Another thread may have used the room already; what it took is not ours to return.
                removed = self._give_unused(removed)
        return removed

    def _check_open(self) -> None:
        if self._closed_because:
            raise InternalError(f"arena {self._creator!r} is closed: {self._closed_because}")
