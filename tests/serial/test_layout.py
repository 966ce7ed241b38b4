from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import DeserializationError
from shoal.serial import (
    CorruptBlockError,
    Serialized,
    layout_size,
    read_layout,
    serialize,
    write_layout,
)


def block_of(serialized: Serialized, spare: int = 0) -> bytearray:
    block = bytearray(layout_size(serialized) + spare)
    write_layout(serialized, memoryview(block))
    return block


def views(*parts: bytes) -> list[memoryview]:
    return [memoryview(part) for part in parts]


@given(
    data=st.binary(max_size=300),
    parts=st.lists(st.binary(max_size=300), max_size=5),
    spare=st.integers(0, 200),
)
def test_what_is_written_is_read(data: bytes, parts: list[bytes], spare: int) -> None:
    serialized = Serialized(data, views(*parts))
    block = bytearray(b"\xaa" * (layout_size(serialized) + spare))
    used = write_layout(serialized, memoryview(block))
    assert used == layout_size(serialized) == len(block) - spare
    assert bytes(block[used:]) == b"\xaa" * spare  # what is behind is nobody's business
    stream, buffers = read_layout(memoryview(block))
    assert bytes(stream) == data
    assert [bytes(buffer) for buffer in buffers] == parts


def test_buffers_start_at_multiples_of_64() -> None:
    block = block_of(Serialized(b"s" * 3, views(b"a" * 65, b"", b"b", b"c" * 64)))
    _, count, _, _ = struct.unpack_from("<8sIIQ", block)
    offsets = [struct.unpack_from("<QQ", block, 24 + 16 * i)[0] for i in range(count)]
    assert all(offset % 64 == 0 for offset in offsets)


def test_the_views_read_are_of_the_block_and_read_only() -> None:
    block = block_of(Serialized(b"stream", views(b"x" * 100)))
    stream, buffers = read_layout(memoryview(block))
    assert stream.readonly
    assert buffers[0].readonly
    assert stream.obj is block
    assert buffers[0].obj is block


def test_the_copy_function_is_the_callers() -> None:
    copies: list[int] = []

    def copy(dst: memoryview, src: memoryview) -> None:
        assert len(dst) == len(src)
        copies.append(len(src))
        dst[:] = src

    serialized = serialize([b"x" * 100_000, b"y" * 200_000])
    block = bytearray(layout_size(serialized))
    write_layout(serialized, memoryview(block), copy)
    assert copies == [len(serialized.data), 100_000, 200_000]
    assert [buffer.nbytes for buffer in read_layout(memoryview(block))[1]] == [100_000, 200_000]


def test_writing_into_too_little_room_fails() -> None:
    serialized = Serialized(b"stream", views(b"x" * 100))
    with pytest.raises((ValueError, struct.error)):
        write_layout(serialized, memoryview(bytearray(layout_size(serialized) - 1)))


@given(data=st.binary(max_size=100), parts=st.lists(st.binary(max_size=200), max_size=4))
def test_every_truncation_is_noticed(data: bytes, parts: list[bytes]) -> None:
    block = block_of(Serialized(data, views(*parts)))
    for end in range(len(block)):
        try:
            stream, buffers = read_layout(memoryview(block)[:end])
        except CorruptBlockError:
            continue
        # Only padding before empty buffers may be missing without loss.
        assert bytes(stream) == data
        assert [bytes(buffer) for buffer in buffers] == parts


@given(noise=st.binary(max_size=200), seed=st.binary(min_size=8, max_size=120))
def test_garbage_is_a_named_error_or_stays_inside(noise: bytes, seed: bytes) -> None:
    for garbage in (noise, b"shoalob1" + noise, b"shoalob1\1\0\0\0\0\0\0\0" + seed):
        try:
            stream, buffers = read_layout(memoryview(garbage))
        except CorruptBlockError:
            continue
        assert stream.nbytes + sum(buffer.nbytes for buffer in buffers) <= len(garbage)


def test_the_errors_say_what_is_wrong() -> None:
    with pytest.raises(CorruptBlockError, match="shorter than the header"):
        read_layout(memoryview(b"shoal"))
    with pytest.raises(CorruptBlockError, match=r"starts with b'\\x00"):
        read_layout(memoryview(bytes(100)))
    block = block_of(Serialized(b"s" * 50, views(b"x" * 100)))
    with pytest.raises(CorruptBlockError, match="stream ends at byte 90, but only 80"):
        read_layout(memoryview(block)[:80])
    with pytest.raises(CorruptBlockError, match="buffer 0 of 1 ends at byte 228, but only 200"):
        read_layout(memoryview(block)[:200])
    struct.pack_into("<Q", block, 24, 65)
    with pytest.raises(CorruptBlockError, match="Buffer 0 of 1 in a block starts at byte 65"):
        read_layout(memoryview(block))
    struct.pack_into("<Q", block, 24, 0)
    with pytest.raises(CorruptBlockError, match="overlaps"):
        read_layout(memoryview(block))
    assert issubclass(CorruptBlockError, DeserializationError)
