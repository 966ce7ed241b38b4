"""This node as others see it: its row in the list of nodes, and the row by which work is placed.

Each row for placing has a version. Whoever was told a version waits for a row that is not older (`promised_row`). Rows go to the
control store when something has changed, at most once in `view_ms`; in a session of one machine only once there are placement
groups, since nothing else is placed by them there.

Everything runs in the daemon's event loop.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Any, Final

from shoal.core.leases import LeaseQueue
from shoal.core.resources import NodeResources
from shoal.messages.boot import Boot
from shoal.messages.control import NodeState, NodeView, Post
from shoal.messages.node import NodeRow
from shoal.messages.placement import ViewRow
from shoal.node.store_row import StoreRows
from shoal.wire.session import node_path

NODE_ID_LABELS: Final = ("shoal.io/node-id", "ray.io/node-id")
"""Labels that every node has, whatever else it has."""


def labels_of(boot: Boot, node_id: bytes) -> dict[str, str]:
    """The labels of a node."""
    return {**boot.labels, **dict.fromkeys(NODE_ID_LABELS, node_id.hex())}


def node_row(boot: Boot, node_id: bytes, resources: NodeResources) -> NodeRow:
    """The node in the list of nodes."""
    return NodeRow(
        node_id,
        True,
        boot.node_ip,
        socket.gethostname(),
        boot.node_name,
        dict(resources.total),
        {name: max(0, amount) for name, amount in resources.available.items()},
        labels_of(boot, node_id),
        node_path(boot.session_dir),
        os.getpid(),
        boot.place,
    )


class Showing:
    """See the module's docstring.

    Args:
        post: Tells the control store.
        store: How full the object store is.
        on_change: Called when rows are told and time has passed since: there may be room for what waits.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        boot: Boot,
        node_id: bytes,
        queue: LeaseQueue,
        post: Callable[[Post], None],
        store: StoreRows,
        on_change: Callable[[], None] | None = None,
    ) -> None:
        self._loop = loop
        self._boot = boot
        self._node_id = node_id
        self._queue = queue
        self._labels = labels_of(boot, node_id)
        self._post = post
        self._store = store
        self._on_change = on_change
        self._version = 0
        self._shown: tuple[Any, ...] = ()
        self._look_s = boot.config.view_ms / 1_000
        self._timer: asyncio.TimerHandle | None = None
        self._tells = False
        store.listeners.append(self.look)

    def row(self) -> ViewRow:
        """The state of this node at this moment, in a version of its own."""
        queue = self._queue
        waiting, leases, mean_ns = queue.load()
        self._version += 1
        return ViewRow(
            self._node_id,
            self._version,
            dict(queue.resources.total),
            dict(queue.resources.available),
            self._labels,
            waiting,
            leases,
            mean_ns // 1_000,
            groups=queue.supply.ledger.free(),
            store=self._store.row,
        )

    def tell_resources(self) -> None:
        """Tell what is free at this moment, whoever else hears of it when."""
        self._post(NodeState(node_row(self._boot, self._node_id, self._queue.resources)))

    def promised_row(self) -> ViewRow:
        """One of which somebody hears the version: he waits for a row that is not older."""
        self._shown = ()
        return self.row()

    def tell(self) -> None:
        """Tell rows from now on."""
        self._tells = True

    def look(self) -> None:
        """The workers or the queue may have changed."""
        if self._tells and self._timer is None:
            self._timer = self._loop.call_later(self._look_s, self._look_again)
            self._tell_news()

    def _look_again(self) -> None:
        self._timer = None
        if self._tell_news() and self._on_change is not None:
            self._on_change()

    def _tell_news(self) -> bool:
        queue = self._queue
        waiting, leases, _ = queue.load()
        shown = (
            waiting,
            leases,
            dict(queue.resources.available),
            queue.supply.ledger.free(),
            self._store.row,
        )
        if shown == self._shown:
            return False
        self._shown = shown
        self._post(NodeView(self.row()))
        return True

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
