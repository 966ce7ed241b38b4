"""The processes that a measurement started: their memory, and their end.

Owns: finding every one of them, however far it detached itself.  On Linux the launcher becomes a
*child subreaper*, so an orphan whose parent died is handed to the launcher instead of to process
1, and "all descendants of the launcher that were not there before" is the whole truth.  Elsewhere
orphans escape.

Guarantees: after ``sweep()`` none of them is left.  Only descendants are ever signalled.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass, field
from typing import Any

import psutil

_PR_SET_CHILD_SUBREAPER = 36
_KILLED_WITHIN_S = 5.0


def become_subreaper() -> bool:
    """Have orphaned descendants handed to this process; False where the system cannot."""
    return _set_subreaper(True)


def resign_as_subreaper() -> bool:
    """Have orphaned descendants handed to others again; False where the system cannot."""
    return _set_subreaper(False)


def _set_subreaper(wanted: bool) -> bool:
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.prctl(_PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0) == 0)


def _descendants() -> list[Any]:
    return list(psutil.Process().children(recursive=True))


@dataclass(slots=True)
class Brood:
    """What was started since this object was made."""

    _before: set[Any] = field(default_factory=lambda: set(_descendants()))

    def processes(self) -> list[Any]:
        return [process for process in _descendants() if process not in self._before]

    def memory(self) -> dict[str, int]:
        """Unique and proportional memory, in bytes, summed over the processes, zombies aside.

        Unique: pages that no other process maps, the memory that ends with the process.  Pages
        shared by two forks count in neither; the proportional figure splits them between both.
        """
        unique = proportional = count = 0
        for process in self.processes():
            try:
                seen = process.memory_full_info()
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue  # ended between the listing and the reading
            unique += seen.uss
            proportional += getattr(seen, "pss", seen.uss)
            count += 1
        return {
            "unique_bytes": unique,
            "proportional_bytes": proportional,
            "processes": count,
        }

    def sweep(self, grace_s: float) -> list[str]:
        """End what is still there; return the names of those that were alive after the grace.

        Waiting also reaps the orphans that were handed to this process.
        """
        left = self.processes()
        _, late = psutil.wait_procs(left, timeout=grace_s)
        names = [_name(process) for process in late]
        while late:
            for process in late:
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    continue
            psutil.wait_procs(late, timeout=_KILLED_WITHIN_S)
            late = self.processes()  # children that a killed process left to us
        return names


def _name(process: Any) -> str:
    try:
        return " ".join(process.cmdline()[:4]) or str(process.name())
    except psutil.Error:
        return f"pid {process.pid}"
