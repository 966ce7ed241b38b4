"""How full the store of this node is, as others see it: looked at when something has changed, but not more than once a second, and now
and then while there is anything on disk, since nobody says when that goes.

The files on disk are counted in a thread. All else is in the daemon's event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from shoal.core.quotas import StoreQuotas
from shoal.messages.placement import StoreRow
from shoal.node.disk import SpillAccounts

_LOOK_S: Final = 1.0
_LOOK_AT_DISK_S: Final = 5.0
_NS_PER_MS: Final = 1_000_000


class StoreRows:
    """See the module's docstring.

    Attributes:
        row: The latest.
        listeners: Called when there is another.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, quotas: StoreQuotas, disk: SpillAccounts
    ) -> None:
        self.row = StoreRow(quotas.capacity, 0)
        self.listeners: list[Callable[[], None]] = []
        self._loop = loop
        self._quotas = quotas
        self._disk = disk
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def on_change(self) -> None:
        """Somebody has got room, has given it back, or has written to disk."""
        self._look_in(_LOOK_S)

    def _look_in(self, delay_s: float) -> None:
        if self._timer is not None:
            if self._timer.when() <= self._loop.time() + delay_s:
                return
            self._timer.cancel()
        if not self._closed:
            self._timer = self._loop.call_later(delay_s, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._disk.used:
            counting = self._loop.run_in_executor(None, self._disk.on_disk)
            counting.add_done_callback(self._on_counted)
        else:
            self._show(0)

    def _on_counted(self, counting: asyncio.Future[int]) -> None:
        # If the folder is gone, so is the session.
        if not self._closed and not counting.cancelled() and counting.exception() is None:
            self._show(counting.result())
            if self.row.on_disk:
                self._look_in(_LOOK_AT_DISK_S)

    def _show(self, on_disk: int) -> None:
        quotas, disk = self._quotas, self._disk
        row = StoreRow(
            quotas.capacity,
            quotas.capacity - quotas.free,
            on_disk,
            disk.written,
            disk.spent_ns // _NS_PER_MS,
        )
        if row != self.row:
            self.row = row
            for listener in self.listeners:
                listener()

    def close(self) -> None:
        """Look no more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
