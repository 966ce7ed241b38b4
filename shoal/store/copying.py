"""Copies of many bytes that let other threads run.

`dst[:] = src` holds the interpreter's lock for as long as it takes: 10 ms for 100 MB, in which no other thread of the
process answers anybody.
"""

from __future__ import annotations

import ctypes
from typing import Any, Final

_RELEASE_ABOVE: Final = 256 << 10
"""Below this, letting go of the interpreter's lock and finding the addresses costs more than it gains."""


class _Buffer(ctypes.Structure):
    """CPython's `Py_buffer`, which has been the same since 3.3 and is part of the stable ABI since 3.11."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_void_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


_get_buffer: Final = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = (ctypes.py_object, ctypes.POINTER(_Buffer), ctypes.c_int)
_release_buffer: Final = ctypes.pythonapi.PyBuffer_Release
_release_buffer.argtypes = (ctypes.POINTER(_Buffer),)
_release_buffer.restype = None

_SIMPLE: Final = 0
_WRITABLE: Final = 1


def copy_into(dst: memoryview, src: memoryview) -> None:
    """Copy all of `src` over all of `dst`; both are contiguous, and equally many bytes.

    Raises:
        ValueError: they differ in size, or `dst` is read-only.
    """
    size = src.nbytes
    if dst.nbytes != size:
        raise ValueError(f"cannot copy {size} bytes over {dst.nbytes}")
    if size < _RELEASE_ABOVE:
        dst.cast("B")[:] = src.cast("B")
        return
    if dst.readonly:
        raise ValueError("cannot copy into a read-only buffer")
    target = _pin(dst, _WRITABLE)
    try:
        source = _pin(src, _SIMPLE)
        try:
            ctypes.memmove(target.buf, source.buf, size)
        finally:
            _release_buffer(source)
    finally:
        _release_buffer(target)


def _pin(view: memoryview, flags: int) -> Any:
    buffer = _Buffer()
    _get_buffer(view, buffer, flags)
    return buffer
