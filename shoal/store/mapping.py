"""Memory mappings that know when nobody looks at them any more.

Why not `mmap.mmap`: it keeps a descriptor for every mapping, and it cannot tell which of the views on it are alive. Here a
`Mapping` is a bare `mmap(2)`, undone when the object goes, and every object in it is handed out through an `Exporter` of
its own::

    memoryview slices, numpy arrays, Arrow buffers      (whatever is derived keeps what it came from alive)
        └─► memoryview ─► Exporter ─► Mapping ─► pages

so a weak reference to the exporter dies with the last view of that object, and the pages stay for as long as any view
of any object in them.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from typing import Any, Final

from shoal.errors import ObjectStoreFullError

_libc: Final = ctypes.CDLL(None, use_errno=True)
_mmap: Final = _libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    # off_t: 64 bits on every platform that shoal runs on.
    ctypes.c_int64,
)
_munmap: Final = _libc.munmap
_munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_madvise: Final = _libc.madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

_MAP_FAILED: Final = ctypes.c_void_p(-1).value
_MADV_REMOVE: Final = getattr(mmap, "MADV_REMOVE", 9)
_NO_HOLES: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


class Mapping:
    """`length` bytes of a file, shared, from its start. The descriptor may be closed at once.

    Raises:
        ObjectStoreFullError: the process has as many mappings as the kernel allows.
        OSError: anything else that `mmap(2)` reports.
    """

    __slots__ = ("__weakref__", "_munmap", "address", "length")

    def __init__(self, fd: int, length: int, *, writable: bool) -> None:
        protection = mmap.PROT_READ | mmap.PROT_WRITE if writable else mmap.PROT_READ
        # At interpreter exit the module may be gone before the last view is.
        self._munmap = _munmap
        self.address = 0
        self.length = length
        address = _mmap(None, length, protection, mmap.MAP_SHARED, fd, 0)
        if address == _MAP_FAILED:
            code = ctypes.get_errno()
            if code == errno.ENOMEM:
                raise ObjectStoreFullError(
                    f"the kernel refused to map {length:,} bytes of shared memory: this process has too many "
                    "mappings, or its address space is limited. Hold fewer large objects at once, or raise "
                    "vm.max_map_count (or `ulimit -v`)."
                )
            raise OSError(code, f"mmap of {length:,} bytes: {os.strerror(code)}")
        self.address = address

    def __del__(self) -> None:
        if self.address:
            self._munmap(self.address, self.length)

    def discard(self, offset: int, length: int) -> bool:
        """Give the pages of a range back to the system, for every process that maps them; they read as zeros.

        False if the file system cannot make holes. (Those in memory can, and most on disks.)
        """
        if _madvise(self.address + offset, length, _MADV_REMOVE) == 0:
            return True
        code = ctypes.get_errno()
        if code in _NO_HOLES:
            return False
        raise OSError(code, f"madvise(MADV_REMOVE): {os.strerror(code)}")


def _exporter_type(bits: int) -> Any:
    # `mapping` is what the exporter keeps alive. A ctypes type costs 7 µs to make, hence one for each power of two; the view
    # of it is cut to size.
    return type(f"Exporter{bits}", (ctypes.c_char * (1 << bits),), {"__slots__": ("mapping",)})


_EXPORTERS: Final[list[Any]] = [None] * 64


def export(mapping: Mapping, offset: int, size: int) -> Any:
    """The object that stands behind all views of a range. It is weakly referenceable."""
    bits = (size - 1).bit_length() if size else 0
    kind = _EXPORTERS[bits]
    if kind is None:
        kind = _EXPORTERS[bits] = _exporter_type(bits)
    exporter = kind.from_address(mapping.address + offset)
    exporter.mapping = mapping
    return exporter


def view_of(exporter: Any, size: int) -> memoryview:
    """The first `size` bytes behind an exporter, writable if the mapping is."""
    return memoryview(exporter).cast("B")[:size]
