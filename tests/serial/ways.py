"""The two ways that a value takes to another process, as functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shoal.serial import (
    HOOKS,
    Hooks,
    deserialize,
    layout_size,
    read_layout,
    serialize,
    write_layout,
)


def in_message(value: Any, hooks: Hooks = HOOKS) -> Any:
    """By a message: the buffers are bytes on arrival."""
    serialized = serialize(value, hooks=hooks)
    return deserialize(serialized.data, [bytes(buffer) for buffer in serialized.buffers])


def through_store(value: Any, hooks: Hooks = HOOKS) -> Any:
    """By the object store: the buffers are read-only views of one block."""
    serialized = serialize(value, hooks=hooks)
    block = bytearray(layout_size(serialized))
    assert write_layout(serialized, memoryview(block)) == len(block) == serialized.size_bytes
    return deserialize(*read_layout(memoryview(block)))


Way = Callable[..., Any]
WAYS: tuple[Way, ...] = (in_message, through_store)
