"""Tells other daemons what is dead, in threads of its own: they may be slow, or gone.

Nobody waits for it. If a daemon cannot be reached, copies stay until their room is wanted, orphans until their job ends.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from shoal.messages.transfer import CopiesDead, OrphansDead
from shoal.node.transfer.links import Link, LinkPool

_log = logging.getLogger("shoal.node")

_THREADS: Final = 2
_TRIES: Final = 3


def _keep_going(_link: Link) -> None:
    """Nobody breaks off telling others of dead copies."""


class Telling:
    """See the module's docstring. `tell` and `close` are called in the loop; `connect` in threads: a link to the daemon at a place."""

    def __init__(
        self, pool: LinkPool, connect: Callable[[str, Callable[[Link], None]], Link]
    ) -> None:
        self._pool = pool
        self._connect = connect
        self._threads: ThreadPoolExecutor | None = None
        self._closed = False

    def tell(self, place: str, message: CopiesDead | OrphansDead) -> None:
        """Tell the daemon at a place."""
        if self._closed:
            return
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_THREADS, "shoal-telling")
        self._threads.submit(self._run, place, message)

    def _run(self, place: str, message: CopiesDead | OrphansDead) -> None:
        try:
            self._try(place, message)
        except Exception:  # noqa: BLE001 - a thread's outermost frame: the executor would keep it to itself
            _log.exception("telling %s of dead objects failed", place)

    def _try(self, place: str, message: CopiesDead | OrphansDead) -> None:
        for _ in range(_TRIES):
            if self._closed:
                return
            link: Link | None = None
            try:
                link = self._pool.take(place) or self._connect(place, _keep_going)
                link.send(message)
                if link.receive() is not None:
                    self._pool.give(place, link)
                    return
            except (OSError, ValueError) as error:
                _log.debug("cannot tell %s of dead objects: %s", place, error)
            if link is not None:
                link.close()

    def close(self) -> None:
        """Tell nothing more; nobody waits for what is being told."""
        self._closed = True
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
