"""Memory that an arena has and no object uses: warm segments for large objects, free space in slabs for the others.

Both classes are books without locks or system calls; the arena guards them with its lock, and does what they decide.
"""

from __future__ import annotations

from typing import Final

from shoal.store.extents import Extents
from shoal.store.layout import PAGE, SEGMENT_SHIFT, round_up, segment_capacity
from shoal.store.segment import Segment

_OFFSET_MASK: Final = (1 << SEGMENT_SHIFT) - 1
_MIN_GROWTH: Final = 256 << 10
_MAX_GROWTH: Final = 4 << 20
_MIN_HOLE: Final = 64 << 10
"""Free ranges shorter than this are not worth a system call to give their pages back."""

_CLASSES: Final = 5
"""How many sizes of warm segments may serve a request: the fifth is about a quarter larger than asked."""

Range = tuple[Segment, int, int]
"""A slab, an offset in it, and a length."""


class WarmPool:
    """Idle large segments, by capacity."""

    def __init__(self) -> None:
        # The latest freed is at the end of its list, and is used first: it is most likely still in the cache, and in
        # the page tables of those who read it.
        self._by_capacity: dict[int, list[Segment]] = {}
        self.bytes = 0

    def push(self, segment: Segment) -> None:
        """A segment has become idle."""
        self._by_capacity.setdefault(segment.length, []).append(segment)
        self.bytes += segment.length

    def take(self, capacity: int) -> Segment | None:
        """A segment of `capacity` (as `segment_capacity` gives it) or somewhat more."""
        for _ in range(_CLASSES):
            stack = self._by_capacity.get(capacity)
            if stack:
                self.bytes -= capacity
                return stack.pop()
            capacity = segment_capacity(capacity + 1)
        return None

    def remove(self, segment: Segment) -> None:
        """This very segment is going."""
        stack = self._by_capacity[segment.length]
        stack.remove(segment)
        if not stack:
            del self._by_capacity[segment.length]
        self.bytes -= segment.length

    def segments(self) -> list[Segment]:
        """All of them."""
        return [segment for stack in self._by_capacity.values() for segment in stack]


class SlabSpace:
    """The slabs of an arena and the free space in them: with pages (`free`), and without (`hollow`).

    ::

        new slab ──► hollow ──take_hollow, filled──► free ──take──► blocks
                       ▲                              │ ▲             │
                       └───────holes, emptied─────────┘ └────give─────┘
    """

    def __init__(self) -> None:
        self._slabs: dict[int, Segment] = {}
        self._free = Extents()
        self._hollow = Extents()
        self.backed_bytes = 0

    @property
    def free_bytes(self) -> int:
        """Bytes with pages and without a block."""
        return self._free.free_bytes

    def take(self, length: int) -> tuple[Segment, int] | None:
        """A slab and an offset in it for a block."""
        address = self._free.take(length)
        if address is None:
            return None
        slab = self._slabs[address >> SEGMENT_SHIFT]
        slab.busy += 1
        return slab, address & _OFFSET_MASK

    def give(self, slab: Segment, offset: int, length: int) -> None:
        """The place of a block is free again."""
        slab.busy -= 1
        self._free.give(slab.base + offset, length)

    # --- growing: `take_hollow`, reserve pages, then `filled` or `give_hollow` -----------------------------------

    def growth(self, length: int, room: int) -> int:
        """How many bytes to add for a block of `length`, when the quota has `room`.

        A process with one middle-sized object must not hold megabytes; one with many must not ask for each.
        """
        chunk = min(max(self.backed_bytes, _MIN_GROWTH), _MAX_GROWTH)
        needed = round_up(length, PAGE)
        return chunk if needed < chunk <= room else needed

    def add(self, slab: Segment) -> None:
        """A new slab, without pages."""
        self._slabs[slab.number] = slab
        self._hollow.give(slab.base, slab.length)

    def take_hollow(self, length: int) -> tuple[Segment, int] | None:
        """Whole pages to be reserved. Their slab stays until the caller says how it went."""
        address = self._hollow.take(length)
        if address is None:
            return None
        slab = self._slabs[address >> SEGMENT_SHIFT]
        slab.busy += 1
        return slab, address & _OFFSET_MASK

    def give_hollow(self, slab: Segment, offset: int, length: int) -> None:
        """They have no pages after all."""
        slab.busy -= 1
        self._hollow.give(slab.base + offset, length)

    def filled(self, slab: Segment, offset: int, length: int) -> None:
        """They have pages now."""
        slab.backed_bytes += length
        self.backed_bytes += length
        self.give(slab, offset, length)

    # --- shrinking: `take_holes`, give pages back, then `emptied` or `give` --------------------------------------

    def take_holes(self, wanted: int) -> list[Range]:
        """Free ranges of whole pages, about `wanted` bytes in all if there are as many."""
        holes: list[Range] = []
        for whole, size in self._free.ranges():
            if wanted <= 0:
                break
            start = round_up(whole, PAGE)
            length = (whole + size) // PAGE * PAGE - start
            if length >= _MIN_HOLE:
                self._free.remove(whole, start, length)
                slab = self._slabs[whole >> SEGMENT_SHIFT]
                slab.busy += 1
                holes.append((slab, start & _OFFSET_MASK, length))
                wanted -= length
        return holes

    def emptied(self, slab: Segment, offset: int, length: int) -> None:
        """Their pages are gone."""
        slab.backed_bytes -= length
        self.backed_bytes -= length
        self.give_hollow(slab, offset, length)

    # --- whole slabs -------------------------------------------------------------------------------------------

    def idle(self) -> list[Segment]:
        """Slabs without blocks."""
        return [slab for slab in self._slabs.values() if not slab.busy]

    def remove(self, slab: Segment) -> None:
        """The slab is going, with whatever is in it."""
        # Its free ranges lie between its blocks, if any, and a range is found by its start.
        address, end = slab.base, slab.base + slab.length
        if slab.busy:
            for extents in (self._free, self._hollow):
                for start, size in extents.ranges():
                    if address <= start < end:
                        extents.remove(start, start, size)
        else:
            while address < end:
                extents = self._free if self._free.size_at(address) else self._hollow
                size = extents.size_at(address)
                extents.remove(address, address, size)
                address += size
        del self._slabs[slab.number]
        self.backed_bytes -= slab.backed_bytes

    def put_aside(self, slab: Segment) -> None:
        """No block is to begin in the slab for now; it remembers itself what is free in it."""
        for extents, aside in ((self._free, slab.free), (self._hollow, slab.hollow)):
            for start, size in extents.ranges():
                if start >> SEGMENT_SHIFT == slab.number:
                    extents.remove(start, start, size)
                    aside.append((start & _OFFSET_MASK, size))
        del self._slabs[slab.number]
        self.backed_bytes -= slab.backed_bytes

    def bring_back(self, slab: Segment) -> None:
        """It is in use as before."""
        for extents, aside in ((self._free, slab.free), (self._hollow, slab.hollow)):
            for offset, size in aside:
                extents.give(slab.base + offset, size)
            aside.clear()
        self._slabs[slab.number] = slab
        self.backed_bytes += slab.backed_bytes

    def check(self) -> None:
        """Assert the invariants, when nothing is under way."""
        self._free.check()
        self._hollow.check()
        with_pages: dict[int, int] = {}
        blocks = {
            number: sum(record.length for record in slab.blocks.values())
            for number, slab in self._slabs.items()
        }
        for start, size in self._free.ranges():
            number = start >> SEGMENT_SHIFT
            with_pages[number] = with_pages.get(number, 0) + size
        for number, slab in self._slabs.items():
            assert with_pages.get(number, 0) + blocks[number] <= slab.backed_bytes <= slab.length
        assert self.backed_bytes == sum(slab.backed_bytes for slab in self._slabs.values())
