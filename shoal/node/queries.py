"""What clients ask of the control store: keys and values, actors by name, nodes. Its answer becomes a `Reply`."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Any, Final

import msgspec

from shoal.control.link import ControlError, ControlLink
from shoal.messages.control import (
    Call,
    DeleteKey,
    FindActor,
    GetKey,
    ListActors,
    ListEndedProcesses,
    ListGroups,
    ListJobs,
    ListKeys,
    ListNames,
    ListNodes,
    PutKey,
)
from shoal.messages.node import (
    ActorLookup,
    ActorNames,
    KvDelete,
    KvGet,
    KvKeys,
    KvPut,
    NodesQuery,
    Reply,
)
from shoal.messages.state import Look
from shoal.node.clients import Client

_LISTS: Final[dict[str, Callable[[int], Call]]] = {
    "ListActors": lambda _: ListActors(),
    "ListEndedProcesses": ListEndedProcesses,
    "ListGroups": lambda _: ListGroups(),
    "ListJobs": lambda _: ListJobs(),
    "ListNodes": lambda _: ListNodes(),
}
_encode: Final = msgspec.msgpack.Encoder().encode


class Queries:
    """See the module's docstring."""

    def __init__(self, control: ControlLink) -> None:
        self._control = control
        self.client_handlers: dict[type, Callable[[Client, Any], None]] = {
            KvPut: self.on_kv_put,
            KvGet: self.on_kv_get,
            KvDelete: self.on_kv_delete,
            KvKeys: self.on_kv_keys,
            ActorLookup: self.on_lookup,
            ActorNames: self.on_names,
            Look: self.on_look,
        }

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

    def on_look(self, client: Client, m: Look) -> None:
        make = _LISTS.get(m.kind)
        if make is None:
            client.send(Reply(m.req, error=f"ValueError: there is no list {m.kind!r}"))
        else:
            self.ask(client, m.req, make(m.limit))

    def ask(self, client: Client, req: int, call: Call) -> None:
        """Pass a question on; the answer goes to the client as it comes."""
        self._control.call(call).add_done_callback(functools.partial(_answer, client, req))


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
