"""A question to a control store from a process that is no node of it: a blocking connection for as long as that takes.

That of a program's own session is asked through its node, at whose socket there is neither a preface nor TLS.

It also tells why a node could not join, before there is one: nobody answers, another token, another version, TLS on one side only.

Guarantees: every wait is bounded.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import msgspec

from shoal.errors import AuthenticationError, ProtocolError
from shoal.messages.control import ANSWERS, Call
from shoal.messages.membership import Answer, Ask, NotWanted, ToMember
from shoal.runtime.node_link import error_from_text
from shoal.wire.addresses import split_place
from shoal.wire.door import CONTROL, encode_preface, tune
from shoal.wire.framing import FrameDecoder, cut_frame, encode_frame
from shoal.wire.handshake import HANDSHAKE_BYTES, ClientHandshake, refusal

if TYPE_CHECKING:
    from shoal.wire.tls import Tls

_ASK_AGAIN_S: Final = 0.1
_ANSWER_TIMEOUT_S: Final = 10.0
_MAX_FRAME_BYTES: Final = 256 * 1024 * 1024
_encode: Final = msgspec.msgpack.Encoder().encode


class ControlClient:
    """A connection to a control store, with the token proved."""

    def __init__(
        self, place: str, token: bytes, tls: Tls | None = None, *, wait_s: float = 0.0
    ) -> None:
        """Connect to a host and port, or the path of a node's socket. While nobody listens there, it is tried again for `wait_s`.

        Raises:
            ConnectionError: nobody answers, or not as a control store does.
            AuthenticationError: the two do not belong together; says why.
        """
        self._place = place
        self._local = place.startswith("/")
        self._frames = FrameDecoder(_MAX_FRAME_BYTES)
        self._req = 0
        self._sock = self._connect(wait_s)
        try:
            with self._explained():
                if not self._local:
                    self._sock.sendall(encode_preface(CONTROL))
                    if tls is not None:
                        self._sock = _in_tls(self._sock, tls)
                self._shake_hands(token)
        except BaseException:
            self._sock.close()
            raise

    def _connect(self, wait_s: float) -> socket.socket:
        deadline = time.monotonic() + wait_s
        while True:
            left_s = max(1.0, deadline - time.monotonic())
            try:
                sock = self._open(left_s)
            except OSError as error:
                # Nobody listens yet. Other errors do not pass by waiting.
                if error.errno == errno.ECONNREFUSED and time.monotonic() < deadline:
                    time.sleep(_ASK_AGAIN_S)
                    continue
                why = "no answer" if isinstance(error, TimeoutError) else error.strerror or error
                for_long = f" for {wait_s:g} s" if wait_s else ""
                raise ConnectionError(
                    f"no control store answers at {self._place}{for_long}: {why}"
                ) from None
            sock.settimeout(_ANSWER_TIMEOUT_S)
            return sock

    def _open(self, timeout_s: float) -> socket.socket:
        if not self._local:
            sock = socket.create_connection(split_place(self._place), timeout=timeout_s)
            tune(sock)
            return sock
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout_s)
            sock.connect(self._place)
        except BaseException:
            sock.close()
            raise
        return sock

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except AuthenticationError as error:
            raise AuthenticationError(
                f"the control store at {self._place} and this process do not belong together: {error}"
            ) from None
        except ProtocolError as error:
            raise ConnectionError(
                f"what answers at {self._place} is no control store of shoal: {error}"
            ) from None
        except TimeoutError:
            raise ConnectionError(
                f"what listens at {self._place} did not answer within {_ANSWER_TIMEOUT_S:g} s: is it a control store of shoal?"
            ) from None
        except OSError as error:
            raise ConnectionError(
                f"the connection to the control store at {self._place} broke: {error.strerror or error}"
            ) from None

    def _shake_hands(self, token: bytes) -> None:
        handshake = ClientHandshake(token)
        data = bytearray()
        while True:
            for frame in handshake.outbox:
                self._sock.sendall(frame)
            handshake.outbox.clear()
            if handshake.done:
                break
            while (payload := cut_frame(data, HANDSHAKE_BYTES)) is None:
                data += self._receive()
            handshake.receive(payload)

    def _receive(self) -> bytes:
        data = self._sock.recv(65536)
        if not data:
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        return data

    def ask(self, call: Call) -> Any:
        """The answer to a question that changes nothing.

        Raises:
            ConnectionError: the connection broke.
            AuthenticationError: the control store has refused the proof of the token.
            ShoalError: it has refused the question.
        """
        with self._explained():
            self._req += 1
            self._sock.sendall(encode_frame(_encode([Ask(self._req, call)])))
            while True:
                for payload in self._frames.feed(self._receive()):
                    for message in _decode(payload):
                        if isinstance(message, NotWanted):
                            raise AuthenticationError(message.reason)
                        if isinstance(message, Answer) and message.req == self._req:
                            if message.error:
                                raise error_from_text(message.error)
                            return msgspec.msgpack.decode(message.result, type=ANSWERS[type(call)])

    def close(self) -> None:
        """Hang up."""
        self._sock.close()

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _decode(payload: Any) -> list[Any]:
    try:
        return list(_decoder.decode(payload))
    except msgspec.DecodeError as error:
        # The proof is answered only if it is wrong, and by then the question has been asked.
        reason = refusal(payload)
        if reason is not None:
            raise AuthenticationError(f"refused: {reason}") from None
        raise ProtocolError(f"a message does not fit its schema: {error}") from None


_decoder: Final = msgspec.msgpack.Decoder(list[ToMember])


def _in_tls(sock: socket.socket, tls: Tls) -> socket.socket:
    from shoal.wire.tls import explain

    try:
        wrapped: socket.socket = tls.client.wrap_socket(sock)
    except TimeoutError:
        raise
    except OSError as error:
        raise AuthenticationError(explain(error, server=False)) from None
    return wrapped
