"""How processes are called: `place/name`, where a node is and which process of it.

::

    local/w-1a2b3c4d              a worker of a session that no other machine can reach
    10.0.0.7:6465/d-5e6f7a8b      a driver on the node whose door is there
    10.0.0.7:6465/n-00c0ffee      that node's daemon

A name is a letter for the kind of process and eight hexadecimal digits, which begin the names of all that it makes in shared memory,
too. Processes of one place reach each other by Unix sockets in the session's folder, those of other places through the door
(`shoal.wire.door`).
"""

from __future__ import annotations

import ipaddress
import os
from typing import Final

LOCAL: Final = "local"
"""The place of a session without a door."""

WORKER: Final = "w"
DRIVER: Final = "d"
NODE: Final = "n"
NAME_CHARACTERS: Final = 10
_HEX: Final = frozenset("0123456789abcdef")


def make_name(kind: str, number: bytes | None = None) -> str:
    """The name of a process: of a known number, of which the first four bytes count, or a fresh one."""
    return f"{kind}-{(os.urandom(4) if number is None else number[:4]).hex()}"


def make_address(place: str, name: str) -> str:
    """The address of a process at a place."""
    return f"{place}/{name}"


def place_of(address: str) -> str:
    """Where the node of an address is."""
    return address.rpartition("/")[0]


def name_of(address: str) -> str:
    """Which process of its node an address is of."""
    return address.rpartition("/")[2]


def is_name(name: str) -> bool:
    """Whether a text is the name of a process."""
    return len(name) == NAME_CHARACTERS and name[:2] in {"w-", "d-", "n-"} and set(name[2:]) <= _HEX


def creator_at(address: str) -> str:
    """The digits of a process's name, by which its segments are called; "" if it is not such an address."""
    name = name_of(address)
    return name[2:] if is_name(name) else ""


def make_place(host: str, port: int) -> str:
    """The place of a node whose door is at an IP address and port."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_place(place: str) -> tuple[str, int]:
    """IP address and port of a node's door.

    Raises:
        ValueError: it is not the place of a door.
    """
    host, _, port = place.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        ipaddress.ip_address(host)
        number = int(port)
    except ValueError:
        number = 0
    if not 0 < number < 1 << 16:
        raise ValueError(
            f"{place!r} is not where a node can be reached: that is an IP address and a port, as in 10.0.0.7:6465"
        )
    return host, number
