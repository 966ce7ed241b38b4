"""Who is looking at what: byte-range locks on a creator's lock file, which the kernel drops when a process dies.

A reader holds a shared lock on the range of every block that it has views of; the creator asks, before it uses a block
again, whether anybody does. Rules:

1. These are *open file description* locks (Linux 3.15): they belong to the descriptor's description, not to the process,
   so that a reader and a creator in one process see each other, and closing some other descriptor of the file drops
   nothing. A process that forks shares its descriptions with the child: the child must close them (see
   `shoal.store.forking`), and while it lives they outlive the parent.
2. One lock file for each creator, instead of locks on the segments themselves, so that a reader needs one descriptor for
   each creator that it holds objects of, not one for each object.
3. Who moves a segment *seizes* it first: locks all of it, alone. That fails if anybody looks at any of it, and takes microseconds, for
   which readers wait. If it takes long, whoever has seized it was stopped just then, and readers are told so.
4. The kernel keeps the locks of a file in a list. Neighbours of the same holder are joined, so it stays short as long as
   objects are held and dropped in about the order in which they were made.

Where there are no such locks (`SUPPORTED` is false), every block counts as held for ever: memory is never used again
under a reader's eyes, but freed segments can only be unlinked, not kept warm.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from pathlib import Path
from time import monotonic, sleep
from typing import Final

from shoal.errors import GetTimeoutError

# struct flock: type, whence, start, length, pid. The pid must be 0.
_FLOCK: Final = struct.Struct("hhqqi4x")
_pack: Final = _FLOCK.pack
_control: Final = fcntl.fcntl

_SET: Final = getattr(fcntl, "F_OFD_SETLK", 0)
_GET: Final = getattr(fcntl, "F_OFD_GETLK", 0)
_READ: Final = fcntl.F_RDLCK
_WRITE: Final = fcntl.F_WRLCK
_NONE: Final = fcntl.F_UNLCK
_NONE_BYTES: Final = struct.pack("h", _NONE)

SUPPORTED: Final = bool(_SET)

_PATIENCE_S: Final = 10.0
_FIRST_PAUSE_S: Final = 0.000_05
_LONGEST_PAUSE_S: Final = 0.05


def open_lock_file(path: Path | str, *, create: bool) -> int:
    """A descriptor of a lock file; the caller closes it."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL if create else os.O_RDONLY
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def hold(fd: int, start: int, length: int) -> None:
    """Hold a range as a reader. Waits while somebody has seized it, which takes microseconds.

    Raises:
        GetTimeoutError: it takes seconds.
    """
    if not SUPPORTED or _may_have(fd, _READ, start, length):
        return
    # Not by the kernel's own waiting, which nothing would end if whoever has seized it is stopped.
    deadline = monotonic() + _PATIENCE_S
    pause_s = _FIRST_PAUSE_S
    while not _may_have(fd, _READ, start, length):
        if monotonic() > deadline:
            raise GetTimeoutError(
                f"the object is just being moved to disk, by a process that has not gone on for {_PATIENCE_S:g} s: it was stopped, or its "
                "machine is overloaded. Let it go on (kill -CONT), or end it, and try again"
            )
        sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def release(fd: int, start: int, length: int) -> None:
    """Stop holding a range; also one that was seized."""
    if SUPPORTED:
        _control(fd, _SET, _pack(_NONE, os.SEEK_SET, start, length, 0))


def seize(fd: int, start: int, length: int) -> bool:
    """Have a range alone, unless anybody holds any byte of it; whether it is so. To be released at once: readers wait meanwhile."""
    return SUPPORTED and _may_have(fd, _WRITE, start, length)


def _may_have(fd: int, kind: int, start: int, length: int) -> bool:
    """Lock a range, unless a lock of somebody else is in the way; whether it is so."""
    try:
        _control(fd, _SET, _pack(kind, os.SEEK_SET, start, length, 0))
    except BlockingIOError:
        return False
    except OSError as error:
        # The other answer that POSIX allows.
        if error.errno != errno.EACCES:
            raise
        return False
    return True


def is_held(fd: int, start: int, length: int) -> bool:
    """Whether anybody else holds any byte of a range."""
    if not SUPPORTED:
        return True
    # The kernel answers with the first lock that would stand in the way, or with F_UNLCK.
    answer: bytes = _control(fd, _GET, _pack(_WRITE, os.SEEK_SET, start, length, 0))
    return answer[:2] != _NONE_BYTES


def unheld(fd: int, ranges: Sequence[tuple[int, int]]) -> list[int]:
    """Which of many ranges nobody else holds any byte of: their numbers.

    Args:
        fd: Of the lock file.
        ranges: Start and length of each. They do not overlap, and are in order.

    One question for each lock that stands in the way of any of them, and each is answered for many: those that are held, for what was
    made in a row is, are joined; so are all between two locks. To ask for each by itself, when thousands are held, costs the square.
    """
    if not SUPPORTED:
        return []
    starts = [start for start, _ in ranges]
    ends = [start + length for start, length in ranges]
    found: list[int] = []
    todo = [(0, len(ranges))] if ranges else []
    while todo:
        first, beyond = todo.pop()
        if first >= beyond:
            continue
        span = starts[first], ends[beyond - 1] - starts[first]
        answer: bytes = _control(fd, _GET, _pack(_WRITE, os.SEEK_SET, *span, 0))
        kind, _, start, length, _ = _FLOCK.unpack(answer)
        if kind == _NONE:
            found += range(first, beyond)
            continue
        # Of one holder; what is on either side of it others may hold.
        end = start + length if length else ends[-1]
        todo += [
            (first, max(first, bisect_right(ends, start, first, beyond))),
            (min(beyond, bisect_left(starts, end, first, beyond)), beyond),
        ]
    return found
