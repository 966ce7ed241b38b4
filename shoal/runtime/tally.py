"""Counting objects that become ready, for a `wait` that wants many of them.

A `wait` for one object looks at all of them whenever something has come. For one that wants ten thousand that would be ten thousand looks
at ten thousand objects; so each of them tells this count when it is ready, and the thread sleeps until enough are.

All methods are called with the runtime's lock held.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

from shoal.wire.reactor import Waiter

if TYPE_CHECKING:
    from shoal.core.references import Entry
    from shoal.runtime.remote import RemoteObjects


class Tally(Waiter):
    """Done when `wanted` objects are ready: known, and on this node, too, if there is a `remote`.

    Attributes:
        ready: Those that are.
    """

    __slots__ = ("_remote", "_wanted", "ready")

    def __init__(self, wanted: int, remote: RemoteObjects | None) -> None:
        super().__init__()
        self._wanted = wanted
        self._remote = remote
        self.ready: dict[Entry, None] = {}

    def __call__(self, entry: Entry) -> None:
        """The value of an entry is known."""
        remote = self._remote
        if remote is not None and remote.is_remote(entry.value):
            remote.when_here(entry.value, partial(self._count, entry))
        else:
            self._count(entry)

    def _count(self, entry: Entry) -> None:
        self.ready[entry] = None
        if len(self.ready) >= self._wanted:
            self.finish()

    def chosen(self, entries: Iterable[Entry]) -> list[int]:
        """Where the first of those that are ready stand, as many as are wanted."""
        found = [index for index, entry in enumerate(entries) if entry in self.ready]
        return found[: self._wanted]
