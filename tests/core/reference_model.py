"""What must be true of a simulated cluster: a model that sees all of it and understands nothing of the protocol.

It knows what user code could still reach: handles in every process that lives, what is inside the objects that they name, to any depth,
arguments of tasks that have not replied, values that are on their way, the state of actors that can be reached. From that alone
follows what must be there (`check`, after every step) and what must be gone (`check_quiet`, when nobody has anything left to say).

Nobody can reach what has lost its owner. And there is one more way to lose an object that its user can still name, which has to
do with deaths only (see "What a crash costs" in `core.references`): whoever lent it has ended before the borrower was known
to the owner. `excuse` notes what such an end may cost, at that moment and as narrowly as can be told: objects that the
process held, and that somebody who lives has, or is being sent, and is not registered for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from shoal.core.references import Entry
from shoal.ids import return_id
from shoal.messages.peer import Fetched
from shoal.messages.values import Inline, Stored
from tests.core.reference_cluster import Cluster
from tests.core.reference_network import Item, Reply, Run, Value
from tests.core.reference_process import Process


class Model:
    """See the module's docstring."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.excused: set[bytes] = set()
        cluster.before_end = self.excuse

    # --- what can be reached -------------------------------------------------------------------------------------------

    def on_their_way(self) -> dict[bytes, list[bytes]]:
        """What is inside results and items that have not arrived, and that are waited for."""
        found: dict[bytes, list[bytes]] = {}
        for process in self.cluster.running():
            for end, message in process.deferred:
                if end.other is not None and not end.closed:
                    self._note(found, end.other.process, message)
            for end in process.peers.ends:
                for message in end.inbox:
                    if isinstance(message, Reply | Item):
                        self._note(found, process, message)
        return found

    @staticmethod
    def _note(found: dict[bytes, list[bytes]], to: Process, message: Reply | Item) -> None:
        task = to.tasks.get(message.task_id)
        if task is None:
            return
        object_id = message.task_id
        if isinstance(message, Item):
            object_id = return_id(message.task_id, message.index + 1)
            stream = task.stream
            assert stream is not None
            known = stream._items.get(message.index)
            if stream.abandoned or message.index < stream.taken:
                return
            if known is not None and known.value is not None:
                return
        found.setdefault(object_id, []).extend(refs_in(message.value))

    def roots_in(self, process: Process) -> Iterator[bytes]:
        """What the user's code in a process has."""
        for entry in process.handles:
            yield entry.object_id
        for running in process.running:
            for entry in running.handles:
                yield entry.object_id
        for task in process.tasks.values():
            for entry in task.holds:
                yield entry.object_id
        for generator in process.generators:
            stream = generator.stream
            assert stream is not None
            yield generator.task_id
            for index in range(stream.taken, stream.taken + 20):
                yield return_id(generator.task_id, index + 1)

    @staticmethod
    def sent_to(process: Process) -> Iterator[bytes]:
        """What tasks that have not arrived will have."""
        for end in process.peers.ends:
            for message in end.inbox:
                if isinstance(message, Run):
                    yield from refs_of(message)

    def closure(self, roots: Iterable[bytes]) -> set[bytes]:
        """What can be reached from there: inside objects, and in the state of actors."""
        contents, actors, on_their_way = (
            self.cluster.contents,
            self.cluster.actors,
            self.on_their_way(),
        )
        found: set[bytes] = set()
        todo = list(roots)
        while todo:
            object_id = todo.pop()
            if object_id in found:
                continue
            found.add(object_id)
            if self._can_be_read(object_id):
                todo += contents.get(object_id, ())
                todo += on_their_way.get(object_id, ())
            actor = actors.get(object_id)
            if actor is not None and actor.process is not None and actor.process.lives:
                todo += self.roots_in(actor.process)
                todo += self.sent_to(actor.process)
        return found

    def _can_be_read(self, object_id: bytes) -> bool:
        """Not what has lost its owner, but by those who have the value already."""
        owner = self.cluster.owners.get(object_id)
        return (
            owner is None
            or owner.lives
            or any(
                (entry := process.objects.entries.get(object_id)) is not None
                and isinstance(entry.value, Inline | Stored)
                for process in self.cluster.living()
            )
        )

    def reachable(self, processes: Iterable[Process]) -> set[bytes]:
        return self.closure(
            object_id
            for process in processes
            for roots in (self.roots_in(process), self.sent_to(process))
            for object_id in roots
        )

    # --- what the end of a process may cost ----------------------------------------------------------------------------

    def excuse(self, ending: Process) -> None:
        """A process is about to end, and the actors that it has created with it."""
        cluster = self.cluster
        gone = {ending}
        while True:
            more = {
                actor.process
                for actor in cluster.actors.values()
                if actor.process is not None and actor.creator in gone
            } - gone
            if not more:
                break
            gone |= more
        sent = {object_id for process in gone for object_id in self._sent_by(process)}
        held = sent | self.closure(
            object_id for process in gone for object_id in process.objects.entries
        )
        for other in cluster.living():
            if other in gone:
                continue
            coming = self.closure(self.sent_to(other))
            for object_id in (self.closure(self.roots_in(other)) | coming) & held:
                owner = cluster.owners.get(object_id)
                if owner is None or not owner.lives or (owner is other and object_id not in sent):
                    continue
                if object_id in coming or not is_registered(other, object_id):
                    self.excused.add(object_id)

    def _excuse_what_comes_from_the_dead(self, process: Process) -> None:
        """One that is taken for dead lends on, and what it holds is not counted any more."""
        for end in process.peers.ends:
            if not end.peer.lives:
                sent = [m for m in end.inbox if isinstance(m, Run | Fetched)]
                self.excused |= self.closure(oid for message in sent for oid in refs_of(message))

    def _sent_by(self, process: Process) -> Iterator[bytes]:
        for end in process.peers.ends:
            if end.other is not None:
                for message in end.other.inbox:
                    if isinstance(message, Run):
                        yield from refs_of(message)

    # --- what must be true ---------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Nothing is freed that could be reached."""
        cluster = self.cluster
        living = cluster.living()
        for process in living:
            self._excuse_what_comes_from_the_dead(process)
            process.objects.check()
            for entry in process.handles:
                assert process.objects.entries.get(entry.object_id) is entry, f"{process}: {entry}"
        excused = self.closure(self.excused)
        for object_id in self.reachable(living) - excused:
            owner = cluster.owners.get(object_id)
            if owner is None or not owner.lives:
                continue
            entry = owner.objects.entries.get(object_id)
            where = f"{object_id.hex()} of {owner}, which can be reached,"
            assert entry is not None, f"{where} was freed"
            if isinstance(entry.value, Stored):
                assert entry.value.location not in cluster.freed, f"{where} has lost its block"
            actor = cluster.actors.get(object_id)
            assert actor is None or not actor.draining, f"actor {where} was ended"

    def check_quiet(self) -> None:
        """Nobody speaks and nothing runs: what is left is what can be reached, and everybody knows the same of it."""
        cluster = self.cluster
        reachable = self.reachable(p for p in cluster.living() if p.actor is None)
        excused = self.closure(self.excused)
        for handle, actor in cluster.actors.items():
            if handle not in excused:
                assert actor.dead or handle in reachable, f"actor {handle.hex()} has not ended"
        for process in cluster.living():
            table = process.objects
            assert not table.outbox
            assert not process.tasks, f"{process} waits for {process.tasks}"
            assert not process.deferred
            assert table.unregistered == {}
            for entry in table.entries.values():
                assert entry.value is not None or not entry.fetching, f"{process}: {entry} hangs"
            # An item that somebody waits for has an entry before there is anything.
            awaited = {oid for oid in reachable if oid not in cluster.owners}
            owned = {oid for oid, entry in table.entries.items() if not entry.owner}
            owned -= excused | awaited
            expected = {oid for oid in reachable if cluster.owners.get(oid) is process} - excused
            assert owned == expected, f"{process} has {owned - expected}, not {expected - owned}"
            for object_id in owned:
                self._check_borrowers(process, table.entries[object_id])

    def _check_borrowers(self, owner: Process, entry: Entry) -> None:
        counts: Counter[str] = Counter()
        for other in self.cluster.living():
            known = other.objects.entries.get(entry.object_id)
            if other is not owner and known is not None:
                counts[other.address] = known.registrations
        assert (entry.borrowers or {}) == counts, f"{owner}: {entry}, but {counts}"

    def check_that_nothing_is_left(self) -> None:
        """Not anywhere, and every block was freed once. Here nothing is excused."""
        cluster = self.cluster
        for process in cluster.living():
            table = process.objects
            assert table.entries == {}, f"{process} has {table.entries}"
            assert table.by_borrower == {}
            assert table._asked == {}
            assert table._releases == {}
            assert table.unfinished == []
            assert not table.vouchers
        for location, (creator, owner) in cluster.blocks.items():
            # What the dead have made, or owned, is found by asking (`node.inquiries`), which is not played here.
            if creator.lives and owner.lives:
                assert location in cluster.freed, f"{location} of {creator} for {owner} is left"


def is_registered(process: Process, object_id: bytes) -> bool:
    """Whether a borrower is known to the owner, and knows it."""
    table = process.objects
    entry = table.entries.get(object_id)
    return entry is not None and entry.registrations > 0 and entry not in table.unregistered


def refs_of(message: Run | Fetched) -> list[bytes]:
    """The objects that somebody gets a handle on by a message."""
    if isinstance(message, Fetched):
        return refs_in(message.value)
    deps = [object_id for dep in message.deps for object_id in refs_in(dep)]
    return [i for some in message.refs for i in some.object_ids] + deps


def refs_in(value: Value) -> list[bytes]:
    """The objects that a value names."""
    if not isinstance(value, Inline | Stored):
        return []
    return [object_id for some in value.refs for object_id in some.object_ids]
