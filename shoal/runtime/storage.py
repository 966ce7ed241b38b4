"""The object store as one process sees it: its own arena, a reader for the segments of others, and its quota.

Any thread. Room is drawn from the node daemon in chunks. When the store is full, the creating thread waits: for what others give back, for
objects that go to disk, for leave to make its own object there. After `store_full_timeout_s` it gets an error that names the
biggest holders.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from shoal.errors import ObjectStoreFullError, OutOfDiskError
from shoal.lock import make_lock
from shoal.messages.stores import QuotaGranted, QuotaRequest, QuotaReturn, Spilled
from shoal.runtime.reentry import reentry_error
from shoal.runtime.remote import RemoteObjects
from shoal.runtime.spilling import RemoteTarget, Spiller
from shoal.serial.layout import write_layout
from shoal.store import (
    Arena,
    ArenaBlocks,
    ArenaStats,
    Block,
    Location,
    QuotaExhausted,
    Reader,
    copy_into,
)
from shoal.wire.addresses import LOCAL, creator_at, place_of

if TYPE_CHECKING:
    from shoal.messages.values import Stored
    from shoal.runtime.node_link import NodeLink
    from shoal.serial.record import Serialized


_EVERYTHING: Final = 1 << 62

_RESTED_AT_ONCE: Final = 128 << 20
"""Idle bytes that the thread which reads the sockets gives back without looking at them in between: some ten milliseconds."""
_NEXT_REST_S: Final = 0.05


class ObjectStore:
    """See the module's docstring. `settle` counts what the process has dropped.

    Attributes:
        remote: Objects of other nodes; None in a session of one machine.
    """

    def __init__(
        self,
        directory: str,
        creator: str,
        address: str,
        node: NodeLink,
        settle: Callable[[], None],
        spill_directory: str = "",
        disk_fraction: float = 1.0,
        spill_batch: int = 0,
        idle_s: float = 10.0,
        later: Callable[[float, Callable[[], None]], None] | None = None,
        goes_on: bool = False,
    ) -> None:
        self.address = address
        self._node = node
        self._settle = settle
        self._directory = Path(directory)
        self._creator = creator
        self._spill_directory = Path(spill_directory) if spill_directory else None
        self._disk_fraction = disk_fraction
        self._spill_batch = spill_batch
        self._idle_s = idle_s
        self._later = later
        self._spiller = Spiller(node, lambda: self._arena)
        # If what is spilled may go on from there.
        self._target = RemoteTarget(node) if goes_on else None
        # Made on first use: most workers never store anything. By one thread.
        self._making = make_lock()
        self._arena: Arena | None = None
        self._reader: Reader | None = None
        # Objects that died while this thread was in the middle of the arena's work.
        self._dead: deque[Location] = deque()
        place = place_of(address)
        self.remote = None if place in {"", LOCAL} else RemoteObjects(node, place, self._view_block)

    @property
    def arena(self) -> Arena:
        """Where this process makes objects."""
        if self._arena is None:
            with self._making:
                if self._arena is None:
                    self._arena = Arena(
                        self._directory,
                        self._creator,
                        spill_directory=self._spill_directory,
                        disk_fraction=self._disk_fraction,
                        remote=self._target,
                        when_idle=None if self._later is None else self._rest_later,
                    )
        return self._arena

    def write(self, serialized: Serialized, size: int) -> Location:
        """Put a serialized value into shared memory.

        Raises:
            ObjectStoreFullError: the store is full and stayed full.
        """
        self._refuse_reentry("what stores a large value")
        block = self._allocate(self.arena, size)
        try:
            write_layout(serialized, block.buffer, copy_into)
        except BaseException:
            self.arena.free(block.location)
            raise
        return block.location

    def _refuse_reentry(self, what: str) -> None:
        arena, reader = self._arena, self._reader
        if (
            self._making._is_owned()
            or (arena is not None and arena.is_entered())
            or (reader is not None and reader.is_entered())
        ):
            raise reentry_error(what)

    def _allocate(self, arena: Arena, size: int) -> Block:
        settled = False
        while True:
            try:
                return arena.create(size)
            except QuotaExhausted as exhausted:
                needed = exhausted.needed_bytes
            except ObjectStoreFullError:
                # The store has room, and the machine has none: others have filled its shared memory.
                if not arena.can_spill:
                    raise
                return self._create_on_disk(arena, size)
            if settled:
                if not self._draw(arena, needed, size):
                    return self._create_on_disk(arena, size)
            else:
                # This process may have dropped as much itself, and not counted it yet.
                self._settle()
                settled = True

    def _draw(self, arena: Arena, needed: int, size: int) -> bool:
        """Get room; False if the object is to be made on disk."""
        # What is needed and no more. While there is room the node grants a whole chunk, and a request for one would wait
        # until there is.
        answer = self._node.request(lambda req: QuotaRequest(req, needed, size), QuotaGranted)
        if answer.on_disk:
            return False
        if answer.granted == 0:
            kind = OutOfDiskError if answer.disk_full else ObjectStoreFullError
            raise kind(answer.explanation or "the object store is full")
        arena.grant(answer.granted)
        return True

    def _create_on_disk(self, arena: Arena, size: int) -> Block:
        try:
            return arena.create(size, on_disk=True)
        except OutOfDiskError as error:
            if size <= self._spill_batch:
                # So that the node asks nobody to write there for a while. For a larger one it is just this that has no room.
                self._node.send(Spilled(0, 0, str(error)))
            raise

    def view(self, stored: Stored) -> memoryview:
        """A read-only view of an object, made here or elsewhere."""
        self._refuse_reentry("what reads a large value")
        if stored.creator == self.address and self._arena is not None:
            return self._arena.view(stored.location)
        remote = self.remote
        if remote is not None and remote.is_remote(stored):
            return remote.view(stored)
        return self._view_block(stored.location)

    def _view_block(self, location: Location) -> memoryview:
        """A view of a block of this node that another process made."""
        if self._reader is None:
            with self._making:
                if self._reader is None:
                    self._reader = Reader(
                        self._directory, self._spill_directory, remote=self._target
                    )
        return self._reader.view(location)

    def free(self, location: Location) -> None:
        """An object that this process made is dead."""
        arena = self._arena
        if arena is not None:
            if arena.is_entered():
                # The next object that dies takes it along.
                self._dead.append(location)
                return
            self._free(arena, location)
            while self._dead:
                self._free(arena, self._dead.popleft())

    def _free(self, arena: Arena, location: Location) -> None:
        arena.free(location)
        if self.remote is not None:
            self.remote.freed(location)

    def tell_freed(self) -> None:
        """Tell the node of what has been freed, with whatever is sent next (with the lock held)."""
        if self.remote is not None:
            self.remote.tell_freed()
        if self._target is not None:
            self._target.tell_dead()

    # --- what there is -------------------------------------------------------------------------------------------

    def stats(self) -> ArenaStats | None:
        """The accounts of the arena, if there is one."""
        return None if self._arena is None else self._arena.stats()

    def blocks(self) -> ArenaBlocks:
        """What this process has made that is there yet."""
        return ArenaBlocks([], [], [], []) if self._arena is None else self._arena.blocks()

    def viewed(self, blocks: ArenaBlocks) -> set[tuple[str, Location]]:
        """What this process looks at: places and blocks there; of an object of another node both the copy and the original. `blocks` are
        its own."""
        place = place_of(self.address)
        found = {(place, location) for location in blocks.viewed}
        if self._reader is not None:
            found.update((place, location) for location in self._reader.viewed())
        if self.remote is not None:
            # Copies of these are among the blocks of this node.
            found.update(self.remote.all_viewed())
        return found

    def forget(self, address: str) -> None:
        """A process has ended: what is mapped of its objects and not looked at goes, or it would keep their memory after
        they are freed. Without the lock, since unmapping takes its time."""
        if self._reader is not None:
            self._reader.forget(creator_at(address))

    def give_back(self, wanted: int, itself: bool = False) -> None:
        """Others wait for room, or this process `itself` does: what became idle since it asked is for whoever is first. The node
        hears of it also when there is nothing."""
        arena = self._arena
        given = 0 if arena is None else arena.reclaim(wanted, unused=not itself)
        self._node.send(QuotaReturn(given, asked=True))

    def _rest_later(self, delay_s: float | None = None) -> None:
        assert self._later is not None
        self._later(self._idle_s if delay_s is None else delay_s, self._rest)

    def _rest(self) -> None:
        """Nobody asks, but what nobody has used for a while goes back (by the reactor's leader)."""
        arena = self._arena
        if arena is None:
            return
        given, again = arena.rest(_RESTED_AT_ONCE)
        if given:
            self._node.send(QuotaReturn(given))
        if again:
            self._rest_later(_NEXT_REST_S if given >= _RESTED_AT_ONCE else None)

    def spill(self, wanted: int) -> None:
        """The node has objects of this process written to disk."""
        self._spiller.on_order(wanted)

    def leave(self) -> None:
        """This process ends, but objects that it made may be owned by others: only idle memory goes."""
        if self._arena is not None:
            given = self._arena.reclaim(_EVERYTHING)
            self._node.send_now(QuotaReturn(given))

    def close(self, unlink: bool) -> None:
        """Let go of everything; `unlink` removes the segments that this process made."""
        if self._arena is not None:
            self._arena.stop_spilling()
        self._spiller.close()
        if self._arena is not None:
            self._arena.close(unlink=unlink)
            self._arena = None
        if self._reader is not None:
            self._reader.close()
            self._reader = None
