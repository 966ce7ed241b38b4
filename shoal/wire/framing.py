"""Frames: a 4-byte little-endian length, then that many bytes. Sans-I/O.

One frame carries a *batch*: MessagePack of a list of messages of the conversation. The decoder guarantees that

- bytes may come in any pieces; frames come out whole and in order;
- a length above the limit raises `ProtocolError` before anything is allocated for it;
- whole frames inside one received chunk are handed out as views on it, without a copy.
"""

from __future__ import annotations

import struct
from typing import Final

from shoal.errors import ProtocolError

HEADER_BYTES: Final = 4
_TLS_RECORDS: Final = (b"\x16\x03", b"\x15\x03")
"""How TLS begins, with a greeting or an alert; as a frame's length it is far beyond what a greeting may have."""
_header = struct.Struct("<I")
pack_header = _header.pack
_unpack_header = _header.unpack_from

Buffer = bytes | bytearray | memoryview


def encode_frame(payload: bytes) -> bytes:
    """One frame around `payload`."""
    return pack_header(len(payload)) + payload


def cut_frame(data: bytearray, max_frame_bytes: int) -> bytes | None:
    """Cut the first whole frame off `data` and return its payload; None while it is incomplete.

    For the handshake, where each frame must be looked at before the next one may even be measured.

    Raises:
        ProtocolError: the frame announces more than the limit.
    """
    if len(data) < HEADER_BYTES:
        return None
    size = _unpack_header(data, 0)[0]
    if size > max_frame_bytes:
        if data.startswith(_TLS_RECORDS):
            raise ProtocolError(
                "the peer speaks TLS, which this process was started without; start all nodes of a cluster with --tls-cert, --tls-key "
                "and --tls-ca, or all without"
            )
        raise ProtocolError(
            f"the first frame announces {size:,} bytes where a greeting has at most {max_frame_bytes:,}; "
            "this is not a shoal peer"
        )
    if len(data) < HEADER_BYTES + size:
        return None
    payload = bytes(data[HEADER_BYTES : HEADER_BYTES + size])
    del data[: HEADER_BYTES + size]
    return payload


class FrameDecoder:
    """Cuts a stream of bytes into payloads."""

    __slots__ = ("_max_frame_bytes", "_missing", "_most_bytes", "_parts")

    def __init__(self, max_frame_bytes: int) -> None:
        self._max_frame_bytes = max_frame_bytes
        self._most_bytes = HEADER_BYTES + max_frame_bytes
        # Pieces of an unfinished frame, and how many bytes complete it (0: not known, header incomplete or no frame).
        self._parts = bytearray()
        self._missing = 0

    @property
    def pending_bytes(self) -> int:
        """Bytes of an unfinished frame; not 0 at end of stream means that the peer broke off in the middle."""
        return len(self._parts)

    def feed(self, data: Buffer) -> list[Buffer]:
        """Take the next bytes of the stream; return the payloads that they complete.

        Raises:
            ProtocolError: a frame announces more than the limit.
        """
        parts = self._parts
        if parts:
            if len(data) < self._missing:
                parts += data
                self._missing -= len(data)
                return []
            parts += data
            data = bytes(parts)
            self._parts = bytearray()
        self._missing = 0

        payloads: list[Buffer] = []
        position, end = 0, len(data)
        # The common case, one whole frame, must not pay for a memoryview.
        if end >= HEADER_BYTES and (
            HEADER_BYTES + _unpack_header(data, 0)[0] == end <= self._most_bytes
        ):
            payloads.append(memoryview(data)[HEADER_BYTES:])
            return payloads
        view = memoryview(data)
        while end - position >= HEADER_BYTES:
            size = _unpack_header(data, position)[0]
            if size > self._max_frame_bytes:
                raise ProtocolError(
                    f"a frame announces {size:,} bytes, more than the limit of {self._max_frame_bytes:,} "
                    "(max_frame_bytes); either this is not a shoal peer, or the limit must be raised on both sides"
                )
            start = position + HEADER_BYTES
            if end - start < size:
                self._missing = size - (end - start)
                break
            payloads.append(view[start : start + size])
            position = start + size
        if position < end:
            self._parts += view[position:]
            if self._missing == 0:
                self._missing = 1
        return payloads
