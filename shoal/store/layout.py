"""How a session's shared-memory directory is laid out: names of files, numbers of bytes, places of locks.

::

    <directory>/                    0700, one per session and node
      <creator>-<n>                 segment that one large object has for itself         0600
      <creator>-<n>s                slab: segment that many smaller objects share        0600
      <creator>.locks               byte ranges of it stand for blocks; byte n is 1 if   0600
                                    segment n is spilled (see `shoal.store.spilling`)
    <spill folder>/                 0700
      <creator>-<n>, <creator>-<n>s  spilled segments                                    0600

A *creator* is a process, named by a short string of letters and digits. It numbers its segments 0, 1, 2 … and never
uses a number twice. Segment `n` owns the addresses from `n << 26` on: the allocator keeps the free space of all slabs
in this one space, and the lock file has one byte for every 64 of it. A slab is smaller than its range, so two slabs
never touch; a large segment may be longer than its range, but then only its first byte is ever locked or looked up.
"""

from __future__ import annotations

import mmap
import re
from typing import Final

ALIGNMENT: Final = 64
"""Blocks begin at, and are sized in, multiples of this: a cache line, and what numpy and Arrow want."""

PAGE: Final = mmap.PAGESIZE

SEGMENT_SHIFT: Final = 26
MAX_SLAB_BYTES: Final = (1 << SEGMENT_SHIFT) - PAGE
"""Slabs end a page before their range does, so that neighbours are not merged by mistake."""

_LOCK_SHIFT: Final = ALIGNMENT.bit_length() - 1
_LOCKS_PER_SEGMENT: Final = 1 << (SEGMENT_SHIFT - _LOCK_SHIFT)
_MAX_NUMBER: Final = 1 << 40

_CREATOR: Final = re.compile(r"[0-9A-Za-z]{1,64}")
_SEGMENT: Final = re.compile(r"([0-9A-Za-z]{1,64})-([0-9]{1,13})(s?)")


def round_up(size: int, step: int) -> int:
    """`size` raised to a multiple of `step`."""
    return -(-size // step) * step


def check_creator(creator: str) -> str:
    """The name itself.

    Raises:
        ValueError: it cannot be part of a segment's name.
    """
    if not _CREATOR.fullmatch(creator):
        raise ValueError(f"a creator is named by 1 to 64 letters and digits, not {creator!r}")
    return creator


def segment_name(creator: str, number: int, *, slab: bool) -> str:
    """The file name of a segment."""
    return f"{creator}-{number}s" if slab else f"{creator}-{number}"


def parse_segment(name: str) -> tuple[str, int, bool] | None:
    """Creator, number, and whether it is a slab; None if `name` is no segment's.

    Names come from other processes in messages, and become paths: nothing else may pass.
    """
    match = _SEGMENT.fullmatch(name)
    if match is None:
        return None
    number = int(match[2])
    return (match[1], number, bool(match[3])) if number < _MAX_NUMBER else None


def lock_file(creator: str) -> str:
    """The file name of a creator's locks."""
    return f"{creator}.locks"


def lock_range(number: int, offset: int, size: int, *, slab: bool) -> tuple[int, int]:
    """Start and length of the bytes that stand for a block in its creator's lock file.

    A large segment's are all of its range: the kernel joins locks that touch, so that a reader of a thousand objects
    made in a row holds few of them.
    """
    start = number * _LOCKS_PER_SEGMENT
    if not slab:
        return start, _LOCKS_PER_SEGMENT
    return start + (offset >> _LOCK_SHIFT), max(1, -(-size // ALIGNMENT))


def segment_range(number: int) -> tuple[int, int]:
    """The same for all blocks of a segment."""
    return number * _LOCKS_PER_SEGMENT, _LOCKS_PER_SEGMENT


def segment_capacity(size: int) -> int:
    """The file size for a large object: at most a sixteenth more than asked, so that few different sizes exist and a
    freed segment fits the next object of about the same size."""
    step = max(PAGE, 1 << max(0, (size - 1).bit_length() - 5))
    return round_up(max(size, 1), step)
