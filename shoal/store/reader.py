"""How a process looks at objects that others made: read-only views without copies.

::

    view(location) ──► mapping of its segment (kept for the next time)
                  └──► shared lock on the block, while any view lives ──► the creator does not use the block again

Guarantees
- The lock is held from before the view exists until the last thing derived from it (slices, arrays, buffers) dies; it is
  dropped then, and by the kernel if the process dies.
- A bounded number of descriptors: one for each creator of which objects are viewed, and a few more.
- A mapping kept for later holds no lock. It costs address space; its pages are the creator's, which takes them back
  when it removes the segment. Mappings of what was spilled are not kept.
- Any method may be called from any thread.

A view dies wherever its last reference does, perhaps inside the garbage collector while this very thread holds the lock.
So the callback only notes the death, and whoever can have the lock does the work: the callback itself, or the thread
that holds the lock now, when it has let go.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from shoal.errors import InternalError, ObjectFreedError, ProtocolError
from shoal.lock import make_lock
from shoal.messages.values import Location
from shoal.store import forking, locks
from shoal.store.layout import lock_file, lock_range, parse_segment
from shoal.store.mapping import Mapping, export, view_of
from shoal.store.spilling import NotOnDiskError, Remote, is_spilled, open_block

DEFAULT_IDLE_MAPPINGS: Final = 64
DEFAULT_IDLE_BYTES: Final = 4 << 30
_IDLE_CREATORS: Final = 8
"""Lock files kept open although no object of their creator is viewed."""

_CHECKED_PER_ATTACH: Final = 4
"""Idle mappings checked for being of removed files each time that a file is mapped."""


_lingering: Final[set[Reader]] = set()
"""Closed readers with views that live: their locks must be dropped when the views die, so something must know them."""


class ReaderStats(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot of what a reader holds."""

    viewed_blocks: int
    mappings: int
    idle_mappings: int
    idle_bytes: int
    descriptors: int


class _Creator:
    """The lock file of a creator."""

    __slots__ = ("fd", "viewed")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.viewed = 0


class _Watch(weakref.ref[Any]):
    """Dies with the last view of a block. While it is in `_Attached.live` the block is locked."""

    __slots__ = ("attached", "length", "offset", "serial", "size", "start")

    attached: _Attached
    offset: int
    serial: int
    size: int
    start: int
    length: int


class _Attached:
    """A mapped segment."""

    __slots__ = ("creator", "live", "mapping", "name", "number", "slab", "spilled")

    def __init__(
        self, name: str, creator: str, number: int, slab: bool, mapping: Mapping, spilled: bool
    ) -> None:
        self.name = name
        self.creator = creator
        self.number = number
        self.slab = slab
        self.mapping = mapping
        self.spilled = spilled
        self.live: dict[int, _Watch] = {}


class Reader:
    """Views on the objects of all creators of a session. See the module for what it guarantees.

    Args:
        directory: The session's shared-memory directory.
        spill_directory: Where segments are that were spilled; None if none are.
        remote: Brings back those that are at a remote target, if there is one.
        idle_mappings: Mappings kept although nothing in them is viewed. Higher: segments that their creator uses again
            need not be mapped and faulted in again; more address space and page tables.
        idle_bytes: The same in bytes.
    """

    def __init__(
        self,
        directory: Path,
        spill_directory: Path | None = None,
        *,
        remote: Remote | None = None,
        idle_mappings: int = DEFAULT_IDLE_MAPPINGS,
        idle_bytes: int = DEFAULT_IDLE_BYTES,
    ) -> None:
        # A string: joining paths costs more than the system calls that they are for.
        self._directory: Final = str(directory)
        self._spill_directory: Final = None if spill_directory is None else str(spill_directory)
        self._remote: Final = remote
        self._max_idle: Final = idle_mappings
        self._max_idle_bytes: Final = idle_bytes
        self._lock = make_lock()
        self._closed = False
        self._dead: deque[_Watch] = deque()
        self._creators: dict[str, _Creator] = {}
        self._attached: dict[str, _Attached] = {}
        # Those of which nothing is viewed, longest idle first.
        self._idle: dict[str, _Attached] = {}
        self._idle_bytes = 0
        forking.watch(self)

    def view(self, location: Location) -> memoryview:
        """A read-only view of an object.

        Raises:
            ObjectFreedError: its segment is gone.
            ProtocolError: the location is none that any creator made.
            SpillTargetError: it was spilled to a remote target, which cannot be reached.
            OutOfDiskError: it has to come from there, and the disk has no room.
        """
        offset = location.offset
        size = location.size
        try:
            with self._lock:
                attached = self._attached.get(location.segment)
                watch = None if attached is None else attached.live.get(offset)
                exporter = None if watch is None else watch()
                if exporter is None:
                    exporter = self._hold(attached, location)
                elif watch is not None and (watch.size != size or watch.serial != location.serial):
                    raise ProtocolError(
                        f"{location} is not the object that is there, of {watch.size} bytes and number {watch.serial}"
                    )
        except NotOnDiskError:
            if self._remote is None:
                raise self._gone(location.segment) from None
            exporter = None
        finally:
            if self._dead:
                self._drain()
        if exporter is None:
            # Without the lock, since that takes long.
            assert self._remote is not None
            self._remote.bring(location.segment)
            return self.view(location)
        return view_of(exporter, size).toreadonly()

    def is_entered(self) -> bool:
        """As of an `Arena`."""
        return self._lock._is_owned()

    def forget(self, creator: str) -> None:
        """Drop the mappings kept for later of a creator that has ended."""
        self._drop_idle(lambda attached: attached.creator == creator)

    def viewed(self) -> list[Location]:
        """The blocks that somebody in this process has views of, as of now."""
        with self._lock:
            return [
                Location(attached.name, offset, watch.size, watch.serial)
                for attached in self._attached.values()
                for offset, watch in attached.live.items()
                if watch() is not None
            ]

    def stats(self) -> ReaderStats:
        """What it holds, as of now."""
        self._drain()
        with self._lock:
            return ReaderStats(
                viewed_blocks=sum(len(attached.live) for attached in self._attached.values()),
                mappings=len(self._attached),
                idle_mappings=len(self._idle),
                idle_bytes=self._idle_bytes,
                descriptors=len(self._creators),
            )

    def close(self) -> None:
        """Give no more views. Those that live stay valid and locked until they die."""
        self._closed = True
        self._drop_idle(lambda _: True)
        with self._lock:
            if self._attached:
                _lingering.add(self)
        self._drain()

    def after_fork_in_child(self) -> None:
        """The child begins with nothing. Views that it inherited stay mapped, but only the parent's lock guards them."""
        self._lock = make_lock()
        for creator in self._creators.values():
            # The parent has its own descriptor of the same description: nothing is unlocked.
            os.close(creator.fd)
        # Dropping the watches drops their callbacks. Each of them and what it is watched in know each other.
        for attached in self._attached.values():
            attached.live.clear()
        self._dead = deque()
        self._creators = {}
        self._attached = {}
        self._idle = {}
        self._idle_bytes = 0
        _lingering.discard(self)

    # --- under the lock ---------------------------------------------------------------------------------------

    def _hold(self, attached: _Attached | None, location: Location) -> Any:
        offset = location.offset
        size = location.size
        if attached is None:
            parts = parse_segment(location.segment)
            if parts is None:
                raise ProtocolError(f"{location.segment!r} is not the name of a segment")
            name, number, slab = parts
        else:
            name, number, slab = attached.creator, attached.number, attached.slab
        if offset < 0 or size < 0:
            raise ProtocolError(f"{location} cannot be a place")
        creator = self._creators.get(name)
        if creator is None:
            creator = self._open_creator(name, location.segment)
        start, length = lock_range(number, offset, size, slab=slab)
        # If its last view has just died, and the lock has not been dropped yet, the new one inherits it.
        inherits = attached is not None and offset in attached.live
        if not inherits:
            locks.hold(creator.fd, start, length)
        try:
            if attached is None or not attached.live:
                # What we have locked stays where it is. What we had mapped before may have gone from there.
                attached = self._where_it_is(attached, creator.fd, location.segment, number)
            if not offset + size <= attached.mapping.length:
                raise ProtocolError(
                    f"bytes {offset} to {offset + size} are not inside segment {attached.name!r} of "
                    f"{attached.mapping.length} bytes"
                )
            exporter = export(attached.mapping, offset, size)
        except BaseException:
            if not inherits:
                locks.release(creator.fd, start, length)
            raise
        watch = _Watch(exporter, self._on_death)
        watch.attached = attached
        watch.offset = offset
        watch.size = size
        watch.serial = location.serial
        watch.start, watch.length = start, length
        if not inherits:
            creator.viewed += 1
        if self._idle.pop(attached.name, None) is not None:
            self._idle_bytes -= attached.mapping.length
        attached.live[offset] = watch
        return exporter

    def _where_it_is(
        self, attached: _Attached | None, lock_fd: int, name: str, number: int
    ) -> _Attached:
        if attached is not None:
            if attached.spilled == is_spilled(lock_fd, number):
                return attached
            trash: list[Mapping] = []
            self._detach(attached, trash)
        return self._attach(name, lock_fd)

    def _let_go(self, watch: _Watch, trash: list[Mapping]) -> None:
        attached = watch.attached
        if attached.live.get(watch.offset) is not watch:
            return
        del attached.live[watch.offset]
        creator = self._creators[attached.creator]
        locks.release(creator.fd, watch.start, watch.length)
        creator.viewed -= 1
        if not attached.live:
            self._rest(attached, trash)
        if not creator.viewed and (self._closed or len(self._creators) > _IDLE_CREATORS):
            # In this order: a thread may fork in between, and the child closes what it finds here.
            del self._creators[attached.creator]
            os.close(creator.fd)

    def _rest(self, attached: _Attached, trash: list[Mapping]) -> None:
        """Keep the mapping for later, if there may be a later."""
        self._idle[attached.name] = attached
        self._idle_bytes += attached.mapping.length
        # A large segment may have been removed because of this view, and then only we hold its memory. What is on disk is not kept: a
        # mapping would hold its room there after the object is dead, and nobody could take it away.
        gone = attached.spilled or (not attached.slab and not self._exists(attached))
        if self._closed or gone:
            self._detach(attached, trash)
        while len(self._idle) > self._max_idle or self._idle_bytes > self._max_idle_bytes:
            self._detach(next(iter(self._idle.values())), trash)

    def _detach(self, attached: _Attached, trash: list[Mapping]) -> None:
        del self._idle[attached.name]
        del self._attached[attached.name]
        self._idle_bytes -= attached.mapping.length
        # Unmapping takes milliseconds for large ones: whoever holds the list does it when the lock is free.
        trash.append(attached.mapping)

    def _attach(self, name: str, lock_fd: int) -> _Attached:
        if self._closed:
            raise InternalError("the reader is closed")
        parts = parse_segment(name)
        if parts is None:
            raise ProtocolError(f"{name!r} is not the name of a segment")
        trash: list[Mapping] = []
        for attached in list(self._idle.values())[:_CHECKED_PER_ATTACH]:
            if not self._exists(attached):
                self._detach(attached, trash)
        try:
            fd, spilled = open_block(
                self._directory, self._spill_directory, lock_fd, name, parts[1]
            )
        except NotOnDiskError:
            raise
        except FileNotFoundError:
            raise self._gone(name) from None
        try:
            mapping = Mapping(fd, os.fstat(fd).st_size, writable=False)
        finally:
            os.close(fd)
        attached = self._attached[name] = self._idle[name] = _Attached(
            name, *parts, mapping, spilled
        )
        self._idle_bytes += mapping.length
        return attached

    def _open_creator(self, name: str, segment: str) -> _Creator:
        if len(self._creators) >= _IDLE_CREATORS:
            for idle in [key for key, creator in self._creators.items() if not creator.viewed]:
                os.close(self._creators.pop(idle).fd)
        try:
            fd = locks.open_lock_file(f"{self._directory}/{lock_file(name)}", create=False)
        except FileNotFoundError:
            raise self._gone(segment) from None
        creator = self._creators[name] = _Creator(fd)
        return creator

    def _gone(self, name: str) -> ObjectFreedError:
        return ObjectFreedError(
            f"{name} is no longer in {self._directory}: the object was freed, or the process that made it ended and its "
            "memory was cleaned up"
        )

    def _exists(self, attached: _Attached) -> bool:
        folder = self._spill_directory if attached.spilled else self._directory
        return os.access(f"{folder}/{attached.name}", os.F_OK)

    # --- without it -------------------------------------------------------------------------------------------

    def _on_death(self, watch: _Watch) -> None:
        self._dead.append(watch)
        self._drain()

    def _drain(self) -> None:
        """Let go of what died, unless some thread (this one, too) holds the lock: it comes here when it has let go."""
        if self._lock._is_owned():
            return
        trash: list[Mapping] = []
        while self._dead and self._lock.acquire(blocking=False):
            try:
                while self._dead:
                    self._let_go(self._dead.popleft(), trash)
                if self._closed and not self._attached:
                    _lingering.discard(self)
            finally:
                self._lock.release()

    def _drop_idle(self, unwanted: Callable[[_Attached], bool]) -> None:
        trash: list[Mapping] = []
        with self._lock:
            for attached in [attached for attached in self._idle.values() if unwanted(attached)]:
                self._detach(attached, trash)
            for name in [name for name, creator in self._creators.items() if not creator.viewed]:
                os.close(self._creators.pop(name).fd)
        self._drain()
