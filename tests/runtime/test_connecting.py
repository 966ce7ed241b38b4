"""Connecting to a process that is too busy to accept, or without descriptors: nobody waits under the lock, and nothing is lost."""

from __future__ import annotations

import contextlib
import socket
import time
from _thread import allocate_lock
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shoal.config import Config
from shoal.messages.peer import Resume
from shoal.runtime.node_link import NodeLink
from shoal.runtime.peers import Peers
from shoal.wire.addresses import LOCAL, make_address
from shoal.wire.connection import Connection, Listener
from shoal.wire.handshake import TOKEN_BYTES
from shoal.wire.reactor import Reactor, Waiter
from tests.shortage import no_descriptors

TOKEN = b"t" * TOKEN_BYTES


class End:
    """One process's connections: a registry, and what its handler heard."""

    def __init__(self, name: str, folder: Path) -> None:
        self.reactor = Reactor(allocate_lock(), watch_us=2_000)
        self.peers = Peers(
            self.reactor,
            NodeLink(self.reactor),
            TOKEN,
            make_address(LOCAL, name),
            str(folder),
            self,
            Config(max_frame_bytes=1 << 20),
        )
        self.heard: list[Any] = []
        self.closed: list[Exception | None] = []

    def on_messages(self, _connection: Connection, messages: list[Any]) -> None:
        self.heard += messages

    def on_closed(self, _connection: Connection, error: Exception | None) -> None:
        self.closed.append(error)

    def on_unsent(self, _connection: Connection, message: Any, reason: str) -> None:
        raise AssertionError(f"{message} {reason}")

    def close(self) -> None:
        with self.reactor.lock:
            self.peers.close()
        self.reactor.close()


class Busy:
    """A process that listens, and whose backlog is full."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.bind(path)
        self.sock.listen(0)
        self.sock.settimeout(20)
        self.before: list[socket.socket] = []
        with contextlib.suppress(BlockingIOError):
            while True:
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                self.before.append(sock)
                sock.setblocking(False)
                sock.connect(path)

    def close(self) -> None:
        for sock in (self.sock, *self.before):
            sock.close()


@pytest.fixture
def open_it() -> Iterator[Callable[[Any], Any]]:
    with contextlib.ExitStack() as stack:
        yield lambda thing: stack.enter_context(contextlib.closing(thing))


def test_a_full_backlog_is_asked_again_and_what_was_sent_arrives(
    open_it: Callable[[Any], Any], tmp_path: Path
) -> None:
    busy = open_it(Busy(str(tmp_path / "busy.sock")))
    client, server = open_it(End("client", tmp_path)), open_it(End("server", tmp_path))
    start = time.monotonic()
    with client.reactor.lock:
        connection = client.peers.connect("local/busy")
        connection.send(Resume())
        # The same for everybody who wants to speak with it meanwhile.
        assert client.peers.connect("local/busy") is connection
    assert time.monotonic() - start < 5
    client.reactor.wait(Waiter(), 0.05)
    assert client.closed == []
    for _ in range(len(busy.before) - 1):
        busy.sock.accept()[0].close()
    while not server.heard:
        client.reactor.wait(Waiter(), 0.01)
        if not server.peers._connections:
            busy.sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                server.peers.accept(busy.sock.accept()[0])
        server.reactor.wait(Waiter(), 0.01)
    assert server.heard == [Resume()]
    assert client.closed == []


def test_one_that_never_accepts_cannot_be_reached(
    open_it: Callable[[Any], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.runtime.peers._CONNECT_TIMEOUT_S", 0.05)
    open_it(Busy(str(tmp_path / "busy.sock")))
    client = open_it(End("client", tmp_path))
    with client.reactor.lock:
        connection = client.peers.connect("local/busy")
    while not client.closed:
        client.reactor.wait(Waiter(), 0.01)
    assert connection.closed
    assert "accepted nobody" in str(client.closed[0])


def test_one_that_ends_meanwhile_cannot_be_reached(
    open_it: Callable[[Any], Any], tmp_path: Path
) -> None:
    busy = open_it(Busy(str(tmp_path / "busy.sock")))
    client = open_it(End("client", tmp_path))
    with client.reactor.lock:
        client.peers.connect("local/busy")
    busy.sock.close()
    while not client.closed:
        client.reactor.wait(Waiter(), 0.01)
    assert isinstance(client.closed[0], ConnectionError)


@pytest.mark.parametrize("dead", [False, True])
def test_who_has_been_declared_dead_is_not_admitted(
    open_it: Callable[[Any], Any], tmp_path: Path, dead: bool
) -> None:
    client, server = open_it(End("client", tmp_path)), open_it(End("server", tmp_path))
    address = make_address(LOCAL, "client")
    if dead:
        server.peers.gone[address] = "was on a node that was cut off"
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as listener:
        listener.bind(str(tmp_path / "server.sock"))
        listener.listen()
        with client.reactor.lock:
            client.peers.connect("local/server").send(Resume())
        server.peers.accept(listener.accept()[0])
    (connection,) = server.peers._connections
    while not server.heard:
        client.reactor.wait(Waiter(), 0.01)
        server.reactor.wait(Waiter(), 0.01)
    with server.reactor.lock:
        assert server.peers.admit(connection) is not dead
    assert connection.closed is dead
    assert (server.peers.connection_to(address) is None) is dead
    while dead and not client.closed:
        client.reactor.wait(Waiter(), 0.01)


def test_nobody_there_is_an_error_at_once(open_it: Callable[[Any], Any], tmp_path: Path) -> None:
    client = open_it(End("client", tmp_path))
    with client.reactor.lock, pytest.raises(ConnectionError, match="cannot connect"):
        client.peers.connect("local/nobody")
    assert client.peers.connection_to("local/nobody") is None


def test_a_connection_may_be_closed_before_it_is_made(
    open_it: Callable[[Any], Any], tmp_path: Path
) -> None:
    open_it(Busy(str(tmp_path / "busy.sock")))
    client = open_it(End("client", tmp_path))
    with client.reactor.lock:
        client.peers.connect("local/busy")
        client.peers.close()
    client.reactor.wait(Waiter(), 0.1)
    assert client.closed == []


def test_without_descriptors_what_is_sent_waits_for_them(
    open_it: Callable[[Any], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # It is not the other side that lets us wait.
    monkeypatch.setattr("shoal.runtime.peers._CONNECT_TIMEOUT_S", 0.05)
    client, server = open_it(End("client", tmp_path)), open_it(End("server", tmp_path))
    listener = open_it(Listener(server.reactor, str(tmp_path / "server.sock")))
    listener.start(server.peers.accept)
    with no_descriptors():
        with client.reactor.lock:
            connection = client.peers.connect("local/server")
            connection.send(Resume())
            assert client.peers.connect("local/server") is connection
            client.peers.connect("local/other").close()
        client.reactor.wait(Waiter(), 0.5)
        assert client.closed == []
    while not server.heard:
        client.reactor.wait(Waiter(), 0.01)
        server.reactor.wait(Waiter(), 0.01)
    assert server.heard == [Resume()]
    assert client.closed == []
    (record,) = caplog.records
    assert "can make no connections at the moment" in record.getMessage()


def test_that_nobody_is_there_may_be_found_out_later(
    open_it: Callable[[Any], Any], tmp_path: Path
) -> None:
    client = open_it(End("client", tmp_path))
    with no_descriptors(), client.reactor.lock:
        client.peers.connect("local/nobody")
    while not client.closed:
        client.reactor.wait(Waiter(), 0.01)
    assert "cannot connect" in str(client.closed[0])
