"""TLS on the TCP connections of a cluster: the contexts, who is believed, and what errors mean.

::

    preface (clear) ─► TLS, both sides show a certificate ─► the handshake that proves the token ─► messages

Both sides verify the other's certificate against the cluster's authority (`tls_ca`). Host names are not compared: nodes are called by IP
addresses that may change, and the authority is the cluster's own, so whoever it has signed belongs to the cluster. TLS keeps
others from reading and changing what is sent; who may take part is for the token to say, with TLS as without.

The asyncio sides give `Tls.server` and `Tls.client` to their loop, after the preface; `await_client_hello` first, where a connection was
accepted, so that a client without TLS is told. The runtime's connections use `shoal.wire.tls_stream`.

TLS 1.3 is asked for. It has no renegotiation: reading need not wait for writing, nor the other way round.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from typing import TYPE_CHECKING, Final, Self

from shoal.config import TLS_SETTINGS
from shoal.errors import ProtocolError
from shoal.wire.handshake import encode_refusal

if TYPE_CHECKING:
    from shoal.config import Config

NO_TLS: Final = (
    "this node speaks TLS only, and the peer came without. Give the peer the cluster's tls_cert, tls_key and tls_ca "
    "(shoal start --tls-cert --tls-key --tls-ca), or start all nodes without"
)
PEER_WITHOUT_TLS: Final = (
    "it does not answer in TLS, which this node was started with. Start all nodes of a cluster with --tls-cert, --tls-key and "
    "--tls-ca, or all without"
)
_HANDSHAKE_RECORD: Final = 0x16


class TlsConfigError(ValueError):
    """The certificates that were configured cannot be used; says why."""


class Tls:
    """What a process needs to speak TLS: the contexts `server`, for connections that it accepts, and `client`, for those it makes."""

    def __init__(self, cert: str, key: str, ca: str) -> None:
        """Read the files.

        Raises:
            TlsConfigError: one cannot be read, or they do not belong together.
        """
        self.server = _context(ssl.PROTOCOL_TLS_SERVER, cert, key, ca)
        self.client = _context(ssl.PROTOCOL_TLS_CLIENT, cert, key, ca)

    @classmethod
    def of(cls, config: Config) -> Self | None:
        """As a configuration says; None if it has no TLS.

        Raises:
            TlsConfigError: only some of the three files are named, or they cannot be used.
        """
        paths = [getattr(config, name) for name in TLS_SETTINGS]
        if not any(paths):
            return None
        missing = [name for name, path in zip(TLS_SETTINGS, paths, strict=True) if not path]
        if missing:
            raise TlsConfigError(
                f"TLS needs tls_cert, tls_key and tls_ca, and {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set"
            )
        return cls(*paths)


def _context(protocol: ssl._SSLMethod, cert: str, key: str, ca: str) -> ssl.SSLContext:
    for name, path in zip(TLS_SETTINGS, (cert, key, ca), strict=True):
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            raise TlsConfigError(
                f"{name}={path!r} cannot be read: {error.strerror} (as seen from {os.getcwd()})"
            ) from None
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # In this order: a client's context insists on CERT_REQUIRED for as long as it checks names.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_cert_chain(cert, key, password=_no_passphrase)
    except (ssl.SSLError, ValueError) as error:
        raise TlsConfigError(
            f"tls_cert={cert!r} and tls_key={key!r} are not a certificate and its key in PEM, without a passphrase: {error}"
        ) from None
    try:
        context.load_verify_locations(ca)
    except ssl.SSLError as error:
        raise TlsConfigError(f"tls_ca={ca!r} is not a certificate in PEM: {error}") from None
    return context


def _no_passphrase() -> str:
    # Without this, OpenSSL would ask at the terminal.
    raise ValueError("the key has a passphrase")


def explain(error: OSError, *, server: bool) -> str:
    """What a failed TLS handshake means, as a clause about the peer."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"its certificate was not accepted: {error.verify_message}. Certificates must be signed by the authority in tls_ca, and "
            "be valid now"
        )
    reason = getattr(error, "reason", None) or ""
    if "ALERT" in reason and ("CERT" in reason or "UNKNOWN_CA" in reason):
        return f"it does not accept this node's certificate ({reason}): is it signed by the authority that the peer has in tls_ca?"
    if reason in {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"}:
        return PEER_WITHOUT_TLS
    if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return "it shows no certificate; give it the cluster's tls_cert and tls_key"
    if isinstance(error, ssl.SSLEOFError | ConnectionError) or not isinstance(error, ssl.SSLError):
        return (
            "it hung up during the TLS handshake"
            if server
            else f"it hung up, so {PEER_WITHOUT_TLS}"
        )
    return f"the TLS handshake with it failed: {error}"


async def await_client_hello(
    loop: asyncio.AbstractEventLoop, sock: socket.socket, patience_s: float
) -> None:
    """Wait until a client whose preface was read says more, and see that it is TLS. `sock` does not block.

    Raises:
        ProtocolError: it is not, and the client has been told so, in clear; or nothing has come for so long.
        OSError: the connection is gone.
    """
    readable = asyncio.Event()
    loop.add_reader(sock.fileno(), readable.set)
    try:
        async with asyncio.timeout(patience_s):
            await readable.wait()
    except TimeoutError:
        raise ProtocolError(f"it began no TLS within {patience_s:g} s") from None
    finally:
        loop.remove_reader(sock.fileno())
    refuse_plain(sock)


def refuse_plain(sock: socket.socket) -> None:
    """Look at the first byte that has come on a connection, which stays where it is, and refuse a client that does not speak TLS.

    Raises:
        BlockingIOError: nothing has come yet.
        ProtocolError: the client does not speak TLS. It has been told so, in clear.
        OSError: the connection is gone.
    """
    first = sock.recv(1, socket.MSG_PEEK)
    if not first:
        raise ConnectionResetError("the peer closed the connection before it said anything")
    if first[0] != _HANDSHAKE_RECORD:
        # If it does not take this much now, it would not read it later either. What it sent is read, or the kernel would
        # answer with a reset that overtakes the refusal.
        with contextlib.suppress(OSError):
            sock.recv(65536)
            sock.send(encode_refusal(NO_TLS))
        raise ProtocolError("the peer does not speak TLS, which this node was started with")
