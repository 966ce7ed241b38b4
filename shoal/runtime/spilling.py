"""What a process does for spilling: it writes its objects to disk when the node asks for it, and has them brought back from elsewhere.

The writing has a thread, so that nobody else waits for the disk. It begins with the first order and ends with the store. It is a daemon:
a process that ends in the middle of an order leaves a file that nobody looks for, which the node removes with what else it has left.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final

from shoal.messages.stores import AwayDead, BringBack, Spilled
from shoal.store.spilling import SpillResult

if TYPE_CHECKING:
    from shoal.runtime.node_link import NodeLink
    from shoal.store import Arena

_END_S: Final = 2.0

_log = logging.getLogger("shoal.runtime")


class Spiller:
    """See the module's docstring. `arena` gives the process's arena, if it has one."""

    def __init__(self, node: NodeLink, arena: Callable[[], Arena | None]) -> None:
        self._node = node
        self._arena = arena
        self._orders: SimpleQueue[int | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def on_order(self, wanted: int) -> None:
        """The node wants so many bytes. Called by the reactor's leader only."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="shoal-spilling", daemon=True)
            self._thread.start()
        self._orders.put(wanted)

    def close(self) -> None:
        """No more orders. One that is being carried out is waited for: it would write into a folder that is being removed."""
        if self._thread is not None:
            self._orders.put(None)
            self._thread.join(_END_S)

    def _run(self) -> None:
        while True:
            wanted = self._orders.get()
            if wanted is None:
                return
            arena = self._arena()
            try:
                result = SpillResult(0, 0) if arena is None else arena.spill(wanted)
            except Exception as error:  # noqa: BLE001 - a defect of ours, but the node must hear of an end
                _log.exception("spilling failed")
                result = SpillResult(0, 0, f"{type(error).__name__}: {error}")
            self._node.send(Spilled(result.freed, result.written, result.error))


class RemoteTarget:
    """The remote target of spilled segments, as a process sees it: its node brings them back, and hears which are dead. Any thread."""

    def __init__(self, node: NodeLink) -> None:
        self._node = node
        self._dead: list[str] = []

    def bring(self, segment: str) -> None:
        """As of `store.spilling.Remote`."""
        self._node.query(lambda req: BringBack(req, segment), None, None)

    def forget(self, segment: str) -> None:
        """As of `store.spilling.Remote`."""
        self._dead.append(segment)

    def tell_dead(self) -> None:
        """Tell the node of it, with whatever is sent next (with the lock held)."""
        if self._dead:
            dead, self._dead = self._dead, []
            self._node.send_locked(AwayDead(dead))
