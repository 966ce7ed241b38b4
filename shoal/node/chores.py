"""A thread for what may take long: files are removed, written and looked at by it, and the event loop waits for no disk.

What it is given is done in the order in which it was given, one thing after the other; so what only this thread touches needs no lock. It
begins with the first thing to do (after the zygote was forked), and is a daemon: at the end nobody waits for a disk that hangs.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

from shoal.clock import monotonic_ns
from shoal.lock import make_lock

_log = logging.getLogger("shoal.node")

Chore = Callable[[], object]


class Chores:
    """See the module's docstring. `do` and `close` are for any thread; `do_in` is for this one."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._queue: SimpleQueue[Chore | None] = SimpleQueue()
        self._starting = make_lock()
        self._thread: threading.Thread | None = None
        # When, a number that decides between equals, and what.
        self._later: list[tuple[int, int, Chore]] = []
        self._numbers = itertools.count()
        self._closed = False

    def do(self, work: Callable[..., object], *args: Any) -> None:
        """Have something done after all that was given before. After `close`, nothing."""
        with self._starting:
            if self._closed:
                return
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
        self._queue.put(lambda: work(*args))

    def do_in(self, delay_s: float, work: Callable[[], object]) -> None:
        """Have something done after a while. Called in the thread only."""
        at = monotonic_ns() + int(delay_s * 1e9)
        heapq.heappush(self._later, (at, next(self._numbers), work))

    def close(self) -> None:
        """Begin with nothing more; what is being done nobody waits for."""
        with self._starting:
            self._closed = True
        self._queue.put(None)

    def join(self, timeout_s: float) -> None:
        """After `close`: wait a little for what is being done. Not in the thread."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            chore = self._next()
            if self._closed or chore is None:
                return
            try:
                chore()
            except Exception:  # noqa: BLE001 - a thread's outermost frame: a defect of ours must not end it
                _log.exception("a chore of the thread %s failed", self._name)

    def _next(self) -> Chore | None:
        while True:
            if not self._later:
                return self._queue.get()
            delay_s = (self._later[0][0] - monotonic_ns()) / 1e9
            if delay_s <= 0:
                return heapq.heappop(self._later)[2]
            try:
                return self._queue.get(timeout=delay_s)
            except Empty:
                continue
