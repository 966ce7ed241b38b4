"""What clients ask of the cluster: keys and values, actors by name, nodes, and the task events of all processes.

Most questions go on to the control store, whose answer becomes a `Reply`. Task events are with the processes that ran the
tasks: those are asked, and whoever does not answer in time is left out.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections import deque
from typing import Any, Final

import msgspec

from shoal.control.link import ControlError, ControlLink
from shoal.messages.control import (
    Call,
    DeleteKey,
    FindActor,
    GetKey,
    ListKeys,
    ListNames,
    ListNodes,
    PutKey,
)
from shoal.messages.node import (
    ActorLookup,
    ActorNames,
    Events,
    EventsQuery,
    KvDelete,
    KvGet,
    KvKeys,
    KvPut,
    NodesQuery,
    Reply,
    TaskEvent,
)
from shoal.node.clients import Client, Clients

_EVENTS_TIMEOUT_S: Final = 2.0
_encode: Final = msgspec.msgpack.Encoder().encode


class _Collection:
    """The answers to one question for task events."""

    __slots__ = ("asked", "asker", "events", "req", "timer")

    def __init__(self, asker: Client, req: int, events: list[TaskEvent]) -> None:
        self.asker = asker
        self.req = req
        self.events = events
        self.asked: dict[int, None] = {}
        self.timer: asyncio.TimerHandle | None = None


class Queries:
    """See the module's docstring."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clients: Clients,
        control: ControlLink,
        remembered_events: int,
    ) -> None:
        self._loop = loop
        self._clients = clients
        self._control = control
        # Of processes that have ended.
        self._past: deque[TaskEvent] = deque(maxlen=remembered_events)
        self._numbers = itertools.count(1)
        self._collections: dict[int, _Collection] = {}

    # --- the control store's -------------------------------------------------------------------------------------

    def on_kv_put(self, client: Client, m: KvPut) -> None:
        self.ask(client, m.req, PutKey(m.namespace, m.key, m.value, m.overwrite))

    def on_kv_get(self, client: Client, m: KvGet) -> None:
        self.ask(client, m.req, GetKey(m.namespace, m.key))

    def on_kv_delete(self, client: Client, m: KvDelete) -> None:
        self.ask(client, m.req, DeleteKey(m.namespace, m.key, m.by_prefix))

    def on_kv_keys(self, client: Client, m: KvKeys) -> None:
        self.ask(client, m.req, ListKeys(m.namespace, m.prefix))

    def on_lookup(self, client: Client, m: ActorLookup) -> None:
        self.ask(client, m.req, FindActor(m.namespace, m.name))

    def on_names(self, client: Client, m: ActorNames) -> None:
        self.ask(client, m.req, ListNames(None if m.all_namespaces else m.namespace))

    def on_nodes(self, client: Client, m: NodesQuery) -> None:
        self.ask(client, m.req, ListNodes())

    def ask(self, client: Client, req: int, call: Call) -> None:
        """Pass a question on; the answer goes to the client as it comes."""
        self._control.call(call).add_done_callback(functools.partial(_answer, client, req))

    # --- task events ---------------------------------------------------------------------------------------------

    def on_events_query(self, client: Client, m: EventsQuery) -> None:
        """Ask every process for its task events."""
        number = next(self._numbers)
        collection = self._collections[number] = _Collection(client, m.req, list(self._past))
        for other in self._clients:
            collection.asked[other.number] = None
            other.send(EventsQuery(number))
        collection.timer = self._loop.call_later(_EVENTS_TIMEOUT_S, self._finish, number)

    def on_events(self, client: Client, m: Events) -> None:
        """A process tells its task events: asked, or because it ends."""
        if not m.req:
            self._past.extend(m.events)
            return
        collection = self._collections.get(m.req)
        if collection is not None and client.number in collection.asked:
            collection.events += m.events
            self._heard_of(m.req, collection, client.number)

    def on_client_gone(self, client: Client) -> None:
        """It will not answer any more."""
        for number, collection in list(self._collections.items()):
            if client.number in collection.asked:
                self._heard_of(number, collection, client.number)

    def _heard_of(self, number: int, collection: _Collection, client: int) -> None:
        del collection.asked[client]
        if not collection.asked:
            self._finish(number)

    def _finish(self, number: int) -> None:
        collection = self._collections.pop(number)
        if collection.timer is not None:
            collection.timer.cancel()
        collection.asker.send(Reply(collection.req, _encode(collection.events)))

    def close(self) -> None:
        """Stop the timers."""
        for collection in self._collections.values():
            if collection.timer is not None:
                collection.timer.cancel()


def _answer(client: Client, req: int, answer: asyncio.Future[Any]) -> None:
    if answer.cancelled():
        return
    error = answer.exception()
    if error is None:
        client.send(Reply(req, _encode(answer.result())))
    elif isinstance(error, ControlError):
        client.send(Reply(req, error=error.text))
    else:
        client.send(Reply(req, error=f"InternalError: {error!r}"))
        raise error
