"""The TCP ports of a cluster, and what comes in from who does not belong there: each is refused, with the reason in a log, and the cluster
goes on. (The Unix sockets are in `test_security`.)"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import psutil
import pytest

import shoal
from shoal.messages.handshake import Challenge, Handshake, Hello, Proof, Refused
from shoal.node.neighbours import daemon_name
from shoal.runtime import current_process
from shoal.testing import Cluster
from shoal.wire.addresses import name_of, split_place
from shoal.wire.door import BULK, CONTROL, encode_preface
from shoal.wire.framing import cut_frame, encode_frame
from shoal.wire.handshake import HANDSHAKE_BYTES, ClientHandshake
from shoal.wire.session import log_dir
from tests.api.gates import wait_until

PATIENCE_S = 30
FOUR_GB: Final = struct.pack("<I", 0xFFFFFFFF)
HALF: Final = encode_frame(b"a message of which much is missing")[:20]


class Site:
    """A cluster with a driver, and where its processes are reached."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        node = cluster.head_node
        process = current_process.require()
        self.victims = {
            "control store": (cluster.address, CONTROL),
            "daemon": (node.place, daemon_name(bytes.fromhex(node.node_id))),
            "driver": (node.place, name_of(process.address)),
            "bytes of objects": (node.place, BULK),
        }

    def connect(self, victim: str) -> socket.socket:
        """A connection that has said the preface."""
        place, name = self.victims[victim]
        sock = self.connect_to(place)
        sock.sendall(encode_preface(name))
        return sock

    def connect_to(self, place: str) -> socket.socket:
        return socket.create_connection(split_place(place), timeout=PATIENCE_S)

    def logs(self) -> str:
        """What control store and daemon have logged."""
        control = self.cluster._control
        assert control is not None
        node = self.cluster.head_node
        paths = (
            f"{log_dir(control.folder.directory)}/control.err",
            f"{log_dir(node.session_dir)}/head.err",
        )
        return "".join(Path(path).read_text(encoding="utf-8") for path in paths)

    def goes_on(self) -> None:
        """Work is done as before, by a worker that begins now."""

        @shoal.remote
        def answer() -> int:
            return 42

        assert shoal.get(answer.remote(), timeout=PATIENCE_S) == 42
        self.cluster.wait_for_nodes()


@pytest.fixture
def site() -> Iterator[Site]:
    with Cluster(head_node_args={"num_cpus": 1}) as cluster, cluster.connect():
        yield Site(cluster)


def wait_for_the_end(sock: socket.socket) -> bytes:
    """What comes until the other side hangs up."""
    said = b""
    try:
        while data := sock.recv(4096):
            said += data
    except ConnectionResetError:
        return said
    return said


def says(data: bytes) -> Callable[[socket.socket, bytes], None]:
    def attack(sock: socket.socket, _token: bytes) -> None:
        sock.sendall(data)
        wait_for_the_end(sock)

    return attack


def says_half(sock: socket.socket, _token: bytes) -> None:
    sock.sendall(HALF)
    sock.close()


def greets(sock: socket.socket, token: bytes) -> None:
    """Prove the token, as a client does."""
    handshake = ClientHandshake(token)
    data = bytearray()
    while not handshake.done:
        sock.sendall(b"".join(handshake.outbox))
        handshake.outbox.clear()
        while (payload := cut_frame(data, HANDSHAKE_BYTES)) is None:
            data += sock.recv(1) or pytest.fail("it hung up in the handshake")
        handshake.receive(payload)
    sock.sendall(b"".join(handshake.outbox))


def greets_and_says(data: bytes) -> Callable[[socket.socket, bytes], None]:
    def attack(sock: socket.socket, token: bytes) -> None:
        greets(sock, token)
        sock.sendall(data)
        wait_for_the_end(sock)

    return attack


def greets_and_says_half(sock: socket.socket, token: bytes) -> None:
    greets(sock, token)
    sock.sendall(HALF)
    sock.close()


def is_of_another_cluster(sock: socket.socket, _token: bytes) -> None:
    """A proof that was made with another token."""
    hello = ClientHandshake(b"another token of 32 bytes at all")
    sock.sendall(b"".join(hello.outbox))
    answer = read(sock)
    assert isinstance(answer, Challenge)
    sock.sendall(encode_frame(msgspec.msgpack.encode(Proof(b"p" * 32))))
    refused = read(sock)
    assert isinstance(refused, Refused)
    assert "wrong token" in refused.reason
    wait_for_the_end(sock)


def speaks_an_older_version(sock: socket.socket, _token: bytes) -> None:
    hello = Hello("shoal", 0, (3, 11), b"n" * 16, "")
    sock.sendall(encode_frame(msgspec.msgpack.encode(hello)))
    refused = read(sock)
    assert isinstance(refused, Refused)
    assert "install the same version of shoal on both sides" in refused.reason
    wait_for_the_end(sock)


def read(sock: socket.socket) -> object:
    data = bytearray()
    while (payload := cut_frame(data, HANDSHAKE_BYTES)) is None:
        data += sock.recv(1) or pytest.fail("it hung up")
    return msgspec.msgpack.decode(payload, type=Handshake)


ATTACKS: Final[dict[str, tuple[Callable[[socket.socket, bytes], None], str]]] = {
    "garbage": (says(encode_frame(b"\xc1" * 100)), "does not speak shoal's handshake"),
    "http": (says(b"GET / HTTP/1.1\r\n\r\n"), "this is not a shoal peer"),
    "tls": (
        says(b"\x16\x03\x01\x02\x00\x01"),
        "the peer speaks TLS, which this process was started",
    ),
    "half a greeting": (says_half, "in the middle of a frame"),
    "4 GB of greeting": (says(FOUR_GB), "announces 4,294,967,295 bytes where"),
    "wrong token": (is_of_another_cluster, "wrong token"),
    "older version": (speaks_an_older_version, "the client speaks wire version 0"),
    "half a frame": (greets_and_says_half, "in the middle of a frame"),
    "4 GB": (greets_and_says(FOUR_GB), "announces 4,294,967,295 bytes, more"),
    "no batch": (greets_and_says(encode_frame(b"x")), "not fit its schema"),
}


WITH_THE_TOKEN: Final = ("half a frame", "4 GB", "no batch")


def wait_until_said(
    site: Site, caplog: pytest.LogCaptureFixture, complaint: str, before: int
) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while complaint not in caplog.text and site.logs().count(complaint) <= before:
        assert time.monotonic() < deadline, (complaint, site.logs())
        time.sleep(0.01)


@pytest.mark.parametrize("victim", ["control store", "daemon", "driver", "bytes of objects"])
def test_who_does_not_belong_here_is_refused_by_name(
    site: Site, caplog: pytest.LogCaptureFixture, victim: str
) -> None:
    for name, (deed, complaint) in ATTACKS.items():
        if victim == "bytes of objects" and name in WITH_THE_TOKEN:
            # Another conversation: see below.
            continue
        caplog.clear()
        before = site.logs().count(complaint)
        with site.connect(victim) as sock:
            deed(sock, site.cluster.token)
        wait_until_said(site, caplog, complaint, before)
    site.goes_on()


@pytest.mark.parametrize(
    ("said", "complaint"),
    [(FOUR_GB, "announces 4,294,967,295 bytes, more"), (encode_frame(b"x"), "what is no message")],
)
def test_nonsense_on_a_connection_for_objects_is_refused_by_name(
    site: Site, caplog: pytest.LogCaptureFixture, said: bytes, complaint: str
) -> None:
    with site.connect("bytes of objects") as sock:
        greets_and_says(said)(sock, site.cluster.token)
    wait_until_said(site, caplog, complaint, 0)
    site.goes_on()


def test_a_node_listens_at_its_door_and_its_processes_nowhere_else(site: Site) -> None:
    """One port for the node, one for the control store, both of loopback; the rest are sockets in folders of this user's."""
    site.goes_on()
    control, node = site.cluster._control, site.cluster.head_node
    assert control is not None
    daemon = psutil.Process(node.pid)
    listening = {
        process.pid: [
            f"{connection.laddr.ip}:{connection.laddr.port}"
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        for process in (psutil.Process(control.pid), daemon, *daemon.children(recursive=True))
    }
    assert listening.pop(control.pid) == [site.cluster.address]
    assert listening.pop(node.pid) == [node.place]
    # The zygote and the workers.
    assert len(listening) >= 2
    assert not any(listening.values())
    assert node.place.startswith("127.0.0.1:")
    assert site.cluster.address.startswith("127.0.0.1:")


def test_what_a_cluster_writes_is_for_this_user_alone(site: Site) -> None:
    site.goes_on()
    control = site.cluster._control
    assert control is not None
    modes: dict[str, int] = {}
    for folder in (control.folder.directory, site.cluster.head_node.session_dir):
        for path in [Path(folder), *Path(folder).rglob("*")]:
            with contextlib.suppress(FileNotFoundError):
                modes[str(path)] = path.lstat().st_mode
    assert {"token", "node.json", "control.json"} <= {Path(path).name for path in modes}
    assert any(path.endswith(".door") for path in modes)
    assert {
        path: oct(mode)
        for path, mode in modes.items()
        if stat.S_IMODE(mode) != (0o700 if stat.S_ISDIR(mode) else 0o600)
    } == {}


PREFACES: Final = [
    (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "is not shoal's greeting"),
    (b"\x16\x03\x01" + bytes(20), "begins with TLS"),
    (b"shoal\x00" + bytes(10), "the preface of a connection has version 00"),
    (encode_preface("w-00000000")[:9], "is not shoal's greeting"),
    (encode_preface("nobody"), "nobody"),
]


@pytest.mark.parametrize("port", ["control store", "door"])
def test_a_wrong_preface_leads_nowhere(
    site: Site, caplog: pytest.LogCaptureFixture, port: str
) -> None:
    place = site.cluster.address if port == "control store" else site.cluster.head_node.place
    for data, complaint in PREFACES:
        before = site.logs().count(complaint)
        with site.connect_to(place) as sock:
            sock.sendall(data)
            with contextlib.suppress(OSError):
                # It may have hung up already.
                sock.shutdown(socket.SHUT_WR)
            assert wait_for_the_end(sock) == b""
        wait_until_said(site, caplog, complaint, before)
    site.goes_on()


def test_who_says_nothing_holds_up_nobody(site: Site) -> None:
    silent = [site.connect_to(site.cluster.head_node.place) for _ in range(20)]
    silent += [site.connect_to(site.cluster.address) for _ in range(20)]
    silent += [site.connect(victim) for victim in site.victims]
    # A process that has ended long ago.
    sock = site.connect_to(site.cluster.head_node.place)
    sock.sendall(encode_preface("w-00000000"))
    silent.append(sock)
    site.goes_on()
    for sock in silent:
        sock.close()


MOST: Final = 16
STRANGERS: Final = 300


def open_sockets(pid: int) -> int:
    """How many sockets a process has."""
    return sum("socket:" in target for target in links(f"/proc/{pid}/fd"))


def links(folder: str) -> Iterator[str]:
    for entry in os.scandir(folder):
        with contextlib.suppress(FileNotFoundError):
            yield os.readlink(entry.path)


@pytest.mark.parametrize("victim", ["control store", "daemon", "driver", "bytes of objects"])
def test_who_never_proves_the_token_takes_a_bounded_number_of_descriptors(victim: str) -> None:
    """They were shown in by their preface, and wait."""
    with (
        Cluster(head_node_args={"num_cpus": 1}, system_config={"door_strangers": MOST}) as cluster,
        cluster.connect(),
    ):
        site = Site(cluster)
        site.goes_on()
        control, node = cluster._control, cluster.head_node
        assert control is not None
        pids = {"control store": control.pid, "driver": os.getpid()}
        pid = pids.get(victim, node.pid)
        # The driver is this process, where their other ends are.
        ours = STRANGERS if victim == "driver" else 0

        def more() -> int:
            """Descriptors that the strangers have taken."""
            return open_sockets(pid) - usual

        usual = open_sockets(pid) + ours
        with contextlib.ExitStack() as stack:
            strangers = [stack.enter_context(site.connect(victim)) for _ in range(STRANGERS)]
            # (A few others may have gone since.)
            wait_until(lambda: more() >= MOST - 4, "as many as may are let in")
            for sock in strangers:
                # Who has begun to greet is waited for, and not for ever.
                sock.sendall(HALF[:3])
            for _ in range(20):
                # Workers come and go, and the daemon's door has as many that no process has taken.
                assert more() <= MOST + 10
                time.sleep(0.01)
            assert open_sockets(node.pid) <= 2 * MOST + 40
        site.goes_on()
        cluster.add_node(num_cpus=1, resources={"other": 1})
        cluster.wait_for_nodes()

        @shoal.remote(resources={"other": 1})
        def large() -> np.ndarray:
            return np.arange(100_000)

        assert shoal.get(large.remote(), timeout=PATIENCE_S)[-1] == 99_999
