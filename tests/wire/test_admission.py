"""Who comes for bytes of objects has to prove the token before a thread is spent, within a time for all of it, and is told what is
wrong."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from shoal.errors import AuthenticationError
from shoal.messages.transfer import Noted
from shoal.node.transfer import admission
from shoal.node.transfer.links import Link
from shoal.wire.handshake import new_token
from tests.certificates import make_certificates
from tests.wire.reactors import PATIENCE_S

TOKEN = new_token()


def admitted(
    visit: Callable[[socket.socket], object],
    token: bytes = TOKEN,
    context: ssl.SSLContext | None = None,
) -> tuple[socket.socket | None, object]:
    """What becomes of a connection of which the other end does `visit` in a thread; and what that says."""

    async def scenario() -> tuple[socket.socket | None, object]:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        visiting = asyncio.ensure_future(asyncio.to_thread(visit, theirs))
        sock = await admission.admit(loop, ours, token, context)
        return sock, await visiting

    return asyncio.run(scenario())


def proves(sock: socket.socket) -> socket.socket:
    # And goes on at once, as one who is sure of it may.
    Link(sock, PATIENCE_S).prove(TOKEN, "")
    Link(sock, PATIENCE_S).send(Noted())
    return sock


def hear_and_close(sock: socket.socket | None, theirs: object) -> None:
    """What was said behind the proof is there to be read."""
    assert sock is not None
    assert isinstance(theirs, socket.socket)
    with sock, theirs:
        assert isinstance(Link(sock, PATIENCE_S).receive(), Noted)


def test_who_proves_the_token_is_let_in_and_nothing_is_read_beyond() -> None:
    hear_and_close(*admitted(proves))


def test_in_tls_too(tmp_path: Path) -> None:
    tls = make_certificates(tmp_path).tls()

    def visit(sock: socket.socket) -> socket.socket:
        return proves(tls.client.wrap_socket(sock))

    hear_and_close(*admitted(visit, context=tls.server))


def test_another_token_is_none(caplog: pytest.LogCaptureFixture) -> None:
    def visit(sock: socket.socket) -> str:
        with sock, pytest.raises(AuthenticationError) as caught:
            Link(sock, PATIENCE_S).prove(TOKEN, "")
        return str(caught.value)

    sock, told = admitted(visit, new_token())
    assert sock is None
    assert "does not hold this session's token" in str(told)
    assert "refused a bulk connection: it hung up before it had proved" in caplog.text


def test_who_says_one_byte_at_a_time_has_no_more_time_than_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(admission, "_PATIENCE_S", 0.1)
    said = 0

    def visit(sock: socket.socket) -> None:
        nonlocal said
        with sock:
            sock.settimeout(0.01)
            sock.sendall(b"\x00\x0f\0\0")
            while True:
                try:
                    sock.sendall(b"x")
                    said += 1
                    if not sock.recv(1):
                        return
                except TimeoutError:
                    continue
                except OSError:
                    return

    sock, _ = admitted(visit)
    assert sock is None
    assert said > 1
    assert "no proof of the token within 0.1 s" in caplog.text
