"""`ObjectRef`: a future naming an object, and how it crosses processes.

A handle is an entry of the object table and a way to say that it has died. `__del__` may run inside the garbage collector, in
any thread, with the runtime's lock held: so it only appends to a queue, which the runtime drains.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from shoal.ids import JobID, TaskID, task_of
from shoal.runtime import current_process
from shoal.runtime.outside import warn_once
from shoal.serial.hooks import register_rebuilder

if TYPE_CHECKING:
    from shoal.core.references import Entry

T = TypeVar("T")


class ObjectRef(Generic[T]):
    """A reference to an object: the value of a task, of an actor's call, or of `put`.

    Pass it to other tasks, `get` it, `wait` for it, or `await` it. Equal and hashed by the object's id.
    """

    __slots__ = ("__weakref__", "_drop", "_entry")

    _entry: Entry
    _drop: Callable[[Entry], None]

    def __init__(self, object_id: bytes) -> None:
        """A reference to an object by its 16-byte id; programs get theirs from `remote` and `put` instead."""
        process = current_process.require()
        with process.lock:
            entry = process.objects.borrow((object_id, process.address))
            entry.local += 1
        self._entry = entry
        self._drop = process.drop

    @classmethod
    def _of(cls, entry: Entry, drop: Callable[[Entry], None]) -> Self:
        """A handle on an entry whose `local` count includes it already."""
        ref = cls.__new__(cls)
        ref._entry = entry
        ref._drop = drop
        return ref

    def __del__(self) -> None:
        try:
            self._drop(self._entry)
        except AttributeError:
            # Never completely made: there is nothing to count.
            return

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectRef) and other._entry.object_id == self._entry.object_id

    def __hash__(self) -> int:
        return hash(self._entry.object_id)

    def __repr__(self) -> str:
        return f"ObjectRef({self._entry.object_id.hex()})"

    def binary(self) -> bytes:
        """The object's id, 16 bytes."""
        return self._entry.object_id

    def hex(self) -> str:
        """The object's id in hexadecimal."""
        return self._entry.object_id.hex()

    def is_nil(self) -> bool:
        """Whether this is the id that names nothing."""
        return self._entry.object_id == b"\xff" * 16

    @classmethod
    def size(cls) -> int:
        """Bytes of an id."""
        return 16

    @classmethod
    def nil(cls) -> ObjectRef[Any]:
        """A reference that names nothing."""
        return cls(b"\xff" * 16)

    @classmethod
    def from_random(cls) -> ObjectRef[Any]:
        """A reference to no object, with a random id (for tests of containers)."""
        return cls(os.urandom(16))

    def task_id(self) -> TaskID:
        """The task that makes the object."""
        return TaskID(task_of(self._entry.object_id))

    def job_id(self) -> JobID:
        """The job that this process belongs to."""
        return JobID(current_process.require().job_id)

    def owner_address(self) -> str:
        """Address of the process that owns the object."""
        return self._entry.owner or current_process.require().address

    def call_site(self) -> str:
        """The line of the program that put the object or submitted its task; empty unless `record_call_sites` is set, and this process
        made it."""
        return getattr(self._entry, "site", ("", 0))[0]

    def future(self) -> Future[T]:
        """A `concurrent.futures.Future` of the value."""
        return current_process.require().waiting.future(self)

    def as_future(self) -> Any:
        """An `asyncio.Future` of the value, on the running loop."""
        return asyncio.wrap_future(self.future())

    def __await__(self) -> Generator[Any, None, T]:
        return current_process.require().waiting.on_loop(self).__await__()

    def _on_completed(self, callback: Callable[[Any], Any]) -> None:
        """Call `callback(value)` (the exception, if there is no value) once the object is ready, in another thread."""
        self.future().add_done_callback(
            lambda future: callback(future.exception() or future.result())
        )

    def _on_ready(self, callback: Callable[[None], Any]) -> Callable[[], None]:
        """Call `callback(None)` once the object is ready, in another thread; returns what cancels that."""
        wanted = [callback]
        self.future().add_done_callback(lambda _: wanted and wanted.pop()(None))
        return wanted.clear

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, _memo: dict[int, Any]) -> Self:
        # What it names cannot change, and copying is no pickling.
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # Only pickling outside of shoal comes here: shoal's own pickler has a reducer that keeps the object alive.
        warn_once(
            repr(self),
            "the object is freed with the last reference that shoal counts, and whoever loads the pickle then gets an ObjectLostError",
            "Pass references as arguments, return values or inside objects instead, or keep one for as long as the pickle is used",
        )
        return reduce_ref(self)


def reduce_ref(ref: ObjectRef[Any]) -> tuple[Any, ...]:
    """How a reference is written inside a value."""
    entry = ref._entry
    return load_ref, (entry.object_id, entry.owner or current_process.require().address)


def load_ref(object_id: bytes, owner: str) -> ObjectRef[Any]:
    """Rebuild a reference inside a value that was read in this process."""
    process = current_process.process
    if process is None:
        process = current_process.require()
    with process.lock:
        entry = process.objects.entries.get(object_id)
        if entry is None:
            entry = process.objects.borrow((object_id, owner))
        entry.local += 1
    ref: ObjectRef[Any] = ObjectRef.__new__(ObjectRef)
    ref._entry = entry
    ref._drop = process.drop
    return ref


register_rebuilder(load_ref, 16)
