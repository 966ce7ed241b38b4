"""Connections over pairs of sockets: what arrives, how they end, and for whom nothing is decoded."""

from __future__ import annotations

import contextlib
import os
import random
import select
import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import AuthenticationError, InternalError, ProtocolError
from shoal.messages.handshake import Proof, Refused
from shoal.wire.framing import encode_frame
from shoal.wire.handshake import ClientHandshake, ServerHandshake
from tests.wire.wires import (
    OTHER,
    TOKEN,
    Wire,
    frame,
    greet,
    read_frame,
)

# --- messages ------------------------------------------------------------------------------------------------------------


def test_messages_go_both_ways_in_batches(wire: Wire) -> None:
    client, server = wire.pair()
    client.send(1, 2, 3)
    wire.serve(lambda: server.received)
    server.send(b"four")
    client.send(5)
    wire.serve(lambda: len(server.received) == 4 and client.received)
    assert server.batches == [[1, 2, 3], [5]]
    assert client.batches == [[b"four"]]


def test_the_server_learns_where_the_client_can_be_reached(wire: Wire) -> None:
    client, server = wire.pair()
    client.send(1)
    wire.serve(lambda: server.received)
    assert server.connection.peer_address == "/run/client.sock"


def test_what_is_sent_before_the_handshake_is_done_waits_for_it(wire: Wire) -> None:
    client, server = wire.pair()
    server.send(1)
    client.send(2)
    server.send(3)
    wire.serve(lambda: client.received and server.received)
    assert client.batches == [[1, 3]]
    assert server.batches == [[2]]


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_data_may_come_right_behind_the_proof(wire: Wire, cut: int) -> None:
    ours, theirs = wire.socketpair()
    server = wire.server(theirs)
    stream = greet(wire, ours) + frame(1, 2) + frame(3)
    ours.sendall(stream[:cut])
    wire.reactor.pump()
    ours.sendall(stream[cut:])
    wire.serve(lambda: len(server.received) == 3)
    assert server.received == [1, 2, 3]
    assert server.connection.peer_address == "/run/by-hand.sock"


def test_a_connection_is_dirty_once_until_it_is_flushed(wire: Wire) -> None:
    client, server = wire.pair()
    client.send(0)
    wire.serve(lambda: server.received)
    with wire.reactor.lock:
        client.connection.send(1)
        client.connection.send(2)
        client.connection.out.append(3)
        client.connection.touch()
        assert wire.reactor.dirty == [client.connection]
        wire.reactor.flush_locked()
        assert wire.reactor.dirty == []
        client.connection.touch()
        wire.reactor.flush_locked()
    wire.serve(lambda: len(server.received) == 4)
    assert server.batches == [[0], [1, 2, 3]]


# --- more than the kernel takes ------------------------------------------------------------------------------------------


def test_a_slow_reader_never_blocks_the_sender_and_gets_everything_in_order(wire: Wire) -> None:
    client, server = wire.pair(send_buffer=4096)
    client.send(0)
    wire.serve(lambda: server.received)
    sent: list[Any] = [0]
    for number in range(1, 200):
        message = bytes([number]) * (number * 37 % 3000)
        sent.append(message)
        client.send(message)
    # All of that, and nobody has read a byte yet.
    assert len(server.received) == 1
    wire.serve(lambda: len(server.received) == len(sent))
    assert server.received == sent
    # It is not asked any more whether it can write, which it always can.
    client.send(b"again")
    wire.serve(lambda: server.received[-1] == b"again")
    assert not select.select([wire.reactor.fileno()], [], [], 0)[0]


def test_a_message_larger_than_every_buffer_arrives(wire: Wire) -> None:
    client, server = wire.pair(send_buffer=4096)
    large = random.Random(1).randbytes(5_000_000)
    client.send(large, 1)
    server.send(large)
    wire.serve(lambda: server.received and client.received)
    assert server.batches == [[large, 1]]
    assert client.received == [large]


def test_a_batch_beyond_the_limit_of_a_frame_leaves_in_several(wire: Wire) -> None:
    client, server = wire.pair(max_frame_bytes=10_000)
    messages = [bytes([number]) * 1000 for number in range(100)]
    client.send(*messages)
    client.send(1)
    wire.serve(lambda: len(server.received) == 101)
    assert server.received == [*messages, 1]
    assert max(len(msgspec.msgpack.encode(batch)) for batch in server.batches) <= 10_000


def test_a_single_message_beyond_the_limit_is_left_out_and_reported(wire: Wire) -> None:
    client, server = wire.pair(max_frame_bytes=10_000)
    client.send(1)
    wire.serve(lambda: server.received)
    large = b"x" * 20_000
    client.send(2, large, 3)
    wire.serve(lambda: client.unsent and len(server.received) == 3)
    ((message, reason),) = client.unsent
    assert message is large
    assert "20,004 bytes" in reason
    assert "10,000 (max_frame_bytes)" in reason
    client.send(4)
    wire.serve(lambda: len(server.received) == 4)
    assert server.received == [1, 2, 3, 4]


@pytest.mark.parametrize("bad", ["\ud800", 1 << 70, object()], ids=["text", "number", "type"])
def test_what_cannot_be_encoded_is_left_out_and_reported(wire: Wire, bad: Any) -> None:
    client, server = wire.pair()
    client.send(1)
    wire.serve(lambda: server.received)
    client.send(2, bad, 3)
    client.send(bad)
    client.send(4)
    wire.serve(lambda: len(server.received) == 4 and len(client.unsent) == 2)
    assert server.received == [1, 2, 3, 4]
    assert all(message is bad for message, _ in client.unsent)
    assert all("cannot be encoded" in reason for _, reason in client.unsent)


def test_what_replaces_a_message_arrives_in_its_place(wire: Wire) -> None:
    client, server = wire.pair(max_frame_bytes=10_000)
    client.instead = lambda message: message[:1]
    client.send(1, b"x" * 20_000, 2, b"y" * 20_000, b"z" * 20_000)
    client.send(3)
    wire.serve(lambda: len(server.received) == 6)
    assert server.received == [1, b"x", 2, b"y", b"z", 3]
    assert client.closed == []


def test_nothing_follows_a_message_that_is_missing(wire: Wire) -> None:
    client, server = wire.pair(max_frame_bytes=10_000)

    def refuse(_message: bytes) -> None:
        raise InternalError("nobody can be told")

    client.instead = refuse
    client.send(1, 2, b"x" * 20_000, 3)
    client.send(4)
    assert str(client.error()) == "nobody can be told"
    assert server.error() is None
    assert server.received == [1, 2]


def test_what_replaces_a_message_must_fit_itself(wire: Wire) -> None:
    client, server = wire.pair(max_frame_bytes=10_000)
    client.instead = lambda message: message[1:]
    client.send(1, b"x" * 20_000, 2)
    assert "what should replace a bytes is too large" in str(client.error())
    wire.serve(lambda: server.closed)
    assert server.received == [1]


def test_a_peer_that_sends_more_than_the_limit_is_refused_by_name(wire: Wire) -> None:
    ours, theirs = wire.socketpair()
    client, server = (
        wire.client(ours, max_frame_bytes=100_000),
        wire.server(theirs, max_frame_bytes=10_000),
    )
    client.send(b"x" * 20_000)
    error = server.error()
    assert isinstance(error, ProtocolError)
    assert "max_frame_bytes" in str(error)
    assert client.error() is None


@settings(max_examples=30)
@given(
    sizes=st.lists(st.lists(st.integers(0, 9000), max_size=5), max_size=12),
    send_buffer=st.sampled_from([0, 4096]),
    limit=st.sampled_from([10_000, 100_000]),
)
def test_any_batches_arrive_whole_and_in_order(
    sizes: list[list[int]], send_buffer: int, limit: int
) -> None:
    with contextlib.closing(Wire()) as wire:
        client, server = wire.pair(send_buffer, max_frame_bytes=limit)
        sent: list[bytes] = []
        for numbers in sizes:
            batch = [bytes([len(sent) % 256]) * number for number in numbers]
            sent += batch
            client.send(*batch)
            if len(sent) % 3 == 0:
                wire.reactor.pump()
        wire.serve(lambda: len(server.received) == len(sent))
        assert server.received == sent


# --- ends ----------------------------------------------------------------------------------------------------------------


def test_an_end_between_frames_is_no_error(wire: Wire) -> None:
    client, server = wire.pair()
    client.send(1)
    wire.serve(lambda: server.received)
    with wire.reactor.lock:
        client.connection.close()
        client.connection.close()
    assert server.error() is None
    assert client.closed == []


def test_what_was_sent_before_the_end_arrives(wire: Wire) -> None:
    client, server = wire.pair()
    client.send(1)
    wire.serve(lambda: server.received)
    client.send(2)
    with wire.reactor.lock:
        client.connection.close()
    assert server.error() is None
    assert server.received == [1, 2]


@pytest.mark.parametrize("bytes_of_it", [1, 4, 7])
def test_an_end_in_the_middle_of_a_frame_is_an_error(wire: Wire, bytes_of_it: int) -> None:
    ours, theirs = wire.socketpair()
    server = wire.server(theirs)
    ours.sendall(greet(wire, ours) + frame(1) + frame(b"twenty-two")[:bytes_of_it])
    ours.close()
    error = server.error()
    assert isinstance(error, ProtocolError)
    assert f"in the middle of a frame ({bytes_of_it} bytes of it came)" in str(error)
    assert server.received == [1]


def test_an_end_in_the_middle_of_the_greeting_is_an_error(wire: Wire) -> None:
    ours, theirs = wire.socketpair()
    server = wire.server(theirs)
    ours.sendall(ClientHandshake(TOKEN).outbox[0][:9])
    ours.close()
    assert "9 bytes of it came" in str(server.error())


def test_a_peer_that_goes_without_reading_is_no_error(wire: Wire) -> None:
    client, server = wire.pair(send_buffer=4096)
    client.send(1)
    wire.serve(lambda: server.received)
    client.send(b"x" * 100_000)
    with wire.reactor.lock:
        server.connection.close()
    assert client.error() is None
    # Whoever still sends is not bothered.
    client.send(2)
    assert client.closed == [None]


def test_a_defect_in_a_handler_ends_the_connection_and_bothers_nobody_else(
    wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    client, server = wire.pair()

    def fail() -> None:
        raise ValueError("a defect")

    server.on_batch = fail
    client.send(1)
    # Whoever leads here waits for something else.
    error = server.error()
    assert isinstance(error, InternalError)
    assert "a defect" in str(error)
    assert "/run/client.sock" in caplog.text
    assert client.error() is None


def test_an_interrupt_in_a_handler_is_for_who_leads(wire: Wire) -> None:
    client, server = wire.pair()

    def interrupt() -> None:
        raise KeyboardInterrupt

    server.on_batch = interrupt
    client.send(1)
    with pytest.raises(KeyboardInterrupt):
        wire.serve(lambda: False)
    assert not server.connection.closed


def test_frames_behind_the_one_at_which_the_handler_closed_are_not_handed_out(wire: Wire) -> None:
    ours, theirs = wire.socketpair()
    server = wire.server(theirs)

    def close() -> None:
        with wire.reactor.lock:
            server.connection.close()

    server.on_batch = close
    ours.sendall(greet(wire, ours) + frame(1) + frame(2))
    wire.serve(lambda: server.received)
    wire.reactor.pump()
    assert server.received == [1]
    assert server.closed == []


def test_an_event_for_a_closed_connection_leaves_its_successor_alone(wire: Wire) -> None:
    first, reader = wire.pair(send_buffer=4096)
    first.send(0)
    wire.serve(lambda: reader.received)
    first.send(b"x" * 100_000)
    with wire.reactor.lock:
        first.connection.close()
    second, reader = wire.pair(send_buffer=4096)
    ends = {end.connection.fd: end for end in (second, reader)}
    successor = ends[first.connection.fd]
    other = reader if successor is second else second
    successor.send(0)
    wire.serve(lambda: other.received)
    successor.send(b"y" * 100_000)
    # The leader had this event in its hands when the connection was closed under it.
    first.connection.on_ready(select.EPOLLOUT)
    wire.serve(lambda: len(other.received) == 2)
    assert other.received == [0, b"y" * 100_000]


# --- rubbish and strangers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rubbish", "match"),
    [
        (encode_frame(b""), "does not fit its schema"),
        (encode_frame(b"\xc1"), "does not fit its schema"),
        (frame("text where a number belongs"), "does not fit its schema"),
        (encode_frame(msgspec.msgpack.encode(1)), "does not fit its schema"),
        (encode_frame(b"\x91" * 100_000), "does not fit its schema"),
        (struct.pack("<I", 0xFFFFFFFF), "max_frame_bytes"),
        (b"GET / HTTP/1.1\r\n\r\n", "max_frame_bytes"),
    ],
    ids=range(7),
)
def test_rubbish_ends_the_connection_by_name_and_harms_nobody_else(
    wire: Wire, rubbish: bytes, match: str
) -> None:
    client, server = wire.pair()
    ours, theirs = wire.socketpair()
    victim = wire.server(theirs)
    ours.sendall(greet(wire, ours) + frame(1))
    wire.serve(lambda: victim.received)
    ours.sendall(rubbish)
    error = victim.error()
    assert isinstance(error, ProtocolError)
    assert match in str(error)
    assert victim.received == [1]
    assert ours.recv(1) == b""
    client.send(2)
    wire.serve(lambda: server.received)
    assert server.closed == []


def test_nothing_is_decoded_for_a_peer_that_has_not_proved_the_token(wire: Wire) -> None:
    class Decoder:
        @staticmethod
        def decode(_payload: bytes) -> list[Any]:
            raise AssertionError("decoded for a stranger")

    ours, theirs = wire.socketpair()
    server = wire.server(theirs, messages=Decoder)
    greet(wire, ours)
    wrong = encode_frame(msgspec.msgpack.encode(Proof(b"p" * 32)))
    ours.sendall(wrong + frame(1) + frame(2))
    assert isinstance(server.error(), AuthenticationError)
    refused = msgspec.msgpack.decode(read_frame(ours), type=Refused)
    assert "wrong token" in refused.reason


@pytest.mark.parametrize(
    ("garbage", "kind"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", ProtocolError),
        (b"\0" * 100, AuthenticationError),
        (encode_frame(b"\x91" * 4000), AuthenticationError),
        (os.urandom(100_000), ProtocolError),
    ],
    ids=["http", "zeros", "deep", "noise"],
)
def test_garbage_from_a_stranger_is_refused(wire: Wire, garbage: bytes, kind: type) -> None:
    ours, theirs = wire.socketpair()
    server = wire.server(theirs)
    ours.sendall(garbage)
    assert isinstance(server.error(), kind)
    assert server.received == []


def test_different_tokens_part_both_ends(wire: Wire) -> None:
    ours, theirs = wire.socketpair()
    client, server = wire.client(ours, token=OTHER), wire.server(theirs)
    client.send(1)
    server.send(2)
    error = client.error()
    assert isinstance(error, AuthenticationError)
    assert "does not hold this session's token" in str(error)
    assert server.error() is None
    assert client.received == server.received == []


def test_a_refusal_that_comes_where_data_is_expected_is_reported_as_one(wire: Wire) -> None:
    ours, theirs = wire.socketpair()
    client, server = wire.client(ours), ServerHandshake(TOKEN)
    server.receive(read_frame(theirs))
    theirs.sendall(server.outbox[0])
    wire.reactor.pump()
    assert server.receive(read_frame(theirs))
    theirs.sendall(encode_frame(msgspec.msgpack.encode(Refused("too many guests"))))
    error = client.error()
    assert isinstance(error, AuthenticationError)
    assert str(error) == "refused: too many guests"


def test_the_error_of_a_peer_may_outlive_the_reactor() -> None:
    # Its traceback holds views of the buffer that everything was received into.
    with contextlib.closing(Wire()) as wire:
        ours, theirs = wire.socketpair()
        server = wire.server(theirs)
        ours.sendall(b"\0" * 100)
        error = server.error()
    assert error is not None
