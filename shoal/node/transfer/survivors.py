"""Copies that have outlived the node where their object was made.

A node says to whom it has sent copies when an object is dead (`core.uploads`). When the node itself has died, nobody knows any more where
copies are: so the daemon of whoever frees the object tells all nodes, once for many objects. What is freed in the moment in which the node
dies, or by nobody since its owner has died as well, is not told of: such copies stay until their room is wanted.

Everything runs in the daemon's event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from shoal.messages.transfer import CopiesDead
from shoal.messages.values import Location

_TOGETHER_S: Final = 0.1


class Survivors:
    """See the module's docstring. `tell` is called with the place of each node that lives, but for this one, and what is dead."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        own_place: str,
        tell: Callable[[str, CopiesDead], None],
    ) -> None:
        self._loop = loop
        self._own_place = own_place
        self._tell = tell
        self._places: dict[str, None] = {}
        # By the node that has died.
        self._dead: dict[str, list[Location]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def on_place_here(self, place: str) -> None:
        """A node has come."""
        if place != self._own_place:
            self._places[place] = None

    def on_place_gone(self, place: str) -> None:
        """A node has ended."""
        self._places.pop(place, None)

    def on_dead(self, place: str, locations: list[Location]) -> None:
        """Objects that were made at a node that has died are dead. Copies of this node are not told of it."""
        self._dead.setdefault(place, []).extend(locations)
        if self._timer is None:
            self._timer = self._loop.call_later(_TOGETHER_S, self._tell_all)

    def _tell_all(self) -> None:
        self._timer = None
        dead, self._dead = self._dead, {}
        for ended, locations in dead.items():
            message = CopiesDead(ended, locations)
            for place in self._places:
                self._tell(place, message)

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
