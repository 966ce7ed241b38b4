"""The two machines of the handshake, back to back, with a wire between them that an enemy may hold."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import AuthenticationError
from shoal.messages.handshake import Challenge, Hello, Proof, Refused
from shoal.version import WIRE_VERSION
from shoal.wire.framing import cut_frame
from shoal.wire.handshake import (
    HANDSHAKE_BYTES,
    MAGIC,
    TOKEN_BYTES,
    ClientHandshake,
    ServerHandshake,
    new_token,
    refusal,
)

TOKEN = b"t" * TOKEN_BYTES
OTHER = b"o" * TOKEN_BYTES

Machine = ClientHandshake | ServerHandshake


def payloads(machine: Machine) -> list[bytes]:
    """What a machine has to say."""
    data = bytearray(b"".join(machine.outbox))
    machine.outbox.clear()
    found = []
    while (payload := cut_frame(data, HANDSHAKE_BYTES)) is not None:
        found.append(payload)
    assert not data
    return found


def said(machine: Machine) -> Any:
    """The one message that a machine has to say, decoded."""
    (payload,) = payloads(machine)
    return msgspec.msgpack.decode(payload, type=Hello | Challenge | Proof | Refused)


def encoded(message: Any) -> bytes:
    return msgspec.msgpack.encode(message)


def hello(**changes: Any) -> Hello:
    fields: dict[str, Any] = {
        "magic": MAGIC,
        "wire_version": WIRE_VERSION,
        "python": sys.version_info[:2],
        "nonce": b"n" * 16,
        "address": "",
    }
    return Hello(**(fields | changes))


def test_both_prove_the_token_and_trust_each_other() -> None:
    client, server = ClientHandshake(TOKEN, "/run/client.sock"), ServerHandshake(TOKEN)
    (greeting,) = payloads(client)
    assert not server.receive(greeting)
    assert not server.done
    (challenge,) = payloads(server)
    assert client.receive(challenge)
    assert client.done
    (proof,) = payloads(client)
    assert server.receive(proof)
    assert server.done
    assert server.peer_address == "/run/client.sock"
    assert payloads(server) == []


def test_the_token_never_crosses_the_wire() -> None:
    client, server = ClientHandshake(TOKEN), ServerHandshake(TOKEN)
    wire = b""
    for speaker, listener in ((client, server), (server, client), (client, server)):
        (payload,) = payloads(speaker)
        wire += payload
        listener.receive(payload)
    assert TOKEN[:4] not in wire


def test_tokens_are_secrets() -> None:
    assert len(new_token()) == TOKEN_BYTES
    assert new_token() != new_token()


def test_nothing_said_twice_is_the_same() -> None:
    clients = [ClientHandshake(TOKEN) for _ in range(2)]
    assert len({said(client).nonce for client in clients}) == 2
    challenges = []
    for _ in range(2):
        server = ServerHandshake(TOKEN)
        server.receive(encoded(hello()))
        challenges.append(said(server))
    assert len({challenge.nonce for challenge in challenges}) == 2
    assert len({challenge.proof for challenge in challenges}) == 2


# --- refused by the server -----------------------------------------------------------------------------------------------


def assert_refused(server: ServerHandshake, payload: bytes, match: str) -> None:
    """The server refuses, in its own log and towards the peer, in the same words; and decodes nothing more of it."""
    server.outbox.clear()
    with pytest.raises(AuthenticationError, match=match) as error:
        server.receive(payload)
    assert said(server) == Refused(str(error.value))
    assert not server.done


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"magic": "other"}, "must begin with a shoal greeting"),
        ({"wire_version": WIRE_VERSION + 1}, "install the same version of shoal"),
        ({"python": (3, 4)}, r"the client runs Python 3\.4.*the same minor version"),
        ({"python": (sys.version_info[0] + 1, sys.version_info[1])}, "the same minor version"),
        ({"nonce": b""}, "nonce has the wrong size"),
        ({"nonce": b"n" * 17}, "nonce has the wrong size"),
    ],
)
def test_the_server_refuses_by_name(changes: dict[str, Any], match: str) -> None:
    assert_refused(ServerHandshake(TOKEN), encoded(hello(**changes)), match)


def test_the_client_reports_why_it_was_refused() -> None:
    server, client = ServerHandshake(TOKEN), ClientHandshake(TOKEN)
    assert_refused(server, encoded(hello(wire_version=0)), "wire version 0")
    with pytest.raises(AuthenticationError, match="refused: you are not from here"):
        client.receive(encoded(Refused("you are not from here")))
    assert not client.done


@pytest.mark.parametrize(
    "first", [Proof(b"p" * 32), Challenge(b"n" * 16, b"p" * 32), Refused("why")], ids=repr
)
def test_a_server_wants_the_greeting_first(first: Any) -> None:
    assert_refused(ServerHandshake(TOKEN), encoded(first), "must begin with a shoal greeting")


def test_a_client_with_another_token_is_refused() -> None:
    # An honest client notices first; one that goes on regardless gets nowhere.
    server, client = ServerHandshake(TOKEN), ClientHandshake(OTHER)
    (greeting,) = payloads(client)
    server.receive(greeting)
    (challenge,) = payloads(server)
    with pytest.raises(AuthenticationError, match="does not hold this session's token"):
        client.receive(challenge)
    assert not client.done
    assert payloads(client) == []
    assert_refused(server, encoded(Proof(b"p" * 32)), "wrong token.*SHOAL_TOKEN")


@pytest.mark.parametrize(
    "second", [hello(), Challenge(b"n" * 16, b"p" * 32), Refused("why"), Proof(b"")], ids=repr
)
def test_a_server_wants_the_proof_next(second: Any) -> None:
    server = ServerHandshake(TOKEN)
    server.receive(encoded(hello()))
    assert_refused(server, encoded(second), "wrong token")


def test_a_recorded_conversation_opens_no_other_connection() -> None:
    client, server = ClientHandshake(TOKEN), ServerHandshake(TOKEN)
    (greeting,) = payloads(client)
    server.receive(greeting)
    client.receive(payloads(server)[0])
    (proof,) = payloads(client)
    assert server.receive(proof)
    another = ServerHandshake(TOKEN)
    another.receive(greeting)
    assert_refused(another, proof, "wrong token")


def test_the_servers_own_proof_does_not_serve_as_the_clients() -> None:
    server = ServerHandshake(TOKEN)
    server.receive(encoded(hello()))
    assert_refused(server, encoded(Proof(said(server).proof)), "wrong token")


def test_a_greeting_with_the_servers_nonce_gains_nothing() -> None:
    # The enemy asks a second connection of the same server to answer what the first one asked.
    first, second = ServerHandshake(TOKEN), ServerHandshake(TOKEN)
    first.receive(encoded(hello()))
    challenge = said(first)
    second.receive(encoded(hello(nonce=challenge.nonce)))
    assert_refused(first, encoded(Proof(said(second).proof)), "wrong token")


# --- refused by the client -----------------------------------------------------------------------------------------------


def test_a_client_trusts_no_server_that_cannot_prove_the_token() -> None:
    client, enemy = ClientHandshake(TOKEN), ServerHandshake(OTHER)
    enemy.receive(payloads(client)[0])
    with pytest.raises(AuthenticationError, match="does not hold this session's token"):
        client.receive(payloads(enemy)[0])
    assert payloads(client) == []


def test_a_recorded_challenge_convinces_no_other_client() -> None:
    first, second, server = ClientHandshake(TOKEN), ClientHandshake(TOKEN), ServerHandshake(TOKEN)
    server.receive(payloads(first)[0])
    (challenge,) = payloads(server)
    with pytest.raises(AuthenticationError, match="does not hold this session's token"):
        second.receive(challenge)


@pytest.mark.parametrize("message", [hello(), Proof(b"p" * 32)], ids=repr)
def test_a_client_wants_a_challenge(message: Any) -> None:
    with pytest.raises(AuthenticationError, match="something else than a challenge"):
        ClientHandshake(TOKEN).receive(encoded(message))


# --- garbage -------------------------------------------------------------------------------------------------------------

DEEP = b"\x91" * 3000 + b"\x01"


def with_one_field_more(field: bytes) -> bytes:
    greeting = encoded(hello())
    return bytes([greeting[0] + 1]) + greeting[1:] + field


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"GET / HTTP/1.1",
        b"\xdd\xff\xff\xff\xff",
        DEEP,
        with_one_field_more(DEEP),
        encoded([1]),
        encoded([99, "what"]),
        encoded({"magic": MAGIC}),
        encoded(hello()).replace(b"shoal", b"\xff\xff\xff\xff\xff"),
    ],
    ids=range(10),
)
@pytest.mark.parametrize(
    "machine",
    [lambda: ServerHandshake(TOKEN), lambda: ClientHandshake(TOKEN)],
    ids=["server", "client"],
)
def test_garbage_is_refused_by_name(machine: Callable[[], Machine], payload: bytes) -> None:
    subject = machine()
    with pytest.raises(AuthenticationError, match="does not speak shoal's handshake"):
        subject.receive(payload)
    assert not subject.done


def test_a_greeting_of_a_later_version_with_more_fields_is_understood() -> None:
    server = ServerHandshake(TOKEN)
    assert not server.receive(with_one_field_more(encoded("news")))


@given(st.binary(max_size=200), st.booleans())
def test_no_bytes_do_more_than_be_refused(payload: bytes, after_greeting: bool) -> None:
    server = ServerHandshake(TOKEN)
    if after_greeting:
        server.receive(encoded(hello()))
    with pytest.raises(AuthenticationError):
        server.receive(payload)
    with pytest.raises(AuthenticationError):
        ClientHandshake(TOKEN).receive(payload)


@given(st.integers(0, 500), st.integers(0, 255))
def test_a_changed_byte_is_never_trusted(where: int, change: int) -> None:
    client, server = ClientHandshake(TOKEN), ServerHandshake(TOKEN)
    server.receive(payloads(client)[0])
    client.receive(payloads(server)[0])
    (proof,) = payloads(client)
    where %= len(proof)
    changed = bytearray(proof)
    changed[where] ^= change or 1
    with pytest.raises(AuthenticationError):
        server.receive(bytes(changed))


def test_every_message_fits_the_limit_of_the_handshake() -> None:
    # Also the longest refusal; or the peer would see a broken protocol where it should see the reason.
    client, server = ClientHandshake(TOKEN, "/" * 107), ServerHandshake(TOKEN)
    (greeting,) = payloads(client)
    with pytest.raises(AuthenticationError):
        server.receive(encoded(hello(python=(10**18, 10**18))))
    assert len(greeting) + len(b"".join(server.outbox)) < HANDSHAKE_BYTES


# --- a refusal that comes late -------------------------------------------------------------------------------------------


def test_a_late_refusal_is_told_from_data() -> None:
    assert refusal(encoded(Refused("too late"))) == "too late"
    assert refusal(encoded(hello())) is None
    assert refusal(encoded([1, 2, 3])) is None
    assert refusal(b"\xc1") is None
    assert refusal(with_one_field_more(DEEP)) is None
