"""The control groups that bound the memory of this process, in either version of them: where they are, and what their files say.

A limit holds for a group and all within it, so what counts is the tightest of this process's group and all groups around it. Inside
a container the path in `/proc/self/cgroup` is often that of the host, and only the top of the tree is visible; levels that
cannot be seen are skipped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

CGROUPS: Final = Path("/sys/fs/cgroup")
OWN_GROUPS: Final = Path("/proc/self/cgroup")

_RECLAIMABLE: Final = {
    1: frozenset({"total_inactive_file", "total_active_file"}),
    2: frozenset({"inactive_file", "active_file", "slab_reclaimable"}),
}
"""What the kernel takes back when memory is short: copies of files that are on disk. Shared memory is not among it."""


class MemoryGroup(NamedTuple):
    """One control group. `version` is that of its hierarchy, 1 or 2."""

    folder: Path
    version: int

    def limit_bytes(self) -> int | None:
        """What its processes may use together; None if that is not limited, or not visible."""
        name = "memory.max" if self.version == 2 else "memory.limit_in_bytes"
        text = _read(self.folder / name).strip()
        return int(text) if text.isdigit() else None

    def used_bytes(self) -> int:
        """What its processes use, without what the kernel takes back when memory is short."""
        name = "memory.current" if self.version == 2 else "memory.usage_in_bytes"
        text = _read(self.folder / name).strip()
        if not text.isdigit():
            return 0
        reclaimable = _RECLAIMABLE[self.version]
        spare = sum(
            count
            for key, count in _table(self.folder / "memory.stat").items()
            if key in reclaimable
        )
        return max(0, int(text) - spare)

    def oom_kills(self) -> int | None:
        """How many of its processes the kernel has killed for want of memory; None if it does not say."""
        name = "memory.events" if self.version == 2 else "memory.oom_control"
        return _table(self.folder / name).get("oom_kill")


def memory_groups(own_groups: Path = OWN_GROUPS, top: Path = CGROUPS) -> list[MemoryGroup]:
    """This process's groups, from its own to the top."""
    groups: list[MemoryGroup] = []
    for line in _read(own_groups).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, version = top, 2
        elif "memory" in controllers.split(","):
            root, version = top / "memory", 1
        else:
            continue
        own = root / path.lstrip("/")
        for folder in (own, *own.parents):
            groups.append(MemoryGroup(folder, version))
            if folder == root:
                break
    return groups


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""


def _table(path: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    table: dict[str, int] = {}
    for line in _read(path).splitlines():
        name, _, number = line.partition(" ")
        if number.isdigit():
            table[name] = int(number)
    return table
