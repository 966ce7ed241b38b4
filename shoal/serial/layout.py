"""How a serialized value lies in one block of the object store.

Owns the format of a block; the store owns where blocks are and who may map them, and hands its own copy function in.

::

    0        8     12      16              24
    ├────────┼─────┼───────┼───────────────┼───────────────────────────────┬────────┬─────┬──────────┬─────┬───
    │ magic  │ n   │ zero  │ stream length │ n × (offset, length) of u64   │ stream │ pad │ buffer 0 │ pad │ …
    └────────┴─────┴───────┴───────────────┴───────────────────────────────┴────────┴─────┴──────────┴─────┴───

All integers are little-endian; offsets count from the start of the block. Every buffer starts at a multiple of 64
bytes, so that in a block that itself starts at one, numpy and Arrow data are aligned for vector instructions and
cache lines. The block may be longer than what is written: the header alone says where things are.

Guarantees: `read_layout` copies nothing, hands out read-only views only, and never reads beyond its view. A block
that is not one, is cut short or contradicts itself is a `CorruptBlockError` that says where.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from shoal.errors import DeserializationError

if TYPE_CHECKING:
    from shoal.serial.record import Serialized

MAGIC = b"shoalob1"
ALIGNMENT = 64

_HEADER = struct.Struct("<8sIIQ")
_ENTRY = struct.Struct("<QQ")
_HEADER_BYTES = _HEADER.size
_ENTRY_BYTES = _ENTRY.size


class CorruptBlockError(DeserializationError):
    """A block of the object store does not hold what it should: foreign, cut short, or damaged."""


def copy_into(dst: memoryview, src: memoryview) -> None:
    """Copy all of `src` into `dst`, which is as long."""
    dst[:] = src


def block_size(stream_bytes: int, buffers: Sequence[memoryview]) -> int:
    """Bytes of a block for a stream of that length and these buffers."""
    end = _HEADER_BYTES + _ENTRY_BYTES * len(buffers) + stream_bytes
    for buffer in buffers:
        end = (end + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT + buffer.nbytes
    return end


def layout_size(serialized: Serialized) -> int:
    """Bytes that `write_layout` will fill."""
    return block_size(len(serialized.data), serialized.buffers)


def write_layout(
    serialized: Serialized,
    dst: memoryview,
    copy: Callable[[memoryview, memoryview], None] = copy_into,
) -> int:
    """Write `serialized` to the start of `dst` and return how many bytes it took, `layout_size(serialized)`.

    `dst` is a writable view of bytes, at least that long. The padding between buffers is left as it was: reused
    memory keeps what was there, and no reader looks.
    """
    data, buffers = serialized.data, serialized.buffers
    stream_start = _HEADER_BYTES + _ENTRY_BYTES * len(buffers)
    end = stream_start + len(data)
    _HEADER.pack_into(dst, 0, MAGIC, len(buffers), 0, len(data))
    copy(dst[stream_start:end], memoryview(data))
    entry = _HEADER_BYTES
    for buffer in buffers:
        size = buffer.nbytes
        start = (end + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
        end = start + size
        _ENTRY.pack_into(dst, entry, start, size)
        entry += _ENTRY_BYTES
        if size:
            copy(dst[start:end], buffer)
    return end


def read_layout(view: memoryview) -> tuple[memoryview, list[memoryview]]:
    """The pickle stream and the buffers in a block, as read-only views into it.

    Raises:
        CorruptBlockError: `view` is not a block, or ends before what its header announces.
    """
    if not view.readonly:
        view = view.toreadonly()
    size = view.nbytes
    if size < _HEADER_BYTES:
        raise CorruptBlockError(
            f"A block of {size} bytes is shorter than the header of one ({_HEADER_BYTES} bytes). The object was "
            "not written to its end; making it again is the only cure."
        )
    magic, count, _, stream_bytes = _HEADER.unpack_from(view)
    if magic != MAGIC:
        raise CorruptBlockError(
            f"A block starts with {magic!r} instead of {MAGIC!r}: its memory belongs to something else, was never "
            "written, or was written by another version of shoal."
        )
    stream_start = _HEADER_BYTES + _ENTRY_BYTES * count
    end = stream_start + stream_bytes
    if end > size:
        raise _truncated(f"its pickle stream ends at byte {end}", size)
    data = view[stream_start:end]
    buffers: list[memoryview] = []
    # The views of the table's entries are cut with the same check: `end` covers the table as well.
    for start, length in _ENTRY.iter_unpack(view[_HEADER_BYTES:stream_start]):
        stop = start + length
        if start < end or start % ALIGNMENT:
            raise CorruptBlockError(
                f"Buffer {len(buffers)} of {count} in a block starts at byte {start}, which overlaps what comes "
                f"before it or is no multiple of {ALIGNMENT}: the block's header was overwritten."
            )
        if stop > size:
            raise _truncated(f"buffer {len(buffers)} of {count} ends at byte {stop}", size)
        buffers.append(view[start:stop])
        end = stop
    return data, buffers


def _truncated(what: str, size: int) -> CorruptBlockError:
    return CorruptBlockError(
        f"A block is cut short: {what}, but only {size} bytes are there. The object was not written to its end, or "
        "its file was shortened; making it again is the only cure."
    )
