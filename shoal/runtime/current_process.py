"""The one documented global: the runtime of this process, from `init` (or the worker's start) to `shutdown`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from shoal.errors import NotInitializedError

if TYPE_CHECKING:
    from shoal.runtime.process import Process

process: Process | None = None

auto_init: Callable[[], None] | None = None
"""Set by the API layer: what starts shoal when a program uses it without `init`."""


def require() -> Process:
    """The runtime, started if that may be done automatically.

    Raises:
        NotInitializedError: shoal is not running and may not start by itself.
    """
    if process is None and auto_init is not None:
        auto_init()
    if process is None:
        raise NotInitializedError("shoal is not running in this process; call shoal.init() first")
    return process


def set_process(runtime: Process | None) -> None:
    """Make `runtime` the process's runtime."""
    global process  # noqa: PLW0603 - the documented global
    process = runtime
