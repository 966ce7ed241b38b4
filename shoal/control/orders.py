"""Orders to nodes: each leaves when what it follows from is durable.

Owns nothing: the ways to the nodes are in `Nodes`, and what is not durable yet is up to the journal. A node that is not connected at the
moment that the order leaves does not get it; it hears what has become of things when it is back.
"""

from __future__ import annotations

import asyncio
from typing import Any

from shoal.control.journal import Journal
from shoal.control.nodes import Nodes
from shoal.messages.control import ActorChanged, Order


class Orders:
    """See the module's docstring."""

    def __init__(self, loop: asyncio.AbstractEventLoop, nodes: Nodes, journal: Journal) -> None:
        self._loop = loop
        self._nodes = nodes
        self._journal = journal

    def give(self, node_id: bytes, order: Order) -> None:
        """Give an order to a node."""

        def leave() -> None:
            way = self._nodes.way(node_id)
            if way is not None:
                way(order)

        # In a turn of its own, as if it came through a socket: what a node posts while it obeys must not find the
        # store in the middle of something.
        def soon() -> None:
            self._loop.call_soon(leave)

        self._journal.then(soon)

    def give_all(self, order: Order, but: bytes = b"") -> None:
        """Give it to all nodes but one."""
        for node_id in self._nodes.others(but):
            self.give(node_id, order)

    def tell(self, watchers: tuple[Any, ...], change: Any) -> None:
        """Tell what has become of an actor. The watchers are pairs of a node and a client there."""
        by_node: dict[bytes, list[int]] = {}
        for node_id, client in watchers:
            by_node.setdefault(node_id, []).append(client)
        for node_id, clients in by_node.items():
            self.give(node_id, ActorChanged(clients, change))
