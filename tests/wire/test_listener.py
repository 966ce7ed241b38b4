"""Listening: from the first moment, for this user only, and in spite of a lack of descriptors."""

from __future__ import annotations

import errno
import os
import resource
import select
import socket
import stat
from typing import TYPE_CHECKING

from shoal.wire.connection import Listener
from shoal.wire.reactor import Waiter
from tests.wire.wires import End, Wire

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_a_listener_answers_from_the_start_and_hands_out_when_it_is_started(
    wire: Wire, tmp_path: Path
) -> None:
    path = str(tmp_path / "s.sock")
    listener = Listener(wire.reactor, path)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    clients = []
    for _ in range(3):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(path)
        wire.sockets.append(sock)
        clients.append(wire.client(sock))
    servers: list[End] = []

    def accept(sock: socket.socket) -> None:
        wire.sockets.append(sock)
        servers.append(wire.server(sock))

    listener.start(accept)
    for client in clients:
        client.send(1)
    wire.serve(lambda: len(servers) == 3 and all(server.received for server in servers))
    with wire.reactor.lock:
        listener.close()
    assert not os.path.exists(path)


def test_a_listener_out_of_descriptors_pauses_says_so_once_and_goes_on(
    wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("shoal.wire.connection._ACCEPT_AGAIN_S", 0.001)
    listener = Listener(wire.reactor, str(tmp_path / "s.sock"))
    accepted: list[socket.socket] = []
    listener.start(accepted.append)
    wire.sockets.append(client := socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    client.connect(listener.path)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        wire.reactor.pump()
        # Nothing is to be polled, although somebody waits: it does not spin.
        poll = select.poll()
        poll.register(wire.reactor.fileno(), select.POLLIN)
        assert not poll.poll(0)
        for _ in range(3):
            wire.reactor.wait(Waiter(), 0.01)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not accepted
    assert caplog.text.count("can accept no connections") == 1
    while not accepted:
        wire.reactor.wait(Waiter(), 0.01)
    wire.sockets += accepted
    with wire.reactor.lock:
        listener.close()


def test_a_listener_may_be_closed_while_it_pauses(wire: Wire, tmp_path: Path) -> None:
    listener = Listener(wire.reactor, str(tmp_path / "s.sock"))
    listener.start(lambda _sock: None)
    listener._pause(OSError(errno.EMFILE, "Too many open files"))
    with wire.reactor.lock:
        listener.close()
    listener._resume()
    assert not wire.reactor.wait(Waiter(), 0)
