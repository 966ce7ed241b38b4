"""The way of a node to a control store in the same process: calls and posts are function calls.

A session of one machine has this one. It ends with the process, so nothing here breaks, is said again, or waits.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from shoal.messages.control import Call, Post

if TYPE_CHECKING:
    from shoal.control.store import ControlStore


class LocalLink:
    """The way of a node in the same process (a `ControlLink`)."""

    def __init__(self, store: ControlStore, node_id: bytes) -> None:
        self._store = store
        self._node_id = node_id

    def call(self, message: Call) -> asyncio.Future[Any]:
        return self._store.call(self._node_id, message)

    def post(self, message: Post) -> None:
        self._store.post(self._node_id, message)

    def close(self) -> None:
        self._store.disconnect(self._node_id)
