"""The handshake: mutual proof of the session's token. Sans-I/O.

Rule 1. A server decodes nothing but a `Hello` and a `Proof`, each in a frame of at most `HANDSHAKE_BYTES`, before the
        client has proved that it holds the token.
Rule 2. The token never crosses the wire; each side proves it over both nonces, under a label for its role, so that
        a proof cannot be reflected or replayed.
Rule 3. Every refusal has a reason that says what to do; it is sent to the peer before the connection closes.

Both machines take frame payloads (`receive`) and leave bytes to send in `outbox`. See `shoal.messages.handshake` for the
picture.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import sys
from typing import Final

import msgspec

from shoal.errors import AuthenticationError
from shoal.messages.handshake import Challenge, Handshake, Hello, Proof, Refused
from shoal.version import WIRE_VERSION
from shoal.wire.framing import Buffer, encode_frame

HANDSHAKE_BYTES: Final = 4096
TOKEN_BYTES: Final = 32
MAGIC: Final = "shoal"
UNDECODABLE: Final = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)
"""What bytes that a peer chose can make a decoder raise: wrong ones, lists in lists in lists, text that is none."""
_NONCE_BYTES: Final = 16

_decoder = msgspec.msgpack.Decoder(Handshake)
_encoder = msgspec.msgpack.Encoder()


def new_token() -> bytes:
    """A fresh secret for a session."""
    return os.urandom(TOKEN_BYTES)


def proof(token: bytes, role: bytes, first: bytes, second: bytes) -> bytes:
    """What a side in the role `role` sends to show that it holds the token."""
    return hmac.digest(token, role + first + second, hashlib.sha256)


def encode_refusal(reason: str) -> bytes:
    """The frame that tells a client why it is not let in."""
    return encode_frame(_encoder.encode(Refused(reason)))


def _decode(payload: Buffer) -> Hello | Challenge | Proof | Refused:
    try:
        message: Hello | Challenge | Proof | Refused = _decoder.decode(payload)
    except UNDECODABLE as error:
        raise AuthenticationError(
            f"the peer does not speak shoal's handshake ({error}); is the address that of a shoal process?"
        ) from None
    return message


class ServerHandshake:
    """The side that was connected to. After `receive` has returned True, the peer is trusted."""

    __slots__ = ("_client_nonce", "_nonce", "_token", "done", "outbox", "peer_address")

    def __init__(self, token: bytes) -> None:
        self._token = token
        self._nonce = os.urandom(_NONCE_BYTES)
        self._client_nonce: bytes | None = None
        self.outbox: list[bytes] = []
        self.peer_address = ""
        self.done = False

    def receive(self, payload: Buffer) -> bool:
        """Take one frame; True once the peer has proved the token.

        Raises:
            AuthenticationError: refused; the reason for the peer is in `outbox` already.
        """
        try:
            return self._receive(payload)
        except AuthenticationError as error:
            self.outbox.append(encode_refusal(str(error)))
            raise

    def _receive(self, payload: Buffer) -> bool:
        message = _decode(payload)
        if self._client_nonce is None:
            if not isinstance(message, Hello) or message.magic != MAGIC:
                raise AuthenticationError("a connection must begin with a shoal greeting")
            if message.wire_version != WIRE_VERSION:
                raise AuthenticationError(
                    f"the client speaks wire version {message.wire_version}, this process {WIRE_VERSION}; "
                    "install the same version of shoal on both sides"
                )
            if tuple(message.python) != sys.version_info[:2]:
                theirs, ours = ".".join(map(str, message.python)), "{}.{}".format(*sys.version_info)
                raise AuthenticationError(
                    f"the client runs Python {theirs}, this process Python {ours}; "
                    "use the same minor version on both sides (pickled code does not cross minor versions)"
                )
            if len(message.nonce) != _NONCE_BYTES:
                raise AuthenticationError("the greeting's nonce has the wrong size")
            self._client_nonce = message.nonce
            self.peer_address = message.address
            shown = proof(self._token, b"server", message.nonce, self._nonce)
            self.outbox.append(encode_frame(_encoder.encode(Challenge(self._nonce, shown))))
            return False
        if not isinstance(message, Proof) or not hmac.compare_digest(
            message.proof, proof(self._token, b"client", self._nonce, self._client_nonce)
        ):
            raise AuthenticationError(
                "wrong token: the client belongs to another session, or its SHOAL_TOKEN is not this cluster's"
            )
        self.done = True
        return True


class ClientHandshake:
    """The side that connects. After `receive` has returned True, data may be sent and received."""

    __slots__ = ("_nonce", "_token", "done", "outbox")

    def __init__(self, token: bytes, address: str = "") -> None:
        self._token = token
        self._nonce = os.urandom(_NONCE_BYTES)
        self.done = False
        hello = Hello(MAGIC, WIRE_VERSION, sys.version_info[:2], self._nonce, address)
        self.outbox: list[bytes] = [encode_frame(_encoder.encode(hello))]

    def receive(self, payload: Buffer) -> bool:
        """Take one frame; True once both sides have shown the token.

        Raises:
            AuthenticationError: the server refused, or cannot prove the token itself.
        """
        message = _decode(payload)
        if isinstance(message, Refused):
            raise AuthenticationError(f"refused: {message.reason}")
        if not isinstance(message, Challenge):
            raise AuthenticationError(
                "the server answered the greeting with something else than a challenge"
            )
        expected = proof(self._token, b"server", self._nonce, message.nonce)
        if not hmac.compare_digest(message.proof, expected):
            raise AuthenticationError(
                "the server does not hold this session's token: another session's process listens at that address"
            )
        ours = proof(self._token, b"client", message.nonce, self._nonce)
        self.outbox.append(encode_frame(_encoder.encode(Proof(ours))))
        self.done = True
        return True


def refusal(payload: Buffer) -> str | None:
    """The reason, if a payload that arrived after the handshake is a late `Refused`; else None.

    The client may send data right behind its proof, so a refusal can arrive where the first batch is expected.
    """
    try:
        message = _decoder.decode(payload)
    except UNDECODABLE:
        return None
    return message.reason if isinstance(message, Refused) else None
