"""The storage that forgets: for a session that ends with its head there is nothing to outlive."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.control.storage import Write


class MemoryStorage:
    """Keeps nothing at all: the control store has everything in memory anyway, and nobody will load it."""

    async def load(self) -> dict[str, dict[bytes, bytes]]:
        return {}

    def commit(self, writes: Sequence[Write]) -> None:
        return None

    async def close(self) -> None:
        return None
