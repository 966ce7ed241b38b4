"""All live objects of a cluster with what keeps each alive, and what the stores of its nodes hold: the answers of all processes and nodes
put together.

An object is known to its owner, to those who borrow it and to those who look at its bytes; each tells its part (`runtime.inventory`), and
here they become one `MemoryObject`. Totals count what the owners have, also of objects that are not listed by themselves.

A block *leaks* if it is live and nobody counts on it. The answers of several processes are no snapshot: a result that is on its way is
known to neither side. So whatever seems to leak is looked for again, and only what still does is said to.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from shoal.messages import inventory
from shoal.messages.inventory import Block, ObjectGroup, ProcessMemory, StoreMemory
from shoal.messages.state import AskMemory, Findings, ObjectRow
from shoal.messages.values import Location
from shoal.runtime.asking import Questions
from shoal.util.holdings import age_s, clauses, location_of, view_in
from shoal.util.records import MOST, MemoryBlock, MemoryGroup, MemoryObject, NodeMemory
from shoal.util.tables import Where
from shoal.wire.addresses import place_of

GROUPINGS: Final = ("owner", "node", "call-site", "type")
"""What objects can be grouped by."""

_LOOKS_S: Final = (0.25, 1.5)
"""Pauses before what seems to leak is looked for again. The last must be longer than it takes until processes have heard of the end of
another."""

FREED: Final = "FREED"
LEAKED: Final = "LEAKED"


@dataclass
class MemoryReport:
    """What there is. `objects` are the largest first; of so many `more` there are only totals. `silent` did not answer in time, and
    `not_compared` blocks were too many to look for leaks among them."""

    objects: list[MemoryObject]
    blocks: list[MemoryBlock]
    nodes: list[NodeMemory]
    count: int
    size: int
    more: int = 0
    not_compared: int = 0
    silent: list[str] = field(default_factory=list)
    _groups: list[tuple[str, ObjectGroup]] = field(default_factory=list)
    _keys: dict[str, Callable[[str, str, str, str], str]] = field(default_factory=dict)

    def groups(self, by: str) -> list[MemoryGroup]:
        """All objects, also those that are not listed, counted by their "owner", "node" (of the owner), "call-site" or "type"; those with
        most bytes first.

        Raises:
            ValueError: they cannot be grouped by that.
        """
        key = self._key(by)
        found: dict[str, MemoryGroup] = {}
        for address, part in self._groups:
            name = key(address, part.call_site, part.maker, part.kind)
            group = found.setdefault(name, MemoryGroup(name, 0, 0, 0, 0, {}))
            group.count += part.count
            group.size += part.size
            group.stored += part.size if part.where in {"SHARED_MEMORY", "DISK"} else 0
            group.inline += part.size if part.where == "INLINE" else 0
            group.types[part.kind] = group.types.get(part.kind, 0) + part.count
        return sorted(found.values(), key=lambda group: (-group.size, -group.count, group.group))

    def group_of(self, one: MemoryObject, by: str) -> str:
        """The name of the group that an object belongs to."""
        # The first who tells is the owner, if it does.
        kind = one.references[0]["types"][0]
        return self._key(by)(one.owner, one.call_site, one.task_name, kind)

    def _key(self, by: str) -> Callable[[str, str, str, str], str]:
        if by not in self._keys:
            raise ValueError(f"objects are grouped by {', '.join(GROUPINGS)}, not by {by!r}")
        return self._keys[by]

    def asdict(self) -> dict[str, Any]:
        """All of it, but for groups."""
        return {
            "count": self.count,
            "size": self.size,
            "nodes": [node.asdict() for node in self.nodes],
            "objects": [one.asdict() for one in self.objects],
            "blocks": [block.asdict() for block in self.blocks],
            "more": self.more,
            "not_compared": self.not_compared,
            "silent": self.silent,
        }


def memory_report(questions: Questions, limit: int = MOST) -> MemoryReport:
    """Ask everybody, and put it together. At most `limit` objects are told of by themselves."""
    found = questions.survey(AskMemory(limit))
    suspects = unaccounted(found)
    latest = found
    for pause_s in _LOOKS_S:
        if not suspects:
            break
        time.sleep(pause_s)
        latest = questions.survey(AskMemory(limit))
        again = unaccounted(latest)
        suspects = {key: again[key] for key in suspects if key in again}
    return put_together(latest, suspects, Where(questions), _node_names(questions))


def _node_names(questions: Questions) -> dict[str, str]:
    return {row.node_id.hex(): row.name for row in questions.nodes()}


# --- leaks ----------------------------------------------------------------------------------------------------------

BlockKey = tuple[str, str, int, int]
"""Place, segment, offset and serial number."""


@dataclass(frozen=True)
class Leak:
    """Memory of which nobody knows why it is there."""

    place: str
    segment: str
    offset: int
    size: int
    why: str


def unaccounted(found: Findings) -> dict[BlockKey, Leak]:
    """The blocks that no process counts on, as far as these answers tell. Where the answer of one is missing who might, nothing is said."""
    processes = {process.address: process for process in found.processes}
    cut = {process.address for process in found.processes if process.blocks_left_out}
    complete = not cut and not found.silent
    counted: set[tuple[str, Location]] = set()
    segments: set[tuple[str, str]] = set()
    for process in found.processes:
        for block in process.blocks:
            if block.kind == inventory.COUNTED:
                counted.add((block.place, block.location))
                segments.add((block.place, block.location.segment))
    leaks: dict[BlockKey, Leak] = {}

    def leak(place: str, location: Location, why: str) -> None:
        key = (place, location.segment, location.offset, location.serial)
        leaks[key] = Leak(place, location.segment, location.offset, location.size, why)

    for process in found.processes:
        for block in process.blocks:
            if block.kind != inventory.MADE or (block.place, block.location) in counted:
                continue
            if complete or (block.owner in processes and block.owner not in cut):
                leak(block.place, block.location, _why_leaked(process, block, processes))
    for store in found.stores:
        for location in store.unknown:
            leak(store.place, location, "the node daemon made it, for no copy that it knows of")
        for name, size in store.strays:
            why = "no process that lives, or has left anything, made it"
            leak(store.place, Location(name, 0, size), why)
        for estate in store.estates if complete else ():
            for name, size in estate.segments + estate.on_disk:
                if (store.place, name) not in segments:
                    why = f"{estate.address} left it when it ended, and no process counts on it"
                    leak(store.place, Location(name, 0, size), why)
    return leaks


def _why_leaked(process: ProcessMemory, block: Block, processes: dict[str, ProcessMemory]) -> str:
    maker = f"{process.who} (pid {process.pid}) made it"
    if not block.owner:
        return f"{maker}, and no process accounts for it"
    owner = processes.get(block.owner)
    if owner is None:
        return f"{maker} for {block.owner}, which has ended, and no process accounts for it"
    return f"{maker} for {owner.who} (pid {owner.pid}), which does not know of it"


# --- putting it together --------------------------------------------------------------------------------------------


def put_together(
    found: Findings,
    leaks: dict[BlockKey, Leak],
    where: Where,
    names: dict[str, str],
) -> MemoryReport:
    """What all have told. `leaks` are the blocks that leak, and `names` those of the nodes."""
    people = _People(found, where)
    by_object: dict[bytes, list[ObjectRow]] = {}
    for row in found.objects:
        by_object.setdefault(row.object_id, []).append(row)
    viewers = _viewers(found.processes)
    copies: dict[tuple[str, Location], list[str]] = {}
    for store in found.stores:
        for copy in store.copies:
            if copy.whole:
                copies.setdefault((copy.place, copy.location), []).append(store.node_id.hex())
    on_disk = {
        (place_of(process.address), segment)
        for process in found.processes
        for segment in process.spilled
    }
    on_disk |= {
        (store.place, segment)
        for store in found.stores
        for estate in store.estates
        for segment, _ in estate.on_disk
    }
    objects = [_merge(rows, people, viewers, copies, on_disk) for rows in by_object.values()]
    objects.sort(key=lambda one: -one.size)
    groups = [(process.address, group) for process in found.processes for group in process.groups]
    counted = sum(group.count for _, group in groups)
    owned = sum(any(row.owner == row.process for row in rows) for rows in by_object.values())
    # Of these, the owners have ended, or did not answer.
    groups += [
        (
            one.owner,
            ObjectGroup(one.call_site, one.task_name, kind, one.location, 1, max(0, one.size)),
        )
        for one in objects
        if one.owner not in people and (kind := one.references[0]["types"][0])
    ]
    blocks = _freed_blocks(found, people, viewers)
    blocks += [
        MemoryBlock(LEAKED, where.at(one.place), f"{one.segment}+{one.offset}", one.size, one.why)
        for one in leaks.values()
    ]
    blocks.sort(key=lambda block: (block.kind != LEAKED, -block.size))
    return MemoryReport(
        objects,
        blocks,
        [_node(store, found.processes, leaks, names) for store in found.stores],
        sum(group.count for _, group in groups),
        sum(group.size for _, group in groups),
        max(0, counted - owned),
        sum(process.blocks_left_out for process in found.processes),
        found.silent,
        groups,
        {
            "owner": lambda address, _site, _maker, _kind: people.name(address),
            "node": lambda address, _site, _maker, _kind: (
                where.of(address) or "a node that is gone"
            ),
            "call-site": lambda _address, site, maker, _kind: site or _unrecorded(maker),
            "type": lambda _address, _site, _maker, kind: kind,
        },
    )


def _unrecorded(maker: str) -> str:
    return f"(not recorded; made by {maker})" if maker else "(not recorded)"


class _People:
    """What processes are called."""

    def __init__(self, found: Findings, where: Where) -> None:
        self._processes = {process.address: process for process in found.processes}
        self._where = where
        self._many = len(found.stores) > 1

    def __contains__(self, address: str) -> bool:
        return address in self._processes

    def pid(self, address: str) -> int | None:
        """None if it did not answer."""
        process = self._processes.get(address)
        return None if process is None else process.pid

    def who(self, address: str) -> str:
        """Driver, worker or actor; "" if it did not answer."""
        process = self._processes.get(address)
        return "" if process is None else process.who

    def name(self, address: str, seen_from: str | None = None) -> str:
        """For sentences, on another node than the one that is `seen_from`: with the node."""
        process = self._processes.get(address)
        if process is None:
            return f"the process at {address} (which did not answer, or is gone)"
        article = "" if process.who.startswith("actor") else "the "
        node = self._where.of(address)
        on = f" on node {node[:8]}" if self._many and node and node != seen_from else ""
        return f"{article}{process.who} (pid {process.pid}){on}"

    def node(self, address: str) -> str | None:
        """The node of a process."""
        return self._where.of(address)


_Viewers = dict[tuple[str, Location], list[str]]
"""Addresses of those who look at a block."""


def _viewers(processes: Iterable[ProcessMemory]) -> _Viewers:
    found: _Viewers = {}
    for process in processes:
        for block in process.blocks:
            if block.kind == inventory.VIEWED:
                found.setdefault((block.place, block.location), []).append(process.address)
    return found


def _merge(
    rows: list[ObjectRow],
    people: _People,
    viewers: _Viewers,
    copies: dict[tuple[str, Location], list[str]],
    on_disk: set[tuple[str, str]],
) -> MemoryObject:
    """All that is known of one object."""
    # The owner knows best; of borrowers, one that has the value.
    rows = sorted(rows, key=lambda row: (row.owner != row.process, row.state == "PENDING"))
    row = rows[0]
    nodes: list[str] = []
    key = None
    if row.location is not None:
        key = place_of(row.creator), row.location
        home = people.node(row.creator)
        nodes = [home] if home is not None else []
        nodes += [node for node in copies.get(key, []) if node not in nodes]
    references = [_reference(one, people) for one in rows]
    known = {one.process for one in rows}
    named = partial(people.name, seen_from=people.node(row.owner))
    why = [text for one in rows for text in clauses(one, named, known)]
    for address in viewers.get(key, []) if key is not None else ():
        if address not in known:
            why.append(view_in(named(address)))
            references.append(
                {
                    "process": address,
                    "pid": people.pid(address),
                    "who": people.who(address),
                    "node_id": people.node(address),
                    "types": [inventory.PINNED_IN_MEMORY],
                    "local_references": 0,
                }
            )
    types = [kind for kind in inventory.KINDS if any(kind in ref["types"] for ref in references)]
    site = next((one for one in rows if one.call_site), row)
    spilled = key is not None and (key[0], key[1].segment) in on_disk
    return MemoryObject(
        row.object_id.hex(),
        row.size,
        "DISK" if spilled else location_of(row),
        types[0] if types else "",
        row.owner,
        people.pid(row.owner),
        people.who(row.owner),
        people.node(row.owner),
        nodes,
        row.task_name,
        site.call_site,
        age_s(row),
        "; ".join(why),
        references,
    )


def _reference(row: ObjectRow, people: _People) -> dict[str, Any]:
    return {
        "process": row.process,
        "pid": row.pid,
        "who": people.who(row.process),
        "node_id": people.node(row.process),
        "types": [holding.kind for holding in row.holdings],
        "local_references": row.local_references,
    }


def _freed_blocks(found: Findings, people: _People, viewers: _Viewers) -> list[MemoryBlock]:
    """Memory of dead objects, and of dropped copies, that cannot be used again yet."""
    freed = [
        (people.node(process.address), block.place, block.location, "its object is freed")
        for process in found.processes
        for block in process.blocks
        if block.kind == inventory.FREED
    ]
    freed += [
        (store.node_id.hex(), store.place, location, "the copy of an object is dropped")
        for store in found.stores
        for location in store.freed
    ]
    blocks = []
    for node, place, location, what in freed:
        by = [people.name(one, seen_from=node) for one in viewers.get((place, location), [])]
        looking = ", ".join(by) or "a process that did not answer, or a transfer"
        why = f"{what}, but {view_in(looking)}"
        name = f"{location.segment}+{location.offset}"
        blocks.append(MemoryBlock(FREED, node, name, location.size, why))
    return blocks


def _node(
    store: StoreMemory,
    processes: Iterable[ProcessMemory],
    leaks: dict[BlockKey, Leak],
    names: dict[str, str],
) -> NodeMemory:
    here = [process for process in processes if place_of(process.address) == store.place]
    arenas = [process.arena for process in here]
    held = sum(amount for _, amount in store.held)
    ended = sum(size for estate in store.estates for _, size in estate.segments)
    on_disk = sum(size for estate in store.estates for _, size in estate.on_disk)
    live = sum(arena.live for arena in arenas)
    copies = store.arena.live
    freed = sum(arena.freed for arena in arenas) + store.arena.freed
    backed = sum(arena.backed for arena in arenas) + store.arena.backed
    idle = max(0, backed - live - copies - freed)
    inline = [part for process in here for part in process.groups if part.where == "INLINE"]
    return NodeMemory(
        store.node_id.hex(),
        names.get(store.node_id.hex(), ""),
        store.capacity,
        live,
        copies,
        freed,
        idle,
        max(0, held - live - copies - freed - idle - ended),
        ended,
        max(0, store.capacity - held),
        sum(arena.spilled for arena in arenas) + store.arena.spilled + on_disk,
        sum(arena.live_blocks for arena in arenas),
        store.copies_count,
        sum(part.size for part in inline),
        sum(part.count for part in inline),
        sum(one.size for one in leaks.values() if one.place == store.place),
    )
