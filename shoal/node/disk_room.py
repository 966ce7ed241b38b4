"""Room on the disk for what is about to be written there: where it is short, copies that nobody uses go first, as in memory.

Whoever writes finds out itself whether the disk takes it (`store.spilling`). But only the node knows what need not be there: copies of
objects of other nodes can be got again. So before it has anybody write, it looks at the disk, in a thread, and has as many copies dropped
as are in the way. While there are none that could be, nothing is looked at and nobody waits.

All else runs in the daemon's event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from shoal.node.chores import Chores


class Copies(Protocol):
    """Copies of objects of other nodes."""

    def some_on_disk(self) -> bool:
        """Whether there may be any on disk."""

    def drop_from_disk(self, wanted: int, then: Callable[[], None]) -> bool:
        """Drop copies that nobody uses for `wanted` bytes of room on the disk, those unused for longest first. Whether there are
        any; `then` is called when they are gone."""


class DiskRoom:
    """See the module's docstring. `folder` is where things are written, if they are; `disk_fraction` is how full its disk may become.

    Attributes:
        copies: Where copies are, if the node is one of several.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, folder: Path | None, disk_fraction: float
    ) -> None:
        self.copies: Copies | None = None
        self._loop = loop
        self._folder = folder
        self._disk_fraction = disk_fraction
        self._chores = Chores("shoal-disk-room")

    def before(self, wanted: int, then: Callable[[], None]) -> None:
        """Call `then` when there is room for `wanted` bytes, or nothing more can be done about that; at once, if no copies are there."""
        copies = self.copies
        if self._folder is None or copies is None or not copies.some_on_disk():
            then()
        else:
            self._chores.do(self._look, self._folder, wanted, then)

    def on_full(self, wanted: int, then: Callable[[], None]) -> bool:
        """The disk took no more: drop copies for `wanted` bytes. Whether there are any; `then` is called when they are gone."""
        return self.copies is not None and self.copies.drop_from_disk(wanted, then)

    def _look(self, folder: Path, wanted: int, then: Callable[[], None]) -> None:
        """In the thread."""
        from shoal.store.spilling import disk_shortage

        short = 0
        with contextlib.suppress(OSError):
            # Whoever writes there will find it, too, and say what it is.
            short = disk_shortage(folder, wanted, self._disk_fraction)
        with contextlib.suppress(RuntimeError):
            # The loop may have ended.
            self._loop.call_soon_threadsafe(self._on_looked, short, then)

    def _on_looked(self, short: int, then: Callable[[], None]) -> None:
        if not short or not self.on_full(short, then):
            then()

    def close(self) -> None:
        """Look no more."""
        self._chores.close()
