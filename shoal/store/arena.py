"""Where one process makes its objects: blocks in shared memory, kept warm and used again.

::

      create(size)                                        free(location)
          │                                                    │  somebody has views?
          │ 1 a warm block          ┌──────────┐      no       │
          ├────────────────────────►│   live   ├───────────────┴──────────┐ yes
          │ 2 new pages, by quota   └──────────┘                          ▼
          │                              ▲                          ┌────────────┐
          │                              │            views gone    │ quarantine │
     ┌────┴───────────────────┐          │   ┌──────────────────────┤            │
     │ quota ── backed bytes  │     ┌────┴───▼─┐                    └─────┬──────┘
     └────▲───────────────────┘     │   warm   │                          │ reclaim: memory is short
          │                         └────┬─────┘                          ▼
          │   release_idle, reclaim      ▼                          unlinked; views stay valid
          └──────────────────────── unlinked

An object of `large_bytes` or more has a segment of its own; smaller ones share slabs, whose pages are reserved as they
are needed. Warm means: the pages exist and this process has them mapped, so that filling a block runs at the speed of
memory rather than of the kernel's page allocator, which is ten times slower.

Guarantees
- The bytes of all files never exceed the quota granted, and every page is reserved before anybody writes to it.
- A block is not used again while any view of it lives, in this process or in any other that reads through `Reader`.
- No two blocks of a creator have the same location, however often their place is used: each has a serial number.
- Any method may be called from any thread. The lock is held for bookkeeping only: files are made, grown and removed, and
  bytes copied, outside it.

Leaves to others: asking the node daemon for quota, and calling `free` only when nobody will *begin* to view the object
any more (who refers to it is its owner's business).
"""

from __future__ import annotations

import itertools
import os
import weakref
from collections import deque
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from shoal.errors import InternalError, ObjectFreedError
from shoal.lock import make_lock
from shoal.messages.values import Location
from shoal.store import forking, locks
from shoal.store.idle import Range, SlabSpace, WarmPool
from shoal.store.layout import (
    ALIGNMENT,
    MAX_SLAB_BYTES,
    PAGE,
    check_creator,
    lock_file,
    lock_range,
    round_up,
    segment_capacity,
)
from shoal.store.mapping import export, view_of
from shoal.store.segment import Record, Segment

DEFAULT_LARGE_BYTES: Final = 1 << 20
DEFAULT_SLAB_BYTES: Final = 32 << 20

_PROBES: Final = 2
"""Quarantined blocks looked at again by each `create`."""

_MANY_PROBES: Final = 64
"""The same before a `create` would need new pages."""


class QuotaExhausted(Exception):  # noqa: N818 - a condition that the caller mends, by `grant`, not an error
    """New pages would exceed the quota. Grant `needed_bytes` or more, and call `create` again."""

    def __init__(self, needed_bytes: int) -> None:
        super().__init__(f"the arena's quota is {needed_bytes:,} bytes short")
        self.needed_bytes = needed_bytes


class Block(msgspec.Struct, frozen=True, gc=False):
    """Memory for one object: fill `buffer`, drop it, and send `location` to those who will read."""

    location: Location
    buffer: memoryview


class ArenaStats(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot of an arena's accounts."""

    quota_bytes: int
    """Granted and not given back."""
    backed_bytes: int
    """Bytes of files: live, quarantined, warm, and lost to rounding. Never above the quota."""
    live_bytes: int
    """Bytes of objects not yet freed."""
    live_blocks: int
    warm_bytes: int
    """Bytes that a `create` of the right size could use at once."""
    quarantined_bytes: int
    """Bytes of freed objects that somebody had views of when they were last looked at."""
    quarantined_blocks: int
    segments: int


class ArenaBlocks(NamedTuple):
    """The blocks of an arena."""

    live: list[Location]
    freed: list[Location]
    """Of dead objects that somebody has views of."""
    viewed: list[Location]
    """Of both, those that this process itself has views of."""


def _location(record: Record) -> Location:
    return Location(record.segment.name, record.offset, record.size, record.serial)


class _Victims(NamedTuple):
    segments: list[Segment]
    holes: list[Range]


class Arena:
    """The segments of one process. See the module for how blocks live.

    Args:
        directory: The session's shared-memory directory.
        creator: Name of this process, unique in the session: letters and digits.
        quota_bytes: What may be used before the first `grant`.
        large_bytes: Objects of this size and more have segments of their own. Lower: more files and mappings. Higher: more
            fragmentation, and dead objects hold back more memory.
        slab_bytes: Address space of a slab; its pages are reserved as needed.
    """

    def __init__(
        self,
        directory: Path,
        creator: str,
        quota_bytes: int = 0,
        *,
        large_bytes: int = DEFAULT_LARGE_BYTES,
        slab_bytes: int = DEFAULT_SLAB_BYTES,
    ) -> None:
        if not 2 * large_bytes <= slab_bytes <= MAX_SLAB_BYTES:
            raise ValueError(
                f"slab_bytes={slab_bytes} must be at least twice large_bytes={large_bytes}, and at most "
                f"{MAX_SLAB_BYTES}"
            )
        self._directory: Final = directory
        self._creator: Final = check_creator(creator)
        self._large_bytes: Final = large_bytes
        self._slab_bytes: Final = round_up(slab_bytes, PAGE)
        self._lock = make_lock()
        self._closed_because = ""
        self._numbers = itertools.count()
        self._ticks = itertools.count()
        self._serial = 0

        self._quota = quota_bytes
        # Bytes of files and of changes under way: grows before pages are reserved, shrinks after they are gone.
        self._backed = 0
        self._live_bytes = 0
        self._live_blocks = 0

        self._segments: dict[str, Segment] = {}
        self._slabs = SlabSpace()
        self._warm = WarmPool()
        self._can_make_holes = True
        self._quarantine: deque[Record] = deque()
        self._lock_fd = locks.open_lock_file(directory / lock_file(creator), create=True)
        forking.watch(self)

    def is_entered(self) -> bool:
        """Whether this thread is in the middle of a change: a finalizer that Python runs there must not begin another."""
        return self._lock._is_owned()

    # --- objects ----------------------------------------------------------------------------------------------

    def create(self, size: int, *, recycle: bool = True) -> Block:
        """Memory for an object of `size` bytes, with the content of whatever was there before.

        Args:
            size: How many bytes.
            recycle: When the quota is short, remove idle memory of other sizes. That costs time, again and again if
                objects of those sizes are made in turn; without it the caller is told, and may get more quota.

        Raises:
            QuotaExhausted: new pages are needed, and the quota does not cover them.
            ObjectStoreFullError: the quota does, but the file system has no room.
        """
        if size >= self._large_bytes:
            return self._create_large(size, recycle)
        if size < 0:
            raise ValueError(f"an object cannot have {size} bytes")
        length = (size + ALIGNMENT - 1) & -ALIGNMENT or ALIGNMENT
        while True:
            with self._lock:
                if self._quarantine:
                    self._settle(_PROBES)
                place = self._slabs.take(length)
                if place is None and self._quarantine:
                    self._settle(_MANY_PROBES)
                    place = self._slabs.take(length)
                if place is not None:
                    return self._open_block(*place, length, size)
            self._grow(length, recycle)

    def view(self, location: Location) -> memoryview:
        """A read-only view of an object that this arena made.

        Raises:
            ObjectFreedError: no such object is alive here.
        """
        with self._lock:
            record = self._find(location)
            exporter = None if record.exporter is None else record.exporter()
            if exporter is None:
                exporter = export(record.segment.mapping, record.offset, record.size)
                record.exporter = weakref.ref(exporter)
        return view_of(exporter, record.size).toreadonly()

    def free(self, location: Location) -> None:
        """The object is dead: nobody will begin to view it any more. In a closed arena all are; then this does nothing.

        Raises:
            ObjectFreedError: it is not alive; it was freed before, or is not of this arena.
        """
        with self._lock:
            if self._closed_because:
                return
            record = self._find(location)
            del record.segment.blocks[record.offset]
            self._live_bytes -= record.size
            self._live_blocks -= 1
            if self._is_held(record):
                self._quarantine.append(record)
            else:
                self._recycle(record)

    # --- quota ------------------------------------------------------------------------------------------------

    def grant(self, quota_bytes: int) -> None:
        """The node daemon allows so many bytes more."""
        with self._lock:
            self._quota += quota_bytes

    def release_idle(self, keep_bytes: int) -> int:
        """Give back what is granted and not in use, but for `keep_bytes`; the quota shrinks by the result.

        Unused quota goes first, then the memory that has been idle longest.
        """
        with self._lock:
            self._settle(len(self._quarantine))
            idle_slabs = sum(slab.backed_bytes for slab in self._slabs.idle())
            wanted = self._quota - self._backed + self._warm.bytes + idle_slabs - keep_bytes
            given = self._give_unused(wanted)
            victims = self._choose_victims(wanted - given, holes=False)
        return given + self._remove(victims, discard=True, shrink_quota=True)

    def reclaim(self, wanted_bytes: int, *, unused: bool = True) -> int:
        """Others need room: give back `wanted_bytes` if that can be done, and at times more; the quota shrinks by the result.

        Without `unused`, quota that backs nothing is kept: a `create` that asks for more of it counts on it. Dead objects
        that somebody still views are removed last: their memory is not usable by others before the views go, but it is
        no longer the store's either.
        """
        with self._lock:
            self._settle(len(self._quarantine))
            given = self._give_unused(wanted_bytes) if unused else 0
            victims = self._choose_victims(wanted_bytes - given, holes=True)
        given += self._remove(victims, discard=True, shrink_quota=True)
        if given < wanted_bytes:
            with self._lock:
                abandoned = self._abandon(wanted_bytes - given)
            given += self._remove(_Victims(abandoned, []), discard=False, shrink_quota=True)
        return given

    def stats(self) -> ArenaStats:
        """The accounts, as of now."""
        with self._lock:
            return ArenaStats(
                quota_bytes=self._quota,
                backed_bytes=self._backed,
                live_bytes=self._live_bytes,
                live_blocks=self._live_blocks,
                warm_bytes=self._warm.bytes + self._slabs.free_bytes,
                quarantined_bytes=sum(record.length for record in self._quarantine),
                quarantined_blocks=len(self._quarantine),
                segments=len(self._segments),
            )

    def blocks(self) -> ArenaBlocks:
        """All blocks that hold an object, or held one and are still looked at, as of now."""
        with self._lock:
            self._settle(len(self._quarantine))
            live = [
                record for segment in self._segments.values() for record in segment.blocks.values()
            ]
            freed = list(self._quarantine)
            return ArenaBlocks(
                [_location(record) for record in live],
                [_location(record) for record in freed],
                [_location(record) for record in live + freed if record.is_viewed],
            )

    # --- the end ----------------------------------------------------------------------------------------------

    def close(self, *, unlink: bool) -> None:
        """Make no more objects. Views that live, here and elsewhere, stay valid. Calling it again does nothing.

        Args:
            unlink: Remove all files, so that nobody can begin to view any object of this arena. Otherwise those with
                live objects stay until `sweep`, without the memory in them that no object uses.
        """
        with self._lock:
            if self._closed_because:
                return
            self._closed_because = "it was closed"
            self._settle(len(self._quarantine))
            waiting = {record.segment.name for record in self._quarantine}
            stay = False
            for segment in self._segments.values():
                if unlink or not segment.blocks:
                    # Where there are live objects some process may have the segment mapped and view them yet.
                    nobody = not segment.blocks and segment.name not in waiting
                    segment.destroy(discard=nobody)
                else:
                    stay = True
            if stay:
                for slab, offset, length in self._slabs.take_holes(self._quota):
                    slab.mapping.discard(offset, length)
            else:
                (self._directory / lock_file(self._creator)).unlink(missing_ok=True)
            self._forget_all()

    def after_fork_in_child(self) -> None:
        """The child's copy of an arena makes nothing: blocks taken by two processes would be one block."""
        self._lock = make_lock()
        if not self._closed_because:
            self._closed_because = (
                "it belongs to the process that forked this one, which needs its own"
            )
            self._forget_all()

    def _forget_all(self) -> None:
        os.close(self._lock_fd)
        self._segments = {}
        self._slabs = SlabSpace()
        self._warm = WarmPool()
        self._quarantine = deque()

    def _check_open(self) -> None:
        if self._closed_because:
            raise InternalError(f"arena {self._creator!r} is closed: {self._closed_because}")

    # --- blocks (under the lock) ------------------------------------------------------------------------------

    def _open_block(self, segment: Segment, offset: int, length: int, size: int) -> Block:
        serial = self._serial = self._serial + 1
        record = Record(segment, offset, length, size, serial)
        exporter = export(segment.mapping, offset, size)
        record.exporter = weakref.ref(exporter)
        segment.blocks[offset] = record
        self._live_bytes += size
        self._live_blocks += 1
        return Block(Location(segment.name, offset, size, serial), view_of(exporter, size))

    def _find(self, location: Location) -> Record:
        segment = self._segments.get(location.segment)
        record = segment.blocks.get(location.offset) if segment is not None else None
        if record is None or record.serial != location.serial or record.size != location.size:
            self._check_open()
            raise ObjectFreedError(
                f"{location} is no live object of arena {self._creator!r}: it was freed, or made by another process"
            )
        return record

    def _is_held(self, record: Record) -> bool:
        if record.is_viewed:
            return True
        segment = record.segment
        start, length = lock_range(segment.number, record.offset, record.length, slab=segment.slab)
        return locks.is_held(self._lock_fd, start, length)

    def _recycle(self, record: Record) -> None:
        segment = record.segment
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

    # --- large objects ----------------------------------------------------------------------------------------

    def _create_large(self, size: int, recycle: bool) -> Block:
        capacity = segment_capacity(size)
        with self._lock:
            self._check_open()
            if self._quarantine:
                self._settle(_PROBES)
            segment = self._warm.take(capacity)
            if segment is None and self._quarantine:
                self._settle(_MANY_PROBES)
                segment = self._warm.take(capacity)
            if segment is not None:
                segment.busy = 1
                return self._open_block(segment, 0, segment.length, size)
            number = next(self._numbers)
        self._charge(capacity, recycle)
        try:
            segment = Segment(self._directory, self._creator, number, capacity, slab=False)
        except BaseException:
            self._refund(capacity)
            raise
        with self._lock:
            segment.busy = 1
            self._adopt(segment)
            return self._open_block(segment, 0, capacity, size)

    def _adopt(self, segment: Segment) -> None:
        if self._closed_because:
            segment.destroy(discard=True)
            self._check_open()
        self._segments[segment.name] = segment

    # --- slabs ------------------------------------------------------------------------------------------------

    def _grow(self, length: int, recycle: bool) -> None:
        """Reserve pages for at least `length` more bytes in some slab."""
        with self._lock:
            chunk = self._slabs.growth(length, self._quota - self._backed)
        self._charge(chunk, recycle)
        try:
            slab, offset = self._take_hollow(chunk)
        except BaseException:
            self._refund(chunk)
            raise
        try:
            slab.back(offset, chunk)
        except BaseException:
            with self._lock:
                self._slabs.give_hollow(slab, offset, chunk)
                self._backed -= chunk
            raise
        with self._lock:
            self._check_open()
            self._slabs.filled(slab, offset, chunk)
            slab.freed_at = next(self._ticks)

    def _take_hollow(self, chunk: int) -> tuple[Segment, int]:
        while True:
            with self._lock:
                self._check_open()
                place = self._slabs.take_hollow(chunk)
                if place is not None:
                    return place
                number = next(self._numbers)
            slab = Segment(self._directory, self._creator, number, self._slab_bytes, slab=True)
            with self._lock:
                self._adopt(slab)
                self._slabs.add(slab)

    # --- accounts ---------------------------------------------------------------------------------------------

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
                self._settle(len(self._quarantine))
                victims = self._choose_victims(short, holes=True)
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

    def _choose_victims(self, wanted: int, *, holes: bool) -> _Victims:
        """Take idle memory of about `wanted` bytes out of the books: segments longest idle first, then, if `holes`,
        the free ranges of slabs in use."""
        victims = _Victims([], [])
        if wanted <= 0:
            return victims
        idle = self._warm.segments() + self._slabs.idle()
        idle.sort(key=lambda segment: segment.freed_at)
        for segment in idle:
            if wanted <= 0:
                return victims
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
        emptied = [slab.mapping.discard(offset, length) for slab, offset, length in victims.holes]
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
