"""How the two ends of a connection that may break tell each other things: everything once and in order, or only the newest.

::

    push ─► waiting ─► (take: numbered, `window` at most) ─► sent ─► (on_taken) gone
                 ▲                                             │
                 └── rewind: the connection is new ────────────┘

**`Outgoing` and `Incoming`** are the two ends of a numbered stream. What was taken to be sent is kept until the other end says that it
has it, and is sent again, with the same number, over the next connection. The other end knows by the number what it has had.
Guarantees: each message takes effect once, in the order of `push`.

A stream is bounded. At most `window` messages are on their way; the others wait. A message may have a *key*, and then the one that waits is
superseded by a later one of the same key as soon as `limit` messages wait: whoever fell that far behind gets the newest state of
everything instead of its history, and how many messages it was spared (`Entry.missed`). So there wait at most `limit`, plus one for each
key, plus those without keys, which are not dropped: whoever owns the stream looks at `waiting` and gives up on a peer that takes nothing.

**`Board`** is for what only the newest matters of at all: rows of a table, each with the version of its last change. A reader is just a
number, the version that it has, so that one who has stopped costs nothing, and then gets each row once.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class Entry(Generic[T]):
    """One message of a stream. `number` is 0 until it was first taken. `missed` counts messages before it that were superseded."""

    __slots__ = ("key", "message", "missed", "number")

    def __init__(self, message: T, key: Hashable | None) -> None:
        self.message = message
        self.key = key
        self.number = 0
        self.missed = 0


def _newest(_old: T, new: T) -> T:
    return new


class Outgoing(Generic[T]):
    """The sending end. `merge` makes one message of a superseded one and its successor; without it, the successor stands."""

    def __init__(
        self, window: int, limit: int, merge: Callable[[T, T], T] = _newest, first: int = 1
    ) -> None:
        assert window > 0
        self._window = window
        self._limit = limit
        self._merge = merge
        self._next = first
        # In order: what was never taken, by a running number, since messages leave from the middle.
        self._waiting: dict[int, Entry[T]] = {}
        self._pushed = 0
        # Where the last waiting message of each key is.
        self._places: dict[Hashable, int] = {}
        # Taken and not acknowledged, in order: on this connection, and on an earlier one, to go again.
        self._sent: deque[Entry[T]] = deque()
        self._again: deque[Entry[T]] = deque()
        self._missed = 0

    @property
    def waiting(self) -> int:
        """How many messages were never taken."""
        return len(self._waiting)

    @property
    def unacknowledged(self) -> int:
        """How many were taken, and the other end has not said that it has them."""
        return len(self._sent) + len(self._again)

    def push(self, message: T, key: Hashable | None = None) -> Entry[T]:
        """The next message."""
        entry = Entry(message, key)
        if key is not None:
            if len(self._waiting) >= self._limit:
                place = self._places.get(key)
                if place is not None:
                    entry.message = self._merge(self._waiting.pop(place).message, message)
                    self._missed += 1
            self._places[key] = self._pushed
        self._waiting[self._pushed] = entry
        self._pushed += 1
        return entry

    def take(self, most: int | None = None) -> list[Entry[T]]:
        """What may be sent now, `most` messages at most: each is handed out once on each connection."""
        room = self._window if most is None else min(self._window, len(self._sent) + most)
        taken: list[Entry[T]] = []
        while self._again and len(self._sent) < room:
            entry = self._again.popleft()
            self._sent.append(entry)
            taken.append(entry)
        while self._waiting and len(self._sent) < room:
            place = next(iter(self._waiting))
            entry = self._waiting.pop(place)
            if entry.key is not None and self._places.get(entry.key) == place:
                del self._places[entry.key]
            entry.number = self._next
            self._next += 1
            # Said with the first message that leaves after it, and so heard once.
            entry.missed, self._missed = self._missed, 0
            self._sent.append(entry)
            taken.append(entry)
        return taken

    def on_taken(self, number: int) -> list[Entry[T]]:
        """The other end has everything up to this number; what that was. A number that was never sent counts as the last."""
        done: list[Entry[T]] = []
        for entries in (self._sent, self._again):
            while entries and entries[0].number <= number:
                done.append(entries.popleft())
        return done

    def rewind(self, kept: Iterable[Entry[T]] = ()) -> None:
        """The connection is a new one: what is not acknowledged goes again, and so do `kept`, which were, for the other end has
        forgotten them."""
        entries = {entry.number: entry for entry in (*self._sent, *self._again)}
        entries.update((entry.number, entry) for entry in kept if entry.number)
        self._sent.clear()
        self._again = deque(entries[number] for number in sorted(entries))

    def check(self) -> None:
        """Assert the invariants."""
        numbers = [entry.number for entry in (*self._sent, *self._again)]
        assert numbers == sorted(set(numbers))
        assert not numbers or 0 < numbers[0] <= numbers[-1] < self._next
        assert len(self._sent) <= self._window
        keyless = sum(entry.key is None for entry in self._waiting.values())
        assert len(self._waiting) <= self._limit + len(self._places) + keyless
        for key, place in self._places.items():
            assert self._waiting[place].key == key
        assert all(entry.number == 0 for entry in self._waiting.values())


class Incoming:
    """The receiving end: `last` is the highest number that was taken."""

    __slots__ = ("last",)

    def __init__(self, last: int = 0) -> None:
        self.last = last

    def is_new(self, number: int) -> bool:
        """Whether this message was never taken before; it is now."""
        if number <= self.last:
            return False
        self.last = number
        return True


class Board(Generic[T]):
    """Rows by key, of which readers want the newest. `version` is that of the last change; a reader that has read nothing has 0."""

    def __init__(self) -> None:
        self.version = 0
        # In the order of their last change: what is new stands at the end.
        self._rows: OrderedDict[bytes, tuple[int, T]] = OrderedDict()

    def put(self, key: bytes, row: T) -> None:
        """A row is like this from now on."""
        self.version += 1
        self._rows[key] = (self.version, row)
        self._rows.move_to_end(key)

    def discard(self, key: bytes) -> None:
        """A row is gone. Readers are not told: that is for a stream."""
        self._rows.pop(key, None)

    def get(self, key: bytes) -> T | None:
        """One row."""
        found = self._rows.get(key)
        return None if found is None else found[1]

    def rows(self) -> list[T]:
        """All rows."""
        return [row for _, row in self._rows.values()]

    def since(self, version: int) -> list[T]:
        """The rows that have changed after a version; takes as long as there are such rows."""
        changed: list[T] = []
        for changed_at, row in reversed(self._rows.values()):
            if changed_at <= version:
                break
            changed.append(row)
        changed.reverse()
        return changed

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: bytes) -> bool:
        return key in self._rows
