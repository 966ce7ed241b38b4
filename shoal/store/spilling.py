"""How segments go to disk, and how everybody finds them there.

A segment is *spilled* whole: its file is written to the spill folder under the same name with everything at the same place, and the
one in shared memory goes. So no location changes, nobody need be told, and nothing is ever brought back: readers map the file
on disk, which then is the page cache's business.

For each segment there is a flag in the lock file of its creator, which lives as long as the objects do, also when the creator does
not. Locks make it safe::

    who spills                                      who reads
    ──────────                                      ─────────
    1 write the file                                1 lock the block; wait if the segment is seized
    2 seize the segment: lock all of it, alone      2 look at the flag
      somebody holds a block: remove the new file   3 map the file that the flag speaks of
    3 set the flag, let go of the segment
    4 remove the old file, and its pages

So a flag that was set stays set, and what somebody has locked stays where it is.

A node may have spilled segments go on from the spill folder, to a remote target (`node.remote_spill`). Whoever does not find one there
has it brought back (`Remote`).
"""

from __future__ import annotations

import errno
import math
import mmap
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Protocol

import msgspec

from shoal.store import forking, locks
from shoal.store.layout import PAGE, lock_file, parse_segment, round_up, segment_range

DISK_FRACTION: Final = 0.95
"""How full a file system may become by spilling: others live on it, too."""

_WRITE_BYTES: Final = 16 << 20
_DIRECT: Final = getattr(os, "O_DIRECT", 0)
"""From the pages of the store to the disk, past the page cache: that would first have to find as many pages, when memory is short, and
copying into fresh pages takes longer than the disk does (on a virtual machine, 2 s of a processor for each GB)."""

_BLOCK: Final = 512
_SPILLED: Final = b"\1"


class NotOnDiskError(FileNotFoundError):
    """A segment that was spilled is not in the spill folder: it was freed, or has gone on to a remote target."""


class Remote(Protocol):
    """The remote target, for a process that reads and frees segments."""

    def bring(self, segment: str) -> None:
        """Have a segment brought back to the spill folder, and wait for it.

        Raises:
            ObjectFreedError: it is nowhere.
            SpillTargetError: the target cannot be reached.
            OutOfDiskError: the disk here has no room for it.
        """

    def forget(self, segment: str) -> None:
        """A segment of this process, which was not in the spill folder, is dead. Any thread, in the middle of anything."""


class SpillResult(msgspec.Struct, frozen=True):
    """What came of spilling."""

    freed: int
    """Bytes of shared memory that came free."""
    written: int
    """Bytes that went to disk, and stayed there."""
    error: str = ""
    """Why it ended early, if the disk was the reason."""


def reserve_flag(lock_fd: int, number: int) -> None:
    """Have room for the flag of a segment, which is not set. When it is to be set, shared memory may be full.

    Raises:
        OSError: it is full already.
    """
    os.pwrite(lock_fd, b"\0", number)


def set_spilled(lock_fd: int, number: int) -> None:
    """Say that a segment is to be looked for on disk. Who does has seized it, unless nobody can know of it yet."""
    os.pwrite(lock_fd, _SPILLED, number)


def is_spilled(lock_fd: int, number: int) -> bool:
    """Where a segment is to be looked for. A reader asks after it has locked a block of it."""
    return os.pread(lock_fd, 1, number) == _SPILLED


def open_block(
    directory: Path | str, spill_directory: Path | str | None, lock_fd: int, name: str, number: int
) -> tuple[int, bool]:
    """A descriptor of the file of a segment of which the caller has locked a block, and whether that is on disk.

    Raises:
        FileNotFoundError: it is not there; `NotOnDiskError`, if it was spilled.
    """
    spilled = is_spilled(lock_fd, number)
    folder = spill_directory if spilled else directory
    if folder is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    try:
        return os.open(f"{folder}/{name}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), spilled
    except FileNotFoundError as error:
        if spilled:
            raise NotOnDiskError(*error.args, error.filename) from None
        raise


def check_disk(folder: Path, wanted: int, disk_fraction: float) -> None:
    """Raise `OSError` (ENOSPC) if `wanted` bytes more would fill the file system of the spill folder too far."""
    used, most = _disk(folder)
    if used + wanted > disk_fraction * most:
        raise OSError(
            errno.ENOSPC,
            f"its disk would be more than {disk_fraction:.0%} full ({used:,} of {most:,} bytes are taken)",
        )


def disk_shortage(folder: Path, wanted: int, disk_fraction: float) -> int:
    """How many bytes must leave the file system of the spill folder before `wanted` more can come."""
    used, most = _disk(folder)
    return max(0, math.ceil(used + wanted - disk_fraction * most))


def _disk(folder: Path) -> tuple[int, int]:
    """How much of the file system is used, and how much there is."""
    found = os.statvfs(folder)
    unit = found.f_frsize
    used = (found.f_blocks - found.f_bfree) * unit
    return used, used + found.f_bavail * unit


def write_out(
    source: memoryview,
    folder: Path,
    name: str,
    ranges: Iterable[tuple[int, int]],
    disk_fraction: float,
) -> int:
    """Write ranges (offset, length) of a segment into a file of the spill folder, each at its place; how many bytes.

    Raises:
        OSError: the disk is full, or fails. Nothing is left then.
    """
    pages = _whole_pages(ranges)
    total = sum(length for _, length in pages)
    check_disk(folder, total, disk_fraction)
    path = folder / name
    # There may be one that a process left which ended in the middle of this.
    path.unlink(missing_ok=True)
    try:
        try:
            _write(source, path, pages, _DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL or not _DIRECT:
                raise
            # The file system does not do that.
            path.unlink(missing_ok=True)
            _write(source, path, pages, 0)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return total


def _whole_pages(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The pages that ranges touch, joined where they meet: what can be written directly."""
    found: list[tuple[int, int]] = []
    for offset, length in sorted(ranges):
        start, end = offset // PAGE * PAGE, round_up(offset + length, PAGE)
        if found and start <= sum(found[-1]):
            start = found.pop()[0]
        found.append((start, end - start))
    return found


def _write(source: memoryview, path: Path, ranges: list[tuple[int, int]], flags: int) -> None:
    output = _Output(path, flags)
    try:
        # All of it can be mapped, as of the other file.
        os.ftruncate(output.fd, len(source))
        for offset, length in ranges:
            end = offset + length
            while offset < end:
                with source[offset : min(end, offset + _WRITE_BYTES)] as piece:
                    offset += os.pwrite(output.fd, piece, offset)
    finally:
        os.close(output.fd)


class _Output:
    """A file that is being written. A child that is forked meanwhile lets go of it: it would keep the disk's room for as long as it
    lives."""

    def __init__(self, path: Path, flags: int) -> None:
        flags |= os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        self.fd = os.open(path, flags, 0o600)
        forking.watch(self)

    def after_fork_in_child(self) -> None:
        """As of an `Arena`."""
        os.close(self.fd)


def spill_segment(
    directory: Path, spill_directory: Path, name: str, disk_fraction: float = DISK_FRACTION
) -> int | None:
    """Spill a segment of a process that has ended; the bytes of memory that came free, or None if somebody looks at it.

    Raises:
        OSError: the disk is full, or fails; nothing has changed.
        FileNotFoundError: it is not there any more.
    """
    parts = parse_segment(name)
    if parts is None:
        raise ValueError(f"{name!r} is not the name of a segment")
    creator, number, _ = parts
    everything = segment_range(number)
    path = directory / name
    lock_fd = os.open(directory / lock_file(creator), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        if locks.is_held(lock_fd, *everything):
            return None
        with open(path, "r+b") as file:
            found = os.fstat(file.fileno())
            if not found.st_size:
                # Its creator was ended in the middle of making it.
                return None
            freed = found.st_blocks * _BLOCK
            with mmap.mmap(file.fileno(), 0) as memory:
                with memoryview(memory) as source:
                    ranges = _data(file.fileno())
                    write_out(source, spill_directory, name, ranges, disk_fraction)
                if not locks.seize(lock_fd, *everything):
                    (spill_directory / name).unlink(missing_ok=True)
                    return None
                set_spilled(lock_fd, number)
                locks.release(lock_fd, *everything)
                memory.madvise(mmap.MADV_REMOVE)
        path.unlink(missing_ok=True)
        return freed
    finally:
        os.close(lock_fd)


def _data(fd: int) -> list[tuple[int, int]]:
    """The ranges of a file that have pages."""
    ranges = []
    end = os.fstat(fd).st_size
    offset = 0
    while offset < end:
        try:
            start = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break
        offset = os.lseek(fd, start, os.SEEK_HOLE)
        ranges.append((start, offset - start))
    return ranges
