"""How processes are born: what a node daemon or a control store is told when it is started, and a worker when it is forked.

The starter writes one `Boot` or `ControlBoot` record to the new process's standard input, framed as everywhere. The process writes
one `Ready` or `BootFailed` frame to its standard output. If the record names the starter (`driver_pid`, `starter_pid`), the
starter keeps the pipe open as a lifeline: its end tells that the starter is gone, however it went. Else the process is nobody's: it
lets go of both pipes when it has answered, and ends by SIGTERM. A `WorkerBoot` never crosses a socket: it is what a forked
worker finds in its memory.

A node leaves a `NodeFile` in its session folder (`shoal.wire.session.NODE_FILE`), by which programs and commands of the same
user find it; a control store's folder has a `ControlFile`.
"""

from __future__ import annotations

import msgspec

from shoal.config import Config
from shoal.messages.node import Job


class Boot(msgspec.Struct, array_like=True):
    """Everything that a node daemon must know. `total` is in units of 1/10,000, like all amounts."""

    token: bytes
    session: str
    session_dir: str
    shm_dir: str
    lock_fd: int
    """An inherited descriptor that holds the lock of the session's folder."""
    driver_pid: int
    """Whoever starts the daemon, and with whom it ends; 0: it ends when it is told to."""
    total: dict[str, int]
    gpu_ids: list[str]
    labels: dict[str, str]
    store_bytes: int
    config: Config
    node_name: str = ""
    node_ip: str = "127.0.0.1"
    preload: list[str] = []
    job: Job | None = None
    """The job of the driver that launches the head: its first workers are forked before it registers."""
    prestart: int = 0
    """How many workers to fork for `job` at once."""
    place: str = "local"
    """Where the node can be reached from others: see `shoal.wire.addresses`. The daemon finds it out itself if it has a door."""
    host: str = ""
    """The IP address of the door; "" for a session without one."""
    port: int = 0
    """The port of the door; 0 for any that is free."""
    control: str = ""
    """Host and port of the control store; "" for one in the daemon's own process."""
    cluster_name: str = ""
    is_head: bool = False
    """Whether the node was started together with the control store."""


class ControlBoot(msgspec.Struct, array_like=True):
    """Everything that the process of a control store must know."""

    token: bytes
    cluster_name: str
    directory: str
    """Its folder, with `logs/` in it. It removes the folder when it ends in good order, by SIGTERM or with its starter; what another
    end leaves there is for the next control store."""
    lock_fd: int
    """An inherited descriptor that holds the lock of the folder."""
    listen_fd: int
    """An inherited descriptor: the TCP socket, which listens already, so that nodes may be started at the same time."""
    place: str
    """Host and port of that socket."""
    storage: str
    """Its address: see `shoal.control.storage.opening`."""
    starter_pid: int
    """Whoever starts it, and with whom it ends; 0: it ends when it is told to."""
    config: Config


class Ready(msgspec.Struct, array_like=True, tag=1):
    """The process serves at `address`: a node's Unix socket, or host and port of a control store. `place` and `node_id` are those of
    a node."""

    address: str
    pid: int
    place: str = ""
    node_id: bytes = b""


class BootFailed(msgspec.Struct, array_like=True, tag=2):
    """The process could not start, and has ended."""

    reason: str


BootAnswer = Ready | BootFailed


class NodeFile(msgspec.Struct, kw_only=True):
    """What the session folder of a node says of it, as JSON. It is there as soon as the node serves. `control` is empty if the node is
    all of a program's own session."""

    node_id: str
    node_name: str
    place: str
    control: str
    cluster_name: str
    pid: int
    starter_pid: int
    """0 for a node that is nobody's, as `shoal start` leaves them."""
    is_head: bool
    version: str
    python: str
    tls: dict[str, str] = {}
    """The settings by which it speaks TLS, if it does: paths on this machine."""


class ControlFile(msgspec.Struct, kw_only=True):
    """What the folder of a control store says of it, as JSON."""

    cluster_name: str
    control: str
    pid: int
    starter_pid: int
    storage: str
    """Its address, without passwords."""
    version: str


class WorkerBoot(msgspec.Struct):
    """What a worker knows when it begins to run. `address` is its own, `node_path` the socket of its node daemon."""

    worker_id: bytes
    node_path: str
    token: bytes
    address: str
    job: Job
