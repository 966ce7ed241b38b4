"""From a door to a process: prefaces, and sockets that are passed on."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shoal.errors import ProtocolError
from shoal.wire.door import (
    BULK,
    CONTROL,
    PREFACE_BYTES,
    Doorstep,
    decode_preface,
    encode_preface,
    pass_on,
)
from tests.wire.reactors import Bench, until

MANY = 1_000_000


@pytest.mark.parametrize("name", ["w-1a2b3c4d", CONTROL, BULK])
def test_a_preface_says_for_whom_a_connection_is(name: str) -> None:
    data = encode_preface(name)
    assert len(data) == PREFACE_BYTES
    assert decode_preface(data) == name


def test_a_name_that_does_not_fit_is_a_defect() -> None:
    with pytest.raises(ValueError, match="too long"):
        encode_preface("w-1a2b3c4d5")


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"GET / HTTP/1.1\r\n", "which is not shoal's greeting"),
        (b"\x16\x03\x01" + bytes(13), "begins with TLS"),
        (b"shoal\x02" + bytes(10), "version 02, this process speaks 01; install the same version"),
        (b"shoal", "version none"),
        (b"", "not shoal's greeting"),
        (b"shoal\x01\xff" + bytes(9), "not shoal's greeting"),
    ],
)
def test_what_is_no_preface_is_refused_by_name(data: bytes, complaint: str) -> None:
    with pytest.raises(ProtocolError, match=complaint):
        decode_preface(data)


@pytest.fixture
def passing() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        yield sock


def test_a_socket_that_is_passed_on_arrives_whole(
    served: Bench, passing: socket.socket, tmp_path: Path
) -> None:
    path = str(tmp_path / "p.door")
    doorstep = Doorstep(served.reactor, path)
    taken: list[socket.socket] = []
    ours, theirs = socket.socketpair()
    try:
        assert os.stat(path).st_mode & 0o777 == 0o600
        ours.sendall(b"said before it was passed on")
        # Also before anybody looks.
        pass_on(passing, theirs, path)
        doorstep.start(lambda sock, _settled: taken.append(sock), MANY)
        theirs.close()
        until(lambda: taken)
        assert taken[0].recv(100) == b"said before it was passed on"
        taken[0].sendall(b"answer")
        assert ours.recv(100) == b"answer"
    finally:
        for sock in (ours, theirs, *taken):
            sock.close()
        doorstep.close()
    assert not os.path.exists(path)


def test_a_doorstep_that_is_full_says_so_and_nothing_is_lost(
    served: Bench, passing: socket.socket, tmp_path: Path
) -> None:
    path = str(tmp_path / "p.door")
    doorstep = Doorstep(served.reactor, path)
    taken: list[socket.socket] = []
    ours, theirs = socket.socketpair()
    passed = 0
    try:
        while passed < 100_000:
            try:
                pass_on(passing, theirs, path)
            except BlockingIOError:
                break
            passed += 1
        assert 0 < passed < 100_000
        doorstep.start(lambda sock, _settled: taken.append(sock), MANY)
        until(lambda: len(taken) == passed)
        pass_on(passing, theirs, path)
        until(lambda: len(taken) == passed + 1)
    finally:
        for sock in (ours, theirs, *taken):
            sock.close()
        doorstep.close()


def test_a_doorstep_takes_no_more_strangers_than_it_may(
    served: Bench, passing: socket.socket, tmp_path: Path
) -> None:
    path = str(tmp_path / "p.door")
    doorstep = Doorstep(served.reactor, path)
    taken: list[tuple[socket.socket, Callable[[], None]]] = []
    ours, theirs = socket.socketpair()
    passed = 0
    try:
        doorstep.start(lambda sock, settled: taken.append((sock, settled)), 4)
        # Until nobody has room for more: the process, and then the kernel.
        while passed < 100_000:
            try:
                pass_on(passing, theirs, path)
            except BlockingIOError:
                if len(taken) == 4:
                    break
                time.sleep(0.001)
            else:
                passed += 1
        assert 4 < passed < 100_000
        for count in range(4, passed):
            until(lambda count=count: len(taken) == count)
            with served.reactor.lock:
                taken[count - 4][1]()
        until(lambda: len(taken) == passed)
    finally:
        for sock in (ours, theirs, *(sock for sock, _ in taken)):
            sock.close()
        doorstep.close()


def test_nobody_can_be_passed_to_who_is_not_there(passing: socket.socket, tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(FileNotFoundError):
        pass_on(passing, theirs, str(tmp_path / "nobody.door"))
