"""What every process of a cluster has: memory of its own, descriptors, threads; and what shared memory and the folders for spilled
objects hold.

*Unique* memory is that of pages which nobody else maps. *Anonymous* memory is what the process has taken from the system, whether or not
a fork shares it: unlike the unique, it stays as it is when a process ends that had mapped the same pages. Pages of objects, in shared
memory or in files of the session, are counted by themselves, since whoever looks at an object maps them. Reads /proc (Linux); what is
measured is not asked for anything, and does not notice.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

SHARED_MEMORY: Final = "/dev/shm/"
_BLOCK: Final = 512
_KB: Final = 1024


@dataclass(frozen=True)
class Usage:
    """Of one process at one moment, in bytes. `mappings` has the anonymous bytes by what is mapped."""

    unique: int
    anonymous: int
    objects: int
    mappings: dict[str, int] = field(repr=False)
    descriptors: int = 0
    threads: int = 0


@dataclass(frozen=True)
class Row:
    """What a sample says of one process."""

    seconds: float
    phase: str
    pid: int
    kind: str
    usage: Usage


@dataclass(frozen=True)
class Stores:
    """What there is of objects on all nodes, in bytes and files; and what else their session folders have, which is mostly logs."""

    seconds: float
    phase: str
    memory: int
    memory_files: int
    disk: int
    disk_files: int
    session: int
    session_files: int
    done: dict[str, int]


def read_usage(pid: int, root: str) -> Usage | None:
    """What a process has, None if it has ended; `root` is the folder of the sessions."""
    try:
        with open(f"/proc/{pid}/smaps", "rb") as file:
            text = file.read().decode(errors="replace")
        descriptors = len(os.listdir(f"/proc/{pid}/fd"))
        threads = len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return None
    if not text:  # it has ended, and was not waited for yet
        return None
    objects = unique = anonymous = 0
    mappings: dict[str, int] = {}
    name, of_object = "", False
    for line in text.splitlines():
        first, _, rest = line.partition(" ")
        if not first.endswith(":"):
            words = rest.split(None, 4)
            name = words[4] if len(words) > 4 else "anonymous"
            of_object = name.startswith((SHARED_MEMORY, root))
        elif of_object:
            if first == "Rss:":
                objects += int(rest.split()[0]) * _KB
        elif first in ("Private_Clean:", "Private_Dirty:"):
            unique += int(rest.split()[0]) * _KB
        elif first == "Anonymous:":
            size = int(rest.split()[0]) * _KB
            if size:
                anonymous += size
                mappings[name] = mappings.get(name, 0) + size
    return Usage(unique, anonymous, objects, mappings, descriptors, threads)


def files_under(folders: list[str]) -> tuple[int, int]:
    """Bytes and number of the files in some folders, of all depths; without the lock file that each process has for its memory."""
    size = count = 0
    for folder in folders:
        for path, _, names in os.walk(folder):
            for name in names:
                if name.endswith(".locks"):
                    continue
                try:
                    size += os.stat(f"{path}/{name}", follow_symlinks=False).st_blocks * _BLOCK
                except FileNotFoundError:
                    continue
                count += 1
    return size, count


def family(fixed: dict[int, str], roles: dict[int, str]) -> Iterator[tuple[int, str]]:
    """The processes and their kinds: those that are known, and below each daemon its zygote and the workers of that."""
    for pid, kind in list(fixed.items()):
        yield pid, kind
        if kind.startswith("daemon"):
            for zygote in _children(pid):
                yield zygote.pid, f"zygote{kind.removeprefix('daemon')}"
                for worker in _children(zygote.pid):
                    yield worker.pid, roles.get(worker.pid, "worker")


def _children(pid: int) -> list[psutil.Process]:
    try:
        return list(psutil.Process(pid).children())
    except psutil.NoSuchProcess:
        return []


class Sampler:
    """Looks every so many seconds, in a thread of its own. `phase`, `fixed` and `roles` are set by whoever runs the load."""

    def __init__(
        self,
        every_s: float,
        root: Path,
        stores: list[str],
        spills: list[str],
        done: Callable[[], dict[str, int]],
    ) -> None:
        self.phase = "start"
        self.fixed: dict[int, str] = {}
        self.roles: dict[int, str] = {}
        self.rows: list[Row] = []
        self.stores: list[Stores] = []
        self._every_s = every_s
        self._root = f"{root}/"
        self._store_folders = stores
        self._spill_folders = spills
        self._done = done
        self._began = time.monotonic()
        self._over = threading.Event()
        self._looking = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="samples")

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._every_s):
            self.look()

    def look(self) -> list[Row]:
        """One sample more; returns what it says of the processes."""
        with self._looking:
            seconds = time.monotonic() - self._began
            rows = []
            for pid, kind in family(self.fixed, self.roles):
                usage = read_usage(pid, self._root)
                if usage is not None:
                    rows.append(Row(seconds, self.phase, pid, kind, usage))
            self.rows += rows
            memory = files_under(self._store_folders)
            disk = files_under(self._spill_folders)
            size, count = files_under([self._root])
            other = size - disk[0], count - disk[1]
            stores = Stores(seconds, self.phase, *memory, *disk, *other, self._done())
            self.stores.append(stores)
            return rows
