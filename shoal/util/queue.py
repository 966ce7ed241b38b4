"""`Queue`: a first-in, first-out queue that tasks, actors and drivers share. It is an actor; its handles can be sent.

Guarantees that an item is handed out once, in the order in which items came in, and that a call which timed out or did not wait
has changed nothing. Items go through the actor's process and are copied there: put large values into the object store and
queue a list that holds the reference.
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Iterable, Mapping
from typing import Any, Final

from shoal.api.actors import ActorClass, ActorHandle
from shoal.api.objects import get, kill, wait
from shoal.errors import NotInitializedError

_WAITING_CALLS: Final = 100_000
"""Calls that may wait in the actor at once. When all of them wait for items, a `put` would have to wait for them:
so many that nobody gets there."""


class Empty(queue.Empty):
    """There are no items, or fewer than were asked for."""


class Full(queue.Full):
    """There is no room."""


class _QueueActor:
    """The items. Answers instead of raising where a queue is full or empty, which are not failures of a call."""

    def __init__(self, maxsize: int) -> None:
        self._items: asyncio.Queue[Any] = asyncio.Queue(maxsize)

    async def qsize(self) -> int:
        return self._items.qsize()

    async def put(self, item: Any, wait_s: float | None) -> bool:
        try:
            # asyncio.timeout, unlike wait_for, cannot lose an item at the moment when the time is up.
            async with asyncio.timeout(wait_s):
                await self._items.put(item)
        except TimeoutError:
            return False
        return True

    async def get(self, wait_s: float | None) -> tuple[Any, ...]:
        try:
            async with asyncio.timeout(wait_s):
                return (await self._items.get(),)
        except TimeoutError:
            return ()

    async def put_batch(self, items: list[Any]) -> int | None:
        size, limit = self._items.qsize(), self._items.maxsize
        if 0 < limit < size + len(items):
            return size
        for item in items:
            self._items.put_nowait(item)
        return None

    async def get_batch(self, count: int) -> list[Any] | int:
        size = self._items.qsize()
        if size < count:
            return size
        return [self._items.get_nowait() for _ in range(count)]


class Queue:
    """A queue between processes, with the methods of `queue.Queue`, and those of `asyncio.Queue` as `…_async`.

    A reference that is put as an item arrives as its value, as with every call; put it inside a list to keep it.

    Args:
        maxsize: How many items there is room for; 0 for no limit.
        actor_options: Options of the actor, such as `{"num_cpus": 0, "name": "jobs"}`.
    """

    def __init__(self, maxsize: int = 0, actor_options: Mapping[str, Any] | None = None) -> None:
        options = {"max_concurrency": _WAITING_CALLS, **(actor_options or {})}
        self.maxsize = maxsize
        self.actor: ActorHandle | None = ActorClass(_QueueActor, options).remote(maxsize)

    def _handle(self) -> ActorHandle:
        if self.actor is None:
            raise NotInitializedError("the queue was shut down here; make a new one")
        return self.actor

    # --- size ----------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self.size()

    def size(self) -> int:
        """How many items there are; others may change that at any time."""
        size: int = get(self._handle().qsize.remote())
        return size

    def qsize(self) -> int:
        """The same as `size`."""
        return self.size()

    def empty(self) -> bool:
        """Whether there are no items."""
        return self.size() == 0

    def full(self) -> bool:
        """Whether there is no room."""
        return 0 < self.maxsize <= self.size()

    # --- one item ------------------------------------------------------------------------------------------------

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Add an item.

        Args:
            item: Anything that can be sent.
            block: Whether to wait for room.
            timeout: Seconds to wait at most.

        Raises:
            Full: there is no room, or was none in time.
            ValueError: `timeout` is negative.
        """
        seconds = _seconds(block, timeout)
        if not get(self._handle().put.remote(item, seconds)):
            raise self._full(seconds)

    async def put_async(
        self,
        item: Any,
        block: bool = True,
        timeout: float | None = None,  # noqa: ASYNC109 - Ray's name; the actor takes the time, not the caller
    ) -> None:
        """`put` for coroutines."""
        seconds = _seconds(block, timeout)
        if not await self._handle().put.remote(item, seconds):
            raise self._full(seconds)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take the oldest item.

        Args:
            block: Whether to wait for one.
            timeout: Seconds to wait at most.

        Raises:
            Empty: there is no item, or was none in time.
            ValueError: `timeout` is negative.
        """
        seconds = _seconds(block, timeout)
        return _only(get(self._handle().get.remote(seconds)), seconds)

    async def get_async(
        self,
        block: bool = True,
        timeout: float | None = None,  # noqa: ASYNC109 - as above
    ) -> Any:
        """`get` for coroutines."""
        seconds = _seconds(block, timeout)
        return _only(await self._handle().get.remote(seconds), seconds)

    def put_nowait(self, item: Any) -> None:
        """`put` without waiting."""
        self.put(item, block=False)

    def get_nowait(self) -> Any:
        """`get` without waiting."""
        return self.get(block=False)

    # --- several items -------------------------------------------------------------------------------------------

    def put_nowait_batch(self, items: Iterable[Any]) -> None:
        """Add several items, all of them or none.

        Raises:
            Full: there is not room for all.
            TypeError: `items` cannot be iterated over.
        """
        batch = list(items)
        size = get(self._handle().put_batch.remote(batch))
        if size is not None:
            raise Full(
                f"{len(batch)} items do not fit: the queue holds {size} of {self.maxsize}; nothing was added"
            )

    def get_nowait_batch(self, num_items: int) -> list[Any]:
        """Take exactly `num_items` items, or none.

        Raises:
            Empty: there are fewer.
            ValueError: `num_items` is negative.
            TypeError: `num_items` is not an integer.
        """
        if isinstance(num_items, bool) or not isinstance(num_items, int):
            raise TypeError(f"num_items must be an integer, not {num_items!r}")
        if num_items < 0:
            raise ValueError(f"num_items must be 0 or more, not {num_items}")
        found = get(self._handle().get_batch.remote(num_items))
        if isinstance(found, int):
            raise Empty(f"{num_items} items were asked for and there are {found}; none was taken")
        items: list[Any] = found
        return items

    # --- the end -------------------------------------------------------------------------------------------------

    def shutdown(self, force: bool = False, grace_period_s: float = 5) -> None:
        """End the queue for everybody; its items are lost. Does nothing the second time.

        Args:
            force: End it at once, and not after what was called before.
            grace_period_s: Seconds that it has for that.
        """
        actor, self.actor = self.actor, None
        if actor is None:
            return
        if not force:
            wait([actor.__ray_terminate__.remote()], timeout=grace_period_s)
        kill(actor)

    def _full(self, seconds: float | None) -> Full:
        return Full(f"the queue holds {self.maxsize} items already{_waited(seconds)}")


def _seconds(block: bool, timeout: float | None) -> float | None:
    if not block:
        return 0
    if timeout is not None and timeout < 0:
        raise ValueError(f"the timeout must be 0 or more seconds, not {timeout!r}")
    return timeout


def _only(found: tuple[Any, ...], seconds: float | None) -> Any:
    if not found:
        raise Empty(f"the queue is empty{_waited(seconds)}")
    return found[0]


def _waited(seconds: float | None) -> str:
    return f", still after {seconds} s" if seconds else ""
