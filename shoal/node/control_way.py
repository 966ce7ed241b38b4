"""The control store of a node: in the daemon's own process, for a session by itself, or wherever the cluster has it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from shoal.control.link import ControlLink, OnOrder
from shoal.control.storage.opening import open_storage
from shoal.control.store import ControlStore
from shoal.messages.boot import Boot
from shoal.messages.node import NodeRow
from shoal.messages.placement import BundleHeld
from shoal.wire.addresses import split_place
from shoal.wire.tls import Tls

if TYPE_CHECKING:
    from shoal.control.remote_link import RemoteLink


class ControlWay:
    """`link` is the way there, from the beginning; what is told before `open` is kept.

    Args:
        lives: Which lives of actors the node has.
        bundles: What it has reserved for placement groups.
        on_order: Takes the orders of the control store.
        on_end: The node's time is over, for this reason: the storage failed, or the cluster has given the node up.
    """

    link: ControlLink

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        boot: Boot,
        row: NodeRow,
        *,
        lives: Callable[[], list[tuple[bytes, int]]],
        bundles: Callable[[], list[BundleHeld]],
        on_order: OnOrder,
        on_end: Callable[[str], None],
    ) -> None:
        self._here: ControlStore | None = None
        self._remote: RemoteLink | None = None
        if not boot.control:

            def on_failure(error: Exception) -> None:
                on_end(f"the control store's storage failed: {error}")

            # It ends with us.
            storage = open_storage("memory:")
            self._here = ControlStore(
                loop, storage, on_failure, config=boot.config, name=boot.cluster_name
            )
            self.link = self._here.connect(row, on_order)
            return
        from shoal.control.remote_link import RemoteLink

        host, port = split_place(boot.control)
        tls = Tls.of(boot.config)
        self.link = self._remote = RemoteLink(
            loop,
            host,
            port,
            token=boot.token,
            config=boot.config,
            row=row,
            session=int.from_bytes(os.urandom(7), "big"),
            lives=lives,
            bundles=bundles,
            on_order=on_order,
            on_end=on_end,
            context=None if tls is None else tls.client,
        )

    async def open(self) -> list[NodeRow]:
        """Begin; the other nodes that there are.

        Raises:
            ControlUnreachable, AuthenticationError, ProtocolError, NotAdmitted: see `RemoteLink.join`.
        """
        if self._here is not None:
            await self._here.load()
        if self._remote is None:
            return []
        return (await self._remote.join()).nodes

    async def close(self, failure: str = "") -> None:
        """Leave. `failure` says why the node cannot go on, if it was not told to end."""
        if self._remote is not None:
            reason = f"failed: {failure}" if failure else "was stopped"
            await self._remote.leave(reason, stopped=not failure)
        else:
            self.link.close()
        if self._here is not None:
            await self._here.close()
