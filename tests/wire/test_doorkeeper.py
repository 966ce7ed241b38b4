"""The door of a node, and connections made through it: to the daemon itself, for bytes of objects, and to a process of the node."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shoal.messages.peer import PeerMessage, Resume
from shoal.node.doorkeeper import Doorkeeper
from shoal.wire.aio import PeerConnection, adopt, dial
from shoal.wire.door import BULK, Doorstep, encode_preface
from shoal.wire.handshake import ClientHandshake, ServerHandshake, new_token
from tests.wire.doors import keep_in
from tests.wire.reactors import PATIENCE_S, Bench

TOKEN = new_token()
DECODER = msgspec.msgpack.Decoder(list[PeerMessage])
OWN = "n-00000001"


class Recorder:
    """The handler of both ends."""

    def __init__(self) -> None:
        self.trusted: list[PeerConnection] = []
        self.heard: list[Any] = []
        self.ended: list[Exception | None] = []
        self.bulk: list[socket.socket] = []

    def on_trusted(self, connection: PeerConnection) -> None:
        self.trusted.append(connection)

    def on_messages(self, _connection: PeerConnection, messages: list[Any]) -> None:
        self.heard += messages

    def on_closed(self, _connection: PeerConnection, error: Exception | None) -> None:
        self.ended.append(error)


class House:
    """A door with its keeper, in this process's loop."""

    def __init__(self, folder: Path, most: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.folder = folder
        self.inside, self.outside = Recorder(), Recorder()
        door = socket.create_server(("127.0.0.1", 0))
        self.port = int(door.getsockname()[1])
        self.keeper = Doorkeeper(
            self.loop, door, str(folder), OWN, self.accept, keep_in(self.inside.bulk), most
        )

    def accept(self, sock: socket.socket) -> asyncio.Future[None]:
        connection = PeerConnection(
            self.loop, ServerHandshake(TOKEN), DECODER, self.inside, 1 << 20
        )
        self.adopting = self.loop.create_task(adopt(self.loop, sock, connection))
        return connection.settled

    async def dial(self, name: str, token: bytes = TOKEN) -> PeerConnection:
        def make(preface: bytes) -> PeerConnection:
            handshake = ClientHandshake(token, "elsewhere/n-00000002")
            return PeerConnection(
                self.loop, handshake, DECODER, self.outside, 1 << 20, preface=preface
            )

        return await dial(self.loop, "127.0.0.1", self.port, name, make)

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():  # noqa: ASYNC110 - what it waits for happens in other threads, too
                await asyncio.sleep(0.001)


@asynccontextmanager
async def house(folder: Path, most: int = 100) -> AsyncIterator[House]:
    it = House(folder, most)
    try:
        yield it
    finally:
        for connection in (*it.inside.trusted, *it.outside.trusted):
            connection.close()
        for sock in it.inside.bulk:
            sock.close()
        it.keeper.close()
        await asyncio.sleep(0)


def test_messages_reach_the_daemon_itself_and_come_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with house(tmp_path) as it:
            connection = await it.dial(OWN)
            # Before the handshake is over, too.
            connection.send(Resume())
            await it.until(lambda: it.inside.heard)
            assert it.inside.trusted[0].peer_address == "elsewhere/n-00000002"
            it.inside.trusted[0].send(Resume())
            await it.until(lambda: it.outside.heard)

    asyncio.run(scenario())


def test_the_wrong_token_is_refused_and_both_sides_know_why(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with house(tmp_path) as it:
            await it.dial(OWN, b"x" * 32)
            await it.until(lambda: it.inside.ended and it.outside.ended)
            assert it.inside.trusted == it.outside.trusted == []
            assert "token" in str(it.outside.ended[0])

    asyncio.run(scenario())


def test_bulk_connections_are_handed_over_as_they_are(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with house(tmp_path) as it:
            with socket.create_connection(("127.0.0.1", it.port)) as sock:
                sock.sendall(encode_preface(BULK) + b"bytes")
                await it.until(lambda: it.inside.bulk)
                assert await it.loop.sock_recv(it.inside.bulk[0], 100) == b"bytes"

    asyncio.run(scenario())


def test_what_is_for_another_process_is_passed_on_unread(tmp_path: Path, served: Bench) -> None:
    taken: list[socket.socket] = []
    doorstep = Doorstep(served.reactor, str(tmp_path / "w-0000000a.door"))
    doorstep.start(lambda sock, _settled: taken.append(sock), 100)

    async def scenario() -> None:
        async with house(tmp_path) as it:
            with socket.create_connection(("127.0.0.1", it.port)) as sock:
                sock.sendall(encode_preface("w-0000000a") + b"for the worker alone")
                await it.until(lambda: taken)
                with taken[0]:
                    assert taken[0].recv(100) == b"for the worker alone"
                    taken[0].sendall(b"answer")
                    assert await asyncio.to_thread(sock.recv, 100) == b"answer"

    try:
        asyncio.run(scenario())
    finally:
        doorstep.close()


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        (b"GET / HTTP/1.1\r\n", "not shoal's greeting"),
        (b"half a pre", "not shoal's greeting"),
        (encode_preface("../lock"), "nobody of this node is called"),
        (encode_preface("w-0000000b"), ""),
    ],
    ids=["http", "half", "path", "nobody"],
)
def test_strangers_lose_their_connection_and_harm_nobody(
    said: bytes, complaint: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with house(tmp_path) as it:
            with socket.create_connection(("127.0.0.1", it.port)) as sock:
                sock.settimeout(PATIENCE_S)
                sock.sendall(said)
                sock.shutdown(socket.SHUT_WR)
                assert await asyncio.to_thread(sock.recv, 100) == b""
            await it.dial(OWN)
            await it.until(lambda: it.inside.trusted)

    asyncio.run(scenario())
    assert complaint in caplog.text


def test_who_says_nothing_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("shoal.wire.doorway.PREFACE_TIMEOUT_S", 0.05)

    async def scenario() -> None:
        async with house(tmp_path) as it:
            with socket.create_connection(("127.0.0.1", it.port)) as sock:
                sock.settimeout(PATIENCE_S)
                assert await asyncio.to_thread(sock.recv, 100) == b""

    asyncio.run(scenario())
    assert "did not say for whom it comes" in caplog.text


def test_who_was_shown_in_counts_until_it_has_proved_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strangers that say the preface, and nothing more, for the daemon and for bytes of objects: they take turns, and each has to go."""
    monkeypatch.setattr("shoal.wire.aio.HANDSHAKE_TIMEOUT_S", 0.02)
    within = most = shown = 0

    async def scenario() -> None:
        async with house(tmp_path, 8) as it:
            accept = it.accept

            def accept_and_count(sock: socket.socket) -> asyncio.Future[None]:
                nonlocal within, most, shown
                settled = accept(sock)
                within, shown = within + 1, shown + 1
                most = max(most, within)
                settled.add_done_callback(leave)
                return settled

            def leave(_settled: asyncio.Future[None]) -> None:
                nonlocal within
                within -= 1

            it.keeper._accept_own = accept_and_count
            strangers = [socket.create_connection(("127.0.0.1", it.port)) for _ in range(100)]
            for sock in strangers:
                sock.sendall(encode_preface(OWN))
            await it.until(lambda: shown == 100 and not within)
            # It waited for its turn behind them, and is let in; who is trusted does not count.
            monkeypatch.setattr("shoal.wire.aio.HANDSHAKE_TIMEOUT_S", PATIENCE_S)
            for count in range(1, 21):
                await it.dial(OWN)
                await it.until(lambda count=count: len(it.inside.trusted) == count)
            for sock in strangers:
                sock.close()

    asyncio.run(scenario())
    assert most == 8
