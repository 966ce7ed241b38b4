from __future__ import annotations

import os
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.store import copy_into

LARGE = 1 << 20


@given(st.sampled_from([0, 1, 1000, (256 << 10) - 1, 256 << 10, LARGE]), st.integers(0, 63))
def test_all_bytes_arrive_and_none_beside_them(size: int, shift: int) -> None:
    src = os.urandom(size)
    dst = bytearray(b"\xee" * (size + 100))
    copy_into(memoryview(dst)[shift : shift + size], memoryview(src))
    assert dst[shift : shift + size] == src
    assert dst[:shift] == b"\xee" * shift
    assert dst[shift + size :] == b"\xee" * (100 - shift)


@pytest.mark.parametrize("size", [800, LARGE])
def test_items_of_any_kind_are_copied_as_bytes(size: int) -> None:
    src = np.arange(size // 8, dtype=np.float64).reshape(4, -1)
    dst = bytearray(size)
    copy_into(memoryview(dst), memoryview(src))
    assert bytes(dst) == src.tobytes()


@pytest.mark.parametrize("size", [100, LARGE])
def test_what_cannot_be_copied_is_refused(size: int) -> None:
    src = memoryview(bytes(size))
    with pytest.raises(ValueError, match=f"cannot copy {size} bytes over {size - 1}"):
        copy_into(memoryview(bytearray(size - 1)), src)
    with pytest.raises((TypeError, ValueError), match=r"read-?only"):
        copy_into(memoryview(bytes(size)), src)
    strided = memoryview(np.zeros(2 * size, dtype=np.uint8)[::2])
    with pytest.raises((BufferError, ValueError, TypeError)):
        copy_into(memoryview(bytearray(size)), strided)


@pytest.mark.parametrize("size", [100, LARGE])
def test_the_buffers_are_let_go_afterwards(size: int) -> None:
    src = bytearray(size)
    dst = bytearray(size)
    with memoryview(src) as source, memoryview(dst) as target:
        copy_into(target, source)
    # Resizing is refused while anybody has the buffer.
    src.append(1)
    dst.append(1)
    assert src == dst == bytes(size) + b"\x01"


def test_other_threads_run_during_a_large_copy() -> None:
    src = memoryview(bytearray(64 << 20))
    dst = memoryview(bytearray(64 << 20))
    inside = threading.Event()
    done = threading.Event()

    def copy() -> None:
        inside.set()
        for _ in range(5):
            copy_into(dst, src)
        done.set()

    steps = 0
    thread = threading.Thread(target=copy)
    thread.start()
    inside.wait()
    while not done.is_set():
        steps += 1
    thread.join()
    # With the interpreter's lock held throughout, this thread would get a turn between two copies only.
    assert steps > 1000
