"""A pure allocator: which ranges of an address space are free.

It knows integers only. Ranges are kept in bins by size, eight to a doubling, so that taking and giving back cost the same
however many there are; neighbours are joined when they are given back (TLSF's scheme, with dicts for its linked lists).

Guarantees: a range taken is disjoint from all that are free or taken; what is given back in any order is joined to the
largest possible ranges. Leaves to its user: alignment (give and take multiples of it) and telling who holds what.
"""

from __future__ import annotations

from itertools import islice
from typing import Final

_PROBES: Final = 32


def _bin_of(size: int) -> int:
    shift = size.bit_length() - 4
    return (shift << 3) + (size >> shift) if shift > 0 else size


class Extents:
    """Free ranges, joined with their neighbours."""

    __slots__ = ("_bins", "_nonempty", "_size_at", "_start_of_end", "free_bytes")

    def __init__(self) -> None:
        self._size_at: dict[int, int] = {}
        self._start_of_end: dict[int, int] = {}
        # Each bin is a dict used as a stack from which any element can be removed: the latest range given back is
        # the one whose memory is most likely in the cache.
        self._bins: dict[int, dict[int, None]] = {}
        self._nonempty = 0
        self.free_bytes = 0

    def __len__(self) -> int:
        return len(self._size_at)

    def ranges(self) -> list[tuple[int, int]]:
        """Every free range as (start, size), by address."""
        return sorted(self._size_at.items())

    def give(self, start: int, size: int) -> tuple[int, int]:
        """Add a range; the free range that it is now part of."""
        self.free_bytes += size
        size_at = self._size_at
        before = self._start_of_end.get(start)
        if before is not None:
            joined = size_at[before]
            self._drop(before, joined)
            start, size = before, size + joined
        after = size_at.get(start + size)
        if after is not None:
            self._drop(start + size, after)
            size += after
        self._add(start, size)
        return start, size

    def take(self, size: int) -> int | None:
        """The start of a range of `size`, no longer free.

        None if there is none, or if the only ones long enough are old, and less than an eighth longer than asked.
        """
        index = _bin_of(size)
        bin_ = self._bins.get(index)
        start = -1
        if bin_:
            # Its ranges may be shorter than `size`. The newest one usually is what an object of the same size left.
            newest = next(reversed(bin_))
            if self._size_at[newest] >= size:
                start = newest
        if start < 0:
            larger = self._nonempty >> (index + 1)
            if larger:
                index += (larger & -larger).bit_length()
                start = next(reversed(self._bins[index]))
            else:
                # Nothing is surely long enough; one of the first bin may be. Its latest few are looked at.
                few = islice(reversed(bin_ or {}), _PROBES)
                start = next((s for s in few if self._size_at[s] >= size), -1)
                if start < 0:
                    return None
        found = self._size_at[start]
        self._drop(start, found)
        if found > size:
            self._add(start + size, found - size)
        self.free_bytes -= size
        return start

    def size_at(self, start: int) -> int:
        """Size of the free range that begins at `start`; 0 if none does."""
        return self._size_at.get(start, 0)

    def missing(self, start: int, size: int) -> list[tuple[int, int]]:
        """The parts of a range that are not free, as (start, size), by address. It looks at every free range."""
        end = start + size
        found: list[tuple[int, int]] = []
        for free, length in self.ranges():
            if free >= end:
                break
            if free > start:
                found.append((start, free - start))
            start = max(start, free + length)
        if start < end:
            found.append((start, end - start))
        return found

    def remove(self, whole: int, start: int, size: int) -> None:
        """Take this very range out of the free range that begins at `whole`."""
        length = self._size_at[whole]
        if not whole <= start <= start + size <= whole + length:
            raise ValueError(f"[{start}, {start + size}) is not inside [{whole}, {whole + length})")
        self._drop(whole, length)
        if start > whole:
            self._add(whole, start - whole)
        if whole + length > start + size:
            self._add(start + size, whole + length - start - size)
        self.free_bytes -= size

    def check(self) -> None:
        """Assert the invariants."""
        end = -1
        for start, size in self.ranges():
            assert size > 0
            assert start > end, "ranges overlap, or neighbours were not joined"
            end = start + size
            assert self._start_of_end[end] == start
            assert start in self._bins[_bin_of(size)]
        assert len(self._start_of_end) == len(self._size_at)
        assert sum(map(len, self._bins.values())) == len(self._size_at)
        assert self.free_bytes == sum(self._size_at.values())
        assert self._nonempty == sum(1 << i for i, bin_ in self._bins.items() if bin_)

    def _add(self, start: int, size: int) -> None:
        self._size_at[start] = size
        self._start_of_end[start + size] = start
        index = _bin_of(size)
        bin_ = self._bins.get(index)
        if bin_ is None:
            bin_ = self._bins[index] = {}
        bin_[start] = None
        self._nonempty |= 1 << index

    def _drop(self, start: int, size: int) -> None:
        del self._size_at[start]
        del self._start_of_end[start + size]
        index = _bin_of(size)
        bin_ = self._bins[index]
        del bin_[start]
        if not bin_:
            self._nonempty ^= 1 << index
