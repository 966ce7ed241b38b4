"""The node daemon: receives what clients and zygote say, and passes each message to whoever is concerned.

::

    connections ─► Daemon ─► Workers (lease queue, processes)      ─► zygote
                          ─► ActorSeats ─► control store
                          ─► StoreKeeper (quotas)   Queries   Clients (who watches whom)

Guarantees: a client that breaks the protocol loses its connection and harms nobody else; whatever ends (a worker, a
driver, a job) is told to all who are concerned, once, in the order of `_on_process_gone` and `_on_driver_gone`.

Everything runs in one event loop; nothing here blocks.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec

from shoal.core.endings import killed_clause
from shoal.core.lease_records import AskBack, Grant, Lease, Owner, Pending, Refuse, Revoke
from shoal.errors import ProtocolError
from shoal.messages.boot import Boot
from shoal.messages.control import (
    ActorChanged,
    ActorWaits,
    ClientGone,
    CreateActor,
    EndJob,
    JobEnded,
    JobStarted,
    NodeDied,
    NodeJoined,
    Order,
    PlaceActor,
    StopActor,
    SurveyNode,
    ViewChanged,
)
from shoal.messages.node import (
    ActorCreate,
    ActorExiting,
    ActorStarted,
    Blocked,
    Exit,
    Goodbye,
    Job,
    KillProcess,
    LeaseCancel,
    LeaseRequest,
    LeaseReturn,
    Log,
    NodesQuery,
    PeerGone,
    RegisterDriver,
    Registered,
    RegisterWorker,
    Reply,
    ToNode,
    Unblocked,
    Watch,
)
from shoal.messages.placement import InBundle
from shoal.node.actor_wishes import actor_handlers
from shoal.node.actors import DIRECTORY, ActorSeats
from shoal.node.clients import Client, Clients
from shoal.node.control_way import ControlWay
from shoal.node.forwarding import LogForwarder
from shoal.node.groups import PlacementGroups
from shoal.node.jobs import Jobs
from shoal.node.leasing import LeaseOwners, Leasing, check_shape
from shoal.node.onlookers import Onlookers
from shoal.node.queries import Queries
from shoal.node.showing import Showing, node_row
from shoal.node.stock import Stock
from shoal.node.store import StoreKeeper
from shoal.node.surveys import Surveys
from shoal.node.workers import Process, Workers
from shoal.node.zygote_link import ZygoteLink
from shoal.wire.addresses import LOCAL, creator_at, place_of
from shoal.wire.aio import PeerConnection
from shoal.wire.handshake import ServerHandshake
from shoal.wire.session import remove_entrance

if TYPE_CHECKING:
    from shoal.node.outside import Outside

_log = logging.getLogger("shoal.node")
_EVENTS_OF_PAST_PROCESSES: Final = 10


class Daemon:
    """See the module's docstring. `stopped` is done, with a reason and an exit code, when the session is over. `node_id` names the
    node."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        boot: Boot,
        zygote: socket.socket,
        max_descriptors: int,
    ) -> None:
        self.stopped: asyncio.Future[tuple[str, int]] = loop.create_future()
        self._loop = loop
        self._boot = boot
        self.node_id = os.urandom(16)
        self._decoder = msgspec.msgpack.Decoder(list[ToNode])
        self._connections: dict[PeerConnection, None] = {}
        self._preloaded: dict[str, None] = {}
        # Of drivers that have said goodbye: what to answer, 0 once that is done.
        self._goodbyes: dict[bytes, tuple[Client, int]] = {}
        self._clients = Clients()
        self._jobs = Jobs(self._clients.circles.forget)
        self._logs = LogForwarder(self._clients)
        self._zygote = ZygoteLink(loop, zygote, self)
        self._workers = Workers(loop, boot, self._zygote, self, self._jobs, max_descriptors)
        self._way = ControlWay(
            loop,
            boot,
            node_row(boot, self.node_id, self._workers.queue.resources),
            lives=lambda: self._actors.lives(),  # noqa: PLW0108 - the seats come later: they need the link
            bundles=self._workers.queue.supply.ledger.held,
            on_order=self._on_order,
            on_end=lambda reason: self.stop(reason, 1),
        )
        self._control = self._way.link
        self._store = StoreKeeper(loop, boot, self._clients)
        self._outside = self._look_outside()
        if self._outside is None:
            queue = self._workers.queue
            self._showing = Showing(
                loop, boot, self.node_id, queue, self._control.post, self._store.rows
            )
            self._leasing = Leasing(self._workers, self._clients, self._showing.row)
        else:
            self._showing = self._outside.showing
            self._leasing = self._outside.lending
        self._actors = ActorSeats(self._workers, self._clients, self._control, self._jobs)
        self._queries = Queries(self._control)
        self._surveys = Surveys(
            loop,
            self.node_id,
            self._clients,
            self._workers,
            self._leasing,
            self._actors,
            self._control,
            self._queries,
            Stock(boot, self.node_id, self._clients, self._store, self._outside),
            boot.config.task_events * _EVENTS_OF_PAST_PROCESSES,
        )
        self._groups = PlacementGroups(
            self._workers,
            self._clients,
            self._control,
            self._leasing,
            self._queries,
            self._showing,
        )
        self._onlookers: Onlookers | None = None
        if self._outside is None:
            self._onlookers = Onlookers(loop, boot, self._control, self._showing)
        self._handlers = self._make_handlers()
        self._server: asyncio.AbstractServer | None = None

    async def start(self, listening: socket.socket, door: socket.socket | None = None) -> None:
        """Serve the connections that arrive at a socket, and at the node's door if it has one."""
        if door is not None and self._outside is not None:
            self._outside.open(door)
        if self._onlookers is not None:
            await self._onlookers.open()
        for row in await self._way.open():
            self._on_order(NodeJoined(row))
        self._server = await self._loop.create_unix_server(self._connect, sock=listening)
        job = self._boot.job
        if job is not None:
            self._jobs[job.job_id] = job
            # The first workers do not wait for the preloading: the first task comes sooner so.
            self._workers.prestart(job.job_id, self._boot.prestart)
            self._preload(self._boot.preload, job)

    def _look_outside(self) -> Outside | None:
        """The others, if this node has a door by which they can reach it."""
        boot = self._boot
        if boot.place == LOCAL:
            return None
        from shoal.node.outside import Outside

        return Outside(
            self._loop,
            boot,
            self.node_id,
            self._clients,
            self._workers,
            self._jobs,
            self._store,
            is_alive=self._is_alive,
            end_process=self._end_process,
            show=self._logs.forward,
            post=self._control.post,
        )

    def _connect(self) -> PeerConnection:
        connection = PeerConnection(
            self._loop,
            ServerHandshake(self._boot.token),
            self._decoder,
            self,
            self._boot.config.max_frame_bytes,
        )
        self._connections[connection] = None
        return connection

    def stop(self, reason: str, code: int) -> None:
        """The session is over."""
        if not self.stopped.done():
            self.stopped.set_result((reason, code))

    async def close(self, reason: str, *, tell: bool) -> None:
        """Stop serving. `tell` lets the clients know why, when it is not they who ended the session."""
        if self._server is not None:
            self._server.close()
        if tell:
            for client in self._clients:
                client.send(Exit(reason, now=True))
        if self._onlookers is not None:
            self._onlookers.close()
        self._surveys.close()
        self._store.close()
        self._workers.close()
        self._showing.close()
        await self._way.close(reason if tell else "")
        if self._outside is not None:
            self._outside.close()
        for connection in list(self._connections):
            connection.close()
        self._zygote.close()
        # One turn, so that what was written leaves.
        await asyncio.sleep(0)

    @property
    def look_token(self) -> bytes:
        """What those must prove who look at this session, or join this node's cluster."""
        return self._boot.token if self._onlookers is None else self._onlookers.token

    def worker_pids(self) -> list[int]:
        """The pids of all workers."""
        return self._workers.pids()

    # --- connections ---------------------------------------------------------------------------------------------

    def on_trusted(self, connection: PeerConnection) -> None:
        """A peer has proved the token; it must register before anything else."""

    def on_messages(self, connection: PeerConnection, messages: list[Any]) -> None:
        """A batch of a client."""
        handlers = self._handlers
        for message in messages:
            client = connection.user
            if client is None:
                self._register(connection, message)
                continue
            handler = handlers.get(type(message))
            if handler is None:
                raise ProtocolError(
                    f"{type(message).__name__} from a client that has registered already"
                )
            handler(client, message)
        self._workers.advance()

    def on_closed(self, connection: PeerConnection, error: Exception | None) -> None:
        """A connection has ended."""
        self._connections.pop(connection, None)
        client: Client | None = connection.user
        if error is not None:
            who = (
                client
                or f"a peer that had not registered ({connection.peer_address or 'no address'})"
            )
            _log.warning("closed the connection of %s: %s: %s", who, type(error).__name__, error)
        if client is None:
            return
        self._clients.remove(client)
        self._surveys.on_client_gone(client)
        self._store.on_client_gone(client)
        self._groups.on_client_gone(client)
        if self._outside is not None:
            self._outside.transfers.on_client_gone(client)
        process = self._workers.process(client.worker_id) if client.worker_id else None
        if process is not None:
            self._workers.on_disconnected(process)
        elif not client.worker_id:
            self._on_driver_gone(client)
        self._workers.advance()

    def _register(self, connection: PeerConnection, message: Any) -> None:
        if isinstance(message, RegisterDriver):
            self._register_driver(connection, message)
        elif isinstance(message, RegisterWorker):
            self._register_worker(connection, message)
        else:
            raise ProtocolError(f"{type(message).__name__} from a client that has not registered")

    def _register_driver(self, connection: PeerConnection, message: RegisterDriver) -> None:
        job = message.job
        if place_of(message.address) != self._boot.place or not creator_at(message.address):
            raise ProtocolError(
                f"a driver of this node is at {self._boot.place}, not at {message.address!r}"
            )
        if self._clients.driver_of(job.job_id) is not None:
            raise ProtocolError(f"job {job.job_id.hex()} has a driver already")
        self._jobs[job.job_id] = job
        connection.user = self._clients.add(
            connection, message.address, message.pid, job, log_to_driver=message.log_to_driver
        )
        self._welcome(connection, job)
        self._control.post(JobStarted(job))
        self._preload(message.preload, job)

    def _preload(self, modules: list[str], job: Job) -> None:
        new = [module for module in modules if module not in self._preloaded]
        if new:
            self._preloaded.update(dict.fromkeys(new))
            self._zygote.preload(new, job.sys_path)

    def _register_worker(self, connection: PeerConnection, message: RegisterWorker) -> None:
        process = self._workers.process(message.worker_id)
        if process is not None and not process.pid:
            # It was quicker than the zygote's word that it is there, which also says its pid.
            process.early = partial(self._register_early, connection, message)
            return
        if process is None or process.client is not None or process.pid != message.pid:
            raise ProtocolError(
                f"pid {message.pid} is not the worker {message.worker_id.hex()[:8]} that this node started"
            )
        connection.user = client = self._clients.add(
            connection, process.address, process.pid, process.job, process.worker_id
        )
        self._welcome(connection, process.job)
        self._workers.on_registered(process, client)

    def _register_early(self, connection: PeerConnection, message: RegisterWorker) -> None:
        try:
            self._register_worker(connection, message)
        except ProtocolError as error:
            connection.fail(error)
        self._workers.advance()

    def _welcome(self, connection: PeerConnection, job: Job) -> None:
        boot = self._boot
        connection.send(
            Registered(
                self.node_id,
                job.job_id,
                boot.session,
                boot.session_dir,
                boot.shm_dir,
                boot.config,
                boot.node_ip,
            )
        )

    # --- messages of clients -------------------------------------------------------------------------------------

    def _make_handlers(self) -> dict[type, Callable[[Client, Any], None]]:
        queue = self._workers.queue
        return {
            LeaseRequest: self._on_lease_request,
            LeaseCancel: self._leasing.on_cancel,
            LeaseReturn: self._leasing.on_return,
            Blocked: lambda client, _: queue.on_blocked(client.worker_id),
            Unblocked: lambda client, _: queue.on_unblocked(client.worker_id),
            Watch: self._on_watch,
            KillProcess: self._on_kill_process,
            Goodbye: self._on_goodbye,
            ActorCreate: self._on_actor_create,
            **actor_handlers(self._control, self._may_live),
            ActorStarted: self._actors.on_started,
            ActorExiting: self._actors.on_exiting,
            NodesQuery: self._on_nodes_query,
            **self._store.client_handlers,
            **self._workers.client_handlers,
            **self._groups.client_handlers,
            **self._queries.client_handlers,
            **self._surveys.client_handlers,
            **({} if self._outside is None else self._outside.client_handlers),
        }

    def _is_leaving(self, client: Client) -> bool:
        """Whether a client has been told to end, or has said goodbye: it starts nothing new."""
        if not client.worker_id:
            return client.job.job_id in self._goodbyes
        process = self._workers.process(client.worker_id)
        return process is None or bool(process.ordered)

    def _on_lease_request(self, client: Client, message: LeaseRequest) -> None:
        check_shape(message.shape)
        if not self._is_leaving(client):
            self._leasing.on_request(client, message)
            if isinstance(message.shape.strategy, InBundle):
                self._groups.on_lease_wanted(message.shape.strategy.group_id)

    def _on_watch(self, client: Client, message: Watch) -> None:
        address = message.address
        if self._is_elsewhere(address):
            assert self._outside is not None
            self._outside.abroad.watch(client, address)
        else:
            self._clients.watch(client, address, alive=self._is_alive(address))

    def _is_elsewhere(self, address: str) -> bool:
        return self._outside is not None and place_of(address) != self._boot.place

    def _is_alive(self, address: str) -> bool:
        return self._workers.at(address) is not None or any(
            driver.address == address for driver in self._clients.drivers()
        )

    def _may_live(self, address: str) -> bool:
        return self._is_elsewhere(address) or self._is_alive(address)

    def _on_kill_process(self, client: Client, message: KillProcess) -> None:
        if self._is_elsewhere(message.address):
            assert self._outside is not None
            self._outside.abroad.kill(message.address, message.reason)
        else:
            self._end_process(message.address, message.reason)

    def _end_process(self, address: str, reason: str) -> None:
        process = self._workers.at(address)
        if process is not None:
            clause = killed_clause(reason)
            self._workers.order_end(process, clause, reason=reason, kill=True, expected=False)

    def _on_actor_create(self, client: Client, message: ActorCreate) -> None:
        check_shape(message.spec.shape)
        check_shape(message.spec.placement_shape)
        if self._is_leaving(client):
            client.send(Reply(message.req, error="ActorDiedError: its creator is ending"))
            return
        job_id = client.job.job_id
        # Of a driver of its own the node has told.
        job = client.job if self._clients.driver_of(job_id) is None else None
        call = CreateActor(message.spec, job_id, message.get_if_exists, job)
        self._queries.ask(client, message.req, call)

    def _on_nodes_query(self, client: Client, message: NodesQuery) -> None:
        self._showing.tell_resources()
        self._queries.on_nodes(client, message)

    # --- what the lease queue decides ----------------------------------------------------------------------------

    def on_granted(self, grant: Grant, process: Process) -> None:
        self._of_owner(grant.owner).on_granted(grant, process)

    def on_refused(self, refusal: Refuse) -> None:
        self._of_owner(refusal.owner).on_refused(refusal)

    def on_asked_back(self, ask: AskBack) -> None:
        self._of_owner(ask.owner).on_asked_back(ask)

    def on_revoked(self, revoked: Revoke) -> None:
        self._of_owner(revoked.owner).on_revoked(revoked)

    def on_pending(self, pending: Pending) -> None:
        self._of_owner(pending.owner).on_pending(pending)

    def _of_owner(self, owner: Owner) -> LeaseOwners:
        """Who answers for an owner of leases."""
        if owner == DIRECTORY:
            return self._actors
        if isinstance(owner, int):
            return self._leasing
        assert self._outside is not None
        return self._outside.hosting

    def on_advanced(self) -> None:
        self._showing.look()

    def on_lines(self, job_id: bytes, pid: int, source: str, stream: int, lines: list[str]) -> None:
        log = Log(pid, source, stream, lines)
        driver = self._jobs[job_id].owner
        if self._is_elsewhere(driver):
            assert self._outside is not None
            self._outside.abroad.forward_lines(place_of(driver), job_id, log)
        else:
            self._logs.forward(job_id, log)

    # --- orders of the control store -----------------------------------------------------------------------------

    def _on_order(self, order: Order) -> None:
        match order:
            case PlaceActor():
                self._actors.place(order)
            case StopActor():
                self._actors.stop(order)
            case EndJob(job_id, reason, kill):
                self._workers.end_job(job_id, reason, kill=kill)
                if kill:
                    self._store.on_job_gone(job_id)
                self._on_job_over(job_id)
            case NodeJoined() | NodeDied() | ViewChanged():
                if self._outside is not None:
                    self._outside.on_order(order)
            case SurveyNode():
                self._surveys.on_order(order)
            case ActorWaits(job_id, name, class_name, reason):
                self._actors.tell_driver(job_id, name, class_name, reason)
            case ActorChanged(clients, change):
                for number in clients:
                    client = self._clients.get(number)
                    if client is not None:
                        client.send(change)
            case _:
                self._groups.on_order(order)

    # --- the zygote ----------------------------------------------------------------------------------------------

    def on_forked(self, worker_id: bytes, pid: int, error: str) -> None:
        self._workers.on_forked(worker_id, pid, error)

    def on_exited(self, pid: int, status: int, peak_bytes: int) -> None:
        self._workers.on_exited(pid, status, peak_bytes)

    def on_zygote_lost(self) -> None:
        self.stop(
            "the process that forks workers (the zygote) has died, and all workers with it; "
            "the session cannot go on. Call shoal.init() for a new one",
            1,
        )

    # --- ends ----------------------------------------------------------------------------------------------------

    def on_process_gone(self, process: Process, cause: str, lease: Lease | None) -> None:
        """A worker has ended."""
        number = process.number
        if number:
            self._leasing.on_client_gone(number, "the process that it worked for has ended")
        self._actors.on_process_gone(process, cause)
        self._control.post(
            ClientGone(number, process.address, f"the worker, pid {process.pid}", cause)
        )
        self._store.on_process_gone(process.address, process.job.job_id)
        end = process.occupation.end
        self._tell_end(PeerGone(process.address, cause, process.expected, end))
        self._finish_goodbye(process.job.job_id)

    def _on_goodbye(self, client: Client, message: Goodbye) -> None:
        """A driver leaves in good order: it hears when all that was its own has ended."""
        if client.worker_id:
            raise ProtocolError("a worker says goodbye as drivers do")
        job_id = client.job.job_id
        self._goodbyes[job_id] = (client, message.req)
        reason = f"its driver (pid {client.pid}) has shut down"
        self._control.post(JobEnded(job_id, reason))
        self._workers.end_job(job_id, reason, kill=False)
        self._finish_goodbye(job_id)

    def _finish_goodbye(self, job_id: bytes) -> None:
        farewell = self._goodbyes.get(job_id)
        if farewell is not None and farewell[1] and not self._workers.ending_of(job_id):
            client, req = farewell
            self._goodbyes[job_id] = (client, 0)
            client.send(Reply(req))

    def _on_driver_gone(self, client: Client) -> None:
        """A driver's connection has ended, and its job with it."""
        job_id = client.job.job_id
        orderly = self._goodbyes.pop(job_id, None) is not None
        how = "exited" if orderly else "ended without a goodbye: it crashed, or was killed"
        who = f"the driver, pid {client.pid}"
        reason = f"its driver (pid {client.pid}) {how}"
        self._control.post(ClientGone(client.number, client.address, who, how))
        self._control.post(JobEnded(job_id, reason, kill=True))
        self._workers.end_job(job_id, reason, kill=True)
        self._leasing.on_client_gone(client.number, reason)
        self._store.on_process_gone(client.address, job_id)
        self._store.on_job_gone(job_id)
        self._tell_end(PeerGone(client.address, how, orderly))
        self._on_job_over(job_id)

    def _on_job_over(self, job_id: bytes) -> None:
        self._jobs.on_over(job_id, self._workers.has_job)
        self._leasing.on_job_over(job_id)

    def _tell_end(self, end: PeerGone) -> None:
        self._clients.gone(end)
        remove_entrance(self._boot.session_dir, end.address)
        if self._outside is not None:
            self._outside.abroad.on_process_gone(end)
