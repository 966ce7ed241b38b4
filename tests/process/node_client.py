"""A plain blocking client of the node daemon, for tests: says what it is told to, and remembers what it hears."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from shoal.messages.node import (
    FromNode,
    Job,
    RegisterDriver,
    Registered,
    RegisterWorker,
    Reply,
    ToNode,
)
from shoal.wire.framing import FrameDecoder, cut_frame, encode_frame
from shoal.wire.handshake import HANDSHAKE_BYTES, ClientHandshake

WAIT_S = 10.0
_decoder = msgspec.msgpack.Decoder(list[FromNode])
Message = TypeVar("Message")


class NodeClient:
    """One connection. `heard` has every message that came and was not waited for yet."""

    def __init__(self, node_address: str, token: bytes, address: str = "") -> None:
        self.address = address
        self.heard: list[Any] = []
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(WAIT_S)
        self._frames = FrameDecoder(1 << 30)
        self._reqs = 0
        self.registered: Registered | None = None
        try:
            self.sock.connect(node_address)
            self._shake_hands(token, address)
        except BaseException:
            self.sock.close()
            raise

    def _shake_hands(self, token: bytes, address: str) -> None:
        handshake = ClientHandshake(token, address)
        data = bytearray()
        while True:
            for frame in handshake.outbox:
                self.sock.sendall(frame)
            handshake.outbox.clear()
            if handshake.done:
                return
            payload = None
            while payload is None:
                data += self._receive_some()
                payload = cut_frame(data, HANDSHAKE_BYTES)
            handshake.receive(payload)

    def _receive_some(self) -> bytes:
        data = self.sock.recv(1 << 16)
        if not data:
            raise ConnectionError("the node closed the connection")
        return data

    def send(self, *messages: ToNode) -> None:
        self.sock.sendall(encode_frame(msgspec.msgpack.encode(list(messages))))

    def read(self) -> None:
        """Wait for bytes and take what they complete."""
        for payload in self._frames.feed(self._receive_some()):
            self.heard += _decoder.decode(payload)

    def expect(
        self,
        kind: type[Message],
        where: Callable[[Message], bool] = lambda _: True,
        timeout_s: float = WAIT_S,
    ) -> Message:
        """The next message of a kind, taken out of `heard`; others stay."""
        deadline = time.monotonic() + timeout_s
        while True:
            for message in self.heard:
                if isinstance(message, kind) and where(message):
                    self.heard.remove(message)
                    return message
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError(f"no {kind.__name__} came; heard {self.heard}")
            self.sock.settimeout(left_s)
            try:
                self.read()
            except TimeoutError:
                continue

    def expect_silence(self, kind: type[Any], for_s: float) -> None:
        """No message of a kind comes for a while."""
        try:
            message = self.expect(kind, timeout_s=for_s)
        except TimeoutError:
            return
        raise AssertionError(f"unexpected {message}")

    def next_req(self) -> int:
        self._reqs += 1
        return self._reqs

    def ask(self, make: Callable[[int], ToNode], result: Any) -> Any:
        """Send what `make(req)` makes and return the decoded result of its `Reply`."""
        req = self.next_req()
        self.send(make(req))
        reply = self.expect(Reply, lambda m: m.req == req)
        if reply.error:
            raise RuntimeError(reply.error)
        return msgspec.msgpack.decode(reply.result, type=result) if reply.result else None

    def register_driver(
        self, job: Job, *, log_to_driver: bool = True, preload: list[str] | None = None
    ) -> Registered:
        self.send(RegisterDriver(os.getpid(), self.address, job, preload or [], log_to_driver))
        self.registered = self.expect(Registered)
        return self.registered

    def register_worker(self, worker_id: bytes) -> Registered:
        self.send(RegisterWorker(worker_id, os.getpid(), self.address))
        self.registered = self.expect(Registered)
        return self.registered

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> NodeClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
