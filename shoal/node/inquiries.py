"""Asks every client which objects of a process that has ended it still uses.

One inquiry at a time about each process: who is asked, and what the answers name. When all have answered (or ended), the
keeper of the store hears what is in use; all else that the process left may go. Objects that are in use at that moment and whose
owner has ended have nobody who will say when they are not: so the question is asked again when a user says that it has let go
of something, or has ended. A little later, once for many such words, and about several processes at once: each client looks
through all its objects for an answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from shoal.messages.stores import InUse, WhoUses
from shoal.node.clients import Client, Clients

_AGAIN_S: Final = 0.2

Used = dict[str, set[tuple[int, int]]]
"""Blocks, by segment, as offsets and sizes."""


class _Inquiry:
    """`asked` are the numbers of the clients that have not answered, `users` of those that named anything."""

    __slots__ = ("asked", "used", "users")

    def __init__(self) -> None:
        self.asked: dict[int, None] = {}
        self.users: set[int] = set()
        self.used: Used = {}


class Inquiries:
    """See the module's docstring. `conclude(address, used)` hears the outcome of each."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clients: Clients,
        conclude: Callable[[str, Used], None],
    ) -> None:
        self._loop = loop
        self._clients = clients
        self._conclude = conclude
        self._running: dict[str, _Inquiry] = {}
        # Who named anything, by process: whose end is a reason to ask again.
        self._users: dict[str, set[int]] = {}
        # Processes to ask about again.
        self._due: dict[str, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def ask(self, addresses: list[str]) -> None:
        """Ask now; again, if an inquiry runs already."""
        started: dict[str, _Inquiry] = {}
        for address in addresses:
            if address in self._running:
                self.ask_later(address)
            else:
                started[address] = self._running[address] = _Inquiry()
                self._users.pop(address, None)
        if not started:
            return
        question = WhoUses([(address, self._clients.cause_of(address)) for address in started])
        for client in self._clients:
            client.send(question)
            for inquiry in started.values():
                inquiry.asked[client.number] = None
        for address, inquiry in started.items():
            self._look(address, inquiry)

    def ask_later(self, address: str) -> None:
        """Ask in a while, once however often this is said meanwhile."""
        self._due[address] = None
        if self._timer is None:
            self._timer = self._loop.call_later(_AGAIN_S, self._ask_due)

    def _ask_due(self) -> None:
        self._timer = None
        due, self._due = self._due, {}
        self.ask(list(due))

    def on_in_use(self, client: Client, message: InUse) -> None:
        """A client says what it uses."""
        inquiry = self._running.get(message.address)
        if inquiry is None or client.number not in inquiry.asked:
            return
        if message.locations:
            inquiry.users.add(client.number)
        for location in message.locations:
            inquiry.used.setdefault(location.segment, set()).add((location.offset, location.size))
        del inquiry.asked[client.number]
        self._look(message.address, inquiry)

    def on_client_gone(self, client: Client) -> None:
        """A client has ended: it uses nothing. What it used when it was last asked, perhaps nobody does now."""
        for address, users in self._users.items():
            if client.number in users:
                self.ask_later(address)
        for address, inquiry in list(self._running.items()):
            if inquiry.asked.pop(client.number, False) is None:
                self._look(address, inquiry)

    def _look(self, address: str, inquiry: _Inquiry) -> None:
        if not inquiry.asked:
            del self._running[address]
            if inquiry.users:
                self._users[address] = inquiry.users
            self._conclude(address, inquiry.used)

    def forget(self, address: str) -> None:
        """Nothing is left of what a process made or owned."""
        self._users.pop(address, None)

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
