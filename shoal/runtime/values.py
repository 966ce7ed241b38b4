"""Values to what the wire and the object table carry, and back.

A value becomes plain `bytes` (an inline pickle with nothing beside it: the lean case), `Inline` (with buffers or
references), or `Stored` (in shared memory, above `inline_limit_bytes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from shoal.errors import InternalError, TaskError
from shoal.messages.values import Failed, Inline, Refs, Stored
from shoal.runtime.refs import ObjectRef
from shoal.serial.layout import read_layout
from shoal.serial.values import deserialize

if TYPE_CHECKING:
    from shoal.core.references import Entry
    from shoal.runtime.storage import ObjectStore
    from shoal.serial.record import Serialized

LARGE_MESSAGE_BYTES: Final = 64 * 1024
"""Arguments of this size are sent at once: collecting more of them in a batch saves nothing, and costs memory."""


class Values:
    """Packs and unpacks values for one process."""

    __slots__ = ("_inline_limit", "_store", "address")

    def __init__(self, store: ObjectStore, inline_limit: int, address: str) -> None:
        self._store = store
        self._inline_limit = inline_limit
        self.address = address

    def entries_in(self, serialized: Serialized) -> list[Entry]:
        """The entries that the references inside a value count on. Weak handles count on none."""
        return self.entries_of(serialized.refs)

    @staticmethod
    def entries_of(handles: Sequence[Any]) -> list[Entry]:
        """The same, for handles that were found inside a value."""
        entries = [
            handle._entry if isinstance(handle, ObjectRef) else handle._life for handle in handles
        ]
        return [entry for entry in entries if entry is not None]

    def wire_refs(self, entries: list[Entry]) -> list[Refs]:
        """References as messages name them."""
        by_owner: dict[str, list[bytes]] = {}
        for entry in entries:
            by_owner.setdefault(entry.owner or self.address, []).append(entry.object_id)
        return [Refs(owner, object_ids) for owner, object_ids in by_owner.items()]

    def pack(
        self, serialized: Serialized, entries: list[Entry], large: bool = True
    ) -> bytes | Inline | Stored:
        """What carries the value. `large`: it may go to shared memory, which can wait for room (not with the lock held)."""
        data, buffers = serialized.data, serialized.buffers
        if not buffers and len(data) <= self._inline_limit:
            return Inline(data, [], self.wire_refs(entries)) if entries else data
        if large:
            size = serialized.size_bytes
            if size > self._inline_limit:
                location = self._store.write(serialized, size)
                return Stored(location, self.address, self.wire_refs(entries) if entries else [])
        return Inline(
            data, [bytes(buffer) for buffer in buffers], self.wire_refs(entries) if entries else []
        )

    def unpack(self, value: bytes | Inline | Stored, subject: str = "a value") -> Any:
        """The Python value. Buffers of stored values are read-only views of shared memory."""
        if type(value) is bytes:
            return deserialize(value, subject=subject)
        if type(value) is Stored:
            data, buffers = read_layout(self._store.view(value))
            return deserialize(data, buffers, subject=subject)
        if type(value) is Inline:
            return deserialize(value.data, value.buffers, subject=subject)
        raise InternalError(f"a value has the unknown form {type(value).__name__}")


def error_of(value: Failed) -> BaseException:
    """The exception in a failed value, fit to be raised once."""
    error = deserialize(value.error, subject="an exception")
    if not isinstance(error, BaseException):
        return InternalError(f"a failed value holds {error!r} instead of an exception")
    return error.as_instanceof_cause() if isinstance(error, TaskError) else error


def wire_args(value: bytes | Inline | Stored) -> Inline | Stored:
    """A value that is there, as a message carries it."""
    return Inline(value) if isinstance(value, bytes) else value


def wire_value(value: bytes | Inline | Stored | Failed) -> Inline | Stored | Failed:
    """A value of the table, or the failure in its place, as a message carries it."""
    return Inline(value) if isinstance(value, bytes) else value
