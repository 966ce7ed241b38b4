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
          │   reclaim                    ▼                          unlinked; views stay valid
          └──────────────────────── unlinked

When memory is short, whole segments of live objects that nobody views are *spilled* (`spill`, see `shoal.store.spilling`), those made
longest ago first; and `create` may be told to make an object on disk from the beginning. What is on disk is charged to no quota.

An object of `large_bytes` or more has a segment of its own; smaller ones share slabs, whose pages are reserved as they
are needed. Warm means: the pages exist and this process has them mapped, so that filling a block runs at the speed of
memory rather than of the kernel's page allocator, which is ten times slower.

Guarantees
- The bytes of all files in memory never exceed the quota granted, and every page is reserved before anybody writes to it.
- A block is not used again while any view of it lives, in this process or in any other that reads through `Reader`.
- No two blocks of a creator have the same location, however often their place is used: each has a serial number.
- Any method may be called from any thread. The lock is held for bookkeeping only: files are made, grown and removed, and
  bytes copied, outside it.

Leaves to others: asking the node daemon for quota, and calling `free` only when nobody will *begin* to view the object
any more (who refers to it is its owner's business).
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from shoal.errors import InternalError, ObjectFreedError, OutOfDiskError
from shoal.lock import make_lock
from shoal.messages.values import Location
from shoal.store import forking, locks
from shoal.store.accounts import Accounts
from shoal.store.idle import SlabSpace, WarmPool
from shoal.store.layout import (
    ALIGNMENT,
    MAX_SLAB_BYTES,
    PAGE,
    lock_file,
    round_up,
    segment_capacity,
    segment_range,
)
from shoal.store.mapping import Mapping, export, view_of
from shoal.store.segment import Record, Segment, State
from shoal.store.spilling import (
    DISK_FRACTION,
    Remote,
    check_disk,
    set_spilled,
)

DEFAULT_LARGE_BYTES: Final = 1 << 20
DEFAULT_SLAB_BYTES: Final = 32 << 20

_PROBES: Final = 2
"""Quarantined blocks looked at again by each `create`."""

_MANY_PROBES: Final = 64
"""The same before a `create` would need new pages."""


class Block(msgspec.Struct, frozen=True, gc=False):
    """Memory for one object: fill `buffer`, drop it, and send `location` to those who will read."""

    location: Location
    buffer: memoryview


class Arena(Accounts):
    """The segments of one process. See the module for how blocks live.

    Args:
        directory: The session's shared-memory directory.
        creator: Name of this process, unique in the session: letters and digits.
        quota_bytes: What may be used before the first `grant`.
        spill_directory: The spill folder; without one nothing goes to disk.
        disk_fraction: How full its file system may become.
        when_idle: Called when there is memory, or quota, of which `rest` is to see how long it stays unused; in any thread.
        remote: The remote target to which segments may go on from there, if there is one.
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
        spill_directory: Path | None = None,
        disk_fraction: float = DISK_FRACTION,
        when_idle: Callable[[], object] | None = None,
        remote: Remote | None = None,
        large_bytes: int = DEFAULT_LARGE_BYTES,
        slab_bytes: int = DEFAULT_SLAB_BYTES,
    ) -> None:
        if not 2 * large_bytes <= slab_bytes <= MAX_SLAB_BYTES:
            raise ValueError(
                f"slab_bytes={slab_bytes} must be at least twice large_bytes={large_bytes}, and at most "
                f"{MAX_SLAB_BYTES}"
            )
        super().__init__(directory, creator, quota_bytes, spill_directory, disk_fraction, when_idle)
        self._remote: Final = remote
        self._large_bytes: Final = large_bytes
        self._slab_bytes: Final = round_up(slab_bytes, PAGE)
        forking.watch(self)

    def is_entered(self) -> bool:
        """Whether this thread is in the middle of a change: a finalizer that Python runs there must not begin another."""
        return self._lock._is_owned()

    # --- objects ----------------------------------------------------------------------------------------------

    def create(self, size: int, *, recycle: bool = True, on_disk: bool = False) -> Block:
        """Memory for an object of `size` bytes, with the content of whatever was there before.

        Args:
            size: How many bytes.
            recycle: When the quota is short, remove idle memory of other sizes. That costs time, again and again if
                objects of those sizes are made in turn; without it the caller is told, and may get more quota.
            on_disk: In the spill folder, whatever the quota.

        Raises:
            QuotaExhausted: new pages are needed, and the quota does not cover them.
            ObjectStoreFullError: the quota does, but the file system has no room.
            OutOfDiskError: the disk has none.
        """
        if on_disk:
            return self._create_on_disk(size)
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
            SpillTargetError: it was spilled to a remote target, which cannot be reached.
            OutOfDiskError: it has to come from there, and the disk has no room.
        """
        while True:
            try:
                with self._lock:
                    record = self._find(location)
                    exporter = None if record.exporter is None else record.exporter()
                    if exporter is None:
                        mapping = self._mapping_of(record.segment)
                        exporter = export(mapping, record.offset, record.size)
                        record.exporter = weakref.ref(exporter)
                return view_of(exporter, record.size).toreadonly()
            except FileNotFoundError:
                if self._remote is None:
                    raise
            # Without the lock, since that takes long.
            self._remote.bring(location.segment)

    def free(
        self, location: Location, remove: Callable[[Callable[[], None]], None] | None = None
    ) -> None:
        """The object is dead: nobody will begin to view it any more. In a closed arena all are; then this does nothing.

        Args:
            location: Where it is.
            remove: Has what it gets done by somebody who may wait for the disk, if a file there is to be removed. By default that is
                done here.

        Raises:
            ObjectFreedError: it is not alive; it was freed before, or is not of this arena.
        """
        with self._lock:
            if self._closed_because:
                return
            record = self._find(location)
            segment = record.segment
            del segment.blocks[record.offset]
            self._live_blocks -= 1
            if segment.state is State.SPILLED:
                self._spilled_bytes -= record.size
                gone = self._leave_disk(segment)
            else:
                self._live_bytes -= record.size
                if self._is_held(record):
                    self._quarantine.append(record)
                else:
                    self._recycle(record)
                gone = None
            watch, self._watched = not self._watched, True
        if watch and self._when_idle is not None:
            self._when_idle()
        if gone is not None and remove is not None:
            remove(partial(self._remove_from_disk, gone))
        elif gone is not None:
            self._remove_from_disk(gone)

    # --- on disk ----------------------------------------------------------------------------------------------

    def _leave_disk(self, segment: Segment) -> Segment | None:
        """A block on disk is dead; the segment, if it was the last (under the lock)."""
        segment.busy -= 1
        if segment.blocks:
            return None
        del self._segments[segment.name]
        return segment

    def _remove_from_disk(self, segment: Segment) -> None:
        if not segment.destroy(discard=False) and self._remote is not None:
            # Of the two who remove it the other was first: see `node.remote_spill`.
            self._remote.forget(segment.name)

    def _mapping_of(self, segment: Segment) -> Mapping:
        if segment.mapping is not None:
            return segment.mapping
        mapping = None if segment.mapped is None else segment.mapped()
        if mapping is not None:
            return mapping
        fd = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            mapping = Mapping(fd, os.fstat(fd).st_size, writable=False)
        finally:
            os.close(fd)
        segment.mapped = weakref.ref(mapping)
        return mapping

    def _create_on_disk(self, size: int) -> Block:
        folder = self._spill_directory
        if folder is None:
            raise InternalError("there is no spill folder")
        capacity = round_up(max(size, 1), PAGE)
        with self._lock:
            self._check_open()
            number = self._next_number()
        try:
            check_disk(folder, capacity, self._disk_fraction)
            segment = Segment(folder, self._creator, number, capacity, slab=False, on_disk=True)
        except OSError as error:
            raise OutOfDiskError(
                f"the object of {size:,} bytes has no room in the object store, and cannot go to disk in {folder}: "
                f"{error.strerror or error}. Drop references to large objects, make room there, or choose another "
                "object_spilling_directory"
            ) from error
        with self._lock:
            self._adopt(segment)
            set_spilled(self._lock_fd, number)
            segment.busy = 1
            block = self._open_block(segment, 0, capacity, size)
            if self._remote is not None:
                self._hold_while_filled(segment.blocks[0])
            self._live_bytes -= size
            self._spilled_bytes += size
            # The block keeps the mapping for as long as it is being filled.
            segment.mapping = None
            return block

    def _hold_while_filled(self, record: Record) -> None:
        """Whoever looks (the node may have it go on from here) sees that somebody has a block on disk; until its buffer goes."""
        held = segment_range(record.segment.number)
        locks.hold(self._lock_fd, *held)

        def let_go(_: object) -> None:
            # In any thread, with any lock held. The lock file is open until the arena is closed, and then nothing is moved.
            if not self._closed_because:
                locks.release(self._lock_fd, *held)

        assert record.exporter is not None
        exporter = record.exporter()
        record.exporter = weakref.ref(exporter, let_go)

    def path_of(self, location: Location) -> Path:
        """The file that an object is in.

        Raises:
            ObjectFreedError: no such object is alive here.
        """
        with self._lock:
            return self._find(location).segment.path

    def is_viewed(self, location: Location) -> bool:
        """Whether anybody looks at an object, in this process or another.

        Raises:
            ObjectFreedError: no such object is alive here.
        """
        with self._lock:
            return self._is_held(self._find(location))

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
            self._settle_all()
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
                    slab.discard(offset, length)
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

    # --- blocks (under the lock) ------------------------------------------------------------------------------

    def _open_block(self, segment: Segment, offset: int, length: int, size: int) -> Block:
        serial = self._serial = self._serial + 1
        record = Record(segment, offset, length, size, serial)
        exporter = export(self._mapping_of(segment), offset, size)
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
            number = self._next_number()
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
                number = self._next_number()
            slab = Segment(self._directory, self._creator, number, self._slab_bytes, slab=True)
            with self._lock:
                self._adopt(slab)
                self._slabs.add(slab)
