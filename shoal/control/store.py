"""The control store: a shell over the actor directory, and the tables that are too simple to be machines.

Guarantees: what a message changes is written down before anybody hears of it (`Journal`); calls and posts of one node
take effect in order; every answer is given after what caused it is durable. While its storage is away the store answers nothing that
depends on what is not written, and goes on where it was when the storage is back.

A control store that starts where another has ended takes up its actors, keys and jobs (`load`), before the first node connects. What has
become of them meanwhile the nodes tell.

Leaves to nodes: processes. An order to place an actor goes to a node; what becomes of it comes back as a post. Leaves to the storage:
whether it may write at all; of two control stores over one storage only one may.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

from shoal.control.journal import Journal
from shoal.control.link import ControlError, OnOrder
from shoal.control.restoring import (
    ACTORS,
    FORGOTTEN,
    JOBS,
    KEYS,
    SPECS,
    key_of,
    restored_from,
)
from shoal.control.storage import Storage, StorageState
from shoal.core.actors import (
    ActorDirectory,
    NameTaken,
    Place,
    Save,
    SaveForgotten,
    Stop,
    StopHow,
    Tell,
)
from shoal.messages.control import (
    ActorChanged,
    ActorGone,
    ActorLeaves,
    ActorPlaced,
    ActorRefused,
    ActorRuns,
    Call,
    ClientGone,
    CreateActor,
    DeleteKey,
    DropActor,
    FindActor,
    GetKey,
    JobEnded,
    JobStarted,
    KillActor,
    ListKeys,
    ListNames,
    ListNodes,
    NodeState,
    PlaceActor,
    Post,
    PutKey,
    StopActor,
    WatchActor,
)
from shoal.messages.node import Job, NodeRow
from shoal.messages.records import LivingActor

_log = logging.getLogger("shoal.control")
_encode: Final = msgspec.msgpack.Encoder().encode


class ControlStore:
    """See the module's docstring. `on_order` takes the orders for a node, by its id.

    `on_storage_failure` is told when the storage fails, after which the store does nothing more.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        storage: Storage,
        on_storage_failure: Callable[[Exception], None],
    ) -> None:
        self._loop = loop
        self._storage = storage
        self._journal = Journal(storage, on_storage_failure)
        self._actors = ActorDirectory()
        self._keys: dict[str, dict[bytes, bytes]] = {}
        self._jobs: dict[bytes, Job] = {}
        self._nodes: dict[bytes, NodeRow] = {}
        self._on_order: dict[bytes, OnOrder] = {}
        # Where each life of an actor was sent.
        self._placed_on: dict[bytes, bytes] = {}
        self._calls: dict[type, Callable[[Any], Any]] = {
            CreateActor: self._create_actor,
            FindActor: lambda m: self._actors.lookup(m.namespace, m.name),
            ListNames: lambda m: self._actors.names(m.namespace),
            PutKey: self._put_key,
            GetKey: lambda m: self._keys.get(m.namespace, {}).get(m.key),
            DeleteKey: self._delete_key,
            ListKeys: self._list_keys,
            ListNodes: lambda _: list(self._nodes.values()),
        }

    async def load(self) -> None:
        """Take up what an earlier control store has written down. Once, before the first node connects.

        Raises:
            StorageError: the storage cannot be opened, or holds what this version cannot read.
        """
        restored = restored_from(await self._storage.load())
        self._keys = restored.keys
        self._jobs = restored.jobs
        self._placed_on = restored.placed_on
        self._actors.restore(restored.living, restored.dead, restored.forgotten)

    async def close(self) -> None:
        """Finish what was written down, and let go of the storage. No message comes after this."""
        await self._storage.close()

    @property
    def storage_state(self) -> StorageState:
        """How the storage is, for whoever shows it."""
        return self._storage.state

    def on_claims(self, node_id: bytes, lives: Iterable[tuple[bytes, int]]) -> None:
        """A node has come back after the control store had restarted: (actor, incarnation) of each life it has."""
        for actor_id, incarnation in lives:
            sent_here = self._placed_on.get(actor_id) == node_id
            if not (sent_here and self._actors.on_claim(actor_id, incarnation)):
                reason = "the control store has restarted, and knows no such life of this actor on this node"
                self._order(node_id, StopActor(actor_id, incarnation, reason, StopHow.KILL.value))
        self._settle()

    def on_claims_over(self) -> None:
        """No more nodes are expected to come back."""
        self._actors.on_claims_over()
        self._settle()

    def connect(self, row: NodeRow, on_order: OnOrder) -> LocalLink:
        """A node of this process joins; its way here."""
        self._nodes[row.node_id] = row
        self._on_order[row.node_id] = on_order
        return LocalLink(self, row.node_id)

    def disconnect(self, node_id: bytes) -> None:
        """A node has left."""
        self._on_order.pop(node_id, None)
        self._nodes.pop(node_id, None)

    # --- calls ---------------------------------------------------------------------------------------------------

    def call(self, message: Call) -> asyncio.Future[Any]:
        """Answer a node's question."""
        answer: asyncio.Future[Any] = self._loop.create_future()
        try:
            result = self._calls[type(message)](message)
        except ControlError as error:
            answer.set_exception(error)
        else:
            self._journal.then(lambda: None if answer.done() else answer.set_result(result))
        self._settle()
        return answer

    def _create_actor(self, message: CreateActor) -> Any:
        try:
            return self._actors.on_create(
                message.spec, message.job_id, get_if_exists=message.get_if_exists
            )
        except NameTaken as error:
            raise ControlError(f"ActorAlreadyExistsError: {error}") from None

    def _put_key(self, message: PutKey) -> bool:
        table = self._keys.setdefault(message.namespace, {})
        new = message.key not in table
        if new or message.overwrite:
            table[message.key] = message.value
            self._journal.write(KEYS, key_of(message.namespace, message.key), message.value)
        return new

    def _delete_key(self, message: DeleteKey) -> int:
        table = self._keys.get(message.namespace, {})
        if message.by_prefix:
            keys = [key for key in table if key.startswith(message.key)]
        else:
            keys = [message.key] if message.key in table else []
        for key in keys:
            del table[key]
            self._journal.write(KEYS, key_of(message.namespace, key), None)
        return len(keys)

    def _list_keys(self, message: ListKeys) -> list[bytes]:
        table = self._keys.get(message.namespace, {})
        return [key for key in table if key.startswith(message.prefix)]

    # --- posts ---------------------------------------------------------------------------------------------------

    def post(self, node_id: bytes, message: Post) -> None:
        """Take what a node tells."""
        actors = self._actors
        match message:
            case NodeState(row):
                self._nodes[row.node_id] = row
            case JobStarted(job):
                self._jobs[job.job_id] = job
                self._journal.write(JOBS, job.job_id, _encode(job))
            case JobEnded(job_id, reason):
                self._jobs.pop(job_id, None)
                self._journal.write(JOBS, job_id, None)
                actors.on_job_gone(job_id, reason)
            case WatchActor(actor_id, client, owner):
                actors.on_watch(actor_id, (node_id, client), owner)
            case ClientGone(client, address, who, how):
                actors.on_watcher_gone((node_id, client))
                actors.on_owner_gone(address, who, how)
            case KillActor(actor_id, no_restart):
                actors.on_kill(actor_id, no_restart=no_restart)
            case DropActor(actor_id):
                actors.on_unreferenced(actor_id)
            case ActorPlaced(actor_id, incarnation, address, pid):
                actors.on_placed(actor_id, incarnation, address, pid)
            case ActorRuns(actor_id, incarnation, error, cause):
                actors.on_started(actor_id, incarnation, error, cause)
            case ActorLeaves(actor_id, incarnation, cause):
                actors.on_exiting(actor_id, incarnation, cause)
            case ActorGone(actor_id, incarnation, cause, expected):
                actors.on_process_gone(actor_id, incarnation, cause, expected=expected)
            case ActorRefused(actor_id, incarnation, reason):
                actors.on_refused(actor_id, incarnation, reason)
        self._settle()

    def _settle(self) -> None:
        """Write down what has changed and, when it is durable, carry out what the directory decided."""
        outbox = self._actors.outbox
        effects = outbox[:]
        outbox.clear()
        # Each actor once, as it is after all of the effects: nothing is done before the flush.
        changed: dict[bytes, bool] = {}
        for effect in effects:
            match effect:
                case Save(actor_id, new):
                    changed[actor_id] = new or changed.get(actor_id, False)
                case SaveForgotten(process):
                    self._journal.write(FORGOTTEN, process, self._actors.forgotten(process))
                case Place(spec, incarnation, job_id):
                    self._order_placement(PlaceActor(spec, incarnation, job_id))
                    # After a restart, the node that it was sent to is the one whose claim counts.
                    changed.setdefault(spec.actor_id, False)
                case Stop(actor_id, incarnation, reason, how):
                    node_id = self._placed_on.get(actor_id, b"")
                    self._order(node_id, StopActor(actor_id, incarnation, reason, how.value))
                case Tell(watchers, change):
                    self._tell(watchers, change)
        for actor_id, new in changed.items():
            self._save(actor_id, new)
        self._journal.flush()

    def _save(self, actor_id: bytes, new: bool) -> None:
        record = self._actors.record(actor_id)
        write = self._journal.write
        if isinstance(record, LivingActor):
            # The specification may hold the code of a class: it is written once, not on every change.
            actor = self._actors.get(actor_id)
            if new and actor is not None:
                write(SPECS, actor_id, _encode(actor.spec))
            record.node_id = self._placed_on.get(actor_id, b"")
        else:
            self._placed_on.pop(actor_id, None)
            write(SPECS, actor_id, None)
        write(ACTORS, actor_id, None if record is None else _encode(record))

    def _order_placement(self, order: PlaceActor) -> None:
        # One node for now: with several, the placement policy chooses here.
        node_id = next(iter(self._on_order), b"")
        self._placed_on[order.spec.actor_id] = node_id
        self._order(node_id, order)

    def _order(self, node_id: bytes, order: PlaceActor | StopActor | ActorChanged) -> None:
        def give() -> None:
            on_order = self._on_order.get(node_id)
            if on_order is not None:
                on_order(order)

        # In a turn of its own, as if it came through a socket: what a node posts while it obeys must not find the
        # store in the middle of something.
        def soon() -> None:
            self._loop.call_soon(give)

        self._journal.then(soon)

    def _tell(self, watchers: tuple[Any, ...], change: Any) -> None:
        by_node: dict[bytes, list[int]] = {}
        for node_id, client in watchers:
            by_node.setdefault(node_id, []).append(client)
        for node_id, clients in by_node.items():
            self._order(node_id, ActorChanged(clients, change))


class LocalLink:
    """The way of a node in the same process (a `ControlLink`)."""

    def __init__(self, store: ControlStore, node_id: bytes) -> None:
        self._store = store
        self._node_id = node_id

    def call(self, message: Call) -> asyncio.Future[Any]:
        return self._store.call(message)

    def post(self, message: Post) -> None:
        self._store.post(self._node_id, message)

    def close(self) -> None:
        self._store.disconnect(self._node_id)
