"""Finding a node to join, or a cluster to ask: those of this user on this machine, by the files that they leave in their session folders.

A driver joins a cluster through a node on its own machine, since it shares memory with that. So an address does not say where to
connect to, but which cluster is meant: the one whose control store is there. The session that a program has for itself alone cannot be
joined, but asked: its address is "pid:" and the program's pid.

Guarantees: only nodes whose processes live are found; nothing is asked over a network, but names of hosts may be looked up.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from dataclasses import dataclass, field
from typing import Final

import msgspec

from shoal.messages.boot import ControlFile, NodeFile
from shoal.runtime.session_folder import session_root
from shoal.wire.addresses import make_place
from shoal.wire.session import (
    CONTROL_FILE,
    CONTROL_PREFIX,
    NODE_FILE,
    SESSION_PREFIX,
    TOKEN_FILE,
    is_alive,
    look_path,
    node_path,
)

DEFAULT_PORT: Final = 6465
"""Where a control store serves unless it is told otherwise."""

AUTO: Final = "auto"

PROGRAM: Final = "pid:"
"""How the address of a program's own session begins."""


@dataclass(frozen=True)
class FoundNode:
    """A node of a cluster that lives on this machine. `directory` is its session folder."""

    directory: str
    file: NodeFile
    since: float

    @property
    def path(self) -> str:
        """Where its daemon listens."""
        return node_path(self.directory)

    @property
    def is_programs_own(self) -> bool:
        """Whether it is all of the session that a program has for itself alone."""
        return not self.file.control

    def token(self) -> bytes:
        """The token of its cluster; of a program's own session, that of those who only look at it.

        Raises:
            ConnectionError: it has ended since it was found.
        """
        try:
            with open(f"{self.directory}/{TOKEN_FILE}", "rb") as file:
                return file.read()
        except OSError as error:
            raise ConnectionError(
                f"the node in {self.directory} has ended just now ({error.strerror}): choose another, or start one with `shoal start`"
            ) from None


@dataclass(frozen=True)
class FoundControl:
    """The folder of a control store on this machine. `alive`: its process lives. `file` is None if it has not said anything."""

    directory: str
    file: ControlFile | None
    alive: bool

    @property
    def cluster_name(self) -> str:
        """How its cluster is called."""
        return os.path.basename(self.directory).removeprefix(CONTROL_PREFIX)


@dataclass(frozen=True)
class Respondent:
    """Who answers questions about a cluster: its control store, or the node of a program's own session.

    Attributes:
        place: Host and port of the former; the path of a socket of the latter.
        token: None if this machine has no node of the cluster.
        tls: The settings by which it speaks TLS, as far as a node here knows them.
        pid: Whose own session it is; 0 for a cluster.
    """

    place: str
    token: bytes | None = None
    tls: dict[str, str] = field(default_factory=dict)
    pid: int = 0


def find_nodes(root: str | None = None) -> list[FoundNode]:
    """The living nodes of clusters, the newest first. `root` is as for `session_root`."""
    return [node for node in _find_all(root) if not node.is_programs_own]


def find_programs(root: str | None = None) -> list[FoundNode]:
    """The nodes of sessions that programs have for themselves, the newest first."""
    return [node for node in _find_all(root) if node.is_programs_own]


def _find_all(root: str | None) -> list[FoundNode]:
    root = session_root(root)
    found: list[FoundNode] = []
    for name in os.listdir(root):
        directory = f"{root}/{name}"
        if not name.startswith(SESSION_PREFIX):
            continue
        # What cannot be read is half made, half removed, or not ours.
        with contextlib.suppress(OSError, msgspec.DecodeError):
            path = f"{directory}/{NODE_FILE}"
            with open(path, "rb") as file:
                node = msgspec.json.decode(file.read(), type=NodeFile)
            if is_alive(directory):
                found.append(FoundNode(directory, node, os.stat(path).st_mtime))
    return sorted(found, key=lambda node: node.since, reverse=True)


def find_controls(root: str | None = None) -> list[FoundControl]:
    """The control stores of this user on this machine, the dead too whose folders are left."""
    root = session_root(root)
    return [
        FoundControl(directory, read_control_file(directory), is_alive(directory))
        for name in sorted(os.listdir(root))
        if name.startswith(CONTROL_PREFIX)
        for directory in (f"{root}/{name}",)
    ]


def read_control_file(directory: str) -> ControlFile | None:
    """What a control store says of itself; None if it has not said it yet."""
    try:
        with open(f"{directory}/{CONTROL_FILE}", "rb") as file:
            return msgspec.json.decode(file.read(), type=ControlFile)
    except (OSError, msgspec.DecodeError):
        return None


def find_respondent(address: str, root: str | None = None) -> Respondent:
    """Who is to be asked about the cluster at an address. "auto" is the newest cluster on this machine, or if there is none, the newest
    session of a program.

    Raises:
        ValueError: the address is none.
        ConnectionError: nothing is there; says how to start a cluster.
    """
    if address.startswith(PROGRAM):
        return _respondent_of(_program_at(address, root))
    nodes = find_nodes(root)
    if address != AUTO:
        place = resolve(address)
        here = [node for node in nodes if place in {node.file.control, node.file.place}]
        return _respondent_of(here[0]) if here else Respondent(place)
    if nodes:
        return _respondent_of(nodes[0])
    for control in find_controls(root):
        if control.alive and control.file is not None:
            return Respondent(control.file.control)
    for node in find_programs(root):
        return _respondent_of(node)
    raise ConnectionError(
        f"no cluster runs on this machine (as {session_root(root)} has it), and no program with one of its own: start one with "
        "`shoal start --head`, or say by its address, HOST:PORT, which one is meant"
    )


def _respondent_of(node: FoundNode) -> Respondent:
    file = node.file
    if node.is_programs_own:
        return Respondent(look_path(node.directory), node.token(), pid=file.starter_pid)
    return Respondent(file.control, node.token(), file.tls)


def _program_at(address: str, root: str | None) -> FoundNode:
    pid = address.removeprefix(PROGRAM)
    if not pid.isdecimal():
        raise ValueError(f"{address!r} is not the address of a program: that is pid:1234")
    programs = find_programs(root)
    for node in programs:
        if node.file.starter_pid == int(pid):
            return node
    others = ", ".join(f"{PROGRAM}{node.file.starter_pid}" for node in programs) or "none"
    raise ConnectionError(
        f"no program of pid {pid} has a session of its own on this machine (as {session_root(root)} has it); those that have: {others}"
    )


def choose_node(address: str, root: str | None = None) -> FoundNode:
    """The node through which to join the cluster at an address, "auto" for the newest cluster. Of several nodes the head is taken, or
    else the newest.

    Raises:
        ValueError: the address is none.
        ConnectionError: there is no such node; says which there are, and how to start one.
    """
    if address.startswith(PROGRAM):
        raise ConnectionError(
            f"{address} is the session of one program, which others can look at, but not join: start a cluster with `shoal start --head`, and "
            "have both programs join it"
        )
    place = "" if address == AUTO else resolve(address)
    nodes = find_nodes(root)
    if nodes and not place:
        place = nodes[0].file.control
    fitting = [node for node in nodes if place in {node.file.control, node.file.place}]
    if fitting:
        return next((node for node in fitting if node.file.is_head), fitting[0])
    clusters = {node.file.control: node.file.cluster_name for node in nodes}
    found = ", ".join(f"{name!r} at {control}" for control, name in clusters.items())
    there_are = f"This machine has nodes of these clusters: {found}." if found else ""
    if not place:
        raise ConnectionError(
            f"there is no cluster to join: no node of this user runs on this machine (as {session_root(root)} has it). Start one with "
            "`shoal start --head`, or a node of a cluster elsewhere with `shoal start --address=HOST:PORT`"
        )
    raise ConnectionError(
        f"cannot join the cluster at {address}: no node of it runs on this machine (as {session_root(root)} has it). "
        f"{there_are or 'There is no other cluster either.'} Start a node with `shoal start --address={address}`, or a cluster with "
        "`shoal start --head`"
    )


def resolve(address: str) -> str:
    """The place (IP address and port) that an address names: "10.0.0.7:6465", "head.example", "[::1]:6465".

    Raises:
        ValueError: it is no address.
        ConnectionError: its host is not known.
    """
    host, port = split_address(address)
    try:
        ipaddress.ip_address(host)
    except ValueError:
        try:
            family, *_, found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        except OSError as error:
            raise ConnectionError(
                f"the address {address!r} names a host that is not known: {error.strerror}"
            ) from None
        del family
        host = str(found[0])
    return make_place(host, port)


def split_address(address: str) -> tuple[str, int]:
    """Host and port of an address as users write it.

    Raises:
        ValueError: it is no address.
    """
    host, colon, port = address.rpartition(":")
    if not colon or address.endswith("]"):
        host, port = address, str(DEFAULT_PORT)
    host = host.removeprefix("[").removesuffix("]")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ValueError(
            f"{address!r} is not the address of a cluster: that is a host and a port, as in 10.0.0.7:{DEFAULT_PORT}"
        )
    return host, int(port)
