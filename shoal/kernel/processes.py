"""What the kernel says of a process, by its pid: files below `/proc` (Linux).

Any process may end at any moment, and its pid may be another's then: who acts on an answer compares `began`, or a mark in the
environment, and admits the moment between.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, NamedTuple

PROC: Final = Path("/proc")


class ProcessStat(NamedTuple):
    """A process that there is.

    Attributes:
        dead: It has ended, and is not waited for yet.
        group: Its process group, by the pid of that one's leader.
        session: Its terminal session, by the pid of that one's leader.
        began: When it was started, in ticks since the machine was.
    """

    dead: bool
    group: int
    session: int
    began: int


def stat_of(pid: int, proc: Path = PROC) -> ProcessStat | None:
    """What is said of a process; None if there is none of this pid."""
    try:
        # The name stands in brackets and may have any character in it. After it: state, parent, group, session, …
        words = (proc / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return ProcessStat(words[0] in {b"Z", b"X"}, int(words[2]), int(words[3]), int(words[19]))


def pids(proc: Path = PROC) -> list[int]:
    """All processes that there are."""
    return [int(name) for name in os.listdir(proc) if name.isdecimal()]


def has_variable(pid: int, name: str, value: str, proc: Path = PROC) -> bool:
    """Whether a process was started with a variable of this value in its environment; False if that cannot be seen, as of other users'."""
    try:
        environment = (proc / str(pid) / "environ").read_bytes()
    except OSError:
        return False
    return f"{name}={value}".encode() in environment.split(b"\0")
