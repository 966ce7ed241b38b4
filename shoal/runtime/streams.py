"""Streams: tasks whose results arrive one by one, and the generator of references that users iterate.

Item `i` of a stream is the object `return_id(task, i + 1)`; `return_id(task, 0)` is the stream's own object, ready when the
stream has ended. A retried task makes the same items again: those that came already are dropped.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from shoal.errors import StreamEndError
from shoal.ids import return_id
from shoal.messages.values import Failed
from shoal.runtime import current_process
from shoal.runtime.reentry import refuse_reentry
from shoal.runtime.refs import ObjectRef
from shoal.serial.exceptions import dump_exception

if TYPE_CHECKING:
    from shoal.core.references import Entry
    from shoal.core.tasks import Task
    from shoal.runtime.process import Process

T = TypeVar("T")


class Stream:
    """The owner's record of a stream. All methods are called with the runtime's lock held.

    Attributes:
        length: Number of items, once the stream has ended; -1 before.
        taken: Items that the consumer has taken.
    """

    __slots__ = ("__weakref__", "_items", "_process", "_task", "abandoned", "length", "taken")

    def __init__(self, process: Process, task: Task) -> None:
        self._process = process
        self._task = task
        # Items that came, or that somebody waits for, and that were not taken. Each is held by the stream.
        self._items: dict[int, Entry] = {}
        self.length = -1
        self.taken = 0
        self.abandoned = False

    def item(self, index: int, value: Any, voucher: str = "") -> None:
        """An item has come, from `voucher`."""
        entry = self._entry(index)
        if entry is None or entry.value is not None:
            self._process.objects.refuse(value, voucher)
            return
        refs = [] if type(value) is Failed else value.refs
        self._process.complete(entry, value, refs, True, voucher)

    def _entry(self, index: int) -> Entry | None:
        entry = self._items.get(index)
        if entry is None and index >= self.taken and not self.abandoned:
            entry = self._process.objects.own(return_id(self._task.task_id, index + 1), local=0)
            entry.holds = 1
            entry.task = self._task
            self._items[index] = entry
        return entry

    def items(self) -> list[Entry]:
        """Items that nobody has taken yet."""
        return list(self._items.values())

    def end(self, length: int) -> None:
        """The stream has ended after `length` items."""
        if self.length >= 0:
            return
        self.length = length
        beyond = self._items.get(length)
        if beyond is not None and beyond.value is None:
            # Somebody waits for an item that will not come. The entry stays until the stream is abandoned, or the waiting
            # thread would find it freed instead of known.
            error = StreamEndError(f"the stream has ended after {length} items")
            self._process.complete(beyond, Failed(dump_exception(error)), [], registered=True)
        for entry in self._items.values():
            if entry.value is not None:
                entry.task = None

    def fail(self, length: int, failed: Failed) -> None:
        """The task failed after `length` items (-1: however many came): the next item raises, then the stream ends."""
        if self.length >= 0:
            return
        if length < 0:
            length = self.taken
            while (entry := self._items.get(length)) is not None and entry.value is not None:
                length += 1
        self.item(length, failed)
        self.end(length + 1)

    def next_entry(self) -> Entry | None:
        """The entry of the item to be taken next; None when there is none."""
        if 0 <= self.length <= self.taken:
            return None
        return self._entry(self.taken)

    def take(self) -> Entry:
        """Take the next item, which has come: the caller has one handle on it."""
        entry = self._items.pop(self.taken)
        self.taken += 1
        entry.local += 1
        entry.task = None
        self._process.objects.unhold(entry)
        if self._task.window:
            self._process.owner.consumed(self._task, self.taken)
        return entry

    @property
    def consumed(self) -> int:
        """How many items the consumer has taken; -1 if it wants no more."""
        return -1 if self.abandoned else self.taken

    def abandon(self) -> None:
        """Nobody will take any more items."""
        if self.abandoned:
            return
        self.abandoned = True
        items = list(self._items.values())
        self._items.clear()
        for entry in items:
            self._process.objects.unhold(entry)
        if self.length < 0:
            self._process.owner.consumed(self._task, -1)


class ObjectRefGenerator(Generic[T]):
    """Iterates, synchronously or asynchronously, over references to what a generator task yields, as it yields them.

    An exception in the task is raised by `get` of the last reference. The generator cannot be pickled.
    """

    def __init__(
        self, process: Process, task: Task, stream: Stream, marker: ObjectRef[Any]
    ) -> None:
        self._process = process
        self._task = task
        self._stream = stream
        self._marker = marker

    def _here(self) -> Process:
        process = self._process
        if process.pid != os.getpid():
            raise current_process.forked_error(process.pid)
        return process

    # --- iteration -----------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[ObjectRef[T]]:
        return self

    def __next__(self) -> ObjectRef[T]:
        return self._next_sync(None)

    def _next_sync(self, timeout_s: float | None = None) -> ObjectRef[T]:
        """The next reference; a nil one if `timeout_s` passes first."""
        process = self._here()
        refuse_reentry(process.reactor, "next() of a stream")
        with process.lock:
            entry = self._stream.next_entry()
        if entry is None:
            raise StopIteration
        if entry.value is None and not process.waiting.wait_for(entry, timeout_s):
            return ObjectRef.nil()
        return self._take()

    def _take(self) -> ObjectRef[T]:
        process = self._here()
        with process.lock:
            if self._stream.next_entry() is None:
                raise StopIteration
            entry = self._stream.take()
            process.settle()
        return ObjectRef._of(entry, process.drop)

    def __aiter__(self) -> AsyncIterator[ObjectRef[T]]:
        return self

    async def __anext__(self) -> ObjectRef[T]:
        process = self._here()
        with process.lock:
            entry = self._stream.next_entry()
        if entry is not None and entry.value is None:
            await process.waiting.known_on_loop(entry)
        try:
            return self._take()
        except StopIteration:
            raise StopAsyncIteration from None

    # --- state ---------------------------------------------------------------------------------------------------

    def completed(self) -> ObjectRef[Any]:
        """A reference that is ready when the task has ended; getting it raises what the task raised."""
        return self._marker

    def next_ready(self) -> bool:
        """Whether the next item can be taken at once."""
        with self._here().lock:
            entry = self._stream.next_entry()
            return entry is not None and entry.value is not None

    def is_finished(self) -> bool:
        """Whether the stream has ended and everything was taken."""
        with self._here().lock:
            return self._stream.next_entry() is None

    @property
    def _entry(self) -> Entry:
        """What `wait` looks at: the next item, or the stream's end."""
        with self._here().lock:
            return self._stream.next_entry() or self._marker._entry

    def __del__(self) -> None:
        process = getattr(self, "_process", None)
        if process is not None:
            process.drop_stream(self._stream)

    def __reduce__(self) -> Any:
        raise TypeError(
            "an ObjectRefGenerator cannot be sent to another process; pass the references that it yields, or collect them "
            "in a list first"
        )

    def __repr__(self) -> str:
        return f"ObjectRefGenerator({self._marker.hex()})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._process.lock:
            self._stream.abandon()
            self._process.settle()
