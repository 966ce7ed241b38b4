"""Ending nodes and control stores from outside: asked first, killed when their time is up, and what they leave removed.

Guarantees: only the processes that carry the name of the folder in their environment are signalled, so a pid that has become another's is
left alone; when a function here returns, the folder it was about is gone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import Final

from shoal.kernel.processes import has_variable
from shoal.runtime.joining import FoundControl, FoundNode
from shoal.runtime.session_folder import SESSION_VARIABLE, kill_orphans, shm_of
from shoal.runtime.starters import Starting
from shoal.wire.session import HEAD, STORAGE_FILE, is_alive, remove_session

_LOOK_S: Final = 0.02
_AFTER_KILL_S: Final = 6.0
"""What the zygote takes at most to clean up after a node daemon that was killed."""


def end_node(node: FoundNode, grace_s: float, *, told: bool = False) -> bool:
    """End a node, which may have been told already; whether it had to be killed."""
    killed = _end(node.directory, node.file.pid, grace_s, told)
    if os.path.exists(node.directory):
        kill_orphans(node.directory)
        remove_session(node.directory, shm_of(node.directory))
    return killed


def end_control(control: FoundControl, grace_s: float) -> bool:
    """End a control store, or remove what a dead one has left; whether it had to be killed."""
    killed = False
    if control.file is not None:
        killed = _end(control.directory, control.file.pid, grace_s)
    if not is_alive(control.directory):
        remove_session(control.directory, "")
    return killed


def end_starting(starting: Starting, grace_s: float) -> bool:
    """End what does not serve yet and nobody starts any more: whoever did was killed, or takes its time. Whether it had to be killed."""
    directory = starting.directory
    killed = False
    with contextlib.suppress(OSError, ValueError):
        with open(f"{directory}/{HEAD}", encoding="ascii") as file:
            pid = int(file.read())
        killed = _end(directory, pid, grace_s)
    if starting.is_node:
        if os.path.exists(directory):
            kill_orphans(directory)
            remove_session(directory, shm_of(directory))
    elif not is_alive(directory) and not os.path.exists(f"{directory}/{STORAGE_FILE}"):
        remove_session(directory, "")
    return killed


def tell_to_end(directory: str, pid: int) -> None:
    """Ask a process to end, without waiting."""
    _signal(directory, pid, signal.SIGTERM)


def _end(directory: str, pid: int, grace_s: float, told: bool = False) -> bool:
    if grace_s > 0:
        # Once: a daemon that is nearly done has let go of its handlers, and would be cut short.
        if not told:
            tell_to_end(directory, pid)
        if _await_end(directory, grace_s):
            return False
    if not is_alive(directory):
        return False
    _signal(directory, pid, signal.SIGKILL)
    _await_end(directory, _AFTER_KILL_S)
    return True


def _await_end(directory: str, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while os.path.exists(directory) and is_alive(directory):
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_S)
    return True


def _signal(directory: str, pid: int, number: int) -> None:
    if has_variable(pid, SESSION_VARIABLE, os.path.basename(directory)):
        # It may have ended just now.
        with contextlib.suppress(OSError):
            os.kill(pid, number)
