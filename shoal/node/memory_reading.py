"""How much memory the machine, this node's control groups, and single processes use: read off the kernel's files, and cheap.

`levels` reads a handful of small files and may be called several times a second. What costs a file for each process is asked for
when memory is short only. Everything is relative to a root, so that tests can bring their own kernel.

What counts as used is what the kernel could not take back: shared memory counts, copies of files on disk do not.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final, NamedTuple

from shoal.kernel.control_groups import memory_groups
from shoal.kernel.processes import pids, stat_of

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_BLOCK: Final = 512


class Level(NamedTuple):
    """One bound: `name` is whose memory it bounds."""

    name: str
    used: int
    limit: int

    @property
    def part(self) -> float:
        """Which part of it is used."""
        return self.used / self.limit


class Usage(NamedTuple):
    """What one process has for itself."""

    pid: int
    name: str
    private_bytes: int


class MemoryReading:
    """See the module's docstring."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._proc = root / "proc"
        self._groups = memory_groups(root / "proc/self/cgroup", root / "sys/fs/cgroup")

    def levels(self) -> list[Level]:
        """The machine, and each control group around this process that has a limit of its own."""
        found: list[Level] = []
        machine = self._machine()
        if machine is not None:
            found.append(machine)
        for group in self._groups:
            limit = group.limit_bytes()
            # Version 1 has a number for "no limit", too.
            if limit and (machine is None or limit < machine.limit):
                found.append(Level("its control group", group.used_bytes(), limit))
        return found

    def _machine(self) -> Level | None:
        wanted = {"MemTotal:": 0, "MemAvailable:": -1}
        try:
            with open(self._proc / "meminfo", encoding="ascii") as file:
                for line in file:
                    name, amount, *_ = line.split()
                    if name in wanted:
                        wanted[name] = int(amount) * 1024
                    if name == "MemAvailable:":
                        break
        except (OSError, ValueError):
            return None
        total, available = wanted.values()
        if not total or available < 0:
            return None
        return Level("the machine", total - available, total)

    def private_bytes(self, pid: int) -> int:
        """What a process has for itself: its anonymous memory, since what it has mapped of files and of shared memory is not its own.
        0 if it is gone."""
        try:
            fields = (self._proc / str(pid) / "statm").read_text(encoding="ascii").split()
            resident, shared = int(fields[1]), int(fields[2])
        except (OSError, ValueError, IndexError):
            return 0
        return max(0, resident - shared) * _PAGE

    def of_groups(self, leaders: Iterable[int]) -> dict[int, int]:
        """What each of these has for itself, and with it all that it has started and that is still in its process group. Looks at
        every process of the machine."""
        found = dict.fromkeys(leaders, 0)
        for pid in self._pids():
            leader = self._leader_of(pid)
            if leader in found:
                found[leader] += self.private_bytes(pid)
        return found

    def biggest(self, but: Collection[int], most: int) -> list[Usage]:
        """The processes that have most for themselves, without the process groups that those in `but` lead. Looks at every process of the
        machine."""
        found = [(self.private_bytes(pid), pid) for pid in self._pids()]
        found.sort(reverse=True)
        found = [(used, pid) for used, pid in found if self._leader_of(pid) not in but]
        return [Usage(pid, self._name(pid), used) for used, pid in found[:most] if used]

    def _pids(self) -> list[int]:
        return pids(self._proc)

    def _leader_of(self, pid: int) -> int:
        """The leader of a process's group; 0 if it is gone."""
        stat = stat_of(pid, self._proc)
        return 0 if stat is None else stat.group

    def _name(self, pid: int) -> str:
        try:
            return (self._proc / str(pid) / "comm").read_text(errors="replace").strip()
        except OSError:
            return "ended"

    def oom_kills(self) -> int:
        """How often the kernel has killed for want of memory: in the innermost control group that says, else on the machine."""
        for group in self._groups:
            kills = group.oom_kills()
            if kills is not None:
                return kills
        try:
            with open(self._proc / "vmstat", encoding="ascii") as file:
                for line in file:
                    if line.startswith("oom_kill "):
                        return int(line.split()[1])
        except (OSError, ValueError):
            pass
        return 0


def folder_bytes(folder: str) -> int:
    """What the files in a folder take up."""
    total = 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    total += entry.stat(follow_symlinks=False).st_blocks * _BLOCK
                except FileNotFoundError:
                    continue
    except FileNotFoundError:
        pass
    return total
