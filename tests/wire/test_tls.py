"""TLS between two connections of a reactor: over real TCP sockets, led by the test's own thread."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import msgspec
import pytest

from shoal.config import Config
from shoal.errors import AuthenticationError, ProtocolError
from shoal.messages.handshake import Refused
from shoal.wire.door import PREFACE_BYTES, decode_preface, encode_preface
from shoal.wire.handshake import ClientHandshake, ServerHandshake
from shoal.wire.tls import Tls, TlsConfigError
from tests.certificates import Certificates, make_certificates
from tests.wire.wires import TOKEN, End, Wire, read_frame

NAME = "w-12345678"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Of another authority."""
    return make_certificates(tmp_path_factory.mktemp("others"), "b")


class Door:
    """A TCP port, and connections through it."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.place = f"127.0.0.1:{self.listening.getsockname()[1]}"

    def connect(self, tls: ssl.SSLContext | None) -> End:
        end = End(self.wire, None, ClientHandshake(TOKEN, "/run/client.sock"))
        with self.wire.reactor.lock:
            end.connection.connect_to_door(self.place, NAME, tls)
        return end

    def accept(self, tls: ssl.SSLContext | None, **options: Any) -> End:
        sock, _ = self.listening.accept()
        # A client with TLS waits for the reactor before it says the preface.
        sock.settimeout(0.01)
        data = b""
        while len(data) < PREFACE_BYTES:
            self.wire.reactor.pump()
            with contextlib.suppress(TimeoutError):
                data += sock.recv(PREFACE_BYTES - len(data))
        assert decode_preface(data) == NAME
        return End(self.wire, sock, ServerHandshake(TOKEN), tls=tls, **options)

    def pair(self, client: Tls | None, server: Tls | None) -> tuple[End, End]:
        ours = self.connect(client and client.client)
        return ours, self.accept(server and server.server)


@pytest.fixture
def door(wire: Wire) -> Iterator[Door]:
    door = Door(wire)
    with door.listening:
        yield door


def test_messages_go_both_ways(wire: Wire, door: Door, certificates: Certificates) -> None:
    tls = certificates.tls()
    client, server = door.pair(tls, tls)
    client.send(1, 2)
    server.send(b"three")
    wire.serve(lambda: len(server.received) == 2 and client.received)
    assert server.received == [1, 2]
    assert client.received == [b"three"]


@pytest.mark.parametrize("size", [1, 16_384, 100_000, 262_144, 3_000_000])
def test_messages_of_any_size_arrive_whole(
    wire: Wire, door: Door, certificates: Certificates, size: int
) -> None:
    tls = certificates.tls()
    client, server = door.pair(tls, tls)
    messages = [bytes([number]) * size for number in range(5)]
    for message in messages:
        client.send(message)
        server.send(message)
    wire.serve(lambda: len(server.received) == len(client.received) == 5)
    assert server.received == messages
    assert client.received == messages


def test_a_slow_reader_never_blocks_the_sender(
    wire: Wire, door: Door, certificates: Certificates
) -> None:
    tls = certificates.tls()
    client, server = door.pair(tls, tls)
    client.send(0)
    wire.serve(lambda: server.received)
    messages = [bytes([number]) * 300_000 for number in range(100)]
    for message in messages:
        client.send(message)
    wire.serve(lambda: len(server.received) == 101)
    assert server.received == [0, *messages]


def test_the_end_of_a_connection_is_an_end(
    wire: Wire, door: Door, certificates: Certificates
) -> None:
    tls = certificates.tls()
    client, server = door.pair(tls, tls)
    client.send(1)
    wire.serve(lambda: server.received)
    with wire.reactor.lock:
        client.connection.close()
    assert server.error() is None


def test_nothing_is_sent_in_clear(wire: Wire, door: Door, certificates: Certificates) -> None:
    secret = b"the treasure is under the third tree"
    with socket.create_server(("127.0.0.1", 0)) as tapped:
        seen = bytearray()
        place, door.place = door.place, f"127.0.0.1:{tapped.getsockname()[1]}"
        tls = certificates.tls()
        client = door.connect(tls.client)
        near, _ = tapped.accept()
        host, _, port = place.rpartition(":")
        far = socket.create_connection((host, int(port)))
        with near, far:
            for sock in (near, far):
                sock.setblocking(False)

            def carry() -> None:
                for source, target in ((near, far), (far, near)):
                    with contextlib.suppress(BlockingIOError):
                        data = source.recv(65536)
                        seen.extend(data)
                        target.sendall(data)

            while len(seen) < PREFACE_BYTES:
                wire.reactor.pump()
                carry()
            server = door.accept(tls.server)
            client.send(secret)
            while not server.received:
                carry()
                wire.reactor.pump()
    assert server.received == [secret]
    assert seen.startswith(encode_preface(NAME))
    assert secret not in seen
    assert b"/run/client.sock" not in seen


# --- who is not let in ---------------------------------------------------------------------------------------------------


def test_a_client_without_tls_is_told_and_so_is_the_server(
    wire: Wire, door: Door, certificates: Certificates
) -> None:
    client, server = door.pair(None, certificates.tls())
    client.send(1)
    refused = client.error()
    assert isinstance(refused, AuthenticationError)
    assert "this node speaks TLS only, and the peer came without" in str(refused)
    assert "--tls-cert" in str(refused)
    noticed = server.error()
    assert isinstance(noticed, ProtocolError)
    assert "the peer does not speak TLS" in str(noticed)
    assert not server.received


def test_a_client_with_tls_at_a_server_without_is_told_and_so_is_the_server(
    wire: Wire, door: Door, certificates: Certificates
) -> None:
    client, server = door.pair(certificates.tls(), None)
    noticed = server.error()
    assert isinstance(noticed, ProtocolError)
    assert "the peer speaks TLS, which this process was started without" in str(noticed)
    refused = client.error()
    assert isinstance(refused, AuthenticationError)
    assert "it does not answer in TLS" in str(refused)


def test_a_certificate_of_another_authority_is_refused(
    wire: Wire, door: Door, certificates: Certificates, others: Certificates
) -> None:
    # It trusts the cluster, but is not of it.
    stranger = Tls(others.cert, others.key, certificates.ca)
    client, server = door.pair(stranger, certificates.tls())
    client.send(1)
    noticed = server.error()
    assert isinstance(noticed, AuthenticationError)
    assert "its certificate was not accepted" in str(noticed)
    refused = client.error()
    assert refused is None or "does not accept this node's certificate" in str(refused)
    assert not server.received


def test_a_server_of_another_authority_is_not_spoken_with(
    wire: Wire, door: Door, certificates: Certificates, others: Certificates
) -> None:
    client, server = door.pair(certificates.tls(), others.tls())
    refused = client.error()
    assert isinstance(refused, AuthenticationError)
    assert "its certificate was not accepted" in str(refused)
    noticed = server.error()
    assert noticed is None or "does not accept this node's certificate" in str(noticed)


def test_a_client_that_shows_no_certificate_is_refused(
    wire: Wire, door: Door, certificates: Certificates
) -> None:
    context = ssl.create_default_context(cafile=certificates.ca)
    context.check_hostname = False
    client = door.connect(context)
    server = door.accept(certificates.tls().server)
    client.send(1)
    noticed = server.error()
    assert isinstance(noticed, AuthenticationError)
    assert "it shows no certificate" in str(noticed)
    assert not server.received


def test_an_expired_certificate_is_named_so(
    wire: Wire, door: Door, certificates: Certificates, tmp_path: Path
) -> None:
    expired = make_certificates(tmp_path, "old", days=-1)
    client, _server = door.pair(Tls(certificates.cert, certificates.key, expired.ca), expired.tls())
    assert "certificate has expired" in str(client.error())


def test_somebody_who_proves_nothing_is_not_waited_for_for_ever(
    wire: Wire, door: Door, certificates: Certificates
) -> None:
    with socket.create_connection(door.listening.getsockname()) as silent:
        silent.sendall(encode_preface(NAME))
        server = door.accept(certificates.tls().server)
        settled = Mock()
        with wire.reactor.lock:
            server.connection.expect_proof_within(0.05, settled)
        assert "no proof of the token" in str(server.error())
        settled.assert_called_once_with()


def test_who_proves_the_token_in_time_has_settled_then(
    wire: Wire, door: Door, certificates: Certificates
) -> None:
    tls = certificates.tls()
    client, server = door.pair(tls, tls)
    settled = Mock()
    with wire.reactor.lock:
        server.connection.expect_proof_within(3600, settled)
    client.send(1)
    wire.serve(lambda: server.received)
    settled.assert_called_once_with()
    with wire.reactor.lock:
        server.connection.close()
    settled.assert_called_once_with()


def test_the_refusal_of_a_client_without_tls_is_a_frame(
    wire: Wire, door: Door, certificates: Certificates
) -> None:
    with socket.create_connection(door.listening.getsockname()) as plain:
        plain.sendall(encode_preface(NAME) + b"anything else")
        server = door.accept(certificates.tls().server)
        server.error()
        plain.settimeout(20)
        refused = msgspec.msgpack.decode(read_frame(plain), type=Refused)
    assert "TLS only" in refused.reason


# --- what is configured --------------------------------------------------------------------------------------------------


def test_without_settings_there_is_no_tls() -> None:
    assert Tls.of(Config()) is None


def test_all_three_files_are_needed(certificates: Certificates) -> None:
    with pytest.raises(TlsConfigError, match="tls_key and tls_ca are not set"):
        Tls.of(Config(tls_cert=certificates.cert))


def test_files_that_cannot_be_used_are_named(
    certificates: Certificates, others: Certificates, tmp_path: Path
) -> None:
    with pytest.raises(TlsConfigError, match=r"tls_key='.*missing' cannot be read: No such file"):
        Tls(certificates.cert, str(tmp_path / "missing"), certificates.ca)
    with pytest.raises(TlsConfigError, match="are not a certificate and its key"):
        Tls(certificates.cert, others.key, certificates.ca)
    (tmp_path / "ca").write_text("not a certificate")
    with pytest.raises(TlsConfigError, match=r"tls_ca='.*' is not a certificate"):
        Tls(certificates.cert, certificates.key, str(tmp_path / "ca"))
