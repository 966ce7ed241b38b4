"""The runtime of one process, wired together: a driver's or a worker's.

State and threads
-----------------
Everything that the parts share is guarded by one lock (`lock`); no user code, no pickling and no waiting happens under it. The
reactor's leader (see `wire.reactor`) feeds messages in; user threads submit and ask. `settle` is the one place where
consequences are drawn after any change: dead handles are counted, lanes refilled, effects carried out.

Who owns what: `objects` the table of objects, `submissions` the way in for tasks and calls, `owner` the tasks and leases, `actors` the
calls, `borrowing` what is said to other owners, `store` the shared memory of this process, `garbage` references that nobody can reach,
`peers` the connections to others, `node` that to the node daemon, `node_messages` what comes from there, `deaths` what follows when
another process ends.
"""

from __future__ import annotations

import logging
import os
import sys
from collections import deque
from collections.abc import Callable
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

from shoal.config import Config
from shoal.core.references import BATCH, ObjectTable
from shoal.core.tasks import Task
from shoal.errors import NotInitializedError, ShoalError
from shoal.ids import IdSource, return_id
from shoal.lock import make_lock
from shoal.messages.node import (
    PeerGone,
    RegisterDriver,
    RegisterWorker,
    Shape,
)
from shoal.messages.placement import InBundle
from shoal.messages.stores import QuotaWanted, SpillWanted
from shoal.messages.values import Failed
from shoal.runtime.actors import Actors
from shoal.runtime.arrivals import Arrivals
from shoal.runtime.borrowing import Borrowing
from shoal.runtime.call_sites import SitedObjects, SitedSubmissions
from shoal.runtime.census import Census
from shoal.runtime.context import TaskContext, current
from shoal.runtime.deaths import Deaths
from shoal.runtime.deliveries import Deliveries
from shoal.runtime.entrance import Entrance
from shoal.runtime.environment import merge_envs
from shoal.runtime.garbage import Garbage
from shoal.runtime.groups import Groups
from shoal.runtime.heap import trim_heap
from shoal.runtime.inquiries import Inquiries
from shoal.runtime.news import News
from shoal.runtime.node_link import NodeLink
from shoal.runtime.node_messages import NodeMessages
from shoal.runtime.owner import Owner
from shoal.runtime.peers import Peers
from shoal.runtime.reentry import is_reentered
from shoal.runtime.storage import ObjectStore
from shoal.runtime.streams import Stream
from shoal.runtime.submitting import Submissions
from shoal.runtime.unsent import answer_unsent
from shoal.runtime.values import Values
from shoal.runtime.waiting import Waiting
from shoal.serial.exceptions import dump_exception
from shoal.wire.addresses import creator_at
from shoal.wire.connection import Connection
from shoal.wire.reactor import Reactor, Waiter
from shoal.wire.session import spill_path

if TYPE_CHECKING:
    from shoal.core.references import Entry
    from shoal.core.tasks import Function
    from shoal.messages.node import Job
    from shoal.messages.values import Refs

logger = logging.getLogger("shoal")


_TRIM_AFTER_S: Final = 1.0
_DRAIN_PAUSE_S: Final = 0.001
"""After very many objects have gone, others go: what is free is given back once."""


class Process:
    """See the module's docstring.

    Attributes:
        kind: "driver" or "worker".
        dropped: Entries whose handles died, once for each; drained by `settle`.
        callbacks: What the reactor's leader calls without the lock after a round.
        tick_waiters: Waiters that are woken by any object that becomes known.
    """

    def __init__(
        self,
        kind: str,
        node_path: str,
        token: bytes,
        address: str,
        register: RegisterDriver | RegisterWorker,
        config: Config,
    ) -> None:
        self.kind = kind
        self.address = address
        self.job: Job | None = None
        self.worker_id = b""
        self.pid = os.getpid()
        self.lock = make_lock()
        self.reactor = Reactor(self.lock, config.watch_us)
        self.ids = IdSource()
        self.closed = False
        self.dropped: deque[Entry] = deque()
        self._goes_on = False
        self.drop = self._make_drop()
        self.dropped_streams: deque[Stream] = deque()
        self.streams: WeakSet[Stream] = WeakSet()
        self.callbacks: deque[Callable[[], None]] = deque()
        self.tick_waiters: list[Waiter] = []
        self.node = NodeLink(self.reactor)
        self.node_messages = NodeMessages(self.reactor, self.node)
        self._req = 0
        self._warned: set[str] = set()

        # Before the node hears of this process: whoever is told its address must be able to connect.
        self.session_dir = os.path.dirname(node_path)
        self._entrance = Entrance(self.reactor, self.session_dir, address)
        try:
            self.registered = self.node_messages.join(node_path, token, address, register)
        except BaseException:
            self._entrance.close()
            raise
        self.config = self.registered.config
        self.job_id = self.registered.job_id
        self.node_id = self.registered.node_id

        sited = self.config.record_call_sites
        self.objects = SitedObjects(address) if sited else ObjectTable(address)
        self.news = News(self.objects)
        self.store = ObjectStore(
            self.registered.shm_dir,
            creator_at(address),
            address,
            self.node,
            self.settle_now,
            spill_path(self.session_dir) if self.config.spill else "",
            self.config.spill_disk_fraction,
            self.config.spill_batch_bytes,
            self.config.store_idle_s,
            self.reactor.call_later,
            bool(self.config.spill_remote),
        )
        self.garbage = Garbage(self.config.store_full_timeout_s)
        self.deliveries = Deliveries(self.store)
        self.values = Values(self.store, self.config.inline_limit_bytes, address)
        self.peers = Peers(
            self.reactor,
            self.node,
            token,
            address,
            self.session_dir,
            self,
            self.config,
        )
        self.arrivals = Arrivals(self)
        self.borrowing = Borrowing(self)
        self.owner = Owner(self)
        self.submissions = (SitedSubmissions if sited else Submissions)(self, self.owner)
        self.actors = Actors(self)
        self.groups = Groups(self)
        self.inquiries = Inquiries(self)
        self.deaths = Deaths(self)
        self.census = Census(self)
        self.waiting = Waiting(self, self.config.block_grace_us)
        self.handlers: dict[type, Callable[[Any, Any], None]] = {
            **self.owner.handlers,
            **self.borrowing.handlers,
        }
        self.node_handlers: dict[type, Callable[[Any], None]] = {
            **self.owner.leases.node_handlers,
            **self.actors.node_handlers,
            **self.groups.node_handlers,
            **self.inquiries.node_handlers,
            PeerGone: self.deaths.on_peer_gone,
            QuotaWanted: self._on_quota_wanted,
            SpillWanted: lambda message: self.store.spill(message.wanted),
            **self.census.node_handlers,
        }
        if self.store.remote is not None:
            self.node_handlers.update(self.store.remote.node_handlers)
        self.functions: dict[bytes, Function] = {}
        self.namespace = ""
        self.env = ""
        # What the worker's executor knows and the runtime context answers.
        self.host: Any = None
        self.assigned_shape: Shape | None = None
        # The placement group of whatever is submitted from here and does not say where it is to run.
        self.captured: InBundle | None = None
        self.gpu_ids: list[str] = []
        self.root = TaskContext(kind, self.ids.task_id(), self.ids)
        self.reactor.after_poll = self._after_poll
        self.reactor.backlog = self.dropped
        self._entrance.open(self.peers.accept, self.config.door_strangers)

    def _make_drop(self) -> Callable[[Entry], None]:
        """What handles call when they die: in any thread, inside the garbage collector, with any lock held."""
        append = self.dropped.append
        reactor = self.reactor

        def drop(entry: Entry) -> None:
            append(entry)
            if reactor.asleep:
                reactor.rouse()

        return drop

    def drop_stream(self, stream: Stream) -> None:
        """The consumer of a stream has died; called as `drop` is."""
        self.dropped_streams.append(stream)
        self.reactor.wake()

    def begin(self) -> None:
        """Take messages from now on; every part is in place."""
        self.node_messages.begin(self)
        self.reactor.start()

    # --- messages (the reactor's leader) -------------------------------------------------------------------------

    def on_messages(self, connection: Connection, messages: list[Any]) -> None:
        """A batch from another process."""
        with self.lock:
            if connection.peer is None and not self.peers.admit(connection):
                return
            handlers = self.handlers
            for message in messages:
                handlers[type(message)](connection, message)
            self.settle()
            if self.tick_waiters:
                self.tick()

    def on_closed(self, connection: Connection, error: Exception | None) -> None:
        """A connection to another process broke."""
        self.deaths.on_closed(connection, error)

    def on_unsent(self, connection: Connection, message: Any, reason: str) -> None:
        """A message cannot be sent, to a process or the node: whoever would wait for ever is told."""
        answer_unsent(self, connection, message, reason)

    def fail_everything(self, error: ShoalError) -> None:
        """Whatever has no value now will never have one: tell everybody who waits."""
        failed = Failed(dump_exception(error))
        for entry in list(self.objects.entries.values()):
            if entry.value is None and entry.actor_id is None:
                if isinstance(entry.task, Task) and entry.task.stream is not None:
                    # Its consumer gets the error once, and then the end.
                    entry.task.stream.fail(-1, failed)
                if entry.value is None:
                    self.complete(entry, failed, [], None)
        self.tick()

    def _on_quota_wanted(self, message: QuotaWanted) -> None:
        def give_back() -> None:
            if self.garbage.collect():
                self.settle_now()
            self.store.give_back(message.wanted, message.itself)

        self.callbacks.append(give_back)

    def is_counted_on(self) -> bool:
        """Whether others need this process though it may have nothing to do itself: for objects that it owns and has lent, for
        tasks and calls that it has submitted, for detached actors that it has made (with the lock held)."""
        return (
            self.objects.is_counted_on()
            or self.owner.leases.is_in_use()
            or self.owner.shortages.is_pausing()
            or self.actors.have_calls()
            or self.actors.need_arguments()
        )

    # --- consequences (with the lock held) -----------------------------------------------------------------------

    def settle(self) -> None:
        """Draw the consequences of what has changed. Of very many dead handles one batch is counted, and the rest a little later."""
        dropped = self.dropped
        if self.dropped_streams:
            while self.dropped_streams:
                self.dropped_streams.popleft().abandon()
        objects = self.objects
        if dropped:
            if len(dropped) > BATCH:
                objects.drop_locals([dropped.popleft() for _ in range(BATCH)])
                objects.shrink()
            else:
                pop = dropped.popleft
                while dropped:
                    entry = pop()
                    entry.local -= 1
                    if not entry.local and not entry.holds:
                        objects.consider(entry)
        if objects.unfinished or objects.shrunk:
            self._settle_much()
        self.owner.settle()
        if objects.outbox:
            self.borrowing.carry_out()

    def _settle_much(self) -> None:
        """A batch of what very large objects contained; and the memory of what has gone, a little later."""
        objects = self.objects
        objects.release_some()
        if objects.unfinished and not self._goes_on:
            self._goes_on = True
            self.reactor.call_later(0, self._go_on)
        if objects.shrunk:
            objects.shrunk = False
            self.reactor.call_later(_TRIM_AFTER_S, trim_heap)

    def settle_now(self) -> None:
        """The same, to the end. Takes the lock, batch by batch; in the middle of the runtime's work it does nothing."""
        if not is_reentered(self):
            more = True
            while more:
                with self.lock:
                    self.settle()
                    self.reactor.flush_locked()
                    more = self.is_unsettled()

    def is_unsettled(self) -> bool:
        """Whether handles have died, or objects contained something, that is not counted yet."""
        return bool(self.dropped or self.objects.unfinished)

    def _go_on(self) -> None:
        self._goes_on = False
        with self.lock:
            self.settle()

    def complete(
        self, entry: Entry, value: Any, refs: list[Refs], registered: bool | None, voucher: str = ""
    ) -> None:
        """The value of an entry is known: tell everybody who waits for it."""
        waiters = self.objects.complete(entry, value, refs, registered, voucher)
        if waiters:
            self.news.tell(waiters, entry)

    def when_known(self, entry: Entry, waiter: Callable[[Entry], None]) -> None:
        """Call `waiter(entry)`, with the lock held, once the entry's value is known."""
        if entry.waiters is None:
            entry.waiters = [waiter]
        else:
            entry.waiters.append(waiter)

    def forget_waiter(self, entry: Entry, waiter: Callable[[Entry], None]) -> None:
        """`waiter` does not wait any more."""
        if entry.waiters is not None and waiter in entry.waiters:
            entry.waiters.remove(waiter)

    def tick(self) -> None:
        """Wake everybody who waits for whatever comes next."""
        waiters, self.tick_waiters = self.tick_waiters, []
        for waiter in waiters:
            waiter.finish()

    def make_stream(self, task: Task) -> Stream:
        """The record of a task's stream."""
        stream = Stream(self, task)
        self.streams.add(stream)
        return stream

    def shape_here(self, shape: Shape, *, capturable: bool, inherits: bool = False) -> Shape:
        """A shape as the running code submits it: in its environment, with the shape's own in that, and in its placement group, if that
        captures what names no place (`capturable`). `inherits`: it captures if this group does."""
        env = merge_envs(self.env, shape.env) if self.env else shape.env
        captured, strategy = self.captured, shape.strategy
        if captured is not None and capturable:
            strategy = captured
        elif captured is not None and inherits and isinstance(strategy, InBundle):
            strategy = InBundle(strategy.group_id, strategy.index, captures=True)
        return Shape(shape.resources, env, strategy)

    def next_req(self) -> int:
        """A number for a request to the node whose answer nobody waits for."""
        self._req += 1
        return self._req

    def borrow_actor(self, actor_id: bytes, owner: str) -> Entry:
        """The entry that an actor's handles count on, with one more handle."""
        with self.lock:
            entry = self.objects.borrow((return_id(actor_id, 0), owner))
            entry.local += 1
        return entry

    def children(self) -> dict[bytes, Task] | None:
        """Where tasks submitted by the running code are noted, if it can be cancelled recursively."""
        context = current.get()
        return None if context is None else context.children

    def context(self) -> TaskContext:
        """The task that the running code belongs to."""
        return current.get() or self.root

    def is_first(self, text: str) -> bool:
        """Whether this was never said before; it is now."""
        if text in self._warned:
            return False
        self._warned.add(text)
        return True

    def warn(self, text: str) -> None:
        """Tell the user something once."""
        if self.is_first(text):
            self.callbacks.append(lambda: print(f"shoal: {text}", file=sys.stderr, flush=True))

    def _after_poll(self) -> None:
        if self.dropped or self.dropped_streams:
            with self.lock:
                self.settle()
                self.reactor.flush_locked()
        self.run_callbacks()

    def run_callbacks(self) -> None:
        """Call what must be called without the lock."""
        callbacks = self.callbacks
        if not callbacks:
            return
        with self.reactor.resting():
            while callbacks:
                try:
                    callbacks.popleft()()
                except Exception:
                    # Whoever leads is not to blame, and the others must be called too.
                    logger.exception("a callback failed")

    # --- ending --------------------------------------------------------------------------------------------------

    def drain(self, timeout_s: float) -> None:
        """Let what is queued to be sent leave, for at most `timeout_s`."""
        deadline = monotonic() + timeout_s
        reactor = self.reactor
        while (reactor.dirty or reactor.behind) and monotonic() < deadline:
            reactor.flush()
            reactor.pump()
            if reactor.behind:
                # The kernel takes more when the other side has read.
                sleep(_DRAIN_PAUSE_S)

    def close(self, unlink: bool) -> None:
        """Close everything; `unlink` removes the shared memory that this process made."""
        if self.closed:
            return
        self.closed = True
        self.reactor.flush()
        with self.lock:
            self.node.lose("shoal was shut down")
            self.fail_everything(
                NotInitializedError("shoal was shut down before the value was there")
            )
            self.peers.close()
            if self.node.connection is not None:
                self.node.connection.close()
            self._entrance.close()
        self.reactor.close()
        self.store.close(unlink)

    def abandon(self) -> None:
        """Let go of everything, in a child of this process, without touching what is the parent's (see `runtime.forked`)."""
        self.closed = True
        self.lock = self.reactor.abandon()
        self._entrance.abandon()
        self.peers.abandon()
        if self.node.connection is not None:
            self.node.connection.abandon()
