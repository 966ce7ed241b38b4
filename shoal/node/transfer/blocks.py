"""The memory at the two ends of a transfer: a block that is being filled, and a block that is being read.

Threads: an `Incoming` is filled by one thread at a time, while others wait for its bytes; a `Source` belongs to the thread that sends
from it. The loop makes, ends and drops them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from threading import Condition
from typing import TYPE_CHECKING, Protocol

from shoal.core.pull_records import Key
from shoal.errors import GetTimeoutError
from shoal.messages.values import Location
from shoal.node.transfer.links import LinkBrokenError
from shoal.store import Arena, Block, locks
from shoal.store.layout import lock_file, lock_range, parse_segment
from shoal.store.spilling import NotOnDiskError, open_block

if TYPE_CHECKING:
    from shoal.node.remote_spill import RemoteSpill


class SourceGoneError(Exception):
    """The object is not where it should be, or will not be whole."""


class SourceAwayError(Exception):
    """The object is at a remote target, and is not back yet."""


class Incoming:
    """A copy, from its first fetch until it is dropped. What has come stays good when a fetch breaks off.

    Attributes:
        received: So many bytes have come, from the beginning on.
    """

    def __init__(self, key: Key) -> None:
        self.key = key
        self.received = 0
        self.location: Location | None = None
        self._buffer: memoryview | None = None
        self._changed = Condition()
        self._ended = ""

    def place(self, block: Block) -> None:
        """There is memory for it."""
        self.location = block.location
        self._buffer = block.buffer

    @property
    def buffer(self) -> memoryview:
        """Where the bytes go. Whoever holds it keeps the memory from being used again."""
        assert self._buffer is not None
        return self._buffer

    def advance(self, count: int) -> None:
        """So many bytes more are there."""
        with self._changed:
            self.received += count
            self._changed.notify_all()

    def wait_beyond(self, position: int, timeout_s: float) -> int:
        """How many bytes there are, once these are more than `position`.

        Raises:
            SourceGoneError: none come.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.received > position or self._ended, timeout_s)
            if self.received > position:
                return self.received
            raise SourceGoneError(self._ended or f"got nothing itself for {timeout_s:g} s")

    def finish(self) -> None:
        """It is whole: nobody writes to it any more."""
        self._buffer = None

    def end(self, reason: str) -> None:
        """No more bytes will come: those who wait for them wait in vain."""
        with self._changed:
            self._ended = reason
            self._changed.notify_all()

    def drop(self, arena: Arena, reason: str, remove: Callable[[Callable[[], None]], None]) -> None:
        """Give the memory back; `remove` has a file on disk removed."""
        self.end(reason)
        self._buffer = None
        if self.location is not None:
            arena.free(self.location, remove)


class Source(Protocol):
    """Where an upload comes from: `fd` and `offset` of its first byte in that file."""

    fd: int
    offset: int

    def wait_beyond(self, position: int) -> int:
        """How many of its bytes there are, once these are more than `position`; raises `SourceGoneError`."""

    def close(self) -> None:
        """It is not read any more."""


def bring_soon(remote: RemoteSpill, patience_s: float, segment: str) -> bool:
    """Have a segment brought back from the remote target; False if it is nowhere.

    Raises:
        SourceAwayError: that takes longer, or cannot be done now.
    """
    error = remote.bring_within(segment, patience_s)
    if error is None or error.startswith(("SpillTargetError", "OutOfDiskError")):
        raise SourceAwayError
    return not error


class CopySource:
    """A copy of this daemon, whole or arriving. `view` keeps its memory; taken in the loop, where copies are dropped, too."""

    def __init__(self, path: Path, incoming: Incoming, view: memoryview, timeout_s: float) -> None:
        location = incoming.location
        assert location is not None
        self._view = view
        self._incoming = incoming
        self._timeout_s = timeout_s
        self.offset = location.offset
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise SourceGoneError("the object was freed") from None

    def wait_beyond(self, position: int) -> int:
        """As of `Source`."""
        return self._incoming.wait_beyond(position, self._timeout_s)

    def close(self) -> None:
        """As of `Source`."""
        os.close(self.fd)
        del self._view


class LockedSource:
    """A block that some process of this node has made, locked as any reader locks it. `bring` has a segment brought back that is not on the
    disk, if that can be: whether it is there now.

    Raises:
        SourceGoneError: it is not there any more.
        SourceAwayError: it takes long to get it.
        LinkBrokenError: it cannot be read now, and the peer may ask again.
    """

    def __init__(
        self,
        directory: Path,
        spill_directory: Path | None,
        location: Location,
        bring: Callable[[str], bool] | None = None,
    ) -> None:
        parts = parse_segment(location.segment)
        if parts is None:
            raise SourceGoneError(f"{location.segment!r} is not the name of a segment")
        creator, number, slab = parts
        self._size = location.size
        self.offset = location.offset
        try:
            self._lock_fd = locks.open_lock_file(directory / lock_file(creator), create=False)
        except FileNotFoundError:
            raise SourceGoneError(
                "the process that made it has ended, and its memory is freed"
            ) from None
        try:
            # Before the file is opened: who finds it now, and unlocked, may use the block again.
            locks.hold(
                self._lock_fd, *lock_range(number, location.offset, location.size, slab=slab)
            )
            self.fd = self._open(directory, spill_directory, location, number, bring)
        except GetTimeoutError as error:
            # It is there. Whoever asks may do so again.
            os.close(self._lock_fd)
            raise LinkBrokenError(str(error)) from None
        except BaseException:
            os.close(self._lock_fd)
            raise

    def _open(
        self,
        directory: Path,
        spill_directory: Path | None,
        location: Location,
        number: int,
        bring: Callable[[str], bool] | None,
    ) -> int:
        name = location.segment
        try:
            fd, _ = open_block(directory, spill_directory, self._lock_fd, name, number)
        except FileNotFoundError as error:
            if isinstance(error, NotOnDiskError) and bring is not None and bring(name):
                return self._open(directory, spill_directory, location, number, bring)
            raise SourceGoneError("the object was freed") from None
        if not 0 <= location.offset <= location.offset + location.size <= os.fstat(fd).st_size:
            os.close(fd)
            raise SourceGoneError(f"{location} is not inside its segment")
        return fd

    def wait_beyond(self, position: int) -> int:
        """As of `Source`."""
        return self._size

    def close(self) -> None:
        """As of `Source`."""
        os.close(self.fd)
        os.close(self._lock_fd)
