"""The places over which the contract suite runs: where a storage keeps things, apart from any one storage object."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from shoal.control.storage import Storage, StorageState


class Place(NamedTuple):
    """`open` makes a storage over this place that was not loaded yet, as a control store would that starts there."""

    kind: str
    open: Callable[[], Storage]


async def until(state: StorageState, start: str, seconds: float = 20.0) -> str:
    """Wait until the state's text begins like this; the text."""
    changed = asyncio.Event()
    state.listen(lambda _: changed.set())
    async with asyncio.timeout(seconds):
        while not state.text.startswith(start):
            changed.clear()
            await changed.wait()
    return state.text
