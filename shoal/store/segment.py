"""One file of shared memory, as its creator sees it, and the blocks in it."""

from __future__ import annotations

import errno
import os
from enum import Enum
from pathlib import Path
from typing import Any, Final
from weakref import ReferenceType

from shoal.errors import ObjectStoreFullError
from shoal.store.layout import SEGMENT_SHIFT, segment_name
from shoal.store.mapping import Mapping

FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM})


class Record:
    """A block that holds an object, from `create` until it can be used again.

    `exporter` tells whether this process itself still has views of it.
    """

    __slots__ = ("exporter", "length", "offset", "segment", "serial", "size")

    def __init__(self, segment: Segment, offset: int, length: int, size: int, serial: int) -> None:
        self.segment = segment
        self.offset = offset
        self.length = length
        self.size = size
        self.serial = serial
        self.exporter: ReferenceType[Any] | None = None

    @property
    def is_viewed(self) -> bool:
        """Whether this process has views of the block."""
        return self.exporter is not None and self.exporter() is not None


class State(Enum):
    """Of a segment.

    ::

        ACTIVE ◄──► LEAVING ──► SPILLED
    """

    ACTIVE = "in use"
    LEAVING = "being written to disk: no block begins in it"
    SPILLED = "on disk"


class Segment:
    """A file, its mapping, and what the arena knows of it.

    Attributes:
        blocks: The live objects in it, by offset.
        busy: Live and quarantined blocks, and changes under way: it may be removed when this is 0.
        state: Whether it is in use, and where it is.
        mapped: Of one that is spilled: the mapping of the file on disk, if any view of it lives.
        free, hollow: Of a slab that is LEAVING: ranges in it with pages and no block, and those without pages.
        backed_bytes: Bytes of it that have pages. All of a large segment's, those that were needed of a slab's.
        freed_at: Number of the event that made it idle; smaller is longer ago.
    """

    __slots__ = (
        "backed_bytes",
        "base",
        "blocks",
        "busy",
        "free",
        "freed_at",
        "hollow",
        "length",
        "mapped",
        "mapping",
        "name",
        "number",
        "path",
        "slab",
        "state",
    )

    def __init__(
        self,
        directory: Path,
        creator: str,
        number: int,
        length: int,
        *,
        slab: bool,
        on_disk: bool = False,
    ) -> None:
        """Make the file: a slab without any pages, a large segment with all of them. `on_disk`: `directory` is the spill folder.

        Raises:
            ObjectStoreFullError: the file system has no room.
            OSError: the disk has none.
        """
        self.name = segment_name(creator, number, slab=slab)
        self.number = number
        self.path = directory / self.name
        self.length = length
        self.slab = slab
        self.base = number << SEGMENT_SHIFT
        self.blocks: dict[int, Record] = {}
        self.busy = 0
        self.freed_at = 0
        self.mapped: ReferenceType[Mapping] | None = None
        self.free: list[tuple[int, int]] = []
        self.hollow: list[tuple[int, int]] = []
        self.state = State.SPILLED if on_disk else State.ACTIVE
        fd = os.open(
            self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
        try:
            if slab:
                os.ftruncate(fd, length)
                self.backed_bytes = 0
            elif on_disk:
                os.posix_fallocate(fd, 0, length)
                self.backed_bytes = 0
            else:
                _allocate(fd, 0, length, self.path)
                self.backed_bytes = length
            self.mapping: Mapping | None = Mapping(fd, length, writable=True)
        except BaseException:
            self.path.unlink()
            raise
        finally:
            os.close(fd)

    def back(self, offset: int, length: int) -> None:
        """Reserve pages for a range of a slab.

        A slab keeps no descriptor: it grows a few times in its life, and opening the file again is cheap.

        Raises:
            ObjectStoreFullError: the file system has no room.
        """
        fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            _allocate(fd, offset, length, self.path)
        finally:
            os.close(fd)

    def destroy(self, *, discard: bool) -> bool:
        """Remove the file; whether it was there. Views that live stay valid.

        Args:
            discard: Nobody has views: take the pages away even from processes that keep the file mapped for later.
        """
        if discard:
            # Where the file system cannot, the pages go when the last of those processes lets go.
            self.discard(0, self.length)
        try:
            self.path.unlink()
        except FileNotFoundError:
            return False
        return True

    def discard(self, offset: int, length: int) -> bool:
        """As of a `Mapping`. A segment on disk has no pages."""
        return self.mapping is None or self.mapping.discard(offset, length)


def _allocate(fd: int, offset: int, length: int, path: Path) -> None:
    # Reserved pages are what makes a write safe: a file in memory that cannot grow kills its writer with SIGBUS.
    try:
        os.posix_fallocate(fd, offset, length)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise ObjectStoreFullError(
            f"no room for {length:,} more bytes of shared memory in {path.parent}: {error.strerror}. Drop objects "
            "that are no longer needed, give the object store less memory than the file system has, or make "
            "the file system larger (in a container: --shm-size)."
        ) from error
