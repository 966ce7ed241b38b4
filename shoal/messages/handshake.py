"""The first frames of every connection: who are you, and do we both hold the session's token?

::

    client                                server
      │ Hello(version, nonce_c) ───────────► │
      │ ◄─────── Challenge(nonce_s, proof_s) │   proof_s = HMAC(token, "server" + nonce_c + nonce_s)
      │ Proof(proof_c) ────────────────────► │   proof_c = HMAC(token, "client" + nonce_s + nonce_c)
      │ (data may follow at once)            │
      │ ◄──────────────────── Refused(why)   │   only when something is wrong; then the server closes

The token never crosses the wire, and each side proves that it holds it before the other decodes anything else.
"""

from __future__ import annotations

import msgspec


class Hello(msgspec.Struct, array_like=True, tag=1):
    """The client's greeting. `address` is where it can be reached itself ("" if nowhere)."""

    magic: str
    wire_version: int
    python: tuple[int, int]
    nonce: bytes
    address: str


class Challenge(msgspec.Struct, array_like=True, tag=2):
    """The server's answer, which proves that it holds the token."""

    nonce: bytes
    proof: bytes


class Proof(msgspec.Struct, array_like=True, tag=3):
    """The client's proof that it holds the token."""

    proof: bytes


class Refused(msgspec.Struct, array_like=True, tag=4):
    """The handshake failed; the connection closes."""

    reason: str


Handshake = Hello | Challenge | Proof | Refused
