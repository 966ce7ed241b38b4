"""A cluster of simulated processes, for the tests of references: real tables and real lending, and everything around them played.

What is real: `core.references.ObjectTable`, `runtime.borrowing.Borrowing` (what owners and borrowers say to each other),
`runtime.streams.Stream`, and how objects are named. What is played, as little as will do and in the order in which the runtime does
it: connections (`reference_network`), the submission of tasks and their replies, actors (`reference_process`), and here the head,
which starts actors and says who has died.

A process may be killed, or be taken for dead while it lives on for a while, as when its node does not answer.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable
from functools import partial

from shoal.core.references import Entry
from shoal.ids import IdSource
from shoal.messages.values import Location
from tests.core.reference_process import Actor, Process


class Cluster:
    """The processes, what is between them, and the head; the model of `reference_model` looks at all of it."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.processes: dict[str, Process] = {}
        # By the id of the object that their handles count on.
        self.actors: dict[bytes, Actor] = {}
        self.to_start: list[Actor] = []
        self.to_end: list[Process] = []
        self._watchers: dict[str, list[Process]] = {}
        # What the model knows: who owns each object, and of each block of shared memory who made it and for whom.
        self.owners: dict[bytes, Process] = {}
        self.contents: dict[bytes, list[bytes]] = {}
        self.blocks: dict[Location, tuple[Process, Process]] = {}
        self.freed: dict[Location, None] = {}
        self.before_end: Callable[[Process], None] = lambda _: None
        self._numbers = itertools.count(1)

    # --- what the model is told ----------------------------------------------------------------------------------------

    def new(self, object_id: bytes, owner: Process, inners: Iterable[Entry] = ()) -> None:
        """There is an object."""
        assert object_id not in self.owners, f"{object_id.hex()} names two objects"
        self.owners[object_id] = owner
        self.contents[object_id] = [inner.object_id for inner in inners]

    def new_block(self, creator: Process, owner: Process) -> Location:
        location = Location("segment", next(self._numbers), 1)
        self.blocks[location] = creator, owner
        return location

    def free(self, location: Location) -> None:
        assert location not in self.freed, f"{location} is freed twice"
        self.freed[location] = None

    # --- processes -----------------------------------------------------------------------------------------------------

    def start(self, actor: Actor | None = None) -> Process:
        """One more process: an actor's next life, or a worker."""
        number = len(self.processes)
        process = Process(f"p{number}", IdSource(number.to_bytes(8, "big")), self, actor)
        self.processes[process.address] = process
        if actor is None:
            return process
        actor.process = process
        actor.lives += 1
        process.be_made(actor)
        for caller in actor.callers:
            caller.news.append(partial(caller.hear_of_life, actor))
        if actor.draining:
            self.to_end.append(process)
        return process

    def some_worker(self) -> str:
        """Where a task goes next."""
        return self.rng.choice([p for p in self.living() if p.actor is None]).address

    def living(self) -> list[Process]:
        """The processes that run and do not end."""
        return [process for process in self.processes.values() if process.lives]

    def running(self) -> list[Process]:
        """The same, and those that do not know yet that they are dead to the others."""
        return [process for process in self.processes.values() if not process.dead]

    def unreferenced(self, handle: bytes) -> None:
        """The last handle of an actor is gone."""
        actor = self.actors[handle]
        assert not actor.draining
        if actor.process is not None:
            self.before_end(actor.process)
            self.to_end.append(actor.process)
        actor.draining = True

    def watch(self, watcher: Process, address: str) -> None:
        target = self.processes[address]
        if target.dead or target.fenced:
            watcher.news.append(partial(watcher.hear_of_death, address))
        else:
            self._watchers.setdefault(address, []).append(watcher)

    def fence(self, process: Process) -> None:
        """The head takes a process for dead: its node does not answer. It ends later."""
        if process.lives:
            self.before_end(process)
        process.fenced = True
        self.to_end.append(process)
        self._tell_all_of_end(process)

    def kill(self, process: Process, orderly: bool = False) -> None:
        """A process ends, and of what it has sent, a last part is lost; not if it ends orderly."""
        # Also for one that was to end: it may have said more since.
        self.before_end(process)
        known = process.fenced
        process.dead = True
        for end in process.peers.ends:
            other = end.other
            if other is None or other.process is process:
                continue
            keep = len(other.inbox)
            if not orderly and self.rng.random() < 0.5:
                keep = self.rng.randint(0, keep)
            while len(other.inbox) > keep:
                other.inbox.pop()
            other.ended = True
            end.closed = True
        if not known:
            self._tell_all_of_end(process)

    def _tell_all_of_end(self, process: Process) -> None:
        for watcher in self._watchers.pop(process.address, ()):
            watcher.news.append(partial(watcher.hear_of_death, process.address))
        if process.actor is not None:
            self._end_life(process.actor, process)
        for actor in self.actors.values():
            if actor.creator is process and not actor.dead:
                # Actors go with who created them.
                actor.restarts = 0
                if actor.process is not None:
                    self.to_end.append(actor.process)
                elif actor in self.to_start:
                    self.to_start.remove(actor)
                    self._end_life(actor, None)

    def _end_life(self, actor: Actor, life: Process | None) -> None:
        actor.process = None
        if actor.restarts and not actor.draining:
            actor.restarts -= 1
            self.to_start.append(actor)
        else:
            actor.dead = True
        for caller in actor.callers:
            caller.news.append(
                partial(caller.hear_of_end, actor, "" if life is None else life.address)
            )

    # --- steps ---------------------------------------------------------------------------------------------------------

    def steps(self) -> list[Callable[[], None]]:
        """Whatever may happen next that is nobody's choice: messages, news, connections read to their ends, lives that begin or end."""
        found: list[Callable[[], None]] = []
        late: list[Callable[[], None]] = []
        for process in self.running():
            if process.news:
                found.append(process.read_news)
            if process.objects.unfinished:
                found.append(process.settle)
            for end in process.peers.ends:
                if end.inbox:
                    (late if end.slow else found).append(partial(process.receive, end))
                elif end.ended:
                    found.append(partial(process.read_to_the_end, end))
            # Connections of who is only taken for dead do not end, and nobody waits for that for ever.
            found += [
                partial(process.bury_and_settle, address)
                for address in process.peers.ended
                if self.processes[address].fenced
            ]
        if self.to_start:
            found.append(self._start_next)
        found += [
            partial(self._end, process)
            for process in self.to_end
            if process.dead or process.fenced or not process.running or not process.ends_orderly
        ]
        return found if found and self.rng.random() < 0.95 else found + late

    def _start_next(self) -> None:
        self.start(self.to_start.pop(0))

    def _end(self, process: Process) -> None:
        self.to_end.remove(process)
        if not process.dead:
            self.kill(process, orderly=process.ends_orderly)
