"""How processes are born: what the head is told when a driver launches it, and a worker when it is forked.

The driver writes one `Boot` record to the head's standard input, framed as everywhere, and keeps that pipe open as a
lifeline: its end tells the head that the driver is gone, however it went. The head writes one `Ready` or `BootFailed`
frame to its standard output. A `WorkerBoot` never crosses a socket: it is what a forked worker finds in its memory.
"""

from __future__ import annotations

import msgspec

from shoal.config import Config
from shoal.messages.node import Job


class Boot(msgspec.Struct, array_like=True):
    """Everything that the head process must know. `total` is in units of 1/10,000, like all amounts."""

    token: bytes
    session: str
    session_dir: str
    shm_dir: str
    lock_fd: int
    """An inherited descriptor that holds the lock of the session's folder."""
    driver_pid: int
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
    """Where the node can be reached from others: see `shoal.wire.addresses`."""


class Ready(msgspec.Struct, array_like=True, tag=1):
    """The head serves at `address`."""

    address: str
    pid: int


class BootFailed(msgspec.Struct, array_like=True, tag=2):
    """The head could not start, and has ended."""

    reason: str


BootAnswer = Ready | BootFailed


class ControlBoot(msgspec.Struct, array_like=True):
    """Everything that a control store of its own must know, on its standard input."""

    token: bytes
    name: str
    """The cluster's. Clusters that share a Redis server have different ones."""
    storage: str
    """Where it keeps what must outlive it, with passwords if need be."""
    config: Config
    host: str = "127.0.0.1"
    port: int = 0
    lifeline: bool = False
    """End at the end of standard input."""
    tls_cert: str = ""
    tls_key: str = ""
    tls_ca: str = ""


class ControlReady(msgspec.Struct, array_like=True, tag=1):
    """The control store serves."""

    port: int
    pid: int
    cluster_id: bytes


class ControlFailed(msgspec.Struct, array_like=True, tag=2):
    """The control store could not start, and has ended."""

    reason: str


ControlBootAnswer = ControlReady | ControlFailed


class WorkerBoot(msgspec.Struct):
    """What a worker knows when it begins to run. `address` is its own, `node_path` the socket of its node daemon."""

    worker_id: bytes
    node_path: str
    token: bytes
    address: str
    job: Job
