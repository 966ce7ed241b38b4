"""What a thread does for another daemon that has connected: it answers what is asked, one thing after the other.

The decisions are made in the loop (`decide`), since the cores are there; the thread only waits for them. Bytes go from the file of the
block to the socket by `sendfile`, without passing through this process.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable
from typing import NamedTuple

from shoal.errors import ProtocolError
from shoal.messages.transfer import Ask, CopiesDead, Elsewhere, Missing, Noted, OrphansDead, Sending
from shoal.node.transfer.blocks import Source, SourceAwayError, SourceGoneError
from shoal.node.transfer.links import Link, LinkBrokenError, read_range
from shoal.node.transfer.pulling import CHECKSUM_BYTES

_log = logging.getLogger("shoal.node")


class Upload(NamedTuple):
    """The loop's leave to send: `open` gives the source, `places` are named to the receiver, `absent` tells that there is none, `end`
    that it is over."""

    open: Callable[[], Source]
    places: list[str]
    absent: Callable[[], object]
    end: Callable[[], object]


class Terms(NamedTuple):
    """How bytes are sent, and how long peers are waited for."""

    chunk_bytes: int
    checked: bool
    stall_s: float
    idle_s: float


class Serving:
    """One connection of another daemon, which has proved the token. `run` is called by its thread, `stop` by the loop.

    Args:
        decide: What to do about an `Ask`; called in this thread, waits for the loop.
        note: Hears of dead objects.
    """

    def __init__(
        self,
        link: Link,
        terms: Terms,
        decide: Callable[[Ask], Upload | Elsewhere | Missing],
        note: Callable[[CopiesDead | OrphansDead], None],
    ) -> None:
        self._terms = terms
        self._decide = decide
        self._note = note
        self._link: Link | None = link
        self._stopped = False

    def stop(self) -> None:
        """End soon."""
        self._stopped = True
        link = self._link
        if link is not None:
            link.abort()

    def run(self) -> None:
        """Serve until the peer closes, fails, or says nothing for long."""
        link = self._link
        assert link is not None
        try:
            while not self._stopped:
                link.be_patient(self._terms.idle_s)
                message = link.receive()
                link.be_patient(self._terms.stall_s)
                if message is None:
                    break
                self._answer(link, message)
        except (LinkBrokenError, SourceGoneError) as error:
            # The other side notices, and goes to somebody else.
            _log.debug("a bulk connection has ended: %s", error)
        except ProtocolError as error:
            _log.warning("closed a bulk connection: %s", error)
        finally:
            self._link = None
            link.close()

    def _answer(self, link: Link, message: object) -> None:
        match message:
            case Ask():
                self._serve(link, message)
            case CopiesDead() | OrphansDead():
                self._note(message)
                link.send(Noted())
            case _:
                raise ProtocolError(f"{type(message).__name__} is not what a bulk connection asks")

    def _serve(self, link: Link, ask: Ask) -> None:
        verdict = self._decide(ask)
        if not isinstance(verdict, Upload):
            link.send(verdict)
            return
        try:
            source = self._open(link, verdict)
            if source is not None:
                try:
                    self._send(link, source, ask, verdict.places)
                finally:
                    source.close()
        finally:
            verdict.end()

    @staticmethod
    def _open(link: Link, verdict: Upload) -> Source | None:
        try:
            return verdict.open()
        except SourceGoneError as error:
            verdict.absent()
            link.send(Missing(str(error)))
            return None
        except SourceAwayError:
            # To be asked for again, as from one that has others to serve.
            link.send(Elsewhere([]))
            return None

    def _send(self, link: Link, source: Source, ask: Ask, places: list[str]) -> None:
        terms = self._terms
        size = ask.location.size
        if not 0 <= ask.start <= size:
            raise ProtocolError(f"byte {ask.start} of {size} was asked for")
        link.send(Sending(terms.chunk_bytes, terms.checked, places))
        at = ask.start
        while at < size:
            if terms.checked:
                count = min(terms.chunk_bytes, size - at)
                source.wait_beyond(at + count - 1)
                data = read_range(source.fd, source.offset + at, count)
                link.send_bytes(data)
                link.send_bytes(zlib.crc32(data).to_bytes(CHECKSUM_BYTES, "little"))
            else:
                count = min(source.wait_beyond(at), size) - at
                link.send_range(source.fd, source.offset + at, count)
            at += count
