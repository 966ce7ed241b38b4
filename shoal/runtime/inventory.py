"""The objects of one process, what counts on them, and the blocks that it has made or counts on: one look at all of it.

Called with the runtime's lock held; some 2 µs for each object, and 10 for each that is told of by itself. While nobody asks it costs
nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import nlargest
from typing import TYPE_CHECKING, Final

from shoal.core.holdings import Holdings
from shoal.core.tasks import Task
from shoal.core.waits import name_of
from shoal.messages.inventory import COUNTED, FREED, MADE, VIEWED, Arena, Block, ObjectGroup
from shoal.messages.inventory import ProcessMemory as Memory
from shoal.messages.state import ObjectRow
from shoal.messages.values import Failed, Inline, Location, Stored
from shoal.wire.addresses import place_of

if TYPE_CHECKING:
    from shoal.core.references import Entry
    from shoal.runtime.process import Process

_MOST_BORROWERS: Final = 16
"""Borrowers of one object that are named."""

_MOST_GROUPS: Final = 1_000
"""Places of the program that are counted by themselves; those with the fewest bytes are put together."""

_BLOCKS_PER_ROW: Final = 5
"""Blocks that are told of where the limit is for rows: they are a fifth as large, and nothing can be said of those that are left out."""

OTHERS: Final = "(others)"

Place = tuple[str, Location]


class Inventory:
    """See the module's docstring. `tasks` are all that are not finished."""

    def __init__(self, process: Process, tasks: list[Task]) -> None:
        self._process = process
        self._place = place_of(process.address)
        objects = process.objects
        # A finalizer that runs meanwhile may submit.
        self._entries = list(objects.entries.values())
        self._tasks = tasks
        self._blocks = process.store.blocks()
        self._viewed = process.store.viewed(self._blocks)
        self._holdings = Holdings(
            self._entries,
            tasks,
            [entry for stream in process.streams for entry in stream.items()],
            [(function.name, function.holds) for function in process.functions.values()],
            objects.orphaned,
            process.actors.detached,
        )

    # --- objects -------------------------------------------------------------------------------------------------

    def rows(self, limit: int, *, handles: bool) -> tuple[list[ObjectRow], int]:
        """The largest, and how many were left out. `handles`: those of actors, too."""
        is_handle = self._holdings.is_handle
        entries = [entry for entry in self._entries if handles or not is_handle(entry)]
        chosen = entries if len(entries) <= limit else nlargest(limit, entries, key=_size)
        return [self._row(entry) for entry in chosen], len(entries) - len(chosen)

    def _row(self, entry: Entry) -> ObjectRow:
        process = self._process
        value = entry.value
        stored = value if type(value) is Stored else None
        state = "PENDING" if value is None else "FAILED" if type(value) is Failed else "READY"
        call_site, since_ns = getattr(entry, "site", ("", 0))
        borrowers = entry.borrowers or {}
        handle = self._holdings.is_handle(entry)
        return ObjectRow(
            entry.object_id,
            entry.owner or process.address,
            "READY" if handle else state,
            _size(entry),
            "inline"
            if type(value) in _INLINE
            else ""
            if stored is None
            else place_of(stored.creator),
            entry.local,
            entry.holds,
            len(borrowers),
            _maker(entry),
            process.address,
            process.pid,
            self._holdings.of(entry, viewed=self._is_viewed(entry)),
            list(borrowers)[:_MOST_BORROWERS],
            "" if stored is None else stored.creator,
            None if stored is None else stored.location,
            call_site,
            since_ns,
            handle,
        )

    def _is_viewed(self, entry: Entry) -> bool:
        value = entry.value
        if not self._viewed or type(value) is not Stored:
            return False
        return (place_of(value.creator), value.location) in self._viewed

    # --- memory --------------------------------------------------------------------------------------------------

    def memory(self, limit: int) -> Memory:
        """The accounts of this process."""
        process = self._process
        stats = process.store.stats()
        arena = Arena() if stats is None else stats.told()
        blocks = list(self._told())
        limit = limit * _BLOCKS_PER_ROW
        host = process.host
        return Memory(
            process.address,
            process.pid,
            process.kind if host is None else f"actor {host.spec.name or host.spec.class_name}",
            arena,
            self._groups(),
            blocks[:limit],
            max(0, len(blocks) - limit),
            self._blocks.spilled[:limit],
        )

    def _groups(self) -> list[ObjectGroup]:
        counts: dict[tuple[str, str, str, str], list[int]] = {}
        for entry in self._entries:
            if entry.owner:
                continue
            site = getattr(entry, "site", ("", 0))[0]
            kind = self._holdings.kind(entry, viewed=self._is_viewed(entry))
            where = "ACTOR" if self._holdings.is_handle(entry) else _where(entry)
            counted = counts.setdefault((site, _maker(entry), kind, where), [0, 0])
            counted[0] += 1
            counted[1] += max(0, _size(entry))
        ordered = sorted(counts.items(), key=lambda item: (-item[1][1], -item[1][0]))
        groups = [ObjectGroup(*key, *count) for key, count in ordered[:_MOST_GROUPS]]
        rest: dict[tuple[str, str], ObjectGroup] = {}
        for (_, _, kind, where), (count, size) in ordered[_MOST_GROUPS:]:
            group = rest.setdefault((kind, where), ObjectGroup(OTHERS, "", kind, where, 0, 0))
            group.count += count
            group.size += size
        return groups + list(rest.values())

    # --- blocks --------------------------------------------------------------------------------------------------

    def _told(self) -> Iterator[Block]:
        """Blocks of which others must be asked: what this process has made and does not count on itself, what it counts on and has not
        made, what it looks at."""
        process = self._process
        place = self._place
        # Of these, their rows tell that they are looked at.
        told: set[Place] = set()
        own: set[Location] = set()
        counted: set[Place] = set()
        for stored in self._counted_on():
            key = (place_of(stored.creator), stored.location)
            told.add(key)
            if stored.creator == process.address:
                own.add(stored.location)
            else:
                counted.add(key)
        blocks = self._blocks
        owners = process.deliveries.owners()
        viewed = self._viewed
        for location in blocks.live:
            # What is looked at here may be just being written.
            if location not in own and (location in owners or (place, location) not in viewed):
                yield Block(MADE, place, location, owners.get(location, ""))
        for location in blocks.freed:
            yield Block(FREED, place, location)
        for origin, location in viewed - told:
            yield Block(VIEWED, origin, location)
        for origin, location in counted:
            yield Block(COUNTED, origin, location)

    def _counted_on(self) -> Iterator[Stored]:
        """What entries, arguments and code of this process are in shared memory."""
        values = [entry.value for entry in self._entries]
        values += [task.args for task in self._tasks]
        values += [function.code for function in self._process.functions.values()]
        return (value for value in values if type(value) is Stored)


_INLINE: Final = (bytes, Inline)


def _size(entry: Entry) -> int:
    """Bytes of the value, -1 if they are not known."""
    value = entry.value
    if type(value) is bytes:
        return len(value)
    if type(value) is Stored:
        return value.location.size
    if type(value) is Inline:
        return len(value.data) + sum(map(len, value.buffers))
    return -1


def _where(entry: Entry) -> str:
    value = entry.value
    if value is None:
        return "PENDING"
    if type(value) is Failed:
        return "FAILED"
    return "SHARED_MEMORY" if type(value) is Stored else "INLINE"


def _maker(entry: Entry) -> str:
    return name_of(entry.task) if isinstance(entry.task, Task) else ""
