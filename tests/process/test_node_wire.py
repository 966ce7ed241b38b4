"""The asyncio transport of the daemons, in this process: batches, bounds, and the reasons for which connections end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import msgspec

from shoal.errors import AuthenticationError, ProtocolError
from shoal.messages.node import LeaseCancel, LeaseWanted, ToNode
from shoal.wire import aio
from shoal.wire.aio import PeerConnection
from shoal.wire.framing import FrameDecoder, cut_frame, encode_frame
from shoal.wire.handshake import HANDSHAKE_BYTES, ClientHandshake, ServerHandshake, new_token

if TYPE_CHECKING:
    import pytest

TOKEN = new_token()
DECODER = msgspec.msgpack.Decoder(list[ToNode])


class Recorder:
    """A handler that remembers."""

    def __init__(self) -> None:
        self.trusted = 0
        self.batches: list[list[Any]] = []
        self.closed: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.refuse: Exception | None = None

    def on_trusted(self, _: PeerConnection) -> None:
        self.trusted += 1

    def on_messages(self, _: PeerConnection, messages: list[Any]) -> None:
        if self.refuse is not None:
            raise self.refuse
        self.batches.append(messages)

    def on_closed(self, _: PeerConnection, error: Exception | None) -> None:
        self.closed.set_result(error)


class Peer:
    """The client's end, without any shoal machinery but the handshake."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.loop = asyncio.get_running_loop()
        self.data = bytearray()

    async def send(self, data: bytes) -> None:
        await self.loop.sock_sendall(self.sock, data)

    async def shake_hands(self, token: bytes = TOKEN, then: bytes = b"") -> None:
        handshake = ClientHandshake(token, "d-1.sock")
        await self.send(b"".join(handshake.outbox))
        handshake.outbox.clear()
        handshake.receive(await self.frame())
        await self.send(b"".join(handshake.outbox) + then)

    async def frame(self) -> bytes:
        while (payload := cut_frame(self.data, HANDSHAKE_BYTES)) is None:
            data = await self.loop.sock_recv(self.sock, 1 << 16)
            if not data:
                raise ConnectionError("closed")
            self.data += data
        return payload


def run(
    scenario: Callable[[PeerConnection, Recorder, Peer], Coroutine[Any, Any, None]],
    **options: Any,
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        recorder = Recorder()
        limits = {"max_frame_bytes": 1 << 20} | options
        with theirs:
            _, connection = await loop.create_connection(
                lambda: PeerConnection(loop, ServerHandshake(TOKEN), DECODER, recorder, **limits),
                sock=ours,
            )
            await asyncio.wait_for(scenario(connection, recorder, Peer(theirs)), 5)
            connection.close()
            await asyncio.wait_for(recorder.closed, 5)

    asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - what is waited for has no event, and comes within a few turns
        await asyncio.sleep(0)


async def ended(recorder: Recorder) -> Exception | None:
    return await asyncio.shield(recorder.closed)


def test_what_is_sent_in_one_turn_leaves_as_one_frame() -> None:
    async def scenario(connection: PeerConnection, _: Recorder, peer: Peer) -> None:
        await peer.shake_hands()
        await until(lambda: connection.trusted)
        for lease_id in range(3):
            connection.send(LeaseWanted(lease_id))
        assert len(msgspec.msgpack.decode(await peer.frame())) == 3
        connection.send(LeaseWanted(3))
        assert len(msgspec.msgpack.decode(await peer.frame())) == 1

    run(scenario)


def test_what_cannot_be_encoded_is_left_out_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(connection: PeerConnection, _: Recorder, peer: Peer) -> None:
        await peer.shake_hands()
        await until(lambda: connection.trusted)
        for lease_id in (1, 1 << 70, 2):
            connection.send(LeaseWanted(lease_id))
        assert len(msgspec.msgpack.decode(await peer.frame())) == 2
        connection.send(LeaseWanted(3))
        assert len(msgspec.msgpack.decode(await peer.frame())) == 1

    run(scenario)
    assert "LeaseWanted" in caplog.text


def test_data_may_follow_the_proof_at_once_and_come_in_pieces() -> None:
    async def scenario(connection: PeerConnection, recorder: Recorder, peer: Peer) -> None:
        batch = encode_frame(msgspec.msgpack.encode([LeaseCancel(1), LeaseCancel(2)]))
        await peer.shake_hands(then=batch + batch[:7])
        for byte in batch[7:]:
            await peer.send(bytes([byte]))
            await asyncio.sleep(0)
        await until(lambda: len(recorder.batches) == 2)
        assert recorder.batches == [[LeaseCancel(1), LeaseCancel(2)]] * 2
        assert recorder.trusted == 1
        assert connection.peer_address == "d-1.sock"

    run(scenario)


def test_a_refusal_reaches_the_peer_before_the_end() -> None:
    async def scenario(_: PeerConnection, recorder: Recorder, peer: Peer) -> None:
        await peer.send(encode_frame(msgspec.msgpack.encode([1, "http", 1, [3, 11], b"", ""])))
        assert "greeting" in msgspec.msgpack.decode(await peer.frame())[1]
        assert isinstance(await ended(recorder), AuthenticationError)

    run(scenario)


def test_who_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aio, "HANDSHAKE_TIMEOUT_S", 0.05)

    async def scenario(_: PeerConnection, recorder: Recorder, peer: Peer) -> None:
        await peer.send(b"\x20")
        error = await ended(recorder)
        assert isinstance(error, AuthenticationError)
        assert "within 0.05 s" in str(error)

    run(scenario)


def test_who_does_not_read_loses_its_connection() -> None:
    async def scenario(connection: PeerConnection, recorder: Recorder, peer: Peer) -> None:
        await peer.shake_hands()
        await until(lambda: connection.trusted)
        for _ in range(1000):
            for _ in range(1000):
                connection.send(LeaseWanted(1))
            await asyncio.sleep(0)
            if connection.closed:
                break
        error = await ended(recorder)
        assert isinstance(error, ProtocolError)
        assert "it does not read" in str(error)
        connection.send(LeaseWanted(2))

    run(scenario, max_output_bytes=100_000)


def test_a_frame_that_breaks_off_is_told_from_an_orderly_end() -> None:
    async def scenario(_: PeerConnection, recorder: Recorder, peer: Peer) -> None:
        await peer.shake_hands(then=b"\x10\0\0\0half")
        await asyncio.sleep(0.05)
        peer.sock.shutdown(socket.SHUT_RDWR)
        assert "in the middle of a frame, after 8 bytes" in str(await ended(recorder))

    async def orderly(_: PeerConnection, recorder: Recorder, peer: Peer) -> None:
        await peer.shake_hands()
        await asyncio.sleep(0.05)
        peer.sock.shutdown(socket.SHUT_RDWR)
        assert await ended(recorder) is None

    run(scenario)
    run(orderly)


def test_a_handlers_refusal_ends_the_connection_with_its_reason() -> None:
    async def scenario(_: PeerConnection, recorder: Recorder, peer: Peer) -> None:
        recorder.refuse = ProtocolError("not now")
        await peer.shake_hands(then=encode_frame(msgspec.msgpack.encode([LeaseCancel(1)])))
        assert await ended(recorder) is recorder.refuse

    run(scenario)


def test_closing_sends_what_waits() -> None:
    async def scenario(connection: PeerConnection, recorder: Recorder, peer: Peer) -> None:
        await peer.shake_hands()
        await until(lambda: connection.trusted)
        connection.send(LeaseWanted(9))
        connection.close()
        assert await ended(recorder) is None
        frames = FrameDecoder(1 << 20)
        data = bytes(peer.data) + await peer.loop.sock_recv(peer.sock, 4096)
        (payload,) = frames.feed(data)
        assert msgspec.msgpack.decode(payload) == [[17, 9]]

    run(scenario)
