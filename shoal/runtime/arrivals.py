"""Values with very many references inside, entered a batch at a time.

Each of these references is an entry of the table of objects, and of fetched ones the owner must hear. For a million of them that takes
seconds, in which this process would answer nobody. So a value that has more than a batch becomes known when the last of them is entered,
and other things are done in between. Meanwhile its entry is held; and nothing may end that covers the references that are still to be
entered: whoever counts them (`Borrowing`) asks for the rest at once (`finish_arrivals`).

All methods are called with the runtime's lock held, but `_go_on`, which takes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from shoal.core.references import BATCH

if TYPE_CHECKING:
    from shoal.core.references import Entry
    from shoal.messages.values import Refs
    from shoal.runtime.process import Process


class _Arrival(NamedTuple):
    value: Any
    batches: Iterator[list[tuple[bytes, str]]]
    registered: bool
    voucher: str


class Arrivals:
    """See the module's docstring."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._pending: dict[Entry, _Arrival] = {}

    def complete(
        self, entry: Entry, value: Any, refs: list[Refs], registered: bool | None, voucher: str = ""
    ) -> None:
        """As `Process.complete`, which this ends with. What is made in this process (`registered` is None) is entered at once."""
        process = self._process
        if registered is None or sum(len(some.object_ids) for some in refs) <= BATCH:
            process.complete(entry, value, refs, registered, voucher)
            return
        process.objects.hold(entry)
        if not self._pending:
            process.reactor.call_later(0, self._go_on)
        self._pending[entry] = _Arrival(value, _batches(refs), registered, voucher)

    def finish_arrivals(self) -> None:
        """Enter all that has come, now."""
        while self._pending:
            self._next_batch()

    def _go_on(self) -> None:
        process = self._process
        with process.lock:
            if not self._pending:
                return
            self._next_batch()
            process.settle()
            if process.tick_waiters:
                process.tick()
            if self._pending:
                process.reactor.call_later(0, self._go_on)

    def _next_batch(self) -> None:
        process = self._process
        objects = process.objects
        entry, arrival = next(iter(self._pending.items()))
        batch = next(arrival.batches, None)
        if batch is not None:
            inners = [objects.borrow(ref) for ref in batch]
            objects.contain(entry, inners, arrival.registered, arrival.voucher)
            return
        del self._pending[entry]
        if entry.value is None:
            # Otherwise the session has ended meanwhile.
            process.complete(entry, arrival.value, [], arrival.registered)
        objects.unhold(entry)


def _batches(refs: list[Refs]) -> Iterator[list[tuple[bytes, str]]]:
    for some in refs:
        ids = some.object_ids
        for start in range(0, len(ids), BATCH):
            yield [(object_id, some.owner) for object_id in ids[start : start + BATCH]]
