"""Which objects of other nodes come here, when, and from where: the pulling half of a daemon's transfers.

::

              room and a turn             all bytes are here
     QUEUED ──────────────────► FETCHING ───────────────────► WHOLE ──► dropped: dead, or its room is wanted
        ▲                       │  ▲   │ nobody wants it
        │ wanted again          │  │   ▼
        └───────────── ENDING ◄─┼──┼─ (the fetch is told to stop)
                     (or gone)  ▼  │ after a while
                              RETRYING: nobody would give it just now

Rule 1. One pull for an object, however many processes wish for it. Each wish is answered once, by the copy or by why there is
        none; a wish that is given up before is not answered.
Rule 2. Pulls begin in order: first what a `get` waits for, then `wait`, then arguments; among equals who came first. One that
        finds no room holds back those behind it, or large objects would starve.
Rule 3. Pulls under way have at most `inflight_bytes` together, unless there is only one; and are at most `inflight`.
Rule 4. The origin is asked first, then whom it names. A source that breaks off is followed by the one that failed least, and the
        bytes that have come are kept. A source is given up after `tries` failures in a row without a byte, but the origin, or
        the last one that is left, not before it has failed for `patience_ns`, unless it refuses: a node that has died will be
        said to have. A pull fails when no source is left. An origin that is merely busy is asked again and again, with pauses.
Rule 5. A copy is pinned for each process that asked, until that has it mapped. Copies that nobody has pinned are dropped when
        the origin says that the object is dead, and, the one unused for longest first, when room is wanted: those in memory for room
        there, those on disk for room on the disk.
Rule 6. Every `Fetch` ends in exactly one outcome (arrived, broken, elsewhere, missing, no room), also one that was told to
        `Stop`. Outcomes carry the number of the attempt.

Who else gets the object from *this* node while it still arrives is decided by `core.uploads`; a pull that feeds others may only be
continued from a source that has all of it (`Fetch.whole`), which is why no ring of nodes can wait for itself: an edge from X to
Y is added only while X receives and Y, which waits for an answer, feeds nobody.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final

from shoal.core.pull_records import (
    FIRST_PAUSE_NS,
    MOVES,
    UNDER_WAY,
    Answer,
    Client,
    Copy,
    Discard,
    Effect,
    Fetch,
    Key,
    Stage,
    State,
    Stop,
)
from shoal.errors import InternalError
from shoal.messages.transfer import Why
from shoal.messages.values import Location

_LONGEST_PAUSE_NS: Final = 1_000_000_000
_REMEMBERED_PLACES: Final = 1_000

_BUSY_TRIES: Final = 10
"""How often a holder may be busy when the origin is gone: with the pauses, some seconds."""


class Pulls:
    """See the module's docstring. Times are nanoseconds.

    Args:
        inflight_bytes: Rule 3. Higher: more at once, and more of the store taken by what nobody can use yet.
        inflight: Rule 3; the shell has as many threads.
        tries: Rule 4.
        feeds: Whether somebody gets this object from here just now.
        on_disk: Whether a whole copy takes room on disk only.
        viewed: Whether somebody still looks at a whole copy, so that its room on disk would not be free at once.
        capacity: Of the store. What is larger is brought to disk, and takes none of `inflight_bytes`.
        patience_ns: Rule 4.
    """

    def __init__(
        self,
        inflight_bytes: int,
        inflight: int,
        tries: int,
        feeds: Callable[[Key], bool],
        on_disk: Callable[[Key], bool] = lambda _: False,
        viewed: Callable[[Key], bool] = lambda _: False,
        capacity: int = sys.maxsize,
        patience_ns: int = 0,
    ) -> None:
        self.outbox: list[Effect] = []
        self._limit_bytes: Final = inflight_bytes
        self._limit: Final = inflight
        self._tries: Final = tries
        self._feeds: Final = feeds
        self._on_disk: Final = on_disk
        self._viewed: Final = viewed
        self._capacity: Final = capacity
        self._patience_ns: Final = patience_ns
        self._attempts = 0
        self._copies: dict[Key, Copy] = {}
        # Of ten thousand that are taken out at the head, an ordinary dictionary would look at all the gaps each time.
        self._queues: Final[dict[Why, OrderedDict[Key, None]]] = {why: OrderedDict() for why in Why}
        self._under_way: dict[Key, None] = {}
        self._bytes_under_way = 0
        # Whole and without pins, the one unused for longest first.
        self._unused: OrderedDict[Key, None] = OrderedDict()
        # Of these, those that were seen to be on disk, where they stay.
        self._unused_on_disk: dict[Key, None] = {}
        self._of_client: dict[Client, dict[int, Key]] = {}
        # How nodes ended; the oldest are forgotten.
        self._ended: dict[str, str] = {}

    # --- wishes --------------------------------------------------------------------------------------------------

    def on_wish(self, client: Client, req: int, key: Key, why: Why, now: int) -> None:
        """A process wants an object. A number that it has used before, and not given up, is taken for the same wish."""
        wishes = self._of_client.setdefault(client, {})
        if req in wishes:
            return
        wishes[req] = key
        copy = self._copies.get(key)
        if copy is None:
            cause = self._ended.get(key.place)
            if cause is not None:
                self._forget_wish(client, req)
                self._refuse(client, req, f"its node ({key.place}) {cause}", cause)
                return
            copy = self._copies[key] = Copy(key, why)
            self._queues[why][key] = None
        if copy.state is State.WHOLE:
            self._grant(copy, client, req)
            return
        copy.wishes[(client, req)] = None
        if why < copy.why:
            if copy.state is State.QUEUED:
                del self._queues[copy.why][key]
                self._queues[why][key] = None
            copy.why = why
        self._admit(now)

    def on_done_with(self, client: Client, req: int, now: int) -> None:
        """A process has mapped the copy, or does not want it any more. Unknown numbers are of wishes that failed."""
        wishes = self._of_client.get(client)
        key = None if wishes is None else wishes.get(req)
        if key is None:
            return
        self._forget_wish(client, req)
        copy = self._copies[key]
        if (client, req) in copy.wishes:
            del copy.wishes[(client, req)]
            if not copy.wishes:
                self._abandon(copy)
        else:
            self._unpin(copy, client, req)
        self._admit(now)

    def on_client_gone(self, client: Client, now: int) -> None:
        """A process has ended: it wants nothing and holds nothing."""
        for req in list(self._of_client.get(client, ())):
            self.on_done_with(client, req, now)

    # --- outcomes ------------------------------------------------------------------------------------------------

    def on_accepted(self, key: Key, attempt: int, places: Iterable[str] = ()) -> None:
        """The source has begun to send, and names others that could."""
        copy = self._at(key, attempt)
        if copy is not None and copy.state is State.FETCHING:
            copy.receiving = True
            self._learn(copy, places)

    def on_arrived(self, key: Key, attempt: int, location: Location, now: int) -> None:
        """All bytes are here, in the block at `location`."""
        copy = self._at(key, attempt)
        if copy is None:
            return
        if copy.state is State.ENDING and not copy.wishes:
            self._conclude(copy, now)
            return
        if copy.state is State.ENDING:
            # Wanted again, and it is here after all.
            self._move(copy, State.QUEUED)
            self._queues[copy.why].pop(key)
            self._move(copy, State.FETCHING)
        self._move(copy, State.WHOLE)
        copy.location = location
        wishes, copy.wishes = copy.wishes, {}
        for client, req in wishes:
            self._grant(copy, client, req)
        self._admit(now)

    def on_broken(
        self,
        key: Key,
        attempt: int,
        reason: str,
        now: int,
        *,
        progress: bool = False,
        refused: bool = False,
    ) -> None:
        """The source cannot be reached, stalls, broke off, or sent what is damaged. `progress`: some bytes came from it; `refused`: it
        lives, and will not serve this node."""
        copy = self._at(key, attempt)
        if copy is None or self._has_ended(copy, now):
            return
        if progress:
            copy.failures.clear()
            copy.failing_since.clear()
            copy.pause_ns = FIRST_PAUSE_NS
        source = copy.source
        copy.failures[source] = copy.failures.get(source, 0) + 1
        since = copy.failing_since.setdefault(source, now)
        copy.reason = f"{source} {reason}"
        patient = not refused and (source == copy.key.place or len(copy.holders) == 1)
        hopeless = copy.failures[source] >= self._tries and (
            not patient or now - since >= self._patience_ns
        )
        if hopeless or source in self._ended:
            self._give_up(copy, source)
        self._go_on(copy, now)

    def on_elsewhere(self, key: Key, attempt: int, places: Iterable[str], now: int) -> None:
        """The source has enough to do, and names others."""
        copy = self._at(key, attempt)
        if copy is None or self._has_ended(copy, now):
            return
        source = copy.source
        copy.reason = f"{source} had others to serve, or waits for it itself"
        if key.place in copy.holders:
            copy.failures.pop(source, None)
            copy.failing_since.pop(source, None)
            self._learn(copy, places)
        else:
            # Two that each have a part, and no origin, could ask each other for ever.
            copy.failures[source] = copy.failures.get(source, 0) + 1
            if copy.failures[source] >= _BUSY_TRIES:
                self._give_up(copy, source)
        self._go_on(copy, now)

    def on_missing(self, key: Key, attempt: int, reason: str, now: int) -> None:
        """The source has not got it."""
        copy = self._at(key, attempt)
        if copy is None or self._has_ended(copy, now):
            return
        copy.reason = f"{copy.source} says: {reason}"
        self._give_up(copy, copy.source)
        self._go_on(copy, now)

    def on_no_room(self, key: Key, attempt: int, reason: str, now: int) -> None:
        """The store is full and stayed full."""
        copy = self._at(key, attempt)
        if copy is None or self._has_ended(copy, now):
            return
        self._fail(copy, f"ObjectStoreFullError: {reason}")
        self._admit(now)

    # --- what happens elsewhere ----------------------------------------------------------------------------------

    def on_dead(self, place: str, locations: Iterable[Location]) -> None:
        """Objects of a node are dead."""
        for location in locations:
            copy = self._copies.get(Key(place, location))
            if copy is not None:
                copy.dead = True
                if copy.state is State.WHOLE and not copy.pins:
                    self._remove(copy)

    def on_place_gone(self, place: str, cause: str, now: int) -> None:
        """A node has ended: nothing can be got from it. Copies of its objects stay."""
        self._ended[place] = cause
        if len(self._ended) > _REMEMBERED_PLACES:
            del self._ended[next(iter(self._ended))]
        for copy in list(self._copies.values()):
            if copy.state is State.WHOLE or place not in copy.holders:
                continue
            self._give_up(copy, place)
            if copy.state is State.FETCHING and copy.source == place:
                self.outbox.append(Stop(copy.key, copy.attempt))
            elif copy.state in {State.QUEUED, State.RETRYING} and not copy.holders:
                self._fail_lost(copy)
        self._admit(now)

    def on_place_here(self, place: str) -> None:
        """A node has come, perhaps where another was."""
        self._ended.pop(place, None)

    def on_room_wanted(self, wanted: int) -> int:
        """Drop copies in memory that nobody holds until `wanted` bytes are free, if there are as many; how many are."""
        given = 0
        feeding: list[Key] = []
        while given < wanted and self._unused:
            key, _ = self._unused.popitem(last=False)
            if self._on_disk(key):
                self._unused_on_disk[key] = None
            elif self._feeds(key):
                # The room would not be free yet.
                feeding.append(key)
            else:
                given += self._drop(key)
        for key in reversed(feeding):
            self._unused[key] = None
            self._unused.move_to_end(key, last=False)
        return given

    def on_disk_wanted(self, wanted: int) -> int:
        """The same with copies on disk, for room there."""
        for key in [key for key in self._unused if self._on_disk(key)]:
            del self._unused[key]
            self._unused_on_disk[key] = None
        given = 0
        for key in list(self._unused_on_disk):
            if given >= wanted:
                break
            if not self._feeds(key) and not self._viewed(key):
                given += self._drop(key)
        return given

    def _drop(self, key: Key) -> int:
        copy = self._copies[key]
        self._remove(copy)
        return copy.size

    def on_tick(self, now: int) -> None:
        """Time has passed."""
        for key in list(self._under_way):
            copy = self._copies[key]
            if copy.state is State.RETRYING and copy.resume_at <= now:
                copy.asked.clear()
                self._fetch_next(copy)

    def next_deadline(self) -> int | None:
        """When to call `on_tick`."""
        times = [
            copy.resume_at
            for key in self._under_way
            if (copy := self._copies[key]).state is State.RETRYING
        ]
        return min(times, default=None)

    # --- questions -----------------------------------------------------------------------------------------------

    def has_ended(self, place: str) -> bool:
        """Whether a node that was there has ended, and no other has come."""
        return place in self._ended

    def stage(self, key: Key) -> Stage:
        """How much of an object is here."""
        copy = self._copies.get(key)
        if copy is None or copy.state is State.ENDING:
            return Stage.NONE
        if copy.state is State.WHOLE:
            return Stage.WHOLE
        return Stage.RECEIVING if copy.receiving else Stage.PENDING

    def location(self, key: Key) -> Location | None:
        """Where the copy of an object is, if there is a whole one."""
        copy = self._copies.get(key)
        return None if copy is None else copy.location

    def copies(self) -> list[Copy]:
        """All objects of other nodes that are here, are on their way, or are wanted."""
        return list(self._copies.values())

    # --- inner workings ------------------------------------------------------------------------------------------

    def _at(self, key: Key, attempt: int) -> Copy | None:
        """The copy that an outcome is about; None if it is of an attempt that is over."""
        copy = self._copies.get(key)
        if (
            copy is None
            or copy.attempt != attempt
            or copy.state not in {State.FETCHING, State.ENDING}
        ):
            return None
        return copy

    def _move(self, copy: Copy, state: State) -> None:
        if state not in MOVES[copy.state]:
            raise InternalError(f"{copy!r} cannot become {state.value}")
        before, copy.state = copy.state, state
        if state in UNDER_WAY and before not in UNDER_WAY:
            self._under_way[copy.key] = None
            self._bytes_under_way += self._room(copy)
        elif before in UNDER_WAY and state not in UNDER_WAY:
            del self._under_way[copy.key]
            self._bytes_under_way -= self._room(copy)
        if state is State.QUEUED:
            self._queues[copy.why][copy.key] = None
        elif state is State.GONE:
            del self._copies[copy.key]

    def _room(self, copy: Copy) -> int:
        """What it takes of the store."""
        return 0 if copy.size > self._capacity else copy.size

    def _admit(self, now: int) -> None:
        """Begin the pulls whose turn it is."""
        for queue in self._queues.values():
            while queue:
                copy = self._copies[next(iter(queue))]
                full = self._bytes_under_way + self._room(copy) > self._limit_bytes
                if len(self._under_way) >= self._limit or (self._bytes_under_way and full):
                    return
                del queue[copy.key]
                copy.forget_sources()
                if copy.key.place in self._ended:
                    self._give_up(copy, copy.key.place)
                self._move(copy, State.FETCHING)
                self._fetch_or_pause(copy, now)

    def _go_on(self, copy: Copy, now: int) -> None:
        """An attempt has failed."""
        copy.receiving = False
        copy.asked[copy.source] = None
        self._fetch_or_pause(copy, now)
        self._admit(now)

    def _fetch_or_pause(self, copy: Copy, now: int) -> None:
        if not copy.holders:
            self._fail_lost(copy)
        elif all(place in copy.asked for place in copy.holders):
            self._move(copy, State.RETRYING)
            copy.resume_at = now + copy.pause_ns
            copy.pause_ns = min(2 * copy.pause_ns, _LONGEST_PAUSE_NS)
        else:
            self._fetch_next(copy)

    def _fetch_next(self, copy: Copy) -> None:
        if copy.state is State.RETRYING:
            self._move(copy, State.FETCHING)
        fresh = [place for place in copy.holders if place not in copy.asked]
        copy.source = min(fresh, key=lambda place: copy.failures.get(place, 0))
        copy.attempt = self._attempts = self._attempts + 1
        copy.receiving = False
        gave_up: tuple[str, ...] = ()
        if copy.source == copy.key.place:
            gave_up = tuple(copy.gave_up)
            copy.gave_up.clear()
        self.outbox.append(
            Fetch(copy.key, copy.attempt, copy.source, self._feeds(copy.key), gave_up)
        )

    def _learn(self, copy: Copy, places: Iterable[str]) -> None:
        for place in places:
            if place not in self._ended:
                copy.holders.setdefault(place)

    def _give_up(self, copy: Copy, place: str) -> None:
        copy.holders.pop(place, None)
        if place != copy.key.place:
            copy.gave_up[place] = None
        if place in self._ended:
            copy.cause = self._ended[place]

    def _grant(self, copy: Copy, client: Client, req: int) -> None:
        copy.pins[(client, req)] = None
        self._use(copy)
        self.outbox.append(Answer(client, req, copy.location))

    def _unpin(self, copy: Copy, client: Client, req: int) -> None:
        del copy.pins[(client, req)]
        if copy.pins:
            return
        if copy.dead:
            self._remove(copy)
        else:
            self._unused[copy.key] = None

    def _use(self, copy: Copy) -> None:
        self._unused.pop(copy.key, None)
        self._unused_on_disk.pop(copy.key, None)

    def _refuse(self, client: Client, req: int, text: str, cause: str) -> None:
        self.outbox.append(Answer(client, req, None, f"ObjectLostError: {text}", cause))

    def _fail_lost(self, copy: Copy) -> None:
        cause = copy.cause
        place = copy.key.place
        text = f"its node ({place}) {cause}" if cause else f"no node has it any more: {copy.reason}"
        self._fail(copy, f"ObjectLostError: {text}", cause)

    def _fail(self, copy: Copy, error: str, cause: str = "") -> None:
        wishes, copy.wishes = copy.wishes, {}
        for client, req in wishes:
            self._forget_wish(client, req)
            self.outbox.append(Answer(client, req, None, error, cause))
        self._remove(copy)

    def _abandon(self, copy: Copy) -> None:
        """Nobody wants it any more."""
        if copy.state is State.FETCHING:
            self._move(copy, State.ENDING)
            self.outbox.append(Stop(copy.key, copy.attempt))
        elif copy.state in {State.QUEUED, State.RETRYING}:
            self._remove(copy)

    def _has_ended(self, copy: Copy, now: int) -> bool:
        """Whether this outcome was the end of a fetch that was told to stop."""
        if copy.state is not State.ENDING:
            return False
        self._conclude(copy, now)
        return True

    def _conclude(self, copy: Copy, now: int) -> None:
        if copy.wishes:
            copy.receiving = False
            self._move(copy, State.QUEUED)
        else:
            self._remove(copy)
        self._admit(now)

    def _remove(self, copy: Copy) -> None:
        queue = self._queues[copy.why]
        if copy.state is State.QUEUED:
            queue.pop(copy.key, None)
        self._use(copy)
        if copy.attempt:
            self.outbox.append(Discard(copy.key))
        self._move(copy, State.GONE)

    def _forget_wish(self, client: Client, req: int) -> None:
        wishes = self._of_client[client]
        del wishes[req]
        if not wishes:
            del self._of_client[client]

    def check(self) -> None:
        """Assert the invariants."""
        under_way = [copy for copy in self._copies.values() if copy.state in UNDER_WAY]
        assert {copy.key for copy in under_way} == set(self._under_way)
        total = sum(map(self._room, under_way))
        assert total == self._bytes_under_way
        assert len(under_way) <= self._limit
        assert total <= self._limit_bytes or sum(self._room(copy) > 0 for copy in under_way) == 1
        queued = [key for queue in self._queues.values() for key in queue]
        assert len(queued) == len(set(queued))
        assert set(queued) == {k for k, c in self._copies.items() if c.state is State.QUEUED}
        for key, copy in self._copies.items():
            assert copy.key == key
            unused = copy.state is State.WHOLE and not copy.pins
            assert unused == (key in self._unused or key in self._unused_on_disk)
            assert not (key in self._unused and key in self._unused_on_disk)
            assert not (unused and copy.dead), "a dead copy that nobody holds was kept"
            assert (copy.state is State.WHOLE) == (copy.location is not None)
            assert not (copy.state is State.WHOLE and copy.wishes)
            if copy.state in {State.QUEUED, State.FETCHING, State.RETRYING}:
                assert copy.wishes, f"nobody wants {copy!r}"
            if copy.state is State.QUEUED:
                assert key in self._queues[copy.why]
            for client, req in copy.wishes:
                assert self._of_client[client][req] == key
        if queued and under_way:
            head = self._copies[next(key for queue in self._queues.values() for key in queue)]
            assert len(under_way) >= self._limit or total + head.size > self._limit_bytes, (
                "the first in line could begin"
            )
        assert under_way or not queued, "nothing is under way and somebody waits"
