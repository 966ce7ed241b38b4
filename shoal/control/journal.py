"""Write, then act: what is to be done waits until what was written before is durable.

Guarantees: actions run in the order in which they were given, and none before all that was written ahead of it is durable. While the
storage is away everything waits, for as long as the storage tries; when it is back, everything goes on. After a failure nothing is done any
more: nobody has heard of what is lost, and going on would tell others what a restart will not know.

What waits is bounded by time: a storage tries for `storage_retry_s`. It is also bounded by those who ask, who wait for their answers.

With storage that is durable at once (memory), actions run at once, without a turn of the event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from shoal.control.storage import Storage, Write


class Journal:
    """See the module's docstring. `on_failure` is told once."""

    def __init__(self, storage: Storage, on_failure: Callable[[Exception], None]) -> None:
        self._storage = storage
        self._on_failure = on_failure
        self._failed = False
        self._writes: list[Write] = []
        self._with_next: list[Write] = []
        self._then: list[Callable[[], None]] = []
        self._held: deque[tuple[asyncio.Future[None], list[Callable[[], None]]]] = deque()

    @property
    def held(self) -> int:
        """How many actions wait for the storage."""
        return sum(len(actions) for _, actions in self._held)

    def write(self, table: str, key: bytes, value: bytes | None) -> None:
        """Set a key of a table, or delete it, with the next `flush`."""
        self._writes.append(Write(table, key, value))

    def write_with_next(self, table: str, key: bytes, value: bytes | None) -> None:
        """Like `write`, but not worth a commit of its own: it goes with the next one that there is."""
        self._with_next.append(Write(table, key, value))

    @property
    def dirty(self) -> bool:
        """Whether something was written since the last `flush`."""
        return bool(self._writes)

    def then(self, action: Callable[[], None]) -> None:
        """Do this when everything written so far is durable."""
        self._then.append(action)

    def flush(self) -> None:
        """Commit what was written, and do what follows."""
        writes, self._writes = self._writes, []
        actions, self._then = self._then, []
        if self._failed:
            return
        if writes and self._with_next:
            # What was said earlier comes first: it may concern the same keys.
            writes[:0] = self._with_next
            self._with_next.clear()
        durable = self._storage.commit(writes) if writes else None
        if durable is not None:
            self._held.append((durable, actions))
            durable.add_done_callback(self._release)
        elif self._held:
            self._held[-1][1].extend(actions)
        else:
            for action in actions:
                action()

    def _release(self, _done: asyncio.Future[None]) -> None:
        while self._held and self._held[0][0].done():
            durable, actions = self._held.popleft()
            error = durable.exception()
            # Of the futures that follow a failed one, too: asking is what keeps asyncio from reporting them as overlooked.
            if error is None and not self._failed:
                for action in actions:
                    action()
            elif isinstance(error, Exception):
                self.fail(error)

    def fail(self, error: Exception) -> None:
        """The storage has failed, whether or not anything was to be written."""
        if not self._failed:
            self._failed = True
            self._on_failure(error)
