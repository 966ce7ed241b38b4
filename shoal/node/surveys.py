"""Answers what others want to know of this node: from what the daemon knows itself, or by asking the processes of the node.

Questions of clients go to the control store, which asks the nodes; what is asked of this node comes as its order (see `messages.state`).
Every question has a time limit: whoever has not answered by then is named as silent. Questions that are under way at the same time are
bounded by the control store.

Keeps what workers that have ended remembered of their tasks, the latest `remembered` of them (`past_runs`).

Everything runs in the daemon's event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import msgspec

from shoal.clock import monotonic_ns
from shoal.control.link import ControlLink
from shoal.core.demands import Demands, count_queue
from shoal.core.findings import cut_down, take_in
from shoal.core.forwarding import HERE, NOWHERE
from shoal.core.lease_reasons import why_request
from shoal.core.lease_records import Lease
from shoal.core.pool import WorkerState
from shoal.messages.control import NodeFound, SurveyNode, SurveyNodes
from shoal.messages.inventory import StoreMemory
from shoal.messages.node import Events, Reply
from shoal.messages.state import (
    AskActor,
    AskDemands,
    AskHosted,
    AskMemory,
    AskObjects,
    AskRequest,
    AskTasks,
    AskWhy,
    AskWorkers,
    Findings,
    Follow,
    Found,
    Inquire,
    Question,
    Reason,
    Survey,
    WhyLease,
    WorkerRow,
)
from shoal.node.actors import ActorSeats
from shoal.node.clients import Client, Clients
from shoal.node.hosting import Foreigner
from shoal.node.leasing import Leasing
from shoal.node.past_runs import PastRuns
from shoal.node.queries import Queries
from shoal.node.stock import Stock
from shoal.node.workers import Workers

_ANSWER_EARLIER: Final = 0.8
"""Which part of the time the processes have; the rest is for the way back."""

_STORE: Final = 0
"""Stands for the store of this node among those that answer; clients count from 1."""

_encode: Final = msgspec.msgpack.Encoder().encode


class _Collection:
    """The answers of the processes to one question. `asked` are those that have not answered."""

    __slots__ = ("asked", "findings", "question", "timer")

    def __init__(self, question: Question) -> None:
        self.question = question
        self.findings = Findings([], [], [], [], processes=[], stores=[])
        self.asked: dict[int, Client | str] = {}
        self.timer: asyncio.TimerHandle | None = None


class Surveys:
    """See the module's docstring."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        node_id: bytes,
        clients: Clients,
        workers: Workers,
        leasing: Leasing,
        seats: ActorSeats,
        control: ControlLink,
        queries: Queries,
        accounts: Stock,
        remembered: int,
    ) -> None:
        self._loop = loop
        self._node_id = node_id
        self._clients = clients
        self._workers = workers
        self._leasing = leasing
        self._seats = seats
        self._control = control
        self._queries = queries
        self._accounts = accounts
        self._past = PastRuns(remembered)
        self._collections: dict[int, _Collection] = {}
        self.client_handlers: dict[type, Callable[[Client, Any], None]] = {
            Survey: self._on_survey,
            Found: self._on_found,
            WhyLease: self._on_why_lease,
            Events: self._on_events,
        }

    # --- questions of clients ------------------------------------------------------------------------------------

    def _on_survey(self, client: Client, message: Survey) -> None:
        call = SurveyNodes(message.question, message.node_ids, message.within_ms)
        self._queries.ask(client, message.req, call)

    def _on_why_lease(self, client: Client, message: WhyLease) -> None:
        reason = self._why_request(client, message.request)
        client.send(Reply(message.req, _encode(reason.text if reason is not None else "")))

    # --- questions of the control store --------------------------------------------------------------------------

    def on_order(self, order: SurveyNode) -> None:
        """The control store asks."""
        question = order.question
        findings = Findings()
        match question:
            case AskTasks() | AskObjects() | AskWhy() | AskMemory():
                self._collect(order.number, question, order.within_ms)
                return
            case AskWorkers(limit):
                rows = self._worker_rows()
                findings = Findings(workers=rows[:limit], left_out=max(0, len(rows) - limit))
            case AskRequest(address, req):
                client = next((one for one in self._clients if one.address == address), None)
                reason = None if client is None else self._why_request(client, req)
                findings = Findings(reasons=[] if reason is None else [reason])
            case AskHosted(home, client_number, req):
                findings = self._why(Foreigner(home, client_number), req)
            case AskActor(actor_id):
                owner_and_req = self._seats.request_of(actor_id)
                if owner_and_req is not None:
                    findings = self._why(*owner_and_req)
            case AskDemands(limit):
                demands = Demands(self._node_id)
                count_queue(demands, self._workers.queue, _epoch_ns())
                self._leasing.count_nowhere(demands, _epoch_ns())
                findings = Findings(demands=demands.rows(limit))
        self._control.post(NodeFound(order.number, findings))

    # --- what the processes know ---------------------------------------------------------------------------------

    def _collect(self, number: int, question: Question, within_ms: int) -> None:
        collection = self._collections[number] = _Collection(question)
        if isinstance(question, AskTasks) and question.finished:
            collection.findings.tasks += self._past.rows()
        if isinstance(question, AskMemory):
            collection.asked[_STORE] = "the object store of the node, which waits for its disk"
            self._accounts.tell(question.limit, partial(self._on_store_told, number))
        for client in self._clients:
            collection.asked[client.number] = client
            client.send(Inquire(number, question))
        patience_s = within_ms / 1_000 * _ANSWER_EARLIER
        collection.timer = self._loop.call_later(patience_s, self._finish, number)
        self._look(number, collection)

    def _on_store_told(self, number: int, store: StoreMemory) -> None:
        collection = self._collections.get(number)
        if collection is not None and collection.asked.pop(_STORE, None) is not None:
            collection.findings.stores.append(store)
            self._look(number, collection)

    def _on_found(self, client: Client, message: Found) -> None:
        collection = self._collections.get(message.number)
        if collection is None or collection.asked.pop(client.number, None) is None:
            # Too late.
            return
        take_in(collection.findings, message.findings)
        self._look(message.number, collection)

    def _on_events(self, client: Client, message: Events) -> None:
        """What a worker that ends has run."""
        self._past.add(client.address, client.job.job_id, message.events)

    def on_client_gone(self, client: Client) -> None:
        """It will not answer any more."""
        for number, collection in list(self._collections.items()):
            if collection.asked.pop(client.number, None) is not None:
                self._look(number, collection)

    def _look(self, number: int, collection: _Collection) -> None:
        if not collection.asked:
            self._finish(number)

    def _finish(self, number: int) -> None:
        collection = self._collections.pop(number)
        if collection.timer is not None:
            collection.timer.cancel()
        found = collection.findings
        found.silent = [str(client) for client in collection.asked.values()]
        cut_down(found, collection.question)
        self._control.post(NodeFound(number, found))

    # --- what the daemon knows itself ----------------------------------------------------------------------------

    def _worker_rows(self) -> list[WorkerRow]:
        queue = self._workers.queue
        epoch_ns = _epoch_ns()
        leases: dict[bytes, Lease] = {lease.worker.worker_id: lease for lease in queue.leases()}
        rows = [
            WorkerRow(
                b"",
                "DRIVER",
                "RUNNING",
                driver.pid,
                driver.address,
                driver.job.job_id,
                self._node_id,
            )
            for driver in self._clients.drivers()
        ]
        for worker in queue.pool:
            process = self._workers.process(worker.worker_id)
            if process is None:
                continue
            lease = leases.get(worker.worker_id)
            leased = lease is not None and worker.state is WorkerState.LEASED
            rows.append(
                WorkerRow(
                    worker.worker_id,
                    "WORKER",
                    worker.state.name,
                    process.pid,
                    process.address,
                    worker.key.job_id,
                    self._node_id,
                    worker.since + epoch_ns,
                    lease.request.name if lease is not None and leased else "",
                    tuple(sorted(lease.out().items())) if lease is not None and leased else (),
                )
            )
        return rows

    def _why_request(self, client: Client, req: int) -> Reason | None:
        """Why a request of a client of this node waits, here or wherever it was forwarded."""
        found = self._leasing.where(client.number, req)
        if found is None:
            return None
        if found.at == HERE:
            return self._reason(client.number, req)
        subject = f"the request for a worker for {found.name}" if found.name else "the request"
        since_ns = found.since + _epoch_ns()
        if found.at == NOWHERE:
            text = found.reason or "it is being decided which node to ask."
            return Reason(subject, "nowhere", text, self._node_id, since_ns)
        return Reason(
            subject,
            "turn",
            "another node was asked for a worker, since it can be expected there first.",
            self._node_id,
            since_ns,
            follow=[Follow(AskHosted(self._node_id, client.number, req), found.at)],
        )

    def _why(self, owner: Any, req: int) -> Findings:
        reason = self._reason(owner, req)
        return Findings(reasons=[] if reason is None else [reason])

    def _reason(self, owner: Any, req: int) -> Reason | None:
        return why_request(
            self._workers.queue, owner, req, self._node_id, _epoch_ns(), self._pid_of
        )

    def _pid_of(self, worker_id: bytes) -> int:
        process = self._workers.process(worker_id)
        return 0 if process is None else process.pid

    def close(self) -> None:
        """Stop the timers."""
        for collection in self._collections.values():
            if collection.timer is not None:
                collection.timer.cancel()


def _epoch_ns() -> int:
    return time.time_ns() - monotonic_ns()
