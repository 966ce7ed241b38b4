"""What the dead have left in the store, as the daemon's event loop sees it: whose it was, while anything of it is there.

All else (the files, and the books about them) belongs to `node.estates`, in a thread of its own: nothing here waits for a disk. What the
loop says reaches that thread in order, and what the thread has found comes back as an event of the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from shoal.messages.values import Location
from shoal.node.chores import Chores
from shoal.node.estates import Estate, Estates
from shoal.node.inquiries import Used

if TYPE_CHECKING:
    from shoal.node.remote_spill import RemoteSpill

_T = TypeVar("_T")


class Left(NamedTuple):
    """Who has left something: where it was, and its job."""

    address: str
    job_id: bytes


class Keeper(Protocol):
    """Who hears, in the loop, of what was left."""

    def on_left(self, address: str) -> None:
        """A process that has ended has left something, and its job goes on."""

    def on_estate(self, creator: str, left: int) -> None:
        """What a process has left takes `left` bytes of shared memory."""

    def on_estate_gone(self, creator: str, address: str) -> None:
        """Nothing is left of what a process made."""


class Inheritance:
    """See the module's docstring. Processes are known by the short name that their segments carry; the folders and `disk_fraction` are as
    of `Estates`."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        directory: Path,
        spill_directory: Path | None,
        disk_fraction: float,
        keeper: Keeper,
        remote: RemoteSpill | None = None,
    ) -> None:
        self._loop = loop
        self._keeper = keeper
        self._chores = Chores("shoal-estates")
        self._estates = Estates(
            self._chores, directory, spill_directory, disk_fraction, self, remote
        )
        self._left: dict[str, Left] = {}

    # --- in the loop -----------------------------------------------------------------------------------------------

    def of(self, address: str, creator: str) -> Left | None:
        """What the process that was there has left, unless it is known to be nothing. Processes of other nodes may have the same name."""
        left = self._left.get(creator)
        return left if left is not None and left.address == address else None

    def on_death(self, creator: str, address: str, job_id: bytes) -> None:
        """A process has ended that may have made something."""
        self._left[creator] = Left(address, job_id)
        self._chores.do(self._estates.on_death, creator, address, job_id)

    def on_job_gone(self, job_id: bytes) -> list[str]:
        """A job has ended: nobody refers to what its dead processes left. Where these were."""
        creators = [creator for creator, left in self._left.items() if left.job_id == job_id]
        self._chores.do(self._estates.on_job_gone, job_id)
        return [self._left.pop(creator).address for creator in creators]

    def free_unused(self, creator: str, used: Used) -> None:
        """Everybody has said what they use of an estate: free all else."""
        self._chores.do(self._estates.free_unused, creator, used)

    def free(self, locations: list[Location]) -> None:
        """Owners say that these objects are dead; their creators are too."""
        if self._left:
            self._chores.do(self._estates.free, locations)

    def spill(self, creator: str, wanted: int, done: Callable[[int, int, str], None]) -> None:
        """Write to disk, as of `Estates.spill`; `done` is called in the loop."""
        self._chores.do(self._estates.spill, creator, wanted, self._in_loop(done))

    def look(self, work: Callable[[Iterable[Estate]], _T], then: Callable[[_T], None]) -> None:
        """Have `work` look at the estates, in their thread; `then` gets what it has found."""
        self._chores.do(lambda: self._tell(then, work(self._estates)))

    def close(self) -> None:
        """What is being done nobody waits for."""
        self._chores.close()
        self._estates.close()

    def _on_found(self, creator: str) -> None:
        left = self._left.get(creator)
        if left is not None:
            self._keeper.on_left(left.address)

    def _on_gone(self, creator: str, address: str) -> None:
        self._left.pop(creator, None)
        self._keeper.on_estate_gone(creator, address)

    # --- in the thread ---------------------------------------------------------------------------------------------

    def on_found(self, creator: str) -> None:
        """As of `estates.Heir`."""
        self._tell(self._on_found, creator)

    def on_estate(self, creator: str, left: int) -> None:
        """As of `estates.Heir`."""
        self._tell(self._keeper.on_estate, creator, left)

    def on_estate_gone(self, creator: str, address: str) -> None:
        """As of `estates.Heir`."""
        self._tell(self._on_gone, creator, address)

    def _in_loop(self, event: Callable[..., None]) -> Callable[..., None]:
        return lambda *args: self._tell(event, *args)

    def _tell(self, event: Callable[..., None], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):
            # The loop may have ended.
            self._loop.call_soon_threadsafe(event, *args)
