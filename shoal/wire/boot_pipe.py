"""How a daemon is told what it is, and answers: one record on its standard input, one on its standard output, framed as everywhere.

See `messages.boot` for the records.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Final, TypeVar

import msgspec

from shoal.messages.boot import BootAnswer
from shoal.wire.framing import HEADER_BYTES, encode_frame

T = TypeVar("T")

_MAX_BOOT_BYTES: Final = 64 * 1024 * 1024


def read_boot(kind: type[T], starter: str) -> T:
    """The record that this process was started with; ends it if there is none. `starter` is who should have written it."""
    size = int.from_bytes(_read_exactly(HEADER_BYTES, starter), "little")
    if size > _MAX_BOOT_BYTES:
        sys.exit(
            f"the boot record announces {size:,} bytes: this program is started by {starter}, not by hand"
        )
    return msgspec.msgpack.decode(_read_exactly(size, starter), type=kind)


def _read_exactly(size: int, starter: str) -> bytes:
    data = b""
    while len(data) < size:
        piece = os.read(0, size - len(data))
        if not piece:
            sys.exit(f"{starter} ended before it had sent the boot record")
        data += piece
    return data


def answer_boot(answer: BootAnswer) -> None:
    """Tell whoever started this process. Who did may be gone; whether that matters, the lifeline tells."""
    with contextlib.suppress(OSError):
        os.write(1, encode_frame(msgspec.msgpack.encode(answer)))
