"""The blocks that this process made for others: results of their tasks, in its shared memory.

The owner of a result says when its block may go. When the owner has ended without a word, others may have borrowed the object from
it; who still uses it only the node can find out, so the blocks are reported to it. All methods are called with the
runtime's lock held.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from shoal.messages.values import Location, Stored, Value

if TYPE_CHECKING:
    from shoal.runtime.storage import ObjectStore


class Deliveries:
    """See the module's docstring."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._by_owner: dict[str, dict[Location, None]] = {}

    def deliver(self, owner: str, values: Iterable[Value]) -> None:
        """Values go to their owner."""
        for value in values:
            if type(value) is Stored and value.creator == self._store.address:
                self._by_owner.setdefault(owner, {})[value.location] = None

    def discard(self, values: Iterable[Value]) -> None:
        """Values cannot go to their owner any more: it has ended, and nobody else has heard of them."""
        for value in values:
            if type(value) is Stored and value.creator == self._store.address:
                self._store.free(value.location)

    def freed(self, owner: str, locations: Iterable[Location]) -> None:
        """Their owner says that blocks are dead."""
        blocks = self._by_owner.get(owner, {})
        for location in locations:
            blocks.pop(location, None)
            self._store.free(location)
        if not blocks:
            self._by_owner.pop(owner, None)

    def owners(self) -> dict[Location, str]:
        """Whose the blocks are."""
        return {location: owner for owner, made in self._by_owner.items() for location in made}

    def abandoned_by(self, owner: str) -> list[Location]:
        """An owner has ended: the blocks that it has not freed."""
        return list(self._by_owner.get(owner, ()))
