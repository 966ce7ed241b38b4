"""Ends of the daemons' connections that nobody but us can bring about: the peer does not read, or TLS was never open."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shoal.errors import ProtocolError
from shoal.messages.peer import PeerMessage, Resume
from shoal.wire import aio
from shoal.wire.aio import PeerConnection, adopt
from shoal.wire.door import CONTROL, encode_preface
from shoal.wire.doorway import Doorway
from shoal.wire.handshake import ServerHandshake, new_token
from tests.certificates import make_certificates
from tests.wire.reactors import PATIENCE_S

DECODER = msgspec.msgpack.Decoder(list[PeerMessage])


class Ends:
    """A handler that waits for the end."""

    def __init__(self) -> None:
        self.ended: list[Exception | None] = []

    def on_trusted(self, connection: PeerConnection) -> None:
        pass

    def on_messages(self, connection: PeerConnection, messages: list[Any]) -> None:
        raise AssertionError(messages)

    def on_closed(self, connection: PeerConnection, error: Exception | None) -> None:
        self.ended.append(error)

    async def end(self) -> Exception | None:
        async with asyncio.timeout(PATIENCE_S):
            while not self.ended:  # noqa: ASYNC110 - the handler of a transport has no event to wait for
                await asyncio.sleep(0.001)
        (error,) = self.ended
        return error


def make(handler: Ends) -> PeerConnection:
    loop = asyncio.get_running_loop()
    return PeerConnection(loop, ServerHandshake(new_token()), DECODER, handler, 1 << 20)


@pytest.mark.parametrize("fails", [False, True])
def test_a_peer_that_does_not_read_cannot_keep_a_connection_from_ending(
    monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    monkeypatch.setattr(aio, "CLOSE_TIMEOUT_S", 0.01)

    async def scenario() -> None:
        handler = Ends()
        ours, theirs = socket.socketpair()
        with theirs:
            connection = make(handler)
            await adopt(asyncio.get_running_loop(), ours, connection)
            connection.trusted = True
            while not connection.pending_bytes:
                for _ in range(10_000):
                    connection.send(Resume())
                await asyncio.sleep(0)
            if fails:
                connection.fail(ProtocolError("enough"))
            else:
                connection.close()
            assert str(await handler.end()) == ("enough" if fails else "None")

    asyncio.run(scenario())


def test_a_connection_of_which_tls_fails_is_reported_as_ended(tmp_path: Path) -> None:
    tls = make_certificates(tmp_path).tls()

    async def scenario() -> None:
        handler = Ends()
        ours, theirs = socket.socketpair()
        with theirs:
            theirs.sendall(b"this is not TLS")
            with pytest.raises(OSError, match="SSL"):
                await adopt(asyncio.get_running_loop(), ours, make(handler), tls.server)
            assert await handler.end() is None

    asyncio.run(scenario())


def test_an_error_of_one_connection_does_not_shut_the_door(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The kernel may say at `accept` what is wrong with the network of whoever came."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        accept = loop.sock_accept
        errors = [
            OSError(errno.EHOSTUNREACH, "No route to host"),
            OSError(errno.EPERM, "Forbidden"),
        ]

        async def sock_accept(sock: socket.socket) -> Any:
            if errors:
                raise errors.pop(0)
            return await accept(sock)

        shown = asyncio.Event()

        async def show_in(_sock: socket.socket, name: str) -> None:
            assert name == CONTROL
            shown.set()

        monkeypatch.setattr(loop, "sock_accept", sock_accept)
        door = socket.create_server(("127.0.0.1", 0))
        place = door.getsockname()
        doorway = Doorway(loop, door, show_in, logging.getLogger("shoal.test"), 100)
        with socket.create_connection(place) as client:
            client.sendall(encode_preface(CONTROL))
            async with asyncio.timeout(PATIENCE_S):
                await shown.wait()
        await asyncio.gather(*doorway.close(), return_exceptions=True)

    asyncio.run(scenario())
    assert [record.getMessage()[:27] for record in caplog.records] == 2 * [
        "cannot accept a connection:"
    ]
