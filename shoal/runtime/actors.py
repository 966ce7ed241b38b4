"""Actors as their callers see them: creation, calls, and what happens when one restarts or dies.

Carries out `core.calls` for each actor that this process knows. Threads: `create` and `call` are called by user threads and take
the lock; handlers are called with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from shoal.core.calls import ActorCalls
from shoal.core.references import Entry
from shoal.core.tasks import State, Task
from shoal.errors import (
    ActorDiedError,
    ActorPlacementGroupRemoved,
    ActorUnavailableError,
    ActorUnschedulableError,
    PendingCallsLimitExceeded,
)
from shoal.ids import return_id
from shoal.messages.node import (
    GROUP_REMOVED,
    UNPLACEABLE,
    ActorChange,
    ActorCreate,
    ActorInfo,
    ActorKill,
    ActorSpec,
    ActorWatch,
)
from shoal.messages.peer import Call, CallFull, StreamConsumed
from shoal.messages.values import Dep, Failed, Ref, Stored
from shoal.runtime.owner import cancelled
from shoal.runtime.reentry import refuse_reentry
from shoal.runtime.values import LARGE_MESSAGE_BYTES, wire_args
from shoal.serial.exceptions import dump_exception, load_exception

if TYPE_CHECKING:
    from shoal.runtime.process import Process
    from shoal.wire.connection import Connection


class Actors:
    """See the module's docstring."""

    def __init__(self, process: Process) -> None:
        self._process = process
        # Links live as long as handles, pending calls or a connection refer to them.
        self._links: WeakValueDictionary[bytes, ActorCalls] = WeakValueDictionary()
        self._by_address: WeakValueDictionary[str, ActorCalls] = WeakValueDictionary()
        # Links with calls that could not be sent yet: nothing else may refer to those.
        self._unsent: dict[bytes, ActorCalls] = {}
        # What keeps the arguments of detached actors, for as long as these live, and their records: whether they may be made again.
        self.detached: dict[Entry, bytes] = {}
        self._made: dict[bytes, tuple[Entry, ActorCalls, bool]] = {}
        self.node_handlers: dict[type, Callable[[Any], None]] = {ActorChange: self._on_change}

    # --- creating ------------------------------------------------------------------------------------------------

    def create(
        self, spec: ActorSpec, deps: list[tuple[int | str, Entry]] | None, holds: list[Entry] | None
    ) -> Entry:
        """Create an actor whose handle nobody else can have yet; returns the entry that its handles count on."""
        process = self._process
        refuse_reentry(process.reactor, f"{spec.class_name}.remote()")
        with process.lock:
            entry = process.objects.own(return_id(spec.actor_id, 0))
            self._adopt(spec, entry, deps, holds)
            process.node.send_locked(ActorCreate(process.next_req(), spec))
            process.settle()
            process.reactor.flush_locked()
        return entry

    def create_named(
        self,
        spec: ActorSpec,
        deps: list[tuple[int | str, Entry]] | None,
        holds: list[Entry] | None,
        get_if_exists: bool,
    ) -> tuple[ActorInfo, Entry | None]:
        """Create an actor under a name, or find the one that has it; waits for the control store's word.

        Returns what a handle needs, and the entry that it counts on (None if the actor existed, or is detached).

        Raises:
            ActorAlreadyExistsError: the name is taken.
        """
        process = self._process
        refuse_reentry(process.reactor, f"{spec.class_name}.remote()")
        with process.lock:
            # One handle: the caller's.
            entry = process.objects.own(return_id(spec.actor_id, 0))
            self._adopt(spec, entry, deps, holds)
        info: ActorInfo | None = None
        try:
            info = process.node.query(
                lambda req: ActorCreate(req, spec, get_if_exists), ActorInfo, None
            )
            return info, None if info.existed or spec.detached else entry
        finally:
            if info is None or info.existed or spec.detached:
                with process.lock:
                    entry.actor_id = None
                    if spec.detached and info is not None and not info.existed and entry.contains:
                        self._keep_arguments(spec, entry)
                    else:
                        process.objects.drop_locals([entry])
                    process.settle()

    def _keep_arguments(self, spec: ActorSpec, entry: Entry) -> None:
        link = self.link(spec.actor_id, spec.class_name, spec.out_of_order)
        self.detached[entry] = spec.actor_id
        self._made[spec.actor_id] = entry, link, spec.max_restarts != 0
        self.watch(link)

    def _drop_arguments(self, actor_id: bytes) -> None:
        """A detached actor is not made again."""
        made = self._made.pop(actor_id, None)
        if made is not None:
            del self.detached[made[0]]
            self._process.objects.drop_locals([made[0]])

    def need_arguments(self) -> bool:
        """Whether a detached actor may have to be made, or made again, of what this process keeps (with the lock held)."""
        return any(restarts or link.state != "ALIVE" for _, link, restarts in self._made.values())

    def _adopt(
        self,
        spec: ActorSpec,
        entry: Entry,
        deps: list[tuple[int | str, Entry]] | None,
        holds: list[Entry] | None,
    ) -> None:
        """Let the actor's entry hold its arguments, as long as it may have to be made again, and write them down."""
        process = self._process
        entry.actor_id = spec.actor_id
        if holds:
            process.objects.contain(entry, list(holds), None)
        if type(spec.args) is Stored:
            # Large arguments were put into shared memory for this actor alone: an object that only it contains.
            large = process.objects.own(process.ids.task_id(), local=0)
            large.value = spec.args
            process.objects.contain(entry, [large], None)
        for key, dep in deps or ():
            value = dep.value
            if value is None or type(value) is Failed:
                spec.awaited.append((key, Ref(dep.object_id, dep.owner or process.address)))
            else:
                spec.deps.append(Dep(key, wire_args(value)))

    # --- calling -------------------------------------------------------------------------------------------------

    def link(self, actor_id: bytes, class_name: str = "", out_of_order: bool = False) -> ActorCalls:
        """The record of the calls to an actor (with the lock held); made on first use."""
        link = self._links.get(actor_id)
        if link is None:
            link = self._links[actor_id] = ActorCalls(
                actor_id, self._push, out_of_order, class_name
            )
        return link

    def watch(self, link: ActorCalls, owner: str = "") -> None:
        """See that the node says what becomes of an actor (with the lock held). `owner` made it, unless this process did."""
        if not link.watched:
            link.watched = True
            self._process.node.send_locked(ActorWatch(link.actor_id, owner))

    def watch_now(self, link: ActorCalls, owner: str) -> None:
        """The same. Takes the lock."""
        with self._process.lock:
            self.watch(link, owner)
            self._process.reactor.flush_locked()

    def kill(self, link: ActorCalls, no_restart: bool, owner: str = "") -> None:
        """End an actor (with the lock held): calls made from here on do not reach the process that is about to end. `owner` made it,
        unless this process did."""
        self._process.node.send_locked(ActorKill(link.actor_id, no_restart, owner))
        if no_restart:
            self._die(link, "it was killed by shoal.kill()", b"")
        else:
            link.connection = None
            self.keep(link)

    def keep(self, link: ActorCalls) -> None:
        """A call waits for the actor's process: keep its link, whatever becomes of handles and references."""
        if link.connection is None:
            self._unsent[link.actor_id] = link

    def links(self) -> list[ActorCalls]:
        """The records of all actors that this process knows (with the lock held)."""
        return [link for ref in self._links.valuerefs() if (link := ref()) is not None]

    def have_calls(self) -> bool:
        """Whether any call has no result yet (with the lock held)."""
        return any(link.pending for link in self.links())

    def check_limit(self, link: ActorCalls, limit: int) -> None:
        """Refuse a call beyond `max_pending_calls`.

        Raises:
            PendingCallsLimitExceeded: so many wait already.
        """
        if 0 <= limit <= link.pending:
            raise PendingCallsLimitExceeded(
                f"{link.pending} calls to actor {self._name(link)} have no result yet, and max_pending_calls is {limit}; "
                "wait for some of them, or raise the limit"
            )

    def _push(self, link: ActorCalls, task: Task) -> None:
        connection: Connection = link.connection
        args = task.args
        if (
            type(args) is bytes
            and task.deps is None
            and task.return_count == 1
            and not task.attempt
            and not task.name
            and not task.group
        ):
            connection.out.append(Call(task.task_id, task.method, args))
            large = len(args) > LARGE_MESSAGE_BYTES
        else:
            connection.out.append(
                CallFull(
                    task.task_id,
                    task.method,
                    wire_args(args),
                    self._process.owner.resolve_deps(task),
                    task.return_count,
                    task.attempt,
                    task.name,
                    task.window,
                    task.group,
                )
            )
            if task.stream is not None and task.stream.consumed:
                connection.out.append(StreamConsumed(task.task_id, task.stream.consumed))
            large = type(args) is not bytes
        connection.touch()
        if large or len(link.inflight) == 1:
            connection.flush()

    # --- changes -------------------------------------------------------------------------------------------------

    def _on_change(self, message: ActorChange) -> None:
        link = self._links.get(message.actor_id)
        if link is None or message.incarnation < link.incarnation or link.state == "DEAD":
            return
        if message.state == "DEAD":
            link.kind = message.kind
            self._die(link, message.cause, message.error)
            return
        if message.incarnation > link.incarnation or message.state == "RESTARTING":
            self._lose(link, message.cause)
            link.incarnation = message.incarnation
        link.state = message.state
        if message.address and link.connection is None:
            self._connect(link, message.address, message.pid)

    def _connect(self, link: ActorCalls, address: str, pid: int) -> None:
        try:
            connection = self._process.peers.connect(address)
        except ConnectionError:
            # It has died already; the control store says so next.
            return
        link.address = address
        link.pid = pid
        connection.lane = link
        self._by_address[address] = link
        self._unsent.pop(link.actor_id, None)
        link.connected(connection)

    def _lose(self, link: ActorCalls, cause: str) -> None:
        self._by_address.pop(link.address, None)
        self._fail_lost(link, link.lost(), cause)
        if link.pending:
            self.keep(link)

    def _fail_lost(self, link: ActorCalls, failed: list[Task], cause: str) -> None:
        for task in failed:
            if task.cancelled:
                self._process.owner.fail(task, cancelled(task.method, task.task_id))
                continue
            error = ActorUnavailableError(
                f"actor {self._name(link)} was lost during {task.method}() and restarts: {cause.rstrip('.') or 'its process ended'}. "
                "The call may or may not have run; with max_task_retries it would be made again",
                link.actor_id.hex(),
            )
            self._process.owner.fail(task, Failed(dump_exception(error)))

    def _die(self, link: ActorCalls, cause: str, error: bytes) -> None:
        self._by_address.pop(link.address, None)
        self._unsent.pop(link.actor_id, None)
        self._drop_arguments(link.actor_id)
        failed = link.dead(cause, error)
        for task in failed:
            self.fail_dead(link, task)

    def fail_dead(self, link: ActorCalls, task: Task) -> None:
        """Fail a call to a dead actor."""
        task.state = State.FINISHED
        self._process.owner.fail(task, Failed(dump_exception(self.death(link))))

    def death(self, link: ActorCalls) -> Exception:
        """Why an actor is dead, as the error that its callers get."""
        actor_id = link.actor_id.hex()
        if link.error:
            cause = load_exception(link.error)
            if isinstance(cause, ActorUnschedulableError):
                return cause
            error = ActorDiedError(
                f"actor {self._name(link)} could not be made: {link.cause}\n{cause}",
                actor_id,
                actor_init_failed=True,
            )
            error.__cause__ = cause
            return error
        dead = f"actor {self._name(link)} is dead: {link.cause}"
        if link.kind == UNPLACEABLE:
            return ActorUnschedulableError(dead)
        if link.kind == GROUP_REMOVED:
            return ActorPlacementGroupRemoved(dead)
        return ActorDiedError(dead, actor_id)

    def _name(self, link: ActorCalls) -> str:
        short = link.actor_id.hex()
        return f"{link.class_name}({short})" if link.class_name else short

    def process_died(self, address: str) -> None:
        """An actor's process has ended: send nothing more until the control store has decided about it."""
        link = self._by_address.get(address)
        if link is not None and link.address == address:
            link.connection = None
