"""Frames cut from a stream of bytes, whatever the pieces are in which it comes."""

from __future__ import annotations

import itertools
import struct
import tracemalloc

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shoal.errors import ProtocolError
from shoal.wire.framing import HEADER_BYTES, FrameDecoder, cut_frame, encode_frame

LIMIT = 1000


def announce(size: int) -> bytes:
    return struct.pack("<I", size)


def pieces(stream: bytes, cuts: list[int]) -> list[bytes]:
    ends = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
    return [stream[start:end] for start, end in itertools.pairwise(ends)]


def feed_all(decoder: FrameDecoder, stream: list[bytes]) -> list[bytes]:
    return [bytes(payload) for piece in stream for payload in decoder.feed(piece)]


payload_lists = st.lists(st.binary(max_size=40), max_size=8)
cut_lists = st.lists(st.integers(0, 400), max_size=40)


@given(payload_lists, cut_lists)
@example([b"abc"], [1, 2, 3, 4, 5, 6, 7])
@example([b"", b"", b"abc", b""], [2, 6, 9])
def test_frames_come_out_whole_and_in_order(payloads: list[bytes], cuts: list[int]) -> None:
    decoder = FrameDecoder(LIMIT)
    stream = b"".join(encode_frame(payload) for payload in payloads)
    assert feed_all(decoder, pieces(stream, cuts)) == payloads
    assert decoder.pending_bytes == 0


@given(payload_lists, st.binary(min_size=1, max_size=60), cut_lists)
def test_the_bytes_of_an_unfinished_frame_are_counted(
    payloads: list[bytes], last: bytes, cuts: list[int]
) -> None:
    decoder = FrameDecoder(LIMIT)
    stream = b"".join(encode_frame(payload) for payload in payloads)
    unfinished = encode_frame(last)[:-1]
    assert feed_all(decoder, pieces(stream + unfinished, cuts)) == payloads
    assert decoder.pending_bytes == len(unfinished)
    assert decoder.feed(last[-1:]) == [last]


@given(st.data(), payload_lists)
def test_the_receive_buffer_may_be_used_again_after_each_feed(
    data: st.DataObject, payloads: list[bytes]
) -> None:
    decoder = FrameDecoder(LIMIT)
    stream = b"".join(encode_frame(payload) for payload in payloads)
    buffer = bytearray(64)
    received: list[bytes] = []
    while stream:
        count = data.draw(st.integers(1, min(64, len(stream))))
        buffer[:count], stream = stream[:count], stream[count:]
        received += [bytes(payload) for payload in decoder.feed(memoryview(buffer)[:count])]
        buffer[:] = b"\xee" * 64
    assert received == payloads


def test_whole_frames_in_one_chunk_are_views_of_it() -> None:
    chunk = encode_frame(b"first") + encode_frame(b"second") + encode_frame(b"third")[:6]
    payloads = FrameDecoder(LIMIT).feed(chunk)
    assert [bytes(payload) for payload in payloads] == [b"first", b"second"]
    assert all(isinstance(p, memoryview) and p.obj is chunk for p in payloads)
    (payload,) = FrameDecoder(LIMIT).feed(lone := encode_frame(b"lone"))
    assert isinstance(payload, memoryview)
    assert payload.obj is lone


@pytest.mark.parametrize("size", [LIMIT + 1, 1 << 31, (1 << 32) - 1])
@pytest.mark.parametrize("cut", range(1, HEADER_BYTES + 1))
def test_a_length_above_the_limit_is_refused_as_soon_as_it_is_known(size: int, cut: int) -> None:
    decoder = FrameDecoder(LIMIT)
    header = announce(size)
    (fine,) = decoder.feed(encode_frame(b"x" * LIMIT))
    assert len(fine) == LIMIT
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match=f"announces {size:,} bytes"):
            feed_all(decoder, [header[:cut], header[cut:] + b"rest"])
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_a_whole_frame_above_the_limit_is_refused_too() -> None:
    with pytest.raises(ProtocolError, match="max_frame_bytes"):
        FrameDecoder(LIMIT).feed(encode_frame(b"x" * (LIMIT + 1)))


def test_a_large_frame_in_many_pieces_is_put_together_once() -> None:
    payload = bytes(range(256)) * 4096
    stream = encode_frame(payload)
    decoder = FrameDecoder(len(payload))
    pieces_of_1k = [stream[start : start + 1024] for start in range(0, len(stream), 1024)]
    assert feed_all(decoder, pieces_of_1k[:-1]) == []
    assert decoder.feed(pieces_of_1k[-1]) == [payload]


# --- the handshake's way: one frame at a time ----------------------------------------------------------------------------


@given(payload_lists, cut_lists)
def test_cut_frame_takes_one_frame_and_leaves_the_rest(
    payloads: list[bytes], cuts: list[int]
) -> None:
    data = bytearray()
    received = []
    for piece in pieces(b"".join(encode_frame(payload) for payload in payloads), cuts):
        data += piece
        before = bytes(data)
        payload = cut_frame(data, LIMIT)
        if payload is None:
            assert data == before
        else:
            assert encode_frame(payload) + data == before
            received.append(payload)
    while (payload := cut_frame(data, LIMIT)) is not None:
        received.append(payload)
    assert received == payloads
    assert not data


def test_cut_frame_refuses_what_is_no_greeting() -> None:
    assert cut_frame(bytearray(announce(LIMIT)), LIMIT) is None
    with pytest.raises(ProtocolError, match="not a shoal peer"):
        cut_frame(bytearray(b"GET / HTTP/1.1\r\n"), LIMIT)
