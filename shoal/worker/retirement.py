"""What a worker does when the node has no more use for it: ends, unless others count on what it owns.

A worker owns what its tasks put and what they submitted; references to that may have gone out with their results.
All methods are called with the runtime's lock held, but for the one that a timer calls.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from shoal.messages.node import Leaving, Retire, Stay
from shoal.worker import output

if TYPE_CHECKING:
    from shoal.worker.executor import Executor

_LOOK_AGAIN_S: Final = 1.0


class Retirement:
    """See the module's docstring."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._process = executor.process

    def on_retire(self, message: Retire) -> None:
        """End, or say that this worker stays."""
        process, executor = self._process, self._executor
        process.settle()
        busy = executor.is_busy()
        if busy and message.spent:
            # With what an owner began that has ended.
            output.flush()
            os._exit(0)
        if not busy and not process.is_counted_on():
            executor.leave(message.reason)
            return
        process.node.send_locked(Stay())
        if message.spent:
            executor.take_no_more()
            self._look_later(message.reason)

    def _look_later(self, reason: str) -> None:
        """Nobody leases this worker any more: it ends when nobody counts on what it owns."""

        def look() -> None:
            with self._process.lock:
                self._process.settle()
                if self._process.is_counted_on():
                    self._look_later(reason)
                else:
                    self._process.node.send_locked(Leaving())
                    self._executor.leave(reason)

        self._process.reactor.call_later(_LOOK_AGAIN_S, look)
