"""Giving memory back to the system.

The C library keeps what is freed, for whoever asks next. After a million objects have gone, nobody may ever ask for so much again.
"""

from __future__ import annotations

import ctypes


def trim_heap() -> None:
    """Give back what the C library has and nobody uses, some milliseconds for each gigabyte. Nothing where it does not know how."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
