"""How a value, or the place of one, is described inside other messages."""

from __future__ import annotations

import msgspec


class Location(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Where an object's bytes are in the object store of a node.

    `segment` is a file name in the session's shared-memory directory, `offset` and `size` are bytes in it. `serial` numbers the
    blocks of one creator from 1 on, so that two that were at the same place one after the other are not the same; 0 is a range
    of bytes that no block need be.
    """

    segment: str
    offset: int
    size: int
    serial: int = 0


class Ref(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """An object reference on the wire: the object's id and the address of the process that owns it."""

    object_id: bytes
    owner: str


class Refs(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """References of one owner that are inside a value. There may be a million of them, so its address is said once."""

    owner: str
    object_ids: list[bytes]


class Inline(msgspec.Struct, array_like=True, tag=0, gc=False):
    """A value inside the message: a pickle stream, its out-of-band buffers, and the references found in it."""

    data: bytes
    buffers: list[bytes] = []
    refs: list[Refs] = []


class Stored(msgspec.Struct, array_like=True, tag=1, gc=False):
    """A value in shared memory, and the references found in it. `creator` is the address of the process that made
    it, which takes the block back when the object is freed."""

    location: Location
    creator: str
    refs: list[Refs] = []


class Failed(msgspec.Struct, array_like=True, tag=2, gc=False):
    """No value: a pickled exception that `get` raises."""

    error: bytes


Value = Inline | Stored | Failed


class Dep(msgspec.Struct, array_like=True, gc=False):
    """A top-level argument that was a reference, resolved by the owner of the task.

    `key` is the position of a positional argument or the name of a keyword argument.
    """

    key: int | str
    value: Inline | Stored
