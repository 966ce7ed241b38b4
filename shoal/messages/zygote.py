"""Between the node daemon and the zygote, the process that forks its workers (a Unix socket pair).

A `Fork` is accompanied by two descriptors (SCM_RIGHTS): the write ends of the pipes that become the worker's standard
output and standard error.
"""

from __future__ import annotations

import msgspec

from shoal.messages.node import Job


class Fork(msgspec.Struct, array_like=True, tag=1):
    """Fork a worker. `environ` is added to its environment before anything else runs."""

    worker_id: bytes
    job: Job
    environ: dict[str, str]


class Preload(msgspec.Struct, array_like=True, tag=2):
    """Import these modules now, so that workers share their pages; failures are ignored."""

    modules: list[str]
    sys_path: list[str]


class Kill(msgspec.Struct, array_like=True, tag=3):
    """Signal a worker and its process group."""

    pid: int
    signal: int


class Forked(msgspec.Struct, array_like=True, tag=4):
    """A worker exists; or it does not, and `error` says why (pid 0)."""

    worker_id: bytes
    pid: int
    error: str = ""


class Exited(msgspec.Struct, array_like=True, tag=5):
    """A worker has ended. `status` is as `os.waitstatus_to_exitcode` gives it: negative for a signal.
    `peak_bytes` is the most that was resident of it."""

    pid: int
    status: int
    peak_bytes: int = 0


ToZygote = Fork | Preload | Kill
FromZygote = Forked | Exited
