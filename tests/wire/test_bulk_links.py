"""Bulk connections that are broken off: both sides hear of it at once."""

from __future__ import annotations

import select
import socket
import threading

import pytest

from shoal.node.transfer.links import Link, LinkBrokenError
from tests.api.gates import wait_until

MB = 1 << 20
PATIENCE_S = 60.0


def connected() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        other, _ = server.accept()
    return one, other


def read_all(link: Link) -> None:
    with memoryview(bytearray(MB)) as view:
        while True:
            link.receive_into(view)


def test_who_has_much_to_send_hears_at_once_that_nobody_reads_it_any_more() -> None:
    ours, theirs = connected()
    sender, receiver = Link(ours, PATIENCE_S), Link(theirs, PATIENCE_S)
    broken: list[LinkBrokenError] = []

    def send() -> None:
        try:
            sender.send_bytes(bytes(64 * MB))
        except LinkBrokenError as error:
            broken.append(error)

    sending = threading.Thread(target=send)
    sending.start()
    # As many bytes are on their way as there is room for.
    wait_until(lambda: not select.select([], [ours], [], 0.1)[1], "the sender has to wait")
    receiver.abort()
    # The thread that reads gets what has come, and then the end.
    with pytest.raises(LinkBrokenError):
        read_all(receiver)
    receiver.close()
    sending.join(PATIENCE_S / 4)
    assert len(broken) == 1
    sender.close()
