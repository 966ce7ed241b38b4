"""Nodes for tests of the control store: a link without a daemon behind it, and a control store that serves in this process."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from shoal.config import Config
from shoal.control.remote_link import RemoteLink
from shoal.control.server import Server, listen
from shoal.control.sessions import Sessions
from shoal.control.storage import Storage
from shoal.control.store import ControlStore
from shoal.messages.control import ActorPlaced, ActorRuns, Order, PlaceActor
from shoal.messages.node import UNIT, NodeRow

TOKEN = b"t" * 32
QUICK = Config(
    node_heartbeat_s=0.05,
    node_timeout_s=30.0,
    node_reconnect_s=30.0,
    control_retry_s=30.0,
    view_ms=1,
)
PATIENCE_S = 30.0


def node_row(number: int, cpus: int = 4, **total: int) -> NodeRow:
    amounts = {"CPU": cpus * UNIT, **{name: amount * UNIT for name, amount in total.items()}}
    return NodeRow(
        bytes([number]) * 16,
        True,
        "127.0.0.1",
        "host",
        f"node-{number}",
        amounts,
        dict(amounts),
        {},
        "/run/node.sock",
        number,
        f"10.0.0.{number}:7000",
    )


class Node:
    """A node: what it was told, and what it says when it obeys."""

    def __init__(
        self,
        number: int,
        port: int,
        *,
        config: Config = QUICK,
        token: bytes = TOKEN,
        session: int = 1,
        obey: bool = False,
        row: NodeRow | None = None,
        **options: Any,
    ) -> None:
        self.row = row or node_row(number)
        self.orders: list[Order] = []
        self.ended: list[str] = []
        self.lives: list[tuple[bytes, int]] = []
        self._obey = obey
        self._changed = asyncio.Event()
        self.link = RemoteLink(
            asyncio.get_running_loop(),
            "127.0.0.1",
            port,
            token=token,
            config=config,
            row=self.row,
            session=session,
            lives=lambda: self.lives,
            on_order=self._on_order,
            on_end=self._on_end,
            **options,
        )

    @property
    def node_id(self) -> bytes:
        return self.row.node_id

    def _on_order(self, order: Order) -> None:
        self.orders.append(order)
        if self._obey and isinstance(order, PlaceActor):
            actor_id, life = order.spec.actor_id, order.incarnation
            self.lives.append((actor_id, life))
            address = f"{self.row.place}/w-{life:08x}"
            self.link.post(ActorPlaced(actor_id, life, address, 100))
            self.link.post(ActorRuns(actor_id, life, b"", ""))
        self._changed.set()

    def _on_end(self, reason: str) -> None:
        self.ended.append(reason)
        self._changed.set()

    async def hear(self, condition: Callable[[], Any]) -> None:
        """Wait until orders, or the node's end, make it true."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def heard(self, kind: type) -> list[Any]:
        """Orders of a kind."""
        return [order for order in self.orders if isinstance(order, kind)]

    async def ordered(self, kind: type, count: int = 1) -> list[Any]:
        """Wait for so many orders of a kind; they are taken out."""
        await self.hear(lambda: len(self.heard(kind)) >= count)
        found = self.heard(kind)
        self.orders = [order for order in self.orders if not isinstance(order, kind)]
        return found


@dataclasses.dataclass
class Serving:
    """A control store that serves."""

    store: ControlStore
    sessions: Sessions
    server: Server
    failures: list[Exception]

    @property
    def port(self) -> int:
        return self.server.port

    def cut(self) -> None:
        """Break every connection, as a network would."""
        for connection in list(self.sessions._connections):
            assert connection._transport is not None
            connection._transport.abort()


@asynccontextmanager
async def serving(
    storage: Storage, *, config: Config = QUICK, port: int = 0, context: Any = None
) -> AsyncIterator[Serving]:
    """A control store over a storage, in this process, for as long as the block runs."""
    loop = asyncio.get_running_loop()
    failures: list[Exception] = []
    store = ControlStore(loop, storage, failures.append, config=config, name="test")
    await store.load()
    sessions = Sessions(loop, store, TOKEN, config)
    server = Server(loop, listen(port=port), sessions.accept, config.door_strangers, context)
    sessions.start()
    try:
        yield Serving(store, sessions, server, failures)
    finally:
        await server.close()
        sessions.close()
        await asyncio.sleep(0)
        await store.close()


async def until(condition: Callable[[], Any]) -> None:
    """Wait for what nobody tells."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.005)
