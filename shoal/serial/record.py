"""What serialization produces: a pickle stream, the buffers beside it, and the references inside it.

Owns the record that travels from the serializer to whoever sends or stores it. Guarantees that everything in it is
contiguous bytes, ready to be written without another look at the value. Leaves to the runtime what a reference is,
and to the holder that the buffers are *views*: until they are sent or copied, they change when the value changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from shoal.serial.layout import block_size

Bytes = bytes | bytearray | memoryview
"""What may hold a stream or a buffer."""


# A struct because it is made once or twice a task, in a third of the time of a class with slots. Not tracked by the
# garbage collector: a value cannot reach the record of its own serialization.
class Serialized(msgspec.Struct, frozen=True, eq=False, gc=False):
    """A value as bytes.

    Attributes:
        data: Pickle stream of protocol 5, whole.
        buffers: What the stream takes from outside, in its order: flat contiguous views of bytes.
        refs: Object references and actor handles found anywhere inside, each once, in order of first appearance.
    """

    data: bytes
    buffers: Sequence[memoryview] = ()
    refs: Sequence[Any] = ()

    @property
    def size_bytes(self) -> int:
        """Bytes that the value takes as a block of the object store, header and padding included."""
        return block_size(len(self.data), self.buffers)
