"""The one documented global: the runtime of this process, from `init` (or the worker's start) to `shutdown`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from shoal.errors import NotInitializedError

if TYPE_CHECKING:
    from shoal.runtime.process import Process

process: Process | None = None

auto_init: Callable[[], None] | None = None
"""Set by the API layer: what starts shoal when a program uses it without `init`."""


_forked_from = 0
"""The process of which this one is a fork, if shoal ran there when it was forked."""


def require() -> Process:
    """The runtime, started if that may be done automatically.

    Raises:
        NotInitializedError: shoal is not running and may not start by itself; in a fork of a process in which it ran, it must be told to.
    """
    refuse_forked()
    if process is None and auto_init is not None:
        auto_init()
    if process is None:
        raise NotInitializedError("shoal is not running in this process; call shoal.init() first")
    return process


def refuse_forked() -> None:
    """See that this is not a fork of a process in which shoal ran, without a session of its own.

    Raises:
        NotInitializedError: it is.
    """
    if _forked_from and process is None:
        raise forked_error(_forked_from)


def forked_error(pid: int) -> NotInitializedError:
    """The error for what cannot be done in a fork of the process `pid`."""
    return NotInitializedError(
        f"shoal was started in process {pid}, and this one (pid {os.getpid()}) is a fork of it: it has copies of the other's connections and "
        "memory, and cannot speak for it. Have the work done by a task or an actor, or pass data through pipes and queues; a session of its own, "
        "in which the references of the other mean nothing, is begun by shoal.init(), best in a new interpreter "
        "(multiprocessing.get_context('spawn'))"
    )


def set_forked(pid: int) -> None:
    """This process is a child of `pid`, in which shoal runs: here it does not."""
    global _forked_from, process  # noqa: PLW0603 - what this process is
    _forked_from = pid
    process = None


def set_process(runtime: Process | None) -> None:
    """Make `runtime` the process's runtime."""
    global process  # noqa: PLW0603 - the documented global
    process = runtime
