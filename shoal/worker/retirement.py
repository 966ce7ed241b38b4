"""What a worker does when the node has no more use for it: ends, unless others count on what it owns.

A worker owns what its tasks put and what they submitted; references to that may have gone out with their results. So it stays
for that even when the owner of what it runs has ended: then it interrupts that work first, for which the node gives it
`exit_grace_s`, as for every answer.

All methods are called with the runtime's lock held, but for those that a timer calls.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from shoal.messages.node import Leaving, Retire, Stay
from shoal.worker import output

if TYPE_CHECKING:
    from shoal.worker.executor import Executor

_LOOK_AGAIN_S: Final = 1.0
_INTERRUPTED_S: Final = 0.02
"""After which it is looked whether what was interrupted has ended."""


class Retirement:
    """See the module's docstring."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._process = executor.process

    def on_retire(self, message: Retire) -> None:
        """End, or say that this worker stays."""
        process, executor = self._process, self._executor
        process.settle()
        if message.spent:
            executor.blocking.take_no_more()
            self._end_spent(message.reason)
        elif executor.is_busy() or process.is_counted_on():
            process.node.send_locked(Stay())
        else:
            executor.leave(message.reason)

    def _end_spent(self, reason: str) -> None:
        """Nobody leases this worker any more."""
        process, executor = self._process, self._executor
        if executor.is_busy():
            # With what an owner began that has ended.
            if not process.objects.has_lent():
                output.flush()
                os._exit(0)
            executor.abandon()

            def look() -> None:
                with process.lock:
                    process.settle()
                    self._end_spent(reason)

            process.reactor.call_later(_INTERRUPTED_S, look)
        elif process.is_counted_on():
            process.node.send_locked(Stay())
            self._look_later(reason)
        else:
            executor.leave(reason)

    def _look_later(self, reason: str) -> None:
        """It ends when nobody counts on what it owns."""

        def look() -> None:
            with self._process.lock:
                self._process.settle()
                if self._executor.is_busy():
                    # It had been taken out of the inbox and had not begun.
                    self._executor.abandon()
                    self._look_later(reason)
                elif self._process.is_counted_on():
                    self._look_later(reason)
                else:
                    self._process.node.send_locked(Leaving())
                    self._executor.leave(reason)

        self._process.reactor.call_later(_LOOK_AGAIN_S, look)
