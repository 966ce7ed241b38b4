"""Objects of other nodes, as one process sees them: it has its own daemon bring a copy here, and looks at that.

::

    begin ──Pull──► daemon ──Pulled──► take: map the copy, lock it, PullDone ──► a view, like any other
      └──────────── end: not wanted any more, PullDone ────────────┘

Any thread. While views of an object live, it is asked for only once: the lock of the first holds the copy, and views made later share
it. The daemon keeps a copy that it has dropped alive for those who look at it, as the store does everywhere.

A session of one machine has none of this.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from weakref import WeakValueDictionary

from shoal.errors import NodeDiedError, ObjectLostError
from shoal.messages.transfer import Freed, Pull, PullDone, Pulled, Why
from shoal.messages.values import Location, Stored
from shoal.runtime.node_link import error_from_text
from shoal.store.mapping import view_of
from shoal.wire.addresses import place_of
from shoal.wire.reactor import Waiter

if TYPE_CHECKING:
    from shoal.runtime.node_link import NodeLink

_REMEMBERED: Final = 10_000

_Key = tuple[str, Location]


class Wanted(NamedTuple):
    """An object to be brought here, what errors call it, and its id as they give it, if it is known."""

    stored: Stored
    subject: str
    object_id_hex: str | None = None


class Wish(Waiter):
    """An object that is on its way. `known`, if there is one, is called with it once the answer is here, with the lock held."""

    __slots__ = ("answer", "known", "req", "stored", "view")

    def __init__(self, stored: Stored, req: int, known: Callable[[Wish], None] | None) -> None:
        super().__init__()
        self.stored = stored
        self.req = req
        self.known = known
        self.answer: Pulled | None = None
        self.view: memoryview | None = None


class RemoteObjects:
    """See the module's docstring. `view_copy` gives a view of a block of this node."""

    def __init__(
        self, node: NodeLink, place: str, view_copy: Callable[[Location], memoryview]
    ) -> None:
        self._node = node
        self._prefix: Final = place + "/"
        self._view_copy = view_copy
        self._req = 0
        self._wishes: dict[int, Wish] = {}
        # What stands behind the views that live.
        self._viewed: WeakValueDictionary[_Key, Any] = WeakValueDictionary()
        # What `wait` has asked for: who is told when it has come; and what has come. The oldest of that are forgotten.
        self._bringing: dict[_Key, list[Callable[[], None]]] = {}
        self._brought: dict[_Key, None] = {}
        self._freed: list[Location] = []
        self.node_handlers: dict[type, Callable[[Any], None]] = {Pulled: self._on_pulled}
        node.when_lost.append(self._on_lost)

    def is_remote(self, value: Any) -> bool:
        """Whether a value is an object of another node."""
        return type(value) is Stored and not value.creator.startswith(self._prefix)

    def viewed(self, stored: Stored) -> memoryview | None:
        """Another view of an object that this process looks at; None if it does not."""
        exporter = self._viewed.get(_key(stored))
        return None if exporter is None else view_of(exporter, stored.location.size).toreadonly()

    def all_viewed(self) -> list[tuple[str, Location]]:
        """The objects that this process looks at: where they were made."""
        return list(self._viewed)

    def begin(self, stored: Stored, why: Why, known: Callable[[Wish], None] | None = None) -> Wish:
        """Ask for an object, unless this process looks at it already. Whoever begins must `take` or `end`."""
        view = self.viewed(stored)
        with self._node.reactor.lock:
            req = self._req = self._req + 1
            wish = Wish(stored, req, known)
            if view is not None:
                wish.view = view
                wish.finish()
                if known is not None:
                    known(wish)
            else:
                self._wishes[req] = wish
                self._node.send_locked(Pull(req, stored.location, stored.creator, why))
                if self._node.lost:
                    self._on_lost(self._node.lost)
        return wish

    def _on_lost(self, why: str) -> None:
        """The daemon is gone: nothing will come any more (with the lock held)."""
        for req in list(self._wishes):
            self._on_pulled(Pulled(req, None, f"NodeDiedError: {why}"))

    def _on_pulled(self, message: Pulled) -> None:
        """With the lock held."""
        wish = self._wishes.pop(message.req, None)
        # Otherwise it was given up, and the daemon hears of that, or has.
        if wish is not None:
            wish.answer = message
            wish.finish()
            if wish.known is not None:
                wish.known(wish)

    def take(self, wish: Wish, subject: str, object_id_hex: str | None = None) -> memoryview:
        """The object that has come.

        Raises:
            ObjectLostError: no node has it any more; with the end of its node as the cause, if that is it.
            ObjectStoreFullError: there is no room for a copy.
        """
        if wish.view is not None:
            return wish.view
        answer = wish.answer
        assert answer is not None
        if answer.location is None:
            raise _error(subject, wish.stored, answer, object_id_hex)
        try:
            view = wish.view = self._view_copy(answer.location)
        finally:
            self._node.send(PullDone(wish.req))
        self._viewed[_key(wish.stored)] = view.obj
        return view

    def end(self, wish: Wish) -> None:
        """It is not wanted any more, unless it has been taken."""
        with self._node.reactor.lock:
            if wish.view is not None:
                return
            waiting = self._wishes.pop(wish.req, None) is not None
            if waiting or (wish.answer is not None and wish.answer.location is not None):
                self._node.send_locked(PullDone(wish.req))
                wish.answer = None

    def get(
        self,
        wanted: Sequence[Wanted],
        why: Why,
        wait: Callable[[Wish], bool] | None = None,
    ) -> list[memoryview]:
        """Bring objects here, all at once; views of them, in order.

        Args:
            wanted: The objects.
            why: What for.
            wait: Waits for one; False when the time is up, which raises `TimeoutError` with what one it was, and how many are missing.
        """
        wishes: list[Wish] = []
        views: list[memoryview] = []
        reactor = self._node.reactor
        try:
            wishes.extend(self.begin(want.stored, why) for want in wanted)
            reactor.flush()
            for wish, (_, subject, object_id_hex) in zip(wishes, wanted, strict=True):
                if not wish.done and not (reactor.wait(wish) if wait is None else wait(wish)):
                    raise TimeoutError(subject, sum(not one.done for one in wishes))
                views.append(self.take(wish, subject, object_id_hex))
        finally:
            for wish in wishes[len(views) :]:
                self.end(wish)
        return views

    async def get_on_loop(self, wanted: Sequence[Wanted], why: Why) -> list[memoryview]:
        """The same for a coroutine, whose loop goes on meanwhile."""
        loop = asyncio.get_running_loop()
        wishes: list[Wish] = []
        views: list[memoryview] = []
        try:
            arrivals = [asyncio.Event() for _ in wanted]
            for want, arrived in zip(wanted, arrivals, strict=True):
                known = partial(_set_on, loop, arrived)
                wishes.append(self.begin(want.stored, why, known))
            self._node.reactor.flush()
            for arrived in arrivals:
                await arrived.wait()
            for wish, (_, subject, object_id_hex) in zip(wishes, wanted, strict=True):
                views.append(self.take(wish, subject, object_id_hex))
        finally:
            for wish in wishes[len(views) :]:
                self.end(wish)
        return views

    def view(self, stored: Stored) -> memoryview:
        """A view of one object, as soon as it is here."""
        view = self.viewed(stored)
        if view is None:
            (view,) = self.get([Wanted(stored, "an object")], Why.GET)
        return view

    # --- for `wait` ----------------------------------------------------------------------------------------------

    def is_here(self, stored: Stored) -> bool:
        """Whether an object has been brought here, or cannot be; if neither, it is being brought from now on.

        That a copy has come does not keep it here: when room is wanted it may go again.
        """
        key = _key(stored)
        with self._node.reactor.lock:
            if key in self._brought:
                return True
            if key in self._bringing:
                return False
            if key in self._viewed:
                self._note(key)
                return True
            self._bringing[key] = []

            def known(wish: Wish) -> None:
                told = self._bringing.pop(key)
                self._note(key)
                self.end(wish)
                for callback in told:
                    callback()

            self.begin(stored, Why.WAIT, known)
            self._node.reactor.flush_locked()
            return key in self._brought

    def when_here(self, stored: Stored, callback: Callable[[], None]) -> None:
        """Have an object brought here, and call `callback`, with the lock held, when it has come, or cannot."""
        with self._node.reactor.lock:
            if self.is_here(stored):
                callback()
            else:
                self._bringing[_key(stored)].append(callback)

    def _note(self, key: _Key) -> None:
        self._brought[key] = None
        if len(self._brought) > _REMEMBERED:
            del self._brought[next(iter(self._brought))]

    # --- what has been freed here --------------------------------------------------------------------------------

    def freed(self, location: Location) -> None:
        """An object that this process made is dead."""
        self._freed.append(location)

    def tell_freed(self) -> None:
        """Tell the daemon of it, with whatever is sent next (with the lock held)."""
        if self._freed:
            freed, self._freed = self._freed, []
            self._node.send_locked(Freed(freed))


def _set_on(loop: asyncio.AbstractEventLoop, event: asyncio.Event, _wish: Wish) -> None:
    loop.call_soon_threadsafe(event.set)


def _key(stored: Stored) -> _Key:
    return place_of(stored.creator), stored.location


def _error(subject: str, stored: Stored, answer: Pulled, object_id_hex: str | None) -> Exception:
    found = error_from_text(answer.error)
    text = f"{subject} of {stored.location.size:,} bytes cannot be brought here from {place_of(stored.creator)}: {found}"
    if not isinstance(found, ObjectLostError):
        return type(found)(text)
    error = type(found)(text, object_id_hex)
    if answer.cause:
        error.__cause__ = NodeDiedError(f"the node at {place_of(stored.creator)} {answer.cause}")
    return error
