"""The control store: a shell over the actor directory, and the tables that are too simple to be machines.

Guarantees: what a message changes is written down before anybody hears of it (`Journal`); calls and posts of one node
take effect in order; every answer is given after what caused it is durable. While its storage is away the store answers nothing that
depends on what is not written, and goes on where it was when the storage is back.

A control store that starts where another has ended takes up its actors, keys and jobs (`load`), before the first node connects. What has
become of them meanwhile the nodes tell. A message that is numbered (`Heard`) leaves its number with what it changes, in one commit, so
that it takes effect once also if it comes again to another control store (`Answers`).

Leaves to its parts: where actors are sent (`ActorPlaces`), how orders leave (`Orders`), jobs, keys, placement groups. Leaves to nodes:
processes. An order to place an actor goes to a node; what becomes of it comes back as a post. Leaves to the storage: whether it may write
at all; of two control stores over one storage only one may. Leaves to others: connections, and when a node counts as dead
(`control.sessions`).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

from shoal.config import Config
from shoal.control.actor_places import ActorPlaces
from shoal.control.answers import Answers, Heard
from shoal.control.groups import Groups
from shoal.control.history import History, latest
from shoal.control.jobs import Jobs
from shoal.control.journal import Journal
from shoal.control.keys import Keys
from shoal.control.link import ControlError, OnOrder
from shoal.control.local_link import LocalLink
from shoal.control.nodes import Nodes
from shoal.control.orders import Orders
from shoal.control.overview import Overview
from shoal.control.restoring import (
    ACTORS,
    CLUSTER,
    CLUSTER_ID,
    FORGOTTEN,
    NODES,
    SPECS,
    Restored,
    restored_from,
)
from shoal.control.storage import FAILED, Storage, StorageError, StorageState
from shoal.control.surveys import Surveys
from shoal.core.actor_records import Place, Save, SaveForgotten, Stop, StopHow, Tell
from shoal.core.actors import ActorDirectory, NameTaken
from shoal.ids import ID_SIZE
from shoal.messages.control import (
    ActorGone,
    ActorLeaves,
    ActorPlaced,
    ActorRefused,
    ActorRuns,
    BundlesPrepared,
    BundlesReleased,
    Call,
    ClientGone,
    ClusterStatus,
    CreateActor,
    CreateGroup,
    DeleteKey,
    DropActor,
    EndedProcess,
    EndJob,
    FindActor,
    GetKey,
    JobEnded,
    JobStarted,
    KillActor,
    ListActors,
    ListEndedProcesses,
    ListGroups,
    ListJobs,
    ListKeys,
    ListNames,
    ListNodes,
    NodeDied,
    NodeFound,
    NodeJoined,
    NodeState,
    NodeView,
    PlaceActor,
    Post,
    PutKey,
    RemoveGroup,
    StopActor,
    SurveyNodes,
    WatchActor,
    WatchGroup,
)
from shoal.messages.node import NodeRow
from shoal.messages.placement import BundleHeld
from shoal.messages.records import LivingActor, NodeRecord
from shoal.wire.addresses import place_of

_encode: Final = msgspec.msgpack.Encoder().encode


class ControlStore:
    """See the module's docstring. `restored` is what it began with.

    `on_storage_failure` is told when the storage fails, after which the store does nothing more. `name` and `address`, the
    storage's without passwords, are for `ClusterStatus`.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        storage: Storage,
        on_storage_failure: Callable[[Exception], None],
        *,
        config: Config | None = None,
        name: str = "",
        address: str = "memory:",
    ) -> None:
        self.name = name
        self.cluster_id = b""
        self.restored: Restored | None = None
        self.nodes = Nodes()
        self._loop = loop
        self._storage = storage
        storage.state.listen(self._on_storage_state)
        self._journal = Journal(storage, on_storage_failure)
        self._orders = Orders(loop, self.nodes, self._journal)
        self._actors = ActorDirectory()
        self._keys = Keys(self._journal)
        config = config or Config()
        self._history = History(config)
        self._jobs = Jobs(self._journal, self._history)
        self._groups = Groups(
            loop,
            self.nodes,
            self._journal,
            config,
            order=self._orders.give,
            home_of=self._jobs.node_of,
            on_due=self._settle,
            on_removed=self._actors.on_group_removed,
            on_placed=lambda: self._places.place_again(),  # noqa: PLW0108 - which are made after these
        )
        self._surveys = Surveys(loop, self.nodes, self._orders.give)
        self._places = ActorPlaces(
            self.nodes, self._actors, self._jobs, self._groups, self._orders, self._save
        )
        self._answers = Answers(self._journal)
        self._overview = Overview(
            name,
            address,
            storage.state,
            self.nodes,
            self._actors,
            self._jobs,
            self._groups,
            self._places,
            self._surveys,
        )
        actors, keys, history = self._actors, self._keys, self._history
        self._calls: dict[type, Callable[[Any], Any]] = {
            CreateActor: self._create_actor,
            FindActor: lambda m: actors.lookup(m.namespace, m.name),
            ListNames: lambda m: actors.names(m.namespace),
            PutKey: keys.put,
            GetKey: keys.get,
            DeleteKey: keys.delete,
            ListKeys: keys.list,
            ListNodes: lambda _: self.nodes.listed(),
            ListJobs: lambda _: self._jobs.rows(),
            ListEndedProcesses: lambda m: latest(history.processes, m.limit),
            ClusterStatus: lambda _: self._overview.status(self.cluster_id),
            CreateGroup: self._create_group,
            RemoveGroup: self._groups.remove,
            ListGroups: self._groups.list,
            ListActors: lambda _: self._overview.actors(),
            SurveyNodes: self._overview.survey,
        }

    async def load(self) -> None:
        """Take up what an earlier control store has written down. Once, before the first node connects.

        Raises:
            StorageError: the storage cannot be opened, or holds what this version cannot read.
        """
        restored = restored_from(await self._storage.load())
        self.restored = restored.of_nodes()
        self._keys.restore(restored.keys)
        self._jobs.restore(restored.jobs)
        self._groups.restore(restored.groups)
        self._places.restore(restored.placed_on, expecting=bool(restored.nodes))
        self._actors.restore(restored.living, restored.dead, restored.forgotten)
        for actor_id in self._actors.known():
            self._overview.note(actor_id)
        self._answers.restore(restored.answers)
        self.cluster_id = restored.cluster_id
        if not self.cluster_id:
            self.cluster_id = os.urandom(ID_SIZE)
            self._journal.write_with_next(CLUSTER, CLUSTER_ID, self.cluster_id)

    async def close(self) -> None:
        """Finish what was written down, and let go of the storage. No message comes after this."""
        self._groups.close()
        await self._storage.close()

    @property
    def storage_state(self) -> StorageState:
        """How the storage is, for whoever shows it."""
        return self._storage.state

    def _on_storage_state(self, text: str) -> None:
        if text.startswith(FAILED) and self.restored is not None:
            # Another may lead by now. Who has nothing to write would not hear of it, and go on as if nobody did.
            self._journal.fail(StorageError(text.removeprefix(FAILED)))

    def when_durable(self, action: Callable[[], None]) -> None:
        """Do this when what was written so far is durable."""
        self._journal.then(action)
        self._journal.flush()

    # --- nodes ---------------------------------------------------------------------------------------------------

    def connect(self, row: NodeRow, on_order: OnOrder) -> LocalLink:
        """A node of this process joins; its way here."""
        self.nodes.add(row, on_order, local=True)
        self._places.place_again()
        self._settle()
        return LocalLink(self, row.node_id)

    def disconnect(self, node_id: bytes) -> None:
        """A node of this process has left. It takes with it whatever could hear of that."""
        self.nodes.remove(node_id, "was stopped")

    def on_node_up(self, row: NodeRow, session: int, on_order: OnOrder) -> None:
        """A node of another process has joined."""
        self.nodes.add(row, on_order)
        self._journal.write(NODES, row.node_id, _encode(NodeRecord(row, session)))
        self._orders.give_all(NodeJoined(row), but=row.node_id)
        self._places.place_again()
        self._settle()

    def on_node_back(self, row: NodeRow, on_order: OnOrder) -> None:
        """A node has come back that was never given up."""
        self.nodes.add(row, on_order)
        self._places.place_again()
        self._settle()

    def on_node_down(self, node_id: bytes, name: str, cause: str, *, stopped: bool = False) -> None:
        """A node is dead, with all that ran there. `cause` is a clause: "sent no heartbeat for 10 s"; `stopped`: it was told to end."""
        known = self.restored.forget(node_id) if self.restored is not None else None
        self._surveys.on_node_gone(node_id)
        row = self.nodes.remove(node_id, cause, known.row if known is not None else None)
        self._journal.write(NODES, node_id, None)
        self._answers.on_node_down(node_id)
        self._groups.on_node_gone(node_id)
        actors = self._actors
        died = f"its node {name} died: it {cause}"
        if row is not None:
            row.stopped = stopped
            self._orders.give_all(NodeDied(row, cause))
            place = row.place
            for owner in [owner for owner in actors.owners() if place_of(owner) == place]:
                actors.on_owner_gone(
                    owner, f"a process of the node {name}", f"died: its node {cause}"
                )
        for watcher in actors.watchers():
            if watcher[0] == node_id:  # type: ignore[index]  # ours are (node, client)
                actors.on_watcher_gone(watcher)
        for record in [record for record in self._jobs if record.node_id == node_id]:
            self._end_job(
                record.job.job_id, f"the node of its driver, {name}, died: it {cause}", kill=True
            )
        actors.on_node_gone(self._places.sent_to(node_id), died)
        self._settle()

    def on_claims(
        self,
        node_id: bytes,
        lives: Iterable[tuple[bytes, int]],
        bundles: Iterable[BundleHeld] = (),
    ) -> None:
        """A node has come back after the control store had restarted: (actor, incarnation) of each life it has, and what it has
        reserved for placement groups."""
        self._groups.on_claims(node_id, bundles)
        for actor_id, incarnation in lives:
            sent_here = self._places.node_of(actor_id) == node_id
            if not (sent_here and self._actors.on_claim(actor_id, incarnation)):
                reason = "the control store has restarted, and knows no such life of this actor on this node"
                self._orders.give(
                    node_id, StopActor(actor_id, incarnation, reason, StopHow.KILL.value)
                )
        self._settle()

    def on_claims_over(self) -> None:
        """No more nodes are expected to come back."""
        self._places.expect_no_more()
        self._actors.on_claims_over()
        self._settle()

    def forget_answers(self, node_id: bytes, reqs: Iterable[int] = (), *, before: int = 0) -> None:
        """A node has the answers to these questions, and to all before one."""
        taken = self._answers.forget(node_id, reqs, before)
        if self.restored is not None:
            restored = self.restored.answers.get(node_id, {})
            for req in taken:
                restored.pop(req, None)

    # --- calls ---------------------------------------------------------------------------------------------------

    def call(
        self, node_id: bytes, message: Call, heard: Heard | None = None
    ) -> asyncio.Future[Any]:
        """Answer a node's question."""
        answer: asyncio.Future[Any] = self._loop.create_future()
        result: Any = None
        try:
            result = self._calls[type(message)](message)
        except ControlError as error:
            answer.set_exception(error)
        else:
            if isinstance(result, asyncio.Future):
                # Others are asked, and nothing has changed.
                self._journal.flush()
                return result
            self._journal.then(lambda: None if answer.done() else answer.set_result(result))
        self._settle(node_id, heard, result)
        return answer

    def _create_actor(self, message: CreateActor) -> Any:
        try:
            info = self._actors.on_create(
                message.spec, message.job_id, get_if_exists=message.get_if_exists
            )
        except NameTaken as error:
            raise ControlError(f"ActorAlreadyExistsError: {error}") from None
        if message.job is not None and not info.existed:
            self._jobs.learn(message.job)
        return info

    def _create_group(self, message: CreateGroup) -> None:
        spec = message.spec
        if not spec.detached and self._jobs.is_past(spec.job_id):
            # Its end has been told, and nobody would remove the group any more.
            raise ControlError("ShoalError: the job that this placement group would be of is over")
        self._groups.create(message)

    # --- posts ---------------------------------------------------------------------------------------------------

    def post(self, node_id: bytes, message: Post, heard: Heard | None = None) -> None:
        """Take what a node tells."""
        actors = self._actors
        match message:
            case NodeState(row):
                if self.nodes.set_row(row):
                    self._places.place_again()
            case NodeView(view):
                if self.nodes.set_view(view):
                    self._places.place_again()
                self._groups.on_view_changed()
            case BundlesPrepared():
                self._groups.on_prepared(node_id, message)
            case BundlesReleased():
                self._groups.on_released(message)
            case WatchGroup(group_id):
                self._groups.watch(node_id, group_id)
            case JobStarted(job):
                self._jobs.start(job, node_id)
            case JobEnded(job_id, reason, kill):
                self._end_job(job_id, reason, kill=kill, but=node_id)
            case NodeFound():
                self._surveys.on_found(node_id, message)
            case WatchActor(actor_id, client, owner):
                actors.on_watch(actor_id, (node_id, client), owner)
                if actors.expects(actor_id):
                    self._look_for_owner(owner)
            case ClientGone(client, address, who, how):
                self._history.on_ended(EndedProcess(node_id, address, who, how, time.time_ns()))
                actors.on_watcher_gone((node_id, client))
                actors.on_owner_gone(address, who, how)
            case KillActor(actor_id, no_restart, owner):
                actors.on_kill(actor_id, no_restart=no_restart, owner=owner)
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
            case ActorRefused(actor_id, incarnation, reason, kind):
                actors.on_refused(actor_id, incarnation, reason, kind)
        self._settle(node_id, heard)

    def _look_for_owner(self, owner: str) -> None:
        """Somebody expects an actor of this process, and may not have heard that it has ended."""
        ended = self._history.end_of(owner)
        if ended is not None:
            self._actors.on_owner_gone(owner, ended.who, ended.how)
        elif not self._places.expecting and not self.nodes.home_of(owner):
            self._actors.on_owner_gone(owner, "a process of a node that is not there", "ended")

    def _end_job(self, job_id: bytes, reason: str, *, kill: bool, but: bytes = b"") -> None:
        """A job is over. Told twice it is ended twice: first in good order, then not."""
        self._jobs.end(job_id, reason)
        self._groups.on_job_gone(job_id, reason)
        self._actors.on_job_gone(job_id, reason)
        self._orders.give_all(EndJob(job_id, reason, kill), but=but)

    # --- what follows --------------------------------------------------------------------------------------------

    def _settle(self, node_id: bytes = b"", heard: Heard | None = None, result: Any = None) -> None:
        """Write down what has changed and, when it is durable, carry out what the directory decided. `heard` is the message from
        which it follows, and `result` its answer."""
        self._groups.settle()
        # Each actor once, as it is after all of the effects: nothing is done before the flush.
        changed: dict[bytes, bool] = {}
        # That there is no place for an actor ever is an event of its own: the outbox may grow meanwhile.
        for effect in self._actors.outbox:
            match effect:
                case Save(actor_id, new):
                    changed[actor_id] = new or changed.get(actor_id, False)
                case SaveForgotten(process):
                    self._journal.write(FORGOTTEN, process, self._actors.forgotten(process))
                case Place(spec, incarnation, job_id):
                    self._places.place(PlaceActor(spec, incarnation, job_id))
                    # After a restart, the node that it was sent to is the one whose claim counts.
                    changed.setdefault(spec.actor_id, False)
                case Stop(actor_id, incarnation, reason, how):
                    stop = StopActor(actor_id, incarnation, reason, how.value)
                    self._orders.give(self._places.node_of(actor_id), stop)
                case Tell(watchers, change):
                    self._orders.tell(watchers, change)
        self._actors.outbox.clear()
        for actor_id, new in changed.items():
            self._save(actor_id, new)
        if self._jobs.may_forget:
            for job_id in self._jobs.forget({actor.job_id for actor in self._actors}):
                # Those that its detached actors have made since it was over.
                if self._groups.on_job_gone(job_id, "nothing of it lives any more"):
                    self._loop.call_soon(self._settle)
        if heard is not None and self._journal.dirty:
            self._answers.keep(node_id, heard, result)
        self._journal.flush()

    def _save(self, actor_id: bytes, new: bool = False) -> None:
        self._overview.note(actor_id)
        record = self._actors.record(actor_id)
        write = self._journal.write
        if isinstance(record, LivingActor):
            # The specification may hold the code of a class: it is written once, not on every change.
            actor = self._actors.get(actor_id)
            if new and actor is not None:
                write(SPECS, actor_id, _encode(actor.spec))
            record.node_id = self._places.node_of(actor_id)
        else:
            self._jobs.on_actor_gone()
            self._places.forget(actor_id)
            write(SPECS, actor_id, None)
        write(ACTORS, actor_id, None if record is None else _encode(record))
