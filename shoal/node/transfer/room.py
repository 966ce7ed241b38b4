"""The daemon as a holder of quota among its clients: what it gives back, and what it writes to disk, when others need room.

Both take their time, and have threads of their own for it, so that they do not wait for those that talk with other nodes. The keeper
gets every answer, in the loop.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from shoal.messages.stores import QuotaReturn, Spilled
from shoal.node.store import StoreKeeper
from shoal.store import Arena
from shoal.store.spilling import SpillResult

_log = logging.getLogger("shoal.node")


class DaemonQuota:
    """See the module's docstring.

    Args:
        address: The daemon's own.
        keeper: Where quota comes from.
        take: Gets what the keeper says.
        tell_loop: Calls something in the loop.
        idle_s: How long memory that nobody uses is kept.
    """

    def __init__(
        self,
        address: str,
        keeper: StoreKeeper,
        take: Callable[[Any], None],
        tell_loop: Callable[..., object],
        idle_s: float,
    ) -> None:
        self.address = address
        self.send = take
        self._keeper = keeper
        self._tell_loop = tell_loop
        self._idle_s = idle_s
        self._timer: asyncio.TimerHandle | None = None
        self._thread: ThreadPoolExecutor | None = None

    def __str__(self) -> str:
        return "the node daemon, for copies of objects of other nodes,"

    def give_back(self, arena: Arena, wanted: int, *, itself: bool) -> None:
        """Give back what is idle, and unless the daemon waits `itself`, what was granted and is not in use."""

        def work() -> None:
            given = 0
            try:
                given = arena.reclaim(wanted, unused=not itself)
            except Exception:  # noqa: BLE001 - a defect of ours, but who waits for room must have an answer
                _log.exception("giving room back failed")
            self._tell_loop(self._keeper.on_return, self, QuotaReturn(given, asked=True))

        self._have_done(work)

    def rest_later(self, arena: Arena) -> None:
        """Some of its memory is idle: see in a while whether that is so still, and then give it back (in the loop)."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._idle_s, self._have_done, lambda: self._rest(arena))

    def _rest(self, arena: Arena) -> None:
        given, again = arena.rest(sys.maxsize)
        if given:
            self._tell_loop(self._keeper.on_return, self, QuotaReturn(given))
        if again:
            self._tell_loop(self.rest_later, arena)

    def spill(self, arena: Arena, wanted: int) -> None:
        """Write copies to disk: those that somebody is about to map, or that others get from here, cannot be dropped."""

        def work() -> None:
            try:
                result = arena.spill(wanted)
            except Exception as error:  # noqa: BLE001 - a defect of ours, but who waits for room must have an answer
                _log.exception("spilling copies failed")
                result = SpillResult(0, 0, f"{type(error).__name__}: {error}")
            answer = Spilled(result.freed, result.written, result.error)
            self._tell_loop(self._keeper.on_spilled, self, answer)

        self._have_done(work)

    def _have_done(self, work: Callable[[], None]) -> None:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(2, "shoal-room")
        self._thread.submit(work)

    def close(self) -> None:
        """Do nothing more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)
