"""What is still starting: each folder of a node or control store that `shoal start` makes names the process that starts it.

Until a node or control store says itself that it serves, whoever started it answers for it, and cleans up if it is told to end. So
`shoal stop` ends that one. A process is known by its pid and the moment of its start, since pids are used again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import Final, NamedTuple

from shoal.kernel.processes import stat_of
from shoal.wire.session import (
    CONTROL_FILE,
    CONTROL_PREFIX,
    NODE_FILE,
    SESSION_PREFIX,
    STARTER,
    is_alive,
    write_private,
)

_LOOK_S: Final = 0.02


class Starting(NamedTuple):
    """A folder in which somebody lives who does not serve yet. `starter_pid` is 0 if who started it has ended."""

    directory: str
    starter_pid: int

    @property
    def is_node(self) -> bool:
        """Whether it is that of a node, and not of a control store."""
        return os.path.basename(self.directory).startswith(SESSION_PREFIX)


def note_starter(directory: str) -> None:
    """This process starts what is to live in a folder."""
    pid = os.getpid()
    write_private(f"{directory}/{STARTER}", f"{pid} {_began(pid)}".encode())


def find_starting(root: str) -> list[Starting]:
    """What `shoal start` has begun in a folder of sessions, and what has not said yet that it serves."""
    found = []
    for name in sorted(os.listdir(root)):
        directory = f"{root}/{name}"
        said = {SESSION_PREFIX: NODE_FILE, CONTROL_PREFIX: CONTROL_FILE}.get(name[:2])
        if said is None or os.path.exists(f"{directory}/{said}"):
            continue
        # What cannot be read is of a program's own session, half made, or half removed.
        with contextlib.suppress(OSError, ValueError):
            with open(f"{directory}/{STARTER}", "rb") as file:
                pid, began = (int(word) for word in file.read().split())
            if is_alive(directory):
                found.append(Starting(directory, pid if _began(pid) == began else 0))
    return found


def end_starters(starting: list[Starting], deadline: float) -> None:
    """Tell those who start something to end, which undoes what they have begun, and wait for that; kill those that take longer than
    until `deadline`, a time of `time.monotonic`."""
    # By pid and beginning, or another process would be waited for.
    pids = {each.starter_pid: _began(each.starter_pid) for each in starting if each.starter_pid}
    _signal(pids, signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL)
    while _living(pids) and time.monotonic() < deadline:
        time.sleep(_LOOK_S)
    _signal(_living(pids), signal.SIGKILL)


def _living(pids: dict[int, int]) -> dict[int, int]:
    return {pid: began for pid, began in pids.items() if began and _began(pid) == began}


def _signal(pids: dict[int, int], number: int) -> None:
    for pid in _living(pids):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _began(pid: int) -> int:
    """When a process was started, in ticks since the machine was; 0 if there is none of this pid, or it is dead and not waited for."""
    stat = stat_of(pid)
    return 0 if stat is None or stat.dead else stat.began
