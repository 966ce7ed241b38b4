"""Who may get objects from this node, and whom else to ask: the serving half of a daemon's transfers.

Rule 1. At most `width` uploads of one object at a time. Whoever comes beyond that is told of nodes that have the object or are
        getting it. So a broadcast grows like a tree: receivers become sources, also of what has come so far.
Rule 2. The origin remembers every node that it sent an object to, or sent elsewhere for it: these are named to others, in turn,
        and are told when the object is dead. A node that was named and had not got it is not named again until it asks.
Rule 3. A copy that is arriving is given on only while it arrives, and only to who can do with it (`core.pulls` says why).
Rule 4. An object that is dead is not served, for as long as that is remembered; uploads that have begun go on. It may also be dead
        without a word: then the upload finds nothing (`on_absent`), and the others that were sent the object are told.
Rule 5. An object is in the tables from the first upload on until it is dead, and while it is uploaded: nothing is left of a process that
        has been swept, whenever somebody asks for what it made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final, NamedTuple

from shoal.core.pull_records import Key, Stage
from shoal.messages.transfer import Ask, Elsewhere, Missing
from shoal.messages.values import Location

_NAMED: Final = 8
"""Nodes named in one answer."""

_REMEMBERED_DEAD: Final = 10_000


class Serve(NamedTuple):
    """Send it, and say `on_ended` afterwards. `stage`: from this node's own blocks (NONE), or its copy. `places`: other nodes
    to name."""

    stage: Stage
    places: list[str]


class Notice(NamedTuple):
    """Tell the daemon at `place` that objects of this node are dead."""

    place: str
    locations: list[Location]


class Uploads:
    """See the module's docstring.

    Args:
        place: Where this node is.
        width: Rule 1. Higher: shallower trees, and less of this node's bandwidth for each.
        stage: How much of an object of another node is here.
    """

    def __init__(self, place: str, width: int, stage: Callable[[Key], Stage]) -> None:
        self.outbox: list[Notice] = []
        self._place: Final = place
        self._width: Final = width
        self._stage: Final = stage
        self._active: dict[Key, dict[int, str]] = {}
        # Of this node's own objects: which nodes have heard of each, and whether they may be named.
        self._holders: dict[Location, dict[str, bool]] = {}
        self._dead: dict[Location, None] = {}

    def on_ask(self, number: int, ask: Ask) -> Serve | Elsewhere | Missing:
        """A node wants an object; `number` is what `on_ended` will call this upload."""
        key = Key(ask.place, ask.location)
        own = ask.place == self._place
        stage = Stage.NONE
        holders: dict[str, bool] = {}
        active = self._active.get(key, {})
        if own:
            # Who begins an upload enters the object; so one that is uploaded and is not there died meanwhile.
            if ask.location in self._dead or (active and ask.location not in self._holders):
                return Missing("the object was freed")
            holders = self._holders.setdefault(ask.location, {})
            holders.setdefault(ask.peer, True)
            for place in ask.gave_up:
                if place in holders:
                    holders[place] = False
        else:
            stage = self._stage(key)
            if stage is Stage.NONE:
                return Missing("there is no copy of the object here")
            if stage is Stage.PENDING or (ask.whole and stage is not Stage.WHOLE):
                return Elsewhere([])
        places = self._name(ask.location, ask.peer) if own else []
        if len(active) >= self._width:
            return Elsewhere(places)
        if own:
            holders[ask.peer] = True
        self._active.setdefault(key, active)[number] = ask.peer
        return Serve(stage, places)

    def on_ended(self, key: Key, number: int) -> None:
        """An upload is over, however it went."""
        active = self._active.get(key)
        if active is not None:
            active.pop(number, None)
            if not active:
                del self._active[key]

    def on_absent(self, key: Key) -> None:
        """What an upload was to send is not there; of its end is told as of every other. Of an own object that is its death."""
        if key.place == self._place:
            self._bury([key.location])

    def on_freed(self, locations: Iterable[Location]) -> None:
        """Objects of this node are dead."""
        locations = list(locations)
        self._bury(locations)
        # Their memory may have become that of others, so that an upload would not find them absent.
        self._dead.update(dict.fromkeys(locations))
        while len(self._dead) > _REMEMBERED_DEAD:
            del self._dead[next(iter(self._dead))]

    def on_creator_gone(self, creator: str) -> None:
        """Whatever a process of this node has made is dead, and its memory gone; `creator` is its short name."""
        prefix = f"{creator}-"
        self._bury([at for at in self._holders if at.segment.startswith(prefix)])
        for location in [at for at in self._dead if at.segment.startswith(prefix)]:
            del self._dead[location]

    def _bury(self, locations: Iterable[Location]) -> None:
        told: dict[str, list[Location]] = {}
        for location in locations:
            for place in self._holders.pop(location, ()):
                told.setdefault(place, []).append(location)
        self.outbox += [Notice(place, dead) for place, dead in told.items()]

    def on_place_gone(self, place: str) -> None:
        """A node has ended."""
        for location, holders in list(self._holders.items()):
            holders.pop(place, None)
            if not holders and Key(self._place, location) not in self._active:
                del self._holders[location]

    def feeds(self, key: Key) -> bool:
        """Whether somebody gets an object from here just now."""
        return key in self._active

    def _name(self, location: Location, asker: str) -> list[str]:
        """Some of those who have an object; each time others, if there are many."""
        holders = self._holders[location]
        named = list(
            islice((place for place, good in holders.items() if good and place != asker), _NAMED)
        )
        for place in named:
            # To the end: next time it is the turn of others.
            holders[place] = holders.pop(place)
        return named

    def check(self) -> None:
        """Assert the invariants."""
        assert all(0 < len(active) <= self._width for active in self._active.values())
        assert len(self._dead) <= _REMEMBERED_DEAD
        assert not self._dead.keys() & self._holders.keys()

    def is_quiet(self) -> bool:
        """Whether nothing is kept but what was freed lately, of processes that live."""
        return not (self._active or self._holders or self.outbox)
