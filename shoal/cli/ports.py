"""Who listens at a port of this machine, as far as this user may know."""

from __future__ import annotations

import contextlib
import os
from typing import Final

_LISTENS: Final = "0A"
_TABLES: Final = ("/proc/net/tcp", "/proc/net/tcp6")


def holder_of(port: int) -> str:
    """The process that listens at a TCP port, as in "python3 (pid 12)"; "" if that cannot be found out."""
    inodes = _listening(port)
    for pid in os.listdir("/proc") if inodes else ():
        if not pid.isdigit():
            continue
        # It may end, or be another user's.
        with contextlib.suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                if os.readlink(f"/proc/{pid}/fd/{fd}") in inodes:
                    with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
                        return f"{file.read().strip()} (pid {pid})"
    return ""


def _listening(port: int) -> set[str]:
    """What a descriptor of a socket that listens there looks like."""
    found: set[str] = set()
    for table in _TABLES:
        with contextlib.suppress(OSError), open(table, encoding="ascii") as file:
            for line in file.readlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENS and int(fields[1].rpartition(":")[2], 16) == port:
                    found.add(f"socket:[{fields[9]}]")
    return found
