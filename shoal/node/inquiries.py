"""Asks every client which objects of a process that has ended it still uses.

One inquiry at a time about each process: who is asked, and what the answers name. When all have answered (or ended), the
keeper of the store hears what is in use; all else that the process left may go. Objects that are in use at that moment and whose
owner has ended have nobody who will say when they are not: users say that they have let go of something, and the question
is asked again, a little later and once for many such words.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from shoal.messages.node import InUse, WhoUses
from shoal.node.clients import Client

_AGAIN_S: Final = 0.2

Used = dict[str, set[tuple[int, int]]]
"""Blocks, by segment, as offsets and sizes."""


class _Inquiry:
    """`asked` are the numbers of the clients that have not answered."""

    __slots__ = ("asked", "used")

    def __init__(self) -> None:
        self.asked: dict[int, None] = {}
        self.used: Used = {}


class Inquiries:
    """See the module's docstring. `conclude(address, used)` hears the outcome of each."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clients: Iterable[Client],
        conclude: Callable[[str, Used], None],
    ) -> None:
        self._loop = loop
        self._clients = clients
        self._conclude = conclude
        self._running: dict[str, _Inquiry] = {}
        # Processes to ask about (again), with what is said of their ends.
        self._due: dict[str, str] = {}
        self._timer: asyncio.TimerHandle | None = None

    def ask(self, address: str, cause: str) -> None:
        """Ask now, or again when the inquiry that runs has ended."""
        if address in self._running:
            self.ask_later(address, cause)
            return
        inquiry = self._running[address] = _Inquiry()
        question = WhoUses(address, cause)
        for client in self._clients:
            inquiry.asked[client.number] = None
            client.send(question)
        self._look(address, inquiry)

    def ask_later(self, address: str, cause: str) -> None:
        """Ask in a while, once however often this is said meanwhile."""
        self._due[address] = cause
        if self._timer is None:
            self._timer = self._loop.call_later(_AGAIN_S, self._ask_due)

    def _ask_due(self) -> None:
        self._timer = None
        due, self._due = self._due, {}
        for address, cause in due.items():
            self.ask(address, cause)

    def on_in_use(self, client: Client, message: InUse) -> None:
        """A client says what it uses."""
        inquiry = self._running.get(message.address)
        if inquiry is None or client.number not in inquiry.asked:
            return
        for location in message.locations:
            inquiry.used.setdefault(location.segment, set()).add((location.offset, location.size))
        del inquiry.asked[client.number]
        self._look(message.address, inquiry)

    def on_client_gone(self, client: Client) -> None:
        """A client has ended: it uses nothing."""
        for address, inquiry in list(self._running.items()):
            if inquiry.asked.pop(client.number, False) is None:
                self._look(address, inquiry)

    def _look(self, address: str, inquiry: _Inquiry) -> None:
        if not inquiry.asked:
            del self._running[address]
            self._conclude(address, inquiry.used)

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
