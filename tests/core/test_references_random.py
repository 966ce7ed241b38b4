"""Several processes that own and borrow, and a network that keeps nothing but the order on each connection.

The model sees everything: which objects anybody could still reach, through a handle in any process, through the arguments of a
task that has not arrived, or inside the value of a reachable object. Nothing of that may ever be freed; and when the
network is quiet, nothing else may be left.
"""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.references import (
    Countdown,
    Entry,
    FreeValue,
    GiveUp,
    ObjectTable,
    RegisterBorrower,
)
from shoal.messages.peer import Borrow, Borrowed, Fetch, Fetched, Release
from shoal.messages.values import Failed, Ref, Stored
from tests.core.test_references import stored


class Run(NamedTuple):
    task_id: bytes
    refs: list[Ref]


class Reply(NamedTuple):
    task_id: bytes
    value: Stored


class Wire(NamedTuple):
    """One direction of one connection. Two processes may each have opened one; a process may have one with itself."""

    sender: str
    receiver: str
    connection: str


class Running(NamedTuple):
    """A task, at the process that runs it."""

    task_id: bytes
    back: Wire
    handles: list[Entry]


class Process:
    """What the runtime does around a table, and no more."""

    def __init__(self, name: str, cluster: Cluster) -> None:
        self.name = name
        self.cluster = cluster
        self.table = ObjectTable(name)
        self.handles: list[Entry] = []
        self.running: list[Running] = []
        self.submitted: dict[bytes, tuple[Entry, list[Entry]]] = {}

    # --- the user's code ---------------------------------------------------------------------------------------------

    def refs(self, entries: Iterable[Entry]) -> list[Ref]:
        return [Ref(entry.object_id, entry.owner or self.name) for entry in entries]

    def put(self, inners: list[Entry]) -> Entry:
        object_id = self.cluster.new_id(self.name)
        entry = self.table.own(object_id)
        if inners:
            self.table.contain(entry, inners, None)
        entry.value = stored(object_id.hex(), self.refs(inners))
        self.cluster.contents[object_id] = [inner.object_id for inner in inners]
        self.handles.append(entry)
        return entry

    def submit(self, to: str, args: list[Entry]) -> Entry:
        task_id = self.cluster.new_id(self.name)
        entry = self.table.own(task_id)
        for arg in args:
            self.table.hold(arg)
        self.submitted[task_id] = entry, args
        self.handles.append(entry)
        self.cluster.request(self.name, to, Run(task_id, self.refs(args)))
        return entry

    def load(self, refs: Iterable[Ref]) -> list[Entry]:
        entries = []
        for ref in refs:
            entry = self.table.borrow(ref)
            entry.local += 1
            entries.append(entry)
        return entries

    def get(self, entry: Entry) -> None:
        """Read a value: handles for what is inside, or a question to the owner."""
        if entry.value is not None:
            assert isinstance(entry.value, Stored), f"{self.name} reads {entry}: {entry.value}"
            self.handles += self.load(entry.value.refs)
        elif entry.owner and not entry.fetching:
            entry.fetching = True
            self.cluster.request(self.name, entry.owner, Fetch(entry.object_id))

    def drop(self, entry: Entry) -> None:
        self.table.drop_locals([entry])
        self.carry_out()

    def finish(self, task: Running, returned: list[Entry], keeps: bool) -> None:
        """Answer a task. `keeps`: its handles stay in the process, as in the state of an actor."""
        self.running.remove(task)
        self.cluster.contents[task.task_id] = [entry.object_id for entry in returned]
        value = stored(task.task_id.hex(), self.refs(returned))
        if keeps:
            self.handles += task.handles
        else:
            self.table.drop_locals(entry for entry in task.handles if entry not in returned)
        countdown = self.table.register_before(returned, task.back.receiver)
        if not keeps:
            self.table.drop_locals(entry for entry in task.handles if entry in returned)
        if countdown is None:
            self.cluster.send(task.back, Reply(task.task_id, value))
        else:
            countdown.reply = lambda: self.cluster.send(task.back, Reply(task.task_id, value))
        self.carry_out()

    # --- messages ----------------------------------------------------------------------------------------------------

    def receive(self, message: Any, back: Wire) -> None:
        table = self.table
        match message:
            case Run(task_id, refs):
                self.running.append(Running(task_id, back, self.load(refs)))
            case Reply(task_id, value):
                # The entry may have left the table: nobody wants the value any more.
                entry, args = self.submitted.pop(task_id)
                self.complete(entry, value, registered=True)
                for arg in args:
                    table.unhold(arg)
            case Borrow(object_id, borrower, token):
                self.cluster.send(back, Borrowed(token, table.register(object_id, borrower)))
            case Borrowed(token):
                for countdown in table.acknowledge(token):
                    self.leave(countdown)
            case Release(object_id, count):
                table.give_up(object_id, back.receiver, count)
            case Fetch(object_id):
                self.answer(object_id, back)
            case Fetched(object_id, Stored() | Failed() as fetched):
                known = table.entries.get(object_id)
                if known is not None and known.value is None:
                    self.complete(known, fetched, registered=False)
        self.carry_out()

    def answer(self, object_id: bytes, back: Wire) -> None:
        entry = self.table.entries.get(object_id)
        if entry is None:
            self.cluster.send(back, Fetched(object_id, Failed(b"freed")))
        elif entry.value is not None:
            self.cluster.send(back, Fetched(object_id, entry.value))
        else:
            entry.waiters = entry.waiters or []
            entry.waiters.append(lambda: self.answer(object_id, back))

    def complete(self, entry: Entry, value: Stored | Failed, registered: bool) -> None:
        refs = [] if isinstance(value, Failed) else value.refs
        for waiter in self.table.complete(entry, value, refs, registered) or ():
            waiter()

    def leave(self, countdown: Countdown) -> None:
        countdown.reply()
        self.table.release_held(countdown)

    def carry_out(self) -> None:
        outbox = self.table.outbox
        while outbox:
            effect = outbox.pop(0)
            match effect:
                case FreeValue(value):
                    self.cluster.free(value)
                case GiveUp(owner, object_id, count):
                    self.cluster.request(self.name, owner, Release(object_id, count))
                case RegisterBorrower(owner, object_id, borrower, token):
                    self.cluster.request(self.name, owner, Borrow(object_id, borrower, token))


class Cluster:
    """The processes, the network between them, and the model: everything that anybody has ever made."""

    def __init__(self, names: str, dual: bool) -> None:
        self.processes = {name: Process(name, self) for name in names}
        self.dual = dual
        self.wires: dict[Wire, deque[Any]] = {}
        self.contents: dict[bytes, list[bytes]] = {}
        self.owners: dict[bytes, str] = {}
        self.freed: dict[str, None] = {}
        self._numbers = itertools.count(1)

    def new_id(self, owner: str) -> bytes:
        object_id = next(self._numbers).to_bytes(2, "big")
        self.owners[object_id] = owner
        return object_id

    # --- the network -------------------------------------------------------------------------------------------------

    def request(self, sender: str, receiver: str, message: Any) -> None:
        if sender == receiver:
            connection = "there"
        else:
            connection = sender if self.dual else min(sender, receiver)
        self.send(Wire(sender, receiver, connection), message)

    def send(self, wire: Wire, message: Any) -> None:
        self.wires.setdefault(wire, deque()).append(message)

    def busy(self) -> list[Wire]:
        return [wire for wire, messages in self.wires.items() if messages]

    def deliver(self, wire: Wire) -> None:
        message = self.wires[wire].popleft()
        back = Wire(wire.receiver, wire.sender, wire.connection)
        if wire.sender == wire.receiver:
            back = back._replace(connection="back" if wire.connection == "there" else "there")
        self.processes[wire.receiver].receive(message, back)

    def deliver_all(self, rng: random.Random) -> None:
        while busy := self.busy():
            self.deliver(rng.choice(busy))

    # --- the model ---------------------------------------------------------------------------------------------------

    def free(self, value: Stored) -> None:
        name = value.location.segment
        assert name not in self.freed, f"{name} is freed twice"
        self.freed[name] = None

    def roots(self) -> Iterator[bytes]:
        for process in self.processes.values():
            for entry in process.handles:
                yield entry.object_id
            for task in process.running:
                for entry in task.handles:
                    yield entry.object_id
        for messages in self.wires.values():
            for message in messages:
                if isinstance(message, Run):
                    for ref in message.refs:
                        yield ref.object_id

    def closure(self, object_ids: Iterable[bytes]) -> set[bytes]:
        found: set[bytes] = set()
        todo = list(object_ids)
        while todo:
            object_id = todo.pop()
            if object_id not in found:
                found.add(object_id)
                todo += self.contents.get(object_id, ())
        return found

    def check(self) -> None:
        reachable = self.closure(self.roots())
        for process in self.processes.values():
            process.table.check()
            for entry in process.handles:
                assert process.table.entries[entry.object_id] is entry
        for object_id in reachable:
            owner = self.owners[object_id]
            assert object_id in self.processes[owner].table.entries, (
                f"{object_id.hex()} of {owner} was freed while it could be reached"
            )
            assert object_id.hex() not in self.freed

    def check_quiet(self) -> None:
        """Nobody speaks and nothing runs: what is left is what can be reached, and everybody knows the same of it."""
        reachable = self.closure(self.roots())
        for name, process in self.processes.items():
            table = process.table
            assert not table.outbox
            assert table.unregistered == {}
            owned = {oid for oid, entry in table.entries.items() if not entry.owner}
            assert owned == {oid for oid in reachable if self.owners[oid] == name}
            for object_id in owned:
                counts = {
                    other.name: other.table.entries[object_id].registrations
                    for other in self.processes.values()
                    if other is not process and object_id in other.table.entries
                }
                assert (table.entries[object_id].borrowers or {}) == counts


NAMES = "abc"


class Walk:
    """A random walk: each step lets the user's code somewhere do something, or delivers a message."""

    def __init__(self, seed: int, dual: bool) -> None:
        self.rng = random.Random(seed)
        self.cluster = Cluster(NAMES, dual)
        self.processes = list(self.cluster.processes.values())
        self.steps = [
            *[self.deliver] * 10,
            *[self.drop] * 5,
            *[self.finish] * 4,
            *[self.submit] * 4,
            *[self.get] * 4,
            *[self.put] * 2,
            self.quiet,
        ]

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.rng.choice(self.steps)()
            self.cluster.check()

    def some(self, entries: list[Entry]) -> list[Entry]:
        return self.rng.sample(entries, min(len(entries), self.rng.choice([0, 1, 1, 2])))

    def running(self) -> list[tuple[Process, Running]]:
        return [(process, task) for process in self.processes for task in process.running]

    def put(self) -> None:
        process = self.rng.choice(self.processes)
        process.put(self.some(process.handles))

    def submit(self) -> None:
        process, to = self.rng.choice(self.processes), self.rng.choice(NAMES)
        process.submit(to, self.some(process.handles))

    def get(self) -> None:
        process = self.rng.choice(self.processes)
        for entry in self.some(process.handles):
            process.get(entry)

    def drop(self) -> None:
        process = max(self.processes, key=lambda p: len(p.handles) * self.rng.random())
        if process.handles:
            process.drop(process.handles.pop(self.rng.randrange(len(process.handles))))

    def finish(self) -> None:
        if not (running := self.running()):
            return
        process, task = self.rng.choice(running)
        # It returns some of what it was given, and some of what the process has (the state of an actor, fresh objects),
        # which the process then forgets or keeps.
        for entry in self.some(process.handles):
            if self.rng.random() < 0.5:
                process.handles.remove(entry)
            else:
                entry.local += 1
            task.handles.append(entry)
        returned = [
            entry
            for entry in dict.fromkeys(self.some(task.handles))
            # Counting references never frees a circle; programs can make one only by such tricks.
            if task.task_id not in self.cluster.closure([entry.object_id])
        ]
        process.finish(task, returned, keeps=self.rng.random() < 0.3)

    def deliver(self) -> None:
        if busy := self.cluster.busy():
            self.cluster.deliver(self.rng.choice(busy))

    def quiet(self) -> None:
        if self.rng.random() < 0.2:
            self.cluster.deliver_all(self.rng)
            if not self.running():
                self.cluster.check_quiet()

    def end(self) -> None:
        """Let everything finish, and drop every handle."""
        while self.cluster.busy() or self.running():
            self.cluster.deliver_all(self.rng)
            for process, task in self.running():
                process.finish(task, [], keeps=False)
        self.cluster.check_quiet()
        for process in self.processes:
            while process.handles:
                process.drop(process.handles.pop())
            self.cluster.check()
        self.cluster.deliver_all(self.rng)

    def assert_that_nothing_is_left(self) -> None:
        """Not anywhere, and every value was freed once."""
        for process in self.processes:
            assert process.table.entries == {}
            assert process.table.by_borrower == {}
            assert process.table.unregistered == {}
        assert set(self.cluster.freed) == {oid.hex() for oid in self.cluster.contents}


# Walks are short and cheap; it takes many for the rarest races.
@pytest.mark.parametrize("dual", [False, True], ids=["one-connection", "crossed-connections"])
@settings(max_examples=5 * settings().max_examples)
@given(seed=st.integers(0, 2**32))
def test_nothing_reachable_is_freed_and_nothing_else_is_kept(dual: bool, seed: int) -> None:
    walk = Walk(seed, dual)
    walk.run(steps=120)
    walk.end()
    walk.assert_that_nothing_is_left()
