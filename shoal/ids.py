"""Identity: 16-byte ids, how they are derived, and their public types.

Layout of an id made by a process::

    | 8 bytes: random prefix of the process | 5 bytes: counter | 3 bytes: index |

- index 0 names the *task* (or the actor: the id of the task that creates it);
- 1 … 2^23-1 name its *returns*; 2^23 … 2^24-1 name the objects that it *put* while it ran.

Because returns are derived from their task, running a task again makes the same object ids, which is what recovery through
lineage rests on. What it puts then belongs to whoever runs it, while what the first attempt has put may still be lent: later
attempts put under task ids of their own. Inside the engine ids are plain `bytes` (hashing and comparing them costs nothing
extra); the classes below are what users see.
"""

from __future__ import annotations

import builtins
import itertools
import os
from typing import Final, Self

ID_SIZE: Final = 16
NIL: Final = b"\xff" * ID_SIZE

PUT_INDEX_BASE: Final = 1 << 23
INDEX_LIMIT: Final = 1 << 24
MAX_RETURNS: Final = PUT_INDEX_BASE - 1

_INDEX_BYTES: Final = tuple(i.to_bytes(3, "big") for i in range(256))
FIRST_RETURN: Final = _INDEX_BYTES[1]


def return_id(task_id: bytes, index: int) -> bytes:
    """Id of return number `index` (from 0) of a task."""
    number = index + 1
    return task_id[:13] + (_INDEX_BYTES[number] if number < 256 else number.to_bytes(3, "big"))


def put_id(task_id: bytes, number: int) -> bytes:
    """Id of the object that a task put as its `number`-th (from 0).

    Raises:
        OverflowError: the task has put 2^23 objects already; the caller starts a fresh task id.
    """
    index = PUT_INDEX_BASE + number
    if index >= INDEX_LIMIT:
        raise OverflowError("a task can put at most 2^23 objects under one id")
    return task_id[:13] + index.to_bytes(3, "big")


def task_of(object_id: bytes) -> bytes:
    """Id of the task that made an object."""
    return object_id[:13] + b"\0\0\0"


def prefix_of(binary: bytes) -> bytes:
    """The part of an id that names the process which made it. Ids with the same prefix ascend in the order of their making."""
    return binary[:8]


class IdSource:
    """Makes the task ids of one process: its random prefix and a counter."""

    __slots__ = ("_count", "prefix")

    def __init__(self, prefix: bytes | None = None) -> None:
        self.prefix = os.urandom(8) if prefix is None else prefix
        self._count = itertools.count(1)

    def task_id(self) -> bytes:
        # `next` on a count is atomic under the interpreter lock: threads never draw the same number.
        return self.prefix + (next(self._count) << 24).to_bytes(8, "big")


class BaseID:
    """A 16-byte identifier with a type. Equal and hashed by type and bytes."""

    __slots__ = ("_bytes",)

    def __init__(self, binary: bytes) -> None:
        if not isinstance(binary, bytes) or len(binary) != ID_SIZE:
            raise ValueError(f"{type(self).__name__} takes {ID_SIZE} bytes, got {binary!r}")
        self._bytes = binary

    @classmethod
    def from_binary(cls, binary: bytes) -> Self:
        return cls(binary)

    @classmethod
    def from_hex(cls, text: str) -> Self:
        return cls(bytes.fromhex(text))

    @classmethod
    def from_random(cls) -> Self:
        return cls(os.urandom(ID_SIZE))

    @classmethod
    def nil(cls) -> Self:
        return cls(NIL)

    @classmethod
    def size(cls) -> int:
        return ID_SIZE

    def binary(self) -> bytes:
        return self._bytes

    def hex(self) -> str:
        return self._bytes.hex()

    def is_nil(self) -> bool:
        return self._bytes == NIL

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other._bytes == self._bytes

    def __hash__(self) -> int:
        return hash(self._bytes)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.hex()})"

    def __reduce__(self) -> tuple[type[Self], tuple[bytes]]:
        return type(self), (self._bytes,)


class UniqueID(BaseID):
    """An id of anything that has no type of its own."""

    __slots__ = ()


class NodeID(UniqueID):
    """A node: one machine (one node daemon), for one session."""

    __slots__ = ()


class WorkerID(UniqueID):
    """A process that runs user code: a driver or a worker."""

    __slots__ = ()


class ClusterID(UniqueID):
    """A cluster, for as long as its control store's storage lives."""

    __slots__ = ()


class FunctionID(UniqueID):
    """A function or class definition: the hash of its pickled bytes."""

    __slots__ = ()


class ActorClassID(UniqueID):
    """An actor class: the hash of its pickled definition."""

    __slots__ = ()


class PlacementGroupID(UniqueID):
    """A placement group."""

    __slots__ = ()


class JobID(UniqueID):
    """A job: one driver and everything that it started."""

    __slots__ = ()

    @classmethod
    def from_int(cls, number: builtins.int) -> Self:
        """The id with this number."""
        return cls(number.to_bytes(ID_SIZE, "big"))

    def int(self) -> builtins.int:
        """The id as a number."""
        return builtins.int.from_bytes(self._bytes, "big")


class TaskID(BaseID):
    """One task, over all its attempts."""

    __slots__ = ()


class ActorID(BaseID):
    """One actor, over all its incarnations."""

    __slots__ = ()


class ObjectID(BaseID):
    """One object."""

    __slots__ = ()

    def task_id(self) -> TaskID:
        return TaskID(task_of(self._bytes))
