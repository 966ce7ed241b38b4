"""Where the control store writes down what must outlive it.

A backend stores bytes under (table, key). It guarantees that a commit is applied as a whole and in order, and that what
was committed is there at the next `load`. It knows nothing of what the bytes mean.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Write(NamedTuple):
    """Set a key of a table, or delete it (`value` is none)."""

    table: str
    key: bytes
    value: bytes | None


class Storage(Protocol):
    """One backend."""

    async def load(self) -> dict[str, dict[bytes, bytes]]:
        """Everything, by table and key: called once, before the first commit."""

    def commit(self, writes: Sequence[Write]) -> asyncio.Future[None] | None:
        """Write; the future is done when it is durable. None if it is already, which spares memory the event loop."""

    async def close(self) -> None:
        """Finish what was committed, and let go."""
