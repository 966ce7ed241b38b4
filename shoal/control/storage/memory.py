"""The storage that ends with its process: for a session that ends with its head there is nothing to outlive.

By default it keeps nothing at all: the control store has everything in memory anyway, and nobody will load it. Given a
`MemoryPlace` it keeps what is committed there, and then meets the whole contract of `Storage` except that the place itself ends
with the process. Tests and simulations restart control stores over one.
"""

from __future__ import annotations

from collections.abc import Sequence

from shoal.control.storage import StorageInUse, StorageState, Tables, Write
from shoal.errors import InternalError


class MemoryPlace:
    """What several storages of one process can share, one at a time."""

    def __init__(self) -> None:
        self.tables: Tables = {}
        self.writer: MemoryStorage | None = None


class MemoryStorage:
    """See the module's docstring."""

    def __init__(self, place: MemoryPlace | None = None) -> None:
        self.state = StorageState()
        self._place = place

    async def load(self) -> Tables:
        place = self._place
        if place is None:
            return {}
        if place.writer is not None and place.writer is not self:
            raise StorageInUse("this place in memory is used by another control store: close it")
        place.writer = self
        return {table: dict(rows) for table, rows in place.tables.items() if rows}

    def commit(self, writes: Sequence[Write]) -> None:
        place = self._place
        if place is None:
            return
        if place.writer is not self:
            raise InternalError(
                "a commit came before the storage was loaded, or after it was closed"
            )
        for table, key, value in writes:
            rows = place.tables.setdefault(table, {})
            if value is None:
                rows.pop(key, None)
            else:
                rows[key] = value

    async def close(self) -> None:
        if self._place is not None and self._place.writer is self:
            self._place.writer = None
