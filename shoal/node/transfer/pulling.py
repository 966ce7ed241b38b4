"""One attempt to get an object from one node: what a pulling thread does.

::

    memory ─► link (an idle one, or a new one) ─► Ask ─► Sending ─► recv_into, piece by piece ─► Arrived
       │                                            └──► Elsewhere, Missing
       └──► Short: the arena needs more quota first; the loop sees to it and begins the attempt again

Any end that is not one of these is `Broken`, and the reason says by what. Bytes that have come stay.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Final, NamedTuple

from shoal.core.pull_records import Fetch
from shoal.errors import (
    AuthenticationError,
    ObjectStoreFullError,
    OutOfDiskError,
    ProtocolError,
)
from shoal.messages.transfer import Ask, Elsewhere, Missing, Sending
from shoal.node.transfer.blocks import Incoming
from shoal.node.transfer.links import Link, LinkBrokenError, LinkPool, LinkRefusedError
from shoal.store import Arena, Block, QuotaExhausted

CHECKSUM_BYTES: Final = 4


class Arrived(NamedTuple):
    """All bytes are here."""


class Broken(NamedTuple):
    """The source failed; `progress`: after some bytes; `refused`: it lives, and will not serve this node."""

    reason: str
    progress: bool
    refused: bool = False


class Short(NamedTuple):
    """The arena wants `needed` bytes of quota."""

    needed: int


class Full(NamedTuple):
    """The file system has no room."""

    reason: str


Outcome = Arrived | Broken | Short | Full | Elsewhere | Missing


class Attempt:
    """See the module's docstring. `run` is called by a thread, `stop` by the loop.

    Args:
        place: Where this node is.
        connect: A link to the daemon at a place, with the token proved; says before that which it is.
        accepted: Called when the source begins to send, with the places that it names.
    """

    def __init__(
        self,
        fetch: Fetch,
        incoming: Incoming,
        arena: Arena,
        place: str,
        pool: LinkPool,
        connect: Callable[[str, Callable[[Link], None]], Link],
        accepted: Callable[[list[str]], None],
    ) -> None:
        self.fetch = fetch
        self.incoming = incoming
        self._arena = arena
        self._place = place
        self._pool = pool
        self._connect = connect
        self._accepted = accepted
        self._link: Link | None = None
        self.stopped = False
        self.on_disk = False

    def stop(self) -> None:
        """Break off soon."""
        self.stopped = True
        link = self._link
        if link is not None:
            link.abort()

    def run(self) -> Outcome:
        """Make the attempt."""
        incoming = self.incoming
        if incoming.location is None:
            try:
                incoming.place(self._make_room(self.fetch.key.location.size))
            except QuotaExhausted as exhausted:
                return Short(exhausted.needed_bytes)
            except (ObjectStoreFullError, OutOfDiskError) as error:
                return Full(str(error))
        before = incoming.received
        refused = True
        try:
            return self._get()
        except LinkBrokenError as error:
            reason = str(error)
            refused = isinstance(error, LinkRefusedError)
        except AuthenticationError as error:
            reason = f"and this node do not trust each other: {error}"
        except ProtocolError as error:
            reason = f"did not keep to the protocol: {error}"
        except (OSError, ValueError) as error:
            reason = f"cannot be reached: {error}"
            # What the kernel says has a number; what TLS says has none.
            refused = not (
                isinstance(error, OSError) and (error.errno or isinstance(error, TimeoutError))
            )
        if self.stopped:
            reason = "was not waited for"
        return Broken(reason, incoming.received > before, refused)

    def _make_room(self, size: int) -> Block:
        arena = self._arena
        try:
            return arena.create(size, on_disk=self.on_disk)
        except ObjectStoreFullError:
            if self.on_disk or not arena.can_spill:
                raise
        # The store has room, and the machine has none: others have filled its shared memory.
        self.on_disk = True
        return arena.create(size, on_disk=True)

    def _get(self) -> Outcome:
        source = self.fetch.source
        link = self._pool.take(source)
        if link is None:
            link = self._connect(source, self._use)
        good = False
        try:
            self._use(link)
            outcome = self._exchange(link)
            good = True
            return outcome
        finally:
            self._link = None
            if good and not self.stopped:
                self._pool.give(source, link)
            else:
                link.close()

    def _use(self, link: Link) -> None:
        # In this order: `stop` does it the other way round, so one of the two sees the other.
        self._link = link
        if self.stopped:
            raise LinkBrokenError("was not waited for")

    def _exchange(self, link: Link) -> Outcome:
        fetch, incoming = self.fetch, self.incoming
        key = fetch.key
        link.send(
            Ask(
                key.place,
                key.location,
                incoming.received,
                self._place,
                fetch.whole,
                list(fetch.gave_up),
            )
        )
        match link.receive():
            case None:
                raise LinkBrokenError("closed the connection")
            case Elsewhere() | Missing() as answer:
                return answer
            case Sending(chunk_bytes, checked, places):
                self._accepted(places)
                self._receive(link, chunk_bytes, checked)
                return Arrived()
            case other:
                raise ProtocolError(f"{type(other).__name__} is no answer to Ask")

    def _receive(self, link: Link, chunk_bytes: int, checked: bool) -> None:
        incoming = self.incoming
        size = self.fetch.key.location.size
        buffer = incoming.buffer
        try:
            while incoming.received < size:
                start = incoming.received
                with buffer[start : min(start + chunk_bytes, size)] as piece:
                    if checked:
                        _receive_checked(link, piece)
                        incoming.advance(len(piece))
                    else:
                        incoming.advance(link.receive_into(piece))
        finally:
            # Whoever frees the copy next must not find that this thread still looks at it.
            del buffer


def _receive_checked(link: Link, piece: memoryview) -> None:
    done = 0
    while done < len(piece):
        with piece[done:] as rest:
            done += link.receive_into(rest)
    theirs = int.from_bytes(link.receive_exactly(CHECKSUM_BYTES), "little")
    ours = zlib.crc32(piece)
    if ours != theirs:
        raise LinkBrokenError(
            f"sent bytes that are damaged: their CRC-32 is {ours:08x} and should be {theirs:08x}"
        )
