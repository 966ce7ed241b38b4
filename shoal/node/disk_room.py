"""Room on the disk for what is about to be written there. Where it is short, copies that nobody uses go first, as in memory; then the
coldest segments go on to the remote target, if there is one.

Whoever writes finds out itself whether the disk takes it (`store.spilling`). But only the node knows what need not be there: copies of
objects of other nodes can be got again. And only the node knows of a budget (`spill_local_bytes`), and of the target (`node.remote_spill`).
So before it has anybody write, it looks at the disk, in a thread, and has as much leave as is in the way. While nothing could leave, and
there is no budget, nothing is looked at and nobody waits.

All else runs in the daemon's event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from shoal.node.chores import Chores
from shoal.node.memory_reading import folder_bytes

if TYPE_CHECKING:
    from shoal.node.remote_spill import RemoteSpill

Then = Callable[[str], None]

_LOOKS: Final = 10
_LOOK_AGAIN_S: Final = 0.1


class Copies(Protocol):
    """Copies of objects of other nodes."""

    def some_on_disk(self) -> bool:
        """Whether there may be any on disk."""

    def drop_from_disk(self, wanted: int, then: Callable[[], None]) -> bool:
        """Drop copies that nobody uses for `wanted` bytes of room on the disk, those unused for longest first. Whether there are
        any; `then` is called when they are gone."""


class DiskTerms(NamedTuple):
    """Where things are written, and how much may be.

    Attributes:
        folder: The spill folder.
        fraction: How full its file system may become.
        budget: Bytes of files in it; 0: as many as `fraction` lets them.
    """

    folder: Path
    fraction: float
    budget: int

    def shortage(self, wanted: int) -> int:
        """How many bytes must leave the disk before `wanted` can come."""
        from shoal.store.spilling import disk_shortage

        return max(disk_shortage(self.folder, wanted, self.fraction), self.over_budget(wanted))

    def over_budget(self, wanted: int) -> int:
        """The same for the budget alone."""
        return max(0, folder_bytes(str(self.folder)) + wanted - self.budget) if self.budget else 0


class _Ask(NamedTuple):
    """Somebody is about to write `wanted` bytes. `again` asks once more, with so many looks left."""

    terms: DiskTerms
    wanted: int
    others: int
    then: Then
    looks: int
    again: Callable[[int], None]


class DiskRoom:
    """See the module's docstring. Where nothing is written there are no `terms`.

    Attributes:
        copies: Where copies are, if the node is one of several.
        remote: The target, if there is one.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        terms: DiskTerms | None,
        remote: RemoteSpill | None = None,
    ) -> None:
        self.copies: Copies | None = None
        self.remote = remote
        self._loop = loop
        self._terms = terms
        self._chores = Chores("shoal-disk-room")

    def before(self, wanted: int, others: int, then: Then, looks: int = _LOOKS) -> None:
        """Call `then` when there is room for `wanted` bytes, and for those that others write already, or nothing more can be done about
        that: with "", and whoever writes will see, or with the reason why nothing is to be written. At once, if nothing could leave and
        there is no budget."""
        terms = self._terms
        copies = self.copies is not None and self.copies.some_on_disk()
        if terms is None or not (copies or terms.budget or self.remote is not None):
            then("")
        else:
            again = partial(self.before, wanted, others, then)
            self._chores.do(self._look, _Ask(terms, wanted, others, then, looks, again))

    def on_full(self, wanted: int, then: Callable[[], None]) -> bool:
        """The disk took no more: drop copies for `wanted` bytes. Whether there are any; `then` is called when they are gone."""
        return self.copies is not None and self.copies.drop_from_disk(wanted, then)

    def _look(self, ask: _Ask) -> None:
        """In the thread."""
        short = over = 0
        with contextlib.suppress(OSError):
            # Whoever writes there will find it, too, and say what it is.
            short = ask.terms.shortage(ask.wanted + ask.others)
            over = ask.terms.over_budget(ask.wanted)
        self._tell_loop(self._on_looked, ask, short, over)

    def _on_looked(self, ask: _Ask, short: int, over: int) -> None:
        if not short:
            ask.then("")
        elif self.on_full(short, partial(ask.again, ask.looks)):
            # It will be looked at again.
            return
        elif self.remote is not None:
            self.remote.make_room(short, partial(self._tell_loop, self._on_moved, ask, over))
        else:
            self._on_moved(ask, over, short, "")

    def _on_moved(self, ask: _Ask, over: int, missing: int, error: str) -> None:
        """What could go on has gone: `missing` bytes less than was wanted, or until the target failed."""
        if error or not (missing and over):
            ask.then(error)
        elif ask.looks:
            # What others are just writing cannot go on yet.
            self._loop.call_later(_LOOK_AGAIN_S, ask.again, ask.looks - 1)
        else:
            ask.then(f"its budget of {ask.terms.budget:,} bytes (spill_local_bytes) is taken")

    def _tell_loop(self, event: Callable[..., None], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):
            # The loop may have ended.
            self._loop.call_soon_threadsafe(event, *args)

    def close(self) -> None:
        """Look no more, and move nothing."""
        self._chores.close()
        if self.remote is not None:
            self.remote.close()
