"""A simulated process (see `reference_cluster`): a real table and real lending, and what the runtime does around them, played."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from shoal.core.reference_effects import Countdown
from shoal.core.references import Entry, ObjectTable
from shoal.ids import IdSource, return_id
from shoal.messages.node import ActorUnreferenced
from shoal.messages.stores import FreeOrphans
from shoal.messages.values import Failed, Inline, Location, Refs, Stored
from shoal.runtime.borrowing import Borrowing
from shoal.runtime.context import TaskContext
from shoal.runtime.streams import Stream
from tests.core.reference_network import End, Item, Peers, Reply, Run, Value

if TYPE_CHECKING:
    from tests.core.reference_cluster import Cluster


class Task:
    """A task at its owner, or a call of an actor."""

    def __init__(self, task_id: bytes, entry: Entry, refs: list[Entry], deps: list[Entry]) -> None:
        self.task_id = task_id
        self.entry = entry
        self.refs = refs
        self.deps = deps
        self.holds = [*refs, *deps]
        self.actor: Actor | None = None
        self.executor = ""
        self.attempt = 0
        self.retries = 0
        self.pushed = False
        self.done = False
        # What `Stream` asks of a task.
        self.stream: Stream | None = None
        self.window = 0
        self.lane = None


class Running:
    """A task at the process that runs it."""

    def __init__(self, run: Run, context: TaskContext, back: End, handles: list[Entry]) -> None:
        self.task_id = run.task_id
        self.context = context
        self.streams = run.streams
        self.back = back
        self.handles = handles
        self.sent = 0
        # An item waits for the owners of what it lends.
        self.sending = False


class Actor:
    """An actor, as the control store knows it."""

    def __init__(self, actor_id: bytes, creator: Process, args: list[Refs], restarts: int) -> None:
        self.actor_id = actor_id
        self.handle = return_id(actor_id, 0)
        self.creator = creator
        self.lives = 0
        self.args = args
        self.restarts = restarts
        self.process: Process | None = None
        self.draining = False
        self.dead = False
        # Who has called it, and hears what becomes of it.
        self.callers: dict[Process, None] = {}


class Process:
    """A driver, a worker or an actor: what the runtime does around a table, and no more."""

    def __init__(
        self, address: str, ids: IdSource, cluster: Cluster, actor: Actor | None = None
    ) -> None:
        self.address = address
        self.cluster = cluster
        self.actor = actor
        self.dead = False
        # The head has declared it dead, and it does not know.
        self.fenced = False
        self.ids = ids
        self.context = TaskContext("driver", ids.task_id(), ids)
        # Batches so small that what is contained does not always fit into one.
        self.objects = ObjectTable(address, cluster.rng.choice((1, 2, 1_000)))
        self.peers = Peers(self)
        self.handles: list[Entry] = []
        self.generators: list[Task] = []
        # Handles that have died and are not counted yet.
        self.dropped: deque[Entry] = deque()
        self.running: list[Running] = []
        # Replies that wait for the owners of what they lend.
        self.deferred: list[tuple[End, Reply | Item]] = []
        self.tasks: dict[bytes, Task] = {}
        self.news: deque[Callable[[], None]] = deque()
        # What `Borrowing` and `Stream` ask of a process.
        self.node = self.store = self.deliveries = self.owner = self.arrivals = self
        self.borrowing = Borrowing(self)  # type: ignore[arg-type]  # it plays the part

    def __repr__(self) -> str:
        return self.address

    @property
    def lives(self) -> bool:
        """Whether it runs, and not only until it hears that it has ended."""
        return not (self.dead or self.fenced or self.ends_orderly or self.ends_with_creator)

    @property
    def ends_orderly(self) -> bool:
        return self.actor is not None and self.actor.draining

    @property
    def ends_with_creator(self) -> bool:
        return self.actor is not None and not self.actor.creator.lives

    # --- the parts of the runtime that are played ----------------------------------------------------------------------

    def send_locked(self, message: Any) -> None:
        """To the node."""
        match message:
            case ActorUnreferenced(actor_id):
                self.cluster.unreferenced(return_id(actor_id, 0))
            case FreeOrphans(locations):
                for location in locations:
                    self.cluster.free(location)

    def free(self, location: Location) -> None:
        self.cluster.free(location)

    def freed(self, _owner: str, locations: Iterable[Location]) -> None:
        for location in locations:
            self.cluster.free(location)

    def tell_freed(self) -> None:
        """It has been told at once."""

    def consumed(self, _task: Task, _count: int) -> None:
        """Streams are never held up here."""

    def finish_arrivals(self) -> None:
        """What comes is entered at once."""

    def complete(
        self,
        entry: Entry,
        value: Any,
        refs: list[Refs],
        registered: bool | None,
        voucher: str = "",
    ) -> None:
        if not entry.owner:
            self.cluster.contents[entry.object_id] = [i for some in refs for i in some.object_ids]
        for waiter in self.objects.complete(entry, value, refs, registered, voucher) or ():
            waiter(entry)

    def when_known(self, entry: Entry, waiter: Callable[[Entry], None]) -> None:
        entry.waiters = [*(entry.waiters or ()), waiter]

    def settle(self) -> None:
        while self.dropped:
            self.objects.drop_locals([self.dropped.popleft()])
        # The rest later, and other things happen in between (`Cluster.steps`).
        self.objects.release_some()
        if self.objects.outbox:
            self.borrowing.carry_out()

    # --- the user's code -----------------------------------------------------------------------------------------------

    def refs(self, entries: Iterable[Entry]) -> list[Refs]:
        return [Refs(entry.owner or self.address, [entry.object_id]) for entry in entries]

    def take(self, entry: Entry) -> Entry:
        """One more handle."""
        entry.local += 1
        return entry

    def load(self, refs: Iterable[Refs]) -> list[Entry]:
        return [self.take(entry) for entry in self.objects.borrow_all(refs)]

    def value(self, inners: list[Entry], owner: Process) -> Value:
        """A value with references inside, in a message or in shared memory."""
        refs = self.refs(inners)
        if self.cluster.rng.random() < 0.5:
            return Inline(b"", [], refs)
        return Stored(self.cluster.new_block(self, owner), self.address, refs)

    def put(self, inners: list[Entry], task: Running | None = None) -> None:
        context = self.context if task is None else task.context
        object_id = context.next_put_id()
        self.cluster.new(object_id, self, inners)
        entry = self.objects.own(object_id)
        if inners:
            self.objects.contain(entry, list(inners), None)
        entry.value = self.value(inners, self)
        (self.handles if task is None else task.handles).append(entry)
        if self.dropped:
            self.settle()

    def submit(
        self, to: str | Actor, refs: list[Entry], deps: list[Entry], streams: bool, retries: int
    ) -> None:
        """Submit a task to a worker, or call an actor."""
        task_id = self.ids.task_id()
        self.cluster.new(task_id, self)
        task = Task(task_id, self.objects.own(task_id), refs, deps)
        task.retries = retries
        if isinstance(to, Actor):
            task.actor = to
            to.callers[self] = None
            task.holds.append(self.objects.entries[to.handle])
        else:
            task.executor = to
        for entry in task.holds:
            self.objects.hold(entry)
        if streams:
            task.stream = Stream(self, task)  # type: ignore[arg-type]  # they play their parts
            # The generator has a handle of its own.
            self.generators.append(task)
            self.take(task.entry)
        task.entry.task = task
        self.tasks[task_id] = task
        self.handles.append(task.entry)
        for dep in deps:
            if dep.value is None and dep.task is None:
                self.borrowing.fetch(dep)
            if dep.value is None:
                self.when_known(dep, lambda _: self.push(task))
        self.push(task)

    def push(self, task: Task) -> None:
        """Send a task, if it can be sent."""
        if task.done or task.pushed or any(dep.value is None for dep in task.deps):
            return
        if any(type(dep.value) is Failed for dep in task.deps):
            self.fail(task)
            return
        if task.actor is not None:
            if task.actor.dead:
                self.fail(task)
                return
            if task.actor.process is None:
                # Until there is news of it.
                return
            task.executor = task.actor.process.address
        run = Run(
            task.task_id,
            task.attempt,
            self.refs(task.refs),
            [dep.value for dep in task.deps],
            task.stream is not None,
        )
        try:
            connection = self.peers.connect(task.executor)
        except ConnectionError:
            if task.actor is None:
                self.lost(task)
            return
        task.pushed = True
        connection.send(run)

    def lost(self, task: Task) -> None:
        """The process that ran a task is dead, or cannot be reached."""
        if not task.retries:
            self.fail(task)
            return
        task.retries -= 1
        task.attempt += 1
        task.pushed = False
        if task.actor is None:
            task.executor = self.cluster.some_worker()
        self.news.append(partial(self.push, task))

    def fail(self, task: Task) -> None:
        failed = Failed(b"lost")
        if task.stream is not None:
            task.stream.fail(-1, failed)
        self.complete(task.entry, failed, [], registered=True)
        self.release(task)

    def release(self, task: Task) -> None:
        task.done = True
        task.entry.task = None
        del self.tasks[task.task_id]
        holds, task.holds = task.holds, []
        for entry in holds:
            self.objects.unhold(entry)

    def drop(self, entry: Entry) -> None:
        """A handle has died: counted when somebody gets to it."""
        self.dropped.append(entry)

    def get(self, entry: Entry) -> None:
        """Read a value: handles for what is inside, or a question to the owner."""
        if isinstance(entry.value, Inline | Stored):
            self.handles += self.load(entry.value.refs)
        elif entry.value is None and entry.task is None:
            self.borrowing.fetch(entry)

    def next(self, task: Task) -> None:
        """Take the next item of a stream, if it is there."""
        stream = task.stream
        assert stream is not None
        entry = stream.next_entry()
        if entry is not None and entry.value is not None:
            self.handles.append(stream.take())
            self.settle()

    def abandon(self, task: Task) -> None:
        assert task.stream is not None
        self.generators.remove(task)
        task.stream.abandon()
        self.drop(task.entry)
        self.settle()

    def create(self, args: list[Entry], restarts: int) -> None:
        """Create an actor; its handle is kept."""
        actor = Actor(self.ids.task_id(), self, self.refs(args), restarts)
        self.cluster.new(actor.handle, self, args)
        entry = self.objects.own(actor.handle)
        entry.actor_id = actor.actor_id
        self.objects.contain(entry, list(args), None)
        self.handles.append(entry)
        self.cluster.actors[actor.handle] = actor
        self.cluster.to_start.append(actor)

    def be_made(self, actor: Actor) -> None:
        """`__init__`: it keeps its arguments, or some of them."""
        self.context = TaskContext("actor", actor.actor_id, self.ids, attempt=actor.lives - 1)
        for entry in self.load(actor.args):
            (self.handles if self.cluster.rng.random() < 0.7 else self.dropped).append(entry)
        if self.cluster.rng.random() < 0.5:
            self.put(self.handles[:1])
        self.settle()
        self.objects.register_before((), "")
        self.borrowing.carry_out()

    # --- running the tasks of others -----------------------------------------------------------------------------------

    def begin(self, run: Run, back: End) -> None:
        handles = self.load(run.refs)
        for dep in run.deps:
            assert not isinstance(dep, Failed)
            handles += self.load(dep.refs)
        context = TaskContext("task", run.task_id, self.ids, attempt=run.attempt)
        self.running.append(Running(run, context, back, handles))

    def finish(self, task: Running, returned: list[Entry] | None, keeps: list[Entry]) -> None:
        """Answer a task; None for `returned`: it has raised. `keeps` are those of its handles that stay, as in an actor's state."""
        self.running.remove(task)
        lent = [] if returned is None or task.streams else returned
        value: Value = Failed(b"raised")
        if returned is not None:
            value = Inline(b"") if task.streams else self.value(lent, task.back.peer)
        # The answer has handles of its own until it has been given, and the task may have none any more.
        handles = [self.take(entry) for entry in lent]
        for entry in task.handles:
            (self.handles if entry in keeps else self.dropped).append(entry)
        length = task.sent if task.streams else -1
        self.reply(task.back, Reply(task.task_id, value, length), lent)
        self.dropped += handles

    def yield_item(self, task: Running, lent: list[Entry]) -> None:
        """The next item of a stream."""
        handles = [self.take(entry) for entry in lent]
        item = Item(task.task_id, task.sent, self.value(lent, task.back.peer))
        task.sent += 1
        task.sending = True
        self.reply(task.back, item, lent, task)
        self.dropped += handles

    def reply(
        self, back: End, message: Reply | Item, lent: list[Entry], sending: Running | None = None
    ) -> None:
        """See `Executor.reply` and `Streams._send`."""
        objects = self.objects
        pending = (back, message)

        def leave() -> None:
            if pending in self.deferred:
                self.deferred.remove(pending)
            if sending is not None:
                sending.sending = False
            back.send(message)

        if back.closed:
            if isinstance(message.value, Stored):
                self.free(message.value.location)
            # A caller that is gone borrows nothing more.
            lent = []
        countdown: Countdown | None = None
        if sending is not None:
            countdown = objects.register_before(lent, back.peer_address) if lent else None
        elif lent or objects.unregistered:
            self.settle()
            countdown = objects.register_before(lent, back.peer_address)
        if countdown is None:
            leave()
        else:
            self.deferred.append(pending)
            self.borrowing.carry_out()
            self.borrowing.defer(countdown, leave)

    def run_in_place(self, task: Task, returned: list[Entry]) -> None:
        """A task that has not left runs right here."""
        value = self.value(returned, self)
        refs = [] if isinstance(value, Failed) else value.refs
        self.complete(task.entry, value, refs, registered=None)
        self.release(task)
        self.settle()

    # --- messages ------------------------------------------------------------------------------------------------------

    def receive(self, end: End) -> None:
        if end.peer_address in self.peers.gone:
            # It does not know yet that it is dead, and has connected again.
            self.peers.forget_end(end)
            return
        message = end.inbox.popleft()
        self.peers.adopt(end)
        match message:
            case Run():
                self.begin(message, end)
            case Reply(task_id, value, length):
                self._on_reply(self.tasks.get(task_id), value, length, end.peer_address)
            case Item(task_id, index, value):
                task = self.tasks.get(task_id)
                if task is not None and task.stream is not None:
                    if task.stream._entry(index) is not None:
                        self._enter(return_id(task_id, index + 1))
                    task.stream.item(index, value, end.peer_address)
                else:
                    self.objects.refuse(value, end.peer_address)
            case _:
                self.borrowing.handlers[type(message)](end, message)
        self.settle()

    def _enter(self, object_id: bytes) -> None:
        if object_id not in self.cluster.owners:
            self.cluster.new(object_id, self)

    def _on_reply(self, task: Task | None, value: Value, length: int, executor: str) -> None:
        if task is None:
            self.objects.refuse(value, executor)
            return
        if task.stream is not None:
            if isinstance(value, Failed):
                task.stream.fail(length, value)
            else:
                task.stream.end(length)
        refs = [] if isinstance(value, Failed) else value.refs
        self.complete(task.entry, value, refs, True, executor)
        self.release(task)

    def read_news(self) -> None:
        """What the node says, in order."""
        self.news.popleft()()
        self.settle()

    def hear_of_death(self, address: str) -> None:
        """A process has ended. What it said last may be unread: its connections are read to their ends first."""
        if self.peers.is_connected(address):
            self.peers.ended[address] = None
        else:
            self.bury(address)

    def bury(self, address: str) -> None:
        if address in self.peers.gone:
            return
        self.peers.forget(address)
        for task in list(self.tasks.values()):
            if task.executor == address and task.actor is None and not task.done:
                self.lost(task)
        self.borrowing.process_died(address, "was killed")

    def bury_and_settle(self, address: str) -> None:
        self.bury(address)
        self.settle()

    def hear_of_life(self, actor: Actor) -> None:
        """An actor has a process."""
        for task in [task for task in self.tasks.values() if task.actor is actor]:
            self.push(task)

    def hear_of_end(self, actor: Actor, life: str) -> None:
        """A life of an actor has ended. What it said last may be unread, and is read all the same."""
        for task in [task for task in self.tasks.values() if task.actor is actor]:
            if task.done:
                # It needed the result of one before it.
                continue
            if task.pushed and task.executor == life:
                self.lost(task)
            elif actor.dead:
                self.fail(task)

    def read_to_the_end(self, end: End) -> None:
        """A connection has ended, and all that came by it is read."""
        self.peers.forget_end(end)
        address = end.peer_address
        if address in self.peers.ended and not self.peers.is_connected(address):
            self.bury(address)
        self.settle()
